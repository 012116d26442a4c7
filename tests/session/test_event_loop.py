"""The event loop beside a large run: others have their turn, counted in turns and not in time."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
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
from tests.support.steps import watched

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
        self.barred = barred

    async def send(self, method: str, calls: Sequence[TaskCall], **_: Any) -> list[Any]:
        await asyncio.sleep(0)
        if self.barred:
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


@pytest.mark.parametrize(
    ("targets", "server", "wait", "most"),
    [
        # The most tasks in a turn that a run may learn of, settle, and hand over.
        ({"listed": {2: range(20_000)}}, EveryTaskRuns(), False, (10_000, 8000, 1000)),
        ({"listed": {2: range(20_000)}}, EveryTaskRuns(), True, (10_000, 8000, 0)),
        ({"listed": {2: range(20_000)}}, EveryTaskRuns(barred=True), False, (10_000, 20_000, 5000)),
        ({"all_active": (2,)}, EveryTaskRuns(active=40_000), True, (5000, 8000, 0)),
    ],
    ids=["taken", "waited for", "taken after the end", "all active"],
)
def test_outcomes_are_settled_and_taken_a_few_at_a_time(
    targets: dict[str, Any], server: EveryTaskRuns, wait: bool, most: tuple[int, int, int]
) -> None:
    one = run_over(Targets(**targets), server)
    taken = 0

    async def main() -> None:
        nonlocal taken
        async with (
            watched(lambda: sum(one.counts.values())) as known,
            watched(lambda: one.progress.done) as settled,
            watched(lambda: taken) as handed_over,
            StopRun(one) as stopping,
        ):
            with suppress(StopIncompleteError):
                if wait:
                    await stopping.wait()
                else:
                    async for _ in stopping:
                        taken += 1
        total = 40_000 if "all_active" in targets else 20_000
        result = StopResult.NOT_SENT if server.barred else StopResult.STOP_SENT
        assert one.counts[result] == len(one.report) == total
        assert taken == (0 if wait else total)
        for steps, bound in zip((known, settled, handed_over), most, strict=True):
            assert max(steps) <= bound

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
