"""Stanford Online Products: `Ebay_train.txt`, `Ebay_test.txt` and the folders of twelve kinds.

In: its folder. Out: one entry per image of a split. A class is one product (11,318 in train, 11,316
in test, and no product in both). Its kind (bicycle, cabinet, ...) is kept as `super_class`, the
number that the lists give it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import (
    check_folder,
    check_split,
    read_lines,
    reading,
    source_of,
)

SPLITS = ("train", "test")
_COLUMNS = ["image_id", "class_id", "super_class_id", "path"]


def read(folder: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split, in the order of its list, with the product's number as label.

    Raises `DataError` for files that are missing or not those of Stanford Online Products.
    """
    check_split(split, SPLITS, "Stanford Online Products")
    check_folder(folder, "lists and images, Stanford_Online_Products")
    image_list = folder / f"Ebay_{split}.txt"
    rows = read_lines(image_list, len(_COLUMNS))
    with reading(image_list, "a list of Stanford Online Products"):
        if not rows or rows[0] != _COLUMNS:
            raise ValueError(f"its first line is not {' '.join(_COLUMNS)!r}")
        entries: dict[str, Entry] = {}
        for line, row in enumerate(rows[1:], 2):
            entry = _entry(folder, line, row)
            if entry.key in entries:
                raise ValueError(f"line {line}: image {row[0]} comes twice")
            entries[entry.key] = entry
    return list(entries.values()), source_of(f"sop-{split}", "sop", split, "sop", [image_list])


def _entry(folder: Path, line: int, row: list[str]) -> Entry:
    image_id, label, super_class, path = row
    # These become labels and keys, so a list in another format must not pass.
    for column, word in zip(_COLUMNS[:3], row[:3], strict=True):
        if not word.isdecimal():
            raise ValueError(f"line {line}: {column} is {word!r}, not a number")
    annotations = {"labels": [label], "image_id": image_id, "super_class": super_class}
    return Entry(image_id.zfill(6), (file_in(folder, path),), annotations)
