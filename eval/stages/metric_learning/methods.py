"""The descriptors that are compared: frozen ones, the trained head, and the head's ablations.

In: tokens. Out: for frozen methods a descriptor of each image, for trained ones a new embedder.
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
    """A method that learns.

    ``build`` makes a new embedder; ``adversary`` says whether it is trained with one.
    """

    name: str
    build: Callable[[], nn.Module]
    adversary: bool


def frozen_descriptors(tokens: ImageTokens, parts: int = 0) -> dict[str, Tensor]:
    """Return the unit descriptors (images, size) that need no training, by method.

    They are the class token, the mean patch, the contrastive feature if there is one, and with
    ``parts`` the class token of the last block joined to the mean patch of each band of rows.
    Raises UsageError if there are more parts than rows.
    """
    descriptors = {"frozen_cls": tokens.cls, "frozen_mean_patch": tokens.patch.float().mean(dim=1)}
    if tokens.proj is not None:
        descriptors["frozen_proj"] = tokens.proj
    if parts:
        last_block = tokens.layers[max(tokens.layers)]
        descriptors["frozen_parts"] = part_descriptor(last_block, tokens.grid, parts)
    return {name: F.normalize(values.float(), dim=1) for name, values in descriptors.items()}


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
    """Return the head first, then its ablations.

    All heads are also trained without the adversary; `gdfl` also with its last block alone, and
    with mean pooling in place of attention.

    Parameters
    ----------
    head
        Name of the head.
    dim, layers
        Width of the tower's tokens, and the blocks whose tokens are read.
    embed_dim, per_layer_dim, parts
        Sizes, as the options say.
    adversary
        Whether the head is trained with an adversary.
    """

    def gdfl(blocks: tuple[int, ...], attention: Attention) -> Callable[[], nn.Module]:
        return lambda: GDFLEmbedder(dim, blocks, per_layer_dim, embed_dim, attention)

    # DOLG takes local features from the last block but one; with a single block, from that one.
    local_layer = layers[-2:][0]
    builders: dict[Head, Callable[[], nn.Module]] = {
        "gdfl": gdfl(layers, "spatial"),
        "dolg": lambda: DOLGHead(dim, local_layer, layers[-1], embed_dim),
        "vitgal": lambda: ViTGaLHead(dim, layers[-1], embed_dim),
        "parts": lambda: PartHead(dim, layers[-1], parts, per_layer_dim),
    }
    methods = [Trained(head, builders[head], adversary)]
    # Without an adversary the head itself is this method already.
    if adversary:
        methods.append(Trained("no_adversary", builders[head], False))
    if head == "gdfl":
        methods.append(Trained("last_layer_only", gdfl(layers[-1:], "spatial"), adversary))
        methods.append(Trained("no_attention", gdfl(layers, "mean"), adversary))
    return methods


def seeded(build: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """Build an embedder whose first weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(device)
