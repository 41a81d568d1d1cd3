"""The few-shot stage and `glscl predict`: all methods on the same episodes, nothing chosen on the data."""

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
from eval.results.schema import Result, read_records, read_result
from eval.results.verify import verify
from eval.stages.few_shot import evaluate
from eval.stages.few_shot.episodes import read_episodes
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


def picture(colour: tuple[int, int, int], seed: int) -> bytes:
    """Draw a picture of 48 pixels with a strong grain, so that some are mistaken."""
    grain = (
        np.random.default_rng(seed).normal(0, 25, (3, 3, 3)).repeat(16, axis=0).repeat(16, axis=1)
    )
    content = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + grain, 0, 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def write(
    root: Path, counts: dict[str, int], colours: dict[str, tuple[int, int, int]], seed: int = 0
) -> Path:
    """Write pictures of each colour, the colours in turn, and one each with no and with two labels."""
    order = sorted((number, name) for name, count in counts.items() for number in range(count))
    labels: list[list[str]] = [[name] for _, name in order] + [[], list(counts)[:2]]
    shown = [
        picture(colours[several[0] if several else next(iter(counts))], seed + i)
        for i, several in enumerate(labels)
    ]
    records = [
        (f"{i:03d}", {"png": content, "json": json.dumps({"labels": several}).encode()})
        for i, (several, content) in enumerate(zip(labels, shown, strict=True))
    ]
    write_shards(root, records, source={"name": root.name})
    return root


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("splits")
    return {
        name: write(root / name, dict.fromkeys(colours, EACH[name]), colours, seed=1000 * number)
        for number, (name, colours) in enumerate(COLOURS.items())
    }


@pytest.fixture(scope="module")
def out(
    knowing_model: Path, splits: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of an evaluation with everything."""
    folder = tmp_path_factory.mktemp("few-shot") / "out"
    learning = {"base": splits["base"], "val": splits["val"]}
    evaluate(knowing_model, splits["novel"], folder, shot=[1, 3], **learning, **SMALL)
    return folder


def names_of(result: Result, ending: str) -> set[str]:
    return {metric.name.split("/")[1] for metric in result.metrics if metric.name.endswith(ending)}


def test_every_method_stands_on_the_same_episodes_with_both_intervals(out: Path) -> None:
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
        closed = [
            line
            for line in records
            if line["query"].startswith(form) and line["kind"] == "closed_world"
        ]
        apart = [
            line
            for line in records
            if line["query"].startswith(form) and line["kind"] == "open_world"
        ]
        truth = np.arange(3).repeat(4)
        right = [
            100 * float((np.array(line["predicted"]["proto"]) == truth).mean()) for line in closed
        ]
        found = result.metric(f"{form}/proto/accuracy")
        assert found.value == pytest.approx(np.mean(right)) and found.n == 20 == len(closed)
        assert found.ci95 == pytest.approx(t_interval(right)) == found.intervals["closed_world"]
        opened = [
            100 * float((np.array(line["predicted"]["proto"]) == truth).mean()) for line in apart
        ]
        low, high = t_interval(opened) or (0, 0)
        assert np.mean(found.intervals["open_world"]) == pytest.approx(found.value)
        assert np.diff(found.intervals["open_world"]) == pytest.approx(high - low)
        assert found.chance == pytest.approx(100 / 3) and found.unit == "percent"
        assert found.value > 60  # colours are seen even by this model
        for reference in ("proto", "zero_shot"):
            gain = result.metric(f"{form}/cpea/above_{reference}")
            beside = result.metric(f"{form}/{reference}/accuracy").value
            assert gain.value == pytest.approx(
                result.metric(f"{form}/cpea/accuracy").value - beside
            )
            assert gain.unit == "percentage points" and set(gain.intervals) == {
                "closed_world",
                "open_world",
            }
        by_class = [m for m in result.metrics if m.name.startswith(f"{form}/gliml/class/")]
        assert {m.name.rpartition("/")[2] for m in by_class} == set(COLOURS["novel"])
        total = sum(m.value * m.n for m in by_class) / sum(m.n for m in by_class)
        assert total == pytest.approx(result.metric(f"{form}/gliml/accuracy").value)


def test_the_result_says_what_was_measured_on_what(out: Path, splits: dict[str, Path]) -> None:
    result = read_result(out)
    assert verify(out) == [] and metrics(read_records(out)) == result.metrics
    assert (
        result.data["classes"] == sorted(COLOURS["novel"]) and result.data["without_one_label"] == 2
    )
    assert result.data["images"] == 4 * EACH["novel"] and result.data["base"]["classes"] == sorted(
        COLOURS["base"]
    )
    assert len(result.data["split"]) == 71 and any(
        flag.startswith("overlap: unknown") for flag in result.flags
    )
    assert any("is not above" in flag for flag in result.flags)
    heads = result.model["heads"]
    assert heads["3way-1shot/gliml_untrained"]["parameters"] == 0
    # As many operations as products have: for the mean of 3 pictures for 3 classes too, beside 12
    # queries.
    nearest, proto = (
        heads[f"3way-1shot/{name}"]["flops_per_episode"] for name in ("nearest_neighbour", "proto")
    )
    assert proto == nearest * (1 + 3 / 12)
    assert heads["3way-1shot/gliml"]["parameters"] > 0 == heads["3way-1shot/proto"]["parameters"]
    assert (
        heads["3way-1shot/gliml"]["flops_per_episode"]
        > heads["3way-1shot/proto"]["flops_per_episode"]
        > 0
    )
    assert {"alpha", "beta", "validation_accuracy"} <= set(heads["3way-3shot/tip_adapter"])
    assert heads["3way-1shot/simpleshot"]["centre"] == "base"
    assert len(heads["3way-1shot/cpea"]["training"]) == 2
    assert (
        "lam" not in heads["3way-1shot/gliml"]
        and "lam" not in heads["3way-1shot/gliml"]["training"][0]
    )
    shown = next(read_records(out))
    assert len(shown["support_pictures"]) == 3 and len(shown["query_pictures"]) == 12
    assert (
        np.allclose(np.sum(shown["weights"], axis=1), 1, atol=1e-3)
        and len(shown["weights"]) == 3 + 12
    )


def test_gliml_is_compared_with_every_baseline_and_flagged_by_the_open_world(out: Path) -> None:
    result = read_result(out)
    baselines = [name for name in result.protocol["methods"] if not name.startswith("gliml")]
    flagged = [flag for flag in result.flags if "is not above" in flag]
    expected = []
    for form in ("3way-1shot", "3way-3shot"):
        for own in ("gliml_untrained", "gliml"):
            gains = {name: result.metric(f"{form}/{own}/above_{name}") for name in baselines}
            for name, gain in gains.items():
                beside = result.metric(f"{form}/{name}/accuracy").value
                assert gain.value == pytest.approx(
                    result.metric(f"{form}/{own}/accuracy").value - beside
                )
            below = [name for name, gain in gains.items() if gain.intervals["open_world"][0] <= 0]
            expected += [f"{own} is not above {', '.join(below)} ({form})"] if below else []
    assert flagged == expected
    assert any(  # told apart in the closed world alone
        metric.ci95 and metric.ci95[0] > 0 >= metric.intervals["open_world"][0]
        for metric in result.metrics
        if "/gliml" in metric.name and "/above_" in metric.name
    )
    with pytest.raises(KeyError):
        result.metric("3way-1shot/cpea/above_simpleshot")


def test_the_command_prints_a_table_of_methods_with_both_intervals(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [
        "--model",
        str(knowing_model),
        "--data",
        str(splits["novel"]),
        "--out",
        str(tmp_path / "o"),
    ]
    asked = [
        "--way",
        "3",
        "--queries",
        "4",
        "--shot",
        "1",
        "2",
        "--episodes",
        "9",
        "--methods",
        "proto",
        "simpleshot",
    ]
    assert main(["eval", "few-shot", *where, *asked]) == 0
    about, *lines, path = capsys.readouterr().out.splitlines()
    result = read_result(tmp_path / "o")
    assert path == f"{tmp_path / 'o'}/result.json" and "95 % intervals" in about
    assert [line.split()[0] for line in lines] == [
        "3way-1shot",
        "proto",
        "simpleshot",
        "3way-2shot",
        "proto",
        "simpleshot",
    ]
    gain = result.metric("3way-2shot/simpleshot/above_proto")
    shown = [f"{result.metric('3way-2shot/simpleshot/accuracy').value:.1f}", f"{gain.value:+.1f}"]
    shown += [
        "{:+.1f} to {:+.1f}".format(*gain.intervals[kind])
        for kind in ("closed_world", "open_world")
    ]
    assert all(value in lines[-1] for value in shown) and lines[-2].split()[-3:] == ["-", "-", "-"]


def test_episode_lists_of_an_earlier_evaluation_do_not_stay(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "episodes-mine.json").write_text("{}")
    for shot in ([1, 2], [2]):
        found = evaluate(
            knowing_model, splits["novel"], tmp_path, shot=shot, methods=["proto"], **SMALL
        )
    named = {one["file"] for both in found.protocol["episodes"].values() for one in both.values()}
    assert {file.name for file in tmp_path.glob("episodes-*")} == named | {"episodes-mine.json"}
    assert all("2shot" in name for name in named)


def test_episode_lists_can_be_run_again_and_give_the_same_bits(
    out: Path, knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    protocol = read_result(out).protocol["episodes"]["3way-1shot"]
    files = [out / one["file"] for one in protocol.values()]
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
        assert again.metric(f"3way-1shot/proto/{name}") == read_result(out).metric(
            f"3way-1shot/proto/{name}"
        )
    keys = json.loads(files[0].read_text())["pictures"]
    assert len(read_episodes(files[1], keys).episodes) >= 3


def test_two_models_are_compared_episode_by_episode(
    out: Path, knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        evaluate(
            knowing_model,
            splits["novel"],
            tmp_path / name,
            shot=[2],
            methods=["proto", "simpleshot"],
            **SMALL,
        )
    assert (tmp_path / "a" / "samples.jsonl").read_bytes() == (
        tmp_path / "b" / "samples.jsonl"
    ).read_bytes()
    found = compare(tmp_path / "a", tmp_path / "b")
    assert {d.name for d in found.differences} >= {
        "3way-2shot/proto/accuracy",
        "3way-2shot/simpleshot/above_proto",
    }
    assert {d.verdict for d in found.differences} == {"equal"}
    with pytest.raises(DataError, match="followed different protocols"):
        compare(tmp_path / "a", out)


def test_without_names_base_or_validation_the_rest_runs_and_says_what_is_missing(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    towers = export(knowing_model, tmp_path / "towers")
    found = evaluate(towers, splits["novel"], tmp_path / "out", shot=[1], **SMALL)
    assert names_of(found, "/accuracy") == {
        "nearest_neighbour",
        "proto",
        "simpleshot",
        "gliml_untrained",
    }
    left_out = [flag for flag in found.flags if flag.startswith("left_out/")]
    assert len(left_out) == 5 and any("give --base" in flag for flag in left_out)
    assert verify(tmp_path / "out") == []
    with pytest.raises(UsageError, match="zero_shot cannot run: the encoder has no space"):
        evaluate(towers, splits["novel"], tmp_path / "out", methods=["zero_shot"])


def test_an_encoder_that_is_finetuned_serves_the_next_method_unchanged(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    learning: dict[str, Any] = {"base": splits["base"], "val": splits["val"]}
    form = {**SMALL, "epochs": 1, "methods": ["proto", "gliml"], **learning}
    tuned = evaluate(
        knowing_model, splits["novel"], tmp_path / "a", shot=[1, 2], mode="finetune", **form
    )
    alone = evaluate(
        knowing_model, splits["novel"], tmp_path / "b", shot=[2], mode="finetune", **form
    )
    for name in ("proto", "gliml"):
        assert tuned.metric(f"3way-2shot/{name}/accuracy") == alone.metric(
            f"3way-2shot/{name}/accuracy"
        )


def test_the_additive_interplay_has_its_lambda_chosen_on_validation(
    knowing_model: Path, splits: dict[str, Path], tmp_path: Path
) -> None:
    learning: dict[str, Any] = {
        "base": splits["base"],
        "val": splits["val"],
        "methods": ["proto", "gliml"],
        **SMALL,
    }
    found = evaluate(
        knowing_model, splits["novel"], tmp_path, shot=[1], interplay="additive", **learning
    )
    head = found.model["heads"]["3way-1shot/gliml"]
    best = max(head["training"], key=lambda epoch: epoch["accuracy"])
    assert {epoch["lam"] for epoch in head["training"]} == {0, 0.25, 0.5, 1, 2}
    assert (head["lam"], head["validation_accuracy"]) == (best["lam"], best["accuracy"])
    assert not any(
        "weights" in line for line in read_records(tmp_path)
    )  # all patches weigh the same
    assert "weights of its patches" not in write_report(
        [tmp_path], tmp_path / "report.html"
    ).read_text("utf-8")


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
            "--data has too few pictures of 'grey' (24), 'olive' (24), 'pink' (24), 'violet' (24)",
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
        (["--batch-size", "0"], 2, "batch_size must be at least 1, not 0"),
    ],
)
def test_the_command_says_what_is_wrong(
    options: Sequence[str],
    code: int,
    message: str,
    knowing_model: Path,
    splits: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = [
        "--model",
        str(knowing_model),
        "--data",
        str(splits["novel"]),
        "--out",
        str(tmp_path / "o"),
    ]
    small = ["--way", "3", "--queries", "4", "--shot", "1"]
    given = [
        option.format(**{name: str(path) for name, path in splits.items()})
        if "{n" in option or "{v" in option
        else option
        for option in options
    ]
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
    recipe = yaml.safe_load(
        (Path(launch.__file__).parent / "recipes" / "few_shot.yaml").read_text("utf-8")
    )
    recipe |= {
        "model": str(knowing_model),
        "out": str(tmp_path / "out"),
        "cache": str(tmp_path / "cache"),
        "shot": [2],
    }
    recipe |= {
        name: str(splits[split])
        for name, split in (("data", "novel"), ("base", "base"), ("val", "val"))
    }
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(recipe | SMALL | {"methods": ["proto", "simpleshot"]})
    )
    assert run_stage(["few-shot", str(tmp_path / "recipe.yaml")]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        said["stage"] == "few-shot"
        and said["model"]["heads"]["3way-2shot/simpleshot"]["centre"] == "base"
    )
    assert run_stage(["few-shot", str(tmp_path / "recipe.yaml"), "--mode", "thawed"]) == 2
    assert "mode: Input should be 'frozen', 'finetune' or 'none'" in capsys.readouterr().err


def test_data_without_labels_are_refused(
    knowing_model: Path, gallery: Path, tmp_path: Path, jpeg: bytes
) -> None:
    write_shards(tmp_path / "d", [("s0", {"jpg": jpeg, "txt": b"a cat"})], source={"name": "d"})
    with pytest.raises(DataError, match='no sample with exactly one of "labels"'):
        evaluate(knowing_model, tmp_path / "d", tmp_path / "o")


def test_a_picture_of_the_data_in_another_split_is_flagged(
    knowing_model: Path, tmp_path: Path
) -> None:
    colours = COLOURS["novel"]
    data = write(tmp_path / "data", dict.fromkeys(colours, 8), colours)
    renamed = {f"other {name}": colour for name, colour in colours.items()}
    base = write(tmp_path / "base", dict.fromkeys(renamed, 8), renamed)
    found = evaluate(
        knowing_model, data, tmp_path / "o", base=base, shot=[1], methods=["simpleshot"], **SMALL
    )
    assert "pictures_shared_with/base/32" in found.flags


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"methods": []}, "methods names none"),
        ({"pool_grid": 0}, "pool_grid must be at least 1, not 0"),
        ({"epochs": -1}, "epochs must be at least 1, not -1"),
    ],
)
def test_configurations_that_ask_for_nothing_are_refused(
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
            (root / name / f"{i}.png").write_bytes(picture(colour, 50 * number + i))
    (root / ".hidden").mkdir()
    return root


def test_pictures_are_recognised_by_a_folder_of_examples(
    knowing_model: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("red", "white"):
        (tmp_path / f"{name}.png").write_bytes(picture(COLOURS["base"][name], 999))
    pictures = [str(tmp_path / "red.png"), str(tmp_path / "white.png")]
    asked = ["predict", *pictures, "--support", str(examples), "--model", str(knowing_model)]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["support"] == {"blue": 3, "green": 2, "red": 1, "white": 4}
    assert [one["best"]["proto"] for one in found["pictures"]] == ["red", "white"]
    for one in found["pictures"]:
        for shares in one["probabilities"].values():
            assert sum(shares.values()) == pytest.approx(1) and set(shares) == set(COLOURS["base"])
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert (
        "red.png\n  proto: red " in said and "from 10 examples of 4 classes; not calibrated" in said
    )


def test_what_is_wrong_with_examples_is_said(
    knowing_model: Path, examples: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(support: Path, file: Path) -> tuple[int, str]:
        code = main(
            ["predict", str(file), "--support", str(support), "--model", str(knowing_model)]
        )
        return code, capsys.readouterr().err

    red = examples / "red" / "0.png"
    assert said(tmp_path / "none", red)[1].count("is not a folder: --support names one") == 1
    assert said(examples / "red", red) == (
        3,
        f"glscl: error: {examples / 'red'} holds 0 folders of examples: recognition needs at least two classes\n",
    )
    assert said(examples, tmp_path / "none.png")[1].endswith(
        "none.png: No such file or directory\n"
    )
    own = tmp_path / "own"
    shutil.copytree(examples, own)
    (own / "red" / "notes.txt").write_text("mine")
    assert "notes.txt is no jpg|jpeg|png|webp file" in said(own, red)[1]
    (own / "red" / "notes.txt").unlink()
    (own / "red" / "0.png").write_bytes(b"no picture")
    assert str(own / "red" / "0.png") in said(own, red)[1]
    assert (
        "none.png: No such file" in said(own, tmp_path / "none.png")[1]
    )  # read before the examples
    (own / "red" / "0.png").unlink()
    assert said(own, red) == (
        3,
        f"glscl: error: {own / 'red'} holds no picture: add an example of the class, or remove the folder\n",
    )
