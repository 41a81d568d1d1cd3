"""The data sets of an evaluation as methods read them: pictures with exactly one class each, no class in two of them.

In: data sets and an encoder. Out: tokens, classes, the classes' names as features, and episodes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.encoders import Encoder
from eval.encoding.labelled_images import ImageTokens, encode_tokens
from eval.encoding.prompts import label_features
from eval.stages.few_shot.episodes import EpisodeSampler

from .inference import World

_NAMED = 5  # classes that a message names


@dataclass(frozen=True)
class Split:
    """One data set of an evaluation.

    ``option`` is what messages call it; ``rows`` are the places of the world's pictures in the data
    set, others were left out (``without_one_label``).
    """

    option: str
    manifest: Manifest
    world: World
    rows: list[int]
    without_one_label: int

    @property
    def classes(self) -> list[str]:
        """Names of the classes, sorted."""
        return sorted(set(self.world.labels))

    def sampler(
        self, way: int, shot: int, queries: int, episodes: int, seed: int, **how: bool
    ) -> EpisodeSampler:
        """Return a sampler of episodes of these pictures; raises as it does."""
        media, labels = self.world.tokens.media, self.world.labels
        form: dict[str, Any] = {
            "way": way,
            "shot": shot,
            "queries": queries,
            "episodes": episodes,
            "seed": seed,
        }
        return EpisodeSampler(labels, **form, **how, media=media, name=self.option)

    def learning_sampler(
        self, way: int, shot: int, queries: int, episodes: int, seed: int
    ) -> EpisodeSampler:
        """Return a sampler of episodes to learn from or choose on, with fewer queries where the data have no more."""
        most = self.sampler(way, shot, 1, 1, seed).smallest_class - shot
        return self.sampler(way, shot, min(queries, most), episodes, seed)


def load_split(
    encoder: Encoder,
    manifest: Manifest,
    option: str,
    *,
    templates: Sequence[str],
    pool_grid: int,
    limit: int | None,
    batch_size: int,
) -> Split:
    """Encode the pictures of a data set that have exactly one label.

    Raises
    ------
    DataError
        If there are none.
    """
    tokens = encode_tokens(
        encoder, manifest, pool_grid=pool_grid, limit=limit, batch_size=batch_size
    )
    rows = [row for row, labels in enumerate(tokens.labels) if len(labels) == 1]
    if not rows:
        raise DataError(
            f'{manifest.root} has no sample with exactly one of "labels", which few-shot recognition needs'
        )
    labels = [tokens.labels[row][0] for row in rows]
    names = sorted(set(labels))
    texts = (
        dict(zip(names, label_features(encoder, names, templates), strict=True))
        if encoder.joint
        else None
    )
    return Split(
        option,
        manifest,
        World(selected(tokens, rows), labels, texts),
        rows,
        len(tokens) - len(rows),
    )


def selected(tokens: ImageTokens, rows: Sequence[int]) -> ImageTokens:
    """Return tokens of some of the pictures."""
    if len(rows) == len(tokens):
        return tokens
    index = torch.tensor(rows)
    listed: dict[str, Any] = {
        name: [getattr(tokens, name)[row] for row in rows]
        for name in ("keys", "labels", "annotations", "media")
    }
    return dataclasses.replace(
        tokens,
        **listed,
        cls=tokens.cls[index],
        patch=tokens.patch[index],
        proj=None if tokens.proj is None else tokens.proj[index],
        layers={number: layer[index] for number, layer in tokens.layers.items()},
    )


def refuse_shared_classes(splits: Mapping[str, Split]) -> None:
    """Refuse a class that is in two splits: what is measured must be new to what was trained and chosen.

    Raises
    ------
    DataError
        With the names of the classes.
    """
    for one, other in combinations(splits.values(), 2):
        shared = sorted({*one.classes} & {*other.classes})
        if shared:
            several = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
            raise DataError(
                f"{one.option} and {other.option} share the classes {', '.join(map(repr, shared[:_NAMED]))}{several}: "
                "few-shot classes must be new; take them out of one of the two"
            )


def shared_pictures(splits: Mapping[str, Split]) -> list[str]:
    """Flag pictures of the measured data that are in another split too, under another class."""
    own = np.array(splits["data"].world.tokens.media)
    counts = {
        name: int(np.isin(own, split.world.tokens.media).sum()) for name, split in splits.items()
    }
    return [
        f"pictures_shared_with/{name}/{count}"
        for name, count in counts.items()
        if count and name != "data"
    ]


def described(splits: Mapping[str, Split]) -> dict[str, Any]:
    """Describe the data sets for a result; ``split`` hashes which classes are in which of them."""
    classes = {name: split.classes for name, split in splits.items()}
    digest = hashlib.sha256(json.dumps(classes, sort_keys=True).encode()).hexdigest()
    parts: dict[str, Any] = {}
    for name, split in splits.items():
        part = {
            "images": len(split.rows),
            "copies": len(split.rows) - len(set(split.world.tokens.media)),
            "without_one_label": split.without_one_label,
            "classes": split.classes,
        }
        if name == "data":  # the runner says where it lies
            parts |= part
        else:
            parts[name] = {
                "path": str(split.manifest.root),
                "name": split.manifest.name,
                "hash": f"sha256:{split.manifest.digest}",
                **part,
            }
    return {**parts, "split": f"sha256:{digest}"}
