"""A run from its beginning to its end, whichever that is, and how it is shown."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from attrs import frozen

import ctrlapi_async as api
from ctrlapi_async.cli.exits import UsageError
from ctrlapi_async.cli.outcomes import Form, Tally
from ctrlapi_async.cli.process import go_on
from ctrlapi_async.cli.tables import Layout, printed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import RenderableType

    from ctrlapi_async.cli.options import OutputOptions
    from ctrlapi_async.cli.process import Process
    from ctrlapi_async.cli.sources import Targets


class TimeLimit:
    """The time of a command: that of its runs, without that for which a person is asked.

    Args:
        seconds: Seconds in all, or None for no limit.
    """

    def __init__(self, seconds: float | None) -> None:
        self._now = asyncio.get_running_loop().time
        self._end = None if seconds is None else self._now() + seconds

    def left(self) -> float | None:
        """Return the seconds that are left, or None."""
        return None if self._end is None else max(0.0, self._end - self._now())

    def add(self, seconds: float) -> None:
        """Add time."""
        if self._end is not None:
            self._end += seconds


@frozen(kw_only=True)
class RunOptions:
    """The options of a run, under the names that `ControlSession.stopping` has for them."""

    dry_run: bool = False
    follow_restarts: bool = True
    wait_pending: float | None = None
    wait_stopped: float | None = None
    timeout: float | None = None


def start_run(session: api.ControlSession, targets: Targets, options: RunOptions) -> api.StopRun:
    """Return the run over the tasks that are meant, not entered yet."""
    arguments: dict[str, Any] = {
        "dry_run": options.dry_run,
        "follow_restarts": options.follow_restarts,
        "wait_pending": options.wait_pending,
        "wait_stopped": options.wait_stopped,
        "timeout": options.timeout,
    }
    if targets.stream is not None:
        return session.stopping(*targets.stream, **arguments)
    return session.stopping_across(targets.by_project, **arguments)


@frozen
class Ending:
    """How a run ended.

    Attributes:
        report: What is known of each task.
        errors: What went wrong.
        interrupted: Whether a signal ended the run.
    """

    report: api.StopReport
    errors: tuple[Exception, ...] = ()
    interrupted: bool = False

    def after(self, earlier: Ending) -> Ending:
        """Return how a run and an earlier one ended together."""
        return Ending(
            earlier.report | self.report, (*earlier.errors, *self.errors), self.interrupted
        )


@frozen(kw_only=True)
class View:
    """What is shown of a run on standard output.

    Attributes:
        process: The process, whose output it is.
        layout: How a table is drawn.
        format: One of the formats of `--output`.
        keep: Tells whether an outcome is shown.
    """

    process: Process
    layout: Layout
    format: str
    keep: Callable[[api.StopOutcome], bool]

    @property
    def form(self) -> Form:
        """What is said of each task."""
        return self.layout.form

    @property
    def is_live(self) -> bool:
        """Whether outcomes are shown one by one, as soon as they are known."""
        return self.format in ("ndjson", "ids")

    @property
    def is_table(self) -> bool:
        """Whether a report is drawn as a table."""
        return self.format in ("table", "wide")

    def take(self, outcome: api.StopOutcome) -> None:
        """Show an outcome, if it is shown one by one and at all."""
        if not self.is_live or not self.keep(outcome):
            return
        if self.format == "ndjson":
            self.process.out.put(self.form.line(outcome))
        else:
            prefix = f"{outcome.project_id}:" * self.layout.with_project
            self.process.out.put(f"{prefix}{outcome.task_id}\n")

    def draw(self, report: api.StopReport) -> RenderableType:
        """Return the table of a report."""
        return self.layout.draw(report, list(filter(self.keep, report.values())))

    async def finish(self, report: api.StopReport) -> None:
        """Show a report as a whole, unless it was shown one by one; wait until all is written."""
        out = self.process.out
        if self.is_table:
            out.put(printed(self.draw(report), terminal=out.is_terminal))
        elif self.format == "json":
            out.put(self.form.document(report, filter(self.keep, report.values())))
        await out.drain()


def new_view(
    process: Process,
    output: OutputOptions,
    form: Form,
    keep: Callable[[api.StopOutcome], bool],
    *,
    with_project: bool,
) -> View:
    """Return the view that the options ask for."""
    format_ = output.format or ("table" if process.out.is_terminal else "ndjson")
    layout = Layout(
        form=form,
        wide=format_ == "wide",
        every_task=output.every_task,
        with_project=with_project,
        summary=not process.messages.quiet,
    )
    return View(process=process, layout=layout, format=format_, keep=keep)


def group_by_project(outcomes: Iterable[api.StopOutcome]) -> dict[int, list[int]]:
    """Return the ids of tasks by their project."""
    tasks: dict[int, list[int]] = {}
    for outcome in outcomes:
        tasks.setdefault(outcome.project_id, []).append(outcome.task_id)
    return tasks


async def follow(
    process: Process,
    run: api.StopRun,
    form: Form,
    doing: str,
    *,
    view: View | None = None,
    progress: bool = True,
) -> Ending:
    """Go through a run to its end.

    Args:
        process: The process. A signal to it ends the run, not this function.
        run: The run, not entered yet.
        form: What is said of each task.
        doing: What the progress says is being done.
        view: What shows outcomes one by one, or None.
        progress: Whether the progress is shown, if there is a terminal for it.

    Raises:
        UsageError: A task is named in two projects.
    """
    tally = Tally(form)
    taken: set[int] = set()
    live = view if view is not None and view.is_live else None
    lines_on_terminal = live is not None and process.out.is_terminal
    drawn = progress and not (process.messages.quiet or lines_on_terminal)

    def take(outcome: api.StopOutcome) -> None:
        tally.take(outcome)
        if live is not None:
            taken.add(outcome.task_id)
            live.take(outcome)

    try:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(run)
            except ValueError as error:
                raise UsageError(f"{error}: name it once") from None
            if drawn and process.err.is_terminal:
                from ctrlapi_async.cli.progress import shown_progress

                await stack.enter_async_context(shown_progress(process, run, doing, tally))
            async for outcome in run:
                take(outcome)
                await process.out.room()
        return Ending(run.report)
    except api.StopIncompleteError as error:
        return Ending(error.report, error.exceptions)
    except asyncio.CancelledError:
        go_on()
        for outcome in run.report.values():
            if outcome.task_id not in taken:
                take(outcome)
        return Ending(run.report, interrupted=True)
