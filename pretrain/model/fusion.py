"""Two-stream co-attention encoder (METER's, as GLSCL uses it): each layer reads the other stream's previous layer."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn
from transformers import RobertaConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.roberta.modeling_roberta import RobertaLayer

from .configuration import GLSCLConfig

Need = Literal["all", "first", "none"]
"""Which states of a stream somebody reads: all, the class token's, or none. The last layer computes no others."""


class CoAttention(nn.Module):
    """Stacks of transformers' RoBERTa cross-attention layers, one stack per stream."""

    def __init__(self, config: GLSCLConfig):
        super().__init__()
        self.layer_config = RobertaConfig(
            hidden_size=config.hidden_size,
            num_attention_heads=config.fusion_heads,
            intermediate_size=config.fusion_intermediate_size,
            hidden_dropout_prob=config.fusion_dropout,
            attention_probs_dropout_prob=config.fusion_dropout,
            layer_norm_eps=config.fusion_layer_norm_eps,
            is_decoder=True,  # transformers builds cross-attention only into decoders; no causal mask is ever made here
            add_cross_attention=True,
            attn_implementation=config._attn_implementation,
        )
        self.text_layers = nn.ModuleList(RobertaLayer(self.layer_config) for _ in range(config.fusion_layers))
        self.image_layers = nn.ModuleList(RobertaLayer(self.layer_config) for _ in range(config.fusion_layers))

    def attend_text(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """First layer's self-attention of (batch, tokens, width) texts, which every pair with that text shares."""
        return _self_attention(self.text_layers[0], text, self._mask(text, text_mask))

    def attend_image(self, image: Tensor) -> Tensor:
        """First layer's self-attention of (batch, tokens, width) images, which every pair with that image shares."""
        return _self_attention(self.image_layers[0], image, None)

    def forward(
        self,
        text: Tensor,
        text_mask: Tensor,
        image: Tensor,
        *,
        text_attended: Tensor,
        image_attended: Tensor,
        text_need: Need = "all",
        image_need: Need = "all",
    ) -> tuple[Tensor, Tensor]:
        """Fuse (batch, text tokens, width) with (batch, image tokens, width).

        `text_mask` (batch, text tokens) is 1 for real tokens and 0 for padding; `text_attended` and `image_attended`
        are what `attend_text` and `attend_image` gave. The results hold the needed states: all tokens, one, or none.
        """
        own, other = self._mask(text, text_mask), self._mask(image, text_mask, text)
        for number, (text_layer, image_layer) in enumerate(zip(self.text_layers, self.image_layers, strict=True)):
            if number:
                text_attended = _self_attention(text_layer, text, own)
                image_attended = _self_attention(image_layer, image, None)
            if number == len(self.text_layers) - 1:
                text_attended = _needed(text_attended, text_need)
                image_attended = _needed(image_attended, image_need)
                other = None if other is None else other[:, :, : image_attended.shape[1]]
            text, image = (
                _cross_attention(text_layer, text_attended, image, None),
                _cross_attention(image_layer, image_attended, text, other),
            )
        return text, image

    def _mask(self, queries: Tensor, text_mask: Tensor, keys: Tensor | None = None) -> Tensor | None:
        return create_bidirectional_mask(
            config=self.layer_config,
            inputs_embeds=queries,
            attention_mask=text_mask,
            encoder_hidden_states=keys,
        )


def _self_attention(layer: Any, tokens: Tensor, mask: Tensor | None) -> Tensor:
    # is_causal=False: with no mask, sdpa would otherwise take a decoder layer for a causal one.
    return layer.attention(tokens, mask, is_causal=False)[0]


def _cross_attention(layer: Any, attended: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
    if attended.shape[1] == 0:
        return attended
    return layer.feed_forward_chunk(layer.crossattention(attended, None, other, mask, is_causal=False)[0])


def _needed(attended: Tensor, need: Need) -> Tensor:
    return {"all": attended, "first": attended[:, :1], "none": attended[:, :0]}[need]
