"""Which patches of a picture a label's loss depends on: the change of the loss when a patch is removed.

In: patches in the joint space, labels, label vectors. Out: a score per patch, above 0 where the
loss rises without it, and the patches with the largest. Source: Yan et al., ACM TOMM (arXiv
2412.13732), whose code (yk-pku/TOMM-FSIC) is mode `ema` with scope `image`; `taylor` is the signed
first-order form of what `exact` measures.
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
SOURCE_TAU = 6.19e-9  # where the published code's sigmoid(1e8 * importance) reaches 0.65


def joint_logits(
    a: Tensor, b: Tensor, scale: float | Tensor = 20.0, bias: float | Tensor = 0.0
) -> Tensor:
    """Logits ``scale * (1 - d) + bias`` (..., n, c) of a (..., n, width) and b (c, width).

    d is the distance of the vectors scaled to length one, from 0 to 2.
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
    lr: float = 1e-4,
    most: float = 0.95,
) -> Tensor:
    """Score patches by how much the loss of their picture's labels would rise without them.

    Parameters
    ----------
    local
        Patches (pictures, patches, width).
    present
        1 where a picture has a label, else 0: (pictures, labels).
    labels
        Label vectors of the joint space (labels, joint width).
    head
        Mean of patches (..., width) to the joint space.
    mode
        `taylor`: minus the gradient of the loss with respect to a patch's weight, at weight 1;
        `exact`: the loss without the patch minus the loss with it; `ema`: the published form
        without a sign, a running mean (at most ``most`` of it kept) of |weight * gradient| over
        ``steps`` steps of Adam (``lr``) on the weights, which are stretched to 0..1 before every
        step but the first.
    scope
        `label`: a label's own loss, (pictures, labels, patches); `image`: the mean over labels,
        (pictures, patches).
    scale, bias
        Of the logits.

    Returns
    -------
    Tensor
        Scores; gradients are taken even under `torch.no_grad`, and reach nothing but the patches'
        weights.
    """
    local, present, unit = (
        local.detach().float(),
        present.float(),
        F.normalize(labels.detach().float(), dim=-1),
    )

    def losses(cosine: Tensor, truth: Tensor) -> Tensor:
        logits = scale * (1 - _distance(cosine)) + bias
        return F.binary_cross_entropy_with_logits(logits, truth.expand_as(logits), reduction="none")

    if mode == "exact":
        with torch.no_grad():
            pooled = local.mean(1, keepdim=True)
            joint = F.normalize(
                head(torch.cat([pooled, pooled - local / local.shape[1]], dim=1)), dim=-1
            )
            every = losses((joint @ unit.T).mT, present[..., None])
        score = every[..., 1:] - every[..., :1]
        return score if scope == "label" else score.mean(1)

    def gradient(weight: Tensor) -> Tensor:
        """Gradient of every group's loss with respect to its own weights, both (pictures, groups, patches)."""
        with torch.enable_grad():
            weight = weight.detach().requires_grad_()
            joint = F.normalize(head(weight @ local / local.shape[1]), dim=-1)
            if scope == "label":
                loss = losses((joint * unit).sum(-1), present).sum()
            else:
                loss = losses(joint[:, 0] @ unit.T, present).mean(1).sum()
            return torch.autograd.grad(loss, weight)[0]

    weight = local.new_ones(len(local), len(unit) if scope == "label" else 1, local.shape[1])
    score = (
        -gradient(weight)
        if mode == "taylor"
        else _running_importance(gradient, weight, steps, lr, most)
    )
    return score if scope == "label" else score[:, 0]


def select_local(
    score: Tensor, *, rule: Rule = "topk", k: int = 9, ratio: float = 0.2, tau: float = SOURCE_TAU
) -> Tensor:
    """Mark the patches to keep, bool of the form of ``score`` (..., patches).

    `topk` keeps the ``k`` with the highest scores (all where there are fewer; of equal ones the
    first), `ratio` a share of them, rounded up; `tau` those that reach it, which depends on the
    loss's scale.
    """
    if rule == "tau":
        return score >= tau
    patches = score.shape[-1]
    count = min(k, patches) if rule == "topk" else max(1, int(-(-ratio * patches // 1)))
    best = torch.argsort(score, dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, best, True)


def _distance(cosine: Tensor) -> Tensor:
    return (2 - 2 * cosine).clamp_min(1e-12).sqrt()  # the root has no gradient at 0


def _running_importance(
    gradient: Callable[[Tensor], Tensor], weight: Tensor, steps: int, lr: float, most: float
) -> Tensor:
    importance = torch.zeros_like(weight)
    adam = torch.optim.Adam([weight], lr=lr)
    for step in range(steps):
        if step:
            weight.copy_(_stretched(weight))
        weight.grad = gradient(weight) / len(weight)  # of the mean over pictures, as published
        kept = min(1 - 1 / (step + 2), most)
        importance = kept * importance + (1 - kept) * (weight * weight.grad).abs()
        adam.step()
    return importance


def _stretched(weight: Tensor) -> Tensor:
    """Stretch to 0..1 by picture; the smallest becomes the second smallest, so that none stays without a gradient."""
    low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
    stretched = torch.where(
        high > low, (weight - low) / (high - low).clamp_min(1e-30), torch.ones_like(weight)
    )
    second = stretched.masked_fill(stretched == 0, torch.inf).amin(-1, keepdim=True)
    return torch.where(stretched == 0, second, stretched)
