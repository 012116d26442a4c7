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
_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])


def pieces(body: bytes, size: int = PIECE) -> Iterator[bytes]:
    """Yield replies that together hold the rows of one reply to one call.

    Whether a place is between two rows, and not inside of one, is told by what stands before it:
    only then is that a JSON array.

    Args:
        body: The reply.
        size: Bytes of rows a piece.

    Yields:
        Replies with the same envelope; just the whole one if it is small or cannot be divided.
    """
    start = _RESULT.search(body, 0, size)
    end = _end_of_rows(body, start.end(), size) if start and len(body) > 2 * size else None
    if start is None or end is None:
        yield body
        return
    head, tail = body[: start.end()], body[end:]
    at = start.end()
    while end - at > 2 * size:
        cut = _cut(body, at, at + size)
        if cut is None:
            break
        yield b"%b%b%b" % (head, body[at:cut], tail)
        at = cut + 1
    yield b"%b%b%b" % (head, body[at:end], tail)


def _cut(body: bytes, start: int, near: int) -> int | None:
    """Return the place of a comma between two rows, or None if none was found."""
    for match in islice(_BETWEEN_ROWS.finditer(body, near), _TRIES):
        if _are_rows(body[start : match.start(1)]):
            return match.start(1)
    return None


def _end_of_rows(body: bytes, start: int, size: int) -> int | None:
    """Return the place of the bracket that ends the rows, or None if it was not found."""
    cut = _cut(body, start, start + size)
    if cut is None:
        return None
    last = _BETWEEN_ROWS.finditer(body, max(cut, len(body) - size))
    for row in islice(last, _TRIES):
        end = len(body)
        for _ in range(_TRIES):
            end = body.rfind(b"]", row.end(), end)
            if end < 0:
                break
            if _are_rows(body[row.start(1) + 1 : end]):
                return end
    return None


def _are_rows(piece: bytes) -> bool:
    try:
        _ROWS.decode(b"[%b]" % piece)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True
