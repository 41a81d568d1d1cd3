"""Patches that see others at several distances: dilated convolutions on the token grid, and the whole picture.

In and out: patches on their grid, (batch, channels, rows, columns). Source: DOLG (arXiv 2108.02927)
and ViTGaL (doi 10.1007/978-3-031-26284-5_13), which take the idea from DeepLab.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MultiAtrous(nn.Module):
    """Convolve patches at several dilations side by side and add what the picture's mean says.

    Parameters
    ----------
    dim, out
        Channels in and out; the branches divide the latter, the pooled branch takes the rest.
    dilations
        One branch each: of 3 x 3 patches that lie so far apart, of the patch itself for 0.
    """

    def __init__(self, dim: int, out: int, dilations: Sequence[int]) -> None:
        super().__init__()
        each = out // (len(dilations) + 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(
                dim,
                each,
                kernel_size=3 if dilation else 1,
                padding=dilation,
                dilation=max(dilation, 1),
            )
            for dilation in dilations
        )
        self.pooled = nn.Conv2d(dim, out - each * len(dilations), kernel_size=1)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches (batch, dim, rows, columns) to (batch, out, rows, columns)."""
        whole = self.pooled(patches.mean(dim=(2, 3), keepdim=True)).expand(
            -1, -1, *patches.shape[2:]
        )
        return torch.cat([*(branch(patches) for branch in self.branches), whole], dim=1)


def on_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Put the patches of tokens (batch, 1 + rows * columns, width) on their grid: (batch, width, rows, columns)."""
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)
