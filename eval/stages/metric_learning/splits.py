"""What is learnt from and what is measured: pictures that a protocol can use, and classes that must not be in both.

In: labels and tokens of whole data sets. Out: errors before anything is encoded, the tokens of the
pictures that count, flags about what the sets share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.sample import parse_annotations
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from eval.encoding.labelled_images import ImageTokens, sample_labels

from .training import ClassBatches, class_folds


def labels_in(manifest: Manifest, limit: int | None) -> list[tuple[str, ...]]:
    """Read the classes of the first ``limit`` pictures (all by default), which is quick beside encoding them.

    Raises DataError for annotations that cannot be read.
    """
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    found = []
    with closing(Store([manifest])) as store:
        for row in range(total):
            key = store.key(0, row)
            found.append(
                sample_labels(key, parse_annotations(key, store.members(0, row, {"json"})))
            )
    return found


def refuse_unlearnable(labels: Sequence[tuple[str, ...]], folds: int, seed: int) -> None:
    """Raise DataError where nothing can be learnt from pictures of these classes, or chosen in folds of them."""
    names = [labels[row][0] for row in _rows_of(labels, (1,))]
    if not names:
        raise DataError(
            'no picture to learn from has exactly one of "labels", the class that metric learning needs'
        )
    numbers = np.unique(names, return_inverse=True)[1]
    for train, held in class_folds(names, folds, seed):
        ClassBatches(numbers[train], classes=2, per_class=2, seed=seed)
        if np.bincount(numbers[held]).max() < 2:
            raise DataError(
                f"one of {folds} folds of the {numbers.max() + 1} classes to learn from has no class with two "
                "pictures, so that nothing can be chosen on it: fewer --folds, or more pictures of each class"
            )


def refuse_unmeasurable(
    labels: Mapping[str, Sequence[tuple[str, ...]]],
    roots: Mapping[str, Path],
    protocol: str,
    limit: int | None,
) -> None:
    """Raise DataError for classes of `base` in `data` or `query`, by name, and where no query has a right picture."""
    learnt = {names[0] for names in labels["base"] if len(names) == 1}
    used = {
        name: [several[row] for row in _rows_of(several, _allowed(protocol))]
        for name, several in labels.items()
        if name != "base"
    }
    for name, several in used.items():
        if not several:
            raise DataError('no picture to be measured on has exactly one of "labels", its class')
        shared = sorted(learnt & {one for names in several for one in names})
        if shared:
            shown = ", ".join(map(repr, shared[:5])) + (
                f" and {len(shared) - 5} more" if len(shared) > 5 else ""
            )
            said = f"{roots['base']} and {roots[name]} share the classes {shown}"
            raise DataError(f"{said}: unseen classes must not be learnt from")
    times = Counter(names for names in used["data"] if names)
    enough = 2 if "query" not in used else 1
    if protocol in ("classes", "query-gallery") and not any(
        times[names] >= enough for names in used.get("query", used["data"])
    ):
        raise DataError(nothing_right(roots["data"], limit))


def nothing_right(data: Path | str, limit: int | None) -> str:
    """Say that no query has a right picture."""
    said = (
        f"no query has a right picture in {data}: every class, or identity, has one picture alone"
    )
    return (
        said
        if limit is None
        else f"{said} among the first {limit} that --limit takes: raise it, or leave it out"
    )


def learnt_from(tokens: ImageTokens) -> ImageTokens:
    """Keep the pictures of exactly one class."""
    return _rows(tokens, _rows_of(tokens.labels, (1,)))


def measured_on(tokens: ImageTokens, protocol: str) -> ImageTokens:
    """Keep the pictures that the protocol ranks: of one class, or also those of none, which a gallery may hold."""
    return _rows(tokens, _rows_of(tokens.labels, _allowed(protocol)))


def shared_pictures(learnt: ImageTokens, measured: Iterable[ImageTokens]) -> list[str]:
    """Flag pictures that stand in both data sets byte for byte, as some published splits have them."""
    shared = {media for each in measured for media in each.media} & set(learnt.media)
    return [f"pictures_shared_with/base/{len(shared)}"] if shared else []


def counts(
    whole: Mapping[str, ImageTokens], used: Mapping[str, ImageTokens]
) -> dict[str, dict[str, int]]:
    """Count for each data set pictures, classes, and the pictures that were left out."""
    return {
        name: {
            "pictures": len(each),
            "left_out": len(whole[name]) - len(each),
            "classes": len(_classes(each)),
        }
        for name, each in used.items()
    }


def _allowed(protocol: str) -> tuple[int, ...]:
    return (1,) if protocol == "classes" else (0, 1)


def _rows_of(labels: Sequence[tuple[str, ...]], allowed: tuple[int, ...]) -> list[int]:
    return [row for row, names in enumerate(labels) if len(names) in allowed]


def _classes(tokens: ImageTokens) -> set[str]:
    return {name for names in tokens.labels for name in names}


def _rows(tokens: ImageTokens, rows: Sequence[int]) -> ImageTokens:
    chosen = list(rows)
    return replace(
        tokens,
        keys=[tokens.keys[row] for row in chosen],
        labels=[tokens.labels[row] for row in chosen],
        annotations=[tokens.annotations[row] for row in chosen],
        media=[tokens.media[row] for row in chosen],
        cls=tokens.cls[chosen],
        patch=tokens.patch[chosen],
        proj=None if tokens.proj is None else tokens.proj[chosen],
        layers={layer: each[chosen] for layer, each in tokens.layers.items()},
    )
