"""Attention that transformers' layers do not offer.

In: a layer of transformers with its own projections, and hidden states. Out: attention over the
frames of a video (`frame_attention`), attention of selected query tokens only (`attend`), and the
attention probabilities themselves (`attention_probabilities`).
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
"""Name under which transformers' layers find `frame_attention`; never saved in a configuration."""


def frame_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within images, or within frames of videos, whose class tokens see all frames.

    Images arrive as (batch, heads, tokens, head width) and are passed to transformers' `sdpa`. In a
    video, a patch attends to its own frame and a class token to all frames (glscl paper, section
    3.1). It runs through the layers as (batch, frames, 1 + patches, width), with the class token
    first in each frame, and arrives here as (batch, tokens, frames, heads, head width). Two calls
    on views of the projections replace a mask of (frames x tokens)^2 entries.
    """
    # The number of frames travels in the shape of the states, because not every layer passes
    # keyword arguments on (SigLIP's does not).
    if query.ndim == 4:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    options = {"dropout_p": kwargs.get("dropout", 0.0), "scale": kwargs.get("scaling")}

    def in_frame(tensor: Tensor) -> Tensor:
        return tensor.flatten(0, 1).transpose(1, 2)  # (batch * frames, heads, tokens, head width)

    def in_video(tensor: Tensor) -> Tensor:
        return tensor.flatten(1, 2).transpose(1, 2)  # (batch, heads, frames * tokens, head width)

    classes = F.scaled_dot_product_attention(
        in_video(query[:, :, :1]), in_video(key), in_video(value), **options
    )
    patches = F.scaled_dot_product_attention(
        in_frame(query[:, :, 1:]), in_frame(key), in_frame(value), **options
    )
    by_frame = patches.transpose(1, 2).unflatten(0, query.shape[:2])
    return torch.cat([classes.transpose(1, 2).unsqueeze(2), by_frame], dim=2), None


AttentionInterface.register(FRAME_ATTENTION, frame_attention)


def attend(attention: Any, queries: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
    """Run a BERT-style attention block, with residual and norm, for selected query tokens.

    `queries` and the result are (batch, queries, width), `memory` (batch, tokens, width) gives keys
    and values, and `mask` comes from `padding_mask`.
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
        # The fusion layers are configured as a decoder, which sdpa would treat as causal without a
        # mask.
        is_causal=False,
    )
    return attention.output(mixed.flatten(-2), queries)


def attention_probabilities(attention: Any, queries: Tensor, memory: Tensor) -> Tensor:
    """Compute the probabilities that `attend` uses, without a mask and without dropout.

    The result (batch, heads, queries, tokens) has at least float32 precision. Fused attention
    functions never materialize the probabilities, so they are computed again here.
    """
    inner = attention.self
    query, key = _heads(inner, inner.query(queries)), _heads(inner, inner.key(memory))
    logits = (query @ key.transpose(2, 3)) * inner.scaling
    return logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _heads(inner: Any, tensor: Tensor) -> Tensor:
    return tensor.unflatten(-1, (-1, inner.attention_head_size)).transpose(1, 2)


def implementation(module: Any) -> Any:
    """Return the attention function that an attention module's configuration names."""
    return ALL_ATTENTION_FUNCTIONS.get_interface(
        module.config._attn_implementation, eager_attention_forward
    )


def padding_mask(mask: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """Turn a 1/0 mask (batch, tokens) into (batch, 1, 1, tokens) for the attention of `config`."""
    # transformers passes a mask of four axes on unchanged. For one of two axes it first checks
    # whether it masks anything, which waits for the device.
    allowed = mask[:, None, None, :] != 0
    if config._attn_implementation != "eager":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )
