"""Image tower: transformers' CLIP vision transformer on all patches, on a subset of them, or with mask tokens.

Pixels go in, post-normalised tokens come out (GLSCL normalises every token there, CLIP the first only).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPVisionModel


def embed_patches(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Linear patch embeddings without positions: (batch, 3, height, width) -> (batch, patches, width)."""
    embeddings = tower.embeddings
    if pixels.shape[-2:] != (embeddings.image_size, embeddings.image_size):
        height, width = pixels.shape[-2:]
        raise ValueError(f"the image tower takes {embeddings.image_size} pixels a side, these are {height} x {width}")
    return embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)


def encode_patches(tower: CLIPVisionModel, patches: Tensor, keep_patches: Tensor | None = None) -> Tensor:
    """Encode patch embeddings: (batch, patches, width) -> (batch, 1 + kept, width), class token first.

    `keep_patches` (batch, kept) names the patches that stay; the others are dropped after positions are added.
    """
    embeddings = tower.embeddings
    positions = embeddings.position_embedding.weight
    tokens = patches + positions[1:]
    if keep_patches is not None:
        tokens = tokens.gather(1, keep_patches[..., None].expand(-1, -1, tokens.shape[-1]))
    first = (embeddings.class_embedding + positions[0]).expand(len(tokens), 1, -1)
    hidden = tower.pre_layrnorm(torch.cat([first.to(tokens.dtype), tokens], dim=1))
    hidden = tower.encoder(inputs_embeds=hidden).last_hidden_state
    return tower.post_layernorm(hidden)
