"""CUB-200-2011: `images.txt`, `image_class_labels.txt`, `classes.txt` and `images/`.

Classes are split, not pictures, so that `train_test_split.txt` is not used. `train` and `test` are
the first and the last 100 classes (metric learning); `base`, `val` and `novel` the 100, 50 and 50
of few-shot learning by the place of the class, from 0 (Chen et al., A Closer Look at Few-shot
Classification: even; 1 and 3 modulo 4). Other splits go by the same names, so that the manifest
holds a hash of the class list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.class_names import choose_classes, class_list, labels_of
from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_lines, reading, source_of

# By the place of a class, from 0.
_TAKES: dict[str, Callable[[int], bool]] = {
    "train": lambda place: place < 100,
    "test": lambda place: place >= 100,
    "base": lambda place: place % 2 == 0,
    "val": lambda place: place % 4 == 1,
    "novel": lambda place: place % 4 == 3,
    "all": lambda place: True,
}
SPLITS = tuple(_TAKES)
_FILES = ("images.txt", "image_class_labels.txt", "classes.txt")


def read(root: Path, split: str, classes: Path | None = None) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a split's classes, or of those of them that the file `classes` names, one a line.

    Raises `DataError` for files that are missing or do not fit together, and for a list with
    classes that are not in the split.
    """
    if split not in SPLITS:
        raise UsageError(f"{split!r} is no split of CUB-200-2011: choose of {', '.join(SPLITS)}")
    check_folder(root, "data set, CUB_200_2011")
    images, class_of_image, names = (_numbered(root / name) for name in _FILES)
    of_split = [name for number, name in names.items() if _TAKES[split](number - 1)]
    chosen = choose_classes(of_split, classes, f"the split {split} of {root / 'classes.txt'}")
    # 001.Black_footed_Albatross
    labels = labels_of(chosen, {name: name.partition(".")[2] or name for name in chosen})
    entries = []
    with reading(root / "image_class_labels.txt", "the class list of images.txt and classes.txt"):
        for number, file in images.items():
            name = names[int(class_of_image[number])]
            if name in labels:
                annotations = {"labels": [labels[name]], "image_id": str(number), "filename": file}
                entries.append(
                    Entry(f"{number:05d}", (file_in(root / "images", file),), annotations)
                )
    if without := set(labels.values()) - {entry.annotations["labels"][0] for entry in entries}:
        raise DataError(f"{root / 'images.txt'} has no picture of {', '.join(sorted(without)[:3])}")
    files = [*(root / name for name in _FILES), *([classes] if classes else [])]
    name = f"cub-200-2011-{split}" + (f"-{classes.stem}" if classes else "")
    return entries, source_of(name, "cub", split, "cub", files) | class_list(chosen)


def _numbered(path: Path) -> dict[int, str]:
    with reading(path, "a file of CUB-200-2011 (lines of a number and a word)"):
        rows = read_lines(path, columns=2)
        found = {int(number): word for number, word in rows}
        if len(found) < len(rows):
            raise ValueError(f"{len(rows) - len(found)} numbers come twice")
    return found
