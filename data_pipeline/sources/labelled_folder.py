"""Images in one folder per class: ROOT/CLASS/*.jpg|jpeg|png|webp.

In: the root folder. Out: one entry per image, with the name of its folder as label.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.class_names import choose_classes, class_list, labels_of
from data_pipeline.importing.entries import Entry
from data_pipeline.importing.official import check_folder, reading, source_of
from data_pipeline.sample import IMAGE_EXTENSIONS


def read(root: Path, classes: Path | None = None) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of every class folder below `root`, or of those that `classes` lists.

    Raises `DataError` for a root without class folders, a folder without images, and a list that
    names other classes.
    """
    check_folder(root, "labelled images, with one folder per class")
    available = []
    for path in root.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            available.append(path.name)
    if not available:
        raise DataError(
            f"{root} holds no folder: put the images of each class into a folder with its name"
        )
    chosen = choose_classes(sorted(available), classes, root)
    with reading(root, "a folder of classes"):  # a file system may hold names that are not text
        labels = labels_of(chosen)
        listed = class_list(chosen)
    entries = entries_of_folders({name: root / name for name in chosen}, labels)
    name = f"folder-{root.resolve().name}" + (f"-{classes.stem}" if classes else "")
    source = source_of(name, "folder", root.name, "folder", [classes] if classes else [])
    return entries, source | listed


def entries_of_folders(folders: dict[str, Path], labels: dict[str, str]) -> list[Entry]:
    """List the images of each class's folder by name; `image_id` is CLASS/FILE.

    Raises `DataError` for a folder that is missing or holds no image.
    """
    entries = []
    for number, (name, folder) in enumerate(folders.items()):
        check_folder(folder, f"images of {name}")
        files = sorted(file for file in folder.iterdir() if _is_image(file))
        if not files:
            extensions = ", ".join(IMAGE_EXTENSIONS)
            raise DataError(
                f"{folder} holds no image ({extensions}): put some there or remove the folder"
            )
        for place, file in enumerate(files):
            annotations = {"labels": [labels[name]], "image_id": f"{name}/{file.name}"}
            # Keys are numbers, because a file may have any name.
            entries.append(Entry(f"{number:04d}-{place:06d}", (file,), annotations))
    return entries


def _is_image(file: Path) -> bool:
    # macOS puts hidden notes beside images, with the same extension.
    hidden = file.name.startswith(".")
    return file.suffix.lower().removeprefix(".") in IMAGE_EXTENSIONS and not hidden
