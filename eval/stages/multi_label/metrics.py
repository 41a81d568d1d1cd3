"""Metrics of pictures with several labels: average precision, precision, recall and F1, over labels and over pairs.

In: scores and truth (pictures, labels). Averages over labels leave out labels that no picture has,
for which recall and average precision are undefined. Definitions are scikit-learn's, written out
because an interval over pictures needs every picture's influence, and because thousands of small
tables are measured.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def average_precision(scores: Array, truth: NDArray[np.bool_]) -> tuple[float, Array]:
    """Average precision in 0..1 of one label, and every picture's influence on it (pictures,).

    Equal scores are one step of the curve, so that their order does not matter. The influence is
    the derivative with respect to the picture's weight (1); the sum of its squares is the variance
    of the value when other pictures are drawn (infinitesimal jackknife). Without a positive both
    are NaN.
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

    `mAP` is the mean of the labels' average precisions, `micro_AP` that of all pairs of picture and
    label in one ranking. `macro_F1` is the mean of the labels' F1; `macro_F1_PR` the harmonic mean
    of `macro_P` and `macro_R`, which the published evaluation of multi-label few-shot recognition
    calls macro F1.

    Parameters
    ----------
    scores, truth
        (pictures, labels).
    threshold
        Scores above it (0 for logits: a probability of 0.5) say that a label is there; None leaves
        out P, R and F1.
    """
    by_label = np.array(
        [average_precision(scores[:, c], truth[:, c])[0] for c in range(truth.shape[1])]
    )
    scored = truth.any(axis=0)
    found = {"n_classes_scored": float(scored.sum())}
    if not scored.any():
        return found, by_label
    found |= {"mAP": float(by_label[scored].mean())}
    found |= {"micro_AP": average_precision(scores.ravel(), truth.ravel())[0]}
    if threshold is None:
        return found, by_label
    said = scores > threshold
    # Rows: right, said, there; F1 is twice the right ones over the sum of both others.
    counts = np.stack([said & truth, said, truth]).sum(axis=1).astype(np.float64)
    for name, (right, claimed, there) in {
        "micro": counts.sum(axis=1),
        "macro": counts[:, scored],
    }.items():
        several = {
            "P": _share(right, claimed),
            "R": _share(right, there),
            "F1": _share(2 * right, claimed + there),
        }
        found |= {f"{name}_{which}": float(np.mean(value)) for which, value in several.items()}
    p, r = found["macro_P"], found["macro_R"]
    return found | {"macro_F1_PR": float(_share(np.array(2 * p * r), np.array(p + r)))}, by_label


def _share(part: Array, whole: Array) -> Array:
    """Divide, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
