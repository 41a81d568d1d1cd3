"""LSMDC 2016: a table of videos with one description per row, and the videos.

In: the table of training, val or the public test of 1,000, and the folder of the videos. Out: one
entry per video. The tables have no header: name, four times, sentence, divided by tabs. Each video
lies in a folder of its film. The AVI files of the release are encoded again as H.264, because a
shard holds mp4 or webm.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, key_of
from data_pipeline.importing.official import (
    check_folder,
    check_split,
    read_table,
    reading,
    source_of,
)

SPLITS = ("train", "val", "test")
_EXTENSIONS = (".avi", ".mp4", ".webm")
_COLUMNS = 6


def read(table: Path, videos: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the videos of a table; `split` says which one it is, as the release's names do not.

    A video in several rows has several captions. Raises `DataError` for files that are missing or
    not a table of LSMDC.
    """
    check_split(split, SPLITS, "LSMDC")
    check_folder(videos, "videos")
    files = {}
    # Sorted, so that the file system does not decide between two files of one name.
    for path in sorted(videos.rglob("*")):
        if path.suffix.lower() in _EXTENSIONS:
            files[path.stem] = path
    captions: dict[str, list[str]] = {}
    rows = read_table(table, delimiter="\t")
    with reading(table, f"a table of LSMDC ({_COLUMNS} columns, divided by tabs)"):
        for number, row in enumerate(rows, 1):
            if len(row) != _COLUMNS:
                raise ValueError(f"row {number} has {len(row)} columns")
            name, sentence = row[0].strip(), row[5].strip()
            if not name or not sentence:
                raise ValueError(f"row {number} has no name or no sentence")
            captions.setdefault(name, []).append(sentence)
    entries = []
    for name, sentences in captions.items():
        # A missing video is listed when the import looks for its file.
        file = files.get(name, videos / f"{name}.avi")
        entries.append(Entry(key_of(name), (file,), {"captions": sentences, "image_id": name}))
    return entries, source_of(f"lsmdc-{split}", "lsmdc", split, "lsmdc", [table])
