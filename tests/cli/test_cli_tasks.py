"""Which tasks are meant: words, files, pipes, projects."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from cli_support import ended, piped, process
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async.cli import sources
from ctrlapi_async.cli.exits import Exit, UsageError
from ctrlapi_async.cli.task_reader import JSON_LENGTH, TaskReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cli_support import Result
    from conftest import Call, OnTerminal

    from ctrlapi_async.simulator import ControlApiSimulator


def tasks_in(text: str, *projects: int, piece: int = 10**9) -> list[tuple[int, int]]:
    """Read a text in pieces and return projects and ids."""
    reader = TaskReader(projects, "ids.txt")
    pieces = [text[start : start + piece] for start in range(0, len(text), piece)]
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
        ("abc", "'abc' is no task id: write 64, 100-199 for a range, or 2:64 for project 2"),
        *((word, f"{word!r} is no task id: ") for word in ("1-", "-1", "1-2-3", "²", "1.5", "0x2")),
        *((word, f"{word!r} is no task id: ") for word in (":", "2:", ":64", "2:x", "x:64")),
        *((word, f"{word!r} is no task id: ") for word in ("2:3:64", "2:1-2:3", "-2:64")),
        ("2:9-5", "'2:9-5' runs backwards: write 5-9"),
        ("9223372036854775808:1", "is too large: project ids go to 2**63 - 1"),
        ("2:9223372036854775808", "is too large: task ids go to 2**63 - 1"),
        ("9" * 40, "is too large: task ids go to 2**63 - 1"),
        ("9" * 5000, "is no task id: "),
        ("2:64,", "no task of project 2 follows the last comma: leave the comma out, or write all"),
        ('{"task_id": 1', "not JSON: "),
        ('{"a":' * 100_000, "not JSON: "),
        ('{"a": "' + "x" * JSON_LENGTH, "a JSON line of more than 1,048,576 characters"),
        ("{}", "`task_id` must be a whole number, 0 or more, not None"),
        ('{"task_id": "1"}', "`task_id` must be a whole number, 0 or more, not '1'"),
        ('{"task_id": true}', "`task_id` must be a whole number, 0 or more, not True"),
        ('{"task_id": -1}', "`task_id` must be a whole number, 0 or more, not -1"),
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


def test_a_task_of_no_project_and_of_several() -> None:
    with pytest.raises(UsageError, match="no project is given: use --project, set CTRLAPI_PROJ"):
        tasks_in("64")
    with pytest.raises(UsageError, match="task 64 could be in any of the 2 projects given with"):
        tasks_in("64", 2, 3)


def test_one_line_of_millions_of_ids_takes_bounded_memory() -> None:
    reader = TaskReader([2])
    piece = " ".join(map(str, range(1_000_000, 1_008_000))) + " "
    count = 0
    tracemalloc.start()
    for _ in range(40):
        for _, task_ids in reader.feed(piece):
            count += len(task_ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 320_000
    assert peak < 3 * 2**20


# --- files ----------------------------------------------------------------------------------------


def ids_of(result: Result) -> set[int]:
    return {row["task_id"] for row in result.rows}


@pytest.mark.parametrize(
    "text",
    [
        b"1 2\t3\n4,5",
        "1-3\n4 # mine\n5\n".encode("utf-8-sig"),
        "1-3\r\n4\r\n5\r\n".encode("utf-16"),
        b"\xfe\xff" + "1-5".encode("utf-16-be"),
        b'{"task_id": 1, "project_id": 2}\n  {"task_id": 2}\n3\n{"task_id":4,"x":[]}\n5',
    ],
)
def test_ids_from_a_file(
    call: Call, world: ControlApiSimulator, tmp_path: Path, text: bytes
) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(text)
    result = call(world, "status", "--from", str(path))
    assert (result.status, result.err) == (Exit.OK, "")
    assert ids_of(result) == {1, 2, 3, 4, 5}
    assert ids_of(call(world, "status", "-", stdin=text)) == {1, 2, 3, 4, 5}


def test_several_files(call: Call, worlds: ControlApiSimulator, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1 2\n3:31,32")
    second.write_text('{"task_id": 41, "project_id": 4}')
    argv = ("--from", str(first), "-f", str(second), "--from", "-", "5")
    result = call(worlds, "status", *argv, stdin=b"4")
    assert ids_of(result) == {1, 2, 4, 5, 31, 32, 41}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("-f", "{}/nowhere"), "{}/nowhere cannot be read: No such file or directory"),
        (("-f", "{}"), "{} cannot be read: it is a directory"),
        (("-f", "{}/bad", "-f", "{}/good"), "{}/bad, line 3: 'three' is no task id"),
        (("-f", "{}/empty"), "no task id in {}/empty"),
        (("-f", "{}/empty", "-"), "no task id in {}/empty and standard input"),
        (("-f", "{}/many"), "these are more than 10,000,000 task ids: name fewer at a time"),
        (("1", "-f", "{}/other"), "task 1 is asked for in two projects, 2 and 3: name it once"),
    ],
)
def test_files_that_name_no_tasks_send_nothing(
    call: Call, world: ControlApiSimulator, tmp_path: Path, argv: tuple[str, ...], words: str
) -> None:
    for name, text in {
        "bad": "1\n2\nthree\n",
        "good": "1",
        "empty": "# nothing\n",
        "many": "0-9999999 1\n",
        "other": "3:1",
    }.items():
        (tmp_path / name).write_text(text)
    result = call(world, "stop", *(word.format(tmp_path) for word in argv))
    assert (result.status, result.out) == (Exit.USAGE, "")
    assert f"error: {words.format(tmp_path)}" in result.err
    assert world.counters.requests == 0


# --- pipes ----------------------------------------------------------------------------------------


def test_a_pipe_is_read_as_it_comes(world: ControlApiSimulator) -> None:
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


def writing(path: Path, *pieces: bytes, wait: threading.Event | None = None) -> threading.Thread:
    def write() -> None:
        with path.open("wb", buffering=0) as opened:
            for piece in pieces:
                opened.write(piece)
            if wait is not None:
                wait.wait()

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def test_a_byte_order_mark_in_two_pieces(
    call: Call, world: ControlApiSimulator, fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = iter([b"\xef", b"\xbb", b"\xbf1 2", b""])
    monkeypatch.setattr(sources, "read", lambda *_: next(pieces))
    writer = writing(fifo)
    result = call(world, "stop", "--from", str(fifo))
    writer.join()
    assert (result.status, set(result.results)) == (Exit.OK, {1, 2})


def test_a_pipe_that_has_a_name(call: Call, world: ControlApiSimulator, fifo: Path) -> None:
    writer = writing(fifo, b"\xff", b"\xfe" + "1\n2\n3".encode("utf-16-le"))
    result = call(world, "stop", "--from", str(fifo), "4")
    writer.join()
    assert (result.status, set(result.results)) == (Exit.OK, {1, 2, 3, 4})


def test_the_first_bytes_of_a_pipe_may_be_all(
    call: Call, world: ControlApiSimulator, fifo: Path
) -> None:
    writer = writing(fifo, b"\xef")
    result = call(world, "stop", "--from", str(fifo))
    writer.join()
    assert (result.status, world.counters.requests) == (Exit.USAGE, 0)
    assert f"{fifo}, line 1: '\ufffd' is no task id" in result.err


@pytest.mark.parametrize("projects", [("2",), ("2", "3")])
def test_a_pipe_without_end_ends_with_the_time(
    call: Call, world: ControlApiSimulator, fifo: Path, projects: tuple[str, ...]
) -> None:
    over = threading.Event()
    writer = writing(fifo, b"2:1\n2:4\n", wait=over)
    options = [f"--project={project}" for project in projects]
    result = call(world, "stop", "-f", str(fifo), "--timeout", "0.3", *options)
    over.set()
    writer.join()
    if len(projects) == 1:
        assert result.status == Exit.INCOMPLETE
        assert result.results == {1: "stop_sent", 4: "not_running"}
    else:
        assert result.status == Exit.NOTHING
        assert f"all task ids were read from {fifo}; nothing was sent" in result.err
        assert world.counters.requests == 0


def test_a_bad_line_of_a_pipe_loses_nothing_that_came_before(
    call: Call, world: ControlApiSimulator, fifo: Path
) -> None:
    writer = writing(fifo, b"1\n2\nthree\n4\n")
    result = call(world, "stop", "--from", str(fifo))
    writer.join()
    assert result.status == Exit.USAGE
    assert result.results == {1: "stop_sent", 2: "stop_sent"}
    assert result.err.splitlines()[0].startswith(f"error: {fifo}, line 3: 'three' is no task id: ")


def test_an_empty_pipe(call: Call, world: ControlApiSimulator, fifo: Path) -> None:
    writer = writing(fifo)
    result = call(world, "stop", "--from", str(fifo))
    writer.join()
    assert (result.status, result.err) == (Exit.USAGE, f"error: no task id in {fifo}\n")


def test_a_pipe_of_several_projects_is_read_to_its_end(
    call: Call, worlds: ControlApiSimulator, fifo: Path
) -> None:
    writer = writing(fifo, b"1\n3:32\n")
    result = call(worlds, "stop", "3:31", "--from", str(fifo))
    writer.join()
    assert {row["task_id"]: row["project_id"] for row in result.rows} == {1: 2, 31: 3, 32: 3}


def test_a_pipe_of_one_project_keeps_to_it(
    call: Call, worlds: ControlApiSimulator, fifo: Path
) -> None:
    writer = writing(fifo, b'{"task_id": 1, "project_id": 2}\n2:2\n3:31\n3\n')
    result = call(worlds, "stop", "--from", str(fifo))
    writer.join()
    assert result.status == Exit.USAGE
    assert result.results == {1: "stop_sent", 2: "stop_sent"}
    assert "with --project 2 --project 3 it is read to its end first" in result.err
    assert not worlds.tasks[31].stopped


def test_a_pipe_that_cannot_be_opened(
    call: Call, world: ControlApiSimulator, fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    result = call(world, "stop", "--from", str(fifo))
    assert result.status == Exit.USAGE
    assert f"{fifo} cannot be read: Permission denied" in result.err


def test_a_terminal_is_told_that_ids_are_waited_for(
    on_terminal: OnTerminal, world: ControlApiSimulator
) -> None:
    waits = "note: reading task ids from the terminal; Ctrl-D on an empty line ends them"
    result = on_terminal(world, "status", "-", answer=(waits, "1 2\n\x04"))
    assert (result.status, "2 tasks: 2 Running" in result.out) == (Exit.OK, True)
    quiet = on_terminal(world, "status", "--from", "-", "-q", answer=("", "\x04"))
    assert waits not in quiet.out
    assert "error: no task id in standard input" in quiet.out


# --- projects -------------------------------------------------------------------------------------


def test_tasks_of_many_projects_share_requests(worlds: ControlApiSimulator, call: Call) -> None:
    result = call(worlds, "stop", "1-5", "3:31-33", "4:41", "--chunk-size", "100")
    assert (result.status, result.err) == (Exit.OK, "")
    assert sorted(result.results) == [1, 2, 3, 4, 5, 31, 32, 33, 41]
    assert worlds.counters.requests == 2


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("3:31", "1"), "2:1 3:31"),
        (("2:1", "3"), "1 3"),
        (("3:31-33", "-p", "3"), "31 32"),
        (("2:1", "--project", "2", "--project", "3"), "2:1"),
        (("--all-active", "--project", "4", "--project", "3"), "3:31 3:32 4:41"),
        (("--all-active", "--project", "4"), "41"),
    ],
)
def test_ids_are_printed_with_a_project_that_is_not_the_one(
    call: Call, worlds: ControlApiSimulator, argv: tuple[str, ...], expected: str
) -> None:
    assert sorted(call(worlds, "status", *argv, "-o", "ids").out.split()) == expected.split()


def test_what_one_run_prints_another_reads(call: Call, worlds: ControlApiSimulator) -> None:
    projects = ("--project", "2", "--project", "3")
    for format_ in ("ndjson", "ids"):
        listed = call(worlds, "status", "1-2", "3:31-32", "-o", format_)
        result = call(worlds, "status", "-", *projects, stdin=listed.out.encode())
        assert (result.status, ids_of(result)) == (Exit.OK, {1, 2, 31, 32})


def test_a_project_that_is_not_there_ends_its_own_tasks_only(worlds: ControlApiSimulator) -> None:
    result = piped(worlds, "stop", "1", "9:91,92", "3:31")
    assert result.status == Exit.INCOMPLETE
    assert result.results == {1: "stop_sent", 31: "stop_sent", 91: "not_sent", 92: "not_sent"}
    assert result.err == (
        "error: TaskStatus: project 9 does not exist; check --project\n"
        "error: 2 of 4 tasks without an answer: name them again\n"
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "no task is named: give task ids such as 64 65 100-199, or --from, or --all-active"),
        (("x",), "'x' is no task id: write 64, 100-199 for a range, or 2:64 for project 2"),
        (("3:1", "--all-active"), "--all-active means all tasks: leave out task ids and --from"),
        (("--all-active", "-"), "--all-active means all tasks: leave out task ids and --from"),
        (("2:1", "3:2,1"), "task 1 is asked for in two projects, 2 and 3: name it once"),
        (("0-9223372036854775807",), "these are more than 10,000,000 task ids"),
        (("7", "-p", "2", "-p", "3"), "task 7 could be in any of the 2 projects given with"),
        (("1", "--project", "2.5"), "--project must be a whole number, 0 or more, not '2.5'"),
        (("1", "--project", "0x2"), "--project must be a whole number, 0 or more, not '0x2'"),
        (("1", "--project", "-1"), "--project"),
        (("1", "--project", ""), "--project must be a whole number, 0 or more, not ''"),
    ],
)
@pytest.mark.parametrize("command", ["stop", "status"])
def test_usage(
    call: Call, world: ControlApiSimulator, command: str, argv: tuple[str, ...], words: str
) -> None:
    result: Any = call(world, command, *argv)
    assert (result.status, result.out, world.counters.requests) == (Exit.USAGE, "", 0)
    assert words in result.err
    assert result.err.count("\n") == 1
