"""What phrases of a caption refer to: boxes and run-length encoded masks in the image.

In: the `regions` of a sample's JSON member. Out: `Region`s. Masks are COCO's uncompressed run
lengths: pixels are taken column by column, and the runs are outside and inside the mask in turn,
beginning outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode import MAX_PIXELS
from data_pipeline.sample import BadSample

LARGEST = 2**31  # above every real coordinate and run length, and safe to compute with
Mask = NDArray[np.bool_]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Region:
    """A phrase and where it is seen in the image.

    `caption` is the number of the sample's caption that contains it (None: any that does). `boxes`
    are x1, y1, x2, y2 in pixels of the stored image, x2 and y2 exclusive; `masks` are run lengths
    for `decode_mask`. One of the two may be empty.
    """

    phrase: str
    caption: int | None
    boxes: tuple[Box, ...]
    masks: tuple[dict[str, Any], ...]


def parse_regions(key: str, annotations: Mapping[str, Any]) -> tuple[Region, ...]:
    """Read the regions of `key` from its JSON member, which may have none.

    Raises `BadSample` if one is malformed.
    """
    entries = annotations.get("regions")
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise BadSample("bad-json", f'sample {key}: "regions" must be a list of objects')
    captions = annotations.get("captions")
    captions = captions if isinstance(captions, list) else []
    regions = []
    for number, entry in enumerate(entries):
        regions.append(_region(f"sample {key}: region {number}", entry, captions))
    return tuple(regions)


def encode_mask(mask: Mask) -> dict[str, Any]:
    """Return the run lengths of a mask, bool (h, w): {"size": [h, w], "counts": [...]}."""
    flat = np.asarray(mask, dtype=bool).ravel(order="F")
    edges = (np.flatnonzero(flat[1:] != flat[:-1]) + 1).tolist()
    if flat[:1].any():
        edges = [0, *edges]  # an empty run, because the first run is outside the mask
    counts = [end - start for start, end in pairwise([0, *edges, flat.size])]
    return {"size": list(mask.shape), "counts": counts}


def decode_mask(rle: Mapping[str, Any]) -> Mask:
    """Return the mask of run lengths, bool (h, w).

    Raises `BadSample` if they do not add up to the size.
    """
    size, counts = _checked_mask("the mask", rle)
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size, order="F")


def _region(where: str, entry: Any, captions: list[Any]) -> Region:
    if not isinstance(entry, dict):
        raise BadSample("bad-json", f"{where} is not an object")
    phrase = entry.get("phrase")
    if not isinstance(phrase, str) or not phrase.strip():
        raise BadSample(
            "bad-json", f'{where}: its "phrase" must be a non-empty text, not {phrase!r}'
        )
    where = f"{where} ({phrase!r})"
    boxes, masks = entry.get("boxes") or [], entry.get("masks") or []
    if not isinstance(boxes, list) or not isinstance(masks, list) or not (boxes or masks):
        raise BadSample("bad-json", f'{where} needs a list of "boxes", or of "masks"')
    sizes = {_checked_mask(f"{where}: its mask", mask)[0] for mask in masks}
    if len(sizes) > 1:
        raise BadSample("bad-json", f"{where}: its masks have different sizes")
    return Region(
        phrase.strip(),
        _caption(where, entry.get("caption"), captions),
        tuple(_checked_box(where, box) for box in boxes),
        tuple(masks),
    )


def _caption(where: str, number: Any, captions: list[Any]) -> int | None:
    if number is None:
        return None
    if type(number) is not int or not 0 <= number < len(captions):
        valid = f"one of the {len(captions)} captions, counted from 0"
        raise BadSample("bad-json", f'{where}: its "caption" must be {valid}, not {number!r}')
    present = [isinstance(text, str) and bool(text.strip()) for text in captions]
    if not present[number]:
        raise BadSample("bad-json", f"{where}: its caption {number} is empty")
    # `Sample.captions` leaves out empty ones, so later numbers move down.
    return sum(present[:number])


def _checked_box(where: str, box: Any) -> Box:
    numbers = box if isinstance(box, list) else []
    # NaN fails the comparison, as it is not less than anything.
    finite = [type(value) in (int, float) and abs(value) < LARGEST for value in numbers]
    if len(numbers) == 4 and all(finite):
        x1, y1, x2, y2 = map(float, numbers)
        if x1 <= x2 and y1 <= y2:
            return x1, y1, x2, y2
    raise BadSample(
        "bad-json", f"{where}: a box is [x1, y1, x2, y2] with x1 <= x2 and y1 <= y2, not {box!r}"
    )


def _checked_mask(where: str, mask: Any) -> tuple[tuple[int, int], list[int]]:
    """Return the size and the run lengths of a mask after checking both."""
    size = counts = None
    if isinstance(mask, Mapping):
        size, counts = mask.get("size"), mask.get("counts")
    # COCO also has a compressed form, which is easy to pass by mistake.
    if isinstance(counts, str):
        raise BadSample(
            "bad-json", f"{where} is compressed: write its run lengths as a list of numbers"
        )
    if not _are_counts(size) or not _are_counts(counts) or len(size) != 2:
        raise BadSample(
            "bad-json", f'{where} must be an object with "size": [h, w] and "counts": [run lengths]'
        )
    height, width = size
    if height * width > MAX_PIXELS:
        raise BadSample(
            "too-large", f"{where} has {height} x {width} pixels, more than {MAX_PIXELS:,}"
        )
    if sum(counts) != height * width:
        raise BadSample(
            "bad-json",
            f"{where} has runs of {sum(counts):,} pixels, but its size is {height} x {width}",
        )
    return (height, width), counts


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    if not isinstance(values, list):
        return False
    return all(type(value) is int and 0 <= value < LARGEST for value in values)
