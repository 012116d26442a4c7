"""The clients that are compared, each doing the whole bulk stop in its own way."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import attrs
import orjson
from yarl import URL

from benchmarks.peers import async_bulk, batch_writer
from benchmarks.replies import current_task, is_running
from ctrlapi_async import Batching, ControlSession, RetryPolicy, StopIncompleteError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from ctrlapi_async import StopReport, StopRun

    Run = Callable[[], Awaitable[object]]
    Client = Callable[["Job"], AbstractAsyncContextManager[Run]]
    Entry = dict[str, Any]

PATH: Final = "/ctrl_api/v1/json"
PROJECT: Final = 2
USER: Final = 1
# Faults are met in milliseconds: what they cost in CPU is measured, not how long one waits.
_RETRY: Final = RetryPolicy(wait_initial=0.005, wait_max=0.02)


@attrs.frozen
class Job:
    """Which tasks to stop, where and how; without a chunk, the client's own choice."""

    url: str
    ids: list[int]
    chunk: int | None = 500
    concurrency: int = 8
    server: str = "documented"

    @property
    def size(self) -> int:
        """Task ids a request at most, for clients that leave the choice to others."""
        return self.chunk or 500

    @property
    def chunks(self) -> Iterator[list[int]]:
        """The ids in chunks."""
        return _chunks(self.ids, self.size)

    def running(self, ids: Iterable[int]) -> list[int]:
        """Return the ids of the tasks to stop: those that are Running, under their current id."""
        chains = self.server != "narrow"
        return [now for each in ids if is_running(now := current_task(each, chains=chains))]


def _chunks(ids: list[int], size: int) -> Iterator[list[int]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _request(method: str, task_ids: Sequence[int], call_id: int = 1) -> dict[str, Any]:
    """Return the document of a request of one call."""
    params = {"project_id": PROJECT, "task_ids": task_ids}
    call = {"method": method, "id": call_id, "params": params}
    return {"user_id": USER, "methods": [call]}


# --- This package ---------------------------------------------------------------------------------


def _session(job: Job) -> ControlSession:
    batching = Batching(job.chunk, job.concurrency)
    return ControlSession(job.url, USER, batching=batching, retry=_RETRY)


async def _take_all(run: StopRun) -> StopReport:
    """Take the outcomes of a run one by one."""
    async with run:
        async for _ in run:
            pass
    return run.report


@asynccontextmanager
async def package(job: Job) -> AsyncIterator[Run]:
    """Run `stop_running`, all promises kept."""
    async with _session(job) as session:

        async def run() -> StopReport:
            try:
                return await session.stop_running(PROJECT, job.ids)
            except StopIncompleteError as error:
                if job.server != "faults":
                    raise
                return error.report

        yield run


@asynccontextmanager
async def stopping(job: Job) -> AsyncIterator[Run]:
    """Run `stopping`, whose outcomes are taken one by one."""
    async with _session(job) as session:
        yield lambda: _take_all(session.stopping(PROJECT, job.ids))


@asynccontextmanager
async def streaming(job: Job) -> AsyncIterator[Run]:
    """Run `stopping` without a report, over an async source."""

    async def source() -> AsyncIterator[int]:
        for task_id in job.ids:
            yield task_id

    async with _session(job) as session:
        yield lambda: _take_all(session.stopping(PROJECT, source(), collect=False))


@asynccontextmanager
async def task_status(job: Job) -> AsyncIterator[Run]:
    """Run `task_status`: the checks without the stops."""
    async with _session(job) as session:
        yield lambda: session.task_status(PROJECT, job.ids)


@asynccontextmanager
async def single_stops(job: Job) -> AsyncIterator[Run]:
    """Run `stop` for each task, by callers that come in groups and wait for each other."""
    async with _session(job) as session:

        async def run() -> None:
            for group in _chunks(job.ids, 20_000):
                async with asyncio.TaskGroup() as callers:
                    for few in _chunks(group, 200):  # starting them all would be one long step
                        for task_id in few:
                            callers.create_task(session.stop(PROJECT, task_id))
                        await asyncio.sleep(0)

        yield run


# --- What any client on aiohttp pays at least -----------------------------------------------------


def _bodies(job: Job) -> tuple[list[bytes], list[bytes]]:
    """Make the bodies of all checks, and of all stops, by somebody who knows what runs."""
    calls = (
        [("TaskStatus", chunk) for chunk in job.chunks],
        [("TaskStop", chunk) for chunk in _chunks(job.running(job.ids), job.size)],
    )
    number = count()
    checks, stops = ([orjson.dumps(_request(*call, next(number))) for call in of] for of in calls)
    return checks, stops


@asynccontextmanager
async def _posting(job: Job) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    """Make what sends a body, again while it meets a fault, and returns the reply's."""
    url = URL(job.url + PATH)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def post(body: bytes) -> bytes:
            while True:
                try:
                    async with session.post(url, data=body, headers=headers) as response:
                        if response.status == 200:
                            return await response.read()
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(_RETRY.wait_initial)

        yield post


def _bare(use: Callable[[bytes], object]) -> Client:
    """Make a client that knows beforehand what runs: its bodies are made before it starts."""

    @asynccontextmanager
    async def client(job: Job) -> AsyncIterator[Run]:
        checks, stops = _bodies(job)
        async with _posting(job) as post:

            async def work(queue: Iterable[bytes]) -> None:
                for body in queue:
                    use(await post(body))

            async def run() -> None:
                queue = iter([*checks, *stops])
                await asyncio.gather(*(work(queue) for _ in range(job.concurrency)))

            yield run

    return client


@asynccontextmanager
async def bare_in_order(job: Job) -> AsyncIterator[Run]:
    """Send bodies made in advance, each stop once the checks that name its tasks are answered."""
    checks, stops = _bodies(job)
    found = [len(job.running(chunk)) for chunk in job.chunks]
    async with _posting(job) as post:

        async def run() -> None:
            waiting = deque(zip(checks, found, strict=True))
            unanswered, pooled = len(checks), 0
            stopping = iter(stops)
            news = asyncio.Event()

            async def work() -> None:
                nonlocal unanswered, pooled
                while unanswered or pooled:
                    if pooled >= job.size or not unanswered:
                        pooled -= min(pooled, job.size)
                        await post(next(stopping))
                    elif waiting:
                        body, running = waiting.popleft()
                        await post(body)
                        unanswered -= 1
                        pooled += running
                        news.set()
                    else:
                        news.clear()
                        await news.wait()

            await asyncio.gather(*(work() for _ in range(job.concurrency)))

        yield run


# --- What users write -----------------------------------------------------------------------------


_LIVE: Final = frozenset({"Scheduled", "Explore", "Running"})
_DENIED: Final = re.compile(r"access denied to tasks \[([\d, ]+)\]")


class _ByHand:
    """A careful user's client: all checks, then all stops; it follows restart chains.

    It repeats a request three times on any fault, stops included, leaves out the tasks that the
    server denies, and keeps the last row of each task. Nothing else is promised.
    """

    def __init__(self, job: Job, session: aiohttp.ClientSession) -> None:
        self._job = job
        self._session = session
        self._slots = asyncio.Semaphore(job.concurrency)

    async def _post(self, method: str, task_ids: list[int]) -> Entry:
        for attempt in range(4):
            try:
                async with (
                    self._slots,
                    self._session.post(
                        self._job.url + PATH, json=_request(method, task_ids)
                    ) as response,
                ):
                    response.raise_for_status()
                    entry: Entry = json.loads(await response.read())["reply"][0]
                    return entry
            except aiohttp.ClientError:
                if attempt == 3:
                    raise
            await asyncio.sleep(_RETRY.wait_initial)
        raise AssertionError

    async def call(self, method: str, task_ids: list[int]) -> list[Any]:
        """Return the rows of a call, without tasks that the server denies."""
        entry = await self._post(method, task_ids)
        if denied := _DENIED.match(entry.get("error", "")):
            bad = set(map(int, denied[1].split(",")))
            entry = await self._post(method, [each for each in task_ids if each not in bad])
        rows: list[Any] = entry["result"]
        return rows

    async def _call_all(self, method: str, task_ids: list[int]) -> Iterator[Any]:
        chunks = _chunks(task_ids, self._job.size)
        replies = await asyncio.gather(*(self.call(method, chunk) for chunk in chunks))
        return (row for rows in replies for row in rows)

    async def run(self) -> dict[int, Any]:
        """Stop what runs; of each chain the live task counts, else the newest."""
        chain_of: dict[int, int] = {}
        current: dict[int, Any] = {}
        for row in await self._call_all("TaskStatus", self._job.ids):
            task_id = row["task_id"]
            chain = chain_of[task_id] = row.get("initial_task_id") or task_id
            known = current.get(chain)
            if (
                known is None
                or row.get("status") in _LIVE
                or (known.get("status") not in _LIVE and task_id > known["task_id"])
            ):
                current[chain] = row
        found = {n: current[chain_of[n]] for n in self._job.ids if n in chain_of}
        running = [row["task_id"] for row in found.values() if row.get("status") == "Running"]
        stops = await self._call_all("TaskStop", list(dict.fromkeys(running)))
        stopped = {row["task_id"]: row for row in stops}
        return {n: stopped.get(row["task_id"], row) for n, row in found.items()}


@asynccontextmanager
async def by_hand(job: Job) -> AsyncIterator[Run]:
    """Run what a careful user writes."""
    async with aiohttp.ClientSession() as session:
        yield _ByHand(job, session).run


@asynccontextmanager
async def one_by_one(job: Job) -> AsyncIterator[Run]:
    """Spend a call on each task, 8 at once; restart chains are not followed."""
    async with aiohttp.ClientSession() as session:
        client = _ByHand(job, session)

        async def stop(task_id: int) -> Any:
            [row, *_] = await client.call("TaskStatus", [task_id])
            return await client.call("TaskStop", [task_id]) if row["status"] == "Running" else row

        yield lambda: asyncio.gather(*map(stop, job.ids))


CLIENTS: Final[dict[str, Client]] = {
    "floor": _bare(lambda _: None),
    "bare": bare_in_order,
    "orjson": _bare(orjson.loads),
    "package": package,
    "package on uvloop": package,
    "stopping": stopping,
    "task_status": task_status,
    "stop": single_stops,
    "streaming": streaming,
    "by hand": by_hand,
    "one by one": one_by_one,
    "async_bulk": async_bulk,
    "batch_writer": batch_writer,
}
"""By the names under which figures are kept."""
