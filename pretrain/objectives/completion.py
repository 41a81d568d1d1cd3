"""Semantic completion: masked data recovers its semantics from the other modality.

MGSC recovers the class state of a masked image or text, MLTC the states of its masked patches or
tokens. Targets are detached and come from the pass in which their own modality is complete (glscl
paper, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .nce import Gradients, Negatives, nce
from .objective import Objective
from .sampled import sampled_nce
from .tiles import at_least_float32

if TYPE_CHECKING:
    from pretrain.config import ObjectiveConfig
    from pretrain.counts import RowCounts, TokenCounts
    from pretrain.views import Completion, PretrainFeatures

Directions = Literal["sum", "mean"]
Normalization = Literal["channels", "frames"]


def completion_loss(
    recovered: Tensor,
    target: Tensor,
    temperature: float,
    counts: Sequence[int] | None = None,
    *,
    ids: Tensor | None = None,
    negatives: Negatives = "global",
    gradients: Gradients = "exact",
    directions: Directions = "sum",
    normalization: Normalization = "channels",
) -> Tensor:
    """Contrast recovered with complete states in both directions.

    Parameters
    ----------
    recovered, target : Tensor
        (rows, width), matched by row: one class state per sample for MGSC, all masked positions
        with their `counts` for MLTC. For videos (batch, frames, width): frame f is contrasted with
        frame f of all videos, and the losses of the frames are averaged.
    temperature : float
        Divides the cosine.
    counts, ids, negatives, gradients
        As in `nce`; for videos, one row per video.
    directions : {"sum", "mean"}
        How the cross-entropies of the two directions are combined; the paper sums them.
    normalization : {"channels", "frames"}
        "frames" divides the states of a video by their norm over the frames instead of the
        channels, as the authors' code does.
    """
    # Only the recovered states learn: complete states must not move toward masked ones.
    target = target.detach()
    if normalization == "frames":
        if recovered.ndim != 3:
            raise ValueError(
                f"normalization over frames needs videos (batch, frames, width), "
                f"not {recovered.ndim}-D states"
            )
        recovered = F.normalize(at_least_float32(recovered), dim=1, eps=1e-8)
        target = F.normalize(at_least_float32(target), dim=1, eps=1e-8)
    # States of images are treated as videos of one frame.
    if recovered.ndim == 2:
        recovered, target = recovered[:, None], target[:, None]
    losses = []
    for frame in range(recovered.shape[1]):
        loss = nce(
            recovered[:, frame],
            target[:, frame],
            temperature,
            counts,
            ids=ids,
            negatives=negatives,
            gradients=gradients,
            # States that were divided by their norm over the frames must not be divided again.
            normalize=normalization == "channels",
        )
        losses.append(loss)
    return torch.stack(losses).mean() * (1.0 if directions == "sum" else 0.5)


def sampled_completion_loss(
    recovered: Tensor,
    target: Tensor,
    temperature: float,
    chosen: Tensor,
    counts: Sequence[int] | None = None,
    chosen_counts: Sequence[int] | None = None,
    *,
    ids: Tensor | None = None,
    directions: Directions = "sum",
) -> Tensor:
    """Contrast states (rows, width) against the `chosen` rows only; see `sampled_nce`."""
    loss = sampled_nce(
        recovered, target.detach(), temperature, chosen, counts, chosen_counts, ids=ids
    )
    return loss if directions == "sum" else 0.5 * loss


def _configured_loss(
    states: Completion,
    negatives: Literal["global", "rank", "sample"],
    ids: Tensor | None,
    counts: RowCounts | None,
    chosen: Tensor | None,
    config: ObjectiveConfig,
) -> Tensor:
    rows = counts.rows if counts else None
    if negatives == "sample":
        if chosen is None:
            raise ValueError(
                "the batch has no sampled negatives: open the loader with local_negatives"
            )
        return sampled_completion_loss(
            states.recovered,
            states.target,
            config.completion_temperature,
            chosen,
            rows,
            counts.chosen if counts else None,
            ids=ids,
            directions=config.directions,
        )
    # Over a single frame, dividing by the norm would leave only the sign of each number.
    is_video = states.recovered.ndim == 3 and states.recovered.shape[1] > 1
    return completion_loss(
        states.recovered,
        states.target,
        config.completion_temperature,
        rows,
        ids=ids,
        negatives=negatives,
        gradients=config.gradients,
        directions=config.directions,
        normalization=config.video_normalization if is_video else "channels",
    )


def _declare(
    name: str, weight: float, identity: str, rows: str | None = None, chosen: str | None = None
) -> Objective:
    """Declare the loss of the states in the feature `name`.

    `identity` and `chosen` name the features with the ids of the rows and with the sampled
    negatives, `rows` the field of `TokenCounts`; MGSC has one row per sample and needs neither.
    """

    def negatives(config: ObjectiveConfig) -> Literal["global", "rank", "sample"]:
        choice: Literal["global", "rank", "sample"] = getattr(config, f"{name}_negatives")
        return choice

    def loss(
        features: PretrainFeatures, config: ObjectiveConfig, counts: TokenCounts | None
    ) -> Tensor:
        return _configured_loss(
            getattr(features, name),
            negatives(config),
            getattr(features, identity) if config.duplicates == "ignored" else None,
            getattr(counts, rows) if counts and rows else None,
            getattr(features, chosen) if chosen else None,
            config,
        )

    def columns(features: PretrainFeatures, config: ObjectiveConfig) -> list[Tensor]:
        # Targets are detached, so that no gradient is held beside them.
        return [getattr(features, name).target] if negatives(config) == "global" else []

    return Objective(name, weight, loss, contrasts=(f"{name}.recovered",), columns=columns)


GLOBAL_IMAGE = _declare("global_image", 1.0, "identity")
GLOBAL_TEXT = _declare("global_text", 1.0, "identity")
LOCAL_IMAGE = _declare("local_image", 0.2, "patch_identity", "patches", "negative_patches")
LOCAL_TEXT = _declare("local_text", 0.2, "token_identity", "tokens", "negative_tokens")
