"""Revisited Oxford and Paris: `gnd_roxford5k.pkl` or `gnd_rparis6k.pkl`, and the pictures (`jpg/NAME.jpg`).

{"imlist": [name], "qimlist": [name], "gnd": [{"bbx": [x1, y1, x2, y2], "easy": [row], "hard":
[row], "junk": [row]}]}, rows of `imlist`. The pickle is read without unpickling (`plain_pickle`). A
query says which part of its picture asks (`box`) and which pictures of the gallery are right, right
but hard, and to be passed over (`relevance`); there are no classes, and `labels` is empty.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UsageError
from data_pipeline.importing.entries import Entry, file_in, key_of
from data_pipeline.importing.official import check_folder, read_bytes, reading, source_of
from data_pipeline.importing.plain_pickle import read_pickle

SPLITS = ("query", "gallery")
_RELEVANCE = ("easy", "hard", "junk")


def read(ground_truth: Path, pictures: Path, split: str) -> tuple[list[Entry], dict[str, Any]]:
    """List the queries or the gallery, in the order of the ground truth.

    Raises `DataError` for files that are missing, a pickle that holds anything else than this, and
    a query whose box or whose rows are none.
    """
    if split not in SPLITS:
        raise UsageError(
            f"{split!r} is no split of Revisited Oxford and Paris: choose of {', '.join(SPLITS)}"
        )
    check_folder(pictures, "pictures")
    content = read_bytes(ground_truth)
    with reading(ground_truth, "a ground truth of Revisited Oxford or Paris"):
        document = read_pickle(content)
        gallery, queries = (list(map(_name, document[part])) for part in ("imlist", "qimlist"))
        if len(document["gnd"]) != len(queries):
            raise ValueError(f"it tells of {len(document['gnd'])} queries and names {len(queries)}")
        told = [
            _truth(query, truth, gallery)
            for query, truth in zip(queries, document["gnd"], strict=True)
        ]
        chosen = (
            zip(queries, told, strict=True)
            if split == "query"
            else ((name, {}) for name in gallery)
        )
        entries = [_entry(pictures, name, more) for name, more in chosen]
    name = ground_truth.stem.removeprefix("gnd_")
    return entries, source_of(f"{name}-{split}", "revisited", split, name, [ground_truth])


def _entry(pictures: Path, name: str, more: dict[str, Any]) -> Entry:
    file = file_in(pictures, f"{name}.jpg", f"jpg/{name}.jpg")
    return Entry(key_of(name), (file,), {"labels": [], "image_id": name} | more)


def _name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r:.40} is no name of a picture")
    return name.removesuffix(".jpg")


def _truth(query: str, truth: dict[str, Any], gallery: list[str]) -> dict[str, Any]:
    """Return box and relevance of a query; numbers may be arrays of numpy."""
    box = np.ravel(truth["bbx"]).tolist()
    if len(box) != 4 or not all(
        isinstance(side, int | float) and math.isfinite(side) for side in box
    ):
        raise ValueError(f"the box of {query} is no four numbers")
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(f"the box of {query} is empty: {box}")
    relevance = {}
    for kind in _RELEVANCE:
        rows = np.ravel(truth[kind]).tolist()
        if not all(type(row) is int and 0 <= row < len(gallery) for row in rows):
            raise ValueError(
                f"{kind!r} of {query} holds what is no row of its {len(gallery)} pictures"
            )
        relevance[kind] = [gallery[row] for row in rows]
    return {"box": box, "relevance": relevance}
