"""Text tower: any bidirectional encoder of transformers.

In: token ids and a mask, `<s>` (or `[CLS]`) first. Out: hidden states.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from .attention import attend, padding_mask

# Their layers have the same parts, so that the last layer can compute the first token only, and one
# mask serves all layers.
_BERT_LIKE = ("bert", "camembert", "roberta", "xlm-roberta")


def encode_text(
    tower: Any, text_ids: Tensor, text_mask: Tensor, need: Literal["all", "first"] = "all"
) -> Tensor:
    """Return hidden states (batch, tokens, width) from ids and a 1/0 mask (batch, tokens).

    With need "first", the result is (batch, 1, width), and the last layer of a BERT-like tower
    computes only this state.
    """
    if tower.config.model_type not in _BERT_LIKE:
        states = tower(input_ids=text_ids, attention_mask=text_mask).last_hidden_state
        return states if need == "all" else states[:, :1]
    hidden = tower.embeddings(input_ids=text_ids)
    mask = padding_mask(text_mask, tower.config, hidden.dtype)
    layers = tower.encoder.layer
    for layer in layers if need == "all" else layers[:-1]:
        hidden = layer(hidden, mask)
    if need == "all":
        return hidden
    last = layers[-1]
    return last.feed_forward_chunk(attend(last.attention, hidden[:, :1], hidden, mask))
