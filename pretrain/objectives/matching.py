"""Image-text matching: half of each group keeps its image, the other half gets another image of the same group.

Groups are runs of consecutive samples of the global batch, so ranks and micro-batches never appear in the assignment.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import at_least_float32


@torch.no_grad()
def choose_images(labels: Tensor, noise: Tensor, similarity: Tensor | None = None) -> Tensor:
    """Row of the image that each text is paired with: (batch,), its own where `labels` is 1.

    Parameters
    ----------
    labels : Tensor
        (batch,) 1 where the pair stays, 0 where another image of the group comes in.
    noise : Tensor
        (batch, group) Gumbel noise drawn with the sample; the largest score + noise wins.
    similarity : Tensor, optional
        (batch, batch) text-to-image logits: negatives are drawn from their softmax within the group (hard negatives).
        Without it every other image of the group is equally likely.
    """
    batch, group = noise.shape
    rows = torch.arange(batch, device=noise.device)
    first = rows - rows % group
    scores = noise
    if similarity is not None:
        members = first[:, None] + torch.arange(group, device=noise.device)
        scores = noise + similarity.float().gather(1, members)
    own = F.one_hot(rows % group, group).bool()
    negative = first + scores.masked_fill(own, -torch.inf).argmax(dim=1)
    return torch.where(labels.bool(), rows, negative)


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of matching logits (batch, 2), mean over the batch; every rank holds as many pairs."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(at_least_float32(logits), labels)
