"""Questions and statements about scenes are answered again from their words, masks from pixels."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UsageError
from data_pipeline.loader import evaluation_batches
from data_pipeline.regions import decode_mask, parse_regions
from data_pipeline.sample import parse_sample
from data_pipeline.scenes.draw import draw
from data_pipeline.scenes.generate import generate, sample_at
from data_pipeline.scenes.graph import COLOURS, FILLS, HELD_OUT, SHAPES, SIZES
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.verify import verify

SPLITS = ("train", "val", "test", "novel")
PLURALS = {shape + ("es" if shape == "cross" else "s"): shape for shape in SHAPES} | {
    "shapes": None
}
NUMBERS = {"two": 2, "three": 3, "four": 4}


@pytest.fixture(scope="module")
def samples():
    """70 images of every split."""
    parsed = []
    for split in SPLITS:
        for i in range(70):
            parsed.append(parse_sample(*sample_at(0, split, i, 96), texts="questions"))
    return parsed


@pytest.fixture(scope="module")
def questions_and_objects(samples):
    questions = []
    for sample in samples:
        for question in sample.questions:
            questions.append((question, sample.annotations["scene"]["objects"]))
    return questions


# Reading the words. -------------------------------------------------------------------------------


def traits(item):
    """Return every word that is true of an object; its place by its center."""
    column, row = int(item["x"] // 32), int(item["y"] // 32)
    place = {("left", None, "right")[column], ("top", None, "bottom")[row]} - {None}
    return {item["size"], item["fill"], item["colour"], item["shape"], *(place or {"middle"})}


def meant(words, objects):
    """Return the objects that some words are true of."""
    told = set(words.split()) - {"a", "an", "the", "one", "at", "on", "in", "shape"}
    singular = {PLURALS.get(word, word) for word in told} - {None}
    words_known = {*SIZES, *FILLS, *COLOURS, *SHAPES, "left", "right", "top", "bottom", "middle"}
    assert singular <= words_known
    return [item for item in objects if singular <= traits(item)]


def the_one(words, objects):
    (item,) = meant(words, objects)
    return item


def stands(item, relation, other):
    across, down = other["x"] - item["x"], other["y"] - item["y"]
    return {"left of": across, "right of": -across, "above": down, "below": -down}[
        relation
    ] > 96 * 0.15


def answer(question, objects):
    """Answer a question from its words and the centers, extents and looks of the objects."""
    relation = "(left of|right of|above|below)"
    if match := re.fullmatch(r"is there (.+)\?", question):
        return "yes" if meant(match[1], objects) else "no"
    if match := re.fullmatch(r"how many (.+) are there\?", question):
        return str(len(meant(match[1], objects)))
    if match := re.fullmatch(r"what colour is (.+)\?", question):
        return the_one(match[1], objects)["colour"]
    if match := re.fullmatch(rf"what shape is {relation} (.+)\?", question):
        reference = the_one(match[2], objects)
        (item,) = (other for other in objects if stands(other, match[1], reference))
        return item["shape"]
    if match := re.fullmatch(r"what shape is (.+)\?", question):
        return the_one(match[1], objects)["shape"]
    if match := re.fullmatch(r"where is (.+)\?", question):
        place = traits(the_one(match[1], objects)) & {"top", "bottom", "left", "right", "middle"}
        return " ".join(sorted(place, key=["top", "bottom", "left", "right", "middle"].index))
    if match := re.fullmatch(r"are there more (.+) than (.+)\?", question):
        first, second = len(meant(match[1], objects)), len(meant(match[2], objects))
        assert first != second
        return "yes" if first > second else "no"
    if match := re.fullmatch(r"is (the .+) (larger|smaller) than (the .+)\?", question):
        ratio = the_one(match[1], objects)["extent"] / the_one(match[3], objects)["extent"]
        assert ratio > 1.4 or ratio < 1 / 1.4
        return "yes" if (ratio > 1) == (match[2] == "larger") else "no"
    match = re.fullmatch(rf"is (the .+?) {relation} (the .+)\?", question)
    return (
        "yes" if stands(the_one(match[1], objects), match[2], the_one(match[3], objects)) else "no"
    )


# Questions. ---------------------------------------------------------------------------------------


def test_every_answer_follows_from_the_words_of_its_question(questions_and_objects):
    for question, objects in questions_and_objects:
        assert set(question.answers) == {answer(question.question, objects)}
        assert len(question.answers) == 10
        assert question.question == question.question.lower()


def test_every_image_has_a_question_of_each_type(samples):
    types = {"existence", "count", "colour", "shape", "relation", "comparison"}
    ids = []
    for sample in samples:
        for question in sample.questions:
            ids.append(question.id)
    assert len(set(ids)) == len(ids)
    for sample in samples:
        assert (
            len(sample.questions) >= 6 and {question.type for question in sample.questions} == types
        )
        assert all(str(question.id).startswith(sample.image_id) for question in sample.questions)
    kinds = {
        "existence": {"yes/no"},
        "comparison": {"yes/no"},
        "count": {"number"},
        "colour": {"other"},
    }
    for question in chain.from_iterable(sample.questions for sample in samples):
        assert question.answer_type in kinds.get(question.type, {"yes/no", "other"})


def test_the_words_of_a_question_do_not_give_the_answer_away(samples, questions_and_objects):
    for sample in samples:
        assert sorted(q.answers[0] for q in sample.questions if q.type == "existence") == [
            "no",
            "yes",
        ]
    answers = defaultdict(Counter)
    for question, _ in questions_and_objects:
        answers[question.type][question.answers[0]] += 1
    yes = {}
    for name, match in answers.items():
        if match["no"]:
            yes[name] = match["yes"] / (match["yes"] + match["no"])
    assert set(yes) == {"existence", "relation", "comparison"}
    assert all(0.4 < share < 0.6 for share in yes.values())
    assert max(answers["colour"].values()) < 0.25 * len(samples) > max(answers["shape"].values())
    assert max(answers["count"].values()) < 0.5 * len(samples) and set(answers["count"]) == set(
        "01234"
    )


def test_questions_name_held_out_pairs_only_in_the_novel_split(samples):
    pairs = [f"{colour} {shape}" for colour, shape in HELD_OUT]
    counts = Counter()
    for sample in samples:
        for question in sample.questions:
            if question.type == "existence" and any(pair in question.question for pair in pairs):
                counts[sample.image_id.split("-")[0], question.answers[0]] += 1
    assert counts["novel", "yes"] == counts["novel", "no"] > 10 and len(counts) == 2


# Regions. -----------------------------------------------------------------------------------------


def test_phrases_are_part_of_the_captions_word_for_word(samples):
    counted = 0
    for sample in samples:
        objects = sample.annotations["scene"]["objects"]
        regions = parse_regions(sample.key, sample.annotations)
        assert [len(region.masks) for region in regions[: len(objects)]] == [1] * len(objects)
        for region in regions:
            texts = sample.captions if region.caption is None else [sample.captions[region.caption]]
            assert any(re.search(rf"\b{region.phrase}\b", text) for text in texts)
            number, *words = (
                region.phrase.split()
                if region.phrase.split()[0] in NUMBERS
                else ["", region.phrase]
            )
            assert len(region.boxes) == len(region.masks) == NUMBERS.get(number, 1)
            counted += bool(number)
            shown = (
                meant(words[0], objects)
                if region.caption is not None
                else [the_one(region.phrase, objects)]
            )
            for item, (x1, y1, x2, y2) in zip(shown, region.boxes, strict=True):
                assert x1 < item["x"] < x2 and y1 < item["y"] < y2
    assert counted > 5


def test_boxes_are_those_of_the_masks_and_masks_do_not_overlap(samples):
    for sample in samples[:70]:
        total = np.zeros((96, 96), int)
        count = len(sample.annotations["scene"]["objects"])
        for region in parse_regions(sample.key, sample.annotations)[:count]:
            mask = decode_mask(region.masks[0])
            rows, columns = np.nonzero(mask)
            assert region.boxes == ((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1),)
            total += mask
        assert total.max() == 1


@pytest.mark.parametrize("size", [48, 96])
def test_a_mask_covers_the_pixels_that_the_color_of_its_object_changes(size):
    """Painting an object black, then white, on a sharp image gives its share of each pixel."""
    for i in range(15):
        annotations = json.loads(sample_at(0, "test", i, size)[1]["json"])
        scene = annotations["scene"] | {"camera": {"blur": 0.01, "noise": 0.0}}
        for number, region in enumerate(
            parse_regions(str(i), annotations)[: len(scene["objects"])]
        ):
            painted = []
            for value in (0, 200):
                objects = [dict(item) for item in scene["objects"]]
                # Stripes are darker paint inside the same outline.
                fill = "solid" if objects[number]["fill"] == "striped" else objects[number]["fill"]
                objects[number] |= {"rgb": [value] * 3, "fill": fill}
                painted.append(draw(scene | {"objects": objects}).astype(float))
            covered = (painted[1] - painted[0]).mean(-1) / 200
            mask = decode_mask(region.masks[0])
            assert mask[covered > 0.6].all() and (covered[mask] > 0.4).all()


def test_labels_are_the_shapes_in_the_image(samples):
    for sample in samples:
        assert sample.annotations["labels"] == sorted(
            {item["shape"] for item in sample.annotations["scene"]["objects"]}
        )


RECORDED = [
    ("train", 0, 96, "bd7ef227a0ddb384", [133.9, 130.4, 124.2]),
    ("val", 3, 64, "4f207e33710bbaf4", [156.2, 147.5, 160.8]),
    ("test", 17, 96, "47545accf72cc168", [209.8, 184.9, 197.2]),
    ("novel", 1, 48, "1ee900f2ebb2cbd5", [134.5, 126.8, 125.9]),
]


@pytest.mark.parametrize(("split", "i", "size", "texts", "colour"), RECORDED)
def test_images_and_captions_are_those_of_version_1(split, i, size, texts, colour):
    _, members = sample_at(0, split, i, size)
    annotations = json.loads(members["json"])
    told = json.dumps(
        [annotations[name] for name in ("captions", "image_id", "scene", "statements")]
    )
    assert hashlib.sha256(told.encode()).hexdigest()[:16] == texts
    # Not a hash of the file: the last bit of a blur is another one on another processor.
    pixels = np.asarray(Image.open(io.BytesIO(members["jpg"])).convert("RGB"))
    assert pixels.mean((0, 1)).tolist() == pytest.approx(colour, abs=0.1)


# Pairs. -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Folder of 44 training, 8 validation, 3 test and 8 novel images, and of their pairs."""
    out = tmp_path_factory.mktemp("scenes")
    generate(out, train=44, val=8, test=3, novel=8, size=48, workers=1)
    return out


def pairs_of(out, split):
    manifest = Manifest.load(out / "pairs" / split)
    (batch,) = evaluation_batches(manifest, size=48, batch_size=100, pairs=True, texts="questions")
    return batch.samples


def pictures_of(out, split):
    (batch,) = evaluation_batches(Manifest.load(out / split), size=48, batch_size=100)
    return {sample.image_id: sample for sample in batch.samples}


def truth(statement, left, right):
    """Tell from its words whether a statement is true of the objects of two images."""

    def number(words):
        return len(meant(words, left)), len(meant(words, right))

    if match := re.fullmatch(
        "(at least one picture shows|only one picture shows|no picture shows) an? (.+)", statement
    ):
        showing = sum(map(bool, number(match[2])))
        return {"at": showing >= 1, "only": showing == 1, "no": showing == 0}[match[1].split()[0]]
    if match := re.fullmatch("both pictures show an? (.+)", statement):
        return all(number(match[1]))
    if match := re.fullmatch("both pictures show the same number of (.+)", statement):
        return len(set(number(match[1]))) == 1
    if match := re.fullmatch(
        "the left picture shows (more|fewer) (.+) than the right one", statement
    ):
        first, second = number(match[2])
        return first > second if match[1] == "more" else first < second
    match = re.fullmatch("there are exactly (two|three|four) (.+) in all", statement)
    return sum(number(match[2])) == NUMBERS[match[1]]


def test_statements_are_true_or_false_as_they_are_labelled(written):
    for split in ("train", "val"):
        images = pictures_of(written, split)
        for pair in pairs_of(written, split):
            shown = [images[name] for name in pair.annotations["images"]]
            assert [pair.media, pair.second] == [sample.media for sample in shown]
            assert pair.image_id == "+".join(sample.image_id for sample in shown)
            for sample in shown:  # places are read on a side of 96
                for item in sample.annotations["scene"]["objects"]:
                    item["x"], item["y"] = 2 * item["x"], 2 * item["y"]
            objects = [sample.annotations["scene"]["objects"] for sample in shown]
            for statement in pair.questions:
                assert statement.answers == (str(truth(statement.question, *objects)),)
                assert statement.type == "statement"


def test_every_statement_is_true_of_half_of_its_pairs(written):
    sizes = Counter()
    for split in ("train", "val"):
        groups = defaultdict(list)
        for pair in pairs_of(written, split):
            assert len(pair.questions) == 4
            for statement in pair.questions:
                _, number, k, j = str(statement.id).split("-")
                assert pair.key.endswith(f"/{split}-{number}-{k}")
                assert statement.group == f"{split}-{number}-{j}"
                groups[statement.group].append(statement)
        for statements in groups.values():
            assert len({statement.question for statement in statements}) == 1
            labels = Counter(statement.answers[0] for statement in statements)
            assert labels["True"] == labels["False"] == len(statements) / 2
            sizes[len(statements)] += 1
    assert sizes == {4: 24, 2: 4}


def test_there_are_half_as_many_pairs_as_images_and_each_image_is_in_one(written):
    assert sorted(path.name for path in (written / "pairs").iterdir()) == [
        "train",
        "val",
    ]  # 3 images make no pair
    for split, count in (("train", 22), ("val", 4)):
        manifest = Manifest.load(written / "pairs" / split)
        assert (manifest.samples, manifest.name) == (count, f"scene-pairs-{split}")
        assert verify(manifest.root, decode=True) == []
        used = []
        for pair in pairs_of(written, split):
            for name in pair.annotations["images"]:
                used.append(name)
        assert len(used) == len(set(used)) == 2 * count and set(used) <= set(
            pictures_of(written, split)
        )


def test_pairs_depend_on_their_images_alone(written, tmp_path):
    generate(tmp_path, train=0, val=16, test=0, novel=0, size=48, workers=1)
    assert pairs_of(tmp_path, "val")[:4] == pairs_of(written, "val")


def test_a_second_call_keeps_pairs_and_writes_missing_ones_again(written):
    shard = written / "pairs" / "train" / "pairs-train-000000.tar"
    before, content = shard.stat().st_mtime_ns, shard.read_bytes()
    sizes = {"train": 44, "val": 8, "test": 3, "novel": 8, "size": 48, "workers": 1}
    generate(written, **sizes)
    assert shard.stat().st_mtime_ns == before
    shard.write_bytes(content[:700])
    generate(written, **sizes)
    assert shard.read_bytes() == content


def test_scenes_of_an_older_version_are_refused(tmp_path):
    generate(tmp_path, train=2, val=0, test=0, novel=0, size=48, workers=1)
    manifest = tmp_path / "train" / "dataset.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(UsageError, match="its version is 1, not 2"):
        generate(tmp_path, train=2, val=0, test=0, novel=0, size=48, workers=1)
