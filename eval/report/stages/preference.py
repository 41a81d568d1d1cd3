"""True against changed captions: which one each score prefers, with examples of every change."""

from __future__ import annotations

from typing import Any

from eval.report.bars import chance_chart
from eval.report.evaluation import Evaluation, Headline, beside_chance

TITLE = "True or false captions"
RANK = 95
_EXAMPLES = 8


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return the accuracy of the matching head, else of the contrastive score, beside chance."""
    matching = evaluation.metrics.get("matching/accuracy")
    return beside_chance(matching or evaluation.metrics.get("contrastive/accuracy"))


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Draw all accuracies, and choose examples of every kind of change, evenly spread."""
    kinds = sorted({line["kind"] for line in evaluation.records})
    examples = []
    for kind in kinds:
        lines = [line for line in evaluation.records if line["kind"] == kind]
        count = min(-(-_EXAMPLES // len(kinds)), len(lines))
        for place in range(count):
            examples.append(_example(lines[place * len(lines) // count], evaluation))
    return {"chart": chance_chart(evaluation.result.metrics), "examples": examples}


def _example(line: dict[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    true, false = line["matching"]
    return {
        "image": evaluation.images(line["image"]),
        "kind": line["kind"],
        "true": line["true"],
        "false": line["false"],
        "right": true > false,
    }
