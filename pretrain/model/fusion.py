"""Two-stream co-attention encoder (METER's, as GLSCL uses it): each layer reads the other stream's previous layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaLayer

from .attention import attend, attention_probabilities, padding_mask
from .configuration import GLSCLConfig

Need = Literal["all", "none"] | Tensor
"""States of a stream that somebody reads: all, none, or those of token positions (batch, k),
int64."""


class CoAttention(nn.Module):
    """Stacks of transformers' RoBERTa layers with cross-attention, one stack per stream."""

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
        self.text_layers = nn.ModuleList(
            CoAttentionLayer(self.layer_config) for _ in range(config.fusion_layers)
        )
        self.image_layers = nn.ModuleList(
            CoAttentionLayer(self.layer_config) for _ in range(config.fusion_layers)
        )

    def attend_text(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """First layer's self-attention of (batch, tokens, width) texts, which every pair with that text shares."""
        return self.text_layers[0](text, self._mask(text, text_mask))

    def attend_image(self, image: Tensor) -> Tensor:
        """First layer's self-attention of (batch, tokens, width) images, which every pair with that image shares."""
        return self.image_layers[0](image, None)

    def forward(
        self,
        text: Tensor,
        text_mask: Tensor,
        image: Tensor,
        text_attended: Tensor,
        image_attended: Tensor,
        needs: Sequence[tuple[Need, Need]],
    ) -> list[tuple[Tensor, Tensor]]:
        """Fuse (batch, text tokens, width) with (batch, image tokens, width), a stack of `len(needs)` equal chunks.

        `text_mask` (batch, text tokens) is 1 for real tokens and 0 for padding; `text_attended` and
        `image_attended` are what `attend_text` and `attend_image` gave. All layers but the last run
        in one call; in the last one each chunk computes the states that its (text need, image need)
        name, and returns those.
        """
        mask = self._mask(text, text_mask)
        text, image, attended = self._to_last(text, mask, image, text_attended, image_attended)
        last_text, last_image = self.text_layers[-1], self.image_layers[-1]
        fused = []
        for part, (text_need, image_need) in enumerate(needs):
            rows = slice(part * len(text) // len(needs), (part + 1) * len(text) // len(needs))
            own, other, padding = text[rows], image[rows], mask[rows]
            own_attended, other_attended = (
                None if value is None else value[rows] for value in attended
            )
            fused.append(
                (
                    last_text(own, padding, other, None, own_attended, text_need),
                    last_image(other, None, own, padding, other_attended, image_need),
                )
            )
        return fused

    def text_to_image(
        self,
        text: Tensor,
        text_mask: Tensor,
        image: Tensor,
        text_attended: Tensor,
        image_attended: Tensor,
    ) -> Tensor:
        """Probabilities with which the last layer's text stream reads the image; arguments as of `forward`.

        Float32 or wider (batch, heads, text tokens, image tokens), each row of sum 1.
        """
        mask = self._mask(text, text_mask)
        text, image, (attended, _) = self._to_last(text, mask, image, text_attended, image_attended)
        last = self.text_layers[-1]
        queries = attend(last.attention, text, text, mask) if attended is None else attended
        return attention_probabilities(last.crossattention, queries, image)

    def _to_last(
        self,
        text: Tensor,
        mask: Tensor,
        image: Tensor,
        text_attended: Tensor,
        image_attended: Tensor,
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None]]:
        """Run all layers but the last: both streams, and their self-attention in the last where it is known already."""
        attended: tuple[Tensor | None, Tensor | None] = (text_attended, image_attended)
        *before, _ = zip(self.text_layers, self.image_layers, strict=True)
        for text_layer, image_layer in before:
            text, image = (
                text_layer(text, mask, image, None, attended[0]),
                image_layer(image, None, text, mask, attended[1]),
            )
            attended = (None, None)
        return text, image, attended

    def _mask(self, text: Tensor, text_mask: Tensor) -> Tensor:
        return padding_mask(text_mask, self.layer_config, text.dtype)


class CoAttentionLayer(RobertaLayer):
    """One layer of a stream: self-attention, cross-attention to the other stream, feed-forward, each with its norm."""

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        other: Tensor | None = None,
        other_mask: Tensor | None = None,
        attended: Tensor | None = None,
        need: Need = "all",
    ) -> Tensor:
        """Next states of (batch, tokens, width), those that are needed; without `other` the self-attention alone.

        `attended` is that self-attention where it is known already.
        """
        if need.shape[1] == 0 if isinstance(need, Tensor) else need == "none":
            return tokens[:, :0]
        if attended is None:
            attended = attend(self.attention, _needed(tokens, need), tokens, mask)
        else:
            attended = _needed(attended, need)
        if other is None:
            return attended
        return self.feed_forward_chunk(attend(self.crossattention, attended, other, other_mask))


def _needed(tokens: Tensor, need: Need) -> Tensor:
    if isinstance(need, Tensor):
        return tokens.gather(1, need[..., None].expand(-1, -1, tokens.shape[-1]))
    return tokens
