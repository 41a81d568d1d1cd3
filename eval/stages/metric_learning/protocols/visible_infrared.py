"""SYSU-MM01: infrared pictures ask for visible ones, in ten drawn galleries, all-search or indoor-search.

In: pictures with the cameras 1 to 6, of which 3 and 6 are infrared. Out: a task whose settings are
the draws. For each identity and visible camera one picture is drawn (ten: multi-shot); camera 2
stands beside camera 3 and leaves its queries' rankings. CMC ranks identities, each at the place of
its best picture; AP ranks pictures. The draws are ours: those of the authors' rand_perm_cam.mat are
not read. Source: Wu et al., ICCV 2017, and the evaluation code of its authors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.randomness import generator_at
from eval.stages.metric_learning.protocols.pictures import Judged, Pictures, Task
from eval.stages.metric_learning.protocols.reidentification import Views, views

Search = Literal["all", "indoor"]
INFRARED = (3, 6)
VISIBLE: dict[Search, tuple[int, ...]] = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
SHOTS, DRAWS, SEED = 1, 10, 0
"""Single-shot galleries, how many, and what draws them."""


def task(
    gallery: Pictures,
    query: Pictures | None,
    search: Search,
    *,
    shots: int = SHOTS,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Task:
    """Return infrared queries, the visible gallery and its draws; without ``query`` both come out of ``gallery``.

    Raises
    ------
    DataError
        If a camera is missing or none of the six, its modality says otherwise, or a side is empty.
    """
    asking, asked = _with_cameras(
        gallery if query is None else query, INFRARED, "the infrared queries (--query DIR)"
    )
    shown, visible = _with_cameras(gallery, VISIBLE[search], "the visible gallery (--data DIR)")
    theirs, own = (views(side.keys, side.labels, side.annotations) for side in (shown, asking))
    drawn = {
        str(draw): draw_gallery(theirs.identity, visible, shots=shots, seed=seed, draw=draw)
        for draw in range(draws)
    }
    absent = {draw: np.setdiff1d(np.arange(len(visible)), rows) for draw, rows in drawn.items()}
    beside = np.flatnonzero(visible == 2)

    def judge(row: int, draw: str) -> Judged:
        removed = np.union1d(absent[draw], beside) if asked[row] == 3 else absent[draw]
        return np.flatnonzero(theirs.identity == own.identity[row]), removed

    return Task(asking, shown, own.identity.tolist(), judge, tuple(drawn), theirs.identity)


def draw_gallery(
    identity: NDArray[np.str_], camera: NDArray[np.int64], *, shots: int, seed: int, draw: int
) -> NDArray[np.intp]:
    """Return the rows drawn: ``shots`` of each identity and camera, all where there are fewer, in ascending order."""
    generator = generator_at(seed, draw)
    taken: dict[tuple[str, int], list[int]] = {}
    for row in generator.permutation(len(identity)).tolist():
        taken.setdefault((str(identity[row]), int(camera[row])), []).append(row)
    return np.sort(
        np.array([row for rows in taken.values() for row in rows[:shots]], dtype=np.intp)
    )


def best_of_identities(
    scores: NDArray[np.float64], identity: NDArray[np.str_]
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Return scores (queries, identities), each that of the identity's best picture, and the identities' names."""
    names = np.unique(identity)
    order = np.argsort(identity, kind="stable")
    return np.maximum.reduceat(
        scores[:, order], np.searchsorted(identity[order], names), axis=1
    ), names


def _with_cameras(
    pictures: Pictures, cameras: Sequence[int], side: str
) -> tuple[Pictures, NDArray[np.int64]]:
    seen: Views = views(pictures.keys, pictures.labels, pictures.annotations)
    numbers = np.zeros(len(pictures.keys), dtype=np.int64)
    for row, (key, annotation) in enumerate(zip(pictures.keys, pictures.annotations, strict=True)):
        if not seen.identity[row]:
            continue
        number = re.fullmatch(r"\D*0*([1-6])", str(seen.camera[row]))
        if not number:
            raise DataError(
                f"sample {key} is seen by camera {str(seen.camera[row])!r}; SYSU-MM01 has cameras 1 to 6"
            )
        numbers[row] = int(number[1])
        modality = "infrared" if numbers[row] in INFRARED else "visible"
        if annotation.get("modality", modality) != modality:
            raise DataError(
                f"sample {key} of camera {numbers[row]} is marked {annotation['modality']}, not {modality}"
            )
    rows = np.flatnonzero(np.isin(numbers, cameras))
    if not len(rows):
        raise DataError(
            f"no picture is seen by one of the cameras {', '.join(map(str, cameras))}: name {side}"
        )
    return pictures.rows(rows), numbers[rows]
