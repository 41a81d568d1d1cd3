"""Gathers over all ranks, with exact gradients.

W ranks of b rows get the gradient of one process with W * b rows. The backward pass of the gather
sums what every rank sends back to a row. That is exact for a loss whose *mean over ranks* is the
global loss and a data-parallel wrapper that averages gradients; the authors' gather gives 1/W of
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Count the ranks that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among the ranks."""
    return dist.get_rank() if dist.is_initialized() else 0


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = rows.new_empty(world_size(), *rows.shape)
        dist.all_gather(list(parts), rows.contiguous())
        return parts

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The sum over ranks of what each sends back to this rank's rows.
        if dist.get_backend() == "nccl":
            local_rows = torch.empty_like(gradient[0])
            dist.reduce_scatter(local_rows, list(gradient.contiguous()))
            return local_rows
        # gloo has no reduce-scatter. The copy keeps autograd's own tensor as it was.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[rank()]


def gather_rows(rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """Concatenate rows (n, width) of all ranks in rank order.

    `counts` is the number of rows of each rank; None: all have as many as this one. Gradients flow
    back to every rank's rows, summed over ranks.
    """
    if world_size() == 1:
        return rows
    counts = [len(rows)] * world_size() if counts is None else counts
    longest = max(counts)
    if min(counts) == longest:
        return _AllGather.apply(rows).flatten(0, 1)
    # A collective needs tensors of one shape: pad, gather, and cut the padding off again.
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = _AllGather.apply(padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_counts(values: Sequence[int]) -> list[list[int]]:
    """Collect integers of every rank: result[i] lists value i of each rank.

    Runs on the CPU, so that it does not wait for the device.
    """
    if world_size() == 1:
        return [[value] for value in values]
    local_values = torch.tensor(values, dtype=torch.int64)
    parts = [torch.empty_like(local_values) for _ in range(world_size())]
    dist.all_gather(parts, local_values, group=_cpu_group())
    return torch.stack(parts, dim=1).tolist()


@cache
def _cpu_group() -> dist.ProcessGroup | None:
    """Make a gloo group for values on the CPU; None if the default group is one."""
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
