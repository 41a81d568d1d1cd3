"""Which labels are learned from, chosen on and measured, and which images may be used for them.

In: a list of labels (a file, or one that the project ships) and data sets. Out: for each role its
labels, and rows and truth of its images. The labels of two roles must be disjoint, and an image
with a measured label must not be seen in training under another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.label_lists import label_lists, shipped_lists

from .options import Filter

# The names that a list of labels may have in a file, by role.
SPLITS = {"base": ("train", "base"), "val": ("val",), "data": ("test", "novel")}
# Most labels that a message names, so that it stays readable.
_NAMED_LABELS = 5


@dataclass(frozen=True)
class LabelSelection:
    """Labels of a role, rows of its images in the data set, and truth (images, labels)."""

    names: tuple[str, ...]
    rows: NDArray[np.int64]
    truth: NDArray[np.bool_]


def read_label_lists(source: Path | str | None) -> dict[str, tuple[str, ...]]:
    """Read the labels of `base`, `val` and `data`; the result lacks roles without a list.

    Parameters
    ----------
    source
        A JSON list or a text file with a name on each line, for `data` alone; a JSON object with
        any of `train` (or `base`), `val` and `test` (or `novel`); or the name of a shipped list,
        such as `coco_52_12_16`.

    Raises
    ------
    UsageError
        If there is no such list, it has another form, or it names a label twice.
    """
    if source is None:
        return {}
    # A file of that name comes first: a user can replace a shipped list.
    if not Path(source).is_file() and str(source) in shipped_lists():
        content = label_lists(str(source))
    else:
        content = _read(Path(source))
    if not isinstance(content, dict):
        return {"data": _checked_names(source, content, "")}
    role_of = {}
    for role, splits in SPLITS.items():
        for split in splits:
            role_of[split] = role
    roles = [role_of.get(split) for split in content]
    if not content or None in roles or len(set(roles)) < len(roles):
        allowed = ", ".join(" or ".join(splits) for splits in SPLITS.values())
        raise UsageError(
            f"{source} has {', '.join(content) or 'nothing'}, where lists are called {allowed}, "
            "each once"
        )
    lists = {}
    for split, names in content.items():
        lists[role_of[split]] = _checked_names(source, names, f" under {split!r}")
    return lists


def _checked_names(source: Path | str, names: Any, where: str) -> tuple[str, ...]:
    is_list = isinstance(names, list) and len(names) > 0
    if not is_list or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{source} must hold a list of names{where}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"{source} names a label twice{where}: {', '.join(repeated)}")
    return tuple(names)


def _read(path: Path) -> Any:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        shipped = ", ".join(shipped_lists())
        raise UsageError(
            f"cannot read the list of labels {path}: {error}; shipped lists: {shipped}"
        ) from None
    if path.suffix != ".json":
        lines = [line.strip() for line in text.splitlines()]
        return [line for line in lines if line]
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error.msg}") from None


def select_images(
    labels: Sequence[tuple[str, ...]],
    names: Sequence[str] | None,
    label_filter: Filter,
    where: str,
) -> LabelSelection:
    """Select the images of a data set that show some labels.

    Parameters
    ----------
    labels
        Labels of every image; an image without labels is left out.
    names
        Labels to show, in this order; by default all labels of the data set, sorted.
    label_filter
        `strict`: all labels of an image must be in ``names``; `any`: one is enough, and the others
        are ignored.
    where
        What messages call the data set.

    Raises
    ------
    UsageError, DataError
        For an unknown filter; for data without labels, with a single label, or without one of
        ``names``.
    """
    if label_filter not in ("strict", "any"):
        raise UsageError(f"filter is {label_filter!r}, must be strict or any")
    available: set[str] = set()
    for of_image in labels:
        available.update(of_image)
    if not available:
        raise DataError(f'no sample of {where} has "labels"')
    selected = tuple(sorted(available)) if names is None else tuple(names)
    if not selected:
        raise DataError(f"no image of {where} has one of the labels that it was imported for")
    missing = [name for name in selected if name not in available]
    if missing:
        raise DataError(f"no image of {where} has the label {', '.join(missing)}")
    if len(selected) < 2:
        raise DataError(
            f"{where} has {selected[0]} as its only label, where at least two are needed: add "
            "images of others, or name others in the list of labels"
        )
    rows = []
    for row, of_image in enumerate(labels):
        shows_one = not set(selected).isdisjoint(of_image)
        # Under `strict` an image of two roles' labels is in neither: no label of another role
        # slips in with it.
        if shows_one and (label_filter == "any" or set(selected).issuperset(of_image)):
            rows.append(row)
    truth = np.zeros((len(rows), len(selected)), dtype=bool)
    for position, row in enumerate(rows):
        truth[position] = [name in labels[row] for name in selected]
    return LabelSelection(selected, np.array(rows, dtype=np.int64), truth)


def refuse_shared_labels(selections: Mapping[str, LabelSelection]) -> None:
    """Raise DataError if two roles share a label by its name: measured labels must be new."""
    for (first, first_selection), (second, second_selection) in combinations(selections.items(), 2):
        shared = sorted(set(first_selection.names) & set(second_selection.names))
        if not shared:
            continue
        names = ", ".join(shared[:_NAMED_LABELS])
        if len(shared) > _NAMED_LABELS:
            names += f" and {len(shared) - _NAMED_LABELS} more"
        raise DataError(
            f"labels of both --{first} and --{second}: {names}: what is learned from, chosen on "
            "and measured must differ; divide them with a list of labels"
        )
