"""Tokens of labelled images, encoded once for all methods of recognition from few examples.

In: an encoder and a data set. Out: for every image its class token, its patches (averaged to a
coarser grid, because the tokens of all images stay in memory), its contrastive feature and the
tokens of chosen layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.augment import write_evaluation_pixels
from data_pipeline.errors import DataError, NumericsError, UsageError
from data_pipeline.loader import EvaluationBatch, evaluation_batches
from data_pipeline.sample import BadSample
from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.store import Store
from eval.encoding.cache import Block, encoded_blocks, joined
from eval.encoding.encoders import Encoder
from eval.encoding.features import IMAGES_PER_BLOCK, block_ranges, processes


@dataclass(frozen=True)
class ImageTokens:
    """Encoded images, on the CPU, in the order of their data set.

    ``labels`` are the names of each image's classes, () without any; ``media`` (SHA-256 of the
    file) is the same for copies. ``cls`` (images, width) and ``patch`` (images, rows * columns,
    width) are the tower's last tokens on ``grid`` (rows, columns); ``proj`` (images, projection)
    are unit features of the contrastive space, None if the encoder has none; ``layers`` maps a
    block, numbered from 1, to its tokens (images, 1 + rows * columns, width of the tower).
    ``patch`` and ``layers`` are float16, the others float32.
    """

    keys: list[str]
    labels: list[tuple[str, ...]]
    annotations: list[dict[str, Any]]
    media: list[str]
    cls: Tensor
    patch: Tensor
    proj: Tensor | None
    grid: tuple[int, int]
    layers: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, columns = self.grid
        if self.patch.shape[1] != rows * columns:
            raise ValueError(f"{self.patch.shape[1]} patches do not make {rows} x {columns}")

    def __len__(self) -> int:
        return len(self.keys)


def manifests_by_role(data: Manifest, base: Path | None, val: Path | None) -> dict[str, Manifest]:
    """Open the data sets of a few-shot stage by role: measured, learned from, chosen on."""
    manifests = {"data": data}
    if base is not None:
        manifests["base"] = Manifest.load(base)
    if val is not None:
        manifests["val"] = Manifest.load(val)
    return manifests


@torch.no_grad()  # not inference mode: heads are trained on these tensors
def encode_tokens(
    encoder: Encoder,
    manifest: Manifest,
    *,
    layers: Sequence[int] = (),
    pool_grid: int = 7,
    limit: int | None = None,
    batch_size: int = 64,
) -> ImageTokens:
    """Encode the first ``limit`` images of a data set (default: all), in the order of its shards.

    An image whose annotations have a "box" [x1, y1, x2, y2] is cropped to it, such as the queries
    of Revisited Oxford and Paris.

    Parameters
    ----------
    encoder, manifest
        The encoder and the data set; captions are not needed.
    layers
        Blocks of the tower, numbered from 1, whose tokens are returned too.
    pool_grid
        Side of the grid to which patches are averaged; the encoder's own grid if that is smaller.
    batch_size
        Images per forward pass.

    Raises
    ------
    UsageError
        For a block that the tower does not have, and for a batch or grid size below 1.
    DataError
        If there is no image, or if an image cannot be read, its box lies outside of it, or its
        labels are not a list of names.
    NumericsError
        If a token is not finite in the precision of the result; the message names the sample.
    """
    for option, value in {"batch_size": batch_size, "pool_grid": pool_grid}.items():
        if value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}")
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    if total < 1:
        raise DataError(f"{manifest.root} holds no sample to evaluate on")
    # Sorted, so that the order of the option does not make another cache key.
    chosen, side = sorted(set(layers)), min(pool_grid, *encoder.grid)
    ranges = block_ranges(total, IMAGES_PER_BLOCK)

    def compute(number: int) -> Block:
        batches = evaluation_batches(
            manifest,
            size=encoder.image_size,
            batch_size=batch_size,
            start=ranges[number].start,
            limit=ranges[number].stop,
            texts="none",
            boxes=True,
        )
        return _block(encoder, list(batches), chosen, side)

    # "boxes" marks that images are cropped: earlier caches held uncropped ones.
    data = {"data": manifest.digest, "name": manifest.name, "boxes": True}
    block_keys = [data | {"start": block.start, "stop": block.stop} for block in ranges]
    model = encoder.identity() | {"layers": chosen, "pool_grid": side}
    blocks = encoded_blocks(processes(), encoder.cache, model, block_keys, compute)
    items: list[dict[str, Any]] = []
    for block in blocks:
        items += block.items
    arrays = {name: joined(blocks, name) for name in blocks[0].arrays}
    # After the cast to float16, in which large values become infinite.
    _refuse_non_finite(arrays, items)
    return ImageTokens(
        keys=[item["key"] for item in items],
        labels=[sample_labels(item["key"], item["annotations"]) for item in items],
        annotations=[item["annotations"] for item in items],
        media=[item["media"] for item in items],
        cls=arrays["cls"],
        patch=arrays["patch"],
        proj=arrays.get("proj"),
        grid=(side, side),
        layers={number: arrays[f"layers/{number}"] for number in chosen},
    )


def sample_labels(key: str, annotations: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of a sample's classes without repetition, () without labels.

    Raises DataError for labels that are not a list of names.
    """
    labels = annotations.get("labels")
    if labels is None:
        return ()
    names = labels if isinstance(labels, list) else [None]
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise DataError(f'sample {key}: "labels" must be a list of names, not {labels!r}')
    # A dict instead of a set, which keeps the order of the labels.
    return tuple(dict.fromkeys(names))


def read_pixels(manifest: Manifest, rows: Sequence[int], size: int) -> Tensor:
    """Read images by their positions in a data set: bytes (rows, size, size, 3).

    They are cropped and resized as in `encode_tokens`. Raises DataError that names the sample that
    cannot be read.
    """
    pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    with closing(Store([manifest])) as store:
        for image, row in zip(pixels, rows, strict=True):
            try:
                write_evaluation_pixels(store.read(0, row, "image", "none"), image, boxes=True)
            except BadSample as error:
                key = store.key(0, row)
                raise DataError(f"sample {key} cannot be evaluated: {error}") from error
    return torch.from_numpy(pixels)


def pool_patches(patch: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Average patches (..., rows * columns, width) to a coarser grid (..., side**2, width).

    If the sides do not divide, cells differ by at most one patch (adaptive average pooling).
    """
    flat = patch.reshape(-1, *grid, patch.shape[-1]).movedim(-1, 1)
    # In float32: float16 sums of many patches would lose digits.
    pooled = F.adaptive_avg_pool2d(flat.float(), side).flatten(2).transpose(1, 2)
    return pooled.reshape(*patch.shape[:-2], side * side, patch.shape[-1]).to(patch.dtype)


def _block(
    encoder: Encoder, batches: Sequence[EvaluationBatch], layers: Sequence[int], side: int
) -> Block:
    parts: dict[str, list[Tensor]] = {}
    items = []
    for batch in batches:
        encoded = encoder.encode(batch.pixels, layers)
        arrays = {
            "cls": encoded.tokens[:, 0],
            # float16, because the patches of all images stay in memory.
            "patch": pool_patches(encoded.tokens[:, 1:], encoder.grid, side).half(),
        }
        if encoded.proj is not None:
            arrays["proj"] = encoded.proj
        for number, tokens in encoded.layers.items():
            # The class token has no place on the grid and stays as it is.
            pooled = pool_patches(tokens[:, 1:], encoder.grid, side)
            arrays[f"layers/{number}"] = torch.cat([tokens[:, :1], pooled], dim=1).half()
        for name, tensor in arrays.items():
            parts.setdefault(name, []).append(tensor.cpu())
        for sample in batch.samples:
            media = hashlib.sha256(sample.media).hexdigest()
            items.append({"key": sample.key, "annotations": sample.annotations, "media": media})
    return Block({name: torch.cat(tensors) for name, tensors in parts.items()}, items)


def _refuse_non_finite(arrays: dict[str, Tensor], items: Sequence[dict[str, Any]]) -> None:
    for name, array in arrays.items():
        bad = (~torch.isfinite(array.flatten(1)).all(1)).nonzero().flatten().tolist()
        if bad:
            raise NumericsError(
                f"tokens ({name}) are not finite for {len(bad)} of {len(items)} images, "
                f"the first is {items[bad[0]]['key']}"
            )
