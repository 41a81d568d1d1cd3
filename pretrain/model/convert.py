"""Tensors under the authors' names -> this model; nothing stored in the file is executed."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPVisionConfig, RobertaConfig

from .configuration import GLSCLConfig
from .modeling import GLSCLModel

# Buffers that the authors' state dict holds and the model computes.
_IGNORED = ("text_transformer.embeddings.position_ids", "text_transformer.embeddings.token_type_ids")
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
    "vision_transformer.visual.temporal_embed": "temporal_embedding",
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
    """Build a float32 model from a safetensors file whose tensors carry the names of the authors' release.

    Without `config` the sizes are read off the tensors, with 64-wide vision heads and 4 heads (12 at width 768)
    elsewhere. Raises ValueError when a tensor is missing, superfluous or of another shape.
    """
    tensors = load_file(str(path))
    model = GLSCLModel(config or _sizes(tensors))
    expected = model.state_dict()
    state: dict[str, Tensor] = {}
    for theirs in tensors.keys() - set(_IGNORED):
        for name, tensor in our_names(theirs, tensors[theirs].float()).items():
            if name not in expected or tensor.numel() != expected[name].numel():
                raise ValueError(f"{path}: {theirs} {tuple(tensors[theirs].shape)} has no place in this model")
            # The authors' temperature is a scalar, their mask token a row, their temporal table has a leading axis.
            state[name] = tensor.reshape(expected[name].shape)
    if model.temporal_embedding is not None:  # their video model has no mask token
        state.setdefault("visual_mask_token", torch.zeros_like(expected["visual_mask_token"]))
    if missing := sorted(expected.keys() - state.keys()):
        raise ValueError(f"{path} lacks {len(missing)} tensors, the first is {missing[0]}")
    model.load_state_dict(state)
    return model.eval()


def our_names(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """One of the authors' tensors under this model's names (three of them for a joint query-key-value projection)."""
    if name in _EXACT:
        return {_EXACT[name]: tensor}
    if name.startswith(_BLOCK):
        number, part = name.removeprefix(_BLOCK).split(".", 1)
        layer = f"vision.encoder.layers.{number}."
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            rows = tensor.chunk(3)
            return {f"{layer}self_attn.{p}_proj.{kind}": rows[i] for i, p in enumerate("qkv")}
        module, kind = part.rsplit(".", 1)
        return {f"{layer}{_BLOCK_PARTS[module]}.{kind}": tensor}
    for theirs, ours in _PREFIXES.items():
        if name.startswith(theirs):
            return {ours + name.removeprefix(theirs): tensor}
    return {name: tensor}


def _sizes(tensors: dict[str, Tensor]) -> GLSCLConfig:
    def layers(prefix: str) -> int:
        return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix))

    conv = tensors["vision_transformer.visual.conv1.weight"]
    words = tensors["text_transformer.embeddings.word_embeddings.weight"]
    positions = tensors["text_transformer.embeddings.position_embeddings.weight"]
    temporal = tensors.get("vision_transformer.visual.temporal_embed")
    fusion = tensors["cross_modal_text_layers.0.intermediate.dense.weight"]
    grid = int((len(tensors["vision_transformer.visual.positional_embedding"]) - 1) ** 0.5)
    heads = 12 if words.shape[1] == 768 else 4
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
            intermediate_size=len(tensors["text_transformer.encoder.layer.0.intermediate.dense.weight"]),
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
        initial_temperature=float(tensors["cl_temp"]),
    )
