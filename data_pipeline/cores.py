"""How many processor cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Count the cores that this process may run on: all of the machine's where the system does not say."""
    # macOS has no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
