"""Nearest neighbours of embeddings, exactly and in bounded memory: R@K, R-Precision, MAP@R and MAP of each query.

In: embeddings and labels, with a gallery of their own or each other as the gallery. Out: values per
query. A query that has no right item (a class of one) is left out of every mean and counted.
Cosines are compared: rows are scaled to length one and rounded to a grid on which float64 sums are
exact, whatever the chunk, the threads or the machine. Protocol: A Metric Learning Reality Check
(Musgrave et al., 2020).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import DataError, NumericsError
from eval.metrics.relevant_ranks import rank_relevant

KS = (1, 2, 4, 8)
CHUNK = 256
_GRID = (
    2.0**26
)  # products of two such numbers have 52 bits, and their sums stay below one: no float64 sum is rounded


@dataclass(frozen=True)
class Neighbours:
    """Values per query, in 0..1, NaN where a query has no right item; ``recall`` maps K to R@K.

    ``positives`` and ``candidates`` (queries,) count the right items and all items that the query
    was ranked against.
    """

    positives: NDArray[np.int64]
    candidates: NDArray[np.int64]
    recall: dict[int, NDArray[np.float64]]
    r_precision: NDArray[np.float64]
    map_at_r: NDArray[np.float64]
    average_precision: NDArray[np.float64]

    @property
    def without_positives(self) -> int:
        """Number of queries without a right item."""
        return int((self.positives == 0).sum())

    def means(self) -> dict[str, float]:
        """Means over the queries that have a right item, in 0..1, by the metrics' names."""
        columns = {f"recall@{k}": values for k, values in self.recall.items()}
        columns |= {
            "r_precision": self.r_precision,
            "map@r": self.map_at_r,
            "map": self.average_precision,
        }
        return {name: float(values[self.positives > 0].mean()) for name, values in columns.items()}


def neighbours(
    embeddings: Any,
    labels: Sequence[Any],
    gallery: Any = None,
    gallery_labels: Sequence[Any] | None = None,
    *,
    ks: Sequence[int] = KS,
    chunk: int = CHUNK,
) -> Neighbours:
    """Rank a gallery by cosine for every query.

    Parameters
    ----------
    embeddings, labels
        Array or tensor (queries, width) and the class of each query.
    gallery, gallery_labels
        The items that are ranked; without them each query is ranked against all others, itself left
        out by position.
    ks
        The K of R@K. The metrics at R take no K: R is each query's own number of right items.
    chunk
        Queries at a time. Memory is 8 to 9 bytes x ``chunk`` x gallery beside the embeddings in
        float64; results do not depend on it to the last bit.

    Raises
    ------
    DataError
        If labels and embeddings differ in number, widths differ, or no query has a right item.
    NumericsError
        If an embedding is not finite.
    """
    own = gallery is None
    items = embeddings if gallery is None else gallery
    right = LabelMatches(labels, labels if gallery_labels is None else gallery_labels)
    if len(labels) != len(embeddings) or right.gallery != len(items):
        raise DataError(
            f"{len(embeddings)} and {len(items)} embeddings, but {len(labels)} and {right.gallery} labels"
        )
    parts = []
    for start, scores in similarities(embeddings, items, chunk=chunk):
        rows = range(start, start + len(scores))
        if own:
            scores[np.arange(len(rows)), rows] = -np.inf
        found = rank_relevant(scores, (right[row] for row in rows))
        parts.append(
            [found.positives, found.candidates, *(found.hits(k) for k in ks)]
            + [found.r_precision(), found.average_precision_at_r(), found.average_precision()]
        )
    positives, candidates, *values = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not positives.any():
        raise DataError("no query has another item of its class: nothing can be retrieved")
    recall = dict(zip(ks, values, strict=False))
    return Neighbours(positives, candidates, recall, *values[len(ks) :])


class LabelMatches:
    """For each query the gallery positions that carry its label, found when asked for: all at once may not fit."""

    def __init__(self, labels: Sequence[Any], gallery_labels: Sequence[Any]) -> None:
        self.gallery = len(gallery_labels)
        number = {label: i for i, label in enumerate(dict.fromkeys([*labels, *gallery_labels]))}
        self._label = np.array([number[label] for label in labels], dtype=np.int64)
        theirs = np.array([number[label] for label in gallery_labels], dtype=np.int64)
        self._order = np.argsort(theirs, kind="stable")
        self._start = np.searchsorted(theirs[self._order], np.arange(len(number) + 1))

    def __getitem__(self, query: int) -> NDArray[np.intp]:
        label = self._label[query]
        return self._order[self._start[label] : self._start[label + 1]]


def similarities(
    queries: Any, gallery: Any, *, chunk: int = CHUNK
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (first query, cosines (rows, gallery)) for consecutive chunks of queries; each block may be written to.

    Equal embeddings have equal cosines to the last bit, and no value depends on the chunk.

    Raises
    ------
    DataError, NumericsError
        If the widths differ, or an embedding is not finite.
    """
    columns = _on_grid(gallery)
    rows = columns if queries is gallery else _on_grid(queries)
    if rows.shape[1] != columns.shape[1]:
        raise DataError(
            f"queries have {rows.shape[1]} numbers each, the gallery {columns.shape[1]}"
        )
    for start in range(0, len(rows), chunk):
        yield start, rows[start : start + chunk] @ columns.T


def top_k(row: NDArray[np.float64], k: int) -> NDArray[np.intp]:
    """Return the positions of the ``k`` highest of ``row``, best first, equal ones by position; none that is -inf."""
    k = min(k, len(row))
    chosen = (
        np.flatnonzero(row >= np.partition(row, len(row) - k)[len(row) - k])
        if k
        else np.empty(0, np.intp)
    )
    chosen = chosen[np.argsort(-row[chosen], kind="stable")][:k]
    return chosen[row[chosen] > -np.inf]


def _on_grid(embeddings: Any) -> NDArray[np.float64]:
    values = (
        embeddings.detach().double().cpu().numpy() if hasattr(embeddings, "detach") else embeddings
    )
    rows = np.array(values, dtype=np.float64, order="C")
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(f"embeddings of shape {rows.shape}: need (items, width)")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise NumericsError(
            f"{len(bad)} of {len(rows)} embeddings are not finite, the first is number {bad[0]}"
        )
    # einsum sums each row alone: a norm must not depend on the rows beside it.
    rows /= np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), 1e-12)[:, None]
    rows *= _GRID
    np.rint(rows, out=rows)
    rows /= _GRID
    return rows
