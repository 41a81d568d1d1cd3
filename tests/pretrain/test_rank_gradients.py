"""Two real processes over gloo give the gradient of one process, under every option."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.parallel.selfcheck import start
from tests.pretrain.rank_gradients import gradients, save_gradients
from tests.pretrain.runs import tiny_settings
from tests.ranks import run_ranks

SILENT = dict.fromkeys(
    ("matching", "masked_language", "global_image", "global_text", "local_image", "local_text"), 0.0
)
COMPLETIONS = ("global_image", "global_text", "local_image", "local_text")
NEGATIVES = [f"{name}_negatives" for name in COMPLETIONS]
# How many text targets each half of the batch keeps, or settings of a run on images and videos:
# its objectives, its micro-batches, and whether the toy objective is added.
CASES: dict[str, list[int] | dict] = {
    "as many targets on each rank": [1000, 1000],
    "17 targets and 3": [17, 3],
    "17 targets and none": [17, 0],
    "no target and 17": [0, 17],
    "images and videos": {},
    "sampled local negatives": {
        "local_image_negatives": "sample",
        "local_text_negatives": "sample",
    },
    "data-set matching negatives, full targets": {
        "matching_negatives": "dataset",
        "completion_targets": "full",
    },
    "TCL": {"intra_modal": 1.0, "global_local": 1.0, "directions": "mean"},
    "exact accumulation": {"micro_batches": 2},
    "exact accumulation of every term": {
        "micro_batches": 2,
        "intra_modal": 1.0,
        "global_local": 1.0,
        "local_image_negatives": "sample",
        "local_text_negatives": "sample",
    },
    "an added objective, plain accumulation": {"toy": True},
    "an added objective, exact accumulation": {"micro_batches": 2, "toy": True},
    "negatives of the rank": dict.fromkeys(("contrastive", "matching", "masked_language"), 0.0)
    | dict.fromkeys(NEGATIVES, "rank"),
    "published": SILENT | {"gradients": "published"},
}


@pytest.fixture(scope="module")
def cases(scenes, clips, tokenizer) -> dict[str, tuple[dict, list[int]]]:
    """Settings and limits of each case, as `gradients` takes them."""
    arguments = {}
    for name, case in CASES.items():
        settings = tiny_settings(scenes, tokenizer, Path("unused"))
        if isinstance(case, dict):
            settings["batch"] = {"image": 16, "video": 16 if "micro_batches" in case else 8}
            settings["data"]["video"] = {"train": [{"path": str(clips / "train")}], "frames": 3}
            options = dict(case)
            settings["micro_batches"] = options.pop("micro_batches", 1)
            settings["toy"] = options.pop("toy", False)
            settings["objectives"] = options
        limits = case if isinstance(case, list) else []
        if name == "negatives of the rank":
            # As many rows on each rank, so that the mean of both ranks is the whole.
            settings["batch"] = {"image": 16}
            del settings["data"]["video"]
            limits = [5, 5]
        arguments[name] = settings, limits
    return arguments


@pytest.fixture(scope="module")
def of_two_ranks(cases, tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    """Gradients that two ranks computed in each case."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(2, save_gradients, list(cases.values()), folder)
    return {name: load_file(folder / f"{number}.safetensors") for number, name in enumerate(cases)}


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in ("published", "negatives of the rank")]
)
def test_two_ranks_give_the_gradient_of_one_process(name, cases, of_two_ranks):
    settings, limits = cases[name]
    ours = of_two_ranks[name]
    expected = gradients(settings | {"micro_batches": 1}, limits, start("fp32", (), ".", None))
    assert "temperature" in ours
    assert_same_gradients(ours, expected)


def assert_same_gradients(ours, expected):
    assert ours.keys() == expected.keys()
    for key, reference in expected.items():
        scaled_by = key
        if key.endswith(("key.bias", "k_proj.bias")):
            # Softmax does not see the bias of a key, so that its gradient is only rounding.
            scaled_by = key.replace(".bias", ".weight")
        scale = expected[scaled_by].abs().max()
        assert (ours[key] - reference).abs().max() <= 1e-9 * scale, key


def test_an_added_objective_changes_the_gradient(cases, of_two_ranks):
    settings, limits = cases["an added objective, plain accumulation"]
    alone = start("fp32", (), ".", None)
    without = gradients(settings | {"toy": False}, limits, alone)
    with_it = of_two_ranks["an added objective, plain accumulation"]
    assert with_it["loss"] > without["loss"] + 0.1
    for key in ("temperature", "contrastive_text_head.0.weight", "contrastive_image_head.0.weight"):
        assert (with_it[key] - without[key]).abs().max() > 1e-3 * without[key].abs().max(), key


@pytest.mark.parametrize("count", [2, 4])
def test_exact_accumulation_gives_the_gradient_of_one_batch(cases, count):
    settings, limits = cases["images and videos"]
    settings = settings | {"batch": {"image": 16, "video": 16}}
    alone = start("fp32", (), ".", None)
    whole = gradients(settings | {"micro_batches": 1}, limits, alone)
    parts = gradients(settings | {"micro_batches": count}, limits, alone)
    assert_same_gradients(parts, whole)


def test_videos_reach_the_temporal_table(of_two_ranks):
    assert of_two_ranks["images and videos"]["temporal_embedding"].abs().max() > 0


def test_negatives_of_the_rank_average_what_each_rank_computes_alone(cases, of_two_ranks):
    together, case = of_two_ranks["negatives of the rank"], cases["negatives of the rank"]
    alone = start("fp32", (), ".", None)
    halves = [gradients(*case, alone, (rank, 2)) for rank in range(2)]
    mean_loss = sum(half["loss"].item() for half in halves) / 2
    assert together["loss"].item() == pytest.approx(mean_loss, rel=1e-9)
    name = "fusion.image_layers.0.output.dense.weight"
    mean = (halves[0][name] + halves[1][name]) / 2
    assert (together[name] - mean).abs().max() <= 1e-9 * mean.abs().max()
    whole = gradients(*case, alone)
    assert (together[name] - whole[name]).abs().max() > 1e-2 * mean.abs().max()


def test_published_gradients_of_contrast_are_divided_by_the_ranks(cases, of_two_ranks):
    ours = of_two_ranks["published"]
    alone = gradients(*cases["published"], start("fp32", (), ".", None))
    prefixes = ("contrastive_", "vision.encoder.", "text.encoder.")
    towers = [name for name in alone if name.startswith(prefixes)]
    assert len(towers) > 20
    for name in towers:
        assert torch.allclose(2 * ours[name], alone[name], rtol=1e-7, atol=1e-12), name
    assert torch.allclose(ours["temperature"], alone["temperature"], rtol=1e-7)
