"""Part pooling for re-identification: the whole image, and horizontal bands from top to bottom.

In: tokens of one block. Out: global and part features as one descriptor, in which each feature has
the same weight. Source: bands as in PCB (arXiv 1711.09349).
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
    """Return the class token and the mean patch of each band (batch, 1 + parts, width).

    If the number of bands does not divide the rows, neighbouring bands share a row (adaptive
    pooling). Raises UsageError if there are more bands than rows, or none.
    """
    refuse_parts(parts, grid[0])
    bands = F.adaptive_avg_pool2d(on_grid(tokens, grid), (parts, 1))
    return torch.cat([tokens[:, :1], bands.flatten(2).transpose(1, 2)], dim=1)


def refuse_parts(parts: int, rows: int) -> None:
    """Raise UsageError if ``rows`` of patches cannot be divided into ``parts`` bands."""
    if not 1 <= parts <= rows:
        raise UsageError(
            f"{rows} rows of patches cannot be divided into {parts} parts: choose 1 to {rows}"
        )


def part_descriptor(tokens: Tensor, grid: tuple[int, int], parts: int) -> Tensor:
    """Join global and part features without training: (batch, (1 + parts) * width), length one.

    The cosine of two descriptors is the mean of the cosines of their features.
    """
    features = F.normalize(part_features(tokens.float(), grid, parts), dim=2)
    return features.flatten(1) / (1 + parts) ** 0.5


class PartHead(nn.Module):
    """Learn a projection of each feature, and join them as `part_descriptor` does.

    Parameters
    ----------
    dim
        Width of the tower's tokens.
    layer
        Block that is read, counted from 1.
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
        """Map tokens (batch, 1 + patches, dim) to descriptors (batch, (1 + parts) * each)."""
        [layer] = self.layers
        features = self.normalize(part_features(layers[layer], grid, self.parts)).unbind(1)
        unit = []
        for project, feature in zip(self.projections, features, strict=True):
            unit.append(F.normalize(project(feature), dim=1))
        # Divided so that the joined descriptor has length one too.
        joined = torch.cat(unit, dim=1) / (1 + self.parts) ** 0.5
        return Embedded(joined, joined, per_layer=tuple(unit))
