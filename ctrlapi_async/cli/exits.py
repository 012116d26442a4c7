"""How a command can end: its exit status, and the errors that say what to do about it."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit statuses of the command line."""

    OK = 0
    """The server answered for every task."""
    REFUSED = 1
    """Some tasks were not found, ended before their stop, or have an unknown status."""
    USAGE = 2
    """The command cannot be carried out as typed, or the extra `cli` is not installed."""
    INCOMPLETE = 3
    """Some tasks have no answer, or are still running."""
    NOTHING = 4
    """Nothing was done: no task has an answer, or the question was answered with no."""
    UNWRITTEN = 5
    """The report could not be written."""
    HANGUP = 129
    """The terminal was closed (SIGHUP)."""
    INTERRUPTED = 130
    """Ctrl-C, or SIGTERM."""


class CommandError(Exception):
    """A command ends without a result; the message says why.

    Attributes:
        status: The exit status.
    """

    status = Exit.NOTHING


class UnwrittenError(CommandError):
    """What a command found out could not be written."""

    status = Exit.UNWRITTEN

    def __init__(self, error: Exception) -> None:
        reason = getattr(error, "strerror", None) or error
        super().__init__(f"the report could not be written to standard output: {reason}")


class UsageError(CommandError):
    """The command cannot be carried out as typed; the message says what to type instead."""

    status = Exit.USAGE
