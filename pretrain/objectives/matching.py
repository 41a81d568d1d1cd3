"""Image-text matching: half of each group keeps its image, the other half gets another image of the same group.

Groups are runs of consecutive samples of the global batch, so ranks and micro-batches never appear
in the assignment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import at_least_float32


@torch.no_grad()
def choose_images(
    labels: Tensor, noise: Tensor, similarity: Tensor | None = None, identity: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Row of the image that each text is paired with, its own where `labels` is 1, and the labels that result.

    Parameters
    ----------
    labels : Tensor
        (batch,) 1 where the pair stays, 0 where another image of the group comes in.
    noise : Tensor
        (batch, group) Gumbel noise drawn with the sample; the largest score + noise wins.
    similarity : Tensor, optional
        (batch, batch) text-to-image logits: negatives are drawn from their softmax within the group
        (hard negatives). Without it every other image of the group is equally likely.
    identity : Tensor, optional
        int64 (batch, k): samples that agree in any column are never each other's negative.

    Returns
    -------
    rows, labels : Tensor
        (batch,) each. A text whose group holds nothing but duplicates of it keeps its image and
        becomes a positive.
    """
    batch, group = noise.shape
    rows = torch.arange(batch, device=noise.device)
    first = rows - rows % group
    members = first[:, None] + torch.arange(group, device=noise.device)
    scores = noise if similarity is None else noise + similarity.float().gather(1, members)
    excluded = members == rows[:, None]
    if identity is not None:
        excluded |= (identity[members] == identity[:, None]).any(2)
    negative = first + scores.masked_fill(excluded, -torch.inf).argmax(dim=1)
    stays = labels.bool() | excluded.all(dim=1)
    return torch.where(stays, rows, negative), stays.to(labels.dtype)


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of matching logits (batch, 2), mean over the batch; every rank holds as many pairs."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(at_least_float32(logits), labels)
