"""Re-identification: which gallery pictures count for a query, by identity and camera.

In: identities, cameras and junk marks. Out: per query the right gallery positions and those taken
out of its ranking: junk, and pictures of its identity by its own camera. A picture without identity
is a distractor and never right. Source: Market-1501 (Zheng et al., ICCV 2015), VeRi-776; AP without
the trapezoids of Market's first evaluator, as most published code has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from eval.metrics.relevant_ranks import RelevantRanks
from eval.stages.metric_learning.protocols.pictures import Judged, Pictures, Task

RANKS = (1, 5, 10, 20)


@dataclass(frozen=True)
class Views:
    """Who is seen by which camera, all of shape (pictures,); ``identity`` is empty for distractors and junk."""

    identity: NDArray[np.str_]
    camera: NDArray[np.str_]
    junk: NDArray[np.bool_]


def task(gallery: Pictures, query: Pictures) -> Task:
    """Return who is right for whom; errors of :func:`views`, and DataError for a query without identity."""
    theirs, own = (views(side.keys, side.labels, side.annotations) for side in (gallery, query))
    return Task(query, gallery, query.only_labels(), lambda row, _: judge(own, row, theirs))


def views(
    keys: Sequence[str], labels: Sequence[Sequence[str]], annotations: Sequence[Mapping[str, Any]]
) -> Views:
    """Read identities, cameras and junk marks.

    Raises
    ------
    DataError
        If a picture has several identities, or an identity and no camera; the message names the
        sample.
    """
    identity, camera, junk = [], [], []
    for key, names, annotation in zip(keys, labels, annotations, strict=True):
        if len(names) > 1:
            raise DataError(
                f'sample {key} has {len(names)} "labels"; re-identification needs the one identity'
            )
        junk.append(annotation.get("junk") is True)
        identity.append("" if junk[-1] or not names else names[0])
        seen_by = annotation.get("camera")
        if identity[-1] and not (isinstance(seen_by, str) and seen_by):
            raise DataError(
                f'sample {key} has no "camera", without which pictures of the same camera cannot be left out: '
                "import the data set with its camera ids, or measure it as query-gallery"
            )
        camera.append(seen_by if isinstance(seen_by, str) else "")
    return Views(
        np.array(identity, dtype=np.str_),
        np.array(camera, dtype=np.str_),
        np.array(junk, dtype=bool),
    )


def judge(query: Views, row: int, gallery: Views) -> Judged:
    """Return the gallery positions that are right for query ``row``, and those taken out of its ranking."""
    same = (gallery.identity == query.identity[row]) & (gallery.identity != "")
    own_camera = same & (gallery.camera == query.camera[row])
    return np.flatnonzero(same & ~own_camera), np.flatnonzero(gallery.junk | own_camera)


def values(
    found: RelevantRanks, ranked: RelevantRanks | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return per query, in 0..1: `rank@K` (CMC, of ``ranked`` if that is given) and `map`."""
    cmc = found if ranked is None else ranked
    return {**{f"rank@{k}": cmc.hits(k) for k in RANKS}, "map": found.average_precision()}
