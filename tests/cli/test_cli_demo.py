"""The commands `demo` and `simulate`."""

from __future__ import annotations

import base64
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

import ctrlapi_async.simulator
from ctrlapi_async.cli.exits import Exit
from tests.cli.support import Call, World, ended, process

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

FAULT: Any = None
"""In place of a request."""


def rows(text: str) -> dict[str, str]:
    lines = [line.rpartition("  ") for line in text.splitlines() if line]
    return {words.strip(): number for words, _, number in lines}


def test_demo(call: Call) -> None:
    result = call(None, "demo", "--latency", "0")
    assert (result.status, result.err) == (Exit.OK, "")
    found = rows(result.out)
    assert found["tasks named"] == "10,010"
    assert found["stop sent    Running"] == found["stops sent"] == "5,100"
    assert found["restarted as other tasks"] == "100"
    assert found["not found"] == "10"
    assert int(found["requests"]) < 60


def test_a_small_demo(call: Call) -> None:
    argv = ("--tasks", "40", "--running", "0", "--restarted", "0.1", "--absent", "0", "-v")
    result = call(None, "demo", *argv, "--chunk-size", "10")
    assert result.status == Exit.OK
    assert sum("→" in line for line in result.out.splitlines()) == 4
    assert rows(result.out)["stops sent"] == "4"
    assert result.err.count("debug: TaskStatus") == 4


def test_an_interrupted_demo_ends_cleanly() -> None:
    running = process(None, "demo", "-v", "--chunk-size", "10", "--concurrency", "1")
    assert running.stderr is not None
    assert running.stderr.readline()
    running.send_signal(signal.SIGINT)
    result = ended(running)
    assert result.status == Exit.INTERRUPTED
    assert rows(result.out)["tasks named"] == "10,010"
    assert result.err.splitlines()[-1].startswith("error: interrupted; ")


def test_simulate_serves_the_documented_examples(call: Call) -> None:
    running = process(None, "simulate", "--port", "0")
    assert running.stdout is not None
    first, second, _ = (running.stdout.readline().decode() for _ in range(3))
    assert first.startswith("Control API simulator on http://127.0.0.1:")
    assert "tasks 63 to 67, all Running" in second
    options = ("--url", first.split()[-1], "--user-id", "1", "--project", "2")
    results = call(None, "stop", "67", "68", *options).results
    assert results == {67: "stop_sent", 68: "not_found"}
    running.send_signal(signal.SIGINT)
    result = ended(running)
    assert "2 requests answered: 1 TaskStatus, 1 TaskStop" in result.out
    assert (result.status, result.err) == (Exit.OK, "")


def test_simulate_many_tasks(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[World] = []

    class Simulator(World):
        async def start(self) -> None:
            await super().start()
            served.append(self)
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(ctrlapi_async.simulator, "ControlApiSimulator", Simulator)
    key = tmp_path / "key"
    key.write_text(base64.b64encode(b"secret").decode())
    key.chmod(0o600)
    argv = ["--port", "0", "--tasks", "100", "--running", "0.4", "--restarted", "0.1"]
    argv += ["--fail", "0.5", "--missing", "omitted", "--stop-delay", "1m"]
    argv += ["--project", "7", "--user-id", "3", "--api-key-file", str(key)]
    result = call(None, "simulate", *argv)
    assert (result.err, result.status) == ("", Exit.OK)
    [api] = served
    assert (api.missing, api.login, api.stop_delay) == ("omitted", None, 60)
    assert api.api_key == key.read_text()
    assert api.fault_when is not None
    faults = [api.fault_when(FAULT) for _ in range(100)]
    assert None in faults
    assert ctrlapi_async.simulator.HttpStatus(503) in faults
    assert sum(task.status == "Running" for task in api.tasks.values()) == 50
    assert "project 7 of user 3: tasks 1 to 100: 9 Scheduled, 9 Explore, 40 Run" in result.out
    assert "0 requests answered: 0 TaskStatus, 0 TaskStop" in result.out


def test_a_port_that_is_taken(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = call(None, "simulate", "--port", str(taken.getsockname()[1]))
    assert result.status == Exit.NOTHING
    assert result.err.startswith("error: cannot listen: ")
    assert "choose another --port" in result.err
