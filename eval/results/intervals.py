"""95 % intervals that resample what was sampled: images with all captions, not single captions.

In: values of queries and the cluster (image) that each belongs to. Out: an interval, or a whole
`Metric`. Values between the extremes get a percentile bootstrap over clusters. Proportions of right
answers get Wilson's score interval with the effective sample size of the clusters: a bootstrap of
5 right answers in 100 covers the truth in 83 % of cases only, and at 0 or 100 % it is a point.

Means over few-shot episodes have Student's t interval. Over episodes that share images it says how
far another draw of episodes from these images would lie (closed world); over disjoint episodes, how
far other images would lie (open world: Lafargue et al., "Oops, I sampled it again", arXiv
2409.02850).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap, norm
from scipy.stats import t as student

from eval.results.schema import Metric

RESAMPLES = 2000


def mean_metric(
    name: str,
    values: ArrayLike,
    clusters: Sequence[Any],
    *,
    unit: str = "percent",
    chance: float | None = None,
) -> Metric:
    """Make the metric of a mean with its interval.

    Parameters
    ----------
    name, unit, chance
        Of the metric; percentages lie between 0 and 100.
    values
        Value of each query (queries,), in the unit.
    clusters
        What each query belongs to, for example its image: queries of a cluster are not independent.
    """
    flat = np.asarray(values, dtype=np.float64)
    if unit == "percent" and np.isin(flat, (0.0, 100.0)).all():
        low, high = proportion_interval(flat == 100.0, clusters)
        interval = (100 * low, 100 * high)
    else:
        interval = mean_interval(flat, clusters)
    return Metric(
        name=name,
        value=float(flat.mean()),
        unit=unit,
        ci95=interval,
        n=len(flat),
        chance=chance,
        clusters=len(np.unique(_numbered(clusters))),
    )


def proportion_interval(right: ArrayLike, clusters: Sequence[Any]) -> tuple[float, float]:
    """Wilson score interval of the share of right answers, with clustered answers.

    Parameters
    ----------
    right
        Whether each answer is right (queries,).
    clusters
        What each answer belongs to.

    Notes
    -----
    The number of answers is replaced by the effective number n of independent ones, at which a
    binomial proportion would vary as much as this one does between clusters, and the normal
    quantile by Student's for few clusters (Korn and Graubard, 1998, with Wilson's interval for
    theirs; see Franco et al., 2019). At 0 and 100 %, where nothing varies, n is the number of
    clusters.
    """
    hits = np.asarray(right, dtype=np.float64)
    group = _numbered(clusters)
    sums, counts = np.bincount(group, weights=hits), np.bincount(group)
    share, total, number = float(hits.mean()), len(hits), len(counts)
    if number < 2:
        return 0.0, 1.0  # one cluster says nothing about others
    # Of a ratio of totals over clusters, linearized: both the hits and the counts of a cluster
    # vary.
    variance = number / (number - 1) * float(((sums - share * counts) ** 2).sum()) / total**2
    effective = number if variance == 0 else share * (1 - share) / variance
    # Answers that vary less than independent ones do not count as more than there are.
    effective = min(effective, total)
    z = float(norm.ppf(0.975))
    # With few clusters the variance is uncertain itself, which Student's quantile allows for.
    effective *= (z / float(student.ppf(0.975, number - 1))) ** 2
    centre = (share + z**2 / (2 * effective)) / (1 + z**2 / effective)
    spread = share * (1 - share) / effective + z**2 / (4 * effective**2)
    half = z * float(np.sqrt(spread)) / (1 + z**2 / effective)
    # Rounding must not take away the end at which the proportion itself lies.
    return min(max(0.0, centre - half), share), max(min(1.0, centre + half), share)


def mean_interval(values: ArrayLike, clusters: Sequence[Any]) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean, resampling whole clusters.

    ``values`` (queries,) each belong to the unit that ``clusters`` names (an image). With one
    cluster there is nothing to resample and the interval is the mean itself. The seed is fixed: the
    same values give the same interval.
    """
    flat = np.asarray(values, dtype=np.float64)
    group = _numbered(clusters)
    return ratio_interval(np.bincount(group, weights=flat), np.bincount(group))


def ratio_interval(sums: ArrayLike, counts: ArrayLike) -> tuple[float, float]:
    """Percentile bootstrap interval of total ``sums`` over total ``counts``, both (clusters,)."""

    def mean(s: NDArray[Any], c: NDArray[Any], axis: int) -> NDArray[Any]:
        return s.sum(axis=axis) / c.sum(axis=axis)

    return _interval((np.asarray(sums, dtype=np.float64), np.asarray(counts)), mean)


def median_interval(values: ArrayLike, clusters: Sequence[Any]) -> tuple[float, float]:
    """Percentile bootstrap interval of the median of ``values`` (queries,) over clusters."""
    flat = np.asarray(values, dtype=np.float64)
    group = _numbered(clusters)
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    # One row per cluster, padded with NaN, so that a draw of clusters is a single indexing.
    table = np.full((len(counts), counts.max()), np.nan)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    table[group[order], place] = flat[order]

    def median(rows: NDArray[Any], axis: int) -> NDArray[Any]:
        drawn = table[np.moveaxis(rows, axis, -1)]
        return np.nanmedian(drawn.reshape(*drawn.shape[:-2], -1), axis=-1)

    return _interval((np.arange(len(counts)),), median)


def mean_of_means_interval(
    values: ArrayLike,
    groups: Sequence[Any],
    clusters: Sequence[Any],
    *,
    scale: float | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over groups of each group's mean.

    Whole clusters are resampled, which may hold queries of several groups; a group that was not
    drawn is left out. ``scale`` is the value of a right answer, where ``values`` (queries,) are
    answers: if all are wrong or all are right, the interval is Wilson's over clusters.
    """
    flat = np.asarray(values, dtype=np.float64)
    if scale is not None and (flat == flat[0]).all() and flat[0] in (0.0, scale):
        low, high = proportion_interval(flat == scale, clusters)
        return scale * low, scale * high
    group, cluster = _numbered(groups), _numbered(clusters)
    shape = (cluster.max() + 1, group.max() + 1)
    place = np.ravel_multi_index((cluster, group), shape)
    size = shape[0] * shape[1]
    sums = np.bincount(place, weights=flat, minlength=size).reshape(shape)
    counts = np.bincount(place, minlength=size).reshape(shape)

    def mean_of_means(rows: NDArray[Any], axis: int) -> NDArray[Any]:
        drawn = np.moveaxis(rows, axis, -1)
        # How often each cluster was drawn, so that no table of all draws with all groups is made.
        times = np.apply_along_axis(np.bincount, -1, drawn, minlength=shape[0])
        total, number = times @ sums, times @ counts
        drawn_at_all = number > 0
        means = np.divide(total, number, out=np.zeros_like(total), where=drawn_at_all)
        return means.sum(axis=-1) / drawn_at_all.sum(axis=-1)

    return _interval((np.arange(shape[0]),), mean_of_means)


def t_interval(values: ArrayLike, *, scale: float | None = None) -> tuple[float, float] | None:
    """Student t interval of the mean of ``values`` (episodes,); None for fewer than two.

    ``scale`` is the value of an episode in which everything is right, where values are accuracies:
    if all are wrong or all are right, nothing varies, and the interval is Wilson's over episodes.
    """
    flat = np.asarray(values, dtype=np.float64)
    if len(flat) < 2:
        return None
    if scale is not None and (flat == flat[0]).all() and flat[0] in (0.0, scale):
        low, high = proportion_interval(flat == scale, range(len(flat)))
        return scale * low, scale * high
    half = float(student.ppf(0.975, len(flat) - 1) * flat.std(ddof=1) / np.sqrt(len(flat)))
    return float(flat.mean()) - half, float(flat.mean()) + half


def paired_difference(a: ArrayLike, b: ArrayLike) -> tuple[float, tuple[float, float] | None]:
    """Mean of a - b over the same episodes (episodes,), and its Student t interval."""
    differences = np.subtract(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    return float(differences.mean()), t_interval(differences)


def _numbered(clusters: Sequence[Any]) -> NDArray[np.intp]:
    return np.unique(np.asarray(clusters), return_inverse=True)[1].ravel()


def _interval(data: tuple[NDArray[Any], ...], statistic: Any) -> tuple[float, float]:
    if len(data[0]) < 2:
        only = float(statistic(*data, axis=-1))
        return only, only
    interval = bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=200,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
