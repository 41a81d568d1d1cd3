"""Multi-label few-shot classifier: the patches that a label depends on make its prototype.

In: the joint space, support images with their labels, and queries. Out: prototypes, the patches
that they are made of, and logits. Source: Yan et al., ACM TOMM (arXiv 2412.13732). Only the
cross-interaction is trained; without it no parameter is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_pipeline.errors import UsageError

from .cross_interaction import CrossInteraction
from .joint_space import JointSpace
from .loss_change import Mode, Rule, Scope, loss_change, select_local
from .options import QueryPool

# Queries that are compared patch by patch at once; each has a vector per label and patch.
_QUERIES_AT_ONCE = 64


@dataclass(frozen=True)
class Prototypes:
    """Vectors (labels, width), and the patches that they are made of.

    ``chosen`` is bool (support images, labels, patches).
    """

    vectors: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class Selection:
    """How patches are chosen: the scores of `loss_change` and the rule of `select_local`."""

    mode: Mode = "taylor"
    scope: Scope = "label"
    rule: Rule = "topk"
    k: int = 9


class MLFSIC(nn.Module):
    """Multi-label few-shot classifier over a joint space.

    Prototypes come from the trained interaction ``cross`` or are means of patches. All patches
    (images, patches, width) that its methods take are mapped into the joint space
    (`JointSpace.local`).
    """

    def __init__(
        self,
        space: JointSpace,
        cross: CrossInteraction | None = None,
        selection: Selection | None = None,
        query_pool: QueryPool = "mean",
    ):
        super().__init__()
        # The options check this too; a classifier made from Python has not passed them.
        if query_pool not in ("mean", "max", "label_attention"):
            raise UsageError(f"query_pool is {query_pool!r}, must be mean, max or label_attention")
        self.space, self.cross, self.query_pool = space, cross, query_pool
        self.selection = selection or Selection()

    def choose_patches(
        self, local: Tensor, present: Tensor, labels: Tensor, selection: Selection | None = None
    ) -> Tensor:
        """Choose patches of support images for each label, bool (images, labels, patches)."""
        selection = selection or self.selection
        score = loss_change(
            local,
            present,
            labels,
            mode=selection.mode,
            scope=selection.scope,
            scale=self.space.scale,
            bias=self.space.bias,
        )
        chosen = select_local(score, rule=selection.rule, k=selection.k)
        if selection.scope == "label":
            return chosen
        # All labels of an image share its patches.
        return chosen[:, None].expand(-1, len(labels), -1)

    def prototypes(
        self,
        local: Tensor,
        present: Tensor,
        labels: Tensor,
        chosen: Tensor | None = None,
        *,
        cross: bool = True,
    ) -> Prototypes:
        """Make a prototype of every label from chosen patches of the support images that have it.

        Parameters
        ----------
        local
            Patches of the support images (images, patches, width).
        present
            1 if an image has a label, otherwise 0 (images, labels).
        labels
            Label vectors (labels, width). A label without a chosen patch keeps its vector.
        chosen
            Patches to use, bool (images, labels, patches); by default ``selection`` chooses them.
        cross
            Whether the cross-interaction makes the prototypes, if there is one. Otherwise they are
            means of patches.
        """
        if chosen is None:
            chosen = self.choose_patches(local, present, labels)
        # A label also scores patches of images that do not have it; those are not its own.
        used = chosen & present.bool()[..., None]
        if self.cross is not None and cross:
            patches, mask = _padded(local, used)
            return Prototypes(self.cross(labels, patches, mask)[0], used)
        weight = used.to(local.dtype)
        count = weight.sum((0, 2))
        mean = torch.einsum("scl,sle->ce", weight, local) / count.clamp_min(1)[:, None]
        # The rule `tau` may choose no patch of a label.
        return Prototypes(torch.where(count[:, None] > 0, mean, labels), used)

    def predict(self, local: Tensor, vectors: Tensor) -> Tensor:
        """Return logits (queries, labels) of queries (queries, patches, width) for prototypes.

        The prototype is compared with the mean of the patches; with ``query_pool`` `max` with every
        patch, and the closest decides; with `label_attention` with a mean that weights patches by
        their logits for the label.
        """
        if self.query_pool == "mean":
            return self.space.logits(local.mean(1), vectors)
        parts = local.split(_QUERIES_AT_ONCE)
        return torch.cat([self._predict_by_patch(part, vectors) for part in parts])

    def _predict_by_patch(self, local: Tensor, vectors: Tensor) -> Tensor:
        logits = self.space.logits(local, vectors)
        if self.query_pool == "max":
            return logits.amax(1)
        pooled = torch.einsum("qlc,qle->qce", logits.softmax(1), local)
        by_label = []
        for label in range(len(vectors)):
            by_label.append(self.space.logits(pooled[:, label], vectors[label : label + 1]))
        return torch.cat(by_label, dim=1)


def _padded(local: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Gather every label's patches of all images, padded to the largest number of patches.

    Returns patches (labels, patches, width), and a mask (labels, patches) of those to use.
    """
    by_label = used.transpose(0, 1).flatten(1)
    most = max(1, int(by_label.sum(1).max()))
    # A stable sort puts the patches to use first and keeps their order.
    positions = torch.argsort(~by_label, dim=1, stable=True)[:, :most]
    return local.flatten(0, 1)[positions], by_label.gather(1, positions)
