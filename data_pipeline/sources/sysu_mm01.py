"""SYSU-MM01: persons seen by four visible and two infrared cameras, `cam1` to `cam6`.

In: its folder, where each camera has a folder per person. Out: one entry per image of a split.
`exp/train_id.txt`, `val_id.txt` and `test_id.txt` list the persons; models are trained on the first
two together. The test searches with infrared images (cameras 3 and 6) for visible ones (1, 2, 4 and
5). The gallery here holds all visible images: the evaluation makes the random draws from it, and
restricts it to cameras 1 and 2 for indoor search.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.entries import Entry, key_of
from data_pipeline.importing.official import (
    check_folder,
    check_split,
    read_lines,
    reading,
    source_of,
)

VISIBLE, INFRARED = (1, 2, 4, 5), (3, 6)
CAMERAS = {"train": (1, 2, 3, 4, 5, 6), "query": INFRARED, "gallery": VISIBLE}


def read(folder: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split by person, camera and name, with person, camera and modality.

    Not every camera saw every person; `without_pictures` of the source lists the persons of the
    split whom none of its cameras saw. Raises `DataError` for files that are missing or not those
    of SYSU-MM01.
    """
    check_split(split, CAMERAS, "SYSU-MM01")
    list_names = ("train", "val") if split == "train" else ("test",)
    lists = [folder / "exp" / f"{name}_id.txt" for name in list_names]
    for camera in CAMERAS[split]:
        check_folder(
            folder / f"cam{camera}", f"images of a camera, SYSU-MM01 holds it as cam{camera}"
        )
    persons = []
    for file in lists:
        persons += _persons(file)
    entries: list[Entry] = []
    without_images = []
    # Not every person was seen by a camera of the split.
    for person in sorted(set(persons)):
        person_entries = _entries(folder, person, CAMERAS[split])
        entries += person_entries
        if not person_entries:
            without_images.append(person)
    if not entries:
        raise DataError(
            f"{folder} holds no image of the {len(persons)} persons of {split} "
            "(cam1/0001/0001.jpg, ...)"
        )
    source = source_of(f"sysu-mm01-{split}", "sysu_mm01", split, "sysu_mm01", lists)
    return entries, source | {"without_pictures": without_images}


def _persons(file: Path) -> list[str]:
    """Read the numbers of persons as the folders are named, with four digits."""
    rows = read_lines(file)
    persons = []
    with reading(file, "a list of SYSU-MM01 (numbers with commas between them)"):
        for (line,) in rows:
            for word in line.split(","):
                if not word.strip():
                    continue
                if not word.strip().isdecimal():
                    raise ValueError(f"{word.strip()!r} is not the number of a person")
                persons.append(f"{int(word):04d}")
        if not persons:
            raise ValueError("it lists no person")
    return persons


def _entries(folder: Path, person: str, cameras: tuple[int, ...]) -> list[Entry]:
    entries = []
    for camera in cameras:
        for file in sorted((folder / f"cam{camera}" / person).glob("*.jpg")):
            image_id = f"cam{camera}/{person}/{file.stem}"
            annotations = {
                "labels": [person],
                "image_id": image_id,
                "camera": f"c{camera}",
                "modality": "infrared" if camera in INFRARED else "visible",
            }
            entries.append(Entry(key_of(image_id), (file,), annotations))
    return entries
