"""The parts that all commands of `glscl` share.

In: a command's name, function, description and example. Out: its parser, with `--json` and errors
of one line. `launch/cli.py` and the other modules of this room build their commands from these.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from data_pipeline.errors import UsageError
from data_pipeline.processes import usable_cores

CommandResult = tuple[dict[str, Any], str]
"""The object that `--json` prints, and the text that is printed without it."""


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def group(groups: Any, name: str, about: str) -> Any:
    """Add a name with commands below it, such as `glscl data`; return where to add them."""
    parser = groups.add_parser(name, help=about, description=about, allow_abbrev=False)
    return parser.add_subparsers(metavar="COMMAND", required=True)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], CommandResult | None],
    about: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command that calls `run` with the parsed arguments; return its parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # Not called `run`, because `glscl export RUN` has an argument of that name.
    parser.set_defaults(command=run)
    parser.add_argument(
        "--json", action="store_true", help="print the result as one line of JSON, last on stdout"
    )
    return parser


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`."""
    about = "number of processes (default: one per core, here %(default)s)"
    parser.add_argument("--workers", metavar="K", type=natural, default=usable_cores(), help=about)


def natural(text: str) -> int:
    """Read a whole number of 0 or more."""
    # isdigit alone also accepts digits that int() refuses, such as a superscript two.
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return value
