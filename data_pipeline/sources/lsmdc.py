"""LSMDC 2016: a table of clips with one description a row (training, val, the public test of 1,000), and the clips.

The tables have no header: name, four times, sentence, divided by tabs. Clips lie in a folder of
their film; the AVI files of the release are encoded again as H.264, because a shard holds mp4 or
webm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.errors import UsageError
from data_pipeline.importing.entries import Entry, key_of
from data_pipeline.importing.official import check_folder, read_table, reading, source_of

SPLITS = ("train", "val", "test")
_EXTENSIONS = (".avi", ".mp4", ".webm")
_COLUMNS = 6


def read(table: Path, videos: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the clips of a table; `split` says which of them it is, for the release's names do not.

    A clip that stands in several rows has several captions. Raises `DataError` for files that are
    missing or no table of LSMDC.
    """
    if split not in SPLITS:
        raise UsageError(f"{split!r} is no split of LSMDC: choose of {', '.join(SPLITS)}")
    check_folder(videos, "clips")
    files = {
        path.stem: path for path in sorted(videos.rglob("*")) if path.suffix.lower() in _EXTENSIONS
    }
    sentences: dict[str, list[str]] = {}
    rows = read_table(table, delimiter="\t")
    with reading(table, f"a table of LSMDC ({_COLUMNS} columns, divided by tabs)"):
        for number, row in enumerate(rows, 1):
            if len(row) != _COLUMNS:
                raise ValueError(f"row {number} has {len(row)} columns")
            name, sentence = row[0].strip(), row[5].strip()
            if not name or not sentence:
                raise ValueError(f"row {number} has no name or no sentence")
            sentences.setdefault(name, []).append(sentence)
    entries = [
        Entry(
            key_of(name),
            (files.get(name, videos / f"{name}.avi"),),
            {"captions": captions, "image_id": name},
        )
        for name, captions in sentences.items()
    ]
    return entries, source_of(f"lsmdc-{split}", "lsmdc", split, "lsmdc", [table])
