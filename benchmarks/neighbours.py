"""Retrieval metrics of 60,000 embeddings in chunks: time, and peak memory of a process of its own.

Beside it, on fewer items, the plain form: all cosines in one matrix, every row sorted whole, the
same four metrics. A tenth of the 60,000 asks the whole gallery, and the time of all is told by rule
of three: all of them asking (`python -m benchmarks.neighbours 60000`) takes minutes on two cores.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eval.metrics.neighbours import neighbours

ITEMS, WIDTH, PER_CLASS = (
    60_000,
    512,
    5,
)  # Stanford Online Products has 60,502 items, five of a class
SMALL = 4_000


def inputs(items: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Classes whose items lie near each other, so that some of the neighbours are right."""
    generator = np.random.default_rng(0)
    labels = np.arange(items) // PER_CLASS
    centres = generator.standard_normal((labels[-1] + 1, WIDTH), dtype=np.float32)
    return centres[labels] + 2.5 * generator.standard_normal(
        (items, WIDTH), dtype=np.float32
    ), labels


def plain(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Sort one matrix."""
    unit = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float64)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    hit = labels[np.argsort(-scores, axis=1)[:, :-1]] == labels[:, None]
    right = np.bincount(labels)[labels] - 1
    place = np.arange(1, hit.shape[1] + 1)
    precision = np.cumsum(hit, axis=1) / place * hit
    first = place <= right[:, None]
    return {
        "recall@1": float(hit[:, 0].mean()),
        "r_precision": float(((hit & first).sum(axis=1) / right).mean()),
        "map@r": float(((precision * first).sum(axis=1) / right).mean()),
        "map": float((precision.sum(axis=1) / right).mean()),
    }


def chunked(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Measure as the stage does."""
    return neighbours(embeddings, labels, ks=(1,)).means()


FORMS: dict[str, Callable[[NDArray[np.float32], NDArray[np.int64]], dict[str, float]]] = {
    "chunked": chunked,
    "plain": plain,
}


def asking(queries: int) -> dict[str, float]:
    """So many of all items ask all others: seconds, and megabytes of the process above its embeddings."""
    embeddings, labels = inputs(ITEMS)
    before, started = status("VmRSS"), time.perf_counter()
    neighbours(
        embeddings[:queries], labels[:queries], *((embeddings, labels) if queries < ITEMS else ())
    )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": status("VmHWM") - before, "whole": status("VmHWM")}


def status(field: str) -> float:
    """Megabytes of this process, from the kernel."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024 / 1e6


def fresh(queries: int) -> dict[str, float]:
    """`asking` in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.neighbours", "asking", str(queries)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    if sys.argv[1:2] == ["asking"]:
        print(json.dumps(asking(int(sys.argv[2]))))
        sys.exit()
    queries = int(sys.argv[1]) if len(sys.argv) > 1 else ITEMS // 10
    small = inputs(SMALL)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    found: dict[str, dict[str, float]] = {}
    for _ in range(3):
        for form, metrics in FORMS.items():
            started = time.perf_counter()
            found[form] = metrics(*small)
            times[form].append(time.perf_counter() - started)
    apart = max(abs(found["chunked"][name] - found["plain"][name]) for name in found["plain"])
    medians = {form: statistics.median(values) for form, values in times.items()}
    print(
        f"{SMALL} x {WIDTH}: chunked {medians['chunked']:.2f} s, plain {medians['plain']:.2f} s; time ratio chunked / "
        f"plain {medians['chunked'] / medians['plain']:.2f}; metrics differ by {apart:.0e}",
        flush=True,
    )
    large = fresh(queries)
    print(
        f"{ITEMS} x {WIDTH}, {queries} ask: {large['seconds']:.1f} s, all {large['seconds'] * ITEMS / queries:.0f} s; "
        f"{large['megabytes']:.0f} MB above the embeddings, {large['whole']:.0f} MB in all"
    )
