"""Winoground: `examples.jsonl` and the folder of images.

In: these. Out: one entry per example, with two images and two captions that use the same words. The
first caption describes the first image, the second caption the second image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.importing.entries import Entry, file_in
from data_pipeline.importing.official import check_folder, read_json_lines, reading, source_of


def read(examples: Path, images: Path) -> tuple[list[Entry], dict[str, Any]]:
    """List the examples; raises `DataError` for files that are missing or not Winoground's."""
    check_folder(images, "images")
    lines = read_json_lines(examples)
    entries = []
    with reading(examples, "the file of examples of Winoground"):
        for line in lines:
            number = int(line["id"])
            captions = [line["caption_0"], line["caption_1"]]
            if not all(caption.strip() for caption in captions):
                raise ValueError(f"a caption of example {number} is empty")
            media = []
            for name in (str(line["image_0"]), str(line["image_1"])):
                # Names have no extension, and a copy of the images may be in another format.
                media.append(file_in(images, f"{name}.png", f"{name}.jpg", name))
            tags = {name: line.get(name, "") for name in ("tag", "secondary_tag", "collapsed_tag")}
            annotations = {"captions": captions, "image_id": str(number), **tags}
            entries.append(Entry(f"{number:06d}", tuple(media), annotations))
    return entries, source_of("winoground", "winoground", "test", "winoground", [examples])
