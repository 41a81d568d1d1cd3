"""Stanford Cars (Cars-196) for metric learning: `cars_annos.mat`, and all 16,185 images.

In: these files. Out: one entry per image of a split. The first 98 classes are `train`, the last 98
`test`, the division of metric learning (Oh Song et al. 2016). The file's own field `test` divides
the images of every class and is not used.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from scipy.io import loadmat

from data_pipeline.errors import DataError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import (
    check_folder,
    check_split,
    read_bytes,
    reading,
    source_of,
)

SPLITS = ("train", "test")
_NUMBERS = range(1, 197)


def read(annotations: Path, images: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split, with the name of their class as label.

    Images are searched below `images` as `relative_im_path` (car_ims/000001.jpg) and without its
    folder. Raises `DataError` for files that are missing or not those of Stanford Cars.
    """
    check_split(split, SPLITS, "Cars-196")
    check_folder(images, "images")
    document = _read_matlab(annotations)
    with reading(annotations, "cars_annos.mat of Stanford Cars"):
        names = []
        for number, name in enumerate(_items(document["class_names"]), 1):
            names.append(_text(name, f"class {number}"))
        if len(set(names)) != len(_NUMBERS):
            raise ValueError(f"it names {len(set(names))} classes instead of {len(_NUMBERS)}")
        entries = []
        for row, described in enumerate(_items(document["annotations"]), 1):
            path = _text(described["relative_im_path"], f"image {row}")
            number = described["class"]
            if not isinstance(number, int | float | np.number) or number not in _NUMBERS:
                raise ValueError(
                    f"the class of image {row} ({path}) is not a number from 1 to {len(_NUMBERS)}"
                )
            in_train = number <= len(_NUMBERS) // 2
            if in_train == (split == "train"):
                entries.append(_entry(path, names[int(number) - 1], images))
    return entries, source_of(f"cars196-{split}", "cars196", split, "cars196", [annotations])


def _read_matlab(path: Path) -> dict[str, Any]:
    content = read_bytes(path)
    # In a process of its own, because some damaged files crash the process in which scipy reads.
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(_load, content).result()
        except BrokenProcessPool:
            raise DataError(
                f"{path} is not a MATLAB file, or damaged: the process that read it has crashed"
            ) from None
        except Exception as error:  # random bytes lead scipy's reader to errors of any kind
            raise DataError(
                f"{path} is not a MATLAB file before version 7.3, or damaged: {error}"
            ) from None


def _load(content: bytes) -> dict[str, Any]:
    return loadmat(BytesIO(content), squeeze_me=True, variable_names=("annotations", "class_names"))


def _items(value: Any) -> np.ndarray:
    # Not isinstance, because scipy reads MATLAB's objects and functions as subclasses.
    if type(value) is not np.ndarray:
        raise ValueError(f"it holds a {type(value).__name__} where a list is expected")
    return np.atleast_1d(value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} has no name")
    return value


def _entry(path: str, label: str, images: Path) -> Entry:
    name = PurePosixPath(path)
    annotations = {"labels": [label], "image_id": name.stem}
    return Entry(key_of(name.stem), (file_in(images, path, name.name),), annotations)
