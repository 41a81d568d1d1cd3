"""What retrieval reaches without a model, and the best that any model could reach.

In: a training and a test data set. Out: recall of a baseline, which takes the training caption with
the closest bag of words and ranks the test images by the distance of their colour histograms to its
image. Ceiling, for generated scenes: a caption that fits several images of the gallery shares its
hit among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.spatial.distance import cdist

from data_pipeline.decode import decode, open_image
from data_pipeline.errors import DataError
from data_pipeline.scenes.truth import fitting, is_scene
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from eval.results.intervals import mean_metric
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from pretrain.ranking import Ranks, chance_ranks, ranks

from .options import Options
from .records import BaselineRecord

RECALL_AT = (1, 5, 10)
BINS = 8  # of each colour channel
TEXTS_AT_ONCE = 64  # a block of products with all training captions fits into memory


def measure(options: Options, manifest: Manifest) -> Measured:
    """Rank images for each caption, with the training images as the only knowledge.

    Raises
    ------
    DataError
        If the training data set is missing or broken, or either data set holds videos.
    """
    train = Manifest.load(options.train)
    for data_set in (train, manifest):
        data_set.check_kind("image")
    train_captions, train_owners = _captions(train, None)
    captions, owners = _captions(manifest, options.limit)
    with closing(Store([manifest])) as store:
        # Up to the last image that has captions: --limit has cut off the others.
        samples = [store.read(0, number) for number in range(int(owners[-1]) + 1)]
    keys = [sample.key for sample in samples]
    nearest = nearest_texts(captions, train_captions)
    # Several captions may share a nearest text, whose image is then decoded once.
    chosen, place = np.unique(train_owners[nearest], return_inverse=True)
    query_histograms = []
    with closing(Store([train])) as store:
        for number in chosen:
            query_histograms.append(colour_histogram(store.read(0, int(number)).media))
    gallery_histograms = [colour_histogram(sample.media) for sample in samples]
    distances = cdist(np.stack(query_histograms), np.stack(gallery_histograms), "cityblock")
    ranked = ranks(-distances[place], owners)
    records: list[BaselineRecord] = []
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
            "intervals": "Wilson score for proportions, else percentile bootstrap; over images",
        },
        model={"name": "none", "hash": None},
        data={
            "images": len(keys),
            "texts": len(captions),
            "train_path": str(options.train),
            "train_hash": f"sha256:{train.digest}",
        },
    )


def _captions(manifest: Manifest, limit: int | None) -> tuple[list[str], NDArray[np.int64]]:
    """Return all captions, and the number of the image that each belongs to (captions,)."""
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    captions: list[str] = []
    owners: list[int] = []
    with closing(Store([manifest])) as store:
        for number in range(total):
            captions_of_image = store.captions(0, number)
            captions += captions_of_image
            owners += [number] * len(captions_of_image)
    if not captions:
        raise DataError(f"{manifest.root} holds no sample")
    return captions, np.array(owners)


def nearest_texts(texts: Sequence[str], known_texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the position of the known text with the highest cosine of word counts (texts,).

    Of equal ones it is the first.
    """
    vocabulary: dict[str, int] = {}
    left, right = _word_counts(texts, vocabulary), _word_counts(known_texts, vocabulary)
    # Known texts have added words to the vocabulary, so rows made before are too short.
    left.resize((len(texts), len(vocabulary)))
    columns = right.T.tocsr()
    blocks = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        cosines = (left[start : start + TEXTS_AT_ONCE] @ columns).toarray()
        blocks.append(cosines.argmax(axis=1))
    return np.concatenate(blocks)


def _word_counts(texts: Sequence[str], vocabulary: dict[str, int]) -> csr_array:
    """Return word counts (texts, words) in rows of length one; new words join ``vocabulary``."""
    indices, ends = [], [0]
    for text in texts:
        for word in re.findall(r"\w+", text.lower()):
            indices.append(vocabulary.setdefault(word, len(vocabulary)))
        ends.append(len(indices))
    counts = csr_array(
        (np.ones(len(indices), dtype=np.float32), indices, ends),
        shape=(len(texts), len(vocabulary)),
    )
    counts.sum_duplicates()
    length = np.sqrt(counts.multiply(counts).sum(axis=1))
    return counts.multiply(1 / np.maximum(length, 1e-12)[:, None]).tocsr()


def colour_histogram(image: bytes) -> NDArray[np.float32]:
    """Return the share of an encoded image's pixels in each of 8 x 8 x 8 RGB bins, (512,)."""
    pixels = decode(open_image(image)) // (256 // BINS)
    codes = (pixels[..., 0].astype(np.int64) * BINS + pixels[..., 1]) * BINS + pixels[..., 2]
    return (np.bincount(codes.ravel(), minlength=BINS**3) / codes.size).astype(np.float32)


def metrics(records: Iterable[BaselineRecord]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    They are `text_to_image/R@k`, and the ceiling of R@1 where the data are generated scenes.
    """
    lines = list(records)
    images = [line["image"] for line in lines]
    standings = [line["baseline"] for line in lines]
    candidates = lines[0]["candidates"]
    ranked = Ranks(
        np.array([standing["above"] for standing in standings]),
        np.array([standing["tied"] for standing in standings]),
        np.array([standing["tied_positives"] for standing in standings]),
        candidates=candidates,
    )
    guessed = chance_ranks([[0]] * len(lines), candidates)
    computed = []
    for k in RECALL_AT:
        hits, chance = 100 * ranked.hits(k), 100 * guessed.recall(k)
        computed.append(mean_metric(f"text_to_image/R@{k}", hits, images, chance=chance))
    if all("fits" in line for line in lines):
        # A caption that fits n images can do no better than guess among them.
        shares = sum(1 / line["fits"] for line in lines)
        computed.append(
            Metric(
                name="ceiling/text_to_image/R@1",
                value=100 * shares / len(lines),
                unit="percent",
                n=len(lines),
                chance=100 * guessed.recall(1),
            )
        )
    return computed
