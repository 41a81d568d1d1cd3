"""The files of a data set as its authors distribute them.

In: paths that a user gave. Out: their contents, with errors that name the file, and for the
manifest their sha256. Every module in `sources/` reads through these functions.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import DataError, UsageError
from data_pipeline.files import sha256


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn errors caused by unexpected content into a `DataError` that names the file.

    `what` says what the file should be, such as "a file of CUB-200-2011". DataErrors pass as they
    are.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} is not {what}: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """Return the text of an error; a bare KeyError would only name the key."""
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)


def read_bytes(path: Path) -> bytes:
    """Read a binary file; raises `DataError` that names it if it is missing."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file; raises `DataError` that names it if it is missing or damaged."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:  # brackets can be nested too deeply
        raise DataError(f"{path} is not JSON, or cut: {error}") from None


def read_json_lines(path: Path) -> list[Any]:
    """Read a file with one JSON document per line; empty lines are ignored."""
    documents = []
    # Not splitlines(), which also breaks lines at characters such as U+2028 inside of texts.
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            documents.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number} is not JSON: {error}") from None
    return documents


def read_table(path: Path, delimiter: Literal[",", "\t"] = ",") -> list[list[str]]:
    """Read the rows of a CSV file, or of a file with tabs; empty rows are ignored.

    Raises `DataError` that names the file if it is missing or damaged.
    """
    text = io.StringIO(_text(path))
    rows = csv.reader(text)
    if delimiter == "\t":
        # In the tables with tabs, quotation marks are part of the sentences.
        rows = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    try:
        return [row for row in rows if row]
    except csv.Error as error:
        raise DataError(f"{path} is not a table: {error}") from None


def read_lines(path: Path, columns: int = 1) -> list[list[str]]:
    """Read a file of lines with `columns` words each; the last word takes the rest of the line.

    Empty lines are ignored. Raises `DataError` that names the file and the line that has fewer
    words.
    """
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        words = line.strip().split(maxsplit=columns - 1)
        if words and len(words) < columns:
            raise DataError(
                f"{path} line {number} is {line.strip()!r}, where {columns} columns are needed"
            )
        if words:
            rows.append(words)
    return rows


def source_of(
    name: str, kind: str, split: str, collection: str, files: list[Path]
) -> dict[str, Any]:
    """Return what the manifest says about the origin: the split, and the sha256 of the files.

    `collection` names where the images come from (`pictures` in the manifest). Two data sets of one
    collection may hold the same image, which then has the same `image_id`.
    """
    hashes = {path.name: f"sha256:{sha256(path)}" for path in files}
    source = {"name": name, "kind": kind, "split": split}
    return source | {"pictures": collection, "files": hashes}


def check_split(split: str, splits: Collection[str], data_set: str) -> None:
    """Raise `UsageError` unless a data set has such a split."""
    if split not in splits:
        raise UsageError(
            f"unknown split {split!r} of {data_set}; choose one of {', '.join(splits)}"
        )


def check_folder(folder: Path, what: str) -> None:
    """Raise `DataError` unless there is such a folder; `what` says what it should hold."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the folder of the {what}")


def check_box(box: list[Any], what: str) -> None:
    """Raise ValueError unless a box consists of four finite numbers."""
    numbers = [isinstance(side, int | float) and math.isfinite(side) for side in box]
    if len(numbers) != 4 or not all(numbers):
        raise ValueError(f"{what} is not four numbers")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # some files begin with a byte order mark
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
