"""The bulk stop over a socket: what it costs, what goes when, and what a caller sees of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctrlapi_async import (
    ALL_ACTIVE,
    Progress,
    StopIncompleteError,
    StopOutcome,
    StopReport,
    StopResult,
    TaskStatus,
)
from ctrlapi_async._bulk.plan import StopPlan
from ctrlapi_async.simulator import STATUSES, ControlApiSimulator, HttpStatus
from tests.support.clock import run
from tests.support.simulated import (
    STATUS,
    STOP,
    arriving,
    costs,
    disconnected,
    open_session,
    outcomes_of,
    simulated,
    simulator,
    stopped,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SENT = StopResult.STOP_SENT
UNANSWERED = {StopResult.NOT_SENT, StopResult.UNCONFIRMED}


def expected(
    api: ControlApiSimulator, task_ids: Iterable[int], running: StopResult = SENT
) -> dict[int, StopOutcome]:
    """Return the outcomes that the simulator's tasks call for, before any of them is stopped."""
    outcomes = {}
    for n in task_ids:
        task = api.tasks[n]
        result = running if task.status == "Running" else StopResult.NOT_RUNNING
        outcomes[n] = StopOutcome(n, task.project_id, result, TaskStatus(task.status))
    return outcomes


# --- no wasted call -------------------------------------------------------------------------------


@given(
    world=st.lists(st.sampled_from([*STATUSES, *["Running"] * 5]), max_size=60),
    chunk=st.integers(1, 20),
    at_once=st.integers(1, 5),
    seed=st.integers(0, 99),
    dry_run=st.booleans(),
)
@example(world=[*STATUSES, "Running"] * 125, chunk=1000, at_once=4, seed=5, dry_run=False)
@example(world=[*STATUSES, "Running"] * 125, chunk=100, at_once=4, seed=6, dry_run=False)
def test_exactly_the_promised_requests(
    *, world: list[str], chunk: int, at_once: int, seed: int, dry_run: bool
) -> None:
    async def main() -> None:
        async with simulator(latency=0.001) as api:
            for n, status in enumerate(world):
                api.add_task(n, status)
            task_ids = list(range(len(world)))
            random.Random(seed).shuffle(task_ids)
            outcomes = expected(api, task_ids, StopResult.WOULD_STOP if dry_run else SENT)
            given = task_ids + task_ids[: len(task_ids) // 3]
            async with open_session(api, chunk, at_once) as session:
                report = await session.stop_running(2, given, dry_run=dry_run)
            await disconnected(api)
        assert list(report.items()) == list(outcomes.items())
        running = {n for n, status in enumerate(world) if status == "Running" and not dry_run}
        assert stopped(api) == running
        assert costs(api) == (ceil(len(world) / chunk), ceil(len(running) / chunk))
        assert +api.counters.ids == +Counter({STATUS: len(world), STOP: len(running)})
        assert (report.stats.status_calls, report.stats.stop_calls) == costs(api)
        assert report.stats.retries == 0
        assert report.complete
        assert api.counters.peak <= at_once

    run(main())


# --- a pipeline -----------------------------------------------------------------------------------


@simulated()
async def test_the_first_stop_leaves_before_the_last_check_is_answered(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(40))
    gate = api.hold(STATUS, number=4)
    async with open_session(api, 10, 4) as session, session.stopping(2, range(40)) as stopping:
        await api.wait_for_requests(3, STOP)
        assert gate.held == 1
        assert sum(stopping.counts.values()) == 40
        gate.release()
        await stopping.wait()
    assert costs(api) == (4, 4)


@simulated()
async def test_no_more_requests_at_once_than_allowed_however_many_runs(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(300))
    gate = api.hold()
    async with open_session(api, 5, 3) as session:
        parts = [range(start, start + 60) for start in range(0, 300, 60)]
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(session.stop_running(2, part)) for part in parts]
            status = group.create_task(session.task_status(2, range(300)))
            call = group.create_task(session.call(STATUS, {"project_id": 2, "task_ids": 7}))
            await api.wait_until(lambda: gate.held == 3)
            gate.release()
    assert api.counters.peak == 3
    assert [one.result().ids(SENT) for one in runs] == [list(part) for part in parts]
    assert len(status.result()) == 300
    assert call.result()[0]["task_id"] == 7


# --- what a caller sees ---------------------------------------------------------------------------


@simulated()
async def test_report_counts_and_progress_are_right_at_any_moment(
    api: ControlApiSimulator,
) -> None:
    api.mixed_tasks(200, running=0.6)
    outcomes = expected(api, range(1, 201))
    seen: dict[int, StopOutcome] = {}
    async with open_session(api, 9, 3) as session:
        stopping = session.stopping(2, range(1, 201))
        assert stopping.progress == Progress(None, 0)
        async with stopping:
            assert stopping.counts[StopResult.NOT_SENT] == 200
            assert stopping.progress == Progress(200, 0)
            async for outcome in stopping:
                seen[outcome.task_id] = outcome
                report = stopping.report
                assert len(report) == 200 == sum(stopping.counts.values())
                assert stopping.counts == report.counts
                assert seen == {n: report[n] for n in seen}
                assert len(seen) <= stopping.progress.done <= 200
            for _ in range(2):
                with pytest.raises(StopAsyncIteration):
                    await anext(stopping)
        assert stopping.progress == Progress(200, 200)
    assert seen == outcomes
    assert list(stopping.report.items()) == list(outcomes.items())


@simulated()
async def test_progress_has_no_total_while_more_ids_may_come(api: ControlApiSimulator) -> None:
    api.add_tasks(range(20))
    async with open_session(api, 5) as session:
        async with session.stopping(2, arriving(range(20), 1.0)) as stopping:
            totals = [stopping.progress.total async for _ in stopping]
        assert totals[0] is None
        assert stopping.progress == Progress(20, 20)
        gate = api.hold(STATUS)
        async with session.stopping(2, ALL_ACTIVE) as stopping:
            await api.wait_until(lambda: gate.held == 1)
            assert stopping.progress == Progress(None, 0)
            assert "unknown" in repr(stopping)
            gate.release()
            await stopping.wait()
        assert stopping.progress == Progress(0, 0)
        assert repr(stopping) == "<StopRun ended: 0 of 0 tasks done>"


@simulated()
async def test_outcomes_come_as_soon_as_they_are_known_and_errors_after_the_last(
    api: ControlApiSimulator,
) -> None:
    api.add_task(1, "Completed")
    api.add_task(2)
    api.fault(HttpStatus(400), method=STATUS, number=2, every=True)
    with api.hold(STOP) as gate:
        async with open_session(api, 2, 1) as session, session.stopping(2, [1, 2, 3]) as stopping:
            first = await anext(stopping)
            gate.release()
            rest = [await anext(stopping) for _ in range(2)]
            with pytest.raises(StopIncompleteError) as caught:
                await anext(stopping)
    assert first == StopOutcome(1, 2, StopResult.NOT_RUNNING, TaskStatus.COMPLETED)
    assert StopOutcome(2, 2, SENT, TaskStatus.RUNNING) in rest
    assert {each.task_id: each for each in [first, *rest]} == dict(caught.value.report)
    assert caught.value.report == stopping.report


@simulated()
async def test_a_break_ends_the_run_and_keeps_what_is_known(api: ControlApiSimulator) -> None:
    api.add_tasks(range(100))
    api.hold(STATUS, number=3, every=True)
    async with open_session(api, 5, 2) as session:
        async with session.stopping(2, range(100)) as stopping:
            first = await anext(stopping)
        sent = api.counters.requests
        report = stopping.report
        with pytest.raises(StopIncompleteError) as caught:
            async for _ in stopping:
                pass
        assert caught.value.report == report
    assert first == report[first.task_id]
    assert len(report) == 100
    assert report.counts == stopping.counts
    assert api.counters.requests <= sent + 2  # those that were in flight
    left = {each.error for each in report.values() if each.result in UNANSWERED}
    assert left == {"the run was left before its end"}


@simulated()
async def test_a_run_is_entered_once_and_taken_in_one_way(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        stopping = session.stopping(2, [1, 2])
        for use in (anext(stopping), stopping.wait()):
            with pytest.raises(RuntimeError, match="async with"):
                await use
        assert stopping.report == StopReport()
        assert stopping.report.stats.elapsed == 0
        async with stopping:
            with pytest.raises(RuntimeError, match="once"):
                await stopping.__aenter__()
            await stopping.wait()
            with pytest.raises(RuntimeError, match=r"taken with wait\(\)"):
                await anext(stopping)
        with pytest.raises(RuntimeError, match="once"):
            await stopping.__aenter__()
        await stopping.wait()
        assert stopping.report is stopping.report


# --- which tasks ----------------------------------------------------------------------------------


class Index:
    """Something that is an int where Python asks for one."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __index__(self) -> int:
        return self._number


class Countdown:
    """An async source that is no generator, and has no `aclose`."""

    left = 4

    def __aiter__(self) -> Countdown:
        return self

    async def __anext__(self) -> int:
        self.left -= 1
        if self.left == 0:
            raise StopAsyncIteration
        return self.left


FORMS: dict[str, Callable[[], Any]] = {
    "list": lambda: [3, 2, 1, 2],
    "tuple": lambda: (3, 2, 1),
    "iterator": lambda: iter([3, 3, 2, 1]),
    "generator": lambda: (n for n in (3, 2, 1)),
    "range": lambda: range(3, 0, -1),
    "keys": {3: "x", 2: "y", 1: "z"}.keys,
    "async": lambda: arriving([3, 2, 2, 1]),
    "async, no generator": Countdown,
    "array": lambda: np.array([3, 2, 1, 1]),
    "scalars": lambda: [np.int64(3), np.uint8(2), Index(1)],
    "async scalars": lambda: arriving([np.int64(3), np.uint8(2), Index(1)]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@simulated()
async def test_task_ids_come_in_many_forms(
    api: ControlApiSimulator, form: Callable[[], Any]
) -> None:
    api.add_tasks([1, 2, 3])
    async with open_session(api) as session:
        report = await session.stop_running(2, form())
    assert report.ids(SENT) == list(report) == [3, 2, 1]
    assert {type(task_id) for task_id in report} == {int}
    assert all(task.stop_requests == 1 for task in api.tasks.values())


@pytest.mark.parametrize("form", [7, np.int32(7), Index(7)], ids=lambda form: type(form).__name__)
@simulated()
async def test_one_id_comes_in_many_forms(api: ControlApiSimulator, form: Any) -> None:
    api.add_task(7, project_id=3)
    across: Any = {Index(3): form}
    async with open_session(api) as session:
        assert list(await session.stop_running(Index(3), form, dry_run=True)) == [7]
        assert list(await session.stop_running_across(across, dry_run=True)) == [7]
        assert list(await session.task_status(np.int64(3), form)) == [7]
        assert (await session.stop(Index(3), form)).result is SENT


@simulated()
async def test_a_fault_of_the_package_loses_nothing(
    api: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    api.add_tasks(range(10))
    monkeypatch.setattr(StopPlan, "receive", broken)
    async with open_session(api) as session:
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, range(10))
        assert str(caught.value) == "10 of 10 tasks without an answer: ours"
        assert caught.value.report.counts[StopResult.NOT_SENT] == 10
        async with session.stopping(2, range(10)) as stopping:
            with pytest.raises(StopIncompleteError):
                await outcomes_of(stopping)
        results = await asyncio.gather(
            *(session.stop(2, n) for n in range(3)), return_exceptions=True
        )
    for result in results:
        assert isinstance(result, StopIncompleteError)
        assert isinstance(result.exceptions[0], ZeroDivisionError)
