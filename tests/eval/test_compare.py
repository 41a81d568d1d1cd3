"""Results are compared query by query where it makes sense, and must follow from their records."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import DataError
from eval.results.compare import compare
from eval.results.intervals import mean_interval
from eval.results.schema import Result, read_records, read_result, write_result
from eval.results.verify import verify
from eval.stages import baseline, preference, retrieval
from eval.stages.sugarcrepe.stage import metrics
from launch.cli import main
from pretrain.model import GLSCLModel

from .conftest import save_model


@pytest.fixture(scope="module")
def results(
    knowing_model: Path, tokenizer: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Results of a model that knows the gallery, of one with noise on its heads, of a baseline."""
    out = tmp_path_factory.mktemp("results")
    model = GLSCLModel.from_pretrained(knowing_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in (model.contrastive_image_head[3].weight, model.matching_head.weight):
            weight.add_(torch.randn_like(weight) * weight.std() * 4)
    worse = save_model(model, tokenizer, out / "worse")
    for name, which in (("a", knowing_model), ("b", worse)):
        retrieval.evaluate(which, scenes / "test", out / name, rerank_k=4)
        preference.evaluate(which, scenes / "test", out / f"preference-{name}")
    baseline.evaluate(scenes / "train", scenes / "test", out / "baseline")
    return {path.name: path for path in out.iterdir()}


def edited(folder: Path, out: Path, change) -> Path:
    """Copy a result with another result.json."""
    shutil.copytree(folder, out)
    stored = json.loads((out / "result.json").read_text())
    change(stored)
    (out / "result.json").write_text(json.dumps(stored))
    return out


def hits_at_1(folder: Path) -> tuple[list[float], list[str]]:
    """Percentage of hits and image of each text-to-image query."""
    hits, images = [], []
    for record in read_records(folder):
        if record["direction"] == "text_to_image":
            hits.append(100.0 * (record["contrastive"]["above"] == 0))
            images.append(record["image"])
    return hits, images


def test_differences_are_those_of_paired_hits(results: dict[str, Path]) -> None:
    differences = {d.name: d for d in compare(results["a"], results["b"]).differences}
    first, images = hits_at_1(results["a"])
    second, _ = hits_at_1(results["b"])
    paired = np.subtract(second, first)
    recall = differences["text_to_image/R@1"]
    assert recall.difference == pytest.approx(paired.mean()) and recall.difference < 0
    assert recall.ci95 == pytest.approx(mean_interval(paired, images))
    assert recall.difference == pytest.approx(recall.b - recall.a)
    assert (recall.n, recall.pictures) == (100, 20)


def test_verdicts_follow_the_intervals(results: dict[str, Path]) -> None:
    forth, back = compare(results["a"], results["b"]), compare(results["b"], results["a"])
    assert forth.left_out == ["text_to_image/MdR", "image_to_text/MdR"]
    for d, e in zip(forth.differences, back.differences, strict=True):
        assert d.ci95 == pytest.approx((-e.ci95[1], -e.ci95[0]))
        if d.ci95[0] <= 0 <= d.ci95[1]:
            assert d.verdict == e.verdict in ("not told apart", "equal")
        else:
            assert {d.verdict, e.verdict} in (
                {"A is better", "B is better"},
                {"A is higher", "B is higher"},
            )
            assert (
                (d.verdict == "A is better") == (d.difference < 0)
                or d.unit == "rank"
                or "tie" in d.name
            )
    rank = next(d for d in forth.differences if d.name == "text_to_image/MeanR")
    assert (rank.difference > 0, rank.verdict) == (True, "A is better")


def sugarcrepe_result(folder: Path, images: list[str], random: np.random.Generator) -> np.ndarray:
    """Write a SugarCrepe result with random answers; returns which are right, in percent."""
    records = []
    for number, image in enumerate(images):
        records.append(
            {
                "query": str(number),
                "image": f"{image}-{number % 3}",
                "picture": image,
                "kind": "swap_obj",
                "contrastive": [float(random.random() < 0.7), 0.5],
                "matching": [1.0, 0.5],
            }
        )
    result = Result(
        stage="sugarcrepe",
        protocol={},
        data={"hash": "one"},
        model={"hash": folder.name},
        environment={},
        metrics=metrics(records),
    )
    write_result(folder, result, records)
    return np.array([100.0 * (record["contrastive"][0] > 0.5) for record in records])


def test_images_are_resampled_with_all_their_samples(tmp_path: Path) -> None:
    """SugarCrepe has a sample for each caption of an image."""
    random = np.random.default_rng(0)
    images = [str(number // 6) for number in range(60)]
    first = sugarcrepe_result(tmp_path / "a", images, random)
    second = sugarcrepe_result(tmp_path / "b", images, random)
    differences = {d.name: d for d in compare(tmp_path / "a", tmp_path / "b").differences}
    accuracy = differences["contrastive/accuracy/swap_obj"]
    assert (accuracy.n, accuracy.pictures) == (60, 10)
    assert accuracy.ci95 == pytest.approx(mean_interval(second - first, images))


def test_metrics_of_one_result_alone_are_named_with_the_one_that_has_them(
    results: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def without(name: str):
        return lambda stored: stored.update(
            metrics=[m for m in stored["metrics"] if m["name"] != name]
        )

    first = edited(results["a"], tmp_path / "first", without("text_to_image/R@5"))
    second = edited(results["b"], tmp_path / "second", without("image_to_text/MdR"))
    comparison = compare(first, second)
    assert comparison.left_out == ["text_to_image/MdR"]
    assert comparison.only_in_one == {"image_to_text/MdR": "A", "text_to_image/R@5": "B"}
    assert main(["compare", str(first), str(second)]) == 0
    lines = capsys.readouterr().out.splitlines()
    median = "not compared, because not means over the same images and queries: text_to_image/MdR"
    assert median in lines
    alone = "image_to_text/MdR (in A), text_to_image/R@5 (in B)"
    assert f"not compared, because in one of the results only: {alone}" in lines
    assert main(["compare", str(first), str(second), "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert (stored["left_out"], stored["only_in_one"]) == (
        comparison.left_out,
        comparison.only_in_one,
    )


@pytest.mark.parametrize("stage", ["a", "preference-a", "baseline"])
def test_a_result_equals_itself_whatever_the_stage(results: dict[str, Path], stage: str) -> None:
    comparison = compare(results[stage], results[stage])
    assert comparison.differences
    assert {d.verdict for d in comparison.differences} == {"equal"}
    assert ("both have the same weights" in comparison.notes) == (stage != "baseline")


def test_what_cannot_be_compared_is_refused_with_the_reason(
    results: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="a retrieval result and .* a preference result"):
        compare(results["a"], results["preference-a"])
    other = edited(
        results["b"], tmp_path / "data", lambda stored: stored["data"].update(hash="sha256:other")
    )
    with pytest.raises(DataError, match=r"different data \(sha256:\w+, sha256:other\)"):
        compare(results["a"], other)
    other = edited(
        results["b"],
        tmp_path / "protocol",
        lambda stored: stored["protocol"].update(precision="bf16"),
    )
    with pytest.raises(DataError, match=r"different protocols \(precision: fp32 against bf16\)"):
        compare(results["a"], other)
    other = edited(results["b"], tmp_path / "queries", lambda stored: None)
    lines = (other / "samples.jsonl").read_text().splitlines(keepends=True)
    (other / "samples.jsonl").write_text("".join(lines[1:]))
    with pytest.raises(DataError, match="did not answer the same queries"):
        compare(results["a"], other)


def test_the_compare_command_prints_a_table_or_json(
    results: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(results["a"]), str(results["b"])]) == 0
    text = capsys.readouterr().out
    assert "verdict" in text and "text_to_image/R@1" in text and "A is better in" in text
    assert main(["compare", str(results["a"]), str(results["b"]), "--json"]) == 0
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["differences"][0]["name"] == "text_to_image/R@1"


@pytest.mark.parametrize("stage", ["a", "preference-a", "baseline"])
def test_every_metric_of_a_result_follows_from_its_records(
    results: dict[str, Path], stage: str
) -> None:
    assert verify(results[stage]) == []


def test_the_verify_command_names_what_differs(
    results: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(stored) -> None:
        stored["metrics"][0]["value"] += 1e-9
        stored["metrics"][3]["ci95"][1] += 1
        stored["metrics"].pop()

    other = edited(results["a"], tmp_path / "changed", change)
    names = [metric.name for metric in read_result(results["a"]).metrics]
    assert main(["eval", "verify", str(results["a"]), str(other)]) == 3
    error = capsys.readouterr().err
    assert "3 entries of result.json do not follow from samples.jsonl" in error
    assert all(names[i] in error for i in (0, 3, -1))
    assert main(["eval", "verify", str(results["a"]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"wrong": {str(results["a"]): []}}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("removed", lambda lines: lines[1:]),
        (
            "renamed query",
            lambda lines: [lines[0].replace('"query": "', '"query": "x'), *lines[1:]],
        ),
        (
            "other caption",
            lambda lines: [lines[0].replace('"text": "', '"text": "no '), *lines[1:]],
        ),
    ],
)
def test_verify_notices_records_that_were_changed(
    results: dict[str, Path], tmp_path: Path, name: str, change
) -> None:
    """No metric reads the names of queries or the captions, so only the checksum can tell."""
    shutil.copytree(results["a"], tmp_path / name)
    file = tmp_path / name / "samples.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert change(lines) != lines
    file.write_text("".join(change(lines)))
    assert "records" in verify(tmp_path / name)


def test_verify_accepts_records_in_another_order(results: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(results["preference-a"], tmp_path / "shuffled")
    file = tmp_path / "shuffled" / "samples.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert verify(tmp_path / "shuffled") == []


def test_a_result_without_a_checksum_of_records_is_refused(
    results: dict[str, Path], tmp_path: Path
) -> None:
    old = edited(results["a"], tmp_path / "old", lambda stored: stored.pop("records"))
    with pytest.raises(DataError, match="kept no checksum of records: evaluate again"):
        verify(old)


def test_records_of_another_stage_and_unknown_stages_are_refused(
    results: dict[str, Path], tmp_path: Path
) -> None:
    other = edited(
        results["a"], tmp_path / "other", lambda stored: stored.update(stage="preference")
    )
    with pytest.raises(DataError, match="are not those of preference"):
        verify(other)
    other = edited(
        results["a"], tmp_path / "unknown", lambda stored: stored.update(stage="caption")
    )
    with pytest.raises(DataError, match="holds a result of 'caption'; this version knows"):
        verify(other)
