"""One request and its reply: bounds, addresses, arguments, the caller's client, logging."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import math
import re
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, cast

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import (
    Batching,
    ControlSession,
    HttpError,
    ReplyError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async.simulator import ControlApiSimulator, Drop, Hang, HttpStatus, SlowBody
from ctrlapi_async.transport import retry_after

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ONCE = RetryPolicy(attempts=1)
HASTY = RetryPolicy(attempts=3, wait_initial=0.001, wait_max=0.001)
PARAMS = {"project_id": 2, "task_ids": 1}


@pytest.fixture
async def api() -> AsyncIterator[ControlApiSimulator]:
    async with ControlApiSimulator() as api:
        api.add_tasks(range(1, 11))
        yield api


@contextlib.asynccontextmanager
async def raw_server(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]],
    left: asyncio.Event | None = None,
) -> AsyncIterator[str]:
    """A server that answers each request as it likes; its address.

    Args:
        answer: Writes an answer.
        left: Set when the client has closed the connection.
    """
    tasks: set[asyncio.Task[Any]] = set()

    async def watch(reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        if left is not None:
            left.set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(cast("asyncio.Task[Any]", asyncio.current_task()))
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            tasks.add(asyncio.create_task(watch(reader)))
            await answer(writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- bounds ---------------------------------------------------------------------------------------

REPLY = b'{"reply": [{"method": "TaskStatus", "result": ["%s"]}]}' % (b"x" * 947)
LIMIT = len(REPLY)


def announced(body: bytes) -> list[bytes]:
    return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body]


def chunked(body: bytes) -> list[bytes]:
    pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
    return [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces),
        b"0\r\n\r\n",
    ]


def until_closed(body: bytes) -> list[bytes]:
    return [b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", body]


def gzipped(body: bytes) -> list[bytes]:
    packed = gzip.compress(body)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    return [head % len(packed), packed]


@pytest.mark.parametrize("form", [announced, chunked, until_closed, gzipped])
@pytest.mark.parametrize("excess", [0, 1, 100_000])
async def test_a_reply_over_the_limit_is_refused(
    form: Callable[[bytes], list[bytes]], excess: int
) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.writelines(form(REPLY + b" " * excess))
        await writer.drain()

    async with (
        raw_server(answer) as url,
        ControlSession(url, 1, retry=ONCE, max_reply_bytes=LIMIT) as session,
    ):
        if excess:
            with pytest.raises(ReplyError, match=f"more than {LIMIT} bytes"):
                await session.call("TaskStatus", {})
        else:
            assert await session.call("TaskStatus", {}) == ["x" * 947]


async def endless_announced(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    await writer.drain()
    await asyncio.get_running_loop().create_future()


async def endless_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)


async def bomb(writer: asyncio.StreamWriter) -> None:
    """Send twenty megabytes of nothing in twenty kilobytes, and announce more."""
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(bytes(20_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert len(packed) < 100_000
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(b"%x\r\n%s\r\n" % (len(packed), packed))
    await writer.drain()
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("answer", [endless_announced, endless_chunks, bomb])
async def test_a_reply_without_end_is_refused_while_it_is_read(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]],
) -> None:
    left = asyncio.Event()
    async with (
        raw_server(answer, left) as url,
        ControlSession(
            url, 1, retry=ONCE, max_reply_bytes=100_000, request_timeout=1000
        ) as session,
    ):
        async with asyncio.timeout(60):
            with pytest.raises(ReplyError, match="more than 100000 bytes"):
                await session.call("TaskStatus", {})
            # It is not read on behind the caller's back: the connection is closed.
            await left.wait()


async def test_an_error_page_without_end_is_not_read_to_the_end() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n")
        while True:
            writer.write(b"<html>" * 1000)
            await writer.drain()
            await asyncio.sleep(0)

    async with (
        raw_server(answer) as url,
        ControlSession(url, 1, retry=ONCE, request_timeout=1000) as session,
    ):
        async with asyncio.timeout(60):
            with pytest.raises(HttpError) as caught:
                await session.call("TaskStatus", {})
    assert caught.value.status == 403
    assert 0 < len(caught.value.excerpt) < 1000


async def test_a_reply_larger_than_the_limit_for_a_stop_is_an_unknown_fate(
    api: ControlApiSimulator,
) -> None:
    async with ControlSession(api.url, 1, retry=ONCE, max_reply_bytes=10) as session:
        with pytest.raises(StopIncompleteError) as caught:
            await session.task_stop(2, range(1, 11))
    assert caught.value.report.counts[StopResult.UNCONFIRMED] == 10
    assert all(task.stopped for task in api.tasks.values())


@pytest.mark.parametrize("fault", [SlowBody(interval=0.001), Hang()])
async def test_a_reply_that_trickles_or_never_comes_is_ended_by_the_request_timeout(
    api: ControlApiSimulator, fault: SlowBody | Hang
) -> None:
    api.fault(fault)
    ids = range(1, 11)
    async with ControlSession(api.url, 1, retry=ONCE, request_timeout=0.05) as session:
        with pytest.raises(RequestError, match=r"no answer .* within 0.05 s") as caught:
            await session.task_status(2, ids)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.sent
        with pytest.raises(StopIncompleteError) as incomplete:
            await session.stop_running(2, ids)
    assert incomplete.value.report.counts[StopResult.NOT_SENT] == 10
    async with asyncio.timeout(60):
        await api.wait_until(lambda: api.counters.connections_open == 0)


async def test_waiting_for_a_slot_does_not_count_towards_the_request_timeout(
    api: ControlApiSimulator,
) -> None:
    loop = asyncio.get_running_loop()
    clock, ahead = loop.time, 0.0
    loop.time = lambda: clock() + ahead  # type: ignore[method-assign]
    async with ControlSession(
        api.url, 1, retry=ONCE, batching=Batching(max_concurrency=1), request_timeout=1000
    ) as session:
        first_gate = api.hold("TaskStatus", number=1)
        second_gate = api.hold("TaskStatus", number=2)
        first = asyncio.create_task(session.call("TaskStatus", PARAMS))
        second = asyncio.create_task(session.call("TaskStatus", PARAMS))
        await api.wait_until(lambda: first_gate.held == 1)
        ahead += 900  # of which the first may take 1000, and the second has used none
        first_gate.release()
        await api.wait_until(lambda: second_gate.held == 1)
        ahead += 900
        # Timers that are due would ring in this turn of the loop.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second_gate.release()
        assert await first == await second
        assert (await session.stop_running(2, 1)).complete

        # That the clock counts at all: the same wait with the request on its way.
        third_gate = api.hold("TaskStatus", number=4)
        third = asyncio.create_task(session.call("TaskStatus", PARAMS))
        await api.wait_until(lambda: third_gate.held == 1)
        ahead += 1100
        with pytest.raises(RequestError, match="within 1000 s"):
            await third
    del loop.time


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/vod", "/a/b%2Fc/%C3%B6"])
@pytest.mark.parametrize("path", ["", "/", "/ctrl_api/v1/json", "/ctrl_api/v1/json/"])
async def test_the_base_url_is_the_root_or_the_whole_endpoint(prefix: str, path: str) -> None:
    paths: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paths.append((await reader.readline()).split()[1])
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}{prefix}{path}"
        async with ControlSession(url, 1) as session:
            with pytest.raises(HttpError, match="no Control API at this address"):
                await session.call("TaskStatus", PARAMS)
    assert paths == [f"{prefix}/ctrl_api/v1/json".encode()]


async def test_a_server_behind_a_prefix_is_reached() -> None:
    async with ControlApiSimulator(prefix="/vod") as api:
        api.add_task(1)
        for url in (api.url, api.url + "/", api.endpoint):
            async with ControlSession(url, 1) as session:
                assert (await session.stop_running(2, 1)).complete


async def test_an_ipv6_address(request: pytest.FixtureRequest) -> None:
    try:
        api = await ControlApiSimulator(host="::1").__aenter__()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    try:
        api.add_task(1)
        api.login = ("me", "p:w")
        url = api.url.replace("//", "//me:p%3Aw@")
        async with ControlSession(url, 1) as session:
            assert (await session.stop_running(2, 1)).complete
            assert "[::1]" in repr(session)
    finally:
        await api.stop()
    assert request.node is not None


@pytest.mark.parametrize(
    ("userinfo", "login"),
    [
        ("me:secret", ("me", "secret")),
        ("me", ("me", "")),
        ("me:", ("me", "")),
        (":secret", ("", "secret")),
        ("m%40e:s%2Fe%3Ac%25r%20et", ("m@e", "s/e:c%r et")),
        ("m%C3%B6:p%C3%A4ss", ("mö", "päss")),
        ("me:a+b", ("me", "a+b")),
    ],
)
async def test_userinfo_is_percent_decoded(
    api: ControlApiSimulator, userinfo: str, login: tuple[str, str]
) -> None:
    api.login = login
    async with ControlSession(api.url.replace("//", f"//{userinfo}@"), 1) as session:
        assert (await session.stop_running(2, 1)).complete


async def test_a_server_that_is_not_there(api: ControlApiSimulator) -> None:
    await api.stop()
    async with ControlSession(api.url, 1, retry=HASTY) as session:
        with pytest.raises(RequestError, match="was not reached") as caught:
            await session.call("TaskStop", PARAMS)
        assert not caught.value.sent
        with pytest.raises(StopIncompleteError) as incomplete:
            await session.task_stop(2, range(1, 11))
    # It surely was not sent: so it was tried again, and nothing is in doubt.
    report = incomplete.value.report
    assert report.counts[StopResult.NOT_SENT] == 10
    assert report.stats.stop_calls == 3
    assert report.stats.status_calls == 0


async def test_a_connection_that_breaks_is_told_from_one_that_was_never_made(
    api: ControlApiSimulator,
) -> None:
    api.fault(Drop())
    async with ControlSession(api.url, 1, retry=HASTY) as session:
        with pytest.raises(RequestError, match="was not heard to the end") as caught:
            await session.call("TaskStop", PARAMS)
    assert caught.value.sent
    assert api.counters.requests == 1


# --- arguments ------------------------------------------------------------------------------------

BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"base_url": b"http://host"}, TypeError, "base_url must be a str, not bytes"),
    ({"base_url": None}, TypeError, "base_url must be a str, not NoneType"),
    ({"base_url": ""}, ValueError, "base_url must be an HTTP URL.*not ''"),
    ({"base_url": "host"}, ValueError, "not 'host'"),
    ({"base_url": "host:80"}, ValueError, "not 'host:80'"),
    ({"base_url": "/ctrl_api/v1/json"}, ValueError, "not '/ctrl_api/v1/json'"),
    ({"base_url": "ftp://host"}, ValueError, "not 'ftp://host'"),
    ({"base_url": "http://"}, ValueError, "not 'http://'"),
    ({"base_url": "http://:80"}, ValueError, "not 'http://:80'"),
    ({"base_url": "http://host:0"}, ValueError, "not 'http://host:0'"),
    ({"base_url": "http://host:65536"}, ValueError, "not 'http://host:65536'"),
    ({"base_url": "http://host:port"}, ValueError, "not 'http://host:port'"),
    ({"base_url": "http://[::1"}, ValueError, "not 'http://"),
    ({"base_url": "http://host/?a=b"}, ValueError, "no query"),
    ({"base_url": "http://host/#a"}, ValueError, "no fragment"),
    ({"user_id": "1"}, TypeError, "user_id must be an int, not '1'"),
    ({"user_id": True}, TypeError, "user_id must be an int, not True"),
    ({"user_id": 1.0}, TypeError, "user_id must be an int, not 1.0"),
    ({"user_id": None}, TypeError, "user_id must be an int, not None"),
    ({"user_id": -1}, ValueError, "user_id must be from 0.*not -1"),
    ({"user_id": 2**63}, ValueError, "user_id must be from 0"),
    ({"auth": "me:pw"}, TypeError, "auth must be a tuple"),
    ({"auth": ("me",)}, TypeError, "auth must be a tuple"),
    ({"auth": ("me", None)}, TypeError, "auth must be a tuple"),
    ({"auth": ("m:e", "pw")}, ValueError, "auth: a login cannot contain a colon"),
    ({"headers": {"X": 1}}, TypeError, "headers must be strings: 'X'"),
    ({"headers": {1: "X"}}, TypeError, "headers must be strings: 1"),
    ({"headers": {"X": "a\r\nY: b"}}, ValueError, "headers must be single lines: 'X'"),
    ({"headers": {"X\n": "a"}}, ValueError, "headers must be single lines"),
    ({"headers": {"X": "a\0"}}, ValueError, "headers must be single lines"),
    ({"headers": [("X", "a")]}, TypeError, "headers must be a mapping, not list"),
    ({"ssl": None}, TypeError, "ssl must be .*not None"),
    ({"ssl": "/etc/ca.pem"}, TypeError, "ssl must be .*not '/etc/ca.pem'"),
    ({"client": "client"}, TypeError, "client must be an aiohttp.ClientSession, not 'client'"),
    ({"batching": 8}, TypeError, "batching must be a Batching, not 8"),
    ({"retry": None}, TypeError, "retry must be a RetryPolicy, not None"),
    ({"request_timeout": 0}, ValueError, "request_timeout must be more than 0"),
    ({"request_timeout": -1}, ValueError, "request_timeout must be .*not -1"),
    ({"request_timeout": math.inf}, ValueError, "request_timeout must be .*not inf"),
    ({"request_timeout": math.nan}, ValueError, "request_timeout must be .*not nan"),
    ({"request_timeout": "30"}, TypeError, "request_timeout must be .*not '30'"),
    ({"request_timeout": True}, TypeError, "request_timeout must be .*not True"),
    ({"request_timeout": None}, TypeError, "request_timeout must be .*not None"),
    ({"max_reply_bytes": 0}, ValueError, "max_reply_bytes must be from 1.*not 0"),
    ({"max_reply_bytes": 1e6}, TypeError, "max_reply_bytes must be an int, not 1000000.0"),
]


@pytest.mark.parametrize(("arguments", "kind", "words"), BAD_ARGUMENTS)
def test_a_bad_argument_is_named(
    arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    good: dict[str, Any] = {"base_url": "http://host", "user_id": 1}
    with pytest.raises(kind, match=words) as caught:
        ControlSession(**good | arguments)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("method", "params", "kind"),
    [
        ("", {}, TypeError),
        (None, {}, TypeError),
        (b"TaskStatus", {}, TypeError),
        ("TaskStatus", [], TypeError),
        ("TaskStatus", None, TypeError),
        ("TaskStatus", {"task_ids": {object()}}, TypeError),
    ],
)
async def test_a_call_with_bad_arguments_sends_nothing(
    api: ControlApiSimulator, method: Any, params: Any, kind: type[Exception]
) -> None:
    async with ControlSession(api.url, 1) as session:
        with pytest.raises(kind):
            await session.call(method, params)
    assert api.counters.connections == 0


async def test_headers_are_sent_and_the_protocols_own_stay(api: ControlApiSimulator) -> None:
    headers = {"X-Request-Id": "7", "User-Agent": "mine/1", "content-type": "text/plain"}
    async with ControlSession(
        api.url, 1, headers=headers, auth=("me", "pw"), batching=Batching(chunk_size=2)
    ) as session:
        headers["X-Request-Id"] = "changed later"
        assert (await session.stop_running(2, range(1, 5))).complete
    assert len(api.log) == 4
    for record in api.log:
        assert record.http_method == "POST"
        assert record.headers["X-Request-Id"] == "7"
        assert record.headers["User-Agent"] == "mine/1"
        assert record.headers.getall("Content-Type") == ["application/json"]  # type: ignore[attr-defined]
        assert record.headers["Authorization"] == "Basic bWU6cHc="
        assert "Cookie" not in record.headers


async def test_cookies_are_not_kept(api: ControlApiSimulator) -> None:
    api.fault(HttpStatus(503, headers={"Set-Cookie": "a=b"}), number=1)
    async with ControlSession(api.url, 1, retry=HASTY) as session:
        await session.stop_running(2, 1)
    assert api.counters.requests == 3
    assert not [record for record in api.log if "Cookie" in record.headers]


async def test_a_body_of_megabytes_is_sent_without_a_warning() -> None:
    async with ControlApiSimulator(max_body=2**30) as api:
        first = 10**17
        api.add_tasks(range(first, first + 100_000))
        async with ControlSession(api.url, 1, batching=Batching(chunk_size=100_000)) as session:
            report = await session.stop_running(2, range(first, first + 100_000))
    assert report.counts[StopResult.STOP_SENT] == 100_000
    assert api.counters.requests == 2


# --- whose client, and when -----------------------------------------------------------------------


async def test_the_callers_client_is_used_and_never_closed(api: ControlApiSimulator) -> None:
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as client:
        for _ in range(2):
            async with ControlSession(api.url, 1, client=client) as session:
                assert (await session.stop_running(2, range(1, 11))).complete
            assert not client.closed
    assert {record.headers["X-Mine"] for record in api.log} == {"yes"}
    # One connection all along: the session's end has not closed it.
    assert api.counters.connections == 1


async def test_a_callers_client_that_is_closed_is_said_to_be(api: ControlApiSimulator) -> None:
    async with (
        aiohttp.ClientSession() as client,
        ControlSession(api.url, 1, client=client, retry=HASTY) as session,
    ):
        assert (await session.stop_running(2, 1)).complete
        await client.close()
        with pytest.raises(RequestError, match="client is closed") as caught:
            await session.call("TaskStop", PARAMS)
        assert not caught.value.sent
        with pytest.raises(StopIncompleteError) as incomplete:
            await session.stop_running(2, range(1, 11))
    assert incomplete.value.report.counts[StopResult.NOT_SENT] == 10


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("mine", [False, True])
async def test_outside_async_with_every_method_says_so(
    api: ControlApiSimulator, moment: str, mine: bool
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(aiohttp.ClientSession()) if mine else None
        session = ControlSession(api.url, 1, client=client)
        words = "is not entered yet: use `async with`"
        if moment == "after":
            async with session:
                pass
            words = "is closed"
        for work in (
            lambda: session.call("TaskStatus", PARAMS),
            lambda: session.task_status(2, 1),
            lambda: session.task_stop(2, 1),
            lambda: session.stop_running(2, 1),
            lambda: session.stop(2, 1),
        ):
            with pytest.raises(RuntimeError, match=words):
                await work()
        with pytest.raises(RuntimeError, match=words):
            session.stopping(2, 1)
    assert api.counters.connections == 0


async def test_a_session_can_be_entered_again_but_not_twice_at_once(
    api: ControlApiSimulator,
) -> None:
    session = ControlSession(api.url, 1)
    for _ in range(2):
        async with session:
            assert (await session.stop_running(2, 1)).complete
            with pytest.raises(RuntimeError, match="entered already"):
                await session.__aenter__()
            assert (await session.stop_running(2, 2)).complete


def test_a_session_may_live_in_one_loop_after_the_other() -> None:
    api = ControlApiSimulator()
    api.add_tasks(range(1, 11))

    async def address() -> str:
        async with api:
            return api.url

    async def end_in_the_middle_of_a_pause() -> None:
        pause = HttpStatus(503, headers={"Retry-After": "900"})
        api.fault(pause, method="TaskStatus", number=1)
        async with api, session:
            callers = [asyncio.create_task(session.call("TaskStatus", PARAMS)) for _ in range(2)]
            await api.wait_for_requests(1)
            await asyncio.wait(callers, timeout=0.05)
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers)

    async def go_on() -> bool:
        async with api, session, asyncio.timeout(30):
            return (await session.stop_running(2, range(1, 11))).complete

    session = ControlSession(
        asyncio.run(address()),
        1,
        retry=RetryPolicy(wait_initial=0.3, wait_max=0.3),
        batching=Batching(max_concurrency=1),
    )
    asyncio.run(end_in_the_middle_of_a_pause())
    assert asyncio.run(go_on())


# --- Retry-After ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("007", 7.0),
        ("-1", None),
        ("1.5", None),
        ("1e3", None),
        ("soon", None),
        ("7, 8", None),
        ("\u00b2", None),
        ("9" * 400, math.inf),
        ("9" * 5000, math.inf),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("Sun Nov  6 08:49:37 1994", 0.0),
        ("Fri, 32 Dec 2100 00:00:00 GMT", None),
        ("Fri, 31 Dec 99999999999999999999 00:00:00 GMT", None),
        ("Fri, 31 Dec 2100 00:00:00 +9999", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(
    value: str | None, seconds: float | None
) -> None:
    assert retry_after(value) == seconds


@pytest.mark.parametrize("zone", ["GMT", "UTC", "+0000", "-0000", ""])
def test_a_retry_after_date_counts_from_now_in_gmt(zone: str) -> None:
    moment = datetime.now(UTC) + timedelta(days=1)
    date = format_datetime(moment, usegmt=True).replace("GMT", zone).strip()
    seconds = retry_after(date)
    assert seconds is not None
    assert 86400 - 600 < seconds <= 86400


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [+-]?\w+"))
def test_whatever_retry_after_says_it_is_read_without_a_crash(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or seconds >= 0


# --- logging --------------------------------------------------------------------------------------


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.split(".")[0] == "ctrlapi_async" and record.levelno == level
    ]


async def test_debug_has_a_line_a_request(
    api: ControlApiSimulator, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "ctrlapi_async")
    async with ControlSession(api.url, 1, batching=Batching(chunk_size=4)) as session:
        await session.stop_running(2, range(1, 11))
        api.fault(HttpStatus(404))
        with pytest.raises(HttpError):
            await session.call("TaskReport", {})
    told = lines(caplog, logging.DEBUG)
    assert len(told) == api.counters.requests == 7
    pattern = r"(\w+) of (\d+) tasks?: (\d+) after \d+\.\d ms"
    parts = [match.groups() for line in told if (match := re.fullmatch(pattern, line))]
    assert sorted(parts) == [
        ("TaskReport", "1", "404"),
        ("TaskStatus", "2", "200"),
        ("TaskStatus", "4", "200"),
        ("TaskStatus", "4", "200"),
        ("TaskStop", "2", "200"),
        ("TaskStop", "4", "200"),
        ("TaskStop", "4", "200"),
    ]
    assert lines(caplog, logging.WARNING) == []
    assert capfd.readouterr() == ("", "")


async def test_warning_has_a_line_a_retry_and_a_slow_down(
    api: ControlApiSimulator, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.WARNING, "ctrlapi_async")
    api.fault(Drop(), number=1)
    api.fault(HttpStatus(503), number=2)
    api.fault(HttpStatus(413), number=4)
    async with ControlSession(api.url, 1, retry=HASTY) as session:
        report = await session.stop_running(2, range(1, 11))
    assert report.complete
    told = lines(caplog, logging.WARNING)
    assert len([line for line in told if line.startswith("attempt ")]) == report.stats.retries == 2
    assert [line.split(":")[0] for line in told if not line.startswith("attempt ")] == [
        "slowing down",
        "request too large",
    ]
    assert capfd.readouterr() == ("", "")


async def test_nothing_is_printed_when_nobody_listens(
    api: ControlApiSimulator, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a program that has configured no logging at all.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    api.fault(HttpStatus(503), number=1)
    api.fault(Drop(), number=2)
    async with ControlSession(api.url, 1, retry=HASTY) as session:
        report = await session.stop_running(2, range(1, 11))
    assert report.stats.retries == 2
    assert json.loads(report.to_json())["stats"]["retries"] == 2
    assert capfd.readouterr() == ("", "")


async def test_an_error_page_that_breaks_off_is_still_that_error() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\n<html>half a pa")
        await writer.drain()

    async with (
        raw_server(answer) as url,
        ControlSession(url, 1, retry=RetryPolicy(attempts=1)) as session,
    ):
        with pytest.raises(HttpError, match="HTTP 500 Oops") as caught:
            await session.call("TaskStop", {})
    assert caught.value.status == 500


async def test_what_a_client_does_with_statuses_elsewhere_does_not_matter(
    api: ControlApiSimulator,
) -> None:
    api.fault(HttpStatus(403))
    async with (
        aiohttp.ClientSession(raise_for_status=True) as client,
        ControlSession(api.url, 1, client=client) as session,
    ):
        with pytest.raises(HttpError) as caught:
            await session.call("TaskStatus", {"project_id": 2, "task_ids": 1})
    assert caught.value.status == 403
    assert api.counters.requests == 1


async def test_words_that_are_not_utf_8_fit_into_a_report() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Nicht gef\xfcnden\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw_server(answer) as url, ControlSession(url, 1) as session:
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, [1])
    assert "Nicht gef\ufffdnden" in caught.value.report.to_json()


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_a_host_that_cannot_be_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match="must be an HTTP URL"):
        ControlSession(f"http://{host}", 1)
