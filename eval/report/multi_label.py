"""What multi-label few-shot recognition found: methods beside each other, labels, and the patches that labels chose.

In: a `multi-label` result with its records and pictures. Out: what its template shows.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.decode import decode, open_image
from eval.schema import Result

from .charts import Bar, interval_chart
from .gallery import Thumbnails

PICTURES = 8  # shown
SIDE = 200  # pixels of the longer side of a picture
DARK = 0.3  # of what was not chosen


@dataclass(frozen=True)
class ChosenPatches:
    """A support picture by label: data URIs in which all but the chosen patches are dark, by method."""

    key: str
    label: str
    others: tuple[str, ...]
    pictures: dict[str, str]


def multi_label(records: list[dict[str, Any]], result: Result, thumbnails: Thumbnails) -> dict[str, Any]:
    """Draw mAP of every method by number of support pictures, average precision by label, and chosen patches."""
    charts = []
    for shot in dict.fromkeys(record["shot"] for record in records):
        methods = [metric for metric in result.metrics if _is_map(metric.name, f"{shot}shot")]
        bars = [Bar(metric.name.split("/")[1], metric.value, metric.ci95, _is_ours(metric.name)) for metric in methods]
        if methods and methods[0].chance is not None:
            bars.append(Bar("guessing", methods[0].chance, None, False))
        charts.append(interval_chart(f"mAP from {shot} support picture{'s' * (shot > 1)} of each label", bars))
        prefix = f"{shot}shot/lcm/class/"
        labels = [metric for metric in result.metrics if metric.name.startswith(prefix)]
        if labels:
            bars = [Bar(metric.name.removeprefix(prefix), metric.value, metric.ci95, True) for metric in labels]
            charts.append(interval_chart(f"Average precision by label, lcm, {shot}-shot", bars))
    shown = next((record for record in records if record.get("chosen")), None)
    return {"charts": charts, "chosen": [] if shown is None else chosen_patches(shown, thumbnails)}


def chosen_patches(record: dict[str, Any], thumbnails: Thumbnails) -> list[ChosenPatches]:
    """Show support pictures of one draw, those with several labels first, with what every method chose for a label."""
    methods = list(record["chosen"])
    by_picture = record["chosen"][methods[0]]
    order = sorted(range(len(by_picture)), key=lambda row: (-len(by_picture[row]), record["support"][row]))
    found: list[ChosenPatches] = []
    for row in order:
        sample = thumbnails.sample(record["support"][row])
        if sample is None:
            continue
        picture = Image.fromarray(decode(open_image(sample.media)))
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
        for label in by_picture[row]:
            others = tuple(name for name in by_picture[row] if name != label)
            kept = {
                method: _lit(picture, record["chosen"][method][row].get(label, []), record["grid"])
                for method in methods
            }
            found.append(ChosenPatches(record["support"][row], label, others, kept))
        if len(found) >= PICTURES:
            break
    return found[:PICTURES]


def _is_map(name: str, shot: str) -> bool:
    first, method, *rest = name.split("/")
    return first == shot and rest == ["mAP"] and "-" not in method


def _is_ours(name: str) -> bool:
    return name.split("/")[1] in ("lcm", "lcm_exact", "lcm_source", "cross")


def _lit(picture: Image.Image, patches: Sequence[int], grid: Sequence[int]) -> str:
    """Darken all cells of a grid (rows, columns) laid over the picture but the given ones; a data URI."""
    rows, columns = grid
    light = np.zeros(rows * columns, dtype=np.float32)
    light[list(patches)] = 1
    cells = Image.fromarray(light.reshape(rows, columns)).resize(picture.size, Image.Resampling.NEAREST)
    factor = DARK + (1 - DARK) * np.asarray(cells)[..., None]
    content = io.BytesIO()
    Image.fromarray(np.rint(np.asarray(picture) * factor).astype(np.uint8)).save(content, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
