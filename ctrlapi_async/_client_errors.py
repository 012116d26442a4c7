"""What aiohttp's client raises, and its connectors, middlewares and hooks, to our errors.

`RULES` is the whole classification: the first rule that fits an error counts.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp

from ctrlapi_async._errors import (
    CtrlApiError,
    HttpError,
    RequestError,
    RequestTimeoutError,
    TlsError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async._redaction import Redactor


class Failure(NamedTuple):
    """A request that the client could not finish.

    Attributes:
        error: What the client raised.
        url: Where the request went.
        sent: Whether its body was taken, after which anything may have happened to it.
        request_timeout: Seconds for the request.
        connect_timeout: Seconds for its connection.
        expired: Whether the request's time ran out.
        redactor: Knows what must not be shown.
        refusal: Makes the error for an HTTP answer of a proxy from status, words and headers.
    """

    error: BaseException
    url: str
    sent: bool
    request_timeout: float
    connect_timeout: float
    expired: bool
    redactor: Redactor
    refusal: Callable[[int, str, Any], HttpError]

    @property
    def words(self) -> str:
        """What the client says, in one line and without credentials."""
        error = self.error
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            error = error.certificate_error
        elif isinstance(error, aiohttp.ClientConnectorError):
            error = error.os_error
        words = str(error)
        if isinstance(error, ssl.SSLError):
            reason = getattr(error, "reason", None)
            words = getattr(error, "verify_message", "") or _tls_refusal(error) or reason or words
        elif isinstance(error, OSError) and error.strerror:
            # The system's words; asyncio's repeat the address in a form of their own.
            number = error.errno or 0
            words = os.strerror(number) if number > 0 else error.strerror
        return self.redactor.redact(" ".join(words.split()) or type(error).__name__)


def client_error(failure: Failure) -> tuple[CtrlApiError, BaseException | None]:
    """Return the error for a failed request, and its cause unless that shows a credential."""
    chain = _chain(failure.error)
    reveals = any(
        isinstance(each, aiohttp.ClientResponseError)  # its repr shows the request's headers
        or failure.redactor.finds(f"{each} {each!r}")
        for each in chain
    )
    cause = None if reveals else failure.error
    refusal = next((each for each in chain if _tls_refusal(each)), None)
    if refusal is not None:
        return _no_tls(failure._replace(error=refusal)), cause
    rule = next(rule for rule in RULES if isinstance(failure.error, rule.kinds))
    sent = failure.sent if rule.sent is None else rule.sent
    return rule.make(failure._replace(sent=sent)), cause


def _certificate_refused(failure: Failure) -> CtrlApiError:
    return TlsError(f"the TLS certificate of {failure.url} was refused: {failure.words}")


def _other_certificate(failure: Failure) -> CtrlApiError:
    return TlsError(
        f"the TLS certificate of {failure.url} was refused: it is not the one that `ssl` names"
    )


def _no_tls(failure: Failure) -> CtrlApiError:
    return TlsError(f"no TLS connection to {failure.url}: {failure.words}")


def _refused_by_proxy(failure: Failure) -> CtrlApiError:
    error: Any = failure.error
    refusal = failure.refusal(error.status, error.message, error.headers or {})
    if error.status < 500:
        return refusal
    return RequestError(f"{failure.url} was not reached: {refusal}", sent=False)


def _not_connected(failure: Failure) -> CtrlApiError:
    seconds = failure.connect_timeout
    return RequestTimeoutError(
        f"no connection to {failure.url} within {seconds:g} s", sent=failure.sent
    )


def _timed_out(failure: Failure) -> CtrlApiError:
    missing = "answer from" if failure.sent else "connection to"
    words = f"within {failure.request_timeout:g} s" if failure.expired else f"({failure.words})"
    return RequestTimeoutError(f"no {missing} {failure.url} {words}", sent=failure.sent)


def _not_reached(failure: Failure) -> CtrlApiError:
    return RequestError(f"{failure.url} was not reached: {failure.words}", sent=failure.sent)


def _broken_off(failure: Failure) -> CtrlApiError:
    return RequestError(
        f"the connection to {failure.url} broke off: {failure.words}", sent=failure.sent
    )


def _client_failed(failure: Failure) -> CtrlApiError:
    name = type(failure.error).__name__
    words = f"{name}: {failure.words}".removesuffix(f": {name}")
    return RequestError(f"the HTTP client failed: {words}", sent=failure.sent)


class Rule(NamedTuple):
    """What errors of some kinds become."""

    kinds: type[BaseException] | tuple[type[BaseException], ...]
    make: Callable[[Failure], CtrlApiError]
    sent: bool | None = None
    """Whether the server may have got the request; None: if its body was taken."""


RULES: Final = (
    Rule(
        (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError),
        _certificate_refused,
    ),
    Rule(aiohttp.ServerFingerprintMismatch, _other_certificate),
    Rule(aiohttp.ClientHttpProxyError, _refused_by_proxy),
    Rule(aiohttp.ConnectionTimeoutError, _not_connected),
    Rule(TimeoutError, _timed_out),
    Rule(aiohttp.ClientConnectorError, _not_reached),
    # aiohttp says so only of connections that were made.
    Rule(
        (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientOSError),
        _broken_off,
        sent=True,
    ),
    Rule((OSError, aiohttp.ClientError), _broken_off),
    Rule(BaseException, _client_failed),
)


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error with all that led to it."""
    chain: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and each not in chain:
            chain.append(each)
            waiting += [each.__cause__, each.__context__]
            waiting += each.exceptions if isinstance(each, BaseExceptionGroup) else ()
    return chain


_TLS_REFUSALS: Final = {
    "ALERT_CERTIFICATE_REQUIRED": "the server wants a client certificate",
    "ALERT_BAD_CERTIFICATE": "the server refused the client certificate",
    "ALERT_UNKNOWN_CA": "the server refused the client certificate",
    "ALERT_HANDSHAKE_FAILURE": "the server refused the handshake, as for want of a certificate",
    "ALERT_PROTOCOL_VERSION": "server and client have no TLS version in common",
    "UNSUPPORTED_PROTOCOL": "server and client have no TLS version in common",
    "NO_PROTOCOLS_AVAILABLE": "server and client have no TLS version in common",
    "NO_SHARED_CIPHER": "server and client have no cipher in common",
    "UNRECOGNIZED_NAME": "the server does not know the host's name",
    "WRONG_VERSION_NUMBER": "the port does not speak TLS",
    "RECORD_LAYER_FAILURE": "the port does not speak TLS",
    "HTTP_REQUEST": "the port does not speak TLS",
}
"""What reasons of OpenSSL mean that another attempt would meet again, by a part of their names."""


def _tls_refusal(error: BaseException) -> str | None:
    """Return what an error of TLS means, if another attempt would meet it again."""
    reason = getattr(error, "reason", None) if isinstance(error, ssl.SSLError) else None
    return next((words for name, words in _TLS_REFUSALS.items() if name in (reason or "")), None)
