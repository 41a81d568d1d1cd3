"""Prototypes of labels by cross-interaction: labels attend to their patches and filter them.

In: label vectors and the chosen patches of each, padded. Out: prototypes in the joint space.
Source: Yan et al., ACM TOMM (arXiv 2412.13732); dynamic convolution as in Sparse R-CNN, with a
masked mean instead of its fixed grid. A new block returns a mean of patches, weighted by attention:
training starts close to the prototype that needs no training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DynamicConv(nn.Module):
    """Refine label vectors by their patches, filtered by two linear maps made from the label."""

    def __init__(self, width: int, hidden: int = 64):
        super().__init__()
        self.hidden = hidden
        self.filters = nn.Linear(width, 2 * width * hidden)
        self.inner_norm = nn.LayerNorm(hidden)
        self.outer_norm = nn.LayerNorm(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, label: Tensor, local: Tensor, mask: Tensor) -> Tensor:
        """Refine labels (labels, width) by patches (labels, patches, width) in the ``mask``."""
        first, second = self.filters(label).chunk(2, dim=-1)
        inner = local @ first.unflatten(-1, (-1, self.hidden))
        inner = F.relu(self.inner_norm(inner)) @ second.unflatten(-1, (self.hidden, -1))
        # Masked after the norm, whose bias would give padding a value.
        filtered = F.relu(self.outer_norm(inner)).masked_fill(~mask[..., None], 0)
        mean = filtered.sum(1) / mask.sum(1, keepdim=True).clamp_min(1)
        return self.norm(label + mean)


class CrossInteraction(nn.Module):
    """Prototypes by attention of labels over their patches, in ``layers`` blocks.

    ``channel_attention`` weights the patches' channels by the label, ``dynamic_conv`` refines the
    label first.
    """

    def __init__(
        self,
        width: int,
        heads: int = 8,
        layers: int = 1,
        channel_attention: bool = True,
        dynamic_conv: bool = True,
        mlp_width: int = 1024,
        dropout: float = 0.1,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.dynamic = DynamicConv(width) if dynamic_conv else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for _ in range(layers):
            self.blocks.append(_Block(width, heads, channel_attention, mlp_width))

    def forward(self, label: Tensor, local: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Make prototypes (labels, width), and the last block's attention (labels, heads, patches).

        Parameters
        ----------
        label
            Label vectors (labels, width).
        local
            Patches (labels, patches, width).
        mask
            True for the patches to use (labels, patches). A label without any keeps its vector as
            prototype, and its attention is 0.
        """
        local = self.dropout(local.masked_fill(~mask[..., None], 0))
        query = label if self.dynamic is None else self.dynamic(label, local, mask)
        for block in self.blocks:
            query, attention = block(query, local, mask)
        empty = ~mask.any(1)
        return torch.where(empty[:, None], label, query), attention


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, channel_attention: bool, mlp_width: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.inner_norm = nn.LayerNorm(width)
        self.outer_norm = nn.LayerNorm(width)
        # Modules are made in a fixed order, because each takes its start from the random state.
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        narrow, wide = nn.Linear(width, max(1, width // 2)), nn.Linear(max(1, width // 2), width)
        self.channel = nn.Sequential(narrow, wide) if channel_attention else None
        last = nn.Linear(mlp_width, width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.GELU(), last)
        # Identities and zeros make a new block return the mean of the attended patches.
        for identity in (self.value, self.out):
            nn.init.eye_(identity.weight)
            nn.init.zeros_(identity.bias)
        for zero in (last, wide):
            nn.init.zeros_(zero.weight)
            nn.init.zeros_(zero.bias)

    def forward(self, query: Tensor, local: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        local, query = self.norm(local), self.norm(query)
        if self.channel is not None:
            local = local + local * self.channel(local + query[:, None]).sigmoid()
        q = self.query(query).unflatten(-1, (self.heads, -1))
        k = self.key(local).unflatten(-1, (self.heads, -1))
        v = self.value(local).unflatten(-1, (self.heads, -1))
        score = torch.einsum("chd,cmhd->chm", q, k) / q.shape[-1] ** 0.5
        # The lowest finite number instead of minus infinity: a label without patches would give
        # NaN in the backward pass.
        score = score.masked_fill(~mask[:, None], torch.finfo(score.dtype).min)
        attention = score.softmax(-1) * mask[:, None]
        hidden = self.out(torch.einsum("chm,cmhd->chd", attention, v).flatten(1))
        hidden = hidden + self.mlp(self.inner_norm(hidden))
        return self.outer_norm(hidden), attention
