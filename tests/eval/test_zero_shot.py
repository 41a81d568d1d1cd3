"""Zero-shot classification: the ensemble by definition, exact accuracies, data without captions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import DataError, UsageError
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.write import write_shards
from eval.encoding.features import encode_images, encode_texts, load
from eval.encoding.prompts import TEMPLATES
from eval.results.schema import read_records
from eval.stages.zero_shot import evaluate
from eval.stages.zero_shot.stage import metrics
from launch.cli import main
from pretrain.model import GLSCLModel

from .conftest import save_model


@pytest.fixture(scope="module")
def labelled(gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gallery with labels instead of captions, three classes and an image of two."""
    from data_pipeline.shards.store import Store

    out = tmp_path_factory.mktemp("labelled") / "data"
    store = Store([Manifest.load(gallery)])
    names = ["red star", "blue circle", "cat"]
    labels = [[names[i % 3]] for i in range(8)] + [names[:2], []]
    records = []
    for i, labels_of_image in enumerate(labels):
        annotations = json.dumps({"labels": labels_of_image}).encode()
        records.append((f"{i}", {"jpg": store.read(0, i).media, "json": annotations}))
    write_shards(out, records, source={"name": "labelled"})
    return out


def test_the_closest_mean_of_unit_sentence_features_is_the_answer(
    knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    result = evaluate(knowing_model, labelled, tmp_path, templates=["a {} here", "{}"])
    loaded = load(knowing_model)
    images = (
        encode_images(loaded, Manifest.load(labelled), captioned=False).features[:8].astype(float)
    )
    names = ["blue circle", "cat", "red star"]
    sentences = []
    for name in names:
        sentences += [f"a {name} here", name]
    texts = encode_texts(loaded, sentences)
    features = texts.features[texts.row].astype(float).reshape(3, 2, -1).sum(axis=1)
    best = (images @ (features / np.linalg.norm(features, axis=1, keepdims=True)).T).argmax(axis=1)
    lines = list(read_records(tmp_path))
    assert [line["top"][0][0] for line in lines] == [names[column] for column in best]
    expected = np.mean(
        [names[column] == line["label"] for column, line in zip(best, lines, strict=True)]
    )
    assert result.metric("top1").value == pytest.approx(100 * expected)
    assert result.metric("top1").chance == pytest.approx(100 / 3) and result.metric("top1").n == 8
    assert result.data["without_one_label"] == 2 and result.data["classes"] == names
    assert result.protocol["templates"] == ["a {} here", "{}"]
    assert not any(metric.name == "top5" for metric in result.metrics)  # of three classes


def test_every_metric_follows_from_the_records_and_classes_recombine(
    knowing_model: Path, gallery: Path, tmp_path: Path
) -> None:
    result = evaluate(knowing_model, gallery, tmp_path, classes=None)
    assert metrics(read_records(tmp_path)) == result.metrics
    by_class = [metric for metric in result.metrics if metric.name.startswith("class/")]
    total = sum(metric.n for metric in by_class)
    assert total == result.metric("top1").n
    assert sum(metric.value * metric.n for metric in by_class) / total == pytest.approx(
        result.metric("top1").value
    )
    assert np.mean([metric.value for metric in by_class]) == pytest.approx(
        result.metric("mean_per_class").value
    )
    assert result.protocol["templates"] == list(TEMPLATES)


def test_a_classifier_that_is_always_right_reaches_100_whatever_the_class_sizes() -> None:
    right = {"above": 0, "tied": 1, "candidates": 2}
    lines = [right | {"image": str(i), "label": "rare" if i < 3 else "common"} for i in range(30)]
    [mean_per_class] = [metric for metric in metrics(lines) if metric.name == "mean_per_class"]
    assert mean_per_class.value == 100.0
    # 30 right answers do not prove that the next one is right.
    assert mean_per_class.ci95 == (pytest.approx(87.8, abs=0.1), 100.0)


def test_a_collapsed_encoder_gets_what_guessing_gets_and_is_flagged(
    knowing_model: Path, tokenizer: Path, labelled: Path, tmp_path: Path
) -> None:
    model = GLSCLModel.from_pretrained(knowing_model)
    with torch.no_grad():
        model.contrastive_text_head[3].weight.zero_()
    classes = ["red star", "blue circle", "cat", "dog", "cow", "hen", "owl"]
    result = evaluate(
        save_model(model, tokenizer, tmp_path / "m"), labelled, tmp_path / "o", classes=classes
    )
    assert "degenerate_scores" in result.flags
    for name in ("top1", "top5", "mean_per_class"):
        assert result.metric(name).value == pytest.approx(result.metric(name).chance)
    assert result.metric("top5").chance == pytest.approx(500 / 7)


def test_the_command_names_the_problem(
    knowing_model: Path,
    labelled: Path,
    gallery: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = ["--model", str(knowing_model), "--data", str(labelled), "--out", str(tmp_path / "o")]
    assert main(["eval", "zero-shot", *where, "--templates", "a photo"]) == 2
    assert "the template 'a photo' must hold {} once" in capsys.readouterr().err
    assert main(["eval", "zero-shot", *where, "--classes", "cat", "red star"]) == 2
    assert "classes does not name 'blue circle'" in capsys.readouterr().err
    assert main(["eval", "zero-shot", *where, "--limit", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["images"] == 3
    with pytest.raises(UsageError, match="names a class twice"):
        evaluate(knowing_model, labelled, tmp_path / "twice", classes=["cat", "cat"])


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"captions": ["a cat"]}, "no sample with exactly one"),
        ({"labels": [3]}, 's0: "labels" must be a list of names'),
    ],
)
def test_data_without_usable_labels_are_refused(
    annotation: dict, message: str, knowing_model: Path, tmp_path: Path, jpeg: bytes
) -> None:
    write_shards(
        tmp_path / "d",
        [("s0", {"jpg": jpeg, "json": json.dumps(annotation).encode()})],
        source={"name": "d"},
    )
    with pytest.raises(DataError, match=message):
        evaluate(knowing_model, tmp_path / "d", tmp_path / "o")


def test_captions_are_still_required_where_they_are_the_queries(
    knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    from eval.stages.retrieval import evaluate as retrieve

    evaluate(knowing_model, labelled, tmp_path / "o", cache=tmp_path / "cache")
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DataError, match="caption"):
            retrieve(knowing_model, labelled, tmp_path / "retrieval", cache=cache)
