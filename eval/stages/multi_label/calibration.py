"""Scores of every method into logits, by one scale and one bias each, so that a probability of 0.5 means something.

In: base pictures. They are treated as the measured ones will be: as many labels, drawn anew for
every episode, and only pictures of these. How often a label is present, which the bias depends on,
is then close to what will be met.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.randomness import generator_at

from .joint_space import Labelled, Logistic
from .methods import Methods, Prepared
from .options import Filter
from .sampler import Draw, MultiLabelEpisodeSampler

EPISODES = 5
_QUERIES = 500


def calibrated(
    methods: Methods,
    names: list[str],
    base: Labelled,
    *,
    labels: int,
    shot: int,
    keep: Filter,
    seed: int,
) -> dict[str, Logistic]:
    """Fit scale and bias of each method on episodes of so many base ``labels`` (all where there are fewer).

    Raises DataError where base labels have too few pictures for an episode, or every picture has
    all of them.
    """
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    truth = []
    for number in range(EPISODES):
        rng = generator_at(seed, number, 3)
        columns = np.sort(rng.permutation(len(base.names))[:labels])
        rows, draw = _episode(base, columns, shot, keep, seed, number)
        query = np.sort(rng.permutation(draw.query)[:_QUERIES])
        both = np.concatenate([draw.support, query])
        few = Draw(np.arange(len(draw.support)), np.arange(len(draw.support), len(both)))
        prepared = Prepared.of(methods.model, base.subset(rows[both], columns))
        found = methods.scores(names, prepared, few, shot=shot, number=number)
        for name, (values, _) in found.items():
            scores[name].append(values.double().numpy().ravel())
        truth.append(prepared.data.truth[few.query].ravel())
    return {
        name: Logistic.fit(np.concatenate(values), np.concatenate(truth))
        for name, values in scores.items()
    }


def _episode(
    base: Labelled, columns: NDArray[np.int64], shot: int, keep: Filter, seed: int, number: int
) -> tuple[NDArray[np.int64], Draw]:
    """Choose the pictures of some labels (with none besides where they suffice) and draw from them."""
    chosen = base.truth[:, columns].any(axis=1)
    alone = chosen & (base.truth[:, columns].sum(axis=1) == base.truth.sum(axis=1))
    for rows in [np.flatnonzero(alone), np.flatnonzero(chosen)][keep == "any" :]:
        try:
            names, media = (
                [base.names[column] for column in columns],
                [base.media[row] for row in rows],
            )
            truth = base.truth[np.ix_(rows, columns)]
            sampler = MultiLabelEpisodeSampler(
                truth, names, shot=shot, draws=number + 1, seed=seed, media=media, name="--base"
            )
            return rows, sampler[number]
        except DataError as error:
            problem = error
    raise problem
