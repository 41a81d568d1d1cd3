"""Convert a checkpoint of the authors' release to this model, without executing anything in it.

In: a file, and sizes if they should not be inferred. Out: the model. Every tensor of a pre-training
checkpoint gets a name in this model, is on the list of unused ones, or is refused by name. Names
and shapes are checked before the first weight is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, RobertaConfig

from .configuration import GLSCLConfig
from .modeling import GLSCLModel
from .tensor_file import LazyTensor, open_tensors

# Prefixes of wrappers: DistributedDataParallel, a LightningModule that holds the model,
# torch.compile.
_WRAPPERS = re.compile(r"((module|model|_orig_mod)\.)+")
# Entries of the authors' checkpoints that their code never uses: buffers that the model computes
# itself, the MAE decoder (8 blocks, 26 M parameters, not part of any loss), and the running metrics
# of each task.
_UNUSED = re.compile(
    r"text_transformer\.embeddings\.(position_ids|token_type_ids)"
    r"|vision_transformer\.(mask_token|decoder_(embed|pos_embed|blocks|norm|pred)\b.*)"
    r"|(train|val|dev|test)_[a-z0-9]+_(accuracy|score|loss|wpa_loss)\..*"
)
# Heads that only fine-tuned checkpoints have.
_FINE_TUNED = {"vqa_classifier.": "VQA", "nlvr2_classifier.": "NLVR2", "rank_output.": "retrieval"}
# Only checkpoints with the release's video encoder have it.
_TEMPORAL = "vision_transformer.visual.temporal_embed"
_MOST_LAYERS = 128  # without a limit, a file of names alone could make a model of any size
_PREFIXES = {
    "cross_modal_text_layers.": "fusion.text_layers.",
    "cross_modal_image_layers.": "fusion.image_layers.",
    "cross_modal_text_transform.": "text_projection.",
    "cross_modal_image_transform.": "image_projection.",
    "cross_modal_text_pooler.": "text_pooler.",
    "cross_modal_image_pooler.": "image_pooler.",
    "token_type_embeddings.": "token_type.",
    "language_proj.": "contrastive_text_head.",
    "vision_proj.": "contrastive_image_head.",
    "itm_score.fc.": "matching_head.",
    "mlm_score.transform.dense.": "masked_language_head.transform.0.",
    "mlm_score.transform.LayerNorm.": "masked_language_head.transform.2.",
    "mlm_score.decoder.": "masked_language_head.decoder.",
    "text_transformer.": "text.",
    "vision_transformer.visual.conv1.": "vision.embeddings.patch_embedding.",
    "vision_transformer.visual.ln_pre.": "vision.pre_layrnorm.",
    "vision_transformer.visual.ln_post.": "vision.post_layernorm.",
}
_EXACT = {
    "cl_temp": "temperature",
    "mlm_score.bias": "masked_language_head.decoder.bias",
    "vision_transformer.visual.visual_mask_token": "visual_mask_token",
    _TEMPORAL: "temporal_embedding",
    "vision_transformer.visual.class_embedding": "vision.embeddings.class_embedding",
    "vision_transformer.visual.positional_embedding": "vision.embeddings.position_embedding.weight",
}
_BLOCK = "vision_transformer.visual.transformer.resblocks."
_BLOCK_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def from_authors(path: str | Path, config: GLSCLConfig | None = None) -> GLSCLModel:
    """Build a float32 model from a checkpoint whose tensors have the names of the authors' release.

    Reads files of `torch.save` and PyTorch-Lightning (`.ckpt`, `.pt`, `.bin`) and `.safetensors`.
    Without `config`, the sizes are inferred from the tensors, with 64-wide heads (4 heads in text
    and fusion below width 512). Raises ValueError if a tensor is missing, superfluous or of another
    shape, and for a file that is damaged or not a checkpoint.
    """
    with open_tensors(path) as stored:
        try:
            tensors = _used(stored)
            shapes = {}
            for name, tensor in tensors.items():
                shapes[name] = torch.empty(tensor.shape, device="meta")  # takes no memory
            sizes = config or _read_sizes(shapes)
            _refuse_misfits(shapes, sizes)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        model = GLSCLModel(sizes)
        state = model.state_dict()
        with torch.no_grad():
            state["visual_mask_token"].zero_()  # the authors' video encoder has none
            for name, tensor in tensors.items():
                values = tensor.read()
                if not values.isfinite().all():
                    raise ValueError(
                        f"{path}: {name} holds numbers that are not finite: its training had failed"
                    )
                for ours, part in our_names(name, values).items():
                    state[ours].copy_(part.reshape(state[ours].shape))
    if config is None:
        model.config.initial_temperature = model.temperature.item()
    return model.eval()


def our_names(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor of the authors under its name or names in this model.

    A joint query-key-value projection becomes three tensors. The result is empty for a name that
    the authors do not use.
    """
    if name in _EXACT:
        return {_EXACT[name]: tensor}
    if name.startswith(_BLOCK):
        number, _, part = name.removeprefix(_BLOCK).partition(".")
        layer = f"vision.encoder.layers.{number}."
        if part.startswith("attn.in_proj_") and tensor.dim() and len(tensor) % 3 == 0:
            kind = part.removeprefix("attn.in_proj_")
            rows = tensor.chunk(3)
            return {f"{layer}self_attn.{p}_proj.{kind}": rows[i] for i, p in enumerate("qkv")}
        module, _, kind = part.rpartition(".")
        if module in _BLOCK_PARTS:
            return {f"{layer}{_BLOCK_PARTS[module]}.{kind}": tensor}
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            return {ours + name.removeprefix(theirs): tensor}
    return {}


def _used(stored: Mapping[str, LazyTensor | None]) -> dict[str, LazyTensor]:
    """Return the tensors that a model needs, by their names without the prefixes of wrappers."""
    named: dict[str, LazyTensor] = {}
    unusable = []
    for stored_name, tensor in stored.items():
        wrappers = _WRAPPERS.match(stored_name)
        name = stored_name[wrappers.end() :] if wrappers else stored_name
        if _UNUSED.fullmatch(name):
            continue
        if tensor is None or name in named or not tensor.dtype.is_floating_point:
            unusable.append(stored_name)
        else:
            named[name] = tensor
    if unusable:
        raise ValueError(
            f"{_some(unusable)}: not ordinary tensors of floating-point numbers, or there twice"
        )
    for head, task in _FINE_TUNED.items():
        if any(name.startswith(head) for name in named):
            raise ValueError(
                f"it was fine-tuned for {task} ({head[:-1]}): only pre-training checkpoints, "
                "with all heads of pre-training and no other, can be converted"
            )
    return named


def _refuse_misfits(shapes: Mapping[str, Tensor], config: GLSCLConfig) -> None:
    """Raise ValueError unless the tensors fit a model of this configuration."""
    try:
        with torch.device("meta"):  # shapes only, because a damaged file may name any size
            state = GLSCLModel(config).state_dict()
    except (TypeError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"its sizes make no model: {error}") from error
    expected = {name: tensor.shape for name, tensor in state.items()}
    unknown, misshapen = [], []
    placed: set[str] = set()
    for name, theirs in shapes.items():
        renamed = our_names(name, theirs)
        if not renamed:
            unknown.append(name)
        for ours, part in renamed.items():
            if ours not in expected or ours in placed:
                unknown.append(name)
            # Axes of length 1 do not count: the authors' temperature is a scalar, their mask token
            # a row, and their temporal table has a leading axis.
            elif [n for n in part.shape if n != 1] != [n for n in expected[ours] if n != 1]:
                misshapen.append(f"{name} {tuple(part.shape)} (expected {tuple(expected[ours])})")
            placed.add(ours)
    if _TEMPORAL in shapes:
        placed.add("visual_mask_token")
    if unknown:
        raise ValueError(f"{_some(unknown)} unknown: not a pre-training checkpoint of this model")
    if missing := sorted(expected.keys() - placed):
        raise ValueError(f"it lacks {_some(missing)} (by their names in this project)")
    if misshapen:
        raise ValueError(f"{_some(misshapen)} of another size than the model")


def _some(names: Iterable[str]) -> str:
    """Count tensors and name the first ones, for a message."""
    names = sorted(set(names))
    # ASCII only: a name from a hostile file could otherwise hold commands for the terminal.
    shown = [ascii(name[:120])[1:-1] for name in names[:3]]
    if len(names) > 3:
        shown.append("...")
    noun = "tensor" if len(names) == 1 else "tensors"
    return f"{len(names):,} {noun} ({', '.join(shown)})"


def _read_sizes(shapes: Mapping[str, Tensor]) -> GLSCLConfig:
    try:
        return _sizes(dict(shapes))
    except KeyError as error:
        raise ValueError(f"it lacks {error.args[0]}") from None
    except (IndexError, TypeError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"sizes cannot be inferred from its tensors: {error}") from error


def _sizes(tensors: dict[str, Tensor]) -> GLSCLConfig:
    def layers(prefix: str) -> int:
        of_prefix = [name for name in tensors if name.startswith(prefix)]
        numbers = {name.removeprefix(prefix).split(".")[0] for name in of_prefix}
        if len(numbers) > _MOST_LAYERS:
            raise ValueError(f"{prefix}N: {len(numbers):,} layers are more than any tower has")
        if numbers != {str(number) for number in range(len(numbers))} or not numbers:
            raise ValueError(f"{prefix}N: {len(numbers)} layers that are not numbered from 0")
        return len(numbers)

    conv = tensors["vision_transformer.visual.conv1.weight"]
    words = tensors["text_transformer.embeddings.word_embeddings.weight"]
    positions = tensors["text_transformer.embeddings.position_embeddings.weight"]
    temporal = tensors.get(_TEMPORAL)
    fusion = tensors["cross_modal_text_layers.0.intermediate.dense.weight"]
    patches = len(tensors["vision_transformer.visual.positional_embedding"]) - 1
    grid = math.isqrt(patches)
    if grid * grid != patches or not patches:
        raise ValueError(f"{patches} positions of patches do not form a square")
    heads = words.shape[1] // 64 if words.shape[1] >= 512 else 4
    return GLSCLConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=conv.shape[0],
            intermediate_size=len(tensors[_BLOCK + "0.mlp.c_fc.weight"]),
            num_hidden_layers=layers(_BLOCK),
            num_attention_heads=conv.shape[0] // 64,
            patch_size=conv.shape[-1],
            image_size=grid * conv.shape[-1],
        ),
        text_config=RobertaConfig(
            vocab_size=len(words),
            hidden_size=words.shape[1],
            num_hidden_layers=layers("text_transformer.encoder.layer."),
            num_attention_heads=heads,
            intermediate_size=len(
                tensors["text_transformer.encoder.layer.0.intermediate.dense.weight"]
            ),
            max_position_embeddings=len(positions),
            type_vocab_size=1,
            layer_norm_eps=1e-5,
        ),
        max_frames=0 if temporal is None else temporal.shape[-2],
        hidden_size=fusion.shape[1],
        fusion_layers=layers("cross_modal_text_layers."),
        fusion_heads=heads,
        fusion_intermediate_size=fusion.shape[0],
        projection_dim=len(tensors["language_proj.3.weight"]),
        # RoBERTa reserves two positions: numbering starts after that of padding.
        max_text_length=min(50, len(positions) - 2),
    )
