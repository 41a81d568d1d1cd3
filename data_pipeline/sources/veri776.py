"""VeRi-776: vehicles before twenty cameras, `name_train.txt`, `name_query.txt` and `name_test.txt` with their folders.

`0001_c001_00016450_0.jpg` shows vehicle 0001 before camera 1. The queries' own pictures may stand
in the gallery too, where the rule of one identity and one camera takes them out of the ranking.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import check_folder, read_lines, reading, source_of

SPLITS = {"train": "train", "query": "query", "gallery": "test"}
_NAME = re.compile(r"(\d+)_(c\d+)_\d+_\d+\.jpg")


def read(folder: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a split, in the order of its list; what the list does not name is passed over.

    Raises `DataError` for files that are missing or not those of VeRi-776, and for a picture that
    comes twice or whose name tells no vehicle and camera.
    """
    if split not in SPLITS:
        raise UsageError(f"{split!r} is no split of VeRi-776: choose of {', '.join(SPLITS)}")
    pictures, listed = folder / f"image_{SPLITS[split]}", folder / f"name_{SPLITS[split]}.txt"
    check_folder(pictures, f"pictures, VeRi-776 holds it as {pictures.name}")
    entries: dict[str, Entry] = {}
    with reading(listed, "a list of VeRi-776"):
        for line, (name,) in enumerate(read_lines(listed), 1):
            if name in entries:
                raise ValueError(f"line {line}: {name} comes twice")
            entries[name] = _entry(pictures, line, name)
        if not entries:
            raise ValueError("it names no picture")
    return list(entries.values()), source_of(
        f"veri776-{split}", "veri776", split, "veri776", [listed]
    )


def _entry(pictures: Path, line: int, name: str) -> Entry:
    named = _NAME.fullmatch(name)
    if named is None:
        raise ValueError(
            f"line {line}: {name!r} tells no vehicle and camera, as 0001_c001_00016450_0.jpg does"
        )
    vehicle, camera = named.groups()
    image_id = name.removesuffix(".jpg")
    annotations = {"labels": [vehicle], "image_id": image_id, "camera": camera}
    return Entry(key_of(image_id), (file_in(pictures, name),), annotations)
