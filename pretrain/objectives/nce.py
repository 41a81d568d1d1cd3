"""InfoNCE in both directions over the rows of all ranks, for contrast, MGSC and MLTC.

The similarity matrix is computed one tile at a time, and again in the backward pass (the idea of
Inf-CL, arXiv 2410.17243): memory grows with the rows, not with their square. Both directions read
the same tiles, this rank's rows against the columns of all ranks; to complete a column, ranks
exchange two numbers. Everything runs in float32 whatever the model's precision: a bfloat16 cosine
at temperature 0.03 has a gradient error of 1 to 2 %.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.parallel.gather import gather_rows, rank, world_size

from .tiles import Blocks, RunningSum, at_least_float32, check_rows, same, spans, unit

Negatives = Literal["global", "rank"]
Gradients = Literal["exact", "published"]


def nce(
    p: Tensor,
    q: Tensor,
    temperature: Tensor | float,
    counts: Sequence[int] | None = None,
    *,
    ids: Tensor | None = None,
    negatives: Negatives = "global",
    gradients: Gradients = "exact",
    normalize: bool = True,
) -> Tensor:
    """Sum the row-to-column and column-to-row cross-entropies of matched rows.

    Parameters
    ----------
    p, q : Tensor
        Features (rows, width) of this rank, row i of `p` belonging to row i of `q`; normalized
        here.
    temperature : Tensor or float
        Divides the cosine.
    counts : sequence of int, optional
        Rows on each rank, which may differ. None: all ranks have as many as this one.
    ids : Tensor, optional
        int64 (rows, k): rows that agree in any column are not negatives of each other. A row's own
        pair always stays.
    negatives : {"global", "rank"}
        Rows of all ranks, or rows of this rank only; the latter gives the mean over this rank's
        rows, without communication.
    gradients : {"exact", "published"}
        "published" gives features 1/W of the exact gradient on W ranks, and the temperature the
        exact one, as the authors' gather does.
    normalize : bool
        False leaves the rows as they are.

    Returns
    -------
    Tensor
        A scalar whose mean over ranks is the loss over all rows together; 0 if no rank has a row.
        All ranks must send the same gradient back to it.
    """
    check_rows(p, q, ids)
    if negatives == "rank" or world_size() == 1:
        pairs = _Pairs(
            first=0, scale=1 / max(len(p), 1), normalize=normalize, together=False, share=1.0
        )
        columns, column_ids = q, ids
    else:
        counts = [len(p)] * world_size() if counts is None else counts
        pairs = _Pairs(
            first=sum(counts[: rank()]),
            scale=world_size() / max(sum(counts), 1),
            normalize=normalize,
            together=True,
            share=1 / world_size() if gradients == "published" else 1.0,
        )
        # Ranks sum gradients in float32; a side without a gradient crosses in its own precision.
        columns = gather_rows(at_least_float32(q) if q.requires_grad else q, counts)
        column_ids = None if ids is None else gather_rows(ids, counts)
    if isinstance(temperature, Tensor):
        temperature = temperature.to(torch.promote_types(p.dtype, torch.float32))
    with torch.autocast(p.device.type, enabled=False):
        return _InfoNCE.apply(p, columns, temperature, ids, column_ids, pairs)  # type: ignore[no-any-return,no-untyped-call]


class _Pairs(NamedTuple):
    """Where the pairs of this rank's rows are among the columns, and how they are weighed."""

    first: int  # column that belongs to row 0; the others follow
    scale: float  # of the sum over this rank's rows
    normalize: bool
    together: bool  # whether other ranks have rows of the same columns
    share: float  # of the exact gradient that features get


class _Tile(NamedTuple):
    rows: slice
    columns: slice
    left: Tensor  # (rows, width) normalized and divided by the temperature
    right: Tensor  # (columns, width) normalized
    block: Tensor  # (rows, columns) similarities
    spare: Tensor  # (rows, columns) to write into
    diagonal: int  # offset of the matched pairs in `block`


def _tiles(
    p: Tensor,
    q: Tensor,
    temperature: Tensor | float,
    row_ids: Tensor | None,
    column_ids: Tensor | None,
    pairs: _Pairs,
) -> Iterator[_Tile]:
    blocks = Blocks(p, q)
    for rows in spans(len(p), p.device):
        left = unit(p[rows], pairs.normalize) / temperature
        for columns in spans(len(q), q.device):
            right = unit(q[columns], pairs.normalize)
            block, spare = blocks.multiply(left, right)
            diagonal = pairs.first + rows.start - columns.start
            if row_ids is not None and column_ids is not None:
                excluded = same(row_ids[rows], column_ids[columns])
                # A row's own pair always stays.
                excluded.diagonal(diagonal).fill_(False)
                block.masked_fill_(excluded, -torch.inf)
            yield _Tile(rows, columns, left, right, block, spare, diagonal)


class _InfoNCE(torch.autograd.Function):
    """Rows (rows, width) of this rank against columns (columns, width) of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        p: Tensor,
        q: Tensor,
        temperature: Tensor | float,
        row_ids: Tensor | None,
        column_ids: Tensor | None,
        pairs: _Pairs,
    ) -> Tensor:
        over_columns, over_rows = RunningSum(len(p), p), RunningSum(len(q), p)
        positive = torch.empty_like(over_columns.total)
        for tile in _tiles(p, q, temperature, row_ids, column_ids, pairs):
            matched = tile.block.diagonal(tile.diagonal)
            start = tile.rows.start + max(0, -tile.diagonal)
            positive[start : start + len(matched)] = matched
            over_columns.add(tile.rows, tile.block, 1, tile.spare)
            over_rows.add(tile.columns, tile.block, 0, tile.spare)
        if pairs.together:
            # A column's sum runs over the rows of all ranks: agree on its maximum, then add up.
            complete = over_rows.maximum.clone()
            dist.all_reduce(complete, dist.ReduceOp.MAX)
            over_rows.total.mul_((over_rows.maximum - complete).exp_())
            dist.all_reduce(over_rows.total)
            over_rows.maximum = complete
        sums = (over_columns.maximum, over_columns.total, over_rows.maximum, over_rows.total)
        learnt = temperature if isinstance(temperature, Tensor) else None
        ctx.save_for_backward(p, q, row_ids, column_ids, learnt, *sums)
        ctx.temperature, ctx.pairs = None if learnt is not None else temperature, pairs
        columns = slice(pairs.first, pairs.first + len(p))
        # Subtract similarities first: identical rows then give ln(rows) without rounding.
        forward = (over_columns.maximum - positive) + over_columns.total.log()
        backward = (over_rows.maximum[columns] - positive) + over_rows.total[columns].log()
        return (forward + backward).sum() * pairs.scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        p, q, row_ids, column_ids, learnt, row_maximum, row_total, column_maximum, column_total = (
            ctx.saved_tensors
        )
        temperature, pairs = ctx.temperature if learnt is None else learnt, ctx.pairs
        p_learns, q_learns, temperature_learns = ctx.needs_input_grad[:3]
        # First the gradients of the normalized sides of all tiles, then those of the rows.
        toward_left = toward_right = None
        if p_learns or temperature_learns:
            toward_left = p.new_zeros(p.shape, dtype=gradient.dtype)
        if q_learns:
            toward_right = q.new_zeros(q.shape, dtype=gradient.dtype)
        row_weight, column_weight = row_total.reciprocal(), column_total.reciprocal()
        slope = None
        with torch.autocast(p.device.type, enabled=False):
            for tile in _tiles(p, q, temperature, row_ids, column_ids, pairs):
                # Softmax over columns plus softmax over rows, minus 2 for the matched pairs: the
                # gradient of both cross-entropies with respect to the similarities.
                pull = torch.sub(tile.block, row_maximum[tile.rows, None], out=tile.spare).exp_()
                pull.mul_(row_weight[tile.rows, None])
                down = tile.block.sub_(column_maximum[tile.columns]).exp_()
                pull.addcmul_(down, column_weight[tile.columns].expand_as(down))
                pull.diagonal(tile.diagonal).sub_(2)
                if toward_left is not None:
                    toward_left[tile.rows].addmm_(pull, tile.right)
                if toward_right is not None:
                    toward_right[tile.columns].addmm_(pull.T, tile.left)
            scale = gradient * pairs.scale
            if toward_left is not None and temperature_learns:
                # The sum of pull * block over all tiles equals the sum of left * toward_left, which
                # needs no further pass over the tiles.
                slope = torch.zeros_like(temperature)
                for rows in spans(len(p), p.device):
                    product = (unit(p[rows], pairs.normalize) * toward_left[rows]).sum()
                    slope -= product / temperature**2 * scale
            if not p_learns:
                toward_left = None
            if toward_left is not None:
                left_scale = scale * pairs.share / temperature
                toward_left = _toward_rows(p, toward_left, left_scale, pairs.normalize)
            if toward_right is not None:
                toward_right = _toward_rows(q, toward_right, scale * pairs.share, pairs.normalize)
        return toward_left, toward_right, slope, None, None, None


def _toward_rows(rows: Tensor, gradient: Tensor, scale: Tensor, normalize: bool) -> Tensor:
    """Turn the gradient of normalized rows into the gradient of the rows.

    Works in place if the precisions agree.
    """
    result = gradient if gradient.dtype == rows.dtype else torch.empty_like(rows)
    for span in spans(len(rows), rows.device):
        with torch.enable_grad():
            leaf = rows[span].detach().requires_grad_()
            normal = unit(leaf, normalize)
        result[span] = torch.autograd.grad(normal, leaf, gradient[span] * scale)[0]
    return result
