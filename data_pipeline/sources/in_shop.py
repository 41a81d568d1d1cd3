"""DeepFashion In-Shop Clothes Retrieval: `list_eval_partition.txt` and the pictures.

An identity is an item of clothing. Queries and gallery are two data sets of the same items; those
of `train` are others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import check_folder, read_lines, reading, source_of

SPLITS = ("train", "query", "gallery")
_COLUMNS = ["image_name", "item_id", "evaluation_status"]


def read(partition: Path, pictures: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a split, in the order of the file, with their item as label.

    Pictures are looked for as in the file (img/WOMEN/Dresses/id_00000002/02_1_front.jpg) and
    without `img` below `pictures`. Raises `DataError` for files that are missing or not those of
    In-Shop, and for one that was cut.
    """
    if split not in SPLITS:
        raise UsageError(f"{split!r} is no split of In-Shop: choose of {', '.join(SPLITS)}")
    check_folder(pictures, "pictures")
    lines = [line for (line,) in read_lines(partition)]
    with reading(partition, "list_eval_partition.txt of DeepFashion's In-Shop"):
        if len(lines) < 2 or lines[1].split() != _COLUMNS:
            raise ValueError(f"its second line is not {' '.join(_COLUMNS)!r}")
        if int(lines[0]) != len(lines) - 2:
            raise ValueError(
                f"its first line announces {lines[0]} pictures, it lists {len(lines) - 2}"
            )
        entries: dict[str, Entry] = {}
        for number, line in enumerate(lines[2:], 3):
            words = line.split()
            if len(words) != len(_COLUMNS) or words[2] not in SPLITS:
                raise ValueError(
                    f"line {number} is {line!r}, not a picture, an item and {', '.join(SPLITS)}"
                )
            entry = _entry(pictures, words[0], words[1])
            if words[2] == split and entries.setdefault(entry.key, entry) is not entry:
                raise ValueError(f"line {number}: {words[0]} comes twice")
    return list(entries.values()), source_of(
        f"in-shop-{split}", "in_shop", split, "in_shop", [partition]
    )


def _entry(pictures: Path, path: str, item: str) -> Entry:
    name = path.removeprefix("img/")
    image_id = name.rsplit(".", 1)[0]
    return Entry(
        key_of(image_id), (file_in(pictures, path, name),), {"labels": [item], "image_id": image_id}
    )
