"""Servers of a few lines over real sockets, and one transport to talk to them."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import aiohttp

from ctrlapi_async._transport import Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from ssl import SSLContext

    Writes = Callable[[asyncio.StreamWriter], Awaitable[None]]
    Answer = bytes | Writes


class RawServer:
    """Answers each request as a function likes, and keeps what it got.

    Args:
        answer: Writes an answer to a request.
    """

    def __init__(self, answer: Writes) -> None:
        self.answer = answer
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.arrived = asyncio.Event()
        """Set when a request has come."""
        self.left = asyncio.Event()
        """Set when a client has closed its connection."""
        self.url = ""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                self.heads.append(head)
                self.bodies.append(await reader.readexactly(int(length[1]) if length else 0))
                self.arrived.set()
                watch = asyncio.create_task(self._watch(reader))
                self._tasks.add(watch)
                await self.answer(writer)
                if writer.is_closing():
                    break
                watch.cancel()
                await asyncio.wait([watch])
        self.left.set()
        writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        """Note the client's leaving while an answer is written."""
        with suppress(ConnectionError, asyncio.CancelledError):
            # To wait by reading would take from the next request.
            while not reader.at_eof():  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            self.left.set()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def header(self, name: str, place: int = -1) -> str | None:
        """Return a header of a request."""
        found = re.search(rf"(?im)^{name}: ?(.*?)\r$".encode(), self.heads[place])
        return None if found is None else found[1].decode()


@asynccontextmanager
async def raw_server(
    answer: Answer,
    ssl: SSLContext | None = None,
) -> AsyncIterator[RawServer]:
    """Serve on a free port.

    Args:
        answer: What is written after each request, or a function that writes it.
        ssl: Serves with TLS.
    """

    async def write(writer: asyncio.StreamWriter) -> None:
        assert isinstance(answer, bytes)
        writer.write(answer)
        await writer.drain()
        writer.close()

    raw = RawServer(write if isinstance(answer, bytes) else answer)
    server = await asyncio.start_server(raw._serve, "127.0.0.1", 0, ssl=ssl)
    scheme = "http" if ssl is None else "https"
    raw.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        try:
            yield raw
        finally:
            await raw.end()


@asynccontextmanager
async def transport(url: str, **options: Any) -> AsyncIterator[Transport]:
    """Open a transport for one test."""
    defaults: dict[str, Any] = {
        "user_id": 1,
        "request_timeout": 1000.0,
        "connect_timeout": 1000.0,
        "max_reply_bytes": 10_000_000,
    }
    made = Transport(url, **defaults | options)
    made.open()
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def served(
    answer: Answer,
    given: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[RawServer, Transport]]:
    """Open a transport to a server of its own.

    Args:
        answer: What is written after each request, or a function that writes it.
        given: What a client of the caller's is made with; None: there is none.
        options: The transport's.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(raw_server(answer))
        if given is not None:
            options["client"] = await stack.enter_async_context(aiohttp.ClientSession(**given))
        yield server, await stack.enter_async_context(transport(server.url, **options))


def response(body: bytes = b"{}", status: str = "200 OK", **headers: str) -> bytes:
    """Return an HTTP answer, which says that the connection will be closed."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named = {"Content-Length": str(len(body)), "Connection": "close"} | named
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body
