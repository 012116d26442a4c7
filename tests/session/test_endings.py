"""Ends that come from outside: an interrupt, a time-out of one call, a source that goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

import pytest

from ctrlapi_async import ControlSession, RequestError, RetryPolicy, StopIncompleteError
from ctrlapi_async._sender import RequestSender
from ctrlapi_async.simulator import ControlApiSimulator, Hang

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def interrupt(*_: object, **__: object) -> NoReturn:
    raise KeyboardInterrupt


def test_an_interrupt_in_a_request_comes_out_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RequestSender, "send", interrupt)

    async def main() -> None:
        async with ControlSession("http://127.0.0.1:9", 1) as session:
            await session.stop_running(2, [1])

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())


async def test_a_call_that_takes_too_long_is_a_request_error(api: ControlApiSimulator) -> None:
    api.fault(Hang())
    once = RetryPolicy(attempts=1)
    async with ControlSession(api.url, 1, retry=once, request_timeout=0.05) as session:
        with pytest.raises(RequestError):
            await session.call("TaskStatus", {"project_id": 2, "task_ids": 1})


async def test_what_a_source_yields_after_the_end_is_told(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2], "Completed", project_id=2)

    async def source() -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield 2

    async with ControlSession(api.url, 1) as session:
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, source(), timeout=0.3)
    assert caught.value.report[1].task_id == 1
