"""Nothing gets in or out: credentials, certificates, proxies, netrc."""

from __future__ import annotations

import asyncio
import base64
import contextlib
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
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import aiohttp
import pytest
import trustme

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
    RetryPolicy,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async._errors import TlsError
from ctrlapi_async.simulator import Body, ControlApiSimulator, HttpStatus
from tests.support.sockets import raw_server, response, transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from ctrlapi_async.simulator import Fault, RequestRecord

AT_ONCE = RetryPolicy(attempts=3, wait_initial=0)
PASSWORD = 'canary/"p@ss"&<wörd>+%41'
TOKEN = base64.b64encode(f"operator:{PASSWORD}".encode()).decode()
HEADER_KEY = "canary-key-5f1c"
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


@pytest.fixture
async def api() -> AsyncIterator[ControlApiSimulator]:
    async with ControlApiSimulator() as api:
        api.add_tasks(range(1, 11))
        yield api


def sessions(url: str) -> dict[str, Callable[[], ControlSession]]:
    """Return every way to hand over a credential."""
    userinfo = f"//operator:{quote(PASSWORD, safe='')}@"
    headers = {"X-Api-Key": HEADER_KEY, "Cookie": f"session={COOKIE}; theme=dark"}
    return {
        "auth": lambda: ControlSession(url, 1, auth=("operator", PASSWORD), retry=AT_ONCE),
        "url": lambda: ControlSession(url.replace("//", userinfo), 1, retry=AT_ONCE),
        "headers": lambda: ControlSession(
            url, 1, headers=headers | {"authorization": f"Bearer {BEARER}"}, retry=AT_ONCE
        ),
        "key": lambda: ControlSession(url, 1, auth=ApiKey(API_KEY), retry=AT_ONCE),
        "all": lambda: ControlSession(
            url.replace("//", userinfo),
            1,
            auth=("operator", PASSWORD),
            headers=headers,
            retry=AT_ONCE,
        ),
    }


WAYS = sorted(sessions(""))


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
    known += [PASSWORD] * (TOKEN in headers) + [API_KEY] * ("APIAuth" in headers)
    return f"{headers}bad {', '.join(known)} or so"


ECHOES: dict[str, Callable[[str], Fault]] = {
    "401 page": lambda text: HttpStatus(401, body=f"<html><pre>{html.escape(text)}</pre>"),
    "403 page": lambda text: HttpStatus(403, body=f"<html><pre>{text}</pre>"),
    "403 title": lambda text: HttpStatus(403, body=f"<title>{text[-90:]}</title>"),
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
    "odd rows": lambda text: Body(
        json.dumps({"reply": [{"result": [{"task_id": 1, "status": [text]}, {"task_id": text}]}]})
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
    async with sessions(api.url)[way]() as session:
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
        return Body(json.dumps({"echo": text}))

    api.fault_when = echo
    texts = []
    async with sessions(api.url)[way]() as session:
        for method in ("TaskStatus", "TaskStop"):
            with pytest.raises(CtrlApiError) as caught:
                await session.call(method, {})
            texts.append(all_texts(caught.value))
    for secret in SECRETS:
        assert secret[:8] not in "\n".join(texts)
    for secret in (TOKEN, HEADER_KEY, API_KEY):
        assert secret[-8:] not in "\n".join(texts)


@pytest.mark.parametrize("padding", range(20, 50, 2))
async def test_an_excerpt_that_begins_inside_a_credential_shows_no_part_of_it(
    api: ControlApiSimulator, padding: int
) -> None:
    # The excerpt is of what surrounds the fault, and may begin in the middle of a word.
    text = '{"x": "' + "." * 300 + HEADER_KEY + "." * padding + '" !'
    api.fault_when = lambda _: Body(text)
    async with ControlSession(
        api.url, 1, headers={"X-Api-Key": HEADER_KEY}, retry=AT_ONCE
    ) as session:
        with pytest.raises(ReplyError) as caught:
            await session.call("TaskStop", {})
    assert caught.value.excerpt.startswith("...")
    for length in range(5, len(HEADER_KEY)):
        assert HEADER_KEY[-length:] not in caught.value.excerpt


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

    async with raw_server(echo) as server, sessions(server.url)[way]() as session:
        with pytest.raises(CtrlApiError) as caught:
            await session.call("TaskStop", {})
    assert leaks(all_texts(caught.value) + caplog.text) == []


async def test_a_context_shows_no_more_than_its_error(api: ControlApiSimulator) -> None:
    api.fault(Body(json.dumps({"error": f"bad {HEADER_KEY}"})), every=True)
    async with ControlSession(api.url, 1, headers={"X-Api-Key": HEADER_KEY}) as session:
        with pytest.raises(MethodError, match=r"bad \*\*\*") as caught:
            await session.call("TaskStop", {})
    assert caught.value.__context__ is None


# --- the caller's client --------------------------------------------------------------------------


async def test_headers_of_the_callers_client_are_credentials_too(api: ControlApiSimulator) -> None:
    api.fault_when = lambda record: HttpStatus(500, body=headers_of(record))
    headers = {"Authorization": f"Bearer {BEARER}", "X-Api-Key": HEADER_KEY}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        ControlSession(api.url, 1, client=client, retry=AT_ONCE) as session,
    ):
        with pytest.raises(HttpError) as caught:
            await session.call("TaskStop", {})
    assert api.log[0].headers["Authorization"] == f"Bearer {BEARER}"
    assert leaks(all_texts(caught.value)) == []


@pytest.mark.filterwarnings("ignore:.*BasicAuth:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*auth:DeprecationWarning")
async def test_the_login_of_the_callers_client_is_a_credential_too(
    api: ControlApiSimulator,
) -> None:
    api.fault_when = lambda record: HttpStatus(404, body=secrets_of(record))
    login = aiohttp.BasicAuth("operator", PASSWORD, "utf-8")
    async with aiohttp.ClientSession(auth=login) as client:
        for auth in (("a", "b"), ApiKey(API_KEY)):
            with pytest.raises(ValueError, match="credentials of its own"):
                ControlSession(api.url, 1, client=client, auth=auth)
        async with ControlSession(api.url, 1, client=client) as session:
            with pytest.raises(HttpError) as caught:
                await session.call("TaskStatus", {})
    assert TOKEN in api.log[0].headers["Authorization"]
    assert leaks(all_texts(caught.value)) == []


@pytest.mark.skipif(
    not hasattr(aiohttp, "ClientMiddlewareType"), reason="this aiohttp has no middlewares"
)
async def test_what_a_middleware_adds_is_not_shown_on_an_error_page(
    api: ControlApiSimulator,
) -> None:
    async def authorize(request: Any, handler: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {BEARER}"
        return await handler(request)

    api.fault_when = lambda record: HttpStatus(401, body=headers_of(record))
    async with (
        aiohttp.ClientSession(middlewares=[authorize]) as client,
        ControlSession(api.url, 1, client=client, retry=AT_ONCE) as session,
    ):
        with pytest.raises(AuthError) as caught:
            await session.call("TaskStatus", {})
    assert BEARER in api.log[0].headers["Authorization"]
    assert leaks(all_texts(caught.value)) == []


# --- netrc ----------------------------------------------------------------------------------------


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "netrc"
    file.write_text(f"machine 127.0.0.1 login operator password {HEADER_KEY}\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("netrc")
@pytest.mark.parametrize("auth", [("operator", PASSWORD), ApiKey(API_KEY)])
async def test_netrc_never_takes_the_place_of_auth(
    api: ControlApiSimulator, auth: tuple[str, str] | ApiKey
) -> None:
    async with aiohttp.ClientSession(trust_env=True) as client:
        session = ControlSession(api.url, 1, auth=auth, client=client)
        with pytest.raises(ValueError, match="would use netrc's credentials") as caught:
            await session.__aenter__()
        assert HEADER_KEY not in all_texts(caught.value)
    async with (
        aiohttp.ClientSession() as client,
        ControlSession(api.url, 1, auth=auth, client=client) as session,
    ):
        assert (await session.stop_running(2, 1)).complete
    assert not [record for record in api.log if HEADER_KEY in headers_of(record)]


@pytest.mark.usefixtures("netrc")
async def test_netrc_is_used_where_there_is_no_auth(api: ControlApiSimulator) -> None:
    token = base64.b64encode(f"operator:{HEADER_KEY}".encode()).decode()
    api.fault_when = lambda record: HttpStatus(404, body=headers_of(record) + HEADER_KEY)
    async with (
        aiohttp.ClientSession(trust_env=True) as client,
        ControlSession(api.url, 1, client=client) as session,
    ):
        with pytest.raises(HttpError) as caught:
            await session.call("TaskStatus", {})
    assert api.log[0].headers["Authorization"] == f"Basic {token}"
    assert token not in all_texts(caught.value)
    assert leaks(all_texts(caught.value)) == []


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"auth": ("operator", HEADER_KEY, "latin-1")},
        {"auth": ("a:b", HEADER_KEY)},
        {"headers": {"Authorization": f"Bearer {HEADER_KEY}\r\nX: y"}},
        {"headers": [("Authorization", HEADER_KEY)]},
    ],
)
def test_a_credential_that_is_refused_is_not_shown(arguments: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=r"auth|headers") as caught:
        ControlSession("http://host", 1, **arguments)
    assert leaks(all_texts(caught.value)) == []


async def test_userinfo_is_used_and_stripped(api: ControlApiSimulator) -> None:
    api.login = ("oper@tor", PASSWORD)
    userinfo = f"//oper%40tor:{quote(PASSWORD, safe='')}@"
    async with ControlSession(api.url.replace("//", userinfo), 1) as session:
        assert (await session.stop_running(2, range(1, 11))).complete
        assert repr(session) == f"ControlSession({api.endpoint!r}, user_id=1)"
    assert {record.headers["Host"] for record in api.log} == {f"127.0.0.1:{api.port}"}
    assert not [record for record in api.log if "oper@tor" in headers_of(record)]


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


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


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
    async with ControlApiSimulator(ssl_context=certified.context) as api:
        api.add_tasks(range(1, 11))
        yield api


async def test_a_certificate_of_nobody_known_is_refused_at_once(
    tls_api: ControlApiSimulator, certified: Certified
) -> None:
    async with ControlSession(
        tls_api.url, 1, batching=Batching(chunk_size=1, max_concurrency=1), retry=AT_ONCE
    ) as session:
        with pytest.raises(RequestError, match=r"certificate of .* was refused") as refused:
            await session.call("TaskStatus", {})
        assert not refused.value.sent
        assert certified.hellos == 1
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, range(1, 11))
    # It is asked for once, not once a repeat and once a chunk.
    assert certified.hellos == 2
    assert tls_api.counters.requests == 0
    assert caught.value.report.counts[StopResult.NOT_SENT] == 10
    assert [type(error) for error in caught.value.exceptions] == [TlsError]


async def test_a_certificate_for_another_host_is_refused(authority: trustme.CA) -> None:
    certified = Certified(authority, "elsewhere.example")
    async with (
        ControlApiSimulator(ssl_context=certified.context) as api,
        ControlSession(api.url, 1, ssl=trusting(authority), retry=AT_ONCE) as session,
    ):
        with pytest.raises(TlsError, match="is not valid for"):
            await session.call("TaskStatus", {})
        assert certified.hellos == 1


def pinned(port: int) -> aiohttp.Fingerprint:
    certificate = ssl.get_server_certificate(("127.0.0.1", port))
    return aiohttp.Fingerprint(hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).digest())


@pytest.mark.parametrize("how", ["context", "unverified", "fingerprint", "connector"])
async def test_a_certificate_is_accepted_if_the_caller_says_so(
    tls_api: ControlApiSimulator, authority: trustme.CA, how: str
) -> None:
    options: dict[str, Any] = {}
    async with contextlib.AsyncExitStack() as stack:
        if how == "context":
            options["ssl"] = trusting(authority)
        elif how == "unverified":
            options["ssl"] = False
        elif how == "fingerprint":
            options["ssl"] = await asyncio.to_thread(pinned, tls_api.port)
        else:
            connector = aiohttp.TCPConnector(ssl=trusting(authority))
            options["client"] = await stack.enter_async_context(
                aiohttp.ClientSession(connector=connector)
            )
        session = await stack.enter_async_context(ControlSession(tls_api.url, 1, **options))
        report = await session.stop_running(2, range(1, 11))
    assert report.counts[StopResult.STOP_SENT] == 10


async def test_another_certificate_than_the_pinned_one_is_refused_at_once(
    tls_api: ControlApiSimulator,
) -> None:
    pin = aiohttp.Fingerprint(hashlib.sha256(b"another").digest())
    async with ControlSession(tls_api.url, 1, ssl=pin, retry=AT_ONCE) as session:
        with pytest.raises(TlsError, match="it is not the one that `ssl` names"):
            await session.call("TaskStatus", {})
        with pytest.raises(StopIncompleteError):
            await session.stop_running(2, range(1, 11))
    # One each, of which the server need not have noticed the last.
    assert tls_api.counters.connections <= 2
    assert tls_api.counters.requests == 0


class TlsServer:
    """A server in a thread, which says by TLS's own alerts what it does not like.

    asyncio's servers hang up without a word.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self.connections = 0
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                connection.settimeout(10)
                self.connections += 1
                with contextlib.suppress(OSError):
                    if connection.recv(1, socket.MSG_PEEK) == b"q":
                        return
                    with self._context.wrap_socket(connection, server_side=True) as stream:
                        stream.recv(65536)
                        stream.sendall(response(b'{"reply": [{"result": "fine"}]}'))

    def end(self) -> None:
        with socket.create_connection(self._socket.getsockname()) as connection:
            connection.sendall(b"q")
        self._thread.join()
        self._socket.close()


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[Callable[..., TlsServer]]:
    servers = []

    def make(**options: Any) -> TlsServer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.configure_trust(context)
        for name, value in options.items():
            setattr(context, name, value)
        servers.append(TlsServer(context))
        return servers[-1]

    yield make
    for server in servers:
        server.end()


V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("server_side", "client_side", "words"),
    [
        ({"minimum_version": V13}, {"maximum_version": V12}, "no TLS version in common"),
        ({"maximum_version": V12}, {"minimum_version": V13}, "no TLS version in common"),
        (
            {"verify_mode": ssl.CERT_REQUIRED, "maximum_version": V12},
            {},
            "the server refused the handshake, as for want of a certificate",
        ),
    ],
)
async def test_tls_that_cannot_work_is_final(
    tls_server: Callable[..., TlsServer],
    authority: trustme.CA,
    server_side: dict[str, Any],
    client_side: dict[str, Any],
    words: str,
) -> None:
    context = trusting(authority)
    for name, value in client_side.items():
        setattr(context, name, value)
    server = tls_server(**server_side)
    async with ControlSession(server.url, 1, ssl=context, retry=AT_ONCE) as session:
        with pytest.raises(TlsError, match=words) as caught:
            await session.call("TaskStatus", {})
        assert not caught.value.sent
        assert server.connections == 1


async def test_a_client_certificate_that_is_missing_under_tls_13(
    tls_server: Callable[..., TlsServer], authority: trustme.CA
) -> None:
    # The handshake has succeeded when the alert comes. Some versions of Python and aiohttp see the
    # connection's end first, and perhaps every time: then that is all that anybody can tell.
    server = tls_server(verify_mode=ssl.CERT_REQUIRED, minimum_version=V13)
    async with transport(server.url, ssl=trusting(authority)) as sender:
        found = []
        for _ in range(20):
            with pytest.raises(RequestError) as caught:
                await sender.post(b"{}")
            found.append(str(caught.value))
            if isinstance(caught.value, TlsError):
                break
    assert found[-1].endswith(("the server wants a client certificate", "Connection reset by peer"))


async def test_tls_to_a_plain_port_is_final(authority: trustme.CA) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(response(b"", "400 Bad Request"))
        await writer.drain()
        writer.close()

    plain = await asyncio.start_server(refuse, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{plain.sockets[0].getsockname()[1]}"
    async with plain, transport(url, ssl=trusting(authority)) as sender:
        with pytest.raises(TlsError, match="the port does not speak TLS"):
            await sender.post(b"{}")


# --- proxies --------------------------------------------------------------------------------------


@pytest.fixture
async def environment_proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[bytes]]:
    """Run a proxy that the environment names, and collect what it was asked for."""
    async with raw_server(response(b"", "403 Forbidden")) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url.replace("//", f"//operator:{HEADER_KEY}@"))
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield proxy.heads


async def test_a_proxy_that_the_environment_names_is_ignored(
    api: ControlApiSimulator, environment_proxy: list[bytes]
) -> None:
    async with ControlSession(api.url, 1) as session:
        assert (await session.stop_running(2, range(1, 11))).complete
    assert environment_proxy == []


async def test_a_proxy_is_used_if_the_callers_client_says_so(
    api: ControlApiSimulator, environment_proxy: list[bytes]
) -> None:
    async with (
        aiohttp.ClientSession(trust_env=True) as client,
        ControlSession(api.url, 1, client=client) as session,
    ):
        with pytest.raises(AuthError) as caught:
            await session.call("TaskStatus", {})
    assert environment_proxy[0].startswith(f"POST {api.endpoint} HTTP/1.1\r\n".encode())
    assert api.counters.requests == 0
    assert leaks(all_texts(caught.value)) == []


def through(proxy_url: str) -> aiohttp.ClientSession:
    """Return a client whose proxy wants a password."""
    return aiohttp.ClientSession(proxy=proxy_url.replace("//", f"//operator:{HEADER_KEY}@"))


@pytest.mark.parametrize(
    ("answer", "kind", "words", "sent"),
    [
        (response(b"", "407 No"), HttpError, "HTTP 407 No from the proxy; the proxy wants", None),
        (response(b"", "403 No"), AuthError, "HTTP 403 No from the proxy", None),
        (response(b"", "502 No"), RequestError, "was not reached: HTTP 502 No", False),
        (b"", RequestError, "broke off|was not reached", None),
    ],
)
async def test_a_proxy_that_refuses_to_connect(
    answer: bytes, kind: type[CtrlApiError], words: str, sent: bool | None
) -> None:
    async with (
        raw_server(answer) as proxy,
        through(proxy.url) as client,
        ControlSession("https://host.invalid", 1, client=client, retry=AT_ONCE) as session,
    ):
        with pytest.raises(kind, match=words) as plain:
            await session.call("TaskStatus", {})
        first = proxy.connections
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, range(1, 11))
        assert proxy.heads[0].startswith(b"CONNECT host.invalid:443 ")
    assert type(plain.value) is kind
    if sent is not None:
        assert getattr(plain.value, "sent", None) is sent
    # What is final is asked for once, what may pass as often as the policy says.
    final = isinstance(plain.value, HttpError)
    assert first == (1 if final else 3)
    assert proxy.connections == 2 if final else proxy.connections >= 6
    assert leaks(all_texts(plain.value) + all_texts(caught.value)) == []


async def test_a_proxy_that_is_not_there_is_named_without_its_password() -> None:
    async with raw_server(b"") as proxy:
        pass
    async with (
        through(proxy.url) as client,
        ControlSession("http://host.invalid", 1, client=client, retry=AT_ONCE) as session,
    ):
        with pytest.raises(RequestError, match="was not reached: Connection refused") as caught:
            await session.call("TaskStatus", {})
    assert not caught.value.sent
    assert leaks(all_texts(caught.value)) == []
