"""Refuse what does not get as far as the API: pages of the proxy, credentials, signatures. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from ctrlapi_async.simulator._answers import Answer, json_answer, page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrlapi_async.simulator._options import Options

PATH: Final = "/ctrl_api/v1/json"
_SCHEME: Final = "APIAuth-HMAC-SHA256"
_AUTHORIZATION: Final = re.compile(rf"{_SCHEME} ([^:\s]+):([A-Za-z0-9+/=]+)")
_LIFETIME: Final = 60.0
"""Seconds for which a signature is good."""


@frozen
class HttpRequest:
    """What of a request is not its body.

    Attributes:
        method: The HTTP method.
        path: The path, without a query.
        headers: The headers, looked up in any case.
        content_type: The media type, without parameters.
        charset: The charset, or None.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    content_type: str
    charset: str | None


def refuse_at_proxy(request: HttpRequest, options: Options) -> Answer | None:
    """Return the page that ends a request at the proxy, or None."""
    if request.path != options.prefix + PATH:
        return page(404)
    if options.login is not None:
        token = base64.b64encode(":".join(options.login).encode()).decode()
        if request.headers.get("Authorization") != f"Basic {token}":
            return page(401, {"WWW-Authenticate": 'Basic realm="Control API"'})
    if request.method != "POST":
        return page(405, {"Allow": "POST"})
    charset = request.charset or "utf-8"
    if request.content_type != "application/json" or charset.lower() != "utf-8":
        return page(415)
    return None


def refuse_signature(
    request: HttpRequest,
    body: bytes,
    document: Any,  # noqa: ANN401 - JSON is Any
    options: Options,
    now: float,
) -> Answer | None:
    """Return the reply to a request that is not signed as it must be, or None.

    Args:
        request: The request's head.
        body: Its body.
        document: The body's JSON.
        options: How this server behaves.
        now: The wall clock's seconds since 1970.
    """
    if options.api_key is None:
        return None
    try:
        _check_signature(request, body, document, options, now)
    except _BadSignatureError as problem:
        status = options.signature_refusal
        challenge = {"WWW-Authenticate": _SCHEME} if status == 401 else None
        return json_answer(status, {"error": str(problem)}, challenge)
    return None


class _BadSignatureError(Exception):
    """A request is not signed as it must be."""


def _check_signature(
    request: HttpRequest,
    body: bytes,
    document: Any,  # noqa: ANN401 - JSON is Any
    options: Options,
    now: float,
) -> None:
    given = _AUTHORIZATION.fullmatch(request.headers.get("Authorization", ""))
    if given is None:
        raise _BadSignatureError("request is not signed")
    access_id, signature = given.groups()
    expected_id = options.access_id
    if expected_id is None:
        expected_id = str(document.get("user_id")) if isinstance(document, dict) else ""
    if access_id != expected_id:
        raise _BadSignatureError("access id is unknown")
    date = request.headers.get("Date", "")
    if abs(now - _seconds(date)) > _LIFETIME:
        raise _BadSignatureError("signature has expired")
    content_hash = base64.b64encode(hashlib.sha256(body).digest()).decode()
    if request.headers.get("X-Authorization-Content-SHA256") != content_hash:
        raise _BadSignatureError("content hash does not match")
    canonical = f"POST,{request.headers['Content-Type']},{content_hash},{PATH},{date}"
    key = base64.b64decode(str(options.api_key))
    expected = base64.b64encode(hmac.digest(key, canonical.encode(), "sha256")).decode()
    if signature != expected:
        raise _BadSignatureError("signature does not match")


def _seconds(date: str) -> float:
    if date.endswith(" GMT"):
        with suppress(ValueError):
            return parsedate_to_datetime(date).timestamp()
    raise _BadSignatureError("date is missing or malformed")
