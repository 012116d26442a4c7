"""Wait for a change that another thread makes: in a thread, or in a task of asyncio or trio."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_TURNS: Final = 5
"""Turns of a loop after which it has noticed that connections were closed, encrypted ones too."""

_Waiter: TypeAlias = "tuple[Callable[[], None], Callable[[], Awaitable[object]]]"
"""A function that any thread may call to wake the waiter, and one to wait with."""


class Changes:
    """Lets threads and tasks wait for a condition, which is looked at after every change.

    Args:
        lock: Guards what conditions look at.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._wakers: list[Callable[[], None]] = []

    def announce(self) -> None:
        """Have all conditions looked at; call this with the lock held."""
        wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; it is looked at with the lock held."""
        while True:
            wake, wait = _waiter()
            if self._holds(condition, wake):
                return
            await wait()

    def wait_until_sync(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait for a condition in a thread without an event loop.

        Raises:
            TimeoutError: It did not hold in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            changed = threading.Event()
            if self._holds(condition, changed.set):
                return
            if not changed.wait(deadline - time.monotonic()):
                raise TimeoutError(f"the condition did not hold within {timeout:g} seconds")

    def _holds(self, condition: Callable[[], bool], wake: Callable[[], None]) -> bool:
        with self._lock:
            holds = condition()
            if not holds:
                self._wakers.append(wake)
        return holds


async def let_loop_turn() -> None:
    """Let the running event loop notice what another thread did to its sockets."""
    trio = _running_trio()
    for _ in range(_TURNS):
        await (asyncio.sleep(0) if trio is None else trio.lowlevel.checkpoint())


def _running_trio() -> Any:  # noqa: ANN401 - trio is no dependency
    trio: Any = sys.modules.get("trio")
    try:
        trio.lowlevel.current_task()
    except (AttributeError, RuntimeError):  # it is not imported, or does not run here
        return None
    return trio


def _waiter() -> _Waiter:
    trio = _running_trio()
    if trio is not None:
        return _trio_waiter(trio)
    loop, thread = asyncio.get_running_loop(), threading.get_ident()
    changed: asyncio.Future[None] = loop.create_future()

    def resolve() -> None:
        if not changed.done():
            changed.set_result(None)

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed, and with it the waiter
            if threading.get_ident() == thread:
                resolve()
            else:
                loop.call_soon_threadsafe(resolve)

    return wake, lambda: changed


def _trio_waiter(trio: Any) -> _Waiter:  # noqa: ANN401 - trio is no dependency
    token = trio.lowlevel.current_trio_token()
    changed = trio.Event()

    def wake() -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(changed.set)

    return wake, changed.wait
