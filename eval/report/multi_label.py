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
from eval.results.schema import Metric, Result
from eval.stages.multi_label.methods import OWN
from eval.stages.multi_label.summary import differences, interval, means

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


def multi_label(
    records: list[dict[str, Any]], result: Result, thumbnails: Thumbnails
) -> dict[str, Any]:
    """Lay out methods, differences and labels by number of support pictures, and draw patches that labels chose."""
    shown = next((record for record in records if record.get("chosen")), None)
    shots = [_shot(result, shot) for shot in result.protocol["shot"]]
    return {"shots": shots, "chosen": [] if shown is None else chosen_patches(shown, thumbnails)}


def _shot(result: Result, shot: int) -> dict[str, Any]:
    """Return a chart and a table of the methods, their differences, and average precision (labels x methods)."""
    found, above = means(result, shot), differences(result, shot)
    bars = [Bar(name, metric.value, metric.ci95, name in OWN) for name, metric in found.items()]
    chance = next(iter(found.values())).chance
    if chance is not None:
        bars.append(Bar("guessing", chance, None, False))
    title = f"mAP from {shot} support picture{'s' * (shot > 1)} of each label"
    values = {metric.name: metric.value for metric in result.metrics}
    by_label = [
        (label, [values.get(f"{shot}shot/{name}/class/{label}") for name in found])
        for label in result.data["classes"]
    ]
    return {
        "shot": shot,
        "chart": interval_chart(title, bars),
        "methods": [_row(name, metric, ".1f") for name, metric in found.items()],
        "others": list(dict.fromkeys(other for _, other in above)),
        "above": {
            own: [
                _row(other, metric, "+.1f")
                for (first, other), metric in above.items()
                if first == own
            ]
            for own in dict.fromkeys(own for own, _ in above)
        },
        "by_label": [
            (label, row) for label, row in by_label if any(value is not None for value in row)
        ],
    }


def _row(name: str, metric: Metric, form: str) -> dict[str, str]:
    return {
        "name": name,
        "value": f"{metric.value:{form}}",
        "draws": interval(metric.ci95, form),
        "pictures": interval(metric.intervals.get("pictures"), form),
    }


def chosen_patches(record: dict[str, Any], thumbnails: Thumbnails) -> list[ChosenPatches]:
    """Show support pictures of one draw, those with several labels first, with what every method chose for a label."""
    methods = list(record["chosen"])
    by_picture = record["chosen"][methods[0]]
    order = sorted(
        range(len(by_picture)), key=lambda row: (-len(by_picture[row]), record["support"][row])
    )
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


def _lit(picture: Image.Image, patches: Sequence[int], grid: Sequence[int]) -> str:
    """Darken all cells of a grid (rows, columns) laid over the picture but the given ones; a data URI."""
    rows, columns = grid
    light = np.zeros(rows * columns, dtype=np.float32)
    light[list(patches)] = 1
    cells = Image.fromarray(light.reshape(rows, columns)).resize(
        picture.size, Image.Resampling.NEAREST
    )
    factor = DARK + (1 - DARK) * np.asarray(cells)[..., None]
    content = io.BytesIO()
    Image.fromarray(np.rint(np.asarray(picture) * factor).astype(np.uint8)).save(
        content, "JPEG", quality=85
    )
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
