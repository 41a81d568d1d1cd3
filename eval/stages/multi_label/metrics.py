"""Metrics of pictures with several labels: average precision, precision, recall and F1, over labels and over pairs.

In: scores and truth (pictures, labels). Averages over labels leave out labels that no picture has, for which recall and
average precision are undefined. Definitions are scikit-learn's; average precision is written out because its interval
needs every picture's influence on it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support

Array = NDArray[np.float64]


def average_precision(scores: Array, truth: NDArray[np.bool_]) -> tuple[float, Array]:
    """Average precision in 0..1 of one label, and every picture's influence on it (pictures,).

    Equal scores are one step of the curve, so that their order does not matter. The influence is the derivative with
    respect to the picture's weight (1); the sum of its squares is the variance of the value when other pictures are
    drawn (infinitesimal jackknife). Without a positive both are NaN.
    """
    if not truth.any():
        return float("nan"), np.full(len(scores), np.nan)
    order = np.argsort(-scores, kind="stable")
    new = np.append(True, np.diff(scores[order]) != 0)
    step = np.cumsum(new) - 1  # of the curve, that each picture belongs to
    ends = np.flatnonzero(np.append(new[1:], True))
    above, right = ends + 1.0, np.cumsum(truth[order])[ends].astype(np.float64)
    gained, total = np.diff(right, prepend=0), right[-1]
    precision = right / above
    value = float((gained * precision).sum() / total)
    # A picture moves the precision of its own step and of all below it.
    as_one = np.cumsum((gained * right / above**2)[::-1])[::-1]
    as_right = np.cumsum((gained / above)[::-1])[::-1]
    influence = np.empty(len(scores))
    influence[order] = (truth[order] * (precision - value + as_right)[step] - as_one[step]) / total
    return value, influence


def multilabel_metrics(
    scores: Array, truth: NDArray[np.bool_], threshold: float | None = 0.0
) -> tuple[dict[str, float], Array]:
    """Metrics of all labels together, and each label's average precision (labels,), all in 0..1 or NaN.

    `mAP` is the mean of the labels' average precisions, `micro_AP` that of all pairs of picture and label in one
    ranking. `macro_F1` is the mean of the labels' F1; `macro_F1_PR` the harmonic mean of `macro_P` and `macro_R`, which
    the published evaluation of multi-label few-shot recognition calls macro F1.

    Parameters
    ----------
    scores, truth
        (pictures, labels).
    threshold
        Scores above it (0 for logits: a probability of 0.5) say that a label is there; None leaves out P, R and F1.
    """
    by_label = np.array([average_precision(scores[:, c], truth[:, c])[0] for c in range(truth.shape[1])])
    scored = truth.any(axis=0)
    found = {"n_classes_scored": float(scored.sum())}
    if not scored.any():
        return found, by_label
    found |= {"mAP": float(by_label[scored].mean())}
    found |= {"micro_AP": average_precision(scores.ravel(), truth.ravel())[0]}
    if threshold is None:
        return found, by_label
    said = scores > threshold
    for name in ("micro", "macro"):
        which = {"labels": np.flatnonzero(scored)} if name == "macro" else {}
        p, r, f, _ = precision_recall_fscore_support(*_two(truth, said), average=name, zero_division=0, **which)
        found |= {f"{name}_P": float(p), f"{name}_R": float(r), f"{name}_F1": float(f)}
    p, r = found["macro_P"], found["macro_R"]
    return found | {"macro_F1_PR": 2 * p * r / (p + r) if p + r else 0.0}, by_label


def _two(truth: NDArray[np.bool_], said: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Give a single label a second column that is always absent, because scikit-learn reads one column as classes."""
    if truth.shape[1] > 1:
        return truth, said
    none = np.zeros_like(truth)
    return np.hstack([truth, none]), np.hstack([said, none])
