"""The loop in this process: exact resume, honest metrics, and refusals that lose nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import NumericsError, UsageError
from pretrain.config import RunConfig, ValidationConfig, apply_overrides, parse_config
from pretrain.loop import train
from pretrain.model import GLSCLModel, GLSCLProcessor
from pretrain.run.checkpoint import model_folder
from tests.pretrain.runs import assert_same_run, rows, status, weights


@pytest.fixture
def stop_after(monkeypatch):
    """Ask the run to stop at the end of a step, as a signal would."""

    def arrange(step: int | None):
        seen = {"steps": 0}

        def reason(self):
            seen["steps"] += 1
            return "SIGTERM" if step is not None and seen["steps"] >= step else None

        monkeypatch.setattr("pretrain.run.signals.StopFlag.reason", property(reason))

    return arrange


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_resume_is_bitwise_the_undisturbed_run(settings, tmp_path, stop_after, micro_batches):
    settings["micro_batches"] = micro_batches
    whole = parse_config(RunConfig, settings | {"run": str(tmp_path / "whole")}, "s")
    parts = parse_config(RunConfig, settings | {"run": str(tmp_path / "parts")}, "s")
    stop_after(None)
    assert train(whole) == 0
    stop_after(3)
    assert train(parts) == 75
    assert status(parts.run) == {"state": "preempted", "step": 3, "reason": "SIGTERM"}
    stop_after(None)
    assert train(parts) == 0
    assert_same_run(whole.run, parts.run)
    assert status(parts.run)["state"] == "complete"


def test_a_run_that_died_after_its_checkpoint_repeats_the_lost_steps(config, tmp_path, stop_after):
    stop_after(None)
    train(config)
    done = dataclasses.replace(config, run=str(tmp_path / "torn"))
    stop_after(5)
    train(done)
    # As after a SIGKILL: steps 5's checkpoint half written, its metrics row torn.
    newest = sorted((tmp_path / "torn" / "checkpoints").glob("step-*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"half")
    metrics = tmp_path / "torn" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 6, "lo')
    stop_after(None)
    assert train(done) == 0
    assert_same_run(config.run, done.run)
    assert [row["step"] for row in rows(done.run)] == [1, 2, 3, 4, 5, 6]


def test_metrics_of_a_logged_step_hold_what_the_contract_names(config, stop_after):
    stop_after(None)
    train(config)
    row = rows(config.run)[-1]
    parts = ("contrastive", "matching", "masked_language", "global_image", "global_text", "local_image", "local_text")
    assert row.keys() >= {f"loss/{name}" for name in parts} | {
        *("step", "samples", "epoch", "loss", "lr", "grad_norm", "samples_per_second", "data_wait_fraction", "keys")
    }
    weighted = sum(row[f"loss/{name}"] * getattr(config.objectives, name) for name in parts)
    assert row["loss"] == pytest.approx(weighted, rel=1e-5)
    assert (row["step"], row["samples"], row["epoch"]) == (6, 96, 1.0)
    environment = json.loads((Path(config.run) / "environment.json").read_text())
    assert environment["world"] == 1 and environment["versions"]["torch"] == torch.__version__


def test_checkpoints_load_as_models_and_old_ones_go(config, stop_after):
    stop_after(None)
    train(config)
    checkpoints = Path(config.run) / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["latest", "step-00000004", "step-00000006"]
    assert (checkpoints / "latest").read_text().strip() == "step-00000006"
    model = GLSCLModel.from_pretrained(model_folder(config.run))
    processor = GLSCLProcessor.from_pretrained(model_folder(checkpoints / "step-00000006"))
    encoded = processor.tokenizer("a red circle", return_tensors="pt")
    assert model.encode_text(encoded["input_ids"], encoded["attention_mask"]).shape[-1] == model.config.hidden_size
    assert processor.image_processor.size == {"height": 48, "width": 48}


def test_validation_ranks_the_validation_split(config, scenes, stop_after):
    stop_after(None)
    train(dataclasses.replace(config, validation=ValidationConfig(str(scenes / "val"), every=3, batch_size=4)))
    validated = [row for row in rows(config.run) if "validation/text_to_image/R@1" in row]
    assert [row["step"] for row in validated] == [3, 6]
    assert 0 <= validated[0]["validation/text_to_image/R@1"] <= validated[0]["validation/text_to_image/R@10"] <= 100


def test_another_configuration_is_refused_by_its_keys_and_changes_nothing(settings, stop_after):
    stop_after(2)
    train(parse_config(RunConfig, settings, "s"))
    before = weights(settings["run"])
    stop_after(None)
    apply_overrides(settings, ["--optimizer.lr", "0.5"])
    changed = parse_config(RunConfig, settings, "s")
    with pytest.raises(UsageError, match=r"another configuration \(optimizer.lr\)"):
        train(changed)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(settings["run"]).items())
    assert train(changed, allow_change=("optimizer.lr",)) == 0


def test_resume_never_refuses_a_used_folder(config, stop_after):
    stop_after(2)
    train(config)
    with pytest.raises(UsageError, match="was used before"):
        train(config, resume="never")


def test_a_complete_run_does_nothing_more(config, stop_after):
    stop_after(None)
    train(config)
    before = rows(config.run)
    assert train(config) == 0
    assert rows(config.run) == before


def test_init_from_takes_the_weights_and_nothing_else(config, tmp_path, stop_after):
    stop_after(1)
    train(config)
    warm = dataclasses.replace(
        config, run=str(tmp_path / "warm"), optimizer=dataclasses.replace(config.optimizer, lr=1e-12)
    )
    train(warm, init_from=config.run)
    before, after = weights(config.run), weights(warm.run)
    assert max((before[name] - after[name]).abs().max() for name in before) < 1e-6
    assert rows(warm.run)[0]["step"] == 1


def test_world_that_was_not_launched_is_refused_with_the_command_that_would_do_it(config):
    with pytest.raises(UsageError, match=r"world: 2, but 1 train.*--num_processes 2"):
        train(dataclasses.replace(config, world=2))


def test_non_finite_loss_stops_with_the_step_and_keeps_the_checkpoint(config, monkeypatch, stop_after):
    stop_after(2)
    train(config)
    stop_after(None)
    monkeypatch.setattr("pretrain.task.matching_loss", lambda logits, labels: logits.sum() * float("nan"))
    with pytest.raises(NumericsError, match="step 3: matching, total not finite"):
        train(config)
    assert status(config.run)["state"] == "failed"
    assert model_folder(config.run).parent.name == "step-00000002"
