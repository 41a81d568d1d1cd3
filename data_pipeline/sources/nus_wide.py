"""NUS-WIDE: `ImageList/`, `Groundtruth/TrainTestLabels/`, `ConceptsList/Concepts81.txt`, and the pictures.

Each of the 81 concepts has a file with a line (0 or 1) for each line of the picture list. The tags
of `NUS_WID_Tags/` are what Flickr's users wrote and no ground truth: they are not read. Many of the
pictures no longer exist.
"""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.label_lists import keep_labelled
from data_pipeline.importing.official import check_folder, read_lines, reading, source_of

SPLITS = {"train": "Train", "test": "Test"}


def read(
    root: Path, pictures: Path, split: str, labels: str | None = None
) -> tuple[list[Entry], dict[str, Any]]:
    r"""List the pictures of a split with their concepts, less those without any.

    The list says actor\\0001_2124494179.jpg, whose last number is the picture's at Flickr. It is
    looked for below `pictures` with that folder, as 0001_2124494179.jpg and as 2124494179.jpg. With
    `labels` (base, val, novel) only pictures that have at least one of that list. Raises
    `DataError` for files that are missing or not NUS-WIDE's, and for label files with more or fewer
    lines than the list.
    """
    if split not in SPLITS:
        raise UsageError(f"{split!r} is no split of NUS-WIDE: choose of {', '.join(SPLITS)}")
    check_folder(pictures, "pictures")
    concepts, listed = (
        root / "ConceptsList" / "Concepts81.txt",
        root / "ImageList" / f"{SPLITS[split]}Imagelist.txt",
    )
    names = [PureWindowsPath(name) for (name,) in read_lines(listed)]
    of_picture: list[list[str]] = [[] for _ in names]
    files = [concepts, listed]
    for (concept,) in read_lines(concepts):
        file = root / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{SPLITS[split]}.txt"
        files.append(file)
        for row in _marked(file, len(names), listed):
            of_picture[row].append(concept)
    with reading(listed, "a list of pictures"):
        entries = [
            _entry(name, found, pictures) for name, found in zip(names, of_picture, strict=True)
        ]
    entries, said = keep_labelled(entries, "nus_wide", labels)
    name = f"nus-wide-{split}" + (f"-{labels}" if labels else "")
    return entries, source_of(name, "nus_wide", split, "nus_wide", files) | said


def _marked(file: Path, pictures: int, listed: Path) -> list[int]:
    """Return the places of the pictures that have the file's concept."""
    values = [value for (value,) in read_lines(file)]
    if len(values) != pictures:
        raise DataError(
            f"{file} has {len(values):,} lines, {listed} {pictures:,}: they are not of one split"
        )
    if bad := [place for place, value in enumerate(values, 1) if value not in ("0", "1")]:
        raise DataError(f"{file} line {bad[0]} is {values[bad[0] - 1]!r}, which is neither 0 nor 1")
    return [place for place, value in enumerate(values) if value == "1"]


def _entry(name: PureWindowsPath, labels: list[str], pictures: Path) -> Entry:
    number = name.stem.rpartition("_")[2]
    file = file_in(pictures, name.as_posix(), name.name, f"{number}{name.suffix}")
    return Entry(
        key_of(name.with_suffix("").as_posix()), (file,), {"labels": labels, "image_id": number}
    )
