"""The learning rate as a function of the step, and which parameters it multiplies and decays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.build import build_model
from pretrain.config import OptimizerConfig
from pretrain.optim import build_optimizer, learning_rate, set_learning_rate


@given(st.integers(1, 10_000), st.floats(0, 0.9))
def test_learning_rate_warms_up_then_falls_and_stays_positive(steps, warmup):
    config = OptimizerConfig(lr=1.0, warmup=warmup)
    rates = [learning_rate(step, steps, config) for step in range(0, steps, max(1, steps // 50))]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert all(0 < rate <= 1 for rate in rates)


def test_schedule_of_ten_steps():
    config = OptimizerConfig(lr=1.0, warmup=0.2)
    assert [learning_rate(step, 10, config) for step in range(10)] == pytest.approx(
        [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    )


def test_every_trainable_parameter_is_in_one_group(config, tokenizer):
    from data_pipeline.text import Tokenizer

    model = build_model(config.model, Tokenizer.load(tokenizer), config.data.max_text_length)
    optimizer = build_optimizer(model, config.optimizer)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(grouped) == sorted(trainable)
    names = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert names == {"text.pooler.dense.weight", "text.pooler.dense.bias"}
    set_learning_rate(optimizer, 1.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = trainable[id(parameter)]
            if name.startswith(("fusion.", "text_projection.", "image_projection.", "matching_")):
                assert group["lr"] == 5.0, name
            if name.startswith(("vision.", "text.", "contrastive_")):
                assert group["lr"] == 1.0, name
            assert (group["weight_decay"] == 0) == (parameter.ndim < 2), name


def test_published_decay_spares_biases_and_the_norms_that_the_authors_list(config, tokenizer):
    from data_pipeline.text import Tokenizer

    model = build_model(config.model, Tokenizer.load(tokenizer), config.data.max_text_length)
    optimizer = build_optimizer(model, OptimizerConfig(decay="published"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = set(), set()
    for group in optimizer.param_groups:
        members = {names[id(parameter)] for parameter in group["params"]}
        (decayed if group["weight_decay"] > 0 else spared).update(members)
    assert decayed >= {
        "temperature",
        "visual_mask_token",
        "vision.post_layernorm.weight",
        "vision.encoder.layers.0.layer_norm1.weight",
        "contrastive_text_head.1.weight",
    }
    assert spared >= {
        "text.encoder.layer.0.output.LayerNorm.weight",
        "fusion.text_layers.0.output.LayerNorm.weight",
    }
    assert not any(name.endswith("bias") for name in decayed)
