"""Nothing gets in or out: credentials, certificates, redirects and proxies."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import gc
import hashlib
import html
import json
import logging
import pickle
import ssl
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import pytest
import trustme

from ctrlapi_async import (
    AuthError,
    Batching,
    ControlSession,
    CtrlApiError,
    HttpError,
    MethodError,
    ReplyError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async.simulator import Body, ControlApiSimulator, HttpStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ctrlapi_async.simulator import Fault, RequestRecord

HASTY = RetryPolicy(attempts=3, wait_initial=0.001, wait_max=0.001)
PASSWORD = 'canary/"p@ss"&<wörd>+%41'
TOKEN = base64.b64encode(f"operator:{PASSWORD}".encode()).decode()
KEY = "canary-key-5f1c"
COOKIE = "canary-cookie-77"
BEARER = "canary.bearer.e30"
# What must be seen nowhere, in whatever guise it may be sent back.
CANARIES = {
    guise(secret)
    for secret in (PASSWORD, TOKEN, KEY, COOKIE, BEARER)
    for guise in (
        str,
        html.escape,
        lambda text: json.dumps(text)[1:-1],
        lambda text: text.replace("/", "\\/"),
        quote,
        lambda text: quote(text, safe=""),
    )
}


@pytest.fixture
async def api() -> AsyncIterator[ControlApiSimulator]:
    async with ControlApiSimulator() as api:
        api.add_tasks(range(1, 11))
        yield api


def sessions(url: str) -> dict[str, Callable[[], ControlSession]]:
    """Every way to hand over a credential."""
    userinfo = f"//operator:{quote(PASSWORD, safe='')}@"
    headers = {"X-Api-Key": KEY, "Cookie": f"session={COOKIE}; theme=dark"}
    return {
        "auth": lambda: ControlSession(url, 1, auth=("operator", PASSWORD), retry=HASTY),
        "url": lambda: ControlSession(url.replace("//", userinfo), 1, retry=HASTY),
        "headers": lambda: ControlSession(
            url, 1, headers=headers | {"authorization": f"Bearer {BEARER}"}, retry=HASTY
        ),
        "all": lambda: ControlSession(
            url.replace("//", userinfo),
            1,
            auth=("operator", PASSWORD),
            headers=headers,
            retry=HASTY,
        ),
    }


WAYS = sorted(sessions(""))


def leaks(text: str) -> list[str]:
    return [canary for canary in CANARIES if canary in text]


def words(error: BaseException) -> str:
    """Everything that an error may say of itself, and of what led to it."""
    told = [str(error), repr(error), repr(error.args), repr(vars(error))]
    told += traceback.format_exception(error)
    told.append(pickle.dumps(error).decode("latin-1"))
    told.append(repr(copy.copy(error)))
    told.append(str(pickle.loads(pickle.dumps(error))))
    if isinstance(error, BaseExceptionGroup):
        told += [words(cause) for cause in error.exceptions]
    if isinstance(error, StopIncompleteError):
        told.append(error.report.to_json())
    if error.__cause__ is not None:
        told.append(words_of_foreign(error.__cause__))
    return "\n".join(told)


def words_of_foreign(error: BaseException) -> str:
    return "\n".join([str(error), repr(error), *traceback.format_exception(error)])


def sent_back(record: RequestRecord) -> str:
    """What a careless proxy or a debug page shows: the request's headers."""
    return "".join(f"{name}: {value}\n" for name, value in record.headers.items())


def secrets_of(record: RequestRecord) -> str:
    """The headers of a request, and what a server makes of them once it has understood them."""
    headers = sent_back(record)
    known = [secret for secret in (KEY, BEARER, COOKIE) if secret in headers]
    return f"{headers}bad {', '.join(known + [PASSWORD] * (TOKEN in headers))} or so"


ECHOES: dict[str, Callable[[str], Fault]] = {
    "401 page": lambda text: HttpStatus(401, body=f"<html><pre>{html.escape(text)}</pre>"),
    "403 page": lambda text: HttpStatus(403, body=f"<html><pre>{text}</pre>"),
    "500 page": lambda text: HttpStatus(500, body=text),
    "503 json": lambda text: HttpStatus(503, body=json.dumps({"error": text})),
    "302": lambda text: HttpStatus(302, headers={"Location": f"http://x/?{quote(text)}"}),
    "200 page": lambda text: Body(f"<html>{text}", content_type="text/html"),
    "cut json": lambda text: Body(f'{{"reply": "{text}'),
    "wrong json": lambda text: Body(json.dumps({"echo": text})),
    "php json": lambda text: Body(json.dumps({"echo": text}).replace("/", "\\/")),
    "wrong type": lambda text: Body(json.dumps({"reply": [{"method": 5, "echo": text}]})),
    "unknown error": lambda text: Body(json.dumps({"error": text})),
    "user error": lambda text: Body(json.dumps({"error": f"user {text} is unavailable"})),
    "denied": lambda text: Body(
        json.dumps({"reply": [{"error": f"access denied to tasks {text}"}]})
    ),
    "entry errors": lambda text: Body(
        json.dumps({"reply": [{"result": [], "errors": [text, text]}]})
    ),
    "row errors": lambda text: Body(
        json.dumps({"reply": [{"result": [{"task_id": n, "error": text} for n in range(1, 11)]}]})
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("echo", ECHOES)
async def test_credentials_that_come_back_are_shown_nowhere(
    api: ControlApiSimulator,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    way: str,
    echo: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    api.fault_when = lambda record: ECHOES[echo](secrets_of(record))
    told: list[str] = []
    async with sessions(api.url)[way]() as session:
        told.append(repr(session))
        params = {"project_id": 2, "task_ids": list(range(1, 11))}
        for work in (
            lambda: session.call("TaskStatus", params),
            lambda: session.call("TaskStop", params),
            lambda: session.task_status(2, range(1, 11)),
            lambda: session.task_stop(2, range(1, 11)),
            lambda: session.stop_running(2, range(1, 11)),
        ):
            try:
                result = await work()
            except CtrlApiError as error:
                told.append(words(error))
            else:
                if not isinstance(result, list):  # what `call` gives is the server's, as it came
                    told += [repr(result), *map(repr, result.values())]
    told += [record.getMessage() + repr(vars(record)) for record in caplog.records]
    told += [caplog.text, *capfd.readouterr()]
    assert len(told) > 8
    assert leaks("\n".join(told)) == []
    assert TOKEN in str(api.log[0].headers) or KEY in str(api.log[0].headers)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", range(0, 240, 7))
async def test_an_excerpt_that_cuts_a_credential_shows_no_part_of_it(
    api: ControlApiSimulator, way: str, shift: int
) -> None:
    def echo(record: RequestRecord) -> Fault:
        filler = "." * shift
        text = filler + secrets_of(record)
        if "TaskStop" in record.methods:
            return HttpStatus(500, body=text)
        return Body(json.dumps({"echo": text}))

    api.fault_when = echo
    told = []
    async with sessions(api.url)[way]() as session:
        for method in ("TaskStatus", "TaskStop"):
            with pytest.raises(CtrlApiError) as caught:
                await session.call(method, {})
            told.append(words(caught.value))
    for piece in (TOKEN[:8], TOKEN[-8:], PASSWORD[:8], KEY[:8], KEY[-8:], BEARER[:8], COOKIE[:8]):
        assert piece not in "\n".join(told)


@pytest.mark.parametrize("way", WAYS)
async def test_credentials_stay_out_of_what_aiohttp_says(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    replies = {
        "bad header": b"HTTP/1.1 200 OK\r\nX-Echo \x00: %s\r\n\r\n",
        "long header": b"HTTP/1.1 200 OK\r\nX-Echo: %s" + b"x" * 100_000 + b"\r\n\r\n",
        "bad status": b"HTTP/1.1 %s OK\r\n\r\n",
        "cut headers": b"HTTP/1.1 200 OK\r\nX-Echo: %s\r\n",
        "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
        "bad gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n%s\r\n",
        "reason": b"HTTP/1.1 403 %s\r\nContent-Length: 0\r\n\r\n",
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
    }
    told = []
    for reply in replies.values():

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(ConnectionError):
                head = await reader.readuntil(b"\r\n\r\n")
                echoed = b" ".join(head.split(b"\r\n")[1:])
                writer.write(reply.replace(b"%s", echoed))  # noqa: B023 - one server, one reply
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with sessions(url)[way]() as session:
                with pytest.raises(CtrlApiError) as caught:
                    await session.call("TaskStop", {})
                told.append(words(caught.value))
    assert len(told) == len(replies)
    assert leaks("\n".join(told) + caplog.text) == []


async def test_headers_of_the_callers_client_are_credentials_too(api: ControlApiSimulator) -> None:
    api.fault_when = lambda record: HttpStatus(500, body=sent_back(record))
    headers = {"Authorization": f"Bearer {BEARER}", "X-Api-Key": KEY}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        ControlSession(api.url, 1, client=client, retry=HASTY) as session,
    ):
        with pytest.raises(HttpError) as caught:
            await session.call("TaskStop", {})
    assert api.log[0].headers["Authorization"] == f"Bearer {BEARER}"
    assert leaks(words(caught.value)) == []


BAD_URLS = [
    "http://operator:%s@",
    "http://operator:%s@host:port",
    "http://operator:%s@host:99999",
    "http://operator:a/%s@host",
    "http://operator:%s/@host",
    "operator:%s@host",
    "//operator:%s@host",
    "ftp://operator:%s@host",
    "http://host/?token=%s",
    "http://host/#%s",
    "http://operator:%s@host/?a#b",
    "http://operator:\n%s@host:port",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_a_url_that_is_refused_is_shown_without_its_credentials(url: str) -> None:
    with pytest.raises(ValueError, match="base_url") as caught:
        ControlSession(url.replace("%s", KEY), 1)
    assert KEY not in words_of_foreign(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"auth": ["operator", KEY]},
        {"auth": ("operator", KEY, "latin-1")},
        {"auth": (KEY, 5)},
        {"auth": f"operator:{KEY}"},
        {"auth": ("a:b", KEY)},
        {"auth": ("operator", KEY + "\udc80")},
        {"headers": {"Authorization": f"Bearer {KEY}\r\nX: y"}},
        {"headers": {"Authorization": KEY.encode()}},
        {"headers": [("Authorization", KEY)]},
        {"headers": f"Authorization: {KEY}"},
    ],
)
def test_a_credential_that_is_refused_is_not_shown(arguments: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"auth|headers") as caught:
        ControlSession("http://host", 1, **arguments)
    assert KEY not in words_of_foreign(caught.value)


async def test_userinfo_is_used_and_stripped(api: ControlApiSimulator) -> None:
    api.login = ("oper@tor", PASSWORD)
    userinfo = f"//oper%40tor:{quote(PASSWORD, safe='')}@"
    async with ControlSession(api.url.replace("//", userinfo), 1) as session:
        assert (await session.stop_running(2, range(1, 11))).complete
        assert "operator" not in repr(session)
        assert repr(session) == f"ControlSession({api.endpoint!r}, user_id=1)"
    assert {record.headers["Host"] for record in api.log} == {f"127.0.0.1:{api.port}"}
    assert not [name for record in api.log for name in record.headers if "oper@tor" in name]


async def test_explicit_credentials_go_before_those_of_the_url(api: ControlApiSimulator) -> None:
    api.login = ("operator", PASSWORD)
    async with ControlSession(
        api.url.replace("//", "//other:guess@"), 1, auth=("operator", PASSWORD)
    ) as session:
        assert (await session.stop_running(2, 1)).complete


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Certified:
    """A certificate for a server, and how often a client said hello to it."""

    def __init__(self, authority: trustme.CA, host: str) -> None:
        self.hellos = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host).configure_cert(self.context)
        self.context.sni_callback = self._count

    def _count(self, *_: object) -> None:
        self.hellos += 1


@pytest.fixture
def certified(authority: trustme.CA) -> Certified:
    return Certified(authority, "127.0.0.1")


@pytest.fixture
async def tls_api(certified: Certified) -> AsyncIterator[ControlApiSimulator]:
    # A client that refuses a certificate hangs up in the middle of the handshake.
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(
        lambda loop, met: (
            None
            if isinstance(met.get("exception"), ssl.SSLError | ConnectionError)
            else loop.default_exception_handler(met)
        )
    )
    async with ControlApiSimulator(ssl_context=certified.context) as api:
        api.add_tasks(range(1, 11))
        yield api


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_certificate_of_nobody_known_is_refused_at_once(
    tls_api: ControlApiSimulator, certified: Certified
) -> None:
    async with ControlSession(
        tls_api.url, 1, batching=Batching(chunk_size=1, max_concurrency=1), retry=HASTY
    ) as session:
        with pytest.raises(
            RequestError, match=r"certificate of 127\.0\.0\.1 was refused"
        ) as refused:
            await session.call("TaskStatus", {})
        assert not refused.value.sent
        assert certified.hellos == 1
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, range(1, 11))
    # It is asked for once, not once a retry and once a chunk.
    assert certified.hellos == 2
    assert tls_api.counters.requests == 0
    assert caught.value.report.counts[StopResult.NOT_SENT] == 10
    assert [type(error) for error in caught.value.exceptions] == [type(refused.value)]


async def test_a_certificate_for_another_host_is_refused(authority: trustme.CA) -> None:
    certified = Certified(authority, "elsewhere.example")
    async with (
        ControlApiSimulator(ssl_context=certified.context) as api,
        ControlSession(api.url, 1, ssl=trusting(authority), retry=HASTY) as session,
    ):
        with pytest.raises(RequestError, match="certificate"):
            await session.call("TaskStatus", {})
        assert certified.hellos == 1


def pinned(api_port: int) -> aiohttp.Fingerprint:
    certificate = ssl.get_server_certificate(("127.0.0.1", api_port))
    return aiohttp.Fingerprint(hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest())


@pytest.mark.parametrize("how", ["context", "unverified", "fingerprint"])
async def test_a_certificate_is_accepted_if_the_caller_says_so(
    tls_api: ControlApiSimulator, authority: trustme.CA, how: str
) -> None:
    ways: dict[str, bool | ssl.SSLContext | aiohttp.Fingerprint] = {
        "context": trusting(authority),
        "unverified": False,
    }
    if how == "fingerprint":
        ways[how] = await asyncio.to_thread(pinned, tls_api.port)
    async with ControlSession(tls_api.url, 1, ssl=ways[how]) as session:
        report = await session.stop_running(2, range(1, 11))
    assert report.counts[StopResult.STOP_SENT] == 10
    gc.collect()


async def test_another_certificate_than_the_pinned_one_is_refused_at_once(
    tls_api: ControlApiSimulator,
) -> None:
    pin = aiohttp.Fingerprint(hashlib.sha256(b"another").digest())
    async with ControlSession(tls_api.url, 1, ssl=pin, retry=HASTY) as session:
        with pytest.raises(RequestError, match="certificate") as refused:
            await session.call("TaskStatus", {})
        assert not refused.value.sent
        with pytest.raises(StopIncompleteError):
            await session.stop_running(2, range(1, 11))
    await tls_api.wait_until(lambda: tls_api.counters.connections == 2)
    assert tls_api.counters.requests == 0


# --- redirects ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(api: ControlApiSimulator, status: int) -> None:
    async with ControlApiSimulator() as other:
        target = other.endpoint
        api.fault(HttpStatus(status, headers={"Location": target}))
        async with ControlSession(
            api.url, 1, auth=("operator", PASSWORD), batching=Batching(chunk_size=1), retry=HASTY
        ) as session:
            with pytest.raises(HttpError, match="redirects to") as plain:
                await session.call("TaskStop", {})
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, [1])
        assert plain.value.status == status
        assert target in str(plain.value)
        assert [str(error) for error in caught.value.exceptions] == [str(plain.value)]
        assert api.counters.requests == 2
        assert other.counters.connections == 0


# --- proxies --------------------------------------------------------------------------------------


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[bytes]]:
    """A proxy that the environment names; what it was asked for."""
    asked: list[bytes] = []

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(record, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, address)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with server:
        yield asked


async def test_a_proxy_that_the_environment_names_is_ignored(
    api: ControlApiSimulator, proxy: list[bytes]
) -> None:
    async with ControlSession(api.url, 1) as session:
        assert (await session.stop_running(2, range(1, 11))).complete
    assert proxy == []


async def test_a_proxy_is_used_if_the_callers_client_says_so(
    api: ControlApiSimulator, proxy: list[bytes]
) -> None:
    async with (
        aiohttp.ClientSession(trust_env=True) as client,
        ControlSession(api.url, 1, client=client) as session,
    ):
        with pytest.raises(AuthError):
            await session.call("TaskStatus", {})
    assert proxy == [f"POST {api.endpoint} HTTP/1.1\r\n".encode()]
    assert api.counters.requests == 0


def test_the_canaries_would_be_seen() -> None:
    """The checks above can fail."""
    assert leaks(words(HttpError(f"bad {PASSWORD}", 401)))
    assert leaks(words(HttpError("bad", 401, f"<pre>{html.escape(PASSWORD)}")))
    assert leaks(words(ReplyError("bad", "$", TOKEN)))
    assert leaks(words(MethodError("TaskStop", KEY)))
    assert not leaks(words(ReplyError("bad", "$", "***")))


@pytest.mark.parametrize("padding", range(20, 50, 2))
async def test_an_excerpt_that_begins_inside_a_credential_shows_no_part_of_it(
    api: ControlApiSimulator, padding: int
) -> None:
    # The excerpt is of what surrounds the fault, and may begin in the middle of a word.
    text = '{"x": "' + "." * 300 + KEY + "." * padding + '" !'
    api.fault_when = lambda _: Body(text)
    async with ControlSession(api.url, 1, headers={"X-Api-Key": KEY}) as session:
        with pytest.raises(ReplyError) as caught:
            await session.call("TaskStop", {})
    assert caught.value.excerpt.startswith("...")
    for length in range(5, len(KEY)):
        assert KEY[-length:] not in caught.value.excerpt


async def test_a_reply_without_an_answer_is_shown_without_credentials(
    api: ControlApiSimulator,
) -> None:
    api.fault(Body(json.dumps({"reply": [], "echo": KEY})), every=True)
    async with ControlSession(api.url, 1, headers={"X-Api-Key": KEY}, retry=HASTY) as session:
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, [1])
    assert "no entry" in str(caught.value.report[1].error)
    assert KEY not in repr(caught.value.exceptions) + caught.value.report.to_json()


@pytest.mark.filterwarnings("ignore:.*BasicAuth:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*auth:DeprecationWarning")
async def test_the_credentials_of_the_callers_client_are_not_shown_either(
    api: ControlApiSimulator,
) -> None:
    api.fault_when = lambda record: HttpStatus(404, body=secrets_of(record))
    async with aiohttp.ClientSession(auth=aiohttp.BasicAuth("operator", PASSWORD)) as client:
        with pytest.raises(ValueError, match="credentials of its own"):
            ControlSession(api.url, 1, client=client, auth=("a", "b"))
        async with ControlSession(api.url, 1, client=client) as session:
            with pytest.raises(HttpError) as caught:
                await session.call("TaskStatus", {})
    assert TOKEN not in caught.value.excerpt
