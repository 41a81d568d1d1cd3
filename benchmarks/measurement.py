"""What the benchmarks share: wall time, memory of a process, and measurements in a fresh process.

`run_alone` starts one of the benchmarks as a separate process with the arguments given, and returns
the JSON object in its last line. Peak memory can be measured only that way: a process never gives
back the high-water mark of what it ran before. The functions that need torch import it themselves,
because the whole memory of `benchmarks.neighbours` is measured, which runs without it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    import torch

    # CUDA runs kernels in the background: unless they are waited for before and after, the time
    # includes those of earlier calls and misses those of this one.
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def process_memory(field: str) -> float:
    """Megabytes of this process: `VmRSS` is resident now, `VmHWM` is the highest so far."""
    # Not ru_maxrss, which in a child starts at the peak of its parent.
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1]) * 1024 / 1e6
    raise ValueError(f"the kernel does not report {field}")


def run_alone(
    module: str, *arguments: str, environment: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Run a module in a separate process, with additional environment variables if any."""
    finished = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | dict(environment or {}),
    )
    measured: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def device_name() -> str:
    """Name the GPU, or the number of CPU threads where there is none."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"


def software() -> str:
    """Describe what every table of times depends on: threads, torch and the date."""
    import torch

    date = time.strftime("%Y-%m-%d")
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}, {date}"
