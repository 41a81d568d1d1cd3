"""Find the patches that a label's loss depends on: the loss changes when such a patch is removed.

In: patches in the joint space, truth, label vectors. Out: a score for each patch, which is above 0
if the loss rises without the patch, and the patches with the highest scores. Source: Yan et al.,
ACM TOMM (arXiv 2412.13732). The published code (yk-pku/TOMM-FSIC) is the mode `ema` with the scope
`image`; `taylor` is the signed first-order form of what `exact` measures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["taylor", "exact", "ema"]
Scope = Literal["label", "image"]
Rule = Literal["topk", "ratio", "tau"]
# The published code keeps patches whose sigmoid(1e8 * importance) is at least 0.65.
SOURCE_TAU = 6.19e-9
# Of the mode `ema`: the published rate of Adam, and the largest share of the running mean to keep.
_SOURCE_RATE = 1e-4
_SOURCE_DECAY = 0.95


def joint_logits(
    a: Tensor, b: Tensor, scale: float | Tensor = 20.0, bias: float | Tensor = 0.0
) -> Tensor:
    """Return logits ``scale * (1 - d) + bias`` (..., n, c) of a (..., n, width) and b (c, width).

    d is the distance of the vectors after scaling them to length one, from 0 to 2.
    """
    cosine = F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT
    return scale * (1 - _distance(cosine)) + bias


def loss_change(
    local: Tensor,
    present: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor] = lambda pooled: pooled,
    *,
    mode: Mode = "taylor",
    scope: Scope = "label",
    scale: float = 20.0,
    bias: float = 0.0,
    steps: int = 30,
) -> Tensor:
    """Score patches by how much the loss of their image's labels would rise without them.

    Parameters
    ----------
    local
        Patches (images, patches, width).
    present
        1 if an image has a label, otherwise 0: (images, labels).
    labels
        Label vectors of the joint space (labels, joint width).
    head
        Maps the mean of patches (..., width) to the joint space.
    mode
        `taylor`: minus the gradient of the loss with respect to a patch's weight, at weight 1;
        `exact`: the loss without the patch minus the loss with it; `ema`: the published form
        without a sign, a running mean of |weight * gradient| over ``steps`` steps of Adam on the
        weights, which are stretched to 0..1 before every step but the first.
    scope
        `label`: the loss of each label, (images, labels, patches); `image`: the mean over labels,
        (images, patches).
    scale, bias
        Scale and bias of the logits.

    Returns
    -------
    Tensor
        Scores. Gradients are computed even under `torch.no_grad`; they reach the weights of the
        patches and no parameter.
    """
    local, present = local.detach().float(), present.float()
    unit = F.normalize(labels.detach().float(), dim=-1)

    def losses(cosine: Tensor, truth: Tensor) -> Tensor:
        logits = scale * (1 - _distance(cosine)) + bias
        return F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none")

    if mode == "exact":
        with torch.no_grad():
            pooled = local.mean(1, keepdim=True)
            # A removed patch counts as zero in the mean, whose divisor stays: so does a weight of
            # 0 in the other modes.
            without_each = pooled - local / local.shape[1]
            joint = F.normalize(head(torch.cat([pooled, without_each], dim=1)), dim=-1)
            loss_of_each = losses((joint @ unit.T).mT, present[..., None])
        score = loss_of_each[..., 1:] - loss_of_each[..., :1]
        return score if scope == "label" else score.mean(1)

    def gradient(weight: Tensor) -> Tensor:
        """Return the gradient of every group's loss with respect to that group's weights.

        Both are (images, groups, patches); a group is a label, or all labels of an image.
        """
        with torch.enable_grad():
            weight = weight.detach().requires_grad_()
            joint = F.normalize(head(weight @ local / local.shape[1]), dim=-1)
            if scope == "label":
                # Losses of different groups share no weight, so one backward pass of their sum
                # gives the gradients of all.
                loss = losses((joint * unit).sum(-1), present).sum()
            else:
                loss = losses(joint[:, 0] @ unit.T, present).mean(1).sum()
            return torch.autograd.grad(loss, weight)[0]

    groups = len(unit) if scope == "label" else 1
    weight = local.new_ones(len(local), groups, local.shape[1])
    # Without a patch its weight falls, so the loss rises by minus the gradient.
    taylor = mode == "taylor"
    score = -gradient(weight) if taylor else _running_importance(gradient, weight, steps)
    return score if scope == "label" else score[:, 0]


def select_local(
    score: Tensor, *, rule: Rule = "topk", k: int = 9, ratio: float = 0.2, tau: float = SOURCE_TAU
) -> Tensor:
    """Mark the patches to keep, bool of the shape of ``score`` (..., patches).

    The rule `topk` keeps the ``k`` patches with the highest scores (all if there are fewer; the
    first of equals), `ratio` a share of the patches, rounded up, and `tau` the patches that reach
    ``tau``, whose meaning depends on the scale of the loss.
    """
    if rule == "tau":
        return score >= tau
    patches = score.shape[-1]
    count = min(k, patches) if rule == "topk" else max(1, int(-(-ratio * patches // 1)))
    best = torch.argsort(score, dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, best, True)


def _distance(cosine: Tensor) -> Tensor:
    return (2 - 2 * cosine).clamp_min(1e-12).sqrt()  # the root has an infinite gradient at 0


def _running_importance(gradient: Callable[[Tensor], Tensor], weight: Tensor, steps: int) -> Tensor:
    importance = torch.zeros_like(weight)
    adam = torch.optim.Adam([weight], lr=_SOURCE_RATE)
    for step in range(steps):
        if step:
            weight.copy_(_stretched(weight))
        # The published loss is a mean over images.
        weight.grad = gradient(weight) / len(weight)
        # A plain mean of the first steps, and then one that forgets the oldest.
        decay = min(1 - 1 / (step + 2), _SOURCE_DECAY)
        importance = decay * importance + (1 - decay) * (weight * weight.grad).abs()
        adam.step()
    return importance


def _stretched(weight: Tensor) -> Tensor:
    """Stretch weights to 0..1 by image.

    The lowest weight becomes the second lowest: at 0 its importance |weight * gradient| would be 0.
    """
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    stretched = (weight - low) / (high - low).clamp_min(1e-30)
    stretched = torch.where(high > low, stretched, torch.ones_like(weight))
    second = stretched.masked_fill(stretched == 0, torch.inf).amin(-1, keepdim=True)
    return torch.where(stretched == 0, second, stretched)
