"""Global and local features of a vision transformer (ViTGaL) as a head on its tokens.

In: tokens of one block. Out: a unit descriptor from the class token after it attended to patches
that a multi-atrous block has mixed, and its attention. The block's batch norm is a layer norm here,
and class attention is applied once: the authors' code applies its last block twice. Source: doi
10.1007/978-3-031-26284-5_13.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .atrous import MultiAtrous, on_grid
from .gdfl import Embedded

LAYER_SCALE = 0.1


class AtrousBlock(nn.Module):
    """Mix patches over several distances, then transform each by itself.

    Both steps are residual and start with a weight of `LAYER_SCALE`.
    """

    def __init__(self, dim: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.normalize = nn.LayerNorm(dim)
        self.normalize_inside = nn.LayerNorm(dim)
        self.normalize_each = nn.LayerNorm(dim)
        self.atrous = MultiAtrous(dim, dim, dilations)
        self.depthwise = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.each = _perceptron(dim)
        self.scale_mixed = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.scale_each = nn.Parameter(torch.full((dim,), LAYER_SCALE))

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Map tokens (batch, 1 + rows * columns, dim) to the same shape.

        The class token does not change.
        """
        patches = tokens[:, 1:]
        mixed = F.gelu(self.atrous(on_grid(self.normalize(tokens), grid)))
        # Layer norms need channels last, convolutions channels first.
        mixed = self.depthwise(self.normalize_inside(mixed.movedim(1, 3)).movedim(3, 1))
        patches = patches + self.scale_mixed * mixed.flatten(2).transpose(1, 2)
        patches = patches + self.scale_each * self.each(self.normalize_each(patches))
        return torch.cat([tokens[:, :1], patches], dim=1)


class ClassAttentionPool(nn.Module):
    """A block in which only the class token attends to all tokens, itself included.

    Parameters
    ----------
    dim, heads
        Width of tokens, and the number of heads that share it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.normalize, self.normalize_class = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.each = _perceptron(dim)
        self.scale_attended = nn.Parameter(torch.full((dim,), LAYER_SCALE))
        self.scale_each = nn.Parameter(torch.full((dim,), LAYER_SCALE))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (batch, 1 + patches, dim) to the class token (batch, dim).

        Also returns its attention (batch, 1 + patches): the mean over heads, which sums to one.
        """
        normed = self.normalize(tokens)
        # A single query, so the cost grows with the number of patches and not with its square.
        attended, weights = self.attention(normed[:, :1], normed, normed)
        token = tokens[:, 0] + self.scale_attended * attended[:, 0]
        return token + self.scale_each * self.each(self.normalize_class(token)), weights[:, 0]


class ViTGaLHead(nn.Module):
    """Describe an image by its class token after multi-atrous mixing and class attention.

    Parameters
    ----------
    dim
        Width of the tower's tokens.
    layer
        Block that is read, counted from 1.
    out
        Size of the descriptor.
    dilations
        Dilations of the multi-atrous block, in patches.
    heads
        Heads of class attention; must divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        layer: int,
        out: int = 512,
        dilations: Sequence[int] = (1, 3, 6, 9, 12),
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.layers: tuple[int, ...] = (layer,)
        self.mix = AtrousBlock(dim, dilations)
        self.pool = ClassAttentionPool(dim, heads)
        self.normalize = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, out)

    def forward(self, layers: Mapping[int, Tensor], grid: tuple[int, int]) -> Embedded:
        """Map tokens of the block (batch, 1 + rows * columns, dim) to descriptors (batch, out)."""
        [layer] = self.layers
        token, weights = self.pool(self.mix(layers[layer], grid))
        general = self.normalize(token)
        # Only patches can be shown on an image: their weights are scaled to sum to one.
        patches = weights[:, 1:]
        shares = patches / patches.sum(dim=1, keepdim=True).clamp_min(1e-12)
        return Embedded(F.normalize(self.project(general), dim=1), general, weights={layer: shares})


def _perceptron(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
