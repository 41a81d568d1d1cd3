"""VeRi-776: vehicles seen by twenty cameras.

In: its folder, where `name_train.txt`, `name_query.txt` and `name_test.txt` list the images of a
folder each. Out: one entry per image of a split.
`0001_c001_00016450_0.jpg` shows vehicle 0001 seen by camera 1. The images of the queries may be in
the gallery too; the rule that an image of the same vehicle and camera is left out removes them.
"""

from __future__ import annotations

import re
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

SPLITS = {"train": "train", "query": "query", "gallery": "test"}
_NAME = re.compile(r"(\d+)_(c\d+)_\d+_\d+\.jpg")


def read(folder: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split in the order of its list; images that are not in it are ignored.

    Raises `DataError` for files that are missing or not those of VeRi-776, and for an image that
    comes twice or whose name does not say its vehicle and camera.
    """
    check_split(split, SPLITS, "VeRi-776")
    images, image_list = folder / f"image_{SPLITS[split]}", folder / f"name_{SPLITS[split]}.txt"
    check_folder(images, f"images, VeRi-776 holds it as {images.name}")
    entries: dict[str, Entry] = {}
    with reading(image_list, "a list of VeRi-776"):
        for line, (name,) in enumerate(read_lines(image_list), 1):
            # A repeated line would count a query twice.
            if name in entries:
                raise ValueError(f"line {line}: {name} comes twice")
            entries[name] = _entry(images, line, name)
        if not entries:
            raise ValueError("it names no image")
    source = source_of(f"veri776-{split}", "veri776", split, "veri776", [image_list])
    return list(entries.values()), source


def _entry(images: Path, line: int, name: str) -> Entry:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"line {line}: {name!r} does not say its vehicle and camera "
            "as 0001_c001_00016450_0.jpg does"
        )
    vehicle, camera = match.groups()
    image_id = name.removesuffix(".jpg")
    annotations = {"labels": [vehicle], "image_id": image_id, "camera": camera}
    return Entry(key_of(image_id), (file_in(images, name),), annotations)
