"""Retrieval metrics of 60,000 embeddings in chunks: time, and peak memory of a separate process.

On fewer items, they are compared with the plain form: all cosines in one matrix, every row sorted,
the same four metrics. A tenth of the 60,000 items are queries against the whole gallery, and their
time is scaled up; all of them (`python -m benchmarks.neighbours 60000`) take minutes on two cores.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.memory import status
from eval.metrics.neighbours import neighbours

# As in Stanford Online Products, which has 60,502 test images and about five per class.
ITEMS, WIDTH, PER_CLASS = 60_000, 512, 5
SMALL = 4_000


def inputs(items: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Make classes of items near each other, so that some neighbours are of the same class."""
    generator = np.random.default_rng(0)
    labels = np.arange(items) // PER_CLASS
    centres = generator.standard_normal((labels[-1] + 1, WIDTH), dtype=np.float32)
    noise = generator.standard_normal((items, WIDTH), dtype=np.float32)
    return centres[labels] + 2.5 * noise, labels


def plain(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Compute the metrics from one sorted matrix."""
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
    """Compute the metrics in chunks, as the stage does."""
    return neighbours(embeddings, labels, ks=(1,)).means()


FORMS: dict[str, Callable[[NDArray[np.float32], NDArray[np.int64]], dict[str, float]]] = {
    "chunked": chunked,
    "plain": plain,
}


def asking(queries: int) -> dict[str, float]:
    """Measure seconds and megabytes, above the embeddings, of `queries` items against all items."""
    embeddings, labels = inputs(ITEMS)
    before, started = status("VmRSS"), time.perf_counter()
    if queries < ITEMS:
        neighbours(embeddings[:queries], labels[:queries], embeddings, labels)
    else:
        neighbours(embeddings, labels)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": status("VmHWM") - before, "whole": status("VmHWM")}


def fresh(queries: int) -> dict[str, float]:
    """Run `asking` in a separate process."""
    words = [sys.executable, "-m", "benchmarks.neighbours", "asking", str(queries)]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    if sys.argv[1:2] == ["asking"]:
        print(json.dumps(asking(int(sys.argv[2]))))
        sys.exit()
    queries = int(sys.argv[1]) if len(sys.argv) > 1 else ITEMS // 10
    small = inputs(SMALL)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    results: dict[str, dict[str, float]] = {}
    for _ in range(3):
        for form, metrics in FORMS.items():
            started = time.perf_counter()
            results[form] = metrics(*small)
            times[form].append(time.perf_counter() - started)
    chunked_values, plain_values = results["chunked"], results["plain"]
    differences = [abs(chunked_values[name] - value) for name, value in plain_values.items()]
    medians = {form: statistics.median(values) for form, values in times.items()}
    ratio = medians["chunked"] / medians["plain"]
    print(
        f"{SMALL} x {WIDTH}: chunked {medians['chunked']:.2f} s, plain {medians['plain']:.2f} s; ",
        end="",
    )
    print(f"ratio {ratio:.2f}; metrics differ by {max(differences):.0e}", flush=True)
    large = fresh(queries)
    scaled = large["seconds"] * ITEMS / queries
    print(
        f"{ITEMS} x {WIDTH}, {queries} queries: {large['seconds']:.1f} s, all {scaled:.0f} s; "
        f"{large['megabytes']:.0f} MB above the embeddings, {large['whole']:.0f} MB in total"
    )
