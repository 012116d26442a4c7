"""The command line, as a process with real arguments, pipes and terminals, and within this one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import getpass
import io
import json
import os
import re
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
import threading
import tomllib
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

import ctrlapi_async
from ctrlapi_async import StopReport, StopResult, TaskStatus, cli
from ctrlapi_async.cli import (
    UsageError,
    app,
    connect,
    follow,
    ids,
    show,
    simulated,
    thread,
    work,
)
from ctrlapi_async.models import StopOutcome
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ctrlapi_async.session import ControlSession

ROOT = Path(__file__).parent.parent
ESCAPE = "\x1b"


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def results(self) -> dict[int, str]:
        return {row["task_id"]: row["result"] for row in self.rows}


def environment(api: ControlApiSimulator | None, **more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CTRLAPI_", "COV_", "COVERAGE_")) and name != "NO_COLOR"
    }
    server = {} if api is None else {"CTRLAPI_URL": api.url}
    names = {"CTRLAPI_USER_ID": "1", "CTRLAPI_PROJECT_ID": "2", "TERM": "xterm-256color"}
    return {**kept, "PYTHONPATH": str(ROOT), **names, **server, **more}


async def process(
    api: ControlApiSimulator | None, *argv: str, env: dict[str, str] | None = None, **streams: Any
) -> asyncio.subprocess.Process:
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ctrlapi_async", *argv),
        **{**pipes, **streams},
        env=environment(api, **(env or {})),
        cwd="/",
    )


async def ended(running: asyncio.subprocess.Process, stdin: bytes | None = None) -> Result:
    out, err = await running.communicate(stdin)
    assert running.returncode is not None
    return Result(running.returncode, (out or b"").decode(), (err or b"").decode())


async def piped(api: ControlApiSimulator | None, *argv: str, stdin: bytes = b"") -> Result:
    """Run a command with pipes for standard input, output and error."""
    return await ended(await process(api, *argv), stdin)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CTRLAPI_URL", "CTRLAPI_USER_ID", "CTRLAPI_PROJECT_ID", "CTRLAPI_AUTH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Awaitable[Result]]:
    """Carry out a command line in this process, in a thread with a loop of its own."""

    async def run(api: ControlApiSimulator | None, *argv: str) -> Result:
        server = {} if api is None else {"CTRLAPI_URL": api.url}
        names = {"CTRLAPI_USER_ID": "1", "CTRLAPI_PROJECT_ID": "2"}
        for name, value in {**names, **server}.items():
            monkeypatch.setenv(name, value)
        status = await asyncio.to_thread(cli.main, argv)
        printed = capsys.readouterr()
        return Result(status, printed.out, printed.err)

    return run


@pytest.fixture
async def world() -> AsyncIterator[ControlApiSimulator]:
    """Serve six tasks: 1, 2 and 3 run, 4 is completed, 5 scheduled, 6 of an unheard-of status."""
    async with ControlApiSimulator() as api:
        api.add_tasks([1, 2, 3], "Running")
        api.add_task(4, "Completed")
        api.add_task(5, "Scheduled")
        yield api


# --- what it prints -------------------------------------------------------------------------------

STOPPED = {1: "stop_sent", 2: "stop_sent", 3: "stop_sent", 4: "not_running", 5: "not_running"}


async def test_in_a_pipe_each_outcome_is_a_line_of_json(world: ControlApiSimulator) -> None:
    result = await piped(world, "stop", "1-5")
    assert result.status == cli.OK
    assert result.results == STOPPED
    assert list(result.rows[0]) == ["task_id", "project_id", "result", "status", "error"]
    assert result.err == ""
    assert all(world.tasks[task_id].stopped for task_id in (1, 2, 3))


@pytest.mark.parametrize("command", ["stop", "status"])
async def test_ndjson(call: Any, world: ControlApiSimulator, command: str) -> None:
    result = await call(world, command, "1-5", "--format", "ndjson")
    assert result.status == cli.OK
    assert {row["task_id"]: row["status"] for row in result.rows} == {
        **dict.fromkeys((1, 2, 3), "Running"),
        4: "Completed",
        5: "Scheduled",
    }
    assert all(("result" in row) is (command == "stop") for row in result.rows)


async def test_stop_json_is_a_report(call: Any, world: ControlApiSimulator) -> None:
    result = await call(world, "stop", "1-5", "--format", "json")
    report = StopReport.from_json(result.out)
    assert {task_id: str(outcome.result) for task_id, outcome in report.items()} == STOPPED
    assert list(report) == [1, 2, 3, 4, 5]
    assert report.stats.stop_calls == 1


async def test_status_json_changes_nothing(call: Any, world: ControlApiSimulator) -> None:
    result = await call(world, "status", "4-5", "--format", "json")
    row = {"project_id": 2, "error": None}
    assert json.loads(result.out) == {
        "tasks": [
            {"task_id": 4, "status": "Completed", **row},
            {"task_id": 5, "status": "Scheduled", **row},
        ]
    }
    assert world.counters.calls == {"TaskStatus": 1}


@pytest.mark.parametrize(
    ("command", "only", "expected"),
    [
        ("stop", (), "1\n2\n3\n"),
        ("stop", ("--dry-run",), "1\n2\n3\n"),
        ("stop", ("--only", "not_running"), "4\n5\n"),
        ("stop", ("--dry-run", "--only", "not_running", "--only", "not_found"), "4\n5\n"),
        ("status", (), "1\n2\n3\n"),
        ("status", ("--only", "Completed", "--only", "Stalled"), "4\n"),
    ],
)
async def test_ids(
    call: Any, world: ControlApiSimulator, command: str, only: tuple[str, ...], expected: str
) -> None:
    result = await call(world, command, "1-5", "--format", "ids", *only)
    assert sorted(result.out) == sorted(expected)
    assert result.err == ""


def cells(text: str) -> list[list[str]]:
    lines = [line.strip() for line in text.splitlines()]
    return [re.split(r"\s{2,}", line) for line in lines if line and not line.startswith("─")]


async def test_the_table_groups_tasks_and_names_those_that_need_a_person(
    call: Any, world: ControlApiSimulator
) -> None:
    world.missing = "error"
    world.add_tasks(range(1000, 3000), "Running")
    result = await call(world, "stop", "1-5", "1000-2999", "7", "9", "11-13", "--format", "table")
    *rows, footer = cells(result.out)
    assert rows == [
        ["Outcome", "Last status", "Tasks", "Which, and why"],
        ["stop sent", "Running", "2,003"],
        ["not running", "Scheduled", "1"],
        ["not running", "Completed", "1"],
        ["not found", "5", "7, 9, 11-13: Task does not exist"],
    ]
    assert re.fullmatch(
        r"2,010 tasks in \d\.\d\d s, 8 TaskStatus requests and 8 TaskStop requests",
        footer[0],
    )
    assert ESCAPE not in result.out
    assert result.status == cli.REFUSED


async def test_the_table_of_status(call: Any, world: ControlApiSimulator) -> None:
    result = await call(world, "status", "1-6", "--format", "table")
    *rows, _ = cells(result.out)
    assert rows == [
        ["Status", "Tasks", "Which, and why"],
        ["Scheduled", "1"],
        ["Running", "3"],
        ["Completed", "1"],
        ["not found", "1", "6: access denied to tasks [6]"],
    ]


async def test_a_table_of_only_some(call: Any, world: ControlApiSimulator) -> None:
    result = await call(world, "stop", "1-5", "--only", "not_running", "--format", "table")
    *rows, footer = cells(result.out)
    assert [row[:3] for row in rows[1:]] == [
        ["not running", "Scheduled", "1"],
        ["not running", "Completed", "1"],
    ]
    assert footer[0].startswith("5 tasks in ")


def outcome(task_id: int, result: StopResult, status: Any = None, error: Any = None) -> StopOutcome:
    return StopOutcome(task_id, 2, result, status, error)


def drawn(table: Any) -> list[list[str]]:
    return cells(follow.drawn(table))


def test_a_table_stays_short_whatever_the_server_says() -> None:
    many = [outcome(n, StopResult.NOT_RUNNING, f"Strange{n:02}") for n in range(40)]
    report = StopReport.of(many)
    for draw in (show.stop_table, show.status_table):
        rows = drawn(draw(report, lambda _: True))
        assert len(rows) == show.ROWS + 2
        assert rows[-1] == ["others", f"{40 - show.ROWS}"]
    talkative = [outcome(n, StopResult.UNAVAILABLE, None, f"{n} " + "x" * 500) for n in range(40)]
    who = show._who(talkative)
    assert len(who) < 250
    assert who.startswith("0-39: 0 xxx")
    assert who.endswith("… (and 39 other reasons)")
    assert show._who([outcome(1, StopResult.NOT_SENT)]) == "1"


def read(line: str, *projects: int) -> list[tuple[int, int]]:
    spans = ids.Reader(projects).line(line)
    return [(project_id, task_id) for project_id, span in spans for task_id in span]


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 60))))
def test_compressed_ids_can_be_read_back(tasks: set[tuple[int, int]]) -> None:
    assert read(show.compressed(tasks, apart=True, limit=10**6)) == sorted(tasks)
    one = {(2, task_id) for _, task_id in tasks}
    assert read(show.compressed(one, limit=10**6), 2) == sorted(one)


@pytest.mark.parametrize("apart", [False, True])
def test_compressed_ids_are_bounded(apart: bool) -> None:
    text = show.compressed(((2, task_id) for task_id in range(0, 10_000, 2)), apart=apart)
    assert text.startswith("2:" * apart + "0, 2, 4, ")
    assert text.endswith(" more")
    assert len(text) < show.IDS + 30


# --- on a terminal --------------------------------------------------------------------------------


async def on_terminal(
    api: ControlApiSimulator | None,
    *argv: str,
    keep: tuple[str, ...] = (),
    started: list[asyncio.subprocess.Process] | None = None,
    **env: str,
) -> Result:
    """Run a command on a pseudo-terminal, but for the streams in `keep`, which are pipes.

    `started` takes in the process; what the terminal showed stands in the result's `err`.
    """
    ours, theirs = os.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        streams = {name: theirs for name in ("stdin", "stdout", "stderr") if name not in keep}
        running = await process(api, *argv, env=env, **streams)
    finally:
        os.close(theirs)
    if started is not None:
        started.append(running)
    seen: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as terminal:  # noqa: PTH123
            while piece := terminal.read(65536):
                seen.append(piece)

    reading = asyncio.create_task(asyncio.to_thread(read))
    result = await ended(running)
    await reading
    return result._replace(err=b"".join(seen).decode())


async def test_on_a_terminal_a_bar_and_then_a_table() -> None:
    async with ControlApiSimulator(latency=0.05) as api:
        counts = api.mixed_tasks(2000)
        result = await on_terminal(api, "stop", "1-2000")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", result.err)
    assert result.status == cli.OK
    assert "Stopping" in text
    assert "100%" in text
    assert re.search(r"[\d,]+/s", text)
    assert re.search(r"\d:\d\d:\d\d left", text)
    final = "checked 2,000 · running 1,000 · stop sent 1,000 · failed 0 · no answer 0"
    assert final in text
    bar, _, table = text.rpartition(final)
    assert bar.count("checked") > 2
    assert ["not running", "Stalled", f"{counts['Stalled']}"] in cells(table)
    assert f"{ESCAPE}[32m" in result.err  # green


async def test_no_colour_is_honoured(world: ControlApiSimulator) -> None:
    result = await on_terminal(world, "stop", "1-5", NO_COLOR="1")
    assert "stop sent" in result.err
    assert not re.search(r"\x1b\[[0-9;]*3\d", result.err)


async def test_the_bar_is_on_standard_error_when_only_that_is_a_terminal(
    world: ControlApiSimulator,
) -> None:
    result = await on_terminal(world, "stop", "1-5", keep=("stdout",))
    assert result.results == STOPPED
    assert "checked 5" in result.err


async def test_lines_and_a_bar_do_not_run_through_each_other(world: ControlApiSimulator) -> None:
    result = await on_terminal(world, "stop", "1-5", "--format", "ids")
    assert sorted(result.err.split()) == ["1", "2", "3"]


async def test_the_bar_says_what_it_waits_for(
    call: Any, world: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "at_terminal", lambda stream: stream is sys.stderr)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("FORCE_COLOR", "1")
    world.add_task(7, "Running")
    world.stop_delay = 1
    world.tick = 0.4
    result = await call(world, "stop", "7", "--confirm", "60", "--format", "json")
    assert json.loads(result.out)["outcomes"][0]["status"] == "Canceled"
    assert "Confirming" in result.err


# --- pipes ----------------------------------------------------------------------------------------


async def test_a_closed_pipe_is_no_traceback_and_the_stops_go_on() -> None:
    async with ControlApiSimulator() as api:
        api.add_tasks(range(1000), "Running")
        reading, writing = os.pipe()
        running = await process(api, "stop", "0-999", stdout=writing)
        os.close(writing)
        os.close(reading)
        result = await ended(running)
        assert all(task.stopped for task in api.tasks.values())
    assert (result.status, result.err) == (cli.OK, "")


async def test_a_reader_who_waits_holds_up_no_request() -> None:
    async with ControlApiSimulator() as api:
        api.add_tasks(range(5000), "Running")
        reading, writing = os.pipe()
        running = await process(api, "stop", "0-4999", stdout=writing)
        os.close(writing)
        # Not a byte is read before every stop is sent, and a pipe holds 64 KiB.
        await api.wait_until(lambda: api.counters.ids["TaskStop"] == 5000)
        with os.fdopen(reading, "rb") as pipe:
            lines = await asyncio.to_thread(pipe.readlines)
        result = await ended(running)
    assert sorted(json.loads(line)["task_id"] for line in lines) == list(range(5000))
    assert (result.status, result.err) == (cli.OK, "")


async def test_a_full_disk_is_told(world: ControlApiSimulator) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    running = await process(world, "stop", "1-5", stdout=full)
    os.close(full)
    result = await ended(running)
    assert result.status == cli.REFUSED
    assert result.err == "error: standard output cannot be written: No space left on device\n"
    assert world.tasks[3].stopped


async def test_help_into_a_closed_pipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    running = await process(None, "--help", stdout=writing)
    os.close(writing)
    assert (await ended(running)).err == ""


async def test_output_waits_for_a_reader_who_is_far_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thread, "BACKLOG", 2)
    loop = asyncio.get_running_loop()
    full = asyncio.Event()

    def waits_for_room(*args: Any, wait: Any = select.select) -> Any:
        loop.call_soon_threadsafe(full.set)
        return wait(*args)

    monkeypatch.setattr(select, "select", waits_for_room)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        out = thread.Stdout()
        await out.room()
        size = 100_000
        out.put("x" * size)
        await full.wait()  # that does not fit into the pipe
        out.put("y" * size)
        out.put("z")
        waiting = asyncio.create_task(out.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await asyncio.to_thread(pipe.read, 2 * size) == b"x" * size + b"y" * size
        await waiting
        assert await asyncio.to_thread(pipe.read, 1) == b"z"
    assert out.error is None


async def test_what_is_put_after_the_pipe_was_closed_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        out = thread.Stdout()
        out.put("x")
        await out.drain()
        assert isinstance(out.error, BrokenPipeError)
        out.put("y")
        await out.drain()


def test_without_standard_output_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    thread.write("x")
    monkeypatch.setattr(sys, "stderr", None)
    cli.complain("x")
    assert not follow.at_terminal(None)


async def test_a_thread_that_blocks_is_left_behind() -> None:
    reading, writing = os.pipe()
    loop = asyncio.get_running_loop()
    mishaps: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, mishap: mishaps.append(mishap))
    begun: asyncio.Future[threading.Thread] = loop.create_future()

    def read() -> bytes:
        loop.call_soon_threadsafe(begun.set_result, threading.current_thread())
        return os.read(reading, 1)

    blocked = asyncio.create_task(thread.in_thread(read))
    left = await begun
    blocked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await blocked
    assert left.is_alive()
    os.write(writing, b"a")
    await asyncio.to_thread(left.join)  # what it read comes too late, and harms nobody
    os.write(writing, b"b")
    assert await thread.in_thread(os.read, reading, 1) == b"b"
    assert mishaps == []
    os.close(reading)
    os.close(writing)
    with pytest.raises(OSError, match="Bad file"):
        await thread.in_thread(os.read, reading, 1)


# --- which tasks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"1 2\t3\n4,5",
        b"1,2, 3\r\n\r\n4-5\r\n",
        b"\xef\xbb\xbf1-3\n4\n5\n",
        b'{"task_id": 1, "project_id": 2}\n  {"task_id": 2}\n3\n{"task_id":4,"x":[]}\n5',
    ],
)
async def test_ids_from_a_file(
    call: Any, world: ControlApiSimulator, tmp_path: Path, text: bytes
) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(text)
    result = await call(world, "stop", "--from", str(path), "--format", "ndjson")
    assert (result.status, result.err) == (cli.OK, "")
    assert result.results == STOPPED


async def test_ids_from_standard_input(world: ControlApiSimulator, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"1,2 3-5")
    file = os.open(path, os.O_RDONLY)
    running = await process(world, "status", "--from", "-", stdin=file)
    os.close(file)
    result = await ended(running)
    assert {row["task_id"] for row in result.rows} == set(STOPPED)


async def test_a_pipe_is_read_as_it_comes(world: ControlApiSimulator) -> None:
    running = await process(world, "stop", "3", "--from", "-")
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write(b"1\n2")
    seen = {json.loads(await running.stdout.readline())["task_id"] for _ in range(2)}
    assert seen == {1, 3}
    rest = await ended(running, b"\n4")
    assert set(rest.results) == {2, 4}
    assert rest.status == cli.OK


async def test_what_one_run_prints_another_reads(call: Any, world: ControlApiSimulator) -> None:
    listed = await call(world, "status", "1-5", "--format", "ndjson", "--only", "Running")
    result = await piped(world, "stop", "--from", "-", stdin=listed.out.encode())
    assert set(result.results) == {1, 2, 3}


async def test_all_active(call: Any, world: ControlApiSimulator) -> None:
    result = await call(world, "stop", "--all-active", "--format", "ndjson")
    assert result.results == {1: "stop_sent", 2: "stop_sent", 3: "stop_sent", 5: "not_running"}


async def test_an_empty_file_is_nothing_to_do(call: Any, world: ControlApiSimulator) -> None:
    result = await call(world, "stop", "--from", os.devnull, "--format", "table")
    assert result.status == cli.OK
    assert "0 tasks in 0.00 s, no request" in result.out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("abc", "'abc' is no task id: give 64, 100-199 for a range, or 2:64 for project 2"),
        *((word, f"{word!r} is no task id: ") for word in ("1-", "-1", "1-2-3", "²", "1.5")),
        *((word, f"{word!r} is no task id: ") for word in (":", "2:", ":64", "2:x", "x:64")),
        *((word, f"{word!r} is no task id: ") for word in ("2:3:64", "2:1-2:3", "-2:64")),
        ("2:9-5", "'2:9-5' runs backwards: give 5-9"),
        ("9223372036854775808:1", "is too large: project ids go to 2**63 - 1"),
        ("2:9223372036854775808", "is too large: task ids go to 2**63 - 1"),
        ("2:64,", "no task of project 2 follows the last comma: leave it out, or write all of"),
        ("9-5", "'9-5' runs backwards: give 5-9"),
        ("9223372036854775808", "is too large: task ids go to 2**63 - 1"),
        ("9" * 5000, "is too large: task ids go to 2**63 - 1"),
        ('{"task_id": 1', "not JSON: "),
        ('{"a":' * 100_000, "not JSON: "),
        ("{}", "`task_id` must be an integer, 0 or more, not None"),
        ('{"task_id": "1"}', "`task_id` must be an integer, 0 or more, not '1'"),
        ('{"task_id": true}', "`task_id` must be an integer, 0 or more, not True"),
        ('{"task_id": -1}', "`task_id` must be an integer, 0 or more, not -1"),
        ('{"task_id": 1, "project_id": "2"}', "`project_id` must be an integer, 0 or more, not"),
        ('{"task_id": 1, "project_id": null}', "`project_id` must be an integer, 0 or more, not"),
        ('{"task_id": 1, "project_id": false}', "`project_id` must be an integer, 0 or more, not"),
    ],
)
def test_a_line_that_names_no_task(line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(ids.Reader([2]).lines([b"1", line.encode()], "ids.txt"))
    message = str(caught.value)
    assert message.startswith("ids.txt, line 2: ")
    assert words in message
    assert len(message) < 250


async def test_a_bad_line_of_a_file_sends_nothing(
    call: Any, world: ControlApiSimulator, tmp_path: Path
) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("1\n2\nthree\n")
    result = await call(world, "stop", "--from", str(path))
    assert result.status == cli.USAGE
    assert "ids.txt, line 3: 'three' is no task id" in result.err
    assert world.counters.requests == 0


async def test_a_bad_line_of_a_pipe_loses_nothing_that_came_before(
    world: ControlApiSimulator,
) -> None:
    result = await piped(world, "stop", "--from", "-", stdin=b"1\n2\nthree\n4\n")
    assert result.status == cli.USAGE
    assert result.results == {1: "stop_sent", 2: "stop_sent"}
    assert result.err == (
        "error: standard input, line 3: 'three' is no task id: "
        "give 64, 100-199 for a range, or 2:64 for project 2\n"
    )


async def test_a_stream_of_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    pieces = iter([b"1 2\n3", b"4\n5", b""])
    monkeypatch.setattr(os, "read", lambda *_: next(pieces))
    pipe = os.fstat(reading)
    monkeypatch.setattr(os, "fstat", lambda _: pipe)
    streamed = ids.named(["7-8", "2:9"], "-", [2])
    assert isinstance(streamed, tuple)
    project_id, stream = streamed
    assert project_id == 2
    assert [task_id async for task_id in stream] == [7, 8, 9, 1, 2, 34, 5]
    os.close(reading)
    os.close(writing)


async def test_a_pipe_in_this_process(
    call: Any, world: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, writing = os.pipe()
    pieces = iter([b"1 2\n", b""])
    pipe = os.fstat(reading)
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", lambda *_: next(pieces))
        patch.setattr(os, "fstat", lambda _: pipe)
        result = await call(world, "stop", "2:3", "--from", "-", "--format", "ids")
    assert (result.status, result.err) == (cli.OK, "")
    assert sorted(result.out.split()) == ["1", "2", "3"]
    os.close(reading)
    os.close(writing)


def test_a_pipe_of_one_project_keeps_to_it() -> None:
    reader = ids.Reader([2], alone=True)
    assert list(reader.line("1 2:3")) == [(2, range(1, 2)), (2, range(3, 4))]
    with pytest.raises(UsageError, match="give --project 2 --project 3, and it is read to its end"):
        list(reader.line("4 3:5"))


def test_standard_input_that_is_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"1 2")
    monkeypatch.setattr(os, "fstat", lambda _: path.stat())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"1 2")))
    listed = ids.named(["3"], "-", [2])
    assert isinstance(listed, dict)
    assert {project_id: [*task_ids] for project_id, task_ids in listed.items()} == {2: [3, 1, 2]}


# --- many projects --------------------------------------------------------------------------------


@pytest.fixture
async def worlds(world: ControlApiSimulator) -> ControlApiSimulator:
    """Add project 3 to the world: 31 and 32 run, 33 is completed; and project 4: 41 runs."""
    world.add_tasks([31, 32], "Running", project_id=3)
    world.add_task(33, "Completed", project_id=3)
    world.add_task(41, "Running", project_id=4)
    return world


def whose(result: Result) -> dict[int, tuple[int, ...]]:
    """Give the tasks that were told of, by project."""
    tasks: dict[int, set[int]] = {}
    for row in result.rows:
        tasks.setdefault(row["project_id"], set()).add(row["task_id"])
    return {project_id: tuple(sorted(some)) for project_id, some in sorted(tasks.items())}


@pytest.mark.parametrize(
    ("line", "projects", "tasks"),
    [
        ("2:64,65", (), [(2, 64), (2, 65)]),
        ("2:64-66", (), [(2, 64), (2, 65), (2, 66)]),
        ("2:64 ,65, 66 67", (5,), [(2, 64), (2, 65), (2, 66), (5, 67)]),
        ("64,2:65,66,3:67,68 69", (5,), [(5, 64), (2, 65), (2, 66), (3, 67), (3, 68), (5, 69)]),
        (",64,", (5,), [(5, 64)]),
        ("2:64,,65", (), [(2, 64), (2, 65)]),
        ('{"task_id": 64, "project_id": 2}', (5,), [(2, 64)]),
        ('{"task_id": 64, "project_id": 2}', (5, 6), [(2, 64)]),
        ('{"task_id": 64}', (5,), [(5, 64)]),
        ("2:64", (5, 6), [(2, 64)]),
        ("", (), []),
    ],
)
def test_tasks_are_written_with_their_project(
    line: str, projects: tuple[int, ...], tasks: list[tuple[int, int]]
) -> None:
    assert read(line, *projects) == tasks


async def test_tasks_of_many_projects_share_requests(worlds: ControlApiSimulator) -> None:
    result = await piped(worlds, "stop", "1-5", "3:31-33", "4:41", "--chunk-size", "100")
    assert (result.status, result.err) == (cli.OK, "")
    assert whose(result) == {2: (1, 2, 3, 4, 5), 3: (31, 32, 33), 4: (41,)}
    assert {task for task, word in result.results.items() if word == "stop_sent"} == {
        *(1, 2, 3, 31, 32, 41)
    }
    assert worlds.counters.requests == 2


async def test_no_project_is_needed_where_each_task_has_one(
    call: Any,
    worlds: ControlApiSimulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = await call(worlds, "status", "3:31,33", "4:41", "--format", "ndjson")
    assert whose(result) == {3: (31, 33), 4: (41,)}
    monkeypatch.delenv("CTRLAPI_PROJECT_ID")
    argv = ("status", "3:31, 33", "4:41", "--format", "ids")
    assert await asyncio.to_thread(cli.main, argv) == cli.OK
    assert sorted(capsys.readouterr().out.split()) == ["3:31", "4:41"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("3:31", "1"), "2:1\n3:31\n"),
        (("2:1", "3"), "1\n3\n"),
        (("3:31-33", "--project", "3"), "31\n32\n"),
        (("2:1", "--project", "2", "--project", "3"), "2:1\n"),
        (("--all-active", "--project", "4", "--project", "3"), "3:31\n3:32\n4:41\n"),
    ],
)
async def test_ids_are_printed_with_a_project_that_is_not_the_one(
    call: Any, worlds: ControlApiSimulator, argv: tuple[str, ...], expected: str
) -> None:
    result = await call(worlds, "status", *argv, "--format", "ids")
    assert (result.status, result.err) == (cli.OK, "")
    assert sorted(result.out.splitlines()) == expected.split()


async def test_all_active_of_each_project(call: Any, worlds: ControlApiSimulator) -> None:
    projects = ("--project", "2", "--project", "3", "--project", "2")
    result = await call(worlds, "stop", "--all-active", *projects, "--format", "ndjson")
    assert (result.status, result.err) == (cli.OK, "")
    assert whose(result) == {2: (1, 2, 3, 5), 3: (31, 32)}
    assert not worlds.tasks[41].stopped
    assert worlds.counters.requests == 2 + 1


async def test_projects_from_the_environment(worlds: ControlApiSimulator) -> None:
    argv = ("status", "--all-active")
    two = await ended(await process(worlds, *argv, env={"CTRLAPI_PROJECT_ID": "3 4"}))
    assert whose(two) == {3: (31, 32), 4: (41,)}
    other = await ended(
        await process(worlds, *argv, "--project", "4", env={"CTRLAPI_PROJECT_ID": "3"})
    )
    assert whose(other) == {4: (41,)}


async def test_a_table_of_many_projects_names_them(call: Any, worlds: ControlApiSimulator) -> None:
    worlds.missing = "error"
    argv = ("1-5", "7,8", "3:31,35-37,39", "--format", "table")
    for command, word in (("status", "not found"), ("stop", "not found")):
        result = await call(worlds, command, *argv)
        assert result.status == cli.REFUSED
        [row] = [row for row in cells(result.out) if row[0] == word]
        assert row == [word, "6", "2:7-8 3:35-37, 39: Task does not exist"]


async def test_a_project_that_is_not_there_ends_its_own_tasks_only(
    worlds: ControlApiSimulator,
) -> None:
    result = await piped(worlds, "stop", "1", "9:91,92", "3:31")
    assert result.status == cli.INCOMPLETE
    assert result.results == {1: "stop_sent", 31: "stop_sent", 91: "not_sent", 92: "not_sent"}
    assert result.err == (
        "error: TaskStatus: project 9 does not exist; check --project\n"
        "error: 2 of 4 tasks without an answer: name these again\n"
    )


async def test_an_interrupt_while_many_projects_are_stopped(worlds: ControlApiSimulator) -> None:
    with worlds.hold("TaskStop", effect=True):
        running = await process(worlds, "stop", "1-5", "3:31-33")
        await worlds.wait_for_requests(1, "TaskStop")
        running.send_signal(signal.SIGINT)
        result = await ended(running)
    assert result.status == cli.INTERRUPTED
    assert whose(result) == {2: (1, 2, 3, 4, 5), 3: (31, 32, 33)}
    assert result.err == "error: interrupted, 5 of 8 tasks without an answer\n"


async def test_a_task_in_two_projects_sends_nothing(
    worlds: ControlApiSimulator, tmp_path: Path
) -> None:
    path = tmp_path / "ids.txt"
    path.write_text('{"task_id": 1, "project_id": 3}\n')
    result = await piped(worlds, "stop", "1-5", "--from", str(path))
    assert (result.status, result.out) == (cli.USAGE, "")
    assert result.err == ("error: task 1 is asked for in two projects, 2 and 3: name it once\n")
    assert worlds.counters.requests == 0


async def test_a_file_names_tasks_of_many_projects(
    call: Any, worlds: ControlApiSimulator, tmp_path: Path
) -> None:
    path = tmp_path / "ids.txt"
    path.write_text('1, 2\n3:31,\t32 4\n{"task_id": 41, "project_id": 4}\n{"task_id": 5}\n')
    result = await call(worlds, "stop", "--from", str(path), "--format", "ndjson")
    assert (result.status, result.err) == (cli.OK, "")
    assert whose(result) == {2: (1, 2, 4, 5), 3: (31, 32), 4: (41,)}
    path.write_text("3:31\n32\n")
    several = await call(worlds, "stop", "--from", str(path), "--project", "2", "--project", "3")
    assert several.status == cli.USAGE
    assert several.err == (
        f"error: {path}, line 2: task 32 may be of any of the 2 projects of --project: "
        "write 2:32, say\n"
    )


async def test_what_a_run_prints_of_many_projects_another_reads(
    worlds: ControlApiSimulator,
) -> None:
    projects = ("--project", "2", "--project", "3")
    for format_ in ("ndjson", "ids"):
        listed = await piped(worlds, "status", "1-2", "3:31-32", "--format", format_)
        result = await piped(worlds, "status", "--from", "-", *projects, stdin=listed.out.encode())
        assert (result.status, result.err) == (cli.OK, "")
        assert whose(result) == {2: (1, 2), 3: (31, 32)}


async def test_a_pipe_is_read_to_its_end_unless_all_is_of_one_project(
    worlds: ControlApiSimulator,
) -> None:
    result = await piped(worlds, "stop", "3:31", "--from", "-", stdin=b"1\n3:32\nx\n")
    assert result.status == cli.USAGE
    assert "standard input, line 3: 'x' is no task id" in result.err
    assert worlds.counters.requests == 0
    result = await piped(worlds, "stop", "3:31", "--from", "-", stdin=b"1\n3:32\n")
    assert whose(result) == {2: (1,), 3: (31, 32)}


async def test_a_pipe_without_a_project_is_refused_at_its_first_line(
    worlds: ControlApiSimulator,
) -> None:
    several = ("--project", "2", "--project", "3")
    running = await process(worlds, "stop", *several, "--from", "-")
    assert running.stdin is not None
    assert running.stderr is not None
    running.stdin.write(b"64\n")  # and more may follow
    told = await running.stderr.readline()
    assert await running.wait() == cli.USAGE
    assert told.startswith(b"error: standard input, line 1: task 64 may be of any of the 2 project")
    running.stdin.close()
    assert worlds.counters.requests == 0


async def test_a_pipe_that_is_read_as_it_comes_cannot_change_to_another_project(
    worlds: ControlApiSimulator,
) -> None:
    lines = b'{"task_id": 1, "project_id": 2}\n2:2\n3:31\n3\n'
    result = await piped(worlds, "stop", "--from", "-", stdin=lines)
    assert result.status == cli.USAGE
    assert result.results == {1: "stop_sent", 2: "stop_sent"}
    assert result.err == (
        "error: standard input, line 3: task 31 is of project 3, and a pipe is read as it comes "
        "for one project, 2: give --project 2 --project 3, and it is read to its end first\n"
    )
    assert not worlds.tasks[31].stopped


async def test_one_bar_for_many_projects(worlds: ControlApiSimulator) -> None:
    result = await on_terminal(worlds, "stop", "1-5", "3:31-33")
    assert result.status == cli.OK
    assert "checked 8 · running 5 · stop sent 5 · failed 0 · no answer 0" in result.err


# --- exit statuses and errors ---------------------------------------------------------------------


async def test_refused_tasks_exit_1(world: ControlApiSimulator) -> None:
    result = await piped(world, "stop", "1", "99")
    assert (result.status, result.err) == (cli.REFUSED, "")
    assert result.results == {1: "stop_sent", 99: "not_found"}


async def test_tasks_without_an_answer_exit_3(call: Any, world: ControlApiSimulator) -> None:
    world.fault(HttpStatus(400), method="TaskStatus", number=2)
    result = await call(
        world, "stop", "1-4", "--chunk-size", "2", "--concurrency", "1", "--format", "ndjson"
    )
    assert result.status == cli.INCOMPLETE
    assert set(result.results) == {1, 2, 3, 4}
    *_, summary = result.err.splitlines()
    assert re.fullmatch(r"error: \d of 4 tasks without an answer: name these again", summary)


async def test_a_deadline_exits_3_with_what_is_known(call: Any, world: ControlApiSimulator) -> None:
    with world.hold("TaskStop"):
        result = await call(world, "stop", "1-5", "--timeout", "0.2", "--format", "ndjson")
    assert result.status == cli.INCOMPLETE
    assert result.results == {
        **dict.fromkeys((1, 2, 3), "unconfirmed"),
        **dict.fromkeys((4, 5), "not_running"),
    }
    assert "the run's 0.2 s were over; give it more time" in result.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--project", "9"), "TaskStatus: project 9 does not exist; check --project"),
        (("--user-id", "5"), "TaskStatus: user 5 is unavailable; check --user-id"),
        (("--url", "http://127.0.0.1:1", "--retries", "0"), "check --url, and whether"),
    ],
)
async def test_nothing_could_be_done_exits_4(
    call: Any, world: ControlApiSimulator, argv: tuple[str, ...], words: str
) -> None:
    result = await call(world, "stop", "1-5", "--format", "table", *argv)
    assert result.status == cli.NOTHING
    assert words in result.err
    assert result.err.count("\n") == 1
    assert cells(result.out)[1][:2] == ["not sent", "5"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (HttpStatus(401), "(`auth`), or does not take those given; check CTRLAPI_AUTH or --auth"),
        (HttpStatus(403), "enable it on the server"),
        (HttpStatus(404), "there is no Control API at this address; check --url"),
        (HttpStatus(302, headers={"Location": "/x"}), "redirects to /x"),
        (HttpStatus(502), "HTTP 502 Bad Gateway"),
        (HttpStatus(502), "; try again later"),
        (HttpStatus(200), "; check that --url is that of a Control API"),
    ],
)
async def test_what_a_proxy_answers_is_one_sentence(
    call: Any, world: ControlApiSimulator, fault: HttpStatus, words: str
) -> None:
    world.fault(fault)
    result = await call(world, "status", "1-5", "--retries", "0")
    assert result.status == cli.NOTHING
    assert words in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


async def test_an_unknown_method(call: Any) -> None:
    async with ControlApiSimulator(methods=["TaskStop"]) as api:
        api.add_task(1)
        result = await call(api, "stop", "1")
    assert result.status == cli.NOTHING
    assert "Undefined method 'TaskStatus'; check that --url" in result.err


async def test_a_server_that_refuses_the_star(call: Any, world: ControlApiSimulator) -> None:
    world.refuse_all_active = True
    result = await call(world, "stop", "--all-active")
    assert result.status == cli.NOTHING
    assert "TaskStatus: task_ids must be an integer or an array of integers\n" in result.err


def test_no_more_than_a_few_causes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    report = StopReport.of([outcome(1, StopResult.NOT_SENT)])
    errors = [ctrlapi_async.RequestError(f"fault {number}") for number in range(9)]
    ending = follow.Ending(report, ctrlapi_async.StopIncompleteError("", errors * 2, report))
    follow.explain(ending, app.Talk())
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == follow.CAUSES + 1
    assert lines[-1] == "error: and 4 other errors"
    assert follow.exit_status(ending) == cli.NOTHING


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("sotp",), 'Unknown command "sotp". Did you mean "stop"?'),
        (("stop", "1", "--nope"), "Unknown option: "),
        (("stop", "1", "--format", "xml"), 'Invalid value "xml" for --format'),
        (("stop", "1", "--chunk-size", "0"), 'Invalid value "0" for --chunk-size. Must be >= 1.'),
        (("stop", "1", "--timeout", "-1"), "for --timeout. Must be >= 0."),
        (("stop", "1", "--timeout", "inf"), "timeout must be a finite number of seconds"),
        (("stop", "1", "--user-id", "x"), "Invalid value for --user-id"),
        (("stop",), "no task is named: give ids (64 65 100-199), --from or --all-active"),
        (("stop", "x"), "'x' is no task id: give 64, 100-199 for a range, or 2:64 for project 2"),
        (("stop", "1", "--project", "-1"), "for --project. Must be >= 0."),
        (("stop", "1", "--project", "2,3"), "Invalid value for --project"),
        (("stop", "3:1", "--all-active"), "--all-active means every task: leave out ids and"),
        (("stop", "2:1", "3:2,1"), "task 1 is asked for in two projects, 2 and 3: name it once"),
        (("status", "1-5", "3:4-9"), "task 4 is asked for in two projects, 2 and 3: name it once"),
        (("stop", "--project", str(2**63), "1"), "must be from 0 to 2**63 - 1"),
        (
            ("stop", "7", "--project", "2", "--project", "3"),
            "task 7 may be of any of the 2 projects of --project: write 2:7, say",
        ),
        (("stop", "0-9223372036854775807"), "these are more than 10,000,000 ids"),
        (("stop", "1", "--all-active"), "--all-active means every task: leave out ids and --from"),
        (("stop", "--from", "/nowhere"), "/nowhere cannot be read: No such file or directory"),
        (("stop", "1", "--dry-run", "--wait-pending", "9"), "leave out --wait-pending"),
        (("stop", "1", "--url", "nowhere"), "base_url must be an HTTP URL"),
        (("stop", "1", "--ca-file", "/nowhere"), "--ca-file /nowhere cannot be used: No such"),
        (("stop", "1", "--ca-file", __file__), "cannot be used: it holds no certificate"),
        (("stop", "1", "--ca-file", "x", "--insecure"), "leave out one of them"),
        (("simulate", "--auth", "login"), "--auth must be LOGIN:PASSWORD here"),
    ],
)
async def test_usage_exits_2_before_any_request(
    call: Any, world: ControlApiSimulator, argv: tuple[str, ...], words: str
) -> None:
    result = await call(world, *argv)
    assert result.status == cli.USAGE
    assert result.out == ""
    assert result.err.startswith("error: ")
    assert words in result.err
    assert result.err.count("\n") == 1
    assert world.counters.requests == 0


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("CTRLAPI_URL", "the server is not given: use --url, or set CTRLAPI_URL"),
        ("CTRLAPI_USER_ID", "the user is not given: use --user-id, or set CTRLAPI_USER_ID"),
        ("CTRLAPI_PROJECT_ID", "the project is not given: use --project, or set CTRLAPI_PROJ"),
    ],
)
def test_what_is_not_given_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    words: str,
) -> None:
    for name in {"CTRLAPI_URL", "CTRLAPI_USER_ID", "CTRLAPI_PROJECT_ID"} - {variable}:
        monkeypatch.setenv(name, "http://127.0.0.1:1" if name == "CTRLAPI_URL" else "1")
    assert cli.main(["stop", "1"]) == cli.USAGE
    assert words in capsys.readouterr().err
    if variable == "CTRLAPI_PROJECT_ID":
        assert cli.main(["stop", "--all-active"]) == cli.USAGE
        assert words in capsys.readouterr().err


async def test_debug_shows_where_an_error_comes_from(call: Any, world: ControlApiSimulator) -> None:
    plain = await call(world, "stop", "1", "--project", "9")
    debugged = await call(world, "stop", "1", "--project", "9", "--debug")
    assert "Traceback" not in plain.err
    assert "Traceback" in debugged.err
    assert "ProjectNotFoundError" in debugged.err
    assert debugged.status == plain.status == cli.NOTHING


async def test_verbose_tells_of_each_request(call: Any, world: ControlApiSimulator) -> None:
    result = await call(world, "stop", "1-5", "-v")
    assert re.search(r"debug: TaskStatus of 5 tasks: 200 after [\d.]+ ms\n", result.err)
    assert re.search(r"debug: TaskStop of 3 tasks: 200 after [\d.]+ ms\n", result.err)
    assert (await call(world, "stop", "1-5")).err == ""


async def test_a_fault_of_the_program_is_one_line(
    call: Any, world: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> int:
        raise ZeroDivisionError("1 / 0")

    monkeypatch.setattr(work, "stop", broken)
    result = await call(world, "stop", "1")
    assert result.status == cli.INCOMPLETE
    assert result.err == "error: ZeroDivisionError: 1 / 0; --debug shows where, please report it\n"
    with pytest.raises(ZeroDivisionError):
        await call(world, "stop", "1", "--debug")


# --- interrupts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupt_prints_what_is_known(
    world: ControlApiSimulator, number: signal.Signals
) -> None:
    with world.hold("TaskStop", effect=True):
        running = await process(world, "stop", "1-5")
        await world.wait_for_requests(1, "TaskStop")
        running.send_signal(number)
        result = await ended(running)
    assert result.status == cli.INTERRUPTED
    assert result.results == {
        **dict.fromkeys((1, 2, 3), "unconfirmed"),
        **dict.fromkeys((4, 5), "not_running"),
    }
    assert result.err == "error: interrupted, 3 of 5 tasks without an answer\n"


async def test_an_interrupt_on_a_terminal_ends_with_the_table(world: ControlApiSimulator) -> None:
    started: list[asyncio.subprocess.Process] = []
    with world.hold("TaskStop"):
        running = asyncio.create_task(
            on_terminal(world, "stop", "1-5", "--confirm", "30", started=started)
        )
        await world.wait_for_requests(1, "TaskStop")
        [child] = started
        child.send_signal(signal.SIGINT)
        result = await running
    assert result.status == cli.INTERRUPTED
    assert "unconfirmed" in result.err
    assert "error: interrupted, 3 of 5 tasks without an answer" in result.err
    assert "Traceback" not in result.err


async def test_an_interrupt_while_a_pipe_has_nothing_to_read(world: ControlApiSimulator) -> None:
    running = await process(world, "stop", "4", "--from", "-")
    assert running.stdout is not None
    line = await running.stdout.readline()
    running.send_signal(signal.SIGINT)
    status = await running.wait()
    assert json.loads(line)["result"] == "not_running"
    assert status == cli.INTERRUPTED


@pytest.mark.parametrize("format_", ["ndjson", "json"])
async def test_a_run_that_is_cancelled_keeps_what_is_known(
    world: ControlApiSimulator, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    session = connect.session_of(world.url, 1, app.Course())

    def begin(session: ControlSession) -> Any:
        return session.stopping(2, range(1, 6))

    view = follow.View(format=format_, doing="Stopping")
    with world.hold("TaskStop"):
        following = asyncio.create_task(follow.follow(session, begin, view, sized=True))
        await world.wait_for_requests(1, "TaskStop")
        following.cancel()
        ending = await following
    follow.explain(ending, app.Talk())
    assert ending.interrupted
    assert ending.report.counts[StopResult.NOT_RUNNING] == 2
    assert ending.report.counts[StopResult.UNCONFIRMED] == 3
    assert follow.exit_status(ending) == cli.INTERRUPTED
    printed = capsys.readouterr()
    assert printed.out.count('"task_id"') == 5
    assert printed.err == "error: interrupted, 3 of 5 tasks without an answer\n"


async def test_a_source_that_breaks_is_a_matter_of_usage(
    world: ControlApiSimulator, capsys: pytest.CaptureFixture[str]
) -> None:
    async def source() -> AsyncIterator[int]:
        yield 1
        raise UsageError("line 2: no task id")

    session = connect.session_of(world.url, 1, app.Course())
    view = follow.View(format="ids", doing="Stopping")
    ending = await follow.follow(
        session, lambda session: session.stopping(2, source()), view, sized=False
    )
    follow.explain(ending, app.Talk())
    assert follow.exit_status(ending) == cli.USAGE
    assert capsys.readouterr() == ("1\n", "error: line 2: no task id\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_an_interrupt_outside_of_a_run(
    error: type[BaseException], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> int:
        async def wait() -> int:
            raise error

        return follow.in_loop(wait())

    monkeypatch.setattr(work, "status", interrupted)
    assert cli.main(["status", "1"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"


# --- the connection -------------------------------------------------------------------------------


async def test_retries(call: Any, world: ControlApiSimulator) -> None:
    world.fault(HttpStatus(503, headers={"Retry-After": "0"}), number=1)
    result = await call(world, "stop", "1-5", "--retries", "1", "--format", "table")
    assert result.status == cli.OK
    assert "2 TaskStatus requests and 1 TaskStop request, 1 of them repeated" in result.out


async def test_wait_pending(call: Any, world: ControlApiSimulator) -> None:
    world.tick = 1
    world.add_task(7, "Scheduled", life=[(1, "Running")])
    result = await call(world, "stop", "7", "--wait-pending", "60", "--format", "ndjson")
    assert result.results == {7: "stop_sent"}


async def test_credentials_from_the_environment(
    call: Any, world: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.login = ("joe", "s3cret:pw")
    monkeypatch.setenv("CTRLAPI_AUTH", "joe:s3cret:pw")
    assert (await call(world, "status", "1")).status == cli.OK
    monkeypatch.setenv("CTRLAPI_AUTH", "joe:wrong")
    result = await call(world, "status", "1", "--debug")
    assert result.status == cli.NOTHING
    assert "wrong" not in result.err + result.out


async def test_a_password_is_asked_for(
    call: Any, world: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = []

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return "s3cret"

    world.login = ("joe", "s3cret")
    monkeypatch.setattr(getpass, "getpass", ask)
    assert (await call(world, "status", "1", "--auth", "joe")).status == cli.OK
    assert prompts == ["Password of joe: "]


@pytest.mark.parametrize("error", [getpass.GetPassWarning, EOFError, OSError(errno.ENXIO, "")])
async def test_without_a_terminal_no_password_is_asked_for(
    call: Any, world: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def ask(_: str) -> str:
        raise error

    monkeypatch.setattr(getpass, "getpass", ask)
    result = await call(world, "status", "1", "--auth", "joe")
    assert result.status == cli.USAGE
    assert "set CTRLAPI_AUTH=LOGIN:PASSWORD" in result.err


async def test_tls(call: Any, tmp_path: Path) -> None:
    ca = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with ControlApiSimulator(ssl_context=context) as api:
        api.add_task(1)
        refused = await call(api, "status", "1")
        named = await call(api, "status", "1", "--ca-file", str(tmp_path / "ca.pem"))
        insecure = await call(api, "status", "1", "--insecure")
    assert refused.status == cli.NOTHING
    assert "was refused" in refused.err
    assert "name its CA with --ca-file, or do without with --insecure" in refused.err
    assert (named.status, named.err) == (cli.OK, "")
    assert insecure.status == cli.OK
    assert insecure.err == "warning: the server's certificate is not verified (--insecure)\n"


# --- demo and simulate ----------------------------------------------------------------------------


async def test_demo() -> None:
    result = await piped(None, "demo", "--latency", "0")
    assert (result.status, result.err) == (cli.OK, "")
    rows = dict(cells(result.out))
    requests = int(rows.pop("requests made"))
    float(rows.pop("seconds"))
    assert rows == {
        "asked": "10,010",
        "stop sent": "5,000",
        "not running, Scheduled": "834",
        "not running, Explore": "834",
        "not running, Completed": "833",
        "not running, Rejected": "833",
        "not running, Canceled": "833",
        "not running, Stalled": "833",
        "not found": "10",
        "with one request a task": "10,010",
    }
    assert 17 + 8 <= requests < 40


async def test_a_demo_in_another_world(call: Any) -> None:
    result = await call(
        None, "demo", "--tasks", "70", "--running", "0", "--absent", "0", "--chunk-size", "10", "-v"
    )
    rows = dict(cells(result.out))
    assert result.status == cli.OK
    assert rows["asked"] == "70"
    assert rows["requests made"] == "7"
    assert "stop sent" not in rows
    assert result.err.count("debug: TaskStatus of 10 tasks") == 7


async def test_an_interrupted_demo_ends_cleanly() -> None:
    running = await process(None, "demo", "-v", "--chunk-size", "10", "--concurrency", "1")
    assert running.stderr is not None
    assert await running.stderr.readline()
    running.send_signal(signal.SIGINT)
    result = await ended(running)
    assert result.status == cli.INTERRUPTED
    assert dict(cells(result.out))["asked"] == "10,010"
    assert "Traceback" not in result.err
    assert re.search(r"error: interrupted, [\d,]+ of 10,010 tasks without an answer\n", result.err)


async def test_simulate_serves_the_documented_examples() -> None:
    running = await process(None, "simulate", "--port", "0")
    assert running.stdout is not None
    first = (await running.stdout.readline()).decode()
    url = first.split()[-1]
    answers = []
    async with aiohttp.ClientSession() as http:
        for task_ids in (63, [64, 65], [66, 67, 68]):
            params = {"project_id": 2, "task_ids": task_ids}
            request = {"user_id": 1, "methods": [{"method": "TaskStop", "params": params}]}
            async with http.post(url, json=request) as response:
                answers.append((await response.json())["reply"][0]["result"])
    running.send_signal(signal.SIGINT)
    result = await ended(running)
    sent = "Stop request was sent"
    assert answers == [
        [{"task_id": 63, "status": sent}],
        [{"task_id": 64, "status": sent}, {"task_id": 65, "status": sent}],
        [
            {"task_id": 66, "status": sent},
            {"task_id": 67, "status": sent},
            {"task_id": 68, "error": "Stopping task is unavailable"},
        ],
    ]
    assert first.startswith("Control API simulator on http://127.0.0.1:")
    assert "tasks 63 to 67, all Running" in result.out
    assert "3 requests answered: 0 TaskStatus, 3 TaskStop" in result.out
    assert (result.status, result.err) == (cli.OK, "")


async def test_simulate_many_tasks(capsys: pytest.CaptureFixture[str], call: Any) -> None:
    made: list[ControlApiSimulator] = []
    begun = asyncio.Event()
    here = asyncio.get_running_loop()
    there: list[tuple[asyncio.AbstractEventLoop, Any]] = []

    class Simulator(ControlApiSimulator):
        async def start(self) -> None:
            await super().start()
            made.append(self)
            there.append((asyncio.get_running_loop(), asyncio.current_task()))
            here.call_soon_threadsafe(begun.set)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated, "ControlApiSimulator", Simulator)
        argv = ["simulate", "--port", "0", "--tasks", "100", "--running", "0.4", "--fail", "1"]
        argv += ["--missing", "omitted", "--auth", "joe:pw", "--project", "7", "--user-id", "3"]
        serving = asyncio.create_task(asyncio.to_thread(cli.main, argv))
        await begun.wait()
    [api] = made
    status = await call(
        api, "status", "1", "--auth", "joe:pw", "--retries", "0", "--project", "7", "--user-id", "3"
    )
    loop, task = there[0]
    loop.call_soon_threadsafe(task.cancel)
    assert await serving == cli.OK
    assert status.status == cli.NOTHING
    assert "HTTP 503" in status.err
    assert api.missing == "omitted"
    assert sum(task.status == "Running" for task in api.tasks.values()) == 40
    printed = status.out + capsys.readouterr().out
    assert "project 7 of user 3: tasks 1 to 100: 10 Scheduled, 10 Explore, 40 Running" in printed
    assert "1 request answered: 1 TaskStatus, 0 TaskStop" in printed


async def test_simulate_fails_at_times(call: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = await call(None, "simulate", "--port", str(port))
    assert result.status == cli.NOTHING
    assert f"cannot listen on 127.0.0.1:{port}: " in result.err
    assert "give another --port" in result.err


# --- help, completion, imports --------------------------------------------------------------------


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(None),
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_waits_for_nothing_heavy() -> None:
    shown = python(
        "import sys\n"
        "from ctrlapi_async.cli import main\n"
        "main(['--help']); main(['stop', '--help'])\n"
        "heavy = {'aiohttp', 'asyncio', 'cattrs', 'msgspec', 'stamina', 'rich.progress'}\n"
        "print(*heavy & set(sys.modules), file=sys.stderr)"
    )
    assert shown.stderr.strip() == ""
    assert "stop those" in shown.stdout.lower()
    assert "--wait-pending" in shown.stdout
    for variable in ("CTRLAPI_URL", "CTRLAPI_USER_ID", "CTRLAPI_PROJECT_ID", "CTRLAPI_AUTH"):
        assert variable in shown.stdout


def test_the_package_hands_its_names_on_when_asked() -> None:
    homes = {name: home for home, names in ctrlapi_async._HOMES.items() for name in names}  # type: ignore[attr-defined]
    assert sorted(homes) == ctrlapi_async.__all__
    assert set(ctrlapi_async.__all__) <= set(dir(ctrlapi_async))
    for name, home in homes.items():
        module = import_module(f"ctrlapi_async.{home}")
        assert getattr(ctrlapi_async, name) is getattr(module, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        ctrlapi_async.nothing  # type: ignore[attr-defined]  # noqa: B018
    star = python("from ctrlapi_async import *; print(ControlSession.__module__)")
    assert star.stdout == "ctrlapi_async.session\n"


@pytest.mark.parametrize("missing", ["cyclopts", "rich"])
def test_without_the_extra_one_line_says_which(missing: str) -> None:
    result = python(
        f"import sys; sys.modules['{missing}'] = None\n"
        "sys.argv[1:] = ['stop', '1']\n"
        "import runpy; runpy.run_module('ctrlapi_async', run_name='__main__')"
    )
    assert result.returncode == cli.USAGE
    assert result.stdout == ""
    assert result.stderr == (
        f"error: the command line needs {missing}, of the extra `cli`: "
        "pip install 'ctrlapi-async[cli]'\n"
    )


def test_what_else_is_missing_is_no_matter_of_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "ctrlapi_async.cli.app")
    monkeypatch.setitem(sys.modules, "cyclopts", None)
    assert cli.main(["stop"]) == cli.USAGE
    assert "pip install 'ctrlapi-async[cli]'" in capsys.readouterr().err

    def broken(arguments: list[str]) -> int:
        raise ModuleNotFoundError(str(arguments), name="aiohttp.client")

    monkeypatch.setitem(sys.modules, "ctrlapi_async.cli.app", SimpleNamespace(run=broken))
    with pytest.raises(ModuleNotFoundError):
        cli.main(["stop"])


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: Any) -> None:
    script = app.app.generate_completion(prog_name="ctrlapi-async", shell=shell)
    assert "wait-pending" in script
    assert "simulate" in script


def test_the_words_of_the_options_are_those_of_the_library() -> None:
    assert app.Result.__args__ == tuple(map(str, StopResult))  # type: ignore[attr-defined]
    assert app.Status.__args__ == tuple(map(str, TaskStatus))  # type: ignore[attr-defined]


def test_python_m() -> None:
    assert import_module("ctrlapi_async.__main__").main is cli.main
    ended = subprocess.run(
        [sys.executable, "-m", "ctrlapi_async", "stop", "x"],
        env={**os.environ, "CTRLAPI_PROJECT_ID": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == cli.USAGE
    assert "'x' is no task id" in ended.stderr


def test_a_reader_of_the_help_who_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: list[str]) -> int:
        raise BrokenPipeError

    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(app, "run", gone)
        assert cli.main(["--help"]) == cli.OK
        stdout.write("into nothing")


def test_what_could_not_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    report = StopReport.of([outcome(1, StopResult.STOP_SENT)])
    full = follow.Ending(report, unwritten=OSError(errno.ENOSPC, "No space left on device"))
    closed = follow.Ending(report, unwritten=BrokenPipeError())
    for ending in (full, closed):
        follow.explain(ending, app.Talk())
    assert [follow.exit_status(ending) for ending in (full, closed)] == [cli.REFUSED, cli.OK]
    assert capsys.readouterr().err == (
        "error: standard output cannot be written: No space left on device\n"
    )


def test_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: "1.2.3")
    assert cli.main(["--version"]) == cli.OK
    assert capsys.readouterr().out == "1.2.3\n"

    def unknown(name: str) -> str:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.PackageNotFoundError", ModuleNotFoundError)
    monkeypatch.setattr("importlib.metadata.version", unknown)
    assert cli.main(["--version"]) == cli.OK
    assert capsys.readouterr().out == "not installed\n"


def test_the_entry_points() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ctrlapi-async": "ctrlapi_async.cli:main"}
    assert project["entry-points"]["pytest11"] == {"ctrlapi_async": "ctrlapi_async.pytest_plugin"}
