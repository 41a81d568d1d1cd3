"""Scores of draws as lines of `samples.jsonl`, and every metric computed from them.

A line is one draw: which picture has which label, the scores of every method on all pictures that
are neither support nor copies of it, in 65,536 steps from the least to the largest. Metrics are
those of the stored scores, so that lines give them to the last bit, and a line by itself gives
those of its draw. Two intervals: over draws, and over pictures.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.results.intervals import paired_difference, t_interval
from eval.results.schema import Metric

from .methods import COMPARED_TO, OWN
from .metrics import Array, average_precision, multilabel_metrics

_STEPS = 65535
_NORMAL = 1.959964  # half a 95 % interval in standard errors


_Draw = tuple[NDArray[np.int64], NDArray[np.bool_], dict[str, Array]]
"""Rows of the queries, their truth, and every method's scores of them (queries, labels)."""


@dataclass(frozen=True)
class _Measured:
    """One method, in percent: metrics by draw, each label's average precision (draws, labels), NaN where undefined.

    ``on_map`` (pictures,) and ``on_class`` (pictures, labels) are the pictures' influences on their
    means over draws.
    """

    by_draw: dict[str, list[float]]
    by_class: Array
    on_map: Array
    on_class: Array


def record_of(
    shot: int,
    number: int,
    classes: Sequence[str],
    truth: NDArray[np.bool_],
    query: NDArray[np.int64],
    scores: Mapping[str, Array],
    logits: bool,
) -> dict[str, Any]:
    """Make the line of draw ``number`` from truth (pictures, labels) and scores (queries, labels) by method.

    ``logits`` says that a score above 0 means that the label is there.
    """
    left_out = np.setdiff1d(np.arange(len(truth)), query)
    packed = base64.b64encode(np.packbits(truth).tobytes()).decode()
    return {
        "query": f"{shot}shot/{number}",
        "shot": shot,
        "draw": number,
        "classes": list(classes),
        "pictures": len(truth),
        "labels": packed,
        "left_out": left_out.tolist(),
        "logits": logits,
        "scores": {name: _packed(values) for name, values in scores.items()},
    }


def says_anything(line: Mapping[str, Any], method: str) -> bool:
    """Whether any stored score of ``method`` is above 0, so that a label is said to be there."""
    packed = line["scores"][method]
    return bool(packed["low"] + packed["step"] * _STEPS > 0)


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `Nshot/METHOD/mAP` and the others of `multilabel_metrics` are means over draws with Student's t
    interval over them; mAP and `class/NAME` also have one over pictures (``intervals``), with the
    support pictures as drawn. `Nshot/METHOD-OTHER/mAP` are differences of `OWN` and `COMPARED_TO`
    on the same draws. A label without a picture to find in a draw is left out of it;
    `Nshot/n_classes_scored` is the mean number of the others. Chance is the mean share of pictures
    with a label.
    """
    lines = list(records)
    found: list[Metric] = []
    for shot in dict.fromkeys(line["shot"] for line in lines):
        found += _of_shot(f"{shot}shot", [line for line in lines if line["shot"] == shot])
    return found


def _of_shot(prefix: str, lines: list[dict[str, Any]]) -> list[Metric]:
    classes, methods = lines[0]["classes"], list(lines[0]["scores"])
    draws = [_unpacked(line) for line in lines]
    measured = {method: _measured(lines, draws, method) for method in methods}
    shares = np.array([truth.mean(axis=0) for _, truth, _ in draws])
    chance = 100 * float(np.mean([share[share > 0].mean() for share in shares]))
    found = []
    for method, own in measured.items():
        for name, values in own.by_draw.items():
            if name != "n_classes_scored":
                mean = _mean(f"{prefix}/{method}/{name}", values, chance if name == "mAP" else None)
                found.append(_over_pictures(mean, own.on_map) if name == "mAP" else mean)
    for method, other in product(OWN, COMPARED_TO):
        if method in methods and other in methods:
            mine, theirs = measured[method], measured[other]
            value, interval = paired_difference(mine.by_draw["mAP"], theirs.by_draw["mAP"])
            name, unit = f"{prefix}/{method}-{other}/mAP", "percentage points"
            metric = Metric(name=name, value=value, unit=unit, ci95=interval, n=len(lines))
            found.append(_over_pictures(metric, mine.on_map - theirs.on_map))
    scored = float(np.mean(measured[methods[0]].by_draw["n_classes_scored"]))
    found.append(
        Metric(name=f"{prefix}/n_classes_scored", value=scored, unit="classes", n=len(lines))
    )
    for method, own in measured.items():
        for column, name in enumerate(classes):
            values = own.by_class[~np.isnan(own.by_class[:, column]), column]
            if len(values):
                mean = _mean(
                    f"{prefix}/{method}/class/{name}", values, 100 * float(shares[:, column].mean())
                )
                found.append(_over_pictures(mean, own.on_class[:, column]))
    return found


def _measured(lines: Sequence[dict[str, Any]], draws: Sequence[_Draw], method: str) -> _Measured:
    by_draw: dict[str, list[float]] = {}
    by_class = []
    on_map, on_class = (
        np.zeros(lines[0]["pictures"]),
        np.zeros((lines[0]["pictures"], len(lines[0]["classes"]))),
    )
    for line, (query, truth, scores) in zip(lines, draws, strict=True):
        values, own = multilabel_metrics(scores[method], truth, 0.0 if line["logits"] else None)
        for name, value in values.items():
            by_draw.setdefault(name, []).append(
                value if name == "n_classes_scored" else 100 * value
            )
        by_class.append(100 * own)
        for column in np.flatnonzero(truth.any(axis=0)):
            influence = average_precision(scores[method][:, column], truth[:, column])[1]
            on_class[query, column] += 100 * influence
            on_map[query] += 100 * influence / values["n_classes_scored"] / len(lines)
    scored = np.maximum((~np.isnan(by_class)).sum(axis=0), 1)
    return _Measured(by_draw, np.array(by_class), on_map, on_class / scored)


def _mean(name: str, values: Sequence[float] | Array, chance: float | None) -> Metric:
    value, interval = float(np.mean(values)), t_interval(values)
    ci95 = None if interval is None else _share(interval)
    return Metric(name=name, value=value, unit="percent", ci95=ci95, n=len(values), chance=chance)


def _over_pictures(metric: Metric, influence: Array) -> Metric:
    half = _NORMAL * float(np.sqrt((influence**2).sum()))
    found = (metric.value - half, metric.value + half)
    return metric.model_copy(
        update={"intervals": {"pictures": _share(found) if metric.unit == "percent" else found}}
    )


def _share(interval: tuple[float, float]) -> tuple[float, float]:
    """Cut off what no share can be."""
    return max(0.0, interval[0]), min(100.0, interval[1])


def _packed(scores: Array) -> dict[str, Any]:
    low, high = float(scores.min()), float(scores.max())
    step = (high - low) / _STEPS
    steps = np.rint((scores - low) / step if step else np.zeros_like(scores)).astype("<u2")
    return {"low": low, "step": step, "steps": base64.b64encode(steps.tobytes()).decode()}


def _unpacked(line: Mapping[str, Any]) -> _Draw:
    pictures, labels = line["pictures"], len(line["classes"])
    bits = np.frombuffer(base64.b64decode(line["labels"]), dtype=np.uint8)
    truth = np.unpackbits(bits, count=pictures * labels).reshape(pictures, labels).astype(bool)
    query = np.setdiff1d(np.arange(pictures), np.array(line["left_out"], dtype=np.int64))
    scores = {}
    for name, packed in line["scores"].items():
        steps = np.frombuffer(base64.b64decode(packed["steps"]), dtype="<u2").reshape(
            len(query), labels
        )
        scores[name] = packed["low"] + packed["step"] * steps.astype(np.float64)
    return query, truth[query], scores
