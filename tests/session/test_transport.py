"""One attempt of one request over real sockets: bounds, time limits, cancellation, the client."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import zlib
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from ctrlapi_async import ApiKey, HttpError, ReplyError, RequestError
from ctrlapi_async._errors import ReplyTooLargeError, RequestTimeoutError, Trait, traits_of
from ctrlapi_async._transport import Transport
from tests.support.clock import eager
from tests.support.sockets import RawServer, raw_server, response, transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiohttp.client_middlewares import ClientHandlerType

OK = response(b'{"reply": []}')


@pytest.fixture
async def server() -> AsyncIterator[RawServer]:
    async with raw_server(OK) as server:
        yield server


async def hang(_: asyncio.StreamWriter) -> None:
    await asyncio.get_running_loop().create_future()


# --- the request ----------------------------------------------------------------------------------


async def test_a_request_as_it_is_on_the_wire(server: RawServer) -> None:
    headers = {"X-Id": "7", "User-Agent": "mine/1", "content-type": "text/plain"}
    async with transport(server.url, headers=headers, auth=("me", "pw")) as sender:
        headers["X-Id"] = "changed later"
        assert await sender.post(b'{"a": 1}') == b'{"reply": []}'
    assert server.bodies == [b'{"a": 1}']
    head = server.heads[0].decode()
    assert head.startswith("POST /ctrl_api/v1/json HTTP/1.1\r\n")
    assert server.header("X-Id") == "7"
    assert server.header("User-Agent") == "mine/1"
    assert server.header("Content-Type") == "application/json"
    assert head.lower().count("content-type") == 1
    assert server.header("Content-Length") == "8"
    assert server.header("Authorization") == "Basic bWU6cHc="
    assert server.header("Accept-Encoding") == "gzip, deflate"
    assert server.header("Cookie") is None


@pytest.mark.parametrize(
    ("userinfo", "header"),
    [
        ("me:secret@", "Basic bWU6c2VjcmV0"),
        ("me@", "Basic bWU6"),
        ("me:@", "Basic bWU6"),
        (":secret@", "Basic OnNlY3JldA=="),
        ("m%40e:s%2Fe%3Ac%25r%20et@", "Basic bUBlOnMvZTpjJXIgZXQ="),
        ("m%C3%B6:p%C3%A4ss@", "Basic bcO2OnDDpHNz"),
        ("me:a+b@", "Basic bWU6YSti"),
        ("", None),
    ],
)
async def test_userinfo_becomes_credentials(
    server: RawServer, userinfo: str, header: str | None
) -> None:
    async with transport(server.url.replace("//", f"//{userinfo}")) as sender:
        await sender.post(b"{}")
        assert str(sender.url) == f"{server.url}/ctrl_api/v1/json"
    assert server.header("Authorization") == header


async def test_a_body_of_megabytes_is_sent_in_pieces_and_without_a_warning(
    server: RawServer,
) -> None:
    body = random.Random(1).randbytes(3_000_001)
    async with transport(server.url) as sender:
        await sender.post(body)
    assert server.bodies == [body]


async def test_cookies_are_not_kept() -> None:
    async with (
        raw_server(response(Set_Cookie="a=b")) as server,
        transport(server.url) as sender,
    ):
        await sender.post(b"{}")
        await sender.post(b"{}")
        assert server.header("Cookie") is None


async def test_trace_hooks_are_told_what_is_sent(server: RawServer) -> None:
    told = []

    async def note(_: Any, context: Any, __: Any) -> None:
        told.append(context.trace_request_ctx)

    config = aiohttp.TraceConfig()
    config.on_request_start.append(note)
    async with (
        aiohttp.ClientSession(trace_configs=[config]) as client,
        transport(server.url, client=client) as sender,
    ):
        await sender.post(b"{}", trace={"method": "TaskStop", "tasks": 500})
    assert told == [{"method": "TaskStop", "tasks": 500}]


# --- bounds ---------------------------------------------------------------------------------------

REPLY = b'{"reply": [%s]}' % (b'"x", ' * 200 + b'"x"')
LIMIT = len(REPLY)


def announced(body: bytes) -> bytes:
    return response(body)


def chunked(body: bytes) -> bytes:
    pieces = [body[start : start + 100] for start in range(0, len(body), 100)]
    return b"".join(
        [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces),
            b"0\r\n\r\n",
        ]
    )


def until_closed(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body


def gzipped(body: bytes) -> bytes:
    return response(gzip.compress(body), Content_Encoding="gzip")


def gzipped_in_members(body: bytes) -> bytes:
    half = len(body) // 2
    packed = gzip.compress(body[:half]) + gzip.compress(body[half:])
    return response(packed, Content_Encoding="X-GZIP")


def deflated(body: bytes) -> bytes:
    return response(zlib.compress(body), Content_Encoding=" Deflate ")


def deflated_without_header(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return response(packer.compress(body) + packer.flush(), Content_Encoding="deflate")


def identical(body: bytes) -> bytes:
    return response(body, Content_Encoding="identity")


FORMS = [
    announced,
    chunked,
    until_closed,
    gzipped,
    gzipped_in_members,
    deflated,
    deflated_without_header,
    identical,
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("excess", [0, 1, 1_000_000])
@pytest.mark.parametrize("client_decompresses", [True, False])
async def test_a_reply_over_the_limit_is_refused(
    form: Callable[[bytes], bytes], excess: int, client_decompresses: bool
) -> None:
    async with (
        raw_server(form(REPLY + b" " * excess)) as server,
        aiohttp.ClientSession(auto_decompress=client_decompresses) as client,
        transport(server.url, max_reply_bytes=LIMIT, client=client) as sender,
    ):
        if excess:
            with pytest.raises(ReplyTooLargeError, match=f"more than {LIMIT} bytes"):
                await sender.post(b"{}")
        else:
            assert await sender.post(b"{}") == REPLY


@pytest.mark.parametrize("form", FORMS)
async def test_an_empty_body_is_a_body(form: Callable[[bytes], bytes]) -> None:
    async with raw_server(form(b"")) as server, transport(server.url) as sender:
        assert await sender.post(b"{}") == b""


async def test_a_body_announced_as_compressed_may_be_missing() -> None:
    answer = response(b"", Content_Encoding="gzip")
    async with raw_server(answer) as server, transport(server.url) as sender:
        assert await sender.post(b"{}") == b""


@pytest.mark.parametrize("slack", [-1, 0, 1])
async def test_large_compressed_replies_come_whole(slack: int) -> None:
    body = random.Random(2).randbytes(2**18 * 3 + slack)
    body += bytes(2**20)  # which compresses well
    async with raw_server(gzipped(body)) as server, transport(server.url) as sender:
        assert await sender.post(b"{}") == body


async def endless_announced(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    await hang(writer)


async def endless_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"3e8\r\n" + b" " * 1000 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0)


async def bomb(writer: asyncio.StreamWriter) -> None:
    """Send a hundred megabytes of nothing in a hundred kilobytes, and announce more."""
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(bytes(100_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
    assert len(packed) < 110_000
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(b"%x\r\n%s\r\n" % (len(packed), packed))
    await hang(writer)


async def compressed_nothing(writer: asyncio.StreamWriter) -> None:
    """Send compressed data without end that stands for nothing."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
    packer = zlib.compressobj(wbits=31)
    nothing = packer.flush(zlib.Z_FULL_FLUSH)
    empty_blocks = b"\x00\x00\x00\xff\xff" * 2000
    for piece in (nothing, *([empty_blocks] * 10_000)):
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        await asyncio.sleep(0)


@pytest.mark.parametrize("answer", [endless_announced, endless_chunks, bomb, compressed_nothing])
async def test_a_reply_without_end_is_refused_while_it_is_read(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]],
) -> None:
    async with (
        raw_server(answer) as server,
        transport(server.url, max_reply_bytes=100_000) as sender,
        asyncio.timeout(60),
    ):
        with pytest.raises(ReplyTooLargeError, match="more than 100000 bytes"):
            await sender.post(b"{}")
        # It is not read on behind the caller's back: the connection is closed.
        await server.left.wait()


async def test_the_loop_turns_while_a_large_reply_is_decompressed() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    body = gzipped(bytes(10_000_000))
    async with raw_server(body) as server, transport(server.url, max_reply_bytes=2**30) as sender:
        counting = asyncio.create_task(count())
        before = turns
        assert len(await sender.post(b"{}")) == 10_000_000
        assert turns - before > 10_000_000 / 2**18
        counting.cancel()
        await asyncio.wait([counting])


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response(b"{}", Content_Encoding="br"), "a body with the content encoding 'br'"),
        (response(b"{}", Content_Encoding="gzip, gzip"), "content encoding 'gzip, gzip'"),
        (response(b"{}", Content_Encoding="gzip"), "not compressed as its headers say"),
        (response(gzip.compress(REPLY) + b"rest", Content_Encoding="gzip"), "not compressed as"),
        (response(gzip.compress(REPLY)[:-9], Content_Encoding="gzip"), "that was cut off"),
    ],
)
async def test_a_body_that_is_not_what_its_headers_say(answer: bytes, words: str) -> None:
    async with raw_server(answer) as server, transport(server.url) as sender:
        with pytest.raises(ReplyError, match=words) as caught:
            await sender.post(b"{}")
    assert Trait.PASSING in traits_of(caught.value)


async def test_an_error_page_without_end_is_not_read_to_the_end() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n")
        while True:
            writer.write(b"<html>" * 1000)
            await writer.drain()
            await asyncio.sleep(0)

    async with raw_server(answer) as server, transport(server.url) as sender, asyncio.timeout(60):
        with pytest.raises(HttpError, match="HTTP 403 Forbidden") as caught:
            await sender.post(b"{}")
        assert caught.value.status == 403
        assert 0 < len(caught.value.excerpt) <= 500
        await server.left.wait()


@pytest.mark.parametrize(
    "body",
    [b"<html>half a pa", b"<html>" + b"\x1f\x8b not gzip"],
    ids=["cut", "odd"],
)
@pytest.mark.parametrize("encoding", ["identity", "gzip"])
async def test_an_error_page_that_breaks_off_is_still_that_error(
    body: bytes, encoding: str
) -> None:
    answer = response(body, "500 Oops", Content_Length="100", Content_Encoding=encoding)
    async with raw_server(answer) as server, transport(server.url) as sender:
        with pytest.raises(HttpError, match="HTTP 500 Oops") as caught:
            await sender.post(b"{}")
    assert caught.value.status == 500
    assert caught.value.__context__ is None


async def test_a_compressed_error_page_is_read() -> None:
    page = gzip.compress(b"<title>No required SSL certificate was sent</title>")
    answer = response(page, "400 Bad Request", Content_Encoding="gzip")
    async with raw_server(answer) as server, transport(server.url) as sender:
        with pytest.raises(HttpError, match="No required SSL certificate was sent"):
            await sender.post(b"{}")


async def test_an_error_page_that_trickles_is_that_error_when_the_time_is_up() -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\n<html>")
        await hang(writer)

    async with (
        raw_server(answer) as server,
        transport(server.url, request_timeout=0.05) as sender,
    ):
        with pytest.raises(HttpError) as caught:
            await sender.post(b"{}")
    assert caught.value.status == 404
    assert caught.value.excerpt == "<html>"


# --- time limits and cancellation -----------------------------------------------------------------


async def trickle(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("answer", [hang, trickle])
async def test_a_reply_that_does_not_come_in_time(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]],
) -> None:
    async with raw_server(answer) as server, transport(server.url, request_timeout=0.05) as sender:
        with pytest.raises(RequestTimeoutError, match=r"no answer from .* within 0.05 s") as caught:
            await sender.post(b"{}")
        assert caught.value.sent
        assert isinstance(caught.value, TimeoutError)
        async with asyncio.timeout(60):
            await server.left.wait()


@pytest.mark.parametrize("limit", ["connect_timeout", "request_timeout"])
@pytest.mark.parametrize("own", [True, False])
async def test_a_connection_that_is_not_made_in_time_was_surely_not_sent(
    limit: str, own: bool
) -> None:
    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await forever
        writer.close()

    forever = asyncio.get_running_loop().create_future()
    # A server that accepts connections and says nothing: no TLS handshake comes to an end.
    silent = await asyncio.start_server(accept, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    limits: dict[str, Any] = {limit: 0.05}
    async with silent, contextlib.AsyncExitStack() as stack:
        if not own:
            limits["client"] = await stack.enter_async_context(aiohttp.ClientSession())
        sender = await stack.enter_async_context(transport(url, **limits))
        with pytest.raises(
            RequestTimeoutError, match=r"no connection to .* within 0.05 s"
        ) as caught:
            await sender.post(b"{}")
        assert not caught.value.sent
        assert Trait.NOT_CARRIED_OUT in traits_of(caught.value)
        forever.set_result(None)


async def test_time_in_the_queue_of_the_callers_client_is_no_time_of_the_connection() -> None:
    gate = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(OK)
        await writer.drain()

    async with (
        raw_server(answer) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client,
        transport(server.url, client=client, connect_timeout=0.05) as sender,
        transport(server.url, client=client, request_timeout=0.1) as impatient,
    ):
        first = asyncio.create_task(sender.post(b"{}"))
        await server.arrived.wait()
        second = asyncio.create_task(sender.post(b"{}"))
        with pytest.raises(RequestTimeoutError, match="no connection to") as caught:
            await impatient.post(b"{}")
        assert not caught.value.sent  # it was still in the queue
        assert not second.done()
        gate.set()
        assert await first == await second == b'{"reply": []}'


@pytest.mark.parametrize("request_timeout", [0.05, 1000.0])
@pytest.mark.parametrize("answer", [hang, trickle])
async def test_an_outer_time_limit_is_exact_even_if_both_end_together(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]], request_timeout: float
) -> None:
    async with (
        raw_server(answer) as server,
        transport(server.url, request_timeout=request_timeout) as sender,
    ):
        for _ in range(5):
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.05):
                    await sender.post(b"{}")
            # Never an error that somebody could repeat: that would outlive the outer limit.
            assert not isinstance(caught.value, RequestError)
            task = asyncio.current_task()
            assert task is not None
            assert not task.cancelling()


@pytest.mark.parametrize("answer", [hang, trickle])
async def test_a_cancelled_request_leaves_no_connection(
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]],
) -> None:
    async with raw_server(answer) as server, transport(server.url) as sender:
        posting = asyncio.create_task(sender.post(b"{}"))
        await server.arrived.wait()
        posting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await posting
        async with asyncio.timeout(60):
            await server.left.wait()


@pytest.mark.parametrize("request_timeout", [1000.0, 0.05])
async def test_a_task_that_cancels_itself_is_cancelled(
    server: RawServer, request_timeout: float
) -> None:
    async with transport(server.url, request_timeout=request_timeout) as sender:

        async def work() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await sender.post(b"{}")

        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work())


async def test_it_works_in_tasks_that_start_at_once(server: RawServer) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(eager)
    try:
        async with transport(server.url) as sender:
            assert await asyncio.create_task(sender.post(b"{}")) == b'{"reply": []}'
    finally:
        loop.set_task_factory(None)


# --- what the caller's client does ----------------------------------------------------------------


def traced(event: str, error: BaseException) -> aiohttp.TraceConfig:
    """Return hooks of which one raises."""

    async def hook(*_: object) -> None:
        raise error

    config = aiohttp.TraceConfig()
    getattr(config, event).append(hook)
    return config


@pytest.mark.parametrize(
    ("event", "sent"),
    [
        ("on_request_start", False),
        ("on_connection_create_start", False),
        ("on_connection_create_end", False),
        ("on_request_headers_sent", False),
        ("on_request_end", True),
    ],
)
@pytest.mark.parametrize("error", [ValueError("odd"), asyncio.CancelledError(), KeyError()])
async def test_a_hook_that_raises_is_a_failed_request(
    server: RawServer, event: str, sent: bool, error: BaseException
) -> None:
    async with (
        aiohttp.ClientSession(trace_configs=[traced(event, error)]) as client,
        transport(server.url, client=client) as sender,
    ):
        with pytest.raises(RequestError, match="the HTTP client failed") as caught:
            await sender.post(b"{}")
    assert type(error).__name__ in str(caught.value)
    assert caught.value.sent == sent
    assert caught.value.__cause__ is error


class OddConnector(aiohttp.TCPConnector):
    async def connect(self, *_: Any, **__: Any) -> Any:
        raise LookupError("the SOCKS proxy is not there")


async def test_a_connector_that_raises_is_a_failed_request(server: RawServer) -> None:
    async with (
        aiohttp.ClientSession(connector=OddConnector()) as client,
        transport(server.url, client=client) as sender,
    ):
        with pytest.raises(RequestError, match="LookupError: the SOCKS proxy") as caught:
            await sender.post(b"{}")
    assert not caught.value.sent


async def test_a_client_that_swallows_a_cancellation_does_not_hide_it(server: RawServer) -> None:
    waiting = asyncio.Event()

    async def hook(*_: object) -> None:
        waiting.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise ValueError("something else") from None

    config = aiohttp.TraceConfig()
    config.on_request_start.append(hook)
    async with (
        aiohttp.ClientSession(trace_configs=[config]) as client,
        transport(server.url, client=client) as sender,
    ):
        posting = asyncio.create_task(sender.post(b"{}"))
        await waiting.wait()
        posting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await posting


middlewares = pytest.mark.skipif(
    not hasattr(aiohttp, "ClientMiddlewareType"), reason="this aiohttp has no middlewares"
)


@middlewares
async def test_a_middleware_may_read_the_body_and_send_it_twice(server: RawServer) -> None:
    async def sign(
        request: aiohttp.ClientRequest, handler: ClientHandlerType
    ) -> aiohttp.ClientResponse:
        request.headers["X-Signed"] = str(len(await request.body.as_bytes()))  # type: ignore[union-attr]
        (await handler(request)).close()
        return await handler(request)

    async with (
        aiohttp.ClientSession(middlewares=[sign]) as client,
        transport(server.url, client=client) as sender,
    ):
        await sender.post(b'{"a": 1}')
    assert server.bodies == [b'{"a": 1}'] * 2
    assert server.header("X-Signed") == "8"


@middlewares
@pytest.mark.parametrize("reads", [False, True])
async def test_what_a_middleware_has_read_may_have_been_sent(
    server: RawServer, reads: bool
) -> None:
    async def fail(request: aiohttp.ClientRequest, _: ClientHandlerType) -> aiohttp.ClientResponse:
        if reads:
            request.body.decode()
        raise ValueError("odd")

    async with (
        aiohttp.ClientSession(middlewares=[fail]) as client,
        transport(server.url, client=client) as sender,
    ):
        with pytest.raises(RequestError, match="ValueError: odd") as caught:
            await sender.post(b"{}")
    assert caught.value.sent == reads


async def test_what_a_client_does_with_statuses_elsewhere_does_not_matter() -> None:
    async with (
        raw_server(response(b"no", "403 Forbidden")) as server,
        aiohttp.ClientSession(raise_for_status=True) as client,
        transport(server.url, client=client) as sender,
    ):
        with pytest.raises(HttpError, match=r"\(no\)") as caught:
            await sender.post(b"{}")
    assert caught.value.status == 403


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(server: RawServer, status: int) -> None:
    answer = response(b"", f"{status} Moved", Location=f"{server.url}/elsewhere")
    async with raw_server(answer) as first, transport(first.url, auth=("me", "pw")) as sender:
        with pytest.raises(HttpError, match=r"redirects to http.*/elsewhere") as caught:
            await sender.post(b"{}")
        assert first.connections == 1
    assert caught.value.status == status
    assert server.connections == 0


# --- faults of the network ------------------------------------------------------------------------


async def test_a_server_that_is_not_there() -> None:
    async with raw_server(OK) as server:
        pass
    async with transport(server.url) as sender:
        with pytest.raises(RequestError, match="was not reached: Connection refused") as caught:
            await sender.post(b"{}")
    assert not caught.value.sent
    assert isinstance(caught.value.__cause__, aiohttp.ClientConnectorError)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 " + b"x" * 145_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "cut body", "cut chunk", "cut head", "no HTTP", "long line"],
)
async def test_a_connection_that_breaks_may_have_carried_the_request(answer: bytes) -> None:
    async with raw_server(answer) as server, transport(server.url) as sender:
        with pytest.raises(RequestError, match="broke off") as caught:
            await sender.post(b"{}")
    assert caught.value.sent
    assert len(str(caught.value)) <= 500
    assert "\n" not in str(caught.value)


# --- whose client, and when -----------------------------------------------------------------------


async def test_the_callers_client_is_used_and_never_closed(server: RawServer) -> None:
    async def keep(writer: asyncio.StreamWriter) -> None:
        writer.write(response(Connection="keep-alive"))
        await writer.drain()

    server.answer = keep
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as client:
        for _ in range(2):
            async with transport(server.url, client=client) as sender:
                await sender.post(b"{}")
            assert not client.closed
    assert server.connections == 1
    assert server.header("X-Mine") == "yes"


async def test_nothing_is_sent_before_opening_and_after_closing(server: RawServer) -> None:
    async with aiohttp.ClientSession() as client:
        for given in (None, client):
            async with transport(server.url, client=given) as sender:
                pass
            for closed in (
                sender,
                Transport(
                    server.url,
                    user_id=1,
                    client=given,
                    request_timeout=1.0,
                    connect_timeout=1.0,
                    max_reply_bytes=1,
                ),
            ):
                with pytest.raises(RequestError, match="the HTTP client is closed") as caught:
                    await closed.post(b"{}")
                assert not caught.value.sent
                await closed.close()
    assert server.connections == 0


async def test_a_callers_client_that_is_closed_is_said_to_be(server: RawServer) -> None:
    async with (
        aiohttp.ClientSession() as client,
        transport(server.url, client=client) as sender,
    ):
        await client.close()
        with pytest.raises(RequestError, match="the HTTP client is closed") as caught:
            await sender.post(b"{}")
        assert not caught.value.sent
        assert sender.connection_limit is None


@pytest.mark.parametrize(
    ("limits", "limit"),
    [
        (None, None),
        ({}, 100),
        ({"limit": 0}, None),
        ({"limit": 3}, 3),
        ({"limit": 0, "limit_per_host": 2}, 2),
        ({"limit": 3, "limit_per_host": 5}, 3),
    ],
)
async def test_the_limits_of_the_callers_connector_are_known(
    limits: dict[str, int] | None, limit: int | None
) -> None:
    if limits is None:
        async with transport("http://host") as sender:
            assert sender.connection_limit is None
        return
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(**limits)) as client,  # type: ignore[arg-type]
        transport("http://host", client=client) as sender,
    ):
        assert sender.connection_limit == limit


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"ssl": None}, TypeError, "ssl must be .*not None"),
        ({"ssl": "/etc/ca.pem"}, TypeError, "ssl must be .*not '/etc/ca.pem'"),
        ({"client": "client"}, TypeError, "client must be an aiohttp.ClientSession, not 'client'"),
        ({"auth": "me:pw"}, TypeError, "auth must be a tuple"),
    ],
)
def test_a_bad_argument_is_named(
    arguments: dict[str, Any], kind: type[Exception], words: str
) -> None:
    limits: Any = {"request_timeout": 1.0, "connect_timeout": 1.0, "max_reply_bytes": 1}
    with pytest.raises(kind, match=words):
        Transport("http://host", user_id=1, **limits, **arguments)


async def test_a_client_with_a_base_url_works_or_is_refused_at_once(server: RawServer) -> None:
    async with aiohttp.ClientSession(base_url="http://elsewhere/") as client:
        if tuple(map(int, aiohttp.__version__.split(".")[:2])) < (3, 12):
            with pytest.raises(ValueError, match="client has a base_url"):
                async with transport(server.url, client=client):
                    pass
            return
        async with transport(server.url, client=client) as sender:
            await sender.post(b"{}")
    assert server.connections == 1


async def test_a_client_of_an_aiohttp_that_refuses_whole_addresses_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(*_: object) -> None:
        raise AssertionError

    async with aiohttp.ClientSession() as client:
        monkeypatch.setattr(aiohttp.ClientSession, "_build_url", build)
        with pytest.raises(ValueError, match="client has a base_url, with which aiohttp 3"):
            async with transport("http://host", client=client):
                pass


# --- without a socket -----------------------------------------------------------------------------


async def test_a_client_that_never_reads_the_body_has_sent_nothing(canned: Any) -> None:
    url = "http://host/ctrl_api/v1/json"
    canned.post(url, exception=ValueError("odd"))
    canned.post(url, exception=aiohttp.ServerDisconnectedError())
    canned.post(url, body=json.dumps({"reply": []}))
    async with transport("http://host") as sender:
        for sent in (False, True):  # a connection that broke had been made
            with pytest.raises(RequestError) as caught:
                await sender.post(b"{}")
            assert caught.value.sent == sent
        assert await sender.post(b"{}") == b'{"reply": []}'
    [calls] = canned.requests.values()
    assert calls[0].kwargs["allow_redirects"] is False
    assert calls[0].kwargs["data"].decode() == "{}"


def test_an_api_key_is_taken() -> None:
    limits: Any = {"request_timeout": 1.0, "connect_timeout": 1.0, "max_reply_bytes": 1}
    assert Transport("http://host", user_id=1, auth=ApiKey("AAAA"), **limits).url.host == "host"
