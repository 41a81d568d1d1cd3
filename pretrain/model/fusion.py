"""Two-stream co-attention encoder (METER's, as GLSCL uses it): each layer reads the other stream's previous layer."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import RobertaConfig
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.roberta.modeling_roberta import RobertaLayer

from .configuration import GLSCLConfig


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

    def forward(self, text: Tensor, text_mask: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse (batch, text tokens, width) with (batch, image tokens, width); shapes are kept.

        `text_mask` (batch, text tokens) is 1 for real tokens and 0 for padding.
        """
        own = create_bidirectional_mask(config=self.layer_config, inputs_embeds=text, attention_mask=text_mask)
        other = create_bidirectional_mask(
            config=self.layer_config, inputs_embeds=image, attention_mask=text_mask, encoder_hidden_states=text
        )
        for text_layer, image_layer in zip(self.text_layers, self.image_layers, strict=True):
            # is_causal=False: with no mask, sdpa would otherwise take a decoder layer for a causal one.
            text, image = (
                text_layer(text, own, image, None, is_causal=False),
                image_layer(image, None, text, other, is_causal=False),
            )
        return text, image
