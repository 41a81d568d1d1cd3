"""MSR-VTT in the split 1k-A: captions (`MSRVTT_data.json`), JSFusion's test list, and the videos.

In: these files. Out: one entry per video of a split. Test is the list: 1,000 videos with one
caption each. All others are for training, except 500 that are held out for validation: 1k-A has no
validation split, and choosing a model on test is not allowed. Captions are joined by `video_id`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from data_pipeline.errors import DataError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import (
    check_folder,
    check_split,
    read_json,
    read_table,
    reading,
    source_of,
)

SPLITS = ("train", "val", "test")
VALIDATION = 500


def read(
    captions: Path, test_list: Path, videos: Path, split: str
) -> tuple[list[Entry], dict[str, Any]]:
    """List the videos of a split: `video_id`.mp4 (or .webm) below `videos`.

    Raises `DataError` for files that are missing or not those of MSR-VTT, and for a list with
    videos that have no captions.
    """
    check_split(split, SPLITS, "MSR-VTT 1k-A")
    check_folder(videos, "videos")
    captions_by_video = _captions_by_video(captions)
    test_captions = _test_list(test_list)
    if unknown := [video for video in test_captions if video not in captions_by_video]:
        raise DataError(
            f"{test_list} names {len(unknown):,} videos that {captions} does not hold: "
            f"{unknown[0]}, ..."
        )
    others = [video for video in captions_by_video if video not in test_captions]
    # By hash, so that the choice is random but does not depend on the order of the file.
    by_hash = sorted(others, key=_sha256_of_text)
    held_out = set(by_hash[: min(VALIDATION, len(others) // 2)])
    entries = []
    if split == "test":
        for video, caption in test_captions.items():
            entries.append(_entry(video, [caption], videos))
    else:
        for video in others:
            if (video in held_out) == (split == "val"):
                entries.append(_entry(video, captions_by_video[video], videos))
    source = source_of(f"msrvtt-1ka-{split}", "msrvtt", split, "msrvtt", [captions, test_list])
    source["protocol"] = "1k-A"
    source["validation"] = (
        f"{len(held_out)} of the videos that are not in the test list, "
        "those with the smallest sha256 of their id"
    )
    return entries, source


def _captions_by_video(path: Path) -> dict[str, list[str]]:
    """Return the captions of each video, with the videos in the order of the file."""
    document = read_json(path)
    with reading(path, "a captions file of MSR-VTT"):
        captions: dict[str, list[str]] = {}
        for sentence in sorted(document["sentences"], key=lambda sentence: int(sentence["sen_id"])):
            captions.setdefault(sentence["video_id"], []).append(sentence["caption"])
        ids = [video["video_id"] for video in document["videos"]]
        if len(set(ids)) < len(ids) or captions.keys() != set(ids):
            raise ValueError(
                "its videos and the videos of its sentences are not the same, or one comes twice"
            )
        return {video: captions[video] for video in ids}


def _test_list(path: Path) -> dict[str, str]:
    rows = read_table(path)
    with reading(path, "JSFusion's test list (a table with columns video_id and sentence)"):
        if not rows:
            raise ValueError("it is empty")
        video, sentence = rows[0].index("video_id"), rows[0].index("sentence")
        captions = {row[video]: row[sentence] for row in rows[1:]}
        repeated = len(rows) - 1 - len(captions)
        if repeated:
            raise ValueError(f"{repeated} videos come twice")
        return captions


def _sha256_of_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _entry(video: str, captions: list[str], videos: Path) -> Entry:
    file = file_in(videos, f"{video}.mp4", f"{video}.webm")
    return Entry(key_of(video), (file,), {"captions": captions, "image_id": video})
