"""Labelled scenes, for recognition of classes that a model never learned from.

In: (seed, split, i, size). Out: sample i of a split. A class is a fill, a color and a shape.
`base`, `val` and `novel` share no pair of color and shape, and the pairs of `novel` are the
held-out ones, which no training scene holds either. As no color comes twice among them, fills keep
classes of one color apart. All objects of an image are of the split's classes. Every other image
shows one object, of each class in turn.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from data_pipeline.randomness import generator_at
from data_pipeline.sample import annotations_member
from data_pipeline.scenes.captions import render, statements_of
from data_pipeline.scenes.draw import draw
from data_pipeline.scenes.graph import (
    COLOURS,
    FILLS,
    HELD_OUT,
    MAX_OBJECTS,
    SHAPES,
    SPLITS,
    scene_of,
)
from data_pipeline.shards.write import Record

VERSION = 1
COUNTS = {"base": 3024, "val": 1008, "novel": 1200}
"""Default number of samples per split: of each class, 21 or 25 samples show nothing else."""


def _pairs(first: int, last: int) -> list[tuple[str, str]]:
    """Return pairs of every color with its familiar shapes number `first` to `last` - 1.

    Counting begins with another shape for each color, so that the shapes of a split differ.
    """
    pairs = []
    for number, colour in enumerate(COLOURS):
        shapes = [shape for shape in SHAPES if (colour, shape) not in HELD_OUT]
        for k in range(first, last):
            pairs.append((colour, shapes[(number + k) % len(shapes)]))
    return sorted(pairs)


def _kinds(pairs: list[tuple[str, str]]) -> list[tuple[str, str, str]]:
    """Return the classes (fill, color, shape) with these pairs of color and shape."""
    kinds = []
    for colour, shape in pairs:
        for fill in FILLS:
            kinds.append((fill, colour, shape))
    return kinds


_PAIRS = {"base": _pairs(0, 3), "val": _pairs(3, 4), "novel": sorted(HELD_OUT)}
_KINDS = {split: _kinds(pairs) for split, pairs in _PAIRS.items()}
CLASSES = {split: tuple(map(" ".join, kinds)) for split, kinds in _KINDS.items()}
"""Names of the classes of each split, as in `labels`."""


def labelled_sample_at(seed: int, split: str, i: int, size: int) -> Record:
    """Return sample i of a labelled split as in a shard: its key, its `jpg` and `json` members."""
    # Another stream for the words, so that new wordings would leave the images as they are.
    rng, words = _stream(seed, split, i, 0), _stream(seed, split, i, 1)
    # Half of the images show a single object, so that every class has images of its own.
    if i % 2 == 0:
        kinds = [_KINDS[split][i // 2 % len(_KINDS[split])]]
    else:
        # Pairs are distinct, so that color and shape identify an object.
        pairs = _PAIRS[split]
        count = int(rng.integers(2, MAX_OBJECTS + 1))
        kinds = []
        for k in rng.choice(len(pairs), count, replace=False).tolist():
            kinds.append((FILLS[int(rng.integers(len(FILLS)))], *pairs[k]))
    scene = scene_of(rng, kinds, size)
    statements = statements_of(scene, words)
    annotations = {
        "captions": [render(statement) for statement in statements],
        "image_id": f"labelled-{split}-{seed}-{i:09d}",
        "labels": sorted(" ".join(kind) for kind in kinds),
        "scene": scene,
        "statements": statements,
    }
    quality = scene["camera"]["jpeg_quality"]
    jpeg = simplejpeg.encode_jpeg(draw(scene), quality=quality, colorsubsampling="420")
    return f"{i:09d}", {"jpg": jpeg, "json": annotations_member(annotations)}


def _stream(seed: int, split: str, i: int, purpose: int) -> np.random.Generator:
    # Numbered after the splits without labels, whose streams must be different ones.
    number = len(SPLITS) + tuple(COUNTS).index(split)
    return generator_at(seed, number, i, purpose)
