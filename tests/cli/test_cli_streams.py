"""Standard streams that misbehave, and signals: the run goes on, and what is known is told."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import select
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import StopReport, cli
from ctrlapi_async.cli import streams
from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.options import MessageOptions
from ctrlapi_async.cli.process import Process, run_command
from ctrlapi_async.cli.streams import Output, in_thread, is_terminal, write
from tests.cli.support import (
    PATIENCE,
    Call,
    OnTerminal,
    Pseudoterminal,
    Result,
    World,
    ended,
    process,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MANY = 2000
NO_REPORT = "error: the report could not be written to standard output: "


@pytest.fixture
def crowd() -> Iterator[World]:
    """Serve many running tasks."""
    with World() as api:
        api.add_tasks(range(MANY), "Running")
        yield api


def all_stopped(api: World) -> bool:
    return bool(api.counters.ids["TaskStop"] == len(api.tasks))


def bash(api: World, line: str) -> Result:
    """Carry out a line of bash, in which `stop` is the command."""
    function = f'stop() {{ "{sys.executable}" -m ctrlapi_async stop "$@"; }}; {line}'
    exec_bash = "import os, sys; os.execvp('bash', ['bash', '-c', sys.argv[1]])"
    return ended(start(api, "-c", exec_bash, f"{function}; exit ${{PIPESTATUS[0]}}"))


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("stop 0-1999 >&-", Exit.UNWRITTEN, f"{NO_REPORT}it is closed\n"),
        ("stop 0-1999 >/dev/full", Exit.UNWRITTEN, f"{NO_REPORT}No space left on device\n"),
        ("stop 0-1999 | head -n1 >/dev/null", Exit.UNWRITTEN, f"{NO_REPORT}Broken pipe\n"),
        ("stop 0-1999 -o json | true", Exit.UNWRITTEN, f"{NO_REPORT}Broken pipe\n"),
        ("stop 0-1999 >&- 2>&-", Exit.UNWRITTEN, ""),
        ("stop 0-1999 -v 2>/dev/full >/dev/null", Exit.OK, ""),
        ("stop 0-1999 -v 2>&1 >/dev/null | head -n1 >/dev/null", Exit.OK, ""),
        ("stop - <&-", Exit.USAGE, "error: standard input cannot be read: it is closed\n"),
    ],
)
def test_streams_that_are_closed_or_full_or_not_read(
    crowd: World, line: str, status: Exit, said: str
) -> None:
    result = bash(crowd, line)
    assert (result.status, result.err) == (status, said)
    assert all_stopped(crowd) is (status != Exit.USAGE)


def test_nohup_is_honoured(world: World) -> None:
    with world.hold("TaskStop") as gate:
        ignoring = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        code = "import sys; from ctrlapi_async.cli import main; sys.exit(main())"
        running = start(world, "-c", ignoring + code, "stop", "1-5")
        world.wait_until_sync(lambda: gate.held == 1)
        running.send_signal(signal.SIGHUP)
        gate.release()
        assert ended(running).status == Exit.OK


def test_a_reader_who_waits_holds_up_no_request(crowd: World) -> None:
    running = process(crowd, "stop", "0-1999", "-v")
    # Not a byte is read of either stream before every stop is sent; a pipe holds 64 KiB.
    crowd.wait_until_sync(lambda: all_stopped(crowd))
    result = ended(running)
    assert (result.status, sorted(result.results)) == (Exit.OK, list(range(MANY)))


def test_a_terminal_that_is_closed_keeps_the_report(world: World, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    with Pseudoterminal() as terminal, world.hold("TaskStop", effect=True) as gate:
        terminal.streams[1].close()
        terminal.streams[1] = path.open("w")
        running = terminal.start(world, "stop", "1-5", "-o", "json")
        world.wait_until_sync(lambda: gate.held == 1)
        terminal.hang_up()
        assert running.wait(PATIENCE) == Exit.HANGUP
    assert len(StopReport.from_json(path.read_text())) == 5


def test_ctrl_c_at_the_question_stops_nothing(world: World) -> None:
    with Pseudoterminal(120) as terminal:
        running = terminal.start(world, "stop", "--all-active")
        assert terminal.wait_for("Stop 3 running tasks of project 2")
        terminal.type("\x03")
        assert running.wait(PATIENCE) == Exit.INTERRUPTED
        assert terminal.wait_for("error: interrupted")
    assert world.counters.calls == {"TaskStatus": 1}


# --- in this process ------------------------------------------------------------------------------


def interrupted(world: World, method: str, run: Callable[..., Result], *argv: str) -> Result:
    """Run a command, and send this process a signal as soon as a request waits at the server."""
    number, *command = argv

    def interrupt() -> None:
        world.wait_until_sync(lambda: gate.held == 1)
        os.kill(os.getpid(), signal.Signals[number])

    with world.hold(method) as gate:
        person = threading.Thread(target=interrupt)
        person.start()
        result = run(world, *command)
        person.join()
    return result


@pytest.mark.parametrize("format_", ["ndjson", "json"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_run_keeps_what_is_known(
    call: Call, world: World, format_: str, name: str
) -> None:
    result = interrupted(world, "TaskStop", call, name, "stop", "1-5", "-o", format_)
    assert result.status == (Exit.HANGUP if name == "SIGHUP" else Exit.INTERRUPTED)
    assert result.out.count('"task_id"') == 5
    assert result.err == "error: interrupted; 3 of 5 tasks without an answer\n"


def test_an_interrupt_before_the_question(on_terminal: OnTerminal, world: World) -> None:
    result = interrupted(world, "TaskStatus", on_terminal, "SIGINT", "stop", "--all-active")
    assert result.status == Exit.INTERRUPTED
    assert result.out.splitlines()[-1] == "error: interrupted"


def test_a_second_interrupt_ends_at_once() -> None:
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


def test_without_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    async def command(_: Process) -> int:
        raise asyncio.CancelledError

    monkeypatch.delattr(signal, "SIGHUP")
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(run_command(MessageOptions(), command)))
    thread.start()
    thread.join()
    assert found == [Exit.INTERRUPTED]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt, Exit.INTERRUPTED, "error: interrupted\n"),
        (BrokenPipeError, Exit.OK, ""),
        (SystemExit, Exit.OK, ""),
    ],
)
def test_what_ends_a_command_from_outside(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Any, status: Exit, said: str
) -> None:
    def gone(_: list[str]) -> int:
        raise error

    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr("ctrlapi_async.cli.app.run", gone)
        assert cli.main(["--help"]) == status
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
    assert capsys.readouterr().err == said


def test_streams_that_are_closed_in_this_process(
    call: Call, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = io.TextIOWrapper(io.BytesIO())
    closed.close()
    for stream in (None, closed):
        assert not is_terminal(stream)
        with pytest.raises(OSError, match="it is closed") as caught:
            write(stream, "x")
        assert caught.value.errno == errno.EBADF
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stream)
            with pytest.raises(OSError, match="it is closed"):
                streams.stdin_number()
            patch.setattr(sys, "stderr", stream)
            streams.complain("x")
    for argv in (("stop", "1"), ("config",)):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", None)
            result = call(world, *argv)
        assert result.status == Exit.UNWRITTEN
        assert "could not be written to standard output: it is closed\n" in result.err


def test_a_non_blocking_pipe_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write_each_id_when_the_one_before_is_stopped() -> None:
        for task_id in (1, 2, 3):
            os.write(writing, f"{task_id}\n".encode())
            world.wait_for_requests_sync(task_id, "TaskStop")
        os.close(writing)

    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    writer = threading.Thread(target=write_each_id_when_the_one_before_is_stopped)
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        writer.start()
        argv = ("--url", world.url, "--user-id", "1", "--project", "2", "-o", "ids")
        assert cli.main(["stop", "-", *argv]) == Exit.OK
    writer.join()
    assert capsys.readouterr().out.split() == ["1", "2", "3"]


async def test_output_waits_for_a_reader_who_is_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BACKLOG", 2)
    loop = asyncio.get_running_loop()
    full = asyncio.Event()

    def waits_for_room(*args: Any, wait: Any = select.select) -> Any:
        loop.call_soon_threadsafe(full.set)
        return wait(*args)

    monkeypatch.setattr(select, "select", waits_for_room)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    size = 100_000
    with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "w") as stdout:
        out, err = Output(stdout), Output(stdout, may_drop=True)
        await out.room()
        out.put("x" * size)
        await full.wait()  # that does not fit into the pipe
        out.put("y" * size)
        out.put("z")
        waiting = asyncio.create_task(out.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        assert await asyncio.to_thread(pipe.read, 2 * size) == b"x" * size + b"y" * size
        await waiting
        for word in "abc":
            err.put(word)
        await err.drain()
        assert await asyncio.to_thread(pipe.read, 3) == b"zab"
    assert out.error is None


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


def test_a_system_without_threads(
    call: Call, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert call(world, "status", "1").results == {1: "Running"}


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
