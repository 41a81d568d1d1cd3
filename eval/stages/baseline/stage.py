"""What retrieval reaches without learning to see, and what it can reach at most.

Baseline: take the training caption with the closest bag of words, and rank the gallery by
colour-histogram distance to its picture. Ceiling, for generated scenes: a caption that fits several
pictures of the gallery shares its hit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist

from data_pipeline.decode import decode, open_image
from data_pipeline.errors import DataError
from data_pipeline.scenes.truth import fitting, is_scene
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from eval.results.intervals import mean_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from pretrain.ranking import Ranks, chance_ranks, ranks

from .options import Options

RECALL_AT = (1, 5, 10)
BINS = 8  # of each colour channel


def measure(options: Options, manifest: Manifest) -> Measured:
    """Rank images for each caption, with the training images as the only knowledge.

    Raises
    ------
    DataError
        If the training data set is missing or broken, or either data set holds videos.
    """
    train = Manifest.load(options.train)
    for each in (train, manifest):
        each.check_kind("image")
    train_captions, train_owners = _captions(train, None)
    captions, owners = _captions(manifest, options.limit)
    with closing(Store([manifest])) as store:
        samples = [store.read(0, number) for number in range(int(owners[-1]) + 1)]
    keys = [sample.key for sample in samples]
    nearest = nearest_texts(captions, train_captions)
    # Several captions may share a nearest text, whose image is then decoded once.
    chosen, place = np.unique(train_owners[nearest], return_inverse=True)
    with closing(Store([train])) as store:
        query_histograms = np.stack(
            [colour_histogram(store.read(0, int(number)).media) for number in chosen]
        )
    gallery_histograms = np.stack([colour_histogram(sample.media) for sample in samples])
    distances = cdist(query_histograms, gallery_histograms, "cityblock")
    ranked = ranks(-distances[place], owners)
    records: list[dict[str, Any]] = []
    for number, (text, owner) in enumerate(zip(captions, owners, strict=True)):
        records.append(
            {
                "direction": "text_to_image",
                "query": number,
                "image": keys[owner],
                "text": text,
                "candidates": len(keys),
                "positives": 1,
                "nearest_text": train_captions[nearest[number]],
                "baseline": {
                    "above": int(ranked.above[number]),
                    "tied": int(ranked.tied[number]),
                    "tied_positives": int(ranked.tied_positives[number]),
                },
            }
        )
    annotations = [sample.annotations for sample in samples]
    if all(is_scene(annotation) for annotation in annotations):
        for record, count in zip(records, fitting(annotations), strict=True):
            record["fits"] = count
    return Measured(
        records=records,
        protocol={
            "name": "closest bag of words, then colour histogram",
            "ties": "expected value",
            "intervals": "percentile bootstrap over pictures",
        },
        model={"name": "none", "hash": None},
        data={
            "images": len(keys),
            "texts": len(captions),
            "train_path": str(options.train),
            "train_hash": f"sha256:{train.digest}",
        },
    )


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`: `text_to_image/R@k`, and the ceiling of R@1."""
    lines = list(records)
    clusters = [line["image"] for line in lines]
    above, tied, positives = (
        np.array([line["baseline"][name] for line in lines])
        for name in ("above", "tied", "tied_positives")
    )
    ranked = Ranks(above, tied, positives, candidates=lines[0]["candidates"])
    chance = chance_ranks([[0]] * len(lines), lines[0]["candidates"])
    found = [_recall(ranked, chance, k, clusters) for k in RECALL_AT]
    if all("fits" in line for line in lines):
        best = Metric(
            name="ceiling/text_to_image/R@1",
            value=100 * sum(1 / line["fits"] for line in lines) / len(lines),
            unit="percent",
            n=len(lines),
            chance=100 * chance.recall(1),
        )
        found.append(best)
    return found


def nearest_texts(texts: Sequence[str], known: Sequence[str]) -> NDArray[np.int64]:
    """Position in ``known`` of the text with the highest cosine of word counts; the first of equals."""
    vocabulary: dict[str, int] = {}
    left, right = _word_counts(texts, vocabulary), _word_counts(known, vocabulary)
    left.resize((len(texts), len(vocabulary)))
    columns = right.T.tocsr()
    blocks = [
        (left[start : start + 64] @ columns).toarray().argmax(axis=1)
        for start in range(0, len(texts), 64)
    ]
    return np.concatenate(blocks)


def colour_histogram(image: bytes) -> NDArray[np.float32]:
    """Share of an encoded picture's pixels in each of 8 x 8 x 8 RGB bins, (512,)."""
    pixels = decode(open_image(image)) // (256 // BINS)
    codes = (pixels[..., 0].astype(np.int64) * BINS + pixels[..., 1]) * BINS + pixels[..., 2]
    return (np.bincount(codes.ravel(), minlength=BINS**3) / codes.size).astype(np.float32)


def _captions(manifest: Manifest, limit: int | None) -> tuple[list[str], NDArray[np.int64]]:
    """All captions, and for each the number of its picture."""
    captions: list[str] = []
    owners: list[int] = []
    with closing(Store([manifest])) as store:
        for number in range(manifest.samples if limit is None else min(limit, manifest.samples)):
            several = store.captions(0, number)
            captions += several
            owners += [number] * len(several)
    if not captions:
        raise DataError(f"{manifest.root} holds no sample")
    return captions, np.array(owners)


def _word_counts(texts: Sequence[str], vocabulary: dict[str, int]) -> csr_array:
    """Rows of word counts of length one (texts, words); unknown words are added to ``vocabulary``."""
    indices, ends = [], [0]
    for text in texts:
        indices += [
            vocabulary.setdefault(word, len(vocabulary))
            for word in re.findall(r"\w+", text.lower())
        ]
        ends.append(len(indices))
    counts = csr_array(
        (np.ones(len(indices), dtype=np.float32), indices, ends),
        shape=(len(texts), len(vocabulary)),
    )
    counts.sum_duplicates()
    length = np.sqrt(counts.multiply(counts).sum(axis=1))
    return counts.multiply(1 / np.maximum(length, 1e-12)[:, None]).tocsr()


def _recall(ranked: Ranks, chance: Ranks, k: int, clusters: Sequence[str]) -> Metric:
    hits = 100 * ranked.hits(k)
    return Metric(
        name=f"text_to_image/R@{k}",
        value=float(hits.mean()),
        unit="percent",
        ci95=mean_interval(hits, clusters),
        n=len(hits),
        chance=100 * chance.recall(k),
    )
