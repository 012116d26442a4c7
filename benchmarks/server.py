"""A Control API server whose replies are canned, so that the client's cost shows.

It reads of a request what decides the reply and puts that together from rows made once. Waiting
is done by timers, never by work: the client has the machine to itself. Run as a process of its
own (`serving`), which lives as long as its stdin is open.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import selectors
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT: Final = Path(__file__).parent.parent

_OTHERS: Final = ("Scheduled", "Explore", "Completed", "Rejected", "Canceled", "Stalled")
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ID: Final = re.compile(rb'"id": *(\d+)')
_TASK_IDS: Final = re.compile(rb'"task_ids": *\[?([\d, ]+)')
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n"
)


def runs(task_id: int) -> bool:
    """Tell whether a task is Running: half of them are, scattered."""
    return bool(task_id * 2654435761 >> 16 & 1)


def status_of(task_id: int) -> str:
    """Give the status of a task."""
    return "Running" if runs(task_id) else _OTHERS[task_id % len(_OTHERS)]


class Rows(dict[bytes, bytes]):
    """Rows of one method by task id as it stands in the request, made when first asked for."""

    def __init__(self, make: Callable[[int], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, task_id: bytes) -> bytes:
        row = self[task_id] = self._make(int(task_id)).encode()
        return row


def status_row(task_id: int) -> str:
    """Give a row with the documented members only: the least there is to skip for a decoder."""
    return f'{{"task_id":{task_id},"status":"{status_of(task_id)}"}}'


def wide_status_row(task_id: int) -> str:
    """Give a row with some of the members that the sibling methods show."""
    return (
        f'{status_row(task_id)[:-1]},"initial_task_id":{task_id},"name":"channel {task_id}",'
        f'"progress":{task_id % 100}.5,"started":"2024-01-01 00:00:00"}}'
    )


def stop_row(task_id: int) -> str:
    """Give the row of a stop, which a task that runs takes each time anew."""
    if runs(task_id):
        return f'{{"task_id":{task_id},"status":"Stop request was sent"}}'
    return f'{{"task_id":{task_id},"error":"Stopping task is unavailable"}}'


class Worker:
    """When a reply is due: after the server's work for the ids, then its latency."""

    def __init__(self, latency: float, per_id: float, *, side_by_side: bool) -> None:
        self._latency = latency
        self._per_id = per_id
        self._side_by_side = side_by_side
        self._free_at = 0.0

    def due(self, now: float, size: int) -> float:
        """Give the time at which the reply to a request of so many ids leaves."""
        begin = now if self._side_by_side else max(now, self._free_at)
        self._free_at = begin + self._per_id * size
        return self._free_at + self._latency


class Connection(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, rows: dict[bytes, Rows], worker: Worker) -> None:
        self._rows = rows
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what replies are written to."""
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
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        method = b"TaskStop" if b'"TaskStop"' in body else b"TaskStatus"
        call_id, task_ids = _ID.search(body), _TASK_IDS.search(body)
        ids = task_ids[1].split(b",") if task_ids else []
        reply = b'{"reply":[{"method":"%b","id":%b,"result":[%b]}]}' % (
            method,
            call_id[1] if call_id else b"0",
            b",".join(map(self._rows[method].__getitem__, ids)),
        )
        data = _HEAD % len(reply) + reply
        now = self._loop.time()
        due = self._worker.due(now, len(ids))
        if due > now:
            self._loop.call_at(due, self._transport.write, data)
        else:
            self._transport.write(data)


async def serve(worker: Worker, *, wide: bool) -> None:
    """Serve on a free port, whose number goes to stdout, until stdin ends."""
    rows = {
        b"TaskStatus": Rows(wide_status_row if wide else status_row),
        b"TaskStop": Rows(stop_row),
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(rows, worker), "127.0.0.1", 0, backlog=1024
    )
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin, ended.set)
    await ended.wait()


@contextmanager
def serving(
    latency: float = 0.0, per_id: float = 0.0, *, side_by_side: bool = False, wide: bool = False
) -> Iterator[str]:
    """Run a server in another process; gives its base URL.

    Args:
        latency: Seconds before each reply.
        per_id: Seconds of work for each task id.
        side_by_side: Whether it works on requests at once, not on one after the other.
        wide: Whether the rows of TaskStatus have more members than the documented ones.
    """
    command = [sys.executable, "-m", "benchmarks.server", str(latency), str(per_id)]
    command += ["--side-by-side"] * side_by_side + ["--wide"] * wide
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def main() -> None:
    """Serve as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("latency", type=float)
    parser.add_argument("per_id", type=float)
    parser.add_argument("--side-by-side", action="store_true")
    parser.add_argument("--wide", action="store_true")
    options = parser.parse_args()
    worker = Worker(options.latency, options.per_id, side_by_side=options.side_by_side)
    # select() waits to the microsecond, epoll to the millisecond.
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(serve(worker, wide=options.wide))


if __name__ == "__main__":
    main()
