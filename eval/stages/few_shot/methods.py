"""Which methods can run with the data at hand, and how each is made ready with chosen settings.

In: data sets by role, the form of the episodes, an encoder. Out: methods ready to classify.
Settings and epochs are chosen on validation classes alone: no method sees the classes that are
measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from data_pipeline.errors import UsageError
from eval.encoding.encoders import Encoder
from eval.encoding.labelled_images import read_pixels

from .baselines import (
    LinearProbe,
    Method,
    NearestNeighbour,
    Proto,
    SimpleShot,
    TipAdapter,
    ZeroShot,
)
from .cpea import CPEAHead
from .episodes import EpisodeSampler
from .gliml import GLIMLHead
from .inference import World, best_on_validation
from .options import Interplay, Mode
from .splits import Split
from .training import LAMBDAS, Epoch, Finetuning, TrainSettings, encode_again, train_head

METHODS = (
    "zero_shot",
    "nearest_neighbour",
    "proto",
    "simpleshot",
    "tip_adapter",
    "linear_probe",
    "cpea",
    "gliml_untrained",
    "gliml",
)
VALIDATION_EPISODES = 200
EPISODES_PER_EPOCH = 100  # as CPEA's authors train
_NEED_NAMES = ("zero_shot", "tip_adapter", "linear_probe")
_TRAINED = ("cpea", "gliml")
_CHOSEN = ("tip_adapter", "linear_probe", *_TRAINED)


def usable(
    requested: Sequence[str] | None, *, joint: bool, base: bool, val: bool, mode: Mode
) -> tuple[list[str], dict[str, str]]:
    """Return the methods that run, in the order of `METHODS`, and why others are left out.

    Parameters
    ----------
    requested
        Names of methods; by default all that can run.
    joint
        Whether the encoder has a space that images share with texts.
    base, val
        Whether there are base classes to train on, and validation classes to choose on.
    mode
        Training of GLIML and CPEA; with `none` neither of them runs.

    Raises
    ------
    UsageError
        For an empty list, an unknown method, or a requested method that cannot run.
    """
    if requested is not None and not requested:
        raise UsageError("methods is empty: leave it out to run all that can")
    for name in requested or ():
        if name not in METHODS:
            raise UsageError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    problems: dict[str, str] = {}
    for name in METHODS:
        if name in _NEED_NAMES and not joint:
            problems[name] = "the encoder has no space that images share with texts"
        elif name in _TRAINED and mode == "none":
            problems[name] = 'it is trained, and the mode is "none"'
        elif name in _TRAINED and not base:
            problems[name] = "it is trained on base classes: give --base"
        elif name in _CHOSEN and not val:
            problems[name] = (
                "its settings are chosen on validation classes, never on those measured: give --val"
            )
    # A method that cannot run is left out by default, but is an error if the user named it.
    if requested is None:
        return [name for name in METHODS if name not in problems], problems
    for name in requested:
        if name in problems:
            raise UsageError(f"{name} cannot run: {problems[name]}")
    return [name for name in METHODS if name in requested], {}


@dataclass(frozen=True)
class Ready:
    """A method to measure, its settings for result.json, and the images that it classifies."""

    method: Method
    settings: dict[str, Any]
    world: World


@dataclass(frozen=True)
class Form:
    """The episodes that a method is made for, and how GLIML is built and trained.

    With the ``interplay`` `gated`, GLIML sums gated patches and needs no training. With `additive`
    it has CPEA's MLP on all four blocks, and a lambda that is chosen on validation classes.
    """

    way: int
    shot: int
    queries: int
    seed: int
    mode: Mode
    epochs: int
    interplay: Interplay


def make(name: str, splits: Mapping[str, Split], form: Form, encoder: Encoder) -> Ready:
    """Make a method ready; it is trained on the split `base` and its settings chosen on `val`.

    Raises
    ------
    UsageError, DataError
        If the splits do not allow episodes of this form.
    """
    world, base = splits["data"].world, splits.get("base")
    patches, width = world.tokens.patch.shape[1:]
    if name == "simpleshot":
        if base is None:
            return Ready(SimpleShot(None), {"centre": "support"}, world)
        centre = base.world.tokens.cls.mean(dim=0)
        return Ready(SimpleShot(centre), {"centre": "base"}, world)
    if name == "tip_adapter":
        return _tuned(TipAdapter.grid(), splits, form)
    if name == "linear_probe":
        return _tuned(LinearProbe.grid(), splits, form)
    if name == "cpea":
        # CPEA is published with a frozen encoder, whatever GLIML trains.
        head: GLIMLHead = CPEAHead(width, patches, seed=form.seed)
        return _trained(head, splits, replace(form, mode="frozen"), encoder)
    if name == "gliml":
        if form.interplay == "additive":
            head = GLIMLHead(width, patches, interplay="additive", head="mlp", seed=form.seed)
            return _trained(head, splits, form, encoder, LAMBDAS)
        return _trained(GLIMLHead(width, patches, seed=form.seed), splits, form, encoder)
    simple: dict[str, Method] = {
        "zero_shot": ZeroShot(),
        "nearest_neighbour": NearestNeighbour(),
        "proto": Proto(),
        # Without gradients its weights do not count as learned.
        "gliml_untrained": GLIMLHead(width, patches, seed=form.seed).requires_grad_(False),
    }
    return Ready(simple[name], {}, world)


def _tuned(
    candidates: Iterable[TipAdapter | LinearProbe], splits: Mapping[str, Split], form: Form
) -> Ready:
    episodes = list(_sampler(splits["val"], form, VALIDATION_EPISODES))
    best, accuracy = best_on_validation(candidates, splits["val"].world, episodes)
    return Ready(best, asdict(best) | {"validation_accuracy": accuracy}, splits["data"].world)


def _trained(
    head: GLIMLHead,
    splits: Mapping[str, Split],
    form: Form,
    encoder: Encoder,
    lambdas: tuple[float, ...] = (),
) -> Ready:
    data, base, val = splits["data"], splits["base"], splits["val"]
    base_episodes = list(_sampler(base, form, EPISODES_PER_EPOCH * form.epochs))
    val_episodes = list(_sampler(val, form, VALIDATION_EPISODES))
    settings = TrainSettings(mode=form.mode, epochs=form.epochs, lambdas=lambdas, seed=form.seed)
    finetuning, encoder_before, cache_before = None, None, None
    if form.mode == "finetune":
        finetuning = Finetuning(encoder, _pixels(base, encoder), _pixels(val, encoder))
        encoder_before, cache_before = deepcopy(encoder.module.state_dict()), encoder.cache
    log = train_head(head, base.world, base_episodes, val.world, val_episodes, settings, finetuning)
    best = _described(log.best)
    described = {
        "mode": form.mode,
        "validation_accuracy": best.pop("accuracy"),
        **best,
        "training": [_described(epoch) for epoch in log.epochs],
    }
    if encoder_before is None:
        return Ready(head, described, data.world)
    tokens = encode_again(encoder, _pixels(data, encoder), data.world.tokens)
    # The next method starts from the encoder as it was loaded.
    encoder.module.load_state_dict(encoder_before)
    encoder.cache = cache_before
    return Ready(head, described, replace(data.world, tokens=tokens))


def _described(epoch: Epoch) -> dict[str, Any]:
    """Describe an epoch for result.json; without lambda if the head has none."""
    described = asdict(epoch)
    if epoch.lam is None:
        del described["lam"]
    return described


def _sampler(split: Split, form: Form, episodes: int) -> EpisodeSampler:
    return split.learning_sampler(form.way, form.shot, form.queries, episodes, form.seed)


def _pixels(split: Split, encoder: Encoder) -> Callable[[Sequence[int]], Tensor]:
    def read(rows: Sequence[int]) -> Tensor:
        rows_in_data_set = [split.rows[row] for row in rows]
        return read_pixels(split.manifest, rows_in_data_set, encoder.image_size)

    return read
