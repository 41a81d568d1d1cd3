"""Cross-entropy of one positive against many negatives, computed in tiles.

A row with the positive s and the negatives n_1, n_2, ... has the loss softplus(log_sum(n) - s),
which is the cross-entropy of s against all of them. The losses over sampled negatives
(`sampled.py`) and over local features (`tcl.py`) are made of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.parallel.gather import rank

from .tiles import Blocks, RunningSum, same, spans


def log_sum(rows: Tensor, columns: Tensor, row_ids: Tensor, column_ids: Tensor) -> Tensor:
    """Compute the logarithm of the summed exponentials of each row's similarities to the columns.

    Parameters
    ----------
    rows, columns : Tensor
        (rows, width) and (columns, width). The similarity is their product: divide one of them by
        the temperature before.
    row_ids, column_ids : Tensor
        int64 (rows, k) and (columns, k): a column that agrees with a row in any id is not part of
        its sum.

    Returns
    -------
    Tensor
        (rows,); -inf where no column remains.
    """
    return _LogSum.apply(rows, columns, row_ids, column_ids)  # type: ignore[no-any-return,no-untyped-call]


def cross_entropy(positive: Tensor, negatives: Tensor) -> Tensor:
    """Compute the cross-entropy of a positive's similarity against `log_sum` of its negatives."""
    # Above its threshold softplus is linear; the default of 20 would cost float64 its last digits.
    return F.softplus(negatives - positive, threshold=50)


def row_numbers(rows: Tensor) -> Tensor:
    """Give each row a number that no other row of any rank has: int64 (rows, 1)."""
    return torch.arange(len(rows), device=rows.device)[:, None] + (rank() << 32)


def _tiles(
    rows: Tensor, columns: Tensor, row_ids: Tensor, column_ids: Tensor
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    blocks = Blocks(rows, columns)
    for right in spans(len(columns), columns.device):
        for left in spans(len(rows), rows.device):
            block, spare = blocks.multiply(rows[left], columns[right])
            block.masked_fill_(same(row_ids[left], column_ids[right]), -torch.inf)
            yield left, right, block, spare


class _LogSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, row_ids: Tensor, column_ids: Tensor
    ) -> Tensor:
        sums = RunningSum(len(rows), rows)
        for left, _, block, spare in _tiles(rows, columns, row_ids, column_ids):
            sums.add(left, block, 1, spare)
        ctx.save_for_backward(rows, columns, row_ids, column_ids, sums.maximum, sums.total)
        return sums.maximum + sums.total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, columns, row_ids, column_ids, maximum, total = ctx.saved_tensors
        toward_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
        toward_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
        # An empty sum has the gradient 0, not 0 / 0.
        weight = torch.where(total > 0, gradient / total, 0)
        with torch.autocast(rows.device.type, enabled=False):
            for left, right, block, _ in _tiles(rows, columns, row_ids, column_ids):
                pull = block.sub_(maximum[left, None]).exp_().mul_(weight[left, None])
                if toward_rows is not None:
                    toward_rows[left].addmm_(pull, columns[right])
                if toward_columns is not None:
                    toward_columns[right].addmm_(pull.T, rows[left])
        return toward_rows, toward_columns, None, None
