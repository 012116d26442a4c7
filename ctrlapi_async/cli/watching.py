"""`status --watch`: one look after the other, until no task is active."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from attrs import evolve, frozen
from rich.live import Live

import ctrlapi_async as api
from ctrlapi_async import TaskStatus
from ctrlapi_async.cli.process import go_on
from ctrlapi_async.cli.running import Ending, follow, group_by_project, start_run
from ctrlapi_async.cli.tables import console_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ctrlapi_async.cli.process import Process
    from ctrlapi_async.cli.running import RunOptions, TimeLimit, View
    from ctrlapi_async.cli.sources import Targets


def is_active(outcome: api.StopOutcome) -> bool:
    """Return whether a task is running or in the queue."""
    status = outcome.status
    return isinstance(status, TaskStatus) and not status.ended


@frozen(kw_only=True)
class Watch:
    """Looks at tasks again and again.

    Attributes:
        process: The process.
        session: The session, entered.
        view: What shows each look.
        options: The options of each look.
        limit: The time for all of them.
        every: Seconds between two looks.
    """

    process: Process
    session: api.ControlSession
    view: View
    options: RunOptions
    limit: TimeLimit
    every: float

    async def follow(self, targets: Targets) -> Ending:
        """Look until no task is active, and return how the last look ended."""
        ending = await self._look(targets, progress=True)
        with self._live() as live:
            await self._show(ending.report, {}, live)
            while self._goes_on(ending):
                try:
                    if not await self._pause():
                        break
                except asyncio.CancelledError:
                    go_on()
                    return evolve(ending, interrupted=True)
                targets = self._next(targets, ending.report)
                before, ending = ending, await self._look(targets, progress=False)
                if ending.interrupted:
                    return evolve(before, interrupted=True)
                await self._show(ending.report, before.report, live)
        return ending

    async def _pause(self) -> bool:
        """Wait for the next look, and return whether there is time for one."""
        left = self.limit.left()
        await asyncio.sleep(self.every if left is None else min(self.every, left))
        return self.limit.left() != 0

    def _goes_on(self, ending: Ending) -> bool:
        ended = ending.interrupted or ending.errors or self.process.out.error is not None
        return not ended and any(map(is_active, ending.report.values()))

    async def _look(self, targets: Targets, *, progress: bool) -> Ending:
        options = evolve(self.options, timeout=self.limit.left())
        run = start_run(self.session, targets, options)
        return await follow(self.process, run, self.view.form, "Checking", progress=progress)

    def _next(self, targets: Targets, report: api.StopReport) -> Targets:
        """Return the tasks of the next look: a stream has been read to its end."""
        if targets.stream is None and targets.all_active:
            return targets
        return evolve(targets, by_project=group_by_project(report.values()), stream=None)

    @contextmanager
    def _live(self) -> Iterator[Live | None]:
        """Yield what draws a table in the place of the one before, on a terminal."""
        if not (self.view.is_table and self.process.out.is_terminal):
            yield None
            return
        console = console_on(self.process.out)
        with Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as live:
            if self.process.err.is_terminal:  # the same one: what is said goes above the table
                self.process.console = console
            try:
                yield live
            finally:
                self.process.console = None

    async def _show(
        self, report: api.StopReport, before: Mapping[int, api.StopOutcome], live: Live | None
    ) -> None:
        """Show a look: all of it in a table, else the tasks that have changed."""
        if live is not None:
            live.update(self.view.draw(report), refresh=True)
        elif self.view.is_table:
            await self.view.finish(report)
        elif self.view.is_live:
            for outcome in report.values():
                if outcome != before.get(outcome.task_id):
                    self.view.take(outcome)
            await self.process.out.room()
