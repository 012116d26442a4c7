"""One attempt of one HTTP request; the only module that uses aiohttp's client.

Whatever the client, its connectors, middlewares and trace hooks raise becomes one of this
package's errors, by the table in `_client_errors`. Whether the server may have got the request is
known from its body: before that is written, nothing can have been carried out.
"""

from __future__ import annotations

import asyncio
import math
import ssl as tls
import time
from typing import TYPE_CHECKING, Final, cast

import aiohttp
from attrs import Factory, define

from ctrlapi_async._auth import CONTENT_TYPE, ApiKey, basic_tokens, expect_auth
from ctrlapi_async._client_errors import Failure, client_error
from ctrlapi_async._endpoint import client_secrets, expect_endpoint, expect_headers, netrc_login
from ctrlapi_async._errors import (
    CtrlApiError,
    HttpError,
    ReplyTooLargeError,
    RequestError,
)
from ctrlapi_async._http_errors import Answer, http_error
from ctrlapi_async._redaction import Redactor, secrets_of_headers
from ctrlapi_async._reply_body import ACCEPT_ENCODING, read_body

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aiohttp.abc import AbstractStreamWriter

_PIECE: Final = 2**18
"""Bytes of a request that are sent before other tasks get their turn."""
_PAGE: Final = 2**14
"""Bytes that are read of an answer that is not 200."""


class Transport:
    """Sends requests to one Control API endpoint.

    Args:
        base_url: The server's root or the whole endpoint; its userinfo becomes credentials.
        user_id: The user whose API key signs requests, if the key names nobody.
        auth: Login and password for basic authentication, or an API key.
        headers: Headers sent with each request.
        ssl: What aiohttp takes: True, False, an `ssl.SSLContext` or an `aiohttp.Fingerprint`.
        client: A client of the caller's, used and never closed.
        request_timeout: Seconds for one request, from connecting to the reply's last byte.
        connect_timeout: Seconds for the connection alone.
        max_reply_bytes: Reply bodies larger than this are refused, decompressed ones too.
        wall_clock: Tells the seconds since the epoch.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or the URL is no HTTP URL.
    """

    def __init__(
        self,
        base_url: str,
        *,
        user_id: int,
        auth: tuple[str, str] | ApiKey | None = None,
        headers: Mapping[str, str] | None = None,
        ssl: bool | tls.SSLContext | aiohttp.Fingerprint = True,
        client: aiohttp.ClientSession | None = None,
        request_timeout: float,
        connect_timeout: float,
        max_reply_bytes: int,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        url = expect_endpoint(base_url)
        auth = expect_auth(auth)
        if auth is None and (url.user is not None or url.password is not None):
            auth = expect_auth((url.user or "", url.password or ""))
        self.url: Final = url.with_user(None)
        self._user_id = user_id
        self._headers = expect_headers(headers)
        self._secrets = secrets_of_headers(self._headers)
        self._key = auth if isinstance(auth, ApiKey) else None
        if isinstance(auth, ApiKey):
            self._secrets.append(auth.secret)
        elif auth is not None:
            tokens = basic_tokens(*auth)
            self._headers["Authorization"] = f"Basic {tokens[0]}"
            self._secrets += [auth[1], *tokens]
        self._headers["Content-Type"] = CONTENT_TYPE
        self._headers["Accept-Encoding"] = ACCEPT_ENCODING
        if not isinstance(ssl, bool | tls.SSLContext | aiohttp.Fingerprint):
            raise TypeError(f"ssl must be a bool, an SSLContext or a Fingerprint, not {ssl!r}")
        self._ssl = ssl
        self._given = client
        self._client: aiohttp.ClientSession | None = None
        if client is not None:
            self._check_client(client)
        self.redactor: Final = Redactor(self._secrets)
        """Knows the credentials of the session, of the caller's client and of its proxy."""
        self._request_timeout = request_timeout
        self._connect_timeout = connect_timeout
        # The client's own clock is not used for the request: it is rounded to seconds, and takes
        # a cancellation that comes in the same moment for its own.
        self._timeout = aiohttp.ClientTimeout(
            total=None,
            # In a caller's client this would count the time spent waiting for a free connection.
            connect=connect_timeout if client is None else None,
            sock_connect=connect_timeout,
            ceil_threshold=math.inf,
        )
        self._max_reply_bytes = max_reply_bytes
        self._wall_clock = wall_clock

    def _check_client(self, client: aiohttp.ClientSession) -> None:
        if not isinstance(client, aiohttp.ClientSession):
            raise TypeError(f"client must be an aiohttp.ClientSession, not {client!r}")
        if client.auth is not None and self._authorizes:
            raise ValueError("auth: the client has credentials of its own")
        try:
            client._build_url(self.url)  # noqa: SLF001 - tells what the first request would
        except AssertionError:
            raise ValueError(
                f"client has a base_url, with which aiohttp {aiohttp.__version__} refuses whole"
                " addresses: use a client without, or aiohttp 3.12 or later"
            ) from None
        self._secrets += client_secrets(client, self.url.host or "")

    @property
    def _authorizes(self) -> bool:
        return self._key is not None or "Authorization" in self._headers

    @property
    def connection_limit(self) -> int | None:
        """Connections that the caller's client opens at most; None: any number."""
        connector = None if self._given is None else self._given.connector
        limits = () if connector is None else (connector.limit, connector.limit_per_host)
        return min(filter(None, limits), default=None)

    def open(self) -> None:
        """Make the client, unless the caller gave one; needs a running loop.

        Raises:
            ValueError: The caller's client would send netrc's credentials in place of `auth`.
        """
        if self._given is None:
            # As many connections as needed: the session's own slots bound them.
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
            return
        host = self.url.host or ""
        if self._given.trust_env and self._authorizes and netrc_login(host) is not None:
            raise ValueError(
                f"auth: the client (trust_env=True) would use netrc's credentials for {host}:"
                " remove that entry, or use a client without trust_env"
            )
        self._client = self._given

    async def close(self) -> None:
        """End all sending, and close the client unless the caller gave it."""
        client, self._client = self._client, None
        if client is not None and self._given is None:
            await client.close()

    async def post(self, body: bytes, *, trace: object = None) -> bytes:
        """Send a request once and return the reply's body.

        Args:
            body: The request's JSON.
            trace: What the client's trace hooks get as `trace_request_ctx`.

        Raises:
            RequestError: The server was not reached, did not answer in time, or the client failed.
            HttpError: It answered with another status than 200.
            ReplyError: Its reply was too large, or could not be decompressed.
        """
        if self._client is None or self._client.closed:
            raise RequestError("the HTTP client is closed", sent=False)
        attempt = _Attempt(_Body(body))
        task = cast("asyncio.Task[object]", asyncio.current_task())
        cancelling = task.cancelling()
        try:
            async with asyncio.timeout(self._request_timeout) as attempt.scope:
                return await self._exchange(self._client, body, attempt, trace)
        except asyncio.CancelledError as error:
            if task.cancelling():
                raise
            failure: BaseException = error  # a hook's or a connector's: nobody cancelled the task
        except Exception as error:  # noqa: BLE001 - hooks, connectors and middlewares raise any
            if task.cancelling() > cancelling:
                raise asyncio.CancelledError from None  # it became another error on its way
            failure = error
        # Raised out here, the error has no context that could show what must not be shown.
        mapped, cause = self._mapped(attempt, failure)
        raise mapped from cause

    async def _exchange(
        self, client: aiohttp.ClientSession, body: bytes, attempt: _Attempt, trace: object
    ) -> bytes:
        headers = self._headers
        if self._key is not None:
            headers = headers.copy()
            headers.update(self._key.sign(body, self._user_id, self._wall_clock()))
        async with client.post(
            self.url,
            data=attempt.body,
            headers=headers,
            ssl=self._ssl,
            allow_redirects=False,
            raise_for_status=False,  # whatever the caller's client does elsewhere
            auto_decompress=False,  # it would know no bound
            timeout=self._timeout,
            trace_request_ctx=trace,
        ) as response:
            attempt.response = response
            if response.status != 200:
                await read_body(response, attempt.pieces, _PAGE)
                raise self._refused(attempt, response)
            if not await read_body(response, attempt.pieces, self._max_reply_bytes):
                response.close()
                raise ReplyTooLargeError(f"a reply of more than {self._max_reply_bytes} bytes")
        return attempt.pieces[0] if len(attempt.pieces) == 1 else b"".join(attempt.pieces)

    def _refused(self, attempt: _Attempt, response: aiohttp.ClientResponse) -> HttpError:
        # What middlewares and netrc have added is known from the response only.
        sent = secrets_of_headers(response.request_info.headers)
        return http_error(
            Answer(
                str(self.url),
                response.status,
                response.reason or "",
                response.headers,
                b"".join(attempt.pieces),
            ),
            redactor=Redactor([*self._secrets, *sent]),
            now=self._wall_clock(),
            signed=self._key is not None,
        )

    def _refused_by_proxy(self, status: int, reason: str, headers: Mapping[str, str]) -> HttpError:
        return http_error(
            Answer("the proxy", status, reason, headers),
            redactor=self.redactor,
            now=self._wall_clock(),
            signed=False,
        )

    def _mapped(
        self, attempt: _Attempt, failure: BaseException
    ) -> tuple[CtrlApiError, BaseException | None]:
        """Return the error for a failed attempt, and its cause unless that shows a secret."""
        response = attempt.response
        if response is not None and response.status != 200 and not isinstance(failure, HttpError):
            return self._refused(attempt, response), None  # however its page ended
        if isinstance(failure, CtrlApiError):
            return failure, failure.__cause__
        return client_error(
            Failure(
                failure,
                str(self.url),
                sent=attempt.body.taken,
                request_timeout=self._request_timeout,
                connect_timeout=self._connect_timeout,
                expired=attempt.expired,
                redactor=self.redactor,
                refusal=self._refused_by_proxy,
            )
        )


class _Body(aiohttp.Payload):
    """A request's body that knows whether it was taken, after which anything may have happened."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body, content_type=CONTENT_TYPE)
        self.taken = False

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text, for middlewares."""
        self.taken = True
        return self._value.decode(encoding, errors)  # type: ignore[no-any-return]

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the body in pieces."""
        self.taken = True
        for start in range(0, len(self._value), _PIECE):
            await writer.write(self._value[start : start + _PIECE])


@define
class _Attempt:
    """What is known of one attempt while it goes on."""

    body: _Body
    response: aiohttp.ClientResponse | None = None
    pieces: list[bytes] = Factory(list)
    scope: asyncio.Timeout | None = None

    @property
    def expired(self) -> bool:
        """Whether the request's time ran out."""
        return self.scope is not None and self.scope.expired()
