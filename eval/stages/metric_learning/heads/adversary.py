"""A class adversary: it keeps features from encoding which of the training classes an image has.

In: general features of a batch and their classes. Out: a loss for the embedder that grows with how
well the class can be read from the features. Gradient reversal follows DANN and MIC; the number of
inner steps, the normalized features and Adam's beta1 are those that fresh probes confirm
(docs/metric_learning.md): with one inner step the adversary is fooled and the features keep the
class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipeline.errors import UsageError

from ..options import ADVERSARIES, Adversary


class GradientReversal(torch.autograd.Function):
    """Identity whose gradient is multiplied by -``strength``."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        """Return the features unchanged."""
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Reverse the gradient."""
        return -ctx.strength * gradients[0], None


class ClassAdversary(nn.Module):
    """Predict classes from general features, against an embedder that hides them.

    Parameters
    ----------
    dim, classes
        Size of the features, number of classes.
    kind
        `grl`: a classifier behind gradient reversal, which learns ``steps`` times for each step of
        the embedder; `ridge`: the share of the classes' variance that a ridge regression explains,
        in closed form; `none`.
    hidden, steps, lr, beta1
        Hidden sizes and training of the classifier.
    penalty
        Penalty of the ridge regression, per sample of a batch.

    Raises
    ------
    UsageError
        If there is no such kind.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        kind: Adversary = "grl",
        *,
        hidden: Sequence[int] = (256,),
        steps: int = 5,
        lr: float = 3e-3,
        beta1: float = 0.5,
        penalty: float = 1e-3,
    ) -> None:
        super().__init__()
        if kind not in ADVERSARIES:
            raise UsageError(f"adversary is {kind!r}, must be one of {', '.join(ADVERSARIES)}")
        self.kind, self.classes, self.steps, self.penalty = kind, classes, steps, penalty
        if kind == "grl":
            sizes = [dim, *hidden]
            inner: list[nn.Module] = []
            for before, after in zip(sizes, sizes[1:], strict=False):
                inner += [nn.Linear(before, after), nn.ReLU()]
            self.classifier = nn.Sequential(*inner, nn.Linear(sizes[-1], classes))
            self.optimizer = torch.optim.Adam(
                self.classifier.parameters(), lr=lr, betas=(beta1, 0.99), fused=True
            )

    def encoder_loss(self, general: Tensor, labels: Tensor, strength: float) -> Tensor:
        """Return the embedder's loss for features (batch, dim) of classes (batch,).

        Its gradient is proportional to ``strength``. With `grl` the value is the classifier's
        cross-entropy, and the gradient that reaches the embedder is reversed.
        """
        if self.kind == "grl":
            reversed_features = GradientReversal.apply(_standardised(general), strength)
            # The classifier gets gradients here too; `adversary_step` clears them before it learns.
            return F.cross_entropy(self.classifier(reversed_features), labels)
        if self.kind == "ridge":
            return strength * self._explained_variance(F.normalize(general, dim=1), labels)
        return general.new_zeros(())

    def adversary_step(self, general: Tensor, labels: Tensor) -> float:
        """Train the classifier on detached features; return its accuracy before that.

        The accuracy is good for a curve only: it proves nothing about the features.
        """
        if self.kind != "grl":
            return 0.0
        features = _standardised(general.detach())
        with torch.no_grad():
            accuracy = float((self.classifier(features).argmax(dim=1) == labels).float().mean())
        # Several steps, because features easily fool a classifier that lags behind, and keep the
        # class.
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.classifier(features), labels).backward()
            self.optimizer.step()
        return accuracy

    def _explained_variance(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the share, in 0..1, of the variance of one-hot classes that a ridge explains."""
        target = F.one_hot(labels, self.classes).to(features)
        target = target - target.mean(dim=0)
        centred = features - features.mean(dim=0)
        # The dual form: a batch has fewer samples than features have dimensions.
        kernel = centred @ centred.T
        ridge = self.penalty * len(features) * torch.eye(len(features), device=features.device)
        residual = target - kernel @ torch.linalg.solve(kernel + ridge, target)
        # A batch of a single class has no variance to explain.
        return 1 - residual.square().sum() / target.square().sum().clamp_min(1e-12)


def _standardised(general: Tensor) -> Tensor:
    """Standardise unit features per batch.

    Low-variance directions stay visible to the adversary then, as they are to a probe.
    """
    unit = F.normalize(general, dim=1)
    # The minimum keeps directions finite in which the batch does not vary.
    return (unit - unit.mean(dim=0)) / unit.std(dim=0).clamp_min(1e-4)
