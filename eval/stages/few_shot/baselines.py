"""Baselines of GLIML: few-shot classification with an encoder's features and no trained head.

Every method has ``logits(support, support_y, query, way, class_text)``. In: support and query
tokens of an episode, or of several episodes along a leading dimension, which then share
``support_y``; unit features of the classes' names (..., way, projection). Out: logits
(..., queries, way); the largest decides.
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

# The scale of CLIP's logits, which the published adapters assume.
SCALE = 100.0


class Method(Protocol):
    """Classifies the queries of an episode."""

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
    """The class whose name, put into sentences, is closest to the image; support is not used."""

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
    """The class of the support image whose class token has the highest cosine."""

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
        by_class = []
        for class_index in range(way):
            by_class.append(cosines[..., support_y == class_index].amax(dim=-1))
        return torch.stack(by_class, dim=-1)


@dataclass(frozen=True)
class Proto:
    """ProtoNet (Snell et al., 2017) on class tokens: the class with the closest mean."""

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
    """SimpleShot (Wang et al., 2019), CL2N: the class with the closest mean of centred tokens.

    A mean is subtracted from class tokens, which are then scaled to unit length. ``centre``
    (width,) is the mean over the base images; without it the mean of the episode's support is
    subtracted.
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
        # Never the mean of queries: a query must not be helped by the other queries.
        centre = support.cls.mean(dim=-2, keepdim=True) if self.centre is None else self.centre
        means = class_means(F.normalize(support.cls - centre, dim=-1), support_y, way)
        return -torch.cdist(F.normalize(query.cls - centre, dim=-1), means).square()


@dataclass(frozen=True)
class TipAdapter:
    """Tip-Adapter without training (Zhang et al., 2022): 100 f W + alpha exp(-beta (1 - f F^T)) V.

    f is the unit feature of the query, W those of the classes' names, F those of the support with
    one-hot classes V. ``alpha`` and ``beta`` are chosen on validation episodes.
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
        affinity = torch.exp(-self.beta * (1 - _proj(query) @ _proj(support).mT))
        by_name = SCALE * _proj(query) @ _text(class_text).mT
        return by_name + self.alpha * affinity @ F.one_hot(support_y, way).float()

    @classmethod
    def grid(cls) -> Iterator[Self]:
        """Yield all settings that are tried on validation episodes."""
        alphas = (0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
        betas = (1.0, 3.0, 5.5, 10.0, 30.0, 100.0)
        for alpha, beta in product(alphas, betas):
            yield cls(alpha, beta)


@dataclass(frozen=True)
class LinearProbe:
    """Linear classifier on unit features that starts at the classes' names.

    It is ZS-LP of Silva-Rodriguez et al. (2024): full-batch gradient descent on the cross-entropy
    of the support. ``learning_rate`` and ``steps`` are chosen on validation episodes, because too
    many steps forget the names.
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
        features, weights = _proj(support), _text(class_text)
        truth = F.one_hot(support_y, way).float()
        for _ in range(self.steps):
            # The gradient of the cross-entropy, written out: that works for several episodes at
            # once, and also where autograd is off.
            error = (SCALE * features @ weights.mT).softmax(dim=-1) - truth
            weights = weights - self.learning_rate * SCALE / len(support_y) * error.mT @ features
        return SCALE * _proj(query) @ weights.mT

    @classmethod
    def grid(cls) -> Iterator[Self]:
        """Yield all settings that are tried on validation episodes."""
        # Small settings first: of equal accuracies the first setting is chosen.
        for learning_rate, steps in product((1e-5, 1e-4, 1e-3, 1e-2), (10, 30, 100)):
            yield cls(learning_rate, steps)


def class_means(features: Tensor, classes: Tensor, way: int) -> Tensor:
    """Return the means (..., way, width) of support features (..., n, width) by class."""
    members = F.one_hot(classes, way).to(features.dtype)
    # A product instead of an index, so that it works for several episodes at once.
    return (members / members.sum(dim=0)).mT @ features


# Both errors are for callers from Python: the stage leaves out methods that cannot run.
def _proj(tokens: EpisodeTokens) -> Tensor:
    if tokens.proj is None:
        raise ValueError("the encoder has no contrastive space")
    return tokens.proj


def _text(class_text: Tensor | None) -> Tensor:
    if class_text is None:
        raise ValueError("the encoder has no joint space with texts")
    return class_text
