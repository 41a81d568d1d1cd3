"""Image tower: the layers of transformers' CLIP or SigLIP over images and videos.

In: normalized pixels, with a choice of patches to keep. Out: post-normalized tokens. GLSCL applies
the last norm to every token, stock CLIP to the first one only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import FRAME_ATTENTION, implementation


@dataclass
class Patches:
    """Patch embeddings before masking, dropping and positions, which views of a sample share.

    `values` are (batch, patches, width) for images and (batch, frames, patches, width) for videos;
    `positions` (1 + patches, width) belong to this input's grid, with row 0 for the class token.
    """

    values: Tensor
    positions: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Patches:
        """Select samples."""
        return Patches(self.values[rows], self.positions)

    @staticmethod
    def cat(parts: Sequence[Patches]) -> Patches:
        """Join along the batch; all parts have the same grid."""
        return Patches(torch.cat([part.values for part in parts]), parts[0].positions)

    @property
    def frames(self) -> int | None:
        """Frames of a video; None for images."""
        return self.values.shape[1] if self.values.ndim == 4 else None


def embed_patches(tower: Any, pixels: Tensor, class_position: Tensor | None) -> Patches:
    """Cut floats (batch, [frames,] 3, height, width) into patches and embed them linearly.

    `class_position` (width,) is given for a tower without a class token. Positions are resized
    (bicubic) if the input's grid differs from the tower's. Raises ValueError for sides that are not
    multiples of the patch size.
    """
    embeddings = tower.embeddings
    height, width = pixels.shape[-2:]
    side = embeddings.patch_size
    if height % side or width % side:
        fitting = [max(1, length // side) * side for length in (height, width)]
        raise ValueError(
            f"images of {height} x {width} pixels cannot be cut into patches of {side} x {side}: "
            f"resize them, for instance to {fitting[0]} x {fitting[1]}"
        )
    # Frames are flattened into the batch: the convolution takes four axes.
    values = embeddings.patch_embedding(pixels.flatten(0, -4)).flatten(2).transpose(1, 2)
    positions = embeddings.position_embedding.weight
    if class_position is None:
        first, grid = positions[:1], positions[1:]
    else:
        first, grid = class_position[None], positions
    resized = resize_grid(grid, height // side, width // side)
    if class_position is not None or resized is not grid:
        positions = torch.cat([first, resized])
    return Patches(values.unflatten(0, pixels.shape[:-3]), positions)


def resize_grid(grid: Tensor, rows: int, columns: int) -> Tensor:
    """Resize positions (side * side, width) of a square grid to (rows * columns, width)."""
    side = round(len(grid) ** 0.5)
    if (rows, columns) == (side, side):
        return grid
    square = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if grid.dtype in (torch.bfloat16, torch.float16):  # a table is small, and halves are coarse
        square = square.float()
    resized = F.interpolate(square, size=(rows, columns), mode="bicubic", align_corners=False)
    return resized.permute(0, 2, 3, 1).reshape(rows * columns, -1).to(grid.dtype)


def encode_patches(
    tower: Any,
    patches: Patches,
    class_token: Tensor,
    temporal: Tensor | None,
    keep_patches: Tensor | None = None,
    need: Literal["all", "first"] = "all",
) -> Tensor:
    """Encode patches into tokens (batch, frames + frames * kept, width), class tokens first.

    `class_token` (width,) starts every frame; `temporal` (frames, width) is added to videos only.
    `keep_patches` (batch, kept) lists the patches to keep in every frame; the others are dropped
    after positions are added. With need "first", only class tokens are returned, and the last block
    computes only them.
    """
    # Positions are added before patches are dropped, so that each patch keeps its own.
    tokens = patches.values + patches.positions[1:]
    first = (class_token + patches.positions[0])[None]
    if patches.frames is not None:
        assert temporal is not None
        tokens, first = tokens + temporal[:, None], (first + temporal)[:, None]
    if keep_patches is not None:
        index = keep_patches[..., None]
        if patches.frames is not None:
            index = index[:, None]
        shape = (*tokens.shape[:-2], keep_patches.shape[1], tokens.shape[-1])
        tokens = tokens.gather(-2, index.expand(shape))
    hidden = torch.cat([first.expand(*tokens.shape[:-2], 1, -1).to(tokens.dtype), tokens], dim=-2)
    if patches.frames == 1:
        hidden = hidden[:, 0]  # attention over one frame is that of an image, in one call
    if hidden.ndim == 4 and tower.config._attn_implementation != FRAME_ATTENTION:
        raise ValueError(
            f"videos need the attention {FRAME_ATTENTION!r} that the model sets up for sdpa, "
            f"not {tower.config._attn_implementation!r}"
        )
    hidden = _encode(tower, hidden, need)
    if hidden.ndim == 3:
        return hidden
    # Fusion and heads read the class tokens of all frames at the start.
    return torch.cat([hidden[:, :, 0], hidden[:, :, 1:].flatten(1, 2)], dim=1)


def _encode(tower: Any, hidden: Tensor, need: Literal["all", "first"]) -> Tensor:
    if hasattr(tower, "pre_layrnorm"):  # CLIP's own spelling; SigLIP has no such norm
        hidden = tower.pre_layrnorm(hidden)
    layers = tower.encoder.layers
    for layer in layers if need == "all" else layers[:-1]:
        hidden = layer(hidden, None)
    return tower.post_layernorm(hidden if need == "all" else _class_tokens(layers[-1], hidden))


def _class_tokens(layer: Any, hidden: Tensor) -> Tensor:
    """Compute the last block for the class tokens only, (batch, [frames,] 1, width)."""
    attention = layer.self_attn

    def heads(tensor: Tensor) -> Tensor:
        return tensor.flatten(1, -2).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    # Keys and values come from all tokens, queries only from the class tokens.
    normed = layer.layer_norm1(hidden)
    mixed, _ = implementation(attention)(
        attention,
        heads(attention.q_proj(normed[..., :1, :])),
        heads(attention.k_proj(normed)),
        heads(attention.v_proj(normed)),
        None,
        dropout=attention.dropout if attention.training else 0.0,
        scaling=attention.scale,
        is_causal=False,
    )
    first = hidden[..., :1, :]
    first = first + attention.out_proj(mixed.reshape(first.shape))
    return first + layer.mlp(layer.layer_norm2(first))
