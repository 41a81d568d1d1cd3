"""Questions and pairs: what the members mean, and batches that no division of the work changes."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.augment import write_evaluation_view
from data_pipeline.errors import DataError, UsageError
from data_pipeline.loader import evaluation_batches, open_loader
from data_pipeline.questions import QuestionConfig, targets
from data_pipeline.sample import BadSample, Question, parse_questions, parse_sample
from data_pipeline.shards.manifest import Manifest, index
from data_pipeline.shards.verify import verify
from data_pipeline.shards.write import write_shards
from tests.data_pipeline.batches import BATCH, OPTIONS, START, joined_parts, read, rows
from tests.data_pipeline.conftest import encoded_image

ANSWERS = ("yes", "no", "red", "blue")
LABELS = QuestionConfig(labels=(("yes", 0), ("Yes", 0), ("no", 1), ("red", 2)), count=3, soft="vqa")
TRUTH = QuestionConfig(labels=(("False", 0), ("True", 1)), count=2, soft="share")


def question(number, answers=("yes",) * 10, text="is the star red?", **more):
    return {"id": number, "question": text, "answers": list(answers), **more}


def asked(*entries):
    return json.dumps({"questions": list(entries)}).encode()


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """60 images with one to three questions each and no captions, in two shards."""
    records = []
    for number in range(60):
        random = np.random.default_rng(number)
        entries = []
        for n in range(1 + number % 3):
            entries.append(
                question(
                    3 * number + n,
                    random.choice(ANSWERS, 10).tolist(),
                    f"is the star {number} {n} red?",
                )
            )
        records.append((f"{number:05d}", {"jpg": encoded_image(number), "json": asked(*entries)}))
    return write_shards(
        tmp_path_factory.mktemp("asked"), records, samples_per_shard=40, source={"name": "asked"}
    )


def paired(number, second="1.jpg", **changed):
    statement = question(
        f"dev-{number}-0-0", ["True"], "both are red", type="statement", group=f"dev-{number}-0"
    )
    members = {"0.jpg": encoded_image(2 * number), second: encoded_image(2 * number + 1)}
    return members | {"json": asked(statement)} | changed


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """60 pairs of images with a statement each."""
    records = [(f"dev-{number}-0-0", paired(number)) for number in range(60)]
    return write_shards(tmp_path_factory.mktemp("pairs"), records, source={"name": "pairs"})


# What the members mean. ---------------------------------------------------------------------------


def test_questions_are_read_with_all_their_fields():
    entry = question(
        4, ["red", "red", "dark red"], " what colour? ", type="colour", answer_type="other"
    )
    sample = parse_sample("7", {"jpg": b"pixels", "json": asked(entry)}, texts="questions")
    assert sample.questions == (
        Question(4, "what colour?", ("red", "red", "dark red"), "colour", "other"),
    )
    assert sample.captions == () and sample.annotations["questions"] == [entry]


def test_captions_are_read_beside_questions_and_required_without_them():
    members = {"jpg": b"pixels", "txt": b"a dog", "json": asked(question(1))}
    assert parse_sample("7", members, texts="questions").captions == ("a dog",)
    assert parse_sample("7", members).questions == ()
    with pytest.raises(BadSample, match="no caption"):
        parse_sample("7", {"jpg": b"pixels", "json": asked(question(1))})


def test_secret_answers_are_read_as_no_answers():
    (question,) = parse_questions("7", {"questions": [{"id": 1, "question": "what?"}]})
    assert question.answers == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("what?", "is not an object"),
        ({"question": "what?"}, '"id"'),
        ({"id": True, "question": "what?"}, '"id"'),
        ({"id": 1}, "has no text"),
        ({"id": 1, "question": " "}, "has no text"),
        ({"id": 1, "question": 2}, '"question" must be a text'),
        ({"id": 1, "question": "what?", "answers": "red"}, '"answers" must be a list of texts'),
        (
            {"id": 1, "question": "what?", "answers": [{"answer": "red"}]},
            '"answers" must be a list of texts',
        ),
        ({"id": 1, "question": "what?", "type": 3}, '"type" must be a text'),
        ({"id": 1, "question": "what \ud800"}, "surrogate"),
    ],
)
def test_a_malformed_question_is_a_bad_sample_that_says_where(entry, message):
    with pytest.raises(BadSample, match=message) as caught:
        parse_questions("7", {"questions": [question(0), entry]})
    assert "sample 7: question 1" in str(caught.value)


@pytest.mark.parametrize("annotations", [{}, {"questions": []}, {"questions": None}])
def test_a_sample_without_questions_is_missing_a_field(annotations):
    with pytest.raises(BadSample, match='no "questions"') as caught:
        parse_questions("7", annotations)
    assert caught.value.reason == "missing-field"


def test_a_pair_has_two_images_of_any_formats():
    sample = parse_sample("7", paired(0, second="1.png"), "pair", "questions")
    assert sample.media == encoded_image(0) and sample.second == encoded_image(1)
    assert sample.questions[0].group == "dev-0-0"


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.jpg": b"pixels"}, "no second image"),
        ({"0.jpg": b"pixels", "1.jpg": b""}, "its 1.jpg member is empty"),
        ({"1.jpg": b"pixels"}, "has no pair"),
        ({"jpg": b"pixels"}, "an image where a pair of images is needed"),
    ],
)
def test_half_a_pair_is_a_bad_sample(members, message):
    with pytest.raises(BadSample, match=message):
        parse_sample("7", members | {"json": asked(question(1))}, "pair", "questions")


def test_pairs_are_indexed_and_verified(pairs, tmp_path):
    assert pairs.fields == {"0.jpg": 60, "1.jpg": 60, "json": 60}
    assert index(pairs.root).fields == pairs.fields
    assert verify(pairs.root, decode=True) == []
    cut = encoded_image(1)[:300]
    bad = [
        paired(0, **{"1.jpg": b"no picture"}),
        paired(1, json=asked({"id": 1})),
        paired(2, **{"1.jpg": cut}),
    ]
    write_shards(
        tmp_path / "bad",
        [(str(n), members) for n, members in enumerate(bad)],
        source={"name": "bad"},
    )
    first, second, *_ = verify(tmp_path / "bad", decode=True)
    assert "sample 0: not a JPEG" in first and "sample 1: question 0 has no text" in second
    with pytest.raises(DataError, match="holds no images"):
        Manifest.load(pairs.root).check_kind("image")


def test_verify_names_malformed_regions(tmp_path):
    content = json.dumps({"captions": ["a dog"], "regions": [{"phrase": "dog"}]}).encode()
    write_shards(
        tmp_path / "bad",
        [("0", {"jpg": encoded_image(0), "json": content})],
        source={"name": "bad"},
    )
    assert "sample 0: region 0 ('dog') needs a list" in verify(tmp_path / "bad", decode=True)[0]


# Soft targets -------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([*ANSWERS, "Yes"]), min_size=1, max_size=12))
def test_soft_targets_are_the_mean_accuracy_over_all_but_one_annotator(answers):
    soft = targets(answers, dict(LABELS.labels), LABELS)
    for label in range(3):
        votes = [dict(LABELS.labels).get(answer) == label for answer in answers]
        others = list(combinations(votes, len(votes) - 1))
        assert soft[label] == pytest.approx(
            sum(min(1, sum(votes_of_others) / 3) for votes_of_others in others) / len(others)
        )
    assert soft.dtype == np.float32


def test_ten_equal_votes_give_one_and_three_of_ten_give_nine_tenths():
    answers = ["yes"] * 6 + ["no"] * 3 + ["green"]
    assert targets(answers, dict(LABELS.labels), LABELS).tolist() == pytest.approx([1, 0.9, 0])
    assert targets(["True"], dict(TRUTH.labels), TRUTH).tolist() == [0, 1]
    assert targets(answers, {"yes": 0, "no": 1}, TRUTH).tolist() == pytest.approx([0.6, 0.3])


@pytest.mark.parametrize(
    ("labels", "count", "soft", "message"),
    [
        ((("a", 2),), 2, "vqa", "labels from 0 to 1"),
        ((), 2, "vqa", "at least one"),
        ((("a", 0), ("a", 1)), 2, "vqa", "has 2 labels"),
        ((("a", 0),), 1, "hard", "not 'hard'"),
    ],
)
def test_labels_that_make_no_sense_are_refused(labels, count, soft, message):
    with pytest.raises(UsageError, match=message):
        QuestionConfig(labels, count, soft)


# Batches. -----------------------------------------------------------------------------------------


def read_rows(root, tokenizer, config, steps=2, micro_batches=1, **options):
    """`rows` of some steps with the targets."""
    options = {**OPTIONS, "micro_batches": micro_batches, "questions": config, **options}
    rows_read = []
    with open_loader([root], tokenizer=tokenizer, start_step=START, **options) as loader:
        for _ in range(steps * micro_batches):
            batch = next(loader)
            for row, target in zip(rows(batch), batch.targets, strict=True):
                rows_read.append(row | {"targets": target.tolist()})
    return rows_read


@pytest.mark.parametrize(
    ("world", "micro_batches", "workers"),
    [(2, 2, 0), (3, 1, 0), (1, 2, 2), (4, 2, 0), (1, BATCH, 0)],
)
@pytest.mark.parametrize("kind", ["questions", "pairs"])
def test_no_division_changes_the_questions(request, tokenizer, kind, world, micro_batches, workers):
    root = request.getfixturevalue(kind).root
    config, options = (LABELS, {}) if kind == "questions" else (TRUTH, {"pairs": True})
    whole = read_rows(root, tokenizer, config, **options)
    division = {"world": world, "micro_batches": micro_batches, "workers": workers}
    ranks = []
    for rank in range(world):
        ranks.append(read_rows(root, tokenizer, config, rank=rank, **division, **options))
    part = BATCH // world
    for step in range(2):
        divided = joined_parts(ranks, step, part)
        assert divided == whole[step * BATCH : (step + 1) * BATCH]


def test_text_and_targets_are_those_of_one_question_and_change_with_the_epoch(questions, tokenizer):
    meant = {}
    for batch in evaluation_batches(questions, size=32, batch_size=60, texts="questions"):
        for sample in batch.samples:
            meant[sample.key] = {}
            for asked_question in sample.questions:
                (encoding,) = tokenizer.encode([asked_question.question], 50)
                row = targets(asked_question.answers, dict(LABELS.labels), LABELS).tolist()
                meant[sample.key][tuple(encoding.ids)] = row
    drawn = {}
    for row in read_rows(questions.root, tokenizer, LABELS, steps=12):
        assert meant[row["key"]][tuple(row["text"])] == row["targets"]
        drawn.setdefault(row["key"], set()).add(tuple(row["text"]))
    assert sum(map(len, drawn.values())) > 0.9 * sum(map(len, meant.values()))


def test_added_questions_do_not_change_which_captions_are_drawn(images, tokenizer, tmp_path):
    """The same samples with questions added give the same rows when captions are read."""
    records = []
    for batch in evaluation_batches(images, size=32, batch_size=100, limit=100):
        for sample in batch.samples:
            members = {
                "jpg": sample.media,
                "txt": sample.captions[0].encode(),
                "json": asked(question(1)),
            }
            records.append((sample.key[-5:], members))
    more = write_shards(
        tmp_path / "images", records, samples_per_shard=100, source={"name": "images"}
    )
    plain = [(key, {"jpg": members["jpg"], "txt": members["txt"]}) for key, members in records]
    less = write_shards(tmp_path / "plain", plain, samples_per_shard=100, source={"name": "images"})
    assert read(more.root, tokenizer) == read(less.root, tokenizer)


def test_a_batch_of_pairs_is_marked_as_pairs(pairs, tokenizer):
    options = {**OPTIONS, "pairs": True, "questions": TRUTH, "dataset_negatives": True}
    with open_loader([pairs.root], tokenizer=tokenizer, **options) as loader:
        batch = next(loader)
    assert (batch.kind, batch.pixels.shape, batch.targets.shape) == (
        "pair",
        (BATCH, 2, 32, 32, 3),
        (BATCH, 2),
    )
    assert batch.negative_pixels.shape[1:] == (2, 32, 32, 3)
    assert batch.targets.dtype == torch.float32 and batch.targets[:, 1].sum() == BATCH
    assert batch.to("cpu").kind == "pair"
    assert not (batch.pixels[:, 0] == batch.pixels[:, 1]).flatten(1).all(1).any()


def test_an_evaluation_reads_both_images(pairs):
    (batch,) = evaluation_batches(
        pairs, size=32, batch_size=8, limit=3, pairs=True, texts="questions"
    )
    expected = np.empty((32, 32, 3), dtype=np.uint8)
    for row, sample in enumerate(batch.samples):
        for place, data in enumerate((sample.media, sample.second)):
            write_evaluation_view(data, expected)
            assert (batch.pixels[row, place].numpy() == expected).all()
        assert sample.annotations["questions"][0]["group"] == sample.questions[0].group


def test_samples_without_questions_or_answers_are_quarantined(tokenizer, tmp_path):
    image = encoded_image(1)
    spoiled = {
        1: {"jpg": image, "txt": b"a star"},
        3: {"jpg": image, "json": asked(question(1, []))},
    }
    good = {"jpg": image, "json": asked(question(1, []), question(2))}
    records = [(f"{number:05d}", spoiled.get(number, good)) for number in range(8)]
    root = write_shards(tmp_path / "asked", records, source={"name": "asked"}).root
    options = {**OPTIONS, "global_batch": 8, "questions": LABELS, "max_bad_fraction": 1.0}
    with open_loader(
        [root], tokenizer=tokenizer, quarantine=tmp_path / "bad.jsonl", **options
    ) as loader:
        batches = [next(loader) for _ in range(3)]
    assert all((batch.targets[:, 0] == 1).all() for batch in batches)
    bad = sorted(
        (json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()), key=str
    )
    assert {(record["key"], record["reason"]) for record in bad} == {
        ("00001", "missing-field"),
        ("00003", "missing-field"),
    }


def test_a_statement_with_another_spelling_is_a_bad_sample_and_too_many_stop(tokenizer, tmp_path):
    records = []
    for n in range(8):
        records.append((str(n), paired(n) if n else paired(n, json=asked(question(1, ["true"])))))
    root = write_shards(tmp_path / "pairs", records, source={"name": "pairs"}).root
    options = {**OPTIONS, "global_batch": 8, "questions": TRUTH, "pairs": True}
    file = tmp_path / "bad.jsonl"
    with open_loader(
        [root], tokenizer=tokenizer, quarantine=file, max_bad_fraction=1.0, **options
    ) as loader:
        batches = [next(loader) for _ in range(3)]
    assert all((batch.targets.sum(1) == 1).all() for batch in batches)
    [bad] = [json.loads(line) for line in file.read_text().splitlines()]
    assert bad["key"] == "0" and bad["reason"] == "bad-json"
    records = [(str(n), paired(n, json=asked(question(1, ["true"])))) for n in range(8)]
    root = write_shards(tmp_path / "all", records, source={"name": "all"}).root
    with (
        open_loader([root], tokenizer=tokenizer, **options) as loader,
        pytest.raises(
            DataError,
            match=r"sample all/.*: the answer 'true' is not one of the labels 'False', 'True'",
        ),
    ):
        next(loader)


def test_a_state_with_other_labels_is_refused(questions, tokenizer):
    def opened(config):
        return open_loader([questions.root], tokenizer=tokenizer, questions=config, **OPTIONS)

    state = opened(LABELS).state(2)
    opened(LABELS).check_state(state)
    for other in (QuestionConfig(LABELS.labels, 3, "share"), None):
        with pytest.raises(DataError, match="labels of the answers"):
            opened(other).check_state(state)


def test_pairs_of_videos_and_images_read_as_pairs_are_refused(pairs, images, tokenizer):
    with pytest.raises(UsageError, match="pairs hold images, not videos"):
        open_loader([pairs.root], tokenizer=tokenizer, pairs=True, frames=2, **OPTIONS)
    with pytest.raises(DataError, match="holds no pairs"):
        open_loader([images.root], tokenizer=tokenizer, pairs=True, **OPTIONS)


def test_workers_do_not_import_torch_for_questions():
    code = (
        "import sys, data_pipeline.questions, data_pipeline.regions; print('torch' in sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "False\n"
    )
