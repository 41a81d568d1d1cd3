"""The ways of recognising labels that are measured beside each other, all on the same draws.

In: pictures mapped into the joint space, support and queries of a draw. Out: scores (queries,
labels), of which only the order counts until they are turned into logits. `lcm` is the method (with
`cross` trained), the others are its forms and what it must beat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from data_pipeline.randomness import generator_at

from .joint_space import Labelled
from .loss_change import joint_logits, select_local
from .metrics import multilabel_metrics
from .model import MLFSIC, Selection
from .sampler import Draw, MultiLabelEpisodeSampler

ABOUT = {
    "lcm": "prototypes of the patches whose removal raises the label's loss most (signed, first order)",
    "lcm_exact": "the same, each patch removed in turn",
    "lcm_source": "the same as published: without a sign, one ranking of patches for all labels of a picture",
    "cross": "patches as lcm, prototypes by cross-interaction trained on base labels",
    "text_similarity": "prototypes of the patches closest to the label's text",
    "random_patch": "prototypes of patches chosen at random",
    "all_patch": "prototypes of all patches",
    "text_proto": "the label's text as prototype",
    "zero_shot": "the picture's contrastive feature against the label's text",
    "tip_adapter_ml": "zero_shot and closeness to support pictures (Tip-Adapter), weighed by validation labels",
}
OWN = ("lcm", "lcm_exact", "lcm_source", "cross")
COMPARED_TO = tuple(name for name in ABOUT if name not in OWN)
SELECTIONS = {
    "lcm": Selection(),
    "lcm_exact": Selection(mode="exact"),
    "lcm_source": Selection(mode="ema", scope="image"),
}
NEEDS = {"cross": ("base", "val"), "tip_adapter_ml": ("val",)}
_ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0)
_BETAS = (1.0, 3.0, 5.5, 10.0)


@dataclass(frozen=True)
class Prepared:
    """Labelled pictures in the joint space: ``local`` (pictures, patches, width), ``labels`` (labels, width)."""

    data: Labelled
    local: Tensor
    labels: Tensor
    present: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: MLFSIC, data: Labelled) -> Prepared:
        """Map pictures and labels."""
        return cls(data, model.space.local(data.patch), model.space.text(data.text), data.present())


@dataclass(frozen=True)
class TipAdapter:
    """How much the support pictures count, and how fast that falls with distance."""

    alpha: float = 1.0
    beta: float = 5.5

    def scores(self, data: Labelled, draw: Draw) -> Tensor:
        """Cosine to the text plus ``alpha`` times the label's mean closeness of support pictures."""
        query, support = data.proj[draw.query].float(), data.proj[draw.support].float()
        present = data.present(draw.support)
        closeness = torch.exp(-self.beta * (1 - query @ support.T)) @ (
            present / present.sum(0).clamp_min(1)
        )
        return query @ data.text.T + self.alpha * closeness

    @classmethod
    def tuned(cls, val: Labelled, *, shot: int, draws: int, seed: int) -> TipAdapter:
        """Choose both by mean average precision on draws of validation labels; of equal ones the first."""
        sampler = MultiLabelEpisodeSampler(
            val.truth, val.names, shot=shot, draws=draws, seed=seed, media=val.media, name="--val"
        )
        found = {}
        for alpha, beta in product(_ALPHAS, _BETAS):
            adapter = cls(alpha, beta)
            each = [
                multilabel_metrics(
                    adapter.scores(val, draw).double().numpy(), val.truth[draw.query], None
                )[0]["mAP"]
                for draw in sampler.all()
            ]
            found[adapter] = float(np.mean(each))
        return max(found, key=lambda adapter: found[adapter])


class Methods:
    """All methods on one model; ``adapters`` are Tip-Adapter's settings by shot."""

    def __init__(self, model: MLFSIC, adapters: Mapping[int, TipAdapter], *, k: int, seed: int):
        self.model, self.adapters, self.k, self.seed = model, adapters, k, seed

    @torch.no_grad()
    def scores(
        self, names: list[str], prepared: Prepared, draw: Draw, *, shot: int, number: int
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Scores of the methods on draw ``number``, and the patches they chose: bool (support, labels, patches)."""
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name in names:
            found[name] = self._one(name, prepared, draw, shot, number)
        return found

    def _one(
        self, name: str, p: Prepared, draw: Draw, shot: int, number: int
    ) -> tuple[Tensor, Tensor | None]:
        if name == "zero_shot":
            return joint_logits(p.data.proj[draw.query].float(), p.data.text), None
        if name == "tip_adapter_ml":
            return self.adapters[shot].scores(p.data, draw), None
        query = p.local[draw.query]
        if name == "text_proto":
            return self.model.predict(query, p.labels), None
        local, present = p.local[draw.support], p.present[draw.support]
        chosen = _CHOOSERS.get(name, _by_loss_change)(self, name, local, present, p.labels, number)
        made = self.model.prototypes(local, present, p.labels, chosen, cross=name == "cross")
        return self.model.predict(query, made.vectors), None if name == "all_patch" else made.chosen


def _by_loss_change(
    methods: Methods, name: str, local: Tensor, present: Tensor, labels: Tensor, number: int
) -> Tensor:
    by = SELECTIONS.get(name, Selection())
    return methods.model.chosen(
        local, present, labels, Selection(by.mode, by.scope, by.rule, methods.k)
    )


def _all(
    methods: Methods, name: str, local: Tensor, present: Tensor, labels: Tensor, number: int
) -> Tensor:
    return torch.ones(len(local), len(labels), local.shape[1], dtype=torch.bool)


def _random(
    methods: Methods, name: str, local: Tensor, present: Tensor, labels: Tensor, number: int
) -> Tensor:
    rng = generator_at(methods.seed, number, 2)
    score = torch.from_numpy(rng.random((len(local), len(labels), local.shape[1])))
    return select_local(score, k=methods.k)


def _closest(
    methods: Methods, name: str, local: Tensor, present: Tensor, labels: Tensor, number: int
) -> Tensor:
    return select_local(joint_logits(local, labels).mT, k=methods.k)


_CHOOSERS: dict[str, Callable[[Methods, str, Tensor, Tensor, Tensor, int], Tensor]] = {
    "all_patch": _all,
    "random_patch": _random,
    "text_similarity": _closest,
}
