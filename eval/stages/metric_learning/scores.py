"""From the lines of `samples.jsonl` to every metric, with intervals over classes and over seeds.

In: `query` records (the values of one query, method and seed) and `probe` records (what a fresh
probe says of a held-out training image). Out: metrics by method, the best method first; differences
of the head to each other method; and the leakage of the training classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from eval.results.intervals import mean_metric, t_interval
from eval.results.schema import Metric

from .options import HEADS
from .protocols.ranking import metrics_of
from .records import ProbeRecord, QueryRecord, Record

HEADLINES = ("recall@1", "rank@1", "medium/map")
"""What methods are compared by: the first of these that a protocol has."""


def metrics(records: Iterable[Record]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    They are `METHOD/recall@1` and the like, `HEAD/above/METHOD/recall@1`, and
    `leakage/METHOD/PROBE`. Values are means over the seeds. ci95 resamples classes; `intervals`
    holds it as `classes`, beside `seeds`, a Student t interval over trainings. Clusters have only
    the latter. The records may be those of a single class (a comparison of two results computes
    metrics class by class); metrics that these do not allow are left out.
    """
    by_method: dict[str, list[QueryRecord]] = {}
    probes: list[ProbeRecord] = []
    for record in records:
        if record["kind"] == "query":
            by_method.setdefault(record["method"], []).append(record)
        elif record["kind"] == "probe":
            probes.append(record)
    leakage = _leakage(probes)
    if not any(_has_values(queries) for queries in by_method.values()):
        return leakage
    of_method = {method: _of_method(queries) for method, queries in by_method.items()}
    headline = headline_of([metric.name for metric in next(iter(of_method.values()))])
    best_first = sorted(of_method, key=lambda method: -_value(of_method[method], headline))
    retrieval = []
    for method in best_first:
        for metric in of_method[method]:
            retrieval.append(metric.model_copy(update={"name": f"{method}/{metric.name}"}))
    head = next(method for method in of_method if method in HEADS)
    above = []
    for method in best_first:
        if method != head:
            above.append(_above(headline, head, method, by_method))
    return retrieval + above + leakage


def headline_of(names: Sequence[str]) -> str:
    """Return the name of the metric that methods are compared by."""
    return next(name for name in HEADLINES if name in names)


def _has_values(queries: Sequence[QueryRecord]) -> bool:
    return any("values" in query for query in queries)


def _of_method(queries: Sequence[QueryRecord]) -> list[Metric]:
    """Average the metrics of a method over its seeds."""
    by_seed: dict[int | None, list[QueryRecord]] = {}
    pooled: list[QueryRecord] = []
    for query in queries:
        by_seed.setdefault(query["seed"], []).append(query)
        # Clusters of different seeds have nothing to do with each other and cannot be pooled.
        without_clusters = query.copy()
        without_clusters.pop("clusters", None)
        pooled.append(without_clusters)
    of_seeds = []
    for of_seed in by_seed.values():
        of_seeds.append({metric.name: metric for metric in metrics_of(of_seed)})
    of_pooled = {metric.name: metric for metric in metrics_of(pooled)}
    computed = []
    for name, first in of_seeds[0].items():
        values = [of_seed[name].value for of_seed in of_seeds]
        over_seeds = t_interval(values)
        intervals = {} if over_seeds is None else {"seeds": over_seeds}
        over_classes = of_pooled[name].ci95 if name in of_pooled else None
        if first.ci95 is None or name not in of_pooled:
            # Clusters, and counts that are the same for every seed.
            update = {"value": float(np.mean(values)), "ci95": over_seeds, "intervals": intervals}
        else:
            if over_classes is not None:
                intervals = {"classes": over_classes, **intervals}
            update = {
                "value": of_pooled[name].value,
                "ci95": over_classes,
                "intervals": intervals,
            }
        computed.append(first.model_copy(update=update))
    return computed


def _above(
    headline: str, head: str, other: str, by_method: Mapping[str, Sequence[QueryRecord]]
) -> Metric:
    """Compare the head with another method, query by query; each value is the mean over seeds."""
    of_head = _by_query(by_method[head], headline)
    of_other = _by_query(by_method[other], headline)
    differences = [100 * (of_head[query] - of_other[query]) for query in of_head]
    labels = [label for _, label, _ in of_head]
    above = mean_metric(
        f"{head}/above/{other}/{headline}", differences, labels, unit="percentage points"
    )
    return above.model_copy(update={"intervals": {"classes": above.ci95}})


def _by_query(queries: Sequence[QueryRecord], headline: str) -> dict[tuple[str, str, str], float]:
    """Return the mean over seeds of each query's value, by the query, its class and its setting.

    Queries without a right image are left out.
    """
    setup, _, name = headline.rpartition("/")
    values: dict[tuple[str, str, str], list[float]] = {}
    for query in queries:
        # The headline of Revisited is about one of its setups.
        if "values" in query and setup in ("", query["setting"]):
            identity = (query["query"], query["label"], query["setting"])
            values.setdefault(identity, []).append(query["values"][name])
    return {identity: float(np.mean(of_seeds)) for identity, of_seeds in values.items()}


def _leakage(probes: Sequence[ProbeRecord]) -> list[Metric]:
    """Compute the accuracy of each probe on the features of each method."""
    groups: dict[tuple[str, str], list[ProbeRecord]] = {}
    for record in probes:
        groups.setdefault((record["method"], record["probe"]), []).append(record)
    computed = []
    for (method, probe), of_probe in groups.items():
        right = [100.0 * (record["said"] == record["label"]) for record in of_probe]
        labels = [record["label"] for record in of_probe]
        by_seed: dict[int, list[float]] = {}
        for record, value in zip(of_probe, right, strict=True):
            by_seed.setdefault(record["seed"], []).append(value)
        metric = mean_metric(
            f"leakage/{method}/{probe}", right, labels, chance=100 / len(set(labels))
        )
        intervals = {"classes": metric.ci95}
        over_seeds = t_interval([float(np.mean(values)) for values in by_seed.values()])
        if over_seeds is not None:
            intervals["seeds"] = over_seeds
        # The same images are probed for every seed: they count once.
        images = len(of_probe) // len(by_seed)
        computed.append(metric.model_copy(update={"n": images, "intervals": intervals}))
    return computed


def _value(metrics: Sequence[Metric], name: str) -> float:
    return next(metric.value for metric in metrics if metric.name == name)
