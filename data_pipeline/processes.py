"""Worker processes for work that divides into items: how many, and one function applied to all.

In: a function and its items (such as the shards of a data set). Out: the results, in order. Imports
nothing heavy, because every command prints the number of cores in its help.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS does not tell the affinity


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> list[Result]:
    """Apply a function to every item in up to `workers` processes; return the results in order."""
    processes = min(workers, len(items))
    if processes <= 1:
        return [function(item) for item in items]
    # Spawned, because forking a caller that has threads (torch) can deadlock.
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_exit_with_the_parent)
    with pool:
        return list(pool.map(function, items))


def _exit_with_the_parent() -> None:
    """End this process when its parent is killed, so that it does not go on writing files."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=wait, daemon=True).start()
