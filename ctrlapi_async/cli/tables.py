"""Reports as tables, and the notes below them."""

from __future__ import annotations

import re
from typing import IO, TYPE_CHECKING, Any, Final, cast

from attrs import frozen
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.padding import Padding
from rich.text import Text

from ctrlapi_async.cli.outcomes import NEED_ATTENTION, Form, Tally, style
from ctrlapi_async.cli.streams import OutputFile
from ctrlapi_async.cli.text import id_list, numbered, own_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import ConsoleOptions, RenderableType, RenderResult

    from ctrlapi_async import StopOutcome, StopReport
    from ctrlapi_async.cli.streams import Output

TASK_ROWS: Final = 50
"""Tasks at most that get a row each, unless all are asked for."""
GROUP_ROWS: Final = 24
"""Rows of groups at most; a server with more statuses than that gets a row for the rest."""
NOTES: Final = 3
"""Different messages about tasks with the same outcome that are shown."""
NOTE_LINES: Final = 12
"""Lines below a table at most, the summary apart."""
NOTE_LENGTH: Final = 160
"""Characters of a message that are shown."""
_NUMBER: Final = re.compile("[0-9]+")
GAP: Final = "  "
"""What stands between two columns."""
LAST_WIDTH: Final = 16
"""Columns of the terminal at least that the last column of a table can be folded into."""
WIDTH: Final = 120
"""Columns, where there is no terminal that says how many it has."""


@frozen(kw_only=True)
class Layout:
    """How a report is drawn.

    Attributes:
        form: What is said of each task.
        wide: Whether each task gets a row with everything in it.
        every_task: Whether each task gets a row, however many there are.
        with_project: Whether an id is written with its project.
        summary: Whether a last line tells how much was done, and what it cost.
    """

    form: Form
    wide: bool = False
    every_task: bool = False
    with_project: bool = False
    summary: bool = True

    def draw(self, report: StopReport, shown: Sequence[StopOutcome]) -> RenderableType:
        """Return a report as something that rich can print.

        Args:
            report: The report.
            shown: Those of its outcomes that are shown.
        """
        by_task = self.wide or self.every_task or len(shown) <= TASK_ROWS
        parts: list[RenderableType] = []
        if shown:
            table = self._task_table if by_task else self._group_table
            parts += [self._wide_table(shown) if self.wide else table(shown), Text()]
        if not self.wide:
            parts += self._notes(shown, by_task=by_task)
        if self.summary:
            # A table of all tasks in groups has counted them already.
            counted = by_task or len(shown) < len(report)
            parts.append(Text(self._summary(report, counted=counted)))
        return Group(*parts)

    def _wide_table(self, shown: Sequence[StopOutcome]) -> Rows:
        rows = Rows("Task", "Project", "Restarted as", *self.form.headers, "Message")
        for outcome in shown:
            restarted_as = "" if outcome.restarted_as is None else str(outcome.restarted_as)
            ids = (str(outcome.task_id), str(outcome.project_id), restarted_as)
            message = own_words(outcome.error or "")
            rows.add(*ids, *self.form.cells(outcome), message, style=style(outcome))
        return rows

    def _task_table(self, shown: Sequence[StopOutcome]) -> Rows:
        rows = Rows("Task", *self.form.headers)
        for outcome in shown:
            task = f"{outcome.project_id}:" * self.with_project + str(outcome.task_id)
            if outcome.restarted_as is not None:
                task += f" → {outcome.restarted_as}"
            rows.add(task, *self.form.cells(outcome), style=style(outcome))
        return rows

    def _group_table(self, shown: Sequence[StopOutcome]) -> Rows:
        rows = Rows(*self.form.headers, "Tasks", numbers=True)
        groups: dict[tuple[str, ...], list[StopOutcome]] = {}
        for outcome in sorted(shown, key=self.form.order):
            groups.setdefault(self.form.cells(outcome), []).append(outcome)
        first, rest = list(groups.items())[:GROUP_ROWS], list(groups.values())[GROUP_ROWS:]
        for cells, outcomes in first:
            rows.add(*cells, f"{len(outcomes):,}", style=style(outcomes[0]))
        if rest:
            blank = [""] * (len(self.form.headers) - 1)
            rows.add("others", *blank, f"{sum(map(len, rest)):,}")
        return rows

    def _notes(self, shown: Sequence[StopOutcome], *, by_task: bool) -> list[Text]:
        """Return what the table leaves out: messages, restarts, and tasks that need attention."""
        lines: list[str] = []
        messages: dict[str, dict[str, list[StopOutcome]]] = {}
        for outcome in sorted(shown, key=self.form.order):
            message = own_words(outcome.error or "")
            if message or (outcome.result in NEED_ATTENTION and not by_task):
                alike = messages.setdefault(self.form.label(outcome), {})
                # Many messages differ in nothing but the id of their task.
                alike.setdefault(_NUMBER.sub("0", message), []).append(outcome)
        for label, by_message in messages.items():
            most = sorted(by_message.values(), key=len, reverse=True)
            lines += [
                f"{label} {self._ids(outcomes)}{self._message(outcomes)}"
                for outcomes in most[:NOTES]
            ]
            if len(most) > NOTES:
                count = numbered(len(most) - NOTES, "other message")
                lines.append(f"{label}: {count}; -o wide shows them")
        if not by_task:
            restarted = [outcome for outcome in shown if outcome.restarted_as is not None]
            if restarted:
                pairs = ", ".join(
                    f"{outcome.task_id} → {outcome.restarted_as}" for outcome in restarted[:NOTES]
                )
                rest = len(restarted) - NOTES
                lines.append(f"restarted: {pairs}" + f" and {rest:,} more" * (rest > 0))
        if len(lines) > NOTE_LINES:
            lines[NOTE_LINES:] = ["and more messages; -o wide shows them"]
        return [Text(line) for line in lines] + [Text()] * bool(lines)

    def _message(self, outcomes: Sequence[StopOutcome]) -> str:
        """Return the message of tasks whose messages are alike."""
        different = {own_words(outcome.error or "") for outcome in outcomes}
        message = own_words(outcomes[0].error or "")
        if len(message) > NOTE_LENGTH:
            message = message[:NOTE_LENGTH] + "…"
        return f": {message}" * bool(message) + " (and the like)" * (len(different) > 1)

    def _ids(self, outcomes: Sequence[StopOutcome]) -> str:
        tasks = ((outcome.project_id, outcome.task_id) for outcome in outcomes)
        return id_list(tasks, with_project=self.with_project)

    def _summary(self, report: StopReport, *, counted: bool) -> str:
        stats = report.stats
        tally = Tally(self.form)
        for outcome in report.values() if counted else ():
            tally.take(outcome)
        calls = [
            numbered(count, f"{method} request")
            for count, method in (
                (stats.status_calls, "TaskStatus"),
                (stats.stop_calls, "TaskStop"),
            )
            if count
        ]
        repeats = f", {stats.retries:,} of them repeated" * bool(stats.retries)
        return (
            f"{numbered(len(report), 'task')}{f': {tally}' * bool(str(tally))} "
            f"({stats.elapsed:.2f} s, {' and '.join(calls) or 'no request'}{repeats})"
        )


class Rows:
    """A table without lines; blocks of lines on a terminal that is too narrow for it.

    Its cells are never read as markup, and a million rows take seconds, not minutes.

    Args:
        headers: The headers of the columns; the first column names the row.
        numbers: Whether the last column holds numbers.
    """

    def __init__(self, *headers: str, numbers: bool = False) -> None:
        self._headers = headers
        self._numbers = numbers
        self._rows: list[tuple[tuple[str, ...], str]] = []

    def add(self, *cells: str, style: str = "") -> None:
        """Add a row."""
        self._rows.append((cells, style))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = zip(self._headers, *(cells for cells, _ in self._rows), strict=True)
        *widths, last = (max(map(cell_len, column)) for column in columns)
        room = options.max_width - sum(widths) - len(GAP) * len(widths)
        if room < min(last, LAST_WIDTH):
            yield from self._blocks()
            return
        for cells, colour in [(self._headers, "bold"), *self._rows]:
            line = "".join(
                set_cell_size(cell, width) + GAP for cell, width in zip(cells, widths, strict=False)
            )
            if self._numbers:
                yield Text(line + cells[-1].rjust(last), style=colour)
            elif cell_len(cells[-1]) <= room:
                yield Text(line + cells[-1], style=colour)
            else:
                lines = Text(cells[-1]).wrap(console, room)
                indented = ("\n" + " " * cell_len(line)).join(part.plain for part in lines)
                yield Text(line + indented, style=colour)

    def _blocks(self) -> Iterator[RenderableType]:
        for cells, colour in self._rows:
            yield Text(f"{self._headers[0]} {cells[0]}", style="bold")
            for header, cell in zip(self._headers[1:], cells[1:], strict=True):
                if cell:
                    yield Padding(Text(f"{header}: {cell}", style=colour), (0, 0, 0, 2))


def console_on(output: Output) -> Console:
    """Return a console that draws on an output."""
    file = cast("IO[str]", OutputFile(output))
    return Console(file=file, highlight=False, markup=False, emoji=False)


def printed(drawing: RenderableType, *, terminal: bool) -> str:
    """Return what rich prints for a drawing: with colours on a terminal only."""
    options: dict[str, Any] = {} if terminal else {"width": WIDTH}
    console = Console(
        force_terminal=terminal, highlight=False, markup=False, emoji=False, **options
    )
    with console.capture() as capture:
        console.print(drawing)
    lines = capture.get().split("\n")
    return "\n".join(line.rstrip() for line in lines)
