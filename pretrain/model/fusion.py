"""Two-stream co-attention encoder (that of METER, arXiv:2111.02387).

In: projected tokens of texts and images. Out: fused states of both. Each layer of a stream attends
to its own stream, then to the output of the other stream's previous layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from transformers import RobertaConfig
from transformers.models.roberta.modeling_roberta import RobertaLayer

from .attention import attend, attention_probabilities, padding_mask
from .configuration import GLSCLConfig

Need = Literal["all", "none"] | Tensor
"""Which states of a stream to compute: all, none, or those at token positions (batch, k), int64."""


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
            # transformers builds cross-attention only into decoders. No causal mask is ever made
            # here.
            is_decoder=True,
            add_cross_attention=True,
            attn_implementation=config._attn_implementation,
        )
        layers = range(config.fusion_layers)
        self.text_layers = nn.ModuleList(CoAttentionLayer(self.layer_config) for _ in layers)
        self.image_layers = nn.ModuleList(CoAttentionLayer(self.layer_config) for _ in layers)

    def attend_text(self, text: Tensor, text_mask: Tensor) -> Tensor:
        """Apply the first layer's self-attention to texts (batch, tokens, width).

        It depends on the text alone, so that all pairs with that text share it.
        """
        return self.text_layers[0](text, self._mask(text, text_mask))

    def attend_image(self, image: Tensor) -> Tensor:
        """Apply the first layer's self-attention to images (batch, tokens, width)."""
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
        """Fuse texts (batch, text tokens, width) with images (batch, image tokens, width).

        `text_mask` (batch, text tokens) is 1 for real tokens and 0 for padding; `text_attended` and
        `image_attended` are the results of `attend_text` and `attend_image`. The batch is a stack
        of `len(needs)` chunks of equal size. Returns for each chunk the text and the image states
        that its (text need, image need) names.
        """
        mask = self._mask(text, text_mask)
        # All layers but the last run in one call for all chunks. In the last one, each chunk
        # computes only the states that somebody reads.
        text, image, attended = self._to_last(text, mask, image, text_attended, image_attended)
        last_text, last_image = self.text_layers[-1], self.image_layers[-1]
        fused = []
        for part, (text_need, image_need) in enumerate(needs):
            rows = slice(part * len(text) // len(needs), (part + 1) * len(text) // len(needs))
            texts, images, padding = text[rows], image[rows], mask[rows]
            texts_attended = None if attended[0] is None else attended[0][rows]
            images_attended = None if attended[1] is None else attended[1][rows]
            text_states = last_text(texts, padding, images, None, texts_attended, text_need)
            image_states = last_image(images, None, texts, padding, images_attended, image_need)
            fused.append((text_states, image_states))
        return fused

    def text_to_image(
        self,
        text: Tensor,
        text_mask: Tensor,
        image: Tensor,
        text_attended: Tensor,
        image_attended: Tensor,
    ) -> Tensor:
        """Return the cross-attention probabilities of the last text layer.

        The result (batch, heads, text tokens, image tokens) has at least float32 precision, and
        each row sums to 1. Arguments are those of `forward`.
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
        """Run all layers but the last.

        Returns both streams and their self-attention in the last layer. That is known only if the
        encoder has a single layer, and None otherwise.
        """
        attended: tuple[Tensor | None, Tensor | None] = (text_attended, image_attended)
        *before, _ = zip(self.text_layers, self.image_layers, strict=True)
        for text_layer, image_layer in before:
            # Both at once: each layer must read the previous output of the other stream.
            text, image = (
                text_layer(text, mask, image, None, attended[0]),
                image_layer(image, None, text, mask, attended[1]),
            )
            attended = (None, None)
        return text, image, attended

    def _mask(self, text: Tensor, text_mask: Tensor) -> Tensor:
        return padding_mask(text_mask, self.layer_config, text.dtype)


class CoAttentionLayer(RobertaLayer):
    """One layer of a stream: self-attention, cross-attention to the other stream, feed-forward."""

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        other: Tensor | None = None,
        other_mask: Tensor | None = None,
        attended: Tensor | None = None,
        need: Need = "all",
    ) -> Tensor:
        """Compute the needed states of the next layer from tokens (batch, tokens, width).

        `attended` is the self-attention, if it is known already. Without `other`, the result is
        the self-attention alone.
        """
        nothing_needed = need.shape[1] == 0 if isinstance(need, Tensor) else need == "none"
        if nothing_needed:
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
