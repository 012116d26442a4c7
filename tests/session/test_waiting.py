"""Asking again: tasks that may yet start, tasks that were stopped, and whatever is active."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import (
    ALL_ACTIVE,
    AuthError,
    MethodError,
    ProjectNotFoundError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopReport,
    StopResult,
)
from ctrlapi_async._bulk import polls
from ctrlapi_async.simulator import (
    Body,
    ControlApiSimulator,
    CutBody,
    Delay,
    Drop,
    Fault,
    Hang,
    HttpStatus,
    Rewrite,
)
from tests.support.clock import run, skip
from tests.support.oracle import Oracle
from tests.support.simulated import (
    STATUS,
    STOP,
    arriving,
    asked,
    costs,
    disconnected,
    ended,
    letters,
    moments,
    open_session,
    outcomes_of,
    simulated,
    simulator,
)
from tests.support.witness import Witness

if TYPE_CHECKING:
    from ctrlapi_async.simulator import RequestRecord

SENT = StopResult.STOP_SENT
NOT_RUNNING = StopResult.NOT_RUNNING
STILL_RUNNING = StopResult.STILL_RUNNING
LONG = 100.0
SLACK = 6.0
"""Seconds on top of a limit: the longest pause between two checks, and some."""


def told(report: StopReport) -> dict[int, tuple[StopResult, str]]:
    return {n: (each.result, str(each.status)) for n, each in report.items()}


# --- wait_pending ---------------------------------------------------------------------------------


@simulated()
async def test_a_pending_task_is_stopped_once_it_runs(api: ControlApiSimulator) -> None:
    api.add_task(1, "Scheduled", life=[(3, "Explore"), (7, "Running")])
    api.add_task(2, "Running")
    async with open_session(api) as session:
        report = await session.stop_running(2, [1, 2], wait_pending=LONG)
    assert report.ids(SENT) == [1, 2]
    assert costs(api)[1] == 2
    # What runs already is stopped at once, and nothing is asked about it again.
    assert letters(api.log)[:2] == "ST"
    assert all(record.ids == (1,) for record in api.log[2:])


@simulated()
async def test_pending_tasks_have_the_outcome_of_their_last_check(
    api: ControlApiSimulator,
) -> None:
    api.add_task(1, "Scheduled")
    api.add_task(2, "Scheduled", life=[(4, "Explore")])
    api.add_task(3, "Scheduled", life=[(LONG, "Running")])
    api.add_task(4, "Explore", life=[(4, "Rejected")])
    checks = moments(api, STATUS)
    async with open_session(api) as session:
        report = await session.stop_running(2, [1, 2, 3, 4], wait_pending=20)
        assert told(report) == {
            1: (NOT_RUNNING, "Scheduled"),
            2: (NOT_RUNNING, "Explore"),
            3: (NOT_RUNNING, "Scheduled"),
            4: (NOT_RUNNING, "Rejected"),
        }
        assert report.complete
        assert costs(api)[1] == 0
        assert 20 - SLACK < checks[-1] <= 20
        del checks[:]
        began = api.now
        await session.stop_running(2, 4, wait_pending=LONG)
        assert api.now - began < SLACK, "there was nothing left to wait for"


@pytest.mark.parametrize("wait_pending", [None, 0])
@simulated()
async def test_without_time_to_wait_there_is_one_check(
    api: ControlApiSimulator, wait_pending: float | None
) -> None:
    api.add_tasks([1, 2], "Scheduled")
    async with open_session(api) as session:
        report = await session.stop_running(2, [1, 2], wait_pending=wait_pending)
    assert report.ids(NOT_RUNNING) == [1, 2]
    assert costs(api) == (1, 0)


@simulated()
async def test_a_pending_task_that_vanishes_is_not_found(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2], "Explore")
    gone = {"reply": [{"method": STATUS, "result": []}]}
    api.fault(Rewrite(lambda _: gone), method=STATUS, number=3)
    async with open_session(api) as session:
        report = await session.stop_running(2, [1, 2], wait_pending=LONG)
    assert report.ids(StopResult.NOT_FOUND) == [1, 2]
    assert costs(api) == (3, 0)


@pytest.mark.parametrize("seconds", ["wait_pending", "wait_stopped"])
@simulated(stop_delay=1e9, latency=0.05)
async def test_polls_do_not_keep_a_source_from_being_read(
    api: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    # A round of polls soon takes longer than the pause between two.
    monkeypatch.setattr(polls, "LONGEST_PAUSE", 0.1)
    count, waiting = 300, 160 if seconds == "wait_pending" else 0
    api.add_tasks(range(waiting), "Scheduled")
    api.add_tasks(range(waiting, count), "Running")
    stops = moments(api, STOP)
    async with open_session(api, 10, 2) as session:
        options: dict[str, Any] = {seconds: 5}
        await ended(session.stop_running(2, arriving(range(count)), timeout=20, **options))
    assert api.counters.ids[STOP] == count - waiting
    assert stops[-1] < 5


@pytest.mark.parametrize("seconds", ["wait_pending", "wait_stopped"])
@simulated(stop_delay=1e9)
async def test_the_pauses_grow_up_to_a_bound(api: ControlApiSimulator, seconds: str) -> None:
    api.add_task(1, "Scheduled" if seconds == "wait_pending" else "Running")
    checks = moments(api, STATUS)
    options: dict[str, Any] = {seconds: LONG}
    async with open_session(api) as session:
        await ended(session.stop_running(2, 1, **options))
    pauses = [later - sooner for sooner, later in pairwise(checks)]
    growing = [pause for pause in pauses if pause < polls.LONGEST_PAUSE - 0.1]
    assert len(growing) >= 7
    assert all(later > 1.3 * sooner for sooner, later in pairwise(growing[1:-1]))
    assert all(4.9 < pause < 5.1 for pause in pauses[len(growing) : -1])


@simulated()
async def test_pending_tasks_are_checked_and_stopped_in_chunks(api: ControlApiSimulator) -> None:
    api.add_tasks(range(25), "Explore", life=[(2, "Running")])
    async with open_session(api, 10) as session:
        report = await session.stop_running(2, range(25), wait_pending=LONG)
    assert report.counts[SENT] == 25
    checks, stops = costs(api)
    assert stops == 3
    assert checks % 3 == 0
    assert max(len(record.ids) for record in api.log) == 10


@simulated()
async def test_outcomes_of_pending_tasks_come_once_and_last(api: ControlApiSimulator) -> None:
    api.add_task(1, "Scheduled", life=[(5, "Running")])
    api.add_task(2, "Running")
    api.add_task(3, "Explore")
    seen: list[tuple[int, StopResult]] = []
    async with (
        open_session(api) as session,
        session.stopping(2, [1, 2, 3], wait_pending=20) as stopping,
    ):
        async for outcome in stopping:
            if not seen:
                assert stopping.counts[NOT_RUNNING] == 2
                assert stopping.report[1].status == "Scheduled"
            seen.append((outcome.task_id, outcome.result))
    assert seen == [(2, SENT), (1, SENT), (3, NOT_RUNNING)]


@pytest.mark.parametrize("fault", [Drop(), HttpStatus(500), HttpStatus(503), CutBody(), Body("{")])
@simulated()
async def test_a_passing_fault_while_waiting(api: ControlApiSimulator, fault: Fault) -> None:
    api.add_tasks([1, 2], "Scheduled", life=[(5, "Running")])
    for number in (2, 3, 5):
        api.fault(fault, method=STATUS, number=number)
    async with open_session(api) as session:
        report = await session.stop_running(2, [1, 2], wait_pending=LONG)
    assert report.ids(SENT) == [1, 2]
    assert costs(api)[1] == 1


@simulated()
async def test_a_server_that_goes_away_while_waiting_leaves_no_answer(
    api: ControlApiSimulator,
) -> None:
    api.add_task(1, "Scheduled")
    api.add_task(2, "Completed")
    api.fault(Drop(), method=STATUS, number=3, every=True)
    async with open_session(api) as session:
        report, error = await ended(session.stop_running(2, [1, 2], wait_pending=LONG))
    # Whether it would have started nobody knows.
    assert told(report)[1] == (StopResult.NOT_SENT, "Scheduled")
    assert report[2].result is NOT_RUNNING
    assert error is not None


@pytest.mark.parametrize("fault", [None, Hang()])
@simulated()
async def test_a_deadline_while_only_waiting_does_not_raise(
    api: ControlApiSimulator, fault: Fault | None
) -> None:
    api.add_task(1, "Scheduled")
    api.add_task(2, "Running")
    if fault is not None:
        api.fault(fault, method=STATUS, number=4, every=True)
    began = api.now
    async with open_session(api) as session:
        report = await session.stop_running(2, [1, 2], wait_pending=LONG, timeout=20)
    assert told(report) == {1: (NOT_RUNNING, "Scheduled"), 2: (SENT, "Running")}
    assert 1 < api.now - began <= 20 + 1


@simulated()
async def test_a_deadline_while_waiting_raises_for_what_has_no_answer(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2], "Scheduled")
    with api.hold(STATUS, number=2):
        async with open_session(api, 1) as session:
            report, error = await ended(
                session.stop_running(2, [1, 2], wait_pending=LONG, timeout=10)
            )
    assert {each.result for each in report.values()} == {NOT_RUNNING, StopResult.NOT_SENT}
    assert error is not None
    assert isinstance(error.exceptions[0], TimeoutError)


@pytest.mark.parametrize("seconds", ["wait_pending", "wait_stopped"])
@simulated(stop_delay=1e9)
async def test_cancelling_while_polling(api: ControlApiSimulator, seconds: str) -> None:
    api.add_task(1, "Scheduled" if seconds == "wait_pending" else "Running")
    async with open_session(api) as session:
        stopping = session.stopping(2, 1, **{seconds: LONG})  # type: ignore[arg-type]

        async def wait() -> None:
            async with stopping:
                await stopping.wait()

        task = asyncio.create_task(wait())
        await api.wait_for_requests(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        pending = seconds == "wait_pending"
        assert stopping.report[1].result is (NOT_RUNNING if pending else STILL_RUNNING)
        before = api.counters.requests
        await asyncio.sleep(LONG)
        assert api.counters.requests == before


@simulated()
async def test_what_any_request_would_meet_ends_the_waiting(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2], "Scheduled")
    began = api.now
    api.fault(HttpStatus(403), number=6, every=True)
    async with open_session(api, 1) as session:
        with pytest.raises(StopIncompleteError):
            await session.stop_running(2, [1, 2], wait_pending=1e6)
    assert api.now - began < LONG


# --- wait_stopped ---------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 3.0, 30.0])
@simulated()
async def test_stopped_tasks_are_followed_until_they_are_canceled(
    api: ControlApiSimulator, delay: float
) -> None:
    api.stop_delay = delay
    api.add_tasks(range(25))
    api.add_task(25, "Stalled")
    checks = moments(api, STATUS)
    async with open_session(api, 10) as session:
        report = await session.stop_running(2, range(26), wait_stopped=LONG)
    assert set(told(report).values()) == {(SENT, "Canceled"), (NOT_RUNNING, "Stalled")}
    assert costs(api)[1] == 3
    assert checks[-1] < delay + SLACK, "nothing is asked once none runs"
    assert sum(25 in record.ids for record in api.log) == 1
    assert max(len(record.ids) for record in api.log) == 10


@simulated(stop_delay=5)
async def test_a_task_that_completes_before_its_stop_takes_effect(
    api: ControlApiSimulator,
) -> None:
    api.add_task(1, life=[(2, "Completed")])
    api.add_task(2)
    async with open_session(api) as session:
        report = await session.stop_running(2, [1, 2], wait_stopped=LONG)
    assert told(report) == {1: (SENT, "Completed"), 2: (SENT, "Canceled")}


@pytest.mark.parametrize("seconds", [0, 0.01, 20])
@simulated(stop_delay=1e9)
async def test_what_still_runs_when_the_seconds_are_over_is_named(
    api: ControlApiSimulator, seconds: float
) -> None:
    api.add_tasks([1, 2])
    api.add_task(3, "Completed")
    checks = moments(api, STATUS)
    async with open_session(api) as session:
        report, error = await ended(session.stop_running(2, [1, 2, 3], wait_stopped=seconds))
    assert report.ids(STILL_RUNNING) == [1, 2]
    assert {each.status for each in report.values()} == {"Running", "Completed"}
    assert not report.complete
    still = f"tasks were still Running {seconds:g} s after the last stop"
    assert str(error) == f"2 of 3 tasks without an answer: {still}"
    assert costs(api)[0] >= 2, "one look at least"
    assert seconds - SLACK < checks[-1] <= seconds + 1
    assert costs(api)[1] == 1


@pytest.mark.parametrize("wait_stopped", [0, 0.5, 10])
@simulated()
async def test_a_loop_that_lags_takes_one_look_at_least(
    api: ControlApiSimulator, wait_stopped: float
) -> None:
    api.add_tasks([1, 2])

    def lag(record: RequestRecord) -> None:
        if STOP in record.methods:
            skip(100)

    api.fault_when = lag
    async with open_session(api, request_timeout=1000) as session:
        report = await session.stop_running(2, [1, 2], wait_stopped=wait_stopped)
    assert set(told(report).values()) == {(SENT, "Canceled")}
    assert letters(api.log) == "STS"


@pytest.mark.parametrize("statuses", [["Completed", "Scheduled"], []])
@simulated()
async def test_without_a_stop_there_is_nothing_to_follow(
    api: ControlApiSimulator, statuses: list[str]
) -> None:
    for task_id, status in enumerate(statuses):
        api.add_task(task_id, status)
    async with open_session(api) as session:
        await session.stop_running(2, range(len(statuses)), wait_stopped=LONG)
    assert costs(api) == (len(statuses) > 0, 0)


@simulated()
async def test_following_starts_while_other_stops_are_going_out(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with open_session(api, 1) as session:
        with api.hold(STOP, number=2):
            task = asyncio.create_task(session.stop_running(2, [1, 2], wait_stopped=LONG))
            await api.wait_for_requests(3, STATUS)
        report = await task
    assert {outcome.status for outcome in report.values()} == {"Canceled"}


@pytest.mark.parametrize("late", [Delay(50), HttpStatus(429, headers={"Retry-After": "50"})])
@simulated(stop_delay=3)
async def test_the_seconds_count_from_the_last_stop(api: ControlApiSimulator, late: Fault) -> None:
    api.add_tasks([1, 2])
    api.fault(late, method=STOP, number=2)
    async with open_session(api, 1, retry=RetryPolicy(), request_timeout=LONG) as session:
        report = await session.stop_running(2, [1, 2], wait_stopped=10)
    assert set(told(report).values()) == {(SENT, "Canceled")}


FAULTS_OF_POLLS: dict[str, tuple[Fault, StopResult]] = {
    # What TaskStatus meets while stopped tasks are followed -> what they end as.
    "dropped": (Drop(), STILL_RUNNING),
    "500": (HttpStatus(500), STILL_RUNNING),
    "413": (HttpStatus(413), STILL_RUNNING),
    "403": (HttpStatus(403), STILL_RUNNING),
    "web page": (Body("<html>", content_type="text/html"), STILL_RUNNING),
    "project": (Body('{"reply": [{"error": "project 2 does not exist"}]}'), STILL_RUNNING),
    "unknown text": (Body('{"reply": [{"error": "the disk is full"}]}'), STILL_RUNNING),
    "hangs": (Hang(), STILL_RUNNING),
    # They do not run any more, for all that is known.
    "denied": (Body('{"reply": [{"error": "access denied to tasks [1]"}]}'), SENT),
    "no rows": (Body('{"reply": [{"result": []}]}'), SENT),
}


@pytest.mark.parametrize(("fault", "result"), FAULTS_OF_POLLS.values(), ids=FAULTS_OF_POLLS)
@pytest.mark.parametrize("number", [2, 3])
@simulated(stop_delay=1e9)
async def test_faults_while_following(
    api: ControlApiSimulator, fault: Fault, result: StopResult, number: int
) -> None:
    api.add_tasks([1, 2])
    api.fault(fault, method=STATUS, number=number, every=True)
    async with open_session(api) as session:
        report, error = await ended(session.stop_running(2, [1, 2], wait_stopped=LONG))
    assert {(each.result, each.status) for each in report.values()} == {(result, "Running")}
    assert (error is None) is (result is SENT)
    assert costs(api)[1] == 1


@simulated()
async def test_what_ends_the_run_while_following_ends_all(api: ControlApiSimulator) -> None:
    def script(record: RequestRecord) -> Fault | None:
        if record.ids == (2,):
            return HttpStatus(500, headers={"Retry-After": "90"})
        return HttpStatus(403) if record.number > 3 and record.methods == (STATUS,) else None

    api.add_tasks([1, 2])
    api.fault_when = script
    began = api.now
    async with open_session(api, 1, retry=RetryPolicy(attempts=3, wait_initial=0)) as session:
        report, error = await ended(session.stop_running(2, [1, 2], wait_stopped=LONG))
    assert [each.result for each in report.values()] == [STILL_RUNNING, StopResult.NOT_SENT]
    assert error is not None
    assert AuthError in {type(cause) for cause in error.exceptions}
    assert api.now - began < 60, "nothing waits for a repeat that will not be sent"


@simulated(stop_delay=1e9)
async def test_a_deadline_while_only_following_names_what_still_runs(
    api: ControlApiSimulator,
) -> None:
    api.add_task(1)
    began = api.now
    async with open_session(api) as session:
        report, error = await ended(session.stop_running(2, 1, wait_stopped=LONG, timeout=20))
    assert told(report) == {1: (STILL_RUNNING, "Running")}
    assert error is not None
    assert error.subgroup(TimeoutError) is not None
    assert api.now - began < 20 + SLACK


@simulated(stop_delay=4)
async def test_lost_and_late_stops_are_followed_like_any_other(api: ControlApiSimulator) -> None:
    api.add_task(1, "Scheduled", life=[(30, "Running")])
    api.add_tasks([2, 3])
    api.fault(Drop(effect=True), method=STOP, number=1)
    async with open_session(api) as session:
        report = await session.stop_running(2, [1, 2, 3], wait_pending=50, wait_stopped=15)
    assert set(told(report).values()) == {(SENT, "Canceled")}


@simulated(tick=1, stop_delay=3)
async def test_a_stream_of_outcomes_tells_each_once_when_it_is_sure(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(6))
    api.add_task(6, "Completed")
    async with (
        open_session(api, 3) as session,
        session.stopping(2, range(7), wait_stopped=3600) as stopping,
    ):
        seen = await outcomes_of(stopping)
    assert sorted(each.task_id for each in seen) == list(range(7))
    assert {str(each.status) for each in seen if each.result is SENT} == {"Canceled"}


# --- ALL_ACTIVE -----------------------------------------------------------------------------------


@simulated()
async def test_all_that_runs_is_stopped_and_all_that_is_active_reported(
    api: ControlApiSimulator,
) -> None:
    api.mixed_tasks(1500, running=0.4)
    api.add_tasks(range(5000, 5010), project_id=3)
    was = {task_id: task.status for task_id, task in api.tasks.items() if task_id < 5000}
    active = {n: s for n, s in was.items() if s in ("Running", "Scheduled", "Explore")}
    async with open_session(api) as session:
        report = await session.stop_running(2, ALL_ACTIVE)
        assert report.keys() == active.keys()
        for task_id, outcome in report.items():
            assert outcome.status == was[task_id]
            assert outcome.result is (SENT if was[task_id] == "Running" else NOT_RUNNING)
        assert costs(api) == (1, ceil(600 / 500))
        assert not api.tasks[5000].stop_requests
        assert api.log[0].json["methods"][0]["params"] == {"project_id": 2, "task_ids": "*"}
        assert await session.stop_running(3, [], dry_run=True) == StopReport.of([])
        dry = await session.stop_running(3, ALL_ACTIVE, dry_run=True)
        assert dry.counts[StopResult.WOULD_STOP] == 10
        assert len(await session.task_status(3, ALL_ACTIVE)) == 10


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("access denied to tasks [1]", MethodError),
        ("project 2 does not exist", ProjectNotFoundError),
        ("task_ids must be an integer or an array of integers", MethodError),
    ],
)
@simulated()
async def test_a_refusal_of_all_active_comes_out(
    api: ControlApiSimulator, words: str, kind: type[MethodError], *, dry_run: bool
) -> None:
    api.add_task(1)
    refusal = {"reply": [{"method": STATUS, "error": words}]}
    api.fault(Rewrite(lambda _: refusal), method=STATUS)
    async with open_session(api) as session:
        report, error = await ended(session.stop_running(2, ALL_ACTIVE, dry_run=dry_run))
        assert error is not None
        [cause] = error.exceptions
        assert isinstance(cause, kind)
        assert str(cause) == f"{STATUS}: {words}"
        assert not report
        assert costs(api) == (1, 0)
        with pytest.raises(kind):
            await session.task_status(2, ALL_ACTIVE)


@pytest.mark.parametrize(
    "fault", [Drop(), HttpStatus(500), HttpStatus(503), CutBody(keep=0.7), Body("{"), Body("{}")]
)
@simulated()
async def test_passing_faults_of_all_active(api: ControlApiSimulator, fault: Fault) -> None:
    api.add_tasks(range(5))
    for number in (1, 2):
        api.fault(fault, method=STATUS, number=number)
    api.fault(Drop(effect=True), method=STOP, number=2)
    async with open_session(api, 2) as session:
        report = await session.stop_running(2, ALL_ACTIVE)
    assert report.ids(SENT) == list(range(5))
    assert {task.stop_requests for task in api.tasks.values()} == {1}


@pytest.mark.parametrize(
    ("fault", "timeout"),
    [
        (Drop(), None),
        (HttpStatus(401), None),
        (HttpStatus(413), None),
        (Hang(), 5),
        (HttpStatus(503, headers={"Retry-After": "50"}), 5),
    ],
)
@simulated()
async def test_no_answer_to_all_active_is_no_empty_report(
    api: ControlApiSimulator, fault: Fault, timeout: float | None
) -> None:
    api.add_task(1)
    api.fault(fault, method=STATUS)
    async with open_session(api) as session:
        report, error = await ended(session.stop_running(2, ALL_ACTIVE, timeout=timeout))
    assert error is not None
    assert error.exceptions
    assert not report


@simulated(stop_delay=2)
async def test_active_tasks_that_start_later_are_waited_for(api: ControlApiSimulator) -> None:
    api.add_task(1, "Scheduled", life=[(10, "Running")])
    api.add_task(2, "Explore", life=[(5, "Rejected")])
    api.add_task(3)
    async with open_session(api) as session:
        report = await session.stop_running(2, ALL_ACTIVE, wait_pending=LONG, wait_stopped=LONG)
    assert told(report) == {
        1: (SENT, "Canceled"),
        2: (NOT_RUNNING, "Rejected"),
        3: (SENT, "Canceled"),
    }
    assert asked(api, STATUS).count([]) == 1  # "*"


# --- any lives, any faults ------------------------------------------------------------------------

LIVES: dict[str, tuple[str, list[tuple[float, str]]]] = {
    "starts": ("Scheduled", [(2, "Explore"), (6, "Running")]),
    "starts and completes": ("Explore", [(3, "Running"), (200, "Completed")]),
    "never starts": ("Scheduled", []),
    "is rejected": ("Explore", [(4, "Rejected")]),
    "runs": ("Running", []),
    "completes at once": ("Running", [(0.001, "Completed")]),
    "completes soon": ("Running", [(1.5, "Completed")]),
    "is over": ("Stalled", []),
}
PASSING = [HttpStatus(503), HttpStatus(500, effect=True), Drop(), Drop(effect=True), CutBody()]


@given(
    lives=st.lists(st.sampled_from(list(LIVES)), max_size=10),
    faults=st.dictionaries(st.integers(1, 15), st.sampled_from(PASSING), max_size=3),
    stop_delay=st.sampled_from([0.0, 2.0]),
    wait_stopped=st.sampled_from([None, 14.0]),
    chunk=st.integers(1, 6),
    star=st.booleans(),
)
def test_what_is_asked_again_and_again_is_told_as_it_is(
    *,
    lives: list[str],
    faults: dict[int, Fault],
    stop_delay: float,
    wait_stopped: float | None,
    chunk: int,
    star: bool,
) -> None:
    async def main() -> None:
        api = simulator(stop_delay=stop_delay)
        api.add_project(2)
        for task_id, life in enumerate(lives):
            status, turns = LIVES[life]
            api.add_task(task_id, status, life=turns)
        oracle = Oracle(wait_pending=True, wait_stopped=wait_stopped is not None, attempts=4)
        ids = range(len(lives))
        oracle.ask(2, () if star else ids)
        witness = Witness(api, lambda record: faults.get(record.number), oracle)
        async with api:
            async with open_session(api, chunk, 1) as session:
                report = await session.stop_running(
                    2, ALL_ACTIVE if star else ids, wait_pending=14, wait_stopped=wait_stopped
                )
            await disconnected(api)
        assert report.complete
        witness.check(None if star else ids, report, None)
        for task_id, outcome in report.items():
            match lives[task_id]:
                case "starts" | "starts and completes" | "runs":
                    assert outcome.result is SENT
                    assert wait_stopped is None or outcome.status == "Canceled"
                case "never starts":
                    assert outcome == StopOutcome(task_id, 2, NOT_RUNNING, outcome.status)
                    assert outcome.status == "Scheduled"
                case "is rejected" | "is over":
                    assert outcome.result is NOT_RUNNING

    run(main())
