"""The space in which patches, pictures and labels meet, and what is fitted in it on base labels.

In: patches of the tower and text features of labels. Out: vectors of one width. Either the
contrastive space of the model itself, whose head is applied to every patch (nothing is trained but
a scale and a bias), or two linear maps learned from base labels. Source: Yan et al., ACM TOMM
(arXiv 2412.13732), with word vectors in the place of texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from data_pipeline.errors import DataError
from eval.encoding.encoders import Encoder

from .loss_change import joint_logits

SCALE = 20.0
_JOINT_WIDTH = 512
_BATCH = 256


@dataclass(frozen=True)
class Labelled:
    """Pictures with their labels: patches (pictures, patches, width), truth (pictures, labels), texts of the labels.

    ``proj`` (pictures, projection) are the pictures' contrastive features, ``text`` (labels,
    projection) the labels'; ``media`` is the same for copies.
    """

    names: tuple[str, ...]
    keys: list[str]
    media: list[str]
    patch: Tensor
    proj: Tensor
    truth: NDArray[np.bool_]
    text: Tensor

    def subset(self, rows: NDArray[np.int64], labels: NDArray[np.int64] | None = None) -> Labelled:
        """Take some pictures, and where given some labels alone."""
        columns = np.arange(len(self.names)) if labels is None else labels
        return Labelled(
            names=tuple(self.names[column] for column in columns),
            keys=[self.keys[row] for row in rows],
            media=[self.media[row] for row in rows],
            patch=self.patch[rows],
            proj=self.proj[rows],
            truth=self.truth[np.ix_(rows, columns)],
            text=self.text[columns],
        )

    def present(self, rows: NDArray[np.int64] | slice = slice(None)) -> Tensor:
        """Return the truth of some pictures as 0 and 1."""
        return torch.from_numpy(self.truth[rows]).float()


@dataclass(frozen=True)
class Logistic:
    """What turns scores into logits: a scale above 0 and a bias; ``fitted`` is False where scores said nothing."""

    scale: float
    bias: float
    fitted: bool

    @classmethod
    def fit(cls, scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> Logistic:
        """Fit one scale and one bias to scores and truth of any equal form.

        Where higher scores do not go with presence, the scale stays 1 and the bias gives the
        labels' share. Raises DataError if all is present or none.
        """
        if truth.all() or not truth.any():
            raise DataError(
                "pictures of --base have all of its labels or none, so that nothing tells a label that is there from "
                "one that is not: add pictures to --base that have some of them"
            )
        found = LogisticRegression().fit(scores.reshape(-1, 1), truth.ravel())
        scale, bias = float(found.coef_[0, 0]), float(found.intercept_[0])
        if scale > 0:
            return cls(scale, bias, True)
        share = truth.mean()
        return cls(1.0, float(np.log(share / (1 - share)) - scores.mean()), False)


class Projection(nn.Module):
    """An encoder's own map into its joint space, which is not trained."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.project = encoder.project

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., width) to (..., projection) on the CPU."""
        with torch.no_grad():
            return self.project(tokens).float().cpu()


class JointSpace(nn.Module):
    """Maps patches and texts into one space, where the logit of a pair is ``scale * (1 - distance) + bias``."""

    def __init__(self, vision: nn.Module, text: nn.Module, scale: float = SCALE, bias: float = 0.0):
        super().__init__()
        self.vision, self.text = vision, text
        self.scale, self.bias = scale, bias

    @classmethod
    def learned(
        cls, width: int, text_width: int, joint: int = _JOINT_WIDTH, *, seed: int
    ) -> JointSpace:
        """Make a space of two linear maps, to be trained by `fit_joint`."""
        generator = torch.Generator().manual_seed(seed)
        vision, text = (nn.Linear(wide, joint, bias=False) for wide in (width, text_width))
        for each in (vision, text):
            nn.init.normal_(each.weight, std=each.in_features**-0.5, generator=generator)
        return cls(vision, text)

    def logits(self, a: Tensor, b: Tensor) -> Tensor:
        """Logits (..., n, c) of vectors (..., n, width) and (c, width) of the space."""
        return joint_logits(a, b, self.scale, self.bias)

    @torch.no_grad()
    def local(self, patch: Tensor, at_once: int = 256) -> Tensor:
        """Map patches (pictures, patches, width) without gradients, some pictures at once, to float32."""
        return torch.cat([self.vision(part.float()) for part in patch.split(at_once)])

    @torch.no_grad()
    def pooled(self, patch: Tensor, at_once: int = 256) -> Tensor:
        """Mean of every picture's mapped patches (pictures, width), without gradients."""
        return torch.cat([self.vision(part.float()).mean(1) for part in patch.split(at_once)])

    def fit_scale(self, data: Labelled) -> bool:
        """Fit scale and bias to base pictures and their labels' texts; False, and nothing done, where they disagree."""
        with torch.no_grad():
            closeness = joint_logits(self.pooled(data.patch), self.text(data.text), 1.0)
        fitted = Logistic.fit(closeness.double().numpy(), data.truth)
        if fitted.fitted:
            self.scale, self.bias = fitted.scale, fitted.bias
        return fitted.fitted


def fit_joint(
    space: JointSpace, data: Labelled, *, epochs: int = 30, lr: float = 2e-3, seed: int = 0
) -> list[float]:
    """Train the maps by binary cross-entropy of pictures (mean of patches) and all base labels; the loss by epoch."""
    pooled = torch.cat(
        [part.float().mean(1) for part in data.patch.split(_BATCH)]
    )  # a linear map keeps means
    present = data.present()
    adam = torch.optim.Adam(space.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(pooled), generator=generator).split(_BATCH):
            logits = space.logits(space.vision(pooled[rows]), space.text(data.text))
            loss = F.binary_cross_entropy_with_logits(logits, present[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += loss.item() * len(rows)
        losses.append(total / len(pooled))
    return losses
