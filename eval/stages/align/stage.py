"""How much of a text's attention falls on what the text names: the scores of ALIGN-BENCH.

In: a model, and a data set whose samples have `regions` (phrases with boxes or masks). Out: scores
on two levels, for boxes and for pixels. `global` compares the attention of the text's class token
with everything that its caption names, `local` the attention of each phrase's tokens with what the
phrase names. Scores are the share of attention inside (`mass`, ALIGN-BENCH's own), whether the map
is highest there (`pointing`), and the `IoU` of its bright part. Chance is what uniform attention
reaches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, TypedDict

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
    Array,
    grounding_scores,
    pack_map,
    pool_mask,
    region_masks,
    without_background,
)
from eval.results.intervals import mean_metric
from eval.results.run_stage import Measured
from eval.results.schema import Metric

from .options import Options
from .records import AlignRecord, Measures, PackedMap

Kind = Literal["box", "pixel"]
KINDS: tuple[Kind, ...] = ("pixel", "box")
LEVELS = ("local", "global")
BASELINES = {"mass": "area", "pointing": "touched", "IoU": "area"}
"""What uniform attention reaches in each measure: another number of the same record."""
PROTOCOL = {
    "name": "ALIGN-BENCH",
    "map": "cross-attention from text to image in the text stream's last fusion layer, the largest "
    "of the heads, without the image's class token",
    "global": "the text's class token, against all regions of the caption except those that cover "
    f"more than {BACKGROUND:.0%} of the image",
    "local": "the sum over the tokens of the phrase's first occurrence in the caption; phrases "
    "that the caption does not hold are left out and counted",
    "region": "union of boxes or masks, area-pooled to the grid of patches",
    "mass": "share of the map inside the region; 0 for a map without mass",
    "pointing": "whether the region touches the cell where the map is highest; ties count with "
    "their mean",
    "IoU": "of the region and the cells that reach half of the map's maximum",
    "chance": "uniform attention: the region's share of the image; for pointing its share of the "
    "cells",
    "average": "over the phrases of an image, then over images",
    "intervals": "Wilson score for proportions, else percentile bootstrap; over images",
}


@dataclass(frozen=True)
class Caption:
    """A caption that has regions, each with its number in the sample.

    ``number`` is the caption's own number in the sample.
    """

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
    scored_here: list[tuple[int, list[AlignRecord]]] = []
    with closing(Store([manifest])) as store:
        for row, maps in _maps(loaded, images, captions, options.batch_size):
            caption = captions[row]
            # Boxes and masks are in pixels, so the size of the image file is needed.
            media = store.read(0, caption.image).media
            lines = _records(loaded, images.keys[caption.image], media, caption, maps)
            scored_here.append((row, lines))
    records: list[AlignRecord] = []
    # Each process scored some captions; sorted by caption the records do not depend on how many.
    for _, lines in sorted(gather_object(scored_here), key=lambda item: item[0]):
        records += lines
    left_out = {
        "unmatched": sum(line["unmatched"] for line in records),
        "empty": sum(line["empty"] for line in records),
        "zero_map": sum(line["zero_map"] for line in records),
        "background": sum(line["background"] for line in records),
    }
    flags = []
    for name, count in left_out.items():
        # Leaving out the background is the protocol; the others say that something is wrong.
        if count and name != "background":
            flags.append(f"{name}/{count}")
    return Measured(
        records=records,
        protocol={**PROTOCOL, "precision": options.precision},
        model=loaded.description,
        data={
            "images": len({line["image"] for line in records}),
            "texts": len(captions),
            "phrases": sum(line["level"] == "local" for line in records),
            "left_out": left_out,
        },
        flags=flags,
        device=str(loaded.device),
    )


def captions_of(images: Images) -> list[Caption]:
    """Return the captions that have regions, in the order of the images.

    A region that names no caption belongs to the first caption that holds its phrase, or to the
    first of all if none does.
    """
    captions = []
    for image, (key, texts) in enumerate(zip(images.keys, images.captions, strict=True)):
        regions: dict[int, list[tuple[int, Region]]] = {}
        for number, region in enumerate(parse_regions(key, images.annotations[image])):
            regions.setdefault(_caption_of(region, texts), []).append((number, region))
        for number, numbered_regions in sorted(regions.items()):
            captions.append(Caption(image, number, texts[number], numbered_regions))
    return captions


def _caption_of(region: Region, texts: Sequence[str]) -> int:
    if region.caption is not None:
        return region.caption
    # Data sets without a caption number name phrases of any of the captions.
    for number, text in enumerate(texts):
        if find_phrase(text, region.phrase):
            return number
    return 0


def _maps(
    loaded: LoadedModel, images: Images, captions: Sequence[Caption], batch_size: int
) -> Iterator[tuple[int, Array]]:
    """Yield positions of this process's captions with maps (text tokens, rows, columns)."""
    texts = encode_texts(loaded, [caption.text for caption in captions], batch_size=batch_size)
    image_rows = torch.tensor([caption.image for caption in captions])
    text_rows = torch.from_numpy(texts.row)
    lengths = texts.mask.sum(dim=1)[text_rows]
    at_once = max(1, TOKENS_AT_ONCE // (texts.tokens.shape[1] + images.tokens.shape[1]))
    # Texts of about the same length go together, so that little padding is computed.
    for rows in chunks_of_process(torch.argsort(lengths, stable=True), at_once):
        chosen, longest = text_rows[rows], int(lengths[rows].max())
        tokens, mask = texts.tokens[chosen, :longest], texts.mask[chosen, :longest]
        maps = attention_maps(loaded, images.tokens[image_rows[rows]], tokens, mask)
        yield from zip(rows.tolist(), maps.double().numpy(), strict=True)


def _records(
    loaded: LoadedModel, key: str, media: bytes, caption: Caption, maps: Array
) -> list[AlignRecord]:
    """Make the records of a caption as a whole and of each of its phrases."""
    if not np.isfinite(maps).all():
        raise NumericsError(
            f"attention is not finite for the image {key} and its caption {caption.text!r}"
        )
    shapes = [region_masks(key, region, media) for _, region in caption.regions]
    all_shapes: dict[str, list[Mask]] = {kind: [] for kind in KINDS}
    for shapes_of_phrase in shapes:
        for kind in KINDS:
            all_shapes[kind] += shapes_of_phrase[kind]
    in_front = {kind: without_background(masks) for kind, masks in all_shapes.items()}
    background = sum(len(all_shapes[kind]) - len(in_front[kind]) for kind in KINDS)
    whole: AlignRecord = {
        "query": f"{key}#{caption.number}",
        "level": "global",
        "image": key,
        "caption": caption.text,
        "phrase": None,
        "regions": [number for number, _ in caption.regions],
        "tokens": [CLASS_TOKEN],
        "unmatched": 0,
        "background": background,
        **_scored(maps[CLASS_TOKEN], in_front),
    }
    # The records of the phrases count these shapes already.
    whole["empty"] = 0
    records = [whole]
    for (number, region), shapes_of_phrase in zip(caption.regions, shapes, strict=True):
        tokens = phrase_tokens(
            loaded.tokenizer, caption.text, region.phrase, loaded.model.config.max_text_length
        )
        heat = maps[tokens].sum(axis=0) if tokens else None
        records.append(
            {
                "query": f"{key}#{caption.number}/{number}",
                "level": "local",
                "image": key,
                "caption": caption.text,
                "phrase": region.phrase,
                "regions": [number],
                "tokens": tokens,
                "unmatched": int(not tokens),
                "background": 0,
                **_scored(heat, shapes_of_phrase),
            }
        )
    return records


class _Scored(TypedDict):
    """The part of a record that describes the map."""

    empty: int
    zero_map: int
    map: PackedMap | None
    pixel: Measures | None
    box: Measures | None


def _scored(heat: Array | None, shapes: Mapping[str, Sequence[Mask]]) -> _Scored:
    """Score a map against the shapes of each kind; without a map there are no scores."""
    empty = 0
    for masks in shapes.values():
        empty += sum(not mask.any() for mask in masks)
    scored: _Scored = {"empty": empty, "zero_map": 0, "map": None, "pixel": None, "box": None}
    if heat is None:
        return scored
    scored["zero_map"] = int(not heat.any())
    scored["map"] = pack_map(heat)
    for kind in KINDS:
        # An empty region stands for a kind that the data set does not have, such as masks.
        region = np.zeros((1, 1), dtype=bool)
        if shapes[kind]:
            region = np.logical_or.reduce(shapes[kind])
        if region.any():
            scored[kind] = grounding_scores(heat, pool_mask(region, heat.shape))
    return scored


def metrics(records: Iterable[AlignRecord]) -> list[Metric]:
    """Compute every metric from the lines of `samples.jsonl`.

    `LEVEL/KIND/MEASURE` with LEVEL global or local, KIND box or pixel, MEASURE mass, pointing or
    IoU; and `LEVEL/KIND/MEASURE_over_uniform`, its paired difference from uniform attention.
    """
    lines = list(records)
    computed = []
    for level in LEVELS:
        of_level = [line for line in lines if line["level"] == level]
        for kind in KINDS:
            computed += _metrics(f"{level}/{kind}", of_level, kind)
    return computed


def _metrics(prefix: str, lines: Sequence[AlignRecord], kind: Kind) -> list[Metric]:
    scored: list[Measures] = []
    keys: list[str] = []
    for line in lines:
        scores = line[kind]
        if scores is not None:
            scored.append(scores)
            keys.append(line["image"])
    if not scored:
        return []
    computed = []
    for name, baseline in BASELINES.items():
        values = np.array([100 * scores[name] for scores in scored])
        uniform = np.array([100 * scores[baseline] for scores in scored])
        by_image, uniform_by_image = _by_image(values, keys), _by_image(uniform, keys)
        images = range(len(by_image))
        chance = float(uniform_by_image.mean())
        metric = mean_metric(f"{prefix}/{name}", by_image, images, chance=chance)
        above = mean_metric(
            f"{prefix}/{name}_over_uniform",
            _by_image(values - uniform, keys),
            images,
            unit="percentage points",
            chance=0.0,
        )
        # The mean is over images, but what was scored are phrases.
        for over_images in (metric, above):
            computed.append(over_images.model_copy(update={"n": len(scored)}))
    return computed


def _by_image(values: Array, keys: Sequence[str]) -> Array:
    """Average the values of each image: images count the same, however many phrases they have."""
    group = np.unique(keys, return_inverse=True)[1].ravel()
    return np.bincount(group, weights=values) / np.bincount(group)
