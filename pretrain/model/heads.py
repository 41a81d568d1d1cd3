"""Heads on the towers and on the fused states: contrastive, masked-language, classifier."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Pooler(nn.Module):
    """Mean over tokens, linear layer, tanh: (batch, tokens, width) -> (batch, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool the given tokens: `<s>`, or the class tokens of all frames."""
        return self.dense(tokens.mean(1)).tanh()


class TorchLinear(nn.Linear):
    """A linear layer with torch's default initialization, as in the authors' contrastive heads."""


def contrastive_head(kind: str, width: int, projection: int) -> nn.Module:
    """Make a head from class tokens (batch, width) to contrastive features (batch, projection).

    "mlp" is the authors' head. "linear" is one matrix without bias, as in stock dual encoders. The
    features are not normalized.
    """
    if kind == "linear":
        return TorchLinear(width, projection, bias=False)
    return nn.Sequential(
        TorchLinear(width, width), nn.LayerNorm(width), nn.GELU(), TorchLinear(width, projection)
    )


def classifier(width: int, images: int, labels: int) -> nn.Module:
    """Make METER's classifier: pooled pairs (batch, images * 2 width) to logits (batch, labels)."""
    inner = 2 * width
    return nn.Sequential(
        nn.Linear(images * inner, inner), nn.LayerNorm(inner), nn.GELU(), nn.Linear(inner, labels)
    )


class MaskedLanguageHead(nn.Module):
    """Logits over the vocabulary from fused text states: (tokens, width) -> (tokens, words).

    With `embedding`, the decoder is that word embedding plus its own bias.
    """

    def __init__(self, width: int, vocabulary: int, embedding: nn.Embedding | None = None):
        super().__init__()
        self.transform = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12)
        )
        self.decoder = (
            nn.Linear(width, vocabulary) if embedding is None else _TiedDecoder(embedding)
        )

    def forward(self, states: Tensor) -> Tensor:
        """Score every word of the vocabulary."""
        return self.decoder(self.transform(states))


class _TiedDecoder(nn.Module):
    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        # In a tuple, which torch does not search for modules: the embedding must appear only once
        # in the state dict and in the optimizer, as part of the text tower.
        self.embedding = (embedding,)
        self.bias = nn.Parameter(embedding.weight.new_zeros(embedding.num_embeddings))

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.embedding[0].weight, self.bias)
