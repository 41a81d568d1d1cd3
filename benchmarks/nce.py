"""InfoNCE in tiles, compared with the dense form: time and peak memory of forward and backward.

Dense is one similarity matrix, two cross-entropies and autograd. Times of both forms alternate in
one process. Memory is the growth of the resident set above the inputs, or the allocations of the
GPU, each measured in a separate process. On a CPU, the memory of two ranks follows: they share
global batches of several sizes, and each compares its rows with all columns.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measurement import device_name, process_memory, run_alone, seconds
from pretrain.objectives.nce import nce

WIDTH, TEMPERATURE, ROUNDS = 512, 0.07, 8
# Rows at which both forms are timed.
SIZES = {"cpu": (1024, 4096), "cuda": (4096, 16384, 32768)}
# Rows of the tiles alone: the dense form needs two matrices of 4 GB and their gradients here.
LARGE = 32768
# Global batches of the two ranks.
GATHERED = (256, 1024, 4096, 16384, 32768)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def dense(p: Tensor, q: Tensor, temperature: Tensor) -> Tensor:
    """Both cross-entropies of the whole similarity matrix."""
    similarity = F.normalize(p, dim=-1, eps=1e-8) @ F.normalize(q, dim=-1, eps=1e-8).T / temperature
    matches = torch.arange(len(p), device=p.device)
    return F.cross_entropy(similarity, matches) + F.cross_entropy(similarity.T, matches)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"tiled": nce, "dense": dense}


def inputs(rows: int) -> list[Tensor]:
    """Random features (rows, width) of both sides and a temperature; all need gradients."""
    torch.manual_seed(0)
    p = torch.randn(rows, WIDTH, device=DEVICE, requires_grad=True)
    q = torch.randn(rows, WIDTH, device=DEVICE, requires_grad=True)
    return [p, q, torch.tensor(TEMPERATURE, device=DEVICE, requires_grad=True)]


def step_seconds(form: str, leaves: list[Tensor]) -> float:
    """Time of one forward and backward pass."""
    # Without gradients of an earlier pass, to which this one would have to add.
    for leaf in leaves:
        leaf.grad = None
    return seconds(lambda: FORMS[form](*leaves).backward())


def peak_memory(form: str, rows: int) -> float:
    """Peak megabytes of one forward and backward pass above its inputs.

    This is the peak of the process so far: call it in a fresh one.
    """
    # A first small pass loads the libraries, whose memory is not the loss's.
    step_seconds(form, inputs(8))
    leaves = inputs(rows)
    if DEVICE == "cuda":
        allocated = torch.cuda.memory_allocated()
        step_seconds(form, leaves)
        return (torch.cuda.max_memory_allocated() - allocated) / 1e6
    before = process_memory("VmRSS")
    step_seconds(form, leaves)
    return process_memory("VmHWM") - before


def peak_memory_of_ranks(batch: int, world: int = 2) -> float:
    """Peak megabytes of a rank above its inputs; `world` ranks share a global batch over gloo."""
    command = [sys.executable, "-m", "benchmarks.nce", "tiled", str(batch // world)]
    processes = []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(world):
            words = [*command, f"{folder}/meet", str(world), str(rank)]
            # All ranks must have started before one is waited for: each waits for the others.
            processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in processes]
    return max(json.loads(output)["megabytes"] for output in outputs)


def measure_alone() -> None:
    """Print the memory and time of one pass; arguments are FORM ROWS [FILE WORLD RANK]."""
    form, rows = sys.argv[1:3]
    if len(sys.argv) > 3:
        meet, world, rank = sys.argv[3:]
        dist.init_process_group(
            "gloo", init_method=f"file://{meet}", rank=int(rank), world_size=int(world)
        )
    started = time.perf_counter()
    megabytes = peak_memory(form, int(rows))
    print(json.dumps({"megabytes": megabytes, "seconds": time.perf_counter() - started}))


def compare_forms(rows: int) -> None:
    """Print time and memory of both forms."""
    leaves = inputs(rows)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(ROUNDS):
        for form in FORMS:
            times[form].append(step_seconds(form, leaves))
    medians, parts = {}, []
    for form, values in times.items():
        # The first round warms up.
        medians[form] = statistics.median(values[1:])
        memory = run_alone("benchmarks.nce", form, str(rows))["megabytes"]
        parts.append(f"{form} {medians[form] * 1e3:.1f} ms and {memory:.0f} MB above the inputs")
    ratio = medians["tiled"] / medians["dense"]
    print(f"{rows} rows: {', '.join(parts)}; time ratio tiled / dense {ratio:.2f}", flush=True)


def main() -> None:
    """Print all comparisons, or measure as one of the separate processes."""
    if len(sys.argv) > 1:
        measure_alone()
        return
    print(f"{device_name()}, float32, width {WIDTH}, forward and backward")
    for rows in SIZES[DEVICE]:
        compare_forms(rows)
    large = run_alone("benchmarks.nce", "tiled", str(LARGE))
    print(
        f"{LARGE} rows: tiled {large['seconds']:.1f} s and {large['megabytes']:.0f} MB "
        "above the inputs"
    )
    if DEVICE == "cpu":
        for batch in GATHERED:
            memory = peak_memory_of_ranks(batch)
            print(
                f"{batch} rows over 2 ranks: {memory:.0f} MB of a rank above its inputs", flush=True
            )


if __name__ == "__main__":
    main()
