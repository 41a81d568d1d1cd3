"""Multi-label few-shot: methods and labels side by side, and the patches that labels chose.

In: a `multi-label` result with its records and images. Out: what `multi_label.html.j2` shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.decode import Pixels
from eval.report.bars import Bar, BarChart
from eval.report.evaluation import Evaluation, Headline, beside_chance
from eval.report.gallery import Thumbnails, data_uri
from eval.report.labels import method_label, reference_label
from eval.results.schema import Metric, Result
from eval.stages.multi_label.methods import OWN
from eval.stages.multi_label.summary import differences, interval, means

TITLE = "Several labels from few images"
RANK = 80
IMAGES = 8  # shown
SIDE = 200  # pixels of the longer side of an image
DARK = 0.3  # brightness of what was not chosen


@dataclass(frozen=True)
class ChosenPatches:
    """A support image by label: data URIs in which all but the chosen patches are dark."""

    key: str
    label: str
    others: tuple[str, ...]
    images: dict[str, str]
    """By method."""


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return the best form of the method for each number of images, beside the best baseline."""
    headlines_of_shots = []
    for shot in evaluation.result.protocol["shot"]:
        measured = means(evaluation.result, shot)
        ours = _best(measured, ours=True)
        baseline = _best(measured, ours=False)
        if ours is None or baseline is None:
            best = ours or baseline
            headlines_of_shots += beside_chance(None if best is None else measured[best])
            continue
        difference = differences(evaluation.result, shot).get((ours, baseline))
        value = measured[baseline].value
        headlines_of_shots.append(
            Headline(measured[ours], reference_label(baseline), value, difference)
        )
    return headlines_of_shots


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Lay out methods and labels by number of support images, and draw chosen patches."""
    shots = [_shot(evaluation.result, shot) for shot in evaluation.result.protocol["shot"]]
    chosen: list[ChosenPatches] = []
    for record in evaluation.records:
        if record.get("chosen"):
            chosen = chosen_patches(record, evaluation.images)
            break
    return {"shots": shots, "chosen": chosen}


def _best(measured: dict[str, Metric], *, ours: bool) -> str | None:
    values = {}
    for name, metric in measured.items():
        if (name in OWN) == ours:
            values[name] = metric.value
    return max(values, key=lambda name: values[name], default=None)


def _shot(result: Result, shot: int) -> dict[str, Any]:
    """Return a chart and tables: the methods, their differences, and average precision by label."""
    measured, above = means(result, shot), differences(result, shot)
    bars = []
    for name, metric in measured.items():
        label = method_label(name)
        ours = name in OWN
        bars.append(Bar(label, metric.value, metric.ci95, ours, metric.chance, name=metric.name))
    bars.sort(key=lambda bar: -bar.value)
    images = "1 support image" if shot == 1 else f"{shot} support images"
    values = {metric.name: metric.value for metric in result.metrics}
    by_label = []
    for label in result.data["classes"]:
        row = [values.get(f"{shot}shot/{name}/class/{label}") for name in measured]
        if any(value is not None for value in row):
            by_label.append((label, row))
    differences_by_method: dict[str, list[dict[str, str]]] = {}
    for (method, other), metric in above.items():
        differences_by_method.setdefault(method_label(method), []).append(
            _row(other, metric, "+.1f")
        )
    others = dict.fromkeys(other for _, other in above)
    return {
        "shot": shot,
        "chart": BarChart(f"mAP from {images} of each label", bars, "chance"),
        "methods": [_row(name, metric, ".1f") for name, metric in measured.items()],
        "others": [method_label(other) for other in others],
        "above": differences_by_method,
        "by_label": by_label,
    }


def _row(name: str, metric: Metric, form: str) -> dict[str, str]:
    return {
        "label": method_label(name),
        "value": f"{metric.value:{form}}",
        "draws": interval(metric.ci95, form),
        "images": interval(metric.intervals.get("pictures"), form),
    }


def chosen_patches(record: dict[str, Any], images: Thumbnails) -> list[ChosenPatches]:
    """Show what every method chose for a label in support images of one draw.

    Images with several labels come first: there the choice matters most.
    """
    methods = list(record["chosen"])
    by_image = record["chosen"][methods[0]]
    order = sorted(range(len(by_image)), key=lambda row: (-len(by_image[row]), _key(record, row)))
    shown: list[ChosenPatches] = []
    for row in order:
        pixels = images.pixels(_key(record, row), SIDE)
        if pixels is None:
            continue
        for label in by_image[row]:
            others = tuple(name for name in by_image[row] if name != label)
            lit = {}
            for method in methods:
                patches = record["chosen"][method][row].get(label, [])
                lit[method] = _lit(pixels, patches, record["grid"])
            shown.append(ChosenPatches(_key(record, row), label, others, lit))
        if len(shown) >= IMAGES:
            break
    return shown[:IMAGES]


def _key(record: dict[str, Any], row: int) -> str:
    return str(record["support"][row])


def _lit(pixels: Pixels, patches: Sequence[int], grid: Sequence[int]) -> str:
    """Darken all cells of a grid (rows, columns) over the image but the given ones."""
    rows, columns = grid
    light = np.zeros(rows * columns, dtype=np.float32)
    light[list(patches)] = 1
    height, width = pixels.shape[:2]
    cells = Image.fromarray(light.reshape(rows, columns))
    cells = cells.resize((width, height), Image.Resampling.NEAREST)
    brightness = DARK + (1 - DARK) * np.asarray(cells)[..., None]
    return data_uri(np.rint(pixels * brightness).astype(np.uint8))
