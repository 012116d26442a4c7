"""Tests against a simulator on their own loop, whose clock jumps."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from ctrlapi_async import Batching, ControlSession, RetryPolicy, StopIncompleteError, StopReport
from ctrlapi_async.simulator import ControlApiSimulator, Rewrite
from tests.support.clock import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable

    from ctrlapi_async import StopOutcome, StopRun
    from ctrlapi_async.simulator import Fault, RequestRecord

P = ParamSpec("P")
T = TypeVar("T")

STATUS: Final = "TaskStatus"
STOP: Final = "TaskStop"
AT_ONCE: Final = RetryPolicy(attempts=4, wait_initial=0)
"""Repeats without a pause, a few times."""


def simulator(**options: Any) -> ControlApiSimulator:
    """Return a simulator that serves from the running loop, and lives by its clock."""
    if "tick" not in options:
        options.setdefault("clock", asyncio.get_running_loop().time)
    return ControlApiSimulator(own_thread=False, **options)


def simulated(
    *, hand_driven: bool = False, **options: Any
) -> Callable[
    [Callable[Concatenate[ControlApiSimulator, P], Coroutine[Any, Any, None]]], Callable[P, None]
]:
    """Make a test run on a loop whose clock jumps, with a simulator as its first argument.

    Neither a task nor a connection may be left at its end.
    """
    if hand_driven:
        options["clock"] = None

    def decorate(
        test: Callable[Concatenate[ControlApiSimulator, P], Coroutine[Any, Any, None]],
    ) -> Callable[P, None]:
        @functools.wraps(test)
        def run_test(*args: P.args, **more: P.kwargs) -> None:
            async def main() -> None:
                async with simulator(**options) as api:
                    await test(api, *args, **more)
                    await disconnected(api)

            run(main())

        del run_test.__wrapped__
        signature = inspect.signature(test)
        run_test.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=list(signature.parameters.values())[1:]
        )
        return run_test

    return decorate


async def disconnected(api: ControlApiSimulator) -> None:
    """Wait until no connection to a simulator is open."""
    async with asyncio.timeout(10):
        await api.wait_until(lambda: api.counters.connections_open == 0)


def open_session(
    api: ControlApiSimulator,
    chunk: int | None = None,
    at_once: int = 8,
    *,
    retry: RetryPolicy = AT_ONCE,
    linger: float = 0.0,
    user_id: int = 1,
    **more: Any,
) -> ControlSession:
    """Return a session with a simulator."""
    batching = Batching(chunk, at_once, linger=linger)
    return ControlSession(api.url, user_id, batching=batching, retry=retry, **more)


async def ended(stopping: Awaitable[StopReport]) -> tuple[StopReport, StopIncompleteError | None]:
    """Return the report of a run, and the error if it raised one."""
    try:
        return await stopping, None
    except StopIncompleteError as error:
        return error.report, error


async def outcomes_of(run_: StopRun) -> list[StopOutcome]:
    """Return all outcomes of a run that is entered already."""
    return [outcome async for outcome in run_]


def costs(api: ControlApiSimulator) -> tuple[int, int]:
    """Return how many TaskStatus and TaskStop requests arrived."""
    requests = api.counters.requests_by_method
    return requests[STATUS], requests[STOP]


def letters(requests: Iterable[RequestRecord]) -> str:
    """Return the order of requests: S for TaskStatus, T for TaskStop."""
    return "".join("S" if request.methods[0] == STATUS else "T" for request in requests)


def asked(api: ControlApiSimulator, method: str) -> list[list[int]]:
    """Return the sorted task ids of each request of a method."""
    return [sorted(record.ids) for record in api.log if method in record.methods]


def stopped(api: ControlApiSimulator) -> set[int]:
    """Return the tasks that a stop has ended."""
    return {task_id for task_id, task in api.tasks.items() if task.stopped}


def rewrite_rows(change: Callable[[list[Any]], list[Any]], *, effect: bool = True) -> Rewrite:
    """Return a fault that changes the rows of each result."""

    def apply(reply: Any) -> Any:
        for entry in reply["reply"]:
            if "result" in entry:
                entry["result"] = change(entry["result"])
        return reply

    return Rewrite(apply, effect=effect)


def moments(
    api: ControlApiSimulator,
    method: str | None = None,
    script: Callable[[RequestRecord], Fault | None] = lambda _: None,
) -> list[float]:
    """Return a list to which the seconds from now to each request of a method are added.

    Args:
        api: The simulator.
        method: The method; None for all.
        script: Returns what goes wrong with a request.
    """
    seconds: list[float] = []
    start = api.now

    def note(record: RequestRecord) -> Fault | None:
        if method is None or method in record.methods:
            seconds.append(api.now - start)
        return script(record)

    api.fault_when = note
    return seconds


async def arriving(task_ids: Iterable[Any], pause: float | None = None) -> AsyncIterator[Any]:
    """Yield ids, each after a pause."""
    for task_id in task_ids:
        if pause is not None:
            await asyncio.sleep(pause)
        yield task_id


async def turns(count: int) -> None:
    """Let the loop turn so many times."""
    for _ in range(count):
        await asyncio.sleep(0)
