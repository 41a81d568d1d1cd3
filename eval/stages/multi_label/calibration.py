"""Turn the scores of every method into logits, so that a probability of 0.5 is a threshold.

In: base images, methods. Out: a scale and a bias for each method. The bias depends on how often a
label is present. So base images are treated as the measured ones: episodes have as many labels,
drawn anew each time, and images with these labels alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.randomness import generator_at

from .joint_space import Labelled, Logistic
from .methods import Methods, Prepared
from .options import Options
from .sampler import Draw, MultiLabelEpisodeSampler

EPISODES = 5
_QUERIES = 500


def calibrate(
    methods: Methods,
    names: Sequence[str],
    base: Labelled,
    options: Options,
    *,
    labels: int,
    shot: int,
) -> dict[str, Logistic]:
    """Fit scale and bias of each method on episodes of base labels.

    Parameters
    ----------
    methods, names
        The methods, and the names of those to calibrate.
    base
        Images of base labels.
    options
        Options of the stage: filter and seed.
    labels
        Number of labels in an episode; all base labels if there are fewer.
    shot
        Support images per label.

    Raises
    ------
    DataError
        If base labels have too few images for an episode, or every image has all labels.
    """
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    truth = []
    for number in range(EPISODES):
        # The last number keeps these draws apart from those of the support.
        rng = generator_at(options.seed, number, 3)
        columns = np.sort(rng.permutation(len(base.names))[:labels])
        rows, draw = _episode(base, columns, shot, options, number)
        # Queries are sampled only to save time.
        query = np.sort(rng.permutation(draw.query)[:_QUERIES])
        images = base.subset(rows[np.concatenate([draw.support, query])], columns)
        supports = len(draw.support)
        # The draw's rows within `images`: support first, then queries.
        sampled = Draw(np.arange(supports), np.arange(supports, supports + len(query)))
        prepared = Prepared.of(methods.model, images)
        for name, scored in methods.scores(
            names, prepared, sampled, shot=shot, number=number
        ).items():
            scores[name].append(scored.scores.double().numpy().ravel())
        truth.append(images.truth[sampled.query].ravel())
    all_truth = np.concatenate(truth)
    fitted = {}
    for name, of_episodes in scores.items():
        fitted[name] = Logistic.fit(np.concatenate(of_episodes), all_truth)
    return fitted


def _episode(
    base: Labelled, columns: NDArray[np.int64], shot: int, options: Options, number: int
) -> tuple[NDArray[np.int64], Draw]:
    """Return rows of images with some labels, and a draw from them.

    With the filter `strict`, images with other labels are left out, as they are of the measured
    images. If too few remain, all images with one of the labels are used.
    """
    of_these = base.truth[:, columns].sum(axis=1)
    with_any = np.flatnonzero(of_these > 0)
    without_others = np.flatnonzero((of_these > 0) & (of_these == base.truth.sum(axis=1)))
    if options.filter == "strict":
        try:
            return without_others, _draw(base, without_others, columns, shot, options, number)
        except DataError:
            pass
    return with_any, _draw(base, with_any, columns, shot, options, number)


def _draw(
    base: Labelled,
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    shot: int,
    options: Options,
    number: int,
) -> Draw:
    sampler = MultiLabelEpisodeSampler(
        base.truth[np.ix_(rows, columns)],
        [base.names[column] for column in columns],
        shot=shot,
        draws=number + 1,
        seed=options.seed,
        media=[base.media[row] for row in rows],
        name="--base",  # errors name the option
    )
    return sampler[number]
