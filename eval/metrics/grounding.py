"""A map on a grid of patches against a region of the picture: the share inside, the highest cell, the bright part.

A region becomes the covered share of each cell, by area, so that nothing is lost or overshoots (an
interpolated mask does both). The picture is squashed onto the grid, as it is before the model sees
it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.decode import open_image
from data_pipeline.errors import DataError
from data_pipeline.regions import Box, Mask, Region, decode_mask, parse_regions
from data_pipeline.sample import Sample

BACKGROUND = 0.9  # of the picture's area
KINDS = ("pixel", "box")
Array = NDArray[np.float64]


def region_masks(key: str, region: Region, media: bytes) -> dict[str, list[Mask]]:
    """Draw the masks (height, width) of what a region is in an encoded picture, of each kind.

    Raises DataError, which names the sample, for masks of another size than the picture's.
    """
    picture = open_image(media)
    size = picture.height, picture.width
    masks = [decode_mask(mask) for mask in region.masks]
    for mask in masks:
        if mask.shape != size:
            sizes = " and ".join(f"{width} x {height}" for height, width in (mask.shape, size))
            raise DataError(
                f"sample {key}: the mask of {region.phrase!r} and the picture differ in size: {sizes}"
            )
    return {"pixel": masks, "box": [box_mask(box, size) for box in region.boxes]}


def box_mask(box: Box, size: tuple[int, int]) -> Mask:
    """Pixels (height, width) that a box x1, y1, x2, y2 touches; none where it has no area or lies outside."""
    (height, width), (x1, y1, x2, y2) = size, box
    mask = np.zeros(size, dtype=bool)
    if x1 < x2 and y1 < y2:
        left, top = (max(0, math.floor(low)) for low in (x1, y1))
        right, bottom = max(0, min(width, math.ceil(x2))), max(0, min(height, math.ceil(y2)))
        mask[top:bottom, left:right] = True
    return mask


def is_background(mask: Mask) -> bool:
    """Whether the mask's bounding box covers more than nine tenths of the picture."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return False
    return bool((np.ptp(rows) + 1) * (np.ptp(columns) + 1) > BACKGROUND * mask.size)


def without_background(masks: Sequence[Mask]) -> list[Mask]:
    """Leave out what is background."""
    return [mask for mask in masks if not is_background(mask)]


def pool_mask(mask: Mask, grid: tuple[int, ...]) -> Array:
    """Share of each of the (rows, columns) cells that a mask (height, width) covers, in 0..1."""
    rows, columns = (
        _overlaps(cells, pixels) for cells, pixels in zip(grid, mask.shape, strict=True)
    )
    return np.clip(rows @ mask @ columns.T, 0.0, 1.0)


def grounding_scores(heat: Array, region: Array) -> dict[str, float]:
    """Compare a map of values of 0 or more with a region's shares, both (rows, columns); all results are in 0..1.

    `mass`: share of the map inside. `pointing`: 1 where the highest cell touches the region, else
    0; ties count with their mean. `IoU`: of the region and the cells that reach half of the
    maximum. A map without mass gets 0 in each. Uniform attention gets `area` for mass and IoU,
    `touched` for pointing.
    """
    baselines = {"area": float(region.mean()), "touched": float((region > 0).mean())}
    if not heat.any():
        return {"mass": 0.0, "pointing": 0.0, "IoU": 0.0, **baselines}
    bright = heat >= heat.max() / 2
    union = np.maximum(region, bright).sum()
    return {
        "mass": float((heat * region).sum() / heat.sum()),
        "pointing": float((region[heat == heat.max()] > 0).mean()),
        "IoU": float(region[bright].sum() / union),
        **baselines,
    }


def pack_map(heat: Array) -> dict[str, Any]:
    """Pack a map for a record, as 255ths of its maximum: enough for a picture of it."""
    scaled: NDArray[np.uint8] = np.rint(255 * heat / max(float(heat.max()), 1e-30)).astype(np.uint8)
    return {"grid": list(heat.shape), "values": base64.b64encode(scaled.tobytes()).decode()}


def unpack_map(record: Mapping[str, Any]) -> Array:
    """Unpack the map (rows, columns) of a record that has one, from 0 to 1."""
    values = np.frombuffer(base64.b64decode(record["map"]["values"]), dtype=np.uint8)
    return values.reshape(record["map"]["grid"]) / 255


def measured_region(record: Mapping[str, Any], sample: Sample) -> Mask:
    """Return the pixels (height, width) that a record was measured against: of masks if there are any, else of boxes.

    `sample` is the picture's.
    """
    regions = parse_regions(sample.key, sample.annotations)
    kind = next(kind for kind in KINDS if record[kind] is not None)
    masks = [
        mask
        for n in record["regions"]
        for mask in region_masks(sample.key, regions[n], sample.media)[kind]
    ]
    found: Mask = np.logical_or.reduce(
        without_background(masks) if record["level"] == "global" else masks
    )
    return found


def _overlaps(cells: int, pixels: int) -> Array:
    """Share (cells, pixels) of each cell that each pixel fills, where both divide the same length evenly."""
    edges = (
        np.arange(cells + 1) * pixels / cells
    )  # in this order, so that edges that are whole numbers are exact
    low, high = (
        np.maximum(edges[:-1, None], np.arange(pixels)),
        np.minimum(edges[1:, None], np.arange(pixels) + 1),
    )
    return np.maximum(high - low, 0.0) * (cells / pixels)
