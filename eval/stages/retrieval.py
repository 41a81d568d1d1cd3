"""Zero-shot retrieval in both directions: contrastive scores, then the matching head on the best candidates.

In: a model, and a data set whose pictures have one or more captions. Out: R@k, median and mean rank with intervals.
Protocol: Karpathy's (every caption is a query; a picture's best caption counts), and ALBEF's two stages, where what was
not scored a second time stays below what was, in its first order. All metrics are computed from the records.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.errors import UsageError
from data_pipeline.manifest import Manifest
from eval.features import encode_images, encode_texts, load, processes
from eval.matching import match_margins
from eval.schema import Metric, Result, environment, write_result
from eval.statistics import mean_interval, median_interval
from pretrain.ranking import Ranks, ranks, score_blocks, tells_nothing_apart, two_stage_ranks

RECALL_AT = (1, 5, 10)
TOP = 5  # candidates that each record names
SCORES = {
    "itm": "logit(match) - logit(no match)",
    "itm+sim": "logit(match) - logit(no match) + cosine / temperature",
}


@dataclass(frozen=True)
class _Direction:
    """One side asks, the other is ranked."""

    name: str
    queries: NDArray[np.float32]
    candidates: NDArray[np.float32]
    query_ids: list[str]
    candidate_ids: list[str]
    positives: list[NDArray[np.int64]]
    image_keys: list[str]
    texts: list[str] | None


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    rerank_k: int = 16,
    score: str = "itm+sim",
    limit: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
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
    batch_size
        Pictures and texts encoded at once; it does not change the result.
    precision
        `fp32` or `bf16` for the networks; scores are float32 in both.

    Raises
    ------
    UsageError, DataError, NumericsError
        For an unknown option, for missing or broken data, for scores that are not finite.
    """
    if score not in SCORES:
        raise UsageError(f"score is {score!r}, must be one of {', '.join(SCORES)}")
    if rerank_k < 0:
        raise UsageError(f"rerank_k is {rerank_k}, must be 0 (no second stage) or more")
    manifest = Manifest.load(data)
    loaded = load(model, precision)
    started = time.perf_counter()
    images = encode_images(loaded, manifest, batch_size=batch_size, limit=limit)
    captions = [caption for several in images.captions for caption in several]
    image_of = np.repeat(np.arange(len(images.keys)), [len(several) for several in images.captions])
    texts = encode_texts(loaded, captions, batch_size=batch_size)
    encoded = time.perf_counter()
    directions = _directions(images.keys, captions, image_of, images.features[images.row], texts.features[texts.row])
    shortlists = [_shortlists(direction, rerank_k) for direction in directions]
    second: list[NDArray[np.float32] | None] = [None, None]
    flags = []
    if rerank_k:
        to_image, to_text = (shortlist for shortlist, _ in shortlists)
        pairs = np.concatenate([_pairs(to_image), _pairs(to_text)[:, ::-1]])  # (text, image)
        margins = match_margins(loaded, images, texts, pairs[:, 1], pairs[:, 0])
        second = [margins[: to_image.size].reshape(to_image.shape), margins[to_image.size :].reshape(to_text.shape)]
        if any(tells_nothing_apart(margin) for margin in second if margin is not None):
            flags.append("constant_match_scores")
    weight = 1 / loaded.model.temperature.item() if score == "itm+sim" else 0.0
    records: list[dict[str, Any]] = []
    for direction, (shortlist, _), margin in zip(directions, shortlists, second, strict=True):
        found, degenerate = _records(direction, shortlist, margin, weight)
        records += found
        if degenerate:
            flags.append(f"degenerate_scores/{direction.name}")
    state = processes()
    rerank = {"k": rerank_k, "score": score, "formula": SCORES[score]} | {
        "shortlists_cut_in_a_tie": {d.name: cut for d, (_, cut) in zip(directions, shortlists, strict=True)}
    }
    result = Result(
        stage="retrieval",
        protocol={
            "name": "zero-shot",
            "ties": "expected value",
            "tie_rate": _tie_rates(records),
            "score_dtype": "float32",
            "precision": precision,
            "rerank": rerank if rerank_k else None,
            "intervals": "percentile bootstrap over pictures",
        },
        data={
            "path": str(data),
            "name": manifest.name,
            "hash": f"sha256:{manifest.digest}",
            "images": len(images.keys),
            "texts": len(captions),
            "duplicate_images": len(images.keys) - len(np.unique(images.row)),
            "duplicate_texts": len(captions) - len(np.unique(texts.row)),
        },
        model=loaded.description,
        environment=environment(state.num_processes, str(loaded.device)),
        metrics=metrics(records, rerank_k),
        flags=flags,
        timing={"encode_s": encoded - started, "rank_s": time.perf_counter() - encoded},
    )
    if state.is_main_process:
        write_result(Path(out), result, records)
    state.wait_for_everyone()
    return result


def metrics(records: Iterable[dict[str, Any]], rerank_k: int) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `DIRECTION/R@k`, `MdR` and `MeanR` are those of the contrastive score, `DIRECTION/R@<rerank_k>` the bound that it
    sets on re-ranking, `DIRECTION/reranked/R@k` both stages, `DIRECTION/reranked_gain/R@1` the paired difference.
    """
    by_direction: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_direction.setdefault(record["direction"], []).append(record)
    found: list[Metric] = []
    for name, lines in by_direction.items():
        clusters = [line["image"] for line in lines]
        first = _ranks(lines, "contrastive")
        positives = np.array([line["positives"] for line in lines])
        chance = Ranks(np.zeros_like(positives), np.full_like(positives, first.candidates), positives, first.candidates)
        for k in sorted({*RECALL_AT, *([rerank_k] if rerank_k else [])}):
            found.append(_recall(f"{name}/R@{k}", first, chance, k, clusters))
        for label, middle, interval in (("MdR", np.median, median_interval), ("MeanR", np.mean, mean_interval)):
            found.append(
                Metric(
                    name=f"{name}/{label}",
                    value=float(middle(first.expected)),
                    unit="rank",
                    ci95=interval(first.expected, clusters),
                    n=len(lines),
                    chance=float(middle(chance.expected)),
                )
            )
        if rerank_k:
            # Only R@k: a mean rank would mix what the head ordered with what it never saw.
            both = _ranks(lines, "reranked")
            found += [_recall(f"{name}/reranked/R@{k}", both, chance, k, clusters) for k in RECALL_AT]
            gain = 100 * (both.hits(1) - first.hits(1))
            found.append(
                Metric(
                    name=f"{name}/reranked_gain/R@1",
                    value=float(gain.mean()),
                    unit="percentage points",
                    ci95=mean_interval(gain, clusters),
                    n=len(lines),
                    chance=0.0,
                )
            )
    return found


def _directions(
    keys: list[str],
    captions: list[str],
    image_of: NDArray[np.int64],
    image_features: NDArray[np.float32],
    text_features: NDArray[np.float32],
) -> tuple[_Direction, _Direction]:
    first = np.searchsorted(image_of, np.arange(len(keys) + 1))
    caption_ids = [f"{keys[image]}#{text - first[image]}" for text, image in enumerate(image_of)]
    owners = [keys[image] for image in image_of]
    to_image = _Direction(
        "text_to_image",
        text_features,
        image_features,
        caption_ids,
        keys,
        [np.array([image]) for image in image_of],
        owners,
        captions,
    )
    own = [np.arange(first[image], first[image + 1]) for image in range(len(keys))]
    to_text = _Direction("image_to_text", image_features, text_features, keys, caption_ids, own, keys, None)
    return to_image, to_text


def _score_blocks(direction: _Direction) -> Iterator[tuple[int, NDArray[np.float32]]]:
    return score_blocks(
        direction.queries,
        direction.candidates,
        query_ids=direction.query_ids,
        candidate_ids=direction.candidate_ids,
    )


def _shortlists(direction: _Direction, k: int) -> tuple[NDArray[np.int64], int]:
    """Best ``k`` candidates of every query (at least as many as a record names), and how many cuts fall into a tie."""
    rows, cut = [], 0
    for _, scores in _score_blocks(direction):
        order = np.argsort(-scores, axis=1, kind="stable")
        if 0 < k < scores.shape[1]:
            edge = np.take_along_axis(scores, order[:, k - 1 : k + 1], axis=1)
            cut += int((edge[:, 0] == edge[:, 1]).sum())
        rows.append(order[:, : k or TOP])
    return np.concatenate(rows), cut


def _pairs(shortlist: NDArray[np.int64]) -> NDArray[np.int64]:
    queries = np.repeat(np.arange(len(shortlist)), shortlist.shape[1])
    return np.stack([queries, shortlist.ravel()], axis=1)


def _records(
    direction: _Direction, shortlist: NDArray[np.int64], margins: NDArray[np.float32] | None, weight: float
) -> tuple[list[dict[str, Any]], bool]:
    records, degenerate = [], True
    for start, scores in _score_blocks(direction):
        block = slice(start, start + len(scores))
        positives = direction.positives[block]
        first = ranks(scores, positives)
        degenerate = degenerate and first.degenerate
        order = np.argsort(-scores, axis=1, kind="stable")
        stages: dict[str, tuple[Ranks, NDArray[Any], NDArray[Any]]] = {
            "contrastive": (first, order[:, :TOP], np.take_along_axis(scores, order[:, :TOP], axis=1))
        }
        if margins is not None:
            listed = shortlist[block]
            second = margins[block] + np.float32(weight) * np.take_along_axis(scores, listed, axis=1)
            best = np.argsort(-second, axis=1, kind="stable")[:, :TOP]
            stages["reranked"] = (
                two_stage_ranks(scores, positives, listed, second),
                np.take_along_axis(listed, best, axis=1),
                np.take_along_axis(second, best, axis=1),
            )
        for row, own in enumerate(positives):
            query = start + row
            record: dict[str, Any] = {
                "direction": direction.name,
                "query": direction.query_ids[query],
                "image": direction.image_keys[query],
                "candidates": scores.shape[1],
                "positives": len(own),
            }
            if direction.texts is not None:
                record["text"] = direction.texts[query]
            for stage, (ranked, top, values) in stages.items():
                record[stage] = {
                    "above": int(ranked.above[row]),
                    "tied": int(ranked.tied[row]),
                    "tied_positives": int(ranked.tied_positives[row]),
                    "top": [[direction.candidate_ids[i], float(v)] for i, v in zip(top[row], values[row], strict=True)],
                }
            records.append(record)
    return records, degenerate


def _tie_rates(records: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Share of queries whose best positive is tied with a negative, by `DIRECTION/STAGE`."""
    lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        for stage in ("contrastive", "reranked"):
            if stage in record:
                lines.setdefault((record["direction"], stage), []).append(record)
    return {f"{direction}/{stage}": _ranks(of, stage).tie_rate for (direction, stage), of in lines.items()}


def _ranks(lines: Sequence[dict[str, Any]], stage: str) -> Ranks:
    above, tied, tied_positives = (
        np.array([line[stage][name] for line in lines], dtype=np.int64) for name in ("above", "tied", "tied_positives")
    )
    return Ranks(above, tied, tied_positives, candidates=lines[0]["candidates"])


def _recall(name: str, ranked: Ranks, chance: Ranks, k: int, clusters: Sequence[str]) -> Metric:
    hits = 100 * ranked.hits(k)
    return Metric(
        name=name,
        value=float(hits.mean()),
        unit="percent",
        ci95=mean_interval(hits, clusters),
        n=len(hits),
        chance=100 * chance.recall(k),
        bounds=(100 * float((ranked.pessimistic <= k).mean()), 100 * float((ranked.optimistic <= k).mean())),
    )
