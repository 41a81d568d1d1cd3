"""Question answering: official numbers from the records, odd models and odd data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.decode import decode, open_image
from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.shards.manifest import Manifest
from eval.__main__ import main as eval_main
from eval.encoding.features import load
from eval.questions.inference import answer_questions
from eval.results.compare import compare
from eval.results.schema import Result, read_records, read_result
from eval.results.verify import verify
from eval.stages import vqa_prior
from eval.stages.vqa import accuracy, evaluate
from eval.stages.vqa.stage import metrics, write_submission
from launch.cli import main
from pretrain.model import GLSCLModel
from tests.ranks import run_ranks

from .conftest import save_model, warnings
from .questions import answering_model, picture, question, write_questions

LABELS = ["yes", "no", "2", "cat"]
TEXTS = ["is there a cat?", "how many?", "what is it, and where does it stand?", "is it?"]
KINDS = [("is there", "yes/no"), ("how many", "number"), ("what", "other"), ("is it", "yes/no")]
IMAGES = 23


def answers(number: int) -> list[str]:
    return [
        ["Yes"] * 6 + ["no"] * 4,
        ["two"] * 3 + ["3"] * 7,
        ["ox"] * 10,
        ["cat"] * 10,
        ["no"] * 8 + ["a cat"] * 2,
    ][number % 5]


def questions(number: int) -> list[dict]:
    """Return one to three questions about an image."""
    asked_about_image = []
    for i in range(1 + number % 3):
        text, kind = TEXTS[(number + i) % 4], KINDS[(number + i) % 4]
        asked_about_image.append(question(10 * number + i, text, answers(number + 2 * i), *kind))
    return asked_about_image


def all_questions() -> list[dict]:
    """Return the questions about all images, in order."""
    in_order = []
    for number in range(IMAGES):
        in_order += questions(number)
    return in_order


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_questions(
        tmp_path_factory.mktemp("vqa") / "val", [questions(i) for i in range(IMAGES)]
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_model(tmp_path_factory.mktemp("answering") / "model", LABELS, 1, *TEXTS)


@pytest.fixture(scope="module")
def result(
    model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("vqa-result")
    return evaluate(model, data, out, submit=True), out


def changed(model: Path, out: Path, change) -> Path:
    loaded = GLSCLModel.from_pretrained(model)
    with torch.no_grad():
        change(loaded)
    return save_model(loaded, model, out)


def test_answers_are_those_of_the_plain_model(model: Path, data: Path) -> None:
    loaded = load(model)
    result = answer_questions(loaded, Manifest.load(data), limit=6)
    expected = []
    for number in range(6):
        for entry in questions(number):
            ids = torch.tensor([loaded.tokenizer.encode([entry["question"]], 40)[0].ids])
            pixels = torch.from_numpy(decode(open_image(picture(number))).copy())[None]
            with torch.inference_mode():
                fused = loaded.model(loaded.model.normalize(pixels), ids, torch.ones_like(ids))
                logits = loaded.model.classify(fused.pooled)[0]
            expected.append(
                (entry["id"], int(logits.argmax()), pytest.approx(float(logits.max()), abs=1e-4))
            )
    assert [(answer.question.id, answer.label, answer.score) for answer in result] == sorted(
        expected
    )
    assert len({answer.label for answer in result}) > 1


def test_every_metric_follows_from_the_records(result: tuple[Result, Path]) -> None:
    written, out = result
    lines = list(read_records(out))
    assert metrics(lines) == written.metrics == read_result(out).metrics
    entries = all_questions()
    assert [line["query"] for line in lines] == [entry["id"] for entry in entries]
    right = []
    for line, entry in zip(lines, entries, strict=True):
        right.append(accuracy(line["prediction"], entry["answers"]))
    mean = np.mean(right)
    evaluated = written.metric("accuracy")
    assert (evaluated.value, evaluated.n, evaluated.unit) == (
        pytest.approx(100 * mean),
        len(entries),
        "percent",
    )
    assert evaluated.ci95 is not None and evaluated.ci95[0] <= evaluated.value <= evaluated.ci95[1]
    guesses = []
    for entry in entries:
        guesses += [accuracy(label, entry["answers"]) for label in LABELS]
    assert evaluated.chance == pytest.approx(100 * np.mean(guesses))
    assert warnings(written) == []


@pytest.mark.parametrize("field", ["type", "answer_type"])
def test_parts_recombine_to_the_whole_by_their_counts(
    result: tuple[Result, Path], field: str
) -> None:
    parts = [metric for metric in result[0].metrics if metric.name.startswith(f"accuracy/{field}/")]
    whole = result[0].metric("accuracy")
    assert sum(part.n for part in parts) == whole.n
    assert sum(part.value * part.n for part in parts) / whole.n == pytest.approx(
        whole.value, rel=1e-12
    )
    names = {part.name.removeprefix(f"accuracy/{field}/") for part in parts}
    assert names == {kind[field == "answer_type"] for kind in KINDS}


def test_a_question_that_no_label_answers_lowers_the_ceiling(result: tuple[Result, Path]) -> None:
    """The answer "ox" is not a label; the question stays in the denominator."""
    lines = list(read_records(result[1]))
    unreachable = [line for line in lines if line["answers"][0] == "ox"]
    assert unreachable and all(line["ceiling"] == line["accuracy"] == 0 for line in unreachable)
    ceiling = result[0].metric("ceiling")
    assert ceiling.n == len(lines)
    best = []
    for line in lines:
        best.append(max(accuracy(label, line["answers"]) for label in LABELS))
    assert ceiling.value == pytest.approx(100 * np.mean(best))


def test_constant_logits_answer_with_the_first_label_and_are_flagged(
    model: Path, data: Path, tmp_path: Path
) -> None:
    def flatten(loaded: GLSCLModel) -> None:
        loaded.classifier[3].weight.zero_()
        loaded.classifier[3].bias.fill_(0.5)

    result = evaluate(changed(model, tmp_path / "m", flatten), data, tmp_path / "o")
    assert warnings(result) == ["constant_prediction"]
    lines = list(read_records(tmp_path / "o"))
    assert {line["prediction"] for line in lines} == {"yes"}
    assert result.metric("accuracy").value == pytest.approx(
        100 * np.mean([accuracy("yes", line["answers"]) for line in lines])
    )


def test_scores_that_are_not_finite_are_refused_with_the_sample(
    model: Path, data: Path, tmp_path: Path
) -> None:
    broken = changed(
        model, tmp_path / "m", lambda loaded: loaded.classifier[3].bias.fill_(float("nan"))
    )
    with pytest.raises(
        NumericsError, match=r"not finite for 45 of 45 questions: val/shard-000000\.tar/000"
    ):
        evaluate(broken, data, tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_size_changes_no_answer(
    result: tuple[Result, Path], model: Path, data: Path, tmp_path: Path, batch_size: int
) -> None:
    evaluate(model, data, tmp_path, batch_size=batch_size)
    pairs = zip(read_records(tmp_path), read_records(result[1]), strict=True)
    assert all(a["prediction"] == b["prediction"] for a, b in pairs)


def test_a_killed_evaluation_goes_on_and_another_model_reuses_nothing(
    model: Path, data: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    evaluate(model, data, tmp_path / "one", batch_size=5, cache=cache)
    blocks = sorted(cache.rglob("*.safetensors"))
    assert len(blocks) == 5
    lost = blocks.pop(2)
    lost.unlink()
    written = {block: block.stat().st_mtime_ns for block in blocks}
    evaluate(model, data, tmp_path / "again", batch_size=5, cache=cache)
    assert {block: block.stat().st_mtime_ns for block in blocks} == written
    assert lost.is_file()
    assert list(read_records(tmp_path / "again")) == list(read_records(tmp_path / "one"))
    other = changed(
        model,
        tmp_path / "m",
        lambda loaded: loaded.classifier[3].bias.copy_(torch.eye(4)[3] * 1000),
    )
    evaluate(other, data, tmp_path / "other", batch_size=5, cache=cache)
    assert {line["prediction"] for line in read_records(tmp_path / "other")} == {"cat"}


def test_answers_that_another_tokenizer_led_to_are_never_used(
    model: Path, data: Path, tmp_path: Path
) -> None:
    cache, same = tmp_path / "cache", shutil.copytree(model, tmp_path / "m")
    evaluate(same, data, tmp_path / "one", cache=cache)
    before = set(cache.rglob("*.safetensors"))
    file = same / "tokenizer.json"
    words = json.loads(file.read_text())
    words["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(words))
    evaluate(same, data, tmp_path / "other", cache=cache)
    assert len(list(cache.rglob("*.safetensors"))) == 2 * len(before)


def test_the_commands_print_their_result(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    command = [
        "eval",
        "vqa",
        "--model",
        str(model),
        "--data",
        str(data),
        "--out",
        str(out),
        "--limit",
        "3",
        "--json",
    ]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["data"]["questions"] == 6
    assert main([*command, "--submit"]) == 2
    assert "leave out limit" in capsys.readouterr().err
    assert main(["eval", "verify", str(out)]) == 0


def test_networks_may_run_in_bf16(
    result: tuple[Result, Path], model: Path, data: Path, tmp_path: Path
) -> None:
    evaluate(model, data, tmp_path, precision="bf16")
    pairs = list(zip(read_records(tmp_path), read_records(result[1]), strict=True))
    assert max(abs(a["score"] - b["score"]) for a, b in pairs) < 0.2
    assert any(a["score"] != b["score"] for a, b in pairs)


def test_the_submission_holds_every_question_once(result: tuple[Result, Path]) -> None:
    entries = json.loads((result[1] / "submission.json").read_text())
    assert [entry["question_id"] for entry in entries] == [q["id"] for q in all_questions()]
    predictions = [line["prediction"] for line in read_records(result[1])]
    assert [entry["answer"] for entry in entries] == predictions
    assert all(type(entry["question_id"]) is int for entry in entries)


@pytest.mark.parametrize(
    ("ids", "question_ids", "message"),
    [
        ([1, 2], [1, 2, 3], "1 question ids are not answered, first 3"),
        ([1, 2, 3], [1, 2], "1 question ids are answered but not asked, first 3"),
        ([1, 2, 2], [1, 2], "1 question ids are asked or answered more than once, first 2"),
        ([1, 2], [1, 2, 2], "1 question ids are asked or answered more than once, first 2"),
        (["1"], ["1"], "question id '1' is not a whole number"),
        ([True], [True], "question id True is not a whole number"),
    ],
)
def test_a_submission_of_other_questions_is_refused(
    ids: list, question_ids: list, message: str, tmp_path: Path
) -> None:
    records = [{"query": number, "prediction": "yes", "image": "a"} for number in ids]
    with pytest.raises(DataError, match=message):
        write_submission(tmp_path / "submission.json", records, question_ids)
    assert not any(tmp_path.iterdir())


def test_two_questions_with_one_id_are_refused(model: Path, tmp_path: Path) -> None:
    write_questions(tmp_path / "d", [questions(0), questions(0)])
    with pytest.raises(DataError, match="1 question ids occur more than once, the first is 0"):
        evaluate(model, tmp_path / "d", tmp_path / "o")


def test_a_test_split_without_answers_has_predictions_and_no_metrics(
    model: Path, tmp_path: Path
) -> None:
    secret = []
    for n in range(3):
        secret.append([{"id": i, "question": TEXTS[0]} for i in (2 * n, 2 * n + 1)])
    write_questions(tmp_path / "test", secret)
    result = evaluate(model, tmp_path / "test", tmp_path / "o", submit=True)
    assert result.metrics == []
    assert "no_answers" in result.flags
    assert len(json.loads((tmp_path / "o" / "submission.json").read_text())) == 6
    assert not any("accuracy" in line for line in read_records(tmp_path / "o"))
    write_questions(tmp_path / "mixed", [*secret, questions(1)])
    with pytest.raises(DataError, match="6 of 8 questions have no answers, first 0"):
        evaluate(model, tmp_path / "mixed", tmp_path / "none")


def test_an_unreadable_image_counts_as_wrong_and_is_listed(model: Path, tmp_path: Path) -> None:
    write_questions(
        tmp_path / "d", [[question(i, TEXTS[0], ["yes"] * 10)] for i in range(4)], broken=[2]
    )
    only_yes = changed(
        model,
        tmp_path / "m",
        lambda loaded: loaded.classifier[3].bias.copy_(torch.eye(4)[0] * 1000),
    )
    result = evaluate(only_yes, tmp_path / "d", tmp_path / "o")
    assert result.metric("accuracy").value == 75
    assert list(result.data["unreadable"]) == ["d/shard-000000.tar/002"]
    assert "unreadable_images" in result.flags
    with pytest.raises(DataError, match="question 2 has no answer: the image .*002 cannot be read"):
        evaluate(only_yes, tmp_path / "d", tmp_path / "none", submit=True)


def test_wrong_options_models_and_data_are_refused(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out limit"):
        evaluate(model, data, tmp_path, submit=True, limit=3)
    with pytest.raises(UsageError, match="has no classifier: fine-tune it"):
        evaluate(answering_model(tmp_path / "plain", []), data, tmp_path)
    with pytest.raises(UsageError, match="is for pairs of images: evaluate it with nlvr2"):
        evaluate(answering_model(tmp_path / "pairs", ["False", "True"], 2), data, tmp_path)
    with pytest.raises(UsageError, match="limit is 0"):
        evaluate(model, data, tmp_path, limit=0)


def test_blind_answers_are_compared_question_by_question(
    result: tuple[Result, Path], model: Path, data: Path, tmp_path: Path
) -> None:
    blind = vqa_prior.evaluate(data, data, tmp_path / "prior")
    assert warnings(blind) == [f"overlap: possible: trained on this very data set ({data})"]
    evaluated = evaluate(model, data, tmp_path / "o", prior=tmp_path / "prior")
    assert evaluated.metric("prior/accuracy").value == blind.metric("accuracy").value
    above = evaluated.metric("above_prior/accuracy")
    assert above.value == pytest.approx(
        result[0].metric("accuracy").value - blind.metric("accuracy").value
    )
    assert metrics(read_records(tmp_path / "o")) == evaluated.metrics
    assert verify(tmp_path / "o") == verify(tmp_path / "prior") == []
    compared = compare(tmp_path / "prior", tmp_path / "o")
    difference = next(d for d in compared.differences if d.name == "accuracy")
    assert (difference.difference, difference.ci95) == (
        pytest.approx(above.value),
        pytest.approx(above.ci95),
    )
    lines = (tmp_path / "prior" / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "prior" / "samples.jsonl").write_text("".join(lines[:3]))
    with pytest.raises(DataError, match="the prior does not answer question 20"):
        evaluate(model, data, tmp_path / "none", prior=tmp_path / "prior")
    vqa_prior.evaluate(data, data, tmp_path / "first", limit=3)
    evaluate(model, data, tmp_path / "part", prior=tmp_path / "first", limit=3)
    with pytest.raises(DataError, match="does not answer question .*: evaluate it without limit"):
        evaluate(model, data, tmp_path / "none", prior=tmp_path / "first")
    write_questions(tmp_path / "d", [questions(0)])
    with pytest.raises(DataError, match="is not a vqa-prior result on"):
        evaluate(model, tmp_path / "d", tmp_path / "none", prior=tmp_path / "prior")


def test_only_blind_answers_are_compared_whatever_the_precision(
    result: tuple[Result, Path], model: Path, data: Path, tmp_path: Path
) -> None:
    evaluate(model, data, tmp_path / "half", precision="bf16")
    with pytest.raises(DataError, match=r"different protocols \(precision: fp32 against bf16\)"):
        compare(result[1], tmp_path / "half")
    vqa_prior.evaluate(data, data, tmp_path / "prior")
    for out in (result[1], tmp_path / "half"):
        assert compare(tmp_path / "prior", out).differences
        assert compare(out, tmp_path / "prior").only_in_one["by_type/accuracy"] == "B"


def test_blind_answers_learn_from_the_words_of_training_questions_only(tmp_path: Path) -> None:
    def about_colours(count: int, start: int, answer_to_red: str) -> list:
        colours, answers_to = ("red", "blue", "green"), (answer_to_red, "no", "no")
        samples = []
        for i in range(count):
            text = f"is the {colours[i % 3]} one big?"
            samples.append([question(start + i, text, [answers_to[i % 3]] * 10, "is the")])
        return samples

    train = write_questions(tmp_path / "train", about_colours(60, 0, "yes"))
    test = write_questions(tmp_path / "test", about_colours(15, 100, "maybe"))
    result = vqa_prior.evaluate(train, test, tmp_path / "o")
    lines = list(read_records(tmp_path / "o"))
    assert [line["prediction"] for line in lines] == ["yes", "no", "no"] * 5
    assert {line["by_type"] for line in lines} == {"no"}
    assert result.metric("accuracy").value == pytest.approx(200 / 3)
    assert result.metric("by_type/accuracy").value == pytest.approx(200 / 3)
    assert metrics(lines) == result.metrics


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_give_the_same_records(
    result: tuple[Result, Path], model: Path, data: Path, tmp_path: Path, world: int
) -> None:
    """23 images in blocks of 5."""
    config = tmp_path / "vqa.yaml"
    config.write_text(
        json.dumps(
            {"model": str(model), "data": str(data), "batch_size": 5, "out": str(tmp_path / "w")}
        )
    )
    run_ranks(world, eval_main, ["vqa", str(config)])
    evaluate(model, data, tmp_path / "one", batch_size=5)
    assert read_result(tmp_path / "w").environment["world"] == world
    assert list(read_records(tmp_path / "w")) == list(read_records(tmp_path / "one"))
