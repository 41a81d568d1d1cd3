"""Winoground: `examples.jsonl` and the folder of pictures.

A sample is a pair of pictures and a pair of captions of the same words: the first caption is of the
first picture, the second of the second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_json_lines, reading, source_of


def read(examples: Path, pictures: Path) -> tuple[list[Entry], dict[str, Any]]:
    """List the examples; raises `DataError` for files that are missing or not Winoground's."""
    check_folder(pictures, "pictures")
    lines = read_json_lines(examples)
    entries = []
    with reading(examples, "the file of examples of Winoground"):
        for line in lines:
            number = int(line["id"])
            captions = [line["caption_0"], line["caption_1"]]
            if not all(caption.strip() for caption in captions):
                raise ValueError(f"a caption of example {number} is empty")
            names = (str(line["image_0"]), str(line["image_1"]))
            media = tuple(file_in(pictures, f"{name}.png", f"{name}.jpg", name) for name in names)
            tags = {name: line.get(name, "") for name in ("tag", "secondary_tag", "collapsed_tag")}
            annotations = {"captions": captions, "image_id": str(number), **tags}
            entries.append(Entry(f"{number:06d}", media, annotations))
    return entries, source_of("winoground", "winoground", "test", "winoground", [examples])
