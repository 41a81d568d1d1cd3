"""Tiles of a similarity matrix too large to hold, for the losses that compare all rows of a step.

A loss computes one block of similarities after the other, and keeps only running maxima and sums of
exponentials. These stay finite at any temperature; masked entries are -inf and add nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precisions to float32; float32 and float64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def tile_side(device: torch.device) -> int:
    """Rows, and columns, of a tile: 16 MB in float32 on a CPU, 64 MB on an accelerator.

    Half the side is as fast on idle cores, but twice as slow on shared ones, because all threads
    wait for each other at the end of every call.
    """
    return 2048 if device.type == "cpu" else 4096


def spans(rows: int, device: torch.device) -> Iterator[slice]:
    """Cut rows into spans of at most one tile."""
    side = tile_side(device)
    return (slice(start, min(start + side, rows)) for start in range(0, rows, side))


class Blocks:
    """Two buffers, for a block of similarities and a spare one, that all tiles use in turn."""

    def __init__(self, rows: Tensor, columns: Tensor):
        side = tile_side(rows.device)
        size = min(len(rows), side) * min(len(columns), side)
        dtype = torch.promote_types(rows.dtype, torch.float32)
        self.buffers = torch.empty(2, size, dtype=dtype, device=rows.device)

    def multiply(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return the similarities (left, right) of a tile, and a spare block of that shape.

        Overwrites the blocks of the tile before.
        """
        shape = (len(left), len(right))
        block, spare = self.buffers[:, : shape[0] * shape[1]].view(2, *shape)
        return torch.mm(left, right.T, out=block), spare


def unit(rows: Tensor, normalize: bool = True) -> Tensor:
    """Scale rows (rows, width) to length 1 unless `normalize` is False, in float32 at least."""
    rows = at_least_float32(rows)
    return F.normalize(rows, dim=-1, eps=1e-8) if normalize else rows


def same(rows: Tensor, columns: Tensor) -> Tensor:
    """Compare ids (rows, k) and (columns, k): whether row i and column j agree in any id."""
    agree = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=rows.device)
    # Id by id: comparing all at once would hold k blocks.
    for row_id, column_id in zip(rows.unbind(1), columns.unbind(1), strict=True):
        agree |= row_id[:, None] == column_id
    return agree


def check_rows(p: Tensor, q: Tensor, ids: Tensor | None) -> None:
    """Raise ValueError unless features (rows, width) match, and ids (rows, k) if there are any."""
    ids_fit = ids is None or (ids.ndim == 2 and len(ids) == len(p))
    if p.ndim != 2 or p.shape != q.shape or not ids_fit:
        raise ValueError(
            f"p {tuple(p.shape)}, q {tuple(q.shape)} and ids must be matrices of as many rows"
        )


class RunningSum:
    """Sums of exponentials that arrive block by block, as `total` times exp(`maximum`)."""

    def __init__(self, count: int, like: Tensor):
        dtype = torch.promote_types(like.dtype, torch.float32)
        # Finite, because a block that is masked throughout would give inf - inf.
        self.maximum = torch.full((count,), torch.finfo(dtype).min, dtype=dtype, device=like.device)
        self.total = torch.zeros(count, dtype=dtype, device=like.device)

    def add(self, span: slice, block: Tensor, dim: int, spare: Tensor) -> None:
        """Add the exponentials of a block, summed over `dim`, to `span`; overwrites `spare`."""
        maximum, total = self.maximum[span], self.total[span]
        higher = torch.maximum(maximum, block.amax(dim))
        # Express the old sum in units of the new maximum, then add the block's.
        total.mul_((maximum - higher).exp_())
        total.add_(torch.sub(block, higher.unsqueeze(dim), out=spare).exp_().sum(dim))
        maximum.copy_(higher)
