"""What a multi-label result says in a few lines, and what in it must not be overlooked.

In: a result, or its metrics and records. Out: the table that the command prints, rows for a report,
and flags.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.results.schema import Metric, Result

from .records import says_anything


def means(result: Result, shot: int) -> dict[str, Metric]:
    """Return mAP by method, from ``shot`` support pictures of each label."""
    return {name: metric for name, metric in _maps(result.metrics, shot).items() if "-" not in name}


def differences(result: Result, shot: int) -> dict[tuple[str, str], Metric]:
    """Return what a method's mAP is above another's on the same draws, by both names."""
    found = {
        tuple(name.split("-")): metric
        for name, metric in _maps(result.metrics, shot).items()
        if "-" in name
    }
    return {(own, other): metric for (own, other), metric in found.items()}


def interval(found: tuple[float, float] | None, form: str = ".1f") -> str:
    """Write an interval, or a dash where there is none."""
    return "-" if found is None else f"{found[0]:{form}} to {found[1]:{form}}"


def table(result: Result) -> str:
    """Return mAP of every method by number of support pictures, and its differences, with both intervals."""
    shots = result.protocol["shot"]
    lines = [["mAP in percent", *(f"{shot}-shot" for shot in shots)]]
    by_shot = [means(result, shot) for shot in shots]
    lines += [[name, *(_cell(several[name]) for several in by_shot)] for name in by_shot[0]]
    lines.append(
        ["guessing", *(f"{next(iter(several.values())).chance:.1f}" for several in by_shot)]
    )
    above = [differences(result, shot) for shot in shots]
    if above[0]:
        lines.append(["above, percentage points", *[""] * len(shots)])
        lines += [
            [" - ".join(pair), *(_cell(several[pair], "+.1f") for several in above)]
            for pair in above[0]
        ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join(
        [
            *rows,
            "In brackets: 95 % intervals over draws of the support; over the pictures that are asked.",
        ]
    )


def not_above(measured: Sequence[Metric], shots: Sequence[int]) -> list[str]:
    """Flag where the method is not above what it must beat on the same draws, once for each number of pictures."""
    flags = []
    for shot in shots:
        for own in ("lcm", "cross"):
            pairs = {
                name: metric
                for name, metric in _maps(measured, shot).items()
                if name.startswith(f"{own}-")
            }
            below = [
                name.split("-")[1] for name, m in pairs.items() if m.ci95 is None or m.ci95[0] <= 0
            ]
            flags += [f"{own} is not above {', '.join(below)} ({shot}shot)"] if below else []
    return flags


def silent(records: Sequence[dict[str, Any]]) -> list[str]:
    """Flag methods whose scores are all equal in every draw of a shot, and those that never say that a label is there.

    The second means something only where scores are logits, as they are when scale and bias were
    fitted.
    """
    equal, never = [], []
    for shot in dict.fromkeys(record["shot"] for record in records):
        lines = [record for record in records if record["shot"] == shot]
        names = list(lines[0]["scores"])
        equal += [
            f"degenerate_scores/{shot}shot/{name}"
            for name in names
            if all(name in r["constant"] for r in lines)
        ]
        mute = [
            name
            for name in names
            if lines[0]["logits"] and not any(says_anything(r, name) for r in lines)
        ]
        if mute:
            never.append(
                f"no label is ever said to be present at threshold 0.5: {', '.join(mute)} ({shot}shot)"
            )
    return equal + never


def _maps(metrics: Sequence[Metric], shot: int) -> dict[str, Metric]:
    """Return mAP by what stands between shot and name: a method, or two with a dash; labels' names may have both."""
    split = [(metric.name.split("/"), metric) for metric in metrics]
    return {
        parts[1]: metric
        for parts, metric in split
        if len(parts) == 3 and parts[::2] == [f"{shot}shot", "mAP"]
    }


def _cell(metric: Metric, form: str = ".1f") -> str:
    over = (interval(metric.ci95, form), interval(metric.intervals.get("pictures"), form))
    return f"{metric.value:{form}} ({'; '.join(over)})"
