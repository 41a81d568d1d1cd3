"""Global and local features of a vision transformer (ViTGaL, doi 10.1007/978-3-031-26284-5_13) as a head on its tokens.

In: tokens of one block. Out: a unit descriptor from the class token, which looks at patches that a
multi-atrous block has mixed, and how much it looks at each. The block's batch norm is a layer norm
here, and class attention is applied once: the authors' code applies its last block twice.
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
    """Mix patches over several distances, then each for itself; both are residual and start at `LAYER_SCALE`."""

    def __init__(self, dim: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.normalize, self.normalize_inside, self.normalize_each = (
            nn.LayerNorm(dim) for _ in range(3)
        )
        self.atrous = MultiAtrous(dim, dim, dilations)
        self.depthwise = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.each = _perceptron(dim)
        self.scale_mixed, self.scale_each = (
            nn.Parameter(torch.full((dim,), LAYER_SCALE)) for _ in range(2)
        )

    def forward(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (batch, 1 + rows * columns, dim) to the same shape; the class token stays as it is."""
        patches = tokens[:, 1:]
        mixed = F.gelu(self.atrous(on_grid(self.normalize(tokens), grid)))
        mixed = self.depthwise(self.normalize_inside(mixed.movedim(1, 3)).movedim(3, 1))
        patches = patches + self.scale_mixed * mixed.flatten(2).transpose(1, 2)
        patches = patches + self.scale_each * self.each(self.normalize_each(patches))
        return torch.cat([tokens[:, :1], patches], dim=1)


class ClassAttentionPool(nn.Module):
    """One block in which the class token alone looks at all tokens, itself among them.

    Parameters
    ----------
    dim, heads
        Width of tokens, and how many heads divide it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.normalize, self.normalize_class = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.each = _perceptron(dim)
        self.scale_attended, self.scale_each = (
            nn.Parameter(torch.full((dim,), LAYER_SCALE)) for _ in range(2)
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (batch, 1 + patches, dim) to the class token (batch, dim) and its weights (batch, 1 + patches).

        Weights are the mean over heads and sum to one.
        """
        normed = self.normalize(tokens)
        attended, weights = self.attention(normed[:, :1], normed, normed)
        token = tokens[:, 0] + self.scale_attended * attended[:, 0]
        return token + self.scale_each * self.each(self.normalize_class(token)), weights[:, 0]


class ViTGaLHead(nn.Module):
    """Describe a picture by its class token after multi-atrous mixing and class attention.

    Parameters
    ----------
    dim
        Width of the tower's tokens.
    layer
        Block that is read, 1 is the first.
    out
        Size of the descriptor.
    dilations
        Of the multi-atrous block, in patches.
    heads
        Of class attention; must divide ``dim``.
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
        """Tokens of the block (batch, 1 + rows * columns, dim) to descriptors (batch, out)."""
        [layer] = self.layers
        token, weights = self.pool(self.mix(layers[layer], grid))
        general = self.normalize(token)
        patches = weights[:, 1:]
        shares = patches / patches.sum(dim=1, keepdim=True).clamp_min(1e-12)
        return Embedded(F.normalize(self.project(general), dim=1), general, weights={layer: shares})


def _perceptron(dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
