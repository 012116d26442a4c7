"""The event loop beside a large run: others have their turn, counted in turns and not in time."""

from __future__ import annotations

import asyncio
import gc
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import (
    ALL_ACTIVE,
    AuthError,
    Batching,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async._bulk.options import RunOptions
from ctrlapi_async._bulk.run import BulkRun, RunContext, StopRun
from ctrlapi_async._bulk.source import Targets
from ctrlapi_async._limiter import ConcurrencyLimiter
from ctrlapi_async._protocol.replies import Row, Rows
from tests.support.clock import run
from tests.support.oracle import RUNNING, SENT_TEXT, STATUS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from ctrlapi_async._protocol.requests import TaskCall

CHUNK = 500
AT_ONCE = 8


class EveryTaskRuns:
    """A server that is a function: all of its tasks run, every tenth as another one's restart.

    Args:
        active: How many tasks it calls active.
        barred: Whether it lets nobody in.
    """

    proven = ()

    def __init__(self, active: int = 0, *, barred: bool = False) -> None:
        self._active = range(active)
        self._barred = barred

    async def send(self, method: str, calls: Sequence[TaskCall], **_: Any) -> list[Any]:
        await asyncio.sleep(0)
        if self._barred:
            raise AuthError("access denied", 403)
        ids = [self._active if call.task_ids is ALL_ACTIVE else call.task_ids for call in calls]
        return [Rows(list(self._rows(method, one))) for one in ids]

    @staticmethod
    def _rows(method: str, task_ids: Any) -> Iterator[Row]:
        for task_id in task_ids:
            if method != STATUS:
                yield Row(task_id, SENT_TEXT)
            elif task_id % 10 or task_id > 10**6:
                yield Row(task_id, RUNNING)
            else:
                yield Row(task_id, "Stalled")
                yield Row(10**7 + task_id, RUNNING, task_id)


def run_over(targets: Targets, server: EveryTaskRuns) -> BulkRun:
    limiter = ConcurrencyLimiter(AT_ONCE, wait_bound=lambda _: 0.0, random=lambda: 0.0)
    context = RunContext(
        sender=server,
        limiter=limiter,
        batching=Batching(CHUNK, AT_ONCE),
        retry=RetryPolicy(),
        check_open=lambda: None,
    )
    return BulkRun(targets, RunOptions(), context)


@asynccontextmanager
async def watched(progress: Callable[[], int]) -> AsyncIterator[list[int]]:
    """Note how far things get from one turn of the event loop to the next."""
    steps: list[int] = []

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


@pytest.mark.parametrize("form", [list, iter])
@pytest.mark.parametrize("projects", [1, 40, 2000])
def test_ids_are_read_a_few_thousand_in_a_turn(projects: int, form: Any) -> None:
    size = 40_000 // projects
    listed = {n: form(range(n * size, n * size + size)) for n in range(projects)}
    one = run_over(Targets(listed=listed), EveryTaskRuns())

    async def main() -> None:
        async with watched(lambda: sum(one.counts.values())) as steps, StopRun(one):
            pass
        assert sum(steps) == len(one.report) == 40_000
        assert max(steps) <= 10_000
        assert max(steps) <= size * 100  # projects take their time as well

    run(main())


@pytest.mark.parametrize("wait", [False, True])
def test_outcomes_are_settled_and_taken_a_few_at_a_time(*, wait: bool) -> None:
    one = run_over(Targets(listed={2: range(1, 20_001)}), EveryTaskRuns())
    given = 0

    async def main() -> None:
        nonlocal given
        async with (
            watched(lambda: given) as steps,
            watched(lambda: one.progress.done) as settled,
            StopRun(one) as stopping,
        ):
            if wait:
                await stopping.wait()
            else:
                async for _ in stopping:
                    given += 1
        assert one.counts[StopResult.STOP_SENT] == 20_000
        assert wait or given == 20_000
        assert max(steps) <= 2 * CHUNK
        assert max(settled) <= 2 * AT_ONCE * CHUNK

    run(main())


def test_outcomes_of_a_run_that_has_ended_are_taken_a_few_at_a_time() -> None:
    one = run_over(Targets(listed={2: range(20_000)}), EveryTaskRuns(barred=True))
    given = 0

    async def main() -> None:
        nonlocal given
        async with watched(lambda: given) as steps, StopRun(one) as stopping:
            with suppress(StopIncompleteError):
                async for _ in stopping:
                    given += 1
        assert one.counts[StopResult.NOT_SENT] == given == 20_000
        assert max(steps) <= 5000

    run(main())


def test_an_answer_about_all_active_tasks_is_taken_in_in_parts() -> None:
    one = run_over(Targets(all_active=(2,)), EveryTaskRuns(active=40_000))

    async def main() -> None:
        async with (
            watched(lambda: one.progress.done) as settled,
            watched(lambda: sum(one.counts.values())) as read,
            StopRun(one) as stopping,
        ):
            await stopping.wait()
        assert one.counts[StopResult.STOP_SENT] == len(one.report) == 40_000
        assert max(settled) <= 2 * AT_ONCE * CHUNK
        assert max(read) <= 5000

    run(main())


def test_whoever_ends_a_run_while_ids_are_read_gets_an_outcome_for_each() -> None:
    read = 0

    def ids(project_id: int) -> Iterator[int]:
        nonlocal read
        for task_id in range(project_id * 100, project_id * 100 + 100):
            read += 1
            yield task_id

    one = run_over(Targets(listed={n: ids(n) for n in range(100)}), EveryTaskRuns())

    async def main() -> None:
        entering = asyncio.create_task(StopRun(one).__aenter__())
        await asyncio.sleep(0)
        assert 0 < len(one.report) < 10_000
        one.abort(RequestError("enough"))
        entering.cancel()
        with suppress(asyncio.CancelledError):
            await entering
        outcomes = {(each.result, each.error) for each in one.report.values()}
        assert outcomes == {(StopResult.NOT_SENT, "enough")}
        assert len(one.report) == read

    run(main())


def test_whoever_has_switched_garbage_collection_off_is_left_alone() -> None:
    passes: list[int] = []

    def note(_: str, info: dict[str, int]) -> None:
        passes.append(info["generation"])

    async def main() -> None:
        async with StopRun(run_over(Targets(listed={2: range(100_000)}), EveryTaskRuns())):
            pass

    gc.disable()
    gc.callbacks.append(note)
    try:
        run(main())
    finally:
        gc.callbacks.remove(note)
        gc.enable()
    assert not passes
