"""Maps over pictures: what alignment found, with what was asked for framed.

In: the folder of an `align` result, whose data set must still be there. Out: groups of examples for the page, each a
picture as data URI with what it shows in numbers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageFilter

from data_pipeline.decode import Pixels, decode, open_image
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest
from data_pipeline.regions import Mask
from data_pipeline.sample import Sample
from data_pipeline.store import Store
from eval.grounding import Array
from eval.schema import read_records, read_result
from eval.stages.align import map_of_record, region_of_record

COLOURS = colormaps["viridis"]
STRENGTH = 0.6  # of the colours over the picture
SIDE = 240  # pixels of the longer side of an example
PER_GROUP = 6


@dataclass(frozen=True)
class Example:
    """A map over its picture as data URI; `phrase` is None for the map of the whole caption.

    `mass` is the share of attention inside the region, `area` what uniform attention would have there.
    """

    picture: str
    caption: str
    phrase: str | None
    mass: float
    area: float
    touched: bool


@dataclass(frozen=True)
class Overlays:
    """Examples by the title of their group; `problem` says why there are none."""

    groups: dict[str, list[Example]]
    problem: str | None = None


def overlays(folder: Path | str) -> Overlays:
    """Choose examples of an `align` result and draw them: evenly spread ones, and those with the least mass inside.

    What is framed and measured are masks where the region has any, else boxes.
    """
    data = read_result(folder).data
    lines = [line for line in read_records(folder) if line["box"] or line["pixel"]]
    local = [line for line in lines if line["level"] == "local"]
    chosen = {
        "Phrases, evenly spread": _spread(local),
        "Phrases with the least attention inside, beside uniform attention": _worst(local),
        "Whole captions, evenly spread": _spread(line for line in lines if line["level"] == "global"),
    }
    try:
        manifest = Manifest.load(data["path"])
        if f"sha256:{manifest.digest}" != data.get("hash"):
            raise DataError(f"{data['path']} is not the data set that was evaluated")
        with closing(Store([manifest])) as store:
            rows = {store.key(0, row): row for row in range(manifest.samples)}
            groups = {
                title: [_example(line, store.read(0, rows[line["image"]])) for line in several]
                for title, several in chosen.items()
                if several
            }
    except DataError as error:
        return Overlays({}, str(error))
    return Overlays(groups)


def overlay(pixels: Pixels, heat: Array) -> Pixels:
    """Colour a picture uint8 (height, width, 3) by a map (rows, columns), from 0 to the map's maximum."""
    height, width = pixels.shape[:2]
    share = (heat / max(float(heat.max()), 1e-30)).astype(np.float32)
    spread = np.asarray(Image.fromarray(share).resize((width, height), Image.Resampling.BILINEAR))
    grey = pixels.mean(axis=2, keepdims=True) / 255  # what colour there is, is the map's
    mixed = (1 - STRENGTH) * grey + STRENGTH * np.asarray(COLOURS(spread))[..., :3]
    return np.rint(255 * mixed).astype(np.uint8)


def _spread(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose lines of different pictures, evenly spread, so that nothing is picked by its looks."""
    of_picture = {line["image"]: line for line in sorted(lines, key=lambda line: str(line["query"]))}
    several = list(of_picture.values())
    return [several[i * len(several) // PER_GROUP] for i in range(PER_GROUP)] if len(several) > PER_GROUP else several


def _worst(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose the worst line of each picture, and of those the worst."""
    of_picture: dict[str, dict[str, Any]] = {}
    for line in sorted(lines, key=lambda line: _scores(line)["mass"] - _scores(line)["area"]):
        of_picture.setdefault(line["image"], line)
    return list(of_picture.values())[:PER_GROUP]


def _scores(line: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = line["pixel"] or line["box"]
    return scores


def _example(line: dict[str, Any], sample: Sample) -> Example:
    picture = Image.fromarray(decode(open_image(sample.media)))
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
    drawn = _framed(overlay(pixels, map_of_record(line)), region_of_record(line, sample))
    scores = _scores(line)
    return Example(
        picture=_data_uri(drawn),
        caption=line["caption"],
        phrase=line["phrase"],
        mass=scores["mass"],
        area=scores["area"],
        touched=scores["pointing"] > 0,
    )


def _framed(pixels: Pixels, region: Mask) -> Pixels:
    """Draw the region's outline, white with a dark rim that stands out from bright pictures."""
    shape = Image.fromarray(region).convert("L").resize(pixels.shape[1::-1], Image.Resampling.NEAREST)
    line, rim = (np.asarray(shape.filter(ImageFilter.MaxFilter(width))) > 0 for width in (5, 7))
    inside = np.asarray(shape) > 0
    framed = pixels.copy()
    framed[rim & ~line] = 20
    framed[line & ~inside] = 255
    return framed


def _data_uri(pixels: Pixels) -> str:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
