"""Exact ranking with several positives per query.

In: a block of scores, or features. Out: the rank of each query's best positive. Ties count with
their expected value, a positive's score is read from the block in which it is ranked, and values
that are not finite are refused. Published evaluators that omit one of these three report 100 % for
a broken model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, NumericsError

# Scores that differ by less than this share of the largest score differ only by rounding: equal
# inputs that take another place in a batch come out up to 4 units of float32 apart (measured on
# AVX2 and without vector instructions), and kernels of other processors sum in yet another order.
ROUNDING = 64 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Ranks:
    """Ranks of the best positives, from 1; unpacks to optimistic, expected, pessimistic.

    ``above`` candidates score higher than the best positive. ``tied`` candidates score the same,
    including itself, and ``tied_positives`` of them are positives; every order inside that group is
    equally likely. Arrays have shape (queries,). ``degenerate`` is true if every query gives equal
    scores to all candidates: a collapsed encoder or a dead head.
    """

    above: NDArray[np.int64]
    tied: NDArray[np.int64]
    tied_positives: NDArray[np.int64]
    candidates: int
    degenerate: bool = False

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return iter((self.optimistic, self.expected, self.pessimistic))

    def __len__(self) -> int:
        return len(self.above)

    @property
    def optimistic(self) -> NDArray[np.int64]:
        """Rank when a positive comes first in its tied group."""
        return self.above + 1

    @property
    def pessimistic(self) -> NDArray[np.int64]:
        """Rank when all tied negatives come first."""
        return self.above + self.tied - self.tied_positives + 1

    @property
    def expected(self) -> NDArray[np.float64]:
        """Mean rank over all orders of the tied group."""
        return self.above + (self.tied + 1) / (self.tied_positives + 1)

    def hits(self, k: int) -> NDArray[np.float64]:
        """Probability per query that a positive is among the first ``k``.

        ``k`` may exceed the number of candidates.
        """
        drawn = np.clip(k - self.above, 0, self.tied)
        negatives = self.tied - self.tied_positives
        miss = np.ones(len(self))
        # Probability that all drawn candidates are negatives: C(negatives, drawn) / C(tied, drawn).
        # As a product, zeros are exact and no factorial overflows.
        for i in range(int(drawn.max(initial=0))):
            factor = np.maximum(negatives - i, 0) / np.maximum(self.tied - i, 1)
            miss = np.where(i < drawn, miss * factor, miss)
            if not miss[i + 1 < drawn].any():
                break
        return 1.0 - miss

    def recall(self, k: int) -> float:
        """Share of queries, in 0..1, with a positive among the first ``k`` candidates (R@k)."""
        return float(self.hits(k).mean())

    @property
    def tie_rate(self) -> float:
        """Share of queries whose best positive is tied with a negative."""
        return float((self.tied > self.tied_positives).mean())


def ranks(
    scores: Any,
    positives: Sequence[Any] | NDArray[Any],
    *,
    query_ids: Sequence[str] | None = None,
    candidate_ids: Sequence[str] | None = None,
) -> Ranks:
    """Rank the best positive of every query, exactly.

    Parameters
    ----------
    scores
        Array or tensor (queries, candidates), higher is better. Half precisions are compared in
        float32.
    positives
        For each query the indices of its positives (one or several candidates), or a boolean array
        of the shape of ``scores``.
    query_ids, candidate_ids
        Names for error messages; positions without them.

    Raises
    ------
    DataError
        If there is nothing to rank, a query has no positive, or a positive is not a candidate.
    NumericsError
        If a score is NaN or infinite.
    """
    block = _as_scores(scores)
    rows = _positive_lists(positives, block.shape, query_ids)
    _refuse_non_finite(block, query_ids, candidate_ids)
    above, tied, tied_positives = _count(block, rows)
    return Ranks(
        above,
        tied,
        tied_positives,
        candidates=block.shape[1],
        degenerate=is_degenerate(block),
    )


def ranks_of_features(
    queries: Any,
    candidates: Any,
    positives: Sequence[Any] | NDArray[Any],
    *,
    block: int = 256,
    query_ids: Sequence[str] | None = None,
    candidate_ids: Sequence[str] | None = None,
) -> Ranks:
    """Rank by dot products of features (queries, width) and (candidates, width).

    ``block`` queries are scored at a time; the result does not depend on it. Raises the errors of
    :func:`ranks`.
    """
    shape = (len(queries), len(candidates))
    rows = _positive_lists(positives, shape, query_ids)
    parts, degenerate = [], True
    for start, scores in score_blocks(
        queries, candidates, block=block, query_ids=query_ids, candidate_ids=candidate_ids
    ):
        parts.append(_count(scores, rows[start : start + len(scores)]))
        degenerate = degenerate and is_degenerate(scores)
    above, tied, tied_positives = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Ranks(above, tied, tied_positives, candidates=shape[1], degenerate=degenerate)


def score_blocks(
    queries: Any,
    candidates: Any,
    *,
    block: int = 256,
    query_ids: Sequence[str] | None = None,
    candidate_ids: Sequence[str] | None = None,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (first query, float32 scores (rows, candidates)) for consecutive blocks of queries.

    Equal features tie exactly: no score depends on the shape of the block or on the position of a
    candidate, not even in its last bit.

    Raises
    ------
    NumericsError
        If a feature is NaN or infinite.
    """
    rows = _as_features(queries, query_ids, "query")
    columns = _as_features(candidates, candidate_ids, "candidate")
    # Equal candidates are multiplied once, because matrix products may round equal columns
    # differently. float64 sums hide the dependence on the block's shape from float32.
    distinct, column = np.unique(columns, axis=0, return_inverse=True)
    transposed = distinct.T.astype(np.float64, order="C")
    for start in range(0, len(rows), block):
        scores = (rows[start : start + block].astype(np.float64) @ transposed).astype(np.float32)
        yield start, scores[:, column.ravel()]


def two_stage_ranks(
    scores: Any,
    positives: Sequence[Any] | NDArray[Any],
    shortlist: NDArray[np.integer],
    shortlist_scores: Any,
) -> Ranks:
    """Rank by a second score inside a shortlist; the others follow in first-stage order.

    Parameters
    ----------
    scores
        First-stage scores (queries, candidates).
    positives
        As in :func:`ranks`.
    shortlist
        Indices (queries, k) of the candidates that were scored again, distinct within a row.
    shortlist_scores
        Their second scores (queries, k). Even a score of -1000 ranks above all other candidates.
    """
    first, second = _as_scores(scores), _as_scores(shortlist_scores)
    rows = _positive_lists(positives, first.shape, None)
    _refuse_non_finite(first, None, None)
    _refuse_non_finite(second, None, None)
    # Second scores with the others at -inf, for queries with a positive in the shortlist; first
    # scores with the shortlist at +inf, for the other queries. Either is the same order, because
    # only candidates above or tied with the best positive count.
    listed, unlisted = np.full(first.shape, -np.inf, dtype=second.dtype), first.copy()
    np.put_along_axis(listed, shortlist, second, axis=1)
    np.put_along_axis(unlisted, shortlist, np.inf, axis=1)
    best = []
    in_shortlist = np.zeros(len(rows), dtype=bool)
    for query, (row, candidates) in enumerate(zip(rows, shortlist, strict=True)):
        positives_inside = row[np.isin(row, candidates)]
        in_shortlist[query] = len(positives_inside) > 0
        best.append(positives_inside if in_shortlist[query] else row)
    block = np.where(in_shortlist[:, None], listed, unlisted)
    above, tied, tied_positives = _count(block, best)
    return Ranks(
        above,
        tied,
        tied_positives,
        candidates=first.shape[1],
        degenerate=is_degenerate(second),
    )


def chance_ranks(positives: Sequence[Any] | NDArray[Any], candidates: int) -> Ranks:
    """Return the ranks that guessing reaches: those under a constant score."""
    rows = _positive_lists(positives, (len(positives), candidates), None)
    sizes = np.array([len(row) for row in rows], dtype=np.int64)
    return Ranks(
        np.zeros_like(sizes),
        np.full_like(sizes, candidates),
        sizes,
        candidates=candidates,
        degenerate=True,
    )


def unit_features(features: Any, ids: Sequence[str] | None = None) -> NDArray[np.float32]:
    """Scale rows (items, width) to length one in float32, so that dot products are cosines.

    Raises
    ------
    NumericsError
        If a value is NaN or infinite; the message names the item.
    """
    rows = _as_features(features, ids, "item").astype(np.float64)
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return (rows / lengths).astype(np.float32)


def _count(
    scores: NDArray[Any], positives: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    sizes = np.array([len(row) for row in positives])
    starts = np.cumsum(sizes) - sizes
    queries = np.repeat(np.arange(len(sizes)), sizes)
    # A positive's score is read from the same block. Computed again, it could differ by one bit and
    # rank below itself.
    of_positives = scores[queries, np.concatenate(positives)]
    best = np.maximum.reduceat(of_positives, starts)
    above = (scores > best[:, None]).sum(axis=1)
    tied = (scores == best[:, None]).sum(axis=1)
    tied_positives = np.add.reduceat((of_positives == best[queries]).astype(np.int64), starts)
    return above.astype(np.int64), tied.astype(np.int64), tied_positives


def _as_array(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a tensor; bfloat16 has no numpy type
        values = values.detach()
        values = (values.double() if values.element_size() == 8 else values.float()).cpu().numpy()
    array = np.asarray(values)
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _as_scores(scores: Any) -> NDArray[Any]:
    block = _as_array(scores)
    if block.ndim != 2 or 0 in block.shape:
        raise DataError(
            f"nothing to rank: scores of shape {block.shape}, "
            "but at least one query and one candidate are needed"
        )
    return block


def _as_features(features: Any, ids: Sequence[str] | None, what: str) -> NDArray[Any]:
    rows = _as_array(features)
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(
            f"nothing to rank: {what} features of shape {rows.shape} instead of (items, width)"
        )
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        named = ", ".join(_name(ids, int(i)) for i in bad[:5])
        raise NumericsError(
            f"{what} features are not finite for {len(bad)} of {len(rows)}: {named}"
        )
    return rows


def _positive_lists(
    positives: Any, shape: tuple[int, ...], query_ids: Sequence[str] | None
) -> list[NDArray[np.int64]]:
    if len(positives) != shape[0]:
        raise DataError(f"{shape[0]} queries but positives for {len(positives)}")
    if getattr(positives, "dtype", None) is not None and str(positives.dtype).endswith("bool"):
        positives = [np.flatnonzero(np.asarray(row)) for row in positives]
    rows = [np.unique(np.atleast_1d(np.asarray(_listed(row), dtype=np.int64))) for row in positives]
    for i, row in enumerate(rows):
        if not len(row):
            raise DataError(f"query {_name(query_ids, i)} has no positive among the candidates")
        if row[0] < 0 or row[-1] >= shape[1]:
            raise DataError(
                f"query {_name(query_ids, i)} has a positive outside the {shape[1]} candidates: "
                f"{row.tolist()}"
            )
    return rows


def _listed(row: Any) -> Any:
    return list(row) if isinstance(row, Iterable) and not hasattr(row, "dtype") else row


def _refuse_non_finite(
    block: NDArray[Any], query_ids: Sequence[str] | None, candidate_ids: Sequence[str] | None
) -> None:
    if np.isfinite(block).all():
        return
    bad = np.argwhere(~np.isfinite(block))
    query, candidate = (int(i) for i in bad[0])
    raise NumericsError(
        f"{len(bad)} of {block.size} scores are not finite; the first is {block[query, candidate]} "
        f"for query {_name(query_ids, query)} and candidate {_name(candidate_ids, candidate)}"
    )


def is_degenerate(scores: NDArray[Any]) -> bool:
    """Whether the scores (queries, candidates) of every query are equal up to rounding.

    A single candidate is never degenerate.
    """
    if scores.shape[1] == 1:
        return False
    spread = scores.max(axis=1) - scores.min(axis=1)
    # A score near zero is the difference of larger terms and keeps their rounding, so the scale is
    # that of all scores and not that of each query's own.
    return bool(spread.max() <= ROUNDING * abs(scores).max())


def _name(ids: Sequence[str] | None, position: int) -> str:
    return str(ids[position]) if ids is not None else f"number {position}"
