"""Image-text contrast over all ranks with a learned temperature (glscl paper, section 3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .nce import Gradients, Negatives, nce
from .objective import Objective, duplicate_ids

if TYPE_CHECKING:
    from pretrain.config import ObjectiveConfig
    from pretrain.counts import TokenCounts
    from pretrain.views import PretrainFeatures


def contrastive_loss(
    text: Tensor,
    image: Tensor,
    temperature: Tensor,
    *,
    ids: Tensor | None = None,
    negatives: Negatives = "global",
    gradients: Gradients = "exact",
) -> Tensor:
    """Average both directions for matched features (batch, width); options are those of `nce`."""
    # The published 0.5: `nce` sums the two directions.
    return 0.5 * nce(text, image, temperature, ids=ids, negatives=negatives, gradients=gradients)


def _loss(
    features: PretrainFeatures, config: ObjectiveConfig, counts: TokenCounts | None
) -> Tensor:
    return contrastive_loss(
        features.contrastive_text,
        features.contrastive_image,
        features.temperature,
        ids=duplicate_ids(features, config),
        gradients=config.gradients,
    )


def _columns(features: PretrainFeatures, config: ObjectiveConfig) -> list[Tensor]:
    # The images of all ranks and their gradient.
    return [features.contrastive_image, features.contrastive_image]


CONTRASTIVE = Objective(
    name="contrastive",
    weight=1.0,
    loss=_loss,
    contrasts=("contrastive_text", "contrastive_image", "temperature"),
    columns=_columns,
)
