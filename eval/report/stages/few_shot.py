"""Few-shot classification: methods side by side, and episodes with support, queries and answers.

In: the records of a `few-shot` result, and its images. Out: what `few_shot.html.j2` shows; queries
have GLIML's weights of the patches over them where it ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.report.bars import Bar, BarChart
from eval.report.evaluation import Evaluation, Headline, beside_chance
from eval.report.gallery import Thumbnails, data_uri
from eval.report.labels import episodes_label, method_label, reference_label
from eval.report.overlays import overlay
from eval.results.schema import Metric

TITLE = "Few-shot classification"
RANK = 30
_EPISODES = 2  # of each form
_QUERIES = 3  # of each class
_GLIML = ("gliml", "gliml_untrained")  # the methods of this project, the first one preferred


@dataclass(frozen=True)
class Answer:
    """A query: its image, GLIML's weights over it where there are any, and what was answered."""

    image: str | None
    weights: str | None
    right: bool
    answer: str


@dataclass(frozen=True)
class ClassShown:
    """A class of an episode: its support images, and some of its queries."""

    name: str
    support: list[str | None]
    queries: list[Answer]


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return GLIML's accuracy in every form beside the best baseline.

    Without GLIML it is the best baseline beside chance.
    """
    methods = evaluation.result.protocol["methods"]
    ours = _shown_method(methods)
    headlines_of_forms = []
    for form in evaluation.result.protocol["episodes"]:
        accuracies = {}
        for method in methods:
            if method not in _GLIML:
                accuracies[method] = evaluation.metrics[f"{form}/{method}/accuracy"]
        best = max(accuracies, key=lambda method: accuracies[method].value, default=None)
        if ours not in _GLIML:
            headlines_of_forms += beside_chance(accuracies[best] if best else None)
            continue
        metric = _open_world(evaluation.metrics[f"{form}/{ours}/accuracy"])
        if best is None:
            headlines_of_forms += beside_chance(metric)
            continue
        difference = evaluation.metrics.get(f"{form}/{ours}/above_{best}")
        headlines_of_forms.append(
            Headline(
                metric,
                reference_label(best),
                accuracies[best].value,
                None if difference is None else _open_world(difference),
            )
        )
    return headlines_of_forms


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Make tables and charts of the methods of every form, and show its first episodes."""
    protocol = evaluation.result.protocol
    shown = _shown_method(protocol["methods"])
    grid = tuple(protocol["patches"])
    forms = []
    for form in protocol["episodes"]:
        rows = [_row(form, method, evaluation) for method in protocol["methods"]]
        bars = []
        for row in rows:
            ours = row["method"] in _GLIML
            bars.append(Bar(row["label"], row["value"], row["interval"], ours, name=row["metric"]))
        lines = []
        for line in evaluation.records:
            if line["query"].startswith(f"{form}/") and "query_pictures" in line:
                lines.append(line)
        episodes = []
        for line in lines[:_EPISODES]:
            episodes.append(_episode(line, shown, grid, evaluation.images))
        title = episodes_label(form)
        chart = BarChart(f"{title} accuracy", sorted(bars, key=lambda bar: -bar.value))
        forms.append({"title": title, "chart": chart, "rows": rows, "episodes": episodes})
    return {"forms": forms, "shown_by": method_label(shown)}


def _shown_method(methods: Sequence[str]) -> str:
    for name in _GLIML:
        if name in methods:
            return name
    return methods[0]


def _open_world(metric: Metric) -> Metric:
    """Return a metric with the interval that allows for other images, if it has one."""
    return metric.model_copy(update={"ci95": metric.intervals.get("open_world", metric.ci95)})


def _row(form: str, method: str, evaluation: Evaluation) -> dict[str, Any]:
    result = evaluation.result
    name = f"{form}/{method}/accuracy"
    accuracy = evaluation.metrics[name]
    above = evaluation.metrics.get(f"{form}/{method}/above_proto")
    heads = result.model.get("heads", {}).get(f"{form}/{method}", {})
    speed = result.timing.get(f"episodes_per_s/{form}/{method}")
    return {
        "method": method,
        "metric": name,
        "label": method_label(method),
        "value": accuracy.value,
        "interval": _open_world(accuracy).ci95,
        "closed": _half(accuracy.intervals.get("closed_world")),
        "open": _half(accuracy.intervals.get("open_world")),
        "above": "" if above is None else f"{above.value:+.1f} {_half(_open_world(above).ci95)}",
        "parameters": f"{heads.get('parameters', 0):,}",
        "flops": f"{heads.get('flops_per_episode', 0) / 1e6:,.2f}",
        "speed": "" if speed is None else f"{speed:,.0f}",
    }


def _half(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"± {(interval[1] - interval[0]) / 2:.1f}"


def _episode(
    line: dict[str, Any], method: str, grid: tuple[int, ...], images: Thumbnails
) -> list[ClassShown]:
    way, shot = line["way"], line["shot"]
    queries = len(line["query_pictures"]) // way
    # Queries stand class after class, and so do predictions and support images.
    answers = np.array(line["predicted"][method]).reshape(way, queries)
    shown = []
    for number, name in enumerate(line["classes"]):
        answered = []
        for place in range(min(queries, _QUERIES)):
            query = number * queries + place
            key, answer = line["query_pictures"][query], int(answers[number, place])
            heat = None
            if "weights" in line:
                # Weights of the support images come before those of the queries.
                heat = _weights(key, line["weights"][way * shot + query], grid, images)
            right = answer == number
            answered.append(Answer(images(key), heat, right, line["classes"][answer]))
        support = line["support_pictures"][number * shot : (number + 1) * shot]
        shown.append(ClassShown(name, [images(key) for key in support], answered))
    return shown


def _weights(
    key: str, weights: list[float], grid: tuple[int, ...], images: Thumbnails
) -> str | None:
    pixels = images.pixels(key)
    if pixels is None:
        return None
    return data_uri(overlay(pixels, np.array(weights).reshape(grid)))
