"""SYSU-MM01: persons before four visible and two infrared cameras, `cam1` to `cam6` with a folder for each person.

`exp/train_id.txt`, `val_id.txt` and `test_id.txt` list the persons; models are trained on the first
two together. Test asks with the infrared pictures (cameras 3 and 6) for visible ones (1, 2, 4 and
5). The gallery holds all of these: of its random draws, and of indoor search (cameras 1 and 2), the
evaluation knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry, key_of
from data_pipeline.importing.official import check_folder, read_lines, reading, source_of

VISIBLE, INFRARED = (1, 2, 4, 5), (3, 6)
CAMERAS = {"train": (1, 2, 3, 4, 5, 6), "query": INFRARED, "gallery": VISIBLE}


def read(folder: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a split by person, camera and name, with person, camera and modality.

    Not every person came before every camera; `without_pictures` of the source lists those of the
    split whom none of its cameras saw. Raises `DataError` for files that are missing or not those
    of SYSU-MM01.
    """
    if split not in CAMERAS:
        raise UsageError(f"{split!r} is no split of SYSU-MM01: choose of {', '.join(CAMERAS)}")
    lists = [
        folder / "exp" / f"{name}_id.txt"
        for name in (("train", "val") if split == "train" else ("test",))
    ]
    for camera in CAMERAS[split]:
        check_folder(
            folder / f"cam{camera}", f"pictures of a camera, SYSU-MM01 holds it as cam{camera}"
        )
    persons = sorted(person for file in lists for person in _persons(file))
    found = {person: _pictures(folder, person, CAMERAS[split]) for person in persons}
    entries = [entry for of_person in found.values() for entry in of_person]
    if not entries:
        raise DataError(
            f"{folder} holds no picture of the {len(persons)} persons of {split} in cam1/0001/0001.jpg, ..."
        )
    source = source_of(f"sysu-mm01-{split}", "sysu_mm01", split, "sysu_mm01", lists)
    return entries, source | {
        "without_pictures": [person for person, seen in found.items() if not seen]
    }


def _persons(file: Path) -> list[str]:
    rows = read_lines(file)
    with reading(file, "a list of SYSU-MM01 (numbers with commas between them)"):
        words = [word.strip() for (line,) in rows for word in line.split(",") if word.strip()]
        for word in words:
            if not word.isdecimal():
                raise ValueError(f"{word!r} is no number of a person")
        if not words:
            raise ValueError("it lists no person")
    return [f"{int(word):04d}" for word in words]


def _pictures(folder: Path, person: str, cameras: tuple[int, ...]) -> list[Entry]:
    entries = []
    for camera in cameras:
        for file in sorted((folder / f"cam{camera}" / person).glob("*.jpg")):
            image_id = f"cam{camera}/{person}/{file.stem}"
            annotations = {"labels": [person], "image_id": image_id, "camera": f"c{camera}"}
            annotations |= {"modality": "infrared" if camera in INFRARED else "visible"}
            entries.append(Entry(key_of(image_id), (file,), annotations))
    return entries
