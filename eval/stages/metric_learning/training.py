"""Train an embedder on the tokens of a frozen tower, against a class adversary.

In: tokens of chosen blocks and the classes of pictures. Out: the trained embedder and its curves.
Batches and the first weights depend on the seed alone; the last bits of the result depend on the
device and on the number of threads too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data_pipeline.errors import DataError
from data_pipeline.randomness import generator_at

from .heads.adversary import ClassAdversary
from .heads.gdfl import Embedded
from .losses import metric_loss
from .options import Adversary, Loss

PICTURES_AT_ONCE = 512


@dataclass(frozen=True)
class Settings:
    """How an embedder is trained.

    ``adversary`` weighs ``strength`` times the metric loss after a linear ramp over the first
    ``ramp`` of the steps; a batch holds ``classes`` classes with ``per_class`` pictures each. The
    learning rate falls along a cosine to zero at ``steps``; ``stop`` ends before.
    """

    loss: Loss = "multi_similarity"
    adversary: Adversary = "grl"
    strength: float = 0.1
    ramp: float = 0.25
    steps: int = 200
    stop: int | None = None
    classes: int = 16
    per_class: int = 4
    lr: float = 3e-3
    betas: tuple[float, float] = (0.5, 0.99)
    seed: int = 0


@dataclass
class TrainLog:
    """Curves of a training: losses and the adversary's own accuracy per step, and what was observed after some."""

    losses: list[float] = field(default_factory=list)
    adversary: list[float] = field(default_factory=list)
    observed: dict[int, float] = field(default_factory=dict)


def train_dml(
    embedder: nn.Module,
    layers: Mapping[int, Tensor],
    grid: tuple[int, int],
    labels: NDArray[np.int64],
    settings: Settings,
    *,
    against: NDArray[np.int64] | None = None,
    adversary: ClassAdversary | None = None,
    observe: Callable[[], float] | None = None,
    observed_at: Sequence[int] = (),
) -> TrainLog:
    """Train ``embedder`` in place and leave it in eval mode.

    Parameters
    ----------
    embedder
        Maps tokens of blocks to `Embedded`.
    layers, grid
        Tokens by block, each (pictures, 1 + rows * columns, width), and their grid.
    labels
        Class of each picture, from 0.
    settings
        Losses, steps and seed.
    against
        What the adversary tells instead of ``labels``: a nuisance that the features are to lose.
    adversary
        Instead of the one that the settings describe.
    observe, observed_at
        Called after these steps, in eval mode; what it returns is logged.

    Raises
    ------
    DataError
        If fewer than two classes have two pictures.
    """
    device = next(embedder.parameters()).device
    target = torch.from_numpy(labels).to(device)
    hidden = target if against is None else torch.from_numpy(against).to(device)
    batches = ClassBatches(labels, settings.classes, settings.per_class, settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        made = _embed(embedder, layers, grid, batches.rows(0), device)
        sizes = [made.embedding.shape[1], *(feature.shape[1] for feature in made.per_layer)]
        classes = int(labels.max()) + 1
        losses = nn.ModuleList(metric_loss(settings.loss, classes, size) for size in sizes).to(
            device
        )
        if adversary is None:
            adversary = ClassAdversary(
                made.general.shape[1], int(hidden.max()) + 1, settings.adversary
            )
        adversary = adversary.to(device)
    parameters = [*embedder.parameters(), *losses.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, betas=settings.betas, fused=True)
    log = TrainLog()
    for step in range(settings.steps if settings.stop is None else settings.stop):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (1 + math.cos(math.pi * step / settings.steps)) / 2
        embedder.train()
        rows = batches.rows(step)
        made = _embed(embedder, layers, grid, rows, device)
        several = [made.embedding, *made.per_layer]
        loss = sum(
            one(each, target[rows]) for one, each in zip(losses, several, strict=True)
        ) / len(several)
        log.adversary.append(adversary.adversary_step(made.general, hidden[rows]))
        strength = settings.strength * min(
            1.0, (step + 1) / max(1.0, settings.ramp * settings.steps)
        )
        optimizer.zero_grad()
        (loss + adversary.encoder_loss(made.general, hidden[rows], strength)).backward()
        optimizer.step()
        log.losses.append(float(loss.detach()))
        if observe is not None and step + 1 in observed_at:
            embedder.eval()
            log.observed[step + 1] = observe()
    embedder.eval()
    return log


class ClassBatches:
    """Batches of ``classes`` classes with ``per_class`` pictures each; a batch depends on the seed and its step alone.

    pytorch-metric-learning's own sampler draws from numpy's global generator.
    """

    def __init__(self, labels: NDArray[np.int64], classes: int, per_class: int, seed: int) -> None:
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self._members = [rows for rows in members if len(rows) > 1]
        if len(self._members) < 2:
            raise DataError(
                f"{len(self._members)} of {len(members)} classes to learn from have two pictures: metric learning "
                "needs two such classes at least"
            )
        self._classes, self._per_class, self._seed = (
            min(classes, len(self._members)),
            per_class,
            seed,
        )

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of the pictures of a step; pictures repeat where a class has fewer than a batch takes."""
        generator = generator_at(self._seed, step)
        drawn = generator.permutation(len(self._members))[: self._classes]
        chosen = []
        for number in drawn:
            rows = self._members[number]
            chosen.append(
                generator.choice(rows, self._per_class, replace=len(rows) < self._per_class)
            )
        return np.concatenate(chosen)


@torch.inference_mode()
def embed(
    embedder: nn.Module, layers: Mapping[int, Tensor], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return all pictures' descriptors and general features, on the CPU; the embedder must be in eval mode."""
    made = list(_all(embedder, layers, grid))
    return torch.cat([each.embedding for each in made]).cpu(), torch.cat(
        [each.general for each in made]
    ).cpu()


@torch.inference_mode()
def attention(
    embedder: nn.Module, layers: Mapping[int, Tensor], grid: tuple[int, int]
) -> dict[int, Tensor]:
    """Return all pictures' attention over patches (pictures, rows * columns) by block, on the CPU."""
    made = [each.weights for each in _all(embedder, layers, grid)]
    return {layer: torch.cat([weights[layer] for weights in made]).cpu() for layer in made[0]}


def class_folds(
    labels: Sequence[str], folds: int, seed: int = 0
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Divide classes into ``folds`` parts; return rows to train on and rows to validate on, which share no class.

    Raises
    ------
    DataError
        If there are fewer classes than twice the folds: one class cannot be confused with another.
    """
    names = sorted(set(labels))
    if len(names) < 2 * folds:
        raise DataError(
            f"{len(names)} classes to learn from cannot be divided into {folds} folds of two classes each"
        )
    generator = generator_at(seed)
    fold_of = dict(
        zip(
            [names[i] for i in generator.permutation(len(names))],
            np.arange(len(names)) % folds,
            strict=True,
        )
    )
    fold = np.array([fold_of[label] for label in labels])
    return [
        (np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(folds)
    ]


def _all(
    embedder: nn.Module, layers: Mapping[int, Tensor], grid: tuple[int, int]
) -> Iterator[Embedded]:
    if embedder.training:
        raise ValueError(
            "an embedder in training mode would give other descriptors: call eval() first"
        )
    device = next(embedder.parameters()).device
    count = len(next(iter(layers.values())))
    for start in range(0, count, PICTURES_AT_ONCE):
        yield _embed(
            embedder, layers, grid, np.arange(start, min(start + PICTURES_AT_ONCE, count)), device
        )


def _embed(
    embedder: nn.Module,
    layers: Mapping[int, Tensor],
    grid: tuple[int, int],
    rows: NDArray[Any],
    device: torch.device,
) -> Embedded:
    chosen = torch.from_numpy(rows)
    made: Embedded = embedder(
        {layer: tokens[chosen].to(device).float() for layer, tokens in layers.items()}, grid
    )
    return made
