"""Stanford Cars (Cars-196): `cars_annos.mat` of all 16,185 pictures, and the pictures, for zero-shot metric learning.

The first 98 classes are `train`, the last 98 `test`, which is the division of metric learning (Oh
Song et al. 2016). The file's own field `test` divides the pictures of every class and is not used.
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

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import check_folder, read_bytes, reading, source_of

SPLITS = ("train", "test")
_NUMBERS = range(1, 197)


def read(annotations: Path, pictures: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a split, with the name of their class as label.

    Pictures are looked for as `relative_im_path` (car_ims/000001.jpg) and without its folder below
    `pictures`. Raises `DataError` for files that are missing or not those of Stanford Cars.
    """
    if split not in SPLITS:
        raise UsageError(f"{split!r} is no split of Cars-196: choose of {', '.join(SPLITS)}")
    check_folder(pictures, "pictures")
    document = _read_matlab(annotations)
    with reading(annotations, "cars_annos.mat of Stanford Cars"):
        names = [
            _text(name, f"class {number}")
            for number, name in enumerate(_items(document["class_names"]), 1)
        ]
        if len(set(names)) != len(_NUMBERS):
            raise ValueError(f"it names {len(set(names))} classes instead of {len(_NUMBERS)}")
        entries = []
        for row, described in enumerate(_items(document["annotations"]), 1):
            path, number = (
                _text(described["relative_im_path"], f"picture {row}"),
                described["class"],
            )
            if not isinstance(number, int | float | np.number) or number not in _NUMBERS:
                raise ValueError(
                    f"the class of picture {row} ({path}) is no number of 1 to {len(_NUMBERS)}"
                )
            if (number <= len(_NUMBERS) // 2) == (split == "train"):
                entries.append(_entry(path, names[int(number) - 1], pictures))
    return entries, source_of(f"cars196-{split}", "cars196", split, "cars196", [annotations])


def _read_matlab(path: Path) -> dict[str, Any]:
    content = read_bytes(path)
    # Apart, because there are damaged files at which the process ends that scipy reads them in.
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:
        try:
            return apart.submit(_load, content).result()
        except BrokenProcessPool:
            raise DataError(
                f"{path} is no MATLAB file, or damaged: the process that read it has crashed"
            ) from None
        except (
            Exception
        ) as error:  # bytes that mean nothing lead scipy's reader to errors of any kind
            raise DataError(
                f"{path} is no MATLAB file before version 7.3, or damaged: {error}"
            ) from None


def _load(content: bytes) -> dict[str, Any]:
    return loadmat(BytesIO(content), squeeze_me=True, variable_names=("annotations", "class_names"))


def _items(value: Any) -> np.ndarray:
    if type(value) is not np.ndarray:  # objects and functions of MATLAB are classes below it
        raise ValueError(f"it holds a {type(value).__name__} where a list is expected")
    return np.atleast_1d(value)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} has no name")
    return value


def _entry(path: str, label: str, pictures: Path) -> Entry:
    name = PurePosixPath(path)
    annotations = {"labels": [label], "image_id": name.stem}
    return Entry(key_of(name.stem), (file_in(pictures, path, name.name),), annotations)
