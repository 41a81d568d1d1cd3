"""Metric losses of pytorch-metric-learning by name, on unit descriptors.

In: the name, the number of classes and the size of descriptors. Out: a module of (descriptors,
classes) to a loss; `proxy_anchor` and `arcface` hold parameters for every class.
"""

from __future__ import annotations

import math

from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import CosineSimilarity
from torch import nn

from data_pipeline.errors import UsageError

from .options import LOSSES, Loss


def metric_loss(name: Loss, classes: int, size: int) -> nn.Module:
    """Make the loss called ``name``; losses with proxies draw them from torch's generator.

    The margin and scale of `arcface` are those of DOLG and ViTGaL; the others keep the library's
    defaults, with cosine similarities for triplets.

    Raises
    ------
    UsageError
        If there is no such loss.
    """
    loss: nn.Module
    if name == "triplet":
        loss = losses.TripletMarginLoss(margin=0.1, distance=CosineSimilarity())
    elif name == "multi_similarity":
        loss = losses.MultiSimilarityLoss()
    elif name == "proxy_anchor":
        loss = losses.ProxyAnchorLoss(classes, size)
    elif name == "supcon":
        loss = losses.SupConLoss()
    elif name == "margin":
        loss = losses.MarginLoss()
    elif name == "arcface":
        # DOLG gives the margin in radians, the library takes degrees.
        loss = losses.ArcFaceLoss(classes, size, margin=math.degrees(0.15), scale=30)
    else:
        raise UsageError(f"loss is {name!r}, must be one of {', '.join(LOSSES)}")
    return loss
