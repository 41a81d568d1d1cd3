"""DeepFashion In-Shop Clothes Retrieval: `list_eval_partition.txt` and the images.

In: these files. Out: one entry per image of a split, with its item of clothing as label. Queries
and gallery are two data sets of the same items; the items of `train` are others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import (
    check_folder,
    check_split,
    read_lines,
    reading,
    source_of,
)

SPLITS = ("train", "query", "gallery")
_COLUMNS = ["image_name", "item_id", "evaluation_status"]


def read(partition: Path, images: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split, in the order of the file, with their item as label.

    Images are searched below `images` as in the file (img/WOMEN/Dresses/id_00000002/02_1_front.jpg)
    and without `img`. Raises `DataError` for files that are missing, cut, or not those of In-Shop.
    """
    check_split(split, SPLITS, "In-Shop")
    check_folder(images, "images")
    lines = [line for (line,) in read_lines(partition)]
    with reading(partition, "list_eval_partition.txt of DeepFashion's In-Shop"):
        if len(lines) < 2 or lines[1].split() != _COLUMNS:
            raise ValueError(f"its second line is not {' '.join(_COLUMNS)!r}")
        if int(lines[0]) != len(lines) - 2:
            raise ValueError(
                f"its first line announces {lines[0]} images, but it lists {len(lines) - 2}"
            )
        entries: dict[str, Entry] = {}
        for number, line in enumerate(lines[2:], 3):
            words = line.split()
            if len(words) != len(_COLUMNS) or words[2] not in SPLITS:
                raise ValueError(
                    f"line {number} is {line!r}, not an image, an item and {', '.join(SPLITS)}"
                )
            path, item, status = words
            # Before the split is looked at: a bad path in any split means a bad file.
            entry = _entry(images, path, item)
            if status != split:
                continue
            if entry.key in entries:
                raise ValueError(f"line {number}: {path} comes twice")
            entries[entry.key] = entry
    source = source_of(f"in-shop-{split}", "in_shop", split, "in_shop", [partition])
    return list(entries.values()), source


def _entry(images: Path, path: str, item: str) -> Entry:
    name = path.removeprefix("img/")
    image_id = name.rsplit(".", 1)[0]
    annotations = {"labels": [item], "image_id": image_id}
    return Entry(key_of(image_id), (file_in(images, path, name),), annotations)
