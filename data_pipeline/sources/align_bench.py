"""ALIGN-BENCH: `images/<id>.jpg` and `pkls/<id>.pkl`, a pickle of a caption and where its phrases are seen.

{"caption": text, "annotation": {phrase: [{"bbox_mask": [x1, y1, x2, y2], "pixel_mask": bool
(height, width)}, ...]}}. The pickles are read without unpickling (`plain_pickle`); masks become run
lengths. A phrase with an empty list is no region but stands in `without_place`.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.decode import open_image
from data_pipeline.errors import DataError
from data_pipeline.importing.entries import Entry, key_of
from data_pipeline.importing.official import check_folder, source_of
from data_pipeline.importing.plain_pickle import read_pickle
from data_pipeline.regions import encode_mask, parse_regions
from data_pipeline.sample import BadSample
from data_pipeline.shards.manifest import sha256_of

_LARGEST = 64 * 2**20  # bytes of a pickle; real ones have a few million


def read(folder: Path) -> tuple[list[Entry], dict[str, Any]]:
    """List the pictures with their caption and regions, in the order of their names.

    Raises `DataError`, which names the file, for a pickle that holds anything else than this, and
    for masks that are not of their picture's size; pictures without pickle, too.
    """
    pictures, pickles = folder / "images", folder / "pkls"
    check_folder(pictures, "pictures of ALIGN-BENCH, the benchmark's folder holds it as `images`")
    check_folder(pickles, "annotations of ALIGN-BENCH, the benchmark's folder holds it as `pkls`")
    files = sorted(pickles.glob("*.pkl"))
    if alone := sorted(
        {path.stem for path in pictures.glob("*.jpg")} - {path.stem for path in files}
    ):
        raise DataError(
            f"{len(alone):,} pictures of {pictures} have no annotation in {pickles}: {alone[0]}.jpg, ..."
        )
    entries = [_entry(file, pictures / f"{file.stem}.jpg") for file in files]
    # One number for so many files: of their names and contents.
    whole = hashlib.sha256(
        "".join(f"{file.name} {sha256_of(file)}\n" for file in files).encode()
    ).hexdigest()
    source = source_of("align-bench", "align_bench", "test", "align_bench", [])
    return entries, source | {"files": {"pkls/*.pkl": f"sha256:{whole}"}}


def _entry(file: Path, picture: Path) -> Entry:
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        document = read_pickle(file.read_bytes())
        caption = document["caption"]
        size = _size(picture)
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError("its caption is no text")
        placed = {phrase: places for phrase, places in document["annotation"].items() if places}
        annotations = {
            "captions": [caption],
            "image_id": file.stem,
            "regions": [_region(phrase, places, size) for phrase, places in placed.items()],
            "without_place": [
                str(phrase) for phrase in document["annotation"] if phrase not in placed
            ],
        }
        parse_regions(file.stem, annotations)
    except BadSample as error:
        raise DataError(f"{file} is refused: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{file} is refused: {said}; it is not the annotation of an ALIGN-BENCH picture"
        ) from error
    return Entry(key_of(file.stem), (picture,), annotations)


def _region(phrase: Any, places: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    if not isinstance(phrase, str) or not isinstance(places, list):
        raise ValueError(f"phrase {phrase!r} has no list of places")
    boxes, masks = [], []
    for place in places:
        box, mask = place["bbox_mask"], place["pixel_mask"]
        box = box.tolist() if isinstance(box, np.ndarray) else list(box)
        if len(box) != 4 or not all(
            isinstance(side, int | float) and math.isfinite(side) for side in box
        ):
            raise ValueError(f"a box of {phrase!r} is no four numbers")
        if not isinstance(mask, np.ndarray) or mask.ndim != 2 or not np.isin(mask, (0, 1)).all():
            raise ValueError(f"a mask of {phrase!r} is no table of true and false")
        if size is not None and mask.shape != size:
            raise ValueError(
                f"a mask of {phrase!r} is {mask.shape}, its picture {size} (height, width)"
            )
        boxes.append(box)
        masks.append(encode_mask(mask != 0))
    return {"phrase": phrase, "caption": 0, "boxes": boxes, "masks": masks}


def _size(picture: Path) -> tuple[int, int] | None:
    """Height and width by the header; None where there is nothing to read, which is for the writer to report."""
    try:
        image = open_image(picture.read_bytes())
    except (OSError, BadSample):
        return None
    return image.height, image.width
