"""Ids from async sources: read as the run goes, no faster, and never held whole."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import tracemalloc
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ctrlapi_async import (
    AuthError,
    Batching,
    ControlSession,
    ProjectNotFoundError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopResult,
    StopRun,
)
from ctrlapi_async.simulator import STATUSES, Body, ControlApiSimulator, HttpStatus
from tests.support.clock import JumpingLoop, run
from tests.support.simulated import (
    AT_ONCE,
    STATUS,
    STOP,
    arriving,
    asked,
    ended,
    moments,
    open_session,
    simulated,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from ctrlapi_async.simulator import Fault

    Before = Callable[[int], Awaitable[object]] | None

SENT = StopResult.STOP_SENT
CHUNK = 10
AT_A_TIME = 2
BOUND = 5 * CHUNK * AT_A_TIME
"""Tasks that a run may hold at a time: in flight, waiting for a request, waiting to be taken."""
A_WHILE = 30.0
"""Seconds of a clock that jumps: whatever can happen has happened after them."""


class Source:
    """Yields ids; counts those that were read, and tells how it was left."""

    def __init__(self, ids: Iterable[Any], before: Before = None) -> None:
        self.read = 0
        self.closed = 0
        self.cancelled = False
        self._ids = ids
        self._before = before

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for number in self._ids:
                if self._before is not None:
                    await self._before(self.read)
                self.read += 1
                yield number
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        finally:
            self.closed += 1


async def stall(_: int) -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def stall_at(place: int) -> Callable[[int], Awaitable[object]]:
    async def before(read: int) -> None:
        if read == place:
            await stall(read)

    return before


STALLED = stall_at(3 * CHUNK)


async def turn(_: int) -> None:
    await asyncio.sleep(0)


async def trickle(read: int) -> None:
    """Some ids a second: never enough for a chunk before they are sent."""
    if read % (CHUNK - 1) == 0:
        await asyncio.sleep(1)


def open_small(api: ControlApiSimulator, **more: Any) -> ControlSession:
    return open_session(api, CHUNK, AT_A_TIME, **more)


async def take(stopping: StopRun, seen: list[StopOutcome]) -> None:
    """Add the outcomes of a run to a list until it ends or raises."""
    async for outcome in stopping:
        seen.append(outcome)  # noqa: PERF401 - what came before an error counts


# --- reading as it goes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("per_second", "latency"), [(5, 0.3), (50, 0.1), (5, 1.0), (1000, 0.05)])
@simulated()
async def test_a_stop_leaves_50_ms_after_its_first_task_is_known_to_run(
    api: ControlApiSimulator, per_second: float, latency: float
) -> None:
    """Whatever else is in flight: a steady source once kept the first stop for 100 seconds."""
    api.add_tasks(range(50))
    api.latency = latency
    stops = moments(api, STOP)
    async with open_session(api) as session:
        report = await session.stop_running(2, arriving(range(50), 1 / per_second))
    assert report.ids(SENT) == list(range(50))
    # The first id's check leaves after 50 ms, and its stop 50 ms after the answer.
    assert stops[0] <= 1 / per_second + 0.05 + latency + 0.05 + 0.03
    assert len(stops) > 3 or per_second == 1000


@pytest.mark.parametrize("status", ["Running", "Completed"])
@pytest.mark.parametrize("before", [None, turn, trickle])
@pytest.mark.parametrize("collect", [False, True])
@simulated()
async def test_a_slow_consumer_holds_the_reading_back(
    api: ControlApiSimulator, status: str, before: Before, *, collect: bool
) -> None:
    source = Source(itertools.count(), before)
    api.add_tasks(range(1000), status)
    async with open_small(api) as session, session.stopping(2, source, collect=collect) as stopping:
        await asyncio.sleep(A_WHILE)
        assert 0 < source.read <= BOUND
        for taken in (BOUND, 2 * BOUND):
            for _ in range(BOUND):
                await anext(stopping)
            await asyncio.sleep(A_WHILE)
            assert taken < source.read <= taken + BOUND, "it goes on as they are taken"


@pytest.mark.parametrize("fault", [HttpStatus(500, headers={"Retry-After": "50"}), HttpStatus(425)])
@simulated()
async def test_a_server_in_trouble_holds_the_reading_back(
    api: ControlApiSimulator, fault: Fault
) -> None:
    source = Source(itertools.count())
    retry = RetryPolicy(attempts=1000, wait_initial=1e9, wait_max=1e9, timeout=None)
    api.fault(fault)
    async with open_small(api, retry=retry) as session, session.stopping(2, source, collect=False):
        await asyncio.sleep(A_WHILE)
        assert 0 < source.read <= BOUND


@simulated()
async def test_who_only_waits_for_the_end_holds_nothing_back(api: ControlApiSimulator) -> None:
    source = Source(range(1000))
    api.add_tasks(range(1050))
    async with open_small(api) as session:
        report = await session.stop_running(2, source)
        assert list(report) == list(range(1000)) == report.ids(SENT)
        assert source.closed == 1
        states = await session.task_status(2, Source(range(1000, 1050)))
        assert states.ids("Running") == list(range(1000, 1050))


@simulated()
async def test_full_chunks_leave_at_once_and_others_after_a_while(
    api: ControlApiSimulator,
) -> None:
    async def before(read: int) -> None:
        if read in (CHUNK, 2 * CHUNK, 2 * CHUNK + 3):
            await api.wait_for_requests(-(-read // CHUNK), STOP)

    api.add_tasks(range(25))
    async with open_small(api) as session:
        report = await session.stop_running(2, Source(range(25), before))
    assert report.counts[SENT] == 25
    assert [len(ids) for ids in asked(api, STATUS)] == [CHUNK, CHUNK, 3, 2]


@pytest.mark.parametrize("chunk", [1, CHUNK, 10**6])
@simulated()
async def test_a_source_that_never_awaits_lets_others_have_their_turn(
    api: ControlApiSimulator, chunk: int
) -> None:
    source = Source(range(60_000))
    api.add_project(2)
    steps: list[int] = []

    async def watch() -> None:
        while True:
            before = source.read
            await asyncio.sleep(0)
            steps.append(source.read - before)

    watcher = asyncio.create_task(watch())
    async with open_session(api, chunk) as session, session.stopping(2, source, collect=False):
        await asyncio.sleep(0.1)
    watcher.cancel()
    await asyncio.wait([watcher])
    assert 0 < max(steps) <= 10_000


# --- what is kept ---------------------------------------------------------------------------------


@simulated()
async def test_a_run_that_does_not_collect_keeps_a_window_only(api: ControlApiSimulator) -> None:
    statuses = itertools.cycle(STATUSES)
    for task_id in range(2000):
        api.add_task(task_id, next(statuses))
    twice = Source(n for n in range(2000) for _ in range(2))
    seen: list[StopOutcome] = []
    async with open_small(api) as session:
        async with session.stopping(2, twice, collect=False) as stopping:
            async for outcome in stopping:
                seen.append(outcome)
                assert len(stopping.report) <= BOUND
        assert not stopping.report
    results = Counter(outcome.result for outcome in seen)
    assert stopping.counts == dict.fromkeys(StopResult, 0) | results
    assert sorted(outcome.task_id for outcome in seen) == list(range(2000))
    assert {task.stop_requests for task in api.tasks.values()} == {0, 1}


def row(method: str, task_id: int) -> dict[str, Any]:
    """Return a row with a text of its own for almost every task."""
    text = f"of task {task_id} there is much to say: " + "and so on, " * 20
    if method == STOP:
        error = {"error": f"Stopping task is unavailable: {text}"}
        return {"task_id": task_id, **({"status": "Stop request was sent"}, error)[task_id % 2]}
    return {"task_id": task_id, **({}, {"status": text}, {"status": "Running"})[task_id % 3]}


@pytest.mark.parametrize(("listening", "trouble"), [(True, False), (False, True)])
def test_memory_does_not_grow_with_the_stream(
    caplog: pytest.LogCaptureFixture, *, listening: bool, trouble: bool
) -> None:
    caplog.set_level("CRITICAL", "ctrlapi_async")  # pytest keeps whatever is logged
    sent = itertools.count()

    async def post(body: bytes, **_: object) -> bytes:
        """Answer as a server would, without a socket."""
        await asyncio.sleep(0)
        number = next(sent)
        if number % 80 == 0:
            gc.collect()  # errors make cycles, and when these go is Python's business
        if trouble and number % 7 == 0:
            raise RequestError("dropped", sent=False)
        [call] = json.loads(body)["methods"]
        ids = call["params"]["task_ids"]
        rows = [row(call["method"], n) for n in (ids if isinstance(ids, list) else [ids])]
        entry = {"method": call["method"], "id": call["id"], "result": rows}
        return json.dumps({"reply": [entry]}).encode()

    async def peak(session: ControlSession, count: int) -> int:
        source = Source(range(10**6, 10**6 + count))
        async with session.stopping(2, source, collect=False) as stopping:
            gc.collect()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with suppress(StopIncompleteError):
                if not listening:
                    await stopping.wait()
                else:
                    async for _ in stopping:
                        pass
            assert sum(stopping.counts.values()) == count
            return tracemalloc.get_traced_memory()[1] - before

    async def main() -> None:
        retry = RetryPolicy(attempts=1000, wait_initial=0.001, wait_max=0.001)
        async with ControlSession(
            "http://host", 1, batching=Batching(50, AT_A_TIME), retry=retry
        ) as session:
            session._transport.post = post  # type: ignore[method-assign]
            await peak(session, 1_000)  # whatever is kept for good is there after it
            few, many = await peak(session, 2_000), await peak(session, 8_000)
            # 6,000 ids and verdicts would be 600 kB, and as many texts three megabytes.
            assert many < few + 200_000

    tracemalloc.start()
    try:
        run(main(), lambda: JumpingLoop(0.0))
    finally:
        tracemalloc.stop()


# --- endings --------------------------------------------------------------------------------------


class Trouble(Exception):  # noqa: N818 - some error of the caller's
    pass


def with_error(ids: Iterable[int], error: BaseException) -> Iterable[int]:
    yield from ids
    raise error


class BadIterable:
    def __aiter__(self) -> AsyncIterator[int]:
        raise Trouble


class Unclosable:
    """A source whose cleaning up fails."""

    def __init__(self) -> None:
        self._ids = iter([*range(5), "3"])

    def __aiter__(self) -> Unclosable:
        return self

    async def __anext__(self) -> Any:
        return next(self._ids)

    async def aclose(self) -> None:
        raise Trouble


def raising(count: int, before: Before = None, error: BaseException | None = None) -> Source:
    return Source(with_error(range(count), error or Trouble()), before)


def yielding(bad: Any) -> Source:
    return Source([*range(25), bad, 99])


BAD_SOURCES: dict[str, tuple[Callable[[], Any], type[Exception], int]] = {
    # A source -> the error that comes of it, and how many ids were read before.
    "raises at once": (partial(raising, 0), Trouble, 0),
    "raises": (partial(raising, 34), Trouble, 34),
    "raises after a turn": (partial(raising, CHUNK, turn), Trouble, CHUNK),
    "raises after a while": (partial(raising, 34, trickle), Trouble, 34),
    "is cancelled": (lambda: raising(34, None, asyncio.CancelledError()), RequestError, 34),
    "a generator raises": (lambda: with_error(range(34), Trouble()), Trouble, 34),
    "one of a project raises": (lambda: {2: with_error(range(34), Trouble())}, Trouble, 34),
    "cannot be opened": (BadIterable, Trouble, 0),
    "cannot be closed": (Unclosable, Trouble, 5),
    **{f"yields {bad!r}": (partial(yielding, bad), TypeError, 25) for bad in ("7", True, None)},
    **{f"yields {bad}": (partial(yielding, bad), ValueError, 25) for bad in (-1, 2**63)},
}


@pytest.mark.parametrize("collect", [False, True])
@pytest.mark.parametrize(("make", "kind", "count"), BAD_SOURCES.values(), ids=BAD_SOURCES)
@simulated()
async def test_what_a_source_yields_before_its_error_is_finished(
    api: ControlApiSimulator,
    make: Callable[[], Any],
    kind: type[Exception],
    count: int,
    collect: bool,
) -> None:
    source = make()
    api.add_tasks(range(100))
    seen: list[StopOutcome] = []
    async with open_small(api) as session:
        begin: Callable[..., StopRun] = session.stopping_across
        if not isinstance(source, dict):
            begin = partial(session.stopping, 2)
        async with begin(source, collect=collect) as stopping:
            with pytest.raises(StopIncompleteError) as caught:
                await take(stopping, seen)
    *others, cause = caught.value.exceptions
    assert isinstance(cause, kind)
    assert list(map(type, others)) == [TypeError] * (make is Unclosable), "both are told"
    assert kind is not RequestError or "cancelled" in str(cause)
    assert sorted(outcome.task_id for outcome in seen) == list(range(count))
    assert {outcome.result for outcome in seen} <= {SENT}
    assert stopping.report.ids(SENT) == list(range(count if collect else 0))
    assert not isinstance(source, Source) or source.closed == 1
    assert {n for record in api.log for n in record.ids} == set(range(count))


ENDINGS: dict[str, tuple[Fault | None, type[BaseException]]] = {
    # What ends a run -> the error that comes of it.
    "forbidden": (HttpStatus(403), AuthError),
    "no project": (
        Body('{"reply": [{"error": "project 2 does not exist"}]}'),
        ProjectNotFoundError,
    ),
    "deadline": (None, TimeoutError),
    "close": (None, RequestError),
    "cancel": (None, asyncio.CancelledError),
}


@pytest.mark.parametrize("collect", [False, True])
@pytest.mark.parametrize("before", [None, turn, trickle, STALLED])
@pytest.mark.parametrize("ending", ENDINGS)
@simulated(latency=0.5)
async def test_what_ends_a_run_ends_an_endless_source(
    api: ControlApiSimulator, ending: str, before: Before, *, collect: bool
) -> None:
    fault, kind = ENDINGS[ending]
    source = Source(itertools.count(), before)
    api.add_tasks(range(5000))
    if fault is not None:
        api.fault(fault, method=STATUS, number=3, every=True)
    seen: list[StopOutcome] = []
    async with open_small(api) as session:
        stopping = session.stopping(
            2, source, timeout=12.5 if ending == "deadline" else None, collect=collect
        )

        async def consume() -> None:
            async with stopping:
                await take(stopping, seen)

        consumer = asyncio.create_task(consume())
        if fault is None:
            await asyncio.sleep(12.5)
        if ending == "cancel":
            consumer.cancel()
        elif ending == "close":
            await session.aclose()
        await asyncio.wait([consumer])
        read, requests = source.read, api.counters.requests
        await asyncio.sleep(A_WHILE)
        assert source.read == read
        assert api.counters.requests <= requests + AT_A_TIME
    assert source.closed == 1
    assert {outcome.result for outcome in seen[: CHUNK - 1]} == {SENT}
    if collect:
        assert list(stopping.report) == list(range(read))
        assert seen == [stopping.report[outcome.task_id] for outcome in seen]
    if ending == "cancel":
        assert consumer.cancelled()
        assert source.cancelled or before is not STALLED
        return
    # The source was not read to its end, even if all that was read has its answer.
    error = consumer.exception()
    assert isinstance(error, StopIncompleteError)
    assert [isinstance(cause, kind) for cause in error.exceptions] == [True]
    assert sorted(outcome.task_id for outcome in seen) == list(range(read))
    assert fault is None or read <= 2 * BOUND


@simulated()
async def test_the_source_has_a_second_to_clean_up(api: ControlApiSimulator) -> None:
    clean = False

    async def ids() -> AsyncIterator[int]:
        nonlocal clean
        try:
            for n in range(2 * CHUNK):
                yield n
            await stall(0)
        finally:
            await asyncio.sleep(0.9)
            clean = True

    api.fault(HttpStatus(403), method=STATUS, number=1)
    async with open_small(api) as session:
        _, error = await ended(session.stop_running(2, ids()))
    assert error is not None
    assert clean


@simulated()
async def test_what_is_given_up_is_told_while_the_source_is_idle(api: ControlApiSimulator) -> None:
    told = asyncio.Event()

    async def before(read: int) -> None:
        if read == CHUNK:
            await told.wait()

    api.add_tasks(range(2 * CHUNK))
    for number in range(1, AT_ONCE.attempts + 1):
        api.fault(HttpStatus(425), method=STATUS, number=number)
    seen: list[StopResult] = []
    async with (
        open_small(api) as session,
        session.stopping(2, Source(range(2 * CHUNK), before)) as stopping,
    ):
        with suppress(StopIncompleteError):
            async for outcome in stopping:
                seen.append(outcome.result)
                if len(seen) == CHUNK:
                    told.set()
    assert seen == [StopResult.NOT_SENT] * CHUNK + [SENT] * CHUNK
