"""The progress of a run, live on the terminal of standard error."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from attrs import frozen
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ctrlapi_async.cli.tables import console_on

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

    from ctrlapi_async import StopRun
    from ctrlapi_async.cli.outcomes import Tally
    from ctrlapi_async.cli.process import Process

INTERVAL: Final = 0.1
"""Seconds between two looks at the run."""
BAR_WIDTH: Final = 28
WIDE: Final = 60
"""Columns from which on there is room for how fast it goes."""


@frozen(kw_only=True)
class Progress:
    """A bar with a line of numbers below it.

    Attributes:
        doing: What is being done.
        total: How many tasks there are, or None while more may come.
        done: How many of them have their outcome.
        words: How many tasks have which outcome, in the words of the tables.
        elapsed: Seconds since the run began.
    """

    doing: str
    total: int | None
    done: int
    words: str
    elapsed: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rate = self.done / self.elapsed if self.elapsed else 0
        cells: list[RenderableType] = [
            Text(self.doing),
            ProgressBar(self.total, self.done, width=BAR_WIDTH),
        ]
        if self.total:
            cells.append(Text(f"{self.done / self.total:.0%}"))
        else:
            cells.append(Text(f"{self.done:,}"))
        if options.max_width >= WIDE and rate:
            cells.append(Text(f"{rate:,.0f}/s"))
            if self.total:
                left = round((self.total - self.done) / rate)
                cells.append(Text(f"{left // 60}:{left % 60:02} left"))
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(*cells)
        yield grid
        yield Text(self.words, style="dim")


@asynccontextmanager
async def shown_progress(
    process: Process, run: StopRun, doing: str, tally: Tally
) -> AsyncIterator[None]:
    """Show a run's progress for as long as the block goes on.

    Args:
        process: The process on whose standard error it is shown.
        run: The run.
        doing: What is being done.
        tally: Counts the outcomes in the meantime.
    """
    now = asyncio.get_running_loop().time
    began = now()

    def look() -> Progress:
        total, done = run.progress.total, run.progress.done
        return Progress(
            doing=doing, total=total, done=done, words=str(tally), elapsed=now() - began
        )

    console = console_on(process.err)
    live = Live(
        look(),
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
        # What comes on the same terminal next says it all.
        transient=process.out.is_terminal,
    )

    async def keep_showing() -> None:
        while True:
            live.update(look(), refresh=True)
            await asyncio.sleep(INTERVAL)

    live.start()
    ticker = asyncio.create_task(keep_showing())
    process.console = console
    try:
        yield
    finally:
        process.console = None
        ticker.cancel()
        live.update(look(), refresh=True)
        live.stop()
        if process.out.is_terminal:  # the same one: it must be free before the report comes
            await process.err.drain()
