"""Exact multi-positive ranking: a block of scores in, the rank of each query's best positive out.

Ties count with their expected value, a positive's score is read from the block it is ranked in, and
numbers that are not finite are refused: each of the three, left out, has made published evaluators
report 100 % for a broken model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, NumericsError

DEGENERATE_SPREAD = (
    1e-6  # candidates that differ by less than this part of their score differ by rounding
)


@dataclass(frozen=True)
class Ranks:
    """Where the best positive of every query stands, 1-based; unpacks to optimistic, expected, pessimistic.

    ``above`` candidates score higher than the best positive and ``tied`` score the same (itself
    included), of which ``tied_positives`` are positives; every order inside that group is equally
    likely. Arrays have shape (queries,). ``degenerate`` says that no query tells any of its
    candidates apart: a collapsed encoder or a dead head.
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
        """Probability per query that a positive is among the first ``k``; ``k`` may exceed the number of candidates."""
        drawn = np.clip(k - self.above, 0, self.tied)
        negatives = self.tied - self.tied_positives
        miss = np.ones(len(self))
        # C(negatives, drawn) / C(tied, drawn) as a product: exact zeros, and no factorial
        # overflows.
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
        For each query the candidate indices that count as right (one or several), or a boolean
        array like ``scores``.
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
    """Rank by dot products of features (queries, width) and (candidates, width), ``block`` rows of scores at a time.

    The result does not depend on ``block``. Errors as in :func:`ranks`.
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

    Sums run in float64 and equal candidates are multiplied once, so that neither the block's shape
    nor a candidate's place moves a score by its last bit: equal features tie exactly.

    Raises
    ------
    NumericsError
        If a feature is NaN or infinite.
    """
    left, right = (
        _as_features(queries, query_ids, "query"),
        _as_features(candidates, candidate_ids, "candidate"),
    )
    distinct, place = np.unique(right, axis=0, return_inverse=True)
    columns = distinct.T.astype(np.float64, order="C")
    for start in range(0, len(left), block):
        scores = (left[start : start + block].astype(np.float64) @ columns).astype(np.float32)
        yield start, scores[:, place.ravel()]


def two_stage_ranks(
    scores: Any,
    positives: Sequence[Any] | NDArray[Any],
    shortlist: NDArray[np.integer],
    shortlist_scores: Any,
) -> Ranks:
    """Rank by a second score inside a shortlist; all other candidates follow in their first-stage order.

    Parameters
    ----------
    scores
        First-stage scores (queries, candidates).
    positives
        As in :func:`ranks`.
    shortlist
        Candidate indices (queries, k) that were scored again, distinct within a row.
    shortlist_scores
        Their second scores (queries, k), of any size: -1000 still stands above what was not scored.
    """
    first, second = _as_scores(scores), _as_scores(shortlist_scores)
    rows = _positive_lists(positives, first.shape, None)
    _refuse_non_finite(first, None, None)
    _refuse_non_finite(second, None, None)
    # Two pictures of the same order, one for each place the best positive can have.
    listed, rest = np.full(first.shape, -np.inf, dtype=second.dtype), first.copy()
    np.put_along_axis(listed, shortlist, second, axis=1)
    np.put_along_axis(rest, shortlist, np.inf, axis=1)
    inside = [row[np.isin(row, chosen)] for row, chosen in zip(rows, shortlist, strict=True)]
    found = np.array([len(row) > 0 for row in inside])
    block = np.where(found[:, None], listed, rest)
    best = [row if hit else every for row, hit, every in zip(inside, found, rows, strict=True)]
    above, tied, tied_positives = _count(block, best)
    return Ranks(
        above,
        tied,
        tied_positives,
        candidates=first.shape[1],
        degenerate=is_degenerate(second),
    )


def chance_ranks(positives: Sequence[Any] | NDArray[Any], candidates: int) -> Ranks:
    """Ranks under a constant score: what guessing reaches with these positives among ``candidates`` candidates."""
    sizes = np.array(
        [len(row) for row in _positive_lists(positives, (len(positives), candidates), None)],
        dtype=np.int64,
    )
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
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(
        np.float32
    )


def _count(
    scores: NDArray[Any], positives: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    sizes = np.array([len(row) for row in positives])
    starts = np.cumsum(sizes) - sizes
    queries = np.repeat(np.arange(len(sizes)), sizes)
    # The positive's score comes out of the same block: computed again it can differ by one bit, and
    # lose to itself.
    own = scores[queries, np.concatenate(positives)]
    best = np.maximum.reduceat(own, starts)
    above = (scores > best[:, None]).sum(axis=1)
    tied = (scores == best[:, None]).sum(axis=1)
    tied_positives = np.add.reduceat((own == best[queries]).astype(np.int64), starts)
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
            f"nothing to rank: scores of shape {block.shape}, need at least one query and one candidate"
        )
    return block


def _as_features(features: Any, ids: Sequence[str] | None, what: str) -> NDArray[Any]:
    rows = _as_array(features)
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(
            f"nothing to rank: {what} features of shape {rows.shape}, need (items, width)"
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
                f"query {_name(query_ids, i)} has a positive outside the {shape[1]} candidates: {row.tolist()}"
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
    """Whether no query's scores (queries, candidates) differ by more than rounding; never with a single candidate."""
    low, high = scores.min(axis=1), scores.max(axis=1)
    return scores.shape[1] > 1 and bool(
        (high - low <= DEGENERATE_SPREAD * np.maximum(abs(low), abs(high))).all()
    )


def _name(ids: Sequence[str] | None, position: int) -> str:
    return str(ids[position]) if ids is not None else f"number {position}"
