"""Image-text contrast over all ranks with a learnt temperature (glscl paper, section 3.3)."""

from __future__ import annotations

from torch import Tensor

from .nce import Gradients, Negatives, nce


def contrastive_loss(
    text: Tensor,
    image: Tensor,
    temperature: Tensor,
    *,
    ids: Tensor | None = None,
    negatives: Negatives = "global",
    gradients: Gradients = "exact",
) -> Tensor:
    """Mean of both directions for matched text and image features (batch, width); the options are those of `nce`."""
    return 0.5 * nce(text, image, temperature, ids=ids, negatives=negatives, gradients=gradients)
