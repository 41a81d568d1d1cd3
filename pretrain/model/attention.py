"""Attention that transformers' layers do not offer: over the frames of a clip, of some tokens only, and to look at.

All use the layers' own projections, and those that compute states the attention function that the
layer's configuration names.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.roberta.modeling_roberta import eager_attention_forward

FRAME_ATTENTION = "glscl_frames"
"""Name under which transformers' layers find `frame_attention`; it is never written into a saved
configuration."""


def frame_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of pictures, or of clips in which patches see their own frame and class tokens see all frames.

    Pictures arrive as (batch, heads, tokens, head width) and take transformers' `sdpa` as it is. A
    clip runs through the layers as (batch, frames, 1 + patches, width), class token first in each
    frame; its number of frames travels in that shape, because not every layer passes keyword
    arguments on (SigLIP's does not). Layers then hand over (batch, tokens, frames, heads, head
    width). Two calls on views of the projections give what a mask of (frames x tokens)^2 entries
    would (glscl paper, section 3.1).
    """
    if query.ndim == 4:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    options = {"dropout_p": kwargs.get("dropout", 0.0), "scale": kwargs.get("scaling")}

    def in_frame(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 1).transpose(1, 2)  # (batch * frames, heads, tokens, head width)

    def in_clip(tensor: Tensor) -> Tensor:
        return tensor.flatten(1, 2).transpose(1, 2)  # (batch, heads, frames * tokens, head width)

    classes = F.scaled_dot_product_attention(
        in_clip(query[:, :, :1]), in_clip(key), in_clip(value), **options
    )
    patches = F.scaled_dot_product_attention(
        in_frame(query[:, :, 1:]), in_frame(key), in_frame(value), **options
    )
    frames = query.shape[:2]
    return torch.cat(
        [classes.transpose(1, 2).unsqueeze(2), patches.transpose(1, 2).unflatten(0, frames)], dim=2
    ), None


AttentionInterface.register(FRAME_ATTENTION, frame_attention)


def attend(attention: Any, queries: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
    """Run a BERT-style attention block, residual and norm included, for some queries: (batch, queries, width).

    `memory` (batch, tokens, width) gives keys and values; `mask` comes from `padding_mask`.
    """
    inner = attention.self
    mixed, _ = implementation(inner)(
        inner,
        _heads(inner, inner.query(queries)),
        _heads(inner, inner.key(memory)),
        _heads(inner, inner.value(memory)),
        mask,
        dropout=inner.dropout.p if inner.training else 0.0,
        scaling=inner.scaling,
        is_causal=False,  # the fusion layers count as a decoder's, which sdpa takes for causal where there is no mask
    )
    return attention.output(mixed.flatten(-2), queries)


def attention_probabilities(attention: Any, queries: Tensor, memory: Tensor) -> Tensor:
    """Probabilities (batch, heads, queries, tokens) with which `attend` mixes an unpadded memory, without dropout.

    Fused attention functions never hold them, so they are computed again, in float32 at least.
    """
    inner = attention.self
    query, key = _heads(inner, inner.query(queries)), _heads(inner, inner.key(memory))
    logits = (query @ key.transpose(2, 3)) * inner.scaling
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _heads(inner: Any, tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (-1, inner.attention_head_size)).transpose(1, 2)


def implementation(module: Any) -> Any:
    """Attention function that an attention module's configuration names."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )


def padding_mask(mask: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """Mask (batch, 1, 1, tokens) for the attention of `config`, of a 1/0 mask (batch, tokens).

    transformers hands a mask of four axes on as it is; of one with two axes it asks whether it
    masks anything, and so waits for the device.
    """
    allowed = mask[:, None, None, :] != 0
    if config._attn_implementation != "eager":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )
