"""Labelled scenes: pictures by what they show, for recognition of classes that were never learnt from.

In: (seed, split, i, size). Out: sample i of a split. A class is a colour and a shape; `base`, `val` and `novel` share
none, and the classes of `novel` are the held-out pairs, which no training scene holds either. All objects of a picture
are of the split's classes; half of the pictures show one object.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import simplejpeg

from data_pipeline.scenes.captions import render, statements_of
from data_pipeline.scenes.draw import draw
from data_pipeline.scenes.graph import FAMILIAR, HELD_OUT, MAX_OBJECTS, SPLITS, scene_of
from data_pipeline.write import Record

VERSION = 1
COUNTS = {"base": 3000, "val": 800, "novel": 1000}
"""Samples of each split, unless others are asked for."""
_VALIDATION_CLASSES = 16


def _by_hash(pairs: frozenset[tuple[str, str]]) -> list[tuple[str, str]]:
    """Order pairs as by chance, but always the same: neither colours nor shapes stand together."""
    return sorted(pairs, key=lambda pair: hashlib.blake2b(" ".join(pair).encode(), digest_size=8).digest())


_FAMILIAR = _by_hash(frozenset(FAMILIAR))
_PAIRS = {
    "base": sorted(_FAMILIAR[:-_VALIDATION_CLASSES]),
    "val": sorted(_FAMILIAR[-_VALIDATION_CLASSES:]),
    "novel": sorted(HELD_OUT),
}
CLASSES = {split: tuple(" ".join(pair) for pair in pairs) for split, pairs in _PAIRS.items()}
"""Names of the classes of each split, as in `labels`."""


def labelled_sample_at(seed: int, split: str, i: int, size: int) -> Record:
    """Sample i of a labelled split as it stands in a shard: its key, and its `jpg` and its `json` member."""
    rng, words = (_stream(seed, split, i, purpose) for purpose in (0, 1))
    count = 1 if rng.random() < 0.5 else int(rng.integers(2, MAX_OBJECTS + 1))
    pairs = _PAIRS[split]
    scene = scene_of(rng, [pairs[k] for k in rng.choice(len(pairs), count, replace=False).tolist()], size)
    statements = statements_of(scene, words)
    annotations = {
        "captions": [render(statement) for statement in statements],
        "image_id": f"labelled-{split}-{seed}-{i:09d}",
        "labels": sorted(f"{item['colour']} {item['shape']}" for item in scene["objects"]),
        "scene": scene,
        "statements": statements,
    }
    jpeg = simplejpeg.encode_jpeg(draw(scene), quality=scene["camera"]["jpeg_quality"], colorsubsampling="420")
    return f"{i:09d}", {"jpg": jpeg, "json": json.dumps(annotations, separators=(",", ":")).encode()}


def _stream(seed: int, split: str, i: int, purpose: int) -> np.random.Generator:
    number = len(SPLITS) + tuple(COUNTS).index(split)  # streams of the splits without labels stay their own
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number, i, purpose])))
