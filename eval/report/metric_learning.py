"""What metric learning found: methods side by side, nearest neighbours right and wrong, where heads look, leakage.

In: the records of a `metric-learning` result, and its pictures. Out: what the template shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.decode import decode, open_image
from eval.results.schema import Metric, Result
from eval.stages.metric_learning.methods import FROZEN
from eval.stages.metric_learning.scores import headline_of

from .charts import Bar, interval_chart
from .gallery import THUMBNAIL, Thumbnails, spread
from .overlays import data_uri, overlay

_LOOKED = 6  # pictures whose attention is shown


def metric_learning(
    records: list[dict[str, Any]], result: Result, pictures: Thumbnails
) -> dict[str, Any]:
    """Return what the template shows: the verdict, charts, queries with their neighbours, maps of attention."""
    head, heads = result.protocol["head"], result.model["heads"]
    headline = headline_of([metric.name.partition("/")[2] for metric in result.metrics])
    rows = [metric for metric in result.metrics if metric.name.partition("/")[2] == headline]
    query = result.data["sets"].get("query")
    asked = pictures if query is None else Thumbnails(Path(query["path"]), query["hash"])
    lines = [
        line
        for line in records
        if line["kind"] == "query" and line["method"] == head and "values" in line
    ]
    setup = headline.rpartition("/")[
        0
    ]  # without one, every query stands in every drawn gallery: the first is shown
    setting = setup or lines[0]["setting"]
    lines = [
        line for line in lines if line["seed"] == lines[0]["seed"] and line["setting"] == setting
    ]
    right = [line for line in lines if line["top"] and line["top"][0][2]]
    wrong = [line for line in lines if line["top"] and not line["top"][0][2]]
    return {
        "summary": heads["summary"],
        "chart": interval_chart(
            headline, [_bar(metric, metric.name.partition("/")[0]) for metric in rows]
        ),
        "setting": f"setup {setup}" if setup else f"drawn gallery {setting}" if setting else "",
        "groups": [
            {"title": title, "queries": [_query(line, asked, pictures) for line in _some(several)]}
            for title, several in (("the first is right", right), ("the first is wrong", wrong))
            if several
        ],
        "looked": _looked([line for line in records if line["kind"] == "attention"], pictures),
        "leakage": _leakage(result),
        "tried": heads["tried"],
    }


def _bar(metric: Metric, label: str) -> Bar:
    return Bar(label, metric.value, metric.ci95, label not in FROZEN)


def _some(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return spread([{**line, "image": line["query"]} for line in lines])


def _query(line: dict[str, Any], asked: Thumbnails, pictures: Thumbnails) -> dict[str, Any]:
    found = [
        {"picture": pictures(key), "key": key, "score": score, "right": bool(right)}
        for key, score, right in line["top"]
    ]
    return {
        "picture": asked(line["query"]),
        "key": line["query"],
        "label": line["label"],
        "found": found,
    }


def _looked(lines: Sequence[dict[str, Any]], pictures: Thumbnails) -> list[dict[str, Any]]:
    """Draw the attention of each block over pictures that are evenly spread over the data set."""
    shown = []
    for line in lines[:: max(1, len(lines) // _LOOKED)][:_LOOKED]:
        sample = pictures.sample(line["query"])
        if sample is None:
            continue
        small = Image.fromarray(decode(open_image(sample.media)))
        small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BICUBIC)
        pixels = np.asarray(small)
        maps = [
            {
                "block": block,
                "picture": data_uri(overlay(pixels, np.reshape(weights, line["grid"]))),
            }
            for block, weights in line["weights"].items()
        ]
        shown.append({"key": line["query"], "picture": pictures(line["query"]), "maps": maps})
    return shown


def _leakage(result: Result) -> str | None:
    """Draw what fresh probes read of the training classes, beside chance, and by weight of the adversary."""
    found = [metric for metric in result.metrics if metric.name.startswith("leakage/")]
    if not found:
        return None
    bars = [
        _bar(metric, metric.name.removeprefix("leakage/").replace("/", ", ")) for metric in found
    ]
    bars += [
        Bar(
            f"weight {row['lambda']:g}, linear, first fold, all steps",
            row["leakage_after_all_steps"],
            None,
            row["lambda"] > 0,
        )
        for row in result.model["heads"]["tried"]
    ]
    bars.append(Bar("chance", found[0].chance or 0.0, None, False))
    return interval_chart("Training classes that fresh probes read", bars)
