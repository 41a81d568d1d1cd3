"""InfoNCE against a sample of the rows: what the local completion loss costs then grows with the sample, not the batch.

Which rows serve as negatives stands in the batch, drawn per sample, so that ranks and micro-batches
change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.parallel.gather import gather_rows, world_size

from .negatives import cross_entropy, log_sum, row_numbers
from .tiles import unit


def sampled_nce(
    p: Tensor,
    q: Tensor,
    temperature: Tensor | float,
    chosen: Tensor,
    counts: Sequence[int] | None = None,
    chosen_counts: Sequence[int] | None = None,
    *,
    ids: Tensor | None = None,
) -> Tensor:
    """Sum of both directions, each row's own pair against only the chosen rows of all ranks.

    Parameters
    ----------
    p, q : Tensor
        Features (rows, width) of this rank, row i of `p` belonging to row i of `q`; normalised
        here.
    temperature : Tensor or float
        Divides the cosine.
    chosen : Tensor
        int64 (k,): rows of this rank that are everybody's negatives; a chosen row is none of its
        own.
    counts, chosen_counts : sequence of int, optional
        Rows and chosen rows of each rank. None: all ranks have as many as this one.
    ids : Tensor, optional
        int64 (rows, k): rows that agree in any column are not negatives of each other.

    Returns
    -------
    Tensor
        A scalar whose mean over ranks is the mean over all rows; with every row chosen it is `nce`.
    """
    if (
        p.ndim != 2
        or p.shape != q.shape
        or (ids is not None and (ids.ndim != 2 or len(ids) != len(p)))
    ):
        raise ValueError(
            f"p {tuple(p.shape)}, q {tuple(q.shape)} and ids must be matrices of as many rows"
        )
    total = len(p) * world_size() if counts is None else sum(counts)
    row_ids = row_numbers(p) if ids is None else torch.cat([row_numbers(p), ids], dim=1)
    column_ids = gather_rows(row_ids[chosen], chosen_counts)
    with torch.autocast(p.device.type, enabled=False):
        p, q = unit(p), unit(q)
        left = p / temperature
        own = (left * q).sum(1)
        against_q = log_sum(left, gather_rows(q[chosen], chosen_counts), row_ids, column_ids)
        against_p = log_sum(
            q / temperature, gather_rows(p[chosen], chosen_counts), row_ids, column_ids
        )
        losses = cross_entropy(own, against_q) + cross_entropy(own, against_p)
        return losses.sum() * (world_size() / max(total, 1))
