"""Everything that aiohttp's client raises becomes one of our errors, and keeps its cause."""

from __future__ import annotations

import asyncio
import errno
import inspect
import ssl
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from ctrlapi_async import CtrlApiError, HttpError, RequestError
from ctrlapi_async._client_errors import RULES, Failure, client_error
from ctrlapi_async._errors import RequestTimeoutError, TlsError, Trait, traits_of
from ctrlapi_async._redaction import Redactor

KEY: Any = SimpleNamespace(host="host", port=80, is_ssl=True, ssl=True)
INFO: Any = SimpleNamespace(real_url="http://me:canary@proxy/", headers={"X": "canary"})


def mapped(
    error: BaseException, *, sent: bool = True, expired: bool = False, secret: str = "canary"
) -> tuple[CtrlApiError, BaseException | None]:
    return client_error(
        Failure(
            error,
            "http://host/x",
            sent=sent,
            request_timeout=30.0,
            connect_timeout=10.0,
            expired=expired,
            redactor=Redactor([secret]),
            refusal=lambda status, reason, _: HttpError(f"the proxy: {reason}", status),
        )
    )


def tls_error(reason: str, kind: type[ssl.SSLError] = ssl.SSLError) -> ssl.SSLError:
    error = kind(1, f"[SSL: {reason}] in a handshake")
    error.reason = reason
    return error


def certificate_error(words: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "verify failed")
    error.verify_message = words
    return error


def chained(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


Cases = list[tuple[BaseException, str]]

# What is raised, and the words for it. Another attempt would meet these again:
TLS_REFUSALS: Cases = [
    (
        aiohttp.ClientConnectorCertificateError(KEY, certificate_error("self-signed")),
        "certificate of http://host/x was refused: self-signed",
    ),
    (
        aiohttp.ServerFingerprintMismatch(b"a", b"b", "host", 443),
        "certificate of http://host/x was refused: it is not the one that `ssl` names",
    ),
    (
        chained(
            aiohttp.ClientConnectorSSLError(KEY, OSError()),
            tls_error("TLSV1_ALERT_PROTOCOL_VERSION"),
        ),
        "no TLS connection to http://host/x: server and client have no TLS version in common",
    ),
    (
        chained(aiohttp.ClientOSError(1, "SSL"), tls_error("TLSV13_ALERT_CERTIFICATE_REQUIRED")),
        "no TLS connection to http://host/x: the server wants a client certificate",
    ),
]
NOT_REACHED: Cases = [
    (aiohttp.ClientConnectorSSLError(KEY, tls_error("SOMETHING_NEW")), "SOMETHING_NEW"),
    (
        chained(
            aiohttp.ClientConnectorError(KEY, OSError()),
            tls_error("UNEXPECTED_EOF_WHILE_READING", ssl.SSLEOFError),
        ),
        "OSError",
    ),
    (
        aiohttp.ClientConnectorError(
            KEY, ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('::1', 80)")
        ),
        "Connection refused",
    ),
    (
        aiohttp.ClientConnectorDNSError(KEY, OSError(-2, "Name or service not known")),
        "Name or service not known",
    ),
    (aiohttp.ClientProxyConnectionError(KEY, OSError(None, "strange")), "strange"),
]
# These come from connections that were made.
SURELY_BROKEN_OFF: Cases = [
    (chained(aiohttp.ClientOSError(1, "broken"), tls_error("DECRYPTION_FAILED")), ""),
    (aiohttp.ServerDisconnectedError(), "Server disconnected"),
    (aiohttp.ClientPayloadError("not all"), "not all"),
    (aiohttp.ClientOSError(errno.EPIPE, "x"), "Broken pipe"),
]
BROKEN_OFF: Cases = [
    (tls_error("SOMETHING_NEW"), "SOMETHING_NEW"),
    (ssl.SSLError(1, "odd"), "odd"),
    (ConnectionResetError(), "ConnectionResetError"),
    (OSError("strange"), "strange"),
    (aiohttp.ClientError("words\nin two lines"), "words in two"),
]
FAILED: Cases = [
    (asyncio.CancelledError(), "CancelledError"),
    (ValueError(), "ValueError"),
    (RuntimeError("Session is closed"), "RuntimeError: Session is closed"),
    (ExceptionGroup("several", [KeyError("x")]), "ExceptionGroup: several"),
]
TIMEOUTS: Cases = [
    (
        aiohttp.ConnectionTimeoutError("Connection timeout to host"),
        "no connection to http://host/x within 10 s",
    ),
    (aiohttp.SocketTimeoutError("Timeout on reading data"), "http://host/x (Timeout on reading"),
]


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.parametrize(
    ("cases", "kind", "words", "sent"),
    [
        (TLS_REFUSALS, TlsError, "", False),
        (NOT_REACHED, RequestError, "http://host/x was not reached: ", None),
        (SURELY_BROKEN_OFF, RequestError, "the connection to http://host/x broke off: ", True),
        (BROKEN_OFF, RequestError, "the connection to http://host/x broke off: ", None),
        (FAILED, RequestError, "the HTTP client failed: ", None),
        (TIMEOUTS, RequestTimeoutError, "", None),
    ],
)
def test_what_the_client_raises_becomes_an_error_of_ours(
    cases: Cases, kind: type[CtrlApiError], words: str, sent: bool | None, taken: bool
) -> None:
    """Whether it may have been sent is known from the kind, or else from the body."""
    for error, more in cases:
        result, cause = mapped(error, sent=taken)
        assert type(result) is kind
        assert words + more in str(result)
        assert cause is error
        assert isinstance(result, RequestError)
        assert result.sent == (taken if sent is None else sent)
        assert (Trait.NOT_CARRIED_OUT in traits_of(result)) == (not result.sent)
        assert (Trait.FATAL in traits_of(result)) == (kind is TlsError)


ERRORS = {
    name: kind
    for name, kind in inspect.getmembers(aiohttp, inspect.isclass)
    if issubclass(kind, aiohttp.ClientError)
}


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_no_error_of_aiohttp_is_forgotten(kind: type[BaseException]) -> None:
    rule = next(rule for rule in RULES if issubclass(kind, rule.kinds))
    assert rule is not RULES[-1]


@pytest.mark.parametrize("expired", [False, True])
@pytest.mark.parametrize("sent", [False, True])
def test_a_time_limit_says_whose_it_was_and_what_was_missing(*, expired: bool, sent: bool) -> None:
    error, cause = mapped(TimeoutError(), sent=sent, expired=expired)
    missing = "no answer from" if sent else "no connection to"
    whose = "within 30 s" if expired else "(TimeoutError)"
    assert str(error) == f"{missing} http://host/x {whose}"
    assert isinstance(error, RequestTimeoutError)
    assert error.sent is sent
    assert isinstance(cause, TimeoutError)


# --- proxies --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind", "sent"),
    [(407, HttpError, None), (403, HttpError, None), (502, RequestError, False)],
)
def test_a_proxy_that_makes_no_connection(
    status: int,
    kind: type[CtrlApiError],
    sent: bool | None,
) -> None:
    refused = aiohttp.ClientHttpProxyError(INFO, (), status=status, message="no", headers=None)
    error, cause = mapped(refused, sent=False)
    assert type(error) is kind
    assert "the proxy: no" in str(error)
    assert getattr(error, "status", status) == status
    assert getattr(error, "sent", None) is sent
    assert cause is None  # its text shows the proxy's credentials


# --- credentials ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad header: canary"),
        ValueError("http://me:pw@host"),
        chained(ValueError("bad"), KeyError("canary")),
        ExceptionGroup("bad", [ValueError("canary")]),
        aiohttp.InvalidURL("http://me:pw@host"),
        aiohttp.ContentTypeError(INFO, ()),
    ],
)
def test_a_cause_that_shows_a_credential_is_dropped(error: BaseException) -> None:
    result, cause = mapped(error)
    assert cause is None
    assert "canary" not in repr(result)
    assert "pw@" not in repr(result)


def test_causes_that_go_round_in_a_circle_are_read_once() -> None:
    error, other = ValueError("a"), KeyError("b")
    error.__cause__, other.__context__ = other, error
    assert mapped(error)[1] is error
