"""Grounding scores: compare an attention map on a grid of patches with a region of the image.

In: a map, and masks or boxes. Out: the share of the map inside the region, whether its highest cell
touches the region, and the IoU of its bright part. A region becomes the covered share of each cell,
by area, so that no area is lost or added, as an interpolated mask would do. The image is resized to
the grid without a crop, as it is for the model.
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

BACKGROUND = 0.9  # share of the image's area
KINDS = ("pixel", "box")
Array = NDArray[np.float64]


def region_masks(key: str, region: Region, media: bytes) -> dict[str, list[Mask]]:
    """Return the masks (height, width) of a region, by kind, in the size of an encoded image.

    Raises DataError, which names the sample, for masks of another size than the image's.
    """
    image = open_image(media)
    size = image.height, image.width
    masks = [decode_mask(mask) for mask in region.masks]
    for mask in masks:
        if mask.shape != size:
            sizes = " and ".join(f"{width} x {height}" for height, width in (mask.shape, size))
            raise DataError(
                f"sample {key}: the mask of {region.phrase!r} and the image differ in size: {sizes}"
            )
    return {"pixel": masks, "box": [box_mask(box, size) for box in region.boxes]}


def box_mask(box: Box, size: tuple[int, int]) -> Mask:
    """Return the pixels (height, width) that a box x1, y1, x2, y2 touches.

    There are none if it has no area or lies outside.
    """
    (height, width), (x1, y1, x2, y2) = size, box
    mask = np.zeros(size, dtype=bool)
    if x1 < x2 and y1 < y2:
        left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
        # At least 0, because a negative end of a slice would count from the other side.
        right, bottom = max(0, min(width, math.ceil(x2))), max(0, min(height, math.ceil(y2)))
        mask[top:bottom, left:right] = True
    return mask


def is_background(mask: Mask) -> bool:
    """Whether the mask's bounding box covers more than nine tenths of the image."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return False
    return bool((np.ptp(rows) + 1) * (np.ptp(columns) + 1) > BACKGROUND * mask.size)


def without_background(masks: Sequence[Mask]) -> list[Mask]:
    """Return the masks that are not background."""
    return [mask for mask in masks if not is_background(mask)]


def pool_mask(mask: Mask, grid: tuple[int, ...]) -> Array:
    """Return the share of each cell (rows, columns) that a mask (height, width) covers."""
    rows, columns = _overlaps(grid[0], mask.shape[0]), _overlaps(grid[1], mask.shape[1])
    # Matrix products add rounding errors of up to a few ulps.
    return np.clip(rows @ mask @ columns.T, 0.0, 1.0)


def grounding_scores(heat: Array, region: Array) -> dict[str, float]:
    """Compare a non-negative map with a region's covered shares, both (rows, columns).

    All scores are in 0..1. `mass`: share of the map inside the region. `pointing`: 1 if the highest
    cell touches the region, else 0; ties count with their mean. `IoU`: of the region and the cells
    that reach half of the maximum. A map of zeros scores 0. Uniform attention scores `area` for
    mass and IoU, and `touched` for pointing.
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
    """Pack a map for a record as 255ths of its maximum, which is enough to draw it."""
    scaled: NDArray[np.uint8] = np.rint(255 * heat / max(float(heat.max()), 1e-30)).astype(np.uint8)
    return {"grid": list(heat.shape), "values": base64.b64encode(scaled.tobytes()).decode()}


def unpack_map(record: Mapping[str, Any]) -> Array:
    """Unpack the map (rows, columns) of a record, in 0..1."""
    values = np.frombuffer(base64.b64decode(record["map"]["values"]), dtype=np.uint8)
    return values.reshape(record["map"]["grid"]) / 255


def measured_region(record: Mapping[str, Any], sample: Sample) -> Mask:
    """Return the pixels (height, width) of the region of a record: of masks, or else of boxes.

    `sample` is the sample of the record's image.
    """
    regions = parse_regions(sample.key, sample.annotations)
    kind = next(kind for kind in KINDS if record[kind] is not None)
    masks = []
    for number in record["regions"]:
        masks += region_masks(sample.key, regions[number], sample.media)[kind]
    if record["level"] == "global":  # as in the measurement of the whole caption
        masks = without_background(masks)
    union: Mask = np.logical_or.reduce(masks)
    return union


def _overlaps(cells: int, pixels: int) -> Array:
    """Return the share (cells, pixels) of each cell that each pixel fills along one side."""
    # Multiplied before dividing, so that edges that are whole numbers are exact.
    edges = np.arange(cells + 1) * pixels / cells
    low = np.maximum(edges[:-1, None], np.arange(pixels))
    high = np.minimum(edges[1:, None], np.arange(pixels) + 1)
    return np.maximum(high - low, 0.0) * (cells / pixels)
