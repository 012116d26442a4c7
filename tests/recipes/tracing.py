"""Trace each request with a client of your own.

Proxies, tracing and connection limits are the client's; the session uses it and never closes it.
OpenTelemetry's aiohttp-client instrumentation comes in the same way
(`trace_configs=[create_trace_config()]`).
"""

from __future__ import annotations

import asyncio
import sys
from types import SimpleNamespace

import aiohttp

from ctrlapi_async import ControlSession


async def request_ended(
    session: aiohttp.ClientSession,
    context: SimpleNamespace,
    params: aiohttp.TraceRequestEndParams,
) -> None:
    request = context.trace_request_ctx  # {"method": "TaskStatus", "tasks": 500}
    print(request["method"], "of", request["tasks"], "tasks:", params.response.status)


async def main(url: str) -> None:
    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(request_ended)
    async with (
        aiohttp.ClientSession(trace_configs=[trace]) as client,
        ControlSession(url, user_id=1, client=client) as session,
    ):
        await session.stop_running(2, range(1, 1001))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
