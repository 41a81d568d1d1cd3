"""One behaviour on every engine: two real ranks over gloo, launched as users launch them."""

import inspect
import json
import os
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
from pretrain.parallel.selfcheck import start
from tests.pretrain.engine_run import updated
from tests.pretrain.runs import StopAfter, assert_same_run, rows, tiny_settings, weights

ROOT = Path(__file__).parents[2]
ENGINES = [
    "ddp",
    pytest.param("fsdp2", marks=pytest.mark.slow),
    *(pytest.param(f"zero{stage}", marks=pytest.mark.slow) for stage in (1, 2, 3)),
]


@pytest.fixture(scope="module")
def run_settings(scenes, clips, tokenizer) -> dict:
    settings = tiny_settings(scenes, tokenizer, Path("unused"))
    settings |= {"batch": {"image": 16, "video": 16}, "steps": 5, "micro_batches": 2}
    settings["data"] |= {"group": 2, "video": {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 2}}
    settings["objectives"] = {"temperature_bounds": [0.2, 0.5]}
    settings["model"]["text"] |= {"num_hidden_layers": 2}
    # 7 samples on two ranks, one at a time: one rank has a batch more.
    settings["validation"] = {"path": str(scenes / "val"), "every": 2, "limit": 7, "batch_size": 1}
    return settings


def launch(engine: str, folder: Path, *words: str) -> str:
    """Launch two ranks under an engine as users do; returns what they said."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "RANK", "WORLD", "LOCAL_"))}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    found = subprocess.run(
        [*command, "--config_file", str(ROOT / "launch" / "accelerate" / f"{engine}.yaml"), *words],
        # Nothing is compiled: nobody waits for minutes at the first start, or for ever for the lock of a killed one.
        env=inherited | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CXX": "/bin/false"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    assert f"2 processes on cpu, {engine}, fp32" in found.stderr
    return found.stderr


@pytest.fixture(scope="module", params=ENGINES)
def finished(request, run_settings, tmp_path_factory) -> tuple[str, Path]:
    engine, folder = request.param, tmp_path_factory.mktemp(request.param)
    (folder / "settings.json").write_text(json.dumps(run_settings))
    script = Path(__file__).with_name("engine_run.py")
    launch(engine, folder, str(script), str(folder / "settings.json"), str(folder))
    return engine, folder


@pytest.mark.slow
def test_a_run_goes_on_under_another_engine_and_number_of_ranks(run_settings, tmp_path):
    settings = json.loads(json.dumps(run_settings)) | {"micro_batches": 1, "steps": 4}
    settings["model"]["text"] |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    settings["model"]["fusion"] |= {"fusion_dropout": 0.0}
    # Clipped gradients and AdamW turn rounding into steps; a small rate keeps the comparison about the mathematics.
    settings["optimizer"] |= {"lr": 1e-5, "max_grad_norm": None}
    del settings["validation"]
    whole, parts = (settings | {"run": str(tmp_path / name)} for name in ("whole", "parts"))
    assert train(parse_config(RunConfig, whole, "whole"), StopAfter()) == 0
    assert train(parse_config(RunConfig, parts, "parts"), StopAfter(1)) == 75
    (tmp_path / "parts.yaml").write_text(yaml.safe_dump(parts | {"micro_batches": 2}))
    assert "resumed at step 1" in launch("fsdp2", tmp_path, "-m", "pretrain", "parts.yaml", "--steps", "4")
    for ours, expected in zip(rows(tmp_path / "parts"), rows(tmp_path / "whole"), strict=True):
        assert ours["keys"] == expected["keys"]
        assert ours["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert ours["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    first, second = weights(tmp_path / "parts"), weights(tmp_path / "whole")
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-4


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_two_ranks_make_the_update_of_one_process(finished, run_settings, micro_batches):
    config = parse_config(RunConfig, run_settings | {"micro_batches": 1}, "settings")
    expected = updated(config, start("fp32", (), ".", None))
    torch.manual_seed(0)
    tokenizer = Tokenizer.load(config.data.tokenizer)
    before = build_model(config.model, tokenizer, config.data.max_text_length, 2).state_dict()
    ours = load_file(finished[1] / f"update{micro_batches}.safetensors")
    assert ours.keys() == expected.keys()
    assert ours.pop("norm").item() == pytest.approx(expected.pop("norm").item(), rel=1e-5)
    for name, value in expected.items():
        # The gradient of a key's bias is zero (softmax does not see it): only rounding, as large as its weight's.
        moved = name.replace(".bias", ".weight") if name.endswith(("key.bias", "k_proj.bias")) else name
        step = (expected[moved] - before[moved]).abs().max()
        assert (ours[name] - value).abs().max() <= 1e-5 * step + 1e-7 * value.abs().max(), name
    assert (expected["temperature"] - before["temperature"]).abs() > 1e-2


def test_a_run_in_two_parts_is_bitwise_the_whole_one(finished):
    _, folder = finished
    assert_same_run(folder / "whole", folder / "parts")
    assert [row["step"] for row in rows(folder / "whole")] == [1, 2, 3, 4, 5]


def test_every_rank_takes_part_in_every_validation(finished):
    found = rows(finished[1] / "whole")[1]
    assert 0 < found["validation/text_to_image/R@5"] <= 100


def test_the_temperature_stays_within_its_bounds(finished):
    assert all(row["temperature"] >= 0.2 for row in rows(finished[1] / "whole")[1:])


def test_a_gradient_that_is_broken_on_one_rank_skips_the_step_on_all(finished):
    _, folder = finished
    assert [(folder / f"said{rank}").read_text() for rank in range(2)] == ["", ""]
    logged = rows(folder / "broken")
    assert [row["skipped"] for row in logged] == [0, 1, 0]
    assert logged[1]["grad_norm"] is None and logged[2]["grad_norm"] > 0
    assert logged[2]["samples"] == 3 * 32


def test_the_private_names_that_engines_rely_on_are_there():
    from accelerate import PartialState
    from accelerate.state import GradientState
    from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin

    assert isinstance(PartialState._shared_state, dict), "accelerate: PartialState._shared_state"
    assert inspect.isfunction(GradientState._set_sync_gradients), "accelerate: GradientState._set_sync_gradients"
    assert "transformer_cls_names_to_wrap" in FullyShardedDataParallelPlugin.__dataclass_fields__
    assert "hf_ds_config" in DeepSpeedPlugin.__dataclass_fields__
