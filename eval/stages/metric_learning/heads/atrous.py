"""Dilated convolutions on the grid of patches, at several distances and over the whole image.

In and out: patches on their grid, (batch, channels, rows, columns). Source: DOLG (arXiv 2108.02927)
and ViTGaL (doi 10.1007/978-3-031-26284-5_13), which take the idea from DeepLab.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MultiAtrous(nn.Module):
    """Convolve patches at several dilations in parallel, and join the projected image mean.

    Parameters
    ----------
    dim, out
        Channels in and out. Branches share the output channels equally; the pooled branch takes
        what is left.
    dilations
        One branch each: 3 x 3 patches at this distance, or the patch itself for 0.
    """

    def __init__(self, dim: int, out: int, dilations: Sequence[int]) -> None:
        super().__init__()
        each = out // (len(dilations) + 1)
        self.branches = nn.ModuleList()
        for dilation in dilations:
            # A padding of the dilation keeps the grid's size.
            size = 3 if dilation else 1
            self.branches.append(
                nn.Conv2d(dim, each, size, padding=dilation, dilation=max(dilation, 1))
            )
        self.pooled = nn.Conv2d(dim, out - each * len(dilations), kernel_size=1)

    def forward(self, patches: Tensor) -> Tensor:
        """Map patches (batch, dim, rows, columns) to (batch, out, rows, columns)."""
        parts = [branch(patches) for branch in self.branches]
        image_mean = self.pooled(patches.mean(dim=(2, 3), keepdim=True))
        parts.append(image_mean.expand(-1, -1, *patches.shape[2:]))
        return torch.cat(parts, dim=1)


def on_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put the patches of tokens (batch, 1 + rows * columns, width) on their grid.

    Returns (batch, width, rows, columns).
    """
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
