"""Which labels are learned from, chosen on and measured, and which pictures may be shown for them.

In: a list of labels (a file, or one that the project ships) and data sets. Out: per role its
labels, and rows and truth of its pictures. Lists of the roles must be disjoint, and a picture of
unseen labels must not slip in with a seen one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.label_lists import label_lists, shipped_lists

from .options import Filter

SPLITS = {"base": ("train", "base"), "val": ("val",), "data": ("test", "novel")}


@dataclass(frozen=True)
class Chosen:
    """Labels of a role, and its pictures: their rows in the data set, and which has which label (pictures, labels)."""

    names: tuple[str, ...]
    rows: NDArray[np.int64]
    truth: NDArray[np.bool_]


def read_label_lists(source: Path | str | None) -> dict[str, tuple[str, ...]]:
    """Read the labels of `base`, `val` and `data`; a role that a list does not name is left to its data set.

    Parameters
    ----------
    source
        A JSON list or a text file of a name a line, for `data` alone; a JSON object with any of
        `train` (or `base`), `val` and `test` (or `novel`); or the name of a shipped one, such as
        `coco_52_12_16`.

    Raises
    ------
    UsageError
        If there is no such list, it is not of this form, or it names a label twice.
    """
    if source is None:
        return {}
    path = Path(source)
    value = (
        label_lists(str(source))
        if not path.is_file() and str(source) in shipped_lists()
        else _read(path)
    )
    lists = {("data", ""): value}
    if isinstance(value, dict):
        roles = {split: role for role, splits in SPLITS.items() for split in splits}
        named = [roles.get(split) for split in value]
        if not value or None in named or len(set(named)) < len(named):
            known = ", ".join(" or ".join(splits) for splits in SPLITS.values())
            raise UsageError(
                f"{source} has {', '.join(value) or 'nothing'}, where lists are called {known}, each once"
            )
        lists = {(roles[split], f" under {split!r}"): names for split, names in value.items()}
    for (_, under), names in lists.items():
        if (
            not isinstance(names, list)
            or not names
            or not all(isinstance(name, str) for name in names)
        ):
            raise UsageError(f"{source} must hold a list of names{under}")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UsageError(f"{source} names a label twice{under}: {', '.join(twice)}")
    return {role: tuple(names) for (role, _), names in lists.items()}


def _read(path: Path) -> Any:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        shipped = ", ".join(shipped_lists())
        raise UsageError(
            f"cannot read the list of labels {path}: {error}; shipped lists: {shipped}"
        ) from None
    try:
        return (
            json.loads(text)
            if path.suffix == ".json"
            else [x for x in map(str.strip, text.splitlines()) if x]
        )
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is not JSON: {error.msg}") from None


def choose(
    labels: Sequence[tuple[str, ...]], names: Sequence[str] | None, keep: Filter, where: str
) -> Chosen:
    """Choose the pictures of a data set that show ``names`` (all its labels, sorted, by default).

    With ``keep`` `strict` all labels of a picture must be among them, with `any` one is enough and
    its others are ignored. A picture without a label is left out.

    Raises
    ------
    UsageError, DataError
        For an unknown filter; for data without labels or with one alone, or without those that are
        named.
    """
    if keep not in ("strict", "any"):
        raise UsageError(f"filter is {keep!r}, must be strict or any")
    there = {name for several in labels for name in several}
    if not there:
        raise DataError(f'no sample of {where} has "labels"')
    names = tuple(sorted(there)) if names is None else tuple(names)
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(f"no picture of {where} has the label {', '.join(missing)}")
    if len(names) < 2:
        raise DataError(
            f"{where} has {names[0]} as its only label, where at least two are needed: add pictures of others, or "
            "name others in the list of labels"
        )
    wanted = set(names)
    rows = [
        r
        for r, own in enumerate(labels)
        if wanted.intersection(own) and (keep == "any" or wanted.issuperset(own))
    ]
    truth = np.array([[name in labels[row] for name in names] for row in rows], dtype=bool).reshape(
        -1, len(names)
    )
    return Chosen(names, np.array(rows, dtype=np.int64), truth)


def refuse_overlap(chosen: Mapping[str, Chosen]) -> None:
    """Raise DataError if two roles share a label, by its name: what is measured must be new."""
    roles = list(chosen)
    for i, one in enumerate(roles):
        for other in roles[i + 1 :]:
            both = sorted(set(chosen[one].names) & set(chosen[other].names))
            if both:
                more = f" and {len(both) - 5} more" if len(both) > 5 else ""
                raise DataError(
                    f"labels of both --{one} and --{other}: {', '.join(both[:5])}{more}: what is learned from, chosen "
                    "on and measured must differ; divide them with a list of labels"
                )
