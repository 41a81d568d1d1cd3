"""What an objective of pre-training declares, once; everything else reads the declaration.

`config.py` reads the name and the default weight, `task.py` the loss, `views.py` and
`accumulate.py` the features that it needs and sends gradients to, and `planning/memory.py` the rows
that it gathers. To add an objective, declare it in a file of this folder and list it in
`__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:  # both import this module
    from pretrain.config import ObjectiveConfig
    from pretrain.counts import TokenCounts
    from pretrain.views import PretrainFeatures

# The features of one micro-batch, the configuration, and the number of rows on each rank (None: as
# many as here).
Loss = Callable[["PretrainFeatures", "ObjectiveConfig", "TokenCounts | None"], Tensor]
Columns = Callable[["PretrainFeatures", "ObjectiveConfig"], list[Tensor]]


def no_columns(features: PretrainFeatures, config: ObjectiveConfig) -> list[Tensor]:
    """Nothing: the loss reads only the rows of this rank."""
    return []


@dataclass(frozen=True)
class Objective:
    """One loss of pre-training: its name, default weight, what it reads, how to compute it."""

    name: str
    """Key of its weight in the configuration, and after `loss/` its key in metrics.jsonl."""
    weight: float
    """Weight in the total unless the configuration sets another one. With 0 the loss is optional:
    it is neither computed nor logged until a configuration gives it a weight."""
    loss: Loss
    """Computes a scalar whose mean over ranks is the loss of the global micro-batch."""
    contrasts: tuple[str, ...] = ()
    """Features (dotted names) that the loss compares across all samples of a step and sends
    gradients to. Empty: each micro-batch has a loss of its own, and any feature may learn."""
    columns: Columns = no_columns
    """Lists the tensors whose rows every rank receives from the others and holds until the backward
    pass; a tensor appears twice if its gradient is held too."""
    reads_views: bool = False
    """Whether the loss reads `features.views`. These cost extra work, so such a loss is neither
    computed nor logged while its weight is 0, even if its default weight is not."""

    def weight_in(self, config: ObjectiveConfig) -> float:
        """Weight in a configuration; the default where the configuration has no such key."""
        return float(getattr(config, self.name, self.weight))

    def is_computed(self, config: ObjectiveConfig) -> bool:
        """Return whether a step under this configuration computes the loss."""
        # A loss that is on by default is logged even where a configuration turns it off.
        is_logged_when_off = self.weight > 0 and not self.reads_views
        return self.weight_in(config) > 0 or is_logged_when_off


def duplicate_ids(features: PretrainFeatures, config: ObjectiveConfig) -> Tensor | None:
    """Ids of the samples, by which duplicates are not negatives; None: they count as negatives."""
    return features.identity if config.duplicates == "ignored" else None
