"""The command `status`, once and with `--watch`."""

from __future__ import annotations

import json
import os
import signal

import pytest

from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.simulator import HttpStatus
from tests.cli.support import Call, OnTerminal, World, ended, process, renamed

STATUSES = {**dict.fromkeys((1, 2, 3), "Running"), 4: "Completed", 5: "Scheduled"}


def test_each_task_is_a_line_of_json(call: Call, world: World) -> None:
    result = call(world, "status", "1-5")
    assert (result.status, result.err, result.results) == (Exit.OK, "", STATUSES)
    assert list(result.rows[0]) == ["task_id", "project_id", "status", "error", "restarted_as"]
    assert world.counters.calls == {"TaskStatus": 1}
    assert json.loads(call(world, "status", "1-5", "-o", "json").out) == {"tasks": result.rows}


def test_an_unknown_status_is_told(call: Call, world: World) -> None:
    for number in (1, 2):
        world.fault(renamed("Completed", "Paused"), number=number)
    result = call(world, "status", "1", "4")
    assert (result.status, result.results[4]) == (Exit.REFUSED, "Paused")
    assert result.err == "warning: unknown status 'Paused': such tasks are not stopped\n"
    assert call(world, "status", "4", "-q").err == ""


# --- watch ----------------------------------------------------------------------------------------

WATCH = ("--watch", "0.01")


@pytest.fixture
def moving(world: World) -> World:
    """Let each request take a second of the clock, after two of which no task is active."""
    world.tick = 1
    for task_id in (1, 2, 3, 5):
        world.tasks[task_id].status = "Completed"
    world.add_task(7, "Scheduled", life=[(1, "Running"), (2, "Completed")])
    return world


@pytest.mark.parametrize(
    ("options", "tasks", "statuses"),
    [
        ("1 7", [1, 7, 7, 7], ["Completed", "Scheduled", "Running", "Completed"]),
        ("--all-active", [7, 7], ["Scheduled", "Running"]),
        ("7 -o json", [7], ["Completed"]),  # once, at the end
    ],
)
def test_watch_prints_what_changes_until_no_task_is_active(
    call: Call, moving: World, options: str, tasks: list[int], statuses: list[str]
) -> None:
    result = call(moving, "status", *options.split(), *WATCH)
    assert (result.status, result.err) == (Exit.OK, "")
    rows = json.loads(result.out)["tasks"] if "json" in options else result.rows
    assert [row["task_id"] for row in rows] == tasks
    assert [row["status"] for row in rows] == statuses
    assert moving.counters.requests == 3


def test_watch_of_ids_that_a_pipe_brought(moving: World) -> None:
    running = process(moving, "status", "-", *WATCH, "--only", "Completed", "-o", "ids")
    assert ended(running, b"7").out == "7\n"


def test_watch_as_a_table_ends_with_a_summary(call: Call, moving: World) -> None:
    result = call(moving, "status", "--all-active", *WATCH, "-o", "table")
    rows = [line.split()[1] for line in result.out.splitlines() if line[:1] == "7"]
    assert rows == ["Scheduled", "Running"]
    assert result.out.splitlines()[-1].startswith("0 tasks (")


@pytest.mark.parametrize("keep", [(), ("stderr",)])
def test_watch_on_a_terminal_draws_one_table(
    on_terminal: OnTerminal, moving: World, keep: tuple[str, ...]
) -> None:
    result = on_terminal(moving, "status", "4", "7", *WATCH, "-v", keep=keep)
    assert result.status == Exit.OK
    assert ("debug: TaskStatus" in result.out) is (not keep)
    assert f"\n{result.out}".count("\nTask  Status\n") == 1
    assert result.out.splitlines()[-1].startswith("2 tasks: 2 Completed (")


def test_watch_ends_with_its_time_or_with_an_error(call: Call, moving: World) -> None:
    moving.tick = 0
    result = call(moving, "status", "1-5", "7", "--watch", "1h", "--timeout", "0.2")
    assert (result.status, len(result.rows)) == (Exit.INCOMPLETE, 6)
    assert result.err == "error: some tasks are still running or in the queue\n"
    moving.fault(HttpStatus(403), number=3)
    result = call(moving, "status", "7", *WATCH, "--retries", "0")
    assert result.status == Exit.NOTHING
    assert result.err.startswith("error: HTTP 403")


def test_watch_ends_when_nobody_reads_any_more(world: World) -> None:
    running = process(world, "status", "1", *WATCH, "-o", "table")
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    running.stdout = None
    assert ended(running).status == Exit.UNWRITTEN


@pytest.mark.parametrize("looking", [False, True])
def test_an_interrupted_watch_keeps_what_it_saw(
    on_terminal: OnTerminal, world: World, looking: bool
) -> None:
    def interrupt() -> str:
        if looking:
            world.wait_for_requests_sync(2)
        os.kill(os.getpid(), signal.SIGINT)
        return ""

    every = "0.01" if looking else "1h"
    with world.hold("TaskStatus", number=2):
        answer = ("5 tasks", interrupt)
        result = on_terminal(world, "status", "1-5", "--watch", every, answer=answer)
    assert result.status == Exit.INTERRUPTED
    assert "error: interrupted; 0 of 5 tasks without an answer" in result.out
