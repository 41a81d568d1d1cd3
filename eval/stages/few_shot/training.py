"""Episodic training of few-shot heads on base classes; what is chosen is chosen on validation classes alone.

In: pictures of base and validation classes with their episodes. Out: the head (and the encoder,
where it is fine-tuned too) as it was after the epoch, and with the lambda, that recognised most in
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
from .gliml import GLIMLHead, choice
from .inference import World, accuracy
from .options import Mode

LAMBDAS = (0.0, 0.25, 0.5, 1.0, 2.0)
EPOCHS_PER_HALVING = 5


@dataclass(frozen=True)
class TrainSettings:
    """How a head learns.

    ``frozen`` trains the head on the encoder's tokens, ``finetune`` the encoder with it, ``none``
    nothing. The base episodes are divided among the ``epochs``, a step takes ``episodes_per_step``.
    Each of ``lambdas`` is trained from the same start, the head's own is kept where there are none;
    only the additive interplay has one.
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
        choice("the training mode", self.mode, Mode)
        for name in ("epochs", "episodes_per_step", "head_rate", "encoder_rate"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.weight_decay < 0 or not 0 <= self.label_smoothing < 1:
            raise UsageError(
                "weight_decay must be 0 or more, and label_smoothing from 0 to below 1"
            )


@dataclass(frozen=True)
class Finetuning:
    """The encoder that learns, and bytes (rows, height, width, 3) of pictures by their rows in base and validation."""

    encoder: Encoder
    base: Callable[[Sequence[int]], Tensor]
    val: Callable[[Sequence[int]], Tensor]


@dataclass(frozen=True)
class Epoch:
    """An epoch of one lambda, where there is one; 0 is before training, no loss; ``accuracy`` is validation's, in %."""

    lam: float | None
    epoch: int
    loss: float | None
    accuracy: float


@dataclass(frozen=True)
class TrainLog:
    """All epochs, and the chosen one."""

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
) -> TrainLog:
    """Train in place; the same seed gives the same bits on a CPU.

    Parameters
    ----------
    head
        What learns; it stays on the CPU, where episodes are recognised.
    base, episodes
        Pictures to learn from and their episodes.
    val, val_episodes
        Pictures of other classes, by whose episodes epoch and lambda are chosen; of equals the
        earliest.
    finetuning
        For the mode `finetune` only. The encoder then keeps no cache any more: it is no longer what
        the cache knows.

    Raises
    ------
    UsageError
        If base and validation share a class, there are no validation episodes, or fewer base
        episodes than epochs, or a setting does not fit the head.
    NumericsError
        If the loss is not finite.
    """
    _check(head, base, episodes, val, val_episodes, settings, finetuning)
    learning = nn.ModuleDict({"head": head})
    if finetuning is not None:
        learning["encoder"] = finetuning.encoder.module.requires_grad_(True)
        finetuning.encoder.cache = None
    start = deepcopy(learning.state_dict())
    epochs = 0 if settings.mode == "none" else settings.epochs
    each = len(episodes) // max(epochs, 1)
    log: list[Epoch] = []
    kept: dict[str, Any] = {}
    with torch.random.fork_rng():  # dropout draws from torch's own generator
        for lam in settings.lambdas or (head.interplay.lam,):
            learning.load_state_dict(start)
            head.interplay.lam = lam
            torch.manual_seed(settings.seed)
            optimizer = _optimizer(learning, settings)
            schedule = StepLR(optimizer, EPOCHS_PER_HALVING, gamma=0.5)
            for epoch in range(epochs + 1):
                loss = None
                if epoch > 0:
                    some = [episodes[number] for number in range((epoch - 1) * each, epoch * each)]
                    loss = _epoch(head, base, some, optimizer, settings, finetuning)
                    schedule.step()
                shown = lam if head.interplay.mode == "additive" else None
                log.append(
                    Epoch(shown, epoch, loss, accuracy(head, _now(val, finetuning), val_episodes))
                )
                if log[-1].accuracy > max((one.accuracy for one in log[:-1]), default=-1.0):
                    kept = deepcopy(learning.state_dict())
    best = max(log, key=lambda one: one.accuracy)  # of equals the first
    learning.load_state_dict(kept)
    if best.lam is not None:
        head.interplay.lam = best.lam
    return TrainLog(log, best)


@torch.no_grad()
def encode_again(
    encoder: Encoder,
    pixels: Callable[[Sequence[int]], Tensor],
    tokens: ImageTokens,
    at_once: int = 64,
) -> ImageTokens:
    """Return what a fine-tuned encoder now gives to the pictures of a token set; tokens of layers are left out."""
    parts = [
        range(start, min(start + at_once, len(tokens))) for start in range(0, len(tokens), at_once)
    ]
    found = [_encode(encoder, pixels(part), tokens.grid) for part in parts]
    cls, patch = (torch.cat([getattr(one, name) for one in found]) for name in ("cls", "patch"))
    proj = (
        None
        if tokens.proj is None
        else torch.cat([one.proj for one in found if one.proj is not None])
    )
    return replace(tokens, cls=cls, patch=patch.to(tokens.patch.dtype), proj=proj, layers={})


def _now(val: World, finetuning: Finetuning | None) -> World:
    if finetuning is None:
        return val
    return replace(val, tokens=encode_again(finetuning.encoder, finetuning.val, val.tokens))


def _encode(encoder: Encoder, pixels: Tensor, grid: tuple[int, int]) -> EpisodeTokens:
    encoded = encoder.encode(pixels)
    patch = pool_patches(encoded.tokens[:, 1:], encoder.grid, grid[0])
    return EpisodeTokens(
        encoded.tokens[:, 0].cpu(),
        patch.cpu(),
        None if encoded.proj is None else encoded.proj.cpu(),
    )


def _optimizer(learning: nn.ModuleDict, settings: TrainSettings) -> torch.optim.Adam:
    rates = {"head": settings.head_rate, "encoder": settings.encoder_rate}
    groups = [
        {"params": module.parameters(), "lr": rates[name]} for name, module in learning.items()
    ]
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
        some = episodes[start : start + settings.episodes_per_step]
        losses.append(add_gradients(head, base, some, settings.label_smoothing, finetuning))
        optimizer.step()
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

    Where the encoder learns, one episode's pictures are encoded at a time: what it keeps for the
    gradients of a step's would not fit. The gradients are the same. NumericsError for a loss that
    is not finite.
    """
    at_once = len(episodes) if finetuning is None else 1
    total = 0.0
    for start in range(0, len(episodes), at_once):
        some = episodes[start : start + at_once]
        rows = np.stack([np.concatenate([episode.support, episode.query]) for episode in some])
        tokens = (
            EpisodeTokens.of(base.tokens, rows)
            if finetuning is None
            else _learned(finetuning, base.tokens, rows)
        )
        first = some[0]
        shown = len(first.support)
        support, query = (_pictures(tokens, part) for part in (slice(shown), slice(shown, None)))
        logits = head.logits(support, torch.from_numpy(first.support_y), query, len(first.classes))
        wanted = torch.from_numpy(np.concatenate([episode.query_y for episode in some]))
        loss = F.cross_entropy(logits.flatten(0, 1), wanted, label_smoothing=label_smoothing)
        loss = loss * (len(some) / len(episodes))
        if not loss.isfinite():
            raise NumericsError(
                f"the loss of training is {loss.item()}: lower head_rate, or encoder_rate if it learns"
            )
        loss.backward()
        total += loss.item()
    return total


def _learned(finetuning: Finetuning, tokens: ImageTokens, rows: NDArray[np.int64]) -> EpisodeTokens:
    """Tokens of one episode (1, n), with gradients."""
    encoded = _encode(finetuning.encoder, finetuning.base(rows[0].tolist()), tokens.grid)
    return EpisodeTokens(encoded.cls[None], encoded.patch[None])


def _pictures(tokens: EpisodeTokens, part: slice) -> EpisodeTokens:
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
            f"base and validation share {len(shared)} classes, {shared[0]!r} among them: validation must show classes "
            "that heads did not learn"
        )
    if not val_episodes:
        raise UsageError(
            "epoch and lambda are chosen on validation episodes, and there are none: give a validation split"
        )
    if settings.mode != "none" and len(episodes) < settings.epochs:
        raise UsageError(f"{len(episodes)} base episodes are too few for {settings.epochs} epochs")
    if settings.mode == "none" and head.similarity.head != "gated_sum":
        raise UsageError('the "mlp" head says nothing untrained: train it, or take "gated_sum"')
    if settings.lambdas and head.interplay.mode != "additive":
        raise UsageError(f"the {head.interplay.mode} interplay has no lambda to choose")
    if (settings.mode == "finetune") != (finetuning is not None):
        raise UsageError("an encoder and pictures are given in the mode finetune, and only there")
