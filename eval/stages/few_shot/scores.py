"""Predictions of episodes to metrics: accuracies with both intervals, paired differences, accuracy by class.

In: lines of `samples.jsonl`, one an episode, with the classes and every method's prediction for the
queries, class after class. Episodes of kind `closed_world` may share pictures and give the values.
Those of kind `open_world` do not, and give the width of a second interval around the value: it is
too wide if anything, because the mean over many episodes of the same pictures varies less than that
over the few disjoint ones (Hoeffding, 1948).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.results.intervals import paired_difference, t_interval
from eval.results.schema import Metric

KINDS = ("closed_world", "open_world")
REFERENCES = ("proto", "zero_shot")  # what every method is compared with
GLIML = ("gliml", "gliml_untrained")  # which are compared with every other method

Right = dict[str, NDArray[np.float64]]


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    For each form such as `5way-1shot` and each method: `accuracy`, the mean over episodes;
    `above_proto` and `above_zero_shot`, of GLIML also those above all other methods, paired
    differences; `class/NAME`, over the episodes that have the class.
    """
    lines = list(records)
    found: list[Metric] = []
    for way, shot in dict.fromkeys((line["way"], line["shot"]) for line in lines):
        own = [line for line in lines if (line["way"], line["shot"]) == (way, shot)]
        closed, apart = (
            by_method([line for line in own if line["kind"] == kind]) for kind in KINDS
        )
        name = f"{way}way-{shot}shot"
        for method in closed:
            found.append(
                _accuracy(f"{name}/{method}/accuracy", closed[method], apart.get(method), 100 / way)
            )
            for reference in closed:
                compared = reference in REFERENCES or (method in GLIML and reference not in GLIML)
                if compared and method != reference:
                    found.append(
                        _difference(
                            f"{name}/{method}/above_{reference}", closed, apart, method, reference
                        )
                    )
        classes = np.array([line["classes"] for line in own if line["kind"] == KINDS[0]])
        found += [
            _accuracy(f"{name}/{method}/class/{label}", right[classes == label], None, 100 / way)
            for method, right in closed.items()
            for label in np.unique(classes)
        ]
    return found


def by_method(lines: list[dict[str, Any]]) -> Right:
    """Share of each class's queries that a method recognised, in percent (episodes, way)."""
    if not lines:
        return {}
    way = lines[0]["way"]
    found = {}
    for method in lines[0]["predicted"]:
        predicted = np.array([line["predicted"][method] for line in lines]).reshape(
            len(lines), way, -1
        )
        found[method] = 100 * (predicted == np.arange(way)[:, None]).mean(axis=2)
    return found


def _accuracy(
    name: str, right: NDArray[np.float64], apart: NDArray[np.float64] | None, chance: float
) -> Metric:
    values = _by_episode(right)
    value, closed = float(values.mean()), t_interval(values)
    opened = None if apart is None else t_interval(_by_episode(apart))
    intervals = _intervals(value, closed, opened)
    return Metric(
        name=name,
        value=value,
        unit="percent",
        ci95=closed,
        n=len(values),
        chance=chance,
        intervals=intervals,
    )


def _difference(name: str, closed: Right, apart: Right, method: str, reference: str) -> Metric:
    value, interval = paired_difference(_by_episode(closed[method]), _by_episode(closed[reference]))
    opened = None
    if apart:
        opened = paired_difference(_by_episode(apart[method]), _by_episode(apart[reference]))[1]
    return Metric(
        name=name,
        value=value,
        unit="percentage points",
        ci95=interval,
        n=len(closed[method]),
        intervals=_intervals(value, interval, opened),
    )


def _by_episode(right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes of an episode; of one class alone there is nothing to average."""
    return right.mean(axis=1) if right.ndim == 2 else right


def _intervals(
    value: float, closed: tuple[float, float] | None, opened: tuple[float, float] | None
) -> dict[str, tuple[float, float]]:
    found = dict(zip(KINDS, (closed, opened), strict=True))
    if opened is not None:
        half = (opened[1] - opened[0]) / 2
        found[KINDS[1]] = (value - half, value + half)
    return {name: interval for name, interval in found.items() if interval is not None}
