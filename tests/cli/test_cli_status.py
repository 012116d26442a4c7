"""The command `status`, once and with `--watch`."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest
from cli_support import ended, process, renamed

from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.simulator import HttpStatus

if TYPE_CHECKING:
    from conftest import Call, OnTerminal

    from ctrlapi_async.simulator import ControlApiSimulator


def test_each_task_is_a_line_of_json(call: Call, world: ControlApiSimulator) -> None:
    result = call(world, "status", "1-5")
    assert (result.status, result.err) == (Exit.OK, "")
    assert {row["task_id"]: row["status"] for row in result.rows} == {
        **dict.fromkeys((1, 2, 3), "Running"),
        4: "Completed",
        5: "Scheduled",
    }
    assert list(result.rows[0]) == ["task_id", "project_id", "status", "error", "restarted_as"]
    assert world.counters.calls == {"TaskStatus": 1}


def test_json(call: Call, world: ControlApiSimulator) -> None:
    world.add_task(64, "Stalled", restarts=1)
    result = call(world, "status", "4", "64", "-o", "json")
    more = {"project_id": 2, "error": None}
    new = world.tasks[64].restarted_as
    assert json.loads(result.out) == {
        "tasks": [
            {"task_id": 4, "status": "Completed", "restarted_as": None, **more},
            {"task_id": 64, "status": "Running", "restarted_as": new, **more},
        ]
    }


def test_restarts_that_are_not_followed(call: Call, world: ControlApiSimulator) -> None:
    world.add_task(64, "Stalled", restarts=1)
    [row] = call(world, "status", "64", "--no-restarts").rows
    assert (row["status"], row["restarted_as"]) == ("Stalled", world.tasks[64].restarted_as)


@pytest.mark.parametrize(
    ("options", "expected"),
    [((), "1\n2\n3\n"), (("--only", "Completed", "--only", "scheduled"), "4\n5\n")],
)
def test_ids(
    call: Call, world: ControlApiSimulator, options: tuple[str, ...], expected: str
) -> None:
    assert call(world, "status", "1-5", "-o", "ids", *options).out == expected


def test_all_active(call: Call, world: ControlApiSimulator) -> None:
    result = call(world, "status", "--all-active")
    assert sorted(row["task_id"] for row in result.rows) == [1, 2, 3, 5]


def test_an_unknown_status_is_told(call: Call, world: ControlApiSimulator) -> None:
    for number in (1, 2):
        world.fault(renamed("Completed", "Paused"), number=number)
    result = call(world, "status", "1", "4")
    assert result.status == Exit.REFUSED
    assert result.rows[1]["status"] == "Paused"
    assert result.err == "warning: unknown status 'Paused': such tasks are not stopped\n"
    assert call(world, "status", "4", "-q").err == ""


# --- watch ----------------------------------------------------------------------------------------


@pytest.fixture
def moving(world: ControlApiSimulator) -> ControlApiSimulator:
    """Let each request take a second of the clock, after two of which task 5 has ended."""
    world.tick = 1
    for task_id in (1, 2, 3, 5):
        world.tasks[task_id].status = "Completed"
    world.add_task(7, "Scheduled", life=[(1, "Running"), (2, "Completed")])
    return world


WATCH = ("--watch", "0.01")


def test_watch_prints_what_changes(call: Call, moving: ControlApiSimulator) -> None:
    result = call(moving, "status", "1", "7", *WATCH)
    assert (result.status, result.err) == (Exit.OK, "")
    assert [(row["task_id"], row["status"]) for row in result.rows] == [
        (1, "Completed"),
        (7, "Scheduled"),
        (7, "Running"),
        (7, "Completed"),
    ]
    assert moving.counters.requests == 3


def test_watch_of_ids_that_a_pipe_brought(moving: ControlApiSimulator) -> None:
    running = process(moving, "status", "-", *WATCH, "--only", "Completed", "-o", "ids")
    assert ended(running, b"7").out == "7\n"


def test_watch_of_all_active_tasks_ends_when_there_are_none(
    call: Call, moving: ControlApiSimulator
) -> None:
    result = call(moving, "status", "--all-active", *WATCH, "-o", "table")
    assert result.status == Exit.OK
    assert [line.split() for line in result.out.splitlines() if line[:1] == "7"] == [
        ["7", "Scheduled"],
        ["7", "Running"],
    ]
    assert result.out.splitlines()[-1].startswith("0 tasks (")


def test_watch_prints_json_once(call: Call, moving: ControlApiSimulator) -> None:
    [task] = json.loads(call(moving, "status", "7", *WATCH, "-o", "json").out)["tasks"]
    assert task["status"] == "Completed"


def test_watch_on_a_terminal_draws_one_table(
    on_terminal: OnTerminal, moving: ControlApiSimulator
) -> None:
    result = on_terminal(moving, "status", "4", "7", *WATCH)
    assert result.status == Exit.OK
    assert result.err.count("Scheduled") >= 1
    assert result.err.count("\x1b[1A") >= 2  # it goes up, to draw over the table before
    assert result.out.splitlines()[-1].startswith("2 tasks: 2 Completed (")


def test_watch_ends_with_its_time(call: Call, world: ControlApiSimulator) -> None:
    result = call(world, "status", "1-5", "--watch", "1h", "--timeout", "0.2")
    assert result.status == Exit.INCOMPLETE
    assert result.err == "error: some tasks are still running or in the queue\n"
    assert len(result.rows) == 5


def test_watch_ends_with_an_error(call: Call, moving: ControlApiSimulator) -> None:
    moving.fault(HttpStatus(403), number=2)
    result = call(moving, "status", "7", *WATCH, "--retries", "0")
    assert result.status == Exit.NOTHING
    assert result.err.startswith("error: HTTP 403")


def test_watch_ends_when_nobody_reads_any_more(world: ControlApiSimulator) -> None:
    running = process(world, "status", "1", *WATCH, "-o", "table")
    assert running.stdout is not None
    running.stdout.readline()
    running.stdout.close()
    running.stdout = None
    assert ended(running).status == Exit.UNWRITTEN


@pytest.mark.parametrize("held", [False, True])
def test_an_interrupted_watch_keeps_what_it_saw(
    on_terminal: OnTerminal, world: ControlApiSimulator, held: bool
) -> None:
    def interrupt() -> str:
        if held:
            world.wait_for_requests_sync(2)
        os.kill(os.getpid(), signal.SIGINT)
        return ""

    every = "0.01" if held else "1h"
    with world.hold("TaskStatus", number=2):
        result = on_terminal(
            world, "status", "1-5", "--watch", every, answer=("5 tasks", interrupt)
        )
    assert result.status == Exit.INTERRUPTED
    assert "error: interrupted; 0 of 5 tasks without an answer" in result.out


def test_watch_needs_some_time(call: Call, world: ControlApiSimulator) -> None:
    result = call(world, "status", "1", "--watch", "0")
    assert (result.status, result.err) == (
        Exit.USAGE,
        "error: --watch needs some time between two looks\n",
    )
