"""Strikes before a chosen step of a loop's tasks, what is left of a client, others' turns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from typing import Any

Strike = Callable[[], object]


class Steps:
    """Counts the steps of all tasks of a loop, and strikes once, before one of them.

    Args:
        before: How many steps are left alone first.
    """

    def __init__(self, before: int) -> None:
        self.struck = False
        self._left = before
        self._victim: asyncio.Task[Any] | None = None
        asyncio.get_running_loop().set_task_factory(self._make)

    def arm(self, victim: asyncio.Task[Any], strike: Strike) -> None:
        """Count from now on, for as long as a task is not done."""
        self._victim, self._strike = victim, strike

    def step(self) -> None:
        if self._victim is None or self._victim.done():
            return
        if self._left == 0:
            self.struck = True
            self._strike()
        self._left -= 1

    def _make(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **more: Any,
    ) -> asyncio.Task[Any]:
        assert isinstance(work, Coroutine)
        return asyncio.Task(_Stepped(work, self), loop=loop, **more)


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that reports each of its steps."""

    def __init__(self, work: Coroutine[Any, Any, Any], steps: Steps) -> None:
        self.work = work
        self._steps = steps

    def send(self, value: Any) -> Any:
        self._steps.step()
        return self.work.send(value)

    def throw(self, *error: Any) -> Any:
        return self.work.throw(*error)

    def close(self) -> None:
        self.work.close()

    def __await__(self) -> Any:
        return self.work.__await__()


def assert_nothing_left() -> None:
    """Check that the package has no task and no timer but those of the simulator's."""
    left: list[object] = []
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        work: Any = task.get_coro()
        code = getattr(getattr(work, "work", work), "cr_code", None)
        if code is None or not code.co_filename.endswith(("web_protocol.py", "_front.py")):
            left.append(task)
    loop: Any = asyncio.get_running_loop()
    for timer in loop._scheduled:
        module = str(getattr(timer._callback, "__module__", ""))
        if module.startswith("ctrlapi_async._") and not timer.cancelled():
            left.append(timer)
    assert not left


@asynccontextmanager
async def watched(progress: Callable[[], float] = lambda: 0) -> AsyncIterator[list[float]]:
    """Note how far things get from one turn of the event loop to the next."""
    steps: list[float] = []

    async def watch() -> None:
        last = progress()
        while True:
            await asyncio.sleep(0)
            steps.append(progress() - last)
            last += steps[-1]

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        yield steps
    finally:
        watcher.cancel()
        await asyncio.wait([watcher])
