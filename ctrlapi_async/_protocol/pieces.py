"""Large replies in pieces, so that reading one need not hold up the event loop."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE: Final = 256 * 1024
"""Bytes of rows that are decoded in one go: some 1,000 rows of the documented shape."""

_TRIES: Final = 8
"""Places at which a cut is tried: more than rows with a few nested objects need."""

_RESULT: Final = re.compile(rb'"result"\s*:\s*\[')
_BETWEEN_ROWS: Final = re.compile(rb"\}\s*(,)\s*\{")
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_CLOSING: Final = {b"{": b"}", b"[": b"]"}
_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])


def pieces(body: bytes, size: int = PIECE) -> Iterator[bytes]:
    """Yield replies that together hold the rows of one reply to one call.

    Whether a comma is between two rows, and not inside of one, is told by what stands between the
    cut before it and the comma: only then is that a JSON array.

    Args:
        body: The reply.
        size: Bytes of rows a piece.

    Yields:
        Replies, of which the last holds what comes after the rows; just the whole one if it is
        small or cannot be divided.
    """
    start = _RESULT.search(body, 0, size)
    if start is None:
        yield body
        return
    head, at = body[: start.end()], start.end()
    closing = _closing(head)
    while len(body) - at > 2 * size and (cut := _cut(body, at, at + size)) is not None:
        yield b"%b%b%b" % (head, body[at:cut], closing)
        at = cut + 1
    yield head + body[at:]


def _closing(head: bytes) -> bytes:
    """Return the brackets that close what the beginning of a document has opened."""
    closing: list[bytes] = []
    for bracket in re.findall(rb"[\[\]{}]", _STRING.sub(b"", head)):
        if bracket in _CLOSING:
            closing.append(_CLOSING[bracket])
        elif closing:
            closing.pop()
    return b"".join(reversed(closing))


def _cut(body: bytes, start: int, near: int) -> int | None:
    """Return the place of a comma between two rows, or None if none was found."""
    for match in islice(_BETWEEN_ROWS.finditer(body, near), _TRIES):
        if _are_rows(body[start : match.start(1)]):
            return match.start(1)
    return None


def _are_rows(piece: bytes) -> bool:
    try:
        _ROWS.decode(b"[%b]" % piece)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True
