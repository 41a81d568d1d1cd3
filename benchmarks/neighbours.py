"""Retrieval metrics of 60,000 embeddings, in chunks: time, and peak memory of a separate process.

    python -m benchmarks.neighbours [QUERIES]

First the chunked metrics of the package and the plain form alternate on fewer items. Plain means
that all cosines are in one matrix, whose rows are sorted whole, and gives the same four metrics.
Then QUERIES of the 60,000 embeddings are ranked against all others, and the time of all queries is
extrapolated. The default is a tenth: all of them (`python -m benchmarks.neighbours 60000`) take
minutes on two cores.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from benchmarks.measurement import process_memory, run_alone
from eval.metrics.neighbours import neighbours

# About the size of Stanford Online Products: 60,502 items, five per class.
ITEMS, PER_CLASS = 60_000, 5
WIDTH = 512
SMALL = 4_000
ROUNDS = 3


def inputs(items: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw embeddings (items, width) near the center of their class, and the classes (items,)."""
    generator = np.random.default_rng(0)
    labels = np.arange(items) // PER_CLASS
    centers = generator.standard_normal((labels[-1] + 1, WIDTH), dtype=np.float32)
    noise = generator.standard_normal((items, WIDTH), dtype=np.float32)
    # With this much noise some of the nearest items are right and some are wrong.
    return centers[labels] + 2.5 * noise, labels


def plain(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Compute the metrics from one sorted matrix of all cosines."""
    unit = (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float64)
    scores = unit @ unit.T
    # An item is not its own neighbor: it comes last, and the last column is cut off.
    np.fill_diagonal(scores, -np.inf)
    hit = labels[np.argsort(-scores, axis=1)[:, :-1]] == labels[:, None]
    relevant = np.bincount(labels)[labels] - 1
    rank = np.arange(1, hit.shape[1] + 1)
    precision_of_hits = np.cumsum(hit, axis=1) / rank * hit
    within_r = rank <= relevant[:, None]
    return {
        "recall@1": float(hit[:, 0].mean()),
        "r_precision": float(((hit & within_r).sum(axis=1) / relevant).mean()),
        "map@r": float(((precision_of_hits * within_r).sum(axis=1) / relevant).mean()),
        "map": float((precision_of_hits.sum(axis=1) / relevant).mean()),
    }


def chunked(embeddings: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Compute the metrics as the evaluation stage does."""
    return neighbours(embeddings, labels.tolist(), ks=(1,)).means()


FORMS: dict[str, Callable[[NDArray[np.float32], NDArray[np.int64]], dict[str, float]]] = {
    "chunked": chunked,
    "plain": plain,
}


def rank_queries(queries: int) -> dict[str, float]:
    """Rank all items for some of them; return seconds, and megabytes above the embeddings."""
    embeddings, labels = inputs(ITEMS)
    before, started = process_memory("VmRSS"), time.perf_counter()
    if queries < ITEMS:
        neighbours(embeddings[:queries], labels[:queries].tolist(), embeddings, labels.tolist())
    else:
        neighbours(embeddings, labels.tolist())
    seconds = time.perf_counter() - started
    peak = process_memory("VmHWM")
    return {"seconds": seconds, "megabytes": peak - before, "whole": peak}


def compare_forms() -> None:
    """Print the times of both forms, and how far apart their metrics are."""
    embeddings, labels = inputs(SMALL)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    metrics: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        for form, compute in FORMS.items():
            started = time.perf_counter()
            metrics[form] = compute(embeddings, labels)
            times[form].append(time.perf_counter() - started)
    differences = []
    for name, value in metrics["plain"].items():
        differences.append(abs(metrics["chunked"][name] - value))
    chunked_time = statistics.median(times["chunked"])
    plain_time = statistics.median(times["plain"])
    print(
        f"{SMALL} x {WIDTH}: chunked {chunked_time:.2f} s, plain {plain_time:.2f} s; "
        f"time ratio chunked / plain {chunked_time / plain_time:.2f}; "
        f"metrics differ by {max(differences):.0e}",
        flush=True,
    )


def main() -> None:
    """Print both comparisons, or measure as the separate process."""
    if sys.argv[1:2] == ["alone"]:
        print(json.dumps(rank_queries(int(sys.argv[2]))))
        return
    queries = int(sys.argv[1]) if len(sys.argv) > 1 else ITEMS // 10
    compare_forms()
    large = run_alone("benchmarks.neighbours", "alone", str(queries))
    print(
        f"{ITEMS} x {WIDTH}, {queries} queries: {large['seconds']:.1f} s, "
        f"all queries {large['seconds'] * ITEMS / queries:.0f} s; "
        f"{large['megabytes']:.0f} MB above the embeddings, {large['whole']:.0f} MB in all"
    )


if __name__ == "__main__":
    main()
