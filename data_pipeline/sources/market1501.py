"""Market-1501: persons before six cameras, in folders of pictures whose names say who and where.

`0002_c1s1_000451_03.jpg` shows person 0002 before camera 1. In the gallery, `-1` is a detection
that is none of a person: `junk`, which a ranking passes over. `0000` is a person or background that
was not asked for: a `distractor`, which stays in the ranking and matches nobody.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry, key_of
from data_pipeline.importing.official import check_folder, source_of

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_NAME = re.compile(r"(-1|\d{4})_(c\d+)s\d+_\d+_\d+")


def read(folder: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a split, in the order of their names; other files than .jpg (Thumbs.db) are passed over.

    Raises `DataError` for a folder that is missing or empty, and for a picture whose name tells no
    person or camera.
    """
    if split not in FOLDERS:
        raise UsageError(f"{split!r} is no split of Market-1501: choose of {', '.join(FOLDERS)}")
    pictures = folder / FOLDERS[split]
    check_folder(pictures, f"pictures, Market-1501 holds it as {FOLDERS[split]}")
    files = sorted(path for path in pictures.iterdir() if path.suffix.lower() == ".jpg")
    if not files:
        raise DataError(f"{pictures} holds no picture (.jpg)")
    entries = [_entry(file) for file in files]
    return entries, source_of(f"market1501-{split}", "market1501", split, "market1501", [])


def _entry(file: Path) -> Entry:
    named = _NAME.fullmatch(file.stem)
    if named is None:
        raise DataError(
            f"{file} is no name of Market-1501 (0002_c1s1_000451_03.jpg): it tells no person and camera"
        )
    person, camera = named.groups()
    annotations = {"labels": [person], "image_id": file.stem, "camera": camera}
    annotations |= {"-1": {"junk": True}, "0000": {"distractor": True}}.get(person, {})
    return Entry(key_of(file.stem), (file,), annotations)
