"""`glscl eval few-shot`, `multi-label` and `metric-learning`: recognition of classes that a few pictures show."""

from __future__ import annotations

from typing import Any


def add_few_shot(commands: Any) -> None:
    """Add `few-shot`."""


def add_multi_label(commands: Any) -> None:
    """Add `multi-label`."""


def add_metric_learning(commands: Any) -> None:
    """Add `metric-learning`."""
