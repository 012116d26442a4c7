"""A run may be ended at any await: nothing is left behind, nothing known is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from ctrlapi_async import (
    ALL_ACTIVE,
    Batching,
    ControlSession,
    ProjectNotFoundError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopResult,
    bulk,
)
from ctrlapi_async.session import stopping_across
from ctrlapi_async.simulator import ControlApiSimulator, CutBody, Drop, HttpStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ctrlapi_async import StopReport, StopRun

SOON = RetryPolicy(attempts=6, wait_initial=0.001, wait_max=0.001)
LATE = RetryPolicy(attempts=6, wait_initial=1e6, wait_max=1e6)
NOT_STOPPED = {
    StopResult.NOT_SENT,
    StopResult.NOT_RUNNING,
    StopResult.NOT_FOUND,
    StopResult.UNAVAILABLE,
    StopResult.WOULD_STOP,
}
UNANSWERED = {StopResult.NOT_SENT, StopResult.UNCONFIRMED}
ACTIVE = {"Scheduled", "Explore", "Running"}
AGES = 1e12
"""Seconds after which whatever a simulator accepted has come to pass."""


# --- a loop whose every step counts ---------------------------------------------------------------


class Steps:
    """Counts the steps of all tasks of a loop, and strikes once, before one of them."""

    def __init__(self, before: int) -> None:
        self.struck = False
        self._left = before
        self._victim: asyncio.Task[Any] | None = None

    def arm(self, victim: asyncio.Task[Any], strike: Callable[[], object]) -> None:
        self._victim, self._strike = victim, strike

    def step(self) -> None:
        if self._victim is None or self._victim.done():
            return
        if self._left == 0:
            self.struck = True
            self._strike()
        self._left -= 1

    def factory(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **more: Any,
    ) -> asyncio.Task[Any]:
        assert isinstance(work, Coroutine)
        return asyncio.Task(Stepped(work, self), loop=loop, **more)


class Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that tells of each of its steps."""

    def __init__(self, work: Coroutine[Any, Any, Any], steps: Steps) -> None:
        self.work = work
        self._steps = steps

    def send(self, value: Any) -> Any:
        self._steps.step()
        return self.work.send(value)

    def throw(self, *error: Any) -> Any:
        return self.work.throw(*error)

    def close(self) -> None:
        self.work.close()

    def __await__(self) -> Any:
        return self.work.__await__()


class Timers:
    """Sets a loop's timers, and knows which of the package's have yet to ring."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._set = loop.call_at
        self._waiting: dict[object, asyncio.TimerHandle] = {}

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, **more: Any
    ) -> asyncio.TimerHandle:
        if not str(getattr(callback, "__module__", "")).startswith("ctrlapi_async."):
            return self._set(when, callback, *args, **more)
        key = object()

        def ring(*args: Any) -> None:
            del self._waiting[key]
            callback(*args)

        self._waiting[key] = self._set(when, ring, *args, **more)
        return self._waiting[key]

    def left(self) -> list[asyncio.TimerHandle]:
        return [timer for timer in self._waiting.values() if not timer.cancelled()]


def tasks_left() -> list[str]:
    """What runs beside the caller and the simulator."""
    left = []
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        work = task.get_coro()
        code = getattr(work.work if isinstance(work, Stepped) else work, "cr_code", None)
        if code is None or not code.co_filename.endswith(("web_protocol.py", "simulator.py")):
            left.append(repr(task))
    return left


# --- what must hold after any ending --------------------------------------------------------------


async def holds(
    run: StopRun,
    api: ControlApiSimulator,
    ids: list[int],
    seen: list[StopOutcome],
    *,
    collect: bool = True,
) -> StopReport:
    """Check what a run that is over tells against the truth, against itself, and for gaps."""
    api.advance(AGES)  # so that whatever was accepted has come to pass
    report = run.report
    # What the consumer has not taken, it may still take: each task's outcome comes once.
    told = list(seen)
    with suppress(StopIncompleteError):
        async for outcome in run:
            told.append(outcome)  # noqa: PERF401 - what came before an error counts
    assert sorted(outcome.task_id for outcome in told) == sorted(ids)
    for outcome in told:
        assert outcome.project_id == project_of(outcome.task_id)
        task = api.tasks.get(outcome.task_id)
        if outcome.result is StopResult.STOP_SENT:
            assert task is not None, outcome
            assert task.stopped, outcome
        elif outcome.result in NOT_STOPPED:
            assert task is None or not task.stop_requests, outcome
    # A stop that needs not be repeated is not.
    assert {task.stop_requests for task in api.tasks.values()} <= {0, 1}
    assert dict(run.counts) == dict.fromkeys(StopResult, 0) | Counter(
        outcome.result for outcome in told
    )
    if collect:
        assert list(report) == ids
        assert dict(run.counts) == dict(report.counts)
    assert dict(report) == {
        outcome.task_id: outcome for outcome in told if outcome.task_id in report
    }
    return report


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What the loop had to complain of; nothing, when all is well."""
    told: list[str] = []
    yield told
    gc.collect()
    assert told == []


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "POLL_FIRST", 0.001)
    monkeypatch.setattr(bulk, "POLL_MAX", 0.001)
    monkeypatch.setattr(bulk, "FLUSH", 0.0)


# --- the scenarios --------------------------------------------------------------------------------

IDS = list(range(1, 17))
TARGETS = {2: range(20, 26), 3: range(30, 36), 4: range(40, 44)}


def project_of(task_id: int) -> int:
    return max(2, task_id // 10)


def calm(api: ControlApiSimulator) -> None:
    api.mixed_tasks(16, running=0.7)


def stormy(api: ControlApiSimulator) -> None:
    """Retries, lost stops, settling and halving."""
    api.mixed_tasks(15, running=0.8)
    api.denied_names = "all"  # for task 16, which is not there
    trouble(api)
    api.fault(HttpStatus(413), method="TaskStop", number=3)


def trouble(api: ControlApiSimulator) -> None:
    api.latency = 0.0005
    api.fault(HttpStatus(503), method="TaskStatus", number=1)
    api.fault(Drop(), method="TaskStatus", number=3)
    api.fault(Drop(effect=True), method="TaskStop", number=1)
    api.fault(CutBody(), method="TaskStop", number=2)


def lively(api: ControlApiSimulator) -> None:
    """Tasks that start while the run goes on, or never do, and take their time to stop."""
    api.tick = 1
    api.stop_delay = 3
    api.add_tasks(range(1, 6))
    api.add_tasks(range(6, 10), "Scheduled", life=[(4, "Explore"), (6, "Running")])
    api.add_tasks(range(10, 13), "Explore", life=[(12, "Running")])
    api.add_task(13, "Scheduled", life=[(8, "Completed")])
    api.add_tasks([14, 15], "Stalled")
    api.add_task(16, "Completed")


def stormy_start(api: ControlApiSimulator) -> None:
    """Tasks that start while requests fail, the first of all too."""
    lively(api)
    api.stop_delay = 0  # else a lost stop would be looked into too early, and repeated
    trouble(api)


def three_projects(api: ControlApiSimulator) -> None:
    for project_id, task_ids in TARGETS.items():
        api.mixed_tasks(len(task_ids), running=0.7, project_id=project_id, first_id=task_ids[0])


def stormy_projects(api: ControlApiSimulator) -> None:
    """Project 4 is missing, ids are denied in 2 and 3, tasks start, and shared requests fail."""
    api.tick = 1
    api.denied_names = "all"  # for tasks 24 and 34, which are not there
    api.add_tasks([20, 21, 22, 23, 25], project_id=2)
    api.add_tasks([30, 31], project_id=3)
    api.add_task(32, "Scheduled", project_id=3, life=[(9, "Running")])
    api.add_task(33, "Explore", project_id=3, life=[(15, "Running")])
    api.add_task(35, "Completed", project_id=3)
    trouble(api)
    api.fault_when = lambda record: (
        HttpStatus(413) if "TaskStop" in record.methods and len(record.ids) > 2 else None
    )


async def source(read: list[int]) -> AsyncIterator[int]:
    for task_id in IDS:
        read.append(task_id)
        yield task_id
        if task_id % 5 == 0:
            await asyncio.sleep(0)


# What is asked for; `read` takes in the ids that the run then has to account for.


def listed(session: ControlSession, read: list[int], **options: Any) -> StopRun:
    read += IDS
    return session.stopping(2, IDS, **options)


def streamed(session: ControlSession, read: list[int], **options: Any) -> StopRun:
    return session.stopping(2, source(read), **options)


def all_active(session: ControlSession, read: list[int], **options: Any) -> StopRun:
    del read  # the server says which they are
    return session.stopping(2, ALL_ACTIVE, **options)


def across(session: ControlSession, read: list[int], **options: Any) -> StopRun:
    read += chain(*TARGETS.values())
    return stopping_across(session, TARGETS, **options)


class Scenario(NamedTuple):
    """A world, and what is asked of it.

    It is about `total` tasks, of which those of `nowhere` get no answer even if nobody ends the
    run. Only every `stride`-th step is tried, or a multiple of it.
    """

    prepare: Callable[[ControlApiSimulator], None]
    begin: Callable[..., StopRun]
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it
    total: int = 16
    nowhere: Sequence[int] = ()
    stride: int = 1


class Moment(NamedTuple):
    """What a run told just before it was ended, and what had reached the server by then."""

    report: StopReport
    counts: dict[StopResult, int]
    seen: int
    requests: int
    stops: set[int]


@asynccontextmanager
async def stage(
    prepare: Callable[[ControlApiSimulator], None], steps: Steps, complaints: list[str]
) -> AsyncIterator[ControlApiSimulator]:
    """Give a simulator in a loop whose steps are counted; its clients leave nothing behind."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
    loop.set_task_factory(steps.factory)
    timers = Timers(loop)
    set_timer = loop.call_at
    loop.call_at = timers.call_at  # type: ignore[assignment,method-assign]
    try:
        async with ControlApiSimulator() as api:
            prepare(api)
            yield api
            assert tasks_left() == []
            assert timers.left() == []
            await gone(api)
    finally:
        loop.call_at = set_timer  # type: ignore[method-assign]
        loop.set_task_factory(None)


async def every_slot_is_free(session: ControlSession, api: ControlApiSimulator) -> None:
    """Check that a session which was never slowed down still sends three requests at once."""
    params = {"project_id": 2, "task_ids": min(api.tasks)}
    with api.hold() as gate:
        calls = [asyncio.create_task(session.call("TaskStatus", params)) for _ in range(3)]
        async with asyncio.timeout(30):
            await api.wait_until(lambda: gate.held == 3)
    await asyncio.gather(*calls)


class Scene:
    """One run against a simulator, ended in some way before its k-th step."""

    LATE = 101.0

    def __init__(self, k: int, ending: str, complaints: list[str]) -> None:
        self.steps = Steps(k)
        self.ending = ending
        self.seen: list[StopOutcome] = []
        self.moment: Moment | None = None
        self._complaints = complaints
        self._late = 0.0

    async def play(self, scenario: Scenario) -> bool:
        """Play it; tell whether the end came before the run's own."""
        loop = asyncio.get_running_loop()
        clock = loop.time
        loop.time = lambda: clock() + self._late  # type: ignore[method-assign]
        try:
            async with stage(scenario.prepare, self.steps, self._complaints) as api:
                active = [n for n, task in api.tasks.items() if task.status in ACTIVE]
                read, run = await self._run(api, scenario)
        finally:
            loop.time = clock  # type: ignore[method-assign]
        if scenario.begin is all_active and run.counts != dict.fromkeys(StopResult, 0):
            read = active
        collect = scenario.options.get("collect", True)
        report = await holds(run, api, read, self.seen, collect=collect)
        if self.moment is not None:
            self._agrees(self.moment, run, collect=collect)
        if not collect:
            self._is_unfinished(report, scenario)
        if not self.steps.struck:
            assert not any(task.status == "Running" for task in api.tasks.values())
        return self.steps.struck

    async def _run(self, api: ControlApiSimulator, scenario: Scenario) -> tuple[list[int], StopRun]:
        read: list[int] = []
        closing = asyncio.Event()
        async with ControlSession(
            api.url,
            1,
            batching=Batching(chunk_size=4, max_concurrency=3),
            retry=SOON,
            request_timeout=10_000,
        ) as session:
            options = dict(scenario.options)
            if self.ending == "deadline":
                options["timeout"] = 100
            run = scenario.begin(session, read, **options)
            consumer = asyncio.create_task(self._consume(run))
            consumer.add_done_callback(lambda _: closing.set())
            self._arm(api, run, consumer, closing)
            async with asyncio.timeout(30 + self.LATE * (self.ending == "deadline")):
                await closing.wait()
            if self.ending != "close":
                await asyncio.wait([consumer])
                assert tasks_left() == []
                self._sends_no_more(api)
                if scenario.prepare in (calm, lively, three_projects):
                    await every_slot_is_free(session, api)
        await asyncio.wait([consumer])
        if self.ending == "close":
            self._sends_no_more(api)
        self._check(consumer, run, scenario)
        return read, run

    async def _consume(self, run: StopRun) -> None:
        async with asyncio.timeout(None) as self._scope:
            async with run:
                async for outcome in run:
                    self.seen.append(outcome)

    def _arm(
        self,
        api: ControlApiSimulator,
        run: StopRun,
        consumer: asyncio.Task[None],
        closing: asyncio.Event,
    ) -> None:
        def late() -> None:
            self._late = self.LATE

        def out_of_time() -> None:
            self._scope.reschedule(asyncio.get_running_loop().time())

        strikes: dict[str, Callable[[], object]] = {
            "cancel": consumer.cancel,
            "timeout": out_of_time,
            "close": closing.set,
            "deadline": late,
        }

        def strike() -> None:
            self.moment = Moment(
                run.report,
                dict(run.counts),
                len(self.seen),
                api.counters.requests,
                {n for n, task in api.tasks.items() if task.stop_requests},
            )
            strikes[self.ending]()

        self.steps.arm(consumer, strike)

    def _sends_no_more(self, api: ControlApiSimulator) -> None:
        if self.moment is not None:
            # One a slot may have been under way.
            assert api.counters.requests <= self.moment.requests + 3

    def _check(self, consumer: asyncio.Task[None], run: StopRun, scenario: Scenario) -> None:
        """An ending comes out as what it is, or was too late to matter."""
        if consumer.cancelled():
            assert self.ending == "cancel"
            return
        error = consumer.exception()
        unanswered = sum(run.counts[result] for result in UNANSWERED)
        if error is None:
            assert self.ending != "cancel" or not self.steps.struck
            assert not unanswered
            assert not scenario.nowhere
            assert sum(run.counts.values()) == scenario.total
        elif isinstance(error, StopIncompleteError):
            assert error.report == run.report
            if [type(cause) for cause in error.exceptions] == [ProjectNotFoundError]:
                assert error.report.ids(*UNANSWERED) == list(scenario.nowhere)
                return
            assert self.ending in ("close", "deadline")
            # Of a stream that was not read to its end, all that was read may have its answer.
            assert unanswered or sum(run.counts.values()) < scenario.total
            wanted = TimeoutError if self.ending == "deadline" else RequestError
            assert any(isinstance(cause, wanted) for cause in error.exceptions)
        elif isinstance(error, RuntimeError):
            assert self.ending == "close", error  # before it had begun
        else:
            assert isinstance(error, TimeoutError), error
            assert self.ending == "timeout"

    def _agrees(self, moment: Moment, run: StopRun, *, collect: bool) -> None:
        """What was told under way was true then, and what had an answer has the same now."""
        if collect:
            assert moment.counts == dict(moment.report.counts)
            for outcome in self.seen[: moment.seen]:
                assert moment.report[outcome.task_id] == outcome
        for task_id, outcome in moment.report.items():
            if outcome.result is StopResult.STOP_SENT:
                assert task_id in moment.stops
            elif outcome.result in NOT_STOPPED:
                assert task_id not in moment.stops, outcome
            if outcome.result in (StopResult.STOP_SENT, StopResult.NOT_FOUND) and collect:
                assert run.report[task_id].result is outcome.result
        for result in (StopResult.STOP_SENT, StopResult.NOT_FOUND):
            assert moment.counts[result] <= run.counts[result]

    def _is_unfinished(self, report: StopReport, scenario: Scenario) -> None:
        """Without a report no more is held than what had no last word when the run ended."""
        passing = set(UNANSWERED)
        if "confirm" in scenario.options:
            passing.add(StopResult.STOP_SENT)
        if "wait_pending" in scenario.options:
            passing.add(StopResult.NOT_RUNNING)
        assert {outcome.result for outcome in report.values()} <= passing
        if self.moment is None:
            assert not report
        else:
            before = {outcome.task_id for outcome in self.seen[: self.moment.seen]}
            assert report.keys().isdisjoint(before)


PATIENT = {"wait_pending": 50, "confirm": 50}
SCENARIOS = {
    "calm": Scenario(calm, listed),
    "stormy": Scenario(stormy, listed),
    "stormy stream": Scenario(stormy, streamed, {"confirm": 0.01}, stride=2),
    "uncollected stream": Scenario(calm, streamed, {"collect": False}),
    "stormy uncollected stream": Scenario(stormy, streamed, {"collect": False}, stride=4),
    "patient uncollected stream": Scenario(
        lively, streamed, {"collect": False, **PATIENT}, stride=4
    ),
    "patient": Scenario(lively, listed, PATIENT, stride=4),
    "all active": Scenario(lively, all_active, PATIENT, 13, stride=5),
    "stormy all active": Scenario(stormy_start, all_active, PATIENT, 13, stride=5),
    "projects": Scenario(three_projects, across, stride=3),
    "stormy projects": Scenario(stormy_projects, across, PATIENT, nowhere=TARGETS[4], stride=4),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(
    ("ending", "first", "stride"),
    # Nobody's time is over before the consumer's first step: it is in it that the time begins.
    [("cancel", 0, 1), ("timeout", 1, 5), ("close", 0, 5), ("deadline", 1, 5)],
)
async def test_a_run_may_end_before_any_step(
    ending: str, first: int, stride: int, scenario: str, complaints: list[str]
) -> None:
    k = first
    while await Scene(k, ending, complaints).play(SCENARIOS[scenario]):
        k += stride * SCENARIOS[scenario].stride
    assert k > 25


@pytest.mark.parametrize("prepare", [calm, stormy])
async def test_whoever_holds_the_session_may_be_cancelled_before_any_step(
    prepare: Callable[[ControlApiSimulator], None], complaints: list[str]
) -> None:
    async def work(url: str) -> None:
        batching = Batching(chunk_size=4, max_concurrency=3)
        async with ControlSession(url, 1, batching=batching, retry=SOON) as session:
            await session.stop_running(2, IDS)
            await session.task_status(2, IDS)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
    k = 0
    struck = True
    while struck:
        steps = Steps(k)
        async with ControlApiSimulator() as api:
            prepare(api)
            loop.set_task_factory(steps.factory)
            task = loop.create_task(work(api.url))
            steps.arm(task, task.cancel)
            await asyncio.wait([task])
            loop.set_task_factory(None)
            assert tasks_left() == []
            async with asyncio.timeout(30):
                await api.wait_until(lambda: api.counters.connections_open == 0)
        struck = steps.struck
        assert task.cancelled() is struck
        if not struck:
            task.result()
        k += 1
    assert k > 25


# --- single stops that share requests -------------------------------------------------------------

WISHES = [*chain(*TARGETS.values()), TARGETS[2][0]]
"""Tasks, one a caller; the first is wanted by two."""


class Gathering:
    """Many callers of `stop`, some or all ended in some way before the k-th step."""

    def __init__(self, k: int, ending: str, complaints: list[str]) -> None:
        self.steps = Steps(k)
        self.ending = ending
        self._complaints = complaints
        self._begun: set[int] = set()
        self._waiting: set[int] = set()
        self._unasked: set[int] = set()
        self._requests = 0

    async def play(self, prepare: Callable[[ControlApiSimulator], None]) -> bool:
        """Play it; tell whether the end came before all were answered."""
        async with stage(prepare, self.steps, self._complaints) as api:
            api.add_task(29)
            first = {task_id: task.status for task_id, task in api.tasks.items()}
            callers = await self._run(api, spare=prepare is three_projects)
        api.advance(AGES)
        assert {task.stop_requests for task in api.tasks.values()} <= {0, 1}
        for number, caller in enumerate(callers):
            task_id = WISHES[number]
            if caller.cancelled():
                assert self.steps.struck
                assert number in self._victims
                if WISHES.count(task_id) == 1 and task_id in self._unasked and task_id in first:
                    assert not api.tasks[task_id].stop_requests
            elif isinstance(error := caller.exception(), StopIncompleteError):
                self._explains(error, task_id, api)
            elif error is not None:
                assert isinstance(error, RuntimeError), error
                assert self.ending == "close"
                assert number not in self._waiting
            else:
                self._is_true(caller.result(), task_id, first.get(task_id), api)
        return self.steps.struck

    @property
    def _victims(self) -> range:
        return {
            "one is cancelled": range(2, 3),
            "one of two is cancelled": range(1),
            "all are cancelled": range(len(WISHES)),
            "close": range(0),
        }[self.ending]

    async def _run(
        self, api: ControlApiSimulator, *, spare: bool
    ) -> list[asyncio.Task[StopOutcome]]:
        closing = asyncio.Event()
        async with small(api.url, 3) as session:
            callers = [
                asyncio.create_task(self._call(session, number)) for number in range(len(WISHES))
            ]
            everyone = asyncio.create_task(self._wait(callers, closing))

            def strike() -> None:
                asked = {task_id for record in api.log for task_id in record.ids}
                self._unasked = set(WISHES) - asked
                self._waiting = set(self._begun)
                self._requests = api.counters.requests
                for number in self._victims:
                    callers[number].cancel()
                if self.ending == "close":
                    closing.set()

            self.steps.arm(everyone, strike)
            async with asyncio.timeout(30):
                await closing.wait()
            if self.ending != "close":
                # The session goes on as if nothing had been.
                assert (await session.stop(2, 29)).result is StopResult.STOP_SENT
                if spare:
                    await every_slot_is_free(session, api)
        async with asyncio.timeout(30):
            await everyone
        if self.ending == "close" and self.steps.struck:
            assert api.counters.requests <= self._requests + 3
        return callers

    async def _call(self, session: ControlSession, number: int) -> StopOutcome:
        # Some come while others are served; those who want the same task come together.
        for _ in range(WISHES[number] % 5 * 4):
            await asyncio.sleep(0)
        self._begun.add(number)
        task_id = WISHES[number]
        return await session.stop(project_of(task_id), task_id)

    async def _wait(self, callers: list[asyncio.Task[StopOutcome]], closing: asyncio.Event) -> None:
        await asyncio.wait(callers)
        closing.set()

    def _is_true(
        self, outcome: StopOutcome, task_id: int, first: str | None, api: ControlApiSimulator
    ) -> None:
        assert (outcome.task_id, outcome.project_id) == (task_id, project_of(task_id))
        if first is None:
            assert outcome.result is StopResult.NOT_FOUND
            return
        stopped = api.tasks[task_id].stopped
        assert outcome.result is (StopResult.STOP_SENT if stopped else StopResult.NOT_RUNNING)
        assert stopped or first != "Running"

    def _explains(self, error: StopIncompleteError, task_id: int, api: ControlApiSimulator) -> None:
        """Whoever gets no outcome is told why, and of the own task only."""
        [outcome] = error.report.values()
        assert (outcome.task_id, outcome.project_id) == (task_id, project_of(task_id))
        if outcome.result is StopResult.NOT_SENT:
            assert task_id not in api.tasks or not api.tasks[task_id].stop_requests
        else:
            assert outcome.result is StopResult.UNCONFIRMED
        kinds = {type(cause) for cause in error.exceptions}
        if kinds == {ProjectNotFoundError}:
            assert task_id in TARGETS[4]
            assert outcome.result is StopResult.NOT_SENT
        else:
            assert self.ending == "close"
            assert self.steps.struck
            assert ProjectNotFoundError not in kinds or task_id in TARGETS[4]


@pytest.mark.parametrize(("prepare", "stride"), [(three_projects, 5), (stormy_projects, 16)])
@pytest.mark.parametrize(
    "ending", ["one is cancelled", "one of two is cancelled", "all are cancelled", "close"]
)
async def test_gathered_callers_may_end_before_any_step(
    ending: str,
    prepare: Callable[[ControlApiSimulator], None],
    stride: int,
    complaints: list[str],
) -> None:
    k = 0
    while await Gathering(k, ending, complaints).play(prepare):
        k += stride
    assert k > 25


# --- known moments --------------------------------------------------------------------------------


@pytest.fixture
async def api(complaints: list[str]) -> AsyncIterator[ControlApiSimulator]:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
    async with ControlApiSimulator() as api:
        yield api


def small(url: str, max_concurrency: int = 2, retry: RetryPolicy = SOON) -> ControlSession:
    batching = Batching(chunk_size=4, max_concurrency=max_concurrency)
    return ControlSession(url, 1, batching=batching, retry=retry)


async def gone(api: ControlApiSimulator) -> None:
    async with asyncio.timeout(30):
        await api.wait_until(lambda: api.counters.connections_open == 0)


@pytest.mark.parametrize("effect", [False, True])
async def test_stops_in_flight_are_unconfirmed_and_what_was_not_asked_is_not_sent(
    api: ControlApiSimulator, effect: bool
) -> None:
    api.add_tasks(range(1, 41))
    # Two at once: checks of 1 to 8 are answered, stops of 1 to 8 hang, the rest waits.
    gate = api.hold("TaskStop", effect=effect)
    async with small(api.url) as session:
        run = session.stopping(2, range(1, 41))

        async def consume() -> None:
            async with run:
                await run.wait()

        consumer = asyncio.create_task(consume())
        await api.wait_until(lambda: gate.held == 2)
        held = [
            task_id for record in api.log if "TaskStop" in record.methods for task_id in record.ids
        ]
        during = run.report
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert tasks_left() == []
    await gone(api)
    for report in (during, run.report):
        assert report.ids(StopResult.UNCONFIRMED) == sorted(held)
        assert report.ids(StopResult.NOT_SENT) == [n for n in range(1, 41) if n not in held]
    assert {run.report[task_id].status for task_id in held} == {"Running"}
    assert run.counts[StopResult.UNCONFIRMED] == 8


async def test_a_check_in_flight_leaves_its_tasks_not_sent(api: ControlApiSimulator) -> None:
    api.add_tasks(range(1, 41))
    gate = api.hold("TaskStatus")
    async with small(api.url) as session:
        run = session.stopping(2, range(1, 41))

        async def run_out_of_time() -> None:
            async with asyncio.timeout(None) as scope, run:
                await api.wait_until(lambda: gate.held == 2)
                scope.reschedule(0)
                await run.wait()

        with pytest.raises(TimeoutError):
            await run_out_of_time()
        assert run.report.counts[StopResult.NOT_SENT] == 40
        assert list(run.report) == list(range(1, 41))
        assert tasks_left() == []
    await gone(api)
    assert api.counters.requests == 2


@pytest.mark.parametrize("after", range(1, 21))
async def test_leaving_the_loop_ends_the_run(api: ControlApiSimulator, after: int) -> None:
    api.mixed_tasks(20)
    seen: list[StopOutcome] = []
    async with small(api.url) as session:
        async with session.stopping(2, range(1, 21)) as run:
            async for outcome in run:
                seen.append(outcome)
                if len(seen) == after:
                    break
        asked = api.counters.requests
        assert tasks_left() == []
        await holds(run, api, list(range(1, 21)), seen)
        # What is over is over, and the session lives on.
        assert (await session.stop_running(2, range(1, 21))).complete
        assert api.counters.requests > asked
    await gone(api)


@pytest.mark.parametrize("after", [1, 7, 20])
async def test_an_exception_in_the_loop_body_comes_out_as_it_is(
    api: ControlApiSimulator, after: int
) -> None:
    api.mixed_tasks(20)
    seen: list[StopOutcome] = []
    mine = ZeroDivisionError("the consumer's own")
    async with small(api.url) as session:
        run = session.stopping(2, range(1, 21))

        async def consume() -> None:
            async with run:
                async for outcome in run:
                    seen.append(outcome)
                    if len(seen) == after:
                        raise mine

        with pytest.raises(ZeroDivisionError) as caught:
            await consume()
        assert caught.value is mine
        assert mine.__cause__ is mine.__context__ is None
        assert tasks_left() == []
        await holds(run, api, list(range(1, 21)), seen)
    await gone(api)


async def test_an_async_source_is_closed_when_its_run_is_left(api: ControlApiSimulator) -> None:
    api.add_tasks(range(1, 41))
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[int]:
        try:
            for task_id in range(1, 41):
                yield task_id
            await asyncio.get_running_loop().create_future()
        finally:
            closed.set()

    async with small(api.url) as session:
        async with session.stopping(2, endless()) as run:
            async for _ in run:
                break
        assert closed.is_set()
        assert tasks_left() == []
    await gone(api)


@pytest.mark.parametrize("first", [0, 1, 2, 3])
async def test_callers_that_wait_for_a_slot_may_be_cancelled_in_any_order(
    api: ControlApiSimulator, first: int
) -> None:
    api.add_tasks(range(1, 9))
    params = {"project_id": 2, "task_ids": 1}
    async with small(api.url, 1) as session:
        with api.hold("TaskStatus"):
            callers = [asyncio.create_task(session.call("TaskStatus", params)) for _ in range(4)]
            await api.wait_for_requests(1)
            # At once, so that a slot is given back while those who wait are on their way out.
            for caller in callers[first:] + callers[:first]:
                caller.cancel()
            results = await asyncio.gather(*callers, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 4
            assert tasks_left() == []
        async with asyncio.timeout(30):
            assert await session.call("TaskStatus", params)
    await gone(api)


async def test_a_caller_cancelled_as_it_gets_its_slot_gives_it_back(
    api: ControlApiSimulator,
) -> None:
    api.add_task(1)
    params = {"project_id": 2, "task_ids": 1}
    async with small(api.url, 1) as session:

        async def first() -> None:
            await session.call("TaskStatus", params)
            # In this very turn of the loop the slot has passed on to the second.
            assert second.cancel()

        gate = api.hold("TaskStatus", number=1)
        one = asyncio.create_task(first())
        await api.wait_until(lambda: gate.held == 1)
        second = asyncio.create_task(session.call("TaskStatus", params))
        await asyncio.sleep(0)
        gate.release()
        await one
        with pytest.raises(asyncio.CancelledError):
            await second
        async with asyncio.timeout(30):
            assert await session.call("TaskStatus", params)
    await gone(api)
    assert api.counters.requests == 2


async def test_every_slot_comes_back_whatever_was_cancelled(api: ControlApiSimulator) -> None:
    api.add_tasks(range(1, 101))
    async with small(api.url, 3) as session:
        for turn in range(1, 60):
            run = asyncio.create_task(session.stop_running(2, range(1, 101), dry_run=True))
            for _ in range(turn):
                await asyncio.sleep(0)
            run.cancel()
            with suppress(asyncio.CancelledError):
                await run
        gate = api.hold("TaskStatus")
        run = asyncio.create_task(session.stop_running(2, range(1, 101), dry_run=True))
        async with asyncio.timeout(30):
            await api.wait_until(lambda: gate.held == 3)
        gate.release()
        assert (await run).complete
    await gone(api)


async def test_closing_the_session_ends_all_that_it_has_under_way(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(1, 41))
    gate = api.hold()
    session = small(api.url, 4, LATE)
    async with session:
        params = {"project_id": 2, "task_ids": 1}
        work = [
            asyncio.create_task(session.stop_running(2, range(1, 21))),
            asyncio.create_task(session.stop_running(2, range(21, 41))),
            asyncio.create_task(session.call("TaskStatus", params)),
            asyncio.create_task(session.task_status(2, range(1, 41))),
        ]
        await api.wait_until(lambda: gate.held == 4)
    async with asyncio.timeout(30):
        results = await asyncio.gather(*work, return_exceptions=True)
    assert tasks_left() == []
    await gone(api)
    for result in results[:2]:
        assert isinstance(result, StopIncompleteError)
        assert result.report.counts[StopResult.NOT_SENT] == 20
    for result in results[2:]:
        assert isinstance(result, RequestError)
    assert api.counters.requests == 4


async def test_a_session_that_is_cancelled_while_it_closes_leaves_nothing(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(1, 41))
    gate = api.hold()
    session = small(api.url, 4, LATE)
    runs: list[asyncio.Task[StopReport]] = []

    async def work() -> None:
        async with session:
            for first in (1, 21):
                ids = range(first, first + 20)
                runs.append(asyncio.create_task(session.stop_running(2, ids)))
            await api.wait_until(lambda: gate.held == 4)

    holder = asyncio.create_task(work())
    await api.wait_until(lambda: gate.held == 4)
    for _ in range(20):
        holder.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await holder
    async with asyncio.timeout(30):
        results = await asyncio.gather(*runs, return_exceptions=True)
    assert [type(result) for result in results] == [StopIncompleteError] * 2
    assert tasks_left() == []
    await gone(api)


# --- Ctrl-C ---------------------------------------------------------------------------------------

PROGRAM = """
    import asyncio, sys
    from ctrlapi_async import Batching, ControlSession, StopResult

    async def main():
        batching = Batching(chunk_size=4, max_concurrency=4)
        async with ControlSession(sys.argv[1], 1, batching=batching) as session:
            run = session.stopping(2, range(1, 41))
            try:
                async with run:
                    async for outcome in run:
                        pass
            finally:
                counts = run.counts
                print(counts[StopResult.UNCONFIRMED], counts[StopResult.NOT_SENT], flush=True)

    asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent there")
@pytest.mark.parametrize(("method", "words"), [("TaskStatus", b"0 40"), ("TaskStop", b"16 24")])
async def test_ctrl_c_leaves_nothing_to_complain_of(
    api: ControlApiSimulator, tmp_path: Path, method: str, words: bytes
) -> None:
    api.add_tasks(range(1, 41))
    gate = api.hold(method)
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-X",
        "dev",
        "-W",
        "error",
        str(program),
        api.url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        async with asyncio.timeout(60):
            await api.wait_until(lambda: gate.held == 4)
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert out.strip() == words
    assert err.rstrip().endswith(b"KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT
    for word in (b"Warning", b"destroyed", b"never retrieved", b"Unclosed", b"Exception ignored"):
        assert word not in err
    await gone(api)


@pytest.mark.parametrize("method", ["TaskStatus", "TaskStop"])
async def test_a_time_limit_that_strikes_together_with_the_deadline(
    api: ControlApiSimulator, method: str
) -> None:
    api.add_tasks(range(1, 11))
    gate = api.hold(method)
    loop = asyncio.get_running_loop()
    late = 0.0
    clock = loop.time
    loop.time = lambda: clock() + late  # type: ignore[method-assign]
    try:
        async with ControlSession(api.url, 1, retry=SOON, request_timeout=1000) as session:
            async with session.stopping(2, range(1, 11), timeout=2000) as run:
                await api.wait_until(lambda: gate.held > 0)
                late = 3000.0  # both are over now, the request's first
                await api.wait_until(lambda: gate.held == 0)
                with pytest.raises(StopIncompleteError) as caught:
                    await run.wait()
            known = StopResult.NOT_SENT if method == "TaskStatus" else StopResult.UNCONFIRMED
            assert run.counts[known] == len(run.report.ids(known)) == 10
            assert any(isinstance(cause, TimeoutError) for cause in caught.value.exceptions)
    finally:
        loop.time = clock  # type: ignore[method-assign]
    await gone(api)
