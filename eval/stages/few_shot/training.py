"""Episodic training of few-shot heads on base classes, with choices made on validation classes.

In: images of base and validation classes with their episodes. Out: the head (and the encoder, if
that is fine-tuned too) with the weights of the epoch, and the lambda, with the highest accuracy in
the validation episodes. Rates, decay, halving and smoothing are CPEA's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import StepLR

from data_pipeline.errors import NumericsError, UsageError
from eval.encoding.encoders import Encoder
from eval.encoding.labelled_images import ImageTokens, pool_patches
from eval.stages.few_shot.episodes import Episode, EpisodeSampler

from .episode_tokens import EpisodeTokens
from .gliml import GLIMLHead, check_choice
from .inference import World, accuracy
from .options import Mode

LAMBDAS = (0.0, 0.25, 0.5, 1.0, 2.0)
EPOCHS_PER_HALVING = 5


@dataclass(frozen=True)
class TrainSettings:
    """How a head learns.

    The mode `frozen` trains the head on the encoder's tokens, `finetune` the encoder with it, and
    `none` trains nothing. The base episodes are divided among the ``epochs``; a step takes
    ``episodes_per_step`` of them. The head is trained anew with each of ``lambdas``, or with its
    own lambda if there are none; only the additive interplay has one.
    """

    mode: Mode = "frozen"
    epochs: int = 10
    episodes_per_step: int = 8
    lambdas: tuple[float, ...] = ()
    head_rate: float = 1e-3
    encoder_rate: float = 1e-5
    weight_decay: float = 1e-3
    label_smoothing: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("the training mode", self.mode, Mode)
        for name in ("epochs", "episodes_per_step", "head_rate", "encoder_rate"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.weight_decay < 0 or not 0 <= self.label_smoothing < 1:
            raise UsageError(
                "weight_decay must be 0 or more, and label_smoothing from 0 to below 1"
            )


@dataclass(frozen=True)
class Finetuning:
    """The encoder to train, and how to read the pixels of base and validation images.

    Both functions take rows and return bytes (rows, height, width, 3).
    """

    encoder: Encoder
    base: Callable[[Sequence[int]], Tensor]
    val: Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Epoch:
    """Loss and validation accuracy in percent after an epoch.

    Epoch 0 is the start, which has no loss. ``lam`` is None for a head without lambda.
    """

    lam: float | None
    epoch: int
    loss: float | None
    accuracy: float


@dataclass(frozen=True)
class EpochLog:
    """All epochs of all lambdas, and the chosen one."""

    epochs: list[Epoch]
    best: Epoch


def train_head(
    head: GLIMLHead,
    base: World,
    episodes: Sequence[Episode] | EpisodeSampler,
    val: World,
    val_episodes: Sequence[Episode],
    settings: TrainSettings,
    finetuning: Finetuning | None = None,
) -> EpochLog:
    """Train a head in place; the same seed gives the same bits on a CPU.

    Parameters
    ----------
    head
        The head to train; it stays on the CPU, where episodes are classified.
    base, episodes
        Images to learn from and their episodes.
    val, val_episodes
        Images of other classes; their episodes choose epoch and lambda, the earliest of equals.
    settings
        How the head learns.
    finetuning
        For the mode `finetune` only. It takes the cache away from the encoder, because features
        that were cached before the training are not those of the trained encoder.

    Raises
    ------
    UsageError
        If base and validation share a class, there are no validation episodes, fewer base episodes
        than epochs, or a setting does not fit the head.
    NumericsError
        If the loss is not finite.
    """
    _check(head, base, episodes, val, val_episodes, settings, finetuning)
    trained = nn.ModuleDict({"head": head})
    if finetuning is not None:
        trained["encoder"] = finetuning.encoder.module.requires_grad_(True)
        finetuning.encoder.cache = None
    start = deepcopy(trained.state_dict())
    epochs = 0 if settings.mode == "none" else settings.epochs
    episodes_per_epoch = len(episodes) // max(epochs, 1)  # the mode none has no epochs
    log: list[Epoch] = []
    best: Epoch | None = None
    best_state: dict[str, Any] = {}
    with torch.random.fork_rng():  # dropout draws from torch's global generator
        for lam in settings.lambdas or (head.interplay.lam,):
            # Every lambda has the same start and the same draws, so that only lambda differs.
            trained.load_state_dict(start)
            head.interplay.lam = lam
            torch.manual_seed(settings.seed)
            optimizer = _optimizer(trained, settings)
            schedule = StepLR(optimizer, EPOCHS_PER_HALVING, gamma=0.5)
            for epoch in range(epochs + 1):
                loss = None
                if epoch > 0:
                    numbers = range((epoch - 1) * episodes_per_epoch, epoch * episodes_per_epoch)
                    of_epoch = [episodes[number] for number in numbers]
                    loss = _epoch(head, base, of_epoch, optimizer, settings, finetuning)
                    schedule.step()
                validation = accuracy(head, _encoded_now(val, finetuning), val_episodes)
                logged_lam = lam if head.interplay.mode == "additive" else None
                log.append(Epoch(logged_lam, epoch, loss, validation))
                # Only a higher accuracy counts: of equals the earliest is kept.
                if best is None or validation > best.accuracy:
                    best, best_state = log[-1], deepcopy(trained.state_dict())
    assert best is not None
    trained.load_state_dict(best_state)
    if best.lam is not None:
        head.interplay.lam = best.lam
    return EpochLog(log, best)


@torch.no_grad()
def encode_again(
    encoder: Encoder,
    pixels: Callable[[Sequence[int]], Tensor],
    tokens: ImageTokens,
    at_once: int = 64,
) -> ImageTokens:
    """Return the tokens that a fine-tuned encoder now gives to the images of a token set.

    Tokens of layers are left out: no few-shot method reads them.
    """
    cls, patch, proj = [], [], []
    for start in range(0, len(tokens), at_once):
        rows = range(start, min(start + at_once, len(tokens)))
        encoded = _encode(encoder, pixels(rows), tokens.grid)
        cls.append(encoded.cls)
        patch.append(encoded.patch)
        if encoded.proj is not None:
            proj.append(encoded.proj)
    return replace(
        tokens,
        cls=torch.cat(cls),
        patch=torch.cat(patch).to(tokens.patch.dtype),
        proj=None if tokens.proj is None else torch.cat(proj),
        layers={},
    )


def _encoded_now(val: World, finetuning: Finetuning | None) -> World:
    if finetuning is None:
        return val
    return replace(val, tokens=encode_again(finetuning.encoder, finetuning.val, val.tokens))


def _encode(encoder: Encoder, pixels: Tensor, grid: tuple[int, int]) -> EpisodeTokens:
    encoded = encoder.encode(pixels)
    patch = pool_patches(encoded.tokens[:, 1:], encoder.grid, grid[0])
    proj = None if encoded.proj is None else encoded.proj.cpu()
    return EpisodeTokens(encoded.tokens[:, 0].cpu(), patch.cpu(), proj)


def _optimizer(trained: nn.ModuleDict, settings: TrainSettings) -> torch.optim.Adam:
    # The encoder is trained already, so its rate is much lower.
    rates = {"head": settings.head_rate, "encoder": settings.encoder_rate}
    groups = []
    for name, module in trained.items():
        groups.append({"params": module.parameters(), "lr": rates[name]})
    return torch.optim.Adam(groups, weight_decay=settings.weight_decay)


def _epoch(
    head: GLIMLHead,
    base: World,
    episodes: Sequence[Episode],
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    finetuning: Finetuning | None,
) -> float:
    """Take a step for every few episodes; return the mean of their losses."""
    head.train()
    losses = []
    for start in range(0, len(episodes), settings.episodes_per_step):
        optimizer.zero_grad()
        of_step = episodes[start : start + settings.episodes_per_step]
        losses.append(add_gradients(head, base, of_step, settings.label_smoothing, finetuning))
        optimizer.step()
    # Without dropout, for the validation that follows.
    head.eval()
    return math.fsum(losses) / len(losses)


def add_gradients(
    head: GLIMLHead,
    base: World,
    episodes: Sequence[Episode],
    label_smoothing: float,
    finetuning: Finetuning | None = None,
) -> float:
    """Add the gradients of the mean loss of a step's episodes, and return that loss.

    If the encoder learns, the images of one episode are encoded at a time: the activations of all
    episodes of a step would not fit into memory. The gradients are the same.

    Raises
    ------
    NumericsError
        If the loss is not finite.
    """
    at_once = len(episodes) if finetuning is None else 1
    total = 0.0
    for start in range(0, len(episodes), at_once):
        batch = episodes[start : start + at_once]
        rows = np.stack([np.concatenate([episode.support, episode.query]) for episode in batch])
        if finetuning is None:
            tokens = EpisodeTokens.of(base.tokens, rows)
        else:
            tokens = _encode_with_gradients(finetuning, base.tokens, rows)
        first = batch[0]
        supports = len(first.support)
        support = _images(tokens, slice(supports))
        query = _images(tokens, slice(supports, None))
        logits = head.logits(support, torch.from_numpy(first.support_y), query, len(first.classes))
        truth = torch.from_numpy(np.concatenate([episode.query_y for episode in batch]))
        loss = F.cross_entropy(logits.flatten(0, 1), truth, label_smoothing=label_smoothing)
        # A part of the step contributes to the mean by its number of episodes.
        loss = loss * (len(batch) / len(episodes))
        if not loss.isfinite():
            raise NumericsError(
                f"the training loss is {loss.item()}: lower head_rate, or encoder_rate if the "
                "encoder learns"
            )
        loss.backward()
        total += loss.item()
    return total


def _encode_with_gradients(
    finetuning: Finetuning, tokens: ImageTokens, rows: NDArray[np.int64]
) -> EpisodeTokens:
    """Encode the images of one episode, ``rows`` (1, n)."""
    encoded = _encode(finetuning.encoder, finetuning.base(rows[0].tolist()), tokens.grid)
    return EpisodeTokens(encoded.cls[None], encoded.patch[None])


def _images(tokens: EpisodeTokens, part: slice) -> EpisodeTokens:
    """Select images of every episode."""
    return EpisodeTokens(tokens.cls[:, part], tokens.patch[:, part])


def _check(
    head: GLIMLHead,
    base: World,
    episodes: Sequence[Episode] | EpisodeSampler,
    val: World,
    val_episodes: Sequence[Episode],
    settings: TrainSettings,
    finetuning: Finetuning | None,
) -> None:
    shared = sorted(set(base.labels) & set(val.labels))
    if shared:
        raise UsageError(
            f"base and validation share {len(shared)} classes, {shared[0]!r} among them: "
            "validation needs classes that heads did not learn"
        )
    if not val_episodes:
        raise UsageError(
            "epoch and lambda are chosen on validation episodes, and there are none: "
            "give a validation split"
        )
    # An epoch without episodes would have no loss.
    if settings.mode != "none" and len(episodes) < settings.epochs:
        raise UsageError(f"{len(episodes)} base episodes are too few for {settings.epochs} epochs")
    if settings.mode == "none" and head.similarity.head != "gated_sum":
        raise UsageError('the "mlp" head is random without training: train it, or use "gated_sum"')
    if settings.lambdas and head.interplay.mode != "additive":
        raise UsageError(f"the {head.interplay.mode} interplay has no lambda to choose")
    if (settings.mode == "finetune") != (finetuning is not None):
        raise UsageError("the mode finetune needs an encoder and pixels, the other modes take none")
