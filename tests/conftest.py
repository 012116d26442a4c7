"""How all tests run: any seed, no example too slow, and no task left behind."""

from __future__ import annotations

import asyncio
import copyreg
import inspect
import os
import signal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import aioresponses.core
import pytest
from aiohttp import ClientResponse
from aioresponses import aioresponses as AioResponses  # noqa: N812 - it is a class
from hypothesis import HealthCheck, settings

from ctrlapi_async.simulator import ControlApiSimulator

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

settings.register_profile(
    "quick",
    deadline=None,
    max_examples=60,
    # One loop and one simulator serve all examples of a test, which tell their tasks apart.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=1000)
settings.load_profile(os.environ.get("CTRLAPI_HYPOTHESIS", "quick"))

# A job in a script's background begins with Ctrl-C ignored, one under nohup with SIGHUP, and so
# would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


if "stream_writer" in inspect.signature(ClientResponse.__init__).parameters:
    # aioresponses 0.7 does not know this argument of newer aiohttp releases.

    class _Response(ClientResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("stream_writer", SimpleNamespace(output_size=0))
            super().__init__(*args, **kwargs)

    aioresponses.core.ClientResponse = _Response  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def plain_pickling() -> Iterator[None]:
    """Undo what a test's imports do to pickle: distributed makes it hold tracebacks."""
    before = dict(copyreg.dispatch_table)
    yield
    copyreg.dispatch_table.clear()
    copyreg.dispatch_table.update(before)


@pytest.fixture(autouse=True)
def leaves_no_task(request: pytest.FixtureRequest) -> None:
    """Make sure that a test with an event loop leaves no task running in it."""
    function = getattr(request, "function", None)
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    if inspect.iscoroutinefunction(inner):
        request.getfixturevalue("_no_task_left")


@pytest.fixture
async def _no_task_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    assert not left


@pytest.fixture
def api() -> Iterator[ControlApiSimulator]:
    """Run a simulator."""
    with ControlApiSimulator() as simulator:
        yield simulator


@pytest.fixture
def canned() -> Iterator[AioResponses]:
    """Answer every request from a list, without a socket."""
    with AioResponses() as responses:
        yield responses
