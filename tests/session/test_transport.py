"""One attempt of one request over real sockets: bounds, time limits, cancellation, the client."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from ctrlapi_async import HttpError, ReplyError, RequestError
from ctrlapi_async._errors import ReplyTooLargeError, RequestTimeoutError, Trait, traits_of
from tests.support.sockets import raw_server, response, served, transport
from tests.support.steps import watched

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.client_middlewares import ClientHandlerType

    from tests.support.sockets import Answer, Writes

DONE = b'{"reply": []}'
OK = response(DONE)


async def hang(_: asyncio.StreamWriter) -> None:
    await asyncio.get_running_loop().create_future()


# --- the request ----------------------------------------------------------------------------------


async def test_a_request_as_it_is_on_the_wire() -> None:
    headers = {"X-Id": "7", "User-Agent": "mine/1", "content-type": "text/plain"}
    answer = response(DONE, Set_Cookie="a=b")  # which is not kept
    async with raw_server(answer) as server:
        url = server.url.replace("127.0.0.1", "localhost")  # an address would get no cookie back
        async with transport(url, headers=headers, auth=("me", "pw")) as sender:
            headers["X-Id"] = "changed later"
            for _ in range(2):
                assert await sender.post(b'{"a": 1}') == DONE
    assert server.bodies == [b'{"a": 1}'] * 2
    head = server.heads[1].decode()
    assert head.startswith("POST /ctrl_api/v1/json HTTP/1.1\r\n")
    assert head.lower().count("content-type") == 1
    for name, value in {
        "X-Id": "7",
        "User-Agent": "mine/1",
        "Content-Type": "application/json",
        "Content-Length": "8",
        "Authorization": "Basic bWU6cHc=",
        "Accept-Encoding": "gzip, deflate",
        "Cookie": None,
    }.items():
        assert server.header(name) == value


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
async def test_userinfo_becomes_credentials_unless_others_are_given(
    userinfo: str, header: str | None
) -> None:
    async with raw_server(OK) as server:
        url = server.url.replace("//", f"//{userinfo}")
        for auth, sent in ((None, header), (("you", "pw"), "Basic eW91OnB3")):
            async with transport(url, auth=auth) as sender:
                await sender.post(b"{}")
            assert server.header("Authorization") == sent
            assert str(sender.url) == f"{server.url}/ctrl_api/v1/json"
            assert server.header("Host") == server.url.removeprefix("http://")


async def test_a_body_of_megabytes_is_sent_in_pieces_and_without_a_warning() -> None:
    body = random.Random(1).randbytes(3_000_001)
    async with served(OK) as (server, sender):
        await sender.post(body)
    assert server.bodies == [body]


# --- bounds ---------------------------------------------------------------------------------------

REPLY = b'{"reply": [%s]}' % (b'"x", ' * 200 + b'"x"')
LIMIT = len(REPLY)


def chunked(body: bytes) -> bytes:
    chunks = [chunk(body[start : start + 100]) for start in range(0, len(body), 100)]
    return b"HTTP/1.1 " + CHUNKS + b"".join(chunks) + b"0\r\n\r\n"


def encoded(
    encoding: str, pack: Callable[[bytes], bytes], status: str = "200 OK"
) -> Callable[[bytes], bytes]:
    return lambda body: response(pack(body), status, Content_Encoding=encoding)


packed = partial(gzip.compress, mtime=0)  # ids of tests are made of what it returns


def in_members(body: bytes) -> bytes:
    half = len(body) // 2
    return packed(body[:half]) + packed(body[half:])


def without_header(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


gzipped = encoded("gzip", packed)
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "announced": response,
    "chunked": chunked,
    "until closed": lambda body: b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body,
    "gzip": gzipped,
    "gzip in members": encoded("X-GZIP", in_members),
    "deflate": encoded(" Deflate ", zlib.compress),
    "deflate without header": encoded("deflate", without_header),
    "identity": encoded("identity", bytes),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("excess", [0, 1, 1_000_000])
@pytest.mark.parametrize("client_decompresses", [True, False])
async def test_a_reply_over_the_limit_is_refused(
    form: Callable[[bytes], bytes], excess: int, client_decompresses: bool
) -> None:
    answer = form(REPLY + b" " * excess)
    client = {"auto_decompress": client_decompresses}
    async with served(answer, client, max_reply_bytes=LIMIT) as (_, sender):
        if excess:
            with pytest.raises(ReplyTooLargeError, match=f"more than {LIMIT} bytes"):
                await sender.post(b"{}")
        else:
            assert await sender.post(b"{}") == REPLY


@pytest.mark.parametrize(
    "form", [*FORMS.values(), encoded("gzip", bytes)], ids=[*FORMS, "announced as gzip"]
)
async def test_an_empty_body_is_a_body(form: Callable[[bytes], bytes]) -> None:
    async with served(form(b"")) as (_, sender):
        assert await sender.post(b"{}") == b""


@pytest.mark.parametrize("slack", [-1, 0, 1])
async def test_the_loop_turns_while_a_large_compressed_reply_is_read(slack: int) -> None:
    body = random.Random(2).randbytes(2**18 * 3 + slack) + bytes(10_000_000)
    async with (
        served(gzipped(body), max_reply_bytes=2**30) as (_, sender),
        watched() as turns,
    ):
        assert await sender.post(b"{}") == body
    assert len(turns) > 10_000_000 / 2**18


def endless(head: bytes, piece: bytes, pause: float = 0) -> Writes:
    """Send a piece of a body again and again."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 " + head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


packer = zlib.compressobj(wbits=31)
NOTHING = packer.flush(zlib.Z_FULL_FLUSH)
"""Compressed data that stands for nothing."""
BOMB = packer.compress(bytes(10_000_000)) + packer.flush(zlib.Z_SYNC_FLUSH)
CHUNKS = b"200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GZIP_CHUNKS = b"200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        endless(b"200 OK\r\nContent-Length: 1000000000000\r\n\r\n", b""),
        endless(CHUNKS, chunk(b" " * 1000)),
        endless(GZIP_CHUNKS + chunk(NOTHING + BOMB), b""),
        endless(GZIP_CHUNKS + chunk(NOTHING), chunk(b"\x00\x00\x00\xff\xff" * 2000)),
    ],
    ids=["announced", "chunks", "bomb", "compressed nothing"],
)
async def test_a_reply_without_end_is_refused_while_it_is_read(answer: Writes) -> None:
    assert len(BOMB) < 11_000
    async with served(answer, max_reply_bytes=100_000) as (server, sender), asyncio.timeout(60):
        with pytest.raises(ReplyTooLargeError, match="more than 100000 bytes"):
            await sender.post(b"{}")
        # It is not read on behind the caller's back: the connection is closed.
        await server.left.wait()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response(b"{}", Content_Encoding="br"), "a body with the content encoding 'br'"),
        (response(b"{}", Content_Encoding="gzip, gzip"), "content encoding 'gzip, gzip'"),
        (response(b"{}", Content_Encoding="gzip"), "not compressed as its headers say"),
        (response(packed(REPLY) + b"rest", Content_Encoding="gzip"), "not compressed as"),
        (response(packed(REPLY)[:-9], Content_Encoding="gzip"), "that was cut off"),
    ],
)
async def test_a_body_that_is_not_what_its_headers_say(answer: bytes, words: str) -> None:
    async with served(answer) as (_, sender):
        with pytest.raises(ReplyError, match=words) as caught:
            await sender.post(b"{}")
    assert Trait.PASSING in traits_of(caught.value)


async def test_an_error_page_without_end_is_not_read_to_the_end() -> None:
    answer = endless(b"403 Forbidden\r\nContent-Type: text/html\r\n\r\n", b"<html>" * 1000)
    async with served(answer) as (server, sender), asyncio.timeout(60):
        with pytest.raises(HttpError, match="HTTP 403 Forbidden") as caught:
            await sender.post(b"{}")
        assert 0 < len(caught.value.excerpt) <= 500
        await server.left.wait()


def cut_page(body: bytes, encoding: str = "identity") -> bytes:
    return response(body, "500 Oops", Content_Length="100", Content_Encoding=encoding)


async def trickling_page(writer: asyncio.StreamWriter) -> None:
    writer.write(cut_page(b"<html>"))
    await hang(writer)


CERTIFICATE = b"<title>No required SSL certificate was sent</title>"


@pytest.mark.parametrize(
    ("answer", "client", "excerpt"),
    [
        (cut_page(b"<html>half"), None, "<html>half"),
        (cut_page(b"<html>\x1f\x8b"), None, "<html>\x1f\ufffd"),
        (cut_page(b"<html>half", "gzip"), None, ""),
        (cut_page(packed(CERTIFICATE), "gzip"), None, CERTIFICATE.decode()),
        (encoded("gzip", packed, "500 Oops")(CERTIFICATE), None, CERTIFICATE.decode()),
        (trickling_page, None, "<html>"),
        # Whatever a caller's client does with statuses elsewhere.
        (response(b"no", "500 Oops"), {"raise_for_status": True}, "no"),
    ],
    ids=["cut", "odd", "no gzip", "cut gzip", "gzip", "trickling", "raise_for_status"],
)
async def test_an_error_page_is_that_error_however_it_ends(
    answer: Answer, client: dict[str, Any] | None, excerpt: str
) -> None:
    limit = 0.05 if answer is trickling_page else 1000.0
    async with served(answer, client, request_timeout=limit) as (_, sender):
        with pytest.raises(HttpError, match="HTTP 500 Oops") as caught:
            await sender.post(b"{}")
    assert (caught.value.status, caught.value.excerpt) == (500, excerpt)
    assert caught.value.__context__ is None


# --- time limits and cancellation -----------------------------------------------------------------


trickle = endless(b"200 OK\r\nContent-Length: 1000\r\n\r\n", b" ", 0.001)
unanswered = pytest.mark.parametrize("answer", [hang, trickle], ids=["hang", "trickle"])


@unanswered
async def test_a_reply_that_does_not_come_in_time(answer: Writes) -> None:
    async with served(answer, request_timeout=0.05) as (server, sender):
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
    # A server that waits for a request in the clear: no TLS handshake comes to an end.
    async with raw_server(hang) as silent, aiohttp.ClientSession() as client:
        url = silent.url.replace("http", "https")
        limits: dict[str, Any] = {limit: 0.05, "client": None if own else client}
        async with transport(url, **limits) as sender:
            with pytest.raises(RequestTimeoutError, match=r"no connection to .* within 0.05") as e:
                await sender.post(b"{}")
    assert not e.value.sent
    assert Trait.NOT_CARRIED_OUT in traits_of(e.value)


async def test_time_in_the_queue_of_the_callers_client_is_no_time_of_the_connection() -> None:
    gate = asyncio.Event()

    async def answer(writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        writer.write(OK)
        await writer.drain()

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client,
        served(answer, client=client, connect_timeout=0.05) as (server, sender),
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
        assert await first == await second == DONE


@pytest.mark.parametrize("request_timeout", [0.05, 1000.0])
@unanswered
async def test_an_outer_time_limit_is_exact_even_if_both_end_together(
    answer: Writes, request_timeout: float
) -> None:
    async with served(answer, request_timeout=request_timeout) as (server, sender):
        for _ in range(5):
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(0.05):
                    await sender.post(b"{}")
            await asyncio.wait_for(server.left.wait(), 60)  # no connection stays open
            server.left.clear()
            # Never an error that somebody could repeat: that would outlive the outer limit.
            assert not isinstance(caught.value, RequestError)
            task = asyncio.current_task()
            assert task is not None
            assert not task.cancelling()


@pytest.mark.parametrize("request_timeout", [1000.0, 0.05])
async def test_a_task_that_cancels_itself_is_cancelled(request_timeout: float) -> None:
    async def work() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await sender.post(b"{}")

    async with served(OK, request_timeout=request_timeout) as (_, sender):
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(work())


# --- what the caller's client does ----------------------------------------------------------------


async def test_a_client_that_swallows_a_cancellation_does_not_hide_it() -> None:
    waiting = asyncio.Event()

    async def hook(*_: object) -> None:
        waiting.set()
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            raise ValueError("something else") from None

    config = aiohttp.TraceConfig()
    config.on_request_start.append(hook)
    async with served(OK, {"trace_configs": [config]}) as (_, sender):
        posting = asyncio.create_task(sender.post(b"{}"))
        await waiting.wait()
        posting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await posting


middlewares = pytest.mark.skipif(
    not hasattr(aiohttp, "ClientMiddlewareType"), reason="this aiohttp has no middlewares"
)


@middlewares
async def test_a_middleware_may_read_the_body_and_send_it_twice() -> None:
    async def sign(
        request: aiohttp.ClientRequest, handler: ClientHandlerType
    ) -> aiohttp.ClientResponse:
        request.headers["X-Signed"] = str(len(await request.body.as_bytes()))  # type: ignore[union-attr]
        (await handler(request)).close()
        return await handler(request)

    async with served(OK, {"middlewares": [sign]}) as (server, sender):
        await sender.post(b'{"a": 1}')
    assert server.bodies == [b'{"a": 1}'] * 2
    assert server.header("X-Signed") == "8"


@middlewares
@pytest.mark.parametrize("reads", [False, True])
async def test_what_a_middleware_has_read_may_have_been_sent(reads: bool) -> None:
    async def fail(request: aiohttp.ClientRequest, _: ClientHandlerType) -> aiohttp.ClientResponse:
        if reads:
            request.body.decode()
        raise ValueError("odd")

    async with served(OK, {"middlewares": [fail]}) as (_, sender):
        with pytest.raises(RequestError, match="ValueError: odd") as caught:
            await sender.post(b"{}")
    assert caught.value.sent == reads


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    async with raw_server(OK) as other:
        answer = response(b"", f"{status} Moved", Location=f"{other.url}/elsewhere")
        async with served(answer, auth=("me", "pw")) as (server, sender):
            with pytest.raises(HttpError, match=r"redirects to http.*/elsewhere") as caught:
                await sender.post(b"{}")
    assert caught.value.status == status
    assert (server.connections, other.connections) == (1, 0)


# --- faults of the network ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"nonsense\r\n\r\n",
        b"x" * 7000 + b"\r\n\r\n",
        b"HTTP/1.1 " + b"x" * 145_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "cut body", "cut chunk", "cut head", "no HTTP", "long no HTTP", "long line"],
)
async def test_a_connection_that_breaks_may_have_carried_the_request(answer: bytes) -> None:
    async with served(answer) as (_, sender):
        with pytest.raises(RequestError, match="broke off") as caught:
            await sender.post(b"{}")
    assert caught.value.sent
    assert len(str(caught.value)) <= 500
    assert "\n" not in str(caught.value)


# --- whose client, and when -----------------------------------------------------------------------


async def test_nothing_is_sent_with_a_client_that_is_closed() -> None:
    async with raw_server(OK) as server, aiohttp.ClientSession() as client:
        senders = []
        for given in (None, client):
            async with transport(server.url, client=given) as sender:
                senders.append(sender)
        async with transport(server.url, client=client) as sender:
            await client.close()
            for each in (*senders, sender):
                with pytest.raises(RequestError, match="the HTTP client is closed") as caught:
                    await each.post(b"{}")
                assert not caught.value.sent
            assert sender.connection_limit is None
    assert server.connections == 0


@pytest.mark.parametrize("refused", [False, True])
async def test_a_client_with_a_base_url_works_or_is_refused_at_once(
    refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> None:
        raise AssertionError  # as aiohttp before 3.12

    if refused:
        monkeypatch.setattr(aiohttp.ClientSession, "_build_url", build)
        with pytest.raises(ValueError, match="client has a base_url, with which aiohttp 3"):
            await served(OK, {}).__aenter__()
    elif tuple(map(int, aiohttp.__version__.split(".")[:2])) >= (3, 12):
        async with served(OK, {"base_url": "http://elsewhere/"}) as (server, sender):
            await sender.post(b"{}")
        assert server.connections == 1
