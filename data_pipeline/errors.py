"""Errors for the person at the keyboard: one line that names the culprit, and an exit code.

Every module raises these. In: an error that reached a command. Out: its line on stderr and the exit
code of the process (`report`).
"""

from __future__ import annotations

import errno
import os
import sys


class UserError(Exception):
    """Base of every error that a command prints as one line instead of a traceback."""

    exit_code = 1


class UsageError(UserError):
    """Wrong usage or configuration."""

    exit_code = 2


class DataError(UserError):
    """Bad or missing data."""

    exit_code = 3


class NumericsError(UserError):
    """Non-finite or degenerate numbers."""

    exit_code = 4


class IncompleteError(UserError):
    """The work is not finished but can be resumed."""

    exit_code = 5


def report(error: UserError | OSError, program: str) -> int:
    """Print an error as one line on stderr; return the exit code of the process.

    It is 141 if nobody reads stdout any more. An OSError without an errno is raised again: a
    library made it, so its traceback is needed.
    """
    if isinstance(error, UserError):
        return fail(str(error), error.exit_code, program)
    if error.errno is None:
        raise error
    try:
        sys.stdout.flush()
    except OSError:
        # Stdout itself failed. Python would complain again when it flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # the reader (`| head`) has seen enough
        return 141  # 128 + SIGPIPE, as shells report it
    where = f"{error.filename}: " if error.filename is not None else ""
    # A full disk is the one system error after which the same command can go on.
    kind = IncompleteError if error.errno in (errno.ENOSPC, errno.EDQUOT) else DataError
    advice = ": make room and run the same command again" if kind is IncompleteError else ""
    return fail(f"{where}{error.strerror}{advice}", kind.exit_code, program)


def fail(message: str, exit_code: int, program: str) -> int:
    """Print a message as one line on stderr, and return the exit code."""
    print(f"{program}: error:", " ".join(message.split()), file=sys.stderr)
    return exit_code
