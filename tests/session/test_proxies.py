"""What the client promises when the API stands behind real proxies, as it does in the field."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

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
from tests.support.proxies import (
    HURRY,
    NEEDS_HAPROXY,
    NEEDS_NGINX,
    NEEDS_VARNISH,
    Proxy,
    Watcher,
    haproxy,
    hurrying,
    nginx,
    spare_port,
    varnish,
)
from tests.support.simulated import STATUS, STOP, ended, stopped

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from ctrlapi_async import StopReport
    from ctrlapi_async.simulator import RequestRecord

SENT, NOT_SENT, UNAVAILABLE = StopResult.STOP_SENT, StopResult.NOT_SENT, StopResult.UNAVAILABLE

# As many repeats as it takes, at once: most tests are about what is repeated, not about when.
STUBBORN = RetryPolicy(attempts=1000, wait_initial=0.001, wait_max=0.01)
HASTY = RetryPolicy(attempts=3, wait_initial=0.001, wait_max=0.01)
EVERY_LOSS = [(method, effect) for method in (STATUS, STOP) for effect in (False, True)]


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


@frozen
class Kind:
    """A kind of proxy, and the statuses with which it answers for a server that fails."""

    name: str
    dropped: int
    silent: int
    down: int


KINDS = [
    pytest.param(Kind("nginx", dropped=502, silent=504, down=502), marks=NEEDS_NGINX, id="nginx"),
    pytest.param(
        Kind("varnish", dropped=503, silent=503, down=503), marks=NEEDS_VARNISH, id="varnish"
    ),
    pytest.param(
        Kind("haproxy", dropped=502, silent=504, down=503), marks=NEEDS_HAPROXY, id="haproxy"
    ),
]
Start = Callable[..., AbstractContextManager[tuple[Proxy, dict[str, Any]]]]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def start(kind: Kind, upstream: int, tmp_path: Path, request: pytest.FixtureRequest) -> Start:
    """Return what starts a proxy of each kind, which waits for 50 ms for a server if `quick`."""

    @contextmanager
    def start_proxy(*, quick: bool = False) -> Iterator[tuple[Proxy, dict[str, Any]]]:
        if kind.name == "varnish":
            headers = {"X-First-Byte": "0.05s"} if quick else {}
            yield request.getfixturevalue("shared_varnish"), {"headers": headers}
        elif kind.name == "nginx":
            with nginx(tmp_path, upstream, "proxy_read_timeout 50ms;" * quick) as proxy:
                yield proxy, {}
        else:
            with haproxy(tmp_path, upstream, "timeout server 50ms" * quick) as proxy:
                yield proxy, {}

    return start_proxy


@asynccontextmanager
async def watched(proxy: Proxy, **options: Any) -> AsyncIterator[tuple[ControlSession, Watcher]]:
    """Open a session through a proxy, with a client that tells which answers came."""
    watcher = Watcher()
    options.setdefault("retry", STUBBORN)
    # Nothing here is about these times, and a clock that hurries must not make them short.
    times = {"request_timeout": 30 * HURRY, "connect_timeout": 10 * HURRY}
    async with (
        watcher.client() as client,
        ControlSession(proxy.url, 1, client=client, **times, **options) as session,
    ):
        yield session, watcher


def assert_true(report: StopReport, api: ControlApiSimulator) -> None:
    """Check that what a report says of each task is what the server did, and that it did all."""
    assert report.complete
    assert list(report) == sorted(api.tasks)
    assert set(report.ids(SENT)) == stopped(api)
    assert not [task for task in api.tasks.values() if task.status == "Running"]
    # No stop is sent again that was carried out.
    assert {task.stop_requests for task in api.tasks.values()} <= {0, 1}


# --- any proxy ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "effect"), EVERY_LOSS)
@hurrying
async def test_a_server_that_drops_a_request(
    api: ControlApiSimulator, kind: Kind, start: Start, method: str, effect: bool
) -> None:
    api.mixed_tasks(200)
    api.fault(Drop(effect=effect), method=method, number=2)
    with start() as (proxy, options):
        async with watched(proxy, **options, batching=Batching(50)) as (session, watcher):
            report = await session.stop_running(2, range(1, 201))
    assert_true(report, api)
    # HAProxy may close the client's connection in its turn.
    assert watcher.statuses[kind.dropped] == 1 or kind.name == "haproxy"
    assert report.stats.retries == (method == STATUS or not effect)


@pytest.mark.parametrize(("method", "effect"), EVERY_LOSS)
@hurrying
async def test_a_server_that_is_silent_for_too_long(
    api: ControlApiSimulator, kind: Kind, start: Start, method: str, effect: bool
) -> None:
    api.mixed_tasks(200)
    gate = api.hold(method, effect=effect)
    with start(quick=True) as (proxy, options):
        async with watched(proxy, **options) as (session, watcher):
            run = asyncio.create_task(session.stop_running(2, range(1, 201)))
            await watcher.saw(kind.silent)
            gate.release()
            report = await run
    assert_true(report, api)


@hurrying
async def test_a_server_that_is_down_and_comes_back(
    api: ControlApiSimulator, kind: Kind, start: Start
) -> None:
    api.mixed_tasks(500)
    await api.stop()
    with start() as (proxy, options):
        async with watched(proxy, **options, retry=RetryPolicy()) as (session, watcher):
            run = asyncio.create_task(session.stop_running(2, range(1, 501)))
            await watcher.saw(kind.down)
            await api.start()
            report = await run
    assert_true(report, api)


async def test_a_server_that_is_down_for_good(
    api: ControlApiSimulator, kind: Kind, start: Start
) -> None:
    api.mixed_tasks(500)
    await api.stop()
    with start() as (proxy, options):
        # Varnish asks to wait for five seconds, longer than a second.
        policy = RetryPolicy(attempts=3, wait_initial=0.001, wait_max=0.01, timeout=1)
        async with watched(proxy, **options, retry=policy) as (session, watcher):
            report, error = await ended(session.stop_running(2, range(1, 501)))
    assert error is not None
    assert list(report) == report.ids(NOT_SENT) == list(range(1, 501))
    assert {cause.status for cause in error.exceptions if isinstance(cause, HttpError)} == {
        kind.down
    }
    assert watcher.statuses[kind.down] <= (2 + 2) * 5  # the third time by halves


@pytest.mark.parametrize(("method", "effect"), EVERY_LOSS)
@hurrying
async def test_a_server_that_is_killed_in_the_middle_and_restarted(
    api: ControlApiSimulator, kind: Kind, start: Start, method: str, effect: bool
) -> None:
    api.mixed_tasks(2_000, running=0.9)
    gate = api.hold(method, number=10, effect=effect)
    with start() as (proxy, options):
        async with watched(proxy, **options, batching=Batching(100)) as (session, watcher):
            run = asyncio.create_task(session.stop_running(2, range(1, 2_001)))
            await api.wait_until(lambda: gate.held > 0)
            await api.stop()
            gate.release()
            await watcher.saw(kind.down)
            await api.start()
            report = await run
    assert_true(report, api)
    assert report.counts[SENT] == 1_800
    # More than the 20 checks and 18 stops of a calm run: what met the fault was looked into.
    assert report.stats.status_calls + report.stats.stop_calls > 38


# --- nginx ----------------------------------------------------------------------------------------


@NEEDS_NGINX
@pytest.mark.parametrize("per_connection", [1000, 3])
async def test_a_run_of_any_size_passes_and_keeps_its_connections(
    api: ControlApiSimulator, tmp_path: Path, per_connection: int
) -> None:
    api.mixed_tasks(4_000, restarted=0)
    with nginx(tmp_path, api.port, http=f"keepalive_requests {per_connection};") as proxy:
        async with watched(proxy, batching=Batching(100)) as (session, _):
            report = await session.stop_running(2, range(1, 4_001))
    assert_true(report, api)
    assert report.stats.retries == 0
    assert {request.status for request in proxy.served} == {200}
    assert len(proxy.served) == api.counters.requests == 40 + 20
    by_connection = Counter(request.connection for request in proxy.served)
    if per_connection == 3:
        assert max(by_connection.values()) == 3
    else:
        assert len(by_connection) <= 8


@NEEDS_NGINX
async def test_idle_connections_that_nginx_closes_lose_nothing(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.add_tasks(range(1, 41))
    # Some requests find the connection closed, some see it close just when they are on their way.
    with nginx(tmp_path, api.port, http="keepalive_timeout 5ms;") as proxy:
        async with watched(proxy) as (session, _):
            for task_id in range(1, 41):
                report = await session.stop_running(2, task_id)
                assert report.ids(SENT) == [task_id]
                if task_id % 2:
                    await idle_until_closed(proxy)
    assert {task.stop_requests for task in api.tasks.values()} == {1}
    ours = {request.connection for request in proxy.served if request.method == "POST"}
    assert len(ours) > 20


async def idle_until_closed(proxy: Proxy) -> None:
    """Wait as long as nginx keeps an idle connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"GET /idle HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.read()
    writer.close()
    await writer.wait_closed()


@NEEDS_NGINX
@pytest.mark.parametrize("limit", ["1k", "200", "20k"])
async def test_413_halves_and_later_chunks_stay_small(
    api: ControlApiSimulator, tmp_path: Path, limit: str
) -> None:
    api.mixed_tasks(2_000)
    with nginx(tmp_path, api.port, f"client_max_body_size {limit};") as proxy:
        async with watched(proxy, batching=Batching(1000, 2)) as (session, watcher):
            report = await session.stop_running(2, range(1, 2_001))
            refused = watcher.statuses[413]
            again = await session.stop_running(2, range(1, 501))
    assert_true(report, api)
    assert again.counts[StopResult.NOT_RUNNING] == 500
    assert (refused > 0) is (limit != "20k")
    # The ceiling is tried again now and then, ever more rarely.
    assert watcher.statuses[413] <= refused + 4


@NEEDS_NGINX
async def test_413_of_a_body_beyond_what_nginx_reads_before_it_answers(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.max_body, api.rows = 2**30, "narrow"
    first = 10**17
    api.add_tasks(range(first, first + 60_000))
    # 1.1 MB a request, 1 MiB is nginx's default limit; it answers while the body still comes.
    with nginx(tmp_path, api.port) as proxy:
        async with watched(proxy, batching=Batching(60_000)) as (session, watcher):
            report = await session.stop_running(2, range(first, first + 60_000))
    assert_true(report, api)
    assert len(report.ids(SENT)) == 60_000
    assert watcher.statuses[413] or report.stats.retries


@NEEDS_NGINX
async def test_a_single_task_that_is_too_large_is_an_error_of_that_task(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    short, long = 1, 10**18
    api.add_tasks([short, long])
    # A request for task 1 has some 100 bytes, one for the other 18 more.
    with nginx(tmp_path, api.port, "client_max_body_size 105;") as proxy:
        async with watched(proxy, retry=HASTY) as (session, _):
            report, error = await ended(session.stop_running(2, [short, long]))
    assert [outcome.result for outcome in report.values()] == [SENT, NOT_SENT]
    assert error is not None
    assert [getattr(cause, "status", 0) for cause in error.exceptions] == [413]


@NEEDS_NGINX
async def test_basic_authentication(api: ControlApiSimulator, tmp_path: Path) -> None:
    api.mixed_tasks(50)
    (tmp_path / "users").write_text("operator:{PLAIN}p@ss/wörd\n", encoding="utf-8")
    location = f'auth_basic "Control API"; auth_basic_user_file {tmp_path}/users;'
    with nginx(tmp_path, api.port, location) as proxy:
        wrong: list[dict[str, Any]] = [{}, {"auth": ("operator", "guess")}]
        for options in wrong:
            async with watched(proxy, **options) as (session, _):
                with pytest.raises(AuthError, match="401") as refused:
                    await session.call(STATUS, {"project_id": 2, "task_ids": 1})
                report, error = await ended(session.stop_running(2, range(1, 51)))
            assert refused.value.status == 401
            assert "guess" not in str(error)
            assert len(report.ids(NOT_SENT)) == 50
        assert api.counters.requests == 0
        # One request for each: at the start such an answer ends everything.
        assert [request.status for request in proxy.served] == [401] * 4

        async with watched(proxy, auth=("operator", "p@ss/wörd")) as (session, _):
            assert_true(await session.stop_running(2, range(1, 51)), api)
        inside = proxy.url.replace("//", "//operator:p%40ss%2Fw%C3%B6rd@")
        async with ControlSession(inside, 1) as session:
            assert len(await session.task_status(2, range(1, 51))) == 50


@NEEDS_NGINX
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
    with nginx(tmp_path, api.port, location) as proxy:
        async with watched(proxy, batching=Batching(10, 1)) as (session, _):
            report, error = await ended(session.stop_running(2, range(1, 1001)))
    assert error is not None
    [cause] = error.exceptions
    assert isinstance(cause, AuthError if status == 403 else HttpError)
    assert text in str(error)
    assert f"<h1>{status} " in cause.excerpt
    assert [(request.status, request.method) for request in proxy.served] == [(status, "POST")]
    assert len(report.ids(NOT_SENT)) == 1000


@NEEDS_NGINX
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
    with nginx(tmp_path, api.port, f"if (-f {page}) {{ {answer} }}") as proxy:
        async with watched(proxy, batching=Batching(50)) as (session, watcher):
            run = asyncio.create_task(session.stop_running(2, range(1, 1_001)))
            await watcher.saw(status)
            page.unlink()
            report = await run
    assert_true(report, api)


@NEEDS_NGINX
async def test_504_for_good_on_the_stops_only(api: ControlApiSimulator, tmp_path: Path) -> None:
    api.add_tasks(range(1, 101))
    with api.hold(STOP), nginx(tmp_path, api.port, "proxy_read_timeout 20ms;") as proxy:
        async with watched(proxy, retry=HASTY) as (session, _):
            report, error = await ended(session.stop_running(2, range(1, 101)))
    # Each was found Running after the last stop too, so it may still be about to take effect.
    assert error is not None
    assert len(report.ids(StopResult.UNCONFIRMED)) == 100
    assert "504" in str(report[1].error)


@NEEDS_NGINX
async def test_reloads_in_mid_run(api: ControlApiSimulator, tmp_path: Path) -> None:
    api.mixed_tasks(2_000)
    with nginx(tmp_path, api.port) as proxy:

        def reload_now_and_then(record: RequestRecord) -> None:
            if record.number % 10 == 0:
                proxy.reload()

        api.fault_when = reload_now_and_then
        async with watched(proxy, batching=Batching(50)) as (session, _):
            report = await session.stop_running(2, range(1, 2_001))
    assert_true(report, api)
    assert (tmp_path / "error.log").read_text().count("reconfiguring") >= 2


@NEEDS_NGINX
@pytest.mark.parametrize("effect", [False, True])
async def test_a_worker_that_is_killed(
    api: ControlApiSimulator, tmp_path: Path, effect: bool
) -> None:
    api.mixed_tasks(500)
    gate = api.hold(STOP, number=2, effect=effect)
    with nginx(tmp_path, api.port) as proxy:
        async with watched(proxy, batching=Batching(50)) as (session, _):
            run = asyncio.create_task(session.stop_running(2, range(1, 501)))
            await api.wait_until(lambda: gate.held > 0)
            proxy.kill_worker()
            gate.release()
            report = await run
    assert_true(report, api)


# --- limits ---------------------------------------------------------------------------------------


@NEEDS_NGINX
@pytest.mark.parametrize("retry_after", [None, 1])
@pytest.mark.parametrize("status", [429, 503])
@hurrying
async def test_slow_limits_lose_no_task_of_a_default_session(
    tmp_path: Path, status: int, retry_after: int | None
) -> None:
    async def limited(rate: int, burst: int, chunk: int | None) -> None:
        root = tmp_path / f"{rate}-{burst}"
        location = f"limit_req zone=all burst={burst} nodelay; limit_req_status {status};"
        if retry_after is not None:
            location += f"add_header Retry-After {retry_after} always;"
        zone = f"limit_req_zone $binary_remote_addr zone=all:32k rate={rate * HURRY}r/s;"
        with ControlApiSimulator() as api:
            api.mixed_tasks(300)
            with nginx(root, api.port, location, http=zone) as proxy:
                options = {"retry": RetryPolicy(), "batching": Batching(chunk)}
                async with watched(proxy, **options) as (session, _):
                    report = await session.stop_running(2, range(1, 301))
            assert_true(report, api)
            assert report.stats.status_calls + report.stats.stop_calls == len(proxy.served)

    async with asyncio.TaskGroup() as group:
        for rate, burst, chunk in ((1, 1, None), (1, 5, 60), (2, 2, 60), (5, 1, 30), (5, 5, 30)):
            group.create_task(limited(rate, burst, chunk))


@NEEDS_NGINX
@pytest.mark.parametrize("status", [429, 503])
@hurrying
async def test_one_connection_at_a_time(
    api: ControlApiSimulator, tmp_path: Path, status: int
) -> None:
    api.mixed_tasks(400)
    api.latency = 0.005
    location = f"limit_conn all 1; limit_conn_status {status};"
    zone = "limit_conn_zone $binary_remote_addr zone=all:32k;"
    with nginx(tmp_path, api.port, location, http=zone) as proxy:
        async with watched(proxy, retry=RetryPolicy(), batching=Batching(50)) as (session, watcher):
            report = await session.stop_running(2, range(1, 401))
    assert_true(report, api)
    assert watcher.statuses[status]


@NEEDS_HAPROXY
@hurrying
async def test_a_limit_that_counts_refused_requests_too(
    api: ControlApiSimulator, tmp_path: Path
) -> None:
    api.mixed_tasks(400)
    limit = f"""stick-table type ip size 10 expire 10s store http_req_rate({1000 // HURRY}ms)
    http-request track-sc0 src
    http-request deny deny_status 429 if {{ sc_http_req_rate(0) gt 2 }}"""
    with haproxy(tmp_path, api.port, backend=limit) as proxy:
        async with watched(proxy, retry=RetryPolicy(), batching=Batching(50)) as (session, watcher):
            report = await session.stop_running(2, range(1, 401))
    assert_true(report, api)
    assert watcher.statuses[429]


# --- proxies that send requests again -------------------------------------------------------------


@NEEDS_HAPROXY
@pytest.mark.parametrize("redispatch", [True, False])
async def test_one_of_two_servers_is_gone(
    api: ControlApiSimulator, tmp_path: Path, redispatch: bool
) -> None:
    api.mixed_tasks(1_000)
    defaults = "retries 3\n    option redispatch 1" * redispatch
    gone = f"balance random\n    server gone 127.0.0.1:{spare_port()}"
    with haproxy(tmp_path, api.port, defaults, backend=gone) as proxy:
        async with watched(proxy, batching=Batching(50)) as (session, watcher):
            report = await session.stop_running(2, range(1, 1_001))
    assert_true(report, api)
    assert bool(watcher.statuses[503]) is not redispatch


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("varnish", marks=NEEDS_VARNISH),
        pytest.param("haproxy", marks=NEEDS_HAPROXY),
    ],
)
async def test_a_stop_that_a_proxy_repeats(
    api: ControlApiSimulator, tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    api.mixed_tasks(200)
    api.fault(Drop(effect=True), method=STOP, number=1)
    retries = "retries 2\n    retry-on all-retryable-errors\n    option http-buffer-request"
    with haproxy(tmp_path, api.port, retries) as other:
        proxy = request.getfixturevalue("shared_varnish") if name == "varnish" else other
        options = {"headers": {"X-Retries": "2"}, "batching": Batching(50)}
        async with watched(proxy, **options) as (session, watcher):
            report = await session.stop_running(2, range(1, 201))
    assert report.complete
    assert set(watcher.statuses) == {200}
    # The server says of the second one that there was nothing to stop, and nobody knows better.
    assert set(report.ids(SENT, UNAVAILABLE)) == stopped(api)
    assert len(report.ids(UNAVAILABLE)) == 50
    assert {report[n].status for n in report.ids(UNAVAILABLE)} == {TaskStatus.CANCELED}
    assert {task.stop_requests for task in api.tasks.values()} == {0, 1}
