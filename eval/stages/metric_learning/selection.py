"""How long to train, and how much weight the adversary gets: chosen on held-out training classes.

In: tokens and classes to train on, and the weights to try. Out: the chosen weight and step, and the
whole table. Protocol: class folds of A Metric Learning Reality Check (Musgrave et al., 2020); the
test classes are never used here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from eval.metrics.neighbours import neighbours

from .options import Adversary
from .probes import leakage_probe
from .training import Settings, class_folds, embed, train_dml

CHECKPOINTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the steps after which training may stop."""

# `lambda` is a keyword in Python, so the fields cannot be written as a class.
Tried = TypedDict(
    "Tried",
    {
        "adversary": Adversary,
        "lambda": float,
        "map@r": dict[int, float],
        "leakage_after_all_steps": float,
    },
)
"""What a weight reached, in percent: the mean MAP@R over folds by step, and what a fresh linear
probe reads of the first fold's training classes after all steps, wherever the best step was."""


@dataclass(frozen=True)
class Selection:
    """Settings with the best mean MAP@R on held-out classes; each weight is tried at its best step.

    ``chosen`` is for methods with an adversary, ``without`` for those without one, and ``table``
    holds what every weight reached.
    """

    chosen: Settings
    without: Settings
    table: list[Tried]


def select_settings(
    build: Callable[[int], nn.Module],
    layers: Mapping[int, Tensor],
    grid: tuple[int, int],
    labels: Sequence[str],
    settings: Settings,
    weights: Sequence[float],
    folds: int,
) -> Selection:
    """Train once for every weight and fold, and choose by the mean over folds.

    Parameters
    ----------
    build
        Makes a new embedder from a seed.
    layers, grid, labels
        Tokens by block and their grid, as in `train_dml`, and the name of each image's class.
    settings
        Everything but the weight and the step.
    weights
        Weights of the adversary to try; 0, that is, training without one, is always tried too.
    folds
        Number of parts that the classes are divided into.

    Raises
    ------
    DataError
        If there are too few classes.
    """
    # Classes are held out, not images: unseen classes are what the test set asks for.
    parts = class_folds(labels, folds, settings.seed)
    # Short trainings have fewer different steps than there are shares.
    stops = sorted({max(1, round(share * settings.steps)) for share in CHECKPOINTS})
    names = np.asarray(labels)
    candidates = [replace(settings, adversary="none", strength=0.0)]
    if settings.adversary != "none":
        candidates += [replace(settings, strength=weight) for weight in weights]
    table: list[Tried] = []
    best_stops: list[Settings] = []
    best_scores: list[float] = []
    for candidate in candidates:
        tried = _try(candidate, build, layers, grid, names, parts, stops)
        table.append(tried)
        map_at_r = tried["map@r"]
        best_stop = max(stops, key=lambda stop: map_at_r[stop])
        best_stops.append(replace(candidate, stop=best_stop))
        best_scores.append(map_at_r[best_stop])
    # If an adversary was requested, the method has one, even if training without it scores higher.
    first = 1 if len(candidates) > 1 else 0
    chosen = first + int(np.argmax(best_scores[first:]))
    return Selection(best_stops[chosen], best_stops[0], table)


def _try(
    candidate: Settings,
    build: Callable[[int], nn.Module],
    layers: Mapping[int, Tensor],
    grid: tuple[int, int],
    names: NDArray[np.str_],
    parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    stops: Sequence[int],
) -> Tried:
    """Train on each fold with these settings, and measure after each of the steps ``stops``."""
    scores: list[list[float]] = []
    leakages: list[float] = []
    for train, held in parts:
        seen = {layer: tokens[train] for layer, tokens in layers.items()}
        held_out = {layer: tokens[held] for layer, tokens in layers.items()}
        classes = np.unique(names[train], return_inverse=True)[1]
        embedder = build(candidate.seed)
        curves = train_dml(
            embedder,
            seen,
            grid,
            classes,
            candidate,
            observe=_map_at_r(embedder, held_out, grid, names[held].tolist()),
            observed_at=stops,
        )
        scores.append([curves.observed[stop] for stop in stops])
        # A probe takes as long as a short training; the first fold is enough for the table.
        if not leakages:
            general = embed(embedder, seen, grid)[1].numpy()
            half, predicted = leakage_probe(general, classes, seed=candidate.seed)
            leakages.append(100 * float((predicted == classes[half]).mean()))
    means = np.mean(scores, axis=0).tolist()
    return {
        "adversary": candidate.adversary,
        "lambda": candidate.strength,
        "map@r": dict(zip(stops, means, strict=True)),
        "leakage_after_all_steps": leakages[0],
    }


def _map_at_r(
    embedder: nn.Module, layers: Mapping[int, Tensor], grid: tuple[int, int], labels: Sequence[str]
) -> Callable[[], float]:
    """Return a function that measures MAP@R of the embedder as it is when called."""

    def measure() -> float:
        return 100 * neighbours(embed(embedder, layers, grid)[0], labels).means()["map@r"]

    return measure
