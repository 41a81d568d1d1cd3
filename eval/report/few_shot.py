"""What few-shot recognition did: methods side by side, and episodes with their support, their queries and the answers.

In: the records of a `few-shot` result, and its pictures. Out: what the template shows; queries have
GLIML's weights of the patches over them where it ran.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.decode import decode, open_image
from eval.results.schema import Metric, Result

from .charts import Bar, interval_chart
from .gallery import THUMBNAIL, Thumbnails
from .overlays import data_uri, overlay

NAMES = {
    "zero_shot": "class names alone (zero-shot)",
    "nearest_neighbour": "nearest neighbour",
    "proto": "ProtoNet",
    "simpleshot": "SimpleShot",
    "tip_adapter": "Tip-Adapter",
    "linear_probe": "linear probe from the names",
    "cpea": "CPEA",
    "gliml_untrained": "GLIML without training",
    "gliml": "GLIML",
}
_EPISODES = 2  # of each form
_QUERIES = 3  # of each class
_PREFERRED = ("gliml", "gliml_untrained")  # whose answers are shown


@dataclass(frozen=True)
class Answer:
    """A query: its picture, GLIML's weights over it where there are any, and what was answered."""

    picture: str | None
    weights: str | None
    right: bool
    answer: str


@dataclass(frozen=True)
class ClassShown:
    """A class of an episode: its support pictures, and some of its queries."""

    name: str
    support: list[str | None]
    queries: list[Answer]


def few_shot(
    records: list[dict[str, Any]], result: Result, thumbnails: Thumbnails
) -> dict[str, Any]:
    """Make tables and charts of the methods of every form, and show its first episodes."""
    methods = result.protocol["methods"]
    shown_by = next((name for name in _PREFERRED if name in methods), methods[0])
    grid = tuple(result.protocol["patches"])
    forms = []
    for form in result.protocol["episodes"]:
        lines = [
            line
            for line in records
            if line["query"].startswith(f"{form}/") and "query_pictures" in line
        ]
        rows = [_row(form, name, result) for name in methods]
        bars = [
            Bar(row["name"], row["value"], row["widest"], row["method"] in _PREFERRED)
            for row in rows
        ]
        forms.append(
            {
                "title": form.replace("way-", "-way ").replace("shot", "-shot"),
                "chart": interval_chart("Accuracy", bars),
                "rows": rows,
                "episodes": [
                    _episode(line, shown_by, grid, thumbnails) for line in lines[:_EPISODES]
                ],
            }
        )
    return {"forms": forms, "shown_by": NAMES[shown_by]}


def _row(form: str, method: str, result: Result) -> dict[str, Any]:
    found = {metric.name: metric for metric in result.metrics}
    accuracy = found[f"{form}/{method}/accuracy"]
    widest = accuracy.intervals.get("open_world", accuracy.ci95)
    heads = result.model.get("heads", {}).get(f"{form}/{method}", {})
    speed = result.timing.get(f"episodes_per_s/{form}/{method}")
    return {
        "method": method,
        "name": NAMES[method],
        "value": accuracy.value,
        "widest": widest,
        "closed": _half(accuracy.intervals.get("closed_world")),
        "open": _half(accuracy.intervals.get("open_world")),
        "above": _above(found.get(f"{form}/{method}/above_proto")),
        "parameters": f"{heads.get('parameters', 0):,}",
        "flops": f"{heads.get('flops_per_episode', 0) / 1e6:,.2f}",
        "speed": "" if speed is None else f"{speed:,.0f}",
    }


def _above(metric: Metric | None) -> str:
    if metric is None:
        return ""
    return f"{metric.value:+.1f} {_half(metric.intervals.get('open_world', metric.ci95))}"


def _half(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"± {(interval[1] - interval[0]) / 2:.1f}"


def _episode(
    line: dict[str, Any], method: str, grid: tuple[int, ...], thumbnails: Thumbnails
) -> dict[str, list[ClassShown]]:
    way, queries = line["way"], len(line["query_pictures"]) // line["way"]
    answers = np.array(line["predicted"][method]).reshape(way, queries)
    shown = []
    for number, name in enumerate(line["classes"]):
        found = []
        for place in range(number * queries, number * queries + min(queries, _QUERIES)):
            key, answer = (
                line["query_pictures"][place],
                int(answers[number, place - number * queries]),
            )
            heat = None
            if "weights" in line:
                heat = _weights(key, line["weights"][way * line["shot"] + place], grid, thumbnails)
            found.append(Answer(thumbnails(key), heat, answer == number, line["classes"][answer]))
        support = line["support_pictures"][number * line["shot"] : (number + 1) * line["shot"]]
        shown.append(ClassShown(name, [thumbnails(key) for key in support], found))
    return {"classes": shown}


def _weights(
    key: str, weights: list[float], grid: tuple[int, ...], thumbnails: Thumbnails
) -> str | None:
    sample = thumbnails.sample(key)
    if sample is None:
        return None
    picture = Image.fromarray(decode(open_image(sample.media)))
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
    return data_uri(overlay(np.asarray(picture), np.array(weights).reshape(grid)))
