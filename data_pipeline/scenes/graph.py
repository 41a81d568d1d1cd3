"""Which scene stands at position i of a split: objects with their attributes and places, and how the picture will look.

In: (seed, split, i, size). Out: a scene graph of plain JSON values, from which `draw.py` makes the
pixels and `captions.py` the texts. Splits cannot share a scene: every combination of objects
belongs to the split that its hash names, and the held-out pairs of colour and shape stand in every
`novel` scene and nowhere else.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.randomness import generator_at

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "moon", "arrow")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 134, 20),
    "yellow": (245, 214, 40),
    "green": (50, 165, 60),
    "cyan": (40, 200, 215),
    "blue": (40, 75, 215),
    "purple": (130, 45, 175),
    "pink": (245, 120, 190),
}
SIZES = {
    "small": 20 / 96,
    "large": 33 / 96,
}  # longest side of the object's box as a share of the picture's side
FILLS = ("solid", "striped", "hollow")
GRID = 3  # objects stand in different cells of a 3 by 3 grid
MAX_OBJECTS = 4
HELD_OUT = frozenset(
    {
        ("red", "star"),
        ("orange", "moon"),
        ("yellow", "heart"),
        ("green", "circle"),
        ("cyan", "arrow"),
        ("blue", "triangle"),
        ("purple", "cross"),
        ("pink", "square"),
    }
)
SPLITS = ("train", "val", "test", "novel")

_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_FAMILIAR = tuple(pair for pair in _PAIRS if pair not in HELD_OUT)
_NOVEL = tuple(sorted(HELD_OUT))
# Hundredths of all combinations that belong to each split; novel scenes are apart by their pairs.
_HASH_RANGES = {"train": range(0, 70), "val": range(70, 80), "test": range(80, 100)}


def scene_at(seed: int, split: str, i: int, size: int) -> dict[str, Any]:
    """Scene i of a split: a pure function of its arguments; lengths in pixels of a picture of `size` x `size`."""
    rng = generator_at(seed, SPLITS.index(split), i)
    count = 1 + int(
        rng.integers(MAX_OBJECTS)
    )  # drawn once: crowded scenes are drawn again more often
    while True:
        objects = _combination(rng, _pairs(rng, split, count))
        if split != "novel" and combination_hash(objects) % 100 not in _HASH_RANGES[split]:
            continue
        if _place(rng, objects, size):
            return {"size": size, **_look(rng, size), "objects": objects}


def scene_of(
    rng: np.random.Generator, kinds: Sequence[tuple[str, str, str]], size: int
) -> dict[str, Any]:
    """Draw a scene of these kinds (fill, colour, shape), each one object, at most `MAX_OBJECTS`."""
    while True:
        objects = _combination(rng, [(colour, shape) for _, colour, shape in kinds])
        for item, (fill, _, _) in zip(objects, kinds, strict=True):
            item["fill"] = fill
        if _place(rng, objects, size):
            return {"size": size, **_look(rng, size), "objects": objects}


def combination(objects: list[dict[str, Any]]) -> list[tuple[str, str, str, str, int, int]]:
    """Return what makes two scenes the same: their objects' (colour, shape, size, fill, column, row), sorted."""
    return sorted(
        (o["colour"], o["shape"], o["size"], o["fill"], o["column"], o["row"]) for o in objects
    )


def combination_hash(objects: list[dict[str, Any]]) -> int:
    """Hash of the combination, which does not depend on the seed: splits of different seeds are disjoint too."""
    text = repr(combination(objects)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _combination(
    rng: np.random.Generator, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    count = len(pairs)
    cells = rng.permutation(GRID * GRID)[:count].tolist()
    traits = rng.integers((len(SIZES), len(FILLS)), size=(count, 2)).tolist()
    return [
        {
            "shape": shape,
            "colour": colour,
            "size": tuple(SIZES)[size],
            "fill": FILLS[fill],
            "column": cell % GRID,
            "row": cell // GRID,
        }
        for (colour, shape), cell, (size, fill) in zip(pairs, cells, traits, strict=True)
    ]


def _pairs(rng: np.random.Generator, split: str, count: int) -> list[tuple[str, str]]:
    """Distinct pairs of colour and shape, so that naming both names one object."""
    if split != "novel":
        return [_FAMILIAR[k] for k in rng.choice(len(_FAMILIAR), count, replace=False).tolist()]
    first = _NOVEL[int(rng.integers(len(_NOVEL)))]
    others = [pair for pair in _PAIRS if pair != first]
    pairs = [
        first,
        *(others[k] for k in rng.choice(len(others), count - 1, replace=False).tolist()),
    ]
    return [
        pairs[k] for k in rng.permutation(count).tolist()
    ]  # drawing order must not give the novel pair away


def _place(rng: np.random.Generator, objects: list[dict[str, Any]], size: int) -> bool:
    """Give every object centre and extent in pixels, so that no boxes touch; False where the cells are too narrow."""
    count, gap, margin = len(objects), size / 64, size / 96
    share = np.array([SIZES[o["size"]] for o in objects])
    extent = (size * share * rng.uniform(0.95, 1.05, count)).round(2)
    cells = np.array([(o["column"], o["row"]) for o in objects])
    # Less than half of the cell's free way: objects of one column never look left or right of each
    # other.
    jitter = rng.uniform(-0.073, 0.073, (64, count, 2))
    centre = size * ((cells + 0.5) / GRID + jitter)
    half = extent[:, None] / 2 + margin
    centre = np.clip(centre, half, size - half)
    apart = (
        np.abs(centre[:, :, None] - centre[:, None]).max(-1) >= (extent[:, None] + extent) / 2 + gap
    )
    free = (apart | np.eye(count, dtype=bool)).all((1, 2))
    if not free.any():
        return False
    chosen = centre[int(free.argmax())].round(2)
    for number, o in enumerate(objects):
        o["x"], o["y"] = chosen[number].tolist()
        o["extent"] = float(extent[number])
        o["rotation"] = round(float(rng.uniform(-10, 10)), 1)
        o["stripe_angle"] = round(float(rng.uniform(25, 65)), 1)
        shift = rng.integers(-12, 13, 3)
        o["rgb"] = np.clip(np.array(COLOURS[o["colour"]]) + shift, 0, 255).tolist()
    return True


def _look(rng: np.random.Generator, size: int) -> dict[str, Any]:
    """Background, light and camera, everything that changes pixels but no caption."""
    hue, saturation, value = (
        rng.uniform(0, 1, 2),
        rng.uniform(0.02, 0.22, 2),
        rng.uniform(0.35, 0.82),
    )
    values = np.clip(value + rng.uniform(-0.12, 0.12, 2), 0.25, 0.9)
    return {
        "background": {
            "rgb": [
                _rgb(*hsv)
                for hsv in zip(hue.tolist(), saturation.tolist(), values.tolist(), strict=True)
            ],
            "gradient_angle": round(float(rng.uniform(0, 360)), 1),
            "roughness": round(float(rng.uniform(0.35, 0.75)), 3),
            "texture": round(float(rng.uniform(0.2, 0.8)), 3),
            "seed": int(rng.integers(2**32)),
        },
        "light": {
            "angle": round(float(rng.uniform(0, 360)), 1),
            "shadow": round(float(rng.uniform(0.1, 0.4)), 3),
        },
        "camera": {
            "blur": round(float(rng.uniform(0.25, 0.7)) * size / 96, 3),
            "noise": round(float(rng.uniform(1.5, 6)), 2),
            "jpeg_quality": int(rng.integers(80, 96)),
        },
    }


def _rgb(hue: float, saturation: float, value: float) -> list[int]:
    return [round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value)]
