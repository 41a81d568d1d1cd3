"""Blocks of a similarity matrix that is never held whole: what the losses over many columns have in common.

Running maxima and sums of exponentials stay finite at any temperature; masked entries are -inf and
weigh nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Lift half precisions to float32; float32 and float64 stay what they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def tile_side(device: torch.device) -> int:
    """Rows and columns of a tile: 16 MB in float32 on a CPU, 64 MB on an accelerator.

    Half of it is as fast on idle cores, but twice as slow on shared ones: threads meet at the end
    of every call.
    """
    return 2048 if device.type == "cpu" else 4096


def spans(rows: int, device: torch.device) -> Iterator[slice]:
    """Cut rows into the sides of tiles."""
    side = tile_side(device)
    return (slice(start, min(start + side, rows)) for start in range(0, rows, side))


class Blocks:
    """Room for a block of similarities and a spare one, which all tiles of a matrix use in turn."""

    def __init__(self, rows: Tensor, columns: Tensor):
        side = tile_side(rows.device)
        size = min(len(rows), side) * min(len(columns), side)
        dtype = torch.promote_types(rows.dtype, torch.float32)
        self.room = torch.empty(2, size, dtype=dtype, device=rows.device)

    def multiply(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities (left, right) of two sides of a tile, and a spare block; the block before is overwritten."""
        shape = (len(left), len(right))
        block, spare = self.room[:, : shape[0] * shape[1]].view(2, *shape)
        return torch.mm(left, right.T, out=block), spare


def unit(rows: Tensor, normalize: bool = True) -> Tensor:
    """Rows (rows, width) of length 1, in float32 at least; as long as they are without `normalize`."""
    rows = at_least_float32(rows)
    return F.normalize(rows, dim=-1, eps=1e-8) if normalize else rows


def same(rows: Tensor, columns: Tensor) -> Tensor:
    """Whether row i and column j agree in any of their ids: (rows, k), (columns, k) -> (rows, columns)."""
    found = torch.zeros(len(rows), len(columns), dtype=torch.bool, device=rows.device)
    for row_id, column_id in zip(rows.unbind(1), columns.unbind(1), strict=True):
        found |= row_id[:, None] == column_id
    return found


class RunningSum:
    """Sums of exponentials that arrive block by block: `total` counts in units of exp(`maximum`)."""

    def __init__(self, count: int, like: Tensor):
        dtype = torch.promote_types(like.dtype, torch.float32)
        # Finite, so that a block masked throughout cannot give inf - inf.
        self.maximum = torch.full((count,), torch.finfo(dtype).min, dtype=dtype, device=like.device)
        self.total = torch.zeros(count, dtype=dtype, device=like.device)

    def add(self, span: slice, block: Tensor, dim: int, spare: Tensor) -> None:
        """Add the exponentials of a block, summed over `dim`, to the entries of `span`; writes into `spare`."""
        maximum, total = self.maximum[span], self.total[span]
        higher = torch.maximum(maximum, block.amax(dim))
        total.mul_((maximum - higher).exp_()).add_(
            torch.sub(block, higher.unsqueeze(dim), out=spare).exp_().sum(dim)
        )
        maximum.copy_(higher)
