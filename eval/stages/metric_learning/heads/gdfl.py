"""Descriptors from attention over patches of several blocks: general discriminative features.

In: tokens of chosen blocks of a frozen tower. Out: a unit descriptor, the features that the class
adversary reads, and each block's attention. Source: Al-Kaabi, Monsefi, Zabihzadeh (arXiv
2106.06420) name intermediate layers, attention and the adversary; their equations could not be
read, and the form below is a reconstruction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Attention = Literal["spatial", "channel", "both", "mean"]


@dataclass
class Embedded:
    """A batch of descriptors.

    ``embedding`` (batch, size) has length one; ``general`` (batch, features) is what the class
    adversary reads; ``per_layer`` are unit features of the blocks that are trained like the
    embedding (none if only the embedding is trained); ``weights`` maps a block to its attention
    over patches (batch, patches), which sums to one.
    """

    embedding: Tensor
    general: Tensor
    per_layer: tuple[Tensor, ...] = ()
    weights: dict[int, Tensor] = field(default_factory=dict)


class LayerAttentionPool(nn.Module):
    """Pool the patches of one block into a unit feature.

    Parameters
    ----------
    dim, out, hidden
        Width of tokens, of the feature, and inside the scorer.
    kind
        `spatial` weights patches by softplus scores divided by their sum; `channel` gates the
        channels of the mean patch; `both` does one after the other; `mean` neither.
    """

    def __init__(self, dim: int, out: int, hidden: int = 64, kind: Attention = "spatial") -> None:
        super().__init__()
        self.score = _two_layers(dim, hidden, 1) if kind in ("spatial", "both") else None
        self.gate = _two_layers(dim, hidden, dim) if kind in ("channel", "both") else None
        self.project = nn.Linear(dim, out)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (batch, 1 + patches, dim), class token first, to features (batch, out).

        Also returns the weights of the patches (batch, patches).
        """
        # Blocks differ in scale, and a few channels of a tower may dwarf the others.
        patches = F.layer_norm(tokens[:, 1:], tokens.shape[-1:])
        if self.score is None:
            # Equal weights give the mean, and can be drawn like those of the other kinds.
            weights = patches.new_full(patches.shape[:2], 1 / patches.shape[1])
        else:
            scores = F.softplus(self.score(patches)[..., 0])
            weights = scores / scores.sum(dim=1, keepdim=True).clamp_min(1e-12)
        pooled = torch.einsum("bl,bld->bd", weights, patches)
        if self.gate is not None:
            pooled = pooled * torch.sigmoid(self.gate(patches.mean(dim=1)))
        return F.normalize(self.project(pooled), dim=1), weights


class GDFLEmbedder(nn.Module):
    """Join the attended features of several blocks into one descriptor.

    Parameters
    ----------
    dim
        Width of tokens.
    layers
        Blocks that are read, counted from 1.
    per_layer, embed
        Size of a block's feature and of the descriptor.
    attention
        The `kind` of `LayerAttentionPool`.
    per_layer_loss
        Whether the metric loss also trains the feature of every block, not only the descriptor.
    """

    def __init__(
        self,
        dim: int,
        layers: Sequence[int],
        per_layer: int = 128,
        embed: int = 512,
        attention: Attention = "spatial",
        per_layer_loss: bool = True,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.per_layer_loss = per_layer_loss
        pools = [LayerAttentionPool(dim, per_layer, kind=attention) for _ in self.layers]
        self.pools = nn.ModuleList(pools)
        self.join = nn.Linear(per_layer * len(self.layers), embed)

    def forward(self, layers: Mapping[int, Tensor], grid: tuple[int, int]) -> Embedded:
        """Map tokens of blocks to descriptors (batch, embed).

        Each block has tokens (batch, 1 + rows * columns, dim).
        """
        features, weights = [], {}
        for layer, pool in zip(self.layers, self.pools, strict=True):
            feature, weights[layer] = pool(layers[layer])
            features.append(feature)
        general = torch.cat(features, dim=1)
        return Embedded(
            embedding=F.normalize(self.join(general), dim=1),
            general=general,
            per_layer=tuple(features) if self.per_layer_loss else (),
            weights=weights,
        )


def _two_layers(dim: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, out))
