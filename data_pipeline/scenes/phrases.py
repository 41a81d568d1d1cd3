"""Where the objects that captions name are seen: phrases with their exact boxes and masks.

In: a scene, the statements of its captions, and its silhouettes. Out: regions in the form of a
sample's JSON member. A phrase is part of a caption word for word: an object's color and shape in
any caption that tells both, a counted shape in the one that counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.regions import encode_mask
from data_pipeline.scenes.captions import counted
from data_pipeline.scenes.draw import Silhouette, mask_of


def regions_of(
    scene: dict[str, Any], statements: list[dict[str, Any]], silhouettes: list[Silhouette]
) -> list[dict[str, Any]]:
    """Return the regions of an image's captions."""
    objects = scene["objects"]
    masks = [mask_of(shown, scene["size"]) for shown in silhouettes]
    boxes, runs = [_box(mask) for mask in masks], [encode_mask(mask) for mask in masks]
    regions: list[dict[str, Any]] = []
    for item, box, rle in zip(objects, boxes, runs, strict=True):
        phrase = f"{item['colour']} {item['shape']}"
        regions.append({"phrase": phrase, "boxes": [box], "masks": [rle]})
    # A counted phrase such as "two stars" stands for several objects of one caption.
    for number, statement in enumerate(statements):
        if statement["form"] != "counted":
            continue
        for shape, phrase in counted([item["shape"] for item in objects]).items():
            named = [k for k, item in enumerate(objects) if item["shape"] == shape]
            region = {"phrase": phrase, "caption": number}
            region["boxes"] = [boxes[k] for k in named]
            region["masks"] = [runs[k] for k in named]
            regions.append(region)
    return regions


def _box(mask: np.ndarray) -> list[int]:
    """Return the pixels x1, y1, x2, y2 that a mask spans, x2 and y2 exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
