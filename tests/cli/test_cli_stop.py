"""The command `stop`: what it prints, what it asks, and how it ends."""

from __future__ import annotations

import pytest

from ctrlapi_async import StopReport
from ctrlapi_async.cli.exits import Exit
from tests.cli.support import PATIENCE, Call, OnTerminal, World, ended, process

QUEUED = "1 4 5 --interactive --wait-pending 0.1"
NO_PROJECT = "--all-active -p 2 -p 9"
SIX_PROJECTS = "--all-active " + " ".join(f"-p {project}" for project in range(10, 16))
STOPPED = {**dict.fromkeys((1, 2, 3), "stop_sent"), 4: "not_running", 5: "not_running"}


def stopped(world: World) -> list[int]:
    return [task_id for task_id, task in world.tasks.items() if task.stopped]


def test_in_a_pipe_each_outcome_is_a_line_of_json(world: World) -> None:
    result = ended(process(world, "stop", "1-5"))
    assert (result.status, result.err, result.results) == (Exit.OK, "", STOPPED)
    members = ["task_id", "project_id", "result", "status", "error", "restarted_as"]
    assert list(result.rows[0]) == members
    assert stopped(world) == [1, 2, 3]


def test_json_is_a_report(call: Call, world: World) -> None:
    report = StopReport.from_json(call(world, "stop", "1-5", "-o", "json").out)
    assert {task_id: str(outcome.result) for task_id, outcome in report.items()} == STOPPED
    assert list(report) == [1, 2, 3, 4, 5]
    assert report.stats.stop_calls == 1


def test_waiting_for_pending_tasks_and_for_the_end_of_stopped_ones(
    call: Call, world: World
) -> None:
    world.tick, world.stop_delay = 1, 2.5
    world.add_task(7, "Scheduled", life=[(1, "Running")])
    options = ("--wait-pending", "1m", "--wait-stopped", "1h", "-o", "ndjson")
    result = call(world, "stop", "3", "7", *options)
    assert (result.status, result.results) == (Exit.OK, {3: "stop_sent", 7: "stop_sent"})
    assert {row["status"] for row in result.rows} == {"Canceled"}


def test_tasks_that_still_run_are_named(call: Call, world: World) -> None:
    world.stop_delay = 1000
    result = call(world, "stop", "1-5", "--wait-stopped", "0.1", "-o", "ndjson")
    assert result.status == Exit.INCOMPLETE
    assert result.results == {**STOPPED, **dict.fromkeys((1, 2, 3), "still_running")}
    first, last = result.err.splitlines()
    assert first.endswith("; give it more time with --wait-stopped")
    assert last == "error: 3 of 5 tasks still running: 1-3"


# --- what it asks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["y\n", "Yes\n", "n\n", "\n", "yesterday\n", "\x04"])
def test_only_yes_stops_all_active_tasks(on_terminal: OnTerminal, world: World, typed: str) -> None:
    result = on_terminal(world, "stop", "--all-active", answer=("? [y/N]", typed), columns=120)
    assert f"Stop 3 running tasks of project 2 on {world.url}? [y/N]" in result.out
    if typed in ("y\n", "Yes\n"):
        assert (result.status, stopped(world)) == (Exit.OK, [1, 2, 3])
        assert "4 tasks: 3 stop sent, 1 not running" in result.out
    else:
        assert (result.status, stopped(world)) == (Exit.NOTHING, [])
        assert result.out.splitlines()[-1] == "error: no stop was sent"


def test_only_what_the_question_was_about_is_stopped_and_its_time_does_not_count(
    on_terminal: OnTerminal, world: World
) -> None:
    def start_another() -> str:
        world.add_task(9)
        return "y\n"

    argv = ("stop", "--all-active", f"--timeout={PATIENCE}")
    result = on_terminal(world, *argv, answer=("[y/N]", start_another))
    assert (result.status, stopped(world)) == (Exit.OK, [1, 2, 3])


@pytest.mark.parametrize(("option", "sent"), [("--yes", [1, 2, 3]), ("--dry-run", [])])
def test_no_question_with_yes_or_where_nothing_is_stopped(
    on_terminal: OnTerminal, call: Call, world: World, option: str, sent: list[int]
) -> None:
    result = on_terminal(world, "stop", "--all-active", option)
    assert (result.status, "[y/N]" in result.out) == (Exit.OK, False)
    assert stopped(world) == sent
    assert call(world, "stop", "--all-active", option).status == Exit.OK
    result = on_terminal(world, "stop", "-i", "4", "5")
    assert (result.status, "[y/N]" in result.out) == (Exit.OK, False)
    assert "2 tasks: 2 not running" in result.out


def test_without_a_terminal_all_active_needs_yes(call: Call, world: World) -> None:
    result = call(world, "stop", "--all-active", "--project", "2", "--project", "3")
    assert (result.status, world.counters.requests) == (Exit.USAGE, 0)
    assert result.err == (
        "error: this would stop all running tasks of projects 2 and 3: add --yes if that is "
        "meant, or look first with --dry-run\n"
    )


@pytest.mark.parametrize(
    ("typed", "sent", "said"),
    [
        (
            QUEUED,
            [1],
            "\nStop 1 running task, and 1 in the queue as soon as they run, of project 2 on",
        ),
        (QUEUED, [1], "\n3 tasks: 1 stop sent, 2 not running"),
        ("-i 1 4 3:31 3:33 99", [1, 31], "\nStop 2 running tasks of projects 2 and 3 on"),
        ("-i 1 4 3:31 3:33 99", [1, 31], "\n5 tasks: 2 stop sent, 2 not running, 1 not found"),
        (SIX_PROJECTS, [*range(10, 16)], "\nStop 6 running tasks of 6 projects on"),
        (
            NO_PROJECT,
            [1, 2, 3],
            "\nwarning: tasks without an answer are left out: TaskStatus: project 9",
        ),
        (NO_PROJECT, [1, 2, 3], "\nStop 3 running tasks of project 2 on"),
        (NO_PROJECT, [1, 2, 3], "\nerror: TaskStatus: project 9 does not exist; check --project"),
    ],
)
def test_the_question_is_about_what_runs_and_the_rest_is_shown_too(
    on_terminal: OnTerminal, worlds: World, *, typed: str, sent: list[int], said: str
) -> None:
    for project in range(10, 16):
        worlds.add_task(project, project_id=project)
    result = on_terminal(worlds, "stop", *typed.split(), answer=("[y/N]", "y\n"), columns=160)
    assert said in f"\n{result.out}"
    assert stopped(worlds) == sent
