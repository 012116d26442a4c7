"""The bulk stop over a socket: what it costs, what goes when, and what a caller sees of it."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from math import ceil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import arriving

from ctrlapi_async import (
    ALL_ACTIVE,
    Batching,
    ControlSession,
    StopIncompleteError,
    StopOutcome,
    StopReport,
    StopResult,
    StopRun,
    TaskStatus,
    bulk,
)
from ctrlapi_async.plan import StopPlan
from ctrlapi_async.simulator import STATUSES, ControlApiSimulator, HttpStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

STATUS = "TaskStatus"
STOP = "TaskStop"
SENT = StopResult.STOP_SENT
INSTANT = 0.0001
"""Seconds of latency with which a request lasts long enough to overlap with others."""
UNFINISHED = {StopResult.NOT_SENT, StopResult.UNCONFIRMED}


def session_with(api: ControlApiSimulator, **batching: Any) -> ControlSession:
    return ControlSession(api.url, 1, batching=Batching(**batching))


def expected(api: ControlApiSimulator, task_ids: Iterable[int]) -> dict[int, StopOutcome]:
    """Give the outcomes that the simulator's tasks call for, before any of them is stopped."""
    return {
        n: StopOutcome(
            n,
            task.project_id,
            SENT if task.status == "Running" else StopResult.NOT_RUNNING,
            TaskStatus(task.status),
        )
        for n in dict.fromkeys(task_ids)
        for task in [api.tasks[n]]
    }


def calls(status: int, stop: int) -> Counter[str]:
    return Counter({STATUS: status, STOP: stop})


async def gather_outcomes(run: StopRun) -> list[StopOutcome]:
    return [outcome async for outcome in run]


# --- No wasted call -------------------------------------------------------------------------------

# N, R, chunk, and where the Running ones are.
COUNTS = [
    (0, 0, 5, "scattered"),
    (1, 0, 5, "scattered"),
    (1, 1, 5, "scattered"),
    (10, 0, 3, "scattered"),
    (10, 10, 3, "scattered"),
    (10, 10, 1, "scattered"),
    (10, 5, 10, "scattered"),
    (11, 5, 10, "first"),
    (100, 1, 7, "last"),
    (100, 50, 7, "first"),
    (100, 50, 7, "last"),
    (100, 50, 7, "scattered"),
    (100, 99, 10, "scattered"),
    (1000, 501, 100, "scattered"),
    (1000, 500, 1000, "first"),
    (999, 333, 50, "last"),
]


@pytest.mark.parametrize(("count", "running", "chunk", "where"), COUNTS)
async def test_exactly_the_promised_requests(
    count: int, running: int, chunk: int, where: str, api: ControlApiSimulator
) -> None:
    task_ids = list(range(1, count + 1))
    random.Random(5).shuffle(task_ids)
    chosen = {
        "first": task_ids[:running],
        "last": task_ids[count - running :],
        "scattered": random.Random(6).sample(task_ids, running),
    }[where]
    api.add_tasks(chosen)
    for n in set(task_ids) - set(chosen):
        api.add_task(n, STATUSES[n % 2])
    outcomes = expected(api, task_ids)
    api.latency = INSTANT
    async with session_with(api, chunk_size=chunk, max_concurrency=4) as session:
        report = await session.stop_running(2, task_ids)
    checks, stops = ceil(count / chunk), ceil(running / chunk)
    assert api.counters.requests == checks + stops
    assert api.counters.requests_by_method == +calls(checks, stops)
    assert api.counters.ids == +calls(count, running)
    assert (report.stats.status_calls, report.stats.stop_calls) == (checks, stops)
    assert report.stats.retries == 0
    assert api.counters.peak <= 4
    assert list(report.items()) == list(outcomes.items())
    assert {n for n, task in api.tasks.items() if task.stop_requests} == set(chosen)


worlds = st.lists(st.sampled_from([*STATUSES, *["Running"] * 5]), max_size=60)


@settings(max_examples=40)
@given(worlds, st.integers(1, 20), st.integers(1, 5), st.randoms(use_true_random=False))
async def test_any_tasks_any_chunk_any_concurrency(
    world: list[str], chunk: int, concurrency: int, chance: random.Random
) -> None:
    async with ControlApiSimulator(latency=INSTANT) as api:
        for n, status in enumerate(world):
            api.add_task(n, status)
        task_ids = list(range(len(world)))
        chance.shuffle(task_ids)
        outcomes = expected(api, task_ids)
        asked = task_ids + task_ids[: len(task_ids) // 3]
        async with session_with(api, chunk_size=chunk, max_concurrency=concurrency) as session:
            report = await session.stop_running(2, asked)
    assert list(report.items()) == list(outcomes.items())
    assert api.counters.requests_by_method == +calls(
        ceil(len(world) / chunk), ceil(world.count("Running") / chunk)
    )
    assert api.counters.peak <= concurrency


async def test_requests_are_packed_as_documented(api: ControlApiSimulator) -> None:
    api.add_tasks(range(5))
    async with session_with(api, chunk_size=2, max_concurrency=1) as session:
        await session.stop_running(2, range(5))
    sizes = [
        (record.methods[0], record.json["methods"][0]["params"]["task_ids"]) for record in api.log
    ]
    assert sizes == [
        (STATUS, [0, 1]),
        (STOP, [0, 1]),
        (STATUS, [2, 3]),
        (STOP, [2, 3]),
        (STATUS, 4),
        (STOP, 4),
    ]


# --- A pipeline -----------------------------------------------------------------------------------


async def test_the_first_stop_leaves_before_the_last_check_is_answered(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(40))
    gate = api.hold(STATUS, number=4)
    async with (
        session_with(api, chunk_size=10, max_concurrency=4) as session,
        session.stopping(2, range(40)) as run,
    ):
        await api.wait_for_requests(3, STOP)
        assert gate.held == 1
        counts = dict(run.counts)
        gate.release()
        await run.wait()
    assert sum(counts.values()) == 40
    assert api.counters.requests_by_method == calls(4, 4)


async def test_no_more_requests_at_once_than_allowed_however_many_runs(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(300))
    api.latency = INSTANT
    gate = api.hold()
    async with session_with(api, chunk_size=5, max_concurrency=3) as session:
        parts = [range(start, start + 60) for start in range(0, 300, 60)]
        async with asyncio.TaskGroup() as group:
            runs = [group.create_task(session.stop_running(2, part)) for part in parts]
            status = group.create_task(session.task_status(2, range(300)))
            call = group.create_task(session.call(STATUS, {"project_id": 2, "task_ids": 7}))
            await api.wait_until(lambda: gate.held == 3)
            gate.release()
    assert api.counters.peak == 3
    assert [run.result().ids(SENT) for run in runs] == [list(part) for part in parts]
    assert len(status.result()) == 300
    assert call.result()[0]["task_id"] == 7


# --- Streaming ------------------------------------------------------------------------------------


def assert_agree(run: StopRun, total: int, gone: list[StopOutcome]) -> None:
    report = run.report
    assert len(report) == total
    assert sum(run.counts.values()) == total
    assert run.counts == report.counts
    for outcome in gone:
        assert report[outcome.task_id] == outcome


async def test_report_and_counts_are_right_at_any_moment(api: ControlApiSimulator) -> None:
    api.mixed_tasks(200, running=0.6)
    outcomes = expected(api, range(1, 201))
    gone: list[StopOutcome] = []
    async with session_with(api, chunk_size=9, max_concurrency=3) as session:
        async with session.stopping(2, range(1, 201)) as run:
            assert_agree(run, 200, gone)
            assert run.counts[StopResult.NOT_SENT] == 200
            async for outcome in run:
                gone.append(outcome)
                assert_agree(run, 200, gone)
            assert run.report.complete
        assert_agree(run, 200, gone)
    assert sorted(each.task_id for each in gone) == list(range(1, 201))
    assert {each.task_id: each for each in gone} == outcomes
    assert list(run.report.items()) == list(outcomes.items())


async def test_a_stop_under_way_is_unconfirmed_until_its_answer(api: ControlApiSimulator) -> None:
    api.add_tasks(range(4))
    with api.hold(STOP) as gate:
        async with (
            session_with(api, chunk_size=2, max_concurrency=1) as session,
            session.stopping(2, range(4)) as run,
        ):
            await api.wait_until(lambda: gate.held == 1)
            under_way = run.report
            assert run.counts == under_way.counts
            gate.release()
            await run.wait()
    assert under_way.ids(StopResult.UNCONFIRMED) == [0, 1]
    assert under_way.ids(StopResult.NOT_SENT) == [2, 3]
    assert {each.status for each in under_way.values()} == {TaskStatus.RUNNING, None}
    assert run.report.ids(SENT) == [0, 1, 2, 3]


async def test_outcomes_come_as_soon_as_they_are_known(api: ControlApiSimulator) -> None:
    api.add_task(1, "Completed")
    api.add_task(2)
    with api.hold(STOP) as gate:
        async with session_with(api) as session, session.stopping(2, [1, 2]) as run:
            first = await anext(run)
            gate.release()
            second = await anext(run)
            with pytest.raises(StopAsyncIteration):
                await anext(run)
            with pytest.raises(StopAsyncIteration):
                await anext(run)
    assert first == StopOutcome(1, 2, StopResult.NOT_RUNNING, TaskStatus.COMPLETED)
    assert second == StopOutcome(2, 2, SENT, TaskStatus.RUNNING)


async def test_a_break_ends_the_run_and_keeps_what_is_known(api: ControlApiSimulator) -> None:
    api.add_tasks(range(100))
    api.hold(STATUS, number=3, every=True)
    async with session_with(api, chunk_size=5, max_concurrency=2) as session:
        async with session.stopping(2, range(100)) as run:
            async for outcome in run:
                first = outcome
                break
        sent = api.counters.requests
        report = run.report
        with pytest.raises(StopIncompleteError) as caught:
            await run.wait()
        api.hold(STATUS).release()
    assert first == report[first.task_id]
    assert len(report) == 100
    assert report.counts == run.counts
    assert not report.complete
    assert caught.value.report == report
    assert api.counters.requests == sent  # and nothing was sent any more
    left = [each for each in report.values() if each.result in UNFINISHED]
    assert {each.error for each in left} == {"the run was left before its end"}


async def test_a_run_left_after_its_end_is_as_it_ended(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with session_with(api) as session:
        async with session.stopping(2, [1, 2]) as run:
            await run.wait()
        await run.wait()
        assert [outcome async for outcome in run] == []
        assert run.report.ids(SENT) == [1, 2]
        assert run.report is run.report


async def test_a_run_is_entered_once(api: ControlApiSimulator) -> None:
    api.add_task(1)
    async with session_with(api) as session:
        run = session.stopping(2, 1)
        async with run:
            with pytest.raises(RuntimeError, match="once"):
                await run.__aenter__()
            await run.wait()
        with pytest.raises(RuntimeError, match="once"):
            await run.__aenter__()


async def test_a_run_that_was_not_entered_says_so(api: ControlApiSimulator) -> None:
    async with session_with(api) as session:
        run = session.stopping(2, 1)
        with pytest.raises(RuntimeError, match="async with"):
            await anext(run)
        with pytest.raises(RuntimeError, match="async with"):
            await run.wait()
        assert run.report == StopReport()
        assert run.report.stats.elapsed == 0
    assert api.counters.requests == 0


async def test_the_end_of_a_loop_raises_after_the_last_outcome(api: ControlApiSimulator) -> None:
    api.add_tasks(range(10))
    api.fault(HttpStatus(400), method=STATUS, number=2)
    async with (
        session_with(api, chunk_size=5, max_concurrency=1) as session,
        session.stopping(2, range(10)) as run,
    ):
        gone = [await anext(run) for _ in range(10)]
        with pytest.raises(StopIncompleteError) as caught:
            await anext(run)
    assert [each.task_id for each in gone] == list(range(10))
    assert {each.task_id: each for each in gone} == dict(caught.value.report)
    assert caught.value.report == run.report


async def test_without_a_report_counts_still_tell_all(api: ControlApiSimulator) -> None:
    api.mixed_tasks(100, running=0.4)
    async with session_with(api, chunk_size=10, max_concurrency=2) as session:
        async with session.stopping(2, range(1, 101), collect=False) as run:
            gone = await gather_outcomes(run)
        assert run.report == StopReport()
        assert run.report.stats.stop_calls == 4
    assert sorted(each.task_id for each in gone) == list(range(1, 101))
    assert run.counts[SENT] == 40
    assert run.counts[StopResult.NOT_RUNNING] == 60
    assert sum(run.counts.values()) == 100


# --- Which tasks ----------------------------------------------------------------------------------

FORMS: list[tuple[str, Callable[[], Any]]] = [
    ("list", lambda: [3, 1, 2, 1]),
    ("tuple", lambda: (3, 1, 2)),
    ("iterator", lambda: iter([3, 3, 1, 2])),
    ("generator", lambda: (n for n in (3, 1, 2))),
    ("dict", lambda: {3: "x", 1: "y", 2: "z"}),
    ("async", lambda: arriving([3, 1, 1, 2])),
]


@pytest.mark.parametrize("form", [form for _, form in FORMS], ids=[name for name, _ in FORMS])
async def test_task_ids_come_in_many_forms(
    form: Callable[[], Any], api: ControlApiSimulator
) -> None:
    api.add_tasks([1, 2, 3])
    async with session_with(api) as session:
        report = await session.stop_running(2, form())
    assert report.ids(SENT) == list(report) == [3, 1, 2]
    assert all(task.stop_requests == 1 for task in api.tasks.values())


async def test_all_active_stops_what_runs_in_that_project(api: ControlApiSimulator) -> None:
    for n, status in enumerate(STATUSES):
        api.add_task(n, status)
    api.add_tasks([100, 101], project_id=3)
    async with session_with(api) as session:
        report = await session.stop_running(2, ALL_ACTIVE)
    assert {n: (each.result, str(each.status)) for n, each in report.items()} == {
        0: (StopResult.NOT_RUNNING, "Scheduled"),
        1: (StopResult.NOT_RUNNING, "Explore"),
        2: (SENT, "Running"),
    }
    assert [n for n, task in api.tasks.items() if task.stop_requests] == [2]


async def test_a_dry_run_stops_nothing(api: ControlApiSimulator) -> None:
    api.mixed_tasks(100, running=0.5)
    running = [n for n, task in api.tasks.items() if task.status == "Running"]
    async with session_with(api, chunk_size=30) as session:
        report = await session.stop_running(2, range(1, 101), dry_run=True)
    assert report.ids(StopResult.WOULD_STOP) == sorted(running)
    assert report.counts[StopResult.NOT_RUNNING] == 50
    assert report.complete
    assert api.counters.requests_by_method == +calls(4, 0)


async def test_a_source_is_read_as_the_run_goes(api: ControlApiSimulator) -> None:
    api.add_tasks(range(1000))
    read = 0

    async def ids() -> AsyncIterator[int]:
        nonlocal read
        for n in range(1000):
            read += 1
            yield n

    gate = api.hold(STATUS)
    async with (
        session_with(api, chunk_size=10, max_concurrency=2) as session,
        session.stopping(2, ids(), collect=False) as run,
    ):
        await api.wait_until(lambda: gate.held == 2)
        assert read <= 10 * 2 * 4
        gate.release()
        await run.wait()
    assert run.counts[SENT] == read == 1000


async def test_a_slow_source_does_not_hold_up_what_it_gave(api: ControlApiSimulator) -> None:
    api.add_tasks(range(4))
    came = asyncio.Event()
    async with (
        session_with(api, chunk_size=100) as session,
        session.stopping(2, arriving(range(4), pause=came.wait)) as run,
    ):
        first = await anext(run)
        came.set()
        await run.wait()
    assert first == StopOutcome(0, 2, SENT, TaskStatus.RUNNING)
    assert run.report.ids(SENT) == [0, 1, 2, 3]


@pytest.mark.parametrize("bad", [True, "66", -1])
async def test_a_bad_id_from_a_source_joins_the_errors(bad: Any, api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with session_with(api) as session:
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, arriving([1, 2, bad]))
    (error,) = caught.value.exceptions
    assert isinstance(error, TypeError | ValueError)
    assert caught.value.report.ids(SENT) == [1, 2]  # what was read is finished


# --- Waiting and confirming -----------------------------------------------------------------------


@pytest.fixture
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "POLL_FIRST", 0.001)
    monkeypatch.setattr(bulk, "POLL_MAX", 0.001)


@pytest.mark.usefixtures("_quick_polls")
async def test_pending_tasks_are_stopped_once_they_run() -> None:
    async with ControlApiSimulator(tick=1.0) as api:
        api.add_task(1, "Scheduled", life=[(3, "Explore"), (5, "Running")])
        api.add_task(2, "Explore", life=[(4, "Running"), (5, "Completed")])
        api.add_task(3, "Completed")
        api.add_task(4)
        async with session_with(api) as session:
            report = await session.stop_running(2, [1, 2, 3, 4], wait_pending=3600)
    assert report.ids(SENT) == [1, 4]
    assert report[2].result in (StopResult.NOT_RUNNING, SENT, StopResult.UNAVAILABLE)
    assert report[3] == StopOutcome(3, 2, StopResult.NOT_RUNNING, TaskStatus.COMPLETED)
    assert api.tasks[1].stopped


@pytest.mark.usefixtures("_quick_polls")
@pytest.mark.parametrize("wait", [0, 0.01])
async def test_a_task_that_stays_pending_is_not_running(
    wait: float, api: ControlApiSimulator
) -> None:
    api.add_task(1, "Scheduled")
    async with session_with(api) as session:
        report = await session.stop_running(2, [1], wait_pending=wait)
    assert report[1] == StopOutcome(1, 2, StopResult.NOT_RUNNING, TaskStatus.SCHEDULED)
    assert api.counters.requests_by_method[STOP] == 0


@pytest.mark.usefixtures("_quick_polls")
async def test_confirming_tells_what_became_of_each_stop() -> None:
    async with ControlApiSimulator(tick=1.0, stop_delay=4.0) as api:
        api.add_tasks(range(10))
        api.add_task(10, life=[(4, "Completed")])
        api.add_task(11, "Stalled")
        async with session_with(api, chunk_size=100) as session:
            report = await session.stop_running(2, range(12), confirm=3600)
    assert {n: (each.result, str(each.status)) for n, each in report.items()} == {
        **dict.fromkeys(range(10), (SENT, "Canceled")),
        10: (SENT, "Completed"),
        11: (StopResult.NOT_RUNNING, "Stalled"),
    }
    assert report.stats.stop_calls == 1


@pytest.mark.usefixtures("_quick_polls")
@pytest.mark.parametrize("seconds", [0, 0.01])
async def test_a_stop_that_takes_longer_than_confirm_waits_is_still_sent(
    seconds: float, api: ControlApiSimulator
) -> None:
    api.stop_delay = 1000
    api.add_task(1)
    async with session_with(api) as session:
        report = await session.stop_running(2, [1], confirm=seconds)
    assert report[1] == StopOutcome(1, 2, SENT, TaskStatus.RUNNING)
    assert report.complete


@pytest.mark.usefixtures("_quick_polls")
async def test_a_stream_with_confirm_gives_each_outcome_once_when_it_is_sure() -> None:
    async with ControlApiSimulator(tick=1.0, stop_delay=3.0) as api:
        api.add_tasks(range(6))
        api.add_task(6, "Completed")
        async with (
            session_with(api, chunk_size=3) as session,
            session.stopping(2, range(7), confirm=3600) as run,
        ):
            gone = await gather_outcomes(run)
    assert sorted(each.task_id for each in gone) == list(range(7))
    assert {str(each.status) for each in gone if each.result is SENT} == {"Canceled"}


async def test_a_fault_of_the_package_comes_out_as_itself(
    api: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    api.add_tasks(range(10))
    monkeypatch.setattr(StopPlan, "answered", broken)
    async with session_with(api) as session:
        with pytest.raises(ZeroDivisionError):
            await session.stop_running(2, range(10))
        async with session.stopping(2, range(10)) as run:
            with pytest.raises(ZeroDivisionError):
                [outcome async for outcome in run]
        assert run.report.counts[StopResult.NOT_SENT] == 10
        assert (
            await asyncio.gather(*(session.stop(2, n) for n in range(3)), return_exceptions=True)
            == [AnyFault(ZeroDivisionError)] * 3
        )


class AnyFault:
    """Equal to every error of a kind."""

    def __init__(self, kind: type[Exception]) -> None:
        self._kind = kind

    def __eq__(self, other: object) -> bool:
        return type(other) is self._kind

    __hash__ = None  # type: ignore[assignment]


async def test_a_source_need_not_be_a_generator(api: ControlApiSimulator) -> None:
    class Countdown:
        left = 10

        def __aiter__(self) -> Countdown:
            return self

        async def __anext__(self) -> int:
            if self.left == 0:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    api.add_tasks(range(10))
    async with session_with(api) as session:
        report = await session.stop_running(2, Countdown())
    assert report.ids(StopResult.STOP_SENT) == list(range(9, -1, -1))
