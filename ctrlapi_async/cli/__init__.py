"""The command line: `ctrlapi-async`, or `python -m ctrlapi_async`.

Exit statuses: 0, every task was answered for and none is refused (stop sent, or not running);
1, some were not found or unavailable; 2, the command line is wrong, or the extra `cli` is not
installed; 3, some tasks have no answer; 4, nothing could be done; 130, interrupted (Ctrl-C or
SIGTERM), after what is known was printed.

`--help` is to answer at once, so this module and `app` import nothing heavy: what carries a
command out waits until there is a command.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

OK: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
INCOMPLETE: Final = 3
NOTHING: Final = 4
INTERRUPTED: Final = 130


class UsageError(Exception):
    """What was typed cannot be carried out; its words tell what to type instead."""


def complain(message: object) -> None:
    """Say what is wrong on standard error, in one line."""
    with suppress(OSError, AttributeError):  # closed, or never there
        sys.stderr.write(f"error: {' '.join(str(message).split())}\n")
        sys.stderr.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line, and give the exit status.

    Args:
        argv: The arguments; None for those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        from ctrlapi_async.cli.app import run

        status = run(arguments)
        sys.stdout.flush()
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in ("cyclopts", "rich"):
            raise
        complain(
            f"the command line needs {package}, of the extra `cli`: "
            "pip install 'ctrlapi-async[cli]'"
        )
        status = USAGE
    except UsageError as error:
        complain(error)
        status = USAGE
    except KeyboardInterrupt:
        complain("interrupted")
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader has gone. Python flushes once more at its end: into nothing then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = OK
    except Exception as error:
        if "--debug" in arguments:
            raise
        complain(f"{type(error).__name__}: {error}; --debug shows where, please report it")
        status = INCOMPLETE
    return status
