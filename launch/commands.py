"""What every command of `glscl` is made of: a parser whose errors are one line, its example, and `--json`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from data_pipeline.cores import usable_cores
from data_pipeline.errors import UsageError

CommandResult = tuple[dict[str, Any], str]
"""What `--json` prints, and the line for a person."""


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def group(groups: Any, name: str, about: str) -> Any:
    """Add commands under one name; returns where they are added."""
    parser = groups.add_parser(name, help=about, description=about, allow_abbrev=False)
    return parser.add_subparsers(metavar="COMMAND", required=True)


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], CommandResult | None],
    about: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command that calls `run` with what was parsed."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=run)
    parser.add_argument(
        "--json", action="store_true", help="print the result as one line of JSON, last on stdout"
    )
    return parser


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`."""
    about = "processes (default: one a core, here %(default)s)"
    parser.add_argument("--workers", metavar="K", type=natural, default=usable_cores(), help=about)


def natural(text: str) -> int:
    """Read a whole number of 0 or more."""
    value = int(text) if text.isascii() and text.isdigit() else -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return value
