"""What GLIML has to beat: recognition from few examples with an encoder's own features and no trained head.

Every method has ``logits(support, support_y, query, way, class_text)``: an episode's support and
query tokens (or those of several episodes, with a leading dimension; they share ``support_y``), and
unit features of the classes' names (..., way, projection). It returns (..., queries, way); the
largest decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .episode_tokens import EpisodeTokens

SCALE = 100.0  # CLIP's, which the published adapters assume


class Method(Protocol):
    """Recognises the queries of an episode."""

    def logits(
        self,
        support: EpisodeTokens,
        support_y: Tensor,
        query: EpisodeTokens,
        way: int,
        class_text: Tensor | None = None,
    ) -> Tensor:
        """Score every query for every class, (..., queries, way)."""


@dataclass(frozen=True)
class ZeroShot:
    """The class whose name, put into sentences, is closest to the picture; the support pictures are not used."""

    def logits(
        self,
        support: EpisodeTokens,
        support_y: Tensor,
        query: EpisodeTokens,
        way: int,
        class_text: Tensor | None = None,
    ) -> Tensor:
        """Return scaled cosines (..., queries, way)."""
        return SCALE * _proj(query) @ _text(class_text).mT


@dataclass(frozen=True)
class NearestNeighbour:
    """The class of the support picture whose class token has the highest cosine."""

    def logits(
        self,
        support: EpisodeTokens,
        support_y: Tensor,
        query: EpisodeTokens,
        way: int,
        class_text: Tensor | None = None,
    ) -> Tensor:
        """Return for each class the highest cosine, (..., queries, way)."""
        cosines = F.normalize(query.cls, dim=-1) @ F.normalize(support.cls, dim=-1).mT
        return torch.stack(
            [cosines[..., support_y == one].amax(dim=-1) for one in range(way)], dim=-1
        )


@dataclass(frozen=True)
class Proto:
    """ProtoNet (Snell et al., 2017) on class tokens: the class whose mean is closest in squared Euclidean distance."""

    def logits(
        self,
        support: EpisodeTokens,
        support_y: Tensor,
        query: EpisodeTokens,
        way: int,
        class_text: Tensor | None = None,
    ) -> Tensor:
        """Return negative squared distances (..., queries, way)."""
        return -torch.cdist(query.cls, class_means(support.cls, support_y, way)).square()


@dataclass(frozen=True)
class SimpleShot:
    """SimpleShot (Wang et al., 2019), CL2N: class tokens minus a mean, made unit length, then the nearest class mean.

    ``centre`` (width,) is the mean over the base pictures; where there are none it is that of the
    episode's support.
    """

    centre: Tensor | None = None

    def logits(
        self,
        support: EpisodeTokens,
        support_y: Tensor,
        query: EpisodeTokens,
        way: int,
        class_text: Tensor | None = None,
    ) -> Tensor:
        """Return negative squared distances (..., queries, way)."""
        centre = support.cls.mean(dim=-2, keepdim=True) if self.centre is None else self.centre
        means = class_means(F.normalize(support.cls - centre, dim=-1), support_y, way)
        return -torch.cdist(F.normalize(query.cls - centre, dim=-1), means).square()


@dataclass(frozen=True)
class TipAdapter:
    """Tip-Adapter without training (Zhang et al., 2022): 100 f W + alpha exp(-beta (1 - f F^T)) V.

    f is the query's unit feature, W the classes' names, F the support features with one-hot classes
    V. ``alpha`` and ``beta`` are chosen on validation episodes.
    """

    alpha: float
    beta: float

    def logits(
        self,
        support: EpisodeTokens,
        support_y: Tensor,
        query: EpisodeTokens,
        way: int,
        class_text: Tensor | None = None,
    ) -> Tensor:
        """Return logits (..., queries, way)."""
        close = torch.exp(-self.beta * (1 - _proj(query) @ _proj(support).mT))
        return (
            SCALE * _proj(query) @ _text(class_text).mT
            + self.alpha * close @ F.one_hot(support_y, way).float()
        )

    @classmethod
    def grid(cls) -> Iterator[Self]:
        """Yield all settings that are tried on validation episodes."""
        for alpha, beta in product(
            (0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0), (1.0, 3.0, 5.5, 10.0, 30.0, 100.0)
        ):
            yield cls(alpha, beta)


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier on unit features, started at the classes' names (ZS-LP of Silva-Rodriguez et al., 2024).

    Full-batch gradient descent on the support's cross-entropy; ``learning_rate`` and ``steps`` are
    chosen on validation episodes, because too many steps forget the names.
    """

    learning_rate: float
    steps: int

    def logits(
        self,
        support: EpisodeTokens,
        support_y: Tensor,
        query: EpisodeTokens,
        way: int,
        class_text: Tensor | None = None,
    ) -> Tensor:
        """Return logits (..., queries, way)."""
        features, wanted, weights = (
            _proj(support),
            F.one_hot(support_y, way).float(),
            _text(class_text),
        )
        for _ in range(self.steps):
            wrong = (SCALE * features @ weights.mT).softmax(dim=-1) - wanted
            weights = weights - self.learning_rate * SCALE / len(support_y) * wrong.mT @ features
        return SCALE * _proj(query) @ weights.mT

    @classmethod
    def grid(cls) -> Iterator[Self]:
        """Yield all settings that are tried on validation episodes."""
        for learning_rate, steps in product((1e-5, 1e-4, 1e-3, 1e-2), (10, 30, 100)):
            yield cls(learning_rate, steps)


def class_means(features: Tensor, classes: Tensor, way: int) -> Tensor:
    """Mean of the support's features (..., n, width) of each class, (..., way, width)."""
    own = F.one_hot(classes, way).to(features.dtype)
    return (own / own.sum(dim=0)).mT @ features


def _proj(tokens: EpisodeTokens) -> Tensor:
    if tokens.proj is None:
        raise ValueError("the encoder has no contrastive space")
    return tokens.proj


def _text(class_text: Tensor | None) -> Tensor:
    if class_text is None:
        raise ValueError("the encoder has no joint space with texts")
    return class_text
