"""Zero-shot classification: accuracy beside chance, and images with the labels that were chosen."""

from __future__ import annotations

from typing import Any

from eval.report.bars import chance_chart
from eval.report.evaluation import Evaluation, Headline, beside_chance
from eval.report.gallery import spread

TITLE = "Zero-shot classification"
RANK = 40
_METRICS = ("top1", "top5", "mean_per_class")


def headlines(evaluation: Evaluation) -> list[Headline]:
    """Return top-1 and top-5 accuracy beside chance."""
    top1, top5 = evaluation.metrics.get("top1"), evaluation.metrics.get("top5")
    return beside_chance(top1) + beside_chance(top5)


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Draw accuracies beside chance, and choose images that were and were not recognized."""
    metrics = [evaluation.metrics.get(name) for name in _METRICS]
    right: list[dict[str, Any]] = []
    wrong: list[dict[str, Any]] = []
    for line in evaluation.records:
        chosen = right if _right(line) else wrong
        chosen.append(line)
    groups = []
    for title, lines in (("Recognized", right), ("Not recognized", wrong)):
        examples = []
        for line in spread(lines):
            examples.append(
                {
                    "image": evaluation.images(line["image"]),
                    "label": line["label"],
                    "right": _right(line),
                    "answers": [name for name, _ in line["top"][:3]],
                }
            )
        if examples:
            groups.append({"title": title, "examples": examples})
    return {"chart": chance_chart(metrics), "groups": groups}


def _right(line: dict[str, Any]) -> bool:
    # A tie with a wrong label is not counted as recognized among the examples.
    return bool(line["above"] == 0 and line["tied"] == 1)
