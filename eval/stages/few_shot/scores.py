"""Metrics of few-shot classification: accuracies, paired differences and accuracy by class.

In: records of episodes (`EpisodeRecord`). Out: metrics, each with two intervals. Episodes of the
closed world may share images and give the values. Episodes of the open world share no images and
give the width of a second interval around the same value. That interval is too wide if anything:
the mean over many episodes of the same images varies less than the mean over the few disjoint ones
(Hoeffding, 1948).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eval.results.intervals import paired_difference, t_interval
from eval.results.schema import Metric

from .records import EpisodeRecord

REFERENCES = ("proto", "zero_shot")
"""Methods that every other method is compared with."""
GLIML = ("gliml", "gliml_untrained")
"""Forms of GLIML, which are compared with every baseline, not only with the references."""

Interval = tuple[float, float]
Accuracies = dict[str, NDArray[np.float64]]
"""Percentage of each class's queries that a method recognized (episodes, way), by method."""


def metrics(records: Iterable[EpisodeRecord]) -> list[Metric]:
    """Compute every metric from the records.

    Each form of episodes, such as `5way-1shot`, has for each method: `accuracy`, the mean over
    episodes; `above_proto` and `above_zero_shot`, paired differences, and for GLIML the difference
    to every other baseline too; `class/NAME`, the mean over the episodes that have the class.
    """
    by_form: dict[tuple[int, int], list[EpisodeRecord]] = {}
    for record in records:
        by_form.setdefault((record["way"], record["shot"]), []).append(record)
    computed: list[Metric] = []
    for (way, shot), of_form in by_form.items():
        computed += _form_metrics(f"{way}way-{shot}shot", of_form)
    return computed


def _form_metrics(form: str, records: Sequence[EpisodeRecord]) -> list[Metric]:
    closed_records = [record for record in records if record["kind"] == "closed_world"]
    open_records = [record for record in records if record["kind"] == "open_world"]
    # The kinds may have different numbers of queries, so they are tabled separately.
    closed_world = accuracies_by_method(closed_records)
    open_world = accuracies_by_method(open_records)
    chance = 100 / records[0]["way"]
    computed = []
    for method in closed_world:
        disjoint = open_world.get(method)
        name = f"{form}/{method}/accuracy"
        computed.append(_accuracy(name, closed_world[method], disjoint, chance))
        for reference in closed_world:
            if _are_compared(method, reference):
                computed.append(_difference(form, method, reference, closed_world, open_world))
    classes = np.array([record["classes"] for record in closed_records])
    for method, accuracies in closed_world.items():
        for label in np.unique(classes):
            # Disjoint episodes with one given class are too few to give an interval of their own.
            name = f"{form}/{method}/class/{label}"
            computed.append(_accuracy(name, accuracies[classes == label], None, chance))
    return computed


def accuracies_by_method(records: Sequence[EpisodeRecord]) -> Accuracies:
    """Return the percentage of each class's queries that a method recognized, (episodes, way)."""
    if not records:
        return {}
    way = records[0]["way"]
    accuracies = {}
    for method in records[0]["predicted"]:
        predicted = np.array([record["predicted"][method] for record in records])
        # Queries are listed class after class, so the row of a query is also its right answer.
        by_class = predicted.reshape(len(records), way, -1)
        accuracies[method] = 100 * (by_class == np.arange(way)[:, None]).mean(axis=2)
    return accuracies


def _are_compared(method: str, reference: str) -> bool:
    if method == reference:
        return False
    return reference in REFERENCES or (method in GLIML and reference not in GLIML)


def _accuracy(
    name: str,
    accuracies: NDArray[np.float64],
    disjoint: NDArray[np.float64] | None,
    chance: float,
) -> Metric:
    values = _by_episode(accuracies)
    value = float(values.mean())
    # With the scale, an accuracy of 0 or 100 % in every episode has Wilson's interval, not a point.
    closed_world = t_interval(values, scale=100.0)
    intervals = _intervals(closed_world)
    if disjoint is not None:
        disjoint_values = _by_episode(disjoint)
        interval = t_interval(disjoint_values, scale=100.0)
        if interval is not None:
            intervals["open_world"] = _moved(interval, float(disjoint_values.mean()), value)
    return Metric(
        name=name,
        value=value,
        unit="percent",
        ci95=closed_world,
        n=len(values),
        chance=chance,
        intervals=intervals,
    )


def _difference(
    form: str,
    method: str,
    reference: str,
    closed_world: Mapping[str, NDArray[np.float64]],
    open_world: Mapping[str, NDArray[np.float64]],
) -> Metric:
    value, interval = paired_difference(
        _by_episode(closed_world[method]), _by_episode(closed_world[reference])
    )
    intervals = _intervals(interval)
    if open_world:
        disjoint_value, disjoint_interval = paired_difference(
            _by_episode(open_world[method]), _by_episode(open_world[reference])
        )
        if disjoint_interval is not None:
            intervals["open_world"] = _moved(disjoint_interval, disjoint_value, value)
    return Metric(
        name=f"{form}/{method}/above_{reference}",
        value=value,
        unit="percentage points",
        ci95=interval,
        n=len(closed_world[method]),
        intervals=intervals,
    )


def _by_episode(accuracies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over the classes of an episode; values of a single class are averages already."""
    return accuracies.mean(axis=1) if accuracies.ndim == 2 else accuracies


def _intervals(closed_world: Interval | None) -> dict[str, Interval]:
    return {} if closed_world is None else {"closed_world": closed_world}


def _moved(interval: Interval, old_value: float, new_value: float) -> Interval:
    """Move an interval from one value to another; it reaches as far below and above it."""
    below, above = old_value - interval[0], interval[1] - old_value
    return new_value - below, new_value + above
