"""Part pooling for re-identification: what the whole picture shows, and each band of patch rows from top to bottom.

In: tokens of one block. Out: global and part features as one descriptor, in which each weighs the
same. Source: bands as in PCB (arXiv 1711.09349).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.errors import UsageError

from .atrous import on_grid
from .gdfl import Embedded


def part_features(tokens: Tensor, grid: tuple[int, int], parts: int) -> Tensor:
    """Return the class token and the mean patch of each of ``parts`` bands, (batch, 1 + parts, width).

    Bands differ by at most one row where they do not divide the grid; neighbours then share it
    (adaptive pooling). Raises UsageError where there are more bands than rows, or none.
    """
    refuse_parts(parts, grid[0])
    bands = F.adaptive_avg_pool2d(on_grid(tokens, grid), (parts, 1))
    return torch.cat([tokens[:, :1], bands.flatten(2).transpose(1, 2)], dim=1)


def refuse_parts(parts: int, rows: int) -> None:
    """Raise UsageError where ``rows`` of patches cannot be divided into so many bands."""
    if not 1 <= parts <= rows:
        raise UsageError(
            f"{rows} rows of patches cannot be divided into {parts} parts: choose 1 to {rows}"
        )


def part_descriptor(tokens: Tensor, grid: tuple[int, int], parts: int) -> Tensor:
    """Join global and part features without learning: (batch, (1 + parts) * width), of length one.

    The cosine of two descriptors is the mean of the cosines of their features.
    """
    features = F.normalize(part_features(tokens.float(), grid, parts), dim=2)
    return features.flatten(1) / (1 + parts) ** 0.5


class PartHead(nn.Module):
    """Learn a projection of the global and of each part feature, and join them as `part_descriptor` does.

    Parameters
    ----------
    dim
        Width of the tower's tokens.
    layer
        Block that is read, 1 is the first.
    parts
        Bands of patch rows.
    each
        Size of a projected feature; the descriptor is ``1 + parts`` times as long.
    """

    def __init__(self, dim: int, layer: int, parts: int = 3, each: int = 128) -> None:
        super().__init__()
        self.layers: tuple[int, ...] = (layer,)
        self.parts = parts
        self.normalize = nn.LayerNorm(dim)
        self.projections = nn.ModuleList(nn.Linear(dim, each) for _ in range(1 + parts))

    def forward(self, layers: Mapping[int, Tensor], grid: tuple[int, int]) -> Embedded:
        """Tokens of the block (batch, 1 + rows * columns, dim) to descriptors (batch, (1 + parts) * each)."""
        features = self.normalize(part_features(layers[self.layers[0]], grid, self.parts)).unbind(1)
        projected = [
            project(feature) for project, feature in zip(self.projections, features, strict=True)
        ]
        unit = tuple(F.normalize(feature, dim=1) for feature in projected)
        joined = torch.cat(unit, dim=1) / (1 + self.parts) ** 0.5
        return Embedded(joined, joined, per_layer=unit)
