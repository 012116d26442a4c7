"""Event loops on which waiting takes no time, and which start tasks at once."""

from __future__ import annotations

import asyncio
import functools
import gc
import selectors
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

P = ParamSpec("P")
T = TypeVar("T")


class JumpingSelector(selectors.DefaultSelector):
    """Lets the clock jump to the next timer whenever nothing else is going to happen."""

    GRACE: Final = 0.005
    """Real seconds without a sign from any socket after which all sockets count as idle."""

    STUCK: Final = 5.0

    def __init__(self, grace: float = GRACE) -> None:
        super().__init__()
        self.now = 1000.0
        self._grace = grace

    def select(self, timeout: float | None = None) -> list[Any]:
        self.now += 1e-5  # else whoever spins would stop the clock
        if timeout is not None and timeout <= 0:
            return super().select(0)
        if events := super().select(self._grace if timeout is not None else self.STUCK):
            return events
        if timeout is None:
            raise RuntimeError("nothing is going to happen any more")
        self.now += timeout
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time: clients and servers in it share its clock.

    However slow the machine is, the clock is not moved by it.
    """

    def __init__(self, grace: float = JumpingSelector.GRACE) -> None:
        self._jumping = JumpingSelector(grace)
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def skip(self, seconds: float) -> None:
        """Let time pass while the loop is held up."""
        self._jumping.now += seconds


def skip(seconds: float) -> None:
    """Let time pass on the running `JumpingLoop` while it is held up."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, JumpingLoop)
    loop.skip(seconds)


def run(
    main: Coroutine[Any, Any, T],
    make_loop: Callable[[], asyncio.AbstractEventLoop] = JumpingLoop,
    *,
    debug: bool = False,
) -> T:
    """Run a test's coroutine; it must leave no task behind, and no complaint of the loop."""
    complaints: list[dict[str, Any]] = []

    async def alone() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        result = await main
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    with asyncio.Runner(loop_factory=make_loop, debug=debug) as runner:
        result = runner.run(alone())
    if complaints:  # futures complain when they are collected
        gc.collect()
    assert not complaints
    return result


HURRY: Final = 20
"""How many seconds of a `HurryingLoop` pass in one."""


class _HurryingSelector(selectors.DefaultSelector):
    def select(self, timeout: float | None = None) -> list[Any]:
        return super().select(None if timeout is None else timeout / HURRY)


class HurryingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock runs fast, for clients of processes that have clocks of their own.

    What such a process does `HURRY` times a second happens once a second here.
    """

    def __init__(self) -> None:
        super().__init__(_HurryingSelector())

    def time(self) -> float:
        return time.monotonic() * HURRY


def hurrying(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a test run on a `HurryingLoop`."""

    @functools.wraps(test)
    def run_test(*args: P.args, **more: P.kwargs) -> None:
        run(test(*args, **more), HurryingLoop)

    return run_test


class EagerTask(asyncio.tasks._PyTask):  # type: ignore[name-defined,misc]
    """A task that has taken its first step when it is returned, as `asyncio.eager_task_factory`."""

    def __init__(self, work: Coroutine[Any, Any, Any], loop: Any, **more: Any) -> None:
        super().__init__(work, loop=loop, **more)
        first_step = loop._ready.pop()
        parent = asyncio.current_task(loop)
        if parent is not None:
            asyncio.tasks._leave_task(loop, parent)
        try:
            first_step._run()
        finally:
            if parent is not None:
                asyncio.tasks._enter_task(loop, parent)


def eager(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
    **more: Any,
) -> asyncio.Task[Any]:
    """Return a task that has taken its first step."""
    assert isinstance(work, Coroutine)
    make = EagerTask if loop.is_running() else asyncio.Task
    return make(work, loop=loop, **more)
