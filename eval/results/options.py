"""A stage's options: one dataclass from which everything that names an option is made.

The Python signature of `evaluate`, the command line with its help, the keys of a YAML file and the
tables of the documentation all read the fields declared here, so they cannot disagree. This module
imports nothing heavy: `glscl eval STAGE --help` reads it and must not wait for torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from data_pipeline.errors import UsageError

Precision = Literal["fp32", "bf16"]


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    metavar: str | None = None,
    at_least: int | None = None,
) -> Any:
    """Declare a field of an options dataclass.

    Parameters
    ----------
    default
        Value when the option is not given; without one the option is required.
    help
        What the option does, one line; it is shown by `--help` and in the documentation.
    metavar
        Name of the value in `--help`; by default it follows from the type.
    at_least
        Smallest allowed value of a number, or of each number of a tuple.
    """
    metadata = {"help": help, "metavar": metavar, "at_least": at_least}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What every stage takes. A stage derives from this and adds its own fields."""

    stage: ClassVar[str]
    """Name on the command line, such as `zero-shot`."""
    about: ClassVar[str]
    """One line for `glscl eval --help`."""
    example: ClassVar[str]
    """A command that works, for `--help`."""
    positional: ClassVar[tuple[str, ...]] = ("data", "out")
    """Options that `evaluate` also takes by position, in this order."""

    data: Path = option(help="data set to evaluate on", metavar="DIR")
    out: Path = option(help="folder for result.json and samples.jsonl", metavar="DIR")
    limit: int | None = option(
        None, help="evaluate only the first N images or videos", metavar="N", at_least=1
    )
    overwrite: bool = option(False, help="replace the result that --out already holds")


@dataclass(frozen=True, kw_only=True)
class ModelOptions(StageOptions):
    """What every stage that evaluates a model takes."""

    positional: ClassVar[tuple[str, ...]] = ("model", "data", "out")

    model: Path = option(
        help="run, checkpoint or model folder, or the authors' checkpoint file", metavar="DIR"
    )
    batch_size: int = option(
        64, help="images encoded at once; does not change the result", metavar="N", at_least=1
    )
    precision: Precision = option("fp32", help="precision of the networks")
    cache: Path | None = option(
        None, help="folder that keeps encoded features for the next evaluation", metavar="DIR"
    )
    train: Path | None = option(
        None,
        help="run or data set to search for test images (default: the model's run)",
        metavar="DIR",
    )


Options = TypeVar("Options", bound=StageOptions)


@dataclass(frozen=True)
class OptionDescription:
    """One option as the command line and the documentation show it."""

    name: str
    kind: type
    """Type of one value: bool, int, float, str or Path."""
    several: bool
    """Whether the option takes one or more values."""
    choices: tuple[str, ...]
    """Allowed values; empty if any value of the type is allowed."""
    required: bool
    default: Any
    help: str
    metavar: str | None


def describe(options: type[StageOptions]) -> list[OptionDescription]:
    """List the options of a stage: those by position first, then its own, then shared ones."""
    hints = typing.get_type_hints(options)
    shared = {f.name for f in dataclasses.fields(ModelOptions)}
    fields = {f.name: f for f in dataclasses.fields(options)}
    names = list(options.positional)
    # Options that every stage shares come last: a reader looks for those of this stage.
    names += [name for name in fields if name not in shared and name not in names]
    names += [name for name in fields if name not in names]
    described = []
    for name in names:
        kind, several, choices = _value_type(hints[name])
        declared = fields[name]
        described.append(
            OptionDescription(
                name=name,
                kind=kind,
                several=several,
                choices=choices,
                required=declared.default is dataclasses.MISSING,
                default=declared.default,
                help=declared.metadata["help"],
                metavar=declared.metadata["metavar"],
            )
        )
    return described


def build_options(
    options: type[Options], values: Mapping[str, Any], where: str | None = None
) -> Options:
    """Check values and make the options of a stage.

    Parameters
    ----------
    options
        Dataclass of the stage.
    values
        Value of each option that was given, from Python, YAML or the command line.
    where
        File that the values come from; errors start with it.

    Raises
    ------
    UsageError
        For an unknown or missing option, or a value of the wrong type or out of range; the message
        lists all of them.
    """
    # pydantic takes a tenth of a second to import, which `--help` need not wait for.
    from pydantic import TypeAdapter, ValidationError

    fields = {f.name: f for f in dataclasses.fields(options)}
    problems = [_unknown(str(name), fields) for name in values if name not in fields]
    for name, declared in fields.items():
        if declared.default is dataclasses.MISSING and name not in values:
            problems.append(f"{name} is missing")
        elif name in values:
            problems += _below(name, values[name], declared.metadata["at_least"])
    if not problems:
        try:
            made = TypeAdapter(options).validate_python(dict(values))
            # Again, because a number may have come as text.
            for name, declared in fields.items():
                problems += _below(name, getattr(made, name), declared.metadata["at_least"])
            if not problems:
                return made
        except ValidationError as error:
            for problem in error.errors():
                name = ".".join(str(part) for part in problem["loc"])
                problems.append(f"{name}: {problem['msg']} (got {problem['input']!r})")
    raise UsageError("; ".join(f"{where}: {p}" if where else p for p in problems))


def _unknown(name: str, fields: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, fields, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(fields)}"
    return f"unknown key {name}; {hint}"


def _below(name: str, value: Any, at_least: int | None) -> list[str]:
    """Name the problem of a number that is too small; other types are left to the type check."""
    if at_least is None:
        return []
    values = value if isinstance(value, list | tuple) else [value]
    for number in values:
        # In Python a bool is an int too. The type check has the better message for it.
        if isinstance(number, int | float) and not isinstance(number, bool) and number < at_least:
            return [f"{name} is {number}, must be at least {at_least}"]
    return []


def _value_type(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    """Take a type hint apart: type of one value, whether there may be several, allowed values."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        # None only says that there is a default which is not a value, such as "all of them".
        [hint] = [part for part in typing.get_args(hint) if part is not types.NoneType]
    several = typing.get_origin(hint) is tuple
    if several:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is Literal:
        return str, several, typing.get_args(hint)
    return hint, several, ()
