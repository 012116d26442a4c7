"""The commands `demo` and `simulate`."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from cli_support import ended, piped, process

import ctrlapi_async.simulator
from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.simulate import _failing
from ctrlapi_async.simulator import ControlApiSimulator

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Call


def rows(text: str) -> dict[str, str]:
    lines = [line.rpartition("  ") for line in text.splitlines() if line]
    return {words.strip(): number for words, _, number in lines}


def test_demo() -> None:
    result = piped(None, "demo", "--latency", "0")
    assert (result.status, result.err) == (Exit.OK, "")
    found = rows(result.out)
    assert found["tasks asked for"] == "10,010"
    assert found["stop sent    Running"] == found["stops sent"] == "5,100"
    assert found["restarted as other tasks"] == "100"
    assert found["not found"] == "10"
    assert int(found["requests"]) < 60


def test_a_small_demo(call: Call) -> None:
    argv = ("--tasks", "40", "--running", "0", "--restarted", "0.1", "--absent", "0", "-v")
    result = call(None, "demo", *argv, "--chunk-size", "10")
    found = rows(result.out)
    assert result.status == Exit.OK
    assert sum("→" in line for line in result.out.splitlines()) == 4
    assert found["stops sent"] == "4"
    assert result.err.count("debug: TaskStatus") == 4


def test_an_interrupted_demo_ends_cleanly() -> None:
    running = process(None, "demo", "-v", "--chunk-size", "10", "--concurrency", "1")
    assert running.stderr is not None
    assert running.stderr.readline()
    running.send_signal(signal.SIGINT)
    result = ended(running)
    assert result.status == Exit.INTERRUPTED
    assert rows(result.out)["tasks asked for"] == "10,010"
    assert "Traceback" not in result.err
    assert result.err.splitlines()[-1].startswith("error: interrupted; ")


def ask(url: str, task_ids: Any, **params: Any) -> list[dict[str, Any]]:
    request = {"method": "TaskStop", "params": {"project_id": 2, "task_ids": task_ids, **params}}
    body = json.dumps({"user_id": 1, "methods": [request]}).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as response:
        result: list[dict[str, Any]] = json.load(response)["reply"][0]["result"]
        return result


def test_simulate_serves_the_documented_examples() -> None:
    running = process(None, "simulate", "--port", "0")
    assert running.stdout is not None
    first, second, _ = (running.stdout.readline().decode() for _ in range(3))
    url = first.split()[-1]
    sent = "Stop request was sent"
    assert ask(url, 63) == [{"task_id": 63, "status": sent}]
    assert ask(url, [67, 68]) == [
        {"task_id": 67, "status": sent},
        {"task_id": 68, "error": "Stopping task is unavailable"},
    ]
    running.send_signal(signal.SIGINT)
    result = ended(running)
    assert first.startswith("Control API simulator on http://127.0.0.1:")
    assert "tasks 63 to 67, all Running" in second
    assert "2 requests answered: 0 TaskStatus, 2 TaskStop" in result.out
    assert (result.status, result.err) == (Exit.OK, "")


def test_simulate_many_tasks(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[ControlApiSimulator] = []

    class Simulator(ControlApiSimulator):
        async def start(self) -> None:
            await super().start()
            served.append(self)
            threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()

    monkeypatch.setattr(ctrlapi_async.simulator, "ControlApiSimulator", Simulator)
    key = tmp_path / "key"
    key.write_text(base64.b64encode(b"secret").decode())
    key.chmod(0o600)
    argv = ["--port", "0", "--tasks", "100", "--running", "0.4", "--restarted", "0.1"]
    argv += ["--fail", "1", "--missing", "omitted", "--stop-delay", "1m"]
    argv += ["--project", "7", "--user-id", "3", "--api-key-file", str(key)]
    result = call(None, "simulate", *argv)
    assert result.err == ""
    assert result.status == Exit.OK
    [api] = served
    assert (api.missing, api.login, api.stop_delay) == ("omitted", None, 60)
    assert api.api_key == key.read_text()
    assert api.fault_when is not None
    record: Any = None
    assert api.fault_when(record) == ctrlapi_async.simulator.HttpStatus(503)
    assert sum(task.status == "Running" for task in api.tasks.values()) == 50
    assert "project 7 of user 3: tasks 1 to 100: 9 Scheduled, 9 Explore, 40 Run" in result.out
    assert "0 requests answered: 0 TaskStatus, 0 TaskStop" in result.out


def test_some_requests_fail() -> None:
    record: Any = None
    fails = _failing(0.5, 0)
    assert {fails(record) is None for _ in range(100)} == {True, False}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--auth", "login"), "--auth must be LOGIN:PASSWORD here"),
        (("--auth", "a:b", "--api-key-file", "x"), "two ways to log in: give one of them"),
        (("--port", "65536"), "--port goes to 65535"),
        (("--running", "0.7", "--restarted", "0.4"), "together are more than all tasks"),
        (("--running", "1.1"), "must be a number from 0 to 1, not '1.1'"),
    ],
)
def test_simulations_that_cannot_be(call: Call, argv: tuple[str, ...], words: str) -> None:
    result = call(None, "simulate", *argv)
    assert result.status == Exit.USAGE
    assert words in result.err


def test_a_port_that_is_taken(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = call(None, "simulate", "--port", str(port))
    assert result.status == Exit.NOTHING
    assert result.err.startswith("error: cannot listen: ")
    assert "choose another --port" in result.err
