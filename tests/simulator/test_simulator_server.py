"""The running simulator: gates, counters, waiting, threads, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

import ctrlapi_async
from ctrlapi_async.simulator import ControlApiSimulator, Delay, Drop, Fault, Hang, SlowBody
from tests.support.asking import JSON_HEADERS, NO_REPLY, Served, call, check, envelope, stop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

ROOT = Path(ctrlapi_async.__file__).parent.parent


@pytest.fixture
async def api() -> AsyncIterator[Served]:
    async with Served() as served:
        yield served


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ctrlapi-simulator"]


def ask_in_thread(api: ControlApiSimulator, document: Any) -> Any:
    """Send a request without an event loop."""
    request = urllib.request.Request(api.endpoint, json.dumps(document).encode(), JSON_HEADERS)
    with urllib.request.urlopen(request, timeout=10.0) as response:
        return json.loads(response.read())


# --- Gates, counters and the log ------------------------------------------------------------------


@pytest.mark.parametrize("effect", [False, True])
async def test_requests_are_held_until_released(api: Served, *, effect: bool) -> None:
    task = api.add_task(66)
    with api.hold("TaskStop", effect=effect) as gate:
        sending = api.start_sending(stop(66))
        await api.wait_for_requests(1, "TaskStop")
        # What has arrived has had its effect, unless it is held before.
        assert (gate.held, gate.released, task.stopped) == (1, False, effect)
        await api.send(check(66))
        assert not sending.done()
    assert (await sending)[0] == 200
    assert (gate.held, gate.released, task.stopped) == (0, True, True)
    assert await api.sent(stop(66)) == [200]


async def test_one_request_can_be_held_alone(api: Served) -> None:
    with api.hold(number=2):
        await api.send(check(66))
        sending = api.start_sending(check(66))
        await api.wait_for_requests(2)
        await api.send(check(66))
        assert not sending.done()
    await sending
    with api.hold(number=10, every=True), api.hold() as gate:
        sending = api.start_sending(check(66))
        await api.wait_for_requests(4)
        assert gate.held == 1
        sending.cancel()
        await asyncio.wait([sending])
        await api.wait_until(lambda: api.counters.in_flight == 0)
        assert gate.held == 0


async def test_a_request_passes_one_gate_after_the_other(api: Served) -> None:
    task = api.add_task(66)
    gates = [api.hold(), api.hold("TaskStop"), api.hold(effect=True)]
    sending = api.start_sending(stop(66))
    while gates:
        await api.wait_until(lambda: gates[0].held == 1)
        assert sum(gate.held for gate in gates) == 1
        assert task.stopped is (len(gates) == 1)
        gates.pop(0).release()
    await sending


async def test_everything_is_counted_until_a_reset(api: Served) -> None:
    api.add_tasks(range(10))
    gate = api.hold(number=2, every=True)
    documents = [envelope(call("TaskStop", 4), call("TaskStop", [5, 6])), {}, check([1, 2, 3])]
    await api.send(check("*"))
    sending = [api.start_sending(document) for document in documents]
    await api.wait_for_requests(4)
    counters = api.counters
    assert (counters.requests, counters.in_flight, counters.peak) == (4, 3, 3)
    assert (counters.connections, counters.connections_open) == (3, 3)
    assert counters.requests_by_method == {"TaskStatus": 2, "TaskStop": 1}
    assert counters.calls == {"TaskStatus": 2, "TaskStop": 2}
    assert counters.ids == {"TaskStatus": 3, "TaskStop": 3}
    api.reset_counters()
    assert (api.log, api.counters.requests, api.counters.connections) == ([], 0, 0)
    assert (api.counters.in_flight, api.counters.peak) == (3, 3)
    assert api.counters.connections_open == 3
    gate.release()
    await asyncio.gather(*sending)
    assert (api.counters.in_flight, api.counters.peak) == (0, 3)
    await api.send(check(66))
    assert [record.number for record in api.log] == [1]


async def test_every_request_is_logged(api: Served) -> None:
    both = envelope(call("TaskStop", 4), call("TaskStatus", [5, True]), call("TaskStop", [6]))
    assert await api.sent(check(1), both, b"{", 5) == [200, 400, 400, 400]
    first, second, third, fourth = api.log
    assert (first.number, first.json, first.numbers) == (1, check(1), {"TaskStatus": 1})
    assert (first.http_method, first.path) == ("POST", "/ctrl_api/v1/json")
    assert first.headers["content-type"] == "application/json"
    assert (second.json, second.numbers) == (both, {"TaskStop": 1, "TaskStatus": 2})
    assert second.methods == ("TaskStop", "TaskStatus", "TaskStop")
    assert second.ids == (4, 5, 6)
    assert (third.number, third.json, third.methods) == (3, None, ())
    assert (fourth.number, fourth.json, fourth.ids) == (4, 5, ())
    async with Served(log=False) as other:
        await other.send(check(1))
        assert (other.log, other.counters.requests) == ([], 1)


# --- Threads and loops ----------------------------------------------------------------------------


def test_a_sync_test_needs_no_event_loop() -> None:
    with ControlApiSimulator() as api, ThreadPoolExecutor() as pool:
        api.add_task(64, "Stalled", restarts=1)
        [entry] = ask_in_thread(api, check(64))["reply"]
        assert [row["task_id"] for row in entry["result"]] == [64, 1064]
        api.wait_for_requests_sync(1, "TaskStatus")
        with pytest.raises(TimeoutError, match="did not hold within 0 seconds"):
            api.wait_for_requests_sync(2, timeout=0.0)
        with api.hold():
            pool.submit(ask_in_thread, api, stop(1064))
            api.wait_for_requests_sync(2)
            assert not api.tasks[1064].stopped
        api.wait_until_sync(lambda: api.tasks[1064].stopped)
    assert not threads()


def test_all_methods_may_be_called_from_any_thread(api: ControlApiSimulator) -> None:
    def use(first: int) -> None:
        for task_id in range(first, first + 20):
            api.add_task(task_id, life=[(5.0, "Stalled")], restarts=1)
            api.hold("TaskStop").release()
            reply = ask_in_thread(api, envelope(call("TaskStop", task_id), call("X", 1)))
            assert "result" in reply["reply"][0]
            api.advance(0.1)
            statuses = {task.status for task in api.tasks.values()}
            assert statuses <= {"Stalled", "Canceled", "Running"}

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(use, [100, 200, 300, 400])) == [None] * 4
    assert len(api.tasks) >= 80
    assert (api.counters.requests, api.counters.in_flight) == (80, 0)
    assert [record.number for record in api.log] == list(range(1, 81))


async def wait_in_loop(api: ControlApiSimulator) -> None:
    """Wait for what a thread does, whatever kind of event loop runs this."""
    api.add_task(66)
    with ThreadPoolExecutor() as pool:
        with api.hold() as gate:
            pool.submit(ask_in_thread, api, stop(66))
            await api.wait_for_requests(1)
            assert gate.held == 1
        await api.wait_until(lambda: api.tasks[66].stopped and api.counters.in_flight == 0)
    await api.stop()


def run_in_trio(work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
    pytest.importorskip("trio").run(work, *args)


def run_in_asyncio(work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
    asyncio.run(work(*args))


@pytest.mark.parametrize("run", [run_in_asyncio, run_in_trio])
def test_a_condition_is_waited_for_in_any_loop_and_forgotten_with_it(run: Any) -> None:
    async def give_up(api: ControlApiSimulator) -> None:
        if run is run_in_trio:
            with importlib.import_module("trio").move_on_after(0):
                await api.wait_for_requests(1)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):
                    await api.wait_for_requests(1)

    with ControlApiSimulator() as api:
        run(give_up, api)
        ask_in_thread(api, envelope({"method": "X"}))
        api.reset_counters()
        run(wait_in_loop, api)


async def test_it_can_serve_in_the_loop_that_starts_it() -> None:
    api = ControlApiSimulator(own_thread=False)
    for use in (api.start_sync, api.stop_sync):
        with pytest.raises(RuntimeError, match="use it with `async with`"):
            use()
    before = asyncio.all_tasks()
    async with api:
        assert not threads()
        assert repr(api) == f"<ControlApiSimulator {api.url} running>"
        await wait_in_loop(api)
    assert asyncio.all_tasks() == before
    assert repr(api) == f"<ControlApiSimulator {api.url} stopped>"


# --- Start and stop -------------------------------------------------------------------------------


async def test_it_starts_again_on_its_port(api: Served) -> None:
    url = api.url
    with pytest.raises(RuntimeError, match="runs already"):
        await api.start()
    await api.send(check(66))
    await api.stop()
    await api.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await api.send(check(66))
    api.start_sync()
    assert api.url == url == f"http://127.0.0.1:{api.port}"
    await api.send(check(66))
    assert api.counters.requests == 2
    assert ControlApiSimulator(host="::1", port=80).url == "http://[::1]:80"


@pytest.mark.parametrize("own_thread", [False, True])
async def test_a_port_that_cannot_be_listened_on_is_an_error_and_nothing_else(
    *, own_thread: bool
) -> None:
    with pytest.raises(OverflowError, match="port must be"):
        await ControlApiSimulator(port=70_000, own_thread=own_thread).start()
    async with ControlApiSimulator() as api:
        other = ControlApiSimulator(port=api.port, own_thread=own_thread)
        with pytest.raises(OSError, match="address already in use"):
            await other.start()
        assert len(threads()) == 1
    await other.start()
    await other.stop()


@pytest.mark.parametrize("fault", [Hang(), SlowBody(interval=3600.0), Delay(3600.0), None], ids=str)
@pytest.mark.parametrize("own_thread", [False, True])
async def test_stop_ends_what_is_going_on(fault: Fault | None, *, own_thread: bool) -> None:
    before = asyncio.all_tasks()
    async with Served(own_thread=own_thread) as api:
        await api.send(check(66))
        if fault is None:
            api.hold()
        else:
            api.fault(fault)
        sending = api.start_sending(check(66))
        await api.wait_for_requests(2)
        _, idle = await asyncio.open_connection("127.0.0.1", api.port)
        await api.wait_until(lambda: api.counters.connections_open == 2)
        await api.stop()
        assert asyncio.all_tasks() - {sending} == before
        assert (api.counters.in_flight, api.counters.connections_open) == (0, 0)
        with pytest.raises((*NO_REPLY, aiohttp.ClientPayloadError)):
            await sending
        idle.close()
    assert not threads()


@pytest.mark.parametrize("turns", range(6))
async def test_no_connection_outlives_stop_however_far_it_got(turns: int) -> None:
    api = ControlApiSimulator(own_thread=False)
    await api.start()
    with socket.create_connection(("127.0.0.1", api.port), timeout=10.0) as client:
        # The loop accepts it and wraps it step by step.
        for _ in range(turns):
            await asyncio.sleep(0)
        await api.stop()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert api.counters.connections_open == 0


def test_a_function_that_blocks_the_thread_does_not_hold_up_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctrlapi_async.simulator._thread._PATIENCE", 0.0)
    blocked, free = threading.Event(), threading.Event()
    api = ControlApiSimulator()
    api.start_sync()

    def block(_: object) -> None:
        blocked.set()
        free.wait()

    api.fault_when = block
    with socket.create_connection(("127.0.0.1", api.port)) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        blocked.wait()
        with pytest.raises(RuntimeError, match="blocks the simulator's thread"):
            api.stop_sync()
        [thread] = threads()
        free.set()
        thread.join()


@pytest.mark.parametrize(
    "program",
    [
        "api.start_sync()",
        "asyncio.run(api.start())",
        "api.start_sync(); sys.exit()",
        # A connection is open.
        "api.start_sync(); socket.create_connection(('127.0.0.1', api.port)).detach()",
    ],
)
def test_a_simulator_that_nobody_stops_ends_with_the_program(program: str) -> None:
    imports = "import asyncio, socket, sys; from ctrlapi_async.simulator import ControlApiSimulator"
    program = f"{imports}; api = ControlApiSimulator(); {program}"
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60.0,
        check=True,
    )
    assert (ended.stdout, ended.stderr) == (b"", b"")


async def test_it_serves_https() -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with Served(ssl_context=server) as api:
        assert api.url == f"https://127.0.0.1:{api.port}"
        api.fault(Drop(), number=2)
        async with api.http.post(api.endpoint, json=check(66), ssl=client) as response:
            assert response.status == 200
        with pytest.raises(NO_REPLY):
            await api.http.post(api.endpoint, json=check(66), ssl=client)
