"""Standard streams that misbehave, and signals: the run goes on, and what is known is told."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import select
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from cli_support import PATIENCE, Pseudoterminal, ended, environment, process

from ctrlapi_async import StopReport, cli
from ctrlapi_async.cli import streams
from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.options import MessageOptions
from ctrlapi_async.cli.process import Process, run_command
from ctrlapi_async.cli.streams import Output, in_thread, is_terminal, write
from ctrlapi_async.simulator import ControlApiSimulator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Call, OnTerminal

MANY = 2000


@pytest.fixture
def crowd() -> Iterator[ControlApiSimulator]:
    """Serve many running tasks."""
    with ControlApiSimulator() as api:
        api.add_tasks(range(MANY), "Running")
        yield api


def all_stopped(api: ControlApiSimulator) -> bool:
    return api.counters.ids["TaskStop"] == len(api.tasks)


def shell(api: ControlApiSimulator, line: str) -> subprocess.CompletedProcess[str]:
    """Carry out a line of bash in which `stop` stops all tasks of a crowd."""
    return subprocess.run(
        [
            "bash",
            "-c",
            f'stop() {{ "{sys.executable}" -m ctrlapi_async stop 0-1999 "$@"; }}; {line}',
        ],
        env=environment(api),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=3 * PATIENCE,
    )


@pytest.mark.parametrize(
    ("redirection", "status", "said"),
    [
        (">&-", Exit.UNWRITTEN, "to standard output: it is closed\n"),
        (">/dev/full", Exit.UNWRITTEN, "to standard output: No space left on device\n"),
        ("2>&- >/dev/null", Exit.OK, ""),
        ("-v 2>/dev/full >/dev/null", Exit.OK, ""),
        (">&- 2>&-", Exit.UNWRITTEN, ""),
    ],
)
def test_streams_that_are_closed_or_full(
    crowd: ControlApiSimulator, redirection: str, status: Exit, said: str
) -> None:
    result = shell(crowd, f"stop {redirection}")
    assert result.returncode == status
    assert result.stderr == bool(said) * f"error: the report could not be written {said}"
    assert all_stopped(crowd)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("stop -v 2>&1 >/dev/null | head -n1", Exit.OK),
        ("stop | head -n1", Exit.UNWRITTEN),
        ("stop -o json | true", Exit.UNWRITTEN),
    ],
)
def test_readers_who_have_gone(crowd: ControlApiSimulator, line: str, status: Exit) -> None:
    result = shell(crowd, f"{line}; exit ${{PIPESTATUS[0]}}")
    assert result.returncode == status
    assert "Traceback" not in result.stderr
    assert all_stopped(crowd)


def test_a_reader_who_waits_holds_up_no_request(crowd: ControlApiSimulator) -> None:
    running = process(crowd, "stop", "0-1999", "-v")
    # Not a byte is read of either stream before every stop is sent; a pipe holds 64 KiB.
    crowd.wait_until_sync(lambda: all_stopped(crowd))
    result = ended(running)
    assert sorted(result.results) == list(range(MANY))
    assert result.status == Exit.OK


def test_standard_input_that_was_made_non_blocking(world: ControlApiSimulator) -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    running = process(world, "stop", "-", "-o", "ids", stdin=reading)
    os.close(reading)
    assert running.stdout is not None
    for task_id in (b"1\n", b"2\n", b"3\n"):
        os.write(writing, task_id)
        assert running.stdout.readline() == task_id
    os.close(writing)
    assert ended(running).status == Exit.OK


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_prints_what_is_known(
    world: ControlApiSimulator, number: signal.Signals
) -> None:
    with world.hold("TaskStop", effect=True) as gate:
        running = process(world, "stop", "1-5")
        world.wait_until_sync(lambda: gate.held == 1)
        running.send_signal(number)
        result = ended(running)
    assert result.status == Exit.INTERRUPTED
    assert result.results[4] == "not_running"
    assert result.err == "error: interrupted; 3 of 5 tasks without an answer\n"


def test_a_terminal_that_is_closed_keeps_the_report(
    world: ControlApiSimulator, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    with Pseudoterminal() as terminal, world.hold("TaskStop", effect=True) as gate:
        terminal.streams[1].close()
        terminal.streams[1] = path.open("w")
        running = terminal.start(world, "stop", "1-5", "-o", "json")
        world.wait_until_sync(lambda: gate.held == 1)
        terminal.release()
        terminal.hang_up()
        assert running.wait(PATIENCE) == Exit.HANGUP
    assert len(StopReport.from_json(path.read_text())) == 5


def test_ctrl_c_at_the_question_stops_nothing(world: ControlApiSimulator) -> None:
    with Pseudoterminal(120) as terminal:
        running = terminal.start(world, "stop", "--all-active")
        assert terminal.wait_for("Stop 3 running tasks of project 2")
        terminal.type("\x03")
        assert running.wait(PATIENCE) == Exit.INTERRUPTED
        assert terminal.wait_for("error: interrupted")
    assert world.counters.calls == {"TaskStatus": 1}


def test_nohup_is_honoured(world: ControlApiSimulator) -> None:
    with world.hold("TaskStop") as gate:
        running = subprocess.Popen(
            ["bash", "-c", f'trap "" HUP; exec "{sys.executable}" -m ctrlapi_async stop 1-5'],
            env=environment(world),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        world.wait_until_sync(lambda: gate.held == 1)
        running.send_signal(signal.SIGHUP)
        gate.release()
        assert ended(running).status == Exit.OK


# --- in this process ------------------------------------------------------------------------------


def interrupted_run(world: ControlApiSimulator, call: Callable[[], Any]) -> Any:
    """Interrupt this process as soon as a stop waits at the server."""

    def interrupt() -> None:
        world.wait_until_sync(lambda: gate.held == 1)
        os.kill(os.getpid(), signal.SIGINT)

    with world.hold("TaskStop") as gate:
        person = threading.Thread(target=interrupt)
        person.start()
        result = call()
        person.join()
    return result


@pytest.mark.parametrize("format_", ["ndjson", "json"])
def test_an_interrupted_run_keeps_what_is_known(
    call: Call, world: ControlApiSimulator, format_: str
) -> None:
    result = interrupted_run(world, lambda: call(world, "stop", "1-5", "-o", format_))
    assert result.status == Exit.INTERRUPTED
    assert result.out.count('"task_id"') == 5
    assert result.err == "error: interrupted; 3 of 5 tasks without an answer\n"


def test_an_interrupt_while_tasks_are_checked_asks_nothing(
    on_terminal: OnTerminal, world: ControlApiSimulator
) -> None:
    def interrupt() -> None:
        world.wait_until_sync(lambda: gate.held == 1)
        os.kill(os.getpid(), signal.SIGINT)

    with world.hold("TaskStatus") as gate:
        person = threading.Thread(target=interrupt)
        person.start()
        result = on_terminal(world, "stop", "--all-active")
        person.join()
    assert result.status == Exit.INTERRUPTED
    assert result.out.splitlines()[-1] == "error: interrupted"


def test_a_second_interrupt_ends_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    async def stubborn(_: Process) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(PATIENCE)
        except asyncio.CancelledError:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(PATIENCE)
        return Exit.OK

    with pytest.raises(KeyboardInterrupt):
        run_command(MessageOptions(), stubborn)
    assert capsys.readouterr().err == "error: interrupted\n"


def test_without_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    async def command(_: Process) -> int:
        raise asyncio.CancelledError

    monkeypatch.delattr(signal, "SIGHUP")
    statuses: list[int] = []
    thread = threading.Thread(
        target=lambda: statuses.append(run_command(MessageOptions(), command))
    )
    thread.start()
    thread.join()
    assert statuses == [Exit.INTERRUPTED]


def test_an_interrupt_outside_of_a_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("ctrlapi_async.cli.app.run", interrupted)
    assert cli.main(["stop", "1"]) == Exit.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"


async def test_output_waits_for_a_reader_who_is_far_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "BACKLOG", 2)
    loop = asyncio.get_running_loop()
    full = asyncio.Event()

    def waits_for_room(*args: Any, wait: Any = select.select) -> Any:
        loop.call_soon_threadsafe(full.set)
        return wait(*args)

    monkeypatch.setattr(select, "select", waits_for_room)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "w") as stdout:
        out = Output(stdout)
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


async def test_messages_are_dropped_when_their_reader_is_far_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "BACKLOG", 2)
    file = io.StringIO()
    file.fileno = lambda: (_ for _ in ()).throw(io.UnsupportedOperation)  # type: ignore[method-assign]
    err = Output(file, may_drop=True)
    for word in "abc":
        err.put(word)
    await err.drain()
    assert file.getvalue() == "ab"


async def test_what_is_put_after_the_pipe_was_closed_is_dropped() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        out = Output(stdout)
        out.put("x")
        await out.drain()
        assert isinstance(out.error, BrokenPipeError)
        out.put("y")
        await out.drain()


def test_streams_that_are_closed_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    for stream in (None, closed):
        assert not is_terminal(stream)
        with pytest.raises(OSError, match="it is closed") as caught:
            write(stream, "x")
        assert caught.value.errno == errno.EBADF
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(OSError, match="it is closed"):
            streams.stdin_number()
        monkeypatch.setattr(sys, "stderr", stream)
        streams.complain("x")


def test_reading_waits_for_what_a_non_blocking_pipe_brings() -> None:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    writer = threading.Timer(0.05, os.write, (writing, b"x"))
    writer.start()
    assert streams.read(reading, 10) == b"x"
    writer.join()
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("error", [BrokenPipeError, SystemExit])
def test_a_reader_of_help_who_has_gone(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def gone(_: list[str]) -> int:
        raise error

    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr("ctrlapi_async.cli.app.run", gone)
        assert cli.main(["--help"]) == Exit.OK
        stdout.write("goes nowhere")


@pytest.mark.parametrize("command", ["stop", "config"])
def test_standard_output_that_is_closed(
    call: Call, world: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    result = call(world, *([command, "1"] if command == "stop" else [command]))
    assert result.status == Exit.UNWRITTEN
    assert "could not be written to standard output: it is closed\n" in result.err


async def test_a_thread_that_blocks_is_left_behind() -> None:
    reading, writing = os.pipe()
    loop = asyncio.get_running_loop()
    mishaps: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, mishap: mishaps.append(mishap))
    begun: asyncio.Future[threading.Thread] = loop.create_future()

    def read() -> bytes:
        loop.call_soon_threadsafe(begun.set_result, threading.current_thread())
        return os.read(reading, 1)

    blocked = asyncio.create_task(in_thread(read))
    left = await begun
    blocked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await blocked
    assert left.is_alive()
    os.write(writing, b"a")
    await asyncio.to_thread(left.join)  # what it read comes too late, and harms nobody
    os.write(writing, b"b")
    assert await in_thread(os.read, reading, 1) == b"b"
    assert mishaps == []
    os.close(reading)
    os.close(writing)
    with pytest.raises(OSError, match="Bad file"):
        await in_thread(os.read, reading, 1)


def test_help_for_a_reader_who_has_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    running = process(None, "stop", "--help", stdout=writing)
    os.close(writing)
    result = ended(running)
    assert (result.status, result.err) == (Exit.OK, "")


def test_no_standard_input(world: ControlApiSimulator) -> None:
    line = f'"{sys.executable}" -m ctrlapi_async stop - <&-'
    result = subprocess.run(
        ["bash", "-c", line],
        env=environment(world),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == Exit.USAGE
    assert result.stderr == "error: standard input cannot be read: it is closed\n"
