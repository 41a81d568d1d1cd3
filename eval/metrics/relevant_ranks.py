"""Ranks of all relevant items of each query, and the retrieval metrics that follow from them.

In: a block of scores, and for each query its relevant items. Out: one value per query and metric.
Every metric is its mean over all orders of items with equal scores, as in `pretrain.ranking`. So
the order of the gallery does not change a metric, and a model that gives the same score to every
item does not gain from it.

`eval/stages/multi_label/metrics.py` has another average precision: scikit-learn's, in which items
of equal score are one step of the curve instead of a mean over their orders.
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

# Up to this many distinct scores of relevant items, counting the items above each is faster than
# sorting.
COUNTED = 32


@dataclass(frozen=True)
class RelevantRanks:
    """Groups of items with equal scores that hold relevant items, by query, best group first.

    A group of ``query`` has ``tied`` items, ``relevant`` of them relevant, and ``above`` items
    score higher; all have shape (groups,). ``candidates`` (queries,) is the number of ranked items.
    A query without relevant items has no group, and its metrics are NaN.
    """

    query: NDArray[np.int64]
    above: NDArray[np.int64]
    tied: NDArray[np.int64]
    relevant: NDArray[np.int64]
    candidates: NDArray[np.int64]

    @property
    def positives(self) -> NDArray[np.int64]:
        """Relevant items per query."""
        return self._sum(self.relevant).astype(np.int64)

    def hits(self, k: int) -> NDArray[np.float64]:
        """Probability that a relevant item is among the first ``k`` (R@k; CMC at rank k)."""
        query, first = np.unique(self.query, return_index=True)
        best = Ranks(self.above[first], self.tied[first], self.relevant[first], candidates=0)
        values = np.full(len(self.candidates), np.nan)
        values[query] = best.hits(k)
        return values

    def precision(self, k: ArrayLike) -> NDArray[np.float64]:
        """Share of relevant items among the first ``k``, which is one number or one per query."""
        cut = np.broadcast_to(np.asarray(k, dtype=np.int64), self.candidates.shape)
        expected = self._of_positives(self.relevant * self._reached(cut) / self.tied)
        return expected * self.positives / cut

    def r_precision(self) -> NDArray[np.float64]:
        """Precision among the first R, where R is the query's number of relevant items."""
        return self.precision(np.maximum(self.positives, 1))

    def average_precision(self) -> NDArray[np.float64]:
        """Mean over the relevant items of the precision at their rank (AP)."""
        return self._precision_at_right(self.candidates)

    def average_precision_at_r(self) -> NDArray[np.float64]:
        """AP in which relevant items after the first R count as 0.

        Its mean is the MAP@R of A Metric Learning Reality Check (arXiv:2003.08505).
        """
        return self._precision_at_right(self.positives)

    def trapezoid_average_precision(self) -> NDArray[np.float64]:
        """AP by Oxford's rule: the mean of the precision just before and at each relevant item."""
        harmonic = self._harmonic()
        # The precision before rank r is (relevant items before) / (r - 1), and 1 before rank 1.
        before = harmonic[self.above + self.tied - 1] - harmonic[np.maximum(self.above, 1) - 1]
        several = self._relevant_above * before + self._others * (self.tied - self.above * before)
        first = 1 + self._others * (self.tied - 1)
        single = np.where(self.above > 0, self._relevant_above / np.maximum(self.above, 1), 1.0)
        shared = np.where(self.above > 0, several, first) / self.tied
        # A group of one has no mean to take; its exact value avoids rounding.
        left = self._of_positives(self.relevant * np.where(self.tied == 1, single, shared))
        return (left + self.average_precision()) / 2

    def precision_up_to_last_relevant(self, k: int) -> NDArray[np.float64]:
        """Precision among the first ``k``, or up to the last relevant item if that comes first.

        This is the mP@k of Revisited Oxford and Paris, whose evaluator cuts at min(k, rank of the
        last relevant item).
        """
        values = self.precision(k)
        query, reverse = np.unique(self.query[::-1], return_index=True)
        last = len(self.query) - 1 - reverse
        above, tied, relevant = self.above[last], self.tied[last], self.relevant[last]
        total = self.positives[query]
        # For every rank below k: the probability that the last relevant item has it, times the
        # difference between the precision there and at k.
        for rank in range(1, k):
            inside = rank - above  # position within the tied group, from 1
            orders = comb(np.maximum(inside - 1, 0), relevant - 1) / comb(tied, relevant)
            chance = np.where((inside >= relevant) & (inside <= tied), orders, 0.0)
            values[query] += chance * total * (1 / rank - 1 / k)
        return values

    def _precision_at_right(self, cut: NDArray[np.int64]) -> NDArray[np.float64]:
        reached = self._reached(cut)
        harmonic = self._harmonic()
        # A relevant item is equally likely at every rank of its group. Its precision there is
        # (relevant items up to that rank) / rank, summed over ranks with harmonic numbers.
        steps = harmonic[self.above + reached] - harmonic[self.above]
        tied_before = self._others * (reached - (self.above + 1) * steps)
        shared = (self._relevant_above + 1) * steps + tied_before
        # A group of one has no mean to take; its exact value avoids rounding.
        single = reached * (self._relevant_above + 1) / (self.above + 1)
        precision = np.where(self.tied == 1, single, shared / self.tied)
        return self._of_positives(self.relevant * precision)

    @property
    def _relevant_above(self) -> NDArray[np.int64]:
        """Relevant items above each group."""
        before = np.cumsum(self.relevant) - self.relevant
        return before - before[np.searchsorted(self.query, self.query)] if len(before) else before

    @property
    def _others(self) -> NDArray[np.float64]:
        """Probability that another item of a relevant item's group is relevant too."""
        return (self.relevant - 1) / np.maximum(self.tied - 1, 1)

    def _reached(self, cut: NDArray[np.int64]) -> NDArray[np.int64]:
        """Items of each group among the first ``cut`` (queries,)."""
        return np.clip(cut[self.query] - self.above, 0, self.tied)

    def _harmonic(self) -> NDArray[np.float64]:
        """Harmonic numbers 0, 1, 1 + 1/2, ... up to the last rank of any group."""
        most = int((self.above + self.tied).max(initial=0))
        return np.concatenate([[0.0], np.cumsum(1 / np.arange(1, most + 1))])

    def _sum(self, values: NDArray[Any]) -> NDArray[np.float64]:
        sums = np.bincount(self.query, weights=values, minlength=len(self.candidates))
        return sums.astype(np.float64)

    def _of_positives(self, values: NDArray[Any]) -> NDArray[np.float64]:
        positives = self.positives
        return np.where(positives > 0, self._sum(values) / np.maximum(positives, 1), np.nan)


def ranks_of_constant_score(positives: ArrayLike, candidates: ArrayLike) -> RelevantRanks:
    """Return the ranks that guessing reaches, with these numbers of relevant items (queries,)."""
    relevant, ranked = np.asarray(positives, dtype=np.int64), np.asarray(candidates, dtype=np.int64)
    queries = np.arange(len(relevant))
    return RelevantRanks(queries, np.zeros_like(relevant), ranked, relevant, ranked)


def rank_relevant(scores: NDArray[Any], relevant: Iterable[NDArray[Any]]) -> RelevantRanks:
    """Rank the relevant items of each query.

    Parameters
    ----------
    scores
        (queries, gallery), higher is better. An item with -inf is removed from the query's ranking.
        The caller must check for NaN.
    relevant
        For each query the gallery positions of its relevant items, distinct. Items that are removed
        from the ranking do not count.
    """
    queries: list[NDArray[Any]] = []
    above_parts: list[NDArray[Any]] = []
    tied_parts: list[NDArray[Any]] = []
    relevant_parts: list[NDArray[Any]] = []
    for query, (row, positions) in enumerate(zip(scores, relevant, strict=True)):
        of_relevant = row[positions]
        value, equal = np.unique(of_relevant[of_relevant > -np.inf], return_counts=True)
        value, equal = value[::-1], equal[::-1]  # best first
        if not len(value):
            continue
        if len(value) <= COUNTED:
            above = np.array([np.count_nonzero(row > score) for score in value])
            up_to = np.array([np.count_nonzero(row >= score) for score in value])
        else:
            ranked = np.sort(row[row >= value[-1]])
            above = len(ranked) - np.searchsorted(ranked, value, "right")
            up_to = len(ranked) - np.searchsorted(ranked, value, "left")
        queries.append(np.full(len(value), query))
        above_parts.append(above)
        tied_parts.append(up_to - above)
        relevant_parts.append(equal)
    return RelevantRanks(
        query=_joined(queries),
        above=_joined(above_parts),
        tied=_joined(tied_parts),
        relevant=_joined(relevant_parts),
        candidates=np.count_nonzero(scores > -np.inf, axis=1).astype(np.int64),
    )


def _joined(parts: list[NDArray[Any]]) -> NDArray[np.int64]:
    # With an empty part, because there may be none.
    return np.concatenate([np.empty(0, np.int64), *parts]).astype(np.int64)


def ranks_in_lists(
    lists: NDArray[np.integer], relevant: Iterable[NDArray[Any]], removed: Iterable[NDArray[Any]]
) -> RelevantRanks:
    """Rank the relevant items in rank lists (queries, gallery) of gallery positions, best first.

    ``removed`` items (junk) do not count, as if they were not in the gallery.

    Raises
    ------
    DataError
        If a list does not name every gallery position once.
    """
    positions = np.broadcast_to(np.arange(lists.shape[1]), lists.shape)
    if not np.array_equal(np.sort(lists, axis=1), positions):
        raise DataError("a rank list must name every item of the gallery exactly once, best first")
    # Scores that put the gallery into the order of the lists.
    scores = np.empty(lists.shape)
    np.put_along_axis(scores, lists, -np.arange(lists.shape[1], dtype=np.float64)[None], axis=1)
    for row, out in zip(scores, removed, strict=True):
        row[out] = -np.inf
    return rank_relevant(scores, relevant)
