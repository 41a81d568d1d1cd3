"""Maps of attention over images, with the region that was asked for framed.

In: the records of an `align` result, and its images. Out: groups of examples for the page, each an
image as data URI with what it shows in numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageFilter

from data_pipeline.decode import Pixels, decode, open_image
from data_pipeline.regions import Mask
from data_pipeline.sample import Sample
from eval.metrics.grounding import Array, measured_region, unpack_map

from .gallery import Thumbnails, data_uri, distinct, spread

COLORS = colormaps["viridis"]
STRENGTH = 0.6  # of the colors over the image
SIDE = 240  # pixels of the longer side of an example


@dataclass(frozen=True)
class Example:
    """A map over its image as data URI; `phrase` is None for the map of the whole caption.

    `mass` is the share of attention inside the region, `area` what uniform attention would have
    there; `touched` says whether the region touches the highest cell.
    """

    image: str
    caption: str
    phrase: str | None
    mass: float
    area: float
    touched: bool


def overlays(records: Sequence[dict[str, Any]], images: Thumbnails) -> dict[str, list[Example]]:
    """Choose and draw lines of an `align` result: evenly spread ones, and the worst.

    Returns examples by the title of their group. Masks are framed and measured where the region
    has any, else boxes.
    """
    phrases: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for line in records:
        if line["box"] or line["pixel"]:
            chosen = phrases if line["level"] == "local" else captions
            chosen.append(line)
    worst = sorted(phrases, key=lambda line: _scores(line)["mass"] - _scores(line)["area"])
    groups = {
        "Phrases, evenly spread": spread(phrases),
        "Phrases with the least attention inside, beside uniform attention": distinct(worst),
        "Whole captions, evenly spread": spread(captions),
    }
    drawn: dict[str, list[Example]] = {}
    for title, lines in groups.items():
        for line in lines:
            sample = images.sample(line["image"])
            if sample is not None:
                drawn.setdefault(title, []).append(_example(line, sample))
    return drawn


def overlay(pixels: Pixels, heat: Array) -> Pixels:
    """Color an image uint8 (height, width, 3) by a map (rows, columns), from 0 to its maximum."""
    height, width = pixels.shape[:2]
    share = (heat / max(float(heat.max()), 1e-30)).astype(np.float32)
    fine = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR))
    # The image is gray, so that every color on it is the map's.
    gray = pixels.mean(axis=2, keepdims=True) / 255
    mixed = (1 - STRENGTH) * gray + STRENGTH * np.asarray(COLORS(fine))[..., :3]
    return np.rint(255 * mixed).astype(np.uint8)


def _scores(line: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = line["pixel"] or line["box"]
    return scores


def _example(line: dict[str, Any], sample: Sample) -> Example:
    image = Image.fromarray(decode(open_image(sample.media)))
    # Small images are enlarged too: the frame needs the pixels.
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    drawn = _framed(overlay(pixels, unpack_map(line)), measured_region(line, sample))
    scores = _scores(line)
    return Example(
        image=data_uri(drawn),
        caption=line["caption"],
        phrase=line["phrase"],
        mass=scores["mass"],
        area=scores["area"],
        touched=scores["pointing"] > 0,
    )


def _framed(pixels: Pixels, region: Mask) -> Pixels:
    """Draw the region's outline, white with a dark rim that stands out from bright images."""
    mask = Image.fromarray(region).convert("L")
    mask = mask.resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
    inside = np.asarray(mask) > 0
    line = np.asarray(mask.filter(ImageFilter.MaxFilter(5))) > 0
    rim = np.asarray(mask.filter(ImageFilter.MaxFilter(7))) > 0
    framed = pixels.copy()
    framed[rim & ~line] = 20
    framed[line & ~inside] = 255
    return framed
