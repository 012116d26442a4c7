"""Ids from async sources: read as the run goes, no faster, and never held whole."""

from __future__ import annotations

import asyncio
import gc
import itertools
import tracemalloc
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants import Witness, assert_stops_were_due, assert_truth, run
from support import engine, watched

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
    bulk,
    wire,
)
from ctrlapi_async.bulk import Options, Targets
from ctrlapi_async.simulator import STATUSES, Body, ControlApiSimulator, Drop, HttpStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from ctrlapi_async.plan import Call
    from ctrlapi_async.simulator import Fault, RequestRecord

QUICK = RetryPolicy(attempts=4, wait_initial=0.01, wait_max=0.01)
CHUNK = 10
AT_ONCE = 2
WINDOW = CHUNK * AT_ONCE
BOUND = 5 * WINDOW
"""Tasks that a run may hold at a time: in flight, waiting for a request, waiting to be taken."""
A_WHILE = 30.0
"""Seconds of a clock that jumps: whatever can happen has happened after them."""


class Source:
    """Gives ids; counts those that were read, and how it was left."""

    def __init__(
        self, ids: Iterable[Any], before: Callable[[int], Awaitable[object]] | None = None
    ) -> None:
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


class EverythingRuns(ControlApiSimulator):
    """A simulator that has a task for every id."""

    def __init__(self, status: Callable[[int], str] = lambda _: "Running", **options: Any) -> None:
        super().__init__(own_thread=False, **options)
        self.add_project(2)
        record_as_ever = self._processor._record

        def record(request: Any, document: Any) -> RequestRecord:
            recorded = record_as_ever(request, document)
            for task_id in recorded.ids:
                if task_id not in self.tasks:
                    self.add_task(task_id, status(task_id))
            return recorded

        self._processor._record = record  # type: ignore[method-assign]


def open_session(
    api: ControlApiSimulator, chunk: int | None = CHUNK, at_once: int = AT_ONCE, **more: Any
) -> ControlSession:
    return ControlSession(api.url, 1, batching=Batching(chunk, at_once), **{"retry": QUICK} | more)


async def stall(_: int) -> NoReturn:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def stall_at(place: int) -> Callable[[int], Awaitable[object]]:
    async def before(read: int) -> None:
        if read == place:
            await stall(read)

    return before


async def turn(_: int) -> None:
    await asyncio.sleep(0)


async def trickle(read: int) -> None:
    """Some ids a second: never enough for a chunk before they are sent."""
    if read % (CHUNK - 1) == 0:
        await asyncio.sleep(1)


# --- reading as it goes ---------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["Running", "Completed"])
@pytest.mark.parametrize("before", [None, turn, trickle])
@pytest.mark.parametrize("collect", [False, True])
def test_a_slow_consumer_holds_the_reading_back(
    status: str, before: Callable[[int], Awaitable[object]] | None, collect: bool
) -> None:
    async def main() -> None:
        source = Source(itertools.count(), before)
        async with (
            EverythingRuns(lambda _: status) as api,
            open_session(api) as session,
            session.stopping(2, source, collect=collect) as stopping,
        ):
            await asyncio.sleep(A_WHILE)
            assert 0 < source.read <= BOUND
            taken = 0
            for _ in range(2):
                for _ in range(BOUND):
                    await anext(stopping)
                taken += BOUND
                await asyncio.sleep(A_WHILE)
                assert taken < source.read <= taken + BOUND, "it goes on as they are taken"

    run(main())


@pytest.mark.parametrize(
    "fault", [HttpStatus(500, headers={"Retry-After": "50"}), HttpStatus(425)], ids=str
)
def test_a_server_in_trouble_holds_the_reading_back(fault: Fault) -> None:
    async def main() -> None:
        source = Source(itertools.count())
        retry = RetryPolicy(attempts=1000, wait_initial=1e9, wait_max=1e9)
        async with (
            EverythingRuns() as api,
            open_session(api, retry=retry) as session,
            session.stopping(2, source, collect=False),
        ):
            api.fault(fault)
            await asyncio.sleep(A_WHILE)
            assert 0 < source.read <= BOUND

    run(main())


def test_who_only_waits_for_the_end_holds_nothing_back() -> None:
    async def main() -> None:
        source = Source(range(1000))
        async with EverythingRuns() as api, open_session(api) as session:
            report = await session.stop_running(2, source)
            assert list(report) == list(range(1000)) == report.ids(StopResult.STOP_SENT)
            assert source.closed == 1
            states = await session.task_status(2, Source(range(1000, 1050)))
            assert states.ids("Running") == list(range(1000, 1050))

    run(main())


def test_full_chunks_do_not_wait_for_the_source() -> None:
    async def main() -> None:
        async def before(read: int) -> None:
            if read and read % CHUNK == 0:
                await api.wait_for_requests(read // CHUNK, "TaskStop")

        async with EverythingRuns() as api, open_session(api) as session:
            report = await session.stop_running(2, Source(range(50), before))
            assert report.counts[StopResult.STOP_SENT] == 50
            checks = [len(record.ids) for record in api.log if record.methods == ("TaskStatus",)]
            assert checks == [CHUNK] * 5

    run(main())


def test_less_than_a_chunk_leaves_after_a_while() -> None:
    async def main() -> None:
        async def before(read: int) -> None:
            if read == 3:  # the check and the stop of what there is, before any more comes
                await api.wait_for_requests(1, "TaskStop")

        async with EverythingRuns() as api, open_session(api) as session:
            report = await session.stop_running(2, Source(range(5), before))
            assert report.counts[StopResult.STOP_SENT] == 5
            checks = [record.ids for record in api.log if record.methods == ("TaskStatus",)]
            assert checks == [(0, 1, 2), (3, 4)]

    run(main())


def test_ids_that_come_within_that_while_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "FLUSH", 10.0)

    async def main() -> None:
        async def before(_: int) -> None:
            await asyncio.sleep(1.5)

        async with EverythingRuns() as api, open_session(api) as session:
            await session.stop_running(2, Source(range(6), before))
            checks = [record.ids for record in api.log if record.methods == ("TaskStatus",)]
            assert checks == [(0, 1, 2, 3, 4, 5)]

    run(main())


def test_the_end_of_the_source_is_not_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "FLUSH", 1e6)

    async def main() -> None:
        async with EverythingRuns() as api, open_session(api) as session:
            report = await session.stop_running(2, Source(range(25), turn))
            assert report.counts[StopResult.STOP_SENT] == 25
            assert report.stats.elapsed < 1e5

    run(main())


@pytest.mark.parametrize("chunk", [1, CHUNK, 10**6])
def test_a_source_that_never_awaits_lets_others_have_their_turn(chunk: int) -> None:
    async def main() -> None:
        source = Source(range(500_000))
        async with (
            watched(lambda: source.read) as steps,
            EverythingRuns(lambda _: "Stalled") as api,
            open_session(api, chunk) as session,
        ):
            async with session.stopping(2, source, collect=False):
                await asyncio.sleep(0.1)
            assert source.read < 500_000 or chunk > CHUNK
        assert 0 < max(steps) <= 10_000

    run(main())


# --- what is kept ---------------------------------------------------------------------------------


def test_a_run_that_does_not_collect_keeps_a_window_only() -> None:
    async def main() -> None:
        statuses = itertools.cycle(STATUSES)
        async with EverythingRuns(lambda _: next(statuses)) as api, open_session(api) as session:
            seen: Counter[int] = Counter()
            results: Counter[StopResult] = Counter()
            async with session.stopping(2, Source(range(3000)), collect=False) as stopping:
                async for outcome in stopping:
                    seen[outcome.task_id] += 1
                    results[outcome.result] += 1
                    assert len(stopping.report) <= BOUND
                assert not stopping.report
                assert stopping.counts == dict.fromkeys(StopResult, 0) | results
            assert seen == dict.fromkeys(range(3000), 1)

    run(main())


def listed(call: Call) -> list[int]:
    assert isinstance(call.task_ids, list)
    return call.task_ids


def usual_rows(method: str, task_ids: list[int]) -> list[wire.Row]:
    words = {"TaskStatus": ("Running", "Completed"), "TaskStop": (wire.STOP_SENT,)}[method]
    return [wire.Row(n, words[n % len(words)]) for n in task_ids]


def talkative_rows(method: str, task_ids: list[int]) -> list[wire.Row]:
    """Give rows with a text of its own for almost every task."""
    text = "of task {} there is much to say: " + "and so on, " * 20
    if method == "TaskStop":
        return [wire.Row(n, error=text.format(n)) for n in task_ids]
    return [
        wire.Row(n, (None, text.format(n), "Running")[n % 3], text.format(n) if not n % 3 else None)
        for n in task_ids
    ]


@pytest.mark.parametrize(
    ("rows", "listening", "trouble"),
    [
        (usual_rows, True, False),
        (usual_rows, False, True),
        (talkative_rows, True, True),
        (talkative_rows, False, False),
    ],
)
def test_memory_does_not_grow_with_the_stream(
    rows: Callable[[str, list[int]], list[wire.Row]],
    *,
    listening: bool,
    trouble: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("ctrlapi_async", "stamina"):
        caplog.set_level("CRITICAL", name)  # pytest keeps whatever is logged
    sent = itertools.count()

    def send(method: str, calls: list[Call]) -> list[Any]:
        number = next(sent)
        if number % 80 == 0:
            gc.collect()  # errors make cycles, and when these go is Python's business
        if trouble and number % 7 == 0:
            raise RequestError("dropped", sent=False)
        return [wire.Answer(rows(method, listed(call))) for call in calls]

    async def peak(count: int) -> int:
        source = aiter(Source(range(10**6, 10**6 + count)))
        async with engine(
            Targets(stream=(2, source)),
            Options(collect=False),
            send,
            batching=Batching(50, AT_ONCE),
            policy=RetryPolicy(attempts=1000, wait_initial=0.01, wait_max=0.01),
        ) as stopping:
            gc.collect()
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            if not listening:
                await stopping.wait()
            async for _ in stopping:
                pass
            assert sum(stopping.counts.values()) == count
            return tracemalloc.get_traced_memory()[1] - before

    async def main() -> None:
        await peak(1_000)  # whatever is kept for good is there after it
        few, many = await peak(3_000), await peak(13_000)
        # 10,000 ids and verdicts would be a megabyte, and as many texts five of them.
        assert many < few + 300_000

    tracemalloc.start()
    try:
        run(main())
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("collect", [False, True])
def test_duplicates_close_to_each_other_count_once(collect: bool) -> None:
    async def main() -> None:
        ids = [n for n in range(100) for _ in range(2)]
        async with EverythingRuns() as api, open_session(api) as session:
            seen = []
            async with session.stopping(2, Source(ids), collect=collect) as stopping:
                seen = [outcome.task_id async for outcome in stopping]
                assert sum(stopping.counts.values()) == 100
            assert sorted(seen) == list(range(100))
            assert {task.stop_requests for task in api.tasks.values()} == {1}

    run(main())


def test_a_run_that_collects_knows_duplicates_for_ever() -> None:
    async def main() -> None:
        ids = [*range(200), *range(200)]
        async with EverythingRuns() as api, open_session(api) as session:
            report = await session.stop_running(2, Source(ids))
            assert list(report) == list(range(200))
            assert api.counters.ids == {"TaskStatus": 200, "TaskStop": 200}

    run(main())


# --- endings --------------------------------------------------------------------------------------


def test_an_endless_source_may_be_left() -> None:
    async def main() -> None:
        source = Source(itertools.count())
        async with EverythingRuns() as api, open_session(api) as session:
            async with session.stopping(2, source) as stopping:
                async for outcome in stopping:
                    if outcome.task_id >= 50:
                        break
            assert source.closed == 1
            known = stopping.report
            read, requests = source.read, api.counters.requests
            await asyncio.sleep(A_WHILE)
            assert (source.read, api.counters.requests) == (read, requests)
            assert list(known) == list(range(read))
            assert stopping.report == known
            assert_truth(api, known)

    run(main())


class Trouble(Exception):  # noqa: N818 - some error of the caller's
    pass


def with_error(ids: Iterable[int], error: BaseException) -> Iterable[int]:
    yield from ids
    raise error


@pytest.mark.parametrize("count", [0, 1, CHUNK, 3 * CHUNK + 4])
@pytest.mark.parametrize("before", [None, turn, trickle])
def test_a_source_that_raises(
    count: int, before: Callable[[int], Awaitable[object]] | None
) -> None:
    async def main() -> None:
        error = Trouble("no more")
        source = Source(with_error(range(count), error), before)
        async with EverythingRuns() as api, open_session(api) as session:
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, source)
            assert caught.value.exceptions == (error,)
            assert caught.value.report.ids(StopResult.STOP_SENT) == list(range(count))
            assert len(caught.value.report) == count
            assert source.closed == 1
            with pytest.raises(ExceptionGroup) as again:
                await consume(session, Source(with_error(range(count), error)), [])
            assert again.group_contains(Trouble)

    run(main())


async def consume(
    session: ControlSession, source: Source, seen: list[StopOutcome], **options: Any
) -> None:
    async with session.stopping(2, source, **options) as stopping:
        async for outcome in stopping:
            seen.append(outcome)  # noqa: PERF401 - what came before an error counts


def test_every_outcome_comes_before_the_source_s_error() -> None:
    async def main() -> None:
        seen: list[StopOutcome] = []
        async with EverythingRuns() as api, open_session(api) as session:
            source = Source(with_error(range(35), Trouble()))
            with pytest.raises(StopIncompleteError):
                await consume(session, source, seen, collect=False)
        assert sorted(outcome.task_id for outcome in seen) == list(range(35))
        assert {outcome.result for outcome in seen} == {StopResult.STOP_SENT}

    run(main())


def test_a_source_that_was_cancelled_by_others_is_not_taken_for_ended() -> None:
    async def main() -> None:
        source = Source(with_error(range(5), asyncio.CancelledError()))
        async with EverythingRuns() as api, open_session(api) as session:
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, source)
            assert caught.value.report.ids(StopResult.STOP_SENT) == list(range(5))
            assert "cancelled" in str(caught.value.exceptions[0])

    run(main())


@pytest.mark.parametrize(
    ("bad", "kind"),
    [("7", TypeError), (True, TypeError), (None, TypeError), (-1, ValueError), (2**63, ValueError)],
)
def test_a_bad_id_that_comes_up(bad: Any, kind: type[Exception]) -> None:
    async def main() -> None:
        source = Source([*range(25), bad, 99])
        async with EverythingRuns() as api, open_session(api) as session:
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, source)
            assert [type(error) for error in caught.value.exceptions] == [kind]
            assert caught.value.report.ids(StopResult.STOP_SENT) == list(range(25))
            assert source.closed == 1
            assert 99 not in api.tasks

    run(main())


class BadIterable:
    def __aiter__(self) -> AsyncIterator[int]:
        raise Trouble


def test_a_source_that_cannot_be_opened_costs_no_call() -> None:
    async def main() -> None:
        async with EverythingRuns() as api, open_session(api) as session:
            with pytest.raises(Trouble):
                await session.stop_running(2, BadIterable())
            assert api.counters.requests == 0

    run(main())


class Unclosable:
    """A source whose cleaning up fails."""

    def __init__(self) -> None:
        self._ids = iter([1, 2, "3"])

    def __aiter__(self) -> Unclosable:
        return self

    async def __anext__(self) -> Any:
        return next(self._ids)

    async def aclose(self) -> None:
        raise Trouble


def test_a_source_whose_closing_fails() -> None:
    async def main() -> None:
        async with EverythingRuns() as api, open_session(api) as session:
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, Unclosable())
            assert caught.value.report.ids(StopResult.STOP_SENT) == [1, 2]
            assert any(isinstance(error, Trouble) for error in caught.value.exceptions)

    run(main())


@pytest.mark.parametrize("place", [0, 5, CHUNK, 25])
def test_cancelling_while_the_source_awaits(place: int) -> None:
    async def main() -> None:
        source = Source(itertools.count(), stall_at(place))
        async with EverythingRuns() as api, open_session(api) as session:
            stopping = session.stopping(2, source)

            async def wait() -> None:
                async with stopping:
                    await stopping.wait()

            task = asyncio.ensure_future(wait())
            await asyncio.sleep(A_WHILE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert source.cancelled
            assert source.closed == 1
            assert stopping.report.ids(StopResult.STOP_SENT) == list(range(place))

    run(main())


@pytest.mark.parametrize("stalls", [False, True])
@pytest.mark.parametrize("collect", [False, True])
def test_the_deadline_ends_an_endless_source(stalls: bool, collect: bool) -> None:
    async def main() -> None:
        source = Source(itertools.count(), stall_at(CHUNK) if stalls else trickle)
        seen: list[StopOutcome] = []
        async with EverythingRuns() as api, open_session(api) as session:
            with pytest.raises(StopIncompleteError) as caught:
                await consume(session, source, seen, timeout=12.0, collect=collect)
            # The source was not read to its end, even if all that was read has its answer.
            assert [isinstance(error, TimeoutError) for error in caught.value.exceptions] == [True]
            assert [outcome.task_id for outcome in seen] == list(range(source.read))
            assert {outcome.result for outcome in seen[:CHUNK]} == {StopResult.STOP_SENT}
            assert source.closed == 1
            if collect:
                assert list(caught.value.report.values()) == seen

    run(main())


DOOMS: dict[str, tuple[Fault, type[Exception]]] = {
    "forbidden": (HttpStatus(403), AuthError),
    "no such project": (
        Body('{"reply": [{"method": "TaskStatus", "error": "project 2 does not exist"}]}'),
        ProjectNotFoundError,
    ),
}


@pytest.mark.parametrize(("fault", "kind"), DOOMS.values(), ids=DOOMS)
@pytest.mark.parametrize("before", [None, trickle, stall_at(3 * CHUNK)])
def test_what_dooms_all_ends_an_endless_source(
    fault: Fault, kind: type[Exception], before: Callable[[int], Awaitable[object]] | None
) -> None:
    async def main() -> None:
        source = Source(itertools.count(), before)
        async with EverythingRuns() as api, open_session(api) as session:
            api.fault(fault, method="TaskStatus", number=2, every=True)
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, source)
            assert [type(error) for error in caught.value.exceptions] == [kind]
            assert list(caught.value.report) == list(range(source.read))
            assert source.read <= BOUND
            assert source.closed == 1
            assert_truth(api, caught.value.report)

    run(main())


def test_the_source_may_take_its_time_to_clean_up_when_all_is_doomed() -> None:
    async def main() -> None:
        clean = False

        async def ids() -> AsyncIterator[int]:
            nonlocal clean
            try:
                for n in range(2 * CHUNK):
                    yield n
                await stall(0)
            finally:
                await asyncio.sleep(A_WHILE)
                clean = True

        async with EverythingRuns() as api, open_session(api) as session:
            gate = api.hold("TaskStatus", number=2)
            api.fault(HttpStatus(403), method="TaskStatus", number=1)
            task = asyncio.ensure_future(session.stop_running(2, ids()))
            await asyncio.sleep(A_WHILE / 2)
            gate.release()  # a reply that comes while the source is at it
            with pytest.raises(StopIncompleteError):
                await task
            assert clean

    run(main())


def test_what_is_given_up_is_told_while_the_source_is_idle() -> None:
    async def main() -> None:
        told = asyncio.Event()

        async def before(read: int) -> None:
            if read == CHUNK:
                await told.wait()

        async with EverythingRuns() as api, open_session(api) as session:
            for number in range(1, QUICK.attempts + 1):
                api.fault(Drop(), method="TaskStatus", number=number)
            seen = []
            async with session.stopping(2, Source(range(2 * CHUNK), before)) as stopping:
                with suppress(StopIncompleteError):
                    async for outcome in stopping:
                        seen.append(outcome)
                        if len(seen) == CHUNK:
                            told.set()
            assert [outcome.result for outcome in seen] == [StopResult.NOT_SENT] * CHUNK + [
                StopResult.STOP_SENT
            ] * CHUNK

    run(main())


def test_a_session_that_closes_ends_the_source() -> None:
    async def main() -> None:
        source = Source(itertools.count(), stall_at(CHUNK))
        async with EverythingRuns() as api:
            async with open_session(api) as session:
                task = asyncio.ensure_future(session.stop_running(2, source))
                await asyncio.sleep(A_WHILE)
            with pytest.raises(StopIncompleteError) as caught:
                await task
            assert [type(error) for error in caught.value.exceptions] == [RequestError]
            assert caught.value.report.ids(StopResult.STOP_SENT) == list(range(CHUNK))
            assert source.closed == 1

    run(main())


# --- any stream, any faults -----------------------------------------------------------------------

FAULTS = [HttpStatus(503), HttpStatus(500, effect=True), Drop(), Drop(effect=True), Body("{")]


@given(
    ids=st.lists(st.integers(0, 40), max_size=60),
    pauses=st.lists(st.sampled_from([0, 0, 0, 0.01, 0.1]), min_size=1, max_size=7),
    consumer=st.sampled_from([0, 0, 0.03]),
    statuses=st.lists(st.sampled_from((*STATUSES, "Running")), min_size=1, max_size=11),
    faults=st.dictionaries(st.integers(1, 15), st.sampled_from(FAULTS), max_size=3),
    chunk=st.integers(1, 9),
    at_once=st.integers(1, 3),
    collect=st.booleans(),
    raises=st.booleans(),
)
def test_every_id_that_is_read_has_its_outcome(
    *,
    ids: list[int],
    pauses: list[float],
    consumer: float,
    statuses: list[str],
    faults: dict[int, Fault],
    chunk: int,
    at_once: int,
    collect: bool,
    raises: bool,
) -> None:
    async def main() -> None:
        async def before(read: int) -> None:
            if pause := pauses[read % len(pauses)]:
                await asyncio.sleep(pause)

        api = EverythingRuns(lambda n: statuses[n % len(statuses)])
        witness = Witness(api, lambda record: faults.get(record.number))
        given_ids = with_error(ids, Trouble()) if raises else ids
        seen: list[StopOutcome] = []
        causes: list[type[Exception]] = []
        async with api, open_session(api, chunk, at_once) as session:
            stopping = session.stopping(2, Source(given_ids, before), collect=collect)
            try:
                async with stopping:
                    async for outcome in stopping:
                        seen.append(outcome)
                        if consumer:
                            await asyncio.sleep(consumer)
            except StopIncompleteError as error:
                causes = [type(cause) for cause in error.exceptions]
            assert causes == [Trouble] * raises
        assert_stops_were_due(witness.events)
        told = Counter(outcome.task_id for outcome in seen)
        assert told.keys() == set(ids)
        assert sum(stopping.counts.values()) == len(seen)
        if collect:
            assert max(told.values(), default=1) == 1
            assert list(stopping.report) == list(dict.fromkeys(ids))
            assert_truth(api, stopping.report)
        for task_id in told:
            runs = statuses[task_id % len(statuses)] == "Running"
            assert api.tasks[task_id].stop_requests == runs
            first = next(outcome for outcome in seen if outcome.task_id == task_id)
            assert first.result is (StopResult.STOP_SENT if runs else StopResult.NOT_RUNNING)

    run(main())
