"""Run a server in a thread of its own, with an event loop of its own."""

from __future__ import annotations

import asyncio
import atexit
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ctrlapi_async.simulator._front import Front

_PATIENCE: Final = 10.0
"""Seconds to wait for the thread's end; only a function of the user's can hold it up so long."""


class ServerThread:
    """A thread in which a server runs until `stop`.

    The thread is a daemon and is stopped at the interpreter's exit: a server that was never stopped
    neither holds up the exit nor leaves a warning.

    Args:
        front: The server.
    """

    def __init__(self, front: Front) -> None:
        self._front = front
        self._started: Future[int] = Future()
        # Not from the event loop policy, which belongs to the code under test.
        self._loop = asyncio.SelectorEventLoop()
        self._stopping = asyncio.Event()

    def start(self, port: int) -> int:
        """Start the thread and the server in it.

        Args:
            port: The port; 0 for a free one.

        Returns:
            The port.

        Raises:
            OSError: The port is taken.
        """
        self._thread = threading.Thread(
            target=self._run, args=(port,), name="ctrlapi-simulator", daemon=True
        )
        self._thread.start()
        atexit.register(self.stop)
        try:
            return self._started.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server and wait for the thread's end.

        Raises:
            RuntimeError: A function of the user's blocks the thread.
        """
        atexit.unregister(self.stop)
        with suppress(RuntimeError):  # the loop is closed: the server did not start
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            raise RuntimeError("a function of yours blocks the simulator's thread")

    def _run(self, port: int) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(port))

    async def _serve(self, port: int) -> None:
        try:
            port = await self._front.start(port)
        except Exception as error:  # noqa: BLE001 - it is raised again by `start`
            self._started.set_exception(error)
            return
        self._started.set_result(port)
        await self._stopping.wait()
        await self._front.stop()
