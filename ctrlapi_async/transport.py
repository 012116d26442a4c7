"""One attempt of one HTTP request; the only room where aiohttp's client lives."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import ssl as tls
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar
from urllib.parse import quote

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from ctrlapi_async import wire
from ctrlapi_async.errors import (
    AuthError,
    CertificateError,
    CtrlApiError,
    DeadlineError,
    HttpError,
    ReplyError,
    RequestError,
)

T = TypeVar("T")
E = TypeVar("E", bound=CtrlApiError)

PATH: Final = "/ctrl_api/v1/json"


class Transport:
    """Sends requests to one Control API endpoint.

    Args:
        base_url: The server's root or the whole endpoint; its userinfo becomes credentials.
        auth: Login and password for basic authentication.
        headers: Headers sent with each request.
        ssl: What aiohttp takes: True, False, an `ssl.SSLContext` or an `aiohttp.Fingerprint`.
        client: A client of the caller's, used and never closed.
        request_timeout: Seconds for one request, from connecting to the reply's last byte.
        max_reply_bytes: Reply bodies larger than this are refused.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or the URL is no HTTP URL.
    """

    def __init__(
        self,
        base_url: str,
        *,
        auth: tuple[str, str] | None,
        headers: Mapping[str, str] | None,
        ssl: bool | tls.SSLContext | aiohttp.Fingerprint,
        client: aiohttp.ClientSession | None,
        request_timeout: float,
        max_reply_bytes: int,
    ) -> None:
        url = _endpoint(base_url)
        if auth is None and (url.user is not None or url.password is not None):
            auth = (url.user or "", url.password or "")
        self.url: Final = url.with_user(None)
        self._headers = _headers(headers)
        secrets: list[str] = []
        if auth is not None:
            token = _basic_token(auth)
            self._headers["Authorization"] = f"Basic {token}"
            secrets = [token, auth[1]]
        self._headers["Content-Type"] = "application/json"
        if not isinstance(ssl, bool | tls.SSLContext | aiohttp.Fingerprint):
            raise TypeError(f"ssl must be a bool, an SSLContext or a Fingerprint, not {ssl!r}")
        self._ssl = ssl
        if client is not None and not isinstance(client, aiohttp.ClientSession):
            raise TypeError(f"client must be an aiohttp.ClientSession, not {client!r}")
        self._given = client
        self._client = client
        if client is not None and client.auth is not None:
            if "Authorization" in self._headers:
                raise ValueError("auth: the client has credentials of its own")
            login, password = client.auth.login, client.auth.password
            secrets += [_basic_token((login, password)), password]
        for sent in (headers or {}, client.headers if client is not None else {}):
            for name, value in sent.items():
                if _SECRET_NAMES.search(name):
                    secrets += _secret_parts(value)
        self._secrets = _as_echoed(secrets)
        self._timeout = aiohttp.ClientTimeout(total=request_timeout)
        self._max_reply_bytes = max_reply_bytes

    def open(self) -> None:
        """Make the client, unless the caller gave one; needs a running loop."""
        # asyncio reads into a block of 256 KiB, and shrinks it to what came. glibc maps such a
        # block anew each time, at the cost of some page faults, a quarter of a request's CPU,
        # until one of that size was freed as it was.
        bytearray(_BLOCK)
        if self._given is None:
            # As many connections as needed: the session's own slots bound them.
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )

    async def close(self) -> None:
        """Close the client, unless the caller gave it."""
        if self._given is None and self._client is not None:
            await self._client.close()

    async def post(self, body: bytes) -> bytes:
        """Send a request once and give the reply's body.

        Args:
            body: The request's JSON.

        Raises:
            RequestError: The server was not reached, or did not answer in time.
            HttpError: It answered with another status than 200.
            ReplyError: It answered with a web page, or with too large a body.
        """
        if self._client is None or self._client.closed:
            raise RequestError("the HTTP client is closed", sent=False)
        try:
            async with self._client.post(
                self.url,
                # Of large bytes aiohttp warns: it would send them without a pause.
                data=body if len(body) <= _LARGE else io.BytesIO(body),
                headers=self._headers,
                ssl=self._ssl,
                allow_redirects=False,
                raise_for_status=False,  # whatever the caller's client does elsewhere
                timeout=self._timeout,
            ) as response:
                if response.status != 200:
                    raise self._http_error(response, await self._beginning(response))
                return await self._read(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._request_error(error) from (None if self._gives_away(error) else error)

    @property
    def has_secrets(self) -> bool:
        """Whether there are credentials that must not be shown."""
        return bool(self._secrets)

    def redact(self, text: str) -> str:
        """Take the session's credentials out of what a server sent back."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        # An excerpt may begin or end inside one.
        start = "..." * text.startswith("...")
        end = "..." * text.endswith("...")
        core = text[len(start) : len(text) - len(end)]
        for secret in self._secrets:
            for size in range(len(secret) - 1, 3, -1):
                if start and core.startswith(secret[-size:]):
                    core = "***" + core[size:]
                if end and core.endswith(secret[:size]):
                    core = core[:-size] + "***"
        return start + core + end

    def redacted(self, error: E) -> E:
        """Give the same error without the session's credentials."""
        return type(error)(
            *(self.redact(part) if isinstance(part, str) else part for part in error.args)
        )

    def redacted_answer(
        self, answer: wire.Answer[T] | CtrlApiError
    ) -> wire.Answer[T] | CtrlApiError:
        """Take the session's credentials out of the error texts of an answer to a call."""
        if isinstance(answer, CtrlApiError):
            return self.redacted(answer)
        if answer.words is not None:
            answer.words = self.redact(answer.words)
        for row in answer.result if isinstance(answer.result, list) else ():
            if isinstance(row, wire.Row) and row.error is not None:
                row.error = self.redact(row.error)
        return answer

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        size = response.content_length or 0
        chunks: list[bytes] = []
        if size <= self._max_reply_bytes:
            size = 0
            while not response.content.at_eof():
                chunk = await response.content.readany()
                chunks.append(chunk)
                size += len(chunk)
                if size > self._max_reply_bytes:
                    break
            else:
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        response.close()
        raise ReplyError(f"a reply of more than {self._max_reply_bytes} bytes")

    @staticmethod
    async def _beginning(response: aiohttp.ClientResponse) -> bytes:
        """Read the beginning of an error's body: all of it, where it is a usual page."""
        beginning = b""
        try:
            while len(beginning) < _PAGE and (chunk := await response.content.readany()):
                beginning += chunk
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # the status says enough
        return beginning

    def _http_error(self, response: aiohttp.ClientResponse, body: bytes) -> HttpError:
        status = response.status
        advice = _ADVICE.get(status, "")
        if 300 <= status < 400:
            target = _text(response.headers.get("Location", "nowhere"))
            target = self.redact(target)[: wire.EXCERPT]
            advice = (
                f"redirects to {target}, which is not followed: use that address if it is right"
            )
        reason = self.redact(_text(response.reason or ""))[: wire.EXCERPT]
        message = (
            f"HTTP {status} {reason}".rstrip() + f" from {self.url}" + f": {advice}" * bool(advice)
        )
        kind = AuthError if status in (401, 403) else HttpError
        return kind(
            message,
            status,
            wire.excerpt(self.redact(body.decode("utf-8", "replace")).encode()),
            retry_after(response.headers.get("Retry-After")),
        )

    def _gives_away(self, error: Exception) -> bool:
        """Tell an error whose text, or whose causes' text, holds a credential."""
        if isinstance(error, aiohttp.ClientResponseError):
            return True  # its repr shows the request's headers
        shown = "".join(traceback.format_exception(error)) + repr(error)
        return any(secret in shown for secret in self._secrets)

    def _request_error(self, error: Exception) -> CtrlApiError:
        if isinstance(
            error, aiohttp.ClientConnectorCertificateError | aiohttp.ServerFingerprintMismatch
        ):
            words = (
                str(error.certificate_error)
                if isinstance(error, aiohttp.ClientConnectorCertificateError)
                else "it is not the one that was pinned"
            )
            return CertificateError(f"the TLS certificate of {self.url.host} was refused: {words}")
        if isinstance(error, TimeoutError):
            return DeadlineError(
                f"no answer from {self.url} within {self._timeout.total:g} s",
                sent=not isinstance(error, aiohttp.ConnectionTimeoutError),
            )
        words = self.redact(str(error) or type(error).__name__)
        unsent = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError)
        verb = "reached" if unsent else "heard to the end"
        return RequestError(f"{self.url} was not {verb}: {words}", sent=not unsent)


_BLOCK: Final = 2**19
_LARGE: Final = 2**20
_PAGE: Final = 16 * 1024
_SECRET_PART: Final = 7
"""Characters from which a part of a secret header is a secret; "Bearer" has fewer."""
_SECRET_NAMES: Final = re.compile(
    "auth|cookie|credential|jwt|key|pass|secret|session|sign|token", re.IGNORECASE
)
_ADVICE: Final = {
    400: "the server does not understand the request",
    401: "it wants credentials (`auth`), or does not take those given",
    403: "access to the Control API is denied, as it is by default; enable it on the server",
    404: "there is no Control API at this address",
    405: "there is no Control API at this address",
    413: "the request was too large",
}


def retry_after(value: str | None) -> float | None:
    """Read a Retry-After header: seconds, or an HTTP date; None if it is neither."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (OverflowError, ValueError):
        return None
    # HTTP dates are in GMT, whether they say so in a way that the parser takes or not.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _text(header: str) -> str:
    """Give a header without the lone surrogates that stand for bytes that are not UTF-8."""
    return header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _endpoint(base_url: str) -> URL:
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a str, not {type(base_url).__name__}")
    # Whatever may be a credential, in whatever an URL that is none may look like.
    shown = re.sub(r"(?s)^(\w+:)?(//)?.*@", r"\1\2***@", base_url)
    shown = re.sub(r"(?s)[?#].+", "?***", shown)
    try:
        url = URL(base_url)
        port = url.port
        (url.raw_host or "").encode("idna")  # as resolving will: labels of 1 to 63 characters
    except ValueError:
        raise ValueError(f"base_url must be an HTTP URL, not {shown!r}") from None
    if url.scheme not in ("http", "https") or not url.host or port == 0:
        raise ValueError(f"base_url must be an HTTP URL, http://172.16.1.41 say, not {shown!r}")
    if url.query_string or url.fragment:
        raise ValueError(f"base_url must have no query and no fragment: {shown!r}")
    path = url.raw_path.rstrip("/")
    return url.with_path(path if path.endswith(PATH) else path + PATH, encoded=True)


def _secret_parts(value: str) -> list[str]:
    """Give a secret header's value, and those parts of it that are secrets by themselves."""
    words = re.split(r"[\s;,]+", value)
    parts = [part for word in words for part in (word, word.partition("=")[2])]
    return [value, *(part for part in parts if len(part) >= _SECRET_PART)]


def _as_echoed(secrets: list[str]) -> list[str]:
    """Give all that a server may make of secrets when it sends them back, the longest first."""
    texts = {
        text
        for secret in secrets
        for text in (
            secret,
            html.escape(secret),
            json.dumps(secret)[1:-1],
            json.dumps(secret, ensure_ascii=False)[1:-1],
            secret.replace("/", "\\/"),
            quote(secret, safe=""),
            quote(secret),
        )
    }
    return sorted(filter(None, texts), key=len, reverse=True)


def _headers(headers: Mapping[str, str] | None) -> CIMultiDict[str]:
    if headers is not None and not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping, not {type(headers).__name__}")
    for name, value in (headers or {}).items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"headers must be strings: {name!r} is not, or its value is not")
        if re.search(r"[\r\n\0]", name + value):
            raise ValueError(f"headers must be single lines: {name!r} is not")
    return CIMultiDict(headers or {})


def _basic_token(auth: tuple[str, str]) -> str:
    if not (
        isinstance(auth, tuple) and len(auth) == 2 and all(isinstance(part, str) for part in auth)
    ):
        raise TypeError("auth must be a tuple of login and password")
    if ":" in auth[0]:
        raise ValueError("auth: a login cannot contain a colon")
    try:
        return base64.b64encode(":".join(auth).encode()).decode()
    except UnicodeEncodeError:
        raise ValueError("auth: a lone surrogate stands for no character") from None
