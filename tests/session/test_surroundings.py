"""Whatever surrounds a session: loops, other people's cancellations, hooks, clients and sources."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from ctrlapi_async import (
    ALL_ACTIVE,
    ControlSession,
    RequestError,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus
from tests.support.clock import eager, run, skip
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
from tests.support.steps import watched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

SENT = StopResult.STOP_SENT
IDS = list(range(1, 41))


async def use_everything(api: ControlApiSimulator, session: ControlSession) -> None:
    """Call every method once, and check what comes of it."""
    api.add_tasks(range(1, 201))
    assert (await session.stop_running(2, range(1, 51))).ids(SENT) == list(range(1, 51))
    assert costs(api) == (8, 8)
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


def make_eager_loop(task_factory: Any = eager) -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(task_factory)
    return loop


def make_really_eager_loop() -> asyncio.AbstractEventLoop:
    if sys.version_info < (3, 12):
        pytest.skip("asyncio.eager_task_factory came with Python 3.12")
    return make_eager_loop(asyncio.eager_task_factory)


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
            assert api.counters.peak <= 3
            await disconnected(api)

    make_loop().close()  # skips the test where there is no such loop
    run(main(), make_loop, debug=debug)


# --- cancellations that nobody asked the caller for -----------------------------------------------


def cancel_tasks_of_ours(*but: asyncio.Task[Any], of: str = "") -> None:
    """Cancel the tasks of the package, as somebody may who cancels all tasks there are."""
    for task in asyncio.all_tasks().difference(but):
        code = str(getattr(task.get_coro(), "cr_code", None))
        if "ctrlapi_async" in code and "simulator" not in code and of in repr(task):
            task.cancel()


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
        cancel_tasks_of_ours(stopping)
        gate.release()
        await turns(moment)
        cancel_tasks_of_ours(stopping)
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
        listed = asyncio.create_task(ended(session.stop_running(2, IDS[:20])))
        streamed = asyncio.create_task(ended(session.stop_running(2, arriving(IDS[20:]))))
        singles = [asyncio.create_task(session.stop(2, n)) for n in IDS[:3]]
        await turns(moment)
        cancel_tasks_of_ours(listed, streamed, *singles)
        report, error = await listed
        assert report.complete
        assert list(report) == IDS[:20]
        assert error is None
        report, error = await streamed
        assert error is None or "cancelled by other code" in str(error)
        assert report.ids(SENT) == list(report)
        results = await asyncio.gather(*singles, return_exceptions=True)
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
        cancel_tasks_of_ours(*callers, of="_serve")
        results = await asyncio.gather(*callers, return_exceptions=True)
    for task_id, error in zip([1, 2], results, strict=True):
        assert isinstance(error, StopIncompleteError)
        assert error.report[task_id].result is StopResult.UNCONFIRMED


# --- the caller's client --------------------------------------------------------------------------


class HookedConnector(aiohttp.TCPConnector):
    """A connector that may raise something of its own, as those for SOCKS do."""

    hook: Callable[..., Awaitable[None]]

    async def connect(self, *args: Any, **more: Any) -> Any:
        await self.hook()
        return await super().connect(*args, **more)


def hooked_client(moment: str, hook: Callable[..., Awaitable[None]]) -> aiohttp.ClientSession:
    trace, connector = aiohttp.TraceConfig(), HookedConnector()
    if moment == "connect":
        connector.hook = hook
        return aiohttp.ClientSession(connector=connector)
    getattr(trace, f"on_{moment}").append(hook)
    return aiohttp.ClientSession(trace_configs=[trace])


@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        ("connect", False),
        ("connection_create_start", False),
        ("request_start", False),
        ("request_headers_sent", False),
        ("request_chunk_sent", True),
        ("request_end", True),
    ],
)
@pytest.mark.parametrize(
    "raised",
    [error("mine") for error in (asyncio.CancelledError, ValueError, OSError)],
    ids=lambda raised: type(raised).__name__,
)
@pytest.mark.parametrize("strikes", [(3,), (2, 3, 4, 5), range(1, 1000)], ids=len)
@simulated()
async def test_trace_hooks_and_connectors_may_raise_anything(
    api: ControlApiSimulator, raised: BaseException, moment: str, sent: bool, strikes: range
) -> None:
    api.add_tasks(IDS)
    number = 0

    async def strike(*_: object) -> None:
        nonlocal number
        number += 1
        if number in strikes:
            raise raised

    async with hooked_client(moment, strike) as client:
        session = open_session(api, 5, 3, client=client)
        report, error = await ended(session.stop_running(2, IDS))
        assert list(report) == IDS
        for task_id, outcome in report.items():
            assert api.tasks[task_id].stop_requests == (outcome.result is SENT)
        if len(strikes) > 10:
            assert error is not None
            for cause in error.exceptions:
                assert isinstance(cause, RequestError)
                if not isinstance(raised, OSError):  # which aiohttp takes for one of the network
                    assert cause.sent is sent
                if moment != "request_chunk_sent":  # of that, aiohttp tells the consequence only
                    assert "mine" in str(cause)
                    assert isinstance(raised, OSError) or cause.__cause__ is raised
            strikes = range(0)
            report, error = await ended(session.stop_running(2, report.ids(StopResult.NOT_SENT)))
        assert error is None
        assert report.ids(SENT) == list(report)
        await session.aclose()


@pytest.mark.parametrize(
    ("at_once", "limits", "peak"),
    [
        (1, None, 1),
        (7, None, 7),
        (7, {}, 7),
        (7, {"limit": 0}, 7),
        (7, {"limit": 3}, 3),
        (7, {"limit": 0, "limit_per_host": 2}, 2),
        (7, {"limit": 3, "limit_per_host": 5}, 3),
        (7, {"limit": 5, "limit_per_host": 1}, 1),
    ],
)
@simulated(latency=20.0)
async def test_no_more_requests_at_once_than_the_callers_client_allows(
    api: ControlApiSimulator, at_once: int, limits: dict[str, Any] | None, peak: int
) -> None:
    api.add_tasks(IDS)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(**limits or {})) as client,
        open_session(
            api, 5, at_once, client=None if limits is None else client, request_timeout=30.0
        ) as session,
    ):
        # Each request takes 20 s of its 30: none may spend them in a queue.
        report = await session.stop_running(2, IDS)
    assert report.ids(SENT) == IDS
    assert report.stats.retries == 0
    assert api.counters.peak == peak


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
    assert report.ids(StopResult.NOT_SENT) == list(report)
    assert api.counters.requests == 0


@simulated()
async def test_a_slow_generator_lets_others_have_their_turn(api: ControlApiSimulator) -> None:
    api.add_tasks(range(100))
    async with open_session(api) as session, watched(lambda: api.now) as pauses:
        await session.stop_running(2, slow_ids(0.001, count=100))
    assert max(pauses) < 0.05


async def stubborn_ids(swallows: int, release: asyncio.Event) -> AsyncIterator[int]:
    """Yield an id, and wait for more; swallow some cancellations."""
    yield 1
    while True:
        try:
            await release.wait()
        except asyncio.CancelledError:
            swallows -= 1
            if swallows < 0:
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
    release = asyncio.Event()
    source = stubborn_ids(swallows, release)
    timeout = 10.0 if ending == "deadline" else None
    if ending == "fatal":
        api.fault(HttpStatus(403))
    session = open_session(api)
    began = api.now
    run_ = asyncio.create_task(session.stop_running(2, source, timeout=timeout))
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
    release.set()  # a caller that mends its ways
    await turns(5)


@pytest.mark.parametrize("closer", ["source", "task of the source", "hook"])
@simulated()
async def test_a_run_whose_source_or_hook_closes_the_session_ends(
    api: ControlApiSimulator, closer: str
) -> None:
    api.add_tasks(IDS)
    by_hook = closer == "hook"

    async def close(*_: object) -> None:
        await (asyncio.create_task(session.aclose()) if "task" in closer else session.aclose())

    async def closing_ids() -> AsyncIterator[int]:
        yield 1
        await close()
        yield 2

    async with hooked_client("request_end", close) as client, asyncio.timeout(5):
        session = open_session(api, 5, 2, client=client if by_hook else None)
        report, error = await ended(session.stop_running(2, IDS if by_hook else closing_ids()))
        await session.aclose()
    assert "closed" in str(error)
    assert list(report) == (IDS if by_hook else [1])
    assert stopped(api) == set()
