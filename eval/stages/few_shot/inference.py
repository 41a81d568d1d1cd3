"""Run a method on many episodes at once, and choose between settings of a method by validation episodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.errors import NumericsError
from eval.encoding.labelled_images import ImageTokens
from eval.stages.few_shot.episodes import Episode

from .baselines import Method
from .episode_tokens import EpisodeTokens

_AT_ONCE = 100
_AT_ONCE_WITH_PATCHES = 8  # their relations between all patches take much memory


def distance_flops(
    left: torch.Size, right: torch.Size, *_: object, out_shape: torch.Size, **__: object
) -> int:
    """Count a product's operations for distances, of which torch counts none."""
    return 2 * out_shape.numel() * left[-1]


DISTANCES = {
    torch.ops.aten._cdist_forward: distance_flops,
    torch.ops.aten._euclidean_dist: distance_flops,
}
"""What a `FlopCounterMode` must be told to count distances."""

AnyMethod = TypeVar("AnyMethod", bound=Method)


@dataclass(frozen=True)
class World:
    """Pictures with one class each, ``texts`` the unit features of the classes' names where there are any."""

    tokens: ImageTokens
    labels: list[str]
    texts: Mapping[str, Tensor] | None

    def class_text(self, episodes: Sequence[Episode]) -> Tensor | None:
        """Return the names' features (episodes, way, projection)."""
        if self.texts is None:
            return None
        return torch.stack(
            [torch.stack([self.texts[name] for name in episode.classes]) for episode in episodes]
        )


@dataclass(frozen=True)
class Recognised:
    """Predicted places of classes (episodes, queries); ``constant`` where every query got equal scores."""

    predicted: NDArray[np.int64]
    constant: bool


@torch.no_grad()
def recognise(
    method: Method, world: World, episodes: Sequence[Episode], name: str = "the method"
) -> Recognised:
    """Classify the queries of episodes of one form; of equal scores the first class counts.

    Raises
    ------
    NumericsError
        If a score is not finite; the message has the method's ``name``.
    """
    found, constant = [], True
    heads = isinstance(
        method, nn.Module
    )  # what has weights reads patches; the others read one vector a picture
    at_once = _AT_ONCE_WITH_PATCHES if heads else _AT_ONCE
    for start in range(0, len(episodes), at_once):
        some = episodes[start : start + at_once]
        support = EpisodeTokens.of(world.tokens, np.stack([e.support for e in some]), patches=heads)
        query = EpisodeTokens.of(world.tokens, np.stack([e.query for e in some]), patches=heads)
        classes = torch.from_numpy(some[0].support_y)
        logits = method.logits(
            support, classes, query, len(some[0].classes), world.class_text(some)
        )
        if not torch.isfinite(logits).all():
            raise NumericsError(
                f"{name} gives scores that are not finite in episodes {start} to {start + len(some)}"
            )
        constant = constant and bool((logits == logits[..., :1]).all())
        found.append(logits.argmax(dim=-1).numpy())
    return Recognised(np.concatenate(found), constant)


def accuracy(method: Method, world: World, episodes: Sequence[Episode]) -> float:
    """Share of queries that are recognised, in percent."""
    truth = np.stack([episode.query_y for episode in episodes])
    return 100 * float((recognise(method, world, episodes).predicted == truth).mean())


def choose(
    candidates: Iterable[AnyMethod], world: World, episodes: Sequence[Episode]
) -> tuple[AnyMethod, float]:
    """Return the method that recognises most on validation episodes, of equals the first, and its accuracy."""
    tried = [(method, accuracy(method, world, episodes)) for method in candidates]
    return max(tried, key=lambda one: one[1])


@torch.no_grad()
def cost(method: Method, world: World, episode: Episode) -> dict[str, int]:
    """Count the parameters that a method learned, and the floating-point operations of one episode.

    They are those of products of matrices and of distances; torch counts no others.
    """
    support, query = (
        EpisodeTokens.of(world.tokens, rows) for rows in (episode.support, episode.query)
    )
    text = world.class_text([episode])
    with FlopCounterMode(display=False, custom_mapping=DISTANCES) as counter:
        classes = torch.from_numpy(episode.support_y)
        method.logits(
            support, classes, query, len(episode.classes), None if text is None else text[0]
        )
    learned = list(method.parameters()) if isinstance(method, nn.Module) else []
    weights = sum(each.numel() for each in learned if each.requires_grad)
    return {"parameters": weights, "flops_per_episode": int(counter.get_total_flops())}
