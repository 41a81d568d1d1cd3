"""A split of miniImageNet or tieredImageNet: a CSV file with the columns filename and label.

In: the file and the folder of the images. Out: one entry per image. Instead of the CSV file, the
JSON that easyfsl ships is read too: `class_names`, and `class_roots`, whose last part is the folder
of the class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.class_names import class_list, labels_of, read_classes, read_names
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import check_folder, read_json, read_table, reading, source_of
from data_pipeline.sources.labelled_folder import entries_of_folders


def read(
    table: Path, images: Path, names: Path | None = None
) -> tuple[list[Entry], dict[str, Any]]:
    """List the images of a split, which is the file's name; `names` says how classes are called.

    Images are searched below `images` as FILENAME and as LABEL/FILENAME. Raises `DataError` for a
    file that is not such a split, an image that comes twice, and a class without a name.
    """
    check_folder(images, "images")
    name_by_class = None if names is None else read_names(names)
    if table.suffix.lower() == ".json":
        folders = _folders(table, images)
        classes = sorted(folders)
        entries = entries_of_folders(folders, labels_of(classes, name_by_class, names))
    else:
        class_by_file = _classes_by_file(table)
        classes = sorted(set(class_by_file.values()))
        labels = labels_of(classes, name_by_class, names)
        entries = []
        for filename, class_ in class_by_file.items():
            entries.append(_entry(filename, class_, labels[class_], images))
    files = [table] if names is None else [table, names]
    source = source_of(f"class-csv-{table.stem}", "class_csv", table.stem, "class_csv", files)
    return entries, source | class_list(classes)


def _classes_by_file(table: Path) -> dict[str, str]:
    """Return the class of each image, in the order of the table."""
    rows = read_table(table)
    first, width, file_column, class_column = 0, 2, 0, 1
    # Files without a header are filename,label too.
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if "filename" in header and "label" in header:
        first, width = 1, len(header)
        file_column, class_column = header.index("filename"), header.index("label")
    classes: dict[str, str] = {}
    for number, row in enumerate(rows[first:], first + 1):
        cells = [cell.strip() for cell in row]
        if len(row) != width or not cells[file_column] or not cells[class_column]:
            raise DataError(
                f"{table} row {number} is {','.join(row)!r}, which is not a filename and a label"
            )
        filename = cells[file_column]
        if filename in classes:
            raise DataError(f"{table} names {filename} twice (row {number})")
        classes[filename] = cells[class_column]
    if not classes:
        raise DataError(f"{table} names no image: its rows are filename,label")
    return classes


def _entry(filename: str, class_: str, label: str, images: Path) -> Entry:
    file = file_in(images, filename, f"{class_}/{filename}")
    annotations = {"labels": [label], "image_id": filename}
    return Entry(key_of(filename.rpartition(".")[0]), (file,), annotations)


def _folders(spec: Path, images: Path) -> dict[str, Path]:
    """Return the folder of each class of easyfsl's JSON."""
    classes = read_classes(spec)
    document = read_json(spec)
    with reading(spec, "a split of easyfsl"):
        folders = {}
        for class_, root in zip(classes, document["class_roots"], strict=True):
            name = Path(root).name
            if not name:
                raise ValueError("a class has no folder")
            folders[class_] = file_in(images, name)
        return folders
