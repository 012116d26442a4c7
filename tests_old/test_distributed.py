# mypy: disable-error-code="no-untyped-call, import-not-found"
# distributed annotates few of its functions, and is an extra.
"""Shards over a Dask cluster: whatever dies, every id is accounted for, once and truly."""

from __future__ import annotations

import asyncio
import copyreg
import importlib
import os
import pickle
import signal
import sys
from functools import partial
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
    StopIncompleteError,
    StopOutcome,
    StopReport,
    StopResult,
    StopStats,
    TaskStatus,
)
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus

_plain_pickling = dict(copyreg.dispatch_table)
pytest.importorskip("distributed", reason="distributed is not there: the extra `dask` brings it")

from distributed import Client, Event, LocalCluster  # noqa: E402 - after a look at pickle

from ctrlapi_async import distributed  # noqa: E402
from ctrlapi_async.distributed import (  # noqa: E402
    ServersIncompleteError,
    Shard,
    run_shard,
    settled,
    split,
    stop_running_on,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# Importing distributed makes every exception's pickle hold its traceback. Other tests are to see
# pickle as it is.
_dask_pickling = dict(copyreg.dispatch_table)
copyreg.dispatch_table.clear()
copyreg.dispatch_table.update(_plain_pickling)

SHORT = RetryPolicy(attempts=1)
ONE_BY_ONE = partial(
    ControlSession, user_id=1, batching=Batching(chunk_size=500, max_concurrency=1)
)
IN_A_HURRY = partial(ControlSession, user_id=1, retry=SHORT)


@pytest.fixture(scope="module", autouse=True)
def dask_pickling() -> Iterator[None]:
    copyreg.dispatch_table.update(_dask_pickling)
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(_plain_pickling)


@pytest.fixture(scope="module")
def cluster(dask_pickling: None) -> Iterator[Any]:  # noqa: ARG001 - first it, then the cluster
    """Run two worker processes, in a loop of their own so that the tests can share them."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0"
    ) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: Any) -> AsyncIterator[Client]:
    async with Client(cluster.scheduler_address, asynchronous=True) as client:
        await client.wait_for_workers(2)
        yield client


def flags(cluster: Any) -> Any:
    return cluster.scheduler.extensions["events"]._events


async def nothing_left(cluster: Any) -> None:
    """Wait until the scheduler, in a thread of its own, has heard that all is released."""
    async with asyncio.timeout(10):
        while cluster.scheduler.tasks:  # noqa: ASYNC110 - it lives in another thread
            await asyncio.sleep(0.01)


def truth(api: ControlApiSimulator) -> dict[int, str]:
    return {task_id: task.status for task_id, task in api.tasks.items()}


# --- cutting --------------------------------------------------------------------------------------


@given(
    sizes=st.dictionaries(st.integers(0, 50), st.integers(0, 400), max_size=6),
    workers=st.integers(1, 9),
    least=st.integers(1, 50),
    more=st.integers(0, 300),
)
def test_every_id_is_in_one_part_and_the_order_stays(
    sizes: dict[int, int], workers: int, least: int, more: int
) -> None:
    first = 0
    projects = {}
    for project_id, size in sizes.items():
        projects[project_id] = list(range(first + size, first, -1))
        first += size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "SHARD_MIN", least)
        patch.setattr(distributed, "SHARD_MAX", least + more)
        parts = split(projects, workers)

    pairs = [(project, i) for project, ids in projects.items() for i in ids]
    assert [(project, i) for part in parts for project, ids in part.items() for i in ids] == pairs
    counts = [sum(map(len, part.values())) for part in parts]
    assert all(ids for part in parts for ids in part.values())
    assert all(0 < count <= least + more for count in counts)
    assert len(set(counts[:-1])) <= 1
    assert len(parts) <= max(workers, -(-len(pairs) // (least + more)) + workers - 1)
    if len(pairs) <= workers * (least + more):
        assert len(parts) <= workers
    if len(parts) > workers:
        assert all(count * 2 >= least for count in counts[:-1])


@pytest.mark.parametrize(
    ("total", "workers", "counts"),
    [
        (0, 2, []),
        (1, 2, [1]),
        (1_000, 2, [1_000]),
        (1_001, 2, [501, 500]),
        (100_000, 2, [50_000] * 2),
        (100_001, 2, [25_001] * 3 + [24_998]),
        (10, 100, [10]),
        (200_000, 100, [2_000] * 100),
    ],
)
def test_parts_are_large_and_one_a_worker(total: int, workers: int, counts: list[int]) -> None:
    assert [len(part[2]) for part in split({2: list(range(total))}, workers)] == counts


# --- words after a loss ---------------------------------------------------------------------------

RUNNING, CANCELED, COMPLETED = TaskStatus.RUNNING, TaskStatus.CANCELED, TaskStatus.COMPLETED
SENT, LATE = StopResult.STOP_SENT, StopResult.UNAVAILABLE


@pytest.mark.parametrize(
    ("found", "late", "expected"),
    [
        ((SENT, RUNNING, None), None, (SENT, RUNNING, None)),
        (
            (StopResult.NOT_RUNNING, COMPLETED, None),
            None,
            (StopResult.NOT_RUNNING, COMPLETED, None),
        ),
        (
            (StopResult.NOT_RUNNING, CANCELED, None),
            None,
            (SENT, CANCELED, "found Canceled after a worker died that may have stopped it"),
        ),
        ((StopResult.NOT_FOUND, None, "no"), None, (StopResult.NOT_FOUND, None, "no")),
        (
            (StopResult.NOT_SENT, None, "HTTP 502"),
            None,
            (StopResult.UNCONFIRMED, None, "a worker that died may have stopped it; HTTP 502"),
        ),
        (
            (LATE, RUNNING, "unavailable"),
            (StopResult.NOT_RUNNING, CANCELED, None),
            (SENT, CANCELED, "found Canceled after a worker died that may have stopped it"),
        ),
        (
            (LATE, RUNNING, "unavailable"),
            (StopResult.NOT_RUNNING, COMPLETED, None),
            (LATE, COMPLETED, "unavailable"),
        ),
        (
            (LATE, RUNNING, "unavailable"),
            (StopResult.NOT_FOUND, None, "gone"),
            (LATE, RUNNING, "unavailable"),
        ),
        (
            (LATE, RUNNING, "unavailable"),
            (StopResult.NOT_SENT, None, "HTTP 502"),
            (StopResult.UNCONFIRMED, RUNNING, "a worker that died may have stopped it; HTTP 502"),
        ),
    ],
)
def test_what_a_second_run_finds_is_reworded(found: Any, late: Any, expected: Any) -> None:
    report = StopReport.of([StopOutcome(5, 2, *found)], StopStats(1, 1))
    seen = StopReport.of([StopOutcome(5, 2, *late)] if late else [], StopStats(2))
    assert settled(report, seen)[5] == StopOutcome(5, 2, *expected)
    assert settled(report, seen).stats == StopStats(3, 1)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "kind", "words"),
    [
        ([2], TypeError, r"targets must map servers to projects, not \[2\]"),
        ({"a": [64]}, TypeError, r"'a' must map projects to task ids, not \[64\]"),
        ({"a": {"2": [64]}}, TypeError, "'a', project '2': project_id must be an int, not '2'"),
        ({"a": {-2: [64]}}, ValueError, "project -2: project_id must be from 0 .* not -2"),
        ({"a": {2: [64, "65"]}}, TypeError, "'a', project 2: a task id must be an int, not '65'"),
        ({"a": {2: [64, True]}}, TypeError, "must be an int, not True"),
        ({"a": {2: -1}}, ValueError, "must be from 0 to .*, not -1"),
        ({"a": {2: b"64"}}, TypeError, "an iterable of ints, not b'64'"),
        ({"a": {2: None}}, TypeError, "an iterable of ints, not None"),
        ({"a": {2: ALL_ACTIVE}}, TypeError, "an iterable of ints, not ALL_ACTIVE"),
        ({"a": {2: [1, 7], 3: 7}}, ValueError, "'a': task 7 is asked for in two projects"),
        ({"http://me:pw@a/": {2: None}}, TypeError, r"'http://\*\*\*@a/', project 2"),
    ],
)
async def test_bad_targets_are_named(
    client: Client, targets: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        await stop_running_on(client, targets, session_factory=ONE_BY_ONE)
    assert "pw" not in str(caught.value)


async def test_bad_clients_and_factories_are_named(client: Client) -> None:
    targets = {"http://127.0.0.1:9": {2: [64]}}
    nobody: Any = "a client"
    with pytest.raises(TypeError, match="an asynchronous Client of this loop, not 'a client'"):
        await stop_running_on(nobody, targets, session_factory=ONE_BY_ONE)
    with pytest.raises(TypeError, match="session_factory must be callable, not 'a client'"):
        await stop_running_on(client, targets, session_factory=nobody)
    generator = (number for number in range(3))
    with pytest.raises(TypeError, match=r"servers and session_factory must pickle: .*generator"):
        await stop_running_on(client, targets, session_factory=partial(ONE_BY_ONE, auth=generator))


async def test_a_synchronous_client_is_refused(cluster: Any) -> None:
    def synchronous() -> Client:
        return Client(cluster.scheduler_address)

    client = await asyncio.to_thread(synchronous)
    try:
        with pytest.raises(TypeError, match="an asynchronous Client of this loop"):
            await stop_running_on(client, {}, session_factory=ONE_BY_ONE)
    finally:
        await asyncio.to_thread(client.close)


def test_a_missing_distributed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "ctrlapi_async.distributed")
    with pytest.raises(ImportError, match=r"pip install 'ctrlapi-async\[dask\]'"):
        importlib.import_module("ctrlapi_async.distributed")


def test_a_shard_shows_no_secret() -> None:
    shard = Shard("http://me:pw@a/", {2: [64]}, partial(ONE_BY_ONE, auth=("me", "pw")))
    assert "pw" not in repr(shard)


# --- runs -----------------------------------------------------------------------------------------


async def test_many_servers_get_a_report_each(cluster: Any, client: Client) -> None:
    async with ControlApiSimulator() as api, ControlApiSimulator() as other:
        api.mixed_tasks(2_500)
        other.mixed_tasks(1_500, seed=1)
        other.add_tasks([7_002, 7_001], "Completed", project_id=3)
        before, other_before = truth(api), truth(other)
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
        for server, was, report in ((api, before, one), (other, other_before, two)):
            assert set(report.ids(SENT)) == {i for i, status in was.items() if status == "Running"}
            assert set(report.ids(SENT)) == {i for i, task in server.tasks.items() if task.stopped}
            assert report.stats.status_calls == server.counters.requests_by_method["TaskStatus"]
            assert server.counters.peak <= 2
    assert not flags(cluster)
    await nothing_left(cluster)


async def test_nothing_known_is_lost_when_servers_fail(client: Client) -> None:
    async with ControlApiSimulator() as api, ControlApiSimulator() as other:
        api.add_tasks([64, 65])
        other.add_tasks([64])
        other.fault(HttpStatus(502))
        gone = "http://me:pw@127.0.0.1:9"
        with pytest.raises(ServersIncompleteError) as caught:
            await stop_running_on(
                client,
                {api.url: {2: [65, 64], 9: 99}, other.url: {2: 64}, gone: {2: 1}},
                session_factory=IN_A_HURRY,
            )
        error = caught.value
        assert error.reports[api.url].ids(SENT) == [65, 64]
        assert error.reports[api.url].ids(StopResult.NOT_SENT) == [99]
        assert isinstance(error.exceptions[0].exceptions[0], ProjectNotFoundError)
        assert api.tasks[64].stopped
        assert api.tasks[65].stopped
        assert error.reports[other.url][64].result is StopResult.NOT_SENT
        assert error.reports[gone][1].result is StopResult.NOT_SENT
        assert "pw" not in f"{error!r} {error.exceptions!r}"
        parts: Any = error.exceptions
        assert [part.report for part in parts] == list(error.reports.values())

        again = pickle.loads(pickle.dumps(error))
        assert again.reports == error.reports
        assert str(again) == str(error)
        some = error.subgroup(HttpError)
        assert isinstance(some, ServersIncompleteError)
        assert some.reports == error.reports
        [part] = some.exceptions
        assert part.report == error.reports[other.url]


def no_session(server: str) -> ControlSession:
    raise LookupError(f"no password for {server}")


class Cancelled(ControlSession):
    async def __aenter__(self) -> ControlSession:  # type: ignore[override]
        raise asyncio.CancelledError


async def test_a_factory_that_raises_leaves_its_tasks_alone(client: Client) -> None:
    with pytest.raises(ServersIncompleteError) as caught:
        await stop_running_on(client, {"a": {2: [5]}}, session_factory=no_session)
    [outcome] = caught.value.reports["a"].values()
    assert outcome.result is StopResult.NOT_SENT
    assert "no password for a" in str(outcome.error)
    assert caught.value.subgroup(LookupError) is not None


async def test_a_shard_that_is_cancelled_on_its_worker_is_lost(client: Client) -> None:
    with pytest.raises(ServersIncompleteError, match="1 of 1 servers") as caught:
        await stop_running_on(
            client, {"http://a": {2: [5]}}, session_factory=partial(Cancelled, user_id=1)
        )
    [outcome] = caught.value.reports["http://a"].values()
    assert outcome.result is StopResult.NOT_SENT
    [[error]] = [part.exceptions for part in caught.value.exceptions]
    assert isinstance(error, RequestError)
    assert not error.sent


# --- deaths ---------------------------------------------------------------------------------------


async def test_a_killed_workers_shard_is_checked_again(
    cluster: Any, client: Client, api: ControlApiSimulator
) -> None:
    api.mixed_tasks(4_000)
    before = truth(api)
    running = [task_id for task_id, status in before.items() if status == "Running"]
    gate = api.hold("TaskStop", effect=True)
    run = asyncio.create_task(
        stop_running_on(client, {api.url: {2: range(1, 4_001)}}, session_factory=ONE_BY_ONE)
    )
    # Each worker has carried out a stop whose reply is on its way: now one of them dies.
    await api.wait_until(lambda: gate.held == 2)
    stopped = {task_id for task_id, task in api.tasks.items() if task.stopped}
    assert len(stopped) == 1_000
    pids = await client.run(os.getpid)
    os.kill(min(pids.values()), signal.SIGKILL)
    await api.wait_until(lambda: api.counters.in_flight == 1)
    gate.release()
    [report] = (await run).values()

    assert list(report) == list(range(1, 4_001))
    assert report.complete
    again = {outcome.task_id for outcome in report.values() if outcome.error}
    assert {report[task_id].error for task_id in again} == {
        "found Canceled after a worker died that may have stopped it"
    }
    # The half that was lost is one of the two; of what it had stopped nothing is missing.
    [first_half] = {task_id <= 2_000 for task_id in again}
    lost = set(range(1, 2_001) if first_half else range(2_001, 4_001))
    canceled = {task_id for task_id, status in before.items() if status == "Canceled"}
    assert again == lost & (stopped | canceled)
    assert set(report.ids(SENT)) == set(running) | (lost & canceled)
    assert {task_id for task_id, task in api.tasks.items() if task.stopped} == set(running)
    assert {api.tasks[task_id].stop_requests for task_id in running} == {1}
    assert {t: s for t, s in truth(api).items() if t not in set(running)} == {
        t: s for t, s in before.items() if s != "Running"
    }
    assert not flags(cluster)
    print(report)  # noqa: T201 - for `pytest -s`


def deadly(_: str) -> ControlSession:
    os._exit(1)


class Deadly(ControlSession):
    async def stop_running_across(self, *_: Any, **__: Any) -> StopReport:
        os._exit(1)


@pytest.mark.parametrize(
    ("factory", "result"),
    [
        (deadly, StopResult.NOT_SENT),
        (partial(Deadly, user_id=1), StopResult.UNCONFIRMED),
    ],
)
async def test_workers_that_keep_dying_are_given_up(
    cluster: Any, client: Client, monkeypatch: pytest.MonkeyPatch, factory: Any, result: StopResult
) -> None:
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    monkeypatch.setattr(distributed, "RUNS", 2)
    with pytest.raises(ServersIncompleteError) as caught:
        await stop_running_on(client, {"http://a": {2: [7, 5]}}, session_factory=factory)
    report = caught.value.reports["http://a"]
    assert report.ids(result) == [7, 5]
    assert report[7].error == "2 workers died under a shard, one by one"
    [part] = caught.value.exceptions
    assert isinstance(part, StopIncompleteError)
    assert str(part).startswith("'http://a': 2 of 2 tasks without an answer")
    assert not flags(cluster)


async def test_a_client_that_closes_leaves_its_tasks_unconfirmed(
    cluster: Any, client: Client, api: ControlApiSimulator
) -> None:
    api.add_tasks([5, 6])
    gate = api.hold("TaskStop")
    run = asyncio.create_task(
        stop_running_on(client, {api.url: {2: [5, 6]}}, session_factory=ONE_BY_ONE)
    )
    await api.wait_until(lambda: gate.held == 1)
    await client.close()
    with pytest.raises(ServersIncompleteError) as caught:
        await run
    assert caught.value.reports[api.url].ids(StopResult.UNCONFIRMED) == [5, 6]
    gate.release()
    await api.wait_until(lambda: api.counters.connections_open == 0)
    flags(cluster).clear()  # nobody was there to do it


# --- cancelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["TaskStatus", "TaskStop"])
async def test_cancelling_ends_the_shards(
    cluster: Any, client: Client, api: ControlApiSimulator, method: str
) -> None:
    api.add_tasks(range(2_000))
    gate = api.hold(method)
    run = asyncio.create_task(
        stop_running_on(client, {api.url: {2: range(2_000)}}, session_factory=ONE_BY_ONE)
    )
    await api.wait_until(lambda: gate.held == 2)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    await api.wait_until(lambda: api.counters.connections_open == 0)
    gate.release()
    assert api.counters.requests_by_method[method] == 2
    assert not any(task.stopped for task in api.tasks.values())
    assert not flags(cluster)
    await nothing_left(cluster)


# --- a shard, in this process ---------------------------------------------------------------------


async def begin(client: Client, *, begun: bool = False) -> str:
    await Event("here-wanted", client).set()
    if begun:
        await Event("here-begun", client).set()
    return "here"


@pytest.fixture
async def clean(client: Client) -> AsyncIterator[None]:
    yield
    await Event("here-wanted", client).clear()
    await Event("here-begun", client).clear()


@pytest.mark.usefixtures("clean")
async def test_a_shard_runs_once_and_only_if_wanted(
    client: Client, api: ControlApiSimulator
) -> None:
    api.add_tasks([5, 6])
    shard = Shard(api.url, {2: [5, 6]}, ONE_BY_ONE, "here")
    assert await run_shard(shard) is None
    await begin(client)
    ending = await run_shard(shard)
    assert ending is not None
    assert ending[0].ids(SENT) == [5, 6]
    assert ending[1] == ()
    requests = api.counters.requests
    assert await run_shard(shard) is None
    assert api.counters.requests == requests


@pytest.mark.usefixtures("clean")
async def test_a_shard_gives_what_it_knows_when_it_fails(
    client: Client, api: ControlApiSimulator
) -> None:
    api.add_tasks([5, 6])
    api.fault(HttpStatus(403), method="TaskStop")
    ending = await run_shard(Shard(api.url, {2: [5, 6]}, ONE_BY_ONE, await begin(client)))
    assert ending is not None
    assert not ending[0].complete
    assert isinstance(ending[1][0], HttpError)


@pytest.mark.usefixtures("clean")
async def test_a_shard_that_is_no_longer_wanted_ends(
    client: Client, api: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "WATCH", 0.01)
    api.add_tasks([5, 6])
    gate = api.hold("TaskStatus")
    name = await begin(client)
    run = asyncio.create_task(run_shard(Shard(api.url, {2: [5, 6]}, ONE_BY_ONE, name)))
    await api.wait_until(lambda: gate.held == 1)
    looks = 0

    async def look(_: Event) -> bool:
        nonlocal looks
        looks += 1
        return looks < 3

    monkeypatch.setattr(Event, "is_set", look)
    assert await run is None
    assert not api.tasks[5].stop_requests


@pytest.mark.usefixtures("clean")
async def test_a_late_stop_of_a_dead_worker_is_found(client: Client) -> None:
    async with ControlApiSimulator(stop_delay=5) as api:
        api.add_tasks([5, 6])
        api.add_task(7, life=[(5, "Completed")])
        async with ONE_BY_ONE(api.url) as dead:
            await dead.task_stop(2, [5, 6])
        gate = api.hold("TaskStop")
        shard = Shard(api.url, {2: [5, 6, 7]}, ONE_BY_ONE, await begin(client), again=True)
        run = asyncio.create_task(run_shard(shard))
        await api.wait_until(lambda: gate.held == 1)
        api.advance(5)
        gate.release()
        ending = await run
    assert ending is not None
    report, errors = ending
    assert errors == ()
    assert report.ids(SENT) == [5, 6]
    assert "worker died" in str(report[5].error)
    assert report[7].result is LATE
    assert report[7].status is COMPLETED
