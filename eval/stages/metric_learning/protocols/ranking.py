"""From embeddings to records, and from records to metrics, by one protocol after another.

In: embedded images with their annotations, queries and gallery. Out: one record per query (and
setup or drawn gallery) with the value of every metric; the metrics are means of these values.
Intervals resample classes, not images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from eval.metrics.neighbours import CHUNK, KS, LabelMatches, similarities, top_k
from eval.metrics.relevant_ranks import RelevantRanks, rank_relevant, ranks_of_constant_score
from eval.results.intervals import mean_metric
from eval.results.schema import Metric
from eval.stages.metric_learning.clustering import kmeans_clusters, mutual_information
from eval.stages.metric_learning.options import PROTOCOLS, Protocol
from eval.stages.metric_learning.protocols import reidentification, revisited, visible_infrared
from eval.stages.metric_learning.protocols.task import EmbeddedImages, Task
from eval.stages.metric_learning.records import RankedQuery

TOP = 5
"""Neighbours that a record names."""
Reorder = Callable[[int, NDArray[np.intp]], NDArray[np.intp]]


def rank_gallery(
    protocol: Protocol,
    gallery: EmbeddedImages,
    query: EmbeddedImages | None = None,
    *,
    ks: Sequence[int] = KS,
    shots: int = visible_infrared.SHOTS,
    draws: int = visible_infrared.DRAWS,
    seed: int = visible_infrared.SEED,
    cluster_seeds: int = 5,
    reorder: Reorder | None = None,
    depth: int = 100,
    chunk: int = CHUNK,
) -> list[RankedQuery]:
    """Rank the gallery for every query.

    Returns one record per query, and per setup or drawn gallery if the protocol has several.

    Parameters
    ----------
    protocol
        `classes`: every image against all others. `query-gallery`: labels alone decide.
        `re-identification`, `sysu-all`, `sysu-indoor` (without ``query`` both sides are taken from
        ``gallery``), `revisited`.
    ks
        The values K of R@K, for `classes` and `query-gallery`.
    shots, draws, seed
        Images of each identity and camera in a gallery of SYSU-MM01, the number of galleries, and
        the seed that draws them.
    cluster_seeds
        Runs of k-means, for `classes`; 0 for none (thousands of classes take hours).
    reorder
        Called with the row of a query and its ``depth`` best gallery rows, best first; returns them
        in a new order. Rows are those of :func:`task_of`.
    chunk
        Queries at a time, as in :func:`eval.metrics.neighbours.neighbours`.

    Raises
    ------
    UsageError
        If the protocol is unknown or lacks its queries.
    DataError
        If a label, camera or relevance is missing; the message names the sample.
    NumericsError
        If an embedding is not finite.
    """
    task = task_of(protocol, gallery, query, shots=shots, draws=draws, seed=seed)
    gallery_embedding = task.gallery.embedding
    # An image must not find itself.
    ranks_itself = task.query is task.gallery
    query_embedding = gallery_embedding if ranks_itself else task.query.embedding
    records: list[RankedQuery] = []
    for start, block in similarities(query_embedding, gallery_embedding, chunk=chunk):
        rows = range(start, start + len(block))
        # Records show cosines, also where re-ranking puts other scores into their place.
        cosines = block if reorder is None else block.copy()
        for scores, row in zip(block, rows, strict=True):
            if ranks_itself:
                scores[row] = -np.inf
            if reorder is not None:
                _reorder_best(scores, row, reorder, depth)
        for setting in task.settings:
            # A setting takes images out of the ranking, so each gets scores of its own.
            records += _records_of_block(task, protocol, setting, block.copy(), cosines, rows, ks)
    if protocol == "classes" and cluster_seeds:
        classes = len(set(task.clusters))
        runs = kmeans_clusters(gallery_embedding, classes, seeds=cluster_seeds)
        for record, clusters in zip(records, runs.T.tolist(), strict=True):
            record["clusters"] = clusters
    return records


def _reorder_best(scores: NDArray[np.float64], row: int, reorder: Reorder, depth: int) -> None:
    """Give the best gallery rows of a query new scores, in the order that ``reorder`` returns."""
    first = top_k(scores, depth)
    order = reorder(row, first)
    if not np.array_equal(np.sort(order), np.sort(first)):
        raise ValueError("a new order must hold the same gallery rows")
    # Above any cosine, so that they stay in front of the images that were not reordered.
    scores[order] = 1 + np.arange(len(first), 0, -1)


def task_of(
    protocol: Protocol,
    gallery: EmbeddedImages,
    query: EmbeddedImages | None = None,
    *,
    shots: int = visible_infrared.SHOTS,
    draws: int = visible_infrared.DRAWS,
    seed: int = visible_infrared.SEED,
) -> Task:
    """Return what is ranked for whom; arguments and errors are those of :func:`rank_gallery`."""
    if protocol not in PROTOCOLS:
        raise UsageError(f"protocol is {protocol!r}, must be one of {', '.join(PROTOCOLS)}")
    if protocol == "sysu-all":
        return visible_infrared.task(gallery, query, "all", shots=shots, draws=draws, seed=seed)
    if protocol == "sysu-indoor":
        return visible_infrared.task(gallery, query, "indoor", shots=shots, draws=draws, seed=seed)
    if protocol == "classes":
        if query is not None:
            raise UsageError(
                "the protocol classes ranks a data set against itself; choose query-gallery for "
                "separate queries"
            )
        return _by_label(gallery, gallery)
    if query is None:
        raise UsageError(f"the protocol {protocol} needs separate queries: --query DIR")
    if protocol == "query-gallery":
        return _by_label(gallery, query)
    if protocol == "re-identification":
        return reidentification.task(gallery, query)
    return revisited.task(gallery, query)


def _by_label(gallery: EmbeddedImages, query: EmbeddedImages) -> Task:
    labels = query.only_labels()
    # A gallery image without a class is a distractor: its key, as a tuple, is nobody's label.
    gallery_labels: list[str | tuple[str]] = []
    for key, names in zip(gallery.keys, gallery.labels, strict=True):
        if len(names) > 1:
            raise DataError(
                f'sample {key} has {len(names)} "labels"; a gallery image needs one, or none'
            )
        gallery_labels.append(names[0] if names else (key,))
    right, nothing = LabelMatches(labels, gallery_labels), np.empty(0, np.intp)
    return Task(query, gallery, labels, lambda row, _: (right[row], nothing))


def rules(protocol: str) -> dict[str, Any]:
    """Return what a protocol leaves open and is decided here, for the result."""
    if protocol.startswith("sysu"):
        galleries = {
            "gallery_shots": visible_infrared.SHOTS,
            "draws": visible_infrared.DRAWS,
            "seed": visible_infrared.SEED,
            "drawn_by": "GLSCL: not the draws of the authors' rand_perm_cam.mat",
        }
        return {"galleries": galleries}
    if protocol == "revisited":
        return {"queries": "cropped to their box where they have one"}
    return {}


def _records_of_block(
    task: Task,
    protocol: Protocol,
    setting: str,
    scores: NDArray[np.float64],
    cosines: NDArray[np.float64],
    rows: range,
    ks: Sequence[int],
) -> list[RankedQuery]:
    right: list[NDArray[np.intp]] = []
    for scores_of_query, row in zip(scores, rows, strict=True):
        matches, removed = task.judge(row, setting)
        scores_of_query[removed] = -np.inf
        right.append(matches)
    ranked = rank_relevant(scores, right)
    ranked_identities = None
    if task.identities is not None:
        best_scores, names = visible_infrared.best_of_identities(scores, task.identities)
        right_identities = [np.flatnonzero(names == task.clusters[row]) for row in rows]
        ranked_identities = rank_relevant(best_scores, right_identities)
    columns = _values(protocol, ranked, ranked_identities, ks)
    records = []
    for number, row in enumerate(rows):
        positives = int(ranked.positives[number])
        record: RankedQuery = {
            "protocol": protocol,
            "query": task.query.keys[row],
            "label": task.clusters[row],
            "setting": setting,
            "positives": positives,
            "candidates": int(ranked.candidates[number]),
            "top": [],
        }
        if ranked_identities is not None:
            record["identities"] = int(ranked_identities.candidates[number])
        if positives:
            record["values"] = {name: float(values[number]) for name, values in columns.items()}
        is_right = set(right[number].tolist())
        for position in top_k(scores[number], TOP).tolist():
            cosine = float(cosines[number, position])
            record["top"].append((task.gallery.keys[position], cosine, position in is_right))
        records.append(record)
    return records


def _values(
    protocol: str,
    ranked: RelevantRanks,
    ranked_identities: RelevantRanks | None,
    ks: Sequence[int],
) -> dict[str, NDArray[np.float64]]:
    """Return by metric the value of each query, in 0..1."""
    if protocol == "revisited":
        return revisited.values(ranked)
    if protocol not in ("classes", "query-gallery"):
        return reidentification.values(ranked, ranked_identities)
    recall = {f"recall@{k}": ranked.hits(k) for k in ks}
    return recall | {
        "r_precision": ranked.r_precision(),
        "map@r": ranked.average_precision_at_r(),
        "map": ranked.average_precision(),
    }


def metrics_of(records: Iterable[RankedQuery]) -> list[Metric]:
    """Compute every metric from the records of one protocol and method.

    Means over queries with a right image, in percent: `recall@K`, `r_precision`, `map@r`, `map`;
    `rank@K`, `map`; `easy/map`, `easy/mp@K`, `medium/...`, `hard/...`. `left_out` counts the other
    queries. With clusters, `nmi`, `ami` and their standard deviations over the seeds of k-means.
    ci95 resamples classes (identities, places).

    Raises
    ------
    DataError
        If no query has a right image.
    """
    lines = list(records)
    computed: list[Metric] = []
    if lines[0]["protocol"] == "revisited":
        by_setup: dict[str, list[RankedQuery]] = {}
        for line in lines:
            by_setup.setdefault(line["setting"], []).append(line)
        for setup, of_setup in by_setup.items():
            computed += _means(of_setup, f"{setup}/")
    else:
        computed += _means(lines, "")
    if not any(metric.unit == "percent" for metric in computed):
        raise DataError(
            "no query has a right image in its gallery: every class needs two images, or one on "
            "each side"
        )
    if "clusters" in lines[0]:
        computed += _clustering(lines)
    return computed


def _means(lines: Sequence[RankedQuery], prefix: str) -> list[Metric]:
    scored = [line for line in lines if line["positives"]]
    # Queries without a right image would count as failures of every method.
    left_out = Metric(
        name=f"{prefix}left_out", value=len(lines) - len(scored), unit="queries", n=len(lines)
    )
    if not scored:
        return [left_out]
    chance = _chance(scored)
    clusters = [line["label"] for line in scored]
    computed = []
    for name in scored[0]["values"]:
        values = [100 * line["values"][name] for line in scored]
        computed.append(mean_metric(prefix + name, values, clusters, chance=chance[name]))
    return [*computed, left_out]


def _chance(scored: Sequence[RankedQuery]) -> Mapping[str, float]:
    """Return what a constant score reaches in each metric, in percent."""
    ks = []
    for name in scored[0]["values"]:
        if name.startswith("recall@"):
            ks.append(int(name.removeprefix("recall@")))
    guessed = ranks_of_constant_score(
        [line["positives"] for line in scored], [line["candidates"] for line in scored]
    )
    guessed_identities = None
    if "identities" in scored[0]:
        identities = [line["identities"] for line in scored]
        # Each query has one right identity.
        guessed_identities = ranks_of_constant_score(np.ones(len(scored)), identities)
    columns = _values(scored[0]["protocol"], guessed, guessed_identities, ks)
    return {name: float(100 * values.mean()) for name, values in columns.items()}


def _clustering(lines: Sequence[RankedQuery]) -> list[Metric]:
    labels = [line["label"] for line in lines]
    runs = np.array([line["clusters"] for line in lines]).T
    pairs = 100 * np.array([mutual_information(labels, run) for run in runs])
    computed = []
    for name, values in (("nmi", pairs[:, 0]), ("ami", pairs[:, 1])):
        mean, spread = float(values.mean()), float(values.std())
        computed.append(Metric(name=name, value=mean, unit="percent", n=len(lines)))
        computed.append(
            Metric(name=f"{name}_std", value=spread, unit="percentage points", n=len(values))
        )
    return computed
