"""How well fresh classifiers read the training classes from features that should hide them.

In: features and classes of training images. Out: predictions of a probe, trained on half of the
images, for the other half. An adversary's own accuracy proves nothing: it can be fooled while a new
classifier reads the class at once.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_pipeline.randomness import generator_at

Probe = Literal["linear", "mlp"]
PROBES: tuple[Probe, ...] = ("linear", "mlp")
MOST_CLASSES = 500
"""Most classes that a probe distinguishes: ten thousand would take hours."""


def leakage_probe(
    features: NDArray[Any], labels: NDArray[Any], probe: Probe = "linear", *, seed: int = 0
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """Train a new probe on half of the samples, and let it classify the other half.

    Samples of classes that :func:`probed_classes` does not draw are in neither half.

    Parameters
    ----------
    features, labels
        (samples, features) and the class of each.
    probe
        `linear`: logistic regression; `mlp`: one hidden layer of 128.
    seed
        Draws the halves and the first weights.

    Returns
    -------
    tuple
        Which samples are held out (samples,), and the predicted classes of these.
    """
    is_probed = np.isin(labels, probed_classes(labels))
    is_held_out = held_out_half(labels, seed) & is_probed
    is_fitted = is_probed & ~is_held_out
    classifier: LogisticRegression | MLPClassifier
    if probe == "linear":
        classifier = LogisticRegression(C=10.0, max_iter=300)
    else:
        classifier = MLPClassifier((128,), max_iter=100, early_stopping=False, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), classifier)
    with warnings.catch_warnings():
        # A probe that is not quite converged still gives a lower bound of the leakage.
        warnings.simplefilter("ignore", ConvergenceWarning)
        pipeline.fit(features[is_fitted], labels[is_fitted])
    return is_held_out, pipeline.predict(features[is_held_out])


def held_out_half(labels: NDArray[Any], seed: int = 0) -> NDArray[np.bool_]:
    """Choose half of each class's samples, rounded down: none of a class with one sample."""
    generator = generator_at(seed)
    is_held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        is_held_out[rows[: len(rows) // 2]] = True
    return is_held_out


def probed_classes(labels: NDArray[Any]) -> NDArray[Any]:
    """Draw `MOST_CLASSES` of the classes, or all if there are fewer.

    The draw is the same for every method and seed, so that their leakage can be compared.
    """
    classes = np.unique(labels)
    generator = generator_at(0)
    return classes[np.sort(generator.permutation(len(classes))[:MOST_CLASSES])]
