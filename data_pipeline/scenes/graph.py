"""Which scene is sample i of a split: objects with their attributes and places, and the look.

In: (seed, split, i, size). Out: a scene graph of plain JSON values, from which `draw.py` makes the
pixels and `captions.py` the texts. Splits cannot share a scene: every combination of objects
belongs to the split that its hash selects. The held-out pairs of color and shape occur in every
`novel` scene and nowhere else.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from data_pipeline.randomness import generator_at

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "moon", "arrow")
# Spelled like the key `colour` of stored scenes.
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
# Longest side of the object's box as a share of the image's side.
SIZES = {"small": 20 / 96, "large": 33 / 96}
FILLS = ("solid", "striped", "hollow")
GRID = 3  # objects are in different cells of a 3 by 3 grid
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

_PAIRS = tuple(product(COLOURS, SHAPES))
_FAMILIAR = tuple(pair for pair in _PAIRS if pair not in HELD_OUT)
_NOVEL = tuple(sorted(HELD_OUT))
# Which hundredths of all combinations belong to each split. Novel scenes differ by their pairs.
_HASH_RANGES = {"train": range(0, 70), "val": range(70, 80), "test": range(80, 100)}


def scene_at(seed: int, split: str, i: int, size: int) -> dict[str, Any]:
    """Return scene i of a split, a pure function of its arguments.

    Lengths are in pixels of an image of `size` x `size`.
    """
    rng = generator_at(seed, SPLITS.index(split), i)
    # Drawn once, outside the loop: crowded scenes are rejected more often and would become rare.
    count = 1 + int(rng.integers(MAX_OBJECTS))
    while True:
        objects = _combination(rng, _pairs(rng, split, count))
        # Drawn again until the hash selects this split, which keeps the splits disjoint.
        if split != "novel" and combination_hash(objects) % 100 not in _HASH_RANGES[split]:
            continue
        if _place(rng, objects, size):
            return {"size": size, **_look(rng, size), "objects": objects}


def scene_of(
    rng: np.random.Generator, kinds: Sequence[tuple[str, str, str]], size: int
) -> dict[str, Any]:
    """Draw a scene with one object of each of these kinds (fill, color, shape)."""
    while True:
        objects = _combination(rng, [(colour, shape) for _, colour, shape in kinds])
        for item, (fill, _, _) in zip(objects, kinds, strict=True):
            item["fill"] = fill
        if _place(rng, objects, size):
            return {"size": size, **_look(rng, size), "objects": objects}


def combination(objects: list[dict[str, Any]]) -> list[tuple[str, str, str, str, int, int]]:
    """Return the sorted (color, shape, size, fill, column, row) of the objects.

    Two scenes with equal combinations are the same scene.
    """
    combined = []
    for item in objects:
        traits = (item["colour"], item["shape"], item["size"], item["fill"])
        combined.append((*traits, item["column"], item["row"]))
    return sorted(combined)


def combination_hash(objects: list[dict[str, Any]]) -> int:
    """Return a hash of the combination.

    It does not depend on the seed, so splits of different seeds are disjoint too.
    """
    text = repr(combination(objects)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _combination(
    rng: np.random.Generator, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    count = len(pairs)
    cells = rng.permutation(GRID * GRID)[:count].tolist()
    traits = rng.integers((len(SIZES), len(FILLS)), size=(count, 2)).tolist()
    objects = []
    for (colour, shape), cell, (size, fill) in zip(pairs, cells, traits, strict=True):
        item = {"shape": shape, "colour": colour, "size": tuple(SIZES)[size], "fill": FILLS[fill]}
        objects.append(item | {"column": cell % GRID, "row": cell // GRID})
    return objects


def _pairs(rng: np.random.Generator, split: str, count: int) -> list[tuple[str, str]]:
    """Draw distinct pairs of color and shape, so that both together identify an object."""
    if split != "novel":
        return [_FAMILIAR[k] for k in rng.choice(len(_FAMILIAR), count, replace=False).tolist()]
    first = _NOVEL[int(rng.integers(len(_NOVEL)))]
    others = [pair for pair in _PAIRS if pair != first]
    pairs = [first]
    pairs += [others[k] for k in rng.choice(len(others), count - 1, replace=False).tolist()]
    # Shuffled, because the order of the objects must not give the novel pair away.
    return [pairs[k] for k in rng.permutation(count).tolist()]


def _place(rng: np.random.Generator, objects: list[dict[str, Any]], size: int) -> bool:
    """Give every object its center and extent in pixels, so that no boxes touch.

    Returns False if the objects are too large for their cells.
    """
    count, gap, margin = len(objects), size / 64, size / 96
    share = np.array([SIZES[item["size"]] for item in objects])
    extent = (size * share * rng.uniform(0.95, 1.05, count)).round(2)
    cells = np.array([(item["column"], item["row"]) for item in objects])
    # 64 attempts at once. The jitter is less than half of the free space in a cell, so objects in
    # the same column never look left or right of each other.
    jitter = rng.uniform(-0.073, 0.073, (64, count, 2))
    centers = size * ((cells + 0.5) / GRID + jitter)
    half = extent[:, None] / 2 + margin
    centers = np.clip(centers, half, size - half)
    distance = np.abs(centers[:, :, None] - centers[:, None]).max(-1)
    apart = distance >= (extent[:, None] + extent) / 2 + gap
    free = (apart | np.eye(count, dtype=bool)).all((1, 2))
    if not free.any():
        return False
    chosen = centers[int(free.argmax())].round(2)
    for number, item in enumerate(objects):
        item["x"], item["y"] = chosen[number].tolist()
        item["extent"] = float(extent[number])
        item["rotation"] = round(float(rng.uniform(-10, 10)), 1)
        item["stripe_angle"] = round(float(rng.uniform(25, 65)), 1)
        shift = rng.integers(-12, 13, 3)
        item["rgb"] = np.clip(np.array(COLOURS[item["colour"]]) + shift, 0, 255).tolist()
    return True


def _look(rng: np.random.Generator, size: int) -> dict[str, Any]:
    """Draw background, light and camera: everything that changes pixels but not captions."""
    # The order of the draws, here and in the dictionary, is part of every scene.
    hue = rng.uniform(0, 1, 2)
    saturation = rng.uniform(0.02, 0.22, 2)
    value = rng.uniform(0.35, 0.82)
    values = np.clip(value + rng.uniform(-0.12, 0.12, 2), 0.25, 0.9)
    colors = zip(hue.tolist(), saturation.tolist(), values.tolist(), strict=True)
    return {
        "background": {
            "rgb": [_rgb(*hsv) for hsv in colors],
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
