"""Pictures in one folder a class: ROOT/CLASS/*.jpg|jpeg|png|webp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.class_names import choose_classes, class_list, labels_of
from data_pipeline.importing.entries import Entry
from data_pipeline.importing.official import check_folder, reading, source_of
from data_pipeline.sample import IMAGE_EXTENSIONS


def read(root: Path, classes: Path | None = None) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of every class folder below `root`, or of those that the file `classes` names, one a line.

    Keys are numbers, because a file may be called anything. Raises `DataError` for a root without
    class folders, a folder without pictures, and a list that names other classes.
    """
    check_folder(root, "labelled pictures, with one folder a class")
    known = sorted(
        path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    if not known:
        raise DataError(
            f"{root} holds no folder: put the pictures of each class into a folder with the class's name"
        )
    chosen = choose_classes(known, classes, root)
    with reading(root, "a folder of classes"):  # a name may be no text
        labels = labels_of(chosen)
        listed = class_list(chosen)
    entries = entries_of_folders({name: root / name for name in chosen}, labels)
    name = f"folder-{root.resolve().name}" + (f"-{classes.stem}" if classes else "")
    return entries, source_of(
        name, "folder", root.name, "folder", [classes] if classes else [], **listed
    )


def entries_of_folders(folders: dict[str, Path], labels: dict[str, str]) -> list[Entry]:
    """List the pictures of each class's folder by name; `image_id` is CLASS/FILE.

    Raises `DataError` for a folder that is missing or holds no picture.
    """
    entries = []
    for number, (name, folder) in enumerate(folders.items()):
        check_folder(folder, f"pictures of {name}")
        files = sorted(file for file in folder.iterdir() if _is_picture(file))
        if not files:
            raise DataError(
                f"{folder} holds no picture ({', '.join(IMAGE_EXTENSIONS)}): put some there or remove it"
            )
        for place, file in enumerate(files):
            annotations = {"labels": [labels[name]], "image_id": f"{name}/{file.name}"}
            entries.append(Entry(f"{number:04d}-{place:06d}", (file,), annotations))
    return entries


def _is_picture(file: Path) -> bool:
    # What begins with a dot is some system's note about a picture, as macOS writes.
    return file.suffix.lower().removeprefix(".") in IMAGE_EXTENSIONS and not file.name.startswith(
        "."
    )
