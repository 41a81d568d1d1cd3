"""The matching head over many pairs of one test set: each pair once, and what depends on one side alone only once.

The first fusion layer's self-attention sees one side only, so it is computed per picture and per
text, not per pair; of the last layer only the class tokens are used. Both are the model's own
modules, and the result is the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from data_pipeline.errors import NumericsError
from eval.encoding.features import Images, LoadedModel, Texts, chunks_of_process
from pretrain.model.modeling import Side

TOKENS_AT_ONCE = 8192  # of one fusion pass: enough to fill the cores, small enough for their caches


@torch.inference_mode()
def match_margins(
    loaded: LoadedModel,
    images: Images,
    texts: Texts,
    image: NDArray[np.integer],
    text: NDArray[np.integer],
) -> NDArray[np.float32]:
    """Return logit(match) - logit(no match) of pairs (pairs,), given as positions of what was encoded.

    Raises
    ------
    NumericsError
        If a margin is not finite; the message names the picture.
    """
    pairs = texts.row[text].astype(np.int64) * len(images.keys) + images.row[image]
    distinct, place = np.unique(pairs, return_inverse=True)
    text_rows, image_rows = (
        torch.from_numpy(part) for part in np.divmod(distinct, len(images.keys))
    )
    lengths = texts.mask.sum(dim=1)[text_rows]
    with loaded.autocast():
        text_sides, image_sides = _text_sides(loaded, texts), _image_sides(loaded, images)
    found: list[tuple[Any, Any]] = []
    at_once = max(1, TOKENS_AT_ONCE // (texts.tokens.shape[1] + images.tokens.shape[1]))
    for rows in chunks_of_process(torch.argsort(lengths, stable=True), at_once):
        chosen, longest = text_rows[rows], int(lengths[rows].max())
        text_side = Side(text_sides.tokens[chosen, :longest], text_sides.attended[chosen, :longest])
        with loaded.autocast():
            image_side = image_sides[image_rows[rows]]
            margins = _margins(
                loaded, text_side, texts.mask[chosen, :longest], image_side, images.frames
            )
        found.append((rows.numpy(), margins))
    values = np.empty(len(distinct), dtype=np.float32)
    for rows, margins in gather_object(found):
        values[rows] = margins
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        key = images.keys[int(image_rows[bad[0]])]
        raise NumericsError(
            f"the matching head gives {len(bad)} of {len(values)} non-finite scores, first for {key}"
        )
    return values[place.ravel()]


def _text_sides(loaded: LoadedModel, texts: Texts) -> Side:
    return _joined(
        loaded.model.text_side(
            texts.tokens[rows].to(loaded.device), texts.mask[rows].to(loaded.device)
        )
        for rows in torch.arange(len(texts.tokens)).split(64)
    )


def _image_sides(loaded: LoadedModel, images: Images) -> Side:
    return _joined(
        loaded.model.image_side(images.tokens[rows].to(loaded.device))
        for rows in torch.arange(len(images.tokens)).split(64)
    )


def _joined(parts: Iterable[Side]) -> Side:
    sides = [Side(part.tokens.cpu(), part.attended.cpu()) for part in parts]
    return Side(
        torch.cat([side.tokens for side in sides]), torch.cat([side.attended for side in sides])
    )


def _margins(
    loaded: LoadedModel, text: Side, mask: Tensor, image: Side, frames: int
) -> NDArray[np.float32]:
    """Match pairs whose texts were cut to the longest among them."""
    model, device = loaded.model, loaded.device
    text, image = (Side(side.tokens.to(device), side.attended.to(device)) for side in (text, image))
    first = torch.zeros(len(mask), 1, dtype=torch.long, device=device)
    classes = torch.arange(frames, device=device).expand(
        len(mask), -1
    )  # a clip has a class token of each frame
    [states] = model.fuse_pairs(text, mask.to(device), image, [(first, classes)])
    logits = model.match(model.pool(*states).float()).cpu()
    return (logits[:, 1] - logits[:, 0]).numpy()
