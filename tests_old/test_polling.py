"""Asking again: tasks that may yet start, tasks that were stopped, and whatever is active.

Every test runs on a clock that jumps, which the simulator's tasks live by as well.
"""

from __future__ import annotations

import asyncio
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from invariants import Event, Witness, assert_stops_were_due, rows_of, run
from support import arriving

from ctrlapi_async import (
    ALL_ACTIVE,
    AuthError,
    Batching,
    ControlSession,
    MethodError,
    ProjectNotFoundError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopReport,
    StopResult,
    bulk,
)
from ctrlapi_async.simulator import (
    Body,
    ControlApiSimulator,
    CutBody,
    Delay,
    Drop,
    Hang,
    HttpStatus,
    Rewrite,
)

if TYPE_CHECKING:
    from ctrlapi_async.simulator import Fault, RequestRecord

QUICK = RetryPolicy(attempts=4, wait_initial=0.01, wait_max=0.01)
LONG = 100.0
SLACK = 6.0
"""Seconds on top of a limit: the longest pause between two checks, and some."""


def simulator(**options: Any) -> ControlApiSimulator:
    return ControlApiSimulator(own_thread=False, clock=asyncio.get_running_loop().time, **options)


def open_session(
    api: ControlApiSimulator, chunk: int | None = None, retry: RetryPolicy = QUICK, **more: Any
) -> ControlSession:
    return ControlSession(api.url, 1, batching=Batching(chunk), retry=retry, **more)


def costs(api: ControlApiSimulator) -> tuple[int, int]:
    requests = api.counters.requests_by_method
    return requests["TaskStatus"], requests["TaskStop"]


def methods(api: ControlApiSimulator) -> list[str]:
    return [method for record in api.log for method in record.methods]


def moments(api: ControlApiSimulator, method: str) -> list[float]:
    """Give a list to which the seconds from now to each request of a method are added."""
    seconds: list[float] = []
    start = api.now

    def note(record: Any) -> None:
        if method in record.methods:
            seconds.append(api.now - start)

    api.fault_when = note
    return seconds


# --- wait_pending ---------------------------------------------------------------------------------


def test_a_pending_task_is_stopped_once_it_runs() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1, "Scheduled", life=[(3, "Explore"), (7, "Running")])
            api.add_task(2, "Running")
            witness = Witness(api)
            report = await session.stop_running(2, [1, 2], wait_pending=LONG)
            assert report.ids(StopResult.STOP_SENT) == [1, 2]
            assert api.tasks[1].stopped
            assert api.tasks[2].stopped
            assert costs(api)[1] == 2
            assert_stops_were_due(witness.events)
            # What runs already is stopped at once, and nothing is asked about it again.
            assert methods(api)[:2] == ["TaskStatus", "TaskStop"]
            assert all(record.ids == (1,) for record in api.log[2:])

    run(main())


def test_a_task_still_pending_at_the_end_is_not_running() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1, "Scheduled")
            api.add_task(2, "Scheduled", life=[(4, "Explore")])
            api.add_task(3, "Scheduled", life=[(LONG, "Running")])
            checks = moments(api, "TaskStatus")
            report = await session.stop_running(2, [1, 2, 3], wait_pending=20)
            assert [(o.result, o.status) for o in report.values()] == [
                (StopResult.NOT_RUNNING, "Scheduled"),
                (StopResult.NOT_RUNNING, "Explore"),
                (StopResult.NOT_RUNNING, "Scheduled"),
            ]
            assert report.complete
            assert costs(api)[1] == 0
            assert 20 - SLACK < checks[-1] <= 20 + SLACK

    run(main())


def test_a_pending_task_that_ends_without_running() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1, "Explore", life=[(4, "Rejected")])
            checks = moments(api, "TaskStatus")
            report = await session.stop_running(2, 1, wait_pending=LONG)
            assert (report[1].result, report[1].status) == (StopResult.NOT_RUNNING, "Rejected")
            assert checks[-1] < 4 + SLACK, "there was nothing left to wait for"

    run(main())


def test_a_pending_task_that_vanishes() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_tasks([1, 2], "Explore")
            gone = {"reply": [{"method": "TaskStatus", "result": []}]}
            api.fault(Rewrite(lambda _: gone), method="TaskStatus", number=3)
            report = await session.stop_running(2, [1, 2], wait_pending=LONG)
            assert report.ids(StopResult.NOT_FOUND) == [1, 2]
            assert costs(api) == (3, 0)

    run(main())


@pytest.mark.parametrize("wait_pending", [None, 0])
def test_without_time_to_wait_there_is_one_check(wait_pending: float | None) -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_tasks([1, 2], "Scheduled")
            report = await session.stop_running(2, [1, 2], wait_pending=wait_pending)
            assert report.ids(StopResult.NOT_RUNNING) == [1, 2]
            assert costs(api) == (1, 0)

    run(main())


@pytest.mark.parametrize("seconds", ["wait_pending", "confirm"])
def test_polls_do_not_keep_a_source_from_being_read(
    monkeypatch: pytest.MonkeyPatch, seconds: str
) -> None:
    # A round of polls soon takes longer than the pause between two.
    monkeypatch.setattr(bulk, "POLL_MAX", 0.1)
    limit: dict[str, Any] = {seconds: 5}
    count, waiting = 300, 160 if seconds == "wait_pending" else 0

    async def main() -> None:
        async with (
            simulator(stop_delay=1e9, latency=0.05) as api,
            ControlSession(api.url, 1, batching=Batching(10, 2), retry=QUICK) as session,
        ):
            api.add_tasks(range(waiting), "Scheduled")
            api.add_tasks(range(waiting, count), "Running")
            stops = moments(api, "TaskStop")
            report = await session.stop_running(2, arriving(range(count)), timeout=20, **limit)
            assert report.counts[StopResult.STOP_SENT] == count - waiting
            assert stops[-1] < 5

    run(main())


@pytest.mark.parametrize("seconds", ["wait_pending", "confirm"])
def test_the_pauses_grow_up_to_a_bound(monkeypatch: pytest.MonkeyPatch, seconds: str) -> None:
    monkeypatch.setattr(bulk, "POLL_FIRST", 10.0)
    monkeypatch.setattr(bulk, "POLL_MAX", 80.0)

    async def main() -> None:
        async with simulator(stop_delay=1e9) as api, open_session(api) as session:
            api.add_task(1, "Scheduled" if seconds == "wait_pending" else "Running")
            checks = moments(api, "TaskStatus")
            await session.stop_running(2, 1, **{seconds: 1000.0})  # type: ignore[arg-type]
            pauses = [later - sooner for sooner, later in pairwise(checks)]
            growing = [pause for pause in pauses if pause < 75]
            assert len(growing) >= 4
            assert all(later > 1.2 * sooner for sooner, later in pairwise(growing))
            assert len(pauses) >= 10
            assert all(75 < pause < 85 for pause in pauses[len(growing) : -1])

    run(main())


def test_pending_tasks_are_checked_and_stopped_in_chunks() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api, chunk=10) as session:
            api.add_tasks(range(25), "Explore", life=[(2, "Running")])
            report = await session.stop_running(2, range(25), wait_pending=LONG)
            assert report.counts[StopResult.STOP_SENT] == 25
            checks, stops = costs(api)
            assert stops == 3
            assert checks % 3 == 0
            assert max(len(record.ids) for record in api.log) == 10

    run(main())


def test_outcomes_of_pending_tasks_come_once_and_last() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1, "Scheduled", life=[(5, "Running")])
            api.add_task(2, "Running")
            api.add_task(3, "Explore")
            seen: list[tuple[int, StopResult]] = []
            async with session.stopping(2, [1, 2, 3], wait_pending=20) as stopping:
                async for outcome in stopping:
                    if not seen:
                        assert stopping.counts[StopResult.NOT_RUNNING] == 2
                        assert stopping.report[1].status == "Scheduled"
                    seen.append((outcome.task_id, outcome.result))
            assert seen == [
                (2, StopResult.STOP_SENT),
                (1, StopResult.STOP_SENT),
                (3, StopResult.NOT_RUNNING),
            ]

    run(main())


@pytest.mark.parametrize("fault", [Drop(), HttpStatus(500), HttpStatus(503), CutBody(), Body("{")])
def test_a_passing_fault_while_waiting(fault: Fault) -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_tasks([1, 2], "Scheduled", life=[(5, "Running")])
            for number in (2, 3, 5):
                api.fault(fault, method="TaskStatus", number=number)
            report = await session.stop_running(2, [1, 2], wait_pending=LONG)
            assert report.ids(StopResult.STOP_SENT) == [1, 2]
            assert costs(api)[1] == 1

    run(main())


def test_a_server_that_goes_away_while_waiting_leaves_no_answer() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1, "Scheduled")
            api.add_task(2, "Completed")
            api.fault(Drop(), method="TaskStatus", number=3, every=True)
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, [1, 2], wait_pending=LONG)
            # Whether it would have started nobody knows, so silence would be a lie.
            outcome = caught.value.report[1]
            assert (outcome.result, outcome.status) == (StopResult.NOT_SENT, "Scheduled")
            assert caught.value.report[2].result is StopResult.NOT_RUNNING

    run(main())


def test_a_deadline_while_only_waiting_does_not_raise() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1, "Scheduled")
            api.add_task(2, "Running")
            checks = moments(api, "TaskStatus")
            report = await session.stop_running(2, [1, 2], wait_pending=LONG, timeout=20)
            assert (report[1].result, report[1].status) == (StopResult.NOT_RUNNING, "Scheduled")
            assert report[2].result is StopResult.STOP_SENT
            assert 1 < checks[-1] <= 20 + SLACK

    run(main())


def test_a_deadline_in_the_middle_of_a_check_of_pending_tasks_does_not_raise() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1, "Scheduled")
            api.fault(Hang(), method="TaskStatus", number=4, every=True)
            report = await session.stop_running(2, 1, wait_pending=LONG, timeout=20)
            assert (report[1].result, report[1].status) == (StopResult.NOT_RUNNING, "Scheduled")

    run(main())


def test_a_deadline_while_waiting_raises_for_what_has_no_answer() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api, chunk=1) as session:
            api.add_tasks([1, 2], "Scheduled")
            with api.hold("TaskStatus", number=2), pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, [1, 2], wait_pending=LONG, timeout=10)
            assert [o.result for o in caught.value.report.values()] in (
                [StopResult.NOT_RUNNING, StopResult.NOT_SENT],
                [StopResult.NOT_SENT, StopResult.NOT_RUNNING],
            )
            assert isinstance(caught.value.exceptions[0], TimeoutError)

    run(main())


@pytest.mark.parametrize("seconds", ["wait_pending", "confirm"])
def test_cancelling_while_polling(seconds: str) -> None:
    async def main() -> None:
        async with simulator(stop_delay=1e9) as api, open_session(api) as session:
            api.add_task(1, "Scheduled" if seconds == "wait_pending" else "Running")
            stopping = session.stopping(2, 1, **{seconds: LONG})  # type: ignore[arg-type]

            async def wait() -> None:
                async with stopping as begun:
                    await begun.wait()

            task = asyncio.ensure_future(wait())
            await api.wait_for_requests(3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            known = StopResult.NOT_RUNNING if seconds == "wait_pending" else StopResult.STOP_SENT
            assert stopping.report[1].result is known
            assert stopping.report.complete
            before = api.counters.requests
            await asyncio.sleep(LONG)
            assert api.counters.requests == before

    run(main())


def test_what_dooms_all_ends_the_waiting() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api, chunk=1) as session:
            api.add_tasks([1, 2], "Scheduled")
            began = api.now
            api.fault(HttpStatus(403), number=6, every=True)
            with pytest.raises(StopIncompleteError):
                await session.stop_running(2, [1, 2], wait_pending=1e6)
            assert api.now - began < LONG

    run(main())


# --- confirm --------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 3.0, 30.0])
def test_stopped_tasks_are_followed_until_they_are_canceled(delay: float) -> None:
    async def main() -> None:
        async with simulator(stop_delay=delay) as api, open_session(api, chunk=10) as session:
            api.add_tasks(range(25))
            api.add_task(25, "Stalled")
            checks = moments(api, "TaskStatus")
            report = await session.stop_running(2, range(26), confirm=LONG)
            assert report.ids(StopResult.STOP_SENT) == list(range(25))
            assert {report[n].status for n in range(25)} == {"Canceled"}
            assert report[25].status == "Stalled"
            assert costs(api)[1] == 3
            assert checks[-1] < delay + SLACK, "nothing is asked once none runs"
            assert sum(25 in record.ids for record in api.log) == 1
            assert max(len(record.ids) for record in api.log) == 10

    run(main())


def test_a_task_that_completes_before_its_stop_takes_effect() -> None:
    async def main() -> None:
        async with simulator(stop_delay=5) as api, open_session(api) as session:
            api.add_task(1, life=[(2, "Completed")])
            api.add_task(2)
            report = await session.stop_running(2, [1, 2], confirm=LONG)
            assert report[1] == StopOutcome(1, 2, StopResult.STOP_SENT, report[1].status)
            assert (report[1].status, report[2].status) == ("Completed", "Canceled")

    run(main())


def test_a_task_still_running_when_the_seconds_are_over() -> None:
    async def main() -> None:
        async with simulator(stop_delay=1e9) as api, open_session(api) as session:
            api.add_tasks([1, 2])
            checks = moments(api, "TaskStatus")
            report = await session.stop_running(2, [1, 2], confirm=20)
            assert report.ids(StopResult.STOP_SENT) == [1, 2]
            assert {outcome.status for outcome in report.values()} == {"Running"}
            assert report.complete
            assert 20 - SLACK < checks[-1] <= 20 + SLACK
            assert costs(api)[1] == 1

    run(main())


@pytest.mark.parametrize("statuses", [["Completed", "Scheduled"], []])
def test_without_a_stop_there_is_nothing_to_confirm(statuses: list[str]) -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            for task_id, status in enumerate(statuses):
                api.add_task(task_id, status)
            await session.stop_running(2, range(len(statuses)), confirm=LONG)
            assert costs(api) == (len(statuses) > 0, 0)

    run(main())


def test_no_seconds_to_confirm_cost_no_check() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1)
            report = await session.stop_running(2, 1, confirm=0)
            assert (report[1].result, report[1].status) == (StopResult.STOP_SENT, "Running")
            assert costs(api) == (1, 1)

    run(main())


def test_confirming_starts_while_other_stops_are_going_out() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api, chunk=1) as session:
            api.add_tasks([1, 2])
            with api.hold("TaskStop", number=2):
                task = asyncio.ensure_future(session.stop_running(2, [1, 2], confirm=LONG))
                await api.wait_for_requests(3, "TaskStatus")
            report = await task
            assert {outcome.status for outcome in report.values()} == {"Canceled"}

    run(main())


@pytest.mark.parametrize("late", [Delay(50), HttpStatus(503, headers={"Retry-After": "50"})])
def test_the_seconds_count_from_the_last_stop(late: Fault) -> None:
    async def main() -> None:
        retry = RetryPolicy(wait_max=60)
        async with (
            simulator(stop_delay=3) as api,
            open_session(api, 1, retry, request_timeout=LONG) as session,
        ):
            api.add_tasks([1, 2])
            api.fault(late, method="TaskStop", number=2)
            report = await session.stop_running(2, [1, 2], confirm=10)
            assert report.ids(StopResult.STOP_SENT) == [1, 2]
            assert {outcome.status for outcome in report.values()} == {"Canceled"}

    run(main())


def test_a_stop_in_back_off_keeps_others_followed() -> None:
    async def main() -> None:
        retry = RetryPolicy(wait_max=60, timeout=None)
        async with simulator(stop_delay=40) as api, open_session(api, 1, retry) as session:
            api.add_tasks([1, 2])
            # A status that does not slow down the session as a whole.
            api.fault(HttpStatus(425, headers={"Retry-After": "35"}), method="TaskStop", number=2)
            report = await session.stop_running(2, [1, 2], confirm=20)
            assert report.ids(StopResult.STOP_SENT) == [1, 2]
            # One takes effect after 40 seconds, the other after 75; 20 from the last stop are 55.
            assert sorted(str(o.status) for o in report.values()) == ["Canceled", "Running"]

    run(main())


FAULTS_OF_CHECKS = {
    "dropped": Drop(),
    "500": HttpStatus(500),
    "503": HttpStatus(503),
    "413": HttpStatus(413),
    "403": HttpStatus(403),
    "404": HttpStatus(404),
    "cut": CutBody(),
    "web page": Body("<html>", content_type="text/html"),
    "user": Body('{"error": "user 1 is unavailable"}'),
    "project": Body('{"reply": [{"method": "TaskStatus", "error": "project 2 does not exist"}]}'),
    "method": Body('{"reply": [{"method": "TaskStatus", "error": "Undefined method \'T\'"}]}'),
    "denied": Body('{"reply": [{"method": "TaskStatus", "error": "access denied to tasks [1]"}]}'),
    "unknown": Body('{"reply": [{"method": "TaskStatus", "error": "the disk is full"}]}'),
    "no rows": Body('{"reply": [{"method": "TaskStatus", "result": []}]}'),
    "error rows": Rewrite(
        lambda _: {
            "reply": [
                {"method": "TaskStatus", "result": [{"task_id": n, "error": "?"} for n in (1, 2)]}
            ]
        }
    ),
    "hangs": Hang(),
}


@pytest.mark.parametrize("fault", FAULTS_OF_CHECKS.values(), ids=FAULTS_OF_CHECKS)
@pytest.mark.parametrize("number", [2, 3])
def test_faults_while_confirming_never_raise(fault: Fault, number: int) -> None:
    async def main() -> None:
        async with simulator(stop_delay=1e9) as api, open_session(api) as session:
            api.add_tasks([1, 2])
            api.fault(fault, method="TaskStatus", number=number, every=True)
            report = await session.stop_running(2, [1, 2], confirm=LONG)
            assert report.ids(StopResult.STOP_SENT) == [1, 2]
            assert {outcome.status for outcome in report.values()} == {"Running"}
            assert report.complete
            assert costs(api)[1] == 1

    run(main())


def test_what_dooms_all_while_confirming_still_ends_all() -> None:
    async def main() -> None:
        def script(record: RequestRecord) -> Fault | None:
            if record.ids == (2,):
                return HttpStatus(500, headers={"Retry-After": "90"})
            confirms = record.number > 3 and record.methods == ("TaskStatus",)
            return HttpStatus(403) if confirms else None

        retry = RetryPolicy(wait_max=LONG)
        async with simulator() as api, open_session(api, 1, retry) as session:
            api.add_tasks([1, 2])
            api.fault_when = script
            began = api.now
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, [1, 2], confirm=LONG)
            report = caught.value.report
            assert (report[1].result, report[1].status) == (StopResult.STOP_SENT, "Running")
            assert report[2].result is StopResult.NOT_SENT
            assert [type(error) for error in caught.value.exceptions] == [AuthError]
            assert costs(api) == (3, 1)
            assert api.now - began < 60, "nothing waits for a repeat that will not be sent"

    run(main())


@pytest.mark.parametrize("fault", [Hang(), Delay(1e6), Drop()])
def test_confirming_ends_with_its_seconds_whatever_the_server_does(fault: Fault) -> None:
    async def main() -> None:
        retry = RetryPolicy(wait_initial=1e6, wait_max=1e6, timeout=None)
        async with (
            simulator(stop_delay=1e9) as api,
            open_session(api, 1, retry, request_timeout=1e6) as session,
        ):
            api.add_tasks([1, 2])
            began = api.now
            api.fault(fault, method="TaskStatus", number=3, every=True)
            report = await session.stop_running(2, [1, 2], confirm=30)
            assert report.ids(StopResult.STOP_SENT) == [1, 2]
            assert api.now - began < 30 + 2 * SLACK

    run(main())


def test_a_deadline_while_only_confirming_does_not_raise() -> None:
    async def main() -> None:
        async with simulator(stop_delay=1e9) as api, open_session(api) as session:
            api.add_task(1)
            began = api.now
            report = await session.stop_running(2, 1, confirm=LONG, timeout=20)
            assert (report[1].result, report[1].status) == (StopResult.STOP_SENT, "Running")
            assert api.now - began < 20 + SLACK

    run(main())


def test_a_stop_of_unknown_fate_is_confirmed_like_any_other() -> None:
    async def main() -> None:
        async with simulator(stop_delay=20) as api, open_session(api) as session:
            api.add_tasks([1, 2])
            api.fault(Drop(effect=True), method="TaskStop", number=1)
            report = await session.stop_running(2, [1, 2], confirm=LONG)
            assert report.ids(StopResult.STOP_SENT) == [1, 2]
            assert {outcome.status for outcome in report.values()} == {"Canceled"}

    run(main())


def test_a_task_that_starts_late_is_stopped_and_confirmed() -> None:
    async def main() -> None:
        async with simulator(stop_delay=4) as api, open_session(api) as session:
            api.add_task(1, "Scheduled", life=[(30, "Running")])
            api.add_task(2)
            report = await session.stop_running(2, [1, 2], wait_pending=50, confirm=15)
            assert report.ids(StopResult.STOP_SENT) == [1, 2]
            assert {outcome.status for outcome in report.values()} == {"Canceled"}

    run(main())


# --- ALL_ACTIVE -----------------------------------------------------------------------------------


def test_all_that_runs_is_stopped_and_all_that_is_active_reported() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.mixed_tasks(3000, running=0.4)
            api.add_tasks(range(5000, 5010), project_id=3)
            was = {task_id: task.status for task_id, task in api.tasks.items()}
            active = {n for n, status in was.items() if n < 5000} & {
                n for n, status in was.items() if status in ("Running", "Scheduled", "Explore")
            }
            report = await session.stop_running(2, ALL_ACTIVE)
            assert set(report) == active
            for task_id, outcome in report.items():
                assert outcome.status == was[task_id]
                runs = was[task_id] == "Running"
                assert outcome.result is (StopResult.STOP_SENT if runs else StopResult.NOT_RUNNING)
                assert api.tasks[task_id].stopped is runs
            assert costs(api) == (1, ceil(1200 / 500))
            assert not api.tasks[5000].stop_requests
            assert api.log[0].json["methods"][0]["params"] == {"project_id": 2, "task_ids": "*"}

    run(main())


def test_nothing_active_is_an_empty_report() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_tasks([1, 2], "Completed")
            assert await session.stop_running(2, ALL_ACTIVE) == StopReport.of([])
            assert costs(api) == (1, 0)

    run(main())


def test_a_dry_run_over_all_active() -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_tasks([1, 2])
            api.add_task(3, "Explore")
            report = await session.stop_running(2, ALL_ACTIVE, dry_run=True)
            assert report.ids(StopResult.WOULD_STOP) == [1, 2]
            assert report.ids(StopResult.NOT_RUNNING) == [3]
            states = await session.task_status(2, ALL_ACTIVE)
            assert {n: state.status for n, state in states.items()} == {
                1: "Running",
                2: "Running",
                3: "Explore",
            }
            assert costs(api) == (2, 0)

    run(main())


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_server_that_refuses_the_star(dry_run: bool) -> None:
    async def main() -> None:
        async with simulator(refuse_all_active=True) as api, open_session(api) as session:
            api.add_task(1)
            refusals: list[MethodError] = []
            try:
                await session.stop_running(2, ALL_ACTIVE, dry_run=dry_run)
            except* MethodError as group:
                refusals += [error for error in group.exceptions if isinstance(error, MethodError)]
            [refusal] = refusals
            assert refusal.method == "TaskStatus"
            assert refusal.message == "task_ids must be an integer or an array of integers"
            with pytest.raises(MethodError):
                await session.task_status(2, ALL_ACTIVE)
            assert costs(api) == (2, 0)

    run(main())


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("access denied to tasks [1]", MethodError),
        ("project 2 does not exist", ProjectNotFoundError),
        ("no such thing", MethodError),
    ],
)
def test_a_refusal_of_all_active_comes_out(words: str, kind: type[MethodError]) -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1)
            refusal = {"reply": [{"method": "TaskStatus", "error": words}]}
            api.fault(Rewrite(lambda _: refusal), method="TaskStatus")
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, ALL_ACTIVE)
            [cause] = caught.value.exceptions
            assert isinstance(cause, kind)
            assert str(cause) == f"TaskStatus: {words}"
            assert not caught.value.report
            assert costs(api) == (1, 0)

    run(main())


@pytest.mark.parametrize(
    "fault", [Drop(), HttpStatus(500), HttpStatus(503), CutBody(keep=0.7), Body("{"), Body("{}")]
)
def test_passing_faults_of_all_active(fault: Fault) -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api, chunk=2) as session:
            api.add_tasks(range(5))
            for number in (1, 2):
                api.fault(fault, method="TaskStatus", number=number)
            api.fault(Drop(effect=True), method="TaskStop", number=2)
            report = await session.stop_running(2, ALL_ACTIVE)
            assert report.ids(StopResult.STOP_SENT) == list(range(5))
            assert {task.stop_requests for task in api.tasks.values()} == {1}

    run(main())


def test_rows_of_all_active_are_matched_by_id() -> None:
    async def main() -> None:
        rows = [
            {"task_id": 3, "status": "Running"},
            {"task_id": 1, "status": "Running"},
            {"task_id": 3, "status": "Completed"},
            {"task_id": 4, "error": "broken"},
            {"task_id": 5, "status": "Dreaming"},
        ]
        changed = {"reply": [{"method": "TaskStatus", "id": 1, "result": rows}]}
        async with simulator() as api, open_session(api) as session:
            api.add_tasks([1, 3])
            api.fault(Rewrite(lambda _: changed), method="TaskStatus")
            report = await session.stop_running(2, ALL_ACTIVE)
            assert [(n, o.result, o.status, o.error) for n, o in report.items()] == [
                (3, StopResult.NOT_RUNNING, "Completed", None),
                (1, StopResult.STOP_SENT, "Running", None),
                (4, StopResult.NOT_FOUND, None, "broken"),
                (5, StopResult.NOT_RUNNING, "Dreaming", None),
            ]
            assert not api.tasks[3].stop_requests

    run(main())


@pytest.mark.parametrize("fault", [Drop(), HttpStatus(401), HttpStatus(413)])
def test_no_answer_to_all_active_is_no_empty_report(fault: Fault) -> None:
    async def main() -> None:
        async with simulator() as api, open_session(api) as session:
            api.add_task(1)
            api.fault(fault, method="TaskStatus")
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, ALL_ACTIVE)
            assert caught.value.exceptions
            assert not caught.value.report

    run(main())


@pytest.mark.parametrize("fault", [Hang(), HttpStatus(503, headers={"Retry-After": "50"})])
def test_a_deadline_before_the_answer_to_all_active_raises(fault: Fault) -> None:
    async def main() -> None:
        retry = RetryPolicy(wait_max=LONG)
        async with simulator() as api, open_session(api, retry=retry) as session:
            api.add_task(1)
            api.fault(fault, method="TaskStatus")
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, ALL_ACTIVE, timeout=5)
            assert any(isinstance(error, TimeoutError) for error in caught.value.exceptions)
            assert not caught.value.report

    run(main())


def test_active_tasks_that_start_later_are_waited_for() -> None:
    async def main() -> None:
        async with simulator(stop_delay=2) as api, open_session(api) as session:
            api.add_task(1, "Scheduled", life=[(10, "Running")])
            api.add_task(2, "Explore", life=[(5, "Rejected")])
            api.add_task(3)
            report = await session.stop_running(2, ALL_ACTIVE, wait_pending=LONG, confirm=LONG)
            assert {n: (o.result, o.status) for n, o in report.items()} == {
                1: (StopResult.STOP_SENT, "Canceled"),
                2: (StopResult.NOT_RUNNING, "Rejected"),
                3: (StopResult.STOP_SENT, "Canceled"),
            }
            asked = [record.json["methods"][0]["params"]["task_ids"] for record in api.log]
            assert asked.count("*") == 1

    run(main())


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
PASSING = [
    HttpStatus(503),
    HttpStatus(500, effect=True),
    Drop(),
    Drop(effect=True),
    CutBody(),
    Body("{"),
]


def named(event: Event) -> Event:
    """Give an event in which a request for "*" asks for the ids that it was answered with."""
    if event.reply is None or event.record.calls != (("TaskStatus", []),):
        return event
    ids = [row["task_id"] for row in rows_of(event.reply)]
    return event._replace(record=evolve(event.record, calls=(("TaskStatus", ids),)))


@given(
    lives=st.lists(st.sampled_from(list(LIVES)), max_size=10),
    faults=st.dictionaries(st.integers(1, 15), st.sampled_from(PASSING), max_size=3),
    stop_delay=st.sampled_from([0.0, 2.0]),
    confirm=st.sampled_from([None, 14.0]),
    chunk=st.integers(1, 6),
    star=st.booleans(),
)
def test_what_is_asked_again_and_again_is_told_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
    *,
    lives: list[str],
    faults: dict[int, Fault],
    stop_delay: float,
    confirm: float | None,
    chunk: int,
    star: bool,
) -> None:
    monkeypatch.setattr(bulk, "POLL_FIRST", 2.0)
    monkeypatch.setattr(bulk, "POLL_MAX", 8.0)

    async def main() -> None:
        api = simulator(stop_delay=stop_delay)
        api.add_project(2)
        for task_id, life in enumerate(lives):
            status, turns = LIVES[life]
            api.add_task(task_id, status, life=turns)
        witness = Witness(api, lambda record: faults.get(record.number))
        async with api, open_session(api, chunk) as session:
            report = await session.stop_running(
                2, ALL_ACTIVE if star else range(len(lives)), wait_pending=14, confirm=confirm
            )
        assert report.complete
        assert_stops_were_due(map(named, witness.events))
        for task_id, life in enumerate(lives):
            if star and task_id not in report:
                assert life in ("is over", "completes at once", "completes soon")
                continue
            outcome = report[task_id]
            match life:
                case "starts" | "starts and completes" | "runs":
                    assert outcome.result is StopResult.STOP_SENT
                    if confirm is not None:
                        assert outcome.status == "Canceled"
                case "never starts":
                    assert outcome == StopOutcome(
                        task_id, 2, StopResult.NOT_RUNNING, outcome.status
                    )
                    assert outcome.status == "Scheduled"
                case "is rejected" | "is over":
                    assert outcome.result is StopResult.NOT_RUNNING
                    assert outcome.status == LIVES[life][1][-1][1] if LIVES[life][1] else "Stalled"
                case _:
                    if api.tasks[task_id].stopped:
                        assert outcome.result is StopResult.STOP_SENT

    run(main())


async def test_a_stop_is_confirmed_however_short_the_time(api: ControlApiSimulator) -> None:
    api.add_task(1)
    async with ControlSession(api.url, 1) as session:
        report = await session.stop_running(2, 1, confirm=0.01)
    assert report[1].status == "Canceled"
