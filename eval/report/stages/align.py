"""Alignment of words and regions: maps of attention over images, with the regions framed."""

from __future__ import annotations

from typing import Any

from eval.report.bars import chance_chart
from eval.report.evaluation import Evaluation, Headline, beside_chance
from eval.report.overlays import overlays

TITLE = "Alignment of words and regions"
RANK = 90
_UNIFORM = "uniform attention"


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return the pointing accuracy of phrases beside uniform attention: in masks, else in boxes."""
    for name in ("local/pixel/pointing", "local/box/pointing", "global/box/pointing"):
        if name in evaluation.metrics:
            return beside_chance(evaluation.metrics[name], _UNIFORM)
    return []


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Draw what was measured beside uniform attention, and choose maps to show."""
    # Gains over uniform attention say the same as the marks on the bars.
    metrics = [metric for metric in evaluation.result.metrics if metric.unit == "percent"]
    phrases = [metric for metric in metrics if metric.name.startswith("local/")]
    return {
        "chart": chance_chart(phrases or metrics, _UNIFORM),
        "groups": overlays(evaluation.records, evaluation.images),
    }
