"""Winoground: two images and two captions of the same words; each caption belongs to one image.

In: a model and a data set of pairs (`glscl data import winoground`). Out: text, image and group
score of the paper (arXiv 2204.03162), by the contrastive score and by the matching head. Text: each
image scores its own caption higher. Image: each caption scores its own image higher. Group: both. A
tie is wrong. Guessing reaches 25, 25 and 16.67 %.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from data_pipeline.errors import DataError
from data_pipeline.loader import evaluation_batches
from data_pipeline.shards.manifest import Manifest
from eval.encoding.cache import Block, encoded_blocks
from eval.encoding.features import Images, LoadedModel, encode_texts, load, processes
from eval.encoding.matching_scores import flag_constant_scores, match_margins
from eval.results.intervals import mean_metric
from eval.results.run_stage import Measured
from eval.results.schema import Metric
from pretrain.ranking import unit_features

from .options import Options
from .records import WinogroundRecord

SCORES: tuple[Literal["contrastive"], Literal["matching"]] = ("contrastive", "matching")
PAIRS_AT_ONCE = 16
# Of the 24 orders of four scores 6 give the text score, 6 the image score and 4 both.
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
    captions: list[str] = []
    for both_captions in images.captions[::2]:
        captions += both_captions
    texts = encode_texts(loaded, captions, batch_size=options.batch_size)
    # Each example scores caption 0 with images 0 and 1, then caption 1, as the records hold them.
    examples = len(captions) // 2
    first = 2 * np.repeat(np.arange(examples), 4)
    text = first + np.tile([0, 0, 1, 1], examples)
    image = first + np.tile([0, 1, 0, 1], examples)
    image_features = images.features[images.row[image]]
    text_features = texts.features[texts.row[text]]
    cosines = np.einsum("ij,ij->i", image_features, text_features)
    contrastive = cosines.reshape(-1, 2, 2)
    matching = match_margins(loaded, images, texts, image, text).reshape(-1, 2, 2)
    records = []
    for number, key in enumerate(images.keys[::2]):
        record: WinogroundRecord = {
            "query": key,
            "image": key,
            "captions": list(images.captions[2 * number]),
            "tag": images.annotations[2 * number].get("collapsed_tag", ""),
            "contrastive": contrastive[number].tolist(),
            "matching": matching[number].tolist(),
        }
        records.append(record)
    return Measured(
        records=records,
        protocol={
            "name": "Winoground",
            "ties": "wrong",
            "scores": "SCORE[caption][image]",
            "score_dtype": "float32",
            "precision": options.precision,
            "intervals": "Wilson score for proportions, over examples",
        },
        model=loaded.description,
        data={"images": len(images.keys), "pairs": len(records)},
        flags=flag_constant_scores({"contrastive": contrastive, "matching": matching}),
        device=str(loaded.device),
    )


@torch.inference_mode()
def _encode_pairs(loaded: LoadedModel, manifest: Manifest, limit: int | None) -> Images:
    """Encode the images of pairs, the first and the second of each in turn."""
    manifest.check_kind("pair")
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    ranges, requests = [], []
    for start in range(0, total, PAIRS_AT_ONCE):
        stop = min(start + PAIRS_AT_ONCE, total)
        ranges.append((start, stop))
        requests.append(
            {"pairs": manifest.digest, "name": manifest.name, "start": start, "stop": stop}
        )
    blocks = encoded_blocks(
        processes(),
        loaded.cache,
        loaded.identity(),
        requests,
        lambda number: _block(loaded, manifest, *ranges[number]),
    )
    if not blocks:
        raise DataError(f"{manifest.root} holds no sample to evaluate on")
    items: list[dict[str, Any]] = []
    for block in blocks:
        items += block.items
    keys = [item["key"] for item in items]
    # Equal files share the row of the first, so that they tie exactly.
    first_row: dict[str, int] = {}
    rows = [first_row.setdefault(item["media"], number) for number, item in enumerate(items)]
    return Images(
        keys=keys,
        captions=[tuple(item["annotations"]["captions"]) for item in items],
        annotations=[item["annotations"] for item in items],
        row=np.array(rows),
        features=unit_features(torch.cat([block.arrays["features"] for block in blocks]), keys),
        tokens=torch.cat([block.arrays["tokens"] for block in blocks]),
    )


def _block(loaded: LoadedModel, manifest: Manifest, start: int, stop: int) -> Block:
    model, size = loaded.model, loaded.model.config.image_size
    [batch] = evaluation_batches(
        manifest, size=size, batch_size=stop - start, start=start, limit=stop, pairs=True
    )
    items = []
    for sample in batch.samples:
        if len(sample.captions) != 2:
            raise DataError(
                f"sample {sample.key} has {len(sample.captions)} captions; Winoground needs two"
            )
        annotations = sample.annotations | {"captions": list(sample.captions)}
        for content in (sample.media, sample.second):
            digest = hashlib.sha256(content or b"").hexdigest()
            items.append({"key": sample.key, "annotations": annotations, "media": digest})
    with loaded.autocast():
        tokens = model.encode_image(model.normalize(batch.pixels.flatten(0, 1).to(loaded.device)))
    features = model.contrastive_image(tokens.float()).cpu()
    return Block({"features": features, "tokens": loaded.offload(tokens)}, items)


def metrics(records: Iterable[WinogroundRecord]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    They are `SCORE/text`, `SCORE/image` and `SCORE/group`; the upper bound is the share if all ties
    were right.
    """
    lines = list(records)
    examples = [line["image"] for line in lines]
    computed = []
    for score in SCORES:
        table = np.array([line[score] for line in lines])
        # The paper counts ties as wrong; the lenient score shows how much that decides.
        strict, lenient = _right(table, np.greater), _right(table, np.greater_equal)
        for name, chance in CHANCE.items():
            metric = mean_metric(f"{score}/{name}", 100.0 * strict[name], examples, chance=chance)
            bounds = (metric.value, 100 * float(lenient[name].mean()))
            computed.append(metric.model_copy(update={"bounds": bounds}))
    return computed


def _right(table: NDArray[Any], beats: Callable[..., Any]) -> dict[str, NDArray[np.bool_]]:
    """Return which examples are right by each score, from scores (examples, caption, image)."""
    true_pairs = np.stack([table[:, 0, 0], table[:, 1, 1]], axis=1)
    # Against the same image with the other caption, and the same caption with the other image.
    other_caption = np.stack([table[:, 1, 0], table[:, 0, 1]], axis=1)
    other_image = np.stack([table[:, 0, 1], table[:, 1, 0]], axis=1)
    text = beats(true_pairs, other_caption).all(axis=1)
    image = beats(true_pairs, other_image).all(axis=1)
    return {"text": text, "image": image, "group": text & image}
