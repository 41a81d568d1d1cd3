"""InfoNCE against a sample of the rows, so that local completion costs less in large batches.

The batch says which rows are negatives. They are drawn per sample, so that neither ranks nor
micro-batches change the loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.parallel.gather import gather_rows, world_size

from .negatives import cross_entropy, log_sum, row_numbers
from .tiles import check_rows, unit


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
    """Sum both directions, with each row's own pair against the chosen rows of all ranks.

    Parameters
    ----------
    p, q : Tensor
        Features (rows, width) of this rank, row i of `p` belonging to row i of `q`; normalized
        here.
    temperature : Tensor or float
        Divides the cosine.
    chosen : Tensor
        int64 (k,): rows of this rank that are negatives of all other rows.
    counts, chosen_counts : sequence of int, optional
        Rows and chosen rows on each rank. None: all ranks have as many as this one.
    ids : Tensor, optional
        int64 (rows, k): rows that agree in any column are not negatives of each other.

    Returns
    -------
    Tensor
        A scalar whose mean over ranks is the mean over all rows; with every row chosen it is `nce`.
    """
    check_rows(p, q, ids)
    total = len(p) * world_size() if counts is None else sum(counts)
    # A chosen row agrees with itself in its number, and so is not its own negative.
    row_ids = row_numbers(p) if ids is None else torch.cat([row_numbers(p), ids], dim=1)
    column_ids = gather_rows(row_ids[chosen], chosen_counts)
    with torch.autocast(p.device.type, enabled=False):
        p, q = unit(p), unit(q)
        left = p / temperature
        positive = (left * q).sum(1)
        chosen_q = gather_rows(q[chosen], chosen_counts)
        against_q = log_sum(left, chosen_q, row_ids, column_ids)
        chosen_p = gather_rows(p[chosen], chosen_counts)
        against_p = log_sum(q / temperature, chosen_p, row_ids, column_ids)
        losses = cross_entropy(positive, against_q) + cross_entropy(positive, against_p)
        # The mean over ranks of this share is the mean over all rows.
        return losses.sum() * (world_size() / max(total, 1))
