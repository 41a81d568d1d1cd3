"""The few-shot stage and `glscl predict`: methods, results, episode lists, flags and errors."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import launch
from data_pipeline.errors import DataError, UsageError
from data_pipeline.shards.write import write_shards
from eval.__main__ import main as run_stage
from eval.report import write_report
from eval.results.compare import compare
from eval.results.intervals import t_interval
from eval.results.schema import Metric, Result, read_records, read_result
from eval.results.verify import verify
from eval.stages.few_shot import evaluate, summary
from eval.stages.few_shot.episodes import read_episodes
from eval.stages.few_shot.records import EpisodeRecord
from eval.stages.few_shot.stage import metrics
from launch.cli import main
from pretrain.export import export

COLOURS = {
    "base": {
        "red": (220, 20, 20),
        "green": (20, 200, 20),
        "blue": (20, 20, 230),
        "white": (240, 240, 240),
    },
    "val": {
        "yellow": (230, 220, 30),
        "black": (10, 10, 10),
        "cyan": (20, 210, 210),
        "brown": (120, 70, 20),
    },
    "novel": {
        "pink": (250, 150, 180),
        "grey": (128, 128, 128),
        "violet": (130, 20, 180),
        "olive": (110, 120, 20),
    },
}
EACH = {"base": 12, "val": 12, "novel": 24}
SMALL: dict[str, Any] = {"way": 3, "queries": 4, "episodes": 20, "epochs": 1}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def draw(colour: tuple[int, int, int], seed: int) -> bytes:
    """Draw an image of 48 pixels with so strong a grain that methods make mistakes."""
    cells = np.random.default_rng(seed).normal(0, 25, (3, 3, 3))
    grain = cells.repeat(16, axis=0).repeat(16, axis=1)
    content = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + grain, 0, 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def write(
    root: Path, counts: dict[str, int], colours: dict[str, tuple[int, int, int]], seed: int = 0
) -> Path:
    """Write images of each color in turn, then one without a label and one with two labels."""
    labels: list[list[str]] = []
    for number in range(max(counts.values())):
        for name in sorted(counts):
            if number < counts[name]:
                labels.append([name])
    labels += [[], list(counts)[:2]]
    records = []
    for number, names in enumerate(labels):
        shown_name = names[0] if names else next(iter(counts))
        content = draw(colours[shown_name], seed + number)
        files = {"png": content, "json": json.dumps({"labels": names}).encode()}
        records.append((f"{number:03d}", files))
    write_shards(root, records, source={"name": root.name})
    return root


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("splits")
    folders = {}
    for number, (name, colours) in enumerate(COLOURS.items()):
        counts = dict.fromkeys(colours, EACH[name])
        folders[name] = write(root / name, counts, colours, seed=1000 * number)
    return folders


@pytest.fixture(scope="module")
def out(
    knowing_model: Path, splits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of an evaluation of all methods, with base and validation classes."""
    folder = tmp_path_factory.mktemp("few-shot") / "out"
    learning = {"base": splits["base"], "val": splits["val"]}
    evaluate(knowing_model, splits["novel"], folder, shot=[1, 3], **learning, **SMALL)
    return folder


def names_of(result: Result, ending: str) -> set[str]:
    return {metric.name.split("/")[1] for metric in result.metrics if metric.name.endswith(ending)}


def percent_right(records: list[EpisodeRecord], method: str) -> list[float]:
    """Return the percentage of right answers in each episode of 3 classes with 4 queries each."""
    truth = np.arange(3).repeat(4)
    values = []
    for record in records:
        values.append(100 * float((np.array(record["predicted"][method]) == truth).mean()))
    return values


def test_every_method_is_measured_on_the_same_episodes_with_both_intervals(out: Path) -> None:
    result, records = read_result(out), list(read_records(out))
    methods = [
        "zero_shot",
        "nearest_neighbour",
        "proto",
        "simpleshot",
        "tip_adapter",
        "linear_probe",
        "cpea",
    ]
    methods += ["gliml_untrained", "gliml"]
    assert result.stage == "few-shot" and result.protocol["methods"] == methods
    assert all(list(line["predicted"]) == methods for line in records)
    for form in ("3way-1shot", "3way-3shot"):
        of_form = [record for record in records if record["query"].startswith(form)]
        closed = [record for record in of_form if record["kind"] == "closed_world"]
        disjoint = [record for record in of_form if record["kind"] == "open_world"]
        closed_values = percent_right(closed, "proto")
        proto = result.metric(f"{form}/proto/accuracy")
        assert proto.value == pytest.approx(np.mean(closed_values))
        assert proto.n == 20 == len(closed)
        assert proto.ci95 == proto.intervals["closed_world"]
        assert proto.ci95 == pytest.approx(t_interval(closed_values))
        low, high = t_interval(percent_right(disjoint, "proto")) or (0, 0)
        assert np.mean(proto.intervals["open_world"]) == pytest.approx(proto.value)
        assert np.diff(proto.intervals["open_world"]) == pytest.approx(high - low)
        assert proto.chance == pytest.approx(100 / 3) and proto.unit == "percent"
        assert proto.value > 60  # even this model sees colors
        cpea = result.metric(f"{form}/cpea/accuracy").value
        for reference in ("proto", "zero_shot"):
            gain = result.metric(f"{form}/cpea/above_{reference}")
            reference_value = result.metric(f"{form}/{reference}/accuracy").value
            assert gain.value == pytest.approx(cpea - reference_value)
            assert gain.unit == "percentage points"
            assert set(gain.intervals) == {"closed_world", "open_world"}
        by_class = [m for m in result.metrics if m.name.startswith(f"{form}/gliml/class/")]
        assert {m.name.rpartition("/")[2] for m in by_class} == set(COLOURS["novel"])
        total = sum(m.value * m.n for m in by_class) / sum(m.n for m in by_class)
        assert total == pytest.approx(result.metric(f"{form}/gliml/accuracy").value)


def record_of(number: int, kind: str, predicted: list[int]) -> dict[str, Any]:
    record = {"query": f"2way-1shot/{number}", "kind": kind, "way": 2, "shot": 1}
    return record | {"classes": ["a", "b"], "predicted": {"proto": predicted}}


def test_accuracies_of_100_percent_have_intervals_with_a_width() -> None:
    records = [record_of(number, "closed_world", [0, 0, 1, 1]) for number in range(30)]
    records += [record_of(number, "open_world", [0, 0, 1, 1]) for number in range(10)]
    by_name = {metric.name: metric for metric in metrics(records)}
    accuracy = by_name["2way-1shot/proto/accuracy"]
    assert accuracy.value == 100 and accuracy.ci95 == accuracy.intervals["closed_world"]
    low, high = accuracy.intervals["closed_world"]
    assert 80 < low < 95 and high == 100
    low_open, high_open = accuracy.intervals["open_world"]
    assert low_open < low and high_open == 100  # fewer episodes say less
    low_class, high_class = by_name["2way-1shot/proto/class/a"].ci95
    assert low_class == low and high_class == 100


def test_the_result_describes_data_model_and_heads(out: Path, splits: dict[str, Path]) -> None:
    result = read_result(out)
    assert verify(out) == [] and metrics(read_records(out)) == result.metrics
    assert result.data["classes"] == sorted(COLOURS["novel"])
    assert result.data["without_one_label"] == 2
    assert result.data["images"] == 4 * EACH["novel"]
    assert result.data["base"]["classes"] == sorted(COLOURS["base"])
    assert len(result.data["split"]) == len("sha256:") + 64
    assert any(flag.startswith("overlap: unknown") for flag in result.flags)
    assert any("is not above" in flag for flag in result.flags)
    heads = result.model["heads"]
    assert heads["3way-1shot/gliml_untrained"]["parameters"] == 0
    # Both compare 12 queries with 3 images or classes. ProtoNet also averages the 3 support images,
    # which costs as much as 3 more queries.
    nearest = heads["3way-1shot/nearest_neighbour"]["flops_per_episode"]
    proto = heads["3way-1shot/proto"]["flops_per_episode"]
    assert proto == nearest * (1 + 3 / 12)
    assert heads["3way-1shot/gliml"]["parameters"] > 0 == heads["3way-1shot/proto"]["parameters"]
    assert heads["3way-1shot/gliml"]["flops_per_episode"] > proto > 0
    assert {"alpha", "beta", "validation_accuracy"} <= set(heads["3way-3shot/tip_adapter"])
    assert heads["3way-1shot/simpleshot"]["centre"] == "base"
    assert len(heads["3way-1shot/cpea"]["training"]) == 2
    gliml = heads["3way-1shot/gliml"]
    assert "lam" not in gliml and "lam" not in gliml["training"][0]
    shown = next(read_records(out))
    assert len(shown["support_pictures"]) == 3 and len(shown["query_pictures"]) == 12
    assert len(shown["weights"]) == 3 + 12
    assert np.allclose(np.sum(shown["weights"], axis=1), 1, atol=1e-3)


def test_gliml_is_compared_with_every_baseline_and_flagged_by_the_open_world(out: Path) -> None:
    result = read_result(out)
    baselines = [name for name in result.protocol["methods"] if not name.startswith("gliml")]
    flagged = [flag for flag in result.flags if "is not above" in flag]
    expected = []
    for form in ("3way-1shot", "3way-3shot"):
        for method in ("gliml_untrained", "gliml"):
            accuracy = result.metric(f"{form}/{method}/accuracy").value
            not_above = []
            for name in baselines:
                gain = result.metric(f"{form}/{method}/above_{name}")
                baseline = result.metric(f"{form}/{name}/accuracy").value
                assert gain.value == pytest.approx(accuracy - baseline)
                if gain.intervals["open_world"][0] <= 0:
                    not_above.append(name)
            if not_above:
                expected.append(f"{method} is not above {', '.join(not_above)} ({form})")
    assert flagged == expected
    with pytest.raises(KeyError):
        result.metric("3way-1shot/cpea/above_simpleshot")


def test_the_open_world_interval_decides_what_gliml_is_not_above() -> None:
    name, unit = "5way-1shot/gliml/above_proto", "percentage points"
    gain = Metric(name=name, value=2.0, unit=unit, ci95=(1.0, 3.0), n=9)
    assert summary.flags([gain]) == []
    gain.intervals = {"closed_world": (1.0, 3.0), "open_world": (-1.0, 5.0)}
    assert summary.flags([gain]) == ["gliml is not above proto (5way-1shot)"]


def test_the_command_prints_a_table_of_methods_with_both_intervals(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = str(splits["novel"]), str(tmp_path / "o")
    where = ["--model", str(knowing_model), "--data", data, "--out", out]
    form = ["--way", "3", "--queries", "4", "--shot", "1", "2", "--episodes", "9"]
    methods = ["--methods", "proto", "simpleshot"]
    assert main(["eval", "few-shot", *where, *form, *methods]) == 0
    about, *lines, path = capsys.readouterr().out.splitlines()
    result = read_result(tmp_path / "o")
    assert path == f"{tmp_path / 'o'}/result.json" and "95 % intervals" in about
    rows = [line.split()[0] for line in lines]
    assert rows == ["3way-1shot", "proto", "simpleshot", "3way-2shot", "proto", "simpleshot"]
    accuracy = result.metric("3way-2shot/simpleshot/accuracy")
    gain = result.metric("3way-2shot/simpleshot/above_proto")
    assert f"{accuracy.value:.1f}" in lines[-1] and f"{gain.value:+.1f}" in lines[-1]
    for low, high in gain.intervals.values():
        assert f"{low:+.1f} to {high:+.1f}" in lines[-1]
    assert lines[-2].split()[-3:] == ["-", "-", "-"]  # ProtoNet is not compared with itself


def test_episode_lists_of_the_replaced_result_are_removed(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "episodes-mine.json").write_text("{}")
    options = {"methods": ["proto"], **SMALL}
    evaluate(knowing_model, splits["novel"], tmp_path, shot=[1, 2], **options)
    evaluate(knowing_model, splits["novel"], tmp_path, shot=[2], overwrite=True, **options)
    assert {file.name for file in tmp_path.glob("episodes-*")} == {
        "episodes-3way-2shot-closed-world.json",
        "episodes-3way-2shot-open-world.json",
        "episodes-mine.json",
    }


def test_episode_lists_can_be_run_again_and_give_the_same_bits(
    out: Path, knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    protocol = read_result(out).protocol["episodes"]["3way-1shot"]
    files = [out / described["file"] for described in protocol.values()]
    assert [file.name for file in files] == [
        "episodes-3way-1shot-closed-world.json",
        "episodes-3way-1shot-open-world.json",
    ]
    again = evaluate(
        knowing_model,
        splits["novel"],
        tmp_path / "again",
        episode_list=files,
        methods=["proto", "zero_shot"],
        seed=7,
    )
    assert again.protocol["episodes"] == {"3way-1shot": protocol}
    for name in ("accuracy", "class/grey"):
        first = read_result(out).metric(f"3way-1shot/proto/{name}")
        assert again.metric(f"3way-1shot/proto/{name}") == first
    keys = json.loads(files[0].read_text())["pictures"]
    assert len(read_episodes(files[1], keys).episodes) >= 3


def test_two_models_are_compared_episode_by_episode(
    out: Path, knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    options = {"shot": [2], "methods": ["proto", "simpleshot"], **SMALL}
    for name in ("a", "b"):
        evaluate(knowing_model, splits["novel"], tmp_path / name, **options)
    records = [(tmp_path / name / "samples.jsonl").read_bytes() for name in ("a", "b")]
    assert records[0] == records[1]
    differences = compare(tmp_path / "a", tmp_path / "b").differences
    names = {difference.name for difference in differences}
    assert names >= {"3way-2shot/proto/accuracy", "3way-2shot/simpleshot/above_proto"}
    assert {difference.verdict for difference in differences} == {"equal"}
    with pytest.raises(DataError, match="followed different protocols"):
        compare(tmp_path / "a", out)


def test_without_names_base_or_validation_the_other_methods_run_and_the_rest_is_flagged(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    towers = export(knowing_model, tmp_path / "towers")
    result = evaluate(towers, splits["novel"], tmp_path / "out", shot=[1], **SMALL)
    expected = {"nearest_neighbour", "proto", "simpleshot", "gliml_untrained"}
    assert names_of(result, "/accuracy") == expected
    left_out = [flag for flag in result.flags if flag.startswith("left_out/")]
    assert len(left_out) == 5 and any("give --base" in flag for flag in left_out)
    assert verify(tmp_path / "out") == []
    with pytest.raises(UsageError, match="zero_shot cannot run: the encoder has no space"):
        evaluate(towers, splits["novel"], tmp_path / "other", methods=["zero_shot"])


def test_fine_tuning_the_encoder_does_not_change_it_for_the_next_method(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    learning: dict[str, Any] = {"base": splits["base"], "val": splits["val"]}
    options = {**SMALL, "methods": ["proto", "gliml"], "mode": "finetune", **learning}
    data = splits["novel"]
    after_another = evaluate(knowing_model, data, tmp_path / "a", shot=[1, 2], **options)
    alone = evaluate(knowing_model, data, tmp_path / "b", shot=[2], **options)
    for name in ("proto", "gliml"):
        metric = f"3way-2shot/{name}/accuracy"
        assert after_another.metric(metric) == alone.metric(metric)


def test_the_additive_interplay_has_its_lambda_chosen_on_validation(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    learning: dict[str, Any] = {
        "base": splits["base"],
        "val": splits["val"],
        "methods": ["proto", "gliml"],
        **SMALL,
    }
    result = evaluate(
        knowing_model, splits["novel"], tmp_path, shot=[1], interplay="additive", **learning
    )
    head = result.model["heads"]["3way-1shot/gliml"]
    best = max(head["training"], key=lambda epoch: epoch["accuracy"])
    assert {epoch["lam"] for epoch in head["training"]} == {0, 0.25, 0.5, 1, 2}
    assert (head["lam"], head["validation_accuracy"]) == (best["lam"], best["accuracy"])
    # Without a gate all patches have equal weights, and there is nothing to show.
    assert not any("weights" in record for record in read_records(tmp_path))
    page = write_report([tmp_path], tmp_path / "report.html").read_text("utf-8")
    assert "weights of its patches" not in page


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ["--methods", "tip_adapter"],
            2,
            "tip_adapter cannot run: its settings are chosen on validation classes",
        ),
        (["--methods", "gliml"], 2, "gliml cannot run: it is trained on base classes: give --base"),
        (["--methods", "maml"], 2, "there is no method 'maml'"),
        (["--way", "5"], 2, "--data has 4 classes, fewer than the 5 ways: choose way 4"),
        (
            ["--queries", "30"],
            3,
            "--data has too few images of 'grey' (24), 'olive' (24), 'pink' (24), 'violet' (24)",
        ),
        (["--shot", "1", "1"], 2, "shot must name different numbers"),
        (
            ["--val", "{novel}"],
            3,
            "--data and --val share the classes 'grey', 'olive', 'pink', 'violet'",
        ),
        (["--base", "{val}", "--val", "{val}"], 3, "--base and --val share the classes 'black'"),
        (["--episode-list", "nowhere.json"], 2, "cannot read the episode list nowhere.json"),
        (["--templates", "a photo"], 2, "must hold {} once"),
        (["--epochs", "0"], 2, "epochs must be at least 1, not 0"),
        (["--batch-size", "0"], 2, "batch_size is 0, must be at least 1"),
    ],
)
def test_the_command_explains_wrong_options_and_data(
    options: Sequence[str],
    code: int,
    message: str,
    knowing_model: Path,
    splits: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = str(splits["novel"]), str(tmp_path / "o")
    where = ["--model", str(knowing_model), "--data", data, "--out", out]
    small = ["--way", "3", "--queries", "4", "--shot", "1"]
    placeholders = {f"{{{name}}}": str(path) for name, path in splits.items()}
    given = [placeholders.get(option, option) for option in options]
    assert main(["eval", "few-shot", *where, *small, *given]) == code
    assert message in capsys.readouterr().err


def test_the_report_shows_methods_and_episodes(out: Path, tmp_path: Path) -> None:
    page = write_report([out], tmp_path / "report.html").read_text("utf-8")
    assert page.count("3-way 3-shot") >= 3 and "GLIML without training" in page
    assert "answers of GLIML" in page and page.count("weights of its patches") == 2 * 2 * 3 * 3
    assert page.count('alt="an example of') == 2 * 3 * (1 + 3)
    assert "more numbers" in page


def test_the_recipe_runs(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = Path(launch.__file__).parent / "recipes" / "few_shot.yaml"
    recipe = yaml.safe_load(shipped.read_text("utf-8"))
    recipe |= {"model": str(knowing_model), "data": str(splits["novel"])}
    recipe |= {"base": str(splits["base"]), "val": str(splits["val"])}
    recipe |= {"out": str(tmp_path / "out"), "cache": str(tmp_path / "cache")}
    recipe |= SMALL | {"shot": [2], "methods": ["proto", "simpleshot"]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert run_stage(["few-shot", str(tmp_path / "recipe.yaml")]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["stage"] == "few-shot"
    assert printed["model"]["heads"]["3way-2shot/simpleshot"]["centre"] == "base"
    assert run_stage(["few-shot", str(tmp_path / "recipe.yaml"), "--mode", "thawed"]) == 2
    assert "mode: Input should be 'frozen', 'finetune' or 'none'" in capsys.readouterr().err


def test_data_without_labels_are_refused(
    knowing_model: Path, gallery: Path, tmp_path: Path, jpeg: bytes
) -> None:
    write_shards(tmp_path / "d", [("s0", {"jpg": jpeg, "txt": b"a cat"})], source={"name": "d"})
    with pytest.raises(DataError, match='no sample with exactly one of "labels"'):
        evaluate(knowing_model, tmp_path / "d", tmp_path / "o")


def test_an_image_of_the_data_in_another_split_is_flagged(
    knowing_model: Path, tmp_path: Path
) -> None:
    colours = COLOURS["novel"]
    data = write(tmp_path / "data", dict.fromkeys(colours, 8), colours)
    renamed = {f"other {name}": colour for name, colour in colours.items()}
    base = write(tmp_path / "base", dict.fromkeys(renamed, 8), renamed)
    result = evaluate(
        knowing_model, data, tmp_path / "o", base=base, shot=[1], methods=["simpleshot"], **SMALL
    )
    assert "pictures_shared_with/base/32" in result.flags


def test_a_limit_is_flagged_and_part_of_the_protocol(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    options = {"shot": [1], "methods": ["proto"], **SMALL}
    result = evaluate(knowing_model, splits["novel"], tmp_path, limit=60, **options)
    assert "limit/60" in result.flags and result.protocol["limit"] == 60
    assert result.data["hash"].endswith("/first-60") and result.data["images"] == 60


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"methods": []}, "methods is empty"),
        ({"pool_grid": 0}, "pool_grid is 0, must be at least 1"),
        ({"epochs": -1}, "epochs must be at least 1, not -1: use the mode none"),
        ({"way": 1}, "way is 1, must be at least 2"),
        ({"shot": [1, 0]}, "shot is 0, must be at least 1"),
        ({"shot": []}, "shot must name at least one number"),
        ({"queries": 0}, "queries is 0, must be at least 1"),
        ({"episodes": 0}, "episodes is 0, must be at least 1"),
        ({"seed": -1}, "seed is -1, must be at least 0"),
    ],
)
def test_numbers_that_are_too_small_are_refused(
    option: dict[str, Any],
    message: str,
    knowing_model: Path,
    splits: dict[str, Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(knowing_model, splits["novel"], tmp_path, **SMALL | option)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    for number, (name, colour) in enumerate(COLOURS["base"].items()):
        (root / name).mkdir()
        for i in range(1 + number):
            (root / name / f"{i}.png").write_bytes(draw(colour, 50 * number + i))
    (root / ".hidden").mkdir()
    return root


def test_images_are_classified_by_a_folder_of_examples(
    knowing_model: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("red", "white"):
        (tmp_path / f"{name}.png").write_bytes(draw(COLOURS["base"][name], 999))
    images = [str(tmp_path / "red.png"), str(tmp_path / "white.png")]
    command = ["predict", *images, "--support", str(examples), "--model", str(knowing_model)]
    assert main([*command, "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)
    assert predictions["support"] == {"blue": 3, "green": 2, "red": 1, "white": 4}
    assert [image["best"]["proto"] for image in predictions["pictures"]] == ["red", "white"]
    for image in predictions["pictures"]:
        for probabilities in image["probabilities"].values():
            assert sum(probabilities.values()) == pytest.approx(1)
            assert set(probabilities) == set(COLOURS["base"])
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "red.png\n  proto: red " in printed
    assert "from 10 examples of 4 classes; not calibrated" in printed


def test_unusable_examples_and_images_are_refused_by_name(
    knowing_model: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def predict(support: Path, file: Path) -> tuple[int, str]:
        command = ["predict", str(file), "--support", str(support), "--model", str(knowing_model)]
        return main(command), capsys.readouterr().err

    red, missing = examples / "red" / "0.png", tmp_path / "none.png"
    assert predict(tmp_path / "none", red)[1].count("is not a folder: --support names one") == 1
    assert predict(examples / "red", red) == (
        3,
        f"glscl: error: {examples / 'red'} holds 0 folders of examples: "
        "recognition needs at least two classes\n",
    )
    assert predict(examples, missing)[1].endswith("none.png: No such file or directory\n")
    changed = tmp_path / "changed"
    shutil.copytree(examples, changed)
    (changed / "red" / "notes.txt").write_text("mine")
    assert "notes.txt is not a jpg|jpeg|png|webp file" in predict(changed, red)[1]
    (changed / "red" / "notes.txt").unlink()
    (changed / "red" / "0.png").write_bytes(b"not an image")
    assert str(changed / "red" / "0.png") in predict(changed, red)[1]
    # The images are read before the examples, so a missing one is the first error.
    assert "none.png: No such file" in predict(changed, missing)[1]
    (changed / "red" / "0.png").unlink()
    assert predict(changed, red) == (
        3,
        f"glscl: error: {changed / 'red'} holds no image: "
        "add an example of the class, or remove the folder\n",
    )
