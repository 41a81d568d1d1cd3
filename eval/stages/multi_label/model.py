"""Recognition of several labels from few pictures: patches that speak for a label make its prototype.

In: the joint space, support pictures with their labels, and queries. Out: prototypes, the patches
they were made of, and logits. Source: Yan et al., ACM TOMM (arXiv 2412.13732). Without the
cross-interaction nothing here is trained.
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

_AT_ONCE = 64  # queries compared patch by patch


@dataclass(frozen=True)
class Prototypes:
    """Vectors (labels, width) and the patches they were made of, bool (support pictures, labels, patches)."""

    vectors: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class Selection:
    """How patches are chosen: the measurement of `loss_change` and the rule of `select_local`."""

    mode: Mode = "taylor"
    scope: Scope = "label"
    rule: Rule = "topk"
    k: int = 9


class MLFSIC(nn.Module):
    """Multi-label few-shot classifier over a joint space, with a trained ``cross`` interaction or with mean patches.

    All patches (pictures, patches, width) that its methods take are those of the joint space
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
        if query_pool not in ("mean", "max", "label_attention"):
            raise UsageError(f"query_pool is {query_pool!r}, must be mean, max or label_attention")
        self.space, self.cross, self.query_pool = space, cross, query_pool
        self.selection = selection or Selection()

    def chosen(
        self, local: Tensor, present: Tensor, labels: Tensor, selection: Selection | None = None
    ) -> Tensor:
        """Choose patches of support pictures for each label, bool (pictures, labels, patches)."""
        by = selection or self.selection
        score = loss_change(
            local,
            present,
            labels,
            mode=by.mode,
            scope=by.scope,
            scale=self.space.scale,
            bias=self.space.bias,
        )
        kept = select_local(score, rule=by.rule, k=by.k)
        return kept if by.scope == "label" else kept[:, None].expand(-1, len(labels), -1)

    def prototypes(
        self,
        local: Tensor,
        present: Tensor,
        labels: Tensor,
        chosen: Tensor | None = None,
        *,
        cross: bool = True,
    ) -> Prototypes:
        """Make a prototype of every label from the chosen patches of all support pictures that have it.

        Parameters
        ----------
        local, present, labels
            (pictures, patches, width); 1 where a picture has a label (pictures, labels); label
            vectors (labels, width).
        chosen
            Patches to use instead of those of the method's own selection.
        cross
            Whether the cross-interaction, where there is one, makes the prototype; else the
            patches' mean. A label without a patch keeps its vector.
        """
        if chosen is None:
            chosen = self.chosen(local, present, labels)
        used = chosen & present.bool()[..., None]
        if self.cross is not None and cross:
            return Prototypes(self.cross(labels, *_padded(local, used))[0], used)
        weight = used.to(local.dtype)
        count = weight.sum((0, 2))
        mean = torch.einsum("scl,sle->ce", weight, local) / count.clamp_min(1)[:, None]
        return Prototypes(torch.where(count[:, None] > 0, mean, labels), used)

    def predict(self, local: Tensor, vectors: Tensor) -> Tensor:
        """Logits (queries, labels) of queries' patches (queries, patches, width) against prototypes.

        The patches' mean is compared; or with ``query_pool`` `max` every patch, of which the
        closest decides; or with `label_attention` their mean weighted by their own logits for the
        label.
        """
        if self.query_pool == "mean":
            return self.space.logits(local.mean(1), vectors)
        return torch.cat([self._by_patch(part, vectors) for part in local.split(_AT_ONCE)])

    def _by_patch(self, local: Tensor, vectors: Tensor) -> Tensor:
        logits = self.space.logits(local, vectors)
        if self.query_pool == "max":
            return logits.amax(1)
        pooled = torch.einsum("qlc,qle->qce", logits.softmax(1), local)
        every = [self.space.logits(pooled[:, c], vectors[c : c + 1]) for c in range(len(vectors))]
        return torch.cat(every, dim=1)


def _padded(local: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Gather every label's patches of all pictures: (labels, most, width), and which are there (labels, most)."""
    flat = used.transpose(0, 1).flatten(1)
    most = max(1, int(flat.sum(1).max()))
    place = torch.argsort(~flat, dim=1, stable=True)[:, :most]
    return local.flatten(0, 1)[place], flat.gather(1, place)
