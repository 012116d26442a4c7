"""The command `stop`: what it prints, what it asks, and how it ends."""

from __future__ import annotations

import pytest

from ctrlapi_async import StopReport
from ctrlapi_async.cli.exits import Exit
from tests.cli.support import PATIENCE, Call, OnTerminal, World, ended, process

STOPPED = {**dict.fromkeys((1, 2, 3), "stop_sent"), 4: "not_running", 5: "not_running"}
NOTHING_SENT = "error: no stop was sent"


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


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", "1 2 3"),
        ("--dry-run", "1 2 3"),
        ("--only not_running", "4 5"),
        ("-n --only NOT-RUNNING --only not_found", "4 5"),
    ],
)
def test_ids(call: Call, world: World, options: str, expected: str) -> None:
    result = call(world, "stop", "1-5", "-o", "ids", *options.split())
    assert sorted(result.out.split()) == expected.split()
    assert (result.status, result.err) == (Exit.OK, "")
    assert bool(stopped(world)) is ("-n" not in options and "--dry-run" not in options)


@pytest.mark.parametrize("options", [(), ("--no-restarts",)])
def test_restarted_tasks(call: Call, world: World, options: tuple[str, ...]) -> None:
    world.add_task(64, "Stalled", restarts=1)
    new = world.tasks[64].restarted_as
    [row] = call(world, "stop", "64", "-o", "ndjson", *options).rows
    assert row["restarted_as"] == new
    assert row["result"] == ("not_running" if options else "stop_sent")
    assert stopped(world) == ([] if options else [new])


def test_wait_pending(call: Call, world: World) -> None:
    world.tick = 1
    world.add_task(7, "Scheduled", life=[(1, "Running")])
    result = call(world, "stop", "7", "--wait-pending", "1m", "-o", "ndjson")
    assert result.results == {7: "stop_sent"}


def test_wait_stopped(call: Call, world: World) -> None:
    world.stop_delay = 1
    world.tick = 0.4
    result = call(world, "stop", "3", "--wait-stopped", "1h", "-o", "ndjson")
    assert (result.status, result.rows[0]["status"]) == (Exit.OK, "Canceled")


def test_tasks_that_still_run_are_named(call: Call, world: World) -> None:
    world.stop_delay = 1000
    result = call(world, "stop", "1-5", "--wait-stopped", "0.1", "-o", "ndjson")
    assert result.status == Exit.INCOMPLETE
    assert result.results == {**STOPPED, **dict.fromkeys((1, 2, 3), "still_running")}
    first, last = result.err.splitlines()
    assert first.endswith("; give it more time with --wait-stopped")
    assert last == "error: 3 of 5 tasks still running: 1-3"


# --- what it asks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["y\n", "Yes\n"])
def test_yes_stops_all_active_tasks(on_terminal: OnTerminal, world: World, typed: str) -> None:
    result = on_terminal(world, "stop", "--all-active", answer=("? [y/N]", typed), columns=120)
    assert result.status == Exit.OK
    question = f"Stop 3 running tasks of project 2 on {world.url}? [y/N] "
    assert f"{question}{typed}" in result.out
    assert stopped(world) == [1, 2, 3]
    assert "4 tasks: 3 stop sent, 1 not running" in result.out


@pytest.mark.parametrize("typed", ["n\n", "\n", "yesterday\n", "\x04"])
def test_any_other_answer_stops_nothing(on_terminal: OnTerminal, world: World, typed: str) -> None:
    result = on_terminal(world, "stop", "--all-active", answer=("? [y/N]", typed))
    assert (result.status, result.out.splitlines()[-1]) == (Exit.NOTHING, NOTHING_SENT)
    assert stopped(world) == []


def test_only_what_the_question_was_about_is_stopped(on_terminal: OnTerminal, world: World) -> None:
    def start_another() -> str:
        world.add_task(9)
        return "y\n"

    result = on_terminal(world, "stop", "--all-active", answer=("[y/N]", start_another))
    assert (result.status, stopped(world)) == (Exit.OK, [1, 2, 3])


def test_no_question_with_yes(on_terminal: OnTerminal, call: Call, world: World) -> None:
    assert on_terminal(world, "stop", "--all-active", "--yes").status == Exit.OK
    assert stopped(world) == [1, 2, 3]
    assert call(world, "stop", "--all-active", "-y").status == Exit.OK


def test_no_question_where_nothing_runs(on_terminal: OnTerminal, world: World) -> None:
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
    assert call(world, "stop", "--all-active", "--dry-run").status == Exit.OK


def test_interactive_asks_about_tasks_that_are_named(on_terminal: OnTerminal, world: World) -> None:
    argv = ("stop", "1", "4", "5", "--interactive", "--wait-pending", "0.1", "-o", "json")
    question = "Stop 1 running task, and 1 in the queue as soon as they run, of project 2 on"
    result = on_terminal(world, *argv, answer=(question, "y\n"), columns=120, keep=("stdout",))
    assert sorted(StopReport.from_json(result.out)) == [1, 4, 5]
    assert stopped(world) == [1]


def test_what_is_not_asked_about_is_shown_too(on_terminal: OnTerminal, worlds: World) -> None:
    argv = ("stop", "-i", "1", "4", "3:31", "3:33", "99", "-o", "ndjson")
    question = "Stop 2 running tasks of projects 2 and 3 on"
    result = on_terminal(worlds, *argv, answer=(question, "y\n"), columns=120, keep=("stdout",))
    ended_early = {4: "not_running", 33: "not_running", 99: "not_found"}
    assert result.status == Exit.REFUSED
    assert result.results == {1: "stop_sent", 31: "stop_sent", **ended_early}


def test_tasks_without_an_answer_are_left_out(on_terminal: OnTerminal, world: World) -> None:
    argv = ("stop", "--all-active", "--project", "2", "--project", "9")
    result = on_terminal(world, *argv, answer=("[y/N]", "y\n"), columns=160)
    assert "warning: tasks without an answer are left out: TaskStatus: project 9 does" in result.out
    assert "Stop 3 running tasks of project 2 on" in result.out
    assert "error: TaskStatus: project 9 does not exist; check --project" in result.out
    assert stopped(world) == [1, 2, 3]


def test_many_projects_are_counted(on_terminal: OnTerminal, world: World) -> None:
    for project in range(10, 16):
        world.add_task(project, project_id=project)
    argv = [f"--project={project}" for project in range(10, 16)]
    result = on_terminal(world, "stop", "--all-active", *argv, answer=("of 6 projects on", "n\n"))
    assert result.status == Exit.NOTHING


def test_the_time_for_the_answer_does_not_count(on_terminal: OnTerminal, world: World) -> None:
    argv = ("stop", "--all-active", f"--timeout={PATIENCE}")
    result = on_terminal(world, *argv, answer=("[y/N]", "y\n"))
    assert (result.status, stopped(world)) == (Exit.OK, [1, 2, 3])
