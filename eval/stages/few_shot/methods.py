"""Which methods can run with what there is, and each of them ready to recognise, with its settings chosen.

Settings and epochs come from validation classes alone: nothing here sees the classes that are measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from data_pipeline.errors import UsageError

Mode = Literal["frozen", "finetune", "none"]

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
GLIML = ("gliml", "gliml_untrained")
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
        For an unknown method, and for one that was asked for and cannot run.
    """
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
            problems[name] = "its settings are chosen on validation classes, never on those measured: give --val"
    if asked is None:
        return [name for name in METHODS if name not in problems], problems
    for name in asked:
        if name in problems:
            raise UsageError(f"{name} cannot run: {problems[name]}")
    return [name for name in METHODS if name in asked], {}
