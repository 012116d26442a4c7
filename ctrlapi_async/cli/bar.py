"""The progress of a run, live on a terminal."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ctrlapi_async.models import StopResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from rich.console import RenderableType

    from ctrlapi_async.bulk import StopRun

INTERVAL: Final = 0.1
"""Seconds between two looks at the run."""

_RUNNING: Final = (
    StopResult.STOP_SENT,
    StopResult.WOULD_STOP,
    StopResult.UNAVAILABLE,
    StopResult.UNCONFIRMED,
)
_FAILED: Final = (StopResult.NOT_FOUND, StopResult.UNAVAILABLE)


class Bar(Progress):
    """A bar with a line of numbers below it.

    Args:
        doing: What is being done.
        afterwards: What is being done once every task has an outcome.
        sized: Whether the number of tasks is known before the last one is.
    """

    def __init__(self, doing: str, afterwards: str, *, sized: bool) -> None:
        self._numbers = Text()
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            auto_refresh=False,
            redirect_stdout=False,
        )
        self._doing = doing
        self._afterwards = afterwards
        self._sized = sized
        self._task = self.add_task(doing, total=None, rate="", left="")

    def get_renderables(self) -> Iterable[RenderableType]:
        """Give what is drawn."""
        yield self.make_tasks_table(self.tasks)
        yield self._numbers

    def show(self, counts: Mapping[StopResult, int], *, ended: bool = False) -> None:
        """Draw the run's counts of now."""
        total = sum(counts.values())
        checked = total - counts[StopResult.NOT_SENT]
        words = {
            "checked": checked,
            "running": sum(counts[result] for result in _RUNNING),
            "stop sent": counts[StopResult.STOP_SENT],
            "failed": sum(counts[result] for result in _FAILED),
        }
        if ended:
            words["no answer"] = counts[StopResult.NOT_SENT] + counts[StopResult.UNCONFIRMED]
        self._numbers = Text(
            " · ".join(f"{word} {count:,}" for word, count in words.items()), style="dim"
        )
        waiting = not ended and checked == total > 0
        elapsed = self.tasks[0].elapsed or 0
        self.update(
            self._task,
            completed=checked,
            total=total if total and (self._sized or ended) else None,
            description=self._afterwards if waiting and self._afterwards else self._doing,
            rate=f"{checked / elapsed:,.0f}/s" if elapsed else "",
            left="left" if total and self._sized else "",
            refresh=True,
        )


@asynccontextmanager
async def following(
    run: StopRun, doing: str, afterwards: str, *, sized: bool
) -> AsyncIterator[None]:
    """Show a run's progress for as long as the block goes on; arguments as for `Bar`."""
    with Bar(doing, afterwards, sized=sized) as bar:

        async def keep_showing() -> None:
            while True:
                bar.show(run.counts)
                await asyncio.sleep(INTERVAL)

        ticker = asyncio.create_task(keep_showing())
        try:
            yield
        finally:
            ticker.cancel()
            bar.show(run.counts, ended=True)
