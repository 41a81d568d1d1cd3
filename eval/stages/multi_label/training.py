"""Episodic training of the cross-interaction on base labels; validation labels choose the epoch.

In: a classifier, base images, and validation images of other labels. Out: the weights of the epoch
with the best mean average precision on validation draws (the start counts as an epoch), and a log.
Loss: L_Q + L_CM of Yan et al., ACM TOMM (arXiv 2412.13732). An episode has one support image and
some queries of every base label.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data_pipeline.randomness import generator_at

from .joint_space import Labelled
from .metrics import multilabel_metrics
from .model import MLFSIC
from .sampler import MultiLabelEpisodeSampler


@dataclass(frozen=True)
class TrainSettings:
    """Epochs of ``episodes`` each; the learning rate rises over ``warmup`` episodes and stays.

    It is ten times the published rate. With that rate, the same number of epochs reached half the
    gain on the validation labels of the scenes.
    """

    epochs: int = 8
    episodes: int = 20
    queries: int = 4
    lr: float = 1e-3
    warmup: int = 20
    validation_draws: int = 5


@dataclass
class BaseTrainingLog:
    """Mean loss of every epoch, and validation mAP in percent before training and after each epoch.

    ``best`` is the number of the epoch whose weights were kept, 0 for the start.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int = 0


def fit_base(
    model: MLFSIC,
    base: Labelled,
    val: Labelled | None,
    settings: TrainSettings | None = None,
    *,
    seed: int,
) -> BaseTrainingLog:
    """Train all parameters of ``model`` that require gradients.

    Without ``val`` the weights after the last epoch are kept.

    Raises
    ------
    DataError
        If a base or validation label has too few images for an episode.
    """
    settings = settings or TrainSettings()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    adam = torch.optim.Adam(weights, lr=settings.lr)
    log = BaseTrainingLog()
    # The start is a candidate too: training may only make the prototypes worse.
    best = copy.deepcopy(model.state_dict())
    if val is not None:
        log.validation.append(validate(model, val, settings.validation_draws, seed))
    total = settings.epochs * settings.episodes
    # The support of a draw is that of an episode, whose queries are some of the other images.
    sampler = MultiLabelEpisodeSampler(
        base.truth,
        base.names,
        shot=1,
        draws=max(1, total),
        seed=seed,
        media=base.media,
        name="--base",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for dropout
        for number in range(total):
            warmed_up = min(1, (number + 1) / max(1, settings.warmup))
            adam.param_groups[0]["lr"] = settings.lr * warmed_up
            model.train()
            support, query = _episode(base.truth, sampler, number, settings.queries)
            loss = _episode_loss(model, base, support, query)
            adam.zero_grad()
            loss.backward()
            adam.step()
            if number % settings.episodes == 0:
                log.losses.append(0.0)
            log.losses[-1] += loss.item() / settings.episodes
            if val is not None and (number + 1) % settings.episodes == 0:
                model.eval()
                log.validation.append(validate(model, val, settings.validation_draws, seed))
                # Only a higher mAP counts: of equals the earliest is kept.
                if log.validation[-1] > max(log.validation[:-1]):
                    log.best, best = len(log.losses), copy.deepcopy(model.state_dict())
    if val is None:
        log.best = len(log.losses)
    else:
        model.load_state_dict(best)
    model.eval()
    return log


@torch.no_grad()
def validate(model: MLFSIC, data: Labelled, draws: int, seed: int) -> float:
    """Return the mean average precision of one-shot draws, in percent."""
    model.eval()
    # The space may be in training, so images are mapped anew each time.
    local, labels = model.space.local(data.patch), model.space.text(data.text)
    present = data.present()
    sampler = MultiLabelEpisodeSampler(
        data.truth, data.names, shot=1, draws=draws, seed=seed, media=data.media, name="--val"
    )
    by_draw = []
    for draw in sampler.all():
        vectors = model.prototypes(local[draw.support], present[draw.support], labels).vectors
        scores = model.predict(local[draw.query], vectors).double().numpy()
        by_draw.append(multilabel_metrics(scores, data.truth[draw.query], None)[0]["mAP"])
    return 100 * float(np.mean(by_draw))


def _episode(
    truth: NDArray[np.bool_], sampler: MultiLabelEpisodeSampler, number: int, queries: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows of support images, and of up to ``queries`` query images of each label."""
    draw = sampler[number]
    # The last number keeps these draws apart from those of the support.
    rng = generator_at(sampler.seed, number, 1)
    rows = rng.permutation(draw.query)
    by_label = []
    for label in range(truth.shape[1]):
        by_label.append(rows[truth[rows, label]][:queries])
    return draw.support, np.unique(np.concatenate(by_label))


def _episode_loss(
    model: MLFSIC, base: Labelled, support: NDArray[np.int64], query: NDArray[np.int64]
) -> torch.Tensor:
    space = model.space
    labels, present = space.text(base.text), base.present(support)
    local = space.vision(base.patch[support].float())
    query_local = space.vision(base.patch[query].float())
    vectors = model.prototypes(local, present, labels).vectors
    query_logits = model.predict(query_local, vectors)
    loss = F.binary_cross_entropy_with_logits(query_logits, base.present(query))
    # L_CM trains the space alone, and is a constant if the space is fixed.
    if any(weight.requires_grad for weight in space.parameters()):
        logits = space.logits(local.mean(1), labels)
        loss = loss + F.binary_cross_entropy_with_logits(logits, present)
    return loss
