"""From the lines of `samples.jsonl` to every metric, over all seeds, with intervals over classes and over seeds.

In: `query` lines (the values of one query, method and seed) and `probe` lines (what a fresh probe
said of a held-out picture of a training class). Out: metrics by method, the best method first,
differences to the best frozen descriptor and to the head without its parts, and the leakage of the
classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.results.intervals import mean_interval, t_interval
from eval.results.schema import Metric

from .options import HEADS
from .protocols.records import metrics_of

HEADLINES = ("recall@1", "rank@1", "medium/map")
"""What methods are compared by: the first of these that a protocol has."""
Line = Mapping[str, Any]


def metrics(records: Iterable[Line]) -> list[Metric]:
    """Compute every metric: `METHOD/recall@1` and the like, `HEAD/above/METHOD/recall@1`, `leakage/METHOD/PROBE`.

    Values are means over the seeds. ci95 resamples classes, and `intervals` holds it as `classes`
    beside `seeds`, a Student t interval over trainings. Clusters have only the latter. The lines
    may be those of one class, of which nothing is computed that they do not hold.
    """
    lines = list(records)
    by_method: dict[str, list[Line]] = {}
    for line in lines:
        if line["kind"] == "query":
            by_method.setdefault(line["method"], []).append(line)
    leakage = _leakage([line for line in lines if line["kind"] == "probe"])
    if not any("values" in line for line in lines):
        return leakage
    found = {method: _of_method(several) for method, several in by_method.items()}
    headline = headline_of([metric.name for metric in next(iter(found.values()))])
    order = sorted(found, key=lambda method: -_value(found[method], headline))
    retrieval = [
        metric.model_copy(update={"name": f"{method}/{metric.name}"})
        for method in order
        for metric in found[method]
    ]
    head = next(method for method in found if method in HEADS)
    others = [method for method in order if method != head]
    above = [_above(headline, head, other, by_method) for other in others]
    return retrieval + above + leakage


def headline_of(names: Sequence[str]) -> str:
    """Return the name of the metric that methods are compared by."""
    return next(name for name in HEADLINES if name in names)


def _of_method(lines: Sequence[Line]) -> list[Metric]:
    seeds = list(dict.fromkeys(line["seed"] for line in lines))
    apart = [
        {m.name: m for m in metrics_of([line for line in lines if line["seed"] == seed])}
        for seed in seeds
    ]
    pooled = {
        m.name: m
        for m in metrics_of([{k: v for k, v in line.items() if k != "clusters"} for line in lines])
    }
    metrics = []
    for name, first in apart[0].items():
        several = [one[name].value for one in apart]
        over_seeds = t_interval(several)
        intervals = {} if over_seeds is None else {"seeds": over_seeds}
        whole = pooled.get(name)
        if whole is None or first.ci95 is None:  # clusters, and counts that every seed shares
            update = {"value": float(np.mean(several)), "ci95": over_seeds, "intervals": intervals}
        else:
            both = intervals if whole.ci95 is None else {"classes": whole.ci95, **intervals}
            update = {"value": whole.value, "ci95": whole.ci95, "intervals": both}
        metrics.append(first.model_copy(update=update))
    return metrics


def _above(headline: str, head: str, other: str, by_method: Mapping[str, Sequence[Line]]) -> Metric:
    """How far the head is above another method, query by query, each the mean over its seeds."""
    ours, theirs = _by_query(by_method[head], headline), _by_query(by_method[other], headline)
    queries = list(ours)
    difference = [100 * (ours[query] - theirs[query]) for query in queries]
    interval = mean_interval(difference, [query[1] for query in queries])
    return Metric(
        name=f"{head}/above/{other}/{headline}",
        value=float(np.mean(difference)),
        unit="percentage points",
        ci95=interval,
        n=len(queries),
        intervals={"classes": interval},
    )


def _by_query(lines: Sequence[Line], headline: str) -> dict[tuple[str, str, str], float]:
    """Mean over seeds of a query's value, by the query, its class and its setting; queries without any are left out."""
    setup, _, name = headline.rpartition("/")
    values: dict[tuple[str, str, str], list[float]] = {}
    for line in lines:
        if "values" in line and setup in ("", line["setting"]):
            values.setdefault((line["query"], line["label"], line["setting"]), []).append(
                line["values"][name]
            )
    return {query: float(np.mean(several)) for query, several in values.items()}


def _leakage(lines: Sequence[Line]) -> list[Metric]:
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["method"], line["probe"]), []).append(line)
    found = []
    for (method, probe), several in groups.items():
        right = [100.0 * (line["said"] == line["label"]) for line in several]
        labels = [line["label"] for line in several]
        seeds = np.array([line["seed"] for line in several])
        interval = mean_interval(right, labels)
        over_seeds = t_interval(
            [np.mean(np.array(right)[seeds == seed]) for seed in dict.fromkeys(seeds.tolist())]
        )
        found.append(
            Metric(
                name=f"leakage/{method}/{probe}",
                value=float(np.mean(right)),
                unit="percent",
                ci95=interval,
                n=len(several) // len(set(seeds.tolist())),
                chance=100 / len(set(labels)),
                intervals={"classes": interval}
                | ({} if over_seeds is None else {"seeds": over_seeds}),
            )
        )
    return found


def _value(metrics: Sequence[Metric], name: str) -> float:
    return next(metric.value for metric in metrics if metric.name == name)
