"""The files of a data set as its authors distribute them: read with errors that name the file, and their sha256."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from data_pipeline.errors import DataError
from data_pipeline.shards.manifest import sha256_of


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn the errors of going through a document that is not as expected into a `DataError` that names the file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} is not {what}: {said}") from error


def read_bytes(path: Path) -> bytes:
    """Read a file that is no text; raises `DataError` that names it when it is missing."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file; raises `DataError` that names it when it is missing or damaged."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON, or cut: {error}") from None


def read_json_lines(path: Path) -> list[Any]:
    """Read a file with one JSON document a line; empty lines are passed over."""
    found = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number} is not JSON: {error}") from None
    return found


def read_table(path: Path, delimiter: Literal[",", "\t"] = ",") -> list[list[str]]:
    """Read the rows of a CSV file with commas, or of one with tabs, in which quotation marks mean nothing.

    Raises `DataError` that names the file when it is missing or damaged.
    """
    text = io.StringIO(_text(path))
    rows = (
        csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
        if delimiter == "\t"
        else csv.reader(text)
    )
    try:
        return [row for row in rows if row]
    except csv.Error as error:
        raise DataError(f"{path} is no table: {error}") from None


def read_lines(path: Path, columns: int = 1) -> list[list[str]]:
    """Read a file of lines that hold so many words each; the last one takes the rest of its line.

    Empty lines are passed over. Raises `DataError` that names the file, and the line that has fewer
    words.
    """
    found = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        words = line.strip().split(maxsplit=columns - 1)
        if words and len(words) < columns:
            raise DataError(
                f"{path} line {number} is {line.strip()!r}, where {columns} columns are needed"
            )
        found += [words] if words else []
    return found


def source_of(
    name: str, kind: str, split: str, pictures: str, files: list[Path], **more: Any
) -> dict[str, Any]:
    """Return what the manifest says of the origin: the split, and the official files with their sha256.

    `pictures` names the collection that the pictures come from: two data sets of one collection may
    hold the same one, which then has the same `image_id`.
    """
    hashes = {path.name: f"sha256:{sha256_of(path)}" for path in files}
    return {
        "name": name,
        "kind": kind,
        "split": split,
        "pictures": pictures,
        "files": hashes,
    } | more


def check_folder(folder: Path, what: str) -> None:
    """Raise `DataError` unless there is such a folder."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the folder of the {what}")


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error}") from None
