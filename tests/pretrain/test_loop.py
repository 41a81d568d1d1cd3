"""The loop in one process: exact resume, complete metrics, and refusals that lose nothing."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.files import sha256
from data_pipeline.loader import evaluation_batches
from data_pipeline.shards.manifest import Manifest
from data_pipeline.text import Tokenizer
from pretrain.config import RunConfig, ValidationConfig
from pretrain.config_file import apply_overrides, parse_config
from pretrain.job import Pretraining
from pretrain.loop import train, train_job
from pretrain.model import GLSCLModel, GLSCLProcessor
from pretrain.objectives import OBJECTIVES
from pretrain.run.checkpoint import COMMITTED, load_model, model_folder
from pretrain.task import PretrainTask
from pretrain.validation import encode
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
    # As after a SIGKILL: the checkpoint of step 5 is damaged, the metrics row of step 6 torn.
    newest = sorted((tmp_path / "torn" / "checkpoints").glob("step-*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"half")
    metrics = tmp_path / "torn" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 6, "lo')
    assert train(done, StopAfter()) == 0
    assert_same_run(config.run, done.run)
    assert [row["step"] for row in rows(done.run)] == [1, 2, 3, 4, 5, 6]


LOSSES = {
    "contrastive": 1.0,
    "matching": 1.0,
    "masked_language": 1.0,
    "global_image": 1.0,
    "global_text": 1.0,
    "local_image": 0.2,
    "local_text": 0.2,
}
LOGGED = (
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


def test_a_logged_step_has_every_documented_metric(config):
    train(config, StopAfter())
    row = rows(config.run)[-1]
    assert row.keys() >= {*LOGGED, *(f"loss/{name}" for name in LOSSES)}
    weighted = sum(weight * row[f"loss/{name}"] for name, weight in LOSSES.items())
    assert row["loss"] == pytest.approx(weighted, rel=1e-5)
    assert (row["step"], row["samples"], row["epoch"]) == (6, 96, 1.0)
    environment = json.loads((Path(config.run) / "environment.json").read_text())
    assert environment["world"] == 1 and environment["versions"]["torch"] == torch.__version__


def test_checkpoints_load_as_models_and_old_ones_are_deleted(config):
    train(config, StopAfter())
    checkpoints = Path(config.run) / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["latest", "step-00000004", "step-00000006"]
    assert (checkpoints / "latest").read_text().strip() == "step-00000006"
    model = GLSCLModel.from_pretrained(model_folder(config.run))
    processor = GLSCLProcessor.from_pretrained(model_folder(checkpoints / "step-00000006"))
    encoded = processor.tokenizer("a red circle", return_tensors="pt")
    states = model.encode_text(encoded["input_ids"], encoded["attention_mask"])
    assert states.shape[-1] == model.config.hidden_size
    assert processor.image_processor.size == {"height": 48, "width": 48}


def test_validation_measures_the_recall_of_the_contrastive_score(config, scenes):
    validation = ValidationConfig(str(scenes / "val"), every=3, batch_size=4)
    # Learn enough for recalls that no constant or random ranking would have.
    config = dataclasses.replace(config, steps=12, validation=validation)
    train(config, StopAfter())
    validated = [row for row in rows(config.run) if "validation/text_to_image/R@1" in row]
    assert [row["step"] for row in validated] == [3, 6, 9, 12]
    scores, image_of_text = contrastive_scores(config, scenes / "val")
    own_score = scores[torch.arange(len(scores)), image_of_text]
    better_images = (scores > own_score[:, None]).sum(1)
    best_text = torch.stack([own_score[image_of_text == i].max() for i in range(scores.shape[1])])
    better_texts = (scores > best_text).sum(0)
    for k in (1, 5, 10):
        to_image = 100 * (better_images < k).double().mean().item()
        assert validated[-1][f"validation/text_to_image/R@{k}"] == pytest.approx(to_image)
        to_text = 100 * (better_texts < k).double().mean().item()
        assert validated[-1][f"validation/image_to_text/R@{k}"] == pytest.approx(to_text)


@torch.no_grad()
def contrastive_scores(config: RunConfig, split: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines (texts, images) of the run's last model, and the row of each text's image."""
    model, tokenizer = load_model(config.run), Tokenizer.load(config.data.tokenizer)
    images, texts, image_of_text = [], [], []
    options = {"size": 48, "batch_size": 4, "rank": 0, "world": 1}
    for batch in evaluation_batches(Manifest.load(split), **options):
        images.append(model.contrastive_image(model.encode_image(batch.pixels)))
        for index, sample in zip(batch.indices, batch.samples, strict=True):
            ids, mask = encode(tokenizer, sample.captions, 32, torch.device("cpu"))
            texts.append(model.contrastive_text(model.encode_text(ids, mask)))
            image_of_text += [index] * len(sample.captions)
    image, text = (F.normalize(torch.cat(rows), dim=-1) for rows in (images, texts))
    return text @ image.T, torch.tensor(image_of_text)


def test_another_configuration_is_refused_by_its_keys_and_changes_nothing(settings):
    train(parse_config(RunConfig, settings, "s"), StopAfter(2))
    before = weights(settings["run"])
    apply_overrides(settings, ["--optimizer.lr", "0.5"])
    changed = parse_config(RunConfig, settings, "s")
    status_before = status(settings["run"])
    with pytest.raises(UsageError, match=r"another configuration \(optimizer.lr\)"):
        train(changed, StopAfter())
    after = weights(settings["run"])
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())
    assert status(settings["run"]) == status_before
    message = "--allow-change optimizer.l: the configuration has no such key"
    with pytest.raises(UsageError, match=message):
        train(changed, StopAfter(), allow_change=("optimizer.lr", "optimizer.l"))
    assert train(changed, StopAfter(), allow_change=("optimizer.lr",)) == 0


def test_resume_never_refuses_a_used_folder(config):
    train(config, StopAfter(2))
    with pytest.raises(UsageError, match="was used before"):
        train(config, StopAfter(2), resume="never")


def test_a_complete_run_takes_no_further_step(config):
    train(config, StopAfter())
    before = rows(config.run)
    assert train(config, StopAfter()) == 0
    assert rows(config.run) == before


def test_init_from_loads_the_weights_and_nothing_else(config, tmp_path):
    train(config, StopAfter(1))
    slow = dataclasses.replace(config.optimizer, lr=1e-12)
    warm = dataclasses.replace(
        config, run=str(tmp_path / "warm"), optimizer=slow, init_from=config.run
    )
    train(warm, StopAfter(1))
    before, after = weights(config.run), weights(warm.run)
    assert max((before[name] - after[name]).abs().max() for name in before) < 1e-6
    assert rows(warm.run)[0]["step"] == 1


def test_a_world_that_was_not_launched_is_refused_with_the_right_command(config):
    with pytest.raises(UsageError, match=r"world: 2, but 1 train.*--num_processes 2"):
        train(dataclasses.replace(config, world=2), StopAfter())


class NotFinite(Pretraining):
    """Pre-training whose matching loss is NaN."""

    def task(self, tokenizer, model):
        def loss(features, config, counts):
            return features.matching_logits.sum() * float("nan")

        objectives = []
        for objective in OBJECTIVES:
            broken = dataclasses.replace(objective, loss=loss)
            objectives.append(broken if objective.name == "matching" else objective)
        return PretrainTask(self.config.objectives, objectives=objectives)


def test_losses_that_stay_non_finite_stop_the_run_and_leave_the_last_good_weights(config):
    train(config, StopAfter(2))
    before = weights(config.run)
    message = "step 6: loss/matching, loss.* not finite, 4 skipped in a row; the samples"
    with pytest.raises(NumericsError, match=message):
        train_job(NotFinite(dataclasses.replace(config, steps=6)), StopAfter())
    assert status(config.run)["state"] == "failed"
    assert [row["skipped"] for row in rows(config.run)] == [0, 0, 1, 1, 1]
    assert model_folder(config.run).parent.name == "step-00000004"
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(config.run).items())


def test_a_run_whose_first_update_was_skipped_can_be_resumed(config):
    assert train_job(NotFinite(config), StopAfter(1)) == 75
    assert train(config, StopAfter()) == 0
    assert [row["skipped"] for row in rows(config.run)] == [1, 0, 0, 0, 0, 0]


def test_a_run_whose_last_update_was_skipped_is_not_complete(config):
    train(config, StopAfter(5))
    with pytest.raises(NumericsError, match="step 6: .*, 1 skipped in a row"):
        train_job(NotFinite(config), StopAfter())


def test_a_run_that_goes_back_forgets_its_later_checkpoints(config, tmp_path):
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
    keep_one = dataclasses.replace(config.checkpoint, keep=1)
    train(dataclasses.replace(config, checkpoint=keep_one), StopAfter(1))
    assert (checkpoints / "latest").read_text().strip() == "step-00000003"
    assert model_folder(config.run).parent.name == "step-00000003"


def test_a_run_without_a_whole_checkpoint_is_refused_and_keeps_its_metrics(config):
    train(config, StopAfter(2))
    before = rows(config.run)
    for folder in (Path(config.run) / "checkpoints").glob("step-*"):
        (folder / "COMMITTED.json").unlink()
    with pytest.raises(DataError, match="no whole checkpoint"):
        train(config, StopAfter())
    assert rows(config.run) == before


def test_a_start_that_failed_on_its_data_can_be_corrected(settings):
    wrong_data = settings["data"] | {"tokenizer": "/no/such"}
    wrong = parse_config(RunConfig, settings | {"data": wrong_data}, "s")
    with pytest.raises(DataError, match="/no/such"):
        train(wrong, StopAfter())
    assert train(parse_config(RunConfig, settings, "s"), StopAfter(1)) == 75


def test_resume_of_another_runs_checkpoint_is_refused(config, tmp_path):
    train(config, StopAfter(2))
    other = dataclasses.replace(config, run=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="use --init-from"):
        train(other, StopAfter(), resume=str(model_folder(config.run).parent))


def test_a_missing_validation_split_is_refused_before_the_first_step(config):
    missing = ValidationConfig("/no/such", every=3)
    with pytest.raises(DataError, match="/no/such"):
        train(dataclasses.replace(config, validation=missing), StopAfter())
    assert not (Path(config.run) / "metrics.jsonl").exists()


def test_an_unsuitable_validation_split_is_refused_before_the_first_step(config, clips, scenes):
    for validation, message in (
        (ValidationConfig(str(clips / "val")), "holds no images"),
        (ValidationConfig(str(scenes / "val"), frames=2), "holds no videos"),
        (ValidationConfig(str(clips / "val"), frames=2), "takes images only"),
    ):
        with pytest.raises((DataError, UsageError), match=message):
            train(dataclasses.replace(config, validation=validation), StopAfter())
    with pytest.raises(UsageError, match="validation.frames must be at least 1"):
        ValidationConfig(str(clips / "val"), frames=0)


class Recording(Pretraining):
    """Pre-training that records the shapes of the pixels that it validates on."""

    def task(self, tokenizer, model):
        self.shapes = shapes = []

        class RecordingTask(PretrainTask):
            def encode_images(self, model, pixels):
                shapes.append(tuple(pixels.shape))
                return super().encode_images(model, pixels)

        usual = super().task(tokenizer, model)
        return RecordingTask(usual.config, usual.validation, tokenizer, usual.validation_size)


def test_videos_are_validated_at_the_size_that_they_are_trained_at(settings, clips):
    settings |= {"steps": 1, "batch": {"image": 8, "video": 4}}
    settings["data"]["video"] = {
        "train": [{"path": str(clips / "train")}],
        "frames": 2,
        "group": 2,
        "image_size": 32,
    }
    settings["validation"] = {"path": str(clips / "val"), "frames": 2}
    job = Recording(parse_config(RunConfig, settings, "videos"))
    assert train_job(job, StopAfter()) == 0
    assert {shape[1:] for shape in job.shapes} == {(2, 32, 32, 3)}


@pytest.mark.parametrize(("bounds", "expected"), [((0.2, 0.5), 0.2), (None, 0.07)])
def test_the_temperature_stays_within_its_bounds(config, bounds, expected):
    objectives = dataclasses.replace(config.objectives, temperature_bounds=bounds)
    train(dataclasses.replace(config, steps=2, objectives=objectives), StopAfter())
    assert weights(config.run)["temperature"].item() == pytest.approx(expected, abs=0.01)


def test_the_average_of_the_weights_is_saved_and_resumed(config, tmp_path):
    optimizer = dataclasses.replace(config.optimizer, ema=0.5)
    averages = []
    for run, stops in (("whole", (None,)), ("parts", (2, None))):
        averaged = dataclasses.replace(
            config, steps=4, optimizer=optimizer, run=str(tmp_path / run)
        )
        for stop in stops:
            train(averaged, StopAfter(stop))
        last = tmp_path / run / "checkpoints" / "step-00000004"
        averages.append(load_file(last / "ema" / "model.safetensors"))
    whole, parts = averages
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["temperature"], weights(tmp_path / "whole")["temperature"])
    load_model(tmp_path / "whole" / "checkpoints" / "step-00000004" / "ema")


def test_a_new_number_of_ranks_that_changes_the_losses_is_warned_of(config, capsys):
    objectives = dataclasses.replace(config.objectives, global_text_negatives="rank")
    changed = dataclasses.replace(config, objectives=objectives)
    train(changed, StopAfter(1))
    train(changed, StopAfter(1))
    assert "ranks instead of" not in capsys.readouterr().err
    pretend_ranks(model_folder(config.run).parent, 2)
    train(changed, StopAfter(1))
    assert "warning: 1 ranks instead of 2" in capsys.readouterr().err


def pretend_ranks(checkpoint: Path, world: int) -> None:
    """Make a checkpoint look as if `world` ranks had written it."""
    path = checkpoint / "trainer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"world": world}))
    listed = json.loads((checkpoint / COMMITTED).read_text())
    listed["trainer.json"] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (checkpoint / COMMITTED).write_text(json.dumps(listed))


def test_a_run_on_images_and_videos_resumes_bitwise(settings, clips, tmp_path):
    settings |= {"steps": 4, "batch": {"image": 8, "video": 4}}
    settings["data"]["video"] = {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 2}
    settings["validation"] = {"path": str(clips / "val"), "every": 2, "frames": 2}
    whole = parse_config(RunConfig, settings | {"run": str(tmp_path / "whole")}, "whole")
    parts = parse_config(RunConfig, settings | {"run": str(tmp_path / "parts")}, "parts")
    assert train(whole, StopAfter()) == 0
    assert train(parts, StopAfter(2)) == 75 and train(parts, StopAfter()) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert all(row["samples"] == 12 * row["step"] for row in rows(tmp_path / "whole"))


def test_a_run_on_videos_alone_is_not_resumed_with_images(settings, clips):
    images = settings["data"].pop("train")
    settings |= {"steps": 3, "batch": {"image": 0, "video": 4}}
    settings["data"]["video"] = {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 2}
    assert train(parse_config(RunConfig, settings, "videos"), StopAfter(2)) == 75
    settings["batch"], settings["data"]["train"] = {"image": 4, "video": 4}, images
    both = parse_config(RunConfig, settings, "both")
    with pytest.raises(UsageError, match="trained on video, this run on image and video"):
        train(both, StopAfter(), allow_change=("batch.image", "data.train"))


def test_images_given_as_videos_are_refused_before_the_first_step(settings, scenes):
    settings |= {"batch": {"image": 0, "video": 4}}
    settings["data"]["video"] = {"train": [{"path": str(scenes / "train")}], "frames": 2}
    with pytest.raises(DataError, match="holds no videos"):
        train(parse_config(RunConfig, settings, "images"), StopAfter())
