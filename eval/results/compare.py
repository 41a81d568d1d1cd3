"""Two results of one stage on the same data: paired differences, query by query, with intervals and words.

A stage needs nothing for it: its metrics are computed picture by picture, and a metric whose mean
over pictures (with its queries as weights, or without) is what the result says can be compared by
resampling pictures. One that is not such a mean, as a median, is named and left out. Metric
learning resamples classes, as its own intervals do.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from eval.results.intervals import ratio_interval
from eval.results.schema import Result, read_records, read_result
from eval.results.verify import metrics_of

_CLASSES = ("metric-learning",)
"""Stages whose records are resampled by `label`: pictures of one class are not independent."""
_IDENTITY = ("direction", "level", "query", "image", "kind")
Verdict = Literal[
    "B is better", "A is better", "B is higher", "A is higher", "not told apart", "equal"
]


@dataclass(frozen=True)
class Difference:
    """A metric of both results, and B - A with the 95 % interval of the paired difference.

    ``pictures`` counts what was resampled: pictures, or classes where `Comparison.resampled` says
    so.
    """

    name: str
    unit: str
    a: float
    b: float
    difference: float
    ci95: tuple[float, float]
    n: int
    pictures: int
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """What differs between two results.

    ``left_out`` are metrics of both that are no means over the same pictures and queries,
    ``only_in_one`` those that one result lacks, each with the one that has it.
    """

    stage: str
    differences: list[Difference]
    left_out: list[str]
    only_in_one: dict[str, Literal["A", "B"]]
    notes: list[str]
    resampled: Literal["pictures", "classes"] = "pictures"


def compare(a: Path | str, b: Path | str) -> Comparison:
    """Compare the results in two folders.

    Raises
    ------
    DataError
        If they are not of one stage, one protocol, the same data and the same queries; the message
        says what differs.
    """
    left, right = read_result(a), read_result(b)
    _refuse_different(left, right, a, b)
    lines_a, lines_b = list(read_records(a)), list(read_records(b))
    if Counter(map(_identity, lines_a)) != Counter(map(_identity, lines_b)):
        raise DataError(
            f"{a} and {b} did not answer the same queries: evaluate both on all of the data"
        )
    by_picture = [
        _by_picture(r.stage, n, f) for r, n, f in ((left, lines_a, a), (right, lines_b, b))
    ]
    ours, theirs = ({metric.name: metric for metric in result.metrics} for result in (left, right))
    only_in_one: dict[str, Literal["A", "B"]] = {name: "A" for name in ours if name not in theirs}
    only_in_one |= {name: "B" for name in theirs if name not in ours}
    differences, left_out = [], []
    for metric in left.metrics:
        other = theirs.get(metric.name)
        if other is None:
            continue
        parts = [found.get(metric.name, {}) for found in by_picture]
        found = _difference(metric.value, other.value, *parts)
        if found is None:
            left_out.append(metric.name)
            continue
        difference, interval = found
        differences.append(
            Difference(
                name=metric.name,
                unit=metric.unit,
                a=metric.value,
                b=other.value,
                difference=difference,
                ci95=interval,
                n=metric.n,
                pictures=len(parts[0]),
                verdict=_verdict(metric.name, metric.unit, interval),
            )
        )
    notes = []
    if left.model.get("hash") is not None and left.model.get("hash") == right.model.get("hash"):
        notes.append("both have the same weights")
    notes += [
        f"{which} is flagged: {flag}"
        for which, r in (("A", left), ("B", right))
        for flag in r.flags
    ]
    resampled: Literal["pictures", "classes"] = "classes" if left.stage in _CLASSES else "pictures"
    return Comparison(left.stage, differences, left_out, only_in_one, notes, resampled)


def table(comparison: Comparison) -> str:
    """Write a comparison for a terminal."""
    wide = max((len(d.name) for d in comparison.differences), default=6)
    lines = [
        f"{'metric':<{wide}}  {'A':>8}  {'B':>8}  {'B - A':>8}  {'95 % interval':<20}  verdict"
    ]
    for d in comparison.differences:
        interval = f"[{d.ci95[0]:+.2f}, {d.ci95[1]:+.2f}]"
        lines.append(
            f"{d.name:<{wide}}  {d.a:8.2f}  {d.b:8.2f}  {d.difference:+8.2f}  {interval:<20}  {d.verdict}"
        )
    counts = Counter(d.verdict for d in comparison.differences)
    verdicts = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    lines.append(f"{comparison.stage}: {verdicts or 'nothing to compare'} (paired by query, ")
    lines[-1] += f"{comparison.resampled} resampled; "
    lines[-1] += "not corrected for the number of metrics)"
    if comparison.left_out:
        lines.append(
            f"no means over the same pictures and queries, not compared: {', '.join(comparison.left_out)}"
        )
    if comparison.only_in_one:
        named = ", ".join(f"{name} (in {which})" for name, which in comparison.only_in_one.items())
        lines.append(f"in one of the results alone, not compared: {named}")
    return "\n".join(lines + comparison.notes)


def _refuse_different(left: Result, right: Result, a: Path | str, b: Path | str) -> None:
    if left.stage != right.stage:
        raise DataError(f"{a} holds a {left.stage} result and {b} a {right.stage} result")
    if left.data.get("hash") != right.data.get("hash"):
        raise DataError(
            f"{a} and {b} were evaluated on different data ({left.data.get('hash')}, {right.data.get('hash')})"
        )
    keys = [
        key
        for key in {**left.protocol, **right.protocol}
        if left.protocol.get(key) != right.protocol.get(key)
    ]
    if any(r.model.get("hash") is None and "precision" not in r.protocol for r in (left, right)):
        keys = [key for key in keys if key != "precision"]  # a baseline without networks has none
    if keys:
        said = "; ".join(
            f"{key}: {left.protocol.get(key)} against {right.protocol.get(key)}" for key in keys
        )
        raise DataError(
            f"{a} and {b} followed different protocols ({said}): evaluate one of them again"
        )


def _identity(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(record.get(name)) for name in _IDENTITY)


def _by_picture(
    stage: str, records: list[dict[str, Any]], folder: Path | str
) -> dict[str, dict[str, tuple[float, int]]]:
    """Compute value and number of queries of each metric on the records of each picture (class), as stages resample."""
    pictures: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if stage not in _CLASSES:
            pictures[str(record.get("picture", record.get("image", record.get("query"))))].append(
                record
            )
        elif "label" in record:
            pictures[str(record["label"])].append(record)
    found: dict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
    for picture, lines in pictures.items():
        for metric in metrics_of(stage, lines, folder):
            found[metric.name][picture] = (metric.value, metric.n)
    return found


def _difference(
    a: float, b: float, left: dict[str, tuple[float, int]], right: dict[str, tuple[float, int]]
) -> tuple[float, tuple[float, float]] | None:
    if not left or left.keys() != right.keys():
        return None
    values = np.array([[left[key][0] for key in left], [right[key][0] for key in left]])
    counts = np.array([[left[key][1] for key in left], [right[key][1] for key in left]])
    if (counts[0] != counts[1]).any():
        return None
    for weights in (counts[0], np.ones(len(left))):
        if _is_mean(a, values[0], weights) and _is_mean(b, values[1], weights):
            difference = (values[1] - values[0]) * weights
            return float(difference.sum() / weights.sum()), ratio_interval(difference, weights)
    return None


def _is_mean(value: float, parts: NDArray[np.float64], weights: NDArray[Any]) -> bool:
    return bool(np.isclose(np.average(parts, weights=weights), value, rtol=1e-9, atol=1e-9))


def _verdict(name: str, unit: str, interval: tuple[float, float]) -> Verdict:
    low, high = interval
    if low == high == 0:
        return "equal"
    if low <= 0 <= high:
        return "not told apart"
    if unit == "rank":  # lower is better
        return "B is better" if high < 0 else "A is better"
    if name.endswith(("tie_rate", "cut_in_a_tie")):
        return "B is higher" if low > 0 else "A is higher"
    return "B is better" if low > 0 else "A is better"
