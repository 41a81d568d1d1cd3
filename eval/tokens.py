"""Tokens of labelled pictures, encoded once and read by every method that recognises from few examples.

In: an encoder and a data set. Out: for every picture its class token, its patches (averaged to a coarser grid, because
tokens of all pictures are kept), its contrastive feature and the tokens of chosen layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class ImageTokens:
    """Encoded pictures, on the CPU, in the order of their data set.

    ``labels`` are the names of each picture's classes; ``media`` (sha256 of the file) is the same for copies. ``cls``
    (pictures, width) and ``patch`` (pictures, rows * columns, width) are the tower's last tokens on ``grid`` (rows,
    columns); ``proj`` (pictures, projection) are unit features of the contrastive space, None where the encoder has
    none; ``layers`` maps a block (1 is the first) to its tokens (pictures, 1 + rows * columns, width).
    """

    keys: list[str]
    labels: list[tuple[str, ...]]
    annotations: list[dict[str, Any]]
    media: list[str]
    cls: Tensor
    patch: Tensor
    proj: Tensor | None
    grid: tuple[int, int]
    layers: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if self.patch.shape[1] != rows * columns:
            raise ValueError(f"{self.patch.shape[1]} patches are no grid of {rows} x {columns}")

    def __len__(self) -> int:
        return len(self.keys)


def pool_patches(patch: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Average patches (..., rows * columns, width) over a grid of ``side`` x ``side`` cells, (..., side**2, width).

    Cells differ by at most one patch where the sides do not divide (adaptive average pooling).
    """
    flat = patch.reshape(-1, *grid, patch.shape[-1]).movedim(-1, 1)
    pooled = F.adaptive_avg_pool2d(flat.float(), side).flatten(2).transpose(1, 2)
    return pooled.reshape(*patch.shape[:-2], side * side, patch.shape[-1]).to(patch.dtype)
