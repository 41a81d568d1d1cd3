"""Where the right items of each query stand in its ranking, and every metric of retrieval that follows from it.

In: a block of scores, and for each query its right items. Out: one value per query and metric.
Items of equal score share their places: each metric is its mean over all orders of them, as in
`pretrain.ranking`, so that neither the order of the gallery nor a model that gives one score to
everything can change or flatter a number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import comb

from data_pipeline.errors import DataError
from pretrain.ranking import Ranks

COUNTED = (
    32  # up to so many different scores of right items, counting what is above each beats sorting
)


@dataclass(frozen=True)
class RelevantRanks:
    """Groups of equal score that hold right items, from the best group of the first query to the worst of the last.

    ``above`` items of the ``query`` score higher than the group, which has ``tied`` items,
    ``right`` of them right; all have shape (groups,). ``candidates`` (queries,) counts the items
    that were ranked. A query without right items has no group: its values are NaN.
    """

    query: NDArray[np.int64]
    above: NDArray[np.int64]
    tied: NDArray[np.int64]
    right: NDArray[np.int64]
    candidates: NDArray[np.int64]

    @property
    def positives(self) -> NDArray[np.int64]:
        """Right items per query."""
        return self._sum(self.right).astype(np.int64)

    def hits(self, k: int) -> NDArray[np.float64]:
        """Probability that a right item is among the first ``k`` (R@k; CMC at rank k)."""
        query, first = np.unique(self.query, return_index=True)
        best = Ranks(self.above[first], self.tied[first], self.right[first], candidates=0)
        values = np.full(len(self.candidates), np.nan)
        values[query] = best.hits(k)
        return values

    def precision(self, k: ArrayLike) -> NDArray[np.float64]:
        """Share of right items among the first ``k``, one number or one per query."""
        cut = np.broadcast_to(np.asarray(k, dtype=np.int64), self.candidates.shape)
        return (
            self._of_positives(self.right * self._reached(cut) / self.tied) * self.positives / cut
        )

    def r_precision(self) -> NDArray[np.float64]:
        """Precision among the first R, where R is the query's own number of right items."""
        return self.precision(np.maximum(self.positives, 1))

    def average_precision(self) -> NDArray[np.float64]:
        """Mean over the right items of the precision at their place (AP)."""
        return self._precision_at_right(self.candidates)

    def average_precision_at_r(self) -> NDArray[np.float64]:
        """AP in which right items behind the first R count nothing (MAP@R of A Metric Learning Reality Check)."""
        return self._precision_at_right(self.positives)

    def trapezoid_average_precision(self) -> NDArray[np.float64]:
        """AP whose precision at a right item is the mean of that just before and that at its place (Oxford's rule)."""
        harmonic = self._harmonic()
        # The precision before place p is (right items before) / (p - 1), and 1 before the first
        # place.
        before = harmonic[self.above + self.tied - 1] - harmonic[np.maximum(self.above, 1) - 1]
        several = self._right_above * before + self._others * (self.tied - self.above * before)
        first = 1 + self._others * (self.tied - 1)
        single = np.where(self.above > 0, self._right_above / np.maximum(self.above, 1), 1.0)
        shared = np.where(self.above > 0, several, first) / self.tied
        left = self._of_positives(self.right * np.where(self.tied == 1, single, shared))
        return (left + self.average_precision()) / 2

    def precision_up_to_last_relevant(self, k: int) -> NDArray[np.float64]:
        """Precision among the first ``k``, or among those up to the last right item where that comes sooner.

        The mP@k of Revisited Oxford and Paris, whose evaluator takes min(k, place of the last right
        item).
        """
        values = self.precision(k)
        query, reverse = np.unique(self.query[::-1], return_index=True)
        last = len(self.query) - 1 - reverse
        above, tied, right, total = (
            self.above[last],
            self.tied[last],
            self.right[last],
            self.positives[query],
        )
        for place in range(
            1, k
        ):  # the last right item at this place: how likely, and how much more that is worth
            inside = place - above
            chance = np.where(
                inside >= right, comb(np.maximum(inside - 1, 0), right - 1) / comb(tied, right), 0.0
            )
            values[query] += np.where(inside <= tied, chance, 0.0) * total * (1 / place - 1 / k)
        return values

    def _precision_at_right(self, cut: NDArray[np.int64]) -> NDArray[np.float64]:
        reached = self._reached(cut)
        harmonic = self._harmonic()
        # The mean over the places of the group of (right items up to there) / place.
        steps = harmonic[self.above + reached] - harmonic[self.above]
        shared = (self._right_above + 1) * steps + self._others * (
            reached - (self.above + 1) * steps
        )
        single = reached * (self._right_above + 1) / (self.above + 1)
        return self._of_positives(self.right * np.where(self.tied == 1, single, shared / self.tied))

    @property
    def _right_above(self) -> NDArray[np.int64]:
        """Right items above each group."""
        before = np.cumsum(self.right) - self.right
        return before - before[np.searchsorted(self.query, self.query)] if len(before) else before

    @property
    def _others(self) -> NDArray[np.float64]:
        """How likely another item of the group is right, for a right one."""
        return (self.right - 1) / np.maximum(self.tied - 1, 1)

    def _reached(self, cut: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.clip(cut[self.query] - self.above, 0, self.tied)

    def _harmonic(self) -> NDArray[np.float64]:
        most = int((self.above + self.tied).max(initial=0))
        return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, most + 1))])

    def _sum(self, values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(self.query, weights=values, minlength=len(self.candidates)).astype(
            np.float64
        )

    def _of_positives(self, values: NDArray[Any]) -> NDArray[np.float64]:
        positives = self.positives
        return np.where(positives > 0, self._sum(values) / np.maximum(positives, 1), np.nan)


def ranks_of_constant_score(positives: ArrayLike, candidates: ArrayLike) -> RelevantRanks:
    """Return the places under one score for everything: what guessing reaches with as many right items (queries,)."""
    right, every = np.asarray(positives, dtype=np.int64), np.asarray(candidates, dtype=np.int64)
    return RelevantRanks(np.arange(len(right)), np.zeros_like(right), every, right, every)


def rank_relevant(scores: NDArray[Any], right: Iterable[NDArray[Any]]) -> RelevantRanks:
    """Find the places of each query's right items.

    Parameters
    ----------
    scores
        (queries, gallery), higher is better; -inf takes an item out of the query's ranking. NaN is
        not looked for.
    right
        For each query the gallery positions of its right items, distinct; those out of the ranking
        do not count.
    """
    found: list[tuple[int, NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    for number, (row, chosen) in enumerate(zip(scores, right, strict=True)):
        own = row[chosen]
        value, equal = np.unique(own[own > -np.inf], return_counts=True)
        value, equal = value[::-1], equal[::-1]
        if not len(value):
            continue
        if len(value) <= COUNTED:
            above = np.array([np.count_nonzero(row > one) for one in value])
            up_to = np.array([np.count_nonzero(row >= one) for one in value])
        else:
            ranked = np.sort(row[row >= value[-1]])
            above = len(ranked) - np.searchsorted(ranked, value, "right")
            up_to = len(ranked) - np.searchsorted(ranked, value, "left")
        found.append((number, above, up_to - above, equal))
    query = np.repeat(
        np.array([one[0] for one in found], dtype=np.int64), [len(one[1]) for one in found]
    )
    above, tied, equal_right = (
        np.concatenate([np.empty(0, np.int64), *(one[part] for one in found)]).astype(np.int64)
        for part in (1, 2, 3)
    )
    return RelevantRanks(
        query, above, tied, equal_right, np.count_nonzero(scores > -np.inf, axis=1).astype(np.int64)
    )


def ranks_in_lists(
    lists: NDArray[np.integer], right: Iterable[NDArray[Any]], removed: Iterable[NDArray[Any]]
) -> RelevantRanks:
    """Find the places of right items in rank lists (queries, gallery) of gallery positions, best first.

    ``removed`` items (junk) are taken out before anything is counted.

    Raises
    ------
    DataError
        If a list does not name every gallery position once.
    """
    if not np.array_equal(
        np.sort(lists, axis=1), np.broadcast_to(np.arange(lists.shape[1]), lists.shape)
    ):
        raise DataError("a rank list must name every item of the gallery exactly once, best first")
    scores = np.empty(lists.shape)
    np.put_along_axis(scores, lists, -np.arange(lists.shape[1], dtype=np.float64)[None], axis=1)
    for row, out in zip(scores, removed, strict=True):
        row[out] = -np.inf
    return rank_relevant(scores, right)
