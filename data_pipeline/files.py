"""Files that are whole or absent: each is written under another name, synced, then renamed.

Every room writes through here, so that neither a reader nor a crash ever meets half a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file; on success it is synced and becomes ``path``.

    The temporary name holds the process id, because processes that share a cache may write the
    same file at the same time. On an error the temporary file is removed and ``path`` is untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        sync(beside)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            beside.unlink()
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file by text (UTF-8) or bytes."""
    payload = content.encode() if isinstance(content, str) else content
    with replaced_file(path) as beside:
        beside.write_bytes(payload)


def write_pieces(path: Path, pieces: Iterable[str]) -> None:
    """Replace a file by pieces of text that are never in memory together."""
    with replaced_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by indented JSON."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
