"""What a result says in words: which baselines GLIML is not above, and a table of all methods.

In: the metrics of the stage, or its whole result. Out: flags, and the lines that a person reads in
a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.results.schema import Metric, Result

from .scores import GLIML

_HEAD = ("accuracy", "closed world", "open world", "above proto", "closed world", "open world")


def flags(metrics: Sequence[Metric]) -> list[str]:
    """Flag a GLIML that is not told apart from, or is below, a baseline: by the open world where there is one."""
    not_above: dict[tuple[str, str], list[str]] = {}
    for metric in metrics:
        form, method, what = metric.name.split("/", 2)
        if method in GLIML and what.startswith("above_"):
            interval = metric.intervals.get("open_world", metric.ci95)
            if interval is None or interval[0] <= 0:
                not_above.setdefault((form, method), []).append(what.removeprefix("above_"))
    return [
        f"{method} is not above {', '.join(others)} ({form})"
        for (form, method), others in not_above.items()
    ]


def table(result: Result) -> str:
    """Return one line a method for every form: accuracy and paired difference to ProtoNet, each with both intervals."""
    found = {metric.name: metric for metric in result.metrics}
    lines = [
        "percent, and percentage points; 95 % intervals: closed world, episodes share pictures; open world, none"
    ]
    for form in result.protocol["episodes"]:
        rows = [(form, *_HEAD)]
        for method in result.protocol["methods"]:
            accuracy, above = (
                found.get(f"{form}/{method}/{what}") for what in ("accuracy", "above_proto")
            )
            rows.append((method, *_cells(accuracy, ".1f"), *_cells(above, "+.1f")))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for first, *others in rows:
            cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True))
            lines.append("  ".join([f"{first:{widths[0]}}", *cells]))
    return "\n".join(lines)


def _cells(metric: Metric | None, style: str) -> tuple[str, str, str]:
    if metric is None:
        return "-", "-", "-"
    shown = (metric.intervals.get(kind) for kind in ("closed_world", "open_world"))
    closed, opened = (
        "-" if one is None else f"{one[0]:{style}} to {one[1]:{style}}" for one in shown
    )
    return f"{metric.value:{style}}", closed, opened
