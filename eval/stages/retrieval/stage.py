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
from pathlib import Path
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
    processes,
)
from eval.encoding.matching_scores import match_margins
from eval.results.contamination import flags as overlap_flags
from eval.results.contamination import overlap as overlap_with
from eval.results.intervals import mean_interval, median_interval
from eval.results.schema import Metric, Result, data_flags, environment, write_result
from eval.stages.retrieval.queries import (
    TOP,
    Captions,
    Direction,
    directions,
    missed,
    records_of,
    shortlist,
)
from pretrain.ranking import Ranks, chance_average_precision, chance_ranks, tells_nothing_apart

RECALL_AT = (1, 5, 10)
SCORES = {
    "itm": "logit(match) - logit(no match)",
    "itm+sim": "logit(match) - logit(no match) + cosine / temperature",
}


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    rerank_k: int = 16,
    score: str = "itm+sim",
    limit: int | None = None,
    folds: int = 1,
    batch_size: int = 64,
    precision: str = "fp32",
    cache: Path | str | None = None,
    train: Path | str | None = None,
) -> Result:
    """Evaluate retrieval over a data set and write `result.json` and `samples.jsonl` into ``out``.

    Parameters
    ----------
    model, data, out
        Run folder, checkpoint or model folder; folder of a data set; folder to write.
    rerank_k
        Candidates per query that the matching head scores; 0 leaves the second stage out.
    score
        `itm` (the head alone) or `itm+sim` (with the contrastive logit; both are log odds).
    limit
        Use only the first pictures.
    folds
        Consecutive parts in which pictures and their captions are ranked apart (5 of COCO's 5K are
        its "1K").
    batch_size
        Pictures and texts encoded at once; it does not change the result.
    precision
        `fp32` or `bf16` for the networks; scores are float32 in both.
    cache
        Folder that keeps what is encoded, for the next time; none is kept without.
    train
        Run folder or data set that may hold test pictures; that of the model by default.

    Raises
    ------
    UsageError, DataError, NumericsError
        For an unknown option, for missing or broken data, for scores that are not finite.
    """
    check_options(rerank_k, score, folds)
    manifest = Manifest.load(data)
    known = overlap_with(manifest, model, train)
    loaded = load(model, precision, cache)
    started = time.perf_counter()
    images = encode_images(loaded, manifest, batch_size=batch_size, limit=limit)
    return retrieve(
        "retrieval",
        loaded,
        manifest,
        images,
        out,
        started,
        overlap=known,
        rerank_k=rerank_k,
        score=score,
        folds=folds,
        batch_size=batch_size,
    )


def check_options(rerank_k: int, score: str, folds: int = 1) -> None:
    """Refuse options that mean nothing, before anything is loaded."""
    if score not in SCORES:
        raise UsageError(f"score is {score!r}, must be one of {', '.join(SCORES)}")
    if rerank_k < 0:
        raise UsageError(f"rerank_k is {rerank_k}, must be 0 (no second stage) or more")
    if folds < 1:
        raise UsageError(f"folds is {folds}, must be 1 (all in one) or more")


def retrieve(
    stage: str,
    loaded: LoadedModel,
    manifest: Manifest,
    images: Images,
    out: Path | str,
    started: float,
    *,
    overlap: str,
    rerank_k: int,
    score: str,
    folds: int,
    batch_size: int,
    protocol: dict[str, Any] | None = None,
) -> Result:
    """Rank what was encoded, in both directions, and write the result of ``stage``."""
    if folds > len(images.keys):
        raise UsageError(f"folds is {folds}, more than the {len(images.keys)} pictures")
    media = "video" if stage == "video-retrieval" else "image"
    captions = Captions.of(images)
    texts = encode_texts(loaded, captions.texts, batch_size=batch_size)
    encoded = time.perf_counter()
    both = directions(media, images, texts, captions, folds)
    flags = (
        overlap_flags(overlap)
        + data_flags(manifest)
        + ["unreadable_images"] * bool(images.unreadable)
    )
    lists = [[shortlist(part, max(rerank_k, TOP)) for part in side] for side in both]
    margins = _margins(loaded, images, texts, both, lists, rerank_k) if rerank_k else None
    if margins is not None and any(
        all(tells_nothing_apart(part) for part in side) for side in margins
    ):
        flags.append("constant_match_scores")
    weight = 1 / loaded.model.temperature.item() if score == "itm+sim" else 0.0
    records: list[dict[str, Any]] = []
    for number, (side, lost) in enumerate(zip(both, missed(media, images, rerank_k), strict=True)):
        degenerate = True
        for fold, part in enumerate(side):
            best = lists[number][fold]
            second = (
                None if margins is None else (best[:, :rerank_k], margins[number][fold], weight)
            )
            found, tells_nothing = records_of(part, best, second)
            records += found
            degenerate = degenerate and tells_nothing
        records += lost
        if degenerate:
            flags.append(f"degenerate_scores/{side[0].name}")
    state = processes()
    result = Result(
        stage=stage,
        protocol={
            "name": "contrastive score" + (", then the matching head" if rerank_k else ""),
            "ties": "expected value",
            "score_dtype": "float32",
            "precision": loaded.precision,
            "rerank": {"k": rerank_k, "score": score, "formula": SCORES[score]}
            if rerank_k
            else None,
            "folds": folds,
            "intervals": "percentile bootstrap over pictures",
        }
        | (protocol or {}),
        data={
            "path": str(manifest.root),
            "name": manifest.name,
            "hash": f"sha256:{manifest.digest}",
            f"{media}s": len(images.keys),
            "texts": len(captions.texts),
            f"duplicate_{media}s": len(images.keys) - len(np.unique(images.row)),
            "duplicate_texts": len(captions.texts) - len(np.unique(texts.row)),
            "overlap": overlap,
            "unreadable": {bad.key: bad.problem for bad in images.unreadable},
        },
        model=loaded.description,
        environment=environment(state.num_processes, str(loaded.device)),
        metrics=metrics(records),
        flags=flags,
        timing={"encode_s": encoded - started, "rank_s": time.perf_counter() - encoded},
    )
    if state.is_main_process:
        write_result(Path(out), result, records)
    state.wait_for_everyone()
    return result


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
    return chance_average_precision(positives, candidates)


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
