"""Pre-training as a task: features in one wrapped forward, then the losses of all objectives.

Which losses there are, what they read and how they are weighted is declared in `objectives/`; this
file puts them together for the loop, which knows tasks only as `protocols.Task`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from data_pipeline.collate import Batch
from data_pipeline.text import Tokenizer

from .config import ObjectiveConfig, ValidationConfig
from .counts import RowCounts, TokenCounts, count_tokens
from .model import GLSCLModel
from .objectives import OBJECTIVES, Objective
from .protocols import Task, TaskModel
from .validation import ContrastiveRetrieval
from .views import (
    PretrainFeatures,
    contrasted,
    join_features,
    pretrain_features,
    with_contrasted,
)

__all__ = ["Losses", "PretrainTask", "RowCounts", "Task", "TaskModel", "TokenCounts"]


class Losses(SimpleNamespace):
    """Losses of one micro-batch, one attribute per objective; None where it was not computed.

    The mean of each over ranks is the loss of the global micro-batch.
    """

    total: Tensor
    """Sum of the others, each with its weight."""


class PretrainTask(ContrastiveRetrieval):
    """GLSCL pre-training: contrast, matching, masked language, MGSC and MLTC."""

    contrasts = True
    best = None

    def __init__(
        self,
        config: ObjectiveConfig | None = None,
        validation: ValidationConfig | None = None,
        tokenizer: Tokenizer | None = None,
        validation_size: int | None = None,
        objectives: Sequence[Objective] = OBJECTIVES,
    ):
        """Take weights and options of `objectives`, and what `ContrastiveRetrieval` validates on.

        An objective without a key in the configuration has its default weight.
        """
        super().__init__(validation, tokenizer, validation_size)
        self.config = config or ObjectiveConfig()
        self.objectives = objectives
        self.computed = [o for o in objectives if o.is_computed(self.config)]
        self.loss_names = tuple(objective.name for objective in self.computed)
        self._weights = {o.name: o.weight_in(self.config) for o in objectives}
        # In the order of the objectives, each name once.
        names = [name for objective in self.computed for name in objective.contrasts]
        self._contrasted = tuple(dict.fromkeys(names))

    @property
    def depends_on_ranks(self) -> bool:
        """Whether the configured negatives or gradients depend on how ranks divide the batch."""
        return self.config.depends_on_ranks

    @property
    def temperature_bounds(self) -> tuple[float, float] | None:
        """Bounds of the learned temperature, from the configuration."""
        return self.config.temperature_bounds

    def forward(self, model: GLSCLModel, batch: Batch) -> Losses:
        """Compute the losses of one batch on one process."""
        return self.losses(self.features(model, batch))

    def counts(self, batches: list[Batch]) -> list[TokenCounts]:
        """Gather how many positions each rank masks in every micro-batch of a step."""
        return count_tokens(batches)

    def features(self, model: GLSCLModel, batch: Batch) -> PretrainFeatures:
        """Encode three views of each side and fuse five pairs."""
        with_views = any(objective.reads_views for objective in self.computed)
        return pretrain_features(model, batch, self.config, with_views)

    def losses(self, features: PretrainFeatures, counts: TokenCounts | None = None) -> Losses:
        """Compute all losses; without `counts`, all ranks mask as many positions as this one."""
        computed = self.similarity_losses(features, counts) | self.pair_losses(features, counts)
        by_name: dict[str, Tensor | None] = dict.fromkeys(self._weights)
        return Losses(**by_name | computed, total=self.weighted(computed))

    def similarity_losses(
        self, features: PretrainFeatures, counts: TokenCounts | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses that compare a row with all others."""
        return self._losses([o for o in self.computed if o.contrasts], features, counts)

    def pair_losses(
        self, features: PretrainFeatures, counts: TokenCounts | None = None
    ) -> dict[str, Tensor]:
        """Compute the losses of single pairs: matching and masked language."""
        return self._losses([o for o in self.computed if not o.contrasts], features, counts)

    def weighted(self, losses: dict[str, Tensor]) -> Tensor:
        """Sum losses by name, each with its weight."""
        terms = [self._weights[name] * value.reshape(()) for name, value in losses.items()]
        return torch.stack(terms).sum()

    def contrasted(self, features: PretrainFeatures) -> dict[str, Tensor]:
        """Name the features that similarity losses send gradients to, as the objectives declare."""
        return contrasted(features, self._contrasted)

    def with_contrasted(
        self, features: PretrainFeatures, values: Mapping[str, Tensor]
    ) -> PretrainFeatures:
        """Replace the named features, and drop the masked-language logits.

        These are by far the largest feature, and no similarity loss reads them.
        """
        nothing = features.masked_language_logits.new_empty(0)
        return with_contrasted(features, values)._replace(masked_language_logits=nothing)

    def join(
        self, parts: Sequence[PretrainFeatures], counts: Sequence[TokenCounts]
    ) -> tuple[PretrainFeatures, TokenCounts]:
        """Join features and counts as if the micro-batches were one.

        Raises ValueError for a contrasted feature that is not joined: the losses would read the
        rows of the first micro-batch only.
        """
        joined = join_features(parts)
        first = self.contrasted(parts[0])
        for name, value in self.contrasted(joined).items():
            # The temperature is a single number, the same in every micro-batch.
            if name != "temperature" and value is first[name]:
                raise ValueError(
                    f"an objective names {name} in `contrasts`, but `join_features` does not join "
                    "it: exact accumulation would lose the other micro-batches"
                )
        return joined, TokenCounts.join(counts)

    def _losses(
        self,
        objectives: Sequence[Objective],
        features: PretrainFeatures,
        counts: TokenCounts | None,
    ) -> dict[str, Tensor]:
        return {o.name: o.loss(features, self.config, counts) for o in objectives}
