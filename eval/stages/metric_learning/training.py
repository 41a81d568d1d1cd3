"""Train an embedder on the tokens of a frozen tower, against a class adversary.

In: tokens of chosen blocks and the classes of images. Out: the trained embedder and its curves.
Batches and the first weights depend on the seed alone; the last bits of the result also depend on
the device and on the number of threads.
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

IMAGES_AT_ONCE = 512  # of a forward pass without gradients


@dataclass(frozen=True)
class Settings:
    """How an embedder is trained.

    The loss of the ``adversary`` has the weight ``strength``, after a linear ramp over the share
    ``ramp`` of the steps. A batch holds ``classes`` classes with ``per_class`` images each. The
    learning rate falls along a cosine to zero at ``steps``; training may end earlier, at ``stop``.
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
class TrainingCurves:
    """Losses and accuracies of the adversary by step, and observations after some steps."""

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
) -> TrainingCurves:
    """Train ``embedder`` in place and leave it in eval mode.

    Parameters
    ----------
    embedder
        Maps tokens of blocks to `Embedded`.
    layers, grid
        Tokens by block, each (images, 1 + rows * columns, width), and their grid.
    labels
        Class of each image, from 0.
    settings
        Losses, steps and seed.
    against
        What the adversary predicts in place of ``labels``: a nuisance that features should lose.
    adversary
        Used in place of the adversary that the settings describe.
    observe, observed_at
        Called after these steps, in eval mode; what it returns is logged.

    Raises
    ------
    DataError
        If fewer than two classes have two images.
    """
    device = next(embedder.parameters()).device
    target = torch.from_numpy(labels).to(device)
    hidden = target if against is None else torch.from_numpy(against).to(device)
    batches = ClassBatches(labels, settings.classes, settings.per_class, settings.seed)
    # First weights come from torch's global generator, whose state is the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        # A first batch shows the sizes of the features; losses and adversary are made to fit them.
        embedded = _embed(embedder, layers, grid, batches.rows(0), device)
        losses = _losses(settings.loss, embedded, int(labels.max()) + 1).to(device)
        if adversary is None:
            adversary = ClassAdversary(
                embedded.general.shape[1], int(hidden.max()) + 1, settings.adversary
            )
        adversary = adversary.to(device)
    parameters = [*embedder.parameters(), *losses.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, betas=settings.betas, fused=True)
    curves = TrainingCurves()
    ramp_steps = max(1.0, settings.ramp * settings.steps)
    for step in range(settings.steps if settings.stop is None else settings.stop):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (1 + math.cos(math.pi * step / settings.steps)) / 2
        embedder.train()
        rows = batches.rows(step)
        embedded = _embed(embedder, layers, grid, rows, device)
        loss = _metric_loss(losses, embedded, target[rows])
        # The adversary learns first, so that the embedder meets it at its best.
        curves.adversary.append(adversary.adversary_step(embedded.general, hidden[rows]))
        strength = settings.strength * min(1.0, (step + 1) / ramp_steps)
        optimizer.zero_grad()
        (loss + adversary.encoder_loss(embedded.general, hidden[rows], strength)).backward()
        optimizer.step()
        curves.losses.append(float(loss.detach()))
        if observe is not None and step + 1 in observed_at:
            embedder.eval()
            curves.observed[step + 1] = observe()
    embedder.eval()
    return curves


def _losses(name: Loss, embedded: Embedded, classes: int) -> nn.ModuleList:
    """Make a metric loss for the descriptor and one for each block's feature."""
    losses = nn.ModuleList()
    for features in (embedded.embedding, *embedded.per_layer):
        losses.append(metric_loss(name, classes, features.shape[1]))
    return losses


def _metric_loss(losses: nn.ModuleList, embedded: Embedded, classes: Tensor) -> Tensor:
    """Average the losses of the descriptor and of each block's feature."""
    all_features = [embedded.embedding, *embedded.per_layer]
    total = sum(loss(f, classes) for loss, f in zip(losses, all_features, strict=True))
    mean: Tensor = total / len(all_features)
    return mean


class ClassBatches:
    """Batches of ``classes`` classes with ``per_class`` images each.

    A batch depends on the seed and its step alone. The sampler of pytorch-metric-learning draws
    from numpy's global generator, whose state a resumed run would not have.
    """

    def __init__(self, labels: NDArray[np.int64], classes: int, per_class: int, seed: int) -> None:
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        self._members = [rows for rows in members if len(rows) > 1]
        if len(self._members) < 2:
            raise DataError(
                f"{len(self._members)} of {len(members)} classes to learn from have two images: "
                "metric learning needs at least two such classes"
            )
        self._classes = min(classes, len(self._members))
        self._per_class, self._seed = per_class, seed

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the rows of a step's images; a class with too few images repeats some."""
        generator = generator_at(self._seed, step)
        chosen = []
        for number in generator.permutation(len(self._members))[: self._classes]:
            rows = self._members[number]
            repeat = len(rows) < self._per_class
            chosen.append(generator.choice(rows, self._per_class, replace=repeat))
        return np.concatenate(chosen)


@torch.inference_mode()
def embed(
    embedder: nn.Module, layers: Mapping[int, Tensor], grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the descriptors and general features of all images, on the CPU.

    The embedder must be in eval mode.
    """
    descriptors, general = [], []
    for embedded in _embed_all(embedder, layers, grid):
        descriptors.append(embedded.embedding.cpu())
        general.append(embedded.general.cpu())
    return torch.cat(descriptors), torch.cat(general)


@torch.inference_mode()
def attention(
    embedder: nn.Module, layers: Mapping[int, Tensor], grid: tuple[int, int]
) -> dict[int, Tensor]:
    """Return by block the attention of all images over patches (images, patches), on the CPU."""
    weights: dict[int, list[Tensor]] = {}
    for embedded in _embed_all(embedder, layers, grid):
        for layer, of_batch in embedded.weights.items():
            weights.setdefault(layer, []).append(of_batch.cpu())
    return {layer: torch.cat(batches) for layer, batches in weights.items()}


def class_folds(
    labels: Sequence[str], folds: int, seed: int = 0
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Divide classes into ``folds`` parts.

    Returns for each part the rows to train on and the rows to validate on, which share no class.

    Raises
    ------
    DataError
        If there are fewer classes than twice the folds: a held-out class needs another to be
        confused with.
    """
    names = sorted(set(labels))
    if len(names) < 2 * folds:
        raise DataError(
            f"{len(names)} classes to learn from cannot be divided into {folds} folds of two "
            "classes each"
        )
    fold_of = {}
    for position, number in enumerate(generator_at(seed).permutation(len(names))):
        fold_of[names[number]] = position % folds
    fold = np.array([fold_of[label] for label in labels])
    return [(np.flatnonzero(fold != part), np.flatnonzero(fold == part)) for part in range(folds)]


def _embed_all(
    embedder: nn.Module, layers: Mapping[int, Tensor], grid: tuple[int, int]
) -> Iterator[Embedded]:
    if embedder.training:
        raise ValueError(
            "an embedder in training mode would give other descriptors: call eval() first"
        )
    device = next(embedder.parameters()).device
    count = len(next(iter(layers.values())))
    for start in range(0, count, IMAGES_AT_ONCE):
        rows = np.arange(start, min(start + IMAGES_AT_ONCE, count))
        yield _embed(embedder, layers, grid, rows, device)


def _embed(
    embedder: nn.Module,
    layers: Mapping[int, Tensor],
    grid: tuple[int, int],
    rows: NDArray[Any],
    device: torch.device,
) -> Embedded:
    chosen = torch.from_numpy(rows)
    tokens = {}
    for layer, all_tokens in layers.items():
        # Tokens are kept in float16; heads compute in float32.
        tokens[layer] = all_tokens[chosen].to(device).float()
    embedded: Embedded = embedder(tokens, grid)
    return embedded
