# mypy: disable-error-code="no-untyped-call, import-not-found"
# distributed annotates few of its functions, and is an extra.
"""Shards on a Dask cluster: whatever dies, every task has one true outcome."""

from __future__ import annotations

import asyncio
import copyreg
import importlib
import os
import pickle
import signal
import sys
from functools import partial
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import (
    ALL_ACTIVE,
    Batching,
    ControlSession,
    HttpError,
    ProjectNotFoundError,
    RequestError,
    RetryPolicy,
    StopOutcome,
    StopReport,
    StopResult,
    StopStats,
    TaskStatus,
)
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus

_plain_pickling = dict(copyreg.dispatch_table)
# This folder has the same name, so a module of the real package is looked for.
pytest.importorskip("distributed.client", reason="needs distributed, which the extra `dask` brings")

from distributed import Client, Event, LocalCluster  # noqa: E402 - after a look at pickle

from ctrlapi_async import distributed  # noqa: E402
from ctrlapi_async.distributed import (  # noqa: E402
    ServersIncompleteError,
    Shard,
    ShardResult,
    after_second_look,
    run_shard,
    split,
    stop_running_on,
    went_on,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Importing distributed makes every exception's pickle hold its traceback.
copyreg.dispatch_table.clear()
copyreg.dispatch_table.update(_plain_pickling)

CHUNKS = Batching(chunk_size=500, max_concurrency=1)
ONE_BY_ONE = partial(ControlSession, user_id=1, batching=CHUNKS)
ONE_ATTEMPT = partial(ControlSession, user_id=1, retry=RetryPolicy(attempts=1))

SCHEDULED, _, RUNNING, COMPLETED, _, CANCELED, STALLED = TaskStatus
SENT, UNAVAILABLE, ENDED = StopResult.STOP_SENT, StopResult.UNAVAILABLE, StopResult.NOT_RUNNING
NOT_SENT, UNCONFIRMED = StopResult.NOT_SENT, StopResult.UNCONFIRMED
BY_DEAD_WORKER = "found Canceled after a worker died that may have stopped it"


def run_cluster() -> Iterator[Any]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


# Two worker processes, in a loop of their own so that tests can share them; but not those that
# kill workers, for Dask does not start one again that dies while it is still starting.
cluster = pytest.fixture(run_cluster, scope="module", name="cluster")
mortal_cluster = pytest.fixture(run_cluster, name="mortal_cluster")


@pytest.fixture
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """Connect to the mortal cluster if the test asks for it, and to the shared one if not."""
    name = "mortal_cluster" if "mortal_cluster" in request.fixturenames else "cluster"
    address = request.getfixturevalue(name).scheduler_address
    async with Client(address, asynchronous=True) as client:
        yield client


async def assert_nothing_left(cluster: Any) -> None:
    assert not cluster.scheduler.extensions["events"]._events
    async with asyncio.timeout(10):  # the scheduler, in a thread of its own, hears of it later
        while cluster.scheduler.tasks:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def started(client: Client, api: ControlApiSimulator) -> asyncio.Task[dict[str, StopReport]]:
    """Start to stop all tasks of a simulator."""
    targets = {api.url: {2: [n for n in api.tasks if n < 10_000]}}
    return asyncio.create_task(stop_running_on(client, targets, session_factory=ONE_BY_ONE))


def stopped(api: ControlApiSimulator) -> set[int]:
    return {task_id for task_id, task in api.tasks.items() if task.stopped}


@given(
    lengths=st.dictionaries(st.integers(0, 50), st.integers(0, 400), max_size=6),
    workers=st.integers(1, 9),
    least=st.integers(1, 50),
    more=st.integers(0, 300),
)
def test_every_task_is_in_one_part_and_the_order_stays(
    lengths: dict[int, int], workers: int, least: int, more: int
) -> None:
    ids = count()
    projects = {project: list(islice(ids, length)) for project, length in lengths.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "SHARD_MIN", least)
        patch.setattr(distributed, "SHARD_MAX", least + more)
        parts = split(projects, workers)
    pairs = [(project, i) for project, ids in projects.items() for i in ids]
    assert [(project, i) for part in parts for project, ids in part.items() for i in ids] == pairs
    sizes = [sum(map(len, part.values())) for part in parts]
    assert all(0 < size <= least + more for size in sizes)
    assert len(set(sizes[:-1])) <= 1
    assert len(parts) <= max(workers, -(-len(pairs) // (least + more)) + workers - 1)
    assert len(parts) <= workers or len(pairs) > workers * (least + more)
    assert len(parts) <= workers or all(size * 2 >= least for size in sizes[:-1])


@pytest.mark.parametrize(
    ("total", "workers", "sizes"),
    [
        (0, 2, []),
        (100_001, 2, [25_001] * 3 + [24_998]),
        (200_000, 100, [2_000] * 100),
    ],
)
def test_parts_are_large_and_one_a_worker(total: int, workers: int, sizes: list[int]) -> None:
    assert [len(part[2]) for part in split({2: list(range(total))}, workers)] == sizes


@pytest.mark.parametrize(
    ("found", "second_look", "expected"),
    [
        ((ENDED, SCHEDULED, None, 1064), None, (ENDED, SCHEDULED, None, 1064)),
        ((ENDED, CANCELED), None, (SENT, CANCELED, BY_DEAD_WORKER)),
        ((ENDED, CANCELED, None, 1064), None, (SENT, CANCELED, BY_DEAD_WORKER, 1064)),
        ((UNAVAILABLE, CANCELED, "no"), None, (SENT, CANCELED, BY_DEAD_WORKER)),
        ((StopResult.NOT_FOUND, None, "no"), None, (StopResult.NOT_FOUND, None, "no")),
        (
            (NOT_SENT, None, "HTTP 502"),
            None,
            (UNCONFIRMED, None, "a worker that died may have stopped it; HTTP 502"),
        ),
        # Its chain went on, so that the task itself is looked at.
        ((ENDED, COMPLETED, None, 1064), CANCELED, (SENT, CANCELED, BY_DEAD_WORKER)),
        ((UNAVAILABLE, COMPLETED, None, 1064), CANCELED, (SENT, CANCELED, BY_DEAD_WORKER)),
        ((ENDED, COMPLETED, None, 1064), STALLED, (ENDED, COMPLETED, None, 1064)),
        ((UNAVAILABLE, COMPLETED, None, 1064), STALLED, (UNAVAILABLE, COMPLETED, None, 1064)),
    ],
)
def test_what_a_dead_worker_may_have_stopped_counts_as_stopped(
    found: Any, second_look: TaskStatus | None, expected: Any
) -> None:
    other = StopOutcome(65, 3, ENDED, COMPLETED)
    report = StopReport.of([StopOutcome(64, 2, *found), other], StopStats(1, 1))
    assert went_on(report) == ({} if second_look is None else {2: [64]})
    own = [] if second_look is None else [StopOutcome(64, 2, ENDED, second_look, None, 1064)]
    result = after_second_look(report, StopReport.of(own, StopStats(2)))
    assert result == StopReport.of([StopOutcome(64, 2, *expected), other])
    assert result.stats == StopStats(3, 1)


def test_the_message_counts_every_task_without_an_answer_and_names_the_first_cause() -> None:
    results = [SENT, NOT_SENT, UNCONFIRMED, StopResult.STILL_RUNNING]
    report = StopReport.of(StopOutcome(n, 2, result) for n, result in enumerate(results))
    shards = {1: ShardResult(report, (RequestError("no answer"),)), 0: ShardResult(StopReport())}
    with pytest.raises(ServersIncompleteError) as caught:
        distributed._merged({"http://me:pw@a": shards, "b": {}})
    assert str(caught.value) == (
        "1 of 2 servers did not answer for every task: "
        "'http://***@a': 3 of 4 tasks without an answer: no answer"
    )


@pytest.mark.parametrize(
    ("targets", "kind", "text"),
    [
        ([2], TypeError, r"targets must map servers to projects, not \[2\]"),
        ({"a": [64]}, TypeError, r"'a': targets must map project ids to task ids, not \[64\]"),
        ({"a": {"2": [64]}}, TypeError, "'a': project_id must be an int, not '2'"),
        ({"a": {2: [64, "65"]}}, TypeError, "'a': a task id must be an int, not '65'"),
        ({"a": {2: ALL_ACTIVE}}, TypeError, "'a': project 2: .* must be ints, not ALL_ACTIVE"),
        ({"a": {2: [1, 7], 3: 7}}, ValueError, "'a': task 7 is asked for in two projects"),
        ({"http://me:pw@a/": {2: None}}, TypeError, r"'http://\*\*\*@a/': task_ids must be"),
    ],
)
async def test_bad_targets_are_named(
    client: Client, targets: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text) as caught:
        await stop_running_on(client, targets, session_factory=ONE_BY_ONE)
    assert "pw" not in str(caught.value)


async def test_bad_clients_and_factories_are_named(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody: Any = "a client"
    with pytest.raises(TypeError, match="an asynchronous Client of this loop, not 'a client'"):
        await stop_running_on(nobody, {}, session_factory=ONE_BY_ONE)
    with monkeypatch.context() as patch:
        patch.setattr(Client, "asynchronous", False)
        with pytest.raises(TypeError, match="an asynchronous Client of this loop, not <Client"):
            await stop_running_on(client, {}, session_factory=ONE_BY_ONE)
    with pytest.raises(TypeError, match="session_factory must be callable, not 'a client'"):
        await stop_running_on(client, {}, session_factory=nobody)
    generator: Any = (number for number in range(3))
    with pytest.raises(TypeError, match=r"servers and session_factory must pickle: .*generator"):
        await stop_running_on(client, {}, session_factory=partial(ONE_BY_ONE, auth=generator))


def test_a_missing_distributed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "ctrlapi_async.distributed")
    with pytest.raises(ImportError, match=r"pip install 'ctrlapi-async\[dask\]'"):
        importlib.import_module("ctrlapi_async.distributed")


async def test_every_server_gets_a_report_and_restarts_are_followed(
    cluster: Any, client: Client
) -> None:
    async with ControlApiSimulator() as api, ControlApiSimulator() as other:
        api.mixed_tasks(2_500, restarted=0.1)
        other.mixed_tasks(1_500, seed=1)
        other.add_tasks([7_002, 7_001], "Completed", project_id=3)
        running = [
            {i for i, task in server.tasks.items() if task.status == "Running"}
            for server in (api, other)
        ]
        ids = list(range(2_500, 0, -1))
        reports = await stop_running_on(
            client,
            {
                api.url: {2: iter([*ids, 5])},
                "http://127.0.0.1:9": {},
                other.url: {3: [7_002, 7_001], 2: range(1, 1_501), 9: []},
            },
            session_factory=ONE_BY_ONE,
        )
        assert list(reports) == [api.url, "http://127.0.0.1:9", other.url]
        one, none, two = reports.values()
        assert none == StopReport()
        assert list(one) == ids
        assert list(two) == [7_002, 7_001, *range(1, 1_501)]
        assert two[7_001].project_id == 3
        assert sum(outcome.restarted_as is not None for outcome in one.values()) == 250
        for server, live, report in zip((api, other), running, (one, two), strict=True):
            sent = {report[i].restarted_as or i for i in report.ids(SENT)}
            assert sent == live == stopped(server)
            assert {server.tasks[i].stop_requests for i in live} == {1}
            assert report.stats.status_calls == server.counters.requests_by_method["TaskStatus"]
            assert server.counters.peak <= 2
    await assert_nothing_left(cluster)


async def test_nothing_known_is_lost_when_servers_fail(
    client: Client, api: ControlApiSimulator
) -> None:
    async with ControlApiSimulator() as other:
        api.add_tasks([64, 65])
        other.add_tasks([64])
        other.fault(HttpStatus(502))
        gone = "http://me:pw@127.0.0.1:9"
        with pytest.raises(ServersIncompleteError) as caught:
            await stop_running_on(
                client,
                {api.url: {2: [65, 64], 9: 99}, other.url: {2: 64}, gone: {2: 1}},
                session_factory=ONE_ATTEMPT,
            )
    assert stopped(api) == {64, 65}
    error: Any = caught.value
    assert error.reports[api.url].ids(SENT) == [65, 64]
    assert error.reports[api.url].ids(NOT_SENT) == [99]
    assert isinstance(error.exceptions[0].exceptions[0], ProjectNotFoundError)
    assert [error.reports[one].ids(NOT_SENT) for one in (other.url, gone)] == [[64], [1]]
    assert "pw" not in f"{error!r} {error.exceptions!r}"
    assert [part.report for part in error.exceptions] == list(error.reports.values())
    again, some = pickle.loads(pickle.dumps(error)), error.subgroup(HttpError)
    assert again.reports == some.reports == error.reports
    assert str(again) == str(error)
    assert [part.report for part in some.exceptions] == [error.reports[other.url]]


def no_session(server: str) -> ControlSession:
    raise LookupError(f"no password for {server}")


class CancelsItself(ControlSession):
    async def __aenter__(self) -> ControlSession:  # type: ignore[override]
        raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("factory", "kind", "text"),
    [
        (no_session, LookupError, "no password for http://a"),
        (partial(CancelsItself, user_id=1), RequestError, "3 workers died under a shard"),
    ],
)
async def test_a_shard_that_never_began_leaves_its_tasks_alone(
    client: Client, factory: Any, kind: type[Exception], text: str
) -> None:
    with pytest.raises(ServersIncompleteError, match="1 of 1 servers") as caught:
        await stop_running_on(client, {"http://a": {2: [5]}}, session_factory=factory)
    assert caught.value.reports["http://a"][5] == StopOutcome(5, 2, NOT_SENT, error=text)
    [[error]] = [part.exceptions for part in caught.value.exceptions]
    assert isinstance(error, kind)
    assert getattr(error, "sent", False) is False


async def test_the_shard_of_a_killed_worker_gets_a_second_look(
    mortal_cluster: Any, client: Client, api: ControlApiSimulator
) -> None:
    api.mixed_tasks(4_000, running=0.4, restarted=0.1)
    running, canceled = (
        {i for i, task in api.tasks.items() if task.status == status}
        for status in ("Running", "Canceled")
    )
    current = {i: api.tasks[i].restarted_as or i for i in range(1, 4_001)}
    gate = api.hold("TaskStop", effect=True)
    run = started(client, api)
    # Each worker has carried out a stop whose reply is on its way: now one of them dies.
    await api.wait_until(lambda: gate.held == 2)
    first_stopped = stopped(api)
    assert len(first_stopped) == 1_000
    os.kill(min((await client.run(os.getpid)).values()), signal.SIGKILL)
    await api.wait_until(lambda: api.counters.in_flight == 1)
    gate.release()
    [report] = (await run).values()

    assert list(report) == list(current)
    assert report.complete
    again = {outcome.task_id for outcome in report.values() if outcome.error}
    assert {report[task_id].error for task_id in again} == {BY_DEAD_WORKER}
    # The half that was lost is one of the two; of what it had stopped nothing is missing.
    lost = set(range(1, 2_001) if min(again) <= 2_000 else range(2_001, 4_001))
    assert again == {i for i in lost if current[i] in first_stopped | canceled}
    sent = {i for i in current if current[i] in running}
    assert set(report.ids(SENT)) == sent | (lost & canceled)
    assert all(outcome.restarted_as in (None, current[i]) for i, outcome in report.items())
    assert stopped(api) == running
    assert {api.tasks[task_id].stop_requests for task_id in running} == {1}
    await assert_nothing_left(mortal_cluster)


class DiesInRun(ControlSession):
    async def stop_running_across(self, *_: Any, **__: Any) -> StopReport:
        os._exit(1)


async def test_a_shard_under_which_workers_keep_dying_is_given_up(
    mortal_cluster: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mortal_cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr(distributed, "SUBMISSIONS", 2)
    factory = partial(DiesInRun, user_id=1)
    with pytest.raises(ServersIncompleteError) as caught:
        await stop_running_on(client, {"http://a": {2: [7, 5]}}, session_factory=factory)
    report = caught.value.reports["http://a"]
    assert report.ids(UNCONFIRMED) == [7, 5]
    assert report[5].error == "2 workers died under a shard"
    await assert_nothing_left(mortal_cluster)


async def test_a_client_that_closes_leaves_its_tasks_unconfirmed(
    cluster: Any, client: Any, api: ControlApiSimulator
) -> None:
    api.add_tasks([5, 6])
    gate = api.hold("TaskStop")
    run = started(client, api)
    await api.wait_until(lambda: gate.held == 1)
    await client.close()
    with pytest.raises(ServersIncompleteError) as caught:
        await run
    assert caught.value.reports[api.url].ids(UNCONFIRMED) == [5, 6]
    gate.release()
    await api.wait_until(lambda: api.counters.connections_open == 0)
    cluster.scheduler.extensions["events"]._events.clear()  # nobody was left to do it


async def test_cancelling_ends_the_shards(
    cluster: Any, client: Client, api: ControlApiSimulator
) -> None:
    api.add_tasks(range(2_000))
    gate = api.hold("TaskStop")
    run = started(client, api)
    await api.wait_until(lambda: gate.held == 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await api.wait_until(lambda: api.counters.connections_open == 0)
    gate.release()
    assert api.counters.requests_by_method["TaskStop"] == 2
    assert not stopped(api)
    await assert_nothing_left(cluster)


@pytest.fixture
async def wanted(client: Client) -> AsyncIterator[str]:
    """Mark a shard as wanted, and yield its name."""
    await Event("here-wanted", client).set()
    yield "here"
    await Event("here-wanted", client).clear()
    await Event("here-begun", client).clear()


async def test_a_shard_runs_once_and_only_if_wanted_and_returns_what_it_knows(
    client: Client, wanted: str, api: ControlApiSimulator
) -> None:
    api.add_tasks([5, 6])
    api.add_task(7, "Completed")
    api.fault(HttpStatus(502), method="TaskStop")
    shard = Shard(api.url, {2: [5, 6, 7]}, partial(ONE_ATTEMPT, auth=("me", "pw")), wanted)
    assert "pw" not in repr(shard)
    await Event("here-wanted", client).clear()
    assert await run_shard(shard) is None
    await Event("here-wanted", client).set()
    result = await run_shard(shard)
    assert result is not None
    assert result.report.ids(UNCONFIRMED, ENDED) == [5, 6, 7]
    assert isinstance(result.errors[0], HttpError)
    requests = api.counters.requests
    assert await run_shard(shard) is None
    assert api.counters.requests == requests


async def test_a_shard_that_is_no_longer_wanted_ends(
    wanted: str, api: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "WATCH_INTERVAL", 0.01)
    api.add_tasks([5, 6])
    gate = api.hold("TaskStatus")
    run = asyncio.create_task(run_shard(Shard(api.url, {2: [5, 6]}, ONE_BY_ONE, wanted)))
    await api.wait_until(lambda: gate.held == 1)
    looks = iter([True, True])

    async def is_set(_: Event) -> bool:
        return next(looks, False)

    monkeypatch.setattr(Event, "is_set", is_set)
    assert await run is None
    assert not api.tasks[5].stop_requests


async def test_a_second_look_finds_the_stops_of_a_dead_worker(wanted: str) -> None:
    async with ControlApiSimulator(stop_delay=5) as api:
        api.add_tasks([5, 6])
        api.add_task(7, life=[(5, "Completed")])
        api.add_task(64, "Stalled", restarts=1)
        new_id = api.tasks[64].restarted_as
        assert new_id is not None
        async with ONE_BY_ONE(api.url) as of_dead_worker:
            await of_dead_worker.task_stop(2, [5, 6, new_id])
        # A task that was stopped, and whose chain went on all the same.
        api.add_task(65, "Stalled", restarts=["Completed"])
        api.tasks[65].status = "Canceled"
        gate = api.hold("TaskStop")
        shard = Shard(api.url, {2: [5, 6, 7, 64, 65]}, ONE_BY_ONE, wanted, second_look=True)
        run = asyncio.create_task(run_shard(shard))
        await api.wait_until(lambda: gate.held == 1)
        api.advance(5)
        gate.release()
        result = await run
        status_calls = api.counters.requests_by_method["TaskStatus"]
    assert result is not None
    assert list(result.report.values()) == [
        StopOutcome(5, 2, SENT, CANCELED, BY_DEAD_WORKER),
        StopOutcome(6, 2, SENT, CANCELED, BY_DEAD_WORKER),
        StopOutcome(7, 2, UNAVAILABLE, COMPLETED, "Stopping task is unavailable"),
        StopOutcome(64, 2, SENT, CANCELED, BY_DEAD_WORKER, new_id),
        StopOutcome(65, 2, SENT, CANCELED, BY_DEAD_WORKER),
    ]
    assert result.report.stats.status_calls == status_calls == 3
