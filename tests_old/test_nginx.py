"""What the client promises when the API stands behind a real nginx, as it does in the field."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from nginx import BINARY, Nginx, nginx

from ctrlapi_async import (
    AuthError,
    Batching,
    ControlSession,
    HttpError,
    RetryPolicy,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async.simulator import ControlApiSimulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from ctrlapi_async import StopReport

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="nginx is missing: apt-get install --no-install-recommends nginx"
)

# As many repeats as it takes, at once: these tests are about what is repeated, not about when.
STUBBORN = RetryPolicy(attempts=1000, wait_initial=0.001, wait_max=0.01)
HASTY = RetryPolicy(attempts=3, wait_initial=0.001, wait_max=0.01)


@pytest.fixture
async def api() -> AsyncIterator[ControlApiSimulator]:
    async with ControlApiSimulator() as api:
        yield api


class Watcher:
    """An HTTP client that tells which answers came."""

    def __init__(self) -> None:
        trace = aiohttp.TraceConfig()
        trace.on_request_end.append(self._answered)
        self._trace = trace
        self._waiting: dict[int, asyncio.Event] = {}
        self.statuses: Counter[int] = Counter()

    def client(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(trace_configs=[self._trace])

    async def saw(self, status: int) -> None:
        await self._waiting.setdefault(status, asyncio.Event()).wait()

    async def _answered(
        self, _client: object, _context: object, params: aiohttp.TraceRequestEndParams
    ) -> None:
        status = params.response.status
        self.statuses[status] += 1
        self._waiting.setdefault(status, asyncio.Event()).set()


def agrees(report: StopReport, api: ControlApiSimulator) -> None:
    """What the report says of each task is what the server did."""
    assert report.complete
    assert list(report) == sorted(api.tasks)
    stopped = [task_id for task_id, task in sorted(api.tasks.items()) if task.stopped]
    assert report.ids(StopResult.STOP_SENT) == stopped
    assert not [task for task in api.tasks.values() if task.status == "Running"]


def stops(api: ControlApiSimulator) -> set[int]:
    """How often stops of a task were accepted: the numbers that occur."""
    return {task.stop_requests for task in api.tasks.values()}


async def test_a_run_of_any_size_passes_and_keeps_its_connections(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.mixed_tasks(10_000)
    async with (
        nginx(tmp_path, api.port) as server,
        ControlSession(server.url, 1) as session,
    ):
        report = await session.stop_running(2, range(1, 10_001))
    agrees(report, api)
    assert {request.status for request in server.served} == {200}
    assert len(server.served) == api.counters.requests == 10 + 5
    assert len({request.connection for request in server.served}) <= 8


@pytest.mark.parametrize("limit", ["1k", "200", "20k"])
async def test_413_halves_and_later_chunks_stay_small(
    api: ControlApiSimulator, tmp_path: Path, limit: str
) -> None:
    api.mixed_tasks(2000)
    watcher = Watcher()
    async with (
        nginx(tmp_path, api.port, f"client_max_body_size {limit};") as server,
        watcher.client() as client,
        ControlSession(
            server.url,
            1,
            client=client,
            batching=Batching(chunk_size=1000, max_concurrency=2),
            retry=STUBBORN,
        ) as session,
    ):
        report = await session.stop_running(2, range(1, 2001))
        refused = watcher.statuses[413]
        again = await session.stop_running(2, range(1, 2001))
    agrees(report, api)
    assert again.counts[StopResult.NOT_RUNNING] == 2000
    assert (refused > 0) is (limit != "20k")
    # Nothing is too large any more once the session has learnt what is.
    assert watcher.statuses[413] == refused
    assert stops(api) <= {0, 1}


async def test_413_of_a_body_beyond_what_nginx_reads_before_it_answers(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.max_body = 2**30
    first = 10**17
    api.add_tasks(range(first, first + 100_000))
    # 1.9 MB a request, 1 MiB is nginx's default limit; it answers while the body still comes.
    async with (
        nginx(tmp_path, api.port) as server,
        ControlSession(
            server.url, 1, batching=Batching(chunk_size=100_000), retry=STUBBORN
        ) as session,
    ):
        report = await session.stop_running(2, range(first, first + 100_000))
    agrees(report, api)
    assert 413 in {request.status for request in server.served}
    assert stops(api) == {1}


async def test_a_single_task_that_is_too_large_is_an_error_of_that_task(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    short, long = 1, 10**18
    api.add_tasks([short, long])
    # A request for task 1 has some 100 bytes, one for the other 18 more.
    async with (
        nginx(tmp_path, api.port, "client_max_body_size 105;") as server,
        ControlSession(server.url, 1, retry=HASTY) as session,
    ):
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, [short, long])
    report = caught.value.report
    assert [outcome.result for outcome in report.values()] == [
        StopResult.STOP_SENT,
        StopResult.NOT_SENT,
    ]
    assert [error.status for error in caught.value.exceptions if isinstance(error, HttpError)] == [
        413
    ]


async def test_basic_authentication(api: ControlApiSimulator, tmp_path: Path) -> None:
    api.mixed_tasks(50)
    (tmp_path / "users").write_text("operator:{PLAIN}p@ss/wörd\n", encoding="utf-8")
    location = f'auth_basic "Control API"; auth_basic_user_file {tmp_path}/users;'
    async with nginx(tmp_path, api.port, location) as server:
        wrong: list[dict[str, Any]] = [{}, {"auth": ("operator", "guess")}]
        for arguments in wrong:
            async with ControlSession(server.url, 1, **arguments, retry=STUBBORN) as session:
                with pytest.raises(AuthError, match=r"401.*credentials") as refused:
                    await session.call("TaskStatus", {"project_id": 2, "task_ids": 1})
                assert refused.value.status == 401
                with pytest.raises(StopIncompleteError) as caught:
                    await session.stop_running(2, range(1, 51))
                assert caught.group_contains(AuthError)
                assert caught.value.report.counts[StopResult.NOT_SENT] == 50
        assert api.counters.requests == 0
        # One request for each: what dooms all is not asked for twice.
        assert [request.status for request in server.served] == [401] * 4

        async with ControlSession(server.url, 1, auth=("operator", "p@ss/wörd")) as session:
            report = await session.stop_running(2, range(1, 51))
        agrees(report, api)
        inside = server.url.replace("//", "//operator:p%40ss%2Fw%C3%B6rd@")
        async with ControlSession(inside, 1) as session:
            assert len(await session.task_status(2, range(1, 51))) == 50


async def test_403_says_that_the_api_is_to_be_enabled(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.add_tasks(range(1, 1001))
    async with (
        nginx(tmp_path, api.port, "deny all;") as server,
        ControlSession(
            server.url, 1, batching=Batching(chunk_size=10, max_concurrency=1), retry=STUBBORN
        ) as session,
    ):
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, range(1, 1001))
    [error] = caught.value.exceptions
    assert isinstance(error, AuthError)
    assert error.status == 403
    assert "enable it on the server" in str(error)
    assert "<h1>403 Forbidden</h1>" in error.excerpt
    assert [request.status for request in server.served] == [403]
    assert caught.value.report.counts[StopResult.NOT_SENT] == 1000


async def test_a_redirect_to_https_is_told_and_not_followed(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.add_task(1)
    async with (
        nginx(tmp_path, api.port, "return 301 https://$host$request_uri;") as server,
        ControlSession(server.url, 1, retry=STUBBORN) as session,
    ):
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, 1)
    [error] = caught.value.exceptions
    assert isinstance(error, HttpError)
    assert "https://127.0.0.1/ctrl_api/v1/json" in str(error)
    assert [(request.status, request.method) for request in server.served] == [(301, "POST")]


async def test_502_while_the_server_is_down_and_then_back(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.mixed_tasks(500)
    watcher = Watcher()
    await api.stop()
    async with (
        nginx(tmp_path, api.port) as server,
        watcher.client() as client,
        ControlSession(server.url, 1, client=client, retry=STUBBORN) as session,
    ):
        run = asyncio.create_task(session.stop_running(2, range(1, 501)))
        await watcher.saw(502)
        await api.start()
        report = await run
    agrees(report, api)
    assert report.stats.retries >= watcher.statuses[502] > 0


async def test_502_for_good_ends_with_every_task_accounted_for(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.mixed_tasks(500)
    await api.stop()
    async with (
        nginx(tmp_path, api.port) as server,
        ControlSession(server.url, 1, retry=HASTY) as session,
    ):
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, range(1, 501))
    report = caught.value.report
    assert list(report) == list(range(1, 501))
    assert report.counts[StopResult.NOT_SENT] == 500
    assert {error.status for error in caught.value.exceptions if isinstance(error, HttpError)} == {
        502
    }
    assert [request.status for request in server.served] == [502] * 3 * 5
    assert report.stats.retries == 2 * 5


@pytest.mark.parametrize("method", ["TaskStatus", "TaskStop"])
@pytest.mark.parametrize("effect", [False, True])
async def test_504_of_a_server_that_hangs_and_then_goes_on(
    api: ControlApiSimulator, tmp_path: Path, method: str, effect: bool
) -> None:
    api.mixed_tasks(300)
    gate = api.hold(method, effect=effect)
    watcher = Watcher()
    async with (
        nginx(tmp_path, api.port, "proxy_read_timeout 50ms;") as server,
        watcher.client() as client,
        ControlSession(server.url, 1, client=client, retry=STUBBORN) as session,
    ):
        run = asyncio.create_task(session.stop_running(2, range(1, 301)))
        await watcher.saw(504)
        gate.release()
        report = await run
    agrees(report, api)
    # A stop that took effect before its reply was lost is not sent again.
    assert stops(api) == {0, 1}


async def test_504_for_good_on_the_stops_only(api: ControlApiSimulator, tmp_path: Path) -> None:
    api.add_tasks(range(1, 101))
    with api.hold("TaskStop"):
        async with (
            nginx(tmp_path, api.port, "proxy_read_timeout 20ms;") as server,
            ControlSession(server.url, 1, retry=HASTY) as session,
        ):
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, range(1, 101))
            assert not api.tasks[1].stopped
    # Each was found Running after the last stop too, so it may still be about to take effect.
    report = caught.value.report
    assert report.counts[StopResult.UNCONFIRMED] == 100
    assert report.stats.stop_calls == 3
    assert "504" in str(report[1].error)


async def test_429_by_limit_req_slows_down_and_loses_nothing(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.mixed_tasks(1000)
    async with (
        nginx(
            tmp_path,
            api.port,
            "limit_req zone=all burst=2 nodelay; limit_req_status 429;",
            http="limit_req_zone $binary_remote_addr zone=all:32k rate=50r/s;",
        ) as server,
        ControlSession(server.url, 1, batching=Batching(chunk_size=100), retry=STUBBORN) as session,
    ):
        report = await session.stop_running(2, range(1, 1001))
    agrees(report, api)
    statuses = Counter(request.status for request in server.served)
    assert statuses.keys() == {200, 429}
    assert report.stats.retries == statuses[429]
    assert report.stats.status_calls + report.stats.stop_calls == len(server.served)
    assert stops(api) == {0, 1}


async def test_connections_that_end_after_three_requests_cost_nothing(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.mixed_tasks(2000)
    async with (
        nginx(tmp_path, api.port, http="keepalive_requests 3;") as server,
        ControlSession(
            server.url, 1, batching=Batching(chunk_size=50, max_concurrency=4)
        ) as session,
    ):
        report = await session.stop_running(2, range(1, 2001))
    agrees(report, api)
    assert report.stats.retries == 0
    by_connection = Counter(request.connection for request in server.served)
    assert max(by_connection.values()) == 3
    assert sum(by_connection.values()) == 40 + 20


async def idle_until_closed(server: Nginx) -> None:
    """Wait as long as nginx keeps an idle connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET /idle HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.read()
    writer.close()
    await writer.wait_closed()


async def test_idle_connections_that_nginx_closes_lose_nothing(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.add_tasks(range(1, 51))
    # Some requests find the connection closed, some see it close just when they are on their way.
    async with (
        nginx(tmp_path, api.port, http="keepalive_timeout 5ms;") as server,
        ControlSession(server.url, 1, retry=STUBBORN) as session,
    ):
        for task_id in range(1, 51):
            report = await session.stop_running(2, task_id)
            assert report.ids(StopResult.STOP_SENT) == [task_id]
            if task_id % 2:
                await idle_until_closed(server)
    assert {task.stopped for task in api.tasks.values()} == {True}
    assert stops(api) == {1}
    ours = {request.connection for request in server.served if request.method == "POST"}
    assert len(ours) > 25


@pytest.mark.parametrize(
    ("method", "number"),
    [("TaskStatus", 1), ("TaskStatus", 12), ("TaskStop", 1), ("TaskStop", 6), ("TaskStop", 10)],
)
@pytest.mark.parametrize("effect", [False, True])
async def test_a_server_killed_in_the_middle_of_10_000_tasks_and_restarted(
    api: ControlApiSimulator, tmp_path: Path, method: str, number: int, effect: bool
) -> None:
    api.mixed_tasks(10_000, running=0.9)
    gate = api.hold(method, number=number, effect=effect)
    watcher = Watcher()
    async with (
        nginx(tmp_path, api.port) as server,
        watcher.client() as client,
        ControlSession(
            server.url, 1, client=client, batching=Batching(chunk_size=500), retry=STUBBORN
        ) as session,
    ):
        run = asyncio.create_task(session.stop_running(2, range(1, 10_001)))
        await api.wait_until(lambda: gate.held > 0)
        await api.stop()
        gate.release()
        await watcher.saw(502)
        await api.start()
        report = await run
    agrees(report, api)
    assert report.counts[StopResult.STOP_SENT] == 9000
    # More than the 20 checks and 18 stops of a calm run: what met the fault was looked into.
    assert report.stats.status_calls + report.stats.stop_calls > 38
    # Whatever was stopped before it died is not stopped again.
    assert stops(api) == {0, 1}
