"""The plan of a run: its counts are those of the step that trains."""

import dataclasses

import pytest
import torch

from data_pipeline.errors import DataError, UsageError
from data_pipeline.loader import open_loader
from data_pipeline.text import Tokenizer
from pretrain.build import build_model
from pretrain.config import BatchConfig, RunConfig
from pretrain.config_file import apply_overrides, parse_config
from pretrain.planning.plan import flop_counter, plan, step_parts
from pretrain.task import PretrainTask


def real_step(config, kind):
    """Model and first batch of a run, as the loop makes them."""
    tokenizer, video = Tokenizer.load(config.data.tokenizer), config.data.video
    torch.manual_seed(0)
    model = build_model(
        config.model, tokenizer, config.data.max_text_length, video.frames if video else 0
    )
    source = config.data.train if kind == "image" else video.train
    options = {"frames": video.frames} if kind == "video" else {}
    with open_loader(
        [source[0].path],
        seed=0,
        global_batch=getattr(config.batch, kind),
        tokenizer=tokenizer,
        size=48,
        group=4,
        max_text_length=config.data.max_text_length,
        **options,
    ) as loader:
        return model, next(loader)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["image", "video"])
def test_planned_operations_are_those_of_a_real_step(settings, clips, kind):
    settings["batch"] = {"image": 16, "video": 8}
    settings["data"]["video"] = {"train": [{"path": str(clips / "train")}], "frames": 2, "group": 4}
    config = parse_config(RunConfig, settings, "settings")
    planned = plan(config).kinds[kind]
    model, batch = real_step(config, kind)
    with flop_counter() as counter:
        PretrainTask().forward(model, batch).total.backward()
    real = counter.get_total_flops() / len(batch.keys)
    assert planned.step == pytest.approx(
        real, rel=0.03
    )  # the batch's own text lengths are not the mean
    parts = {}
    for name, part in step_parts(model, batch, config.objectives).items():
        with flop_counter() as counter:
            part()
        parts[name] = counter.get_total_flops() / len(batch.keys)
    with flop_counter() as counter:
        features = PretrainTask().features(model, batch)
    assert sum(parts.values()) == pytest.approx(
        counter.get_total_flops() / len(batch.keys), rel=1e-9
    )
    with flop_counter() as counter:
        PretrainTask().losses(features)
    # Grows with the square of the masked tokens, of which the plan knows the mean.
    assert planned.forward["losses"] == pytest.approx(
        counter.get_total_flops() / len(batch.keys), rel=0.5
    )


def test_plan_counts_parameters_samples_and_memory(config):
    found = plan(config, world=2)
    model = build_model(
        config.model, Tokenizer.load(config.data.tokenizer), config.data.max_text_length
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    image = found.kinds["image"]
    assert (found.parameters, found.parameter_bytes) == (trained, 16 * trained)
    assert (image.batch, image.micro_batch, image.epoch_samples) == (16, 8, 96)
    assert found.memory == found.parameter_bytes + image.activations > found.parameter_bytes
    assert "96 samples in 1 shards" in found.read[1]
    assert found.read[2].endswith("a rank reads 8 samples a step, from 1.0 (at most 1) of 1 shards")


@pytest.mark.slow
def test_a_plan_divides_what_the_engine_divides_over_thousands_of_ranks(config):
    large = dataclasses.replace(
        config,
        batch=BatchConfig(image=8192),
        data=dataclasses.replace(config.data, group=2),
        micro_batches=1,
    )
    found = {engine: plan(large, world=4096, engine=engine) for engine in ("ddp", "fsdp2", "zero2")}
    bytes_of = {engine: one.parameter_bytes / one.parameters for engine, one in found.items()}
    assert bytes_of["ddp"] == 16 and 0 < bytes_of["fsdp2"] < 0.01 and 4 < bytes_of["zero2"] < 4.01
    assert (
        "order of 6 steps on 4,096 rank(s): a rank reads 2 samples a step" in found["ddp"].read[2]
    )
    exact = plan(dataclasses.replace(config, micro_batches=2)).kinds["image"].step
    plain = (
        plan(dataclasses.replace(config, micro_batches=2, accumulation="plain")).kinds["image"].step
    )
    assert 1.2 < exact / plain < 1.4
    assert found["ddp"].device_hours(1e12, 0.5) == pytest.approx(
        found["ddp"].step_flops * 6 / 0.5e12 / 3600
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.group": "5"}, "matching groups of 5 samples"),
        ({"data.lanes": "7"}, "7"),
        ({"data.train.0.path": "{clips}"}, "holds no images"),
        ({"model.vision.image_size": "40"}, "no multiple of patch_size"),
    ],
    ids=str,
)
def test_a_plan_refuses_what_training_would_refuse(settings, clips, change, message):
    words = [
        word
        for key, value in change.items()
        for word in (f"--{key}", value.format(clips=clips / "train"))
    ]
    apply_overrides(settings, words)
    with pytest.raises((UsageError, DataError), match=message):
        plan(parse_config(RunConfig, settings, "settings"))


def test_a_plan_does_not_need_the_data(settings):
    settings["data"]["train"] = [{"path": "elsewhere"}]
    found = plan(parse_config(RunConfig, settings, "settings"))
    assert found.kinds["image"].text_tokens == 32 and found.kinds["image"].epoch_samples is None
    assert "elsewhere: not read here" in found.table()
