"""Zero-shot retrieval in both directions: contrastive scores, then the matching head on the best candidates.

In: a model, and a data set whose pictures (or clips) have one or more captions. Out: R@k, mAP,
median and mean rank with intervals. Protocol: Karpathy's (every caption is a query; a picture's
best caption counts), and ALBEF's two stages, where what was not scored a second time stays below
what was, in its first order.
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
from eval.results.intervals import mean_interval, median_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from pretrain.ranking import Ranks, chance_ranks, is_degenerate

from .options import Options, RankingOptions
from .queries import (
    TOP,
    Captions,
    Direction,
    directions,
    missed,
    records_of,
    shortlist,
)

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
    images = encode_images(loaded, manifest, batch_size=options.batch_size, limit=options.limit)
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
    rerank_k, score = options.rerank_k, options.score
    captions = Captions.of(images)
    texts = encode_texts(loaded, captions.texts, batch_size=options.batch_size)
    encoded = time.perf_counter()
    both = directions(media, images, texts, captions, folds)
    lists = [[shortlist(part, max(rerank_k, TOP)) for part in side] for side in both]
    flags = []
    if images.unreadable:
        flags.append("unreadable_images")
    margins = _margins(loaded, images, texts, both, lists, rerank_k) if rerank_k else None
    if margins is not None and _is_constant_one_way(margins):
        flags.append("constant_match_scores")
    weight = 1 / loaded.model.temperature.item() if score == "itm+sim" else 0.0
    records: list[dict[str, Any]] = []
    lost = missed(media, images, rerank_k)
    for number, side in enumerate(both):
        degenerate = True
        for fold, part in enumerate(side):
            best = lists[number][fold]
            second = None
            if margins is not None:
                second = (best[:, :rerank_k], margins[number][fold], weight)
            ranked, part_degenerate = records_of(part, best, second)
            records += ranked
            degenerate = degenerate and part_degenerate
        records += lost[number]
        if degenerate:
            flags.append(f"degenerate_scores/{side[0].name}")
    rerank = {"k": rerank_k, "score": score, "formula": SCORES[score]} if rerank_k else None
    return Measured(
        records=records,
        protocol={
            "name": "contrastive score" + (", then the matching head" if rerank_k else ""),
            "ties": "expected value",
            "score_dtype": "float32",
            "precision": loaded.precision,
            "rerank": rerank,
            "folds": folds,
            "intervals": "percentile bootstrap over pictures",
        },
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


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `DIRECTION/R@k`, `MdR`, `MeanR`, `mAP` and `tie_rate` are those of the contrastive score,
    `DIRECTION/R@<rerank_k>` the bound that it sets on re-ranking, `DIRECTION/reranked/R@k` both
    stages, `DIRECTION/reranked_gain/R@1` the paired difference, `DIRECTION/reranked/cut_in_a_tie`
    the share of shortlists that end among equal scores.
    """
    by_direction: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_direction.setdefault(record["direction"], []).append(record)
    found: list[Metric] = []
    for name, lines in by_direction.items():
        clusters = [line["image"] for line in lines]
        first = _ranks(lines, "contrastive")
        sizes = [(line["positives"], line["candidates"]) for line in lines]
        rerank_k = max((line["reranked"]["k"] for line in lines if "reranked" in line), default=0)
        for k in sorted({*RECALL_AT, *([rerank_k] if rerank_k else [])}):
            found.append(_recall(f"{name}/R@{k}", first, sizes, k, clusters))
        for label, middle, interval in (
            ("MdR", np.median, median_interval),
            ("MeanR", np.mean, mean_interval),
        ):
            found.append(
                Metric(
                    name=f"{name}/{label}",
                    value=float(middle(first.expected)),
                    unit="rank",
                    ci95=interval(first.expected, clusters),
                    n=len(lines),
                    chance=float(middle([_guessed_rank(*size) for size in sizes])),
                    bounds=(float(middle(first.pessimistic)), float(middle(first.optimistic))),
                )
            )
        precision = np.array([line["contrastive"]["average_precision"] for line in lines])
        found.append(
            _mean(
                f"{name}/mAP",
                precision,
                clusters,
                float(np.mean([_guessed_precision(*size) for size in sizes])),
            )
        )
        found.append(_mean(f"{name}/tie_rate", first.tied > first.tied_positives, clusters))
        if rerank_k:
            # Only R@k: a mean rank would mix what the head ordered with what it never saw.
            both = _ranks(lines, "reranked")
            found += [
                _recall(f"{name}/reranked/R@{k}", both, sizes, k, clusters) for k in RECALL_AT
            ]
            gain = _mean(f"{name}/reranked_gain/R@1", both.hits(1) - first.hits(1), clusters, 0.0)
            found.append(gain.model_copy(update={"unit": "percentage points"}))
            found.append(
                _mean(f"{name}/reranked/tie_rate", both.tied > both.tied_positives, clusters)
            )
            cut = [line["reranked"]["cut_in_a_tie"] for line in lines]
            found.append(_mean(f"{name}/reranked/cut_in_a_tie", cut, clusters))
    return found


def _is_constant_one_way(margins: Sequence[Sequence[NDArray[np.float32]]]) -> bool:
    """Whether the matching head ignores the candidates in one of the directions."""
    for side in margins:
        if all(is_degenerate(part) for part in side):
            return True
    return False


def _margins(
    loaded: LoadedModel,
    images: Images,
    texts: Texts,
    both: tuple[list[Direction], list[Direction]],
    lists: Sequence[Sequence[NDArray[np.int64]]],
    k: int,
) -> list[list[NDArray[np.float32]]]:
    """Score all shortlists at once: a pair that stands in both directions is scored once."""
    pairs = []
    for swap, (side, several) in enumerate(zip(both, lists, strict=True)):
        for part, best in zip(side, several, strict=True):
            chosen = part.candidates[best[:, :k]]
            asked = np.broadcast_to(part.queries[:, None], chosen.shape)
            pairs.append((chosen, asked) if not swap else (asked, chosen))  # (image, text)
    image, text = (np.concatenate([pair[which].ravel() for pair in pairs]) for which in (0, 1))
    scores = match_margins(loaded, images, texts, image, text)
    ends = np.cumsum([pair[0].size for pair in pairs])[:-1]
    parts = [
        part.reshape(pair[0].shape)
        for part, pair in zip(np.split(scores, ends), pairs, strict=True)
    ]
    return [parts[: len(both[0])], parts[len(both[0]) :]]


# What equal scores reach with so many positives among so many candidates; a test set has few such
# sizes.


@lru_cache(maxsize=4096)
def _guessed_rank(positives: int, candidates: int) -> float:
    return float(chance_ranks([range(positives)], candidates).expected[0])


@lru_cache(maxsize=4096)
def _guessed_precision(positives: int, candidates: int) -> float:
    return float(ranks_of_constant_score([positives], [candidates]).average_precision()[0])


@lru_cache(maxsize=65536)
def _guessed_hit(positives: int, candidates: int, k: int) -> float:
    return chance_ranks([range(positives)], candidates).recall(k)


def _ranks(lines: Sequence[dict[str, Any]], stage: str) -> Ranks:
    above, tied, tied_positives = (
        np.array([line[stage][name] for line in lines], dtype=np.int64)
        for name in ("above", "tied", "tied_positives")
    )
    return Ranks(above, tied, tied_positives, candidates=max(line["candidates"] for line in lines))


def _mean(name: str, values: Any, clusters: Sequence[str], chance: float | None = None) -> Metric:
    percent = 100 * np.asarray(values, dtype=np.float64)
    return Metric(
        name=name,
        value=float(percent.mean()),
        unit="percent",
        ci95=mean_interval(percent, clusters),
        n=len(percent),
        chance=None if chance is None else 100 * chance,
    )


def _recall(
    name: str, ranked: Ranks, sizes: Sequence[tuple[int, int]], k: int, clusters: Sequence[str]
) -> Metric:
    ranked_at_all = ranked.tied > 0  # not what could not be read
    bounds = tuple(
        100 * float(((rank <= k) & ranked_at_all).mean())
        for rank in (ranked.pessimistic, ranked.optimistic)
    )
    chance = float(np.mean([_guessed_hit(*size, k) for size in sizes]))
    return _mean(name, ranked.hits(k), clusters, chance).model_copy(update={"bounds": bounds})
