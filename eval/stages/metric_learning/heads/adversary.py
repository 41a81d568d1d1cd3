"""A class adversary: features from which the class cannot be told are not tied to the classes that were seen.

In: general features of a batch and their classes. Out: a loss for the embedder that grows with what
the features say of the class. Gradient reversal follows DANN and MIC; the inner steps, the
normalised features and Adam's beta1 are what a fresh probe confirms (docs/metric_learning.md): with
one step the adversary is fooled and the features keep the class.
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
    """Identity whose gradient comes back times -``strength``."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, strength: float) -> Tensor:
        """Return the features as they are."""
        ctx.strength = strength
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Turn the gradient around."""
        return -ctx.strength * gradients[0], None


class ClassAdversary(nn.Module):
    """Tell classes from general features, against an embedder that hides them.

    Parameters
    ----------
    dim, classes
        Size of the features, number of classes.
    kind
        `grl`: a classifier behind gradient reversal, which learns ``steps`` times for each step of
        the embedder; `ridge`: the share of the classes' variance that a ridge regression explains,
        in closed form; `none`.
    hidden, steps, lr, beta1
        Of the classifier.
    penalty
        Of the ridge regression, per sample of a batch.

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
        """Return the embedder's loss for features (batch, dim) of classes (batch,); its gradient grows with strength.

        Through `grl` the value is the classifier's cross-entropy, and the embedder's gradient is
        turned around.
        """
        if self.kind == "grl":
            return F.cross_entropy(
                self.classifier(GradientReversal.apply(_seen(general), strength)), labels
            )
        if self.kind == "ridge":
            return strength * self._explained(F.normalize(general, dim=1), labels)
        return general.new_zeros(())

    def adversary_step(self, general: Tensor, labels: Tensor) -> float:
        """Let the classifier learn from detached features; return its accuracy before, which proves nothing."""
        if self.kind != "grl":
            return 0.0
        features = _seen(general.detach())
        with torch.no_grad():
            accuracy = float((self.classifier(features).argmax(dim=1) == labels).float().mean())
        for _ in range(self.steps):
            self.optimizer.zero_grad()
            F.cross_entropy(self.classifier(features), labels).backward()
            self.optimizer.step()
        return accuracy

    def _explained(self, features: Tensor, labels: Tensor) -> Tensor:
        """Share of the variance of one-hot classes that ridge regression on the batch explains, within 0 and 1."""
        wanted = F.one_hot(labels, self.classes).to(features)
        wanted = wanted - wanted.mean(dim=0)
        centred = features - features.mean(dim=0)
        # The dual form: batches are smaller than features are long.
        kernel = centred @ centred.T
        ridge = self.penalty * len(features) * torch.eye(len(features), device=features.device)
        left = wanted - kernel @ torch.linalg.solve(kernel + ridge, wanted)
        return 1 - left.square().sum() / wanted.square().sum().clamp_min(1e-12)


def _seen(general: Tensor) -> Tensor:
    """Scale unit features alike within the batch: what is small is no better hidden, a probe finds it all the same."""
    unit = F.normalize(general, dim=1)
    return (unit - unit.mean(dim=0)) / unit.std(dim=0).clamp_min(1e-4)
