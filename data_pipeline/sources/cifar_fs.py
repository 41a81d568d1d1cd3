"""CIFAR-FS as Bertinetto et al. distribute it: `data/CLASS/*.png` and lists of classes per split.

In: its folder. Out: one entry per image of a split. The lists are
`splits/bertinetto/{train,val,test}.txt` with 64, 16 and 20 classes, one per line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.class_names import class_list, labels_of, read_classes
from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, check_split, source_of
from data_pipeline.sources.labelled_folder import entries_of_folders

SPLITS = ("train", "val", "test")


def read(root: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split.

    `root` is the folder that holds `data` and `splits` (`cifar100` in the archive). Raises
    `DataError` for a missing or empty split file, and for a class without images.
    """
    check_split(split, SPLITS, "CIFAR-FS")
    check_folder(root / "data", "classes of CIFAR-FS, data below the one that is given")
    file = root / "splits" / "bertinetto" / f"{split}.txt"
    classes = read_classes(file)
    # A split file names classes, and a name must not lead out of the folder.
    folders = {name: file_in(root / "data", name) for name in classes}
    entries = entries_of_folders(folders, labels_of(classes))
    source = source_of(f"cifar-fs-{split}", "cifar_fs", split, "cifar100", [file])
    return entries, source | class_list(classes)
