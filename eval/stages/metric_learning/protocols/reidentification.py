"""Re-identification: which gallery images count for a query, by identity and camera.

In: identities, cameras and junk marks. Out: per query the right gallery positions, and the
positions that leave its ranking: junk, and images of its identity by its own camera. An image
without identity is a distractor and never right. Source: Market-1501 (Zheng et al., ICCV 2015),
VeRi-776; AP without the trapezoids of Market's first evaluator, as in most published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from eval.metrics.relevant_ranks import RelevantRanks
from eval.stages.metric_learning.protocols.task import EmbeddedImages, Judged, Task

RANKS = (1, 5, 10, 20)


@dataclass(frozen=True)
class Views:
    """Identities and cameras of images, all of shape (images,).

    ``identity`` is empty for distractors and junk.
    """

    identity: NDArray[np.str_]
    camera: NDArray[np.str_]
    junk: NDArray[np.bool_]


def task(gallery: EmbeddedImages, query: EmbeddedImages) -> Task:
    """Return who is right for whom.

    Raises DataError for a query without identity, and the errors of :func:`views`.
    """
    in_gallery = views(gallery.keys, gallery.labels, gallery.annotations)
    queries = views(query.keys, query.labels, query.annotations)
    identities = query.only_labels()
    return Task(query, gallery, identities, lambda row, _: judge(queries, row, in_gallery))


def views(
    keys: Sequence[str], labels: Sequence[Sequence[str]], annotations: Sequence[Mapping[str, Any]]
) -> Views:
    """Read identities, cameras and junk marks.

    Raises
    ------
    DataError
        If an image has several identities, or an identity and no camera; the message names the
        sample.
    """
    identities, cameras, junk = [], [], []
    for key, names, annotation in zip(keys, labels, annotations, strict=True):
        if len(names) > 1:
            raise DataError(
                f'sample {key} has {len(names)} "labels"; re-identification needs the one identity'
            )
        is_junk = annotation.get("junk") is True
        identity = names[0] if names and not is_junk else ""
        camera = annotation.get("camera")
        if not isinstance(camera, str):
            camera = ""
        if identity and not camera:
            raise DataError(
                f'sample {key} has no "camera", without which images of the same camera cannot be '
                "left out: import the data set with its camera ids, or measure it as query-gallery"
            )
        identities.append(identity)
        cameras.append(camera)
        junk.append(is_junk)
    return Views(
        np.array(identities, dtype=np.str_),
        np.array(cameras, dtype=np.str_),
        np.array(junk, dtype=bool),
    )


def judge(query: Views, row: int, gallery: Views) -> Judged:
    """Return the gallery positions that are right for query ``row``, and those that are removed."""
    is_same = (gallery.identity == query.identity[row]) & (gallery.identity != "")
    # The same camera at about the same time shows almost the same image: too easy to count.
    by_same_camera = is_same & (gallery.camera == query.camera[row])
    return np.flatnonzero(is_same & ~by_same_camera), np.flatnonzero(gallery.junk | by_same_camera)


def values(
    ranked: RelevantRanks, ranked_identities: RelevantRanks | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return per query, in 0..1: `rank@K` (CMC) and `map`.

    CMC is that of the identities where their ranks are given.
    """
    cmc = ranked if ranked_identities is None else ranked_identities
    columns = {f"rank@{k}": cmc.hits(k) for k in RANKS}
    return columns | {"map": ranked.average_precision()}
