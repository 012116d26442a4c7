"""The HTTP server in front of the rules; it runs in whatever event loop starts it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from attrs import evolve

from ctrlapi_async.simulator._access import HttpRequest
from ctrlapi_async.simulator._answers import Answer, page
from ctrlapi_async.simulator._faults import (
    Body,
    CutBody,
    Delay,
    Drop,
    Hang,
    HttpStatus,
    Rewrite,
    SlowBody,
)
from ctrlapi_async.simulator._processing import HookError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.simulator._options import Options
    from ctrlapi_async.simulator._processing import Exchange, Processor

# A linger time of zero makes the kernel answer a close with RST; Windows has its own struct.
_NO_LINGER: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)


class _Server(web.Server):
    """Counts connections, and lets none in any more once it closes."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Any],
        count: Callable[[int], None],
    ) -> None:
        super().__init__(handler, handler_cancellation=True, access_log=None)
        self._count = count
        self._closing = False

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:  # noqa: ANN401 - aiohttp does not export its type
        super().connection_made(handler, transport)
        self._count(1)
        if self._closing:
            transport.abort()

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:  # noqa: ANN401 - aiohttp does not export its type
        super().connection_lost(handler, exc)
        self._count(-1)

    def abort(self) -> None:
        self._closing = True
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.abort()


class _InFlight:
    """Counts a request as in flight until it ends, for whatever reason comes first."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self._ended = False
        processor.begin()

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._processor.end()


class Front:
    """Listens, reads requests, has them carried out, and sends replies or what faults make of them.

    Args:
        processor: Carries requests out.
        options: How this server behaves.
    """

    def __init__(self, processor: Processor, options: Options) -> None:
        self._processor = processor
        self._options = options
        self._server: _Server
        self._listener: asyncio.Server

    async def start(self, port: int) -> int:
        """Listen.

        Args:
            port: The port; 0 for a free one.

        Returns:
            The port.

        Raises:
            OSError: The port is taken.
        """
        self._server = _Server(self._handle, self._processor.count_connection)
        self._listener = await asyncio.get_running_loop().create_server(
            self._server, self._options.host, port, ssl=self._options.ssl_context, backlog=1024
        )
        return int(self._listener.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, abort every connection and wait until nothing is in flight; only once."""
        server, listener = self._server, self._listener
        # A connection that asyncio has accepted but not yet wrapped when its server closes is left
        # open for good by Python 3.11. So: accept no more, let it be wrapped, then close.
        for sock in listener.sockets:
            with suppress(NotImplementedError):  # Windows' proactor loop
                asyncio.get_running_loop().remove_reader(sock)
        try:
            await asyncio.sleep(0)
        finally:
            listener.close()
            server.abort()
        # What was aborted ends within a few turns of the loop, for nothing here shields itself
        # from cancellation; the turns after that are for aiohttp's own tasks.
        turns = 3
        while turns or server.connections or self._processor.counters.in_flight:
            turns = max(0, turns - 1)
            await asyncio.sleep(0)

    # Handling a request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        flight = _InFlight(self._processor)
        try:
            return await self._serve(request, flight)
        except HookError:
            return self._response(page(500))
        finally:
            flight.end()

    async def _serve(self, request: web.BaseRequest, flight: _InFlight) -> web.StreamResponse:
        head = HttpRequest(
            request.method, request.path, request.headers, request.content_type, request.charset
        )
        body = await self._read(request)
        exchange = self._processor.arrive(head, body)
        try:
            while exchange.gate is not None:
                await exchange.gate.wait()
                self._processor.proceed(exchange)
        finally:
            self._processor.leave_gate(exchange)
        pause = self._options.latency
        pause += self._options.seconds_per_id * len(exchange.record.ids)
        if isinstance(exchange.fault, Delay):
            pause += exchange.fault.seconds
        if pause:
            await asyncio.sleep(pause)
        return await self._deliver(request, exchange, flight)

    async def _read(self, request: web.BaseRequest) -> bytes | Answer:
        """Read the body, or say why it is refused, with no more than the limit in memory."""
        max_body = self._options.max_body
        too_large = page(413, {"Connection": "close"})
        if (request.content_length or 0) > max_body:
            return too_large
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # aiohttp takes what was written for the start of the reply.
            request.writer.output_size = 0
        body = bytearray()
        try:
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_body:
                    return too_large
        except web.RequestPayloadError:
            return page(400, {"Connection": "close"})
        return bytes(body)

    # Sending a reply

    async def _deliver(
        self, request: web.BaseRequest, exchange: Exchange, flight: _InFlight
    ) -> web.StreamResponse:
        answer = cast("Answer", exchange.answer)
        match exchange.fault:
            case HttpStatus() as fault:
                answer = page(fault.status, fault.headers)
                if fault.body is not None:
                    answer = evolve(answer, body=_bytes(fault.body))
            case Body() as fault:
                answer = Answer(fault.status, _bytes(fault.body), fault.content_type)
            case Rewrite() as fault if answer.status == HTTPStatus.OK:
                document = self._processor.run_hook(fault.change, json.loads(answer.body))
                answer = evolve(answer, body=json.dumps(document).encode())
            case SlowBody() as fault:
                return await self._trickle(request, answer, fault.interval)
            case Drop() | CutBody() | Hang() as fault:
                await self._break_off(request, fault, answer, flight)
            case _:
                pass
        return self._response(answer)

    def _headers(self, answer: Answer) -> dict[str, str]:
        return {
            "Content-Type": answer.content_type,
            "Date": formatdate(self._processor.wall_time, usegmt=True),
            "Server": "nginx",
            **answer.headers,
        }

    def _response(self, answer: Answer) -> web.Response:
        headers = self._headers(answer)
        response = web.Response(status=answer.status, body=answer.body, headers=headers)
        if headers.get("Connection") == "close":
            response.force_close()
        return response

    async def _trickle(
        self, request: web.BaseRequest, answer: Answer, interval: float
    ) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=self._headers(answer))
        response.content_length = len(answer.body)
        await response.prepare(request)
        for index in range(len(answer.body)):
            if index:
                await asyncio.sleep(interval)
            await response.write(answer.body[index : index + 1])
        return response

    async def _break_off(
        self,
        request: web.BaseRequest,
        fault: Drop | CutBody | Hang,
        answer: Answer,
        flight: _InFlight,
    ) -> None:
        """Leave the client without a whole reply; never returns, but is cancelled."""
        # Without a connection this would not run any more: its loss cancels the handler.
        transport = cast("asyncio.Transport", request.transport)
        if not isinstance(fault, Hang):
            # The client may see the end and ask again before this server notices that it is over.
            flight.end()
        if isinstance(fault, Drop):
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()
        elif isinstance(fault, CutBody):
            part = answer.body[: int(len(answer.body) * fault.keep)]
            head = [f"HTTP/1.1 {answer.status} Cut"]
            head += [f"{name}: {value}" for name, value in self._headers(answer).items()]
            head += [f"Content-Length: {len(answer.body)}", "", ""]
            transport.write("\r\n".join(head).encode() + part)
            # Not abort(), which could take back the part.
            transport.close()
        await asyncio.get_running_loop().create_future()


def _bytes(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body
