"""The record of each query of a direction, from contrastive and second scores.

In: a direction, its shortlists and what the matching head said of them. Out: records in the order
of the queries, and those of queries whose image or video cannot be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.encoding.features import Images
from eval.metrics.relevant_ranks import rank_relevant
from pretrain.ranking import Ranks, ranks, two_stage_ranks

from .queries import Direction
from .records import ContrastiveStanding, RerankedStanding, RetrievalRecord, Standing
from .shortlists import Reranking, rank_range

TOP = 5  # candidates that each record names


def records_of(
    direction: Direction, best: NDArray[np.int64], reranking: Reranking | None
) -> tuple[list[RetrievalRecord], bool]:
    """Describe every query, and whether the scores distinguish none of its candidates.

    Parameters
    ----------
    direction, best
        The queries; the best candidates of each by the contrastive score (queries, at least `TOP`
        or all).
    reranking
        Second scores of the best candidates, if there are any.
    """
    records: list[RetrievalRecord] = []
    degenerate = True
    for start, scores in direction.score_blocks():
        block = slice(start, start + len(scores))
        positives = direction.positives[block]
        first = ranks(scores, positives)
        degenerate = degenerate and first.degenerate
        contrastive = _contrastive(direction, scores, positives, first, best[block])
        reranked = None
        if reranking is not None:
            reranked = _reranked(direction, scores, positives, reranking.rows(block))
        for row, right in enumerate(positives):
            query = start + row
            record: RetrievalRecord = {
                "direction": direction.name,
                "query": direction.query_ids[query],
                "image": direction.image_keys[query],
                "fold": direction.fold,
                "candidates": scores.shape[1],
                "positives": len(right),
                "contrastive": contrastive[row],
            }
            if direction.texts is not None:
                record["text"] = direction.texts[query]
            if reranked is not None:
                record["reranked"] = reranked[row]
            records.append(record)
    return records, degenerate


def _contrastive(
    direction: Direction,
    scores: NDArray[np.float32],
    positives: Sequence[NDArray[np.int64]],
    ranked: Ranks,
    best: NDArray[np.int64],
) -> list[ContrastiveStanding]:
    precision = rank_relevant(scores, positives).average_precision()
    described: list[ContrastiveStanding] = []
    for row in range(len(scores)):
        standing = _standing(ranked, row, best[row, :TOP], scores[row], direction.candidate_ids)
        described.append({"average_precision": float(precision[row]), **standing})
    return described


def _reranked(
    direction: Direction,
    scores: NDArray[np.float32],
    positives: Sequence[NDArray[np.int64]],
    reranking: Reranking,
) -> list[RerankedStanding]:
    listed = reranking.shortlists
    contrastive = np.take_along_axis(scores, listed, axis=1)
    second = reranking.scores(contrastive)
    ranked = two_stage_ranks(scores, positives, listed, second)
    order = np.argsort(-second, axis=1, kind="stable")[:, :TOP]
    # What was not scored again stays below everything that was.
    values = np.full(scores.shape, -np.inf, dtype=second.dtype)
    np.put_along_axis(values, listed, second, axis=1)
    k = listed.shape[1]
    # Lists are sorted: the last column holds the score at the cut.
    reaching_the_cut = (scores >= contrastive[:, -1:]).sum(axis=1)
    described: list[RerankedStanding] = []
    for row in range(len(scores)):
        top = listed[row, order[row]]
        standing = _standing(ranked, row, top, values[row], direction.candidate_ids)
        cut_in_a_tie = bool(reaching_the_cut[row] > k)
        reranked: RerankedStanding = {"k": k, "cut_in_a_tie": cut_in_a_tie, **standing}
        if cut_in_a_tie:
            # With a tie at the cut, the shortlist could have held other candidates.
            possible = rank_range(scores[row], listed[row], second[row], positives[row])
            if possible is not None:
                reranked["best_rank"], reranked["worst_rank"] = possible
        described.append(reranked)
    return described


def _standing(
    ranked: Ranks,
    row: int,
    top: NDArray[np.int64],
    values: NDArray[Any],
    candidate_ids: Sequence[str],
) -> Standing:
    return {
        "above": int(ranked.above[row]),
        "tied": int(ranked.tied[row]),
        "tied_positives": int(ranked.tied_positives[row]),
        "top": [(candidate_ids[position], float(values[position])) for position in top],
    }


def missed(
    media: str,
    images: Images,
    gallery: tuple[Direction, Direction],
    rerank_k: int,
) -> tuple[list[RetrievalRecord], list[RetrievalRecord]]:
    """Describe the queries, in both directions, of images or videos that cannot be read.

    They count as missed, behind every candidate of ``gallery``, the directions of the first fold:
    an image without features has no place in the folds.
    """
    to_image, to_text = gallery
    from_texts: list[RetrievalRecord] = []
    from_images: list[RetrievalRecord] = []
    for unreadable in images.unreadable:
        for number, caption in enumerate(unreadable.captions):
            record = _missed(
                f"text_to_{media}",
                f"{unreadable.key}#{number}",
                unreadable.key,
                candidates=len(to_image.candidates),
                positives=1,
                rerank_k=rerank_k,
            )
            record["text"] = caption
            from_texts.append(record)
        from_images.append(
            _missed(
                f"{media}_to_text",
                unreadable.key,
                unreadable.key,
                candidates=len(to_text.candidates),
                # No query may have more right candidates than candidates.
                positives=min(len(unreadable.captions), len(to_text.candidates)),
                rerank_k=rerank_k,
            )
        )
    return from_texts, from_images


def _missed(
    direction: str, query: str, image: str, *, candidates: int, positives: int, rerank_k: int
) -> RetrievalRecord:
    behind: Standing = {"above": candidates, "tied": 0, "tied_positives": 0, "top": []}
    record: RetrievalRecord = {
        "direction": direction,
        "query": query,
        "image": image,
        "fold": 0,
        "candidates": candidates,
        "positives": positives,
        "unreadable": True,
        "contrastive": {"average_precision": 0.0, **behind},
    }
    if rerank_k:
        record["reranked"] = {"k": min(rerank_k, candidates), "cut_in_a_tie": False, **behind}
    return record
