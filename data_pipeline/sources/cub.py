"""CUB-200-2011: `images.txt`, `image_class_labels.txt`, `classes.txt` and `images/`.

In: its folder. Out: one entry per image of a split. Classes are split, not images, so
`train_test_split.txt` is not used. `train` and `test` are the first and the last 100 classes
(metric learning). `base`, `val` and `novel` are the 100, 50 and 50 classes of few-shot learning, by
the place of the class, counted from 0 (Chen et al., A Closer Look at Few-shot Classification: even;
1 and 3 modulo 4). Other splits have the same names, so the manifest holds a hash of the class list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.class_names import choose_classes, class_list, labels_of
from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import (
    check_folder,
    check_split,
    read_lines,
    reading,
    source_of,
)

# Which classes belong to a split, by their place, counted from 0.
_BELONGS: dict[str, Callable[[int], bool]] = {
    "train": lambda place: place < 100,
    "test": lambda place: place >= 100,
    "base": lambda place: place % 2 == 0,
    "val": lambda place: place % 4 == 1,
    "novel": lambda place: place % 4 == 3,
    "all": lambda place: True,
}
SPLITS = tuple(_BELONGS)


def read(root: Path, split: str, classes: Path | None = None) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split's classes, or only of those that the file `classes` lists.

    Raises `DataError` for files that are missing or do not fit together, and for a list with
    classes that are not in the split.
    """
    check_split(split, SPLITS, "CUB-200-2011")
    check_folder(root, "data set, CUB_200_2011")
    files = [root / "images.txt", root / "image_class_labels.txt", root / "classes.txt"]
    images, class_of_image, names = (_numbered(file) for file in files)
    in_split = [name for number, name in names.items() if _BELONGS[split](number - 1)]
    chosen = choose_classes(in_split, classes, f"the split {split} of {root / 'classes.txt'}")
    # Classes are called 001.Black_footed_Albatross, their labels leave out the number.
    labels = labels_of(chosen, {name: name.partition(".")[2] or name for name in chosen})
    entries = []
    without_image = set(labels.values())
    with reading(root / "image_class_labels.txt", "the class list of images.txt and classes.txt"):
        for number, path in images.items():
            name = names[int(class_of_image[number])]
            if name in labels:
                annotations = {"labels": [labels[name]], "image_id": str(number), "filename": path}
                file = file_in(root / "images", path)
                entries.append(Entry(f"{number:05d}", (file,), annotations))
                without_image.discard(labels[name])
    if without_image:
        examples = ", ".join(sorted(without_image)[:3])
        raise DataError(f"{root / 'images.txt'} has no image of {examples}")
    name = f"cub-200-2011-{split}"
    if classes:
        name += f"-{classes.stem}"
        files.append(classes)
    return entries, source_of(name, "cub", split, "cub", files) | class_list(chosen)


def _numbered(path: Path) -> dict[int, str]:
    """Read a file with a number and a word per line."""
    with reading(path, "a file of CUB-200-2011 (lines of a number and a word)"):
        rows = read_lines(path, columns=2)
        words = {int(number): word for number, word in rows}
        if len(words) < len(rows):
            raise ValueError(f"{len(rows) - len(words)} numbers come twice")
    return words
