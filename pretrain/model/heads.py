"""Heads on the towers and on the fused states."""

from __future__ import annotations

from torch import Tensor, nn


class Pooler(nn.Module):
    """First token -> linear -> tanh: (batch, tokens, width) -> (batch, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool the first token."""
        return self.dense(tokens[:, 0]).tanh()


class TorchLinear(nn.Linear):
    """A linear layer that keeps torch's default initialisation, as the authors' contrastive heads do."""


class ContrastiveHead(nn.Sequential):
    """Projected class token -> contrastive feature, not normalised: (batch, width) -> (batch, projection)."""

    def __init__(self, width: int, projection: int):
        super().__init__(TorchLinear(width, width), nn.LayerNorm(width), nn.GELU(), TorchLinear(width, projection))


class MaskedLanguageHead(nn.Module):
    """Fused text states -> vocabulary logits, not tied to the word embedding: (tokens, width) -> (tokens, words)."""

    def __init__(self, width: int, vocabulary: int):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width, eps=1e-12))
        self.decoder = nn.Linear(width, vocabulary)

    def forward(self, states: Tensor) -> Tensor:
        """Score every word of the vocabulary."""
        return self.decoder(self.transform(states))
