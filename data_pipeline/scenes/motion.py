"""A still scene set in motion: each object goes straight to another cell of its row or column, or stays where it is.

In: the scene of `graph.py` and a generator. Out: the scene of a clip: besides what its objects are
at the start they have a `motion`, the cells they go `from` and `to`, and the centre they end at. No
two of them touch in any frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.scenes.graph import GRID

FRAMES, FRAMES_PER_SECOND = 12, 8
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STILL = "still"
_STAYS = 0.25  # of the objects that could move


def set_in_motion(scene: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return the scene of a clip, whose first frame is the still scene; where anything can move, something does."""
    size, objects = scene["size"], scene["objects"]
    start = np.array([(o["x"], o["y"]) for o in objects])
    cells = np.array([(o["column"], o["row"]) for o in objects])
    extent = np.array([o["extent"] for o in objects])
    end, motions = start.copy(), [STILL] * len(objects)
    stays = rng.random(len(objects)) < _STAYS
    for staying in (False, True):  # those that would stay are asked when nothing else can move
        if staying and any(motion != STILL for motion in motions):
            break
        for k in rng.permutation(len(objects)).tolist():
            if stays[k] != staying:
                continue
            for motion, cells_away in _ways(cells[k].tolist(), rng):
                tried = end.copy()
                half = extent[k] / 2 + size / 96
                tried[k] = np.clip(
                    start[k] + np.array(MOTIONS[motion]) * cells_away * size / GRID,
                    half,
                    size - half,
                )
                if _apart(start, tried, extent, size / 64):
                    end, motions[k] = tried.round(2), motion
                    break
    to = np.minimum(end * GRID // size, GRID - 1).astype(int).tolist()
    moved = [
        {**o, "motion": motion, "from": [o["column"], o["row"]], "to": cell, "x_end": x, "y_end": y}
        for o, motion, cell, (x, y) in zip(objects, motions, to, end.tolist(), strict=True)
    ]
    return {**scene, "frames": FRAMES, "frames_per_second": FRAMES_PER_SECOND, "objects": moved}


def still_at(scene: dict[str, Any], frame: int) -> dict[str, Any]:
    """Return the scene that a frame of a clip shows: its objects on their way, at a steady speed."""
    share = frame / (scene["frames"] - 1)
    objects = [
        {
            **o,
            "x": o["x"] + share * (o["x_end"] - o["x"]),
            "y": o["y"] + share * (o["y_end"] - o["y"]),
        }
        for o in scene["objects"]
    ]
    return {**scene, "objects": objects}


def moments(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an object as it is at the start and at the end of its clip; a picture's object is as it is.

    What is true of cells at both moments is true in between, because speeds are steady.
    """
    return (
        [item, {**item, "column": item["to"][0], "row": item["to"][1]}] if "to" in item else [item]
    )


def _ways(cell: list[int], rng: np.random.Generator) -> list[tuple[str, int]]:
    """Directions in random order, each with the numbers of cells that there is room for, in random order."""
    ways = []
    for k in rng.permutation(len(MOTIONS)).tolist():
        motion = tuple(MOTIONS)[k]
        along = cell[0] if motion in ("left", "right") else cell[1]
        room = along if motion in ("left", "up") else GRID - 1 - along
        ways += [(motion, 1 + n) for n in rng.permutation(room).tolist()]
    return ways


def _apart(start: np.ndarray, end: np.ndarray, extent: np.ndarray, gap: float) -> bool:
    """Whether no boxes come closer than `gap` in any frame."""
    share = np.linspace(0, 1, FRAMES)[:, None, None]
    centre = start + share * (end - start)
    distance = np.abs(centre[:, :, None] - centre[:, None]).max(-1)
    return bool(
        ((distance >= (extent[:, None] + extent) / 2 + gap) | np.eye(len(extent), dtype=bool)).all()
    )
