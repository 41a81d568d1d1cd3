"""Exact nearest neighbours of embeddings in bounded memory: R@K, R-Precision, MAP@R and MAP.

In: embeddings and labels, and a gallery; without a gallery, the embeddings are ranked among each
other. Out: values per query. A query without a relevant item (a class of one) is counted and left
out of every mean. Cosines are compared: rows are scaled to unit length and rounded to a grid on
which float64 sums are exact, whatever the chunk, the threads or the machine. Protocol: A Metric
Learning Reality Check (Musgrave et al., arXiv:2003.08505).
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
# Products of two numbers on this grid have 52 bits, and their sums stay at most 1, so that float64
# never rounds them.
_GRID = 2.0**26


@dataclass(frozen=True)
class Neighbours:
    """Values per query, in 0..1, NaN for a query without relevant items.

    ``positives`` and ``candidates`` (queries,) are the numbers of relevant and of all ranked items;
    ``recall`` maps K to R@K.
    """

    positives: NDArray[np.int64]
    candidates: NDArray[np.int64]
    recall: dict[int, NDArray[np.float64]]
    r_precision: NDArray[np.float64]
    map_at_r: NDArray[np.float64]
    average_precision: NDArray[np.float64]

    @property
    def without_positives(self) -> int:
        """Number of queries without a relevant item."""
        return int((self.positives == 0).sum())

    def means(self) -> dict[str, float]:
        """Means over the queries with a relevant item, in 0..1, by the names of the metrics."""
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
        Array or tensor (queries, width), and the class of each query.
    gallery, gallery_labels
        The ranked items. Without a gallery, each query is compared with all other queries.
    ks
        The K of R@K. Metrics at R take no K: R is each query's number of relevant items.
    chunk
        Queries at a time. Memory is 8 to 9 bytes x ``chunk`` x gallery, plus the embeddings in
        float64. Results do not depend on it, not even in the last bit.

    Raises
    ------
    DataError
        If labels and embeddings differ in number, widths differ, or no query has a relevant item.
    NumericsError
        If an embedding is not finite.
    """
    items = embeddings if gallery is None else gallery
    matches = LabelMatches(labels, labels if gallery_labels is None else gallery_labels)
    if len(labels) != len(embeddings) or matches.gallery != len(items):
        raise DataError(
            f"{len(embeddings)} and {len(items)} embeddings, "
            f"but {len(labels)} and {matches.gallery} labels"
        )
    parts = []
    for start, scores in similarities(embeddings, items, chunk=chunk):
        rows = range(start, start + len(scores))
        if gallery is None:  # a query is not its own neighbour, but a copy of it is
            scores[np.arange(len(rows)), rows] = -np.inf
        ranked = rank_relevant(scores, [matches[row] for row in rows])
        values_of_chunk: list[NDArray[Any]] = [ranked.positives, ranked.candidates]
        values_of_chunk += [ranked.hits(k) for k in ks]
        values_of_chunk += [ranked.r_precision(), ranked.average_precision_at_r()]
        values_of_chunk += [ranked.average_precision()]
        parts.append(values_of_chunk)
    positives, candidates, *values = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not positives.any():
        raise DataError("no query has another item of its class: nothing can be retrieved")
    recall = dict(zip(ks, values, strict=False))
    return Neighbours(positives, candidates, recall, *values[len(ks) :])


class LabelMatches:
    """For each query, the gallery positions with the same label.

    They are computed on access, because the lists of all queries together may not fit into memory.
    """

    def __init__(self, labels: Sequence[Any], gallery_labels: Sequence[Any]) -> None:
        self.gallery = len(gallery_labels)
        number = {label: i for i, label in enumerate(dict.fromkeys([*labels, *gallery_labels]))}
        self._label = np.array([number[label] for label in labels], dtype=np.int64)
        theirs = np.array([number[label] for label in gallery_labels], dtype=np.int64)
        # Sorted by label, so that the positions with one label are a slice.
        self._order = np.argsort(theirs, kind="stable")
        self._start = np.searchsorted(theirs[self._order], np.arange(len(number) + 1))

    def __getitem__(self, query: int) -> NDArray[np.intp]:
        label = self._label[query]
        return self._order[self._start[label] : self._start[label + 1]]


def similarities(
    queries: Any, gallery: Any, *, chunk: int = CHUNK
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (first query, cosines (rows, gallery)) for consecutive chunks of queries.

    Equal embeddings have exactly equal cosines, and no value depends on the chunk. Callers may
    write to the arrays.

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
    """Return the positions of the ``k`` highest scores, best first, without those that are -inf.

    Equal scores are in the order of their positions.
    """
    k = min(k, len(row))
    if not k:
        return np.empty(0, np.intp)
    # Only the scores that reach the k-th highest are sorted, which may be more than k with ties.
    chosen = np.flatnonzero(row >= np.partition(row, len(row) - k)[len(row) - k])
    chosen = chosen[np.argsort(-row[chosen], kind="stable")][:k]
    return chosen[row[chosen] > -np.inf]


def _on_grid(embeddings: Any) -> NDArray[np.float64]:
    """Scale rows to unit length and round them to the grid."""
    if hasattr(embeddings, "detach"):  # a tensor
        embeddings = embeddings.detach().double().cpu().numpy()
    rows = np.array(embeddings, dtype=np.float64, order="C")
    if rows.ndim != 2 or 0 in rows.shape:
        raise DataError(f"embeddings of shape {rows.shape} instead of (items, width)")
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise NumericsError(
            f"{len(bad)} of {len(rows)} embeddings are not finite, the first is number {bad[0]}"
        )
    # einsum sums each row separately: a norm must not depend on the other rows.
    rows /= np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), 1e-12)[:, None]
    rows *= _GRID
    np.rint(rows, out=rows)
    rows /= _GRID
    return rows
