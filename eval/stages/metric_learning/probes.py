"""How much of the class features still say: fresh probes, trained after the fact on one half, measured on the other.

An adversary's own accuracy says nothing: it can be fooled while a new classifier reads the class at
once.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_pipeline.randomness import generator_at

PROBES = ("linear", "mlp")
MOST_CLASSES = 500
"""Classes that a probe tells apart at most: ten thousand would take hours."""


def held_out_half(labels: NDArray[Any], seed: int = 0) -> NDArray[np.bool_]:
    """Choose half of each class's samples, one more where the number is odd and none of a class with one sample."""
    generator = generator_at(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        held[rows[: len(rows) // 2]] = True
    return held


def probed_classes(labels: NDArray[Any]) -> NDArray[Any]:
    """Draw `MOST_CLASSES` of the classes, all where there are no more: the same for every method and training."""
    classes = np.unique(labels)
    generator = generator_at(0)
    return classes[np.sort(generator.permutation(len(classes))[:MOST_CLASSES])]


def leakage_probe(
    features: NDArray[Any], labels: NDArray[Any], probe: str = "linear", *, seed: int = 0
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Train a new probe on half of the samples; return which are held out, and what it says of these.

    Samples of classes that :func:`probed_classes` does not draw are in neither half.

    Parameters
    ----------
    features, labels
        (samples, features) and the class of each.
    probe
        `linear`: logistic regression; `mlp`: one hidden layer of 128.
    seed
        Of the halves and of the first weights.
    """
    probed = np.isin(labels, probed_classes(labels))
    held = held_out_half(labels, seed) & probed
    classifier = (
        LogisticRegression(C=10.0, max_iter=300)
        if probe == "linear"
        else MLPClassifier((128,), max_iter=100, early_stopping=False, random_state=seed)
    )
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # a probe that could be better still says what it found
        fitted = make_pipeline(StandardScaler(), classifier).fit(
            features[probed & ~held], labels[probed & ~held]
        )
    return held, fitted.predict(features[held])
