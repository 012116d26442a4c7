"""The event loop beside a large run: others have their turn, counted in turns and not in time."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest
from support import engine, watched

from ctrlapi_async import (
    AuthError,
    Batching,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopReport,
    StopResult,
    wire,
)
from ctrlapi_async.bulk import Options, Targets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ctrlapi_async.bulk import StopRun
    from ctrlapi_async.plan import Call


def run_over(listed: dict[int, Iterable[int]], *, barred: bool = False) -> StopRun:
    """Make a run over a server where all tasks run, or that lets nobody in."""

    def send(method: str, calls: list[Call]) -> list[Any]:
        if barred:
            raise AuthError("access denied", 403)
        mark = b"g" if method == wire.TASK_STATUS else b"q"
        return [wire.Answer([], marks=mark * call.size) for call in calls]

    return engine(
        Targets(listed=listed),
        Options(),
        send,
        batching=Batching(chunk_size=500, max_concurrency=8),
        policy=RetryPolicy(),
    )


class Counted:
    """Ids that count how many were read."""

    def __init__(self) -> None:
        self.read = 0

    def ids(self, *bounds: int) -> Iterable[int]:
        for task_id in range(*bounds):
            self.read += 1
            yield task_id


@pytest.mark.parametrize("projects", [1, 40, 2000])
async def test_ids_are_taken_a_few_thousand_in_a_turn(projects: int) -> None:
    counted = Counted()
    size = 40_000 // projects
    listed = {n: counted.ids(n * size, n * size + size) for n in range(projects)}
    async with watched(lambda: counted.read) as steps, run_over(listed):
        pass
    assert sum(steps) == 40_000
    assert max(steps) <= 10_000
    assert max(steps) <= size * 100  # projects take their time as well


def young() -> int:
    """Count the references that the garbage collector's next young collection goes through."""
    lists = [each for age in (0, 1) for each in gc.get_objects(age) if type(each) is list]
    return sum(map(len, lists))


async def test_no_collection_of_garbage_goes_through_all_ids() -> None:
    gc.collect()
    async with run_over({2: range(300_000)}):
        assert young() < 250_000


@pytest.mark.parametrize("off", [gc.disable, lambda: gc.set_threshold(0)])
async def test_who_has_switched_the_collector_off_is_left_alone(off: Callable[[], None]) -> None:
    threshold = gc.get_threshold()
    passes: list[int] = []

    def note(_: str, info: dict[str, int]) -> None:
        passes.append(info["generation"])

    off()
    gc.callbacks.append(note)
    try:
        async with run_over({2: range(300_000)}):
            pass
    finally:
        gc.callbacks.remove(note)
        gc.enable()
        gc.set_threshold(*threshold)
    assert not passes


async def test_what_ended_a_run_first_is_told() -> None:
    run = run_over({2: range(20_000)})
    entering = asyncio.create_task(run.__aenter__())
    await asyncio.sleep(0)
    run.end(RequestError("enough"))
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert {each.error for each in run.report.values()} == {"enough"}
    assert 0 < len(run.report) < 20_000


async def test_who_ends_a_run_while_ids_are_taken_is_told_of_all() -> None:
    counted = Counted()
    run = run_over({n: counted.ids(n * 10, n * 10 + 10) for n in range(1000)})
    seen: list[tuple[StopReport, int]] = []

    async def end() -> None:
        assert 0 < counted.read < 10_000
        run.end(RequestError("enough"))
        for _ in range(20):
            seen.append((run.report, len(run.report)))
            await asyncio.sleep(0)

    ending = asyncio.create_task(end())
    with pytest.raises(StopIncompleteError) as caught:
        async with run:
            await run.wait()
    await ending
    assert counted.read == len(run.report) == 10_000
    assert {(each.result, each.error) for each in run.report.values()} == {
        (StopResult.NOT_SENT, "enough")
    }
    assert caught.value.report is run.report
    assert [len(report) for report, _ in seen] == [size for _, size in seen]
    assert seen[0][1] < 10_000


@pytest.mark.parametrize("barred", [True, False])
async def test_outcomes_are_given_a_few_at_a_time_also_at_the_end(*, barred: bool) -> None:
    given: list[StopOutcome] = []
    async with watched(lambda: len(given)) as steps:
        try:
            async with run_over({2: range(50_000)}, barred=barred) as run:
                async for outcome in run:
                    given.append(outcome)  # noqa: PERF401 - so that it can be watched
        except StopIncompleteError:
            assert barred
    assert run.counts[StopResult.NOT_SENT if barred else StopResult.STOP_SENT] == 50_000
    assert len(given) == 50_000
    assert max(steps) <= 1000
