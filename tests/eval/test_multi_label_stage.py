"""The multi-label stage: draws, label lists and filters, results, flags, errors, and the report."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.label_lists import label_lists, shipped_lists
from data_pipeline.scenes.generate import generate
from data_pipeline.scenes.labelled import CLASSES
from data_pipeline.shards.write import write_shards
from eval.report import write_report
from eval.report.gallery import Thumbnails
from eval.report.stages.multi_label import chosen_patches
from eval.results.compare import compare
from eval.results.schema import Metric, Result, read_records
from eval.results.verify import verify
from eval.stages.multi_label import evaluate
from eval.stages.multi_label.joint_space import Labelled
from eval.stages.multi_label.label_sets import read_label_lists, select_images
from eval.stages.multi_label.methods import ABOUT, TipAdapter
from eval.stages.multi_label.sampler import MultiLabelEpisodeSampler
from eval.stages.multi_label.stage import metrics
from eval.stages.multi_label.summary import flag_not_above, table
from launch.cli import main
from pretrain.model import GLSCLModel

from .conftest import save_model

NEW = sorted(CLASSES["novel"])
OURS = {"lcm", "lcm_exact", "lcm_source", "cross"}
BASELINES = {
    "all_patch",
    "text_proto",
    "text_similarity",
    "random_patch",
    "zero_shot",
    "tip_adapter_ml",
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labelled")
    counts = {"base": 300, "val": 130, "novel": 160}
    generate(out, train=0, val=0, test=0, novel=0, size=48, seed=3, labelled=counts, workers=1)
    return out / "labelled"


@pytest.fixture(scope="module")
def evaluated(
    knowing_model: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path]:
    """Result of all methods with 1 and 2 support images per label, and its folder."""
    out = tmp_path_factory.mktemp("result")
    learning = {"base": labelled / "base", "val": labelled / "val"}
    return run(knowing_model, labelled / "novel", out, **learning, shot=[1, 2]), out


def run(model: Path, data: Path, out: Path, **options: object) -> Result:
    torch.set_num_threads(1)
    return evaluate(model, data, out, **{"draws": 3, "epochs": 1, "patches": 3} | options)


def write(folder: Path, labels: Sequence[object], jpeg: bytes) -> Path:
    """Write images that look alike, but whose files differ; None is an image without labels."""
    records = []
    for number, of_image in enumerate(labels):
        content = {} if of_image is None else {"labels": of_image}
        # JPEG ignores bytes after its end.
        files = {"jpg": jpeg + bytes([number]), "json": json.dumps(content).encode()}
        records.append((f"{number}", files))
    write_shards(folder, records, source={"name": folder.name})
    return folder


def test_every_method_is_measured_beside_the_others_on_the_same_draws(
    evaluated: tuple[Result, Path],
) -> None:
    result, out = evaluated
    names = [metric.name for metric in result.metrics]
    for shot in ("1shot", "2shot"):
        for method in ABOUT:
            mean = result.metric(f"{shot}/{method}/mAP")
            assert mean.ci95 is not None and "pictures" in mean.intervals
            assert mean.n == 3 and 0 < mean.chance < 100
            for name in ("micro_AP", "micro_F1", "macro_F1", "macro_F1_PR"):
                assert f"{shot}/{method}/{name}" in names
            for other in BASELINES if method in OURS else ():
                difference = result.metric(f"{shot}/{method}-{other}/mAP").value
                other_value = result.metric(f"{shot}/{other}/mAP").value
                assert difference == pytest.approx(mean.value - other_value)
            assert f"{shot}/{method}/class/{NEW[0]}" in names
        assert result.metric(f"{shot}/n_classes_scored").value == len(NEW)
    assert list(result.data["classes"]) == NEW
    assert result.protocol["filter"] == "strict"
    assert "Student t over draws" in result.protocol["intervals"]
    fitted = result.model["fitted"]
    validation = fitted["cross"]["validation_mAP"]
    assert len(validation) == 2
    assert validation[fitted["cross"]["kept_epoch"]] == max(validation)
    assert set(fitted["tip_adapter_ml"]) == {"1shot", "2shot"}
    queries = [record["query"] for record in read_records(out)]
    assert queries == ["1shot/0", "1shot/1", "1shot/2", "2shot/0", "2shot/1", "2shot/2"]


def difference(name: str, low: float, high: float) -> Metric:
    value, unit = (low + high) / 2, "percentage points"
    return Metric(name=name, value=value, unit=unit, ci95=(low, high), n=5)


def test_baselines_that_the_method_is_not_above_are_flagged_once_for_each_shot() -> None:
    metrics = [
        difference("1shot/lcm-zero_shot/mAP", 0.1, 3.0),  # above
        difference("1shot/lcm-text_proto/mAP", -1.0, 3.0),  # not told apart
        difference("1shot/lcm-all_patch/mAP", -3.0, -1.0),  # below
        difference("1shot/lcm/class/lcm-text_proto/mAP", -3.0, -1.0),  # a label with such a name
        difference("1shot/lcm_exact-zero_shot/mAP", -3.0, -1.0),  # a variant, not the method
        difference("1shot/cross-zero_shot/mAP", 1.0, 2.0),
        difference("5shot/cross-zero_shot/mAP", 0.0, 2.0),
    ]
    assert flag_not_above(metrics, [1, 5]) == [
        "lcm is not above text_proto, all_patch (1shot)",
        "cross is not above zero_shot (5shot)",
    ]
    assert flag_not_above(metrics, [5]) == ["cross is not above zero_shot (5shot)"]


def test_a_difference_without_an_interval_is_flagged() -> None:
    metric = Metric(name="1shot/lcm-zero_shot/mAP", value=9.0, unit="percentage points", n=1)
    assert flag_not_above([metric], [1]) == ["lcm is not above zero_shot (1shot)"]


def test_the_result_has_the_flags_of_its_metrics(evaluated: tuple[Result, Path]) -> None:
    result, _ = evaluated
    flags = [flag for flag in result.flags if "is not above" in flag]
    assert flags == flag_not_above(result.metrics, [1, 2])


def test_the_table_shows_every_method_and_difference_with_both_intervals(
    evaluated: tuple[Result, Path],
) -> None:
    result, _ = evaluated
    lines = table(result).splitlines()
    for name in [*ABOUT, "lcm - zero_shot", "cross - random_patch"]:
        [line] = [line for line in lines if line.startswith(f"{name}  ")]
        for shot in (1, 2):
            metric = result.metric(f"{shot}shot/{name.replace(' ', '')}/mAP")
            sign = "+" if "-" in name else ""
            (low, high), (low_images, high_images) = metric.ci95, metric.intervals["pictures"]
            draws = f"{low:{sign}.1f} to {high:{sign}.1f}"
            images = f"{low_images:{sign}.1f} to {high_images:{sign}.1f}"
            assert f"{metric.value:{sign}.1f} ({draws}; {images})" in line
    assert any(line.startswith("guessing") for line in lines)


def test_every_metric_follows_from_the_records(evaluated: tuple[Result, Path]) -> None:
    result, out = evaluated
    assert verify(out) == [] and metrics(read_records(out)) == result.metrics


def test_the_records_name_the_support_and_the_patches_that_labels_chose(
    evaluated: tuple[Result, Path],
) -> None:
    _, out = evaluated
    first, second, *_ = read_records(out)
    assert len(first["left_out"]) == len(first["support"]) and "chosen" not in second
    for method in ("lcm", "lcm_exact", "lcm_source", "text_similarity"):
        by_image = first["chosen"][method]
        assert len(by_image) == len(first["support"])
        for by_label in by_image:
            assert by_label and set(by_label) <= set(NEW)
            assert all(len(patches) == 3 for patches in by_label.values())


def test_two_runs_give_the_same_bits_and_compare_as_equal(
    evaluated: tuple[Result, Path], knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    _, out = evaluated
    learning = {"base": labelled / "base", "val": labelled / "val"}
    run(knowing_model, labelled / "novel", tmp_path, **learning, shot=[1, 2])
    assert (tmp_path / "samples.jsonl").read_bytes() == (out / "samples.jsonl").read_bytes()
    by_name = {compared.name: compared for compared in compare(out, tmp_path).differences}
    assert by_name["1shot/lcm/mAP"].verdict == "equal" and by_name["1shot/lcm/mAP"].n == 3


def test_without_base_and_validation_labels_methods_without_training_are_ranked(
    knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    result = run(knowing_model, labelled / "novel", tmp_path)
    assert "left_out/cross: needs --base and --val" in result.flags
    assert "left_out/tip_adapter_ml: needs --val" in result.flags
    assert any(flag.startswith("uncalibrated") for flag in result.flags)
    names = {metric.name for metric in result.metrics}
    assert "1shot/lcm/mAP" in names
    assert not {"1shot/lcm/macro_F1", "1shot/cross/mAP"} & names
    assert result.protocol["threshold"] is None and verify(tmp_path) == []


def test_a_learned_space_is_trained_on_base_labels(
    knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    options = {
        "base": labelled / "base",
        "init": "learned",
        "methods": ["lcm", "all_patch", "text_proto"],
        "shot": [1],
    }
    result = run(knowing_model, labelled / "novel", tmp_path, **options)
    losses = result.model["fitted"]["joint_loss"]
    assert losses[-1] < losses[0] and result.model["fitted"]["scale"] == 20
    assert verify(tmp_path) == []


@pytest.mark.parametrize("pool", ["max", "label_attention"])
def test_queries_are_compared_patch_by_patch_if_requested(
    pool: str, knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    result = run(
        knowing_model, labelled / "novel", tmp_path, methods=["lcm"], query_pool=pool, shot=[1]
    )
    assert result.protocol["query_pool"] == pool and 0 < result.metric("1shot/lcm/mAP").value <= 100


def test_a_collapsed_encoder_is_flagged(
    knowing_model: Path, tokenizer: Path, labelled: Path, tmp_path: Path
) -> None:
    model = GLSCLModel.from_pretrained(knowing_model)
    with torch.no_grad():
        model.contrastive_image_head[3].weight.zero_()
    result = run(
        save_model(model, tokenizer, tmp_path / "m"),
        labelled / "novel",
        tmp_path / "o",
        methods=["lcm"],
    )
    assert "degenerate_scores/1shot/lcm" in result.flags


_TRUTHS = st.tuples(st.integers(2, 5), st.integers(1, 3), st.integers(0, 2**31))


@settings(deadline=None, max_examples=50)
@given(_TRUTHS)
def test_support_and_query_share_no_image_and_no_copy(sizes: tuple[int, int, int]) -> None:
    labels, shot, seed = sizes
    rng = np.random.default_rng(seed)
    truth = rng.random((60, labels)) < 0.5
    media = [f"file {n}" for n in rng.integers(0, 40, 60)]
    names = [f"label {n}" for n in range(labels)]
    try:
        sampler = MultiLabelEpisodeSampler(truth, names, shot=shot, draws=3, seed=seed, media=media)
    except DataError:
        return
    for draw in sampler.all():
        support_media = {media[row] for row in draw.support}
        assert not support_media & {media[row] for row in draw.query}
        # Everything but support and its copies is a query.
        left_out = set(range(60)) - set(draw.support.tolist()) - set(draw.query.tolist())
        assert {media[row] for row in left_out} <= support_media
        for label in range(labels):
            shown = {media[row] for row in draw.support if truth[row, label]}
            assert len(shown) >= shot


def test_draws_depend_on_seed_and_number_alone_and_fewer_shots_are_part_of_more() -> None:
    truth = np.random.default_rng(0).random((80, 4)) < 0.4
    names = list("abcd")
    one_shot = MultiLabelEpisodeSampler(truth, names, shot=1, draws=9, seed=7)
    fewer_draws = MultiLabelEpisodeSampler(truth, names, shot=1, draws=5, seed=7)
    three_shots = MultiLabelEpisodeSampler(truth, names, shot=3, draws=5, seed=7)
    assert np.array_equal(one_shot[4].support, fewer_draws[4].support)
    supports = [one_shot[number].support for number in range(5)]
    assert any(not np.array_equal(support, supports[4]) for support in supports[:4])
    for number in range(5):
        assert set(one_shot[number].support) <= set(three_shots[number].support)


def test_strict_leaves_out_images_with_another_label_and_any_ignores_that_label() -> None:
    labels = [("a",), ("a", "b"), ("a", "c"), ("c",), (), ("b",)]
    strict = select_images(labels, ["b", "a"], "strict", "data")
    assert strict.rows.tolist() == [0, 1, 5] and strict.names == ("b", "a")
    assert strict.truth.tolist() == [[False, True], [True, True], [True, False]]
    assert all(set(labels[row]) <= {"a", "b"} for row in strict.rows)
    assert select_images(labels, ["b", "a"], "any", "data").rows.tolist() == [0, 1, 2, 5]
    assert select_images(labels, None, "strict", "data").names == ("a", "b", "c")


def test_data_without_any_of_the_labels_that_they_were_imported_for_are_refused() -> None:
    with pytest.raises(DataError, match="no image of --data d has one of the labels"):
        select_images([("a",), ("b",)], [], "any", "--data d")


def test_the_filter_decides_which_images_are_queries(
    knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text(f"{NEW[5]}\n\n{NEW[2]}\n{NEW[9]}\n")
    options: Mapping[str, object] = {"labels": names, "methods": ["text_proto"], "shot": [1]}
    data = labelled / "novel"
    strict = run(knowing_model, data, tmp_path / "strict", filter="strict", **options)
    with_others = run(knowing_model, data, tmp_path / "any", filter="any", **options)
    assert list(strict.data["classes"]) == [NEW[5], NEW[2], NEW[9]]  # in the order of the list
    assert strict.data["images"] < with_others.data["images"] < 160
    assert strict.data["images"] + strict.data["left_out_by_labels"] == 160


def test_the_shipped_lists_of_coco_are_52_12_and_16_of_its_80_labels() -> None:
    lists = read_label_lists("coco_52_12_16")
    counts = {role: len(names) for role, names in lists.items()}
    assert counts == {"base": 52, "val": 12, "data": 16}
    assert len({*lists["base"], *lists["val"], *lists["data"]}) == 80
    assert {"bicycle", "stop sign", "vase"} <= set(lists["data"])
    assert {"person", "teddy bear"} <= set(lists["val"])


@pytest.mark.parametrize("name", shipped_lists())
def test_every_shipped_list_is_read_by_its_name_with_labels_of_all_roles(name: str) -> None:
    lists, parts = read_label_lists(name), label_lists(name)
    assert set(lists) == {"base", "val", "data"}
    assert sorted(lists.values()) == sorted(map(tuple, parts.values()))
    assert lists["data"] == tuple(parts["test" if "test" in parts else "novel"])


@pytest.mark.parametrize("split", ["test", "novel"])
def test_roles_that_a_list_does_not_name_take_all_labels_of_their_data_set(
    split: str, knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    path = tmp_path / "list.json"
    path.write_text(json.dumps({split: [NEW[2], NEW[0]]}))
    options = {"labels": path, "base": labelled / "base", "methods": ["text_proto"], "shot": [1]}
    result = run(knowing_model, labelled / "novel", tmp_path / "o", **options)
    assert list(result.data["classes"]) == [NEW[2], NEW[0]]
    assert set(result.data["base"]["classes"]) == set(CLASSES["base"])


@pytest.mark.parametrize(
    "value", [{"tset": ["a", "b"]}, {"test": ["a", "b"], "novel": ["c", "d"]}, {}]
)
def test_a_list_of_lists_with_other_names_is_refused(value: dict, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(json.dumps(value))
    with pytest.raises(
        UsageError, match="where lists are called train or base, val, test or novel, each once"
    ):
        read_label_lists(tmp_path / "list.json")


def test_a_data_set_that_was_imported_for_some_labels_is_measured_on_them(
    knowing_model: Path, tmp_path: Path, jpeg: bytes
) -> None:
    folder = tmp_path / "data"
    records = []
    for number, labels in enumerate([["a"], ["b"], ["a", "z"], ["a", "b"], ["b"], ["a"]]):
        files = {"jpg": jpeg + bytes([number]), "json": json.dumps({"labels": labels}).encode()}
        records.append((f"{number}", files))
    source = {
        "name": "d",
        "label_split": {"lists": "l", "part": "novel", "labels": ["b", "a", "unseen"]},
    }
    write_shards(folder, records, source=source)
    result = run(knowing_model, folder, tmp_path / "o", methods=["text_proto"], shot=[1])
    assert result.data["classes"] == {"b": 3, "a": 3} and result.data["left_out_by_labels"] == 1


def test_tip_adapter_is_tuned_on_validation_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(60, 4, generator=generator) < 0.4
    looks = torch.nn.functional.normalize(torch.randn(4, 8, generator=generator), dim=-1)
    noise = 0.3 * torch.randn(60, 8, generator=generator)
    proj = torch.nn.functional.normalize(truth.float() @ looks + noise, dim=-1)
    keys = [str(n) for n in range(60)]
    misleading_texts = -looks
    data = Labelled(
        names=tuple("abcd"),
        keys=keys,
        media=keys,
        patch=torch.zeros(60, 1, 1),
        proj=proj,
        truth=truth.numpy(),
        text=misleading_texts,
    )
    adapter = TipAdapter.tuned(data, shot=5, draws=3, seed=0)
    assert adapter.alpha >= 3  # support images must outweigh the texts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["cross"]}, "cross needs --base and --val"),
        (
            {"methods": ["tip_adapter_ml"]},
            "tip_adapter_ml needs --val: .*never on those that are measured",
        ),
        ({"methods": ["lmc"]}, "unknown method lmc: choose from lcm"),
        ({"init": "glove"}, "init: Input should be 'vl_joint' or 'learned'"),
        ({"init": "learned"}, "init learned trains on base labels"),
        ({"filter": "loose"}, "filter: Input should be 'strict' or 'any'"),
        ({"query_pool": "sum"}, "query_pool: Input should be 'mean', 'max' or 'label_attention'"),
        (
            {"labels": "coco_53"},
            "cannot read the list of labels coco_53.*shipped lists: .*coco_52_12_16",
        ),
        ({"draws": 1}, "draws is 1, must be at least 2"),
        ({"shot": [0]}, "shot is 0, must be at least 1"),
        ({"shot": []}, "shot must name at least one number of support images"),
        ({"patches": 0}, "patches is 0, must be at least 1"),
        ({"epochs": -1}, "epochs is -1, must be at least 0"),
        ({"seed": -1}, "seed is -1, must be at least 0"),
        ({"methods": []}, "methods is empty: name some of lcm"),
    ],
)
def test_wrong_options_are_refused(
    options: dict, message: str, knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        run(knowing_model, labelled / "novel", tmp_path, **options)


def test_a_label_of_two_data_sets_is_refused_by_name(
    knowing_model: Path, labelled: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"labels of both --data and --base: {NEW[0]}"):
        run(knowing_model, labelled / "novel", tmp_path, base=labelled / "novel")


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([None, None], {}, 'no sample of .* has "labels"'),
        (
            [["a"], ["a"], ["a", "b"]],
            {"shot": [2]},
            r"--data has too few .*: b \(1\): .*, or use fewer shots",
        ),
        (
            [["a"], ["a"], ["a", "b"]],
            {},
            r"--data has too few .* 1 support image of .*: b \(1\): .*, add images$",
        ),
        ([["a"], ["a"]], {}, "--data .* has a as its only label, where at least two are needed"),
        (
            [["a", "b"], ["a", "b"]],
            {},
            r"--data leaves no image with a label to find .*\(draw .*: add images$",
        ),
        ([["a"], "a"], {}, '"labels" must be a list of names'),
        ([["a"], ["a"]], {"labels": ["a", "b"]}, "no image of .* has the label b"),
        ([["a"], ["a"]], {"labels": ["a", "a"]}, "names a label twice: a"),
    ],
)
def test_unusable_labels_are_refused(
    labels: list, options: dict, message: str, knowing_model: Path, tmp_path: Path, jpeg: bytes
) -> None:
    folder = write(tmp_path / "data", labels, jpeg)
    if "labels" in options:
        (tmp_path / "list.json").write_text(json.dumps(options["labels"]))
        options = options | {"labels": tmp_path / "list.json"}
    options = {"methods": ["text_proto"], "shot": [1]} | options
    with pytest.raises((DataError, UsageError), match=message):
        run(knowing_model, folder, tmp_path / "o", **options)


UNUSABLE_FOR_LEARNING = [
    (["lcm"], "base", [["x"]] * 4, "--base .* has x as its only label"),
    (["lcm"], "base", [["x", "y"]] * 4, "images of --base have all of its labels or none"),
    (
        ["lcm"],
        "base",
        [["x"], ["x"], ["x", "y"]],
        r"--base has too few different images .*: y \(1\): .*add images$",
    ),
    (["tip_adapter_ml"], "val", [["x"]] * 4, "--val .* has x as its only label"),
    (["tip_adapter_ml"], "val", [["x", "y"]] * 2, "--val leaves no image with a label to find"),
    (
        ["tip_adapter_ml"],
        "val",
        [["x"], ["x"], ["x", "y"]],
        r"--val has too few different images .*: y \(1\)",
    ),
    (["cross"], "val", [["x", "y"]] * 2, "--val leaves no image with a label to find"),
]


@pytest.mark.parametrize(("methods", "role", "labels", "message"), UNUSABLE_FOR_LEARNING)
def test_data_that_cannot_be_learned_from_are_refused_by_the_name_of_their_option(
    methods: list,
    role: str,
    labels: list,
    message: str,
    knowing_model: Path,
    labelled: Path,
    tmp_path: Path,
    jpeg: bytes,
) -> None:
    others = {"base": labelled / "base"} if methods == ["cross"] else {}
    options = {
        **others,
        role: write(tmp_path / role, labels, jpeg),
        "methods": methods,
        "shot": [1],
    }
    with pytest.raises(DataError, match=message):
        run(knowing_model, labelled / "novel", tmp_path / "o", **options)


def test_the_command_prints_its_result_and_its_errors(
    knowing_model: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled / "novel"
    where = ["--model", str(knowing_model), "--data", str(data), "--out", str(tmp_path / "o")]
    short = ["--methods", "lcm", "text_proto", "--shot", "1", "--draws", "2", "--patches", "2"]
    assert main(["eval", "multi-label", *where, *short, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["stage"] == "multi-label" and printed["protocol"]["draws"] == 2
    assert main(["eval", "verify", str(tmp_path / "o")]) == 0
    capsys.readouterr()
    where.append("--overwrite")
    assert main(["eval", "multi-label", *where, *short]) == 0
    assert capsys.readouterr().out.startswith(f"{table(Result.model_validate(printed))}\n")
    assert main(["eval", "multi-label", *where, "--methods", "cross"]) == 2
    assert "needs --base and --val" in capsys.readouterr().err
    assert main(["eval", "multi-label", *where, *short, "--base", str(data)]) == 3
    assert "labels of both --data and --base" in capsys.readouterr().err


def test_the_report_shows_methods_labels_and_chosen_patches(
    evaluated: tuple[Result, Path], tmp_path: Path
) -> None:
    result, out = evaluated
    page = write_report([out], tmp_path / "report.html").read_text("utf-8")
    assert "Several labels from few images" in page
    for title in (
        "mAP from 1 support image of each label",
        "mAP from 2 support images",
        "Average precision by label",
    ):
        assert title in page
    for shot in (1, 2):
        for name in ("lcm", "zero_shot", "lcm-tip_adapter_ml"):
            metric, sign = result.metric(f"{shot}shot/{name}/mAP"), "+" if "-" in name else ""
            for low, high in (metric.ci95, metric.intervals["pictures"]):
                assert f"{low:{sign}.1f} to {high:{sign}.1f}" in html.unescape(page)
        for label in (NEW[0], NEW[-1]):
            cells = [result.metric(f"{shot}shot/{name}/class/{label}").value for name in ABOUT]
            row = "".join(f'<td class="number">{value:.1f}</td>' for value in cells)
            assert f"<tr><td>{label}</td>{row}</tr>" in page
    record = next(iter(read_records(out)))
    thumbnails = Thumbnails(Path(result.data["path"]), result.data["hash"])
    shown = chosen_patches(record, thumbnails)
    assert 8 >= len(shown) > 0
    assert all(set(each.images) == set(record["chosen"]) for each in shown)
    assert len(shown[0].others) >= len(shown[-1].others)
    assert page.count("patches of ") == sum(len(each.images) for each in shown)


def test_all_but_the_chosen_patches_are_dark(evaluated: tuple[Result, Path]) -> None:
    result, out = evaluated
    record = next(iter(read_records(out)))
    label = next(iter(record["chosen"]["lcm"][0]))
    first_patch = {
        "support": record["support"][:1],
        "grid": record["grid"],
        "chosen": {"lcm": [{label: [0]}]},
    }
    thumbnails = Thumbnails(Path(result.data["path"]), result.data["hash"])
    [shown] = chosen_patches(first_patch, thumbnails)
    encoded = shown.images["lcm"].partition(",")[2]  # a data URI
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    pixels = np.asarray(image).astype(float)
    side = 48 // record["grid"][0]
    assert pixels[: side - 2, : side - 2].mean() > 2 * pixels[side + 2 :, side + 2 :].mean()
