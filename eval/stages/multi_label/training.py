"""Episodic training of the cross-interaction on base labels; how long is decided by labels that it never saw.

In: a classifier, base pictures, validation pictures of other labels. Out: the weights of the epoch
with the best mean average precision on validation draws, the start among them, and what was seen on
the way. Loss: L_Q + L_CM of Yan et al., ACM TOMM (arXiv 2412.13732); an episode has one support
picture and some queries of every base label.
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

    It is ten times the published one, with which as many epochs got half as far on the scenes'
    validation labels.
    """

    epochs: int = 8
    episodes: int = 20
    queries: int = 4
    lr: float = 1e-3
    warmup: int = 20
    validation_draws: int = 5


@dataclass
class TrainLog:
    """Mean loss of every epoch; validation mAP in percent before the first and after every one; the best one kept."""

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
) -> TrainLog:
    """Train what of ``model`` asks for gradients; without ``val`` all epochs, and the last one is kept.

    Raises
    ------
    DataError
        If a label of either has too few pictures for an episode.
    """
    settings = settings or TrainSettings()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    adam = torch.optim.Adam(weights, lr=settings.lr)
    log = TrainLog()
    best = copy.deepcopy(model.state_dict())
    if val is not None:
        log.validation.append(validate(model, val, settings.validation_draws, seed))
    total = settings.epochs * settings.episodes
    # One draw's support pictures are an episode's; its queries are chosen among the rest.
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
        torch.manual_seed(seed)  # dropout
        for number in range(total):
            adam.param_groups[0]["lr"] = settings.lr * min(
                1, (number + 1) / max(1, settings.warmup)
            )
            model.train()
            loss = _episode_loss(
                model, base, *_episode(base.truth, sampler, number, settings.queries)
            )
            adam.zero_grad()
            loss.backward()
            adam.step()
            if number % settings.episodes == 0:
                log.losses.append(0.0)
            log.losses[-1] += loss.item() / settings.episodes
            if val is not None and (number + 1) % settings.episodes == 0:
                model.eval()
                log.validation.append(validate(model, val, settings.validation_draws, seed))
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
    """Mean average precision in percent of one-shot draws."""
    model.eval()
    local, labels, present = (
        model.space.local(data.patch),
        model.space.text(data.text),
        data.present(),
    )
    sampler = MultiLabelEpisodeSampler(
        data.truth, data.names, shot=1, draws=draws, seed=seed, media=data.media, name="--val"
    )
    found = []
    for draw in sampler.all():
        vectors = model.prototypes(local[draw.support], present[draw.support], labels).vectors
        scores = model.predict(local[draw.query], vectors).double().numpy()
        found.append(multilabel_metrics(scores, data.truth[draw.query], None)[0]["mAP"])
    return 100 * float(np.mean(found))


def _episode(
    truth: NDArray[np.bool_], sampler: MultiLabelEpisodeSampler, number: int, queries: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    draw = sampler[number]
    rng = generator_at(sampler.seed, number, 1)
    rows = rng.permutation(draw.query)
    by_label = [rows[truth[rows, label]][:queries] for label in range(truth.shape[1])]
    return draw.support, np.unique(np.concatenate(by_label))


def _episode_loss(
    model: MLFSIC, base: Labelled, support: NDArray[np.int64], query: NDArray[np.int64]
) -> torch.Tensor:
    space = model.space
    labels, present = space.text(base.text), base.present(support)
    local, asked = (
        space.vision(base.patch[support].float()),
        space.vision(base.patch[query].float()),
    )
    vectors = model.prototypes(local, present, labels).vectors
    loss = F.binary_cross_entropy_with_logits(model.predict(asked, vectors), base.present(query))
    if any(weight.requires_grad for weight in space.parameters()):  # else it is a constant
        logits = space.logits(local.mean(1), labels)
        loss = loss + F.binary_cross_entropy_with_logits(logits, present)
    return loss
