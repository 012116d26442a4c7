"""Standard input and output behind threads, so that a slow other end holds up no request."""

from __future__ import annotations

import asyncio
import os
import select
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")

BACKLOG: Final = 10_000
"""Pieces of output that may wait for the reader; then the writer waits as well."""


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await a function that may block for good.

    Unlike `asyncio.to_thread`'s, its thread is left behind when this is cancelled, and does not
    keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return  # cancelled meanwhile
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result = error = None
        try:
            result = function(*args, **kwargs)
        except Exception as met:  # noqa: BLE001 - it comes out where it is awaited
            error = met
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, daemon=True).start()
    return await future


class Stdout:
    """Standard output, written piece by piece while the loop goes on.

    Attributes:
        error: Why nothing can be written any more, `BrokenPipeError` say; what is put from then
            on is dropped.
    """

    def __init__(self) -> None:
        self.error: OSError | None = None
        self._waiting: list[str] = []
        self._pump: asyncio.Task[None] | None = None

    def put(self, text: str) -> None:
        """Have `text` written soon."""
        if self.error is None:
            self._waiting.append(text)
            if self._pump is None:
                self._pump = asyncio.create_task(self._write_all())

    async def room(self) -> None:
        """Wait if the reader is far behind."""
        if len(self._waiting) >= BACKLOG:
            await self.drain()

    async def drain(self) -> None:
        """Wait until all is written, or cannot be."""
        if self._pump is not None:
            await asyncio.wait([self._pump])

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                text = "".join(self._waiting)
                self._waiting.clear()
                await in_thread(write, text)
        except OSError as error:
            self.error = error
            self._waiting.clear()
        finally:
            self._pump = None


def write(text: str) -> None:
    """Write to standard output, past its buffer: a thread left behind must hold no lock of it.

    Raises:
        OSError: It is closed, or full.
    """
    try:
        sys.stdout.flush()
        number = sys.stdout.fileno()
    except (AttributeError, ValueError):  # closed from the start, or no file
        if sys.stdout is not None:
            sys.stdout.write(text)
        return
    rest = memoryview(text.encode())
    while rest:
        try:
            rest = rest[os.write(number, rest) :]
        except BlockingIOError:  # whoever has the other end made it so
            select.select([], [number], [])
