"""A run may be ended at any await: nothing is left behind, nothing known is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import (
    Batching,
    ControlSession,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopResult,
    bulk,
)
from ctrlapi_async.simulator import ControlApiSimulator, CutBody, Drop, HttpStatus

if TYPE_CHECKING:
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


def holds(
    run: StopRun, api: ControlApiSimulator, ids: list[int], seen: list[StopOutcome]
) -> StopReport:
    """Check a run's report against the truth, and against what the consumer was told."""
    report = run.report
    assert list(report) == ids
    for task_id, outcome in report.items():
        stopped = task_id in api.tasks and api.tasks[task_id].stopped
        if outcome.result is StopResult.STOP_SENT:
            assert stopped, outcome
        elif outcome.result in NOT_STOPPED:
            assert not stopped, outcome
    # A stop that needs not be repeated is not.
    assert {task.stop_requests for task in api.tasks.values()} <= {0, 1}
    assert dict(run.counts) == dict(report.counts)
    assert len({outcome.task_id for outcome in seen}) == len(seen)
    assert [report[outcome.task_id] for outcome in seen] == seen
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


def calm(api: ControlApiSimulator) -> None:
    api.mixed_tasks(16, running=0.7)


def stormy(api: ControlApiSimulator) -> None:
    """Retries, lost stops, settling and halving."""
    api.mixed_tasks(15, running=0.8)
    api.denied_names = "all"  # for task 16, which is not there
    api.latency = 0.0005
    api.fault(HttpStatus(503), method="TaskStatus", number=1)
    api.fault(Drop(), method="TaskStatus", number=3)
    api.fault(Drop(effect=True), method="TaskStop", number=1)
    api.fault(CutBody(), method="TaskStop", number=2)
    api.fault(HttpStatus(413), method="TaskStop", number=3)


async def source(read: list[int]) -> AsyncIterator[int]:
    for task_id in IDS:
        read.append(task_id)
        yield task_id
        if task_id % 5 == 0:
            await asyncio.sleep(0)


class Scene:
    """One run against a simulator, ended in some way before its k-th step."""

    def __init__(self, k: int, ending: str, complaints: list[str]) -> None:
        self.steps = Steps(k)
        self.ending = ending
        self.seen: list[StopOutcome] = []
        self._complaints = complaints
        self._late = 0.0

    async def play(self, prepare: Callable[[ControlApiSimulator], None], **options: Any) -> bool:
        """Play it; tell whether the end came before the run's own."""
        loop = asyncio.get_running_loop()
        clock = loop.time
        loop.time = lambda: clock() + self._late  # type: ignore[method-assign]
        loop.set_exception_handler(lambda _, context: self._complaints.append(str(context)))
        loop.set_task_factory(self.steps.factory)
        try:
            async with ControlApiSimulator() as api:
                prepare(api)
                read, run = await self._run(api, **options)
                async with asyncio.timeout(30):
                    await api.wait_until(lambda: api.counters.connections_open == 0)
        finally:
            loop.set_task_factory(None)
            loop.time = clock  # type: ignore[method-assign]
        holds(run, api, read, self.seen)
        return self.steps.struck

    async def _run(
        self, api: ControlApiSimulator, *, stream: bool = False, **options: Any
    ) -> tuple[list[int], StopRun]:
        read = [] if stream else IDS
        closing = asyncio.Event()
        async with ControlSession(
            api.url,
            1,
            batching=Batching(chunk_size=4, max_concurrency=3),
            retry=SOON,
            request_timeout=10_000,
        ) as session:
            if self.ending == "deadline":
                options["timeout"] = 100
            run = session.stopping(2, source(read) if stream else IDS, **options)
            consumer = asyncio.create_task(self._consume(run))
            consumer.add_done_callback(lambda _: closing.set())
            self._arm(consumer, closing)
            await closing.wait()
            if self.ending != "close":
                await asyncio.wait([consumer])
                assert tasks_left() == []
        await asyncio.wait([consumer])
        assert tasks_left() == []
        self._check(consumer, run)
        return read, run

    async def _consume(self, run: StopRun) -> None:
        async with asyncio.timeout(None) as self._scope:
            async with run:
                async for outcome in run:
                    self.seen.append(outcome)

    def _arm(self, consumer: asyncio.Task[None], closing: asyncio.Event) -> None:
        def late() -> None:
            self._late = 101.0

        def out_of_time() -> None:
            # Before its first step the consumer has no scope yet.
            if (scope := getattr(self, "_scope", None)) is not None:
                scope.reschedule(asyncio.get_running_loop().time())

        strikes: dict[str, Callable[[], object]] = {
            "cancel": consumer.cancel,
            "timeout": out_of_time,
            "close": closing.set,
            "deadline": late,
        }
        self.steps.arm(consumer, strikes[self.ending])

    def _check(self, consumer: asyncio.Task[None], run: StopRun) -> None:
        """An ending comes out as what it is, or was too late to matter."""
        if consumer.cancelled():
            assert self.ending == "cancel"
            return
        error = consumer.exception()
        if error is None:
            assert self.ending != "cancel" or not self.steps.struck
            assert run.report.complete
        elif isinstance(error, StopIncompleteError):
            assert self.ending in ("close", "deadline")
            # Of a stream that was not read to its end, all that was read may have its answer.
            assert not error.report.complete or len(error.report) < len(IDS)
            assert error.report == run.report
            wanted = TimeoutError if self.ending == "deadline" else RequestError
            assert any(isinstance(cause, wanted) for cause in error.exceptions)
        elif isinstance(error, RuntimeError):
            assert self.ending == "close", error  # before it had begun
        else:
            assert isinstance(error, TimeoutError), error
            assert self.ending == "timeout"


SCENARIOS: dict[str, tuple[Callable[[ControlApiSimulator], None], dict[str, Any]]] = {
    "calm": (calm, {}),
    "stormy": (stormy, {}),
    "stormy stream": (stormy, {"stream": True, "confirm": 0.01}),
    "uncollected stream": (calm, {"stream": True}),
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(
    ("ending", "stride"), [("cancel", 1), ("timeout", 3), ("close", 3), ("deadline", 3)]
)
async def test_a_run_may_end_before_any_step(
    ending: str, stride: int, scenario: str, complaints: list[str]
) -> None:
    prepare, options = SCENARIOS[scenario]
    k = 0
    while await Scene(k, ending, complaints).play(prepare, **options):
        k += stride
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
        holds(run, api, list(range(1, 21)), seen)
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
        holds(run, api, list(range(1, 21)), seen)
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
