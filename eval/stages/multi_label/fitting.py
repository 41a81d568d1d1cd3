"""The classifier of an evaluation, fitted to base labels: its joint space, and the cross-interaction where asked for.

In: an encoder, base and validation labels. Out: the classifier and what was fitted, for the result.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eval.encoding.encoders import Encoder

from .cross_interaction import CrossInteraction
from .joint_space import JointSpace, Labelled, Projection, fit_joint
from .model import MLFSIC, Selection
from .options import Init, QueryPool
from .training import TrainSettings, fit_base

JOINT_EPOCHS = 30


def fitted_classifier(
    encoder: Encoder,
    base: Labelled | None,
    val: Labelled | None,
    *,
    init: Init,
    query_pool: QueryPool,
    patches: int,
    cross: bool,
    epochs: int,
    seed: int,
) -> tuple[MLFSIC, dict[str, Any]]:
    """Make the classifier, fitted to base labels as far as there are any, and say what was fitted.

    ``init`` is `vl_joint` or `learned`, which needs ``base``; ``cross`` asks for a
    cross-interaction, which needs both.
    """
    said: dict[str, Any] = {}
    if init == "learned":
        assert base is not None
        space = JointSpace.learned(base.patch.shape[2], base.text.shape[1], seed=seed)
        said["joint_loss"] = fit_joint(space, base, epochs=JOINT_EPOCHS, seed=seed)
    else:
        space = JointSpace(Projection(encoder), nn.Identity())
        said["scale_fitted"] = base is not None and space.fit_scale(base)
    said |= {"scale": space.scale, "bias": space.bias}
    classifier = MLFSIC(space, selection=Selection(k=patches), query_pool=query_pool)
    if cross:
        assert base is not None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            width = space.text(base.text[:1]).shape[1]
            classifier.cross = CrossInteraction(
                width, heads=max(h for h in (8, 4, 2, 1) if width % h == 0)
            )
        log = fit_base(classifier, base, val, TrainSettings(epochs=epochs), seed=seed)
        said["cross"] = {
            "loss": log.losses,
            "validation_mAP": log.validation,
            "kept_epoch": log.best,
        }
    return classifier.eval(), said
