"""Build the model that a run starts from.

In: configured sizes and a tokenizer, folders of published towers, or another model. Out: a
`GLSCLModel` with random weights, the weights of the towers, or those of the other model. Image
towers are CLIP and SigLIP (including SigLIP 2 of a fixed resolution), from a folder of the tower or
of the whole dual encoder; text towers are any bidirectional encoder of transformers, with or
without its masked-language head.
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
# Errors of transformers for fields and folders that do not make a model.
_UNFIT = (ValueError, TypeError, OSError, RuntimeError, ArithmeticError, StrictDataclassError)


def model_config(
    config: ModelConfig, tokenizer: Tokenizer, max_text_length: int, frames: int = 0
) -> GLSCLConfig:
    """Return the sizes of a run's model; `frames` is the length of its videos, 0 without videos.

    Raises UsageError for unknown fields and sizes that do not fit together.
    """
    try:
        vision = _vision_config(config)
        text = _text_config(config, tokenizer)
        _check_text(text, config, tokenizer, max_text_length)
        _refuse_unknown("model.fusion", config.fusion, GLSCLConfig)
        sizes = {"max_frames": frames, **config.fusion, "max_text_length": max_text_length}
        built = GLSCLConfig(vision_config=vision, text_config=text, **sizes)
    except _UNFIT as error:
        raise UsageError(f"model: {' '.join(str(error).split())}") from None
    if built.max_frames < frames:
        raise UsageError(
            f"model.fusion.max_frames {built.max_frames} is too small for videos of {frames} frames"
        )
    return built


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
    """Adapt a trained model to another image size, video length or set of labels.

    `source` is a run, checkpoint or model folder. `image_size` is a side in pixels (None: as it is)
    and `frames` the number of temporal embeddings (0: as it is). A classifier of the same labels
    and number of images keeps its weights; otherwise it starts from random weights, which come from
    torch's global generator. Raises UsageError for sizes that do not fit together and for a
    tokenizer other than the model's, DataError for a model that cannot be read.
    """
    folder = model_folder(source)
    try:
        stored = GLSCLConfig.from_pretrained(folder)
        values = stored.to_dict() | {"classifier_labels": list(labels), "classifier_images": images}
        values["max_frames"] = frames or stored.max_frames
        values["max_text_length"] = max_text_length
        # Positions of the new size are interpolated in `load_weights`.
        values["vision_config"]["image_size"] = image_size or stored.image_size
        config = GLSCLConfig.from_dict(values)
        model = GLSCLModel(config)
        weights = load_file(folder / "model.safetensors")
    except _UNFIT as error:
        raise UsageError(f"{source}: {' '.join(str(error).split())}") from None
    except SafetensorError as error:
        raise DataError(f"{source}: {error}") from None
    _check_positions(config.text_config, max_text_length)
    if (folder / "tokenizer.json").is_file():
        same_tokenizer = Tokenizer.load(folder).has_vocabulary_of(tokenizer)
    else:  # only the sizes can be compared
        text = config.text_config
        sizes = (text.vocab_size, text.pad_token_id)
        same_tokenizer = (tokenizer.vocab_size, tokenizer.pad_id) == sizes
    if not same_tokenizer:
        raise UsageError(
            f"data.tokenizer is not the one that {source} was trained with: name {folder}"
        )
    if (list(stored.classifier_labels), stored.classifier_images) != (list(labels), images):
        weights = _without_classifier(weights)
    load_weights(model, weights)
    return model


def load_weights(model: GLSCLModel, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights of a GLSCL model, which may have another image size, video length or labels.

    Positions of another image size are resized like those of towers. A temporal table of another
    length is interpolated linearly, so that its first and last row stay first and last. A temporal
    table or a classifier that only `model` has stays unchanged; one that only `weights` has is
    dropped. The token type of a second image starts as that of the first. Raises UsageError for
    weights that do not fit otherwise.
    """
    weights, target = dict(weights), model.state_dict()
    name = f"vision.{POSITIONS}"
    if name in weights:
        weights[name] = _resized(weights[name], len(target[name]))
    name = "temporal_embedding"
    if name not in target:
        weights.pop(name, None)
    elif name not in weights:
        weights[name] = target[name]
    elif len(weights[name]) != len(target[name]):
        rows = weights[name].float().T[None]
        frames = len(target[name])
        resized = F.interpolate(rows, size=frames, mode="linear", align_corners=True)
        weights[name] = resized[0].T
    name = "token_type.weight"
    if name in weights:
        # A second image starts with the type of the first: a copy, which is cut off if the model
        # takes one image, or if the weights have a row of their own for the second one.
        types = torch.cat([weights[name], weights[name][-1:]])
        weights[name] = types[: len(target[name])]
    if not any(name.startswith(_CLASSIFIER) for name in weights):
        for name, tensor in target.items():
            if name.startswith(_CLASSIFIER):
                weights[name] = tensor
    elif model.classifier is None:
        weights = _without_classifier(weights)
    misfits = []
    for name in sorted(target.keys() | weights.keys()):
        if _shape(weights, name) != _shape(target, name):
            misfits.append(name)
    if misfits:
        first = misfits[0]
        raise UsageError(
            f"these weights are of another model: {len(misfits)} tensors do not fit, "
            f"the first is {first} ({_shape(weights, first)} instead of {_shape(target, first)})"
        )
    # Strict: all names and shapes agree by now.
    model.load_state_dict(weights)


def _without_classifier(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = [name for name in weights if not name.startswith(_CLASSIFIER)]
    return {name: weights[name] for name in names}


def _shape(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(weights[name].shape) if name in weights else None


def _vision_config(config: ModelConfig) -> PreTrainedConfig:
    if not config.vision_from:
        kind = _config_class("model.vision", config.vision.get("model_type", "clip_vision_model"))
        _refuse_unknown("model.vision", config.vision, kind)
        return kind(**_without_type(config.vision))
    # A dual encoder has the configuration of its image tower inside.
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
    fields = kind().to_dict().keys()
    # Text encoders differ in which of these fields they have.
    defaults = {key: value for key, value in of_tokenizer.items() if key in fields}
    return kind(**defaults | _without_type(config.text))


def _check_text(text: Any, config: ModelConfig, tokenizer: Tokenizer, max_text_length: int) -> None:
    if text.vocab_size < tokenizer.vocab_size:
        raise UsageError(
            f"model.text has {text.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}"
        )
    _check_positions(text, max_text_length)
    # The padding id stands for all ids: a vocabulary of the same family has the same one.
    if config.text_from and text.pad_token_id != tokenizer.pad_id:
        raise UsageError(
            f"{config.text_from} has other tokens than the tokenizer: "
            "give its own tokenizer as data.tokenizer"
        )


def _check_positions(text: Any, max_text_length: int) -> None:
    # RoBERTa numbers positions from one past its padding id.
    is_roberta = "roberta" in text.model_type or text.model_type == "camembert"
    extra = text.pad_token_id + 1 if is_roberta else 0
    positions = getattr(text, "max_position_embeddings", None)
    if positions and positions < max_text_length + extra:
        hint = f": RoBERTa needs {extra} more" if extra else ""
        raise UsageError(
            f"model.text.max_position_embeddings {positions} is too small for texts of "
            f"{max_text_length} tokens{hint}"
        )


def _load_vision(model: GLSCLModel, source: str) -> None:
    """Load a published tower: positions are resized, and blocks past the model's depth dropped."""
    tower = _from_folder(type(model.vision), source)
    depth: int = model.config.vision_config.num_hidden_layers
    if depth > tower.config.num_hidden_layers:
        raise UsageError(
            f"{source} has {tower.config.num_hidden_layers} blocks, model.vision asks for {depth}"
        )
    weights = {}
    for name, tensor in tower.state_dict().items():
        # The published model, for example, keeps 11 of CLIP's 12 blocks.
        is_block = name.startswith(_BLOCKS)
        if not is_block or int(name.removeprefix(_BLOCKS).split(".")[0]) < depth:
            weights[name] = tensor
    weights[POSITIONS] = _resized(weights[POSITIONS], len(model.vision.state_dict()[POSITIONS]))
    model.vision.load_state_dict(weights)


def _load_text(model: GLSCLModel, source: str) -> None:
    tower = _from_folder(type(model.text), source, config=model.config.text_config)
    model.text.load_state_dict(tower.state_dict())


def _from_folder(kind: Any, source: str, **options: Any) -> Any:
    """Load a tower from a folder or by its hub name."""
    # Only safetensors, because other weight files can execute code.
    tower, loading = kind.from_pretrained(
        source, use_safetensors=True, output_loading_info=True, **options
    )
    # A masked-language model has no pooler, and the model does not use one.
    missing = [key for key in loading["missing_keys"] if not key.startswith(("pooler.", "head."))]
    if missing:
        raise UsageError(
            f"{source} lacks {len(missing)} weights of a {kind.__name__}, "
            f"the first is {min(missing)}"
        )
    return tower


def _resized(positions: Tensor, rows: int) -> Tensor:
    """Resize a position table of a square grid, with or without a row for the class token."""
    side = int(rows**0.5)
    # 1 for the class token of CLIP, 0 for SigLIP.
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
    # Without the type, a folder in half precision would make a tower in half precision.
    return type(stored)(**stored.to_dict() | {"dtype": "float32"} | _without_type(values))


def _config_class(name: str, model_type: str) -> type[PreTrainedConfig]:
    if model_type not in CONFIG_MAPPING:
        raise UsageError(f"{name}.model_type: transformers has no model type {model_type!r}")
    return CONFIG_MAPPING[model_type]


def _without_type(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "model_type"}


def _refuse_unknown(name: str, values: dict[str, Any], kind: type[PreTrainedConfig]) -> None:
    fields = kind().to_dict().keys()
    for key in sorted(values.keys() - fields):
        close = difflib.get_close_matches(key, fields, n=1)
        hint = f"; did you mean {name}.{close[0]}?" if close else ""
        raise UsageError(f"unknown key {name}.{key}{hint}")
