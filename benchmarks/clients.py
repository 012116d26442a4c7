"""The clients that are compared, each doing the whole bulk stop in its own way."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import attrs
import cattrs
import orjson
from yarl import URL

from benchmarks.server import runs
from ctrlapi_async import Batching, ControlSession

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from ctrlapi_async import StopReport, StopRun

    Run = Callable[[], Awaitable[object]]
    Client = Callable[["Job"], AbstractAsyncContextManager[Run]]
    Decode = Callable[[bytes], Sequence[Any]]

PATH: Final = "/ctrl_api/v1/json"
PROJECT: Final = 2
USER: Final = 1


@attrs.frozen
class Job:
    """Which tasks to stop, where and how; no chunk: the client's own choice, 500 if it has none."""

    url: str
    ids: Sequence[int]
    chunk: int | None = 500
    concurrency: int = 8

    @property
    def chunks(self) -> Iterable[Sequence[int]]:
        """The ids in chunks."""
        return chunks(self.ids, self.chunk or 500)


def chunks(ids: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    """Cut ids into chunks."""
    return (ids[start : start + size] for start in range(0, len(ids), size))


def request(method: str, task_ids: Sequence[int], call_id: int = 1) -> dict[str, Any]:
    """Give the document of a request of one call."""
    params = {"project_id": PROJECT, "task_ids": task_ids}
    call = {"method": method, "id": call_id, "params": params}
    return {"user_id": USER, "methods": [call]}


# --- This package ---------------------------------------------------------------------------------


def _session(job: Job) -> ControlSession:
    return ControlSession(job.url, USER, batching=Batching(job.chunk, job.concurrency))


async def _listen(run: StopRun) -> StopReport:
    """Take the outcomes of a run one by one."""
    async with run:
        async for _ in run:
            pass
    return run.report


@asynccontextmanager
async def package(job: Job) -> AsyncIterator[Run]:
    """`stop_running`, all promises kept."""
    async with _session(job) as api:
        yield lambda: api.stop_running(PROJECT, job.ids)


@asynccontextmanager
async def listening(job: Job) -> AsyncIterator[Run]:
    """`stopping`, whose outcomes are taken one by one."""
    async with _session(job) as api:
        yield lambda: _listen(api.stopping(PROJECT, job.ids))


@asynccontextmanager
async def asking(job: Job) -> AsyncIterator[Run]:
    """`task_status`: the checks without the stops."""
    async with _session(job) as api:
        yield lambda: api.task_status(PROJECT, job.ids)


@asynccontextmanager
async def streaming(job: Job) -> AsyncIterator[Run]:
    """`stopping` without a report, over an async source."""

    async def source() -> AsyncIterator[int]:
        for task_id in job.ids:
            yield task_id

    async with _session(job) as api:
        yield lambda: _listen(api.stopping(PROJECT, source(), collect=False))


# --- What any client on aiohttp pays at least -----------------------------------------------------


def _bodies(job: Job) -> tuple[list[bytes], list[bytes]]:
    """Make the bodies of all checks, and of all stops, by somebody who knows what runs."""
    running = [task_id for task_id in job.ids if runs(task_id)]
    calls = (
        [("TaskStatus", chunk) for chunk in job.chunks],
        [("TaskStop", chunk) for chunk in chunks(running, job.chunk or 500)],
    )
    number = count()
    checks, stops = ([orjson.dumps(request(*call, next(number))) for call in of] for of in calls)
    return checks, stops


@asynccontextmanager
async def _posting(job: Job) -> AsyncIterator[Callable[[bytes], Awaitable[bytes]]]:
    """Give what sends a body and gives the reply's."""
    url = URL(job.url + PATH)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def post(body: bytes) -> bytes:
            async with session.post(url, data=body, headers=headers) as response:
                return await response.read()

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
async def in_order(job: Job) -> AsyncIterator[Run]:
    """The floor client, but a stop waits until the checks that name its tasks are answered."""
    checks, stops = _bodies(job)
    shown = [sum(map(runs, chunk)) for chunk in job.chunks]
    full = job.chunk or 500
    async with _posting(job) as post:

        async def run() -> None:
            waiting = deque(zip(checks, shown, strict=True))
            unanswered, pooled = len(checks), 0
            stopping = iter(stops)
            news = asyncio.Event()

            async def work() -> None:
                nonlocal unanswered, pooled
                while unanswered or pooled:
                    if pooled >= full or not unanswered:
                        pooled -= min(pooled, full)
                        await post(next(stopping))
                    elif waiting:
                        body, found = waiting.popleft()
                        await post(body)
                        unanswered -= 1
                        pooled += found
                        news.set()
                    else:
                        news.clear()
                        await news.wait()

            await asyncio.gather(*(work() for _ in range(job.concurrency)))

        yield run


# --- What users write -----------------------------------------------------------------------------


def _two_phases(decode: Decode, name: Callable[[Any], int], status: Callable[[Any], Any]) -> Client:
    """Make a client that checks everything, then stops what runs, and keeps every row."""

    @asynccontextmanager
    async def client(job: Job) -> AsyncIterator[Run]:
        async with aiohttp.ClientSession() as session:
            slots = asyncio.Semaphore(job.concurrency)

            async def call(method: str, task_ids: Sequence[int]) -> Sequence[Any]:
                async with (
                    slots,
                    session.post(job.url + PATH, json=request(method, task_ids)) as response,
                ):
                    response.raise_for_status()
                    return decode(await response.read())

            async def run() -> object:
                checks = await asyncio.gather(*(call("TaskStatus", chunk) for chunk in job.chunks))
                found = {name(row): row for rows in checks for row in rows}
                running = [task_id for task_id in job.ids if status(found[task_id]) == "Running"]
                stops = await asyncio.gather(
                    *(call("TaskStop", chunk) for chunk in chunks(running, job.chunk or 500))
                )
                for rows in stops:
                    for row in rows:
                        found[name(row)] = row
                return found

            yield run

    return client


@attrs.frozen
class Row:
    """One row of a reply."""

    task_id: int
    status: str | None = None
    error: str | None = None


def _plain(body: bytes) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(body)["reply"][0]["result"]
    return rows


def _attrs(body: bytes) -> list[Row]:
    rows = orjson.loads(body)["reply"][0]["result"]
    return [Row(row["task_id"], row.get("status"), row.get("error")) for row in rows]


def _cattrs(body: bytes) -> list[Row]:
    return cattrs.structure(orjson.loads(body)["reply"][0]["result"], list[Row])


def _one_by_one(*, concurrency: int | None) -> Client:
    """Make a client that spends a call on each task; without concurrency, a connection too."""

    @asynccontextmanager
    async def client(job: Job) -> AsyncIterator[Run]:
        slots = asyncio.Semaphore(concurrency or 1)
        connector = aiohttp.TCPConnector(limit=0, force_close=concurrency is None)
        async with aiohttp.ClientSession(connector=connector) as session:

            async def call(method: str, task_id: int) -> str:
                async with (
                    slots,
                    session.post(job.url + PATH, json=request(method, [task_id])) as response,
                ):
                    response.raise_for_status()
                    [row] = _plain(await response.read())
                    return str(row.get("status"))

            async def stop(task_id: int) -> str:
                found = await call("TaskStatus", task_id)
                return await call("TaskStop", task_id) if found == "Running" else found

            async def run() -> object:
                if concurrency is None:
                    return {task_id: await stop(task_id) for task_id in job.ids}
                return dict(zip(job.ids, await asyncio.gather(*map(stop, job.ids)), strict=True))

            yield run

    return client


CLIENTS: Final[dict[str, Client]] = {
    "floor": _bare(lambda _: None),
    "in order": in_order,
    "orjson": _bare(orjson.loads),
    "package": package,
    "package on uvloop": package,
    "listening": listening,
    "asking": asking,
    "streaming": streaming,
    "by hand": _two_phases(_plain, lambda row: row["task_id"], lambda row: row["status"]),
    "attrs": _two_phases(_attrs, lambda row: row.task_id, lambda row: row.status),
    "cattrs": _two_phases(_cattrs, lambda row: row.task_id, lambda row: row.status),
    "curl-like": _one_by_one(concurrency=None),
    "gather": _one_by_one(concurrency=8),
}
"""By the names under which figures are kept."""
