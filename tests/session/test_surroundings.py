"""Whatever surrounds a session: loops, other people's cancellations, hooks, clients and sources."""

from __future__ import annotations

import asyncio
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from ctrlapi_async import (
    ALL_ACTIVE,
    Batching,
    ControlSession,
    RequestError,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus
from tests.support.clock import JumpingLoop, eager, run, skip
from tests.support.simulated import (
    STATUS,
    STOP,
    arriving,
    costs,
    disconnected,
    ended,
    open_session,
    outcomes_of,
    simulated,
    stopped,
    turns,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

SENT = StopResult.STOP_SENT
IDS = list(range(1, 41))


async def use_everything(api: ControlApiSimulator, session: ControlSession) -> None:
    """Call every method once, and check what comes of it."""
    api.add_tasks(range(1, 201))
    assert (await session.stop_running(2, range(1, 51))).ids(SENT) == list(range(1, 51))
    streamed = await session.stop_running(2, arriving(range(51, 101)))
    assert streamed.ids(SENT) == list(range(51, 101))
    async with session.stopping(2, range(101, 121), wait_stopped=1) as stopping:
        assert len(await outcomes_of(stopping)) == 20
    singles = await asyncio.gather(*(session.stop(2, n) for n in range(121, 141)))
    assert {outcome.result for outcome in singles} == {SENT}
    assert len((await session.stop_running_across({2: range(141, 161)})).ids(SENT)) == 20
    assert len((await session.task_stop(2, range(161, 181))).ids(SENT)) == 20
    assert (await session.stop_running(2, ALL_ACTIVE)).ids(SENT) == list(range(181, 201))
    assert len((await session.task_status(2, range(1, 201))).ids("Canceled")) == 200
    rows = await session.call(STATUS, {"project_id": 2, "task_ids": 1})
    assert rows[0]["status"] == "Canceled"


# --- loops ----------------------------------------------------------------------------------------


def make_uvloop() -> asyncio.AbstractEventLoop:
    return pytest.importorskip("uvloop").new_event_loop()  # type: ignore[no-any-return]


def make_eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(eager)
    return loop


def make_really_eager_loop() -> asyncio.AbstractEventLoop:
    if sys.version_info < (3, 12):
        pytest.skip("asyncio.eager_task_factory came with Python 3.12")
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


@pytest.mark.parametrize(
    ("make_loop", "debug"),
    [
        (make_eager_loop, False),
        (make_eager_loop, True),
        (make_really_eager_loop, False),
        (make_uvloop, False),
        (asyncio.SelectorEventLoop, True),
    ],
    ids=["eager", "eager, debug", "asyncio's eager", "uvloop", "debug"],
)
def test_session_works_on_any_loop(
    make_loop: Callable[[], asyncio.AbstractEventLoop], *, debug: bool
) -> None:
    async def main() -> None:
        async with ControlApiSimulator() as api:
            async with open_session(api, 7, 3) as session, asyncio.timeout(30):
                await use_everything(api, session)
            await disconnected(api)

    make_loop().close()  # skips the test where there is no such loop
    run(main(), make_loop, debug=debug)


@pytest.mark.parametrize("at_once", [1, 3])
def test_eager_tasks_keep_the_concurrency_and_the_number_of_requests(at_once: int) -> None:
    async def main() -> None:
        async with ControlApiSimulator() as api:
            api.add_tasks(range(60))
            async with open_session(api, 10, at_once) as session, asyncio.timeout(30):
                report = await session.stop_running(2, range(60))
        assert report.ids(SENT) == list(range(60))
        assert costs(api) == (6, 6)
        assert api.counters.peak <= at_once

    run(main(), make_eager_loop)


# --- cancellations that nobody asked the caller for -----------------------------------------------


def strangers_tasks() -> set[asyncio.Task[Any]]:
    """Return the tasks of the package."""
    return {
        task
        for task in asyncio.all_tasks()
        if "ctrlapi_async" in str(getattr(task.get_coro(), "cr_code", None))
        and "simulator" not in str(getattr(task.get_coro(), "cr_code", None))
    }


@pytest.mark.parametrize("moment", range(0, 40, 3))
@pytest.mark.parametrize("method", [STATUS, STOP])
@simulated()
async def test_tasks_of_ours_that_somebody_cancels_lose_nothing(
    api: ControlApiSimulator, method: str, moment: int
) -> None:
    api.add_tasks(IDS)
    async with open_session(api, 5, 3) as session:
        gate = api.hold(method)
        stopping = asyncio.create_task(session.stop_running(2, IDS))
        await api.wait_until(lambda: gate.held == 3)
        for task in strangers_tasks() - {stopping}:
            task.cancel()
        gate.release()
        await turns(moment)
        for task in strangers_tasks() - {stopping}:
            task.cancel()
        report, error = await ended(stopping)
    assert error is None
    assert report.ids(SENT) == IDS
    assert {task.stop_requests for task in api.tasks.values()} == {1}


@pytest.mark.parametrize("moment", range(12))
@simulated()
async def test_tasks_cancelled_before_their_first_step_are_made_again(
    api: ControlApiSimulator, moment: int
) -> None:
    api.add_tasks(IDS)
    async with open_session(api, 5, 3) as session, asyncio.timeout(100):
        work: list[asyncio.Task[Any]] = [
            asyncio.create_task(session.stop_running(2, IDS[:20])),
            asyncio.create_task(session.stop_running(2, arriving(IDS[20:]))),
        ]
        work += [asyncio.create_task(session.stop(2, n)) for n in IDS[:3]]
        await turns(moment)
        for task in strangers_tasks() - set(work):
            task.cancel()
        results: list[Any] = await asyncio.gather(*work, return_exceptions=True)
    assert {*results[0]} == {*IDS[:20]}
    assert results[0].complete
    streamed = results[1]
    if isinstance(streamed, StopIncompleteError):
        assert "cancelled by other code" in str(streamed)
        streamed = streamed.report
    assert streamed.ids(SENT) == list(streamed)
    assert not any(isinstance(result, asyncio.CancelledError) for result in results)
    assert {task.stop_requests for task in api.tasks.values()} <= {0, 1}


@simulated()
async def test_callers_of_a_batch_that_somebody_cancels_get_an_error_that_tells(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        gate = api.hold(STOP)
        callers = [asyncio.create_task(session.stop(2, n)) for n in (1, 2)]
        await api.wait_until(lambda: gate.held == 1)
        for task in strangers_tasks() - set(callers):
            if "_serve" in repr(task):
                task.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
    for task_id, error in zip([1, 2], results, strict=True):
        assert isinstance(error, StopIncompleteError)
        assert error.report[task_id].result is StopResult.UNCONFIRMED


# --- the caller's client --------------------------------------------------------------------------

RAISED = [asyncio.CancelledError(), ValueError("mine"), OSError("mine"), KeyError("mine")]


@pytest.mark.parametrize("moment", ["start", "headers_sent", "chunk_sent", "end"])
@pytest.mark.parametrize("raised", RAISED, ids=lambda raised: type(raised).__name__)
@pytest.mark.parametrize("strikes", [(3,), (2, 3, 4, 5), range(1, 1000)], ids=len)
@simulated()
async def test_trace_hooks_may_raise_anything(
    api: ControlApiSimulator, raised: BaseException, moment: str, strikes: range
) -> None:
    api.add_tasks(IDS)
    number = 0

    async def strike(*_: object) -> None:
        nonlocal number
        number += 1
        if number in strikes:
            raise raised

    trace = aiohttp.TraceConfig()
    getattr(trace, f"on_request_{moment}").append(strike)
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as client,
        open_session(api, 5, 3, client=client) as session,
    ):
        report, error = await ended(session.stop_running(2, IDS))
    assert list(report) == IDS
    if len(strikes) < 10:
        assert error is None
        assert report.ids(SENT) == IDS
    else:
        assert error is not None
        assert {type(cause) for cause in error.exceptions} == {RequestError}
    for task_id, outcome in report.items():
        assert api.tasks[task_id].stop_requests == (outcome.result is SENT)


class BrokenConnector(aiohttp.TCPConnector):
    """A connector that raises something of its own, as those for SOCKS do."""

    broken = True

    async def connect(self, *args: Any, **more: Any) -> Any:
        if self.broken:
            raise ZeroDivisionError("no proxy")
        return await super().connect(*args, **more)


@simulated()
async def test_connectors_may_raise_anything(api: ControlApiSimulator) -> None:
    api.add_tasks(IDS)
    connector = BrokenConnector()
    async with (
        aiohttp.ClientSession(connector=connector) as client,
        open_session(api, 5, 3, client=client) as session,
    ):
        report, error = await ended(session.stop_running(2, IDS))
        assert report.ids(StopResult.NOT_SENT) == IDS
        assert "ZeroDivisionError: no proxy" in str(error)
        connector.broken = False
        assert (await session.stop_running(2, IDS)).ids(SENT) == IDS


@pytest.mark.parametrize("limits", [{"limit": 1}, {"limit": 5, "limit_per_host": 2}])
@simulated(latency=20.0)
async def test_connection_limits_of_the_callers_client_bound_the_session(
    api: ControlApiSimulator, limits: dict[str, Any]
) -> None:
    api.add_tasks(IDS)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(**limits)) as client,
        open_session(api, 5, client=client, request_timeout=30.0) as session,
    ):
        # Each request takes 20 s of its 30: none may spend them in the client's own queue.
        report = await session.stop_running(2, IDS)
    assert report.ids(SENT) == IDS
    assert report.stats.retries == 0
    assert api.counters.peak <= min(limits.values())


# --- who gives the ids ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, set, dict.fromkeys])
@pytest.mark.parametrize("many", [False, True])
@simulated()
async def test_collections_may_change_during_the_run(
    api: ControlApiSimulator, kind: Callable[[list[int]], Any], *, many: bool
) -> None:
    ids = list(range(20_000))
    api.add_tasks(ids)
    owned = kind(ids)
    given = owned.keys() if isinstance(owned, dict) else owned
    change = owned.remove if isinstance(owned, set) else owned.pop
    async with open_session(api) as session:
        stopping = asyncio.create_task(
            session.stop_running_across({2: given, 3: []}, dry_run=True)
            if many
            else session.stop_running(2, given, dry_run=True)
        )
        for task_id in range(5):
            await asyncio.sleep(0)
            change(task_id)
        assert list(await stopping) == ids


def slow_ids(seconds: float, *, count: int = 10**6) -> Iterator[int]:
    for task_id in range(count):
        skip(seconds)
        yield task_id


@pytest.mark.parametrize("seconds", [0.0001, 0.01, 0.15])
@simulated()
async def test_deadline_ends_the_reading_of_a_generator(
    api: ControlApiSimulator, seconds: float
) -> None:
    api.add_project(2)
    async with open_session(api) as session:
        began = api.now
        report, error = await ended(session.stop_running(2, slow_ids(seconds), timeout=0.2))
        assert api.now - began < 0.2 + max(0.05, 2 * seconds)
    assert error is not None
    assert isinstance(error.exceptions[0], TimeoutError)
    assert set(report.ids(StopResult.NOT_SENT)) == set(report)
    assert api.counters.requests == 0


@simulated()
async def test_a_slow_generator_lets_others_have_their_turn(api: ControlApiSimulator) -> None:
    api.add_tasks(range(100))
    seen = []

    async def other() -> None:
        while True:
            seen.append(api.now)
            await asyncio.sleep(0)

    watcher = asyncio.create_task(other())
    async with open_session(api) as session:
        await session.stop_running(2, slow_ids(0.001, count=100))
    watcher.cancel()
    await asyncio.wait([watcher])
    pauses = [later - sooner for sooner, later in pairwise(seen)]
    assert max(pauses) < 0.05


class StubbornSource:
    """A source of ids that swallows some cancellations."""

    def __init__(self, swallows: int) -> None:
        self.swallows = swallows
        self.release = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[int]:
        yield 1
        while True:
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.swallows -= 1
                if self.swallows < 0:
                    raise
            else:
                yield 2  # for nobody any more
                return


@pytest.mark.parametrize("swallows", [0, 1, 5])
@pytest.mark.parametrize("ending", ["deadline", "cancel", "close", "fatal"])
@simulated()
async def test_a_source_that_swallows_cancellations_holds_no_run(
    api: ControlApiSimulator, ending: str, swallows: int, caplog: pytest.LogCaptureFixture
) -> None:
    api.add_task(1)
    source = StubbornSource(swallows)
    timeout = 10.0 if ending == "deadline" else None
    if ending == "fatal":
        api.fault(HttpStatus(403))
    session = open_session(api)
    began = api.now
    run_ = asyncio.create_task(session.stop_running(2, aiter(source), timeout=timeout))
    await asyncio.sleep(5)
    if ending == "cancel":
        run_.cancel()
    elif ending == "close":
        await session.aclose()
    with pytest.raises((StopIncompleteError, asyncio.CancelledError)):
        await run_
    assert api.now - began < (12 if ending == "deadline" else 7)
    await session.aclose()
    gave_up = [record for record in caplog.records if "source" in record.getMessage()]
    assert len(gave_up) == (swallows > 3)
    source.release.set()  # a caller that mends its ways
    await turns(5)


async def closing_ids(close: Callable[[], Awaitable[object]]) -> AsyncIterator[int]:
    yield 1
    await close()
    yield 2


@pytest.mark.parametrize("own_task", [False, True])
@simulated()
async def test_a_source_may_close_its_own_session(
    api: ControlApiSimulator, *, own_task: bool
) -> None:
    api.add_tasks([1, 2])
    session = open_session(api)

    async def close() -> None:
        await (asyncio.create_task(session.aclose()) if own_task else session.aclose())

    async with asyncio.timeout(5):
        report, error = await ended(session.stop_running(2, closing_ids(close)))
        await session.aclose()
    assert error is not None
    assert "closed" in str(error)
    assert list(report) == [1]


@simulated()
async def test_a_hook_may_close_the_session(api: ControlApiSimulator) -> None:
    api.add_tasks(IDS)

    async def close(*_: object) -> None:
        await session.aclose()

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(close)
    async with aiohttp.ClientSession(trace_configs=[trace]) as client, asyncio.timeout(5):
        session = open_session(api, 5, 2, client=client)
        report, error = await ended(session.stop_running(2, IDS))
    assert error is not None
    assert list(report) == IDS
    assert stopped(api) == set()


def test_nothing_outlives_a_session_that_is_left_by_an_error() -> None:
    async def main() -> None:
        api = ControlApiSimulator(own_thread=False)
        async with api:
            api.add_tasks(IDS)
            api.hold()
            session = ControlSession(api.url, 1, batching=Batching(5, 3))
            left: list[asyncio.Task[Any]] = []

            async def leave() -> None:
                async with session:
                    left.append(asyncio.create_task(session.stop_running(2, IDS)))
                    await api.wait_for_requests(3)
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await leave()
            assert isinstance(left[0].exception(), StopIncompleteError)
            await disconnected(api)

    run(main(), JumpingLoop)
