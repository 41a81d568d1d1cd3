"""MSR-VTT in the split 1k-A: the captions (`MSRVTT_data.json`), JSFusion's test list, and the clips.

Test is the list: 1,000 clips, one caption each. All others are for training, less 500 that are held
out for validation, because 1k-A has none of its own and choosing a model on test is not allowed.
Captions are joined by `video_id`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError, UsageError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import check_folder, read_json, read_table, reading, source_of

SPLITS = ("train", "val", "test")
VALIDATION = 500


def read(
    captions: Path, test_list: Path, videos: Path, split: str
) -> tuple[list[Entry], dict[str, Any]]:
    """List the clips of a split: `video_id`.mp4 (or .webm) below `videos`.

    Raises `DataError` for files that are missing or not those of MSR-VTT, and for a list with clips
    that have no captions.
    """
    if split not in SPLITS:
        raise UsageError(f"{split!r} is no split of MSR-VTT 1k-A: choose of {', '.join(SPLITS)}")
    check_folder(videos, "clips")
    of_clip: dict[str, list[str]] = {}
    document = read_json(captions)
    with reading(captions, "a captions file of MSR-VTT"):
        for sentence in sorted(document["sentences"], key=lambda sentence: int(sentence["sen_id"])):
            of_clip.setdefault(sentence["video_id"], []).append(sentence["caption"])
        ids = [video["video_id"] for video in document["videos"]]
        if len(set(ids)) < len(ids) or of_clip.keys() != set(ids):
            raise ValueError(
                "its videos and the videos of its sentences are not the same, or one comes twice"
            )
    tested = _test_list(test_list)
    if unknown := [video for video in tested if video not in of_clip]:
        raise DataError(
            f"{test_list} names {len(unknown):,} clips that {captions} does not hold: {unknown[0]}, ..."
        )
    trained = [video for video in ids if video not in tested]
    held_out = set(sorted(trained, key=_place)[: min(VALIDATION, len(trained) // 2)])
    chosen = {
        "test": list(tested),
        "val": [video for video in trained if video in held_out],
        "train": [video for video in trained if video not in held_out],
    }[split]
    entries = [
        _entry(video, [tested[video]] if split == "test" else of_clip[video], videos)
        for video in chosen
    ]
    source = source_of(f"msrvtt-1ka-{split}", "msrvtt", split, "msrvtt", [captions, test_list])
    rule = f"{len(held_out)} of the clips that are not in the test list, those with the least sha256 of their id"
    return entries, source | {"protocol": "1k-A", "validation": rule}


def _test_list(path: Path) -> dict[str, str]:
    rows = read_table(path)
    with reading(path, "JSFusion's test list (a table with columns video_id and sentence)"):
        if not rows:
            raise ValueError("it is empty")
        video, sentence = (rows[0].index(column) for column in ("video_id", "sentence"))
        found = {row[video]: row[sentence] for row in rows[1:]}
        if len(found) < len(rows) - 1:
            raise ValueError(f"{len(rows) - 1 - len(found)} clips come twice")
        return found


def _place(video: str) -> str:
    return hashlib.sha256(video.encode()).hexdigest()


def _entry(video: str, captions: list[str], videos: Path) -> Entry:
    file = file_in(videos, f"{video}.mp4", f"{video}.webm")
    return Entry(key_of(video), (file,), {"captions": captions, "image_id": video})
