"""Revisited Oxford and Paris: Easy, Medium and Hard, by the rules of the official evaluator.

In: the ranks of each query's easy, hard and junk images. Out: AP by the trapezoid rule, and
precision at 1, 5 and 10. Junk and the positives of the other setups leave the ranking before
anything is counted; a query without positives in a setup is left out of it. Source: Radenovic et
al., Revisiting Oxford and Paris, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from eval.metrics.relevant_ranks import RelevantRanks
from eval.stages.metric_learning.protocols.task import EmbeddedImages, Judged, Task

KS = (1, 5, 10)
SETUPS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""For each setup, which groups are right and which leave the ranking."""
GROUPS = ("easy", "hard", "junk")
Relevance = Mapping[str, NDArray[np.intp]]


def task(gallery: EmbeddedImages, query: EmbeddedImages) -> Task:
    """Return the three setups as settings.

    Intervals resample places (labels), or queries that name none.
    """
    relevant = relevance(query.keys, query.annotations, gallery.annotations)
    clusters = []
    for key, names in zip(query.keys, query.labels, strict=True):
        clusters.append(names[0] if names else key)
    return Task(
        query, gallery, clusters, lambda row, setup: judge(relevant[row], setup), tuple(SETUPS)
    )


def relevance(
    keys: Sequence[str],
    annotations: Sequence[Mapping[str, Any]],
    gallery: Sequence[Mapping[str, Any]],
) -> list[Relevance]:
    """Return for each query the gallery positions of its "easy", "hard" and "junk" images.

    Raises
    ------
    DataError
        If a query has no "relevance", names an image that the gallery lacks, or names one twice, or
        if two gallery images share an `image_id`; the message names the sample.
    """
    position: dict[Any, int] = {}
    for row, annotation in enumerate(gallery):
        name = annotation.get("image_id")
        if name is not None and position.setdefault(name, row) != row:
            raise DataError(f"two gallery images have the image_id {name!r}")
    relevant: list[Relevance] = []
    for key, annotation in zip(keys, annotations, strict=True):
        named = annotation.get("relevance")
        if not isinstance(named, dict):
            raise DataError(
                f'query {key} has no "relevance": {{"easy": [..], "hard": [..], "junk": [..]}}'
            )
        names: list[Any] = []
        for group in GROUPS:
            names += named.get(group, [])
        # A gallery cut by --limit lacks images that queries name, and would give other numbers.
        missing = [name for name in names if name not in position]
        if missing:
            raise DataError(
                f"query {key} names {missing[0]!r}, which is not the image_id of a gallery image "
                f"({len(missing)} such names): Revisited sets are measured on their whole gallery"
            )
        if len(set(names)) != len(names):
            raise DataError(f"query {key} names an image twice among its easy, hard and junk ones")
        groups = {}
        for group in GROUPS:
            rows = [position[name] for name in named.get(group, [])]
            groups[group] = np.array(rows, dtype=np.intp)
        relevant.append(groups)
    return relevant


def judge(relevant: Relevance, setup: str) -> Judged:
    """Return the gallery positions that are right in a setup, and those that leave the ranking."""
    right_groups, removed_groups = SETUPS[setup]
    right = np.concatenate([relevant[group] for group in right_groups])
    removed = np.concatenate([relevant[group] for group in removed_groups])
    return right, removed


def values(ranked: RelevantRanks) -> dict[str, NDArray[np.float64]]:
    """Return per query, in 0..1 and NaN without positives: `map`, `mp@1`, `mp@5` and `mp@10`."""
    # The official evaluator cuts its precision at the last right image, if that comes before k.
    precision = {f"mp@{k}": ranked.precision_up_to_last_relevant(k) for k in KS}
    return {"map": ranked.trapezoid_average_precision(), **precision}
