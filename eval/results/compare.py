"""Compare two results of one stage on the same data: paired differences with intervals and words.

In: the output folders of two evaluations. Out: each metric of both, its difference, and an interval
from resampling images. A stage needs nothing for it: its metrics are computed image by image, and a
metric can be compared if its mean over images, weighted by their queries or not, is the value in
the result. Metrics that are not such a mean, such as a median, are listed and left out. Metric
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
"""Stages whose records are resampled by `label`: images of one class are not independent."""
_IDENTITY = ("direction", "level", "query", "image", "kind")
Verdict = Literal[
    "B is better", "A is better", "B is higher", "A is higher", "not told apart", "equal"
]


@dataclass(frozen=True)
class Difference:
    """A metric of both results, and B - A with the 95 % interval of the paired difference.

    ``pictures`` counts what was resampled: images, or classes where `Comparison.resampled` says
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

    ``left_out`` are metrics of both that are not means over the same images and queries;
    ``only_in_one`` are those that one result lacks, each with the result that has it.
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
        If they differ in stage, protocol, data or queries; the message says in what.
    """
    left, right = read_result(a), read_result(b)
    _refuse_different(left, right, a, b)
    left_records, right_records = list(read_records(a)), list(read_records(b))
    # Counted, because lines may come in another order but not more often.
    if Counter(map(_identity, left_records)) != Counter(map(_identity, right_records)):
        raise DataError(f"{a} and {b} did not answer the same queries: evaluate both on all data")
    left_parts = _by_image(left.stage, left_records, a)
    right_parts = _by_image(right.stage, right_records, b)
    left_names = {metric.name for metric in left.metrics}
    right_metrics = {metric.name: metric for metric in right.metrics}
    differences, left_out = [], []
    only_in_one: dict[str, Literal["A", "B"]] = {}
    for metric in left.metrics:
        name = metric.name
        if name not in right_metrics:
            only_in_one[name] = "A"
            continue
        other = right_metrics[name]
        left_part, right_part = left_parts.get(name, {}), right_parts.get(name, {})
        result = _difference(metric.value, other.value, left_part, right_part)
        if result is None:
            left_out.append(name)
            continue
        difference, interval = result
        differences.append(
            Difference(
                name=name,
                unit=metric.unit,
                a=metric.value,
                b=other.value,
                difference=difference,
                ci95=interval,
                n=metric.n,
                pictures=len(left_part),
                verdict=_verdict(name, metric.unit, interval),
            )
        )
    for name in right_metrics:
        if name not in left_names:
            only_in_one[name] = "B"
    notes = []
    if left.model.get("hash") is not None and left.model.get("hash") == right.model.get("hash"):
        notes.append("both have the same weights")
    for which, flags in (("A", left.flags), ("B", right.flags)):
        notes += [f"{which} is flagged: {flag}" for flag in flags]
    resampled: Literal["pictures", "classes"] = "pictures"
    if left.stage in _CLASSES:
        resampled = "classes"
    return Comparison(left.stage, differences, left_out, only_in_one, notes, resampled)


def table(comparison: Comparison) -> str:
    """Write a comparison for a terminal."""
    width = max((len(d.name) for d in comparison.differences), default=6)
    lines = [
        f"{'metric':<{width}}  {'A':>8}  {'B':>8}  {'B - A':>8}  {'95 % interval':<20}  verdict"
    ]
    for d in comparison.differences:
        interval = f"[{d.ci95[0]:+.2f}, {d.ci95[1]:+.2f}]"
        numbers = f"{d.a:8.2f}  {d.b:8.2f}  {d.difference:+8.2f}"
        lines.append(f"{d.name:<{width}}  {numbers}  {interval:<20}  {d.verdict}")
    counts = Counter(d.verdict for d in comparison.differences)
    verdicts = ", ".join(f"{verdict} in {count}" for verdict, count in counts.items())
    resampled = {"pictures": "images", "classes": "classes"}[comparison.resampled]
    lines.append(
        f"{comparison.stage}: {verdicts or 'nothing to compare'} (paired by query, {resampled} "
        "resampled; not corrected for the number of metrics)"
    )
    if comparison.left_out:
        names = ", ".join(comparison.left_out)
        lines.append(f"not compared, because not means over the same images and queries: {names}")
    if comparison.only_in_one:
        names = ", ".join(f"{name} (in {which})" for name, which in comparison.only_in_one.items())
        lines.append(f"not compared, because in one of the results only: {names}")
    return "\n".join(lines + comparison.notes)


def _refuse_different(left: Result, right: Result, a: Path | str, b: Path | str) -> None:
    if left.stage != right.stage:
        raise DataError(f"{a} holds a {left.stage} result and {b} a {right.stage} result")
    hashes = [result.data.get("hash") for result in (left, right)]
    if hashes[0] != hashes[1]:
        raise DataError(f"{a} and {b} were evaluated on different data ({hashes[0]}, {hashes[1]})")
    without_networks = _is_baseline(left) or _is_baseline(right)
    differing = []
    for key in {**left.protocol, **right.protocol}:
        if key == "precision" and without_networks:
            continue  # a baseline without networks has no precision
        values = left.protocol.get(key), right.protocol.get(key)
        if values[0] != values[1]:
            differing.append(f"{key}: {values[0]} against {values[1]}")
    if differing:
        raise DataError(
            f"{a} and {b} followed different protocols ({'; '.join(differing)}): "
            "evaluate one of them again"
        )


def _is_baseline(result: Result) -> bool:
    """Whether no networks ran, so that there was no precision to choose."""
    return result.model.get("hash") is None and "precision" not in result.protocol


def _identity(record: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(record.get(name)) for name in _IDENTITY)


def _by_image(
    stage: str, records: list[dict[str, Any]], folder: Path | str
) -> dict[str, dict[str, tuple[float, int]]]:
    """Compute value and number of queries of each metric for each image (or class) separately."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if stage not in _CLASSES:
            image = record.get("picture", record.get("image", record.get("query")))
            groups[str(image)].append(record)
        elif "label" in record:
            groups[str(record["label"])].append(record)
    parts: dict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
    for group, lines in groups.items():
        for metric in metrics_of(stage, lines, folder):
            parts[metric.name][group] = (metric.value, metric.n)
    return parts


def _difference(
    a: float, b: float, left: dict[str, tuple[float, int]], right: dict[str, tuple[float, int]]
) -> tuple[float, tuple[float, float]] | None:
    if not left or left.keys() != right.keys():
        return None
    values = np.array([[left[key][0] for key in left], [right[key][0] for key in left]])
    counts = np.array([[left[key][1] for key in left], [right[key][1] for key in left]])
    if (counts[0] != counts[1]).any():
        return None
    # A metric is a mean over queries or over images: whichever gives the recorded values.
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
    # These describe the scores, and neither direction is better.
    if name.endswith(("tie_rate", "cut_in_a_tie")):
        return "B is higher" if low > 0 else "A is higher"
    return "B is better" if low > 0 else "A is better"
