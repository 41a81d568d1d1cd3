"""ALIGN-BENCH: `images/<id>.jpg` and `pkls/<id>.pkl`, a caption and where its phrases are seen.

In: the benchmark's folder. Out: one entry per image, with regions. A pickle holds {"caption": text,
"annotation": {phrase: [{"bbox_mask": [x1, y1, x2, y2], "pixel_mask": bool (height, width)}, ...]}}.
It is read without unpickling (`plain_pickle`), and masks become run lengths. A phrase with an empty
list is not a region; `without_place` lists it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.decode import open_image
from data_pipeline.errors import DataError
from data_pipeline.files import sha256
from data_pipeline.importing.entries import Entry, key_of
from data_pipeline.importing.official import check_box, check_folder, reason_of, source_of
from data_pipeline.importing.plain_pickle import read_pickle
from data_pipeline.regions import encode_mask, parse_regions
from data_pipeline.sample import BadSample

_MAX_BYTES = 64 * 2**20  # of a pickle; real ones have a few million


def read(folder: Path) -> tuple[list[Entry], dict[str, Any]]:
    """List the images with their caption and regions, in the order of their names.

    Raises `DataError` that names the file: for an image without a pickle, a pickle that holds
    anything else, and a mask whose size is not that of its image.
    """
    images, pickles = folder / "images", folder / "pkls"
    check_folder(images, "images of ALIGN-BENCH, the benchmark's folder holds it as `images`")
    check_folder(pickles, "annotations of ALIGN-BENCH, the benchmark's folder holds it as `pkls`")
    files = sorted(pickles.glob("*.pkl"))
    image_names = {path.stem for path in images.glob("*.jpg")}
    if unannotated := sorted(image_names - {path.stem for path in files}):
        raise DataError(
            f"{len(unannotated):,} images of {images} have no annotation in {pickles}: "
            f"{unannotated[0]}.jpg, ..."
        )
    entries = [_entry(file, images / f"{file.stem}.jpg") for file in files]
    source = source_of("align-bench", "align_bench", "test", "align_bench", [])
    # One hash for hundreds of files, over their names and contents.
    names_and_hashes = "".join(f"{file.name} {sha256(file)}\n" for file in files)
    digest = hashlib.sha256(names_and_hashes.encode()).hexdigest()
    source["files"] = {"pkls/*.pkl": f"sha256:{digest}"}
    return entries, source


def _entry(file: Path, image: Path) -> Entry:
    try:
        annotations = _annotations(file, _size(image))
        parse_regions(file.stem, annotations)  # what is written must be readable
    except BadSample as error:
        raise DataError(f"{file} is refused: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file} is refused: {reason_of(error)}; "
            "it is not the annotation of an ALIGN-BENCH image"
        ) from error
    return Entry(key_of(file.stem), (image,), annotations)


def _annotations(file: Path, size: tuple[int, int] | None) -> dict[str, Any]:
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
    document = read_pickle(file.read_bytes())
    caption = document["caption"]
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("its caption is not a text")
    regions, without_place = [], []
    for phrase, places in document["annotation"].items():
        if places:
            regions.append(_region(phrase, places, size))
        else:
            without_place.append(str(phrase))
    return {
        "captions": [caption],
        "image_id": file.stem,
        "regions": regions,
        "without_place": without_place,
    }


def _region(phrase: Any, places: Any, size: tuple[int, int] | None) -> dict[str, Any]:
    if not isinstance(phrase, str) or not isinstance(places, list):
        raise ValueError(f"phrase {phrase!r} has no list of places")
    boxes, masks = [], []
    for place in places:
        box, mask = place["bbox_mask"], place["pixel_mask"]
        box = box.tolist() if isinstance(box, np.ndarray) else list(box)
        check_box(box, f"a box of {phrase!r}")
        if not isinstance(mask, np.ndarray) or mask.ndim != 2 or not np.isin(mask, (0, 1)).all():
            raise ValueError(f"a mask of {phrase!r} is not a table of true and false")
        if size is not None and mask.shape != size:
            raise ValueError(
                f"a mask of {phrase!r} is {mask.shape}, but its image is {size} (height, width)"
            )
        boxes.append(box)
        masks.append(encode_mask(mask != 0))
    return {"phrase": phrase, "caption": 0, "boxes": boxes, "masks": masks}


def _size(image: Path) -> tuple[int, int] | None:
    """Return height and width from the header; None for an image that cannot be read.

    The import reports that later, together with all others.
    """
    try:
        encoded = open_image(image.read_bytes())
    except (OSError, BadSample):
        return None
    return encoded.height, encoded.width
