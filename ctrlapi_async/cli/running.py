"""A run from its beginning to its end, whichever that is, and how it is shown."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, nullcontext
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

import ctrlapi_async as api
from ctrlapi_async.cli.exits import UsageError
from ctrlapi_async.cli.outcomes import Form
from ctrlapi_async.cli.process import go_on
from ctrlapi_async.cli.tables import Layout, printed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from ctrlapi_async.cli.options import OutputOptions
    from ctrlapi_async.cli.process import Process
    from ctrlapi_async.cli.sources import Targets

LIVE_FORMATS: Final = ("ndjson", "ids")


@frozen(kw_only=True)
class RunOptions:
    """The options of a run, under the names that `ControlSession.stopping` has for them."""

    dry_run: bool = False
    follow_restarts: bool = True
    wait_pending: float | None = None
    wait_stopped: float | None = None
    timeout: float | None = None


def start_run(session: api.ControlSession, targets: Targets, options: RunOptions) -> api.StopRun:
    """Return the run over the tasks that are meant; raises `UsageError`."""
    arguments: dict[str, Any] = {
        "dry_run": options.dry_run,
        "follow_restarts": options.follow_restarts,
        "wait_pending": options.wait_pending,
        "wait_stopped": options.wait_stopped,
        "timeout": options.timeout,
    }
    try:
        if targets.stream is not None:
            return session.stopping(*targets.stream, **arguments)
        return session.stopping_across(targets.by_project, **arguments)
    except ValueError as error:
        raise UsageError(f"{error}: name it once") from None


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

    def take(self, outcome: api.StopOutcome) -> None:
        """Show an outcome at once, if that is how outcomes are shown."""
        if self.format == "ndjson" and self.keep(outcome):
            self.process.out.put(self.form.line(outcome))
        elif self.format == "ids" and self.keep(outcome):
            prefix = f"{outcome.project_id}:" * self.layout.with_project
            self.process.out.put(f"{prefix}{outcome.task_id}\n")

    async def finish(self, report: api.StopReport) -> None:
        """Show a report, as far as its outcomes are not shown yet, and wait until it is written."""
        out = self.process.out
        if self.format not in LIVE_FORMATS:
            shown = list(filter(self.keep, report.values()))
            if self.format == "json":
                out.put(self.form.document(report, shown))
            else:
                out.put(printed(self.layout.draw(report, shown), terminal=out.is_terminal))
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


@frozen
class Tally:
    """Counts the outcomes that a run has yielded, in the words of the tables."""

    form: Form
    counts: Counter[str] = field(factory=Counter)

    def take(self, outcome: api.StopOutcome) -> None:
        """Count an outcome."""
        self.counts[self.form.label(outcome)] += 1


async def follow(
    process: Process, run: api.StopRun, form: Form, doing: str, view: View | None = None
) -> Ending:
    """Go through a run to its end.

    Args:
        process: The process. A signal to it ends the run, not this function.
        run: The run, not entered yet.
        form: What is said of each task.
        doing: What the progress says is being done.
        view: What shows the outcomes as they come, or None.

    Raises:
        UsageError: The run found that a task is named in two projects.
    """
    tally = Tally(form)
    taken: set[int] = set()

    def take(outcome: api.StopOutcome) -> None:
        tally.take(outcome)
        if view is not None and view.format in LIVE_FORMATS:
            taken.add(outcome.task_id)
            view.take(outcome)

    try:
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(run)
            except ValueError as error:
                raise UsageError(f"{error}: name it once") from None
            await stack.enter_async_context(_progress(process, run, doing, tally.counts, view))
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


def _progress(
    process: Process, run: api.StopRun, doing: str, counts: Mapping[str, int], view: View | None
) -> AbstractAsyncContextManager[None]:
    """Return what shows the progress: nothing, unless standard error is a terminal of its own."""
    lines = view is not None and view.format in LIVE_FORMATS and process.out.is_terminal
    if process.messages.quiet or lines or not process.err.is_terminal:
        return nullcontext()
    from ctrlapi_async.cli.progress import shown_progress

    return shown_progress(process, run, doing, counts)
