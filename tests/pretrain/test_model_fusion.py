"""Fusion of stacked pairs, whose last layer computes only needed states, against the full one."""

import pytest
import torch
from transformers.models.roberta.modeling_roberta import RobertaLayer

from pretrain.model import GLSCLModel
from tests.pretrain.models import WIDTH, texts, tiny_model


def sides(model: GLSCLModel, batch: int):
    ids, mask = texts(batch)
    text = model.text_side(model.encode_text(ids, mask), mask)
    return text, mask, model.image_side(model.encode_image(torch.randn(batch, 3, 24, 24).double()))


def pick(states: torch.Tensor, need) -> torch.Tensor:
    if isinstance(need, str):
        return states if need == "all" else states[:, :0]
    return states[torch.arange(len(states))[:, None], need]


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_needed_states_equal_those_of_the_full_computation(layers):
    model = tiny_model(fusion_layers=layers)
    text, mask, image = sides(model, 8)
    first = torch.zeros(2, 1, dtype=torch.long)
    some = torch.tensor([[5, 0, 3], [2, 2, 1]])
    needs = [("all", first), ("none", some), (some, "none"), (first, "all")]
    whole_text, whole_image = model.fuse_pairs(text, mask, image, [("all", "all")])[0]
    results = []
    expected = []
    for chunk, need in enumerate(needs):
        rows = slice(2 * chunk, 2 * chunk + 2)
        expected.append((pick(whole_text[rows], need[0]), pick(whole_image[rows], need[1])))
    for pairs in (expected, model.fuse_pairs(text, mask, image, needs)):
        states: list[torch.Tensor] = []
        loss = torch.zeros(()).double()
        for pair in pairs:
            states += pair
        for state in states:
            loss = loss + (state * torch.arange(state.numel()).view_as(state).cos()).sum()
        names, parameters = zip(*model.fusion.named_parameters(), strict=True)
        gradients = torch.autograd.grad(
            loss, [*parameters, *model.image_projection.parameters()], retain_graph=True
        )
        results.append((states, gradients))
    for ours, reference in zip(results[1][0], results[0][0], strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-10, rtol=0)
    for ours, reference in zip(results[1][1], results[0][1], strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-9, rtol=0)
    assert len(names) == 2 * layers * 26


def test_states_that_are_not_needed_are_empty():
    model = tiny_model()
    text, mask, image = sides(model, 2)
    [(text_states, image_states)] = model.fuse_pairs(text, mask, image, [("none", "all")])
    assert text_states.shape == (2, 0, WIDTH) and image_states.shape == (2, 10, WIDTH)


def test_fusion_equals_the_layers_of_transformers():
    model = tiny_model()
    ids, mask = texts(3)
    text, image = (
        model.encode_text(ids, mask),
        model.encode_image(torch.randn(3, 3, 24, 24).double()),
    )
    fused = model.fuse(text, mask, image)
    text, image = text + model.token_type.weight[0], image + model.token_type.weight[1]
    padding = torch.zeros(3, 1, 1, 8, dtype=torch.float64).masked_fill(
        mask[:, None, None] == 0, -1e30
    )
    # A mask of zeros, because a decoder without a mask would be treated as causal.
    nothing = torch.zeros(3, 1, 1, 10, dtype=torch.float64)
    of_text = {"attention_mask": padding, "encoder_attention_mask": nothing}
    of_image = {"attention_mask": nothing, "encoder_attention_mask": padding}
    run = RobertaLayer.forward
    for text_layer, image_layer in zip(
        model.fusion.text_layers, model.fusion.image_layers, strict=True
    ):
        text, image = (
            run(text_layer, text, encoder_hidden_states=image, **of_text),
            run(image_layer, image, encoder_hidden_states=text, **of_image),
        )
    torch.testing.assert_close(fused.text[mask == 1], text[mask == 1], atol=1e-10, rtol=0)
    torch.testing.assert_close(fused.image, image, atol=1e-10, rtol=0)


def test_padding_changes_no_state_that_is_read():
    model = tiny_model()
    ids, mask = texts(2)
    image = model.encode_image(torch.randn(2, 3, 24, 24).double())
    longer = torch.nn.functional.pad(ids, (0, 4), value=1), torch.nn.functional.pad(mask, (0, 4))
    short = model.fuse(model.encode_text(ids, mask), mask, image)
    long = model.fuse(model.encode_text(*longer), longer[1], image)
    torch.testing.assert_close(short.pooled, long.pooled, atol=1e-12, rtol=0)
    torch.testing.assert_close(short.image, long.image, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["attention probabilities", "hidden states"])
def test_dropout_acts_on_needed_states_too(kind):
    model = tiny_model().train()
    for name, module in model.fusion.named_modules():
        if isinstance(module, torch.nn.Dropout):
            of_probabilities = name.endswith("self.dropout")
            module.p = 0.5 if of_probabilities == (kind == "attention probabilities") else 0.0
    text, mask, image = sides(model.eval(), 4)
    first = torch.zeros(4, 1, dtype=torch.long)
    model.train()
    states = []
    for _ in range(20):
        [(_, image_states)] = model.fuse_pairs(text, mask, image, [(first, first)])
        states.append(image_states)
    draws = torch.stack(states)
    assert (draws.std(0) > 0).all()


def test_a_batch_that_does_not_divide_into_equal_chunks_is_refused():
    model = tiny_model()
    text, mask, image = sides(model, 5)
    with pytest.raises(ValueError, match="5 texts and 5 images do not make 2 chunks"):
        model.fuse_pairs(text, mask, image, [("all", "all")] * 2)


def test_a_video_is_pooled_as_the_mean_of_its_class_tokens():
    model = tiny_model()
    ids, mask = texts(2)
    tokens = model.encode_image(torch.randn(2, 3, 3, 24, 24).double())
    fused = model.fuse(model.encode_text(ids, mask), mask, tokens, frames=3)
    assert fused.image.shape == (2, 30, WIDTH)
    expected = model.image_pooler.dense(fused.image[:, :3].mean(1)).tanh()
    torch.testing.assert_close(fused.pooled[:, WIDTH:], expected, atol=1e-12, rtol=0)
    expected = model.contrastive_image_head(tokens[:, :3].mean(1))
    torch.testing.assert_close(
        model.contrastive_image(tokens, frames=3), expected, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_probabilities_are_those_of_the_last_layer(layers, attention):
    model = tiny_model(fusion_layers=layers)
    model.fusion.layer_config._attn_implementation = attention
    text, mask, image = sides(model, 3)
    last, seen = model.fusion.text_layers[-1].crossattention, {}
    hooks = [
        last.self.value.register_forward_hook(lambda _, __, out: seen.update(value=out)),
        last.output.register_forward_pre_hook(lambda _, given: seen.update(mixed=given[0])),
    ]
    model.fuse_pairs(text, mask, image, [("all", "all")])
    for hook in hooks:
        hook.remove()
    probabilities = model.text_to_image_attention(text, mask, image)
    assert probabilities.shape == (3, 2, 8, 10)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, 2, 8).double())
    values = seen["value"].unflatten(-1, (2, -1)).transpose(1, 2)
    mixed = (probabilities @ values).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(mixed[mask == 1], seen["mixed"][mask == 1], atol=1e-10, rtol=0)
