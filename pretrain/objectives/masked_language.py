"""Masked language modelling: predict masked words from the image and the remaining words."""

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


def masked_language_loss(logits: Tensor, labels: Tensor, tokens_per_rank: float) -> Tensor:
    """Sum the cross-entropy of (tokens, vocabulary) and divide it by `tokens_per_rank`.

    `tokens_per_rank` is the mean number of masked tokens of a rank. The mean of the result over
    ranks (and micro-batches, where `tokens_per_rank` averages over those too) is then the mean over
    all masked tokens of the global batch; a rank without a masked token contributes 0.
    """
    with torch.autocast(logits.device.type, enabled=False):
        summed = F.cross_entropy(at_least_float32(logits), labels, reduction="sum")
        # The lower bound keeps a step without any masked token at 0 instead of 0 / 0.
        return summed / max(tokens_per_rank, 1e-12)


def _loss(
    features: PretrainFeatures, config: ObjectiveConfig, counts: TokenCounts | None
) -> Tensor:
    labels = features.masked_language_labels
    tokens = counts.masked_language_tokens if counts else len(labels)
    return masked_language_loss(features.masked_language_logits, labels, tokens)


MASKED_LANGUAGE = Objective(name="masked_language", weight=1.0, loss=_loss)
