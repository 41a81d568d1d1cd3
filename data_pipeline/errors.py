"""Errors made for the person at the keyboard: one line that names the culprit, and the exit code of the command."""


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
