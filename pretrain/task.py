"""A task says what a batch must hold, computes features in one wrapped forward and turns them into losses.

The loop knows tasks only through `Task`; pre-training is one, each fine-tuning another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from data_pipeline.collate import Batch
from data_pipeline.text import Tokenizer

from .config import ObjectiveConfig, ValidationConfig
from .model import GLSCLModel
from .objectives.completion import completion_loss, sampled_completion_loss
from .objectives.contrastive import contrastive_loss
from .objectives.masked_language import masked_language_loss
from .objectives.matching import matching_loss
from .objectives.tcl import global_local_loss, intra_modal_loss
from .parallel.gather import gather_counts, world_size
from .validation import ContrastiveRetrieval
from .views import (
    Completion,
    PretrainFeatures,
    contrasted,
    join_features,
    pretrain_features,
    with_contrasted,
)


@dataclass
class Losses:
    """Losses of one micro-batch; the mean of each over ranks is that of the global micro-batch."""

    contrastive: Tensor
    matching: Tensor
    masked_language: Tensor
    global_image: Tensor
    global_text: Tensor
    local_image: Tensor
    local_text: Tensor
    total: Tensor
    intra_modal: Tensor | None = None
    """TCL's terms: None unless their weight is positive."""
    global_local: Tensor | None = None


@dataclass(frozen=True)
class RowCounts:
    """Rows that each rank brings to a local completion loss, and how many of them serve as negatives."""

    rows: list[int]
    chosen: list[int]


@dataclass(frozen=True)
class TokenCounts:
    """What uneven ranks must know of each other before a micro-batch."""

    patches: RowCounts
    tokens: RowCounts
    words: list[int]
    """Places for words, padding included, of each rank."""
    masked_language_tokens: float
    """Mean over the ranks and over the step's micro-batches of this kind."""

    @staticmethod
    def join(parts: Sequence[TokenCounts]) -> TokenCounts:
        """Count several micro-batches of one kind as if they were one."""

        def rows(of: list[RowCounts]) -> RowCounts:
            return RowCounts(_sums([one.rows for one in of]), _sums([one.chosen for one in of]))

        longest = [
            len(parts) * max(places) for places in zip(*(part.words for part in parts), strict=True)
        ]
        patches, tokens = (
            rows([part.patches for part in parts]),
            rows([part.tokens for part in parts]),
        )
        return TokenCounts(patches, tokens, longest, parts[0].masked_language_tokens)


class Task(Protocol):
    """What the loop needs of a task.

    Features are whatever `features` computes; they hold the contrastive `temperature` (1,). Losses
    come as tensors by name: the mean of each over ranks is that of the global micro-batch.
    """

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Names of all losses that the task computes."""

    @property
    def contrasts(self) -> bool:
        """Whether a loss compares rows of several micro-batches, so that accumulation needs care to be exact."""

    @property
    def depends_on_ranks(self) -> bool:
        """Whether a loss or its gradient depends on how the global batch is divided over ranks."""

    @property
    def temperature_bounds(self) -> tuple[float, float] | None:
        """Within which a learnt temperature is kept."""

    @property
    def best(self) -> str | None:
        """Validation metric whose highest value marks the best checkpoint; None: the last one counts."""

    def counts(self, batches: list[Batch]) -> list[Any]:
        """Agree with the other ranks on what normalises each micro-batch of a step."""

    def features(self, model: GLSCLModel, batch: Batch) -> Any:
        """Everything the losses read; runs inside the wrapped model's forward."""

    def similarity_losses(self, features: Any, counts: Any = None) -> dict[str, Tensor]:
        """Losses that contrast a row with all others."""

    def pair_losses(self, features: Any, counts: Any = None) -> dict[str, Tensor]:
        """Losses that need no other micro-batch."""

    def weighted(self, parts: dict[str, Tensor]) -> Tensor:
        """Sum of losses by name, each with its weight."""

    def contrasted(self, features: Any) -> list[Tensor]:
        """List what the similarity losses send gradients to."""

    def with_contrasted(self, features: Any, values: Sequence[Tensor]) -> Any:
        """Features for the similarity losses alone, with other tensors in the places that `contrasted` lists."""

    def join(self, parts: Sequence[Any], counts: Sequence[Any]) -> tuple[Any, Any]:
        """Join features for the similarity losses, and counts, of micro-batches of one kind as if they were one."""

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Metrics on the validation split, the same on every rank."""


class TaskModel(nn.Module):
    """The model with its task, so that every use of the weights goes through one forward that engines can wrap."""

    def __init__(self, task: Task, model: GLSCLModel):
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, function: str, *inputs: Any) -> Any:
        """Call `task.function(model, *inputs)`."""
        return getattr(self.task, function)(self.model, *inputs)


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
    ):
        """Take what `ContrastiveRetrieval` takes, for validation."""
        super().__init__(validation, tokenizer, validation_size)
        self.config = config or ObjectiveConfig()
        optional = ("intra_modal", "global_local")
        names = [field.name for field in fields(Losses) if field.name != "total"]
        self.loss_names = tuple(
            n for n in names if n not in optional or getattr(self.config, n) > 0
        )

    @property
    def depends_on_ranks(self) -> bool:
        """Whether negatives or gradients do."""
        return self.config.depends_on_ranks

    @property
    def temperature_bounds(self) -> tuple[float, float] | None:
        """Those of the configuration."""
        return self.config.temperature_bounds

    def forward(self, model: GLSCLModel, batch: Batch) -> Losses:
        """Losses of one batch on one process: `losses(features(model, batch))`."""
        return self.losses(self.features(model, batch))

    def counts(self, batches: list[Batch]) -> list[TokenCounts]:
        """Gather how many positions each rank masks, in one collective for all micro-batches of a step."""
        own = [count for batch in batches for count in _row_counts(batch)]
        gathered = iter(gather_counts(own))
        rows = [[next(gathered) for _ in _row_counts(batch)] for batch in batches]
        found = []
        for batch, (patches, chosen_patches, tokens, chosen_tokens, places, _) in zip(
            batches, rows, strict=True
        ):
            targets = [
                sum(of[-1])
                for other, of in zip(batches, rows, strict=True)
                if other.kind == batch.kind
            ]
            found.append(
                TokenCounts(
                    RowCounts(patches, chosen_patches),
                    RowCounts(tokens, chosen_tokens),
                    places,
                    sum(targets) / (world_size() * len(targets)),
                )
            )
        return found

    def features(self, model: GLSCLModel, batch: Batch) -> PretrainFeatures:
        """Encode three views of each side and fuse five pairs."""
        return pretrain_features(model, batch, self.config)

    def losses(self, features: PretrainFeatures, counts: TokenCounts | None = None) -> Losses:
        """All losses; without `counts` every rank holds as many masked positions as this one."""
        parts = self.similarity_losses(features, counts) | self.pair_losses(features, counts)
        return Losses(**parts, total=self.weighted(parts))

    def weighted(self, parts: dict[str, Tensor]) -> Tensor:
        """Sum of losses by name, each with its weight."""
        return torch.stack(
            [getattr(self.config, name) * value.reshape(()) for name, value in parts.items()]
        ).sum()

    def contrasted(self, features: PretrainFeatures) -> list[Tensor]:
        """Contrastive features, temperature and recovered states."""
        return contrasted(features)

    def with_contrasted(
        self, features: PretrainFeatures, values: Sequence[Tensor]
    ) -> PretrainFeatures:
        """Put other tensors in their places, and drop the logits of masked words: large, and not contrasted."""
        nothing = features.masked_language_logits.new_empty(0)
        return with_contrasted(features, values)._replace(masked_language_logits=nothing)

    def join(
        self, parts: Sequence[PretrainFeatures], counts: Sequence[TokenCounts]
    ) -> tuple[PretrainFeatures, TokenCounts]:
        """Join rows, and count them as if they had come together."""
        return join_features(parts), TokenCounts.join(counts)

    def pair_losses(
        self, features: PretrainFeatures, counts: TokenCounts | None = None
    ) -> dict[str, Tensor]:
        """Losses of single pairs: matching and masked language."""
        tokens = counts.masked_language_tokens if counts else len(features.masked_language_labels)
        return {
            "matching": matching_loss(features.matching_logits, features.matching_labels),
            "masked_language": masked_language_loss(
                features.masked_language_logits, features.masked_language_labels, tokens
            ),
        }

    def similarity_losses(
        self, features: PretrainFeatures, counts: TokenCounts | None = None
    ) -> dict[str, Tensor]:
        """Losses that contrast a row with all others."""
        config, f = self.config, features
        ids = f.identity if config.duplicates == "ignored" else None
        patch_ids, token_ids = (None, None) if ids is None else (f.patch_identity, f.token_identity)
        patches_of, tokens_of = (counts.patches, counts.tokens) if counts else (None, None)
        parts = {
            "contrastive": contrastive_loss(
                f.contrastive_text,
                f.contrastive_image,
                f.temperature,
                ids=ids,
                gradients=config.gradients,
            ),
            "global_image": self._completion(f.global_image, config.global_image_negatives, ids),
            "global_text": self._completion(f.global_text, config.global_text_negatives, ids),
            "local_image": self._completion(
                f.local_image,
                config.local_image_negatives,
                patch_ids,
                patches_of,
                f.negative_patches,
            ),
            "local_text": self._completion(
                f.local_text, config.local_text_negatives, token_ids, tokens_of, f.negative_tokens
            ),
        }
        if f.views and config.intra_modal:
            image = intra_modal_loss(f.contrastive_image, f.views.dropped_image, f.temperature, ids)
            text = intra_modal_loss(f.contrastive_text, f.views.masked_text, f.temperature, ids)
            parts["intra_modal"] = 0.5 * (image + text)
        if f.views and config.global_local:
            everywhere = torch.ones_like(f.views.patches[..., 0])
            image = global_local_loss(
                f.contrastive_image, f.views.patches, everywhere, f.temperature, ids=ids
            )
            words = counts.words if counts else None
            text = global_local_loss(
                f.contrastive_text, f.views.words, f.views.word_mask, f.temperature, words, ids=ids
            )
            parts["global_local"] = 0.5 * (image + text)
        return parts

    def _completion(
        self,
        states: Completion,
        negatives: Literal["global", "rank", "sample"],
        ids: Tensor | None,
        counts: RowCounts | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        config = self.config
        rows, chosen_rows = (counts.rows, counts.chosen) if counts else (None, None)
        if negatives == "sample":
            if chosen is None:
                raise ValueError(
                    "the batch names no sample of negatives: open the loader with local_negatives"
                )
            return sampled_completion_loss(
                states.recovered,
                states.target,
                config.completion_temperature,
                chosen,
                rows,
                chosen_rows,
                ids=ids,
                directions=config.directions,
            )
        frames = states.recovered.ndim == 3 and states.recovered.shape[1] > 1
        return completion_loss(
            states.recovered,
            states.target,
            config.completion_temperature,
            rows,
            ids=ids,
            negatives=negatives,
            gradients=config.gradients,
            directions=config.directions,
            normalization=config.video_normalization if frames else "channels",
        )


def _sums(of_parts: Sequence[list[int]]) -> list[int]:
    """Sum over the parts, for each rank."""
    return [sum(values) for values in zip(*of_parts, strict=True)]


def _row_counts(batch: Batch) -> list[int]:
    """Masked patches of all frames and those that are negatives, the same of tokens, words, tokens to predict."""
    frames = batch.pixels.shape[1] if batch.kind == "video" else 1
    chosen_patches = 0 if batch.negative_patches is None else len(batch.negative_patches)
    chosen_tokens = 0 if batch.negative_tokens is None else len(batch.negative_tokens)
    return [
        len(batch.masked_patches) * frames,
        chosen_patches * frames,
        len(batch.masked_tokens),
        chosen_tokens,
        batch.text_mask[:, 1:].numel(),
        len(batch.mlm_positions),
    ]
