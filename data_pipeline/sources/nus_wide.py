"""NUS-WIDE: `ImageList/`, `Groundtruth/TrainTestLabels/`, `ConceptsList/Concepts81.txt`, images.

In: these folders. Out: one entry per image with labels. Each of the 81 concepts has a file with a
line (0 or 1) for each line of the image list. The tags of `NUS_WID_Tags/` are not read, because
Flickr's users wrote them: they are not ground truth. Many of the images no longer exist.
"""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.label_lists import keep_labelled
from data_pipeline.importing.official import (
    check_folder,
    check_split,
    read_lines,
    reading,
    source_of,
)

SPLITS = {"train": "Train", "test": "Test"}


def read(
    root: Path, images: Path, split: str, labels: str | None = None
) -> tuple[list[Entry], dict[str, Any]]:
    r"""List the images of a split with their concepts, leaving out those without any.

    The list says actor\\0001_2124494179.jpg, whose last number is the image's at Flickr. It is
    searched below `images` with that folder, as 0001_2124494179.jpg and as 2124494179.jpg. With
    `labels` (base, val, novel) only images with at least one label of that list. Raises `DataError`
    for files that are missing or not NUS-WIDE's, and for label files with more or fewer lines than
    the list.
    """
    check_split(split, SPLITS, "NUS-WIDE")
    check_folder(images, "images")
    concepts = root / "ConceptsList" / "Concepts81.txt"
    image_list = root / "ImageList" / f"{SPLITS[split]}Imagelist.txt"
    # The lists were written on Windows, with backslashes.
    names = [PureWindowsPath(name) for (name,) in read_lines(image_list)]
    concepts_by_image: list[list[str]] = [[] for _ in names]
    files = [concepts, image_list]
    for (concept,) in read_lines(concepts):
        file = root / "Groundtruth" / "TrainTestLabels" / f"Labels_{concept}_{SPLITS[split]}.txt"
        files.append(file)
        for row in _rows_with_concept(file, len(names), image_list):
            concepts_by_image[row].append(concept)
    entries = []
    with reading(image_list, "a list of images"):
        for name, image_concepts in zip(names, concepts_by_image, strict=True):
            entries.append(_entry(name, image_concepts, images))
    entries, summary = keep_labelled(entries, "nus_wide", labels)
    name_of_set = f"nus-wide-{split}" + (f"-{labels}" if labels else "")
    return entries, source_of(name_of_set, "nus_wide", split, "nus_wide", files) | summary


def _rows_with_concept(file: Path, images: int, image_list: Path) -> list[int]:
    """Return the rows of the image list that have the file's concept."""
    values = [value for (value,) in read_lines(file)]
    if len(values) != images:
        raise DataError(
            f"{file} has {len(values):,} lines, but {image_list} has {images:,}: "
            "they are not of one split"
        )
    rows = []
    for row, value in enumerate(values):
        if value not in ("0", "1"):
            raise DataError(f"{file} line {row + 1} is {value!r}, which is neither 0 nor 1")
        if value == "1":
            rows.append(row)
    return rows


def _entry(name: PureWindowsPath, labels: list[str], images: Path) -> Entry:
    number = name.stem.rpartition("_")[2]
    file = file_in(images, name.as_posix(), name.name, f"{number}{name.suffix}")
    key = key_of(name.with_suffix("").as_posix())
    return Entry(key, (file,), {"labels": labels, "image_id": number})
