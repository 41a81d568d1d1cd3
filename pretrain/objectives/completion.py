"""Semantic completion: masked data recovers its global (MGSC) and local (MLTC) semantics from the other modality.

Targets are detached and come from the pass in which their own modality is whole (glscl paper, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .nce import nce


def completion_loss(
    recovered: Tensor, target: Tensor, temperature: float, counts: Sequence[int] | None = None
) -> Tensor:
    """Both directions of the contrast between recovered and complete states (rows, width).

    MGSC passes one class token per sample, MLTC every masked position with `counts`, the rows of each rank.
    """
    return nce(recovered, target.detach(), temperature, counts)
