"""What a server, a file or a user wrote is shown as text: never as markup, never obeyed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import StopOutcome, StopReport, StopResult, TaskStatus
from ctrlapi_async.cli import text
from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.outcomes import STATUSES, STOPS, Form
from ctrlapi_async.cli.tables import GROUP_ROWS, TASK_ROWS, Layout, printed
from ctrlapi_async.cli.task_reader import TaskReader
from tests.cli.support import renamed

if TYPE_CHECKING:
    from tests.cli.support import Call, OnTerminal, World

NASTY = (
    "[fd00::1] [bold]not bold[/bold] :warning: [link=http://x]y[/link] \x1b[2J\x1b]0;title\x07 "
    "\x9b31mred\x9d0;title\x9c \u202egnp.exe \u2066x\u2028y [/mnt/x]"
)
OBEYED = set("\x07\x1b\x9b\x9c\x9d\u202e\u2066\u2028")


@pytest.mark.parametrize(
    ("command", "old"),
    [("status", "Completed"), ("stop", "Completed"), ("stop", "Task does not exist")],
)
def test_a_nasty_status_or_error(
    call: Call, on_terminal: OnTerminal, world: World, command: str, old: str
) -> None:
    world.missing = "error"
    world.fault_when = lambda _: renamed(old, NASTY)
    table = on_terminal(world, command, "1", "4", "99", columns=300)
    assert text.visible(NASTY)[:100] in table.out
    results = [call(world, command, "4", "99", "-o", each) for each in ("ndjson", "json", "wide")]
    for result in (table, *results):
        assert result.status == Exit.REFUSED
        assert not set(result.out) & OBEYED
    assert NASTY in [row[name] for row in results[0].rows for name in ("status", "error")]


@pytest.mark.parametrize("argv", [(NASTY,), ("-f", NASTY), ("1", f"--{NASTY}")])
def test_a_nasty_argument(call: Call, argv: tuple[str, ...]) -> None:
    result = call(None, "stop", *argv)
    assert (result.status, result.err[:-1].isprintable()) == (Exit.USAGE, True)


def test_what_is_visible() -> None:
    assert text.visible("a\tb\n c\x1b\x85\x9b\u202e\udc80") == "a b c\\x1b \\x9b\\u202e\\udc80"
    assert text.visible_lines("a\n\tb\x1b[0m\n") == "a\n\tb\\x1b[0m\n"
    assert text.json_escaped('"\x7f\x9b"') == '"\\u007f\\u009b"'
    assert text.without_secrets("http://joe:pw@h:1/x?y#z") == "http://***@h:1/x?y#z"
    assert text.without_secrets("http://h:1/x") == "http://h:1/x"


@given(st.text())
def test_json_holds_the_same_text_without_control_characters(words: str) -> None:
    line = text.json_text({"text": words})
    assert json.loads(line) == {"text": words}
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in line)


@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 60))))
def test_a_list_of_ids_can_be_read_back(tasks: set[tuple[int, int]]) -> None:
    reader = TaskReader([9])
    listed = text.id_list(tasks, with_project=True, limit=10**6)
    spans = [*reader.feed(listed), *reader.close()]
    assert [(project, task_id) for project, span in spans for task_id in span] == sorted(tasks)


@pytest.mark.parametrize("with_project", [False, True])
def test_a_list_of_ids_is_bounded(with_project: bool) -> None:
    listed = text.id_list(((2, n) for n in range(0, 10_000, 2)), with_project=with_project)
    assert listed.startswith("2:" * with_project + "0, 2, 4, ")
    assert listed.endswith(" more")
    assert len(listed) < 90


# --- tables ---------------------------------------------------------------------------------------


def drawn(outcomes: list[StopOutcome], layout: Layout) -> list[str]:
    report = StopReport.of(outcomes)
    return printed(layout.draw(report, outcomes), terminal=False).splitlines()


@pytest.mark.parametrize("form", [STOPS, STATUSES])
def test_a_table_stays_short_whatever_a_server_says(form: Form) -> None:
    many = [
        StopOutcome(n, 2, StopResult.NOT_RUNNING, f"Strange{n:03}", chr(65 + n % 26) * 500)
        for n in range(TASK_ROWS + 10)
    ]
    lines = drawn(many, Layout(form=form))
    assert lines[GROUP_ROWS + 1].split() == ["others", str(len(many) - GROUP_ROWS)]
    assert len(lines) < GROUP_ROWS + 45
    assert any("other messages; -o wide shows them" in line for line in lines) is (form is STOPS)
    assert "…" in "".join(lines)
    assert len(drawn(many, Layout(form=form, every_task=True))) > len(many)


def test_long_messages_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrlapi_async.cli.tables.WIDTH", 80)
    outcome = StopOutcome(7, 2, StopResult.NOT_FOUND, error="no such task " * 5)
    _, first, second, *_ = drawn([outcome], Layout(form=STOPS, wide=True))
    column = first.index("no such task")
    assert second[:column].isspace()
    assert (first[column:] + " " + second[column:]).startswith("no such task no such task no such")


def test_messages_that_differ_in_numbers_only_and_many_restarts_are_told_in_short() -> None:
    def outcome(n: int, restarted_as: int | None) -> StopOutcome:
        return StopOutcome(n, 2, StopResult.STOP_SENT, TaskStatus.RUNNING, None, restarted_as)

    denied = [StopOutcome(n, 2, StopResult.NOT_FOUND, error=f"denied [{n}]") for n in (7, 9)]
    assert drawn(denied, Layout(form=STOPS))[4] == "not found 7, 9: denied [7] (and the like)"
    many = [outcome(n, n + 1000) for n in range(TASK_ROWS + 1)]
    assert "restarted: 0 → 1000, 1 → 1001, 2 → 1002 and 48 more" in drawn(many, Layout(form=STOPS))
    one = [outcome(n, 9 if n == 1 else None) for n in range(TASK_ROWS + 1)]
    assert "restarted: 1 → 9" in drawn(one, Layout(form=STOPS, with_project=True))
