"""The plan of a run counts what a real step does."""

import dataclasses

import pytest
import torch

from data_pipeline.errors import DataError, UsageError
from data_pipeline.loader import open_loader
from data_pipeline.text import Tokenizer
from pretrain.build import build_model
from pretrain.config import BatchConfig, RunConfig
from pretrain.config_file import apply_overrides, parse_config
from pretrain.parallel import ENGINES
from pretrain.parallel.engines import engine_class
from pretrain.planning.plan import plan, step_parts
from pretrain.task import PretrainTask
from pretrain.utilization import flop_counter


def real_step(config, kind):
    """Build the model and the first batch of a run, as the loop does."""
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
    # The text lengths of this batch are not exactly the mean.
    assert planned.step == pytest.approx(real, rel=0.03)
    parts = {}
    for name, part in step_parts(model, batch, config.objectives).items():
        with flop_counter() as counter:
            part()
        parts[name] = counter.get_total_flops() / len(batch.keys)
    with flop_counter() as counter:
        features = PretrainTask().features(model, batch)
    real = counter.get_total_flops() / len(batch.keys)
    assert sum(parts.values()) == pytest.approx(real, rel=1e-9)
    with flop_counter() as counter:
        PretrainTask().losses(features)
    real = counter.get_total_flops() / len(batch.keys)
    # Grows with the square of the masked tokens, and the plan knows only their mean.
    assert planned.forward["losses"] == pytest.approx(real, rel=0.5)


def test_plan_counts_parameters_samples_and_memory(config):
    planned = plan(config, world=2)
    model = build_model(
        config.model, Tokenizer.load(config.data.tokenizer), config.data.max_text_length
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    image = planned.kinds["image"]
    assert (planned.parameters, planned.parameter_bytes) == (trained, 16 * trained)
    assert (image.batch, image.micro_batch, image.epoch_samples) == (16, 8, 96)
    assert planned.memory == planned.parameter_bytes + image.activations
    assert image.activations > 0
    assert "96 samples in 1 shards" in planned.read[1]
    order = "a rank reads 8 samples a step, from 1.0 (at most 1) of 1 shards"
    assert planned.read[2].endswith(order)


@pytest.mark.slow
def test_a_plan_divides_memory_over_thousands_of_ranks_as_the_engine_does(config):
    large = dataclasses.replace(
        config,
        batch=BatchConfig(image=8192),
        data=dataclasses.replace(config.data, group=2),
        micro_batches=1,
    )
    plans, bytes_each = {}, {}
    for engine in ("ddp", "fsdp2", "zero2"):
        plans[engine] = plan(large, world=4096, engine=engine)
        bytes_each[engine] = plans[engine].parameter_bytes / plans[engine].parameters
    assert bytes_each["ddp"] == 16
    assert 0 < bytes_each["fsdp2"] < 0.01
    assert 4 < bytes_each["zero2"] < 4.01
    order = "order of 6 steps on 4,096 rank(s): a rank reads 2 samples a step"
    assert order in plans["ddp"].read[2]
    hours = plans["ddp"].step_flops * 6 / 0.5e12 / 3600
    assert plans["ddp"].device_hours(1e12, 0.5) == pytest.approx(hours)


@pytest.mark.slow
def test_a_plan_counts_the_second_forward_pass_of_exact_accumulation(config):
    exact = dataclasses.replace(config, micro_batches=2)
    plain = dataclasses.replace(exact, accumulation="plain")
    ratio = plan(exact).kinds["image"].step / plan(plain).kinds["image"].step
    assert 1.2 < ratio < 1.4


@pytest.mark.parametrize(
    ("engine", "averaged", "expected"),
    [
        ("ddp", False, (16, 0)),
        ("ddp", True, (20, 0)),
        ("fsdp2", True, (0, 20)),
        ("zero1", False, (8, 12)),
        ("zero2", True, (8, 16)),
        ("zero3", False, (0, 20)),
    ],
)
def test_an_engine_says_what_a_parameter_takes(engine, averaged, expected):
    assert engine_class(engine).parameter_bytes(engine, averaged) == expected


def test_every_listed_engine_can_be_loaded():
    assert {name: engine_class(name).portable for name in ENGINES} == {
        "ddp": True,
        "fsdp2": True,
        "zero1": False,
        "zero2": False,
        "zero3": False,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.group": "5"}, "matching groups of 5 samples"),
        ({"data.lanes": "7"}, "7"),
        ({"data.train.0.path": "{clips}"}, "holds no images"),
        ({"model.vision.image_size": "40"}, "not a multiple of patch_size"),
    ],
    ids=str,
)
def test_a_plan_refuses_what_training_would_refuse(settings, clips, change, message):
    for key, value in change.items():
        apply_overrides(settings, [f"--{key}", value.format(clips=clips / "train")])
    with pytest.raises((UsageError, DataError), match=message):
        plan(parse_config(RunConfig, settings, "settings"))


def test_a_plan_does_not_need_the_data(settings):
    settings["data"]["train"] = [{"path": "elsewhere"}]
    planned = plan(parse_config(RunConfig, settings, "settings"))
    assert planned.kinds["image"].text_tokens == 32
    assert planned.kinds["image"].epoch_samples is None
    assert "elsewhere: not read here" in planned.table()
