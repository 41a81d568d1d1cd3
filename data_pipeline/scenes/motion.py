"""Set a still scene in motion: each object moves straight to another cell, or stays.

In: the scene of `graph.py` and a generator. Out: the scene of a clip. Its objects describe the
start, and have in addition a `motion`, the cells they move `from` and `to`, and the center they end
at. No two of them touch in any frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.scenes.graph import GRID

FRAMES, FRAMES_PER_SECOND = 12, 8
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
STILL = "still"
_STAYS = 0.25  # share of the objects that could move but stay


def set_in_motion(scene: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return the scene of a clip whose first frame is the still scene.

    If anything can move, something does.
    """
    size, objects = scene["size"], scene["objects"]
    start = np.array([(item["x"], item["y"]) for item in objects])
    cells = np.array([(item["column"], item["row"]) for item in objects])
    extent = np.array([item["extent"] for item in objects])
    end, motions = start.copy(), [STILL] * len(objects)
    stays = rng.random(len(objects)) < _STAYS
    # Objects that were drawn to stay are tried only if nothing else could move.
    for staying in (False, True):
        if staying and any(motion != STILL for motion in motions):
            break
        for k in rng.permutation(len(objects)).tolist():
            if stays[k] != staying:
                continue
            for motion, cells_away in _ways(cells[k].tolist(), rng):
                tried = end.copy()
                half = extent[k] / 2 + size / 96
                goal = start[k] + np.array(MOTIONS[motion]) * cells_away * size / GRID
                tried[k] = np.clip(goal, half, size - half)
                # The same gap as in a still scene; the first move that fits is taken.
                if _apart(start, tried, extent, size / 64):
                    end, motions[k] = tried.round(2), motion
                    break
    end_cells = np.minimum(end * GRID // size, GRID - 1).astype(int).tolist()
    moved = []
    for item, motion, cell, (x, y) in zip(objects, motions, end_cells, end.tolist(), strict=True):
        way = {"motion": motion, "from": [item["column"], item["row"]], "to": cell}
        moved.append({**item, **way, "x_end": x, "y_end": y})
    return {**scene, "frames": FRAMES, "frames_per_second": FRAMES_PER_SECOND, "objects": moved}


def still_at(scene: dict[str, Any], frame: int) -> dict[str, Any]:
    """Return the scene that a frame of a clip shows; objects move at a steady speed."""
    share = frame / (scene["frames"] - 1)
    objects = []
    for item in scene["objects"]:
        x = item["x"] + share * (item["x_end"] - item["x"])
        y = item["y"] + share * (item["y_end"] - item["y"])
        objects.append({**item, "x": x, "y": y})
    return {**scene, "objects": objects}


def moments(item: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an object at the start and at the end of its clip; an image has one moment.

    A relation between cells that holds at both moments holds in between, because speeds are steady.
    """
    if "to" not in item:
        return [item]
    column, row = item["to"]
    return [item, {**item, "column": column, "row": row}]


def _ways(cell: list[int], rng: np.random.Generator) -> list[tuple[str, int]]:
    """Return the moves that stay inside the grid: directions and numbers of cells.

    Directions are in random order, and so are the numbers of each.
    """
    ways = []
    for k in rng.permutation(len(MOTIONS)).tolist():
        motion = tuple(MOTIONS)[k]
        along = cell[0] if motion in ("left", "right") else cell[1]
        room = along if motion in ("left", "up") else GRID - 1 - along
        for n in rng.permutation(room).tolist():
            ways.append((motion, 1 + n))
    return ways


def _apart(start: np.ndarray, end: np.ndarray, extent: np.ndarray, gap: float) -> bool:
    """Tell whether all boxes are at least `gap` apart in every frame."""
    share = np.linspace(0, 1, FRAMES)[:, None, None]
    centers = start + share * (end - start)
    distance = np.abs(centers[:, :, None] - centers[:, None]).max(-1)
    free = distance >= (extent[:, None] + extent) / 2 + gap
    itself = np.eye(len(extent), dtype=bool)
    return bool((free | itself).all())
