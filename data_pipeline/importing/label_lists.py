"""Labels to train on, to choose a model on, and to test on: the lists in `label_splits/`.

In: the samples of a multi-label data set. Out: those that have a label of one of its lists. COCO's
52, 12 and 16 labels (train, val, test) are published. No published split of PASCAL VOC, NUS-WIDE
and iMaterialist could be found. Theirs are the labels in the order of the sha256 of their UTF-8
bytes: the first 65 % are base, the next 15 % val, the rest novel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry
from data_pipeline.importing.official import read_json

_FOLDER = Path(__file__).parent / "label_splits"


def shipped_lists() -> list[str]:
    """Return the names of the lists in `label_splits/`."""
    return sorted(file.stem for file in _FOLDER.glob("*.json"))


def label_lists(name: str) -> dict[str, list[str]]:
    """Return the lists of `label_splits/NAME.json` by part; no label is in two of them."""
    return dict(read_json(_FOLDER / f"{name}.json"))


def keep_labelled(
    entries: Sequence[Entry], lists: str, part: str | None
) -> tuple[list[Entry], dict[str, Any]]:
    """Keep the images that have a label, or with `part` at least one label of that part of `lists`.

    They keep all of their labels. The second value goes into the manifest: how many images were
    left out, and the labels of the part.

    Raises
    ------
    UsageError
        If there is no such part.
    DataError
        If no image remains, or one has a label that is in none of the lists.
    """
    labeled = [entry for entry in entries if entry.annotations["labels"]]
    selected = labeled
    summary: dict[str, Any] = {"without_labels": len(entries) - len(labeled)}
    if part is not None:
        parts = label_lists(lists)
        if part not in parts:
            raise UsageError(
                f"unknown part {part!r} of the labels {lists}; choose one of {', '.join(parts)}"
            )
        _check_labels(labeled, lists, set().union(*parts.values()))
        # One label of the part is enough, and the image keeps its other labels.
        in_part = set(parts[part])
        selected = []
        for entry in labeled:
            if not in_part.isdisjoint(entry.annotations["labels"]):
                selected.append(entry)
        others = len(labeled) - len(selected)
        split = {"lists": lists, "part": part, "labels": parts[part], "others": others}
        summary["label_split"] = split
    if not selected:
        of_part = f" of {lists}'s {part}" if part else ""
        raise DataError(f"none of {len(entries):,} images has a label{of_part}")
    return selected, summary


def _check_labels(entries: Sequence[Entry], lists: str, listed: set[str]) -> None:
    """Raise DataError for a label that is in no list: it could be trained on and tested on."""
    for entry in entries:
        if unlisted := set(entry.annotations["labels"]) - listed:
            raise DataError(
                f"image {entry.key} has the label {min(unlisted)!r}, which the lists {lists} lack"
            )
