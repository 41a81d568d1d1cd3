"""Both directions of a gallery: who asks, who is ranked, the candidates that are scored twice, the line of each query.

In: encoded pictures or clips and their captions. Out: the records of `samples.jsonl`, from which
every metric follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.encoding.features import Images, Texts
from eval.metrics.relevant_ranks import rank_relevant
from pretrain.ranking import Ranks, ranks, score_blocks, two_stage_ranks

TOP = 5  # candidates that each record names


@dataclass(frozen=True)
class Captions:
    """All captions in the order of their pictures: ``image`` (captions,) is the place of each one's own."""

    texts: list[str]
    ids: list[str]
    image: NDArray[np.int64]

    @classmethod
    def of(cls, images: Images) -> Captions:
        """List the captions of what was encoded."""
        return cls(
            texts=[caption for several in images.captions for caption in several],
            ids=[
                f"{k}#{n}"
                for k, several in zip(images.keys, images.captions, strict=True)
                for n in range(len(several))
            ],
            image=np.repeat(
                np.arange(len(images.keys)), [len(several) for several in images.captions]
            ),
        )


@dataclass(frozen=True)
class Direction:
    """One side asks, the other is ranked; places are those of the whole test set."""

    name: str
    fold: int
    queries: NDArray[np.int64]
    candidates: NDArray[np.int64]
    query_features: NDArray[np.float32]
    candidate_features: NDArray[np.float32]
    query_ids: list[str]
    candidate_ids: list[str]
    positives: list[NDArray[np.int64]]
    image_keys: list[str]
    texts: list[str] | None

    def score_blocks(self) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first query, scores (rows, candidates)) of consecutive blocks of queries."""
        return score_blocks(
            self.query_features,
            self.candidate_features,
            query_ids=self.query_ids,
            candidate_ids=self.candidate_ids,
        )


def directions(
    media: str, images: Images, texts: Texts, captions: Captions, folds: int
) -> tuple[list[Direction], list[Direction]]:
    """Divide pictures into ``folds`` consecutive parts; each is asked for, and asks for, its own captions."""
    to_image, to_text = [], []
    image_features, text_features = images.features[images.row], texts.features[texts.row]
    for fold, own in enumerate(np.array_split(np.arange(len(images.keys)), folds)):
        first, last = np.searchsorted(captions.image, [own[0], own[-1] + 1])
        said = np.arange(first, last)
        image_of = captions.image[said] - own[0]
        ends = np.searchsorted(image_of, np.arange(len(own) + 1))
        keys, ids = [images.keys[i] for i in own], captions.ids[first:last]
        to_image.append(
            Direction(
                name=f"text_to_{media}",
                fold=fold,
                queries=said,
                candidates=own,
                query_features=text_features[said],
                candidate_features=image_features[own],
                query_ids=ids,
                candidate_ids=keys,
                positives=[np.array([i]) for i in image_of],
                image_keys=[keys[i] for i in image_of],
                texts=captions.texts[first:last],
            )
        )
        to_text.append(
            Direction(
                name=f"{media}_to_text",
                fold=fold,
                queries=own,
                candidates=said,
                query_features=image_features[own],
                candidate_features=text_features[said],
                query_ids=keys,
                candidate_ids=ids,
                positives=[np.arange(ends[i], ends[i + 1]) for i in range(len(own))],
                image_keys=keys,
                texts=None,
            )
        )
    return to_image, to_text


def shortlist(direction: Direction, k: int) -> NDArray[np.int64]:
    """Find the ``k`` best candidates of every query, best first and the first of equal ones (queries, k)."""
    k = min(k, len(direction.candidate_ids))
    rows = []
    for _, scores in direction.score_blocks():
        least = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k]
        for values, edge in zip(scores, least, strict=True):
            chosen = np.flatnonzero(values >= edge)
            rows.append(chosen[np.argsort(-values[chosen], kind="stable")[:k]])
    return np.stack(rows)


def records_of(
    direction: Direction,
    best: NDArray[np.int64],
    second: tuple[NDArray[np.int64], NDArray[np.float32], float] | None,
) -> tuple[list[dict[str, Any]], bool]:
    """Describe every query, and say whether no score tells its candidates apart.

    Parameters
    ----------
    direction, best
        Who asks whom; the best candidates by contrast (queries, k).
    second
        What was scored again and its margins, both (queries, k), and the weight of the contrastive
        score beside them.
    """
    records, degenerate = [], True
    for start, scores in direction.score_blocks():
        block = slice(start, start + len(scores))
        positives = direction.positives[block]
        first = ranks(scores, positives)
        degenerate = degenerate and first.degenerate
        precision = rank_relevant(scores, positives).average_precision()
        lines = _lines(first, best[block, :TOP], scores, direction.candidate_ids)
        stages: dict[str, list[dict[str, Any]]] = {
            "contrastive": [
                {"average_precision": float(p)} | line
                for p, line in zip(precision, lines, strict=True)
            ]
        }
        if second is not None:
            listed, margins, weight = second
            chosen = listed[block]
            contrast = np.take_along_axis(scores, chosen, axis=1)
            both = margins[block] + np.float32(weight) * contrast
            order = np.argsort(-both, axis=1, kind="stable")[:, :TOP]
            values = np.full(scores.shape, -np.inf, dtype=both.dtype)
            np.put_along_axis(values, chosen, both, axis=1)
            ranked = two_stage_ranks(scores, positives, chosen, both)
            lines = _lines(
                ranked, np.take_along_axis(chosen, order, axis=1), values, direction.candidate_ids
            )
            k = chosen.shape[1]
            cut = (scores >= contrast[:, -1:]).sum(axis=1) > k
            stages["reranked"] = [
                {"k": k, "cut_in_a_tie": bool(inside)} | line
                for inside, line in zip(cut, lines, strict=True)
            ]
        for row, own in enumerate(positives):
            query = start + row
            record: dict[str, Any] = {
                "direction": direction.name,
                "query": direction.query_ids[query],
                "image": direction.image_keys[query],
                "fold": direction.fold,
                "candidates": scores.shape[1],
                "positives": len(own),
            }
            if direction.texts is not None:
                record["text"] = direction.texts[query]
            records.append(record | {stage: lines[row] for stage, lines in stages.items()})
    return records, degenerate


def missed(
    media: str, images: Images, reranked: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Describe the queries, in both directions, of what cannot be read: they stand behind every candidate."""
    asked, asking = [], []
    texts = sum(len(several) for several in images.captions)
    for bad in images.unreadable:
        for number, caption in enumerate(bad.captions):
            line = {"direction": f"text_to_{media}", "query": f"{bad.key}#{number}"}
            asked.append(_missed(line, bad.key, len(images.keys), 1, reranked) | {"text": caption})
        line = {"direction": f"{media}_to_text", "query": bad.key}
        asking.append(_missed(line, bad.key, texts, len(bad.captions), reranked))
    return asked, asking


def _missed(
    line: dict[str, Any], key: str, candidates: int, positives: int, reranked: int
) -> dict[str, Any]:
    behind = {"above": candidates, "tied": 0, "tied_positives": 0, "top": []}
    line = line | {
        "image": key,
        "fold": 0,
        "candidates": candidates,
        "positives": positives,
        "unreadable": True,
    }
    line["contrastive"] = {"average_precision": 0.0} | behind
    return line | (
        {"reranked": {"k": min(reranked, candidates), "cut_in_a_tie": False} | behind}
        if reranked
        else {}
    )


def _lines(
    ranked: Ranks, top: NDArray[np.int64], values: NDArray[Any], candidate_ids: Sequence[str]
) -> list[dict[str, Any]]:
    return [
        {
            "above": int(ranked.above[row]),
            "tied": int(ranked.tied[row]),
            "tied_positives": int(ranked.tied_positives[row]),
            "top": [[candidate_ids[i], float(values[row, i])] for i in chosen],
        }
        for row, chosen in enumerate(top)
    ]
