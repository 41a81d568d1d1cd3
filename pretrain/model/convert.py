"""A checkpoint of the authors' release -> this model; nothing stored in the file is executed.

Every tensor of a pre-training checkpoint finds its place, is on the list of dead ones, or is
refused by name; names and shapes are settled before the first weight is read.
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

# What wrappers put before every name: DistributedDataParallel, a LightningModule that holds the
# model, torch.compile.
_WRAPPERS = re.compile(r"((module|model|_orig_mod)\.)+")
# What the authors' checkpoints hold and no computation of theirs uses: buffers that the model
# computes itself, the MAE decoder (8 blocks, 26 M parameters, which no loss reaches), and the
# running metrics of each task.
_DEAD = re.compile(
    r"text_transformer\.embeddings\.(position_ids|token_type_ids)"
    r"|vision_transformer\.(mask_token|decoder_(embed|pos_embed|blocks|norm|pred)\b.*)"
    r"|(train|val|dev|test)_[a-z0-9]+_(accuracy|score|loss|wpa_loss)\..*"
)
# Heads that only checkpoints of a fine-tuning have.
_FINE_TUNED = {"vqa_classifier.": "VQA", "nlvr2_classifier.": "NLVR2", "rank_output.": "retrieval"}
_TEMPORAL = (
    "vision_transformer.visual.temporal_embed"  # says that it is the video encoder of the release
)
_MOST_LAYERS = 128  # or names alone would make a model of any size
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
    """Build a float32 model of a checkpoint whose tensors carry the names of the authors' release.

    Takes what `torch.save` or PyTorch-Lightning wrote (`.ckpt`, `.pt`, `.bin`) and `.safetensors`.
    Without `config` the sizes are read off the tensors, with 64-wide heads (4 heads in text and
    fusion below width 512). Raises ValueError when a tensor is missing, superfluous or of another
    shape, and for a file that is damaged or no checkpoint.
    """
    with open_tensors(path) as stored:
        try:
            tensors = _living(stored)
            shapes = {
                name: torch.empty(tensor.shape, device="meta") for name, tensor in tensors.items()
            }
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
                        f"{path}: {name} holds numbers that are not finite: the training had failed"
                    )
                for ours, part in our_names(name, values).items():
                    state[ours].copy_(part.reshape(state[ours].shape))
    if config is None:
        model.config.initial_temperature = model.temperature.item()
    return model.eval()


def our_names(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One of the authors' tensors under this model's names: three for a joint query-key-value projection.

    None for a name that the authors do not use.
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


def _living(stored: Mapping[str, LazyTensor | None]) -> dict[str, LazyTensor]:
    """Tensors that a model needs, without what wrappers put before their names."""
    named: dict[str, LazyTensor] = {}
    unusable = []
    for stored_name, tensor in stored.items():
        name = (
            stored_name[match.end() :] if (match := _WRAPPERS.match(stored_name)) else stored_name
        )
        if _DEAD.fullmatch(name):
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
                f"it was fine-tuned for {task} ({head[:-1]}): only pre-training checkpoints can be converted, "
                "which have all heads of pre-training and no other"
            )
    return named


def _refuse_misfits(shapes: Mapping[str, Tensor], config: GLSCLConfig) -> None:
    """Raise ValueError unless the tensors are those of a model with this configuration, which is not built."""
    try:
        with torch.device("meta"):
            expected = {
                name: tensor.shape for name, tensor in GLSCLModel(config).state_dict().items()
            }
    except (TypeError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"its sizes make no model: {error}") from error
    unknown, misshapen = [], []
    placed: set[str] = set()
    for name, theirs in shapes.items():
        places = our_names(name, theirs)
        if not places:
            unknown.append(name)
        for ours, part in places.items():
            if ours not in expected or ours in placed:
                unknown.append(name)
            # The authors' temperature is a scalar, their mask token a row, their temporal table has
            # a leading axis.
            elif [n for n in part.shape if n != 1] != [n for n in expected[ours] if n != 1]:
                misshapen.append(f"{name} {tuple(part.shape)} (expected {tuple(expected[ours])})")
            placed.add(ours)
    if _TEMPORAL in shapes:
        placed.add("visual_mask_token")
    if unknown:
        raise ValueError(f"{_some(unknown)} unknown: not a pre-training checkpoint of this model")
    if missing := sorted(expected.keys() - placed):
        raise ValueError(f"it lacks {_some(missing)} (the names that they have in this project)")
    if misshapen:
        raise ValueError(f"{_some(misshapen)} of another size than the model")


def _some(names: Iterable[str]) -> str:
    """Count them and name the first ones, as text that no terminal takes for a command."""
    names = sorted(set(names))
    shown = ", ".join(ascii(name[:120])[1:-1] for name in names[:3])
    return f"{len(names):,} tensor{'s' * (len(names) > 1)} ({shown}{', ...' * (len(names) > 3)})"


def _read_sizes(shapes: Mapping[str, Tensor]) -> GLSCLConfig:
    try:
        return _sizes(dict(shapes))
    except KeyError as error:
        raise ValueError(f"it lacks {error.args[0]}") from None
    except (IndexError, TypeError, ZeroDivisionError, RuntimeError) as error:
        raise ValueError(f"sizes cannot be read off its tensors: {error}") from error


def _sizes(tensors: dict[str, Tensor]) -> GLSCLConfig:
    def layers(prefix: str) -> int:
        numbers = {
            name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)
        }
        if len(numbers) > _MOST_LAYERS:
            raise ValueError(f"{prefix}N: {len(numbers):,} layers are more than any tower has")
        if numbers != {str(number) for number in range(len(numbers))} or not numbers:
            raise ValueError(f"{prefix}N: {len(numbers)} layers, which are not numbered from 0 on")
        return len(numbers)

    conv = tensors["vision_transformer.visual.conv1.weight"]
    words = tensors["text_transformer.embeddings.word_embeddings.weight"]
    positions = tensors["text_transformer.embeddings.position_embeddings.weight"]
    temporal = tensors.get(_TEMPORAL)
    fusion = tensors["cross_modal_text_layers.0.intermediate.dense.weight"]
    patches = len(tensors["vision_transformer.visual.positional_embedding"]) - 1
    grid = math.isqrt(patches)
    if grid * grid != patches or not patches:
        raise ValueError(f"{patches} positions of patches are no square")
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
        max_text_length=min(
            50, len(positions) - 2
        ),  # RoBERTa's positions begin after that of padding
    )
