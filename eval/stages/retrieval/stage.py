"""Zero-shot retrieval in both directions: contrastive scores, then the matching head on the best.

In: a model, and a data set whose images (or videos) have one or more captions. Out: R@k, mAP,
median and mean rank with intervals. Protocol: Karpathy's (every caption is a query; an image counts
by its best caption), and ALBEF's two stages: candidates that are not scored again stay below those
that are, in their first order.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UsageError
from data_pipeline.shards.manifest import Manifest
from eval.encoding.features import (
    Images,
    LoadedModel,
    Texts,
    encode_images,
    encode_texts,
    load,
)
from eval.encoding.matching_scores import match_margins
from eval.metrics.relevant_ranks import ranks_of_constant_score
from eval.results.intervals import mean_metric, median_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from pretrain.ranking import Ranks, chance_ranks, is_degenerate

from .options import Options, RankingOptions
from .queries import Captions, Direction, directions
from .ranking_records import TOP, missed, records_of
from .records import RerankedStanding, RetrievalRecord, Standing
from .shortlists import Reranking, shortlist

RECALL_AT = (1, 5, 10)
SCORES = {
    "itm": "logit(match) - logit(no match)",
    "itm+sim": "logit(match) - logit(no match) + cosine / temperature",
}


def measure(options: Options, manifest: Manifest) -> Measured:
    """Rank a data set's images for its captions, and its captions for its images.

    Raises
    ------
    UsageError
        If there are more folds than images.
    NumericsError
        If a score is not finite.
    """
    loaded = load(options.model, options.precision, options.cache)
    started = time.perf_counter()
    images = encode_images(
        loaded,
        manifest,
        batch_size=options.batch_size,
        limit=options.limit,
        skip_unreadable=True,
    )
    return rank_both_ways("image", options, loaded, images, started, folds=options.folds)


def rank_both_ways(
    media: str,
    options: RankingOptions,
    loaded: LoadedModel,
    images: Images,
    started: float,
    *,
    folds: int = 1,
) -> Measured:
    """Rank encoded images or videos and their captions in both directions.

    Parameters
    ----------
    media
        `image` or `video`: part of the names of directions and counts.
    options, loaded, images
        How to rank; the model; what it encoded.
    started
        When encoding began, in seconds of `time.perf_counter`.
    folds
        Consecutive parts that are ranked separately.
    """
    if folds > len(images.keys):
        raise UsageError(f"folds is {folds}, more than the {len(images.keys)} images")
    rerank_k = options.rerank_k
    captions = Captions.of(images)
    texts = encode_texts(loaded, captions.texts, batch_size=options.batch_size)
    encoded = time.perf_counter()
    both = directions(media, images, texts, captions, folds)
    best = []
    for side in both:
        # Records name the best candidates even where none are scored again.
        best.append([shortlist(part, max(rerank_k, TOP)) for part in side])
    flags = []
    if images.unreadable:
        flags.append("unreadable_images")
    reranked = None
    if rerank_k:
        # The head's margin is a logit, so the cosine must become one before they are added.
        weight = 1 / loaded.model.temperature.item() if options.score == "itm+sim" else 0.0
        reranked = _rerank(loaded, images, texts, both, best, rerank_k, weight)
        # A head that ignores one side gives every candidate of a query the same score.
        if _is_constant_one_way(reranked):
            flags.append("constant_match_scores")

    # Missed queries follow those of their direction, so that equal runs write equal files.
    records: list[RetrievalRecord] = []
    missed_both_ways = missed(media, images, (both[0][0], both[1][0]), rerank_k)
    for number, side in enumerate(both):
        degenerate = True
        for fold, part in enumerate(side):
            second = None if reranked is None else reranked[number][fold]
            fold_records, fold_degenerate = records_of(part, best[number][fold], second)
            records += fold_records
            degenerate = degenerate and fold_degenerate
        records += missed_both_ways[number]
        if degenerate:
            flags.append(f"degenerate_scores/{side[0].name}")
    return Measured(
        records=records,
        protocol=_protocol(options, loaded, folds),
        model=loaded.description,
        data={
            f"{media}s": len(images.keys),
            "texts": len(captions.texts),
            f"duplicate_{media}s": len(images.keys) - len(np.unique(images.row)),
            "duplicate_texts": len(captions.texts) - len(np.unique(texts.row)),
            "unreadable": {bad.key: bad.problem for bad in images.unreadable},
        },
        flags=flags,
        timing={"encode_s": encoded - started, "rank_s": time.perf_counter() - encoded},
        device=str(loaded.device),
    )


def _protocol(options: RankingOptions, loaded: LoadedModel, folds: int) -> dict[str, Any]:
    name, rerank = "contrastive score", None
    if options.rerank_k:
        name += ", then the matching head"
        formula = SCORES[options.score]
        rerank = {"k": options.rerank_k, "score": options.score, "formula": formula}
    return {
        "name": name,
        "ties": "expected value",
        "score_dtype": "float32",
        "precision": loaded.precision,
        "rerank": rerank,
        "folds": folds,
        "unreadable": "listed, missed as queries, no candidates",
        "intervals": "Wilson score for proportions, else percentile bootstrap; over images",
    }


def _rerank(
    loaded: LoadedModel,
    images: Images,
    texts: Texts,
    both: tuple[list[Direction], list[Direction]],
    best: Sequence[Sequence[NDArray[np.int64]]],
    k: int,
    weight: float,
) -> list[list[Reranking]]:
    """Score the ``k`` best candidates of all queries with the matching head.

    All directions and folds are scored in one call, which scores a pair that occurs in both
    directions once.
    """
    image_rows, text_rows = [], []
    for number, side in enumerate(both):
        for part, listed in zip(side, best[number], strict=True):
            candidates = part.candidates[listed[:, :k]]
            queries = np.broadcast_to(part.queries[:, None], candidates.shape)
            from_text = number == 0
            image_rows.append(candidates if from_text else queries)
            text_rows.append(queries if from_text else candidates)
    margins = match_margins(
        loaded,
        images,
        texts,
        np.concatenate([rows.ravel() for rows in image_rows]),
        np.concatenate([rows.ravel() for rows in text_rows]),
    )
    # Take the margins apart again, in the order in which the pairs were joined.
    reranked: list[list[Reranking]] = []
    start = 0
    for number, side in enumerate(both):
        reranked.append([])
        for fold in range(len(side)):
            listed = best[number][fold][:, :k]
            part_margins = margins[start : start + listed.size].reshape(listed.shape)
            reranked[number].append(Reranking(listed, part_margins, weight))
            start += listed.size
    return reranked


def _is_constant_one_way(reranked: Sequence[Sequence[Reranking]]) -> bool:
    """Whether the matching head ignores the candidates in one of the directions."""
    for side in reranked:
        constant = [is_degenerate(part.margins) for part in side]
        if all(constant):
            return True
    return False


def metrics(records: Iterable[RetrievalRecord]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `DIRECTION/R@k`, `MdR`, `MeanR`, `mAP` and `tie_rate` describe the contrastive ranking;
    `DIRECTION/R@<rerank_k>` is the upper bound of what re-ranking can reach. `DIRECTION/reranked/
    R@k` describe both stages, `DIRECTION/reranked_gain/R@1` is the paired difference, and
    `DIRECTION/reranked/cut_in_a_tie` the share of shortlists that end among equal scores.
    """
    by_direction: dict[str, list[RetrievalRecord]] = {}
    for record in records:
        by_direction.setdefault(record["direction"], []).append(record)
    computed: list[Metric] = []
    for name, lines in by_direction.items():
        computed += _contrastive_metrics(name, lines)
        if any("reranked" in line for line in lines):
            computed += _reranked_metrics(name, lines)
    return computed


def _contrastive_metrics(name: str, lines: Sequence[RetrievalRecord]) -> list[Metric]:
    standings = [line["contrastive"] for line in lines]
    images = [line["image"] for line in lines]
    sizes = [(line["positives"], line["candidates"]) for line in lines]
    ranked = _ranks(lines, standings)
    cutoffs = set(RECALL_AT)
    shortlist_lengths = [line["reranked"]["k"] for line in lines if "reranked" in line]
    if shortlist_lengths:
        cutoffs.add(max(shortlist_lengths))
    computed = []
    for k in sorted(cutoffs):
        bounds = (ranked.pessimistic, ranked.optimistic)
        computed.append(_recall(f"{name}/R@{k}", ranked, bounds, sizes, k, images))

    guessed_ranks = [_guessed_rank(*size) for size in sizes]
    computed.append(
        Metric(
            name=f"{name}/MdR",
            value=float(np.median(ranked.expected)),
            unit="rank",
            ci95=median_interval(ranked.expected, images),
            n=len(lines),
            clusters=len(set(images)),
            chance=float(np.median(guessed_ranks)),
            bounds=(float(np.median(ranked.pessimistic)), float(np.median(ranked.optimistic))),
        )
    )
    mean_rank = mean_metric(
        f"{name}/MeanR",
        ranked.expected,
        images,
        unit="rank",
        chance=float(np.mean(guessed_ranks)),
    )
    bounds_of_mean = (float(ranked.pessimistic.mean()), float(ranked.optimistic.mean()))
    computed.append(mean_rank.model_copy(update={"bounds": bounds_of_mean}))

    precision = [100 * standing["average_precision"] for standing in standings]
    guessed_precision = [_guessed_precision(*size) for size in sizes]
    chance = 100 * float(np.mean(guessed_precision))
    computed.append(mean_metric(f"{name}/mAP", precision, images, chance=chance))
    is_tied = ranked.tied > ranked.tied_positives
    computed.append(mean_metric(f"{name}/tie_rate", 100 * is_tied, images))
    return computed


def _reranked_metrics(name: str, lines: Sequence[RetrievalRecord]) -> list[Metric]:
    """Compute the metrics of both stages: only R@k, not ranks.

    A mean rank would mix candidates that the matching head ordered with those it never saw.
    """
    standings = [line["reranked"] for line in lines]
    images = [line["image"] for line in lines]
    sizes = [(line["positives"], line["candidates"]) for line in lines]
    first = _ranks(lines, [line["contrastive"] for line in lines])
    ranked = _ranks(lines, standings)
    bounds = _bounds_with_ties_at_the_cut(ranked, standings)
    computed = []
    for k in RECALL_AT:
        computed.append(_recall(f"{name}/reranked/R@{k}", ranked, bounds, sizes, k, images))
    gain = 100 * (ranked.hits(1) - first.hits(1))
    computed.append(
        mean_metric(f"{name}/reranked_gain/R@1", gain, images, unit="percentage points", chance=0.0)
    )
    is_tied = ranked.tied > ranked.tied_positives
    computed.append(mean_metric(f"{name}/reranked/tie_rate", 100 * is_tied, images))
    cut = [100 * standing["cut_in_a_tie"] for standing in standings]
    computed.append(mean_metric(f"{name}/reranked/cut_in_a_tie", cut, images))
    return computed


def _ranks(lines: Sequence[RetrievalRecord], standings: Sequence[Standing]) -> Ranks:
    return Ranks(
        np.array([standing["above"] for standing in standings], dtype=np.int64),
        np.array([standing["tied"] for standing in standings], dtype=np.int64),
        np.array([standing["tied_positives"] for standing in standings], dtype=np.int64),
        candidates=max(line["candidates"] for line in lines),
    )


def _bounds_with_ties_at_the_cut(
    ranked: Ranks, standings: Sequence[RerankedStanding]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the highest and lowest ranks, also over what a shortlist could have held instead."""
    worst, best = ranked.pessimistic.copy(), ranked.optimistic.copy()
    for number, standing in enumerate(standings):
        if "worst_rank" in standing:
            worst[number] = standing["worst_rank"]
            best[number] = standing["best_rank"]
    return worst, best


def _recall(
    name: str,
    ranked: Ranks,
    worst_and_best: tuple[NDArray[np.int64], NDArray[np.int64]],
    sizes: Sequence[tuple[int, int]],
    k: int,
    images: Sequence[str],
) -> Metric:
    # A query that cannot be read is missed even where k exceeds the number of candidates.
    is_readable = ranked.tied > 0
    worst, best = worst_and_best
    bounds = (
        100 * float(((worst <= k) & is_readable).mean()),
        100 * float(((best <= k) & is_readable).mean()),
    )
    chance = 100 * float(np.mean([_guessed_hit(*size, k) for size in sizes]))
    recall = mean_metric(name, 100 * ranked.hits(k), images, chance=chance)
    return recall.model_copy(update={"bounds": bounds})


# What a constant score reaches with given numbers of positives and candidates. A test set has few
# different pairs of them, so the caches nearly always hit.


@lru_cache(maxsize=4096)
def _guessed_rank(positives: int, candidates: int) -> float:
    return float(chance_ranks([range(positives)], candidates).expected[0])


@lru_cache(maxsize=4096)
def _guessed_precision(positives: int, candidates: int) -> float:
    return float(ranks_of_constant_score([positives], [candidates]).average_precision()[0])


@lru_cache(maxsize=65536)
def _guessed_hit(positives: int, candidates: int, k: int) -> float:
    return chance_ranks([range(positives)], candidates).recall(k)
