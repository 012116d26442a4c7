"""What a server, a file or a user wrote is shown as text: never as markup, never obeyed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_support import renamed
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import StopOutcome, StopReport, StopResult, TaskStatus
from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.outcomes import STATUSES, STOPS
from ctrlapi_async.cli.tables import GROUP_ROWS, TASK_ROWS, Layout, printed
from ctrlapi_async.cli.task_reader import TaskReader
from ctrlapi_async.cli.text import (
    id_list,
    json_escaped,
    json_text,
    visible,
    visible_lines,
    without_secrets,
)

if TYPE_CHECKING:
    from conftest import Call, OnTerminal

    from ctrlapi_async.simulator import ControlApiSimulator

NASTY = (
    "[fd00::1] [bold]not bold[/bold] :warning: [link=http://x]y[/link] \x1b[2J\x1b]0;title\x07 "
    "\x9b31mred\x9d0;title\x9c \u202egnp.exe \u2066x\u2028y [/mnt/x]"
)
OBEYED = set("\x07\x1b\x9b\x9c\x9d\u202e\u2066\u2028")


@pytest.mark.parametrize("command", ["status", "stop"])
def test_a_nasty_status(
    call: Call, on_terminal: OnTerminal, world: ControlApiSimulator, command: str
) -> None:
    world.fault_when = lambda _: renamed("Completed", NASTY)
    table = on_terminal(world, command, "1", "4", columns=300)
    assert table.status == Exit.REFUSED
    assert visible(NASTY) in table.out
    assert not set(table.out) & OBEYED
    for format_ in ("ndjson", "json", "wide"):
        result = call(world, command, "4", "-o", format_)
        assert result.status == Exit.REFUSED
        assert not set(result.out + result.err) & OBEYED
    [row] = call(world, command, "4").rows
    assert row["status"] == NASTY


def test_a_nasty_error(on_terminal: OnTerminal, world: ControlApiSimulator) -> None:
    world.missing = "error"
    world.fault_when = lambda _: renamed("Task does not exist", NASTY)
    result = on_terminal(world, "stop", "1", "99", columns=300)
    assert result.status == Exit.REFUSED
    assert visible(NASTY) in result.out
    assert not set(result.out) & OBEYED


def test_a_nasty_argument(call: Call, world: ControlApiSimulator) -> None:
    for argv in (("stop", NASTY), ("stop", "-f", NASTY), ("stop", "1", f"--{NASTY}")):
        result = call(world, *argv)
        assert result.status == Exit.USAGE
        assert result.err[:-1].isprintable()


def test_what_is_visible() -> None:
    assert visible("a\tb\n c\x1b\x85\x9b\u202e\udc80") == "a b c\\x1b \\x9b\\u202e\\udc80"
    assert visible_lines("a\n\tb\x1b[0m\n") == "a\n\tb\\x1b[0m\n"
    assert json_escaped('"\x7f\x9b"') == '"\\u007f\\u009b"'


@given(st.text())
def test_json_holds_the_same_text_without_control_characters(text: str) -> None:
    line = json_text({"text": text})
    assert json.loads(line) == {"text": text}
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in line)


def test_credentials_in_a_url_are_hidden() -> None:
    assert without_secrets("http://joe:pw@h:1/x?y#z") == "http://***@h:1/x?y#z"
    assert without_secrets("http://h:1/x") == "http://h:1/x"


# --- ids in short ---------------------------------------------------------------------------------


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 60))))
def test_a_list_of_ids_can_be_read_back(tasks: set[tuple[int, int]]) -> None:
    reader = TaskReader([9])
    text = id_list(tasks, with_project=True, limit=10**6)
    spans = [*reader.feed(text), *reader.close()]
    assert [(project, task_id) for project, span in spans for task_id in span] == sorted(tasks)


@pytest.mark.parametrize("with_project", [False, True])
def test_a_list_of_ids_is_bounded(with_project: bool) -> None:
    text = id_list(((2, task_id) for task_id in range(0, 10_000, 2)), with_project=with_project)
    assert text.startswith("2:" * with_project + "0, 2, 4, ")
    assert text.endswith(" more")
    assert len(text) < 90


# --- tables ---------------------------------------------------------------------------------------


def outcome(task_id: int, result: StopResult, status: str | None, error: str) -> StopOutcome:
    return StopOutcome(task_id, 2, result, status, error)


def drawn(outcomes: list[StopOutcome], layout: Layout) -> list[str]:
    report = StopReport.of(outcomes)
    return printed(layout.draw(report, outcomes), terminal=False).splitlines()


@pytest.mark.parametrize("form", [STOPS, STATUSES])
def test_a_table_stays_short_whatever_a_server_says(form: object) -> None:
    many = [
        outcome(n, StopResult.NOT_RUNNING, f"Strange{n:03}", chr(65 + n % 26) * 500)
        for n in range(TASK_ROWS + 10)
    ]
    lines = drawn(many, Layout(form=form))  # type: ignore[arg-type]
    assert lines[GROUP_ROWS + 1].split() == ["others", str(len(many) - GROUP_ROWS)]
    assert len(lines) < GROUP_ROWS + 45
    assert any("other messages; -o wide shows them" in line for line in lines) is (form is STOPS)
    assert "…" in "".join(lines)
    assert len(drawn(many, Layout(form=form, every_task=True))) > len(many)  # type: ignore[arg-type]


def test_messages_that_differ_in_numbers_only_are_one() -> None:
    denied = [outcome(n, StopResult.NOT_FOUND, None, f"access denied to [{n}]") for n in (7, 9)]
    assert drawn(denied, Layout(form=STOPS))[4] == (
        "not found 7, 9: access denied to [7] (and the like)"
    )


def test_many_restarts_are_told_in_short() -> None:
    many = [
        StopOutcome(n, 2, StopResult.STOP_SENT, TaskStatus.RUNNING, restarted_as=n + 1000)
        for n in range(TASK_ROWS + 1)
    ]
    assert "restarted: 0 → 1000, 1 → 1001, 2 → 1002 and 48 more" in drawn(many, Layout(form=STOPS))
    few = [
        StopOutcome(n, 2, StopResult.STOP_SENT, None, restarted_as=9 if n == 1 else None)
        for n in range(TASK_ROWS + 1)
    ]
    assert "restarted: 1 → 9" in drawn(few, Layout(form=STOPS, with_project=True))
