"""Winoground: two pictures and two captions of the same words, of which each belongs to one.

In: a model and a data set of pairs (`glscl data import winoground`). Out: text, image and group
score of the paper (arXiv 2204.03162), by the contrastive score and by the matching head: text asks
whether each picture prefers its own caption, image whether each caption prefers its own picture,
group for both. A tie is wrong. Guessing reaches 25, 25 and
16.67 %.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.loader import evaluation_batches
from data_pipeline.shards.manifest import Manifest
from eval.encoding.cache import Block, encoded_blocks
from eval.encoding.features import Images, LoadedModel, encode_texts, load, processes
from eval.encoding.matching_scores import match_margins
from eval.results.intervals import mean_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from pretrain.ranking import unit_features

from .options import Options

SCORES = ("contrastive", "matching")
PAIRS_AT_ONCE = 16
CHANCE = {"text": 25.0, "image": 25.0, "group": 100 / 6}


def measure(options: Options, manifest: Manifest) -> Measured:
    """Score every image of an example with every caption.

    Raises
    ------
    DataError
        If the samples are not pairs of images with two captions.
    NumericsError
        If a score is not finite.
    """
    loaded = load(options.model, options.precision, options.cache)
    images = _encode_pairs(loaded, manifest, options.limit)
    captions = [caption for pair in images.captions[::2] for caption in pair]
    texts = encode_texts(loaded, captions, batch_size=options.batch_size)
    # Each example scores caption 0 with images 0 and 1, then caption 1, as the records hold them.
    examples = len(captions) // 2
    first = 2 * np.repeat(np.arange(examples), 4)
    text = first + np.tile([0, 0, 1, 1], examples)
    image = first + np.tile([0, 1, 0, 1], examples)
    image_features = images.features[images.row[image]]
    text_features = texts.features[texts.row[text]]
    cosines = np.einsum("ij,ij->i", image_features, text_features)
    margins = match_margins(loaded, images, texts, image, text)
    scores = {"contrastive": cosines.reshape(-1, 2, 2), "matching": margins.reshape(-1, 2, 2)}
    records = []
    for number, key in enumerate(images.keys[::2]):
        record: dict[str, Any] = {
            "query": key,
            "image": key,
            "captions": list(images.captions[2 * number]),
            "tag": images.annotations[2 * number].get("collapsed_tag", ""),
        }
        for name, table in scores.items():
            record[name] = table[number].tolist()
        records.append(record)
    flags = []
    for name, table in scores.items():
        if np.ptp(table) <= 1e-6 * np.abs(table).max():
            flags.append(f"constant_scores/{name}")
    return Measured(
        records=records,
        protocol={
            "name": "Winoground",
            "ties": "wrong",
            "scores": "SCORE[caption][picture]",
            "score_dtype": "float32",
            "precision": options.precision,
            "intervals": "percentile bootstrap over examples",
        },
        model=loaded.description,
        data={"images": len(images.keys), "pairs": len(records)},
        flags=flags,
        device=str(loaded.device),
    )


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`: `SCORE/text`, `SCORE/image` and `SCORE/group`."""
    lines = list(records)
    found = []
    for score in SCORES:
        table = np.array([line[score] for line in lines])
        strict, lenient = _right(table, np.greater), _right(table, np.greater_equal)
        for name, chance in CHANCE.items():
            right = 100.0 * strict[name]
            found.append(
                Metric(
                    name=f"{score}/{name}",
                    value=float(right.mean()),
                    unit="percent",
                    ci95=mean_interval(right, [line["image"] for line in lines]),
                    n=len(lines),
                    chance=chance,
                    bounds=(float(right.mean()), 100 * float(lenient[name].mean())),
                )
            )
    return found


def _right(table: NDArray[Any], beats: Any) -> dict[str, NDArray[np.bool_]]:
    """Which examples (examples, caption, picture) are right in each of the three senses."""
    own = table[:, [0, 1], [0, 1]]
    other_caption, other_picture = table[:, [1, 0], [0, 1]], table[:, [0, 1], [1, 0]]
    text, image = (beats(own, other).all(axis=1) for other in (other_caption, other_picture))
    return {"text": text, "image": image, "group": text & image}


@torch.inference_mode()
def _encode_pairs(loaded: LoadedModel, manifest: Manifest, limit: int | None) -> Images:
    """Encode the pictures of pairs, first and second by turns."""
    manifest.check_kind("pair")
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    ranges = [
        (start, min(start + PAIRS_AT_ONCE, total)) for start in range(0, total, PAIRS_AT_ONCE)
    ]
    wanted = [
        {"pairs": manifest.digest, "name": manifest.name, "start": start, "stop": stop}
        for start, stop in ranges
    ]
    blocks = encoded_blocks(
        processes(),
        loaded.cache,
        loaded.identity(),
        wanted,
        lambda number: _block(loaded, manifest, *ranges[number]),
    )
    if not blocks:
        raise DataError(f"{manifest.root} holds no sample to evaluate on")
    items = [item for block in blocks for item in block.items]
    keys = [item["key"] for item in items]
    first: dict[str, int] = {}
    return Images(
        keys=keys,
        captions=[tuple(item["annotations"]["captions"]) for item in items],
        annotations=[item["annotations"] for item in items],
        row=np.array(
            [first.setdefault(item["media"], number) for number, item in enumerate(items)]
        ),
        features=unit_features(torch.cat([block.arrays["features"] for block in blocks]), keys),
        tokens=torch.cat([block.arrays["tokens"] for block in blocks]),
    )


def _block(loaded: LoadedModel, manifest: Manifest, start: int, stop: int) -> Block:
    model, size = loaded.model, loaded.model.config.image_size
    [batch] = evaluation_batches(
        manifest, size=size, batch_size=stop - start, start=start, limit=stop, pairs=True
    )
    for sample in batch.samples:
        if len(sample.captions) != 2:
            raise DataError(
                f"sample {sample.key} has {len(sample.captions)} captions, Winoground's have two"
            )
    with loaded.autocast():
        tokens = model.encode_image(model.normalize(batch.pixels.flatten(0, 1).to(loaded.device)))
    items = [
        {"key": sample.key, "annotations": sample.annotations | {"captions": list(sample.captions)}}
        | {"media": hashlib.sha256(picture or b"").hexdigest()}
        for sample in batch.samples
        for picture in (sample.media, sample.second)
    ]
    return Block(
        {
            "features": model.contrastive_image(tokens.float()).cpu(),
            "tokens": loaded.offload(tokens),
        },
        items,
    )
