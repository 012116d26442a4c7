"""What the client promises when the API stands behind real proxies, as it does in the field."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import (
    AuthError,
    Batching,
    ControlSession,
    HttpError,
    RetryPolicy,
    StopResult,
    TaskStatus,
)
from ctrlapi_async.simulator import ControlApiSimulator, Drop
from tests.support.clock import HURRY, hurrying
from tests.support.proxies import Passage, Proxy, behind, haproxy, nginx, spare_port, varnish
from tests.support.simulated import STATUS, STOP, ended, stopped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ctrlapi_async import StopIncompleteError, StopReport
    from ctrlapi_async.simulator import RequestRecord

SENT, NOT_SENT = StopResult.STOP_SENT, StopResult.NOT_SENT
UNAVAILABLE, UNCONFIRMED = StopResult.UNAVAILABLE, StopResult.UNCONFIRMED
HASTY = RetryPolicy(attempts=3, wait_initial=0.001, wait_max=0.01, timeout=1)


@pytest.fixture(scope="module")
def upstream() -> int:
    """Return the port of the simulators: the same for all tests, since they share a Varnish."""
    return spare_port()


@pytest.fixture
def api(upstream: int) -> Iterator[ControlApiSimulator]:
    with ControlApiSimulator(port=upstream) as api:
        yield api


@pytest.fixture(scope="module")
def shared_varnish(upstream: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with varnish(tmp_path_factory.mktemp("varnish"), upstream) as proxy:
        yield proxy


async def stop_all(passage: Passage, api: ControlApiSimulator) -> StopReport:
    return await passage.session.stop_running(2, sorted(api.tasks))


async def stop_behind(
    passing: AbstractAsyncContextManager[Passage], api: ControlApiSimulator
) -> tuple[StopReport, StopIncompleteError | None, Passage]:
    """Stop all tasks in a session behind a proxy, which has ended when this returns."""
    async with passing as passage:
        report, error = await ended(stop_all(passage, api))
    return report, error, passage


def assert_true(report: StopReport, api: ControlApiSimulator) -> None:
    """Check that what a report says of each task is what the server did, and that it did all."""
    assert report.complete
    assert list(report) == sorted(api.tasks)
    assert set(report.ids(SENT)) == stopped(api)
    assert not [task for task in api.tasks.values() if task.status == "Running"]
    # No stop is sent again that was carried out.
    assert {task.stop_requests for task in api.tasks.values()} <= {0, 1}


def statuses_in(error: StopIncompleteError | None) -> set[int]:
    """Return the HTTP statuses of an error's causes."""
    assert error is not None
    return {getattr(cause, "status", 0) for cause in error.exceptions}


# --- any proxy ------------------------------------------------------------------------------------

LOSSES = [(method, effect) for method in (STATUS, STOP) for effect in (False, True)]
ANY_LOSS = pytest.mark.parametrize(("method", "effect"), LOSSES)
KINDS = {
    "nginx": {"dropped": 502, "silent": 504, "down": 502},
    "varnish": {"dropped": 503, "silent": 503, "down": 503},
    "haproxy": {"dropped": 502, "silent": 504, "down": 503},
}
"""The statuses with which each kind of proxy answers for a server that fails."""
Enter = Callable[..., AbstractAsyncContextManager[Passage]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def enter(kind: str, upstream: int, tmp_path: Path, request: pytest.FixtureRequest) -> Enter:
    """Return what opens a session behind each kind; `quick` ones wait for 50 ms for a server."""

    def enter_behind(*, quick: bool = False, **more: Any) -> AbstractAsyncContextManager[Passage]:
        if kind == "nginx":
            return behind(nginx(tmp_path, upstream, "proxy_read_timeout 50ms;" * quick), **more)
        if kind == "haproxy":
            return behind(haproxy(tmp_path, upstream, "timeout server 50ms" * quick), **more)
        headers = {"X-First-Byte": "0.05s"} if quick else {}
        proxy = request.getfixturevalue("shared_varnish")
        return behind(nullcontext(proxy), headers=headers, **more)

    return enter_behind


@ANY_LOSS
@hurrying
async def test_a_server_that_drops_a_request(
    api: ControlApiSimulator, kind: str, enter: Enter, method: str, effect: bool
) -> None:
    api.mixed_tasks(200)
    api.fault(Drop(effect=effect), method=method, number=2)
    report, _, passage = await stop_behind(enter(batching=Batching(50)), api)
    assert_true(report, api)
    # HAProxy may close the client's connection in its turn.
    assert passage.statuses[KINDS[kind]["dropped"]] == 1 or kind == "haproxy"
    assert report.stats.retries == (method == STATUS or not effect)


@ANY_LOSS
@hurrying
async def test_a_server_that_is_silent_for_too_long(
    api: ControlApiSimulator, kind: str, enter: Enter, method: str, effect: bool
) -> None:
    api.mixed_tasks(200)
    gate = api.hold(method, effect=effect)
    async with enter(quick=True) as passage:
        run = asyncio.create_task(stop_all(passage, api))
        await passage.saw(KINDS[kind]["silent"])
        gate.release()
        report = await run
    assert_true(report, api)


@pytest.mark.parametrize("kind", ["nginx", "haproxy"], indirect=True)
@pytest.mark.parametrize(("method", "result"), [(STATUS, NOT_SENT), (STOP, UNCONFIRMED)])
async def test_a_task_that_kills_its_server_costs_no_other_one(
    api: ControlApiSimulator, enter: Enter, method: str, result: StopResult
) -> None:
    api.add_tasks(range(1, 301))
    api.fault_when = lambda one: Drop() if method in one.methods and 7 in one.ids else None
    policy = RetryPolicy(wait_initial=0.001, wait_max=0.01)
    report, _, _ = await stop_behind(enter(retry=policy, batching=Batching(100)), api)
    assert report.ids(result) == [7]
    assert set(report.ids(SENT)) == stopped(api) == set(range(1, 301)) - {7}


@hurrying
async def test_a_server_that_is_down_and_comes_back(
    api: ControlApiSimulator, kind: str, enter: Enter
) -> None:
    api.mixed_tasks(500)
    await api.stop()
    async with enter(retry=RetryPolicy()) as passage:
        run = asyncio.create_task(stop_all(passage, api))
        await passage.saw(KINDS[kind]["down"])
        await api.start()
        report = await run
    assert_true(report, api)


async def test_a_server_that_is_down_for_good(
    api: ControlApiSimulator, kind: str, enter: Enter
) -> None:
    api.mixed_tasks(500)
    await api.stop()
    report, error, passage = await stop_behind(enter(retry=HASTY), api)
    assert list(report) == report.ids(NOT_SENT) == list(range(1, 501))
    assert statuses_in(error) == {KINDS[kind]["down"]}
    assert passage.statuses.total() <= (2 + 2) * 5  # the third time by halves


@ANY_LOSS
@hurrying
async def test_a_server_that_is_killed_in_the_middle_and_restarted(
    api: ControlApiSimulator, kind: str, enter: Enter, method: str, effect: bool
) -> None:
    api.mixed_tasks(2_000, running=0.9)
    gate = api.hold(method, number=10, effect=effect)
    async with enter(batching=Batching(100)) as passage:
        run = asyncio.create_task(stop_all(passage, api))
        await api.wait_until(lambda: gate.held > 0)
        await api.stop()
        gate.release()
        await passage.saw(KINDS[kind]["down"])
        await api.start()
        report = await run
    assert_true(report, api)
    assert report.counts[SENT] == 1_800
    # More than the 20 checks and 18 stops of a calm run: what met the fault was looked into.
    assert report.stats.status_calls + report.stats.stop_calls > 38


# --- nginx ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_connection", [1000, 3])
async def test_a_run_of_any_size_passes_and_keeps_its_connections(
    api: ControlApiSimulator, tmp_path: Path, per_connection: int
) -> None:
    api.mixed_tasks(4_000)
    starting = nginx(tmp_path, api.port, http=f"keepalive_requests {per_connection};")
    report, _, passage = await stop_behind(behind(starting, batching=Batching(100)), api)
    assert_true(report, api)
    assert report.stats.retries == 0
    served = passage.proxy.served
    assert len(served) == api.counters.requests == 40 + 20
    by_connection = Counter(request.connection for request in served)
    assert len(by_connection) <= 8 or max(by_connection.values()) == per_connection == 3


async def test_idle_connections_that_nginx_closes_lose_nothing(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.add_tasks(range(1, 41))
    # Some requests find the connection closed, some see it close just when they are on their way.
    async with behind(nginx(tmp_path, api.port, http="keepalive_timeout 5ms;")) as passage:
        for task_id in range(1, 41):
            report = await passage.session.stop_running(2, task_id)
            assert report.ids(SENT) == [task_id]
            if task_id % 2:
                await idle_until_closed(passage.proxy)
    assert {task.stop_requests for task in api.tasks.values()} == {1}
    ours = {one.connection for one in passage.proxy.served if one.method == "POST"}
    assert len(ours) > 20


async def idle_until_closed(proxy: Proxy) -> None:
    """Wait as long as nginx keeps an idle connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"GET /idle HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.read()
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("limit", ["1k", "200", "20k"])
async def test_413_halves_and_later_chunks_stay_small(
    api: ControlApiSimulator, tmp_path: Path, limit: str
) -> None:
    api.mixed_tasks(2_000)
    starting = nginx(tmp_path, api.port, f"client_max_body_size {limit};")
    async with behind(starting, batching=Batching(1000, 2)) as passage:
        report = await stop_all(passage, api)
        refused = passage.statuses[413]
        again = await passage.session.stop_running(2, range(1, 501))
    assert_true(report, api)
    assert again.counts[StopResult.NOT_RUNNING] == 500
    assert (refused > 0) is (limit != "20k")
    # Larger requests are tried again now and then, ever more rarely.
    assert passage.statuses[413] <= refused + 4


async def test_413_of_a_body_beyond_what_nginx_reads_before_it_answers(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.max_body, api.rows = 2**30, "narrow"
    first = 10**17
    api.add_tasks(range(first, first + 60_000))
    # 1.1 MB a request, 1 MiB is nginx's default limit; it answers while the body still comes.
    passing = behind(nginx(tmp_path, api.port), batching=Batching(60_000))
    report, _, passage = await stop_behind(passing, api)
    assert_true(report, api)
    assert len(report.ids(SENT)) == 60_000
    assert 413 in {request.status for request in passage.proxy.served}


async def test_a_single_task_that_is_too_large_is_an_error_of_that_task(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.add_tasks([1, 10**18])
    # A request for task 1 has some 100 bytes, one for the other 18 more.
    starting = nginx(tmp_path, api.port, "client_max_body_size 105;")
    report, error, _ = await stop_behind(behind(starting, retry=HASTY), api)
    assert [outcome.result for outcome in report.values()] == [SENT, NOT_SENT]
    assert statuses_in(error) == {413}


async def test_basic_authentication(api: ControlApiSimulator, tmp_path: Path) -> None:
    api.mixed_tasks(50)
    (tmp_path / "users").write_text("operator:{PLAIN}p@ss/wörd\n", encoding="utf-8")
    location = f'auth_basic "Control API"; auth_basic_user_file {tmp_path}/users;'
    for auth in (None, ("operator", "guess")):
        async with behind(nginx(tmp_path, api.port, location), auth=auth) as passage:
            with pytest.raises(AuthError, match="401"):
                await passage.session.call(STATUS, {"project_id": 2, "task_ids": 1})
            report, error = await ended(stop_all(passage, api))
        assert "guess" not in str(error)
        assert len(report.ids(NOT_SENT)) == 50
        # One request for each: at the start such an answer ends everything.
        assert passage.statuses == {401: 2}
    assert api.counters.requests == 0

    right = ("operator", "p@ss/wörd")
    async with behind(nginx(tmp_path, api.port, location), auth=right) as passage:
        assert_true(await stop_all(passage, api), api)
        inside = passage.proxy.url.replace("//", "//operator:p%40ss%2Fw%C3%B6rd@")
        async with ControlSession(inside, 1) as session:
            assert len(await session.task_status(2, range(1, 51))) == 50


@pytest.mark.parametrize(
    ("location", "status", "text"),
    [
        ("deny all;", 403, "switch the Control API on"),
        ("return 301 https://$host$request_uri;", 301, "https://127.0.0.1/ctrl_api"),
        ("return 404;", 404, "404 Not Found"),
    ],
)
async def test_what_is_final_ends_a_run_at_its_start(
    api: ControlApiSimulator, tmp_path: Path, location: str, status: int, text: str
) -> None:
    api.add_tasks(range(1, 1001))
    passing = behind(nginx(tmp_path, api.port, location), batching=Batching(10, 1))
    report, error, passage = await stop_behind(passing, api)
    assert error is not None
    [cause] = error.exceptions
    assert isinstance(cause, AuthError if status == 403 else HttpError)
    assert text in str(error)
    assert f"<h1>{status} " in cause.excerpt
    assert [(one.status, one.method) for one in passage.proxy.served] == [(status, "POST")]
    assert len(report.ids(NOT_SENT)) == 1000


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("status", [301, 400, 403, 404, 405, 500, 502, 503])
async def test_a_page_in_mid_run_is_a_passing_fault(
    api: ControlApiSimulator, tmp_path: Path, status: int, method: str
) -> None:
    api.mixed_tasks(1_000)
    page = tmp_path / "page"
    answer = f"return {status} {'/elsewhere' if status == 301 else ''};"

    def put_page(record: RequestRecord) -> None:
        if record.numbers.get(method) == 2:
            page.touch()

    api.fault_when = put_page
    starting = nginx(tmp_path, api.port, f"if (-f {page}) {{ {answer} }}")
    async with behind(starting, batching=Batching(50)) as passage:
        run = asyncio.create_task(stop_all(passage, api))
        await passage.saw(status)
        page.unlink()
        report = await run
    assert_true(report, api)


async def test_504_for_good_on_the_stops_only(api: ControlApiSimulator, tmp_path: Path) -> None:
    api.add_tasks(range(1, 101))
    starting = nginx(tmp_path, api.port, "proxy_read_timeout 20ms;")
    with api.hold(STOP):
        report, error, _ = await stop_behind(behind(starting, retry=HASTY), api)
    # Each was found Running after the last stop too, so it may still be about to take effect.
    assert len(report.ids(UNCONFIRMED)) == 100
    assert "504" in str(report[1].error)
    assert "504" in str(error)


@pytest.mark.parametrize("happens", [Proxy.reload, Proxy.kill_worker])
async def test_an_nginx_that_ends_connections_in_mid_run(
    api: ControlApiSimulator, tmp_path: Path, happens: Callable[[Proxy], None]
) -> None:
    api.mixed_tasks(2_000)
    async with behind(nginx(tmp_path, api.port), batching=Batching(50)) as passage:

        def once(record: RequestRecord) -> None:
            if record.number == 15:
                happens(passage.proxy)

        api.fault_when = once
        report = await stop_all(passage, api)
    assert_true(report, api)
    assert "SIGCHLD" in (tmp_path / "error.log").read_text()  # a worker ended


# --- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("retry_after", ["", "add_header Retry-After 1 always;"])
@pytest.mark.parametrize("status", [429, 503])
@hurrying
async def test_slow_limits_lose_no_task_of_a_default_session(
    tmp_path: Path, status: int, retry_after: str
) -> None:
    async def limited(rate: int, burst: int, chunk: int | None) -> None:
        location = f"limit_req zone=all burst={burst} nodelay; limit_req_status {status};"
        http = f"limit_req_zone $binary_remote_addr zone=all:32k rate={rate * HURRY}r/s;"
        root = tmp_path / f"{rate}-{burst}"
        with ControlApiSimulator() as api:
            api.mixed_tasks(300)
            starting = nginx(root, api.port, location + retry_after, http=http)
            async with behind(starting, retry=RetryPolicy(), batching=Batching(chunk)) as passage:
                report = await stop_all(passage, api)
            assert_true(report, api)
            requests = report.stats.status_calls + report.stats.stop_calls
            assert requests == len(passage.proxy.served)

    cases = ((1, 1, None), (1, 5, 60), (2, 2, 60), (5, 1, 30), (5, 5, 30))
    await asyncio.gather(*(limited(*case) for case in cases))


def one_connection(status: int, root: Path, port: int) -> AbstractContextManager[Proxy]:
    zone = "limit_conn_zone $binary_remote_addr zone=all:32k;"
    return nginx(root, port, f"limit_conn all 1; limit_conn_status {status};", http=zone)


def counting_refusals(status: int, root: Path, port: int) -> AbstractContextManager[Proxy]:
    """Limit the rate of all requests, those that are refused included."""
    limit = f"""stick-table type ip size 10 expire 10s store http_req_rate({1000 // HURRY}ms)
    http-request track-sc0 src
    http-request deny deny_status {status} if {{ sc_http_req_rate(0) gt 2 }}"""
    return haproxy(root, port, backend=limit)


@pytest.mark.parametrize("limited", [one_connection, counting_refusals])
@pytest.mark.parametrize("status", [429, 503])
@hurrying
async def test_other_limits_lose_no_task_of_a_default_session(
    api: ControlApiSimulator, tmp_path: Path, limited: Any, status: int
) -> None:
    api.mixed_tasks(400)
    api.latency = 0.005
    starting = limited(status, tmp_path, api.port)
    passing = behind(starting, retry=RetryPolicy(), batching=Batching(50))
    report, _, passage = await stop_behind(passing, api)
    assert_true(report, api)
    assert passage.statuses[status]


# --- proxies that send requests again -------------------------------------------------------------


@pytest.mark.parametrize("redispatch", [True, False])
async def test_one_of_two_servers_is_gone(
    api: ControlApiSimulator, tmp_path: Path, redispatch: bool
) -> None:
    api.mixed_tasks(1_000)
    defaults = "retries 3\n    option redispatch 1" * redispatch
    gone = f"balance random\n    server gone 127.0.0.1:{spare_port()}"
    starting = haproxy(tmp_path, api.port, defaults, backend=gone)
    report, _, passage = await stop_behind(behind(starting, batching=Batching(50)), api)
    assert_true(report, api)
    assert bool(passage.statuses[503]) is not redispatch


@pytest.mark.parametrize("name", ["varnish", "haproxy"])
async def test_a_stop_that_a_proxy_repeats(
    api: ControlApiSimulator, tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    api.mixed_tasks(200)
    api.fault(Drop(effect=True), method=STOP, number=1)
    retries = "retries 2\n    retry-on all-retryable-errors\n    option http-buffer-request"
    starting: AbstractContextManager[Proxy] = haproxy(tmp_path, api.port, retries)
    if name == "varnish":
        starting = nullcontext(request.getfixturevalue("shared_varnish"))
    passing = behind(starting, headers={"X-Retries": "2"}, batching=Batching(50))
    report, _, passage = await stop_behind(passing, api)
    assert report.complete
    assert set(passage.statuses) == {200}
    # The server says of the second one that there was nothing to stop, and nobody knows better.
    assert set(report.ids(SENT, UNAVAILABLE)) == stopped(api)
    assert len(report.ids(UNAVAILABLE)) == 50
    assert {report[n].status for n in report.ids(UNAVAILABLE)} == {TaskStatus.CANCELED}
    assert {task.stop_requests for task in api.tasks.values()} == {0, 1}
