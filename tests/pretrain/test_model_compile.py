"""Towers and fusion compile into one graph, never wait for the device, and can be recomputed."""

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.model import GLSCLModel
from pretrain.model.vision import Patches
from tests.pretrain.models import TOWER, texts, tiny_config, tiny_model

SMALL_VISION = TOWER | {"model_type": "clip_vision_model", "patch_size": 8, "image_size": 24}
SMALL_TEXT = TOWER | {"model_type": "roberta", "vocab_size": 60, "max_position_embeddings": 20}
SHAPES = {"image": (2, 3, 24, 24), "clip": (2, 3, 3, 24, 24)}


def inputs(kind: str) -> tuple[torch.Tensor, ...]:
    """Make pixels, ids, text mask, kept and masked patches and needed positions of two pairs."""
    torch.manual_seed(3)
    keep = torch.tensor([[0, 4, 8], [1, 2, 3]])
    return (
        torch.randn(SHAPES[kind]),
        *texts(2),
        keep,
        torch.rand(2, 9) < 0.3,
        torch.tensor([[0, 2]]),
    )


def views(model: GLSCLModel, pixels, ids, mask, keep, masked, needed) -> list[torch.Tensor]:
    """Use towers and fusion in every way in which a training step does."""
    patches = model.embed_patches(pixels)
    whole = model.encode_patches(Patches.cat([patches, model.mask_patches(patches, masked)]))
    dropped = model.encode_patches(patches, keep, need="first")
    text = model.encode_text(ids, mask)
    first = model.encode_text(ids, mask, need="first")
    text_side, image_side = model.text_side(text, mask), model.image_side(whole[:2])
    pairs = model.fuse_pairs(text_side, mask, image_side, [("all", needed), (needed, "none")])
    return [whole, dropped, first, *pairs[0], *pairs[1]]


def weighted_sum(states: list[torch.Tensor]) -> torch.Tensor:
    """Sum up states with different weights, so that every element has its own gradient."""
    total = torch.zeros(())
    for state in states:
        total = total + (state * torch.arange(state.numel()).view_as(state).cos()).sum()
    return total


def values_and_gradients(run, model, *given) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model.zero_grad()
    states = run(model, *given)
    weighted_sum(states).backward()
    return [*states, *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def shallow_model() -> GLSCLModel:
    """Make a model that compiles fast, without dropout, which compiled code draws differently."""
    shallow = {"num_hidden_layers": 1}
    torch._dynamo.reset()
    model = tiny_model(vision_config=SMALL_VISION | shallow, text_config=SMALL_TEXT | shallow)
    return model.float().eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHAPES)
def test_towers_and_fusion_compile_into_one_graph(kind):
    model = shallow_model()
    compiled = torch.compile(views, fullgraph=True, backend="aot_eager")
    expected = values_and_gradients(views, model, *inputs(kind))
    computed = values_and_gradients(compiled, model, *inputs(kind))
    for ours, reference in zip(computed, expected, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.compiler
@torch.no_grad()
def test_inductor_computes_the_same():
    model, (pixels, ids, mask, *_) = shallow_model(), inputs("clip")
    compiled = torch.compile(model, fullgraph=True)(pixels, ids, mask)
    expected = model(pixels, ids, mask)
    torch.testing.assert_close(compiled.pooled, expected.pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(compiled.image, expected.image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("text", ["roberta", "bert", "xlm-roberta"])
def test_towers_and_fusion_never_read_a_value_on_the_host(kind, text):
    with FakeTensorMode():  # its tensors hold no values
        model = GLSCLModel(tiny_config(text_config=SMALL_TEXT | {"model_type": text})).train()
        given = [torch.empty(value.shape, dtype=value.dtype) for value in inputs(kind)]
        views(model, *given)[0].sum().backward()
        with pytest.raises(DataDependentOutputException):
            given[1].max().item()
        with pytest.raises(DynamicOutputShapeException):
            given[1][given[2] == 1]


class HostReads(TorchDispatchMode):
    """Refuses operations for which the host must wait for a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.nonzero.default,
        )
        if func is torch.ops.aten.index.Tensor:  # by a mask, whose sum is the size of the result
            indices = [index for index in args[1] if index is not None]
            reads = any(index.dtype == torch.bool for index in indices)
        if reads:
            raise RuntimeError(f"{func} reads a value on the host")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", SHAPES)
def test_no_operation_of_towers_and_fusion_waits_for_a_value(kind):
    model, given = tiny_model().float().train(), inputs(kind)
    with HostReads():
        views(model, *given)[0].sum().backward()
        # transformers itself reads a mask of two axes, so that the model passes one of four axes.
        with pytest.raises(RuntimeError, match="on the host"):
            model.text(input_ids=given[1], attention_mask=given[2])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_activations_change_no_gradient(dropout):
    probabilities = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = tiny_model(
        text_config=SMALL_TEXT | probabilities, fusion_dropout=dropout, fusion_layers=3
    )
    model.float().train()
    stored = [values_and_gradients(views, model, *inputs(kind)) for kind in SHAPES]
    model.checkpoint_activations(("vision", "text", "fusion"))
    recomputed = [values_and_gradients(views, model, *inputs(kind)) for kind in SHAPES]
    for before, after in zip(stored, recomputed, strict=True):
        assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


@pytest.mark.parametrize("tower", ["vision", "text", "fusion"])
def test_each_tower_stores_less_for_the_backward_pass(tower):
    model = tiny_model(fusion_layers=4, text_config=SMALL_TEXT | {"num_hidden_layers": 4})
    model.float().train()

    def stored_bytes() -> int:
        seen: dict[int, int] = {}

        def pack(tensor):
            if not isinstance(tensor, torch.nn.Parameter):
                seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            states = views(model, *inputs("clip"))
        assert states
        return sum(seen.values())

    before = stored_bytes()
    model.checkpoint_activations([tower])
    assert stored_bytes() < 0.9 * before


def test_an_unknown_tower_is_refused():
    with pytest.raises(ValueError, match="vision, text, fusion, not in 'audio'"):
        tiny_model().checkpoint_activations(["audio"])
