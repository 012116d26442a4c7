"""Which tasks are meant: words, files, pipes, projects."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async.cli import sources
from ctrlapi_async.cli.exits import Exit, UsageError
from ctrlapi_async.cli.task_reader import JSON_LENGTH, TaskReader
from tests.cli.support import Call, OnTerminal, World, ended, process

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

Piped = Any
"""Writes a text to a FIFO in a thread, and may keep it open; returns the FIFO's path."""
"""Writes pieces to the FIFO in a thread, and may keep it open."""


def tasks_in(text: str, *projects: int, piece: int = 10**9) -> list[tuple[int, int]]:
    """Read a text in pieces and return projects and ids."""
    reader = TaskReader(projects, "ids.txt")
    pieces = [text[first : first + piece] for first in range(0, len(text), piece)]
    spans = [span for each in pieces for span in reader.feed(each)] + [*reader.close()]
    return [(project_id, task_id) for project_id, span in spans for task_id in span]


@pytest.mark.parametrize(
    ("text", "projects", "tasks"),
    [
        ("64 65\t66\n67,68, 69\r\n\r\n", [5], [(5, n) for n in range(64, 70)]),
        ("64 # the big one\n#65\n66#67 68\n# {\n", [5], [(5, 64), (5, 66)]),
        ("64-66 70", [5], [(5, 64), (5, 65), (5, 66), (5, 70)]),
        ("2:64,65", [], [(2, 64), (2, 65)]),
        ("2:64-65 ,66, 67 68", [5], [(2, 64), (2, 65), (2, 66), (2, 67), (5, 68)]),
        ("64,2:65,66,3:67,68 69", [5], [(5, 64), (2, 65), (2, 66), (3, 67), (3, 68), (5, 69)]),
        ("2:64\n65", [5], [(2, 64), (5, 65)]),
        ("2:64,,65", [], [(2, 64), (2, 65)]),
        (",64,", [5], [(5, 64)]),
        ('{"task_id": 64, "project_id": 2}\n {"task_id": 65, "x": []}', [5], [(2, 64), (5, 65)]),
        ("2:64", [5, 6], [(2, 64)]),
        (f"0 {2**63 - 1} {'0' * 30}7", [5], [(5, 0), (5, 2**63 - 1), (5, 7)]),
        (" \n\n", [], []),
    ],
)
def test_texts_that_name_tasks(
    text: str, projects: Sequence[int], tasks: list[tuple[int, int]]
) -> None:
    for piece in range(1, len(text) + 1):
        assert tasks_in(text, *projects, piece=piece) == tasks


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("9" * 40, "is too large: task ids go to 2**63 - 1"),
        ("9" * 5000, "is no task id: "),
        ("2:64,", "no task of project 2 follows the last comma: leave the comma out, or write all"),
        ("12x", "'12x' is no task id: write 64, 100-199 for a range, or 2:64 for project 2"),
        ('{"task_id": 1', "not JSON: "),
        ('{"a":' * 100_000, "not JSON: "),
        ('{"a": "' + "x" * JSON_LENGTH, "a JSON line of more than 1,048,576 characters"),
        ("{}", "`task_id` must be a whole number, 0 or more, not None"),
        ('{"task_id": "1"}', "`task_id` must be a whole number, 0 or more, not '1'"),
        ('{"task_id": true}', "`task_id` must be a whole number, 0 or more, not True"),
        ('{"task_id": 1, "project_id": null}', "`project_id` must be a whole number, 0 or more"),
    ],
)
def test_a_line_that_names_no_task(line: str, words: str) -> None:
    for piece in (1000, 10**9):
        with pytest.raises(UsageError) as caught:
            tasks_in(f"1\n{line}", 2, piece=piece)
        assert str(caught.value).startswith("ids.txt, line 2: ")
        assert words in str(caught.value)
        assert len(str(caught.value)) < 250


def test_one_line_of_millions_of_ids_takes_bounded_memory() -> None:
    reader = TaskReader([2])
    piece = " ".join(map(str, range(1_000_000, 1_008_000))) + " "
    tracemalloc.start()
    count = sum(len(ids) for _ in range(40) for _, ids in reader.feed(piece))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 320_000
    assert peak < 3 * 2**20


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "1-3\n4 # mine\n5\n".encode("utf-8-sig"),
        "1-3\r\n4\r\n5\r\n".encode("utf-16"),
        b"\xfe\xff" + "1-5".encode("utf-16-be"),
        b'{"task_id": 1, "project_id": 2}\n  {"task_id": 2}\n3\n{"task_id":4,"x":[]}\n5',
    ],
)
def test_ids_from_a_file_or_a_pipe(
    call: Call, world: World, tmp_path: Path, piped: Piped, text: bytes
) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(text)
    world.add_task(6)
    for source in (str(path), piped(text), "-"):
        result = call(world, "status", "6", "--from", source, stdin=text)
        assert (result.status, result.err, sorted(result.results)) == (Exit.OK, "", [*range(1, 7)])


def test_several_files(call: Call, worlds: World, tmp_path: Path) -> None:
    first, second, bad = tmp_path / "first", tmp_path / "second", tmp_path / "bad"
    first.write_text("1 2\n3:31,32")
    second.write_text('{"task_id": 41, "project_id": 4}')
    bad.write_text("x")
    argv = ("--from", str(first), "-f", str(second), "--from", "-", "5")
    assert set(call(worlds, "status", *argv, stdin=b"4").results) == {1, 2, 4, 5, 31, 32, 41}
    worlds.reset_counters()
    assert call(worlds, "stop", *argv, "-f", str(bad)).status == Exit.USAGE
    assert worlds.counters.requests == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\n2\nthree\n", "{}, line 3: 'three' is no task id"),
        ("# nothing\n", "no task id in {}"),
        ("0-9999999 1\n", "these are more than 10,000,000 task ids: name fewer at a time"),
        ("2:1\n3:1", "task 1 is asked for in two projects, 2 and 3: name it once"),
    ],
)
def test_a_file_that_cannot_be_used_sends_nothing(
    call: Call, world: World, tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "ids.txt"
    path.write_text(text)
    result = call(world, "stop", "--from", str(path))
    assert (result.status, result.out, world.counters.requests) == (Exit.USAGE, "", 0)
    assert f"error: {words.format(path)}" in result.err


# --- pipes ----------------------------------------------------------------------------------------


def test_a_pipe_is_read_as_it_comes(world: World) -> None:
    running = process(world, "stop", "3", "--from", "-")
    assert running.stdin is not None
    assert running.stdout is not None
    running.stdin.write(b"1\n2")
    running.stdin.flush()
    assert {json.loads(running.stdout.readline())["task_id"] for _ in range(2)} == {1, 3}
    rest = ended(running, b"\n4")
    assert (set(rest.results), rest.status) == ({2, 4}, Exit.OK)


@pytest.fixture
def piped(tmp_path: Path) -> Iterator[Piped]:
    """Write a text to a FIFO, which is kept open until the test ends if that is wanted."""
    path, over = tmp_path / "fifo", threading.Event()
    os.mkfifo(path)

    def write(text: bytes, *, keep_open: bool) -> None:
        with path.open("wb", buffering=0) as opened:
            opened.write(text)
            if keep_open:
                over.wait()

    def begin(text: bytes, *, keep_open: bool = False) -> str:
        pool.submit(write, text, keep_open=keep_open)
        return str(path)

    with ThreadPoolExecutor() as pool:
        yield begin
        over.set()


@pytest.mark.parametrize(
    ("pieces", "tasks"), [([b"\xef", b"\xbb", b"\xbf1 2"], {1, 2}), ([b"\xef"], set())]
)
def test_a_byte_order_mark_in_pieces(
    call: Call, world: World, monkeypatch: Any, pieces: list[bytes], *, tasks: set[int]
) -> None:
    rest = iter(pieces)
    monkeypatch.setattr(sources, "read", lambda *_: next(rest, b""))
    result = call(world, "status", "--from", os.devnull)
    assert set(result.results) == tasks
    assert ("'\ufffd' is no task id" in result.err) is not bool(tasks)


def test_a_pipe_without_end_ends_with_the_time(call: Call, world: World, piped: Piped) -> None:
    path = piped(b"2:1\n2:4\n", keep_open=True)
    result = call(world, "stop", "-f", path, "--timeout", "0.3")
    assert result.status == Exit.INCOMPLETE
    assert result.results == {1: "stop_sent", 4: "not_running"}


def test_a_pipe_of_several_projects_is_read_to_its_end_before_anything_is_sent(
    call: Call, worlds: World, piped: Piped
) -> None:
    result = call(worlds, "stop", "3:31", "--from", piped(b"1\n3:32\n"))
    assert {row["task_id"]: row["project_id"] for row in result.rows} == {1: 2, 31: 3, 32: 3}
    worlds.reset_counters()
    path = piped(b"2:1\n2:4\n", keep_open=True)
    result = call(worlds, "stop", "-f", path, "--timeout", "0.3", "-p", "2", "-p", "3")
    assert (result.status, worlds.counters.requests) == (Exit.NOTHING, 0)
    assert f"all task ids were read from {path}; nothing was sent" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"1\n2\nthree\n4\n", "{}, line 3: 'three' is no task id: "),
        (b'{"task_id": 1, "project_id": 2}\n2:2\n3:31\n', "{}, line 3: task 31 is in project 3, "),
        (b"", "no task id in {}\n"),
    ],
)
def test_a_bad_line_of_a_pipe_loses_nothing_that_came_before(
    call: Call, worlds: World, piped: Piped, *, text: bytes, words: str
) -> None:
    path = piped(text)
    result = call(worlds, "stop", "--from", path)
    assert result.status == Exit.USAGE
    assert result.results == dict.fromkeys((1, 2) if text else (), "stop_sent")
    assert result.err.startswith(f"error: {words.format(path)}")


def test_a_pipe_that_cannot_be_opened(
    call: Call, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    result = call(world, "stop", "--from", os.devnull)
    assert result.status == Exit.USAGE
    assert f"{os.devnull} cannot be read: Permission denied" in result.err


def test_a_terminal_is_told_that_ids_are_waited_for(on_terminal: OnTerminal, world: World) -> None:
    waits = "note: reading task ids from the terminal; Ctrl-D on an empty line ends them"
    result = on_terminal(world, "status", "-", answer=(waits, "1 2\n\x04"))
    assert (result.status, "2 tasks: 2 Running" in result.out) == (Exit.OK, True)
    quiet = on_terminal(world, "status", "--from", "-", "-q", answer=("", "\x04"))
    assert waits not in quiet.out
    assert "error: no task id in standard input" in quiet.out


# --- projects -------------------------------------------------------------------------------------


def test_tasks_of_many_projects_share_requests(worlds: World, call: Call) -> None:
    result = call(worlds, "stop", "1-5", "3:31-33", "4:41", "--chunk-size", "100")
    assert (result.status, result.err) == (Exit.OK, "")
    assert sorted(result.results) == [1, 2, 3, 4, 5, 31, 32, 33, 41]
    assert worlds.counters.requests == 2


@pytest.mark.parametrize(
    ("typed", "printed", "stopped"),
    [
        ("stop 1-5 -o ids", "1 2 3", [1, 2, 3]),
        ("stop 1-5 -o ids --only not_running", "4 5", [1, 2, 3]),
        ("stop 1-5 -o ids --dry-run", "1 2 3", []),
        ("stop 1-5 -o ids -n --only NOT-RUNNING --only not_found", "4 5", []),
        ("stop 5:64", "64→1064=stop_sent", [1064]),
        ("stop 5:64 --no-restarts", "64→1064=not_running", []),
        ("status 5:64", "64→1064=Running", []),
        ("status 5:64 --no-restarts", "64→1064=Stalled", []),
        ("status 1-5 -o ids", "1 2 3 4 5", []),
        ("status 1-5 -o ids --only Completed --only scheduled", "4 5", []),
        ("status --all-active -o ids", "1 2 3 5", []),
        ("status --all-active -o ids --project 4", "41", []),
        # An id is printed with its project if that is not the only one.
        ("status --all-active -o ids --project 4 --project 3", "3:31 3:32 4:41", []),
        ("status 3:31 1 -o ids", "2:1 3:31", []),
        ("status 2:1 3 -o ids", "1 3", []),
        ("status 3:31-33 -p 3 -o ids", "31 32 33", []),
        ("status 2:1 -p 2 -p 3 -o ids", "2:1", []),
    ],
)
def test_which_tasks_are_stopped_and_printed(
    call: Call, worlds: World, typed: str, printed: str, stopped: list[int]
) -> None:
    result = call(worlds, *typed.split())
    assert (result.status, result.err) == (Exit.OK, "")
    words = result.out.split()
    if "ids" not in typed:
        words = [
            f"{n}→{row['restarted_as']}={result.results[n]}"
            for n, row in zip(result.results, result.rows, strict=True)
        ]
    assert sorted(words) == printed.split()
    assert [n for n, task in worlds.tasks.items() if task.stopped] == stopped


@pytest.mark.parametrize("format_", ["ndjson", "ids"])
def test_what_one_run_prints_another_reads(call: Call, worlds: World, format_: str) -> None:
    listed = call(worlds, "status", "1-2", "3:31-32", "-o", format_)
    result = call(worlds, "status", "-", "-p", "2", "-p", "3", stdin=listed.out.encode())
    assert (result.status, set(result.results)) == (Exit.OK, {1, 2, 31, 32})
