"""A command as a process: its standard streams, its log, and the signals that end it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.streams import Output
from ctrlapi_async.cli.text import visible, visible_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from rich.console import Console

    from ctrlapi_async.cli.options import MessageOptions


_SILENT_ATTEMPTS: Final = 2
"""Attempts of one request of which only -v tells."""


class Process:
    """What a running command has at hand.

    Args:
        messages: What is said on standard error.

    Attributes:
        out: Standard output.
        err: Standard error. Nothing that is said there ends or changes what the command does.
        ended_by: The exit status that the signal received asks for, or None.
        console: What draws the progress on standard error, while it is drawn.
    """

    def __init__(self, messages: MessageOptions) -> None:
        self.out = Output(sys.stdout)
        self.err = Output(sys.stderr, may_drop=True)
        self.ended_by: Exit | None = None
        self.console: Console | None = None
        self.messages = messages

    def say(self, kind: str, message: object) -> None:
        """Write one line to standard error soon."""
        self.say_lines(f"{kind}: {visible(message)}\n")

    def note(self, message: str, kind: str = "note") -> None:
        """Write one line to standard error soon, unless the command is to be quiet."""
        if not self.messages.quiet:
            self.say(kind, message)

    def say_lines(self, text: str) -> None:
        """Write lines to standard error soon, above the progress if that is drawn."""
        if self.console is not None:
            self.console.print(Text(visible_lines(text)), end="", soft_wrap=True)
        else:
            self.err.put(visible_lines(text))


class _LogHandler(logging.Handler):
    """Writes the package's log to standard error; without -v, one warning of failing requests."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self._process = process
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as a line, or pass it over."""
        messages = self._process.messages
        if messages.verbose or messages.debug:
            self._process.say(record.levelname.lower(), self.format(record))
        elif not self._told and getattr(record, "attempt", 0) > _SILENT_ATTEMPTS:
            # Whoever waits before a progress bar that does not move wants to know why.
            self._told = True
            self._process.note(f"{self.format(record)} (-v shows every attempt)", "warning")


def run_command(
    messages: MessageOptions, command: Callable[[Process], Coroutine[Any, Any, int]]
) -> int:
    """Run a command's coroutine and return its exit status.

    Ctrl-C, SIGTERM and SIGHUP cancel it, once; what it does not catch ends the command.

    Args:
        messages: What is said on standard error.
        command: The command.
    """
    process = Process(messages)

    async def main() -> int:
        with _signals_cancel(process), _logging_to(process):
            try:
                return await command(process)
            except asyncio.CancelledError:
                process.say("error", "interrupted")
                return process.ended_by or Exit.INTERRUPTED
            finally:
                await process.err.drain()

    return asyncio.run(main())


def go_on() -> None:
    """Go on after a cancellation that was meant for a part of the command only."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - for the type-checker: a coroutine runs in a task
    task.uncancel()


@contextmanager
def _signals_cancel(process: Process) -> Iterator[None]:
    """Let signals cancel the current task; one that the caller of the process ignores stays so."""
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - as above

    def handle(status: Exit) -> None:
        if process.ended_by is not None:
            raise KeyboardInterrupt  # the second time, at once
        process.ended_by = status
        task.cancel()

    handled = []
    for name, status in (
        ("SIGINT", Exit.INTERRUPTED),
        ("SIGTERM", Exit.INTERRUPTED),
        ("SIGHUP", Exit.HANGUP),
    ):
        number = getattr(signal, name, None)
        if number is None or signal.getsignal(number) is signal.SIG_IGN:  # nohup, for example
            continue
        # There are no such handlers on Windows, and none outside of the main thread.
        with suppress(NotImplementedError, RuntimeError, ValueError):
            loop.add_signal_handler(number, handle, status)
            handled.append(number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


@contextmanager
def _logging_to(process: Process) -> Iterator[None]:
    """Write as much of the package's log to standard error as is wanted."""
    messages = process.messages
    logger = logging.getLogger("ctrlapi_async")
    handler, level, propagate = _LogHandler(process), logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if messages.verbose or messages.debug else logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
