"""A split of miniImageNet or tieredImageNet: a CSV file with columns filename and label, and the pictures.

Instead, the JSON that easyfsl ships: `class_names`, and `class_roots`, of which the last part is
the class's folder.
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
    table: Path, pictures: Path, names: Path | None = None
) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures of a split, which the file's name tells; `names` says what the classes are called.

    Pictures are looked for as FILENAME and as LABEL/FILENAME below `pictures`. Raises `DataError`
    for a file that is no such split, a picture that comes twice, and a class without name.
    """
    check_folder(pictures, "pictures")
    called = None if names is None else read_names(names)
    if table.suffix.lower() == ".json":
        folders = _folders(table, pictures)
        classes = sorted(folders)
        entries = entries_of_folders(folders, labels_of(classes, called, names))
    else:
        rows = _rows(table)
        classes = sorted(set(rows.values()))
        labels = labels_of(classes, called, names)
        entries = [
            _entry(filename, name, labels[name], pictures) for filename, name in rows.items()
        ]
    files = [table, *([names] if names else [])]
    source = source_of(f"class-csv-{table.stem}", "class_csv", table.stem, "class_csv", files)
    return entries, source | class_list(classes)


def _rows(table: Path) -> dict[str, str]:
    """Return the class of each picture."""
    rows = read_table(table)
    heads = [cell.strip().lower() for cell in rows[0]] if rows else []
    headed = "filename" in heads and "label" in heads
    width, columns = (
        (len(heads), (heads.index("filename"), heads.index("label"))) if headed else (2, (0, 1))
    )
    found: dict[str, str] = {}
    for number, row in enumerate(rows[headed:], 1 + headed):
        if len(row) != width or not all(row[column].strip() for column in columns):
            raise DataError(
                f"{table} row {number} is {','.join(row)!r}, which is not a filename and a label"
            )
        filename, name = (row[column].strip() for column in columns)
        if filename in found:
            raise DataError(f"{table} names {filename} twice (row {number})")
        found[filename] = name
    if not found:
        raise DataError(f"{table} names no picture: its rows are filename,label")
    return found


def _entry(filename: str, name: str, label: str, pictures: Path) -> Entry:
    file = file_in(pictures, filename, f"{name}/{filename}")
    return Entry(
        key_of(filename.rpartition(".")[0]), (file,), {"labels": [label], "image_id": filename}
    )


def _folders(spec: Path, pictures: Path) -> dict[str, Path]:
    classes = read_classes(spec)
    document = read_json(spec)
    with reading(spec, "a split of easyfsl"):
        folders = [Path(folder).name for folder in document["class_roots"]]
        if not all(folders):
            raise ValueError("a class has no folder")
        return {
            name: file_in(pictures, folder) for name, folder in zip(classes, folders, strict=True)
        }
