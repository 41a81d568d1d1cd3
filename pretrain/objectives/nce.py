"""InfoNCE in both directions over the rows of all ranks; used by contrast, MGSC and MLTC.

Similarities, normalisation and cross-entropy run in float32 whatever the model's precision: a bfloat16 cosine at
temperature 0.03 has a gradient error of 1 to 2 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.parallel.gather import gather_rows, rank, world_size


def nce(p: Tensor, q: Tensor, temperature: Tensor | float, counts: Sequence[int] | None = None) -> Tensor:
    """Sum of the row-to-column and column-to-row cross-entropies of matched rows.

    Parameters
    ----------
    p, q : Tensor
        Features (rows, width) of this rank, row i of `p` belonging to row i of `q`; normalised here.
    temperature : Tensor or float
        Divides the cosine.
    counts : sequence of int, optional
        Rows of each rank, when ranks may hold different numbers. None: all hold as many as this one.

    Returns
    -------
    Tensor
        A scalar whose mean over ranks is the loss over all rows together; 0 where no rank holds a row.
    """
    with torch.autocast(p.device.type, enabled=False):
        p, q = (F.normalize(at_least_float32(side), dim=-1, eps=1e-8) for side in (p, q))
        counts = [len(p)] * world_size() if counts is None else counts
        total = sum(counts)
        # This rank's rows against everybody's columns, in both directions: O(rows x all rows) memory.
        forward = p @ gather_rows(q, counts).T / temperature
        backward = q @ gather_rows(p, counts).T / temperature
        own = torch.arange(len(p), device=p.device) + sum(counts[: rank()])
        summed = F.cross_entropy(forward, own, reduction="sum") + F.cross_entropy(backward, own, reduction="sum")
        return summed * (world_size() / max(total, 1))


def at_least_float32(values: Tensor) -> Tensor:
    """Lift half precisions to float32; float32 and float64 stay what they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
