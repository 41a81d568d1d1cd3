"""Metrics of images with several labels: average precision, precision, recall and F1.

In: scores and truth (images, labels). Out: metrics averaged over labels (macro) and over all pairs
of image and label (micro). Averages over labels leave out labels that no image has: their recall
and average precision are undefined. Definitions are scikit-learn's. They are written out here
because an interval over images needs every image's influence, and because thousands of small
tables are measured.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def average_precision(scores: Array, truth: NDArray[np.bool_]) -> tuple[float, Array]:
    """Return the average precision of one label, and every image's influence on it (images,).

    The value is in 0..1. Equal scores are one step of the curve, so that their order does not
    matter. The influence is the derivative with respect to the weight of an image (which is 1);
    the sum of its squares is the variance of the value when other images are drawn (infinitesimal
    jackknife). If no image has the label, value and influence are NaN.
    """
    if not truth.any():
        return float("nan"), np.full(len(scores), np.nan)
    order = np.argsort(-scores, kind="stable")
    starts_step = np.append(True, np.diff(scores[order]) != 0)
    step = np.cumsum(starts_step) - 1  # the step of the curve that each image belongs to
    last_of_step = np.flatnonzero(np.append(starts_step[1:], True))
    # At the end of each step: how many images are ranked so far, and how many of them are right.
    ranked = last_of_step + 1.0
    right = np.cumsum(truth[order])[last_of_step].astype(np.float64)
    gained, total = np.diff(right, prepend=0), right[-1]
    precision = right / ranked
    value = float((gained * precision).sum() / total)
    # More weight on an image changes the precision of its own step and of all later ones: every
    # image adds to the number ranked, and a right one also to the number of right ones. Both are
    # sums from a step to the last.
    through_ranked = np.cumsum((gained * right / ranked**2)[::-1])[::-1]
    through_right = np.cumsum((gained / ranked)[::-1])[::-1]
    of_right = (precision - value + through_right)[step]
    influence = np.empty(len(scores))
    influence[order] = (truth[order] * of_right - through_ranked[step]) / total
    return value, influence


def multilabel_metrics(
    scores: Array, truth: NDArray[np.bool_], threshold: float | None = 0.0
) -> tuple[dict[str, float], Array]:
    """Return metrics of all labels by name, and the average precision of each label (labels,).

    All are in 0..1 or NaN. `mAP` is the mean of the labels' average precisions, `micro_AP` the
    average precision of all pairs of image and label in one ranking. `macro_F1` is the mean of the
    labels' F1, and `macro_F1_PR` the harmonic mean of `macro_P` and `macro_R`, which the published
    evaluation of multi-label few-shot recognition calls macro F1.

    Parameters
    ----------
    scores, truth
        (images, labels).
    threshold
        A label is predicted if its score is higher (0 for logits: a probability of 0.5). With None
        there are no P, R and F1.
    """
    by_label = np.empty(truth.shape[1])
    for column in range(truth.shape[1]):
        by_label[column] = average_precision(scores[:, column], truth[:, column])[0]
    scored = truth.any(axis=0)
    values = {"n_classes_scored": float(scored.sum())}
    if not scored.any():
        return values, by_label
    values["mAP"] = float(by_label[scored].mean())
    values["micro_AP"] = average_precision(scores.ravel(), truth.ravel())[0]
    if threshold is None:
        return values, by_label
    predicted = scores > threshold
    # Rows: right, predicted, present; columns: labels.
    counts = np.stack([predicted & truth, predicted, truth]).sum(axis=1).astype(np.float64)
    # Micro counts all labels together, macro averages over the labels that some image has.
    for name, of_name in (("micro", counts.sum(axis=1)), ("macro", counts[:, scored])):
        n_right, n_predicted, n_present = of_name
        values[f"{name}_P"] = float(np.mean(_share(n_right, n_predicted)))
        values[f"{name}_R"] = float(np.mean(_share(n_right, n_present)))
        values[f"{name}_F1"] = float(np.mean(_share(2 * n_right, n_predicted + n_present)))
    p, r = values["macro_P"], values["macro_R"]
    values["macro_F1_PR"] = float(_share(np.array(2 * p * r), np.array(p + r)))
    return values, by_label


def _share(part: Array, whole: Array) -> Array:
    """Divide; the share of nothing is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
