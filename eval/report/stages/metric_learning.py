"""Metric learning: heads beside the frozen model, nearest neighbors, where heads look, leakage.

In: the records of a `metric-learning` result, and its images. Out: what
`metric_learning.html.j2` shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.report.bars import Bar, BarChart
from eval.report.evaluation import Evaluation, Headline
from eval.report.gallery import Thumbnails, data_uri, spread
from eval.report.labels import method_label, metric_label, reference_label
from eval.report.overlays import overlay

TITLE = "Metric learning"
RANK = 50
_FROZEN = "frozen_"  # how names of descriptors that need no training begin
_MAPS = 4  # images whose attention is shown
_OPEN = 2  # queries of a group that are shown at once


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return the trained head beside the best frozen descriptor."""
    head, compared_by = evaluation.result.protocol["head"], _compared_by(evaluation)
    metric = evaluation.metrics.get(f"{head}/{compared_by}")
    frozen = {}
    for name, value in evaluation.metrics.items():
        method, _, quantity = name.partition("/")
        if method.startswith(_FROZEN) and quantity == compared_by:
            frozen[method] = value.value
    if metric is None or not frozen:
        return []
    best = max(frozen, key=lambda method: frozen[method])
    difference = evaluation.metrics.get(f"{head}/above/{best}/{compared_by}")
    return [Headline(metric, reference_label(best), frozen[best], difference)]


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Return charts, queries with their neighbors, and maps of attention."""
    result, images = evaluation.result, evaluation.images
    compared_by = _compared_by(evaluation)
    bars = []
    for metric in result.metrics:
        method, _, quantity = metric.name.partition("/")
        if quantity == compared_by:
            ours = not method.startswith(_FROZEN)
            label = method_label(method)
            bars.append(Bar(label, metric.value, metric.ci95, ours, name=metric.name))
    query_set = result.data["sets"].get("query")
    query_images = images
    if query_set is not None:
        query_images = Thumbnails(Path(query_set["path"]), query_set["hash"])
    setting, lines = _shown_lines(evaluation, compared_by)
    right: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    for line in lines:
        if line["top"]:
            group = right if line["top"][0][2] else wrong
            group.append(line)
    groups = []
    for title, group in (
        ("The nearest neighbor is right", right),
        ("The nearest neighbor is wrong", wrong),
    ):
        queries = [_query(line, query_images, images) for line in _spread(group)]
        if queries:
            groups.append({"title": title, "first": queries[:_OPEN], "more": queries[_OPEN:]})
    attention = [line for line in evaluation.records if line["kind"] == "attention"]
    return {
        "chart": BarChart(metric_label(compared_by), bars),
        "setting": setting,
        "groups": groups,
        "maps": _maps(attention, images),
        "leakage": _leakage(evaluation),
        "tried": result.model["heads"]["tried"],
    }


def _compared_by(evaluation: Evaluation) -> str:
    """Return the metric that methods are compared by: differences are named after it."""
    head = evaluation.result.protocol["head"]
    for name in evaluation.metrics:
        if name.startswith(f"{head}/above/"):
            return name.removeprefix(f"{head}/above/").partition("/")[2]
    return "recall@1"


def _shown_lines(evaluation: Evaluation, compared_by: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the queries of the head's first seed in one setting, and the setting in words."""
    head = evaluation.result.protocol["head"]
    lines = []
    for line in evaluation.records:
        if line["kind"] == "query" and line["method"] == head and "values" in line:
            lines.append(line)
    # Without a setup, every query is in every drawn gallery: the first one is shown.
    setup = compared_by.rpartition("/")[0]
    setting = setup or lines[0]["setting"]
    shown = []
    for line in lines:
        if line["seed"] == lines[0]["seed"] and line["setting"] == setting:
            shown.append(line)
    if setup:
        return f"setup {setup}", shown
    return (f"drawn gallery {setting}" if setting else ""), shown


def _spread(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return spread([{**line, "image": line["query"]} for line in lines])


def _query(line: dict[str, Any], query_images: Thumbnails, images: Thumbnails) -> dict[str, Any]:
    neighbors = []
    for key, _, right in line["top"]:
        neighbors.append({"image": images(key), "key": key, "right": bool(right)})
    return {
        "image": query_images(line["query"]),
        "key": line["query"],
        "label": line["label"],
        "neighbors": neighbors,
    }


def _maps(lines: Sequence[dict[str, Any]], images: Thumbnails) -> list[dict[str, Any]]:
    """Draw the attention of each block over images that are evenly spread over the data set."""
    shown = []
    for line in lines[:: max(1, len(lines) // _MAPS)][:_MAPS]:
        pixels = images.pixels(line["query"])
        if pixels is None:
            continue
        blocks = []
        for block, weights in line["weights"].items():
            drawn = data_uri(overlay(pixels, np.reshape(weights, line["grid"])))
            blocks.append({"block": block, "image": drawn})
        shown.append({"key": line["query"], "image": images(line["query"]), "blocks": blocks})
    return shown


def _leakage(evaluation: Evaluation) -> BarChart | None:
    """Draw what fresh probes read of the training classes, beside chance and by weight."""
    bars = []
    chance = None
    for metric in evaluation.result.metrics:
        parts = metric.name.split("/")
        if parts[0] == "leakage":
            chance = metric.chance
            label = f"{method_label(parts[1])}, {parts[2].replace('mlp', 'MLP')} probe"
            bars.append(Bar(label, metric.value, metric.ci95, reference=chance, name=metric.name))
    if not bars:
        return None
    for row in evaluation.result.model["heads"]["tried"]:
        label = f"Adversary weight {row['lambda']:g}, linear probe, first fold, all steps"
        value, ours = row["leakage_after_all_steps"], row["lambda"] > 0
        bars.append(Bar(label, value, None, ours, reference=chance))
    return BarChart("Training classes that a new classifier reads", bars, "chance")
