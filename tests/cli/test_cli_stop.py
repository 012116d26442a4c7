"""The command `stop`: what it prints, what it asks, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cli_support import PATIENCE, piped

from ctrlapi_async import StopReport
from ctrlapi_async.cli.exits import Exit

if TYPE_CHECKING:
    from conftest import Call, OnTerminal

    from ctrlapi_async.simulator import ControlApiSimulator

STOPPED = {1: "stop_sent", 2: "stop_sent", 3: "stop_sent", 4: "not_running", 5: "not_running"}


def stopped(world: ControlApiSimulator) -> list[int]:
    return [task_id for task_id, task in world.tasks.items() if task.stopped]


# --- what it prints -------------------------------------------------------------------------------


def test_in_a_pipe_each_outcome_is_a_line_of_json(world: ControlApiSimulator) -> None:
    result = piped(world, "stop", "1-5")
    assert (result.status, result.err) == (Exit.OK, "")
    assert result.results == STOPPED
    members = ["task_id", "project_id", "result", "status", "error", "restarted_as"]
    assert list(result.rows[0]) == members
    assert stopped(world) == [1, 2, 3]


def test_json_is_a_report(call: Call, world: ControlApiSimulator) -> None:
    result = call(world, "stop", "1-5", "-o", "json")
    report = StopReport.from_json(result.out)
    assert {task_id: str(outcome.result) for task_id, outcome in report.items()} == STOPPED
    assert list(report) == [1, 2, 3, 4, 5]
    assert report.stats.stop_calls == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ["1", "2", "3"]),
        (("--dry-run",), ["1", "2", "3"]),
        (("--only", "not_running"), ["4", "5"]),
        (("-n", "--only", "NOT-RUNNING", "--only", "not_found"), ["4", "5"]),
    ],
)
def test_ids(
    call: Call, world: ControlApiSimulator, options: tuple[str, ...], expected: list[str]
) -> None:
    result = call(world, "stop", "1-5", "-o", "ids", *options)
    assert sorted(result.out.split()) == expected
    assert (result.status, result.err) == (Exit.OK, "")


def test_a_dry_run_stops_nothing_and_names_the_tasks(
    call: Call, world: ControlApiSimulator
) -> None:
    result = call(world, "stop", "1-5", "--dry-run", "-o", "table")
    assert [line.split() for line in result.out.splitlines()[1:4]] == [
        [task_id, "would", "stop", "Running"] for task_id in "123"
    ]
    assert stopped(world) == []


def test_restarted_tasks(call: Call, world: ControlApiSimulator) -> None:
    world.add_task(64, "Stalled", restarts=1)
    new = world.tasks[64].restarted_as
    result = call(world, "stop", "64", "-o", "ndjson")
    assert result.rows == [
        {
            "task_id": 64,
            "project_id": 2,
            "result": "stop_sent",
            "status": "Running",
            "error": None,
            "restarted_as": new,
        }
    ]
    assert stopped(world) == [new]


def test_restarts_that_are_not_followed(call: Call, world: ControlApiSimulator) -> None:
    world.add_task(64, "Stalled", restarts=1)
    result = call(world, "stop", "64", "--no-restarts", "-o", "ndjson")
    assert result.results == {64: "not_running"}
    assert result.rows[0]["restarted_as"] == world.tasks[64].restarted_as
    assert stopped(world) == []


def test_quiet_prints_results_only(call: Call, world: ControlApiSimulator) -> None:
    result = call(world, "stop", "1-5", "-q", "-o", "table")
    assert "requests" not in result.out
    assert result.err == ""


def test_wait_pending(call: Call, world: ControlApiSimulator) -> None:
    world.tick = 1
    world.add_task(7, "Scheduled", life=[(1, "Running")])
    result = call(world, "stop", "7", "--wait-pending", "1m", "-o", "ndjson")
    assert result.results == {7: "stop_sent"}


def test_wait_stopped(call: Call, world: ControlApiSimulator) -> None:
    world.stop_delay = 1
    world.tick = 0.4
    result = call(world, "stop", "3", "--wait-stopped", "1h", "-o", "ndjson")
    assert (result.status, result.rows[0]["status"]) == (Exit.OK, "Canceled")


def test_tasks_that_still_run_are_named(call: Call, world: ControlApiSimulator) -> None:
    world.stop_delay = 1000
    result = call(world, "stop", "1-5", "--wait-stopped", "0.1", "-o", "ndjson")
    assert result.status == Exit.INCOMPLETE
    assert result.results == {**STOPPED, **dict.fromkeys((1, 2, 3), "still_running")}
    first, last = result.err.splitlines()
    assert first.endswith("; give it more time with --wait-stopped")
    assert last == "error: 3 of 5 tasks still running: 1-3"


# --- what it asks ---------------------------------------------------------------------------------

QUESTION = "Stop 3 running tasks of project 2 on "


@pytest.mark.parametrize("typed", ["y\n", "Yes\n"])
def test_yes_stops_all_active_tasks(
    on_terminal: OnTerminal, world: ControlApiSimulator, typed: str
) -> None:
    result = on_terminal(world, "stop", "--all-active", answer=("? [y/N]", typed), columns=120)
    assert result.status == Exit.OK
    assert f"{QUESTION}{world.url}? [y/N] {typed}" in result.out
    assert stopped(world) == [1, 2, 3]
    assert "4 tasks: 3 stop sent, 1 not running" in result.out


@pytest.mark.parametrize("typed", ["n\n", "\n", "yesterday\n", "\x04"])
def test_any_other_answer_stops_nothing(
    on_terminal: OnTerminal, world: ControlApiSimulator, typed: str
) -> None:
    result = on_terminal(world, "stop", "--all-active", answer=("? [y/N]", typed), columns=120)
    assert result.status == Exit.NOTHING
    assert result.out.splitlines()[-1] == "error: no stop was sent"
    assert stopped(world) == []


def test_only_tasks_that_the_question_was_about_are_stopped(
    on_terminal: OnTerminal, world: ControlApiSimulator
) -> None:
    def start_another() -> str:
        world.add_task(9)
        return "y\n"

    result = on_terminal(world, "stop", "--all-active", answer=("[y/N]", start_another))
    assert result.status == Exit.OK
    assert stopped(world) == [1, 2, 3]


def test_yes_is_not_asked_for_with_the_option(
    on_terminal: OnTerminal, call: Call, world: ControlApiSimulator
) -> None:
    assert on_terminal(world, "stop", "--all-active", "--yes").status == Exit.OK
    assert call(world, "stop", "--all-active", "-y").status == Exit.OK
    assert stopped(world) == [1, 2, 3]


def test_without_a_terminal_all_active_needs_yes(call: Call, world: ControlApiSimulator) -> None:
    result = call(world, "stop", "--all-active", "--project", "2", "--project", "3")
    assert result.status == Exit.USAGE
    assert result.err == (
        "error: this would stop all running tasks of projects 2 and 3: add --yes if that is "
        "meant, or look first with --dry-run\n"
    )
    assert world.counters.requests == 0
    assert call(world, "stop", "--all-active", "--dry-run").status == Exit.OK


def test_interactive_asks_about_tasks_that_are_named(
    on_terminal: OnTerminal, world: ControlApiSimulator
) -> None:
    argv = ("stop", "1", "4", "5", "--interactive", "--wait-pending", "0.1", "-o", "json")
    question = "Stop 1 running task, and 1 in the queue as soon as they run, of project 2 on"
    result = on_terminal(world, *argv, answer=(question, "y\n"), columns=120, keep=("stdout",))
    assert {task_id: str(one.result) for task_id, one in StopReport.from_json(result.out).items()}
    assert stopped(world) == [1]


def test_what_is_not_asked_about_is_shown_too(
    on_terminal: OnTerminal, worlds: ControlApiSimulator
) -> None:
    argv = ("stop", "-i", "1", "4", "3:31", "3:33", "99", "-o", "ndjson")
    question = "Stop 2 running tasks of projects 2 and 3 on"
    result = on_terminal(worlds, *argv, answer=(question, "y\n"), columns=120, keep=("stdout",))
    assert result.status == Exit.REFUSED
    assert result.results == {
        1: "stop_sent",
        31: "stop_sent",
        4: "not_running",
        33: "not_running",
        99: "not_found",
    }


def test_no_question_where_nothing_runs(
    on_terminal: OnTerminal, world: ControlApiSimulator
) -> None:
    result = on_terminal(world, "stop", "-i", "4", "5")
    assert result.status == Exit.OK
    assert "[y/N]" not in result.out
    assert "2 tasks: 2 not running" in result.out


def test_a_question_without_a_terminal_is_refused(call: Call, world: ControlApiSimulator) -> None:
    result = call(world, "stop", "1", "-i")
    assert (result.status, world.counters.requests) == (Exit.USAGE, 0)
    assert result.err == "error: there is no terminal to ask on: leave out --interactive\n"


def test_tasks_without_an_answer_are_left_out_of_the_question(
    on_terminal: OnTerminal, world: ControlApiSimulator
) -> None:
    argv = ("stop", "--all-active", "--project", "2", "--project", "9")
    result = on_terminal(world, *argv, answer=("[y/N]", "y\n"), columns=160)
    assert "warning: tasks without an answer are left out: TaskStatus: project 9 does" in result.out
    assert QUESTION in result.out
    assert "error: TaskStatus: project 9 does not exist; check --project" in result.out
    assert stopped(world) == [1, 2, 3]


def test_many_projects_are_counted_in_the_question(
    on_terminal: OnTerminal, world: ControlApiSimulator
) -> None:
    for project in range(10, 16):
        world.add_task(project, project_id=project)
    argv = [f"--project={project}" for project in range(10, 16)]
    result = on_terminal(world, "stop", "--all-active", *argv, answer=("of 6 projects on", "n\n"))
    assert result.status == Exit.NOTHING


def test_the_time_for_the_answer_does_not_count(
    on_terminal: OnTerminal, world: ControlApiSimulator
) -> None:
    result = on_terminal(
        world, "stop", "--all-active", f"--timeout={PATIENCE}", answer=("[y/N]", "y\n")
    )
    assert (result.status, stopped(world)) == (Exit.OK, [1, 2, 3])
