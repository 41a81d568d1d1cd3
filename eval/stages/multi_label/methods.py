"""Methods of multi-label recognition, which are measured side by side on the same draws.

In: images mapped into the joint space, support and queries of a draw. Out: scores (queries,
labels). Only their order counts until they are turned into logits. `lcm` is the method, and `cross`
the method with a trained cross-interaction; the others are its variants and baselines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    "lcm": "prototypes of the patches whose removal raises the label's loss most (signed, first "
    "order)",
    "lcm_exact": "the same, each patch removed in turn",
    "lcm_source": "the same as published: without a sign, one ranking of patches for all labels "
    "of an image",
    "cross": "patches as lcm, prototypes by cross-interaction trained on base labels",
    "text_similarity": "prototypes of the patches closest to the label's text",
    "random_patch": "prototypes of patches chosen at random",
    "all_patch": "prototypes of all patches",
    "text_proto": "the label's text as prototype",
    "zero_shot": "the image's contrastive feature against the label's text",
    "tip_adapter_ml": "zero_shot and closeness to support images (Tip-Adapter), weighted by "
    "validation labels",
}
# Every one of OWN is compared with every one of COMPARED_TO.
OWN = ("lcm", "lcm_exact", "lcm_source", "cross")
COMPARED_TO = tuple(name for name in ABOUT if name not in OWN)
SELECTIONS = {
    "lcm": Selection(),
    "lcm_exact": Selection(mode="exact"),
    "lcm_source": Selection(mode="ema", scope="image"),
}
# Data sets without which a method cannot run.
NEEDS = {"cross": ("base", "val"), "tip_adapter_ml": ("val",)}
_ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0)
_BETAS = (1.0, 3.0, 5.5, 10.0)


@dataclass(frozen=True)
class Prepared:
    """Labelled images in the joint space.

    ``local`` is (images, patches, width), ``labels`` (labels, width), ``present`` (images, labels)
    of 0 and 1.
    """

    data: Labelled
    local: Tensor
    labels: Tensor
    present: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: MLFSIC, data: Labelled) -> Prepared:
        """Map images and labels."""
        return cls(data, model.space.local(data.patch), model.space.text(data.text), data.present())


@dataclass(frozen=True)
class Scored:
    """Scores (queries, labels) of a method.

    ``chosen`` (support images, labels, patches) marks the patches that labels chose; it is None for
    methods that choose none.
    """

    scores: Tensor
    chosen: Tensor | None = None


@dataclass(frozen=True)
class TipAdapter:
    """Tip-Adapter: ``alpha`` weights the support images, ``beta`` their decay with distance."""

    alpha: float = 1.0
    beta: float = 5.5

    def scores(self, data: Labelled, draw: Draw) -> Tensor:
        """Score by the text's cosine plus ``alpha`` times the mean affinity to support images."""
        query, support = data.proj[draw.query].float(), data.proj[draw.support].float()
        present = data.present(draw.support)
        # A mean, not a sum: an image has several labels, so labels have unequal support.
        mean_over_support = present / present.sum(0).clamp_min(1)
        affinity = torch.exp(-self.beta * (1 - query @ support.T))
        return query @ data.text.T + self.alpha * (affinity @ mean_over_support)

    @classmethod
    def tuned(cls, val: Labelled, *, shot: int, draws: int, seed: int) -> TipAdapter:
        """Choose alpha and beta by mAP on draws of validation labels, the first of equals."""
        sampler = MultiLabelEpisodeSampler(
            val.truth, val.names, shot=shot, draws=draws, seed=seed, media=val.media, name="--val"
        )
        precision: dict[TipAdapter, float] = {}
        for alpha, beta in product(_ALPHAS, _BETAS):
            adapter = cls(alpha, beta)
            by_draw = []
            for draw in sampler.all():
                scores = adapter.scores(val, draw).double().numpy()
                by_draw.append(multilabel_metrics(scores, val.truth[draw.query], None)[0]["mAP"])
            precision[adapter] = float(np.mean(by_draw))
        return max(precision, key=lambda adapter: precision[adapter])


class Methods:
    """All methods with one model; labels choose ``k`` patches, ``adapters`` are by shot."""

    def __init__(self, model: MLFSIC, adapters: Mapping[int, TipAdapter], *, k: int, seed: int):
        self.model, self.adapters, self.k, self.seed = model, adapters, k, seed

    @torch.no_grad()
    def scores(
        self, names: Sequence[str], prepared: Prepared, draw: Draw, *, shot: int, number: int
    ) -> dict[str, Scored]:
        """Score the queries of draw ``number`` by the methods ``names``."""
        return {name: self._scored(name, prepared, draw, shot, number) for name in names}

    def _scored(self, name: str, prepared: Prepared, draw: Draw, shot: int, number: int) -> Scored:
        data, labels = prepared.data, prepared.labels
        if name == "zero_shot":
            return Scored(joint_logits(data.proj[draw.query].float(), data.text))
        if name == "tip_adapter_ml":
            return Scored(self.adapters[shot].scores(data, draw))
        query = prepared.local[draw.query]
        if name == "text_proto":
            return Scored(self.model.predict(query, labels))
        local, present = prepared.local[draw.support], prepared.present[draw.support]
        chosen = self._choose_patches(name, local, present, labels, number)
        prototypes = self.model.prototypes(local, present, labels, chosen, cross=name == "cross")
        scores = self.model.predict(query, prototypes.vectors)
        return Scored(scores, None if name == "all_patch" else prototypes.chosen)

    def _choose_patches(
        self, name: str, local: Tensor, present: Tensor, labels: Tensor, number: int
    ) -> Tensor:
        """Choose patches of support images for each label, bool (images, labels, patches)."""
        shape = (len(local), len(labels), local.shape[1])
        if name == "all_patch":
            return torch.ones(shape, dtype=torch.bool)
        if name == "random_patch":
            # The last number keeps these draws apart from those of the support.
            rng = generator_at(self.seed, number, 2)
            return select_local(torch.from_numpy(rng.random(shape)), k=self.k)
        if name == "text_similarity":
            return select_local(joint_logits(local, labels).mT, k=self.k)
        # `cross` chooses as `lcm` does.
        selection = replace(SELECTIONS.get(name, Selection()), k=self.k)
        return self.model.choose_patches(local, present, labels, selection)
