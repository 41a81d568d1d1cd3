"""Stanford Online Products: `Ebay_train.txt`, `Ebay_test.txt` and the folders of the twelve kinds of product.

A class is one product (11,318 of train, 11,316 of test, no product in both); its kind (bicycle,
cabinet, ...) is kept as `super_class`, the number that the lists give it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_lines, reading, source_of

SPLITS = ("train", "test")
_COLUMNS = ["image_id", "class_id", "super_class_id", "path"]


def read(folder: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a split, in the order of its list, with the number of their product as label.

    Raises `DataError` for files that are missing or not those of Stanford Online Products.
    """
    if split not in SPLITS:
        raise UsageError(
            f"{split!r} is no split of Stanford Online Products: choose of {', '.join(SPLITS)}"
        )
    check_folder(folder, "lists and pictures, Stanford_Online_Products")
    listed = folder / f"Ebay_{split}.txt"
    rows = read_lines(listed, len(_COLUMNS))
    with reading(listed, "a list of Stanford Online Products"):
        if not rows or rows[0] != _COLUMNS:
            raise ValueError(f"its first line is not {' '.join(_COLUMNS)!r}")
        entries: dict[str, Entry] = {}
        for line, row in enumerate(rows[1:], 2):
            entry = _entry(folder, line, row)
            if entries.setdefault(entry.key, entry) is not entry:
                raise ValueError(f"line {line}: picture {row[0]} comes twice")
    return list(entries.values()), source_of(f"sop-{split}", "sop", split, "sop", [listed])


def _entry(folder: Path, line: int, row: list[str]) -> Entry:
    image_id, label, super_class, path = row
    for column, word in zip(_COLUMNS, row[:3], strict=False):
        if not word.isdecimal():
            raise ValueError(f"line {line}: {column} is {word!r}, no number")
    annotations = {"labels": [label], "image_id": image_id, "super_class": super_class}
    return Entry(image_id.zfill(6), (file_in(folder, path),), annotations)
