"""How long to train, and how much the adversary weighs: chosen on classes held out of the training classes.

In: tokens and classes to learn from, and what to try. Out: the chosen weight and step, and the
whole table. Protocol: class folds of A Metric Learning Reality Check (Musgrave et al., 2020); the
test classes are never seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from eval.metrics.neighbours import neighbours

from .probes import leakage_probe
from .training import Settings, class_folds, embed, train_dml

CHECKPOINTS = (0.25, 0.5, 0.75, 1.0)
"""Shares of the steps after which a training may stop."""


@dataclass(frozen=True)
class Selection:
    """The settings with the best mean MAP@R on held-out classes, and with every adversary weight the best step.

    ``table`` holds for every weight, in percent: `map@r` by step, and `leakage_after_all_steps`,
    what a fresh linear probe on the general features of the first fold reads of its training
    classes, wherever the best step was.
    """

    chosen: Settings
    without: Settings
    table: list[dict[str, Any]]


def choose(
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
        Seed to a new embedder.
    layers, grid, labels
        As of `train_dml`, with names of classes.
    settings
        Everything but the weight and the step.
    weights
        Of the adversary; 0, no adversary, is tried besides.
    folds
        Into how many parts the classes are divided.

    Raises
    ------
    DataError
        If there are too few classes.
    """
    parts = class_folds(labels, folds, settings.seed)
    stops = sorted({max(1, round(share * settings.steps)) for share in CHECKPOINTS})
    names = np.asarray(labels)
    tried: list[Settings] = [replace(settings, adversary="none", strength=0.0)]
    tried += [
        replace(settings, strength=weight) for weight in weights if settings.adversary != "none"
    ]
    table: list[dict[str, Any]] = []
    for one in tried:
        scores = []
        for number, (train, held) in enumerate(parts):
            seen, held_out = (
                {i: tokens[rows] for i, tokens in layers.items()} for rows in (train, held)
            )
            classes = np.unique(names[train], return_inverse=True)[1]
            embedder = build(one.seed)
            log = train_dml(
                embedder,
                seen,
                grid,
                classes,
                one,
                observe=_map_at_r(embedder, held_out, grid, names[held].tolist()),
                observed_at=stops,
            )
            scores.append([log.observed[stop] for stop in stops])
            if number == 0:
                half, said = leakage_probe(
                    embed(embedder, seen, grid)[1].numpy(), classes, seed=one.seed
                )
                leakage = 100 * float((said == classes[half]).mean())
        by_step = dict(zip(stops, np.mean(scores, axis=0).tolist(), strict=True))
        table.append({"adversary": one.adversary, "lambda": one.strength, "map@r": by_step})
        table[-1]["leakage_after_all_steps"] = leakage
    best = [
        replace(one, stop=max(stops, key=lambda stop: row["map@r"][stop]))
        for one, row in zip(tried, table, strict=True)
    ]
    score = [max(row["map@r"].values()) for row in table]
    first = 1 if len(best) > 1 else 0  # the method has an adversary where one is asked for
    return Selection(best[first + int(np.argmax(score[first:]))], best[0], table)


def _map_at_r(
    embedder: nn.Module, layers: Mapping[int, Tensor], grid: tuple[int, int], labels: Sequence[str]
) -> Callable[[], float]:
    def measure() -> float:
        return 100 * neighbours(embed(embedder, layers, grid)[0], labels).means()["map@r"]

    return measure
