"""Metric learning from a model and data sets to a result: methods, verdicts, refused input."""

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data_pipeline.errors import DataError, UsageError
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from data_pipeline.shards.write import write_shards
from eval.__main__ import main as run_stage
from eval.report import write_report
from eval.results.compare import compare
from eval.results.compare import table as compared_table
from eval.results.schema import Metric, Result, read_records
from eval.results.verify import verify
from eval.stages.metric_learning import evaluate
from eval.stages.metric_learning.local_reranking import unmoved
from eval.stages.metric_learning.scores import metrics
from eval.stages.metric_learning.summary import flags, summary, table
from launch.cli import main
from pretrain.model import GLSCLModel

from .conftest import save_model

QUICK: dict[str, Any] = {
    "steps": 4,
    "seeds": (0, 1),
    "folds": 2,
    "clusterings": 2,
    "embed_dim": 16,
    "per_layer_dim": 8,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def write(
    out: Path, source: Path, labels: Sequence[Sequence[str]], start: int = 0, **more: Sequence[Any]
) -> Path:
    """Write the images of a data set from ``start`` on, with other labels and further keys."""
    store = Store([Manifest.load(source)])
    records = []
    for row, names in enumerate(labels):
        annotation = {"labels": list(names)} | {key: values[row] for key, values in more.items()}
        members = {"jpg": store.read(0, start + row).media, "json": json.dumps(annotation).encode()}
        records.append((f"{start + row:04d}", members))
    write_shards(out, records, source={"name": out.name})
    return out


@pytest.fixture(scope="module")
def base(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images, most of them of one of five classes."""
    labels = [[f"class {row % 5}"] for row in range(36)] + [
        ["class 0", "class 1"],
        [],
        ["class 2"],
        ["class 3"],
    ]
    return write(tmp_path_factory.mktemp("ml") / "base", scenes / "train", labels)


@pytest.fixture(scope="module")
def novel(gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty images of three other classes, and one of a fourth."""
    labels = [[f"other {row % 3}"] for row in range(19)] + [["lone"]]
    return write(tmp_path_factory.mktemp("ml") / "novel", gallery, labels)


@pytest.fixture(scope="module")
def done(
    knowing_model: Path, base: Path, novel: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result]:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("result")
    return out, evaluate(knowing_model, novel, out, base=base, rerank_k=5, parts=2, **QUICK)


def test_every_method_is_measured_on_the_same_queries(
    done: tuple[Path, Result],
) -> None:
    out, result = done
    methods = {metric.name.partition("/")[0] for metric in result.metrics} - {"leakage"}
    assert methods == {
        *("frozen_cls", "frozen_mean_patch", "frozen_proj", "frozen_parts"),
        *("gdfl", "gdfl_reranked", "no_adversary", "last_layer_only", "no_attention"),
    }
    queries: dict[tuple[str, int | None], list[str]] = {}
    for line in read_records(out):
        if line["kind"] == "query":
            queries.setdefault((line["method"], line["seed"]), []).append(line["query"])
    assert len(queries) == 4 + 5 * 2 and len({tuple(several) for several in queries.values()}) == 1
    for method in methods:
        for name in ("recall@1", "recall@8", "map@r", "r_precision", "map"):
            metric = result.metric(f"{method}/{name}")
            assert (
                0 <= metric.value <= 100
                and metric.ci95 == metric.intervals["classes"]
                and metric.n == 19
            )
            assert ("seeds" in metric.intervals) == (not method.startswith("frozen"))
    assert result.metric("gdfl/left_out").value == 1
    assert {"gdfl/nmi", "gdfl/ami", "frozen_cls/nmi"} <= {metric.name for metric in result.metrics}
    assert "heads" in result.model and result.model["heads"]["training"]["stop"] <= QUICK["steps"]
    assert (
        result.protocol["selection"]["folds"] == 2 and result.data["sets"]["base"]["left_out"] == 2
    )


def test_metrics_follow_from_the_records_to_the_last_bit(done: tuple[Path, Result]) -> None:
    out, result = done
    assert verify(out) == []
    assert metrics(read_records(out)) == result.metrics


def test_leakage_is_the_accuracy_of_fresh_probes_on_images_they_did_not_see(
    done: tuple[Path, Result],
) -> None:
    out, result = done
    assert result.protocol["probed_classes"] == 5
    lines = [line for line in read_records(out) if line["kind"] == "probe"]
    for method in ("gdfl", "no_adversary"):
        of_method = [line for line in lines if line["method"] == method]
        for probe in ("linear", "mlp"):
            several = [line for line in of_method if line["probe"] == probe]
            expected = 100 * np.mean([line["said"] == line["label"] for line in several])
            evaluated = result.metric(f"leakage/{method}/{probe}")
            assert evaluated.value == pytest.approx(expected) and evaluated.chance == 20
            # Half of 8, 7, 8, 8 and 7 images, rounded down.
            assert evaluated.n == len(several) / 2 == 18


def test_two_runs_give_the_same_lines(
    knowing_model: Path, base: Path, novel: Path, tmp_path: Path, done: tuple[Path, Result]
) -> None:
    evaluate(knowing_model, novel, tmp_path, base=base, rerank_k=5, parts=2, **QUICK)
    assert (tmp_path / "samples.jsonl").read_bytes() == (done[0] / "samples.jsonl").read_bytes()


def test_two_models_are_compared_by_query_and_class(
    done: tuple[Path, Result],
    knowing_model: Path,
    tokenizer: Path,
    base: Path,
    novel: Path,
    tmp_path: Path,
) -> None:
    model = GLSCLModel.from_pretrained(knowing_model)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    other = save_model(model, tokenizer, tmp_path / "other")
    evaluate(other, novel, tmp_path / "out", base=base, rerank_k=5, parts=2, **QUICK)
    result = compare(done[0], tmp_path / "out")
    differences = {each.name: each for each in result.differences}
    for name in (
        "frozen_cls/map",
        "gdfl/recall@1",
        "gdfl/above/frozen_cls/recall@1",
        "leakage/gdfl/linear",
    ):
        paired = differences[name]
        assert paired.difference == pytest.approx(paired.b - paired.a)
        assert paired.ci95[0] <= paired.difference <= paired.ci95[1]
    assert (
        differences["frozen_cls/map"].pictures == 3
        and differences["leakage/gdfl/linear"].pictures == 5
    )
    assert differences["frozen_cls/map"].difference != 0
    assert (
        result.resampled == "classes" and "gdfl/nmi" in result.left_out and not result.only_in_one
    )
    assert "classes resampled" in compared_table(result)


def test_reranking_that_changed_nothing_is_flagged() -> None:
    lines = []
    for method in ("gdfl", "gdfl_reranked"):
        for row in range(7):
            line = {"kind": "query", "method": method, "seed": 0, "query": str(row)}
            lines.append(line | {"setting": "", "top": [["a", 0.5, True]]})
    few = "the grid has too few patches (9, and 10 mutual matches are needed)"
    assert unmoved(lines, (3, 3)) == [f"gdfl_reranked: 0 of 7 rankings changed: {few}"]
    assert "no two images have 10 mutual matches" in unmoved(lines, (6, 6))[0]
    lines[-1] = {**lines[-1], "top": [["b", 0.5, True]]}
    assert unmoved(lines, (6, 6)) == []


def two_methods(head: float, frozen: float) -> list[Metric]:
    """Make the metrics of a head and of the frozen tower."""
    common = {"kind": "query", "setting": "", "protocol": "classes", "top": []}
    common |= {"positives": 19, "candidates": 99}
    lines = []
    for method, seed, right in (("frozen_cls", None, frozen), ("gdfl", 0, head)):
        for number in range(100):
            line = {"query": str(number), "label": f"class {number % 5}"}
            line |= {"method": method, "seed": seed}
            lines.append(common | line | {"values": {"recall@1": float(number < right)}})
    return metrics(lines)


def test_a_head_below_the_frozen_tower_is_flagged_and_the_tower_is_listed_first() -> None:
    worse = two_methods(head=40, frozen=60)
    assert worse[0].name == "frozen_cls/recall@1"
    assert flags(worse) == ["below_frozen: recall@1 40.0 of gdfl is below 60.0 of frozen_cls"]
    assert summary(worse).startswith(
        "The trained head gdfl is BELOW the frozen tower: recall@1 40.0 beside 60.0"
    )
    better = two_methods(head=60, frozen=40)
    assert better[0].name == "gdfl/recall@1" and flags(better) == []
    assert summary(better).startswith("The trained head gdfl is above")


def test_a_result_below_the_frozen_tower_is_flagged_and_its_table_begins_with_the_verdict(
    done: tuple[Path, Result],
) -> None:
    _, result = done
    names = [f"frozen_{name}/recall@1" for name in ("cls", "mean_patch", "proj", "parts")]
    best_frozen = max(result.metric(name).value for name in names)
    below = result.metric("gdfl/recall@1").value < best_frozen
    assert any(flag.startswith("below_frozen") for flag in result.flags) == below
    assert table(result).splitlines()[0] == result.model["heads"]["summary"]
    assert ("BELOW" in result.model["heads"]["summary"]) == below


@pytest.mark.parametrize("head", ["dolg", "vitgal", "parts"])
def test_other_heads_are_trained_in_the_same_way(
    head: str, knowing_model: Path, base: Path, novel: Path, tmp_path: Path
) -> None:
    quick = QUICK | {"seeds": (0,)}
    result = evaluate(
        knowing_model,
        novel,
        tmp_path,
        base=base,
        head=head,
        loss="arcface",
        adversary="none",
        parts=2,
        **quick,
    )
    assert (
        f"{head}/recall@1" in {metric.name for metric in result.metrics} and verify(tmp_path) == []
    )
    assert not any("no_adversary" in metric.name for metric in result.metrics)


def test_re_identification_leaves_out_the_camera_of_the_query(
    knowing_model: Path, base: Path, gallery: Path, tmp_path: Path
) -> None:
    people = [[f"person {row % 2}"] for row in range(10)]
    cameras = [f"c{row % 3}" for row in range(10)]
    query = write(tmp_path / "query", gallery, people, camera=cameras)
    crowd = write(tmp_path / "gallery", gallery, people, start=10, camera=cameras)
    common: dict[str, Any] = {"base": base, "query": query, "protocol": "re-identification"} | QUICK
    result = evaluate(knowing_model, crowd, tmp_path / "out", parts=2, lam=1.0, **common)
    assert result.metric("gdfl/rank@1").n == 10 and result.metric("frozen_parts/map").value > 0
    assert verify(tmp_path / "out") == []
    bare = write(tmp_path / "bare", gallery, people, start=10)
    with pytest.raises(DataError, match='has no "camera"'):
        evaluate(knowing_model, bare, tmp_path / "none", **common)


def test_shared_classes_are_refused_by_name_and_shared_images_are_flagged(
    knowing_model: Path, base: Path, scenes: Path, gallery: Path, tmp_path: Path
) -> None:
    both = write(tmp_path / "both", gallery, [[f"class {row % 3}"] for row in range(9)])
    with pytest.raises(DataError, match="share the classes 'class 0', 'class 1', 'class 2'"):
        evaluate(knowing_model, both, tmp_path / "out", base=base, **QUICK)
    copies = write(
        tmp_path / "copies", scenes / "train", [[f"other {row % 3}"] for row in range(9)]
    )
    result = evaluate(knowing_model, copies, tmp_path / "out", base=base, **QUICK)
    assert "pictures_shared_with/base/9" in result.flags


def test_a_single_image_per_class_and_missing_labels_are_refused(
    knowing_model: Path, base: Path, scenes: Path, gallery: Path, tmp_path: Path
) -> None:
    single = write(tmp_path / "single", gallery, [[f"other {row}"] for row in range(9)])
    with pytest.raises(DataError, match="no query has"):
        evaluate(knowing_model, single, tmp_path / "out", base=base, **QUICK)
    alone = write(tmp_path / "alone", scenes / "train", [[f"class {row}"] for row in range(9)])
    with pytest.raises(DataError, match="classes to learn from have two images"):
        evaluate(knowing_model, gallery, tmp_path / "out", base=alone, **QUICK)
    unlabelled = write(tmp_path / "unlabelled", gallery, [[]] * 9)
    with pytest.raises(DataError, match='to be measured on has exactly one of "labels"'):
        evaluate(knowing_model, unlabelled, tmp_path / "out", base=base, **QUICK)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"protocol": "cub"}, "protocol"),
        ({"protocol": "query-gallery"}, "--query"),
        ({"head": "resnet"}, "head: .*got 'resnet'"),
        ({"head": "parts"}, "--parts"),
        ({"loss": "hinge"}, "loss: .*got 'hinge'"),
        ({"adversary": "dann"}, "adversary: .*got 'dann'"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (0, 0)}, "seeds"),
        ({"seeds": (-1,)}, "seeds"),
        ({"seeds": (2**32,)}, "seeds"),
        ({"lam": float("nan")}, "lam"),
        ({"lam": float("inf")}, "lam"),
        ({"lam": -0.1}, "lam"),
        ({"layers": (1, 1)}, "layers"),
        ({"layers": (0, 1)}, "layers"),
        ({"folds": 1}, "folds is 1, must be at least 2"),
        ({"clusterings": -1}, "clusterings is -1"),
        ({"rerank_k": -1}, "rerank_k is -1"),
        ({"parts": -1}, "parts is -1"),
        ({"per_layer_dim": 0}, "per_layer_dim is 0"),
        ({"embed_dim": 0}, "embed_dim is 0"),
        ({"pool_grid": 0}, "pool_grid is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"ks": (2, 4)}, "ks"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_opened(
    option: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = tmp_path / "nothing"
    with pytest.raises(UsageError, match=message):
        evaluate(nothing, nothing, tmp_path, base=nothing, **QUICK | option)
    paths = dict.fromkeys(("model", "data", "base", "out"), str(nothing))
    values: dict[str, Any] = {}
    for key, value in (QUICK | option).items():
        values[key] = list(value) if isinstance(value, tuple) else value
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(paths | values))
    assert run_stage(["metric-learning", str(tmp_path / "recipe.yaml")]) == UsageError.exit_code
    assert next(iter(option)) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"), [({"layers": (9,)}, "9"), ({"parts": 5}, "into 5 parts")]
)
def test_options_that_do_not_fit_the_tower_are_refused(
    option: dict[str, Any],
    message: str,
    knowing_model: Path,
    base: Path,
    novel: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(knowing_model, novel, tmp_path, base=base, **QUICK | option)


def test_data_that_cannot_work_are_refused_before_a_model_is_opened(
    base: Path, novel: Path, gallery: Path, tmp_path: Path
) -> None:
    nothing = tmp_path / "nothing"

    def refuse(message: str, data: Path = novel, **more: Any) -> None:
        with pytest.raises(DataError, match=message):
            evaluate(nothing, data, tmp_path / "out", **{"base": base} | QUICK | more)

    refuse("5 classes to learn from cannot be divided into 3 folds", folds=3)
    refuse("first 3 that --limit takes", limit=3)
    refuse("share the classes 'class 0'", write(tmp_path / "both", gallery, [["class 0"]] * 9))
    others = write(tmp_path / "others", gallery, [["stranger"]] * 3)
    refuse("no query has a right image", query=others, protocol="query-gallery")
    # Two of four classes have a second image, and both may be held out together.
    rare = write(tmp_path / "rare", gallery, [[f"class {row % 4}"] for row in (0, 1, 2, 3, 0, 1)])
    refuse("two images", base=rare)


def test_the_command_prints_every_method_and_the_report_shows_them(
    knowing_model: Path, base: Path, novel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"eval metric-learning --model {knowing_model} --base {base} --data {novel}"
    command += f" --out {tmp_path / 'out'} --steps 4 --seeds 0 --folds 2 --clusterings 1 --lam 0.1"
    assert main(command.split()) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("The trained head gdfl is ")
    for method in (
        "frozen_cls",
        "frozen_mean_patch",
        "frozen_proj",
        "no_adversary",
        "last_layer_only",
        "no_attention",
    ):
        assert f"\n{method} " in printed
    write_report([tmp_path / "out"], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for part in (
        "Recall@1, GDFL head: ",
        "Nearest neighbors",
        "Where the head looks",
        "Leakage",
    ):
        assert part in page
    assert page.count("data:image/jpeg") > 10


@pytest.mark.parametrize("name", ["metric_learning", "metric_learning_market1501"])
def test_recipes_hold_arguments_of_the_stage(name: str) -> None:
    recipe = yaml.safe_load(
        (Path(__file__).parents[2] / "launch" / "recipes" / f"{name}.yaml").read_text()
    )
    assert recipe.keys() <= inspect.signature(evaluate).parameters.keys()
