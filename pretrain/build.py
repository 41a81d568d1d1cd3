"""The model a run starts from: random weights of the configured sizes, or towers of CLIP and RoBERTa folders."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedConfig, RobertaConfig, RobertaModel

from data_pipeline.errors import UsageError
from data_pipeline.text import Tokenizer

from .config import ModelConfig
from .model import GLSCLConfig, GLSCLModel


def build_model(config: ModelConfig, tokenizer: Tokenizer, max_text_length: int) -> GLSCLModel:
    """Build the model of a run; random weights come from torch's global generator.

    Raises UsageError for unknown fields, sizes that do not fit together, or a tower that cannot be loaded.
    """
    for name, kind in (("vision", CLIPVisionConfig), ("text", RobertaConfig), ("fusion", GLSCLConfig)):
        _refuse_unknown(f"model.{name}", getattr(config, name), kind)
    try:
        if config.vision_from:
            vision = CLIPVisionConfig.from_pretrained(config.vision_from, **config.vision)
        else:
            vision = CLIPVisionConfig(**config.vision)
        if config.text_from:
            text = RobertaConfig.from_pretrained(config.text_from, **config.text)
        else:
            of_tokenizer = {
                "type_vocab_size": 1,
                "vocab_size": tokenizer.vocab_size,
                "bos_token_id": tokenizer.cls_id,
                "pad_token_id": tokenizer.pad_id,
                "eos_token_id": tokenizer.sep_id,
            }
            text = RobertaConfig(**of_tokenizer | config.text)
        if vision.image_size % vision.patch_size:
            raise UsageError(f"model.vision: image_size {vision.image_size} is no multiple of {vision.patch_size}")
        if text.vocab_size < tokenizer.vocab_size:
            raise UsageError(f"model.text knows {text.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}")
        if text.max_position_embeddings < max_text_length + text.pad_token_id + 1:
            raise UsageError(
                f"model.text.max_position_embeddings {text.max_position_embeddings} is too small for texts of "
                f"{max_text_length} tokens: RoBERTa needs {text.pad_token_id + 1} more"
            )
        if config.text_from and text.pad_token_id != tokenizer.pad_id:
            raise UsageError(f"{config.text_from} has other tokens than the tokenizer: give its own as data.tokenizer")
        sizes = {**config.fusion, "max_text_length": max_text_length}
        model = GLSCLModel(GLSCLConfig(vision_config=vision, text_config=text, **sizes))
        if config.vision_from:
            model.vision.load_state_dict(_vision_weights(config.vision_from, vision))
        if config.text_from:
            model.text.load_state_dict(RobertaModel.from_pretrained(config.text_from, config=text).state_dict())
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        raise UsageError(f"model: {' '.join(str(error).split())}") from None
    return model


def _vision_weights(source: str, config: CLIPVisionConfig) -> dict[str, torch.Tensor]:
    """Weights of a CLIP tower, its positions resized to this picture size, blocks past this depth left out."""
    tower = CLIPVisionModel.from_pretrained(source)
    weights = tower.state_dict()
    if config.image_size != tower.config.image_size:
        patches = (config.image_size // config.patch_size) ** 2
        shape = torch.empty(1, patches + 1, config.hidden_size)
        resized = tower.embeddings.interpolate_pos_encoding(shape, config.image_size, config.image_size)
        weights["embeddings.position_embedding.weight"] = resized[0]
    blocks = "encoder.layers."
    return {
        name: tensor
        for name, tensor in weights.items()
        if not name.startswith(blocks) or int(name.removeprefix(blocks).split(".")[0]) < config.num_hidden_layers
    }


def _refuse_unknown(name: str, values: dict[str, Any], kind: type[PreTrainedConfig]) -> None:
    known = kind().to_dict().keys()
    for key in values.keys() - known:
        close = difflib.get_close_matches(key, known, n=1)
        raise UsageError(f"unknown key {name}.{key}" + (f"; did you mean {name}.{close[0]}?" if close else ""))
