"""Image-text matching: tell pairs from mismatched pairs.

In each group of samples, half of the texts keep their image and the others get another image of the
group. Groups are runs of consecutive samples of the global batch, so that neither ranks nor
micro-batches change who is paired with whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .objective import Objective
from .tiles import at_least_float32

if TYPE_CHECKING:
    from pretrain.config import ObjectiveConfig
    from pretrain.counts import TokenCounts
    from pretrain.views import PretrainFeatures


@torch.no_grad()
def choose_images(
    labels: Tensor, noise: Tensor, similarity: Tensor | None = None, identity: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Choose the image that each text is paired with, and label the pairs.

    Parameters
    ----------
    labels : Tensor
        (batch,) 1 where a text keeps its image, 0 where it gets another image of the group.
    noise : Tensor
        (batch, group) Gumbel noise drawn with the sample; the largest score + noise wins, which is
        a draw from the softmax of the scores.
    similarity : Tensor, optional
        (batch, batch) text-to-image logits: negatives are drawn from their softmax within the group
        (hard negatives). Without it, every other image of the group is equally likely.
    identity : Tensor, optional
        int64 (batch, k): samples that agree in any column are never each other's negative.

    Returns
    -------
    rows, labels : Tensor
        (batch,) each: row of the image, and 1 where it is the text's own. A text whose group holds
        only duplicates of it keeps its image and becomes a positive.
    """
    batch, group = noise.shape
    rows = torch.arange(batch, device=noise.device)
    first = rows - rows % group  # of each row's group
    members = first[:, None] + torch.arange(group, device=noise.device)
    scores = noise if similarity is None else noise + similarity.float().gather(1, members)
    excluded = members == rows[:, None]
    if identity is not None:
        excluded |= (identity[members] == identity[:, None]).any(2)
    # No boolean indexing: it would wait for the device.
    negative = first + scores.masked_fill(excluded, -torch.inf).argmax(dim=1)
    stays = labels.bool() | excluded.all(dim=1)
    return torch.where(stays, rows, negative), stays.to(labels.dtype)


def matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the cross-entropy of matching logits (batch, 2); all ranks hold as many pairs."""
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(at_least_float32(logits), labels)


def _loss(
    features: PretrainFeatures, config: ObjectiveConfig, counts: TokenCounts | None
) -> Tensor:
    return matching_loss(features.matching_logits, features.matching_labels)


MATCHING = Objective(name="matching", weight=1.0, loss=_loss)
