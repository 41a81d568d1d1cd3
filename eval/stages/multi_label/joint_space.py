"""The space in which patches, images and labels are compared, and its fit to base labels.

In: patches of the vision tower and text features of labels. Out: vectors of one width. The space is
either the contrastive space of the model, whose head is applied to every patch (only a scale and a
bias are fitted), or that of two linear maps learned from base labels. Source: Yan et al., ACM TOMM
(arXiv 2412.13732), which has word vectors instead of text features.
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

# Scale of the logits unless it is fitted to base labels.
SCALE = 20.0
_JOINT_WIDTH = 512
_BATCH = 256


@dataclass(frozen=True)
class Labelled:
    """Images with their labels: ``patch`` (images, patches, width), ``truth`` (images, labels).

    ``proj`` (images, projection) are contrastive features of the images, ``text`` (labels,
    projection) those of the labels; ``media`` is a hash, equal for copies of an image.
    """

    names: tuple[str, ...]
    keys: list[str]
    media: list[str]
    patch: Tensor
    proj: Tensor
    truth: NDArray[np.bool_]
    text: Tensor

    def subset(self, rows: NDArray[np.int64], labels: NDArray[np.int64] | None = None) -> Labelled:
        """Take images ``rows``, with all labels or only the columns ``labels``."""
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
        """Return the truth of images as 0 and 1 (images, labels)."""
        return torch.from_numpy(self.truth[rows]).float()


@dataclass(frozen=True)
class Logistic:
    """A scale above 0 and a bias that turn scores into logits.

    ``fitted`` is False if higher scores do not go with presence of the label.
    """

    scale: float
    bias: float
    fitted: bool

    @classmethod
    def fit(cls, scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> Logistic:
        """Fit one scale and one bias to scores and truth of any equal shape.

        If higher scores do not go with presence, the scale stays 1 and the bias gives the share of
        present labels.

        Raises
        ------
        DataError
            If all labels are present or none.
        """
        if truth.all() or not truth.any():
            raise DataError(
                "images of --base have all of its labels or none, so that presence of a label "
                "cannot be learned: add images to --base that have some of them"
            )
        regression = LogisticRegression().fit(scores.reshape(-1, 1), truth.ravel())
        scale, bias = float(regression.coef_[0, 0]), float(regression.intercept_[0])
        if scale > 0:
            return cls(scale, bias, True)
        # A negative scale would turn the ranking around.
        share = truth.mean()
        return cls(1.0, float(np.log(share / (1 - share)) - scores.mean()), False)


class Projection(nn.Module):
    """The map of an encoder into its joint space, which is not trained."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.project = encoder.project

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (..., width) to (..., projection) on the CPU."""
        with torch.no_grad():
            # The encoder may be on a GPU; draws are small and computed on the CPU.
            return self.project(tokens).float().cpu()


class JointSpace(nn.Module):
    """Maps patches and texts into one space, in which their distance gives a logit.

    The logit is ``scale * (1 - distance) + bias``.
    """

    def __init__(self, vision: nn.Module, text: nn.Module, scale: float = SCALE, bias: float = 0.0):
        super().__init__()
        self.vision, self.text = vision, text
        # Numbers instead of parameters: `fit_scale` sets them, and no optimizer does.
        self.scale, self.bias = scale, bias

    @classmethod
    def learned(
        cls, width: int, text_width: int, joint: int = _JOINT_WIDTH, *, seed: int
    ) -> JointSpace:
        """Make a space of two linear maps, to be trained by `fit_joint`."""
        generator = torch.Generator().manual_seed(seed)
        vision = nn.Linear(width, joint, bias=False)
        text = nn.Linear(text_width, joint, bias=False)
        for linear in (vision, text):
            # Vectors keep their length on average.
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5, generator=generator)
        return cls(vision, text)

    def logits(self, a: Tensor, b: Tensor) -> Tensor:
        """Return logits (..., n, c) of vectors (..., n, width) and (c, width) of the space."""
        return joint_logits(a, b, self.scale, self.bias)

    @torch.no_grad()
    def local(self, patch: Tensor, at_once: int = 256) -> Tensor:
        """Map patches (images, patches, width) to float32 without gradients."""
        return torch.cat([self.vision(part.float()) for part in patch.split(at_once)])

    @torch.no_grad()
    def pooled(self, patch: Tensor, at_once: int = 256) -> Tensor:
        """Return the mean (images, width) of every image's mapped patches, without gradients."""
        return torch.cat([self.vision(part.float()).mean(1) for part in patch.split(at_once)])

    def fit_scale(self, data: Labelled) -> bool:
        """Fit scale and bias to base images and the texts of their labels.

        Returns False, and changes nothing, if images are not closer to the texts of their labels
        than to others.
        """
        with torch.no_grad():
            # With a scale of 1: the regression finds the scale.
            closeness = joint_logits(self.pooled(data.patch), self.text(data.text), 1.0)
        fitted = Logistic.fit(closeness.double().numpy(), data.truth)
        if fitted.fitted:
            self.scale, self.bias = fitted.scale, fitted.bias
        return fitted.fitted


def fit_joint(
    space: JointSpace, data: Labelled, *, epochs: int = 30, lr: float = 2e-3, seed: int = 0
) -> list[float]:
    """Train the maps by the binary cross-entropy of images with all base labels.

    Returns the mean loss of each epoch.
    """
    # The mean of patches is mapped instead of the patches: a linear map keeps means.
    pooled = torch.cat([part.float().mean(1) for part in data.patch.split(_BATCH)])
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
