"""Run a method on many episodes at once, and choose a method's settings by validation episodes.

In: a method, the tokens of a data set and episodes of it. Out: predicted classes, accuracies, the
best of several settings, and what one episode costs.
"""

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

_EPISODES_AT_ONCE = 100
# Methods with patches relate every patch of a query to every patch of a support image, which takes
# much more memory than one vector per image.
_EPISODES_AT_ONCE_WITH_PATCHES = 8


def distance_flops(
    left: torch.Size, right: torch.Size, *_: object, out_shape: torch.Size, **__: object
) -> int:
    """Count distances as the matrix product that they need; torch does not count them at all."""
    return 2 * out_shape.numel() * left[-1]


DISTANCES = {
    torch.ops.aten._cdist_forward: distance_flops,
    torch.ops.aten._euclidean_dist: distance_flops,
}
"""Custom mapping that lets a `FlopCounterMode` count distances."""

AnyMethod = TypeVar("AnyMethod", bound=Method)


@dataclass(frozen=True)
class World:
    """Images with one class each; ``texts`` are unit features of the classes' names, if any."""

    tokens: ImageTokens
    labels: list[str]
    texts: Mapping[str, Tensor] | None

    def class_text(self, episodes: Sequence[Episode]) -> Tensor | None:
        """Return features of the names of each episode's classes (episodes, way, projection)."""
        if self.texts is None:
            return None
        by_episode = []
        for episode in episodes:
            by_episode.append(torch.stack([self.texts[name] for name in episode.classes]))
        return torch.stack(by_episode)


@dataclass(frozen=True)
class Predictions:
    """Indices of predicted classes (episodes, queries).

    ``constant`` says that every query got equal scores for all classes.
    """

    predicted: NDArray[np.int64]
    constant: bool


@torch.no_grad()
def classify(
    method: Method, world: World, episodes: Sequence[Episode], name: str = "the method"
) -> Predictions:
    """Classify the queries of episodes of one form; among equal scores the first class wins.

    Raises
    ------
    NumericsError
        If a score is not finite; the message has the method's ``name``.
    """
    predicted, constant = [], True
    # Only methods with weights read patches; the others read one vector per image.
    reads_patches = isinstance(method, nn.Module)
    at_once = _EPISODES_AT_ONCE_WITH_PATCHES if reads_patches else _EPISODES_AT_ONCE
    for start in range(0, len(episodes), at_once):
        batch = episodes[start : start + at_once]
        support_rows = np.stack([episode.support for episode in batch])
        query_rows = np.stack([episode.query for episode in batch])
        support = EpisodeTokens.of(world.tokens, support_rows, patches=reads_patches)
        query = EpisodeTokens.of(world.tokens, query_rows, patches=reads_patches)
        # Episodes of one form list their classes alike, so one tensor serves all of them.
        support_y = torch.from_numpy(batch[0].support_y)
        way = len(batch[0].classes)
        logits = method.logits(support, support_y, query, way, world.class_text(batch))
        if not torch.isfinite(logits).all():
            raise NumericsError(
                f"{name} gives scores that are not finite in episodes {start} to "
                f"{start + len(batch)}"
            )
        constant = constant and bool((logits == logits[..., :1]).all())
        predicted.append(logits.argmax(dim=-1).numpy())
    return Predictions(np.concatenate(predicted), constant)


def accuracy(method: Method, world: World, episodes: Sequence[Episode]) -> float:
    """Return the percentage of queries that the method classifies right."""
    truth = np.stack([episode.query_y for episode in episodes])
    return 100 * float((classify(method, world, episodes).predicted == truth).mean())


def best_on_validation(
    candidates: Iterable[AnyMethod], world: World, episodes: Sequence[Episode]
) -> tuple[AnyMethod, float]:
    """Return the candidate with the highest accuracy, the first of equals, and its accuracy."""
    results = [(method, accuracy(method, world, episodes)) for method in candidates]
    return max(results, key=lambda result: result[1])


@torch.no_grad()
def cost(method: Method, world: World, episode: Episode) -> dict[str, int]:
    """Count a method's learned parameters and the floating-point operations of one episode.

    Operations are those of matrix products and distances; torch counts no others.
    """
    support = EpisodeTokens.of(world.tokens, episode.support)
    query = EpisodeTokens.of(world.tokens, episode.query)
    texts = world.class_text([episode])
    text = None if texts is None else texts[0]
    support_y = torch.from_numpy(episode.support_y)
    with FlopCounterMode(display=False, custom_mapping=DISTANCES) as counter:
        method.logits(support, support_y, query, len(episode.classes), text)
    parameters = 0
    if isinstance(method, nn.Module):
        for weight in method.parameters():
            # Frozen weights, as of GLIML without training, are not learned.
            if weight.requires_grad:
                parameters += weight.numel()
    return {"parameters": parameters, "flops_per_episode": int(counter.get_total_flops())}
