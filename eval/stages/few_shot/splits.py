"""The data sets of an evaluation, reduced to images with exactly one class each.

In: data sets and an encoder. Out: tokens, classes and features of the classes' names by role:
`data` is measured, `base` is trained on, `val` is chosen on. No class may have two roles.
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
from eval.results.schema import data_hash
from eval.stages.few_shot.episodes import EpisodeSampler

from .inference import World
from .options import Options

# Most classes that a message names, so that it stays readable.
_NAMED_CLASSES = 5


@dataclass(frozen=True)
class Split:
    """One data set of an evaluation.

    Messages call it by its ``option``, such as `--val`. ``rows`` are the positions in the data set
    of the images in ``world``; the ``without_one_label`` others were left out.
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
        self,
        way: int,
        shot: int,
        queries: int,
        episodes: int,
        seed: int,
        *,
        disjoint: bool = False,
    ) -> EpisodeSampler:
        """Return a sampler of episodes of these images; raises as `EpisodeSampler` does."""
        return EpisodeSampler(
            self.world.labels,
            way=way,
            shot=shot,
            queries=queries,
            episodes=episodes,
            seed=seed,
            disjoint=disjoint,
            media=self.world.tokens.media,
            name=self.option,
        )

    def learning_sampler(
        self, way: int, shot: int, queries: int, episodes: int, seed: int
    ) -> EpisodeSampler:
        """Return a sampler of episodes to train or choose on, with fewer queries if it must.

        What is measured keeps the number of queries that the user asked for. Base and validation
        classes may be smaller, and fewer queries there change no protocol.
        """
        # With one query the sampler refuses only classes that allow no episode at all.
        most = self.sampler(way, shot, 1, 1, seed).smallest_class - shot
        return self.sampler(way, shot, min(queries, most), episodes, seed)


def load_split(
    encoder: Encoder,
    manifest: Manifest,
    role: str,
    options: Options,
    templates: Sequence[str],
) -> Split:
    """Encode the images of a data set that have exactly one label.

    Parameters
    ----------
    encoder
        Encodes images, and the names of classes if it has a space for both.
    manifest
        The data set.
    role
        `data`, `base` or `val`.
    options
        Grid, batch size and limit.
    templates
        Sentences that the names of classes are put into.

    Raises
    ------
    DataError
        If no image has exactly one label.
    """
    tokens = encode_tokens(
        encoder,
        manifest,
        pool_grid=options.pool_grid,
        limit=options.limit,
        batch_size=options.batch_size,
    )
    rows = [row for row, labels in enumerate(tokens.labels) if len(labels) == 1]
    if not rows:
        raise DataError(
            f'{manifest.root} has no sample with exactly one of "labels", '
            "which few-shot recognition needs"
        )
    labels = [tokens.labels[row][0] for row in rows]
    names = sorted(set(labels))
    texts = None
    # An encoder of images alone has no features of names; methods that need them are left out.
    if encoder.joint:
        texts = dict(zip(names, label_features(encoder, names, templates), strict=True))
    world = World(_selected(tokens, rows), labels, texts)
    return Split(f"--{role}", manifest, world, rows, len(tokens) - len(rows))


def _selected(tokens: ImageTokens, rows: Sequence[int]) -> ImageTokens:
    if len(rows) == len(tokens):
        return tokens  # indexing would copy all patches
    index = torch.tensor(rows)
    return dataclasses.replace(
        tokens,
        keys=[tokens.keys[row] for row in rows],
        labels=[tokens.labels[row] for row in rows],
        annotations=[tokens.annotations[row] for row in rows],
        media=[tokens.media[row] for row in rows],
        cls=tokens.cls[index],
        patch=tokens.patch[index],
        proj=None if tokens.proj is None else tokens.proj[index],
        layers={number: layer[index] for number, layer in tokens.layers.items()},
    )


def refuse_shared_classes(splits: Mapping[str, Split]) -> None:
    """Refuse a class of two data sets: measured classes must be new to training and choice.

    Raises
    ------
    DataError
        With the names of the classes.
    """
    for first, second in combinations(splits.values(), 2):
        shared = sorted({*first.classes} & {*second.classes})
        if not shared:
            continue
        names = ", ".join(map(repr, shared[:_NAMED_CLASSES]))
        if len(shared) > _NAMED_CLASSES:
            names += f" and {len(shared) - _NAMED_CLASSES} more"
        raise DataError(
            f"{first.option} and {second.option} share the classes {names}: "
            "few-shot classes must be new; take them out of one of the two"
        )


def flag_shared_images(splits: Mapping[str, Split]) -> list[str]:
    """Flag measured images that are also in another data set, under another class."""
    measured = np.array(splits["data"].world.tokens.media)
    flags = []
    for role, split in splits.items():
        count = int(np.isin(measured, split.world.tokens.media).sum())
        if role != "data" and count:
            flags.append(f"pictures_shared_with/{role}/{count}")
    return flags


def describe_splits(splits: Mapping[str, Split], limit: int | None) -> dict[str, Any]:
    """Describe the data sets for result.json; `split` is a hash of the classes by role."""
    # Two results with the same hash measured the same classes and learned from the same ones.
    classes = {role: split.classes for role, split in splits.items()}
    digest = hashlib.sha256(json.dumps(classes, sort_keys=True).encode()).hexdigest()
    described: dict[str, Any] = {}
    for role, split in splits.items():
        counts = {
            "images": len(split.rows),
            "copies": len(split.rows) - len(set(split.world.tokens.media)),
            "without_one_label": split.without_one_label,
            "classes": split.classes,
        }
        if role == "data":
            described |= counts  # the stage runner adds path, name and hash
        else:
            described[role] = {
                "path": str(split.manifest.root),
                "name": split.manifest.name,
                "hash": data_hash(split.manifest, limit),
                **counts,
            }
    described["split"] = f"sha256:{digest}"
    return described
