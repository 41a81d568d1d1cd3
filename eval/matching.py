"""The matching head over many pairs of one test set: each pair once, and what depends on one side alone only once.

The first fusion layer's self-attention sees one side only, so it is computed per picture and per text, not per pair;
of the last layer only the two class tokens are used. Both are the model's own modules, and the result is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from data_pipeline.errors import NumericsError
from eval.features import Images, LoadedModel, Texts, share

TOKENS_AT_ONCE = 8192  # of one fusion pass: enough to fill the cores, small enough for their caches


@torch.inference_mode()
def match_margins(
    loaded: LoadedModel, images: Images, texts: Texts, image: NDArray[np.integer], text: NDArray[np.integer]
) -> NDArray[np.float32]:
    """Return logit(match) - logit(no match) of pairs (pairs,), given as positions of what was encoded.

    Raises
    ------
    NumericsError
        If a margin is not finite; the message names the picture.
    """
    pairs = texts.row[text].astype(np.int64) * len(images.keys) + images.row[image]
    distinct, place = np.unique(pairs, return_inverse=True)
    text_rows, image_rows = (torch.from_numpy(part) for part in np.divmod(distinct, len(images.keys)))
    lengths = texts.mask.sum(dim=1)[text_rows]
    fusion = _Fusion(loaded, images, texts)
    found: list[tuple[Any, Any]] = []
    at_once = max(1, TOKENS_AT_ONCE // (texts.tokens.shape[1] + images.tokens.shape[1]))
    for rows in share(torch.argsort(lengths, stable=True), at_once):
        margins = fusion.margins(text_rows[rows], image_rows[rows], int(lengths[rows].max()))
        found.append((rows.numpy(), margins))
    values = np.empty(len(distinct), dtype=np.float32)
    for rows, margins in gather_object(found):
        values[rows] = margins
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        key = images.keys[int(image_rows[bad[0]])]
        raise NumericsError(f"the matching head gives {len(bad)} of {len(values)} non-finite scores, first for {key}")
    return values[place.ravel()]


class _Fusion:
    """The fusion encoder with the first self-attention of both sides already computed."""

    def __init__(self, loaded: LoadedModel, images: Images, texts: Texts) -> None:
        self.loaded, self.mask = loaded, texts.mask
        types = loaded.model.token_type.weight.cpu()
        self.text = texts.tokens + types[0].to(texts.tokens.dtype)
        self.image = images.tokens + types[1].to(images.tokens.dtype)
        self.text_attended = self._attended(loaded.model.fusion.text_layers[0], self.text, self.mask)
        self.image_attended = self._attended(loaded.model.fusion.image_layers[0], self.image, None)

    def margins(self, text_rows: Tensor, image_rows: Tensor, longest: int) -> NDArray[np.float32]:
        """Fuse pairs of rows whose texts have at most ``longest`` tokens."""
        loaded, fusion = self.loaded, self.loaded.model.fusion
        text, text_attended = (self._on_device(rows[text_rows, :longest]) for rows in (self.text, self.text_attended))
        image, image_attended = (self._on_device(rows[image_rows]) for rows in (self.image, self.image_attended))
        mask = self.mask[text_rows, :longest].to(loaded.device)
        own = self._mask(text, mask)
        other = self._mask(image, mask, text)
        last = len(fusion.text_layers) - 1
        with loaded.autocast():
            layers: Any = zip(fusion.text_layers, fusion.image_layers, strict=True)
            for number, (text_layer, image_layer) in enumerate(layers):
                if number:
                    text_attended = text_layer.attention(text, own, is_causal=False)[0]
                    image_attended = image_layer.attention(image, None, is_causal=False)[0]
                if number == last:
                    text_attended, image_attended = text_attended[:, :1], image_attended[:, :1]
                    other = None if other is None else other[:, :, :1]
                text, image = (
                    _crossed(text_layer, text_attended, image, None),
                    _crossed(image_layer, image_attended, text, other),
                )
            pooled = loaded.model.pool(text, image)
        logits = loaded.model.match(pooled.float()).cpu()
        return (logits[:, 1] - logits[:, 0]).numpy()

    def _attended(self, layer: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
        parts = []
        for start in range(0, len(tokens), 64):
            block = self._on_device(tokens[start : start + 64])
            seen = None if mask is None else self._mask(block, mask[start : start + 64].to(block.device))
            with self.loaded.autocast():
                parts.append(self.loaded.kept(layer.attention(block, seen, is_causal=False)[0]))
        return torch.cat(parts)

    def _mask(self, tokens: Tensor, mask: Tensor, context: Tensor | None = None) -> Any:
        return create_bidirectional_mask(
            config=self.loaded.model.fusion.layer_config,
            inputs_embeds=tokens,
            attention_mask=mask,
            encoder_hidden_states=context,
        )

    def _on_device(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.loaded.device)


def _crossed(layer: Any, attended: Tensor, other: Tensor, mask: Any) -> Tensor:
    return layer.feed_forward_chunk(layer.crossattention(attended, None, other, mask, is_causal=False)[0])
