"""Shortlists: the candidates that the matching head scores again, and what their cut decides.

In: contrastive scores. Out: the best candidates of each query; and, where the shortlist ends among
equal scores, the range of ranks that other choices among these could lead to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .queries import Direction


@dataclass(frozen=True)
class Reranking:
    """Second scores of a direction's shortlists: ``margins`` of the matching head (queries, k).

    ``shortlists`` (queries, k) are positions of candidates, best first by the contrastive score,
    whose multiple by ``weight`` is added to the margins.
    """

    shortlists: NDArray[np.int64]
    margins: NDArray[np.float32]
    weight: float

    def rows(self, block: slice) -> Reranking:
        """Return the second scores of some queries."""
        return Reranking(self.shortlists[block], self.margins[block], self.weight)

    def scores(self, contrastive: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add the weighted contrastive scores of listed candidates (queries, k) to margins."""
        both: NDArray[np.float32] = self.margins + np.float32(self.weight) * contrastive
        return both


def shortlist(direction: Direction, k: int) -> NDArray[np.int64]:
    """Return the ``k`` best candidates of every query (queries, k), best first.

    Candidates of equal score are listed in the order of the data.
    """
    k = min(k, len(direction.candidate_ids))
    rows = []
    for _, scores in direction.score_blocks():
        lowest_listed = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k]
        for values, edge in zip(scores, lowest_listed, strict=True):
            candidates = np.flatnonzero(values >= edge)
            # A stable sort of positions in ascending order: the same list on every machine.
            rows.append(candidates[np.argsort(-values[candidates], kind="stable")[:k]])
    return np.stack(rows)


def rank_range(
    scores: NDArray[np.float32],
    shortlisted: NDArray[np.int64],
    second: NDArray[np.float32],
    positives: NDArray[np.int64],
) -> tuple[int, int] | None:
    """Return the lowest and the highest rank of one query's best positive, if its cut is arbitrary.

    A shortlist that ends among equal scores could hold other candidates of that score. Their second
    scores are not known, so they are assumed to be as good, or as bad, as the bound needs.

    Parameters
    ----------
    scores
        Contrastive scores (candidates,).
    shortlisted, second
        Positions of the listed candidates (k,), best first, and their second scores (k,).
    positives
        Positions of the right candidates.

    Returns
    -------
    tuple or None
        1-based ranks; None if the scores leave no choice of what is listed.
    """
    edge = scores[shortlisted[-1]]
    certain = scores > edge
    tied = scores == edge
    slots = len(shortlisted) - int(certain.sum())
    if int(tied.sum()) == slots:
        return None
    right = np.zeros(len(scores), dtype=bool)
    right[positives] = True
    tied_wrong = int((tied & ~right).sum())
    listed_certain, listed_right = certain[shortlisted], right[shortlisted]

    # Best case: an unlisted positive at the edge is listed and gets the highest second score.
    listed = np.zeros(len(scores), dtype=bool)
    listed[shortlisted] = True
    if (tied & right & ~listed).any():
        lowest = 1
    elif listed_right.any():
        # Wrong candidates at the edge are replaced by others that score lower.
        lowest = 1 + int((second[listed_certain] > second[listed_right].max()).sum())
    else:
        # Every positive scores below the edge: its rank does not depend on what is listed.
        return None

    if (certain & right).any():
        # Worst case: the slots at the edge go to wrong candidates that score higher.
        best = second[listed_certain & listed_right].max()
        rivals = int((second[listed_certain & ~listed_right] >= best).sum())
        highest = rivals + min(slots, tied_wrong) + 1
    else:
        # Worst case: all wrong candidates at the edge stand before the first positive there.
        highest = int(certain.sum()) + tied_wrong + 1
    return lowest, highest
