"""The descriptors that are compared on the same pictures: frozen ones, the trained head, and the head without its parts.

In: tokens. Out: for frozen methods a descriptor for each picture, for trained ones a new embedder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.errors import UsageError
from eval.tokens import ImageTokens

from .embedding import GDFLEmbedder

Head = Literal["gdfl", "dolg", "vitgal"]
HEADS = ("gdfl", "dolg", "vitgal")
FROZEN = ("frozen_cls", "frozen_mean_patch", "frozen_proj")


@dataclass(frozen=True)
class Trained:
    """A method that learns: ``build`` makes a new embedder; ``adversary`` says whether it has one."""

    name: str
    build: Callable[[], nn.Module]
    adversary: bool


def frozen_descriptors(tokens: ImageTokens) -> dict[str, Tensor]:
    """Return the unit descriptors (pictures, size) that need no training: class token, mean patch, contrastive."""
    found = {"frozen_cls": tokens.cls, "frozen_mean_patch": tokens.patch.float().mean(dim=1)}
    if tokens.proj is not None:
        found["frozen_proj"] = tokens.proj
    return {name: F.normalize(values.float(), dim=1) for name, values in found.items()}


def trained_methods(head: Head, dim: int, layers: tuple[int, ...], sizes: dict[str, Any]) -> list[Trained]:
    """Return the head, and what it is compared with: no adversary, and for `gdfl` its last block alone, no attention.

    ``sizes`` are further arguments of the head. Raises UsageError for an unknown head.
    """
    if head not in HEADS:
        raise UsageError(f"head is {head!r}, must be one of {', '.join(HEADS)}")
    if head != "gdfl":
        raise UsageError(f"{head} is not there yet")

    def gdfl(layers: tuple[int, ...] = layers, **changed: Any) -> Callable[[], nn.Module]:
        return lambda: GDFLEmbedder(dim, layers, **(sizes | changed))

    return [
        Trained("gdfl", gdfl(), True),
        Trained("no_adversary", gdfl(), False),
        Trained("last_layer_only", gdfl(layers[-1:]), True),
        Trained("no_attention", gdfl(attention="mean"), True),
    ]


def seeded(build: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """Build an embedder whose first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(device)
