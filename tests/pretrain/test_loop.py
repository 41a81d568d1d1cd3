"""The loop in this process: exact resume, honest metrics, and refusals that lose nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.files import sha256
from pretrain.config import RunConfig, ValidationConfig
from pretrain.config_file import apply_overrides, parse_config
from pretrain.loop import train
from pretrain.model import GLSCLModel, GLSCLProcessor
from pretrain.run.checkpoint import COMMITTED, load_model, model_folder
from pretrain.task import PretrainTask
from tests.pretrain.runs import StopAfter, assert_same_run, rows, status, weights


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_resume_is_bitwise_the_undisturbed_run(settings, tmp_path, micro_batches):
    settings["micro_batches"] = micro_batches
    whole = parse_config(RunConfig, settings | {"run": str(tmp_path / "whole")}, "s")
    parts = parse_config(RunConfig, settings | {"run": str(tmp_path / "parts")}, "s")
    assert train(whole, StopAfter()) == 0
    assert train(parts, StopAfter(3)) == 75
    assert status(parts.run) == {"state": "preempted", "step": 3, "reason": "SIGTERM"}
    assert train(parts, StopAfter()) == 0
    assert_same_run(whole.run, parts.run)
    assert status(parts.run)["state"] == "complete"


def test_a_run_that_died_after_its_checkpoint_repeats_the_lost_steps(config, tmp_path):
    train(config, StopAfter())
    done = dataclasses.replace(config, run=str(tmp_path / "torn"))
    train(done, StopAfter(5))
    # As after a SIGKILL: steps 5's checkpoint half written, its metrics row torn.
    newest = sorted((tmp_path / "torn" / "checkpoints").glob("step-*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"half")
    metrics = tmp_path / "torn" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 6, "lo')
    assert train(done, StopAfter()) == 0
    assert_same_run(config.run, done.run)
    assert [row["step"] for row in rows(done.run)] == [1, 2, 3, 4, 5, 6]


def test_metrics_of_a_logged_step_hold_what_the_contract_names(config):
    train(config, StopAfter())
    row = rows(config.run)[-1]
    parts = (
        "contrastive",
        "matching",
        "masked_language",
        "global_image",
        "global_text",
        "local_image",
        "local_text",
    )
    assert row.keys() >= {f"loss/{name}" for name in parts} | {
        *(
            "step",
            "samples",
            "epoch",
            "loss",
            "lr",
            "grad_norm",
            "samples_per_second",
            "data_wait_fraction",
            "keys",
        )
    }
    weighted = sum(row[f"loss/{name}"] * getattr(config.objectives, name) for name in parts)
    assert row["loss"] == pytest.approx(weighted, rel=1e-5)
    assert (row["step"], row["samples"], row["epoch"]) == (6, 96, 1.0)
    environment = json.loads((Path(config.run) / "environment.json").read_text())
    assert environment["world"] == 1 and environment["versions"]["torch"] == torch.__version__


def test_checkpoints_load_as_models_and_old_ones_go(config):
    train(config, StopAfter())
    checkpoints = Path(config.run) / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == [
        "latest",
        "step-00000004",
        "step-00000006",
    ]
    assert (checkpoints / "latest").read_text().strip() == "step-00000006"
    model = GLSCLModel.from_pretrained(model_folder(config.run))
    processor = GLSCLProcessor.from_pretrained(model_folder(checkpoints / "step-00000006"))
    encoded = processor.tokenizer("a red circle", return_tensors="pt")
    assert (
        model.encode_text(encoded["input_ids"], encoded["attention_mask"]).shape[-1]
        == model.config.hidden_size
    )
    assert processor.image_processor.size == {"height": 48, "width": 48}


def test_validation_ranks_the_validation_split(config, scenes):
    train(
        dataclasses.replace(
            config, validation=ValidationConfig(str(scenes / "val"), every=3, batch_size=4)
        ),
        StopAfter(),
    )
    validated = [row for row in rows(config.run) if "validation/text_to_image/R@1" in row]
    assert [row["step"] for row in validated] == [3, 6]
    assert (
        0
        <= validated[0]["validation/text_to_image/R@1"]
        <= validated[0]["validation/text_to_image/R@10"]
        <= 100
    )


def test_another_configuration_is_refused_by_its_keys_and_changes_nothing(settings):
    train(parse_config(RunConfig, settings, "s"), StopAfter(2))
    before = weights(settings["run"])
    apply_overrides(settings, ["--optimizer.lr", "0.5"])
    changed = parse_config(RunConfig, settings, "s")
    stood = status(settings["run"])
    with pytest.raises(UsageError, match=r"another configuration \(optimizer.lr\)"):
        train(changed, StopAfter())
    assert all(
        torch.equal(before[name], tensor) for name, tensor in weights(settings["run"]).items()
    )
    assert status(settings["run"]) == stood
    with pytest.raises(
        UsageError, match="--allow-change optimizer.l: the configuration has no such key"
    ):
        train(changed, StopAfter(), allow_change=("optimizer.lr", "optimizer.l"))
    assert train(changed, StopAfter(), allow_change=("optimizer.lr",)) == 0


def test_resume_never_refuses_a_used_folder(config):
    train(config, StopAfter(2))
    with pytest.raises(UsageError, match="was used before"):
        train(config, StopAfter(2), resume="never")


def test_a_complete_run_does_nothing_more(config):
    train(config, StopAfter())
    before = rows(config.run)
    assert train(config, StopAfter()) == 0
    assert rows(config.run) == before


def test_init_from_takes_the_weights_and_nothing_else(config, tmp_path):
    train(config, StopAfter(1))
    slow = dataclasses.replace(config.optimizer, lr=1e-12)
    warm = dataclasses.replace(
        config, run=str(tmp_path / "warm"), optimizer=slow, init_from=config.run
    )
    train(warm, StopAfter(1))
    before, after = weights(config.run), weights(warm.run)
    assert max((before[name] - after[name]).abs().max() for name in before) < 1e-6
    assert rows(warm.run)[0]["step"] == 1


def test_world_that_was_not_launched_is_refused_with_the_command_that_would_do_it(config):
    with pytest.raises(UsageError, match=r"world: 2, but 1 train.*--num_processes 2"):
        train(dataclasses.replace(config, world=2), StopAfter())


def test_losses_that_stay_non_finite_stop_the_run_and_leave_the_last_good_weights(
    config, monkeypatch
):
    train(config, StopAfter(2))
    before = weights(config.run)
    monkeypatch.setattr(
        "pretrain.task.matching_loss", lambda logits, labels: logits.sum() * float("nan")
    )
    with pytest.raises(
        NumericsError,
        match="step 6: loss/matching, loss.* not finite, 4 skipped in a row; the samples",
    ):
        train(dataclasses.replace(config, steps=6), StopAfter())
    assert status(config.run)["state"] == "failed"
    assert [row["skipped"] for row in rows(config.run)] == [0, 0, 1, 1, 1]
    assert model_folder(config.run).parent.name == "step-00000004"
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(config.run).items())


def test_a_run_whose_first_update_was_skipped_can_be_resumed(config, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(
            "pretrain.task.matching_loss", lambda logits, labels: logits.sum() * float("nan")
        )
        train(config, StopAfter(1))
    assert train(config, StopAfter()) == 0
    assert [row["skipped"] for row in rows(config.run)] == [1, 0, 0, 0, 0, 0]


def test_a_run_whose_last_update_was_skipped_is_not_complete(config, monkeypatch):
    train(config, StopAfter(5))
    monkeypatch.setattr(
        "pretrain.task.matching_loss", lambda logits, labels: logits.sum() * float("nan")
    )
    with pytest.raises(NumericsError, match="step 6: .*, 1 skipped in a row"):
        train(config, StopAfter())


def test_a_run_that_goes_back_forgets_the_branch_it_left(config, tmp_path):
    train(config, StopAfter(4))
    checkpoints = Path(config.run) / "checkpoints"
    train(config, StopAfter(1), resume=str(checkpoints / "step-00000002"))
    assert (checkpoints / "latest").read_text().strip() == "step-00000003"
    assert train(config, StopAfter()) == 0
    whole = dataclasses.replace(config, run=str(tmp_path / "whole"))
    train(whole, StopAfter())
    assert_same_run(whole.run, config.run)


def test_retention_never_deletes_the_checkpoint_just_written(config):
    train(config, StopAfter(4))
    checkpoints = Path(config.run) / "checkpoints"
    (checkpoints / "step-00000004" / "trainer.json").write_text("damaged")
    kept = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, keep=1))
    train(kept, StopAfter(1))
    assert (
        model_folder(config.run).parent.name
        == (checkpoints / "latest").read_text().strip()
        == "step-00000003"
    )


def test_no_whole_checkpoint_is_an_error_and_nothing_is_trimmed(config):
    train(config, StopAfter(2))
    before = rows(config.run)
    for folder in (Path(config.run) / "checkpoints").glob("step-*"):
        (folder / "COMMITTED.json").unlink()
    with pytest.raises(DataError, match="no whole checkpoint"):
        train(config, StopAfter())
    assert rows(config.run) == before


def test_a_start_that_failed_on_its_data_can_be_corrected(settings):
    wrong = parse_config(
        RunConfig, settings | {"data": settings["data"] | {"tokenizer": "/no/such"}}, "s"
    )
    with pytest.raises(DataError, match="/no/such"):
        train(wrong, StopAfter())
    assert train(parse_config(RunConfig, settings, "s"), StopAfter(1)) == 75


def test_resume_of_another_runs_checkpoint_is_refused(config, tmp_path):
    train(config, StopAfter(2))
    other = dataclasses.replace(config, run=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="use --init-from"):
        train(other, StopAfter(), resume=str(model_folder(config.run).parent))


def test_a_wrong_validation_set_is_found_before_the_first_step(config):
    with pytest.raises(DataError, match="/no/such"):
        train(
            dataclasses.replace(config, validation=ValidationConfig("/no/such", every=3)),
            StopAfter(),
        )
    assert not (Path(config.run) / "metrics.jsonl").exists()


def test_a_validation_that_does_not_fit_the_run_is_found_before_the_first_step(
    config, clips, scenes
):
    for validation, message in (
        (ValidationConfig(str(clips / "val")), "holds no images"),
        (ValidationConfig(str(scenes / "val"), frames=2), "holds no videos"),
        (ValidationConfig(str(clips / "val"), frames=2), "takes images only"),
    ):
        with pytest.raises((DataError, UsageError), match=message):
            train(dataclasses.replace(config, validation=validation), StopAfter())
    with pytest.raises(UsageError, match="validation.frames must be at least 1"):
        ValidationConfig(str(clips / "val"), frames=0)


def test_clips_are_validated_at_the_size_that_they_are_trained_at(settings, clips, monkeypatch):
    settings |= {"steps": 1, "batch": {"image": 8, "video": 4}}
    settings["data"]["video"] = {
        "train": [{"path": str(clips / "train")}],
        "frames": 2,
        "group": 2,
        "image_size": 32,
    }
    settings["validation"] = {"path": str(clips / "val"), "frames": 2}
    seen = []
    encode = PretrainTask.encode_images
    monkeypatch.setattr(
        PretrainTask,
        "encode_images",
        lambda *inputs: seen.append(inputs[2].shape) or encode(*inputs),
    )
    assert train(parse_config(RunConfig, settings, "clips"), StopAfter()) == 0
    assert {tuple(shape[1:]) for shape in seen} == {(2, 32, 32, 3)}


@pytest.mark.parametrize(("bounds", "expected"), [((0.2, 0.5), 0.2), (None, 0.07)])
def test_the_temperature_stays_within_its_bounds(config, bounds, expected):
    objectives = dataclasses.replace(config.objectives, temperature_bounds=bounds)
    train(dataclasses.replace(config, steps=2, objectives=objectives), StopAfter())
    assert weights(config.run)["temperature"].item() == pytest.approx(expected, abs=0.01)


def test_the_average_of_the_weights_is_saved_and_resumed(config, tmp_path):
    averaged = dataclasses.replace(
        config, steps=4, optimizer=dataclasses.replace(config.optimizer, ema=0.5)
    )
    seen = []
    for run, stops in (("whole", (None,)), ("parts", (2, None))):
        for stop in stops:
            train(dataclasses.replace(averaged, run=str(tmp_path / run)), StopAfter(stop))
        seen.append(
            load_file(
                tmp_path / run / "checkpoints" / "step-00000004" / "ema" / "model.safetensors"
            )
        )
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])
    last = weights(tmp_path / "whole")
    assert not torch.equal(seen[0]["temperature"], last["temperature"])
    load_model(tmp_path / "whole" / "checkpoints" / "step-00000004" / "ema")


def test_other_ranks_are_warned_of_where_they_change_the_losses(config, capsys):
    objectives = dataclasses.replace(config.objectives, global_text_negatives="rank")
    changed = dataclasses.replace(config, objectives=objectives)
    train(changed, StopAfter(1))
    train(changed, StopAfter(1))
    assert "ranks instead of" not in capsys.readouterr().err
    pretend_ranks(model_folder(config.run).parent, 2)
    train(changed, StopAfter(1))
    assert "warning: 1 ranks instead of 2" in capsys.readouterr().err


def pretend_ranks(checkpoint: Path, world: int) -> None:
    """Make a checkpoint look as if so many ranks had written it."""
    path = checkpoint / "trainer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world": world}))
    listed = json.loads((checkpoint / COMMITTED).read_text())
    listed["trainer.json"] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (checkpoint / COMMITTED).write_text(json.dumps(listed))


def test_a_run_on_pictures_and_clips_resumes_bitwise(settings, clips, tmp_path):
    settings |= {"steps": 4, "batch": {"image": 8, "video": 4}}
    settings["data"]["video"] = {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 2}
    settings["validation"] = {"path": str(clips / "val"), "every": 2, "frames": 2}
    whole = parse_config(RunConfig, settings | {"run": str(tmp_path / "whole")}, "whole")
    parts = parse_config(RunConfig, settings | {"run": str(tmp_path / "parts")}, "parts")
    assert train(whole, StopAfter()) == 0
    assert train(parts, StopAfter(2)) == 75 and train(parts, StopAfter()) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert all(row["samples"] == 12 * row["step"] for row in rows(tmp_path / "whole"))


def test_a_run_on_clips_alone_is_not_resumed_with_pictures(settings, clips):
    pictures = settings["data"].pop("train")
    settings |= {"steps": 3, "batch": {"image": 0, "video": 4}}
    settings["data"]["video"] = {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 2}
    assert train(parse_config(RunConfig, settings, "clips"), StopAfter(2)) == 75
    settings["batch"], settings["data"]["train"] = {"image": 4, "video": 4}, pictures
    both = parse_config(RunConfig, settings, "both")
    with pytest.raises(UsageError, match="trained on video, this run on image and video"):
        train(both, StopAfter(), allow_change=("batch.image", "data.train"))


def test_pictures_given_as_clips_are_refused_before_a_step(settings, scenes):
    settings |= {"batch": {"image": 0, "video": 4}}
    settings["data"]["video"] = {"train": [{"path": str(scenes / "train")}], "frames": 2}
    with pytest.raises(DataError, match="holds no videos"):
        train(parse_config(RunConfig, settings, "pictures"), StopAfter())
