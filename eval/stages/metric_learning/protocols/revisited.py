"""Revisited Oxford and Paris: Easy, Medium and Hard from rank lists, by the rules of the official evaluator.

In: rank lists, and per query its easy, hard and junk pictures. Out: AP by the trapezoid rule and
precision at 1, 5 and
10. Junk leaves the ranking before anything is counted, and so do the positives of the other setups;
a query without positives in a setup is left out of it. Source: Radenovic et al., Revisiting Oxford
and Paris, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from eval.metrics.relevant_ranks import RelevantRanks, ranks_in_lists
from eval.stages.metric_learning.protocols.pictures import Judged, Pictures, Task

KS = (1, 5, 10)
SETUPS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""For each setup what is right and what leaves the ranking."""
GROUPS = ("easy", "hard", "junk")
Relevance = Mapping[str, NDArray[np.intp]]


def task(gallery: Pictures, query: Pictures) -> Task:
    """Return the three setups as settings; intervals resample places (labels) where the queries name them."""
    relevant = relevance(query.keys, query.annotations, gallery.annotations)
    clusters = [
        names[0] if names else key for key, names in zip(query.keys, query.labels, strict=True)
    ]
    return Task(
        query, gallery, clusters, lambda row, setup: judge(relevant[row], setup), tuple(SETUPS)
    )


def relevance(
    keys: Sequence[str],
    annotations: Sequence[Mapping[str, Any]],
    gallery: Sequence[Mapping[str, Any]],
) -> list[Relevance]:
    """Return for each query the gallery positions of its "easy", "hard" and "junk" pictures.

    Raises
    ------
    DataError
        If a query has no "relevance", it names a picture that the gallery lacks or names one twice,
        or two gallery pictures share an `image_id`; the message names the sample.
    """
    position: dict[Any, int] = {}
    for row, annotation in enumerate(gallery):
        name = annotation.get("image_id")
        if name is not None and position.setdefault(name, row) != row:
            raise DataError(f"two gallery pictures have the image_id {name!r}")
    found: list[Relevance] = []
    for key, annotation in zip(keys, annotations, strict=True):
        named = annotation.get("relevance")
        if not isinstance(named, dict):
            raise DataError(
                f'query {key} has no "relevance": {{"easy": [..], "hard": [..], "junk": [..]}}'
            )
        groups = [list(named.get(group, [])) for group in GROUPS]
        every = [name for group in groups for name in group]
        missing = [name for name in every if name not in position]
        if missing:
            raise DataError(
                f"query {key} names {missing[0]!r}, which is the image_id of no gallery picture "
                f"({len(missing)} such names): Revisited sets are measured on their whole gallery"
            )
        if len(set(every)) != len(every):
            raise DataError(f"query {key} names a picture twice among its easy, hard and junk ones")
        rows = (np.array([position[name] for name in group], dtype=np.intp) for group in groups)
        found.append(dict(zip(GROUPS, rows, strict=True)))
    return found


def judge(relevant: Relevance, setup: str) -> Judged:
    """Return the gallery positions that are right in a setup, and those that leave the ranking."""
    right, removed = (
        np.concatenate([relevant[group] for group in groups]) for groups in SETUPS[setup]
    )
    return right, removed


def values(found: RelevantRanks) -> dict[str, NDArray[np.float64]]:
    """Return per query, in 0..1 and NaN without positives: `map`, `mp@1`, `mp@5` and `mp@10`."""
    precision = {f"mp@{k}": found.precision_up_to_last_relevant(k) for k in KS}
    return {"map": found.trapezoid_average_precision(), **precision}


def values_of_lists(
    lists: NDArray[np.integer], relevant: Sequence[Relevance]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Return :func:`values` by setup of rank lists (queries, gallery) of gallery positions, best first."""
    found = {}
    for setup in SETUPS:
        judged = [judge(one, setup) for one in relevant]
        found[setup] = values(
            ranks_in_lists(lists, [right for right, _ in judged], [out for _, out in judged])
        )
    return found
