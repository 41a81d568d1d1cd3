"""The model a run starts from: random weights of the configured sizes, towers of published folders, or another model's.

Image towers: CLIP and SigLIP (SigLIP 2 of a fixed resolution too), from a folder of the tower or of
the whole dual encoder; text towers: any bidirectional encoder of transformers, bare or with its
masked-language head.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from data_pipeline.errors import DataError, UsageError
from data_pipeline.text import Tokenizer

from .config import ModelConfig
from .model import GLSCLConfig, GLSCLModel
from .model.vision import resize_grid
from .run.checkpoint import model_folder

POSITIONS = "embeddings.position_embedding.weight"
_BLOCKS = "encoder.layers."
_CLASSIFIER = "classifier."
# What transformers raises for fields and folders that make no model.
_UNFIT = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, StrictDataclassError)


def model_config(
    config: ModelConfig, tokenizer: Tokenizer, max_text_length: int, frames: int = 0
) -> GLSCLConfig:
    """Sizes of the model of a run; `frames` is the length of its clips, 0 where it has none.

    Raises UsageError for unknown fields and sizes that do not fit together.
    """
    try:
        vision = _vision_config(config)
        text = _text_config(config, tokenizer)
        _check_text(text, config, tokenizer, max_text_length)
        _refuse_unknown("model.fusion", config.fusion, GLSCLConfig)
        sizes = {"max_frames": frames, **config.fusion, "max_text_length": max_text_length}
        found = GLSCLConfig(vision_config=vision, text_config=text, **sizes)
    except _UNFIT as error:
        raise UsageError(f"model: {' '.join(str(error).split())}") from None
    if found.max_frames < frames:
        raise UsageError(
            f"model.fusion.max_frames {found.max_frames} is too small for clips of {frames} frames"
        )
    return found


def build_model(
    config: ModelConfig, tokenizer: Tokenizer, max_text_length: int, frames: int = 0
) -> GLSCLModel:
    """Build the model of a run; random weights come from torch's global generator.

    Raises UsageError as `model_config` does, and for a tower that cannot be loaded.
    """
    sizes = model_config(config, tokenizer, max_text_length, frames)
    try:
        model = GLSCLModel(sizes)
        if config.vision_from:
            _load_vision(model, config.vision_from)
        if config.text_from:
            _load_text(model, config.text_from)
    except _UNFIT as error:
        raise UsageError(f"model: {' '.join(str(error).split())}") from None
    return model


def adapt_model(
    source: str | Path,
    tokenizer: Tokenizer,
    *,
    image_size: int | None = None,
    max_text_length: int,
    frames: int = 0,
    labels: Sequence[str] = (),
    images: int = 1,
) -> GLSCLModel:
    """Make a GLSCL model for other pictures, clips or labels, with the weights of the one that `source` names.

    `source` is a run, checkpoint or model folder. `image_size` is a side in pixels (None: as it
    is); temporal embeddings become as many as `frames` (0: as they are), labels as many as are
    given. A classifier of the same labels and images is kept, another one starts from random
    weights of torch's global generator. Raises UsageError for sizes that do not fit together and
    for another tokenizer than the model's, DataError for a model that cannot be read.
    """
    folder = model_folder(source)
    try:
        stored = GLSCLConfig.from_pretrained(folder)
        values = stored.to_dict() | {"classifier_labels": list(labels), "classifier_images": images}
        values["max_frames"] = frames or stored.max_frames
        values["max_text_length"] = max_text_length
        values["vision_config"]["image_size"] = image_size or stored.image_size
        config = GLSCLConfig.from_dict(values)
        model = GLSCLModel(config)
        weights = load_file(folder / "model.safetensors")
    except _UNFIT as error:
        raise UsageError(f"{source}: {' '.join(str(error).split())}") from None
    except SafetensorError as error:
        raise DataError(f"{source}: {error}") from None
    _check_positions(config.text_config, max_text_length)
    beside = (folder / "tokenizer.json").is_file()
    if (
        not Tokenizer.load(folder).has_vocabulary_of(tokenizer)
        if beside
        else _is_foreign(tokenizer, config)
    ):
        raise UsageError(
            f"data.tokenizer is not the one that {source} was trained with: name {folder}"
        )
    if (list(stored.classifier_labels), stored.classifier_images) != (list(labels), images):
        weights = {
            name: tensor for name, tensor in weights.items() if not name.startswith(_CLASSIFIER)
        }
    load_weights(model, weights)
    return model


def load_weights(model: GLSCLModel, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of a GLSCL model that may have been made for other pictures, clips or labels.

    Positions of another image size are resized as the towers' are, a temporal table of another
    length is interpolated linearly, its first and last row staying first and last. A table that
    only one side has is left as it is, or out, and so is a classifier. A second picture's token
    type starts as the first one's. Raises UsageError for weights that do not fit otherwise.
    """
    weights, own = dict(weights), model.state_dict()
    name = f"vision.{POSITIONS}"
    if name in weights:
        weights[name] = _resized(weights[name], len(own[name]))
    name = "temporal_embedding"
    if name not in own:
        weights.pop(name, None)
    elif name not in weights:
        weights[name] = own[name]
    elif len(weights[name]) != len(own[name]):
        rows = weights[name].float().T[None]
        weights[name] = F.interpolate(rows, size=len(own[name]), mode="linear", align_corners=True)[
            0
        ].T
    name = "token_type.weight"
    if name in weights:
        types = torch.cat([weights[name], weights[name][-1:]])
        weights[name] = types[: len(own[name])]
    if not any(name.startswith(_CLASSIFIER) for name in weights):
        weights |= {name: tensor for name, tensor in own.items() if name.startswith(_CLASSIFIER)}
    elif model.classifier is None:
        weights = {
            name: tensor for name, tensor in weights.items() if not name.startswith(_CLASSIFIER)
        }
    misfits = sorted(
        name for name in own.keys() | weights.keys() if _shape(weights, name) != _shape(own, name)
    )
    if misfits:
        first = misfits[0]
        raise UsageError(
            f"these weights are of another model: {len(misfits)} tensors do not fit, the first is {first} "
            f"({_shape(weights, first)} instead of {_shape(own, first)})"
        )
    model.load_state_dict(weights)


def _is_foreign(tokenizer: Tokenizer, config: GLSCLConfig) -> bool:
    text = config.text_config
    return (tokenizer.vocab_size, tokenizer.pad_id) != (text.vocab_size, text.pad_token_id)


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


def _vision_config(config: ModelConfig) -> PreTrainedConfig:
    if not config.vision_from:
        kind = _config_class("model.vision", config.vision.get("model_type", "clip_vision_model"))
        _refuse_unknown("model.vision", config.vision, kind)
        return kind(**_without_type(config.vision))
    stored = AutoConfig.from_pretrained(config.vision_from)
    return _overridden("model.vision", getattr(stored, "vision_config", stored), config.vision)


def _text_config(config: ModelConfig, tokenizer: Tokenizer) -> PreTrainedConfig:
    if config.text_from:
        return _overridden("model.text", AutoConfig.from_pretrained(config.text_from), config.text)
    kind = _config_class("model.text", config.text.get("model_type", "roberta"))
    _refuse_unknown("model.text", config.text, kind)
    of_tokenizer = {
        "type_vocab_size": 1,
        "vocab_size": tokenizer.vocab_size,
        "bos_token_id": tokenizer.cls_id,
        "cls_token_id": tokenizer.cls_id,
        "pad_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.sep_id,
        "sep_token_id": tokenizer.sep_id,
    }
    known = kind().to_dict().keys()
    return kind(
        **{key: value for key, value in of_tokenizer.items() if key in known}
        | _without_type(config.text)
    )


def _check_text(text: Any, config: ModelConfig, tokenizer: Tokenizer, max_text_length: int) -> None:
    if text.vocab_size < tokenizer.vocab_size:
        raise UsageError(
            f"model.text knows {text.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}"
        )
    _check_positions(text, max_text_length)
    if config.text_from and text.pad_token_id != tokenizer.pad_id:
        raise UsageError(
            f"{config.text_from} has other tokens than the tokenizer: give its own as data.tokenizer"
        )


def _check_positions(text: Any, max_text_length: int) -> None:
    # RoBERTa counts positions from behind its padding id.
    extra = (
        text.pad_token_id + 1
        if "roberta" in text.model_type or text.model_type == "camembert"
        else 0
    )
    positions = getattr(text, "max_position_embeddings", None)
    if positions and positions < max_text_length + extra:
        raise UsageError(
            f"model.text.max_position_embeddings {positions} is too small for texts of {max_text_length} tokens"
            + (f": RoBERTa needs {extra} more" if extra else "")
        )


def _load_vision(model: GLSCLModel, source: str) -> None:
    """Weights of a published tower, its positions resized to this picture size, blocks past this depth left out."""
    tower = _from_folder(type(model.vision), source)
    depth: int = model.config.vision_config.num_hidden_layers
    if depth > tower.config.num_hidden_layers:
        raise UsageError(
            f"{source} has {tower.config.num_hidden_layers} blocks, model.vision asks for {depth}"
        )
    weights = {
        name: tensor
        for name, tensor in tower.state_dict().items()
        if not name.startswith(_BLOCKS) or int(name.removeprefix(_BLOCKS).split(".")[0]) < depth
    }
    weights[POSITIONS] = _resized(weights[POSITIONS], len(model.vision.state_dict()[POSITIONS]))
    model.vision.load_state_dict(weights)


def _load_text(model: GLSCLModel, source: str) -> None:
    tower = _from_folder(type(model.text), source, config=model.config.text_config)
    model.text.load_state_dict(tower.state_dict())


def _from_folder(kind: Any, source: str, **options: Any) -> Any:
    """Tower of a folder or hub name; only safetensors are read, because other weight files execute what they hold."""
    tower, found = kind.from_pretrained(
        source, use_safetensors=True, output_loading_info=True, **options
    )
    # Poolers are not used; a masked-language model was saved without one.
    if missing := sorted(
        key for key in found["missing_keys"] if not key.startswith(("pooler.", "head."))
    ):
        raise UsageError(
            f"{source} lacks {len(missing)} weights of a {kind.__name__}, the first is {missing[0]}"
        )
    return tower


def _resized(positions: Tensor, rows: int) -> Tensor:
    """Position table of a square grid, with or without a row for the class token, resized to `rows`."""
    side = int(rows**0.5)
    extra = rows - side**2
    if len(positions) == rows:
        return positions
    return torch.cat([positions[:extra], resize_grid(positions[extra:], side, side)])


def _overridden(name: str, stored: PreTrainedConfig, values: dict[str, Any]) -> PreTrainedConfig:
    if values.get("model_type", stored.model_type) != stored.model_type:
        raise UsageError(
            f"{name}.model_type is {values['model_type']}, the folder holds a {stored.model_type}"
        )
    _refuse_unknown(name, values, type(stored))
    # A folder of half precision would otherwise make a tower of half precision.
    return type(stored)(**stored.to_dict() | {"dtype": "float32"} | _without_type(values))


def _config_class(name: str, model_type: str) -> type[PreTrainedConfig]:
    if model_type not in CONFIG_MAPPING:
        raise UsageError(f"{name}.model_type: transformers knows no {model_type!r}")
    return CONFIG_MAPPING[model_type]


def _without_type(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "model_type"}


def _refuse_unknown(name: str, values: dict[str, Any], kind: type[PreTrainedConfig]) -> None:
    known = kind().to_dict().keys()
    for key in values.keys() - known:
        close = difflib.get_close_matches(key, known, n=1)
        raise UsageError(
            f"unknown key {name}.{key}" + (f"; did you mean {name}.{close[0]}?" if close else "")
        )
