"""The command line: `ctrlapi-async`, or `python -m ctrlapi_async`.

`main` is the way in. `app` puts the commands together, each of which has a module of its name
(`stop`, `status`, `config`, `demo`, `simulate`) with its options and what it does; the options that
they share are in `options`, and the exit statuses in `exits`. `--help` is to answer at once, so
what is slow to import is imported by those who use it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from ctrlapi_async.cli.exits import CommandError, Exit, UsageError
from ctrlapi_async.cli.streams import complain, discard_output

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXTRA: Final = ("cyclopts", "platformdirs", "rich")


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out a command line and return the exit status.

    Args:
        argv: The arguments; None for those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _status_of(arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # from rich, too: who reads a help text has read enough
        discard_output()
        status = Exit.OK
    except CommandError as error:
        complain(error)
        status = error.status
    except KeyboardInterrupt:
        complain("interrupted")
        status = Exit.INTERRUPTED
    except Exception as error:
        if "--debug" in arguments:
            raise
        name = type(error).__name__
        complain(f"{name}: {error}; this is a fault in the program: --debug shows where")
        status = Exit.INCOMPLETE
    return status


def _status_of(arguments: list[str]) -> int:
    try:
        from ctrlapi_async.cli.app import run
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        raise UsageError(
            f"the command line needs {package}, which comes with the extra `cli`: "
            "pip install 'ctrlapi-async[cli]'"
        ) from None
    return run(arguments)
