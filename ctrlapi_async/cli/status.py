"""The command `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from attrs import evolve, frozen
from cyclopts import Parameter

from ctrlapi_async import TaskStatus  # noqa: TC001 - the annotations are read when the command runs
from ctrlapi_async.cli.connection import connect
from ctrlapi_async.cli.options import (
    NO_SERVER,
    NO_TASKS,
    OUTPUT,
    TASK_WORDS,
    TASKS,
    USUAL_MESSAGES,
    USUAL_OUTPUT,
    USUAL_REQUESTS,
    Flag,
    MessageOptions,
    OutputOptions,
    RequestOptions,
    ServerOptions,
    TaskOptions,
    Time,
    refuse,
    same_word,
)
from ctrlapi_async.cli.outcomes import STATUSES
from ctrlapi_async.cli.process import run_command
from ctrlapi_async.cli.running import RunOptions, follow, start_run
from ctrlapi_async.cli.settings import find_settings
from ctrlapi_async.cli.sources import check_usage
from ctrlapi_async.cli.task_command import TaskCommand
from ctrlapi_async.cli.watching import Watch, is_active

if TYPE_CHECKING:
    from ctrlapi_async.cli.process import Process

EXAMPLES: Final = """\
Examples:

  ctrlapi-async status 64 65 100-199
      Show the status of the tasks 64, 65 and 100 to 199.

  ctrlapi-async status --all-active --watch 5
      Show the project's active tasks every 5 seconds, until there are none.

  ctrlapi-async status --from ids.txt --only Running -o ids
      Print the ids of the running tasks among those in a file.
"""


def status(
    *tasks: Annotated[str, Parameter(group=TASKS, help=TASK_WORDS)],
    more: TaskOptions = NO_TASKS,
    no_restarts: Annotated[
        Flag,
        Parameter(
            group=TASKS,
            help="Show the tasks named. Without this, a task that the server restarted as another "
            "one has the status of that one.",
        ),
    ] = False,
    server: ServerOptions = NO_SERVER,
    requests: RequestOptions = USUAL_REQUESTS,
    output: OutputOptions = USUAL_OUTPUT,
    only: Annotated[
        tuple[TaskStatus, ...],
        Parameter(
            name="--only",
            group=OUTPUT,
            negative="",
            show_default=False,
            name_transform=same_word,
            help="Show only tasks with this status. Can be given several times.",
        ),
    ] = (),
    every: Annotated[
        Time | None,
        Parameter(
            name=["--watch", "-w"],
            group=OUTPUT,
            help="Look again and again, with this much time in between, until no task is running "
            "or in the queue.",
        ),
    ] = None,
    messages: MessageOptions = USUAL_MESSAGES,
) -> int:
    """Show the status of tasks, and change nothing."""
    refuse(every is not None and not every, "--watch needs some time between two looks")
    settings = find_settings(server, more.projects)
    check_usage(tasks, more, settings.projects)
    wanted = frozenset(only)
    command = _Status(
        words=tasks,
        more=more,
        options=RunOptions(dry_run=True, follow_restarts=not no_restarts, timeout=requests.timeout),
        every=every,
        settings=settings,
        session=connect(settings, server, requests, messages),
        output=output,
        form=STATUSES,
        keep=lambda outcome: not wanted or outcome.status in wanted,
    )
    return run_command(messages, command.run)


@frozen(kw_only=True)
class _Status(TaskCommand):
    """The command `status`; `every` is the time between two looks, or None for a single one."""

    every: float | None

    async def run(self, process: Process) -> int:
        """Check the tasks, show their statuses, and return the exit status."""
        limit, targets, view = await self.prepare(process)
        async with self.session:
            if self.every is None:
                options = evolve(self.options, timeout=limit.left())
                run = start_run(self.session, targets, options)
                ending = await follow(process, run, STATUSES, "Checking", view=view)
            else:
                watch = Watch(
                    process=process,
                    session=self.session,
                    view=view,
                    options=self.options,
                    limit=limit,
                    every=self.every,
                )
                ending = await watch.follow(targets)
        if self.every is None or view.format == "json":
            await view.finish(ending.report)
        await process.out.drain()
        active = self.every is not None and any(map(is_active, ending.report.values()))
        if active and not ending.interrupted and not ending.errors:
            process.say("error", "some tasks are still running or in the queue")
        return self.conclude(process, targets, ending, active_left=active)
