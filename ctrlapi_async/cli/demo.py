"""The command `demo`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from rich.console import Group

from ctrlapi_async import StopResult
from ctrlapi_async.cli.connection import session_of
from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.messages import exit_status, explain
from ctrlapi_async.cli.options import (
    SIMULATION,
    USUAL_MESSAGES,
    USUAL_REQUESTS,
    Duration,
    MessageOptions,
    RequestOptions,
    RestartedShare,
    RunningShare,
    Share,
    Time,
    WholeNumber,
)
from ctrlapi_async.cli.outcomes import STOPS
from ctrlapi_async.cli.process import run_command
from ctrlapi_async.cli.running import RunOptions, follow, start_run
from ctrlapi_async.cli.sources import Targets
from ctrlapi_async.cli.tables import Layout, Rows, printed

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ctrlapi_async import StopReport
    from ctrlapi_async.cli.process import Process

EXAMPLES: Final = """\
Examples:

  ctrlapi-async demo
      Stop the tasks of a simulated server with 10,000 tasks.

  ctrlapi-async demo --tasks 40 --restarted 0.2
      Do it with few tasks, many of which the server has restarted as other ones.

  ctrlapi-async demo --latency 1s --concurrency 2 -v
      Do it on a slow server, and log each request.
"""

PROJECT: Final = 2
_RUNNING: Final = Share(0.5)
_RESTARTED: Final = Share(0.01)
_LATENCY: Final = Duration(0.05)


def demo(
    *,
    tasks: Annotated[
        WholeNumber, Parameter(group=SIMULATION, help="How many tasks the simulated server has.")
    ] = 10_000,
    running: RunningShare = _RUNNING,
    restarted: RestartedShare = _RESTARTED,
    absent: Annotated[
        WholeNumber,
        Parameter(group=SIMULATION, help="How many of the ids asked for the server does not have."),
    ] = 10,
    latency: Annotated[
        Time, Parameter(group=SIMULATION, help="The time that the server takes for each reply.")
    ] = _LATENCY,
    requests: RequestOptions = USUAL_REQUESTS,
    messages: MessageOptions = USUAL_MESSAGES,
) -> int:
    """Stop the tasks of a simulated server on this machine, and show the cost."""

    async def command(process: Process) -> int:
        from ctrlapi_async.simulator import ControlApiSimulator

        async with ControlApiSimulator(latency=latency, log=False) as api:
            api.mixed_tasks(tasks, running=running, restarted=restarted, project_id=PROJECT)
            targets = Targets({PROJECT: range(1, tasks + absent + 1)})
            async with session_of(api.url, 1, requests) as session:
                run = start_run(session, targets, RunOptions(timeout=requests.timeout))
                ending = await follow(process, run, STOPS, "Stopping")
            drawing = _drawn(ending.report, api.counters.requests)
        process.out.put(printed(drawing, terminal=process.out.is_terminal))
        await process.out.drain()
        explain(process, ending)
        status = exit_status(process, ending)
        # That some tasks are not found is part of the demonstration.
        return Exit.OK if status is Exit.REFUSED else status

    return run_command(messages, command)


def _drawn(report: StopReport, requests: int) -> RenderableType:
    """Return what the demonstration came to.

    Args:
        report: The report of its run.
        requests: How many requests the server counted.
    """
    rows = Rows("The demonstration", "", numbers=True)
    restarted = sum(outcome.restarted_as is not None for outcome in report.values())
    for words, number in (
        ("tasks named", f"{len(report):,}"),
        ("restarted as other tasks", f"{restarted:,}"),
        ("stops sent", f"{report.counts[StopResult.STOP_SENT]:,}"),
        ("requests", f"{requests:,}"),
        ("requests, if one a task", f"{len(report):,}"),
        ("seconds", f"{report.stats.elapsed:.2f}"),
    ):
        rows.add(words, number)
    return Group(Layout(form=STOPS, summary=False).draw(report, list(report.values())), rows)
