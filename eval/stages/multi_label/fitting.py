"""The classifier of an evaluation, fitted to base labels.

In: an encoder, images of base and validation labels, the options. Out: the classifier, with its
joint space and, if a method needs it, the cross-interaction; and what was fitted, for result.json.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from eval.encoding.encoders import Encoder

from .cross_interaction import CrossInteraction
from .joint_space import JointSpace, Labelled, Projection, fit_joint
from .model import MLFSIC, Selection
from .options import Options
from .training import TrainSettings, fit_base

JOINT_EPOCHS = 30


def fit_classifier(
    encoder: Encoder,
    base: Labelled | None,
    val: Labelled | None,
    options: Options,
    *,
    cross: bool,
) -> tuple[MLFSIC, dict[str, Any]]:
    """Make the classifier, and fit it to base labels if there are any.

    Parameters
    ----------
    encoder
        Gives the joint space, unless ``options.init`` is `learned`, which needs ``base``.
    base, val
        Images of base labels to learn from, and of validation labels to choose the epoch on.
    options
        Options of the stage.
    cross
        Whether to train a cross-interaction, which needs ``base``.
    """
    fitted: dict[str, Any] = {}
    if options.init == "learned":
        assert base is not None
        space = JointSpace.learned(base.patch.shape[2], base.text.shape[1], seed=options.seed)
        fitted["joint_loss"] = fit_joint(space, base, epochs=JOINT_EPOCHS, seed=options.seed)
    else:
        space = JointSpace(Projection(encoder), nn.Identity())
        fitted["scale_fitted"] = base is not None and space.fit_scale(base)
    fitted |= {"scale": space.scale, "bias": space.bias}
    classifier = MLFSIC(
        space, selection=Selection(k=options.patches), query_pool=options.query_pool
    )
    if cross:
        assert base is not None
        width = space.text(base.text[:1]).shape[1]
        heads = max(number for number in (8, 4, 2, 1) if width % number == 0)
        # The start of the weights depends on the seed alone, and the caller's random state stays.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            classifier.cross = CrossInteraction(width, heads=heads)
        settings = TrainSettings(epochs=options.epochs)
        log = fit_base(classifier, base, val, settings, seed=options.seed)
        fitted["cross"] = {
            "loss": log.losses,
            "validation_mAP": log.validation,
            "kept_epoch": log.best,
        }
    return classifier.eval(), fitted
