"""Standard input and output behind threads, so that a slow other end holds up no request."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import select
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, ParamSpec, TextIO, TypeVar

from ctrlapi_async.cli.text import visible

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")

BACKLOG: Final = 10_000
"""Pieces of output that may wait for a slow reader."""


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream, which may be closed or missing, is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def complain(message: object, kind: str = "error") -> None:
    """Write one line to standard error, if it can be written at all."""
    with suppress(OSError):
        write(sys.stderr, f"{kind}: {visible(message)}\n")


def write(stream: TextIO | None, text: str) -> None:
    """Write to a standard stream past its buffer: a thread left behind must hold no lock of it.

    Raises:
        OSError: The stream is closed, full, or nobody reads it any more.
    """
    if stream is None:
        raise OSError(errno.EBADF, "it is closed")
    try:
        stream.flush()
        number = stream.fileno()
    except io.UnsupportedOperation:  # kept in memory: by pytest, or in a notebook
        stream.write(text)
        return
    except ValueError:
        raise OSError(errno.EBADF, "it is closed") from None
    # Whoever reads a pipe or a file expects JSON and tables in UTF-8, whatever the locale.
    encoding = stream.encoding if is_terminal(stream) else "utf-8"
    rest = memoryview(text.encode(encoding, "backslashreplace"))
    while rest:
        try:
            rest = rest[os.write(number, rest) :]
        except BlockingIOError:  # the other end, which shares the flag, made it non-blocking
            select.select([], [number], [])


def discard_output() -> None:
    """Let what is still to be flushed to standard output at the process's end go nowhere."""
    with suppress(AttributeError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stdin_number() -> int:
    """Return the file descriptor of standard input; raises OSError if it is closed."""
    try:
        return sys.stdin.fileno()
    except (AttributeError, ValueError):
        raise OSError(errno.EBADF, "it is closed") from None


def read(number: int, size: int) -> bytes:
    """Read at most `size` bytes from a file descriptor, waiting until there are some."""
    while True:
        try:
            return os.read(number, size)
        except BlockingIOError:  # as above
            select.select([number], [], [])


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await a function that may block for good.

    Unlike that of `asyncio.to_thread`, the thread is left behind on cancellation, and does not
    keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return  # cancelled in the meantime
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result = error = None
        try:
            result = function(*args, **kwargs)
        except Exception as raised:  # noqa: BLE001 - raised again where it is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError:  # the system has no more threads: then everything else waits
        work()
    return await future


class Output:
    """A standard stream that is written piece by piece while the event loop goes on.

    Args:
        stream: The stream, or None if the process was started without it.
        may_drop: Whether text is dropped when the reader is far behind.

    Attributes:
        error: Why nothing can be written any more, or None. Later text is dropped.
    """

    def __init__(self, stream: TextIO | None, *, may_drop: bool = False) -> None:
        self.error: Exception | None = None
        self._stream = stream
        self._may_drop = may_drop
        self._waiting: list[str] = []
        self._writer: asyncio.Task[None] | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the stream is a terminal."""
        return is_terminal(self._stream)

    def put(self, text: str) -> None:
        """Have text written soon."""
        if self.error is not None or (self._may_drop and len(self._waiting) >= BACKLOG):
            return
        self._waiting.append(text)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())

    async def room(self) -> None:
        """Wait while the reader is far behind."""
        if len(self._waiting) >= BACKLOG:
            await self.drain()

    async def drain(self) -> None:
        """Wait until all text is written, or cannot be."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                text = "".join(self._waiting)
                self._waiting.clear()
                await in_thread(write, self._stream, text)
        except Exception as error:  # noqa: BLE001 - a report must not be lost in silence
            self.error = error
            self._waiting.clear()
        finally:
            self._writer = None


class OutputFile(io.TextIOBase):
    """An `Output` as a text file, for a library that draws on one."""

    def __init__(self, output: Output) -> None:
        self._output = output

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding that decides whether lines can be drawn with box characters."""
        return "utf-8"

    def isatty(self) -> bool:
        """Return whether the output is a terminal."""
        return self._output.is_terminal

    def write(self, text: str) -> int:
        """Have text written soon."""
        self._output.put(text)
        return len(text)
