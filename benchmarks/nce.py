"""InfoNCE in tiles compared with the dense form: time and peak memory of forward and backward.

The dense form is one similarity matrix, two cross-entropies and autograd. Times alternate in one
process. Memory is the growth of the resident set above the inputs, each in a separate process; on a
GPU, it is GPU memory. Then global batches of several sizes are divided over two ranks, each with
its own rows against all columns.
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

from benchmarks.memory import status
from pretrain.objectives.nce import nce

WIDTH, TEMPERATURE = 512, 0.07
SIZES = {"cpu": (1024, 4096), "cuda": (4096, 16384, 32768)}
"""Rows for which both forms are timed."""
LARGE = 32768
GATHERED = (256, 1024, 4096, 16384, 32768)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def dense(p: Tensor, q: Tensor, temperature: Tensor) -> Tensor:
    """Compute both cross-entropies of the whole matrix."""
    similarity = F.normalize(p, dim=-1, eps=1e-8) @ F.normalize(q, dim=-1, eps=1e-8).T / temperature
    targets = torch.arange(len(p), device=p.device)
    return F.cross_entropy(similarity, targets) + F.cross_entropy(similarity.T, targets)


FORMS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"tiled": nce, "dense": dense}


def inputs(rows: int) -> list[Tensor]:
    """Make random features and a temperature, all with gradients."""
    torch.manual_seed(0)
    p, q = (torch.randn(rows, WIDTH, device=DEVICE, requires_grad=True) for _ in range(2))
    return [p, q, torch.tensor(TEMPERATURE, device=DEVICE, requires_grad=True)]


def seconds(form: str, leaves: list[Tensor]) -> float:
    """Time one forward and backward pass."""
    for leaf in leaves:
        leaf.grad = None
    started = time.perf_counter()
    FORMS[form](*leaves).backward()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def megabytes(form: str, rows: int) -> float:
    """Measure the peak memory of this process above the inputs; call it in a new process."""
    seconds(form, inputs(8))
    leaves = inputs(rows)
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        seconds(form, leaves)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = status("VmRSS")
    seconds(form, leaves)
    return status("VmHWM") - before


def gathered(batch: int, world: int = 2) -> float:
    """Measure peak megabytes of a rank above its inputs; `world` ranks share the global batch."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "benchmarks.nce", "tiled", str(batch // world)]
        words += [f"{folder}/meet", str(world)]
        ranks = []
        for rank in range(world):
            command = [*words, str(rank)]
            ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        outputs = [process.communicate()[0] for process in ranks]
    return max(json.loads(line)["megabytes"] for line in outputs)


def fresh(form: str, rows: int) -> dict[str, float]:
    """Measure memory and seconds of one call in a separate process."""
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.nce", form, str(rows)],
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(finished.stdout)


if __name__ == "__main__":
    if len(sys.argv) > 3:
        meet, world, rank = sys.argv[3:]
        dist.init_process_group(
            "gloo", init_method=f"file://{meet}", rank=int(rank), world_size=int(world)
        )
    if len(sys.argv) > 1:
        started = time.perf_counter()
        used = megabytes(sys.argv[1], int(sys.argv[2]))
        print(json.dumps({"megabytes": used, "seconds": time.perf_counter() - started}))
        sys.exit()
    name = f"{torch.get_num_threads()} CPU threads"
    if DEVICE == "cuda":
        name = torch.cuda.get_device_name()
    print(f"{name}, float32, width {WIDTH}, forward and backward")
    for rows in SIZES[DEVICE]:
        leaves = inputs(rows)
        times: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(8):
            for form in FORMS:
                times[form].append(seconds(form, leaves))
        medians = {form: statistics.median(values[1:]) for form, values in times.items()}
        memory = {form: fresh(form, rows)["megabytes"] for form in FORMS}
        print(
            f"{rows} rows: "
            f"tiled {medians['tiled'] * 1e3:.1f} ms and {memory['tiled']:.0f} MB above the inputs, "
            f"dense {medians['dense'] * 1e3:.1f} ms and {memory['dense']:.0f} MB; "
            f"time ratio tiled / dense {medians['tiled'] / medians['dense']:.2f}"
        )
    alone = fresh("tiled", LARGE)
    print(f"{LARGE} rows: tiled {alone['seconds']:.1f} s ", end="")
    print(f"and {alone['megabytes']:.0f} MB above the inputs")
    if DEVICE == "cpu":
        for batch in GATHERED:
            used = gathered(batch)
            print(f"{batch} rows over 2 ranks: {used:.0f} MB per rank above its inputs", flush=True)
