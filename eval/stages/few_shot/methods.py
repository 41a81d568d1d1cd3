"""Which methods can run with what there is, and each of them ready to recognise, with its settings chosen.

Settings and epochs come from validation classes alone: nothing here sees the classes that are
measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from .gliml import GLIMLHead
from .inference import World, choose
from .options import Interplay, Mode
from .splits import Split
from .training import LAMBDAS, Finetuning, TrainSettings, encode_again, train_head

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
EPISODES_AN_EPOCH = 100  # CPEA's
_NEED_NAMES = ("zero_shot", "tip_adapter", "linear_probe")
_TRAINED = ("cpea", "gliml")
_CHOSEN = ("tip_adapter", "linear_probe", *_TRAINED)


def usable(
    asked: Sequence[str] | None, *, joint: bool, base: bool, val: bool, mode: Mode
) -> tuple[list[str], dict[str, str]]:
    """Return the methods that run, in the order of `METHODS`, and why others are left out.

    Parameters
    ----------
    asked
        Names of methods; all that can run by default.
    joint
        Whether the encoder has a space that pictures share with texts.
    base, val
        Whether there are base classes to train on, validation classes to choose on.
    mode
        What of GLIML is trained: with `none` neither it nor CPEA.

    Raises
    ------
    UsageError
        For no or an unknown method, and for one that was asked for and cannot run.
    """
    if asked is not None and not asked:
        raise UsageError("methods names none: leave it out for all that can run")
    for name in asked or ():
        if name not in METHODS:
            raise UsageError(f"there is no method {name!r}; there are {', '.join(METHODS)}")
    problems: dict[str, str] = {}
    for name in METHODS:
        if name in _NEED_NAMES and not joint:
            problems[name] = "the encoder has no space that pictures share with texts"
        elif name in _TRAINED and mode == "none":
            problems[name] = 'it is trained, and the mode is "none"'
        elif name in _TRAINED and not base:
            problems[name] = "it is trained on base classes: give --base"
        elif name in _CHOSEN and not val:
            problems[name] = (
                "its settings are chosen on validation classes, never on those measured: give --val"
            )
    if asked is None:
        return [name for name in METHODS if name not in problems], problems
    for name in asked:
        if name in problems:
            raise UsageError(f"{name} cannot run: {problems[name]}")
    return [name for name in METHODS if name in asked], {}


@dataclass(frozen=True)
class Ready:
    """A method to measure, how it was set up, and the pictures with the tokens that it reads."""

    method: Method
    settings: dict[str, Any]
    world: World


@dataclass(frozen=True)
class Form:
    """What the episodes are like that a method is made for, and how GLIML is made and may learn.

    Its ``interplay`` is `gated`, with the sum that needs no training, or `additive`, with the MLP
    on all four blocks and a lambda that is chosen.
    """

    way: int
    shot: int
    queries: int
    seed: int
    mode: Mode
    epochs: int
    interplay: Interplay


def make(name: str, splits: Mapping[str, Split], form: Form, encoder: Encoder) -> Ready:
    """Set a method up; the splits `base` and `val` are used where it is trained and where settings are chosen.

    Raises
    ------
    UsageError, DataError
        If episodes of this form cannot be drawn from them.
    """
    world, base = splits["data"].world, splits.get("base")
    tokens = world.tokens
    patches, width = tokens.patch.shape[1:]
    if name == "simpleshot":
        centre = None if base is None else base.world.tokens.cls.mean(dim=0)
        return Ready(SimpleShot(centre), {"centre": "support" if base is None else "base"}, world)
    if name in ("tip_adapter", "linear_probe"):
        grid: Any = TipAdapter.grid() if name == "tip_adapter" else LinearProbe.grid()
        sampler = _drawn(splits["val"], form, VALIDATION_EPISODES)
        best, accuracy = choose(grid, splits["val"].world, list(sampler))
        return Ready(best, asdict(best) | {"validation_accuracy": accuracy}, world)
    if name == "cpea":
        return _trained(
            CPEAHead(width, patches, seed=form.seed), splits, replace(form, mode="frozen"), encoder
        )
    if name == "gliml":
        if form.interplay == "additive":
            head = GLIMLHead(width, patches, interplay="additive", head="mlp", seed=form.seed)
            return _trained(head, splits, form, encoder, LAMBDAS)
        return _trained(GLIMLHead(width, patches, seed=form.seed), splits, form, encoder)
    simple: dict[str, Method] = {
        "zero_shot": ZeroShot(),
        "nearest_neighbour": NearestNeighbour(),
        "proto": Proto(),
        "gliml_untrained": GLIMLHead(width, patches, seed=form.seed).requires_grad_(False),
    }
    return Ready(simple[name], {}, world)


def _trained(
    head: GLIMLHead,
    splits: Mapping[str, Split],
    form: Form,
    encoder: Encoder,
    lambdas: tuple[float, ...] = (),
) -> Ready:
    data, base, val = splits["data"], splits["base"], splits["val"]
    to_learn = _drawn(base, form, EPISODES_AN_EPOCH * form.epochs)
    to_choose = _drawn(val, form, VALIDATION_EPISODES)
    settings = TrainSettings(mode=form.mode, epochs=form.epochs, lambdas=lambdas, seed=form.seed)
    tuning, before = None, None
    if form.mode == "finetune":
        tuning = Finetuning(encoder, _pixels(base, encoder), _pixels(val, encoder))
        before = deepcopy(encoder.module.state_dict()), encoder.cache
    log = train_head(head, base.world, list(to_learn), val.world, list(to_choose), settings, tuning)
    best, *training = (
        {name: value for name, value in asdict(epoch).items() if name != "lam" or value is not None}
        for epoch in (log.best, *log.epochs)
    )
    said = {
        "mode": form.mode,
        "validation_accuracy": best.pop("accuracy"),
        **best,
        "training": training,
    }
    if before is None:
        return Ready(head, said, data.world)
    tokens = encode_again(encoder, _pixels(data, encoder), data.world.tokens)
    encoder.module.load_state_dict(before[0])  # the next method starts from the same encoder
    encoder.cache = before[1]
    return Ready(head, said, replace(data.world, tokens=tokens))


def _drawn(split: Split, form: Form, episodes: int) -> Any:
    return split.learning_sampler(form.way, form.shot, form.queries, episodes, form.seed)


def _pixels(split: Split, encoder: Encoder) -> Any:
    def read(rows: Sequence[int]) -> Tensor:
        return read_pixels(split.manifest, [split.rows[row] for row in rows], encoder.image_size)

    return read
