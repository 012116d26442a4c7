"""Asking again: tasks that may yet start, tasks that were stopped, and whatever is active."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ctrlapi_async import (
    ALL_ACTIVE,
    AuthError,
    HttpError,
    MethodError,
    ProjectNotFoundError,
    RequestError,
    RetryPolicy,
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
from tests.support.clock import skip
from tests.support.simulated import (
    STATUS,
    STOP,
    arriving,
    asked,
    costs,
    ended,
    letters,
    moments,
    open_session,
    simulated,
)

if TYPE_CHECKING:
    from ctrlapi_async.simulator import RequestRecord

SENT = StopResult.STOP_SENT
NOT_RUNNING = StopResult.NOT_RUNNING
STILL_RUNNING = StopResult.STILL_RUNNING
LONG = 100.0
SLACK = 6.0
"""Seconds on top of a limit: the longest pause between two checks, and some."""


def told(report: StopReport) -> dict[int, list[object]]:
    return {n: [each.result, str(each.status)] for n, each in report.items()}


# --- until it is sure -----------------------------------------------------------------------------

Life = tuple[str, *tuple[tuple[float, str], ...]]
RUNS: Life = ("Running",)
STARTS: Life = ("Explore", (2, "Running"))
ENDED: Life = ("Stalled",)


class World(NamedTuple):
    """Tasks that are asked about again.

    Args:
        tasks: The life of each task from its first status on, and the outcome's result and status.
        options: Options of the run.
        stops: How many TaskStop requests it takes.
        last: The last check leaves later than this, and not after that.
        stop_delay: Seconds until a stop takes effect.
        ids: What is asked for; None: the tasks.
    """

    tasks: dict[int, tuple[Life, StopResult, str]]
    options: dict[str, Any]
    stops: int
    last: tuple[float, float]
    stop_delay: float = 0.0
    ids: Any = None


FOLLOWED: dict[int, tuple[Life, StopResult, str]] = {
    **dict.fromkeys(range(25), (RUNS, SENT, "Canceled")),
    25: (ENDED, NOT_RUNNING, "Stalled"),
}
PENDING: dict[int, tuple[Life, StopResult, str]] = {
    1: (("Scheduled",), NOT_RUNNING, "Scheduled"),
    2: (("Scheduled", (4, "Explore")), NOT_RUNNING, "Explore"),
    3: (("Scheduled", (LONG, "Running")), NOT_RUNNING, "Scheduled"),
    4: (("Explore", (4, "Rejected")), NOT_RUNNING, "Rejected"),
}
LEFT_ALONE: dict[int, tuple[Life, StopResult, str]] = {
    1: (ENDED, NOT_RUNNING, "Stalled"),
    2: (STARTS, NOT_RUNNING, "Explore"),
}
WAIT = {"wait_pending": LONG}
FOLLOW = {"wait_stopped": LONG}
WORLDS: dict[str, World] = {
    "pending ones start": World(
        dict.fromkeys(range(25), (STARTS, SENT, "Running")), WAIT, 3, (2, 2 + SLACK)
    ),
    "pending ones do not start in time": World(PENDING, {"wait_pending": 20}, 0, (20 - SLACK, 20)),
    "the last pending one ends": World({4: PENDING[4]}, WAIT, 0, (4, 4 + SLACK)),
    "no wait for pending ones": World(LEFT_ALONE, {}, 0, (-1, 0.1)),
    "no seconds for pending ones": World(LEFT_ALONE, {"wait_pending": 0}, 0, (-1, 0.1)),
    "none is stopped": World(LEFT_ALONE, FOLLOW, 0, (-1, 0.1)),
    **{
        f"stopped ones end after {delay} s": World(FOLLOWED, FOLLOW, 3, (0, delay + SLACK), delay)
        for delay in (0, 3, 30)
    },
    "a stopped one completes": World(
        {1: (("Running", (2, "Completed")), SENT, "Completed"), 2: (RUNS, SENT, "Canceled")},
        FOLLOW,
        1,
        (5, 5 + SLACK),
        stop_delay=5,
    ),
    "whatever is active": World(
        {
            1: (("Scheduled", (10, "Running")), SENT, "Canceled"),
            2: (("Explore", (5, "Rejected")), NOT_RUNNING, "Rejected"),
            3: (RUNS, SENT, "Canceled"),
        },
        WAIT | FOLLOW,
        2,
        (12, 12 + SLACK),
        stop_delay=2,
        ids=ALL_ACTIVE,
    ),
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
@simulated()
async def test_tasks_are_asked_about_until_it_is_sure_what_becomes_of_them(
    api: ControlApiSimulator, world: World
) -> None:
    api.stop_delay = world.stop_delay
    for task_id, ((status, *turns), _, _) in world.tasks.items():
        api.add_task(task_id, status, life=turns)
    checks = moments(api, STATUS)
    ids = world.ids or list(world.tasks)
    async with open_session(api, 10) as session:
        report = await session.stop_running(2, ids, **world.options)
    assert told(report) == {n: outcome for n, (_, *outcome) in world.tasks.items()}
    assert report.complete
    assert costs(api)[1] == world.stops
    assert world.last[0] < checks[-1] <= world.last[1]
    assert all(later - sooner < 5.1 for sooner, later in pairwise(checks))
    assert max(len(record.ids) for record in api.log) <= 10
    for task_id, (life, *_) in world.tasks.items():
        assert life is not ENDED or sum(task_id in record.ids for record in api.log) == 1
    assert asked(api, STATUS).count([]) == (ids is ALL_ACTIVE)


@simulated()
async def test_a_pending_task_is_stopped_once_it_runs_and_holds_nothing_up(
    api: ControlApiSimulator,
) -> None:
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
    # What runs already is stopped at once, and nothing is asked about it again.
    assert letters(api.log)[:2] == "ST"
    assert not any(2 in record.ids for record in api.log[2:])


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


# --- until time is over ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "hangs_from", "results", "raises"),
    [
        ("wait_pending", None, [NOT_RUNNING, NOT_RUNNING], False),
        ("wait_pending", 4, [NOT_RUNNING, NOT_RUNNING], False),
        ("wait_pending", 2, [NOT_RUNNING, StopResult.NOT_SENT], True),
        ("wait_stopped", None, [STILL_RUNNING, STILL_RUNNING], True),
    ],
)
@simulated(stop_delay=1e9)
async def test_the_deadline_raises_for_what_has_no_answer_but_not_for_what_is_only_pending(
    api: ControlApiSimulator, seconds: str, hangs_from: int, results: list[Any], *, raises: bool
) -> None:
    api.add_tasks([1, 2], "Scheduled" if seconds == "wait_pending" else "Running")
    if hangs_from:
        api.fault(Hang(), method=STATUS, number=hangs_from, every=True)
    began = api.now
    async with open_session(api, 1) as session:
        options: dict[str, Any] = {seconds: LONG}
        report, error = await ended(session.stop_running(2, [1, 2], timeout=20, **options))
    assert [each.result for each in report.values()] == results
    assert report[1].status == ("Scheduled" if seconds == "wait_pending" else "Running")
    assert 1 < api.now - began < 20 + SLACK
    causes = error.exceptions if error else ()
    assert [isinstance(cause, TimeoutError) for cause in causes] == [True] * raises


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
    assert list(told(report).values()) == [[SENT, "Canceled"]] * 2
    assert letters(api.log) == "STS"


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
    assert list(told(report).values()) == [[SENT, "Canceled"]] * 2


# --- faults ---------------------------------------------------------------------------------------

FAULTS_OF_POLLS: dict[str, Fault] = {
    "dropped": Drop(),
    "500": HttpStatus(500),
    "413": HttpStatus(413),
    "403": HttpStatus(403),
    "web page": Body("<html>", content_type="text/html"),
    "project": Body('{"reply": [{"error": "project 2 does not exist"}]}'),
    "unknown text": Body('{"reply": [{"error": "the disk is full"}]}'),
    "hangs": Hang(),
    "denied": Body('{"reply": [{"error": "access denied to tasks [1]"}]}'),
    "no rows": Body('{"reply": [{"result": []}]}'),
}


@pytest.mark.parametrize("seconds", ["wait_pending", "wait_stopped"])
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", FAULTS_OF_POLLS)
@simulated(stop_delay=1e9)
async def test_faults_while_asking_again(
    api: ControlApiSimulator, name: str, number: int, seconds: str
) -> None:
    pending = seconds == "wait_pending"
    api.add_tasks([1, 2], "Scheduled" if pending else "Running")
    api.add_task(3, "Completed")
    api.fault(FAULTS_OF_POLLS[name], method=STATUS, number=number, every=True)
    async with open_session(api) as session:
        options: dict[str, Any] = {seconds: 1e6}
        report, error = await ended(session.stop_running(2, [1, 2, 3], **options))
    if name in ("denied", "no rows"):  # for all that is known, they do not run any more
        result = StopResult.NOT_FOUND if pending else SENT
    else:  # whether a pending one would have started nobody knows
        result = StopResult.NOT_SENT if pending else STILL_RUNNING
    status = "Scheduled" if pending else "Running"
    assert told(report) == {1: [result, status], 2: [result, status], 3: [NOT_RUNNING, "Completed"]}
    assert (error is None) is (result in (SENT, StopResult.NOT_FOUND))
    assert costs(api)[1] == (not pending)
    assert api.now < 1000 + 2 * LONG, "nothing is waited for in vain"


@pytest.mark.parametrize(
    "fault", [Drop(), HttpStatus(500), HttpStatus(503), CutBody(keep=0.7), Body("{"), Body("{}")]
)
@simulated(stop_delay=4)
async def test_faults_that_pass_change_nothing(api: ControlApiSimulator, fault: Fault) -> None:
    api.add_task(1, "Scheduled", life=[(30, "Running")])
    api.add_tasks([2, 3])
    for number in (1, 3, 5):
        api.fault(fault, method=STATUS, number=number)
    api.fault(Drop(effect=True), method=STOP, number=1)
    async with open_session(api) as session:
        report = await session.stop_running(2, ALL_ACTIVE, wait_pending=50, wait_stopped=15)
    assert list(told(report).values()) == [[SENT, "Canceled"]] * 3
    assert api.tasks[1].stop_requests == 1


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
        assert told(report) == {
            n: [SENT if status == "Running" else NOT_RUNNING, status]
            for n, status in active.items()
        }
        assert costs(api) == (1, ceil(600 / 500))
        assert not api.tasks[5000].stop_requests
        assert api.log[0].json["methods"][0]["params"] == {"project_id": 2, "task_ids": "*"}
        dry = await session.stop_running(3, ALL_ACTIVE, dry_run=True)
        assert dry.counts[StopResult.WOULD_STOP] == 10
        assert len(await session.task_status(3, ALL_ACTIVE)) == 10


def answer(error: str) -> Rewrite:
    return Rewrite(lambda _: {"reply": [{"method": STATUS, "error": error}]})


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (answer("access denied to tasks [1]"), MethodError),
        (answer("project 2 does not exist"), ProjectNotFoundError),
        (answer("task_ids must be an integer or an array of integers"), MethodError),
        (Drop(), RequestError),
        (HttpStatus(401), AuthError),
        (HttpStatus(413), HttpError),
        (Hang(), TimeoutError),
        (HttpStatus(503, headers={"Retry-After": "50"}), HttpError),
    ],
)
@simulated()
async def test_no_answer_to_all_active_is_no_empty_report(
    api: ControlApiSimulator, fault: Fault, kind: type[Exception], *, dry_run: bool
) -> None:
    api.add_task(1)
    api.fault(fault, method=STATUS)
    async with open_session(api) as session:
        report, error = await ended(session.stop_running(2, ALL_ACTIVE, timeout=5, dry_run=dry_run))
        assert error is not None
        assert any(isinstance(cause, kind) for cause in error.exceptions)
        assert not report
        assert costs(api)[1] == 0
        if isinstance(fault, Rewrite):
            [cause] = error.exceptions
            words = fault.change(None)["reply"][0]["error"]
            assert str(cause) == f"{STATUS}: {words}"
            assert costs(api)[0] == 1
            with pytest.raises(kind):
                await session.task_status(2, ALL_ACTIVE)
