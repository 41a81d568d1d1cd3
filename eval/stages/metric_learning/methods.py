"""Descriptors that are compared on the same pictures: frozen ones, the trained head, and the head without its parts.

In: tokens. Out: for frozen methods a descriptor for each picture, for trained ones a new embedder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.encoding.labelled_images import ImageTokens

from .heads.dolg import DOLGHead
from .heads.gdfl import Attention, GDFLEmbedder
from .heads.parts import PartHead, part_descriptor
from .heads.vitgal import ViTGaLHead
from .options import Head

FROZEN = ("frozen_cls", "frozen_mean_patch", "frozen_proj", "frozen_parts")


@dataclass(frozen=True)
class Trained:
    """A method that learns: ``build`` makes a new embedder; ``adversary`` says whether it has one."""

    name: str
    build: Callable[[], nn.Module]
    adversary: bool


def frozen_descriptors(tokens: ImageTokens, parts: int = 0) -> dict[str, Tensor]:
    """Return the unit descriptors (pictures, size) that need no training.

    The class token, the mean patch, the contrastive feature, and with ``parts`` the class token of
    the last block joined to the mean patches of so many bands of rows. Raises UsageError where
    there are more parts than rows.
    """
    found = {"frozen_cls": tokens.cls, "frozen_mean_patch": tokens.patch.float().mean(dim=1)}
    if tokens.proj is not None:
        found["frozen_proj"] = tokens.proj
    if parts:
        found["frozen_parts"] = part_descriptor(
            tokens.layers[max(tokens.layers)], tokens.grid, parts
        )
    return {name: F.normalize(values.float(), dim=1) for name, values in found.items()}


def trained_methods(
    head: Head,
    dim: int,
    layers: tuple[int, ...],
    *,
    embed_dim: int,
    per_layer_dim: int,
    parts: int,
    adversary: bool,
) -> list[Trained]:
    """Return the head, and what it is compared with: no adversary, and for `gdfl` its last block alone, no attention.

    DOLG's local features are of the last block but one.
    """

    def gdfl(
        chosen: tuple[int, ...] = layers, attention: Attention = "spatial"
    ) -> Callable[[], nn.Module]:
        return lambda: GDFLEmbedder(dim, chosen, per_layer_dim, embed_dim, attention)

    builders: dict[Head, Callable[[], nn.Module]] = {
        "gdfl": gdfl(),
        "dolg": lambda: DOLGHead(dim, layers[-2:][0], layers[-1], embed_dim),
        "vitgal": lambda: ViTGaLHead(dim, layers[-1], embed_dim),
        "parts": lambda: PartHead(dim, layers[-1], parts, per_layer_dim),
    }
    methods = [Trained(head, builders[head], adversary)]
    if adversary:
        methods.append(Trained("no_adversary", builders[head], False))
    if head == "gdfl":
        methods.append(Trained("last_layer_only", gdfl(layers[-1:]), adversary))
        methods.append(Trained("no_attention", gdfl(attention="mean"), adversary))
    return methods


def seeded(build: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """Build an embedder whose first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(device)
