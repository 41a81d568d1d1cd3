"""Revisited Oxford and Paris: `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`, and the images.

In: these files (images as `jpg/NAME.jpg`). Out: one entry per query, or per image of the gallery.
The pickle holds {"imlist": [name], "qimlist": [name], "gnd": [{"bbx": [x1, y1, x2, y2], "easy":
[row], "hard": [row], "junk": [row]}]} with rows of `imlist`. It is read without unpickling
(`plain_pickle`). A query says which part of its image to search for (`box`), and which images of
the gallery are right, right but hard, and to be left out of the ranking (`relevance`). There are no
classes, so `labels` is empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import (
    check_box,
    check_folder,
    check_split,
    read_bytes,
    reading,
    source_of,
)
from data_pipeline.importing.plain_pickle import read_pickle

SPLITS = ("query", "gallery")
_RELEVANCE = ("easy", "hard", "junk")


def read(ground_truth: Path, images: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the queries or the gallery, in the order of the ground truth.

    Raises `DataError` for files that are missing, a pickle that holds anything else, and a query
    whose box or rows are invalid.
    """
    check_split(split, SPLITS, "Revisited Oxford and Paris")
    check_folder(images, "images")
    content = read_bytes(ground_truth)
    with reading(ground_truth, "a ground truth of Revisited Oxford or Paris"):
        document = read_pickle(content)
        gallery = [_name(name) for name in document["imlist"]]
        queries = [_name(name) for name in document["qimlist"]]
        if len(document["gnd"]) != len(queries):
            raise ValueError(
                f"it describes {len(document['gnd'])} queries but names {len(queries)}"
            )
        # Checked for the gallery too, so that a bad file is refused whatever is read from it.
        truths = []
        for query, truth in zip(queries, document["gnd"], strict=True):
            truths.append(_truth(query, truth, gallery))
        if split == "query":
            entries = []
            for query, truth in zip(queries, truths, strict=True):
                entries.append(_entry(images, query, truth))
        else:
            entries = [_entry(images, name, {}) for name in gallery]
    name = ground_truth.stem.removeprefix("gnd_")
    return entries, source_of(f"{name}-{split}", "revisited", split, name, [ground_truth])


def _entry(images: Path, name: str, truth: dict[str, Any]) -> Entry:
    file = file_in(images, f"{name}.jpg", f"jpg/{name}.jpg")
    return Entry(key_of(name), (file,), {"labels": [], "image_id": name} | truth)


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r:.40} is not the name of an image")
    return name.removesuffix(".jpg")


def _truth(query: str, truth: dict[str, Any], gallery: list[str]) -> dict[str, Any]:
    """Return box and relevance of a query; its numbers may be numpy arrays."""
    box = np.ravel(truth["bbx"]).tolist()
    check_box(box, f"the box of {query}")
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"the box of {query} is empty: {box}")
    relevance = {}
    for kind in _RELEVANCE:
        names = []
        for row in np.ravel(truth[kind]).tolist():
            if type(row) is not int or not 0 <= row < len(gallery):
                raise ValueError(
                    f"{kind!r} of {query} holds {row!r:.40}, which is not one of its "
                    f"{len(gallery)} rows"
                )
            names.append(gallery[row])
        relevance[kind] = names
    return {"box": box, "relevance": relevance}
