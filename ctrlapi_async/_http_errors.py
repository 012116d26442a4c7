"""HTTP answers that are not 200, to errors that say what to do about them. Pure."""

from __future__ import annotations

import html
import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from ctrlapi_async._auth import SIGNATURE_LIFETIME
from ctrlapi_async._errors import AuthError, HttpError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ctrlapi_async._redaction import Redactor

_WORDS: Final = 100
"""Characters of an answer's page that its error's message repeats."""
_ACCESS: Final = (
    "`auth` takes an ApiKey(...) or the (login, password) of a proxy; the server's settings must"
    " switch the Control API on, and its nginx, which denies it by default, must allow it"
)
_ADVICE: Final = {
    400: "the server does not understand the request",
    401: f"the server wants credentials, or refuses those given; {_ACCESS}",
    403: f"access to the Control API is denied; {_ACCESS}",
    404: "there is no Control API at this address",
    405: "there is no Control API at this address",
    407: "the proxy wants credentials, or refuses those given",
    413: "the request was too large",
}
"""What the person who reads the error can do, by HTTP status."""


class Answer(NamedTuple):
    """An HTTP answer that is not 200.

    Attributes:
        address: Who answered.
        status: The status.
        reason: The words beside the status.
        headers: The headers, found in any case.
        body: The body, or the beginning of it.
    """

    address: str
    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes = b""


def http_error(answer: Answer, *, redactor: Redactor, now: float, signed: bool) -> HttpError:
    """Return the error for an HTTP answer.

    Args:
        answer: The answer.
        redactor: Knows what must not be shown.
        now: Seconds since the epoch.
        signed: Whether the request was signed with an API key.
    """
    address, status, reason, headers, body = answer
    said = f"HTTP {status} {_shown(reason, redactor)}".rstrip()
    text = redactor.redact(body.decode("utf-8", "replace"))
    words = _page_words(text)
    parts = [f"{said} from {address}" + (f" ({words})" if words and words not in said else "")]
    if status == 401 and signed:
        parts.append(clock_advice(headers.get("Date"), now))
    if 300 <= status < 400:
        target = _shown(headers.get("Location", "nowhere"), redactor)
        parts.append(
            f"redirects to {target}, which is not followed: use that address if it is right"
        )
    elif status in _ADVICE:
        parts.append(_ADVICE[status])
    kind = AuthError if status in (401, 403) else HttpError
    return kind("; ".join(parts), status, text, retry_after(headers.get("Retry-After"), now))


def clock_advice(date: str | None, now: float) -> str:
    """Return what an answer's date says of the clock that a refused signature was made with.

    Args:
        date: The answer's `Date` header.
        now: Seconds since the epoch, by this machine's clock.
    """
    server = None if date is None else _seconds_since_epoch(date)
    if server is None:
        return "the request was signed: compare this machine's clock with the server's"
    ahead = now - server
    if abs(ahead) < SIGNATURE_LIFETIME / 2:
        return "the request was signed, and this machine's clock is right: check the key"
    return (
        f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the"
        f" server's, and a signature lives {SIGNATURE_LIFETIME:.0f} s: set the clock"
    )


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for; None if it is not understood.

    Args:
        value: Seconds, or an HTTP date.
        now: Seconds since the epoch.
    """
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    moment = _seconds_since_epoch(value)
    return None if moment is None else max(0.0, moment - now)


def _seconds_since_epoch(date: str) -> float | None:
    try:
        moment = parsedate_to_datetime(date)
        # HTTP dates are in GMT, whether they say so in a way that the parser takes or not.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        return None


def _shown(header: str, redactor: Redactor) -> str:
    # A lone surrogate stands for a byte that is not UTF-8.
    text = header.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return redactor.redact(text)[:_WORDS]


def _page_words(text: str) -> str:
    """Return what an answer says in its own words: a page's title, or a short text."""
    title = re.search(r"(?is)<title[^>]{0,100}>(.{0,1000}?)</title", text)
    if title is not None:
        text = html.unescape(title[1])
    elif "<" in text:
        return ""
    words = " ".join(text.split())
    return words if len(words) <= _WORDS else ""
