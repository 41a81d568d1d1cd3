"""One behaviour on every engine: two real ranks over gloo, launched as users launch them."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data_pipeline.text import Tokenizer
from pretrain.build import build_model
from pretrain.config import RunConfig
from pretrain.config_file import parse_config
from pretrain.loop import train
from pretrain.parallel import ENGINES
from pretrain.parallel.selfcheck import start
from pretrain.run.checkpoint import model_folder
from tests.pretrain.engine_run import updated
from tests.pretrain.runs import (
    StopAfter,
    assert_same_run,
    environment_without_ranks,
    rows,
    tiny_settings,
    weights,
)

ROOT = Path(__file__).parents[2]
SCRIPT = str(Path(__file__).with_name("engine_run.py"))
EVERY_ENGINE = [pytest.param(engine, marks=pytest.mark.slow) for engine in ENGINES]


@pytest.fixture(scope="module")
def run_settings(scenes, clips, tokenizer) -> dict:
    settings = tiny_settings(scenes, tokenizer, Path("unused"))
    settings |= {"batch": {"image": 16, "video": 16}, "steps": 5, "micro_batches": 2}
    settings["data"] |= {
        "group": 2,
        "video": {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 2},
    }
    settings["objectives"] = {"temperature_bounds": [0.2, 0.5]}
    settings["model"]["text"] |= {"num_hidden_layers": 2}
    # 7 samples on two ranks, one at a time: one rank has a batch more.
    settings["validation"] = {"path": str(scenes / "val"), "every": 2, "limit": 7, "batch_size": 1}
    return settings


def launch(
    engine: str, folder: Path, *words: str, world: int = 2, use_cpu: bool = False, **changes: str
) -> str:
    """Launch ranks under an engine as users do; returns what they wrote to stderr.

    `changes` replace settings of DeepSpeed.
    """
    inherited = environment_without_ranks()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(world)]
    file = ROOT / "launch" / "accelerate" / f"{engine}.yaml"
    if changes:
        values = yaml.safe_load(file.read_text())
        values["deepspeed_config"] |= changes
        file = folder / file.name
        file.write_text(yaml.safe_dump(values))
    if use_cpu:
        inherited["ACCELERATE_USE_CPU"] = "true"
    finished = subprocess.run(
        [*command, "--main_process_port", "0", "--config_file", str(file), *words],
        # Without a compiler, a start that would compile fails at once, instead of taking minutes or
        # waiting for ever for the lock of a killed one.
        env=inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CXX": "/bin/false"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return finished.stderr


@pytest.fixture(scope="module", params=EVERY_ENGINE)
def finished(request, run_settings, tmp_path_factory) -> tuple[str, Path]:
    engine, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "settings.json").write_text(json.dumps(run_settings))
    if engine != "zero3":  # which refuses an average of the weights
        optimizer = run_settings["optimizer"] | {"ema": 0.5}
        (folder / "settings.json").write_text(json.dumps(run_settings | {"optimizer": optimizer}))
    output = launch(engine, folder, SCRIPT, str(folder / "settings.json"), str(folder))
    assert f"2 processes on cpu, {engine}, fp32" in output
    return engine, folder


@pytest.mark.slow
def test_a_run_resumes_under_another_engine_and_number_of_ranks(run_settings, tmp_path):
    settings = json.loads(json.dumps(run_settings)) | {"micro_batches": 1, "steps": 4}
    settings["model"]["text"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings["model"]["fusion"] |= {"fusion_dropout": 0.0}
    # Clipping and AdamW turn rounding errors into whole steps; a small learning rate keeps them
    # small.
    settings["optimizer"] |= {"lr": 1e-5, "max_grad_norm": None}
    del settings["validation"]
    whole, parts = (settings | {"run": str(tmp_path / name)} for name in ("whole", "parts"))
    assert train(parse_config(RunConfig, whole, "whole"), StopAfter()) == 0
    assert train(parse_config(RunConfig, parts, "parts"), StopAfter(1)) == 75
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump(parts | {"micro_batches": 2}))
    # With this variable, accelerate alone would silently train under DDP.
    output = launch("fsdp2", tmp_path, "-m", "pretrain", "parts.yaml", "--steps", "4", use_cpu=True)
    assert "2 processes on cpu, fsdp2, fp32" in output and "resumed at step 1" in output
    for ours, expected in zip(rows(tmp_path / "parts"), rows(tmp_path / "whole"), strict=True):
        assert ours["keys"] == expected["keys"]
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    first, second = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4


@pytest.fixture(scope="module")
def alone(run_settings) -> tuple[dict, dict]:
    """Weights before and after one update of one process."""
    config = parse_config(RunConfig, run_settings | {"micro_batches": 1}, "settings")
    after = updated(config, start("fp32", (), ".", None))
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    return build_model(config.model, tokenizer, config.data.max_text_length, 2).state_dict(), after


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_two_ranks_make_the_update_of_one_process(finished, alone, micro_batches):
    assert_same_update(finished[1] / f"update{micro_batches}.safetensors", *alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "changes"),
    [
        ("fsdp2", {}),
        ("zero2", {"offload_optimizer_device": "cpu"}),
        ("zero3", {"offload_optimizer_device": "cpu"}),
    ],
    ids=["fsdp2", "zero2 with offloaded optimiser", "zero3 with offloaded optimiser"],
)
def test_four_ranks_make_the_update_of_one_process(run_settings, alone, tmp_path, engine, changes):
    (tmp_path / "settings.json").write_text(json.dumps(run_settings))
    launch(engine, tmp_path, SCRIPT, "settings.json", ".", "fp32", world=4, **changes)
    assert_same_update(tmp_path / "update1.safetensors", *alone)


@pytest.mark.slow
# zero1 and zero2 take the same path as zero3.
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", "zero3"])
def test_bf16_makes_the_update_of_fp32_up_to_its_rounding(run_settings, alone, tmp_path, engine):
    (tmp_path / "settings.json").write_text(json.dumps(run_settings))
    launch(engine, tmp_path, SCRIPT, "settings.json", ".", "bf16")
    before, after = alone
    ours = load_file(tmp_path / "update1.safetensors")
    error = sum((ours[name] - after[name]).square().sum() for name in before)
    update = sum((after[name] - before[name]).square().sum() for name in before)
    assert 1e-5 < (error / update).sqrt() < 0.05


def assert_same_update(file: Path, before: dict, after: dict) -> None:
    ours = load_file(file)
    assert ours.keys() == after.keys()
    assert ours.pop("norm").item() == pytest.approx(after["norm"].item(), rel=1e-5)
    for name, value in ours.items():
        moved = name
        if name.endswith(("key.bias", "k_proj.bias")):
            # Softmax does not see the bias of a key, so that its gradient is only rounding, as
            # large as that of the weight.
            moved = name.replace(".bias", ".weight")
        step = (after[moved] - before[moved]).abs().max()
        assert (value - after[name]).abs().max() <= 1e-5 * step + 1e-7 * value.abs().max(), name
    assert (after["temperature"] - before["temperature"]).abs() > 1e-2


def test_a_run_in_two_parts_is_bitwise_the_whole_one(finished):
    _, folder = finished
    assert_same_run(folder / "whole", folder / "parts")
    if finished[0] != "zero3":
        averages = []
        for name in ("whole", "parts"):
            checkpoint = model_folder(folder / name).parent
            averages.append(load_file(checkpoint / "ema" / "model.safetensors"))
        first, second = averages
        trained = weights(folder / "whole")
        assert all(torch.equal(first[name], second[name]) for name in trained)
        assert any(not torch.equal(first[name], trained[name]) for name in trained)
    assert [row["step"] for row in rows(folder / "whole")] == [1, 2, 3, 4, 5]


def test_every_rank_takes_part_in_every_validation(finished):
    validated = rows(finished[1] / "whole")[1]
    assert 0 < validated["validation/text_to_image/R@5"] <= 100


def test_the_temperature_stays_within_its_bounds(finished):
    assert all(row["temperature"] >= 0.2 for row in rows(finished[1] / "whole")[1:])


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_all(finished):
    _, folder = finished
    assert [(folder / f"broken{rank}").read_text() for rank in range(2)] == ["", ""]
    logged = rows(folder / "broken")
    assert [row["skipped"] for row in logged] == [0, 1, 0]
    assert logged[1]["grad_norm"] is None and logged[2]["grad_norm"] > 0
    assert logged[2]["samples"] == 3 * 32


def test_a_full_disk_on_one_rank_stops_all_and_keeps_the_checkpoint_before(finished):
    engine, folder = finished
    errors = [(folder / f"full{rank}").read_text() for rank in range(2)]
    # Only engines that are not portable write from every rank; engine_run.py fills the disk there.
    failed = 1 if engine.startswith("zero") else 0
    wordings = ("File too large", "make room and run the same command again")
    assert any(wording in errors[failed] for wording in wordings)
    message = f"IncompleteError: rank {failed} could not write its part of a checkpoint"
    assert errors[1 - failed].startswith(message)
    assert (folder / "checkpoints").read_text() == "latest step-00000001"
    assert [row["step"] for row in rows(folder / "full")] == [1, 2, 3, 4]


def test_the_private_names_that_engines_rely_on_are_there():
    from accelerate import PartialState
    from accelerate.state import GradientState
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    assert isinstance(PartialState._shared_state, dict), "accelerate: PartialState._shared_state"
    assert inspect.isfunction(GradientState._set_sync_gradients), (
        "accelerate: GradientState._set_sync_gradients"
    )
    assert "transformer_cls_names_to_wrap" in FullyShardedDataParallelPlugin.__dataclass_fields__
    assert "hf_ds_config" in DeepSpeedPlugin.__dataclass_fields__
    from accelerate.utils.deepspeed import DeepSpeedOptimizerWrapper
    from deepspeed import DeepSpeedEngine, ops, utils, zero
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from transformers.integrations import unset_hf_deepspeed_config

    assert "deepspeed_shm_comm" in ops.__compatible_ops__, "deepspeed: ops.__compatible_ops__"
    needed = {
        DeepSpeedEngine: ("get_global_grad_norm", "_copy_recovery_script", "save_checkpoint"),
        zero: ("register_external_parameter", "GatheredParameters"),
        utils: (
            "safe_get_local_fp32_param",
            "safe_set_local_fp32_param",
            "safe_get_full_fp32_param",
            "safe_set_full_fp32_param",
        ),
        DeepSpeedOptimizerWrapper: ("step_was_skipped",),
        TorchCheckpointEngine: ("save",),
    }
    for owner, names in needed.items():
        for name in names:
            assert hasattr(owner, name), f"deepspeed: {owner.__name__}.{name}"
    assert callable(unset_hf_deepspeed_config)
