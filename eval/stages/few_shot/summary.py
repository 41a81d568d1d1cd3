"""A few-shot result in words: a table of all methods, and flags where GLIML does not win.

In: the metrics of the stage, or its whole result. Out: flags, and the lines that the command line
prints.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.results.schema import Metric, Result

from .records import KINDS
from .scores import GLIML

_COLUMNS = ("accuracy", "closed world", "open world", "above proto", "closed world", "open world")
_EXPLANATION = (
    "percent, and percentage points; 95 % intervals: closed world, episodes share images; "
    "open world, they share none"
)


def flags(metrics: Sequence[Metric]) -> list[str]:
    """Flag every baseline that GLIML is not above.

    The open-world interval decides, or the closed-world interval where there is no other.
    """
    not_above: dict[tuple[str, str], list[str]] = {}
    for metric in metrics:
        form, method, quantity = metric.name.split("/", 2)
        if method in GLIML and quantity.startswith("above_"):
            interval = metric.intervals.get("open_world", metric.ci95)
            if interval is None or interval[0] <= 0:
                baseline = quantity.removeprefix("above_")
                not_above.setdefault((form, method), []).append(baseline)
    flagged = []
    for (form, method), baselines in not_above.items():
        flagged.append(f"{method} is not above {', '.join(baselines)} ({form})")
    return flagged


def table(result: Result) -> str:
    """Return a table for each form: accuracy and paired difference to ProtoNet by method."""
    by_name = {metric.name: metric for metric in result.metrics}
    lines = [_EXPLANATION]
    for form in result.protocol["episodes"]:
        rows = [(form, *_COLUMNS)]
        for method in result.protocol["methods"]:
            accuracy = by_name.get(f"{form}/{method}/accuracy")
            above_proto = by_name.get(f"{form}/{method}/above_proto")
            rows.append((method, *_cells(accuracy, ".1f"), *_cells(above_proto, "+.1f")))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for name, *numbers in rows:
            cells = [f"{name:{widths[0]}}"]
            for number, width in zip(numbers, widths[1:], strict=True):
                cells.append(f"{number:>{width}}")
            lines.append("  ".join(cells))
    return "\n".join(lines)


def _cells(metric: Metric | None, style: str) -> tuple[str, ...]:
    """Write a value and its two intervals, or dashes for what is missing."""
    if metric is None:
        return "-", "-", "-"
    cells = [f"{metric.value:{style}}"]
    for kind in KINDS:
        interval = metric.intervals.get(kind)
        if interval is None:
            cells.append("-")
        else:
            cells.append(f"{interval[0]:{style}} to {interval[1]:{style}}")
    return tuple(cells)
