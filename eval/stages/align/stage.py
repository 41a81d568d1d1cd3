"""How much of a text's attention falls on what the text names: ALIGN-BENCH's scores, beside those of no attention.

In: a model, and a data set whose samples have `regions` (phrases with boxes or masks). Out:
`global` (the text's class token against all that its caption names) and `local` (the tokens of each
phrase against what it names), for boxes and pixels: the share of attention `mass` inside
(ALIGN-BENCH's score), whether the map is highest there (`pointing`), and the `IoU` of its bright
part. What uniform attention reaches stands beside each, as chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from data_pipeline.errors import DataError, NumericsError
from data_pipeline.regions import Mask, Region, parse_regions
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from eval.encoding.attention_maps import CLASS_TOKEN, attention_maps, find_phrase, phrase_tokens
from eval.encoding.features import (
    Images,
    LoadedModel,
    chunks_of_process,
    encode_images,
    encode_texts,
    load,
)
from eval.encoding.matching_scores import TOKENS_AT_ONCE
from eval.metrics.grounding import (
    BACKGROUND,
    KINDS,
    Array,
    grounding_scores,
    pack_map,
    pool_mask,
    region_masks,
    without_background,
)
from eval.results.intervals import mean_interval
from eval.results.run_stage import Measured
from eval.results.schema import Metric

from .options import Options

LEVELS = ("local", "global")
BASELINES = {"mass": "area", "pointing": "touched", "IoU": "area"}
"""What uniform attention reaches in each measure: another number of the same record."""
FLAGGED = ("unmatched", "empty", "zero_map")
LEFT_OUT = (*FLAGGED, "background")
"""What records count: phrases that the caption does not hold, shapes without area, maps without
mass, background."""
PROTOCOL = {
    "name": "ALIGN-BENCH",
    "map": "cross-attention from text to image in the text stream's last fusion layer, the largest of the heads, "
    "without the image's class token",
    "global": f"the text's class token, against all regions of the caption but those of more than {BACKGROUND:.0%} of "
    "the picture",
    "local": "the sum over the tokens of the phrase's first occurrence in the caption; phrases that it does not hold "
    "are left out and counted",
    "region": "union of boxes or masks, area-pooled to the grid of patches",
    "mass": "share of the map inside the region; 0 for a map without mass",
    "pointing": "whether the region touches the cell where the map is highest; ties count with their mean",
    "IoU": "of the region and the cells that reach half of the map's maximum",
    "chance": "uniform attention: the region's share of the picture; for pointing its share of the cells",
    "average": "over the phrases of a picture, then over pictures",
    "intervals": "percentile bootstrap over pictures",
}


@dataclass(frozen=True)
class Caption:
    """A caption that has regions, each with its number in the sample; `number` is the caption's own."""

    image: int
    number: int
    text: str
    regions: list[tuple[int, Region]]


def measure(options: Options, manifest: Manifest) -> Measured:
    """Compare the attention of captions and phrases with the regions they name.

    Raises
    ------
    DataError
        If the data have no regions, or broken ones.
    NumericsError
        If attention is not finite.
    """
    loaded = load(options.model, options.precision, options.cache)
    images = encode_images(loaded, manifest, batch_size=options.batch_size, limit=options.limit)
    captions = captions_of(images)
    if not captions:
        raise DataError(
            f"{options.data} has no regions: alignment needs phrases with boxes or masks"
        )
    own_share: list[tuple[int, list[dict[str, Any]]]] = []
    with closing(Store([manifest])) as store:
        for row, maps in _maps(loaded, images, captions, options.batch_size):
            caption = captions[row]
            media = store.read(0, caption.image).media
            lines = _records(loaded, images.keys[caption.image], media, caption, maps)
            own_share.append((row, lines))
    records: list[dict[str, Any]] = []
    # Each process scored some captions; sorted by caption the records do not depend on how many.
    for _, lines in sorted(gather_object(own_share), key=lambda item: item[0]):
        records += lines
    counts = {name: sum(line[name] for line in records) for name in LEFT_OUT}
    return Measured(
        records=records,
        protocol={**PROTOCOL, "precision": options.precision},
        model=loaded.description,
        data={
            "images": len({line["image"] for line in records}),
            "texts": len(captions),
            "phrases": sum(line["level"] == "local" for line in records),
            "left_out": counts,
        },
        flags=[f"{name}/{counts[name]}" for name in FLAGGED if counts[name]],
        device=str(loaded.device),
    )


def captions_of(images: Images) -> list[Caption]:
    """Return the captions that have regions, in the order of the pictures.

    A region that names no caption belongs to the first that holds its phrase, and to the first of
    all where none does.
    """
    found = []
    for image, (key, texts) in enumerate(zip(images.keys, images.captions, strict=True)):
        regions: dict[int, list[tuple[int, Region]]] = {}
        for number, region in enumerate(parse_regions(key, images.annotations[image])):
            holding = (n for n, text in enumerate(texts) if find_phrase(text, region.phrase))
            caption = next(holding, 0) if region.caption is None else region.caption
            regions.setdefault(caption, []).append((number, region))
        found += [
            Caption(image, number, texts[number], several)
            for number, several in sorted(regions.items())
        ]
    return found


def metrics(records: Iterable[dict[str, Any]]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `LEVEL/KIND/MEASURE` with LEVEL global or local, KIND box or pixel, MEASURE mass, pointing or
    IoU; and `LEVEL/KIND/MEASURE_over_uniform`, its paired difference from uniform attention.
    """
    lines = list(records)
    found = []
    for level in LEVELS:
        for kind in KINDS:
            scored = [line for line in lines if line["level"] == level and line[kind] is not None]
            keys = [line["image"] for line in scored]
            for measure, baseline in BASELINES.items() if scored else ():
                value, chance = (
                    np.array([100 * line[kind][name] for line in scored])
                    for name in (measure, baseline)
                )
                uniform = float(_by_picture(chance, keys).mean())
                found.append(_mean(f"{level}/{kind}/{measure}", "percent", value, keys, uniform))
                difference = f"{level}/{kind}/{measure}_over_uniform"
                found.append(_mean(difference, "percentage points", value - chance, keys, 0.0))
    return found


def _mean(name: str, unit: str, values: Array, keys: Sequence[str], chance: float) -> Metric:
    pictures = _by_picture(values, keys)
    interval = mean_interval(pictures, range(len(pictures)))
    return Metric(
        name=name,
        value=float(pictures.mean()),
        unit=unit,
        ci95=interval,
        n=len(values),
        chance=chance,
    )


def _by_picture(values: Array, keys: Sequence[str]) -> Array:
    group = np.unique(keys, return_inverse=True)[1].ravel()
    return np.bincount(group, weights=values) / np.bincount(group)


def _maps(
    loaded: LoadedModel, images: Images, captions: Sequence[Caption], batch_size: int
) -> Iterator[tuple[int, Array]]:
    """Yield maps (text tokens, rows, columns) of this process's share of the captions, each with its position."""
    texts = encode_texts(loaded, [caption.text for caption in captions], batch_size=batch_size)
    image_rows, text_rows = (
        torch.tensor([caption.image for caption in captions]),
        torch.from_numpy(texts.row),
    )
    lengths = texts.mask.sum(dim=1)[text_rows]
    at_once = max(1, TOKENS_AT_ONCE // (texts.tokens.shape[1] + images.tokens.shape[1]))
    for rows in chunks_of_process(torch.argsort(lengths, stable=True), at_once):
        chosen, longest = text_rows[rows], int(lengths[rows].max())
        tokens, mask = texts.tokens[chosen, :longest], texts.mask[chosen, :longest]
        maps = (
            attention_maps(loaded, images.tokens[image_rows[rows]], tokens, mask).double().numpy()
        )
        yield from zip(rows.tolist(), maps, strict=True)


def _records(
    loaded: LoadedModel, key: str, media: bytes, caption: Caption, maps: Array
) -> list[dict[str, Any]]:
    """Make the records of a caption as a whole and of each of its phrases."""
    if not np.isfinite(maps).all():
        raise NumericsError(
            f"attention is not finite for the picture {key} and its caption {caption.text!r}"
        )
    shapes = [region_masks(key, region, media) for _, region in caption.regions]
    named = {kind: [mask for own in shapes for mask in own[kind]] for kind in KINDS}
    kept = {kind: without_background(masks) for kind, masks in named.items()}
    common = {"image": key, "caption": caption.text}
    background = sum(len(named[kind]) - len(kept[kind]) for kind in KINDS)
    lines = [
        {"query": f"{key}#{caption.number}", "level": "global", **common, "phrase": None}
        | {"regions": [number for number, _ in caption.regions]}
        | {"tokens": [CLASS_TOKEN], "unmatched": 0, "background": background}
        | _scored(maps[CLASS_TOKEN], kept)
        | {"empty": 0}  # counted by phrase
    ]
    for (number, region), own in zip(caption.regions, shapes, strict=True):
        tokens = phrase_tokens(
            loaded.tokenizer, caption.text, region.phrase, loaded.model.config.max_text_length
        )
        lines.append(
            {
                "query": f"{key}#{caption.number}/{number}",
                "level": "local",
                **common,
                "phrase": region.phrase,
            }
            | {"regions": [number], "tokens": tokens, "unmatched": int(not tokens), "background": 0}
            | _scored(maps[tokens].sum(axis=0) if tokens else None, own)
        )
    return lines


def _scored(heat: Array | None, shapes: Mapping[str, Sequence[Mask]]) -> dict[str, Any]:
    """Part of a record that says what the map is like; without a map there are no scores."""
    found: dict[str, Any] = {
        "empty": sum(not mask.any() for masks in shapes.values() for mask in masks)
    }
    found |= {"zero_map": 0, "map": None} | dict.fromkeys(KINDS)
    if heat is None:
        return found
    found |= {"zero_map": int(not heat.any()), "map": pack_map(heat)}
    for kind, masks in shapes.items():
        region = np.logical_or.reduce(masks) if masks else np.zeros((1, 1), dtype=bool)
        if region.any():
            found[kind] = grounding_scores(heat, pool_mask(region, heat.shape))
    return found
