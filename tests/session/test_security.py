"""Nothing gets in or out: credentials, certificates, proxies, netrc."""

from __future__ import annotations

import asyncio
import base64
import copy
import hashlib
import html
import json
import logging
import pickle
import socket
import ssl
import threading
import traceback
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import pytest
import trustme
from aiohttp import Fingerprint, TCPConnector

from ctrlapi_async import (
    ApiKey,
    AuthError,
    Batching,
    ControlSession,
    CtrlApiError,
    HttpError,
    MethodError,
    ReplyError,
    RequestError,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async._errors import TlsError
from ctrlapi_async.simulator import Body, HttpStatus
from tests.support.simulated import AT_ONCE
from tests.support.sockets import raw_server, response, transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ctrlapi_async.simulator import ControlApiSimulator, Fault, RequestRecord

PASSWORD = 'canary/"p@ss"&<wörd>+%41'
TOKEN = base64.b64encode(f"operator:{PASSWORD}".encode()).decode()
HEADER_KEY = "canary-key-5f1c"
NETRC_TOKEN = base64.b64encode(f"operator:{HEADER_KEY}".encode()).decode()
COOKIE = "canary-cookie-77"
BEARER = "canary.bearer.e30"
API_KEY = base64.b64encode(b"canary api key of 32 bytes, 32 b").decode()
SECRETS = (PASSWORD, TOKEN, HEADER_KEY, COOKIE, BEARER, API_KEY)
FORMS: tuple[Callable[[str], str], ...] = (
    str,
    html.escape,
    lambda text: json.dumps(text)[1:-1],
    lambda text: text.replace("/", "\\/"),
    quote,
    lambda text: quote(text, safe=""),
)
CANARIES = {form(secret) for secret in SECRETS for form in FORMS}
"""What must be seen nowhere, in whatever form it is sent back."""


HEADERS = {"X-Api-Key": HEADER_KEY, "Cookie": f"session={COOKIE}; theme=dark"}
WAYS: dict[str, dict[str, Any]] = {
    "auth": {"auth": ("operator", PASSWORD)},
    "url": {},
    "headers": {"headers": HEADERS | {"authorization": f"Bearer {BEARER}"}},
    "key": {"auth": ApiKey(API_KEY)},
    "url and all": {"auth": ("operator", PASSWORD), "headers": HEADERS},
}
"""Every way to hand over a credential."""


def session_with(way: str, url: str) -> ControlSession:
    if "url" in way:
        url = url.replace("//", f"//operator:{quote(PASSWORD, safe='')}@")
    return ControlSession(url, 1, retry=AT_ONCE, **WAYS[way])


def leaks(text: str) -> list[str]:
    return [canary for canary in CANARIES if canary in text]


def all_texts(error: BaseException) -> str:
    """Return everything that an error may say of itself, and of what led to it."""
    texts = []
    met: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or each in met:
            continue
        met.append(each)
        waiting += [each.__cause__, each.__context__]
        waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        texts += [str(each), repr(each), *traceback.format_exception(each)]
        if isinstance(each, CtrlApiError):
            texts += [repr(vars(each)), repr(copy.copy(each))]
            texts += [pickle.dumps(each).decode("latin-1"), str(pickle.loads(pickle.dumps(each)))]
        if isinstance(each, StopIncompleteError):
            texts.append(each.report.to_json())
    return "\n".join(texts)


def headers_of(record: RequestRecord) -> str:
    """Return what a careless proxy or a debug page shows: the request's headers."""
    return "".join(f"{name}: {value}\n" for name, value in record.headers.items())


def secrets_of(record: RequestRecord) -> str:
    """Return the headers, and the secrets as a server knows them that has understood them."""
    headers = headers_of(record)
    known = [secret for secret in (HEADER_KEY, BEARER, COOKIE) if secret in headers]
    known += [HEADER_KEY] * (NETRC_TOKEN in headers)
    known += [PASSWORD] * (TOKEN in headers) + [API_KEY] * ("APIAuth" in headers)
    return f"{headers}bad {', '.join(known)} or so"


def told(**document: Any) -> Body:
    return Body(json.dumps(document))


ECHOES: dict[str, Callable[[str], Fault]] = {
    "401 page": lambda text: HttpStatus(401, body=f"<html><pre>{html.escape(text)}</pre>"),
    "403 page": lambda text: HttpStatus(403, body=f"<html><pre>{text}</pre>"),
    "403 title": lambda text: HttpStatus(403, body=f"<title>{text[-90:]}</title>"),
    "500 page": lambda text: HttpStatus(500, body=text),
    "503 json": lambda text: HttpStatus(503, body=json.dumps({"error": text})),
    "302": lambda text: HttpStatus(302, headers={"Location": f"http://x/?{quote(text)}"}),
    "200 page": lambda text: Body(f"<html>{text}", content_type="text/html"),
    "cut json": lambda text: Body(f'{{"reply": "{text}'),
    "wrong json": lambda text: told(echo=text),
    "php json": lambda text: Body(json.dumps({"echo": text}).replace("/", "\\/")),
    "wrong type": lambda text: told(reply=[{"method": 5, "echo": text}]),
    "unknown error": lambda text: told(error=text),
    "user error": lambda text: told(error=f"user {text} is unavailable"),
    "denied": lambda text: told(reply=[{"error": f"access denied to tasks {text}"}]),
    "entry errors": lambda text: told(reply=[{"result": [], "errors": [text, text]}]),
    "row errors": lambda text: told(
        reply=[{"result": [{"task_id": n, "error": text} for n in range(1, 11)]}]
    ),
    "odd rows": lambda text: told(
        reply=[{"result": [{"task_id": 1, "status": [text]}, {"task_id": text}]}]
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
    caplog.set_level(logging.DEBUG, "ctrlapi_async")
    api.fault_when = lambda record: ECHOES[echo](secrets_of(record))
    texts: list[str] = []
    async with session_with(way, api.url) as session:
        texts.append(repr(session))
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
                texts.append(all_texts(error))
            else:
                if not isinstance(result, list):  # `call` returns the server's result as it is
                    texts += [repr(result), *map(repr, result.values())]
    texts += [record.getMessage() + repr(vars(record)) for record in caplog.records]
    texts += [caplog.text, *capfd.readouterr()]
    assert len(texts) > 8
    assert leaks("\n".join(texts)) == []
    signature = api.log[0].headers["Authorization"].partition(":")[2] if way == "key" else "none"
    assert signature not in "\n".join(texts)
    assert any(word in headers_of(api.log[0]) for word in (TOKEN, HEADER_KEY, "APIAuth"))


def test_the_canaries_would_be_seen() -> None:
    """The checks above can fail."""
    assert leaks(all_texts(HttpError(f"bad {PASSWORD}", 401)))
    assert leaks(all_texts(HttpError("bad", 401, f"<pre>{html.escape(PASSWORD)}")))
    assert leaks(all_texts(ReplyError("bad", "$", TOKEN)))
    assert leaks(all_texts(MethodError("TaskStop", HEADER_KEY)))
    assert not leaks(all_texts(ReplyError("bad", "$", "***")))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shift", range(0, 240, 7))
async def test_an_excerpt_that_cuts_a_credential_shows_no_part_of_it(
    api: ControlApiSimulator, way: str, shift: int
) -> None:
    def echo(record: RequestRecord) -> Fault:
        text = "." * shift + secrets_of(record)
        if "TaskStop" in record.methods:
            return HttpStatus(500, body=text)
        if "TaskStatus" in record.methods:
            return told(echo=text)
        # The excerpt is of what surrounds the fault, and may begin in the middle of a word.
        known = secrets_of(record).splitlines()[-1]
        return Body('{"x": "' + "." * 300 + known.replace('"', "") + "." * (shift // 4) + '" !')

    api.fault_when = echo
    texts = []
    async with session_with(way, api.url) as session:
        for method in ("TaskStatus", "TaskStop", "TaskReport"):
            with pytest.raises(CtrlApiError) as caught:
                await session.call(method, {})
            texts.append(all_texts(caught.value))
    assert isinstance(caught.value, ReplyError)
    assert caught.value.excerpt.startswith("...")
    for secret in SECRETS:
        assert secret[:8] not in "\n".join(texts)
    for secret in (TOKEN, HEADER_KEY, API_KEY, BEARER, COOKIE):
        assert secret[-5:] not in "\n".join(texts)


BROKEN_ANSWERS = {
    "bad header": b"HTTP/1.1 200 OK\r\nX-Echo \x00: %s\r\n\r\n",
    "long header": b"HTTP/1.1 200 OK\r\nX-Echo: %s" + b"x" * 100_000 + b"\r\n\r\n",
    "bad status": b"HTTP/1.1 %s OK\r\n\r\n",
    "cut headers": b"HTTP/1.1 200 OK\r\nX-Echo: %s\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n",
    "bad gzip": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n%s\r\n",
    "bad encoding": b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\n\r\n{}\r\n",
    "reason": b"HTTP/1.1 403 %s\r\nContent-Length: 0\r\n\r\n",
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("answer", BROKEN_ANSWERS)
async def test_credentials_stay_out_of_what_aiohttp_says(
    way: str, answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ctrlapi_async")

    async def echo(writer: asyncio.StreamWriter) -> None:
        echoed = b" ".join(server.heads[-1].split(b"\r\n")[1:])
        writer.write(BROKEN_ANSWERS[answer].replace(b"%s", echoed))
        await writer.drain()
        writer.close()

    async with raw_server(echo) as server, session_with(way, server.url) as session:
        with pytest.raises(CtrlApiError) as caught:
            await session.call("TaskStop", {})
    assert leaks(all_texts(caught.value) + caplog.text) == []


# --- the caller's client --------------------------------------------------------------------------


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "netrc"
    file.write_text(f"machine 127.0.0.1 login operator password {HEADER_KEY}\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


async def authorize(request: Any, handler: Any) -> Any:
    """Add a credential, as a middleware may."""
    request.headers["Authorization"] = f"Bearer {BEARER}"
    return await handler(request)


def login() -> aiohttp.BasicAuth:
    return aiohttp.BasicAuth("operator", PASSWORD, "utf-8")


deprecated = pytest.mark.filterwarnings(
    "ignore:.*BasicAuth:DeprecationWarning", "ignore:.*auth:DeprecationWarning"
)
no_middlewares = pytest.mark.skipif(
    not hasattr(aiohttp, "ClientMiddlewareType"), reason="this aiohttp has no middlewares"
)


@pytest.mark.usefixtures("netrc")
@pytest.mark.parametrize(
    ("options", "sent"),
    [
        (
            lambda: {"headers": {"Authorization": f"Bearer {BEARER}", "X-Api-Key": HEADER_KEY}},
            f"Bearer {BEARER}",
        ),
        (lambda: {"auth": login()}, f"Basic {TOKEN}"),
        pytest.param(
            lambda: {"middlewares": [authorize]}, f"Bearer {BEARER}", marks=no_middlewares
        ),
        (lambda: {"trust_env": True}, f"Basic {NETRC_TOKEN}"),
    ],
    ids=["headers", "login", "middleware", "netrc"],
)
@deprecated
async def test_what_the_callers_client_adds_is_sent_and_not_shown(
    api: ControlApiSimulator, options: Callable[[], dict[str, Any]], sent: str
) -> None:
    api.fault_when = lambda record: HttpStatus(404, body=secrets_of(record))
    async with (
        aiohttp.ClientSession(**options()) as client,
        ControlSession(api.url, 1, client=client, retry=AT_ONCE) as session,
    ):
        with pytest.raises(HttpError) as caught:
            await session.call("TaskStatus", {})
    assert api.log[0].headers["Authorization"] == sent
    assert sent.split()[1] not in all_texts(caught.value)
    assert leaks(all_texts(caught.value)) == []


@pytest.mark.usefixtures("netrc")
@deprecated
@pytest.mark.parametrize("auth", [("operator", PASSWORD), ApiKey(API_KEY)])
async def test_no_login_of_the_callers_client_takes_the_place_of_auth(
    api: ControlApiSimulator, auth: tuple[str, str] | ApiKey
) -> None:
    async with aiohttp.ClientSession(auth=login()) as client:
        with pytest.raises(ValueError, match="credentials of its own"):
            ControlSession(api.url, 1, client=client, auth=auth)
    async with aiohttp.ClientSession(trust_env=True) as client:
        session = ControlSession(api.url, 1, auth=auth, client=client)
        with pytest.raises(ValueError, match="would use netrc's credentials") as caught:
            await session.__aenter__()
        assert HEADER_KEY not in all_texts(caught.value)
    api.add_task(1)
    async with (
        aiohttp.ClientSession() as client,
        ControlSession(api.url, 1, auth=auth, client=client) as session,
    ):
        assert (await session.stop_running(2, 1)).complete
    assert not [record for record in api.log if NETRC_TOKEN in headers_of(record)]


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def trusting(authority: trustme.CA, **options: Any) -> ssl.SSLContext:
    """Return a client's context with some attributes of its own."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    for name, value in options.items():
        setattr(context, name, value)
    return context


@contextmanager
def tls_server(
    authority: trustme.CA, *, host: str = "127.0.0.1", plain: bool = False, **options: Any
) -> Iterator[tuple[int, list[bytes]]]:
    """Serve in a thread, with TLS's own alerts: asyncio's servers hang up without a word.

    Args:
        authority: Signs the server's certificate, and those that it wants of clients.
        host: Whom the certificate is for.
        plain: Whether it does not speak TLS at all.
        options: Attributes of its context.

    Yields:
        Its port, and what it received on each connection.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(host).configure_cert(context)
    authority.configure_trust(context)
    for name, value in options.items():
        setattr(context, name, value)
    received: list[bytes] = []

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.settimeout(10)
                if connection.recv(1, socket.MSG_PEEK) == b"q":
                    return
                received.append(b"")
                wrapped = connection if plain else context.wrap_socket(connection, server_side=True)
                with wrapped:
                    received[-1] = wrapped.recv(65536)
                    # Whoever closes before all is read resets the connection.
                    while received[-1].startswith(b"POST ") and not received[-1].endswith(b"}"):
                        if not (more := wrapped.recv(65536)):
                            break
                        received[-1] += more
                    wrapped.sendall(response(b'{"reply": [{"result": "fine"}]}'))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1], received
        finally:
            with socket.create_connection(listening.getsockname()) as connection:
                connection.sendall(b"q")
            thread.join()


V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("server", "trust", "words"),
    [
        ({}, lambda _: True, "certificate of .* was refused"),
        ({"host": "elsewhere.example"}, trusting, "is not valid for"),
        ({}, lambda _: Fingerprint(hashlib.sha256().digest()), "not the one that `ssl` names"),
        ({"minimum_version": V13}, partial(trusting, maximum_version=V12), "no TLS version in"),
        ({"maximum_version": V12}, partial(trusting, minimum_version=V13), "no TLS version in"),
        (
            {"verify_mode": ssl.CERT_REQUIRED, "maximum_version": V12},
            trusting,
            "the server refused the handshake, as for want of a certificate",
        ),
        ({"plain": True}, trusting, "the port does not speak TLS"),
    ],
    ids=["unknown", "of another host", "not pinned", "old client", "old server", "client", "plain"],
)
async def test_tls_that_cannot_work_ends_all_at_once(
    authority: trustme.CA, server: dict[str, Any], trust: Callable[[trustme.CA], Any], words: str
) -> None:
    one_by_one: dict[str, Any] = {"batching": Batching(1, 1), "retry": AT_ONCE}
    with tls_server(authority, **server) as (port, received):
        url = f"https://127.0.0.1:{port}"
        async with ControlSession(url, 1, ssl=trust(authority), **one_by_one) as session:
            with pytest.raises(TlsError, match=words) as refused:
                await session.call("TaskStatus", {})
            with pytest.raises(StopIncompleteError) as caught:
                await session.stop_running(2, range(1, 11))
    assert not refused.value.sent
    # It is tried once, not once a repeat and once a chunk.
    assert len(received) == 2
    assert not any(b"POST" in each for each in received)
    assert caught.value.report.counts[StopResult.NOT_SENT] == 10
    assert [type(error) for error in caught.value.exceptions] == [TlsError]


def pinned(port: int) -> Fingerprint:
    certificate = ssl.get_server_certificate(("127.0.0.1", port))
    return Fingerprint(hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest())


@pytest.mark.parametrize("how", ["context", "unverified", "fingerprint", "connector"])
async def test_a_certificate_is_accepted_if_the_caller_says_so(
    authority: trustme.CA, how: str
) -> None:
    connector = TCPConnector(ssl=trusting(authority))
    with tls_server(authority) as (port, _):
        async with aiohttp.ClientSession(connector=connector) as client:
            options: dict[str, dict[str, Any]] = {
                "context": {"ssl": trusting(authority)},
                "unverified": {"ssl": False},
                "fingerprint": {"ssl": await asyncio.to_thread(pinned, port)},
                "connector": {"client": client},
            }
            async with ControlSession(f"https://127.0.0.1:{port}", 1, **options[how]) as session:
                assert await session.call("Any", {}) == "fine"


async def test_a_client_certificate_that_is_missing_under_tls_13(authority: trustme.CA) -> None:
    # The handshake has succeeded when the alert comes. Some versions of Python and aiohttp see the
    # connection's end first, and perhaps every time: then that is all that anybody can tell.
    wanted = tls_server(authority, verify_mode=ssl.CERT_REQUIRED, minimum_version=V13)
    with wanted as (port, _):
        async with transport(f"https://127.0.0.1:{port}", ssl=trusting(authority)) as sender:
            met: list[RequestError] = []
            while len(met) < 20 and not any(isinstance(error, TlsError) for error in met):
                with pytest.raises(RequestError) as caught:
                    await sender.post(b"{}")
                met.append(caught.value)
    wants = "the server wants a client certificate"
    assert str(met[-1]).endswith(wants) or " broke off: " in str(met[-1])


# --- proxies --------------------------------------------------------------------------------------


def with_password(proxy_url: str) -> str:
    return proxy_url.replace("//", f"//operator:{HEADER_KEY}@")


@pytest.mark.parametrize("trust_env", [False, True])
async def test_a_proxy_of_the_environment_is_used_only_if_the_callers_client_says_so(
    api: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch, trust_env: bool
) -> None:
    api.add_task(1)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    async with (
        raw_server(response(b"", "403 Forbidden")) as proxy,
        aiohttp.ClientSession(trust_env=True) as client,
    ):
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, with_password(proxy.url))
        async with ControlSession(api.url, 1, client=client if trust_env else None) as session:
            if not trust_env:
                assert (await session.stop_running(2, 1)).complete
                assert proxy.heads == []
                return
            with pytest.raises(AuthError) as caught:
                await session.call("TaskStatus", {})
    assert proxy.heads[0].startswith(f"POST {api.endpoint} HTTP/1.1\r\n".encode())
    assert api.counters.requests == 0
    assert leaks(all_texts(caught.value)) == []


@pytest.mark.parametrize(
    ("answer", "kind", "words", "sent", "times"),
    [
        # What is final is asked for once, what may pass as often as the policy says.
        (response(b"", "407 No"), HttpError, "407 No from the proxy; the proxy wants", None, 1),
        (response(b"", "403 No"), AuthError, "HTTP 403 No from the proxy", None, 1),
        (response(b"", "502 No"), RequestError, "was not reached: HTTP 502 No", False, 4),
        (b"", RequestError, "broke off|was not reached", True, 4),
        (None, RequestError, "was not reached: Connection refused", False, 0),
    ],
    ids=["407", "403", "502", "hangs up", "is not there"],
)
async def test_a_proxy_that_makes_no_connection_is_named_without_its_password(
    answer: bytes | None, kind: type[CtrlApiError], words: str, sent: bool | None, times: int
) -> None:
    async with (
        raw_server(answer or b"") as proxy,
        aiohttp.ClientSession(
            proxy=with_password("http://127.0.0.1:9" if answer is None else proxy.url)
        ) as client,
        ControlSession("https://host.invalid", 1, client=client, retry=AT_ONCE) as session,
    ):
        with pytest.raises(kind, match=words) as plain:
            await session.call("TaskStatus", {})
        assert proxy.connections == times
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, range(1, 11))
        assert all(head.startswith(b"CONNECT host.invalid:443 ") for head in proxy.heads)
        assert proxy.connections == 2 if times == 1 else proxy.connections >= 2 * times
    assert type(plain.value) is kind
    assert sent or getattr(plain.value, "sent", None) is sent
    assert leaks(all_texts(plain.value) + all_texts(caught.value)) == []
