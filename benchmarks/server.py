"""HTTP for the canned servers: a process of its own, which lives as long as its stdin is open.

Waiting is done by timers, never by work: the client has the machine to itself.
"""

from __future__ import annotations

import asyncio
import re
import selectors
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.replies import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.replies import Response

ROOT: Final = Path(__file__).parent.parent
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, respond: Callable[[bytes], Response], latency: float) -> None:
        self._respond = respond
        self._latency = latency
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what responses are written to."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self._buffer += data
        while (start := self._buffer.find(b"\r\n\r\n") + 4) > 3:
            length = _LENGTH.search(self._buffer, 0, start)
            end = start + int(length[1]) if length else start
            if len(self._buffer) < end:
                return
            body, self._buffer = self._buffer[start:end], self._buffer[end:]
            response = self._respond(body)
            if self._latency:
                self._loop.call_later(self._latency, self._write, response)
            else:
                self._write(response)

    def _write(self, response: Response) -> None:
        self._transport.write(response.data)
        if response.close:
            self._transport.close()


async def serve(kind: str, latency: float) -> None:
    """Serve on a free port, whose number goes to stdout, until stdin ends."""
    respond = SERVERS[kind]()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(respond, latency), "127.0.0.1", 0, backlog=1024
    )
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    await ended.wait()


@contextmanager
def serving(kind: str, latency: float = 0.0) -> Iterator[str]:
    """Run a server in another process.

    Args:
        kind: One of `SERVERS`.
        latency: Seconds before each response.

    Yields:
        Its base URL.
    """
    command = [sys.executable, "-m", "benchmarks.server", kind, str(latency)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


if __name__ == "__main__":
    # select() waits to the microsecond, epoll to the millisecond.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(serve(sys.argv[1], float(sys.argv[2])))
