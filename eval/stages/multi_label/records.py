"""Records of multi-label recognition, one draw on each line, and the metrics computed from them.

In: scores of all methods in a draw. Out: its record (`DrawRecord`), and metrics of all records.
A record holds the labels of all images, and the scores of every method for all images that are
neither support nor copies of it, in 65,536 steps from the lowest to the highest. Metrics are
computed from the stored scores, so that records reproduce them to the last bit. Every mean has two
intervals: over draws, and over images.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from eval.results.intervals import paired_difference, t_interval
from eval.results.schema import Metric

from .methods import COMPARED_TO, OWN
from .metrics import Array, average_precision, multilabel_metrics

_STEPS = 65535  # the largest number of two bytes
_NORMAL = 1.959964  # half a 95 % interval in standard errors


class PackedScores(TypedDict):
    """Scores (queries, labels) of a method: ``low`` + ``step`` * number."""

    low: float
    step: float
    steps: str
    """The numbers as 16-bit little-endian integers in base64."""


class DrawRecord(TypedDict):
    """One draw: its support, and what every method scored."""

    query: str
    """Shots and number of the draw, such as `5shot/3`."""
    shot: int
    draw: int
    classes: list[str]
    pictures: int
    """Number of images."""
    labels: str
    """Truth (images, labels) as bits in base64."""
    left_out: list[int]
    """Rows of the images that are not queries: support and copies of it."""
    logits: bool
    """Whether a score above 0 means that the label is present."""
    scores: dict[str, PackedScores]
    constant: NotRequired[list[str]]
    """Methods with equal scores for all images and labels."""
    support: NotRequired[list[str]]
    """Keys of the support images."""
    grid: NotRequired[list[int]]
    """Rows and columns of the patches; like ``chosen`` only in the first draw, for the report."""
    chosen: NotRequired[dict[str, list[dict[str, list[int]]]]]
    """By method, for each support image, the patches that its labels chose."""


@dataclass(frozen=True)
class _Draw:
    """What a record holds, unpacked."""

    query: NDArray[np.int64]
    """Rows of the queries."""
    truth: NDArray[np.bool_]
    """(queries, labels)"""
    scores: dict[str, Array]
    """By method (queries, labels)."""


@dataclass(frozen=True)
class _MethodMetrics:
    """Metrics of one method in percent, and the influence of every image on them.

    ``by_draw`` has a value for each draw, ``by_class`` (draws, labels) the average precision, NaN
    where it is undefined. ``on_map`` (images,) and ``on_class`` (images, labels) are the images'
    influences on the means over draws.
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
) -> DrawRecord:
    """Make the record of a draw.

    Parameters
    ----------
    shot, number
        Support images per label, and the number of the draw.
    classes
        Names of the labels.
    truth
        Which image has which label (images, labels).
    query
        Rows of the images that were queries.
    scores
        Scores (queries, labels) by method.
    logits
        Whether a score above 0 means that the label is present.
    """
    packed = {}
    for name, values in scores.items():
        packed[name] = _pack(values)
    return {
        "query": f"{shot}shot/{number}",
        "shot": shot,
        "draw": number,
        "classes": list(classes),
        "pictures": len(truth),
        "labels": base64.b64encode(np.packbits(truth).tobytes()).decode(),
        "left_out": np.setdiff1d(np.arange(len(truth)), query).tolist(),
        "logits": logits,
        "scores": packed,
    }


def predicts_any_label(record: DrawRecord, method: str) -> bool:
    """Return whether any stored score of ``method`` is above 0."""
    packed = record["scores"][method]
    return bool(packed["low"] + packed["step"] * _STEPS > 0)


def metrics(records: Iterable[DrawRecord]) -> list[Metric]:
    """Compute every metric from the records.

    `Nshot/METHOD/mAP` and the others of `multilabel_metrics` are means over draws with Student's t
    interval. mAP and `class/NAME` also have an interval over images (``intervals``), for the
    support images that were drawn. `Nshot/METHOD-OTHER/mAP` are differences of `OWN` and
    `COMPARED_TO` on the same draws. A label that no query of a draw has is left out of that draw;
    `Nshot/n_classes_scored` is the mean number of the remaining labels. Chance is the mean share
    of images with a label.
    """
    by_shot: dict[int, list[DrawRecord]] = {}
    for record in records:
        by_shot.setdefault(record["shot"], []).append(record)
    computed: list[Metric] = []
    for shot, of_shot in by_shot.items():
        computed += _shot_metrics(f"{shot}shot", of_shot)
    return computed


def _shot_metrics(prefix: str, records: Sequence[DrawRecord]) -> list[Metric]:
    classes, methods = records[0]["classes"], list(records[0]["scores"])
    draws = [_unpack(record) for record in records]
    measured = {method: _method_metrics(records, draws, method) for method in methods}
    label_shares = np.array([draw.truth.mean(axis=0) for draw in draws])
    # A ranking at random has the share of positives as average precision; labels without any
    # positive are left out, as they are of mAP.
    chance_by_draw = [shares[shares > 0].mean() for shares in label_shares]
    chance = 100 * float(np.mean(chance_by_draw))
    computed = []
    for method, of_method in measured.items():
        for name, values in of_method.by_draw.items():
            if name == "mAP":
                mean = _mean(f"{prefix}/{method}/mAP", values, chance)
                computed.append(_with_image_interval(mean, of_method.on_map))
            elif name != "n_classes_scored":
                computed.append(_mean(f"{prefix}/{method}/{name}", values, None))
    for method, other in product(OWN, COMPARED_TO):
        if method in measured and other in measured:
            computed.append(
                _difference(f"{prefix}/{method}-{other}/mAP", measured[method], measured[other])
            )
    # The same for every method: it depends on the draws alone.
    scored = float(np.mean(measured[methods[0]].by_draw["n_classes_scored"]))
    name = f"{prefix}/n_classes_scored"
    computed.append(Metric(name=name, value=scored, unit="classes", n=len(records)))
    for method, of_method in measured.items():
        for column, label in enumerate(classes):
            by_draw = of_method.by_class[:, column]
            defined = by_draw[~np.isnan(by_draw)]
            if len(defined):
                label_chance = 100 * float(label_shares[:, column].mean())
                mean = _mean(f"{prefix}/{method}/class/{label}", defined, label_chance)
                computed.append(_with_image_interval(mean, of_method.on_class[:, column]))
    return computed


def _method_metrics(
    records: Sequence[DrawRecord], draws: Sequence[_Draw], method: str
) -> _MethodMetrics:
    images, labels = records[0]["pictures"], len(records[0]["classes"])
    by_draw: dict[str, list[float]] = {}
    by_class = []
    on_map, on_class = np.zeros(images), np.zeros((images, labels))
    for record, draw in zip(records, draws, strict=True):
        scores = draw.scores[method]
        threshold = 0.0 if record["logits"] else None
        values, by_label = multilabel_metrics(scores, draw.truth, threshold)
        for name, value in values.items():
            scale = 1 if name == "n_classes_scored" else 100
            by_draw.setdefault(name, []).append(scale * value)
        by_class.append(100 * by_label)
        for column in np.flatnonzero(draw.truth.any(axis=0)):
            influence = average_precision(scores[:, column], draw.truth[:, column])[1]
            on_class[draw.query, column] += 100 * influence
            # mAP is a mean over the scored labels of a draw, and then over draws.
            on_map[draw.query] += 100 * influence / values["n_classes_scored"] / len(records)
    draws_of_label = np.maximum((~np.isnan(by_class)).sum(axis=0), 1)
    return _MethodMetrics(by_draw, np.array(by_class), on_map, on_class / draws_of_label)


def _mean(name: str, values: Sequence[float] | Array, chance: float | None) -> Metric:
    interval = t_interval(values)
    return Metric(
        name=name,
        value=float(np.mean(values)),
        unit="percent",
        ci95=None if interval is None else _clip_to_percent(interval),
        n=len(values),
        chance=chance,
    )


def _difference(name: str, method: _MethodMetrics, other: _MethodMetrics) -> Metric:
    value, interval = paired_difference(method.by_draw["mAP"], other.by_draw["mAP"])
    metric = Metric(
        name=name,
        value=value,
        unit="percentage points",
        ci95=interval,
        n=len(method.by_draw["mAP"]),
    )
    return _with_image_interval(metric, method.on_map - other.on_map)


def _with_image_interval(metric: Metric, influence: Array) -> Metric:
    # The sum of squared influences is the variance when other images are drawn (infinitesimal
    # jackknife); resampling would measure thousands of tables.
    half = _NORMAL * float(np.sqrt((influence**2).sum()))
    interval = (metric.value - half, metric.value + half)
    if metric.unit == "percent":
        interval = _clip_to_percent(interval)
    return metric.model_copy(update={"intervals": {"pictures": interval}})


def _clip_to_percent(interval: tuple[float, float]) -> tuple[float, float]:
    return max(0.0, interval[0]), min(100.0, interval[1])


def _pack(scores: Array) -> PackedScores:
    # Two bytes per score keep metrics to a hundredth of a point, at a quarter of the size of
    # float64.
    low, high = float(scores.min()), float(scores.max())
    step = (high - low) / _STEPS
    numbers = np.zeros_like(scores)
    if step > 0:  # otherwise all scores are equal
        numbers = np.rint((scores - low) / step)
    encoded = base64.b64encode(numbers.astype("<u2").tobytes()).decode()
    return {"low": low, "step": step, "steps": encoded}


def _unpack(record: DrawRecord) -> _Draw:
    images, labels = record["pictures"], len(record["classes"])
    bits = np.frombuffer(base64.b64decode(record["labels"]), dtype=np.uint8)
    # packbits fills the last byte with zeros, which count cuts off.
    truth = np.unpackbits(bits, count=images * labels).reshape(images, labels).astype(bool)
    query = np.setdiff1d(np.arange(images), np.array(record["left_out"], dtype=np.int64))
    scores = {}
    for name, packed in record["scores"].items():
        numbers = np.frombuffer(base64.b64decode(packed["steps"]), dtype="<u2")
        table = numbers.reshape(len(query), labels).astype(np.float64)
        scores[name] = packed["low"] + packed["step"] * table
    return _Draw(query, truth[query], scores)
