"""Maps over pictures: what alignment found, with what was asked for framed.

In: the records of an `align` result, and its pictures. Out: groups of examples for the page, each a
picture as data URI with what it shows in numbers.
"""

from __future__ import annotations

import base64
import io
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

from .gallery import Thumbnails, distinct, spread

COLOURS = colormaps["viridis"]
STRENGTH = 0.6  # of the colours over the picture
SIDE = 240  # pixels of the longer side of an example


@dataclass(frozen=True)
class Example:
    """A map over its picture as data URI; `phrase` is None for the map of the whole caption.

    `mass` is the share of attention inside the region, `area` what uniform attention would have
    there; `touched` says whether the region touches the highest cell.
    """

    picture: str
    caption: str
    phrase: str | None
    mass: float
    area: float
    touched: bool


def overlays(records: Sequence[dict[str, Any]], pictures: Thumbnails) -> dict[str, list[Example]]:
    """Choose lines of an `align` result and draw them: evenly spread ones, and those with the least mass inside.

    Returns examples by the title of their group. What is framed and measured are masks where the
    region has any, else boxes.
    """
    lines = [line for line in records if line["box"] or line["pixel"]]
    local = [line for line in lines if line["level"] == "local"]
    worst = sorted(local, key=lambda line: _scores(line)["mass"] - _scores(line)["area"])
    chosen = {
        "Phrases, evenly spread": spread(local),
        "Phrases with the least attention inside, beside uniform attention": distinct(worst),
        "Whole captions, evenly spread": spread(
            [line for line in lines if line["level"] == "global"]
        ),
    }
    drawn = {
        title: [
            _example(line, sample)
            for line in several
            if (sample := pictures.sample(line["image"])) is not None
        ]
        for title, several in chosen.items()
    }
    return {title: examples for title, examples in drawn.items() if examples}


def overlay(pixels: Pixels, heat: Array) -> Pixels:
    """Colour a picture uint8 (height, width, 3) by a map (rows, columns), from 0 to the map's maximum."""
    height, width = pixels.shape[:2]
    share = (heat / max(float(heat.max()), 1e-30)).astype(np.float32)
    spread = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR))
    grey = pixels.mean(axis=2, keepdims=True) / 255  # what colour there is, is the map's
    mixed = (1 - STRENGTH) * grey + STRENGTH * np.asarray(COLOURS(spread))[..., :3]
    return np.rint(255 * mixed).astype(np.uint8)


def _scores(line: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = line["pixel"] or line["box"]
    return scores


def _example(line: dict[str, Any], sample: Sample) -> Example:
    picture = Image.fromarray(decode(open_image(sample.media)))
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    drawn = _framed(overlay(pixels, unpack_map(line)), measured_region(line, sample))
    scores = _scores(line)
    return Example(
        picture=data_uri(drawn),
        caption=line["caption"],
        phrase=line["phrase"],
        mass=scores["mass"],
        area=scores["area"],
        touched=scores["pointing"] > 0,
    )


def _framed(pixels: Pixels, region: Mask) -> Pixels:
    """Draw the region's outline, white with a dark rim that stands out from bright pictures."""
    shape = (
        Image.fromarray(region).convert("L").resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
    )
    line, rim = (np.asarray(shape.filter(ImageFilter.MaxFilter(width))) > 0 for width in (5, 7))
    inside = np.asarray(shape) > 0
    framed = pixels.copy()
    framed[rim & ~line] = 20
    framed[line & ~inside] = 255
    return framed


def data_uri(pixels: Pixels) -> str:
    """Encode pixels as a JPEG in a data URI."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
