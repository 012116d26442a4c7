"""Which tasks are meant: words, files, pipes, projects."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async.cli import sources
from ctrlapi_async.cli.exits import Exit, UsageError
from ctrlapi_async.cli.task_reader import JSON_LENGTH, TaskReader
from tests.cli.support import Call, OnTerminal, World, ended, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Writing = Any
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
    for piece in (1, 2, 3, 7, 10**9):
        assert tasks_in(text, *projects, piece=piece) == tasks


@given(
    st.lists(st.tuples(st.integers(0, 2**63 - 1), st.sampled_from([" ", "\n", ", ", "\t#x\n"]))),
    st.integers(1, 50),
)
def test_pieces_of_any_size_bring_the_same_tasks(words: list[tuple[int, str]], piece: int) -> None:
    text = "".join(f"{number}{separator}" for number, separator in words)
    assert tasks_in(text, 2, piece=piece) == [(2, number) for number, _ in words]


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
def test_ids_from_a_file(call: Call, world: World, tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(text)
    result = call(world, "status", "--from", str(path))
    assert (result.status, result.err, set(result.results)) == (Exit.OK, "", {1, 2, 3, 4, 5})
    assert set(call(world, "status", "-", stdin=text).results) == {1, 2, 3, 4, 5}


def test_several_files(call: Call, worlds: World, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1 2\n3:31,32")
    second.write_text('{"task_id": 41, "project_id": 4}')
    argv = ("--from", str(first), "-f", str(second), "--from", "-", "5")
    assert set(call(worlds, "status", *argv, stdin=b"4").results) == {1, 2, 4, 5, 31, 32, 41}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("-f {}/bad -f {}/good", "{}/bad, line 3: 'three' is no task id"),
        ("-f {}/empty", "no task id in {}/empty"),
        ("-f {}/many", "these are more than 10,000,000 task ids: name fewer at a time"),
        ("1 -f {}/other", "task 1 is asked for in two projects, 2 and 3: name it once"),
    ],
)
def test_files_that_name_no_tasks_send_nothing(
    call: Call, world: World, tmp_path: Path, argv: str, words: str
) -> None:
    texts = {"bad": "1\n2\nthree\n", "good": "1", "empty": "# nothing\n", "other": "3:1"}
    for name, text in {**texts, "many": "0-9999999 1\n"}.items():
        (tmp_path / name).write_text(text)
    result = call(world, "stop", *argv.replace("{}", str(tmp_path)).split())
    assert (result.status, result.out, world.counters.requests) == (Exit.USAGE, "", 0)
    assert f"error: {words.format(tmp_path)}" in result.err


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
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture
def writing(fifo: Path) -> Iterator[Callable[..., None]]:
    """Write a text to the FIFO, which is kept open until the test ends if that is wanted."""
    over = threading.Event()
    threads = []

    def begin(text: bytes, *, keep_open: bool = False) -> None:
        def write() -> None:
            with fifo.open("wb", buffering=0) as opened:
                opened.write(text)
                if keep_open:
                    over.wait()

        threads.append(threading.Thread(target=write))
        threads[0].start()

    yield begin
    over.set()
    threads[0].join()


def test_a_pipe_with_a_name(call: Call, world: World, fifo: Path, writing: Writing) -> None:
    writing("1\n2\n3".encode("utf-16"))
    result = call(world, "stop", "--from", str(fifo), "4")
    assert (result.status, set(result.results)) == (Exit.OK, {1, 2, 3, 4})


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


@pytest.mark.parametrize("projects", [("2",), ("2", "3")])
def test_a_pipe_without_end_ends_with_the_time(
    call: Call, world: World, fifo: Path, writing: Writing, projects: tuple[str, ...]
) -> None:
    writing(b"2:1\n2:4\n", keep_open=True)
    options = [f"--project={project}" for project in projects]
    result = call(world, "stop", "-f", str(fifo), "--timeout", "0.3", *options)
    if len(projects) == 1:
        assert result.status == Exit.INCOMPLETE
        assert result.results == {1: "stop_sent", 4: "not_running"}
    else:
        assert (result.status, world.counters.requests) == (Exit.NOTHING, 0)
        assert f"all task ids were read from {fifo}; nothing was sent" in result.err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"1\n2\nthree\n4\n", "{}, line 3: 'three' is no task id: "),
        (b'{"task_id": 1, "project_id": 2}\n2:2\n3:31\n', "{}, line 3: task 31 is in project 3, "),
        (b"", "no task id in {}\n"),
    ],
)
def test_a_bad_line_of_a_pipe_loses_nothing_that_came_before(
    call: Call, worlds: World, fifo: Path, writing: Writing, *, text: bytes, words: str
) -> None:
    writing(text)
    result = call(worlds, "stop", "--from", str(fifo))
    assert result.status == Exit.USAGE
    assert result.results == dict.fromkeys((1, 2) if text else (), "stop_sent")
    assert result.err.startswith(f"error: {words.format(fifo)}")


def test_a_pipe_of_several_projects_is_read_to_its_end(
    call: Call, worlds: World, fifo: Path, writing: Writing
) -> None:
    writing(b"1\n3:32\n")
    result = call(worlds, "stop", "3:31", "--from", str(fifo))
    assert {row["task_id"]: row["project_id"] for row in result.rows} == {1: 2, 31: 3, 32: 3}


def test_a_pipe_that_cannot_be_opened(
    call: Call, world: World, fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    result = call(world, "stop", "--from", str(fifo))
    assert result.status == Exit.USAGE
    assert f"{fifo} cannot be read: Permission denied" in result.err


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
    ("argv", "expected"),
    [
        ("3:31 1", "2:1 3:31"),
        ("2:1 3", "1 3"),
        ("3:31-33 -p 3", "31 32 33"),
        ("2:1 --project 2 --project 3", "2:1"),
        ("--all-active --project 4 --project 3", "3:31 3:32 4:41"),
        ("--all-active --project 4", "41"),
    ],
)
def test_ids_are_printed_with_a_project_that_is_not_the_one(
    call: Call, worlds: World, argv: str, expected: str
) -> None:
    result = call(worlds, "status", *argv.split(), "-o", "ids")
    assert sorted(result.out.split()) == expected.split()


@pytest.mark.parametrize("format_", ["ndjson", "ids"])
def test_what_one_run_prints_another_reads(call: Call, worlds: World, format_: str) -> None:
    listed = call(worlds, "status", "1-2", "3:31-32", "-o", format_)
    result = call(worlds, "status", "-", "-p", "2", "-p", "3", stdin=listed.out.encode())
    assert (result.status, set(result.results)) == (Exit.OK, {1, 2, 31, 32})


def test_a_project_that_is_not_there_ends_its_own_tasks_only(call: Call, worlds: World) -> None:
    result = call(worlds, "stop", "1", "9:91,92", "3:31")
    assert result.status == Exit.INCOMPLETE
    assert result.results == {1: "stop_sent", 31: "stop_sent", 91: "not_sent", 92: "not_sent"}
    assert result.err == (
        "error: TaskStatus: project 9 does not exist; check --project\n"
        "error: 2 of 4 tasks without an answer: name them again\n"
    )
