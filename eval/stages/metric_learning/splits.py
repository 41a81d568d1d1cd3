"""Images to train on and to measure on: which a protocol can use, and classes they must not share.

In: labels and tokens of whole data sets. Out: errors before anything is encoded, the tokens of the
images that count, and flags about what the sets share.
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

NAMED_IN_AN_ERROR = 5  # classes; the rest are counted


def labels_in(manifest: Manifest, limit: int | None) -> list[tuple[str, ...]]:
    """Read the classes of the first ``limit`` images (all by default), without decoding an image.

    Raises DataError for annotations that cannot be read.
    """
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    labels = []
    with closing(Store([manifest])) as store:
        for row in range(total):
            key = store.key(0, row)
            annotations = parse_annotations(key, store.members(0, row, {"json"}))
            labels.append(sample_labels(key, annotations))
    return labels


def refuse_unlearnable(labels: Sequence[tuple[str, ...]], folds: int, seed: int) -> None:
    """Raise DataError if images of these classes do not suffice for training or for the folds."""
    names = [labels[row][0] for row in _rows_of(labels, (1,))]
    if not names:
        raise DataError(
            'no image to learn from has exactly one of "labels", the class that metric learning '
            "needs"
        )
    numbers = np.unique(names, return_inverse=True)[1]
    for train, held in class_folds(names, folds, seed):
        # Raises an error if the classes of a fold cannot fill a batch.
        ClassBatches(numbers[train], classes=2, per_class=2, seed=seed)
        if np.bincount(numbers[held]).max() < 2:
            raise DataError(
                f"one of {folds} folds of the {numbers.max() + 1} classes to learn from has no "
                "class with two images, so nothing can be chosen on it: choose fewer --folds, or "
                "add images of each class"
            )


def refuse_unmeasurable(
    labels: Mapping[str, Sequence[tuple[str, ...]]],
    roots: Mapping[str, Path],
    protocol: str,
    limit: int | None,
) -> None:
    """Raise DataError if `data` or `query` shares classes with `base`, or no query has a match.

    Parameters
    ----------
    labels, roots
        Labels of each image, and the folder, of `base`, `data` and, if there are queries, `query`.
    protocol, limit
        As the options say.
    """
    # Images with several classes are not trained on, so their classes may be measured.
    learned = {names[0] for names in labels["base"] if len(names) == 1}
    used: dict[str, list[tuple[str, ...]]] = {}
    for name, labels_of_set in labels.items():
        if name == "base":
            continue
        rows = _rows_of(labels_of_set, _allowed_label_counts(protocol))
        used[name] = [labels_of_set[row] for row in rows]
        if not rows:
            raise DataError('no image to be measured on has exactly one of "labels", its class')
        _refuse_shared(learned, used[name], roots["base"], roots[name])
    if protocol not in ("classes", "query-gallery"):
        return  # labels alone do not say what is right
    times = Counter(names for names in used["data"] if names)
    # A query of the gallery itself is one of the images of its class, and not a match.
    enough = 1 if "query" in used else 2
    queries = used.get("query", used["data"])
    if not any(times[names] >= enough for names in queries):
        raise DataError(no_match_message(roots["data"], limit))


def _refuse_shared(
    learned: set[str], measured: Sequence[tuple[str, ...]], base: Path, other: Path
) -> None:
    measured_classes: set[str] = set()
    for names in measured:
        measured_classes.update(names)
    shared = sorted(learned & measured_classes)
    if shared:
        shown = ", ".join(map(repr, shared[:NAMED_IN_AN_ERROR]))
        if len(shared) > NAMED_IN_AN_ERROR:
            shown += f" and {len(shared) - NAMED_IN_AN_ERROR} more"
        raise DataError(
            f"{base} and {other} share the classes {shown}: unseen classes must not be learnt from"
        )


def no_match_message(data: Path | str, limit: int | None) -> str:
    """Say that no query has a right image."""
    message = f"no query has a right image in {data}: every class, or identity, has a single image"
    if limit is None:
        return message
    return f"{message} among the first {limit} that --limit takes: raise it, or leave it out"


def learnt_from(tokens: ImageTokens) -> ImageTokens:
    """Keep the images that have exactly one class."""
    return _take(tokens, _rows_of(tokens.labels, (1,)))


def measured_on(tokens: ImageTokens, protocol: str) -> ImageTokens:
    """Keep the images that the protocol ranks: with one class, or also with none.

    Images without a class are distractors in the gallery.
    """
    return _take(tokens, _rows_of(tokens.labels, _allowed_label_counts(protocol)))


def shared_pictures(learnt: ImageTokens, measured: Iterable[ImageTokens]) -> list[str]:
    """Flag images whose files are in both data sets, as in some published splits."""
    in_both: set[str] = set()
    for tokens in measured:
        in_both |= set(tokens.media) & set(learnt.media)
    return [f"pictures_shared_with/base/{len(in_both)}"] if in_both else []


def counts(
    whole: Mapping[str, ImageTokens], used: Mapping[str, ImageTokens]
) -> dict[str, dict[str, int]]:
    """Count the images, classes and left-out images of each data set."""
    counted = {}
    for name, tokens in used.items():
        classes: set[str] = set()
        for names in tokens.labels:
            classes.update(names)
        counted[name] = {
            "pictures": len(tokens),
            "left_out": len(whole[name]) - len(tokens),
            "classes": len(classes),
        }
    return counted


def _allowed_label_counts(protocol: str) -> tuple[int, ...]:
    return (1,) if protocol == "classes" else (0, 1)


def _rows_of(labels: Sequence[tuple[str, ...]], allowed: tuple[int, ...]) -> list[int]:
    """Return the images that have an allowed number of labels."""
    return [row for row, names in enumerate(labels) if len(names) in allowed]


def _take(tokens: ImageTokens, rows: list[int]) -> ImageTokens:
    return replace(
        tokens,
        keys=[tokens.keys[row] for row in rows],
        labels=[tokens.labels[row] for row in rows],
        annotations=[tokens.annotations[row] for row in rows],
        media=[tokens.media[row] for row in rows],
        cls=tokens.cls[rows],
        patch=tokens.patch[rows],
        proj=None if tokens.proj is None else tokens.proj[rows],
        layers={layer: of_layer[rows] for layer, of_layer in tokens.layers.items()},
    )
