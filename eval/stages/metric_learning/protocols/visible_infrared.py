"""SYSU-MM01: infrared images are queries for visible ones, in ten drawn galleries.

In: images with the cameras 1 to 6; 3 and 6 are infrared. Out: a task whose settings are the draws,
for all-search or indoor-search. For each identity and visible camera one image is drawn (ten:
multi-shot); camera 2 is at the place of camera 3 and leaves its queries' rankings. CMC ranks
identities, each by its best image; AP ranks images. The draws are ours: the authors'
rand_perm_cam.mat is not read. Source: Wu et al., ICCV 2017, and the evaluation code of its authors.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.randomness import generator_at
from eval.stages.metric_learning.protocols.reidentification import Views, views
from eval.stages.metric_learning.protocols.task import EmbeddedImages, Judged, Task

Search = Literal["all", "indoor"]
INFRARED = (3, 6)
VISIBLE: dict[Search, tuple[int, ...]] = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
SHOTS, DRAWS, SEED = 1, 10, 0
"""Images per identity and camera, number of galleries, and the seed that draws them."""


def task(
    gallery: EmbeddedImages,
    query: EmbeddedImages | None,
    search: Search,
    *,
    shots: int = SHOTS,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Task:
    """Return infrared queries, the visible gallery and its draws.

    Without ``query`` both sides are taken from ``gallery``.

    Raises
    ------
    DataError
        If a camera is missing or not one of the six, contradicts the image's modality, or a side is
        empty.
    """
    infrared_source = gallery if query is None else query
    infrared, query_cameras = _of_cameras(
        infrared_source, INFRARED, "the infrared queries (--query DIR)"
    )
    visible, gallery_cameras = _of_cameras(
        gallery, VISIBLE[search], "the visible gallery (--data DIR)"
    )
    in_gallery = views(visible.keys, visible.labels, visible.annotations)
    queries = views(infrared.keys, infrared.labels, infrared.annotations)
    # By draw, the gallery positions that are not in it.
    absent = {}
    for draw in range(draws):
        drawn = draw_gallery(
            in_gallery.identity, gallery_cameras, shots=shots, seed=seed, draw=draw
        )
        absent[str(draw)] = np.setdiff1d(np.arange(len(gallery_cameras)), drawn)
    at_place_of_camera_3 = np.flatnonzero(gallery_cameras == 2)

    def judge(row: int, draw: str) -> Judged:
        removed = absent[draw]
        if query_cameras[row] == 3:
            removed = np.union1d(removed, at_place_of_camera_3)
        return np.flatnonzero(in_gallery.identity == queries.identity[row]), removed

    return Task(
        infrared,
        visible,
        queries.identity.tolist(),
        judge,
        settings=tuple(absent),
        identities=in_gallery.identity,
    )


def draw_gallery(
    identity: NDArray[np.str_], camera: NDArray[np.int64], *, shots: int, seed: int, draw: int
) -> NDArray[np.intp]:
    """Draw ``shots`` images of each identity and camera, or all if there are fewer.

    Returns their rows in ascending order.
    """
    generator = generator_at(seed, draw)
    rows_of: dict[tuple[str, int], list[int]] = {}
    for row in generator.permutation(len(identity)).tolist():
        rows_of.setdefault((str(identity[row]), int(camera[row])), []).append(row)
    drawn: list[int] = []
    for rows in rows_of.values():
        drawn += rows[:shots]
    return np.sort(np.array(drawn, dtype=np.intp))


def best_of_identities(
    scores: NDArray[np.float64], identity: NDArray[np.str_]
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Return scores (queries, identities) of each identity's best image, and the identities."""
    names = np.unique(identity)
    order = np.argsort(identity, kind="stable")
    starts = np.searchsorted(identity[order], names)
    return np.maximum.reduceat(scores[:, order], starts, axis=1), names


def _of_cameras(
    images: EmbeddedImages, cameras: Sequence[int], side: str
) -> tuple[EmbeddedImages, NDArray[np.int64]]:
    """Return the images by some cameras, and the camera number of each."""
    seen: Views = views(images.keys, images.labels, images.annotations)
    numbers = np.zeros(len(images.keys), dtype=np.int64)
    for row, (key, annotation) in enumerate(zip(images.keys, images.annotations, strict=True)):
        if not seen.identity[row]:
            continue  # junk and distractors belong to neither side
        camera = str(seen.camera[row])
        # Data sets write "cam3", "c3" or "3".
        number = re.fullmatch(r"\D*0*([1-6])", camera)
        if not number:
            raise DataError(
                f"sample {key} is seen by camera {camera!r}; SYSU-MM01 has cameras 1 to 6"
            )
        numbers[row] = int(number[1])
        modality = "infrared" if numbers[row] in INFRARED else "visible"
        if annotation.get("modality", modality) != modality:
            raise DataError(
                f"sample {key} of camera {numbers[row]} is marked {annotation['modality']}, not "
                f"{modality}"
            )
    rows = np.flatnonzero(np.isin(numbers, cameras))
    if not len(rows):
        raise DataError(
            f"no image is seen by one of the cameras {', '.join(map(str, cameras))}: name {side}"
        )
    return images.rows(rows), numbers[rows]
