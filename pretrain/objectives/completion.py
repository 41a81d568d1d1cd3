"""Semantic completion: masked data recovers its global (MGSC) and local (MLTC) semantics from the other modality.

Targets are detached and come from the pass in which their own modality is whole (glscl paper,
section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .nce import Gradients, Negatives, nce
from .sampled import sampled_nce
from .tiles import at_least_float32

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
        (rows, width), row by row: MGSC passes one class state per sample, MLTC every masked
        position with `counts`. For clips (batch, frames, width): frame f is contrasted with frame f
        of all clips, and the frames averaged.
    temperature : float
        Divides the cosine.
    counts, ids, negatives, gradients
        As in `nce`; a row of a clip is the clip.
    directions : {"sum", "mean"}
        Of both cross-entropies; the paper sums.
    normalization : {"channels", "frames"}
        "frames" divides clips by their norm over the frame axis instead of the channels', as the
        authors' code does.
    """
    target = target.detach()
    if normalization == "frames":
        if recovered.ndim != 3:
            raise ValueError(
                f"normalization over frames needs clips (batch, frames, width), not {recovered.ndim}-D"
            )
        recovered, target = (
            F.normalize(at_least_float32(side), dim=1, eps=1e-8) for side in (recovered, target)
        )
    if recovered.ndim == 2:
        recovered, target = recovered[:, None], target[:, None]
    losses = [
        nce(
            recovered[:, frame],
            target[:, frame],
            temperature,
            counts,
            ids=ids,
            negatives=negatives,
            gradients=gradients,
            normalize=normalization == "channels",
        )
        for frame in range(recovered.shape[1])
    ]
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
    """Contrast recovered with complete states (rows, width) against the `chosen` rows only, as `sampled_nce` does."""
    loss = sampled_nce(
        recovered, target.detach(), temperature, chosen, counts, chosen_counts, ids=ids
    )
    return loss if directions == "sum" else 0.5 * loss
