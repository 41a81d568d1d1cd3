"""From embeddings to the lines of `samples.jsonl`, and from those lines to the metrics: one protocol after another.

In: embedded pictures with their annotations, queries and gallery. Out: one record per query (and
setup or drawn gallery) with the value of every metric; the metrics are means of them. Intervals
resample classes, not pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from eval.metrics.neighbours import CHUNK, KS, LabelMatches, similarities, top_k
from eval.metrics.relevant_ranks import RelevantRanks, rank_relevant, ranks_of_constant_score
from eval.results.intervals import mean_interval
from eval.results.schema import Metric
from eval.stages.metric_learning.clustering import kmeans_clusters, mutual_information
from eval.stages.metric_learning.options import PROTOCOLS, Protocol
from eval.stages.metric_learning.protocols import reidentification, revisited, visible_infrared
from eval.stages.metric_learning.protocols.pictures import Pictures, Task

TOP = 5
"""Neighbours that a record names."""
Reorder = Callable[[int, NDArray[np.intp]], NDArray[np.intp]]


def records(
    protocol: Protocol,
    gallery: Pictures,
    query: Pictures | None = None,
    *,
    ks: Sequence[int] = KS,
    shots: int = visible_infrared.SHOTS,
    draws: int = visible_infrared.DRAWS,
    seed: int = visible_infrared.SEED,
    cluster_seeds: int = 5,
    reorder: Reorder | None = None,
    depth: int = 100,
    chunk: int = CHUNK,
) -> list[dict[str, Any]]:
    """Rank the gallery for every query and return one record per query, and per setup or drawn gallery if there are.

    Parameters
    ----------
    protocol
        `classes`: every picture against all others. `query-gallery`: labels alone decide.
        `re-identification`, `sysu-all`, `sysu-indoor` (without ``query`` both sides come out of
        ``gallery``), `revisited`.
    ks
        The K of R@K, for `classes` and `query-gallery`.
    shots, draws, seed
        Pictures of each identity and camera in a gallery of SYSU-MM01, the number of galleries, and
        what draws them.
    cluster_seeds
        Runs of k-means, for `classes`; 0 for none (thousands of classes take hours).
    reorder
        Called with the row of a query and its ``depth`` best gallery rows, best first; returns them
        in a new order. Rows are those of :func:`task_of`.
    chunk
        Queries at a time, as in :func:`eval.neighbours.neighbours`.

    Raises
    ------
    UsageError, DataError, NumericsError
        For a protocol that is unknown or lacks its queries; for a missing label, camera or
        relevance, by the sample; for embeddings that are not finite.
    """
    task = task_of(protocol, gallery, query, shots=shots, draws=draws, seed=seed)
    own, found = task.query is task.gallery, []
    pictures = task.gallery.embedding
    for start, block in similarities(
        pictures if own else task.query.embedding, pictures, chunk=chunk
    ):
        rows = range(start, start + len(block))
        cosines = block if reorder is None else block.copy()
        for scores, row in zip(block, rows, strict=True):
            if own:
                scores[row] = -np.inf
            if reorder is not None:
                first = top_k(scores, depth)
                scores[_permuted(reorder(row, first), first)] = 1 + np.arange(
                    len(first), 0, -1
                )  # above any cosine
        for setting in task.settings:
            found += _of_block(task, protocol, setting, block.copy(), cosines, rows, ks)
    if protocol == "classes" and cluster_seeds:
        runs = kmeans_clusters(pictures, len(set(task.clusters)), seeds=cluster_seeds)
        for record, clusters in zip(found, runs.T.tolist(), strict=True):
            record["clusters"] = clusters
    return found


def task_of(
    protocol: Protocol,
    gallery: Pictures,
    query: Pictures | None = None,
    *,
    shots: int = visible_infrared.SHOTS,
    draws: int = visible_infrared.DRAWS,
    seed: int = visible_infrared.SEED,
) -> Task:
    """Return who is ranked for whom; arguments and errors as in :func:`records`."""
    if protocol not in PROTOCOLS:
        raise UsageError(f"the protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
    if protocol == "sysu-all" or protocol == "sysu-indoor":
        search: visible_infrared.Search = "all" if protocol == "sysu-all" else "indoor"
        return visible_infrared.task(gallery, query, search, shots=shots, draws=draws, seed=seed)
    if protocol == "classes":
        if query is not None:
            raise UsageError(
                "the protocol classes ranks a data set against itself; with queries it is query-gallery"
            )
        return _by_label(gallery, gallery)
    if query is None:
        raise UsageError(f"the protocol {protocol} needs queries beside the gallery (--query DIR)")
    if protocol == "query-gallery":
        return _by_label(gallery, query)
    return (
        reidentification.task(gallery, query)
        if protocol == "re-identification"
        else revisited.task(gallery, query)
    )


def rules(protocol: Protocol) -> dict[str, Any]:
    """Return what a protocol leaves open and is settled here, for the result."""
    if protocol.startswith("sysu"):
        shots, draws, seed = visible_infrared.SHOTS, visible_infrared.DRAWS, visible_infrared.SEED
        drawn_by = "GLSCL: not the draws of the authors' rand_perm_cam.mat"
        return {
            "galleries": {
                "gallery_shots": shots,
                "draws": draws,
                "seed": seed,
                "drawn_by": drawn_by,
            }
        }
    return (
        {"queries": "cropped to their box where they have one"} if protocol == "revisited" else {}
    )


def metrics_of(records: Iterable[Mapping[str, Any]]) -> list[Metric]:
    """Compute every metric from the records of one protocol and method.

    Means over queries with a right item, in percent: `recall@K`, `r_precision`, `map@r`, `map`;
    `rank@K`, `map`; `easy/map`, `easy/mp@K`, `medium/...`, `hard/...`. `left_out` counts the other
    queries. With clusters, `nmi`, `ami` and their standard deviations over the seeds of k-means.
    ci95 resamples classes (identities, places).

    Raises
    ------
    DataError
        If no query has a right item.
    """
    lines = list(records)
    setups = (
        dict.fromkeys(line["setting"] for line in lines)
        if lines[0]["protocol"] == "revisited"
        else [None]
    )
    metrics: list[Metric] = []
    for setup in setups:
        metrics += _means(
            [line for line in lines if setup in (None, line["setting"])],
            f"{setup}/" if setup else "",
        )
    if not any(metric.unit == "percent" for metric in metrics):
        raise DataError(
            "no query has a right item in its gallery: every class needs two pictures, or one on each side"
        )
    if "clusters" in lines[0]:
        labels = [line["label"] for line in lines]
        runs = np.array([line["clusters"] for line in lines]).T
        pairs = 100 * np.array([mutual_information(labels, run) for run in runs])
        for name, values in zip(("nmi", "ami"), pairs.T, strict=True):
            metrics.append(
                Metric(name=name, value=float(values.mean()), unit="percent", n=len(lines))
            )
            spread = float(values.std())
            metrics.append(
                Metric(name=f"{name}_std", value=spread, unit="percentage points", n=len(values))
            )
    return metrics


def _by_label(gallery: Pictures, query: Pictures) -> Task:
    labels = query.only_labels()
    # A gallery picture of no class is a distractor: its key, as a tuple, is nobody's label.
    theirs: list[str | tuple[str]] = []
    for key, names in zip(gallery.keys, gallery.labels, strict=True):
        if len(names) > 1:
            raise DataError(
                f'sample {key} has {len(names)} "labels"; a gallery picture needs one, or none'
            )
        theirs.append(names[0] if names else (key,))
    right, nothing = LabelMatches(labels, theirs), np.empty(0, np.intp)
    return Task(query, gallery, labels, lambda row, _: (right[row], nothing))


def _of_block(
    task: Task,
    protocol: Protocol,
    setting: str,
    scores: NDArray[np.float64],
    cosines: NDArray[np.float64],
    rows: range,
    ks: Sequence[int],
) -> list[dict[str, Any]]:
    right: list[NDArray[np.intp]] = []
    for line, row in zip(scores, rows, strict=True):
        same, removed = task.judge(row, setting)
        line[removed] = -np.inf
        right.append(same)
    found, ranked = rank_relevant(scores, right), None
    if task.identities is not None:
        best_scores, names = visible_infrared.best_of_identities(scores, task.identities)
        ranked = rank_relevant(
            best_scores, [np.flatnonzero(names == task.clusters[row]) for row in rows]
        )
    columns = _values(protocol, found, ranked, ks)
    lines = []
    for number, row in enumerate(rows):
        positives = int(found.positives[number])
        record = {
            "protocol": protocol,
            "query": task.query.keys[row],
            "label": task.clusters[row],
            "setting": setting,
            "positives": positives,
            "candidates": int(found.candidates[number]),
        }
        if ranked is not None:
            record["identities"] = int(ranked.candidates[number])
        if positives:
            record["values"] = {name: float(values[number]) for name, values in columns.items()}
        first, correct = top_k(scores[number], TOP), set(right[number].tolist())
        record["top"] = [
            [task.gallery.keys[at], float(cosines[number, at]), at in correct]
            for at in first.tolist()
        ]
        lines.append(record)
    return lines


def _values(
    protocol: str, found: RelevantRanks, ranked: RelevantRanks | None, ks: Sequence[int]
) -> dict[str, NDArray[np.float64]]:
    if protocol == "revisited":
        return revisited.values(found)
    if protocol not in ("classes", "query-gallery"):
        return reidentification.values(found, ranked)
    recall = {f"recall@{k}": found.hits(k) for k in ks}
    return recall | {
        "r_precision": found.r_precision(),
        "map@r": found.average_precision_at_r(),
        "map": found.average_precision(),
    }


def _means(lines: Sequence[Mapping[str, Any]], prefix: str) -> list[Metric]:
    scored = [line for line in lines if line["positives"]]
    left_out = Metric(
        name=f"{prefix}left_out", value=len(lines) - len(scored), unit="queries", n=len(lines)
    )
    if not scored:
        return [left_out]
    names = list(scored[0]["values"])
    ks = [int(name.split("@")[1]) for name in names if name.startswith("recall@")]
    guessed = ranks_of_constant_score(
        [line["positives"] for line in scored], [line["candidates"] for line in scored]
    )
    ranked = None
    if "identities" in scored[0]:
        ranked = ranks_of_constant_score(
            np.ones(len(scored)), [line["identities"] for line in scored]
        )
    chance = _values(scored[0]["protocol"], guessed, ranked, ks)
    clusters = [line["label"] for line in scored]
    metrics = []
    for name in names:
        values = 100 * np.array([line["values"][name] for line in scored])
        metrics.append(
            Metric(
                name=prefix + name,
                value=float(values.mean()),
                unit="percent",
                ci95=mean_interval(values, clusters),
                n=len(values),
                chance=float(100 * chance[name].mean()),
            )
        )
    return [*metrics, left_out]


def _permuted(order: NDArray[np.intp], first: NDArray[np.intp]) -> NDArray[np.intp]:
    if not np.array_equal(np.sort(order), np.sort(first)):
        raise ValueError("a new order must hold the same gallery rows")
    return order
