"""Conversion of authors' checkpoints: every layout is read, and errors name what does not fit."""

import argparse
import collections
import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain.model import GLSCLConfig, GLSCLModel

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "image_0_weights.safetensors"


class Callback:
    """An object that a training program pickles into its checkpoints."""

    def __init__(self) -> None:
        self.best = {"score": torch.ones(2)}


class AttributeDict(dict):
    """A class like PyTorch-Lightning's dictionary of hyper-parameters."""


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def reference() -> dict[str, Tensor]:
    return GLSCLModel.from_authors(str(GOLDEN)).state_dict()


def mae_decoder() -> dict[str, Tensor]:
    """Make tensors that the release allocates and never uses, under its names."""
    names = ["decoder_embed.weight", "decoder_embed.bias", "mask_token", "decoder_pos_embed"]
    names += ["decoder_norm.weight", "decoder_pred.bias"]
    for block in range(2):
        names += [f"decoder_blocks.{block}.attn.qkv.weight", f"decoder_blocks.{block}.mlp.fc1.bias"]
    return {f"vision_transformer.{name}": torch.randn(4) for name in names}


def metric_states() -> dict[str, object]:
    return {
        "train_itm_accuracy.correct": torch.tensor(3.0),
        "val_itm_wpa_loss.scalar": torch.tensor(0.5),
        "val_mlm_loss.total": 7,
        "dev_nlvr2_accuracy.total": torch.tensor(9),
    }


def lightning(weights: dict[str, Tensor]) -> dict[str, object]:
    """Make a checkpoint in the layout of PyTorch-Lightning, with objects of many kinds."""
    state = collections.OrderedDict(weights | mae_decoder() | metric_states())
    state._metadata = {"": {"version": 1}}
    parameters = AttributeDict(
        config={"image_size": 288, "loss_names": {"itm": 1}}, optimizer=functools.partial(print, 1)
    )
    parameters.note = "an attribute"
    return {
        "epoch": 41,
        "global_step": 99_999,
        "pytorch-lightning_version": "1.3.2",
        "state_dict": state,
        "callbacks": {Callback: {"best_model_path": Path("/tmp/x.ckpt")}, (1, 2): Callback()},
        "optimizer_states": [
            {"state": {0: {"exp_avg": torch.ones(3, 4)}}, "param_groups": [{"betas": (0.9, 0.98)}]}
        ],
        "lr_schedulers": [collections.defaultdict(list, a=[1]), {frozenset([1]), 3.5, None}],
        "hparams_name": "config",
        "hyper_parameters": parameters,
        "arguments": argparse.Namespace(
            seed=0, device=torch.device("cpu"), dtype=torch.float16, shape=torch.Size([2])
        ),
    }


@pytest.mark.parametrize(
    "options", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}], ids=str
)
def test_golden_weights_in_lightnings_layout_give_the_same_model(
    tmp_path, weights, reference, options
):
    stored = [tensor.dtype for name, tensor in weights.items() if "position_ids" not in name]
    assert set(stored) == {torch.float16}
    torch.save(lightning(weights), tmp_path / "authors.ckpt", **options)
    converted = GLSCLModel.from_authors(str(tmp_path / "authors.ckpt"))
    assert not converted.training
    assert converted.config.initial_temperature == weights["cl_temp"].item()
    assert_same(converted.state_dict(), reference)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("file", ["weights.pt", "weights.safetensors"])
def test_a_plain_state_dict_is_read_with_or_without_a_wrappers_prefix(
    tmp_path, weights, reference, file, prefix
):
    named = {prefix + name: tensor for name, tensor in weights.items()}
    if file.endswith("safetensors"):
        save_file(named, tmp_path / file)
    else:
        torch.save(named, tmp_path / file)
    assert_same(GLSCLModel.from_authors(str(tmp_path / file)).state_dict(), reference)


def test_safetensors_whose_length_begins_like_a_pickle_are_read(tmp_path, weights, reference):
    path = tmp_path / "weights.safetensors"
    for padding in range(0, 256, 8):
        save_file(weights, path, metadata={"padding": "x" * padding})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert_same(GLSCLModel.from_authors(str(path)).state_dict(), reference)


def test_parameters_views_and_other_precisions_are_read_as_their_values(
    tmp_path, weights, reference
):
    changed: dict[str, Tensor] = dict(weights)
    for name, tensor in weights.items():
        if name.endswith("in_proj_weight"):
            changed[name] = nn.Parameter(tensor.double())
        elif name.startswith("cross_modal"):
            changed[name] = torch.stack([tensor, tensor + 1])[0]  # a view of a larger storage
        elif tensor.dim() == 2:
            changed[name] = tensor.T.contiguous().T  # strided
    torch.save({"model": changed}, tmp_path / "authors.pt")
    assert_same(GLSCLModel.from_authors(str(tmp_path / "authors.pt")).state_dict(), reference)

    floats = [name for name, tensor in weights.items() if tensor.is_floating_point()]
    rounded = {name: weights[name].bfloat16() for name in floats}
    torch.save(rounded, tmp_path / "bfloat16.pt")
    converted = GLSCLModel.from_authors(str(tmp_path / "bfloat16.pt")).state_dict()
    assert_same(converted, {name: tensor.bfloat16().float() for name, tensor in reference.items()})


def test_the_number_of_positions_determines_the_image_size(tmp_path, weights):
    name = "vision_transformer.visual.positional_embedding"
    resized = weights | {name: torch.randn(1 + 6 * 6, weights[name].shape[1])}
    torch.save(resized, tmp_path / "larger.pt")
    model = GLSCLModel.from_authors(str(tmp_path / "larger.pt"))
    assert model.config.image_size == 6 * 16
    assert torch.equal(model.vision.embeddings.position_embedding.weight, resized[name])


def test_the_unused_pooler_of_the_text_tower_is_kept(weights, reference):
    assert torch.equal(
        reference["text.pooler.dense.weight"],
        weights["text_transformer.pooler.dense.weight"].float(),
    )


def test_a_given_configuration_is_used_and_must_fit(tmp_path, weights):
    torch.save(weights, tmp_path / "authors.pt")
    config = GLSCLModel.from_authors(str(GOLDEN)).config
    config.fusion_heads = 8
    assert GLSCLModel.from_authors(str(tmp_path / "authors.pt"), config).config.fusion_heads == 8
    with pytest.raises(ValueError, match="another size|unknown|lacks"):
        GLSCLModel.from_authors(str(tmp_path / "authors.pt"), GLSCLConfig())


def without(weights: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if name not in names}


def renamed(weights: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): tensor for name, tensor in weights.items()}


def text_head(weights: dict[str, Tensor]) -> Tensor:
    return weights["language_proj.3.weight"]


MISFITS = {
    "unknown": (
        lambda w: w | {"momentum_queue": torch.ones(2), "snli_classifier.0.bias": torch.ones(2)},
        r"2 tensors \(momentum_queue, snli_classifier.0.bias\) unknown",
    ),
    "unknown block part": (
        lambda w: (
            w | {"vision_transformer.visual.transformer.resblocks.0.adapter.weight": torch.ones(2)}
        ),
        r"1 tensor \(vision_transformer.visual.transformer.resblocks.0.adapter.weight\) unknown",
    ),
    "a mask token elsewhere": (
        lambda w: w | {"mask_token": torch.ones(2)},
        r"1 tensor \(mask_token\) unknown",
    ),
    "fine-tuned": (
        lambda w: w | {"vqa_classifier.0.weight": torch.ones(2)},
        "fine-tuned for VQA .*only pre-training",
    ),
    "fine-tuned for retrieval": (
        lambda w: w | {"rank_output.bias": torch.ones(1)},
        "fine-tuned for retrieval",
    ),
    "missing": (
        lambda w: without(w, "itm_score.fc.bias", "mlm_score.bias"),
        "lacks 2 tensors .*matching_head.bias",
    ),
    "missing scalar": (
        lambda w: without(w, "cl_temp"),
        "lacks 1 tensor .temperature.",
    ),
    "transposed": (
        lambda w: w | {"language_proj.3.weight": text_head(w).T.contiguous()},
        "of another size",
    ),
    "layers with a gap": (
        lambda w: renamed(w, "resblocks.1.", "resblocks.1000000000."),
        "not numbered from 0",
    ),
    "not a square": (
        lambda w: w | {"vision_transformer.visual.positional_embedding": torch.ones(1 + 6, 128)},
        "6 positions of patches do not form a square",
    ),
    "not a tower": (
        lambda w: w | {"vision_transformer.visual.conv1.weight": torch.ones(4, 3, 16, 16)},
        "sizes",
    ),
    "no mask token without the video encoder": (
        lambda w: without(w, "vision_transformer.visual.visual_mask_token"),
        r"lacks 1 tensor \(visual_mask_token\)",
    ),
    "also under this project's name": (
        lambda w: w | {"temperature": torch.tensor(1.0)},
        r"1 tensor \(temperature\) unknown",
    ),
    "only under this project's name": (
        lambda w: without(w, "itm_score.fc.bias") | {"matching_head.bias": w["itm_score.fc.bias"]},
        r"1 tensor \(matching_head.bias\) unknown",
    ),
    "failed training": (
        lambda w: w | {"itm_score.fc.bias": torch.full((2,), float("nan"))},
        "itm_score.fc.bias holds numbers that are not finite",
    ),
    "quantized": (
        lambda w: w | {"itm_score.fc.weight": (100 * w["itm_score.fc.weight"]).to(torch.int8)},
        r"1 tensor \(itm_score.fc.weight\): not ordinary",
    ),
    "thousands of layers": (
        lambda w: w | {f"cross_modal_text_layers.{n}.x": torch.ones(0) for n in range(2, 200)},
        "200 layers are more than any tower has",
    ),
    "twice": (
        lambda w: w | {"module.cl_temp": torch.tensor(1.0)},
        r"1 tensor \(module.cl_temp\).* there twice",
    ),
    "not a tensor": (lambda w: w | {"cl_temp": 0.07}, r"1 tensor \(cl_temp\): not ordinary"),
    "another model": (lambda w: nn.Linear(2, 2).state_dict(), "lacks"),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_is_named(tmp_path, weights, misfit):
    change, message = MISFITS[misfit]
    path = tmp_path / "other.ckpt"
    torch.save({"state_dict": change(weights)}, path)
    with pytest.raises(ValueError, match=message) as error:
        GLSCLModel.from_authors(str(path))
    assert str(error.value).startswith(str(path))


def assert_same(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []
