"""Labels that a model learns from, is chosen on and has never seen: the lists of `label_splits/` and their rule.

COCO's 52, 12 and 16 labels (train, val, test) are published ones. For PASCAL VOC, NUS-WIDE and
iMaterialist no split could be found, so that theirs is drawn by the labels' sha256: base, val and
novel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry
from data_pipeline.importing.official import read_json

_FOLDER = Path(__file__).parent / "label_splits"


def hash_split(labels: Iterable[str]) -> dict[str, list[str]]:
    """Split labels into 65 % base, 15 % val and the rest novel, in the order of the sha256 of their UTF-8 bytes."""
    ordered = sorted(labels, key=lambda label: hashlib.sha256(label.encode()).hexdigest())
    base = (65 * len(ordered) + 50) // 100
    val = base + (15 * len(ordered) + 50) // 100
    return {"base": ordered[:base], "val": ordered[base:val], "novel": ordered[val:]}


def shipped_lists() -> list[str]:
    """Return the names of the lists in `label_splits/`."""
    return sorted(file.stem for file in _FOLDER.glob("*.json"))


def label_lists(name: str) -> dict[str, list[str]]:
    """Return the lists of `label_splits/NAME.json` by the name of their part; no label stands in two of them."""
    return dict(read_json(_FOLDER / f"{name}.json"))


def keep_labelled(
    entries: Sequence[Entry], lists: str, part: str | None
) -> tuple[list[Entry], dict[str, Any]]:
    """Keep the pictures that have a label, and where `part` is given at least one of that list of `lists`.

    They keep all of their labels. The second value goes into the manifest: how many were left out,
    and the list.

    Raises
    ------
    UsageError
        If there is no such part.
    DataError
        If no picture is left, or one has a label that stands in none of the lists.
    """
    kept = [entry for entry in entries if entry.annotations["labels"]]
    said: dict[str, Any] = {"without_labels": len(entries) - len(kept)}
    if part is not None:
        parts = label_lists(lists)
        if part not in parts:
            raise UsageError(
                f"{part!r} is no part of the labels {lists}: choose of {', '.join(parts)}"
            )
        known = {label for labels in parts.values() for label in labels}
        for entry in kept:
            if unknown := set(entry.annotations["labels"]) - known:
                raise DataError(
                    f"picture {entry.key} has the label {min(unknown)!r}, which the lists {lists} lack"
                )
        labelled, wanted = kept, set(parts[part])
        kept = [entry for entry in labelled if not wanted.isdisjoint(entry.annotations["labels"])]
        said["label_split"] = {
            "lists": lists,
            "part": part,
            "labels": parts[part],
            "others": len(labelled) - len(kept),
        }
    if not kept:
        raise DataError(
            f"none of {len(entries):,} pictures has a label"
            + (f" of {lists}'s {part}" if part else "")
        )
    return kept, said
