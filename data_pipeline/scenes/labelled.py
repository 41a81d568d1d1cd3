"""Labelled scenes: pictures by what they show, for recognition of classes that were never learnt from.

In: (seed, split, i, size). Out: sample i of a split. A class is a fill, a colour and a shape;
`base`, `val` and `novel` share no pair of colour and shape, and those of `novel` are the held-out
ones, which no training scene holds either. As no colour comes twice among them, fills keep classes
of one colour apart. All objects of a picture are of the split's classes. Every other picture shows
one object, of every class in turn.
"""

from __future__ import annotations

import json

import numpy as np
import simplejpeg

from data_pipeline.randomness import generator_at
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
"""Samples of each split, unless others are asked for: 21 or 25 of each class show nothing else."""


def _pairs(first: int, last: int) -> list[tuple[str, str]]:
    """Take these of every colour's familiar shapes, beginning with another shape for each colour."""
    found = []
    for number, colour in enumerate(COLOURS):
        shapes = [shape for shape in SHAPES if (colour, shape) not in HELD_OUT]
        found += [(colour, shapes[(number + k) % len(shapes)]) for k in range(first, last)]
    return sorted(found)


_PAIRS = {"base": _pairs(0, 3), "val": _pairs(3, 4), "novel": sorted(HELD_OUT)}
_KINDS = {
    split: [(fill, *pair) for pair in pairs for fill in FILLS] for split, pairs in _PAIRS.items()
}
CLASSES = {split: tuple(" ".join(kind) for kind in kinds) for split, kinds in _KINDS.items()}
"""Names of the classes of each split, as in `labels`."""


def labelled_sample_at(seed: int, split: str, i: int, size: int) -> Record:
    """Sample i of a labelled split as it stands in a shard: its key, and its `jpg` and its `json` member."""
    rng, words = (_stream(seed, split, i, purpose) for purpose in (0, 1))
    if i % 2 == 0:
        kinds = [_KINDS[split][i // 2 % len(_KINDS[split])]]
    else:  # pairs are distinct, so that colour and shape name one object
        pairs = _PAIRS[split]
        chosen = rng.choice(
            len(pairs), int(rng.integers(2, MAX_OBJECTS + 1)), replace=False
        ).tolist()
        kinds = [(FILLS[int(rng.integers(len(FILLS)))], *pairs[k]) for k in chosen]
    scene = scene_of(rng, kinds, size)
    statements = statements_of(scene, words)
    annotations = {
        "captions": [render(statement) for statement in statements],
        "image_id": f"labelled-{split}-{seed}-{i:09d}",
        "labels": sorted(" ".join(kind) for kind in kinds),
        "scene": scene,
        "statements": statements,
    }
    jpeg = simplejpeg.encode_jpeg(
        draw(scene), quality=scene["camera"]["jpeg_quality"], colorsubsampling="420"
    )
    return f"{i:09d}", {
        "jpg": jpeg,
        "json": json.dumps(annotations, separators=(",", ":")).encode(),
    }


def _stream(seed: int, split: str, i: int, purpose: int) -> np.random.Generator:
    number = len(SPLITS) + tuple(COUNTS).index(
        split
    )  # streams of the splits without labels stay their own
    return generator_at(seed, number, i, purpose)
