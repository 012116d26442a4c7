"""What a run came to, as text: tables for people, JSON and ids for programs. Pure."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.table import Table

from ctrlapi_async.models import StopResult, TaskStatus
from ctrlapi_async.report import StopReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ctrlapi_async.models import StopOutcome

ROWS: Final = 24
"""Lines of a table at most; a server with more statuses than that gets a line for the rest."""

IDS: Final = 60
"""Characters of ids in a line of a table, more or less."""

WORDS: Final = 120
"""Characters of a reason in a line of a table at most."""

STYLES: Final = {
    StopResult.STOP_SENT: "green",
    StopResult.WOULD_STOP: "green",
    StopResult.NOT_RUNNING: "",
    StopResult.NOT_FOUND: "yellow",
    StopResult.UNAVAILABLE: "yellow",
    StopResult.NOT_SENT: "red",
    StopResult.UNCONFIRMED: "red",
}
NEEDS_A_PERSON: Final = frozenset(
    {StopResult.NOT_FOUND, StopResult.UNAVAILABLE, StopResult.NOT_SENT, StopResult.UNCONFIRMED}
)

_ORDER: Final[dict[str, int]] = {
    word: place for place, word in enumerate([*StopResult, *TaskStatus])
}


def compressed(tasks: Iterable[tuple[int, int]], *, apart: bool = False, limit: int = IDS) -> str:
    """Write ids shortly: `64-66, 70` or, when that gets long, `64, 66, 68 and 1,234 more`.

    Args:
        tasks: Projects and task ids.
        apart: Whether projects are written as well: `2:64-66, 70 3:71`.
        limit: Characters at most, more or less.
    """
    ordered = sorted(tasks)
    text = ""
    before = None
    written = 0
    while written < len(ordered) and len(text) < limit:
        (project_id, first), last = ordered[written], ordered[written][1]
        while written < len(ordered) and ordered[written] == (project_id, last):
            last += 1
            written += 1
        same = project_id == before or not apart
        text += (", " if same else " ") * bool(text) + f"{project_id}:" * (not same)
        text += str(first) if last == first + 1 else f"{first}-{last - 1}"
        before = project_id
    rest = len(ordered) - written
    return text + f" and {rest:,} more" * bool(rest)


def numbered(count: int, noun: str) -> str:
    """Write `1 task` or `1,234 tasks`."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def summary(report: StopReport) -> str:
    """Tell in a line how much was done, and what it cost."""
    stats = report.stats
    calls = [
        numbered(count, f"{method} request")
        for count, method in ((stats.status_calls, "TaskStatus"), (stats.stop_calls, "TaskStop"))
        if count
    ]
    repeats = f", {stats.retries:,} of them repeated" * bool(stats.retries)
    return (
        f"{numbered(len(report), 'task')} in {stats.elapsed:.2f} s, "
        f"{' and '.join(calls) or 'no request'}{repeats}\n"
    )


def members(outcome: StopOutcome, *, with_result: bool = True) -> dict[str, Any]:
    """Give an outcome's JSON form, as in a report's."""
    result = {"result": outcome.result} if with_result else {}
    return {
        "task_id": outcome.task_id,
        "project_id": outcome.project_id,
        **result,
        "status": outcome.status,
        "error": outcome.error,
    }


def line(outcome: StopOutcome, *, with_result: bool = True) -> str:
    """Write an outcome as a line of JSON."""
    return json.dumps(members(outcome, with_result=with_result), ensure_ascii=False) + "\n"


def stop_document(report: StopReport, keep: Callable[[StopOutcome], bool]) -> str:
    """Write a report of the outcomes that `keep` wants, as `StopReport.from_json` reads it."""
    return StopReport.of(filter(keep, report.values()), report.stats).to_json() + "\n"


def status_document(report: StopReport, keep: Callable[[StopOutcome], bool]) -> str:
    """Write the statuses of the tasks that `keep` wants."""
    rows = [members(outcome, with_result=False) for outcome in report.values() if keep(outcome)]
    return json.dumps({"tasks": rows}, ensure_ascii=False) + "\n"


def stop_table(
    report: StopReport,
    keep: Callable[[StopOutcome], bool],
    apart: bool = False,
) -> Table:
    """Draw what became of the tasks: a line for all that ended alike.

    Args:
        report: What became of them.
        keep: Which are shown.
        apart: Whether ids are shown with their projects.
    """
    table = _table("Outcome", "Last status")
    groups = _groups(report, keep)
    for (result, status), outcomes in groups[:ROWS]:
        table.add_row(
            _words(result),
            status or "",
            f"{len(outcomes):,}",
            _who(outcomes, apart=apart),
            style=STYLES[result],
        )
    _add_rest(table, groups[ROWS:], "", "")
    return table


def status_table(
    report: StopReport,
    keep: Callable[[StopOutcome], bool],
    apart: bool = False,
) -> Table:
    """Draw the statuses of the tasks: a line for all that have the same; arguments as above."""
    table = _table("Status")
    groups = sorted(_groups(report, keep), key=lambda group: _place(group[0][1]))
    for (result, status), outcomes in groups[:ROWS]:
        unanswered = "no answer" if result is StopResult.NOT_SENT else _words(result)
        table.add_row(
            status or unanswered,
            f"{len(outcomes):,}",
            _who(outcomes, apart=apart),
            style=STYLES[result],
        )
    _add_rest(table, groups[ROWS:], "")
    return table


def demo_table(report: StopReport, requests: int) -> Table:
    """Draw what the demonstration came to.

    Args:
        report: What its run reported.
        requests: How many requests the server counted.
    """
    table = Table(box=box.SIMPLE_HEAD, show_header=False, show_edge=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("asked", f"{len(report):,}")
    for (result, status), outcomes in _groups(report, lambda _: True):
        word = _words(result) + f", {status}" * (result is StopResult.NOT_RUNNING)
        table.add_row(word, f"{len(outcomes):,}", style=STYLES[result])
    table.add_section()
    table.add_row("requests made", f"{requests:,}")
    table.add_row("with one request a task", f"{len(report):,}")
    table.add_row("seconds", f"{report.stats.elapsed:.2f}")
    return table


_Group = tuple[tuple[StopResult, str | None], list["StopOutcome"]]


def _groups(report: StopReport, keep: Callable[[StopOutcome], bool]) -> list[_Group]:
    groups: dict[tuple[StopResult, str | None], list[StopOutcome]] = {}
    for outcome in report.values():
        if keep(outcome):
            groups.setdefault((outcome.result, outcome.status), []).append(outcome)

    def place(group: _Group) -> tuple[int, tuple[int, str]]:
        result, status = group[0]
        return _ORDER[result], _place(status)

    return sorted(groups.items(), key=place)


def _place(status: str | None) -> tuple[int, str]:
    """Give what sorts statuses: the API's in the order of a task's life, others, then none."""
    return _ORDER.get(status or "", len(_ORDER) + (status is None)), status or ""


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    table.add_column("Tasks", justify="right", no_wrap=True)
    table.add_column("Which, and why", overflow="fold")
    return table


def _add_rest(table: Table, groups: Sequence[_Group], *cells: str) -> None:
    if groups:
        count = sum(len(outcomes) for _, outcomes in groups)
        table.add_row("others", *cells[1:], f"{count:,}", "")


def _words(result: StopResult) -> str:
    return result.replace("_", " ")


def _who(outcomes: list[StopOutcome], *, apart: bool = False) -> str:
    """Name the tasks that need a person, and the reasons given most often."""
    if outcomes[0].result not in NEEDS_A_PERSON:
        return ""
    reasons = Counter(outcome.error for outcome in outcomes if outcome.error).most_common()
    tasks = ((outcome.project_id, outcome.task_id) for outcome in outcomes)
    ids = compressed(tasks, apart=apart)
    if not reasons:
        return ids
    reason = " ".join(reasons[0][0].split())
    shown = reason if len(reason) <= WORDS else reason[:WORDS] + "…"
    return f"{ids}: {shown}" + f" (and {len(reasons) - 1:,} other reasons)" * (len(reasons) > 1)
