"""Winoground: two pictures and two captions of the same words, of which each belongs to one.

In: a model and a data set of pairs (`glscl data import winoground`). Out: text, image and group
score of the paper (arXiv 2204.03162), by the contrastive score and by the matching head: text asks
whether each picture prefers its own caption, image whether each caption prefers its own picture,
group for both. A tie is wrong. Guessing reaches 25, 25 and
16.67 %.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
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
from eval.results.contamination import flags as overlap_flags
from eval.results.contamination import overlap
from eval.results.intervals import mean_interval
from eval.results.schema import Metric, Result, data_flags, environment, write_result
from pretrain.ranking import unit_features

SCORES = ("contrastive", "matching")
PAIRS_AT_ONCE = 16
CHANCE = {"text": 25.0, "image": 25.0, "group": 100 / 6}


def evaluate(
    model: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    limit: int | None = None,
    batch_size: int = 64,
    precision: str = "fp32",
    cache: Path | str | None = None,
) -> Result:
    """Score every picture of an example with every caption; write `result.json` and `samples.jsonl` into ``out``.

    Options are those of retrieval; ``batch_size`` is of texts.

    Raises
    ------
    UsageError, DataError, NumericsError
        For an unknown option, for data that are no pairs with two captions, for scores that are not
        finite.
    """
    manifest = Manifest.load(data)
    known = overlap(manifest, model)
    loaded = load(model, precision, cache)
    started = time.perf_counter()
    images = _encode_pairs(loaded, manifest, limit)
    captions = [caption for pair in images.captions[::2] for caption in pair]
    texts = encode_texts(loaded, captions, batch_size=batch_size)
    # Of example e: caption 0 and 1 with picture 0 and 1, as the records hold them.
    example = 2 * np.repeat(np.arange(len(captions) // 2), 4)
    text, image = (
        example + np.tile(which, len(captions) // 2) for which in ([0, 0, 1, 1], [0, 1, 0, 1])
    )
    cosines = np.einsum(
        "ij,ij->i", images.features[images.row[image]], texts.features[texts.row[text]]
    )
    margins = match_margins(loaded, images, texts, image, text)
    scores = {"contrastive": cosines.reshape(-1, 2, 2), "matching": margins.reshape(-1, 2, 2)}
    records = [
        {"query": key, "image": key, "captions": list(images.captions[2 * number])}
        | {"tag": images.annotations[2 * number].get("collapsed_tag", "")}
        | {name: table[number].tolist() for name, table in scores.items()}
        for number, key in enumerate(images.keys[::2])
    ]
    state = processes()
    result = Result(
        stage="winoground",
        protocol={
            "name": "Winoground",
            "ties": "wrong",
            "scores": "SCORE[caption][picture]",
            "score_dtype": "float32",
            "precision": precision,
            "intervals": "percentile bootstrap over examples",
        },
        data={
            "path": str(data),
            "name": manifest.name,
            "hash": f"sha256:{manifest.digest}",
            "images": len(images.keys),
            "pairs": len(records),
            "overlap": known,
        },
        model=loaded.description,
        environment=environment(state.num_processes, str(loaded.device)),
        metrics=metrics(records),
        flags=overlap_flags(known)
        + data_flags(manifest)
        + [
            f"constant_scores/{n}"
            for n, table in scores.items()
            if np.ptp(table) <= 1e-6 * np.abs(table).max()
        ],
        timing={"total_s": time.perf_counter() - started},
    )
    if state.is_main_process:
        write_result(Path(out), result, records)
    state.wait_for_everyone()
    return result


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
        {"features": model.contrastive_image(tokens.float()).cpu(), "tokens": loaded.kept(tokens)},
        items,
    )
