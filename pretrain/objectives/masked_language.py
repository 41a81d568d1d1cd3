"""Masked language modelling with the image in view, normalised by the number of masked tokens of all ranks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiles import at_least_float32


def masked_language_loss(logits: Tensor, labels: Tensor, tokens_per_rank: float) -> Tensor:
    """Sum the cross-entropy of (tokens, vocabulary) and divide by `tokens_per_rank`, the mean masked tokens of a rank.

    Its mean over ranks (and micro-batches, where `tokens_per_rank` averages over those too) is the
    mean over all masked tokens of the global batch; a rank without one contributes 0.
    """
    with torch.autocast(logits.device.type, enabled=False):
        return F.cross_entropy(at_least_float32(logits), labels, reduction="sum") / max(
            tokens_per_rank, 1e-12
        )
