"""What batches hold for each sample, to compare ranks, micro-batches, workers and steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data_pipeline.loader import Batch, Loader, open_loader
from data_pipeline.text import Tokenizer

BATCH, START = 48, 5
OPTIONS = {"seed": 1, "global_batch": BATCH, "size": 32, "patch_size": 8, "group": 2}
Row = dict[str, object]


def rows(batch: Batch) -> Iterator[Row]:
    """Return what a batch holds for each of its samples, without the padding."""
    patches = (batch.pixels.shape[-2] // 8) ** 2
    width = batch.text_ids.shape[1]
    of_negatives = iter(() if batch.negative_pixels is None else batch.negative_pixels)
    for row, key in enumerate(batch.keys):
        length = int(batch.text_mask[row].sum())
        masked = batch.masked_tokens[batch.masked_tokens // width == row] - row * width
        mlm_here = batch.mlm_positions // width == row
        yield {
            "key": key,
            "pixels": batch.pixels[row].numpy().tobytes(),
            "text": batch.text_ids[row, :length].tolist(),
            "masked_text": batch.masked_text_ids[row, :length].tolist(),
            "masked_tokens": masked.tolist(),
            "mlm": batch.mlm_ids[row, :length].tolist(),
            "mlm_positions": (batch.mlm_positions[mlm_here] - row * width).tolist(),
            "mlm_labels": batch.mlm_labels[mlm_here].tolist(),
            "keep": batch.keep_patches[row].tolist(),
            "masked_patches": (
                batch.masked_patches[batch.masked_patches // patches == row] - row * patches
            ).tolist(),
            "matching": int(batch.itm_labels[row]),
            "identity": batch.identity[row].tolist(),
            "negative": b""
            if batch.itm_labels[row]
            else next(of_negatives, torch.empty(0)).numpy().tobytes(),
            "negative_patches": chosen(batch.negative_patches, batch.masked_patches, row, patches),
            "negative_tokens": chosen(batch.negative_tokens, batch.masked_tokens, row, width),
            "noise": batch.itm_noise[row].tolist(),
        }


def chosen(rows_chosen: torch.Tensor | None, flat: torch.Tensor, row: int, width: int) -> list[int]:
    """Return the positions inside a sample that a flat list of positions names."""
    positions = flat[[] if rows_chosen is None else rows_chosen]
    return (positions[positions // width == row] - row * width).tolist()


def read(root: Path, tokenizer: Tokenizer, steps: int = 2, **options: object) -> list[Row]:
    """Return what one rank reads in `steps` steps from step START."""
    count = steps * options.get("micro_batches", 1)
    with open_loader(
        [root], tokenizer=tokenizer, start_step=START, **{**OPTIONS, **options}
    ) as loader:
        all_rows = []
        for _ in range(count):
            all_rows += rows(next(loader))
        return all_rows


def joined_parts(ranks: list[list[Any]], step: int, part: int) -> list[Any]:
    """Return what all ranks read in a step, in the order of the global batch."""
    joined = []
    for rank in ranks:
        joined += rank[step * part : (step + 1) * part]
    return joined


def keys_of_next(loader: Loader, batches: int) -> list[str]:
    """Return the keys of the next batches."""
    keys = []
    for _ in range(batches):
        keys += next(loader).keys
    return keys
