"""Statements about pairs: accuracy, consistency of sentences, and the order of the images."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.decode import decode, open_image
from data_pipeline.errors import DataError, UsageError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import load
from eval.questions.inference import answer_questions
from eval.results.compare import compare
from eval.results.schema import read_records, read_result
from eval.stages.nlvr2 import evaluate
from eval.stages.nlvr2.stage import metrics
from pretrain.model import GLSCLModel

from .conftest import save_model, warnings
from .questions import answering_model, picture, write_statements

LABELS = ["False", "True"]
# Two sentences of set 850, each about four pairs; one of set 3, about two.
STATEMENTS = [
    [("dev-850-0-0", "True"), ("dev-850-0-1", "False")],
    [("dev-850-1-0", "True"), ("dev-850-1-1", "True")],
    [("dev-850-2-0", "False"), ("dev-850-2-1", "True")],
    [("dev-850-3-0", "True"), ("dev-850-3-1", "False")],
    [("dev-3-0-0", "True")],
    [("dev-3-1-0", "True")],
]

ALL_STATEMENTS = list(chain.from_iterable(STATEMENTS))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_statements(tmp_path_factory.mktemp("nlvr2") / "dev", STATEMENTS)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answering_model(tmp_path_factory.mktemp("judging") / "model", LABELS, 2)


def lines(right: dict[str, bool]) -> list[dict]:
    """Return records of STATEMENTS, all right but those named."""
    records = []
    for name, label in ALL_STATEMENTS:
        file, number, pair, sentence = name.split("-")
        other = "False" if label == "True" else "True"
        records.append(
            {
                "query": name,
                "pair": f"{number}-{pair}",
                "image": number,
                "file": file,
                "group": f"{number}-{sentence}",
                "label": label,
                "prediction": label if right.get(name, True) else other,
            }
        )
    return records


def values(records: list[dict]) -> dict[str, float]:
    return {metric.name: metric.value for metric in metrics(records)}


def test_one_wrong_pair_of_four_makes_the_sentence_inconsistent() -> None:
    assert values(lines({})) == {"accuracy": 100, "consistency": 100, "majority/accuracy": 70}
    result = values(lines({"dev-850-2-0": False}))
    assert result["accuracy"] == pytest.approx(90)
    assert result["consistency"] == pytest.approx(200 / 3)
    assert values(lines({"dev-850-2-0": False, "dev-850-3-0": False}))[
        "consistency"
    ] == pytest.approx(200 / 3)
    guessed = next(metric for metric in metrics(lines({})) if metric.name == "consistency")
    assert (guessed.n, guessed.chance) == (3, pytest.approx(100 * (1 / 16 + 1 / 16 + 1 / 4) / 3))


def test_always_true_gets_the_share_of_true_statements(
    model: Path, data: Path, tmp_path: Path
) -> None:
    loaded = GLSCLModel.from_pretrained(model)
    with torch.no_grad():
        loaded.classifier[3].bias.copy_(torch.tensor([-1000.0, 1000.0]))
    result = evaluate(save_model(loaded, model, tmp_path / "m"), data, tmp_path / "o")
    assert (
        result.metric("accuracy").value
        == result.metric("majority/accuracy").value
        == pytest.approx(70)
    )
    assert result.metric("consistency").value == pytest.approx(
        100 / 3
    )  # of the sentence that is true of both pairs
    assert warnings(result) == ["constant_prediction"]


def test_results_of_other_precision_are_not_compared(
    model: Path, data: Path, tmp_path: Path
) -> None:
    for precision in ("fp32", "bf16"):
        evaluate(model, data, tmp_path / precision, precision=precision)
    assert {d.verdict for d in compare(tmp_path / "bf16", tmp_path / "bf16").differences} == {
        "equal"
    }
    with pytest.raises(DataError, match=r"different protocols \(precision: fp32 against bf16\)"):
        compare(tmp_path / "fp32", tmp_path / "bf16")


def test_every_metric_follows_from_the_records(model: Path, data: Path, tmp_path: Path) -> None:
    result = evaluate(model, data, tmp_path)
    written = list(read_records(tmp_path))
    assert metrics(written) == result.metrics == read_result(tmp_path).metrics
    assert [line["query"] for line in written] == sorted(name for name, _ in ALL_STATEMENTS)
    assert {line["group"] for line in written} == {"dev-850-0", "dev-850-1", "dev-3-0"}
    assert result.metric("accuracy").value == pytest.approx(
        100 * np.mean([line["prediction"] == line["label"] for line in written])
    )
    assert result.metric("accuracy").chance == 50


def test_a_missing_prediction_is_an_error() -> None:
    records = lines({})
    del records[3]["prediction"]
    with pytest.raises(DataError, match="statement 'dev-850-1-1' has no prediction"):
        metrics(records)


def test_files_are_reported_apart() -> None:
    all_wrong = lines({name: False for name, _ in ALL_STATEMENTS})
    records = lines({}) + [line | {"file": "test-P"} for line in all_wrong]
    result = values(records)
    assert (result["accuracy"], result["dev/accuracy"], result["test-P/accuracy"]) == (50, 100, 0)
    consistency = [result[f"{file}consistency"] for file in ("", "dev/", "test-P/")]
    assert consistency == [50, 100, 0]


def test_an_unreadable_image_makes_its_statements_wrong_and_is_listed(
    model: Path, tmp_path: Path
) -> None:
    data = write_statements(
        tmp_path / "test", [[("test1-0-0-0", "False")], [("test1-0-1-0", "False")]], broken=[1]
    )
    loaded = GLSCLModel.from_pretrained(model)
    with torch.no_grad():
        loaded.classifier[3].bias.copy_(torch.tensor([1000.0, -1000.0]))
    result = evaluate(save_model(loaded, model, tmp_path / "m"), data, tmp_path / "o")
    assert result.metric("accuracy").value == 50
    assert result.metric("consistency").value == 0
    assert list(result.data["unreadable"]) == ["test/shard-000000.tar/001"]
    assert warnings(result) == ["unreadable_images"]
    assert {line["file"] for line in read_records(tmp_path / "o")} == {"test-P"}


def test_the_order_of_the_images_counts(model: Path, data: Path) -> None:
    """Answers are those of the plain model for left and right, which change if both are swapped."""
    loaded = load(model)
    answers = answer_questions(loaded, Manifest.load(data), limit=1)
    network = loaded.model

    def judge(name: str, numbers: tuple[int, int]) -> torch.Tensor:
        ids = torch.tensor([loaded.tokenizer.encode([f"the left picture shows {name}"], 40)[0].ids])
        mask = torch.ones_like(ids)
        text = network.text_side(network.encode_text(ids, mask), mask)
        pooled = []
        for second, number in enumerate(numbers):
            pixels = torch.from_numpy(decode(open_image(picture(number))).copy())[None]
            image = network.image_side(
                network.encode_image(network.normalize(pixels)), second=bool(second)
            )
            [states] = network.fuse_pairs(text, mask, image, [("all", "all")])
            pooled.append(network.pool(states[0], states[1][:, :1]))
        return network.classify(torch.cat(pooled, dim=-1))[0]

    with torch.inference_mode():
        for answer in answers:
            name = str(answer.question.id)
            logits, swapped = judge(name, (0, 1000)), judge(name, (1000, 0))
            assert answer.label == int(logits.argmax())
            assert answer.score == pytest.approx(float(logits.max()), abs=1e-4)
            assert not torch.allclose(logits, swapped, atol=1e-3)


def test_hidden_labels_give_predictions_and_no_metrics_and_odd_ones_are_refused(
    model: Path, tmp_path: Path
) -> None:
    data = write_statements(tmp_path / "odd", [[("a-0-0-0", "yes")]])
    with pytest.raises(
        DataError, match='statement \'a-0-0-0\' must have the answer "True" or "False"'
    ):
        evaluate(model, data, tmp_path / "o")
    secret = [line | {"label": None} for line in lines({})]
    assert metrics(secret) == []
    with pytest.raises(DataError, match="10 of 11 statements have no label"):
        metrics([*secret, lines({})[0]])


def test_models_without_such_a_classifier_are_refused(data: Path, tmp_path: Path) -> None:
    for name, labels, images in (("vqa", ["yes", "no"], 2), ("one", LABELS, 1), ("plain", [], 1)):
        with pytest.raises(UsageError, match="has no classifier of statements about two images"):
            evaluate(answering_model(tmp_path / name, labels, images), data, tmp_path / "o")


def test_images_that_are_not_pairs_are_refused(model: Path, gallery: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no pairs"):
        evaluate(model, gallery, tmp_path)
