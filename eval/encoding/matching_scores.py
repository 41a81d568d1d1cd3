"""Matching scores of many image-text pairs of one test set.

In: encoded images and texts, and the pairs to score. Out: one margin per pair. Each pair is scored
once. The first fusion layer's self-attention reads one side only, so that it is computed per image
and per text instead of per pair; the last layer computes only class tokens. The result is the same
as that of the full forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.errors import NumericsError
from eval.encoding.features import Images, LoadedModel, Texts, chunks_of_process
from pretrain.model.modeling import Side
from pretrain.ranking import is_degenerate

TOKENS_AT_ONCE = 8192  # per fusion pass: enough to occupy all cores, small enough for their caches


def flag_constant_scores(scores: Mapping[str, NDArray[Any]]) -> list[str]:
    """Flag each kind of score whose values all differ by rounding alone.

    An accuracy of such scores measures noise.
    """
    flags = []
    for name, values in scores.items():
        if is_degenerate(values.reshape(1, -1)):
            flags.append(f"constant_scores/{name}")
    return flags


@torch.inference_mode()
def match_margins(
    loaded: LoadedModel,
    images: Images,
    texts: Texts,
    image: NDArray[np.integer],
    text: NDArray[np.integer],
) -> NDArray[np.float32]:
    """Return logit(match) - logit(no match) of pairs (pairs,), given by positions in both sets.

    Raises
    ------
    NumericsError
        If a margin is not finite; the message names the image.
    """
    # Copies of an image or a text lead to one row, so that equal pairs are scored once.
    pairs = texts.row[text].astype(np.int64) * len(images.keys) + images.row[image]
    distinct, position = np.unique(pairs, return_inverse=True)
    text_positions, image_positions = np.divmod(distinct, len(images.keys))
    text_rows, image_rows = torch.from_numpy(text_positions), torch.from_numpy(image_positions)
    lengths = texts.mask.sum(dim=1)[text_rows]
    with loaded.autocast():
        text_sides, image_sides = _text_sides(loaded, texts), _image_sides(loaded, images)
    scored: list[tuple[Any, Any]] = []
    at_once = max(1, TOKENS_AT_ONCE // (texts.tokens.shape[1] + images.tokens.shape[1]))
    # Sorted by length, because a chunk is padded to its longest text.
    for rows in chunks_of_process(torch.argsort(lengths, stable=True), at_once):
        chosen, longest = text_rows[rows], int(lengths[rows].max())
        text_side = Side(text_sides.tokens[chosen, :longest], text_sides.attended[chosen, :longest])
        with loaded.autocast():
            image_side = image_sides[image_rows[rows]]
            margins = _margins(
                loaded, text_side, texts.mask[chosen, :longest], image_side, images.frames
            )
        scored.append((rows.numpy(), margins))
    values = np.empty(len(distinct), dtype=np.float32)
    for rows, margins in gather_object(scored):
        values[rows] = margins
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        key = images.keys[int(image_rows[bad[0]])]
        raise NumericsError(
            f"{len(bad)} of {len(values)} matching scores are not finite, the first for {key}"
        )
    return values[position.ravel()]


def _text_sides(loaded: LoadedModel, texts: Texts) -> Side:
    sides = []
    for rows in torch.arange(len(texts.tokens)).split(64):
        tokens, mask = texts.tokens[rows].to(loaded.device), texts.mask[rows].to(loaded.device)
        sides.append(_moved(loaded.model.text_side(tokens, mask), "cpu"))
    return Side.cat(sides)


def _image_sides(loaded: LoadedModel, images: Images) -> Side:
    sides = []
    for rows in torch.arange(len(images.tokens)).split(64):
        tokens = images.tokens[rows].to(loaded.device)
        sides.append(_moved(loaded.model.image_side(tokens), "cpu"))
    return Side.cat(sides)


def _moved(side: Side, device: torch.device | str) -> Side:
    return Side(side.tokens.to(device), side.attended.to(device))


def _margins(
    loaded: LoadedModel, text: Side, mask: Tensor, image: Side, frames: int
) -> NDArray[np.float32]:
    """Score pairs whose texts are cut to the longest one among them."""
    model, device = loaded.model, loaded.device
    text, image = _moved(text, device), _moved(image, device)
    first = torch.zeros(len(mask), 1, dtype=torch.long, device=device)
    # A video has one class token per frame.
    classes = torch.arange(frames, device=device).expand(len(mask), -1)
    [states] = model.fuse_pairs(text, mask.to(device), image, [(first, classes)])
    # The caller's autocast may make the head's output bfloat16, which numpy does not have.
    logits = model.match(model.pool(*states).float()).float().cpu()
    return (logits[:, 1] - logits[:, 0]).numpy()
