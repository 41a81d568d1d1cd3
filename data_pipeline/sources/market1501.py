"""Market-1501: persons seen by six cameras, in folders of images whose names say who and where.

In: its folder. Out: one entry per image of a split. `0002_c1s1_000451_03.jpg` shows person 0002
seen by camera 1. In the gallery, `-1` is a detection that shows no person: it is `junk`, which a
ranking leaves out. `0000` is a person that nobody searches for, or background: it is a
`distractor`, which stays in the ranking and matches nobody.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.entries import Entry, key_of
from data_pipeline.importing.official import check_folder, check_split, source_of

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_NAME = re.compile(r"(-1|\d{4})_(c\d+)s\d+_\d+_\d+")


def read(folder: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split in the order of their names; files other than .jpg are ignored.

    Raises `DataError` for a folder that is missing or empty, and for an image whose name does not
    say its person and camera.
    """
    check_split(split, FOLDERS, "Market-1501")
    images = folder / FOLDERS[split]
    check_folder(images, f"images, Market-1501 holds it as {FOLDERS[split]}")
    files = sorted(path for path in images.iterdir() if path.suffix.lower() == ".jpg")
    if not files:
        raise DataError(f"{images} holds no image (.jpg)")
    entries = [_entry(file) for file in files]
    return entries, source_of(f"market1501-{split}", "market1501", split, "market1501", [])


def _entry(file: Path) -> Entry:
    match = _NAME.fullmatch(file.stem)
    if match is None:
        raise DataError(
            f"{file} is not named as in Market-1501 (0002_c1s1_000451_03.jpg), "
            "with person and camera"
        )
    person, camera = match.groups()
    annotations: dict[str, Any] = {
        "labels": [person],
        "image_id": file.stem,
        "camera": camera,
    }
    # Keys are only present when true, so that other samples do not carry them.
    if person == "-1":
        annotations["junk"] = True
    if person == "0000":
        annotations["distractor"] = True
    return Entry(key_of(file.stem), (file,), annotations)
