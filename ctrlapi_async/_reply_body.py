"""Reads the body of an HTTP answer in pieces, decompressed and within a bound."""

from __future__ import annotations

import asyncio
import zlib
from typing import TYPE_CHECKING, Final

from ctrlapi_async._errors import ReplyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp import ClientResponse

ACCEPT_ENCODING: Final = "gzip, deflate"
"""The content encodings that are understood, as a header's value."""
PIECE: Final = 2**18
"""Bytes that are decompressed at a time."""
_AUTOMATIC: Final = 32 + zlib.MAX_WBITS
"""The `wbits` that tell zlib to find out whether data has the header of gzip or of zlib."""


async def read_body(response: ClientResponse, pieces: list[bytes], limit: int) -> bool:
    """Read an answer's body.

    Args:
        response: The answer, of which the client has decompressed nothing.
        pieces: Takes in the body; what was read stays there if reading fails.
        limit: Bytes to read at most, decompressed.

    Returns:
        Whether that was the whole body.

    Raises:
        ReplyError: The body is not what its headers say.
    """
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("", "identity"):
        if (response.content_length or 0) > limit:
            return False
        return await _read_plain(response, pieces, limit)
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise ReplyError(f"a body with the content encoding {encoding[:40]!r}")
    return await _read_compressed(response, _Decompressor(encoding), pieces, limit)


async def _read_plain(response: ClientResponse, pieces: list[bytes], limit: int) -> bool:
    size = 0
    while chunk := await response.content.readany():
        pieces.append(chunk)
        size += len(chunk)
        if size > limit:
            return False
    return True


async def _read_compressed(
    response: ClientResponse, decompressor: _Decompressor, pieces: list[bytes], limit: int
) -> bool:
    received = size = 0
    while chunk := await response.content.readany():
        received += len(chunk)
        for piece in decompressor.feed(chunk):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                return False
            if len(piece) == PIECE:
                await asyncio.sleep(0)  # there may be a thousand of them in this chunk
        if received > limit + PIECE:
            return False  # compressed data that says nothing may be endless
    pieces.append(decompressor.finish())
    return size + len(pieces[-1]) <= limit


class _Decompressor:
    """Decompresses a body, which may have several members.

    Args:
        encoding: Its content encoding.
    """

    def __init__(self, encoding: str) -> None:
        self._deflate = encoding == "deflate"
        self._member = zlib.decompressobj(_AUTOMATIC)
        self._started = False

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield what a part of the compressed data holds, `PIECE` bytes at a time."""
        if not self._started and self._deflate and chunk[0] & 0x0F != zlib.DEFLATED:
            self._member = zlib.decompressobj(-zlib.MAX_WBITS)  # some leave zlib's header out
        self._started = True
        try:
            while chunk:
                if self._member.eof:
                    self._member = zlib.decompressobj(_AUTOMATIC)
                if piece := self._member.decompress(chunk, PIECE):
                    yield piece
                chunk = self._member.unconsumed_tail or self._member.unused_data
        except zlib.error as error:
            raise ReplyError("a body that is not compressed as its headers say") from error

    def finish(self) -> bytes:
        """Return the rest of the data.

        Raises:
            ReplyError: The data has no end.
        """
        rest = self._member.flush()
        if self._started and not self._member.eof:
            raise ReplyError("a compressed body that was cut off")
        return rest
