"""A run may be ended at any await: nothing is left behind, nothing that is known is lost."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

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
    StopReport,
    StopResult,
)
from ctrlapi_async._models import UNANSWERED
from ctrlapi_async.simulator import (
    ControlApiSimulator,
    CutBody,
    Drop,
    Fault,
    Hang,
    HttpStatus,
    SlowBody,
)
from tests.support.clock import JumpingLoop, run, skip
from tests.support.oracle import Oracle
from tests.support.simulated import (
    STATUS,
    STOP,
    disconnected,
    open_session,
    simulated,
    simulator,
    turns,
)
from tests.support.steps import Steps, assert_nothing_left
from tests.support.witness import Witness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from ctrlapi_async import StopRun
    from ctrlapi_async.simulator import RequestRecord

    World = Callable[[ControlApiSimulator], None]
    Script = Callable[[RequestRecord], Fault | None]

NOT_SENT = StopResult.NOT_SENT
UNCONFIRMED = StopResult.UNCONFIRMED
STOP_SENT = StopResult.STOP_SENT
SOON: Final = RetryPolicy(attempts=6, wait_initial=1e-4, wait_max=1e-4)
LATE: Final = RetryPolicy(attempts=6, wait_initial=1e6, wait_max=1e6, timeout=None)
AT_ONCE: Final = 3


def try_before_any_step(
    play: Callable[[int], Coroutine[Any, Any, bool]], stride: int, first: int = 0
) -> None:
    """Play again and again, struck later each time, until the end comes before the strike."""
    before = first
    # Sockets soon count as idle: both of their ends are in this process.
    while run(play(before), lambda: JumpingLoop(grace=0.0005)):
        before += stride
    assert before > 25


def small(
    api: ControlApiSimulator, at_once: int = AT_ONCE, retry: RetryPolicy = SOON
) -> ControlSession:
    return open_session(api, 4, at_once, retry=retry, request_timeout=10_000)


# --- worlds, and what is asked of them ------------------------------------------------------------

IDS: Final = list(range(1, 17))
TARGETS: Final = {2: range(20, 26), 3: range(30, 36), 4: range(40, 44)}
TOO_LARGE: Final = HttpStatus(413)
FAULTS: Final[dict[tuple[str, int], Fault]] = {
    (STATUS, 1): HttpStatus(503),
    (STATUS, 3): Drop(),
    (STOP, 1): Drop(effect=True),
    (STOP, 2): CutBody(),
    (STOP, 3): TOO_LARGE,
}


def project_of(task_id: int) -> int:
    return max(2, task_id // 10) if task_id < 100 else 2


def no_faults(record: RequestRecord) -> None:
    del record


def trouble(record: RequestRecord) -> Fault | None:
    method = record.methods[0]
    fault = FAULTS.get((method, record.numbers[method]))
    return None if len(record.ids) == 1 and fault == TOO_LARGE else fault


def calm(api: ControlApiSimulator) -> None:
    api.mixed_tasks(16, running=0.5, restarted=0.25)


def lacking(api: ControlApiSimulator) -> None:
    """Task 16 is not there."""
    api.rows, api.denied_names = "narrow", "all"
    api.mixed_tasks(15, running=0.6, restarted=0.25)


def lively(api: ControlApiSimulator) -> None:
    """Tasks start and are restarted while the run goes on, and take their time to stop."""
    api.stop_delay = 0.5
    api.add_tasks(range(1, 6))
    api.add_tasks(range(6, 10), "Scheduled", life=[(0.3, "Explore"), (0.6, "Running")])
    api.add_tasks(range(10, 13), "Explore", life=[(1.2, "Running")])
    api.add_task(13, "Scheduled", life=[(0.8, "Completed")])
    api.add_task(14, life=[(0.3, "Stalled")], restarts=["Running"])
    api.add_task(15, "Stalled")
    api.restart(15, "Scheduled", life=[(0.9, "Running")])
    api.add_task(16, "Completed")


def three_projects(api: ControlApiSimulator) -> None:
    add = partial(api.mixed_tasks, running=0.6, restarted=0.2, seed=1)
    for project_id, ids in TARGETS.items():
        add(len(ids), project_id=project_id, first_id=ids[0])


def two_projects(api: ControlApiSimulator) -> None:
    """Project 4 is missing, ids are denied in 2 and 3, and tasks start."""
    api.denied_names = "all"  # for tasks 24 and 34, which are not there
    api.add_tasks([20, 21, 22, 23, 25], project_id=2)
    api.add_tasks([30, 31], project_id=3)
    api.add_task(32, "Scheduled", project_id=3, life=[(0.3, "Running")])
    api.add_task(33, "Explore", project_id=3, life=[(0.7, "Running")])
    api.add_task(35, "Completed", project_id=3)


def listed(session: ControlSession, read: list[int], **options: Any) -> StopRun:
    read += IDS
    return session.stopping(2, IDS, **options)


def streamed(session: ControlSession, read: list[int], **options: Any) -> StopRun:
    async def source() -> AsyncIterator[int]:
        for task_id in IDS:
            read.append(task_id)
            yield task_id
            if task_id % 5 == 0:
                await asyncio.sleep(0)

    return session.stopping(2, source(), **options)


def all_active(session: ControlSession, read: list[int], **options: Any) -> StopRun:
    del read  # the server says which they are
    return session.stopping(2, ALL_ACTIVE, **options)


def across(session: ControlSession, read: list[int], **options: Any) -> StopRun:
    read += chain(*TARGETS.values())
    return session.stopping_across(TARGETS, **options)


class Scenario(NamedTuple):
    """A world and what is asked of it; every `stride`-th step is tried, or a multiple of it."""

    world: World
    begin: Callable[..., StopRun]
    script: Script = no_faults
    options: dict[str, Any] = {}  # noqa: RUF012 - nobody changes it
    stride: int = 1


PATIENT: Final = {"wait_pending": 50, "wait_stopped": 50}
UNCOLLECTED: Final = {"collect": False}
SCENARIOS: Final = {
    "calm": Scenario(calm, listed),
    "faults": Scenario(lacking, listed, trouble, stride=3),
    "faults, streamed": Scenario(lacking, streamed, trouble, {"wait_stopped": 0.01}, 6),
    "uncollected": Scenario(calm, streamed, options=UNCOLLECTED, stride=2),
    "faults, uncollected": Scenario(lacking, streamed, trouble, UNCOLLECTED, 7),
    "patient, uncollected": Scenario(lively, streamed, options=PATIENT | UNCOLLECTED, stride=7),
    "patient": Scenario(lively, listed, options=PATIENT, stride=5),
    "all active": Scenario(lively, all_active, options=PATIENT, stride=7),
    "projects": Scenario(three_projects, across, stride=2),
    "faults, projects": Scenario(two_projects, across, trouble, PATIENT, stride=7),
}


# --- a run that is ended before any step ----------------------------------------------------------


class Moment(NamedTuple):
    """What a run told just before it was ended, and what had reached the server by then."""

    report: StopReport
    counts: dict[StopResult, int]
    taken: int
    requests: int
    stopped: set[int]


class Play:
    """One run against a simulator, ended in some way before its k-th step."""

    def __init__(self, scenario: Scenario, ending: str) -> None:
        self.scenario = scenario
        self.ending = ending
        self.collect = scenario.options.get("collect", True)
        self.read: list[int] = []
        self.taken: list[StopOutcome] = []
        self.moment: Moment | None = None
        self.oracle = Oracle(
            wait_pending="wait_pending" in scenario.options,
            wait_stopped="wait_stopped" in scenario.options,
            attempts=6,
        )
        if scenario.begin is not all_active:
            for task_id in IDS if scenario.begin is not across else chain(*TARGETS.values()):
                self.oracle.ask(project_of(task_id), [task_id])

    async def play(self, before: int) -> bool:
        """Play it, and return whether the end came before the run's own."""
        steps = Steps(before)
        async with simulator() as api:
            self.scenario.world(api)
            Witness(api, self.scenario.script, self.oracle)
            await self._play(api, steps)
            await disconnected(api)
            assert_nothing_left()
            told = await self._told()
            self.oracle.check_truth(api.tasks, told, sound=True)
            for outcome in told.values():
                about = api.tasks.get(outcome.restarted_as or outcome.task_id)
                if outcome.result in (StopResult.NOT_RUNNING, StopResult.NOT_FOUND):
                    assert about is None or not about.stop_requests, outcome
                if not steps.struck:
                    self.oracle.check_outcome(outcome)
        if self.moment is not None:
            self._assert_agrees(self.moment, told)
        return steps.struck

    async def _play(self, api: ControlApiSimulator, steps: Steps) -> None:
        closing = asyncio.Event()
        options = dict(self.scenario.options)
        if self.ending == "deadline":
            options["timeout"] = 100
        async with small(api) as session:
            self.run = self.scenario.begin(session, self.read, **options)
            consumer = asyncio.create_task(self._consume())
            consumer.add_done_callback(lambda _: closing.set())
            steps.arm(consumer, partial(self._strike, api, consumer, closing))
            await closing.wait()
            if self.ending != "close":
                assert_nothing_left()
                self._assert_sends_no_more(api)
                if self.scenario.script is no_faults:
                    await assert_every_slot_is_free(session, api)
        await asyncio.wait([consumer])
        if self.ending == "close":
            self._assert_sends_no_more(api)
        self._assert_comes_out(consumer, struck=steps.struck)

    async def _consume(self) -> None:
        async with asyncio.timeout(None) as self.scope, self.run:
            async for outcome in self.run:
                self.taken.append(outcome)

    def _strike(
        self, api: ControlApiSimulator, consumer: asyncio.Task[None], closing: asyncio.Event
    ) -> None:
        stopped = {n for n, task in api.tasks.items() if task.stop_requests}
        taken, requests = len(self.taken), api.counters.requests
        self.moment = Moment(self.run.report, dict(self.run.counts), taken, requests, stopped)
        strikes: dict[str, Callable[[], object]] = {
            "cancel": consumer.cancel,
            "timeout": lambda: self.scope.reschedule(asyncio.get_running_loop().time()),
            "close": closing.set,
            "deadline": lambda: skip(101),
        }
        strikes[self.ending]()

    def _assert_sends_no_more(self, api: ControlApiSimulator) -> None:
        if self.moment is not None:  # one a slot may have been under way
            assert api.counters.requests <= self.moment.requests + AT_ONCE

    def _assert_comes_out(self, consumer: asyncio.Task[None], *, struck: bool) -> None:
        """An ending comes out as what it is, or was too late to matter."""
        if consumer.cancelled():
            assert self.ending == "cancel"
            return
        error = consumer.exception()
        unanswered = sum(self.run.counts[result] for result in UNANSWERED)
        missing = self.scenario.world is two_projects
        if error is None:
            assert self.ending != "cancel" or not struck
            assert not unanswered
            assert not missing
        elif isinstance(error, StopIncompleteError):
            assert error.report == self.run.report
            if missing and [type(cause) for cause in error.exceptions] == [ProjectNotFoundError]:
                assert error.report.ids(*UNANSWERED) == list(TARGETS[4])
                return
            assert self.ending in ("close", "deadline")
            # All that was read of a stream may have its answer.
            assert unanswered or self.scenario.begin in (streamed, all_active)
            wanted = TimeoutError if self.ending == "deadline" else RequestError
            assert any(isinstance(cause, wanted) for cause in error.exceptions)
        elif isinstance(error, RuntimeError):
            assert self.ending == "close", error  # before it had begun
            assert not self.run.report
        else:
            assert isinstance(error, TimeoutError), error
            assert self.ending == "timeout"

    async def _told(self) -> dict[int, StopOutcome]:
        """Return all outcomes; each comes once, and the report and its counts agree with them."""
        outcomes = list(self.taken)
        with suppress(StopIncompleteError, RuntimeError):  # the latter if it had not begun
            async for outcome in self.run:  # what its consumer has not taken may still be taken
                outcomes.append(outcome)  # noqa: PERF401 - what came before an error counts
        told = {outcome.task_id: outcome for outcome in outcomes}
        assert len(told) == len(outcomes)
        report, counts = self.run.report, self.run.counts
        assert +Counter(counts) == Counter(outcome.result for outcome in outcomes)
        if any(counts.values()) and self.scenario.begin is not all_active:
            assert sorted(told) == self.read
        assert {n: told[n] for n in report} == dict(report)
        if self.collect:
            assert report.counts == counts
            assert list(report) == (sorted(told) if self.read else list(report))
            return told
        passing = set(UNANSWERED) | {STOP_SENT, StopResult.NOT_RUNNING}
        assert {outcome.result for outcome in report.values()} <= passing
        taken = {one.task_id for one in self.taken[: self.moment.taken if self.moment else None]}
        assert taken.isdisjoint(report)
        return told

    def _assert_agrees(self, moment: Moment, told: dict[int, StopOutcome]) -> None:
        """What was told under way was true then, and what was final has not changed since."""
        if self.collect:
            assert moment.counts == moment.report.counts
            for outcome in self.taken[: moment.taken]:
                assert moment.report[outcome.task_id] == outcome
        for task_id, outcome in moment.report.items():
            about = outcome.restarted_as or task_id
            if outcome.result is STOP_SENT:
                assert {task_id, about} & moment.stopped, outcome
            elif outcome.result not in (UNCONFIRMED, StopResult.STILL_RUNNING):
                assert about not in moment.stopped, outcome
            if outcome.result is StopResult.NOT_FOUND:
                assert told[task_id] == outcome


async def assert_every_slot_is_free(session: ControlSession, api: ControlApiSimulator) -> None:
    """Check that a session which was never slowed down sends as many requests as it may."""
    api.fault_when = None
    params = {"project_id": 2, "task_ids": min(api.tasks)}
    with api.hold() as gate:
        calls = [asyncio.create_task(session.call(STATUS, params)) for _ in range(AT_ONCE)]
        await api.wait_until(lambda: gate.held == AT_ONCE)
    await asyncio.gather(*calls)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
@pytest.mark.parametrize(
    ("ending", "first", "stride"),
    # Time limits begin in the consumer's first step.
    [("cancel", 0, 2), ("timeout", 1, 9), ("close", 0, 9), ("deadline", 1, 9)],
)
def test_a_run_may_end_before_any_step(
    ending: str, first: int, stride: int, scenario: Scenario
) -> None:
    try_before_any_step(
        lambda before: Play(scenario, ending).play(before), stride * scenario.stride, first
    )


@pytest.mark.parametrize(("world", "script"), [(calm, no_faults), (lacking, trouble)])
@pytest.mark.parametrize("more", [0, 20])
def test_whoever_holds_the_session_may_be_cancelled_before_any_step_and_again_and_again(
    world: World, script: Script, more: int
) -> None:
    async def work(api: ControlApiSimulator) -> None:
        async with small(api) as session:
            await session.stop_running(2, IDS)
            await session.task_status(2, IDS)
            await session.call(STATUS, {"project_id": 2, "task_ids": 1})

    async def play(before: int) -> bool:
        steps = Steps(before)
        async with simulator() as api:
            world(api)
            api.fault_when = script
            task = asyncio.create_task(work(api))

            def strike(more: int) -> None:
                task.cancel()
                if more:  # while the session closes, too
                    asyncio.get_running_loop().call_soon(strike, more - 1)

            steps.arm(task, partial(strike, more))
            await asyncio.wait([task])
            assert_nothing_left()
            await disconnected(api)
        assert task.cancelled() is steps.struck
        assert steps.struck or task.result() is None
        return steps.struck

    try_before_any_step(play, 5)


# --- single stops that share requests -------------------------------------------------------------

WANTED: Final = [*chain(*TARGETS.values()), TARGETS[2][0]]
"""Tasks, one a caller; the first is wanted by two."""
VICTIMS: Final = {
    "one is cancelled": range(2, 3),
    "one of two is cancelled": range(1),
    "all are cancelled": range(len(WANTED)),
    "close": range(0),
}


class Gathering:
    """Many callers of `stop`, some or all ended in some way before the k-th step."""

    def __init__(self, world: World, script: Script, ending: str) -> None:
        self.world, self.script, self.ending = world, script, ending
        self.oracle = Oracle(attempts=6)
        self.begun: set[int] = set()
        self.waiting: set[int] = set()
        self.unasked: set[int] = set()
        self.requests = 0

    async def play(self, before: int) -> bool:
        """Play it, and return whether the end came before all were answered."""
        steps, closing = Steps(before), asyncio.Event()
        async with simulator() as api:
            self.world(api)
            api.add_task(29)
            for task_id in {29, *WANTED}:
                self.oracle.ask(project_of(task_id), [task_id])
            Witness(api, self.script, self.oracle)
            async with small(api) as session:
                callers = [asyncio.create_task(self._call(session, n)) for n in range(len(WANTED))]
                everyone = asyncio.create_task(asyncio.wait(callers))
                everyone.add_done_callback(lambda _: closing.set())
                steps.arm(everyone, partial(self._strike, api, callers, closing))
                await closing.wait()
                if self.ending != "close":  # the session goes on as if nothing had been
                    assert (await session.stop(2, 29)).result is STOP_SENT
                    if self.script is no_faults:
                        await assert_every_slot_is_free(session, api)
            await everyone
            assert_nothing_left()
            await disconnected(api)
            if self.ending == "close" and steps.struck:
                assert api.counters.requests <= self.requests + AT_ONCE
            for number, caller in enumerate(callers):
                self._assert_fate(number, caller, api)
        assert steps.struck or not any(caller.cancelled() for caller in callers)
        return steps.struck

    def _strike(
        self,
        api: ControlApiSimulator,
        callers: list[asyncio.Task[StopOutcome]],
        closing: asyncio.Event,
    ) -> None:
        self.unasked = set(WANTED).difference(*(record.ids for record in api.log))
        self.waiting, self.requests = set(self.begun), api.counters.requests
        for number in VICTIMS[self.ending]:
            callers[number].cancel()
        if self.ending == "close":
            closing.set()

    async def _call(self, session: ControlSession, number: int) -> StopOutcome:
        # Some come while others are served; those who want the same task come together.
        task_id = WANTED[number]
        await turns(task_id % 5 * 4)
        self.begun.add(number)
        return await session.stop(project_of(task_id), task_id)

    def _assert_fate(
        self, number: int, caller: asyncio.Task[StopOutcome], api: ControlApiSimulator
    ) -> None:
        task_id = WANTED[number]
        project_id = project_of(task_id)
        if caller.cancelled():
            assert number in VICTIMS[self.ending]
            if WANTED.count(task_id) == 1 and task_id in self.unasked and task_id in api.tasks:
                assert not api.tasks[task_id].stop_requests  # it was left alone
            return
        error = caller.exception()
        if isinstance(error, RuntimeError):
            assert self.ending == "close"
            assert number not in self.waiting
            return
        if error is None:
            outcome = caller.result()
            self.oracle.check_outcome(outcome)
        else:
            assert isinstance(error, StopIncompleteError), error
            [outcome] = error.report.values()
            assert outcome.result in UNANSWERED
            # Of the reasons each caller is told those of the own task.
            kinds = {type(cause) for cause in error.exceptions}
            assert self.ending == "close" or kinds == {ProjectNotFoundError}
            assert ProjectNotFoundError not in kinds or project_id == 4
        assert (outcome.task_id, outcome.project_id) == (task_id, project_id)
        self.oracle.check_truth(api.tasks, {task_id: outcome}, sound=True)


@pytest.mark.parametrize(
    ("world", "script", "stride"), [(three_projects, no_faults, 11), (two_projects, trouble, 29)]
)
@pytest.mark.parametrize("ending", VICTIMS)
def test_gathered_callers_may_end_before_any_step(
    ending: str, world: World, script: Script, stride: int
) -> None:
    try_before_any_step(lambda before: Gathering(world, script, ending).play(before), stride)


# --- in the middle of any wait --------------------------------------------------------------------


NOTHING_SENT: Final = {NOT_SENT: 16}
HALF: Final = {UNCONFIRMED: 8, NOT_SENT: 8}
WAITS: Final[dict[str, tuple[Fault | None, str, dict[StopResult, int], dict[str, Any]]]] = {
    # What happens to every request of a method, what sixteen tasks end as if the run is ended ten
    # seconds later, and its options. With two slots: one request in each, the others wait for them.
    "an answer to a check": (Hang(), STATUS, NOTHING_SENT, {}),
    "an answer to a stop": (Hang(effect=True), STOP, HALF, {}),
    "the rest of a check": (SlowBody(interval=1), STATUS, NOTHING_SENT, {}),
    "the rest of a stop": (SlowBody(interval=1), STOP, HALF, {}),
    "a check's repeat": (Drop(), STATUS, NOTHING_SENT, {}),
    "a stop's repeat": (HttpStatus(429), STOP, NOTHING_SENT, {}),
    "a lost stop's check": (Drop(effect=True), STOP, {UNCONFIRMED: 16}, {}),
    "the session's pause": (HttpStatus(503), STATUS, NOTHING_SENT, {}),
    "pending tasks": (None, STATUS, {StopResult.NOT_RUNNING: 16}, {"wait_pending": 1000}),
    "stopped tasks": (None, STATUS, {StopResult.STILL_RUNNING: 16}, {"wait_stopped": 1000}),
}


@pytest.mark.parametrize("ending", ["cancel", "timeout", "deadline", "close"])
@pytest.mark.parametrize("wait", WAITS)
@simulated(stop_delay=1e6)
async def test_a_run_may_end_in_the_middle_of_any_wait(
    api: ControlApiSimulator, wait: str, ending: str
) -> None:
    fault, method, results, options = WAITS[wait]
    api.add_tasks(IDS, "Scheduled" if wait == "pending tasks" else "Running")
    if fault is not None:
        api.fault(fault, method=method)
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + 10
    async with small(api, 2, LATE) as session:
        stopping = session.stopping(2, IDS, timeout=10 if ending == "deadline" else None, **options)

        async def consume() -> None:
            async with asyncio.timeout_at(ends_at if ending == "timeout" else None), stopping:
                await stopping.wait()

        consumer = asyncio.create_task(consume())
        if ending == "cancel":
            loop.call_at(ends_at, consumer.cancel)
        elif ending == "close":
            await asyncio.sleep(10)
            await session.aclose()
        await asyncio.wait([consumer])
        assert 0 <= loop.time() - ends_at < 0.5
        assert_nothing_left()
        assert +Counter(stopping.counts) == results
        assert list(stopping.report) == IDS
        assert stopping.report.counts == stopping.counts
        requests = api.counters.requests
        await asyncio.sleep(2000)
        assert api.counters.requests == requests
    if ending == "cancel":
        assert consumer.cancelled()
    elif ending == "timeout":
        assert isinstance(consumer.exception(), TimeoutError)
    else:
        raises = not results.keys().isdisjoint(UNANSWERED)
        assert isinstance(consumer.exception(), StopIncompleteError if raises else type(None))


@simulated()
async def test_a_request_may_end_while_it_is_written(api: ControlApiSimulator) -> None:
    ids = range(2**62, 2**62 + 400_000)
    left = asyncio.Event()

    async def never_read(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await left.wait()
        writer.close()

    server = await asyncio.start_server(never_read, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    batching = Batching(len(ids), 1)
    async with ControlSession(url, 1, batching=batching, request_timeout=1000) as session:
        stopping = session.stopping(2, ids)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10), stopping:
                await stopping.wait()
        left.set()
        await turns(3)
        assert_nothing_left()
    assert stopping.counts[NOT_SENT] == len(stopping.report) == len(ids)
    assert not api.counters.requests
    server.close()
    await server.wait_closed()


# --- all at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "result"), [(STATUS, NOT_SENT), (STOP, UNCONFIRMED)])
@simulated()
async def test_a_requests_time_limit_that_strikes_together_with_the_deadline(
    api: ControlApiSimulator, method: str, result: StopResult
) -> None:
    api.add_tasks(range(1, 11))
    gate = api.hold(method)
    async with (
        open_session(api, retry=SOON, request_timeout=1000) as session,
        session.stopping(2, range(1, 11), timeout=2000) as stopping,
    ):
        await api.wait_until(lambda: gate.held == 1)
        skip(3000)  # both are over now, the request's first
        with pytest.raises(StopIncompleteError) as caught:
            await stopping.wait()
    assert stopping.counts[result] == len(stopping.report.ids(result)) == 10
    assert any(isinstance(cause, TimeoutError) for cause in caught.value.exceptions)


# --- Ctrl-C ---------------------------------------------------------------------------------------

PROGRAM: Final = """
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
@pytest.mark.parametrize(("method", "words"), [(STATUS, b"0 40"), (STOP, b"16 24")])
async def test_ctrl_c_leaves_nothing_to_complain_of(
    api: ControlApiSimulator, tmp_path: Path, method: str, words: bytes
) -> None:
    api.add_tasks(range(1, 41))
    gate = api.hold(method)
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", str(program), api.url),
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
    await disconnected(api)
