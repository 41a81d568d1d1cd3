"""One process, or DistributedDataParallel: every rank holds the whole model."""

from __future__ import annotations

from .engines import Engine


class DDP(Engine):
    """The engine of a start that names no other."""

    name = "ddp"
    distributed_types = ("NO", "MULTI_GPU", "MULTI_CPU")
    # DDP rebuilds its buckets after the first backward pass of a process.
    warms_up = True

    @classmethod
    def parameter_bytes(cls, name: str, averaged: bool) -> tuple[int, int]:
        """Every rank holds everything."""
        return 16 + 4 * averaged, 0
