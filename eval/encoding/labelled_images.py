"""Tokens of labelled pictures, encoded once and read by every method that recognises from few examples.

In: an encoder and a data set. Out: for every picture its class token, its patches (averaged to a
coarser grid, because tokens of all pictures are kept), its contrastive feature and the tokens of
chosen layers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
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
from eval.encoding.cache import Block, encoded_blocks
from eval.encoding.encoders import Encoder
from eval.encoding.features import IMAGES_PER_BLOCK, processes


@dataclass(frozen=True)
class ImageTokens:
    """Encoded pictures, on the CPU, in the order of their data set.

    ``labels`` are the names of each picture's classes; ``media`` (sha256 of the file) is the same
    for copies. ``cls`` (pictures, width) and ``patch`` (pictures, rows * columns, width) are the
    tower's last tokens on ``grid`` (rows, columns); ``proj`` (pictures, projection) are unit
    features of the contrastive space, None where the encoder has none; ``layers`` maps a block (1
    is the first) to its tokens (pictures, 1 + rows * columns, width of the tower). ``patch`` and
    ``layers`` are float16, the others float32. ``labels`` are () where a sample has none.
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
            raise ValueError(f"{self.patch.shape[1]} patches are no grid of {rows} x {columns}")

    def __len__(self) -> int:
        return len(self.keys)


@torch.no_grad()  # not inference mode, whose tensors heads could not learn from
def encode_tokens(
    encoder: Encoder,
    manifest: Manifest,
    *,
    layers: Sequence[int] = (),
    pool_grid: int = 7,
    limit: int | None = None,
    batch_size: int = 64,
) -> ImageTokens:
    """Encode the first ``limit`` pictures of a data set (all by default), in the order of its shards.

    A picture whose annotations have a "box" [x1, y1, x2, y2] is cropped to it: queries of Revisited
    Oxford and Paris.

    Parameters
    ----------
    encoder, manifest
        What encodes, and the data set; captions are not needed.
    layers
        Blocks of the tower (1 is the first) whose tokens are kept too.
    pool_grid
        Side of the grid that patches are averaged to; the encoder's own where that is smaller.
    batch_size
        Pictures that are encoded at once.

    Raises
    ------
    UsageError
        For a block that the tower has not, a batch or a grid of nothing.
    DataError
        If there is no picture, one cannot be read, its box holds nothing of it, or its labels are
        not a list of names.
    NumericsError
        If a token is not finite in the precision it is kept in; the message names the sample.
    """
    for option, value in {"batch_size": batch_size, "pool_grid": pool_grid}.items():
        if value < 1:
            raise UsageError(f"{option} must be at least 1, not {value}")
    total = manifest.samples if limit is None else min(limit, manifest.samples)
    if total < 1:
        raise DataError(f"{manifest.root} holds no sample to evaluate on")
    chosen, side = sorted(set(layers)), min(pool_grid, *encoder.grid)
    ranges = [
        (start, min(start + IMAGES_PER_BLOCK, total)) for start in range(0, total, IMAGES_PER_BLOCK)
    ]

    def compute(number: int) -> Block:
        start, stop = ranges[number]
        size = encoder.image_size
        batches = evaluation_batches(
            manifest,
            size=size,
            batch_size=batch_size,
            start=start,
            limit=stop,
            texts="none",
            boxes=True,
        )
        return _block(encoder, list(batches), chosen, side)

    data = {"data": manifest.digest, "name": manifest.name, "boxes": True}
    wanted = [data | {"start": start, "stop": stop} for start, stop in ranges]
    model = encoder.identity() | {"layers": chosen, "pool_grid": side}
    blocks = encoded_blocks(processes(), encoder.cache, model, wanted, compute)
    items = [item for block in blocks for item in block.items]
    arrays = {
        name: torch.cat([block.arrays[name] for block in blocks]) for name in blocks[0].arrays
    }
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
    """Return the names of a sample's classes, each once, () where it has none.

    Raises DataError for labels that are not a list of names.
    """
    labels = annotations.get("labels")
    if labels is None:
        return ()
    if not isinstance(labels, list) or not all(
        isinstance(label, str) and label.strip() for label in labels
    ):
        raise DataError(f'sample {key}: "labels" must be a list of names, not {labels!r}')
    return tuple(dict.fromkeys(labels))


def read_pixels(manifest: Manifest, rows: Sequence[int], size: int) -> Tensor:
    """Read pictures by their positions: bytes (rows, size, size, 3), cropped and squashed as `encode_tokens` does it.

    Raises DataError naming the sample that cannot be read.
    """
    pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
    with closing(Store([manifest])) as store:
        for place, row in enumerate(rows):
            try:
                write_evaluation_pixels(
                    store.read(0, row, "image", "none"), pixels[place], boxes=True
                )
            except BadSample as error:
                raise DataError(
                    f"sample {store.key(0, row)} cannot be evaluated: {error}"
                ) from error
    return torch.from_numpy(pixels)


def pool_patches(patch: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Average patches (..., rows * columns, width) over a grid of ``side`` x ``side`` cells, (..., side**2, width).

    Cells differ by at most one patch where the sides do not divide (adaptive average pooling).
    """
    flat = patch.reshape(-1, *grid, patch.shape[-1]).movedim(-1, 1)
    pooled = F.adaptive_avg_pool2d(flat.float(), side).flatten(2).transpose(1, 2)
    return pooled.reshape(*patch.shape[:-2], side * side, patch.shape[-1]).to(patch.dtype)


def _block(
    encoder: Encoder, batches: Sequence[EvaluationBatch], layers: Sequence[int], side: int
) -> Block:
    parts: dict[str, list[Tensor]] = {}
    items = []
    for batch in batches:
        encoded = encoder.encode(batch.pixels, layers)
        kept = {
            "cls": encoded.tokens[:, 0],
            "patch": pool_patches(encoded.tokens[:, 1:], encoder.grid, side).half(),
        }
        if encoded.proj is not None:
            kept["proj"] = encoded.proj
        for number, tokens in encoded.layers.items():
            pooled = pool_patches(tokens[:, 1:], encoder.grid, side)
            kept[f"layers/{number}"] = torch.cat([tokens[:, :1], pooled], dim=1).half()
        for name, tensor in kept.items():
            parts.setdefault(name, []).append(tensor.cpu())
        items += [
            {
                "key": sample.key,
                "annotations": sample.annotations,
                "media": hashlib.sha256(sample.media).hexdigest(),
            }
            for sample in batch.samples
        ]
    return Block({name: torch.cat(tensors) for name, tensors in parts.items()}, items)


def _refuse_non_finite(arrays: dict[str, Tensor], items: Sequence[dict[str, Any]]) -> None:
    for name, array in arrays.items():
        bad = (~torch.isfinite(array.flatten(1)).all(1)).nonzero().flatten().tolist()
        if bad:
            raise NumericsError(
                f"tokens ({name}) are not finite for {len(bad)} of {len(items)} pictures, the first is "
                f"{items[bad[0]]['key']}"
            )
