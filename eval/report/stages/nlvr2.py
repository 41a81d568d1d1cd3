"""Statements on two images are shown as questions are, beside chance."""

from __future__ import annotations

from typing import Any

from eval.report.bars import chance_chart
from eval.report.evaluation import Evaluation

from . import vqa
from .vqa import headlines

__all__ = ["content", "headlines"]

TITLE = "Statements on two images"
RANK = 60
TEMPLATE = "vqa.html.j2"


def content(evaluation: Evaluation) -> dict[str, Any]:
    """Draw accuracy and consistency beside chance; examples are chosen as those of questions."""
    metrics = [evaluation.metrics.get(name) for name in ("accuracy", "consistency")]
    return vqa.content(evaluation) | {"chart": chance_chart(metrics)}
