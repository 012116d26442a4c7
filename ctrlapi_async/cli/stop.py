"""The command `stop`."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Final

from attrs import evolve, frozen
from cyclopts import Parameter

from ctrlapi_async import StopResult, TaskStatus
from ctrlapi_async.cli.connection import connect
from ctrlapi_async.cli.exits import CommandError, UsageError
from ctrlapi_async.cli.messages import sentence
from ctrlapi_async.cli.options import (
    NO_SERVER,
    NO_TASKS,
    OUTPUT,
    STOPPING,
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
from ctrlapi_async.cli.outcomes import STOPS
from ctrlapi_async.cli.process import run_command
from ctrlapi_async.cli.running import (
    Ending,
    RunOptions,
    TimeLimit,
    View,
    follow,
    group_by_project,
    start_run,
)
from ctrlapi_async.cli.settings import find_settings
from ctrlapi_async.cli.sources import Targets, check_usage
from ctrlapi_async.cli.streams import in_thread, is_terminal, read, stdin_number
from ctrlapi_async.cli.task_command import TaskCommand
from ctrlapi_async.cli.text import numbered, visible, without_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrlapi_async import StopOutcome, StopReport
    from ctrlapi_async.cli.process import Process

EXAMPLES: Final = """\
Examples:

  ctrlapi-async stop 64 65 100-199
      Stop those of the tasks 64, 65 and 100 to 199 that are running.

  ctrlapi-async stop --from ids.txt --dry-run
      Show which of the tasks in a file would be stopped.

  ctrlapi-async stop --all-active --wait-stopped 5m
      Stop all running tasks of the project, after a question, and wait up to
      5 minutes until they have stopped.
"""

_PROJECTS_NAMED: Final = 5
_STOPPED: Final = (StopResult.STOP_SENT, StopResult.STILL_RUNNING, StopResult.WOULD_STOP)


def stop(
    *tasks: Annotated[str, Parameter(group=TASKS, help=TASK_WORDS)],
    more: TaskOptions = NO_TASKS,
    dry_run: Annotated[
        Flag,
        Parameter(
            name=["--dry-run", "-n"], group=STOPPING, help="Only show which tasks would be stopped."
        ),
    ] = False,
    wait_pending: Annotated[
        Time | None,
        Parameter(
            group=STOPPING,
            help="Keep checking the tasks in the queue for this long, and stop each as soon as it "
            "runs.",
        ),
    ] = None,
    wait_stopped: Annotated[
        Time | None,
        Parameter(
            group=STOPPING,
            help="Keep checking the stopped tasks for this long, until none of them runs any more.",
        ),
    ] = None,
    no_restarts: Annotated[
        Flag,
        Parameter(
            group=STOPPING,
            help="Stop only the tasks named. Without this, a task that the server restarted as "
            "another one stands for that one.",
        ),
    ] = False,
    yes: Annotated[
        Flag, Parameter(name=["--yes", "-y"], group=STOPPING, help="Do not ask before stopping.")
    ] = False,
    ask: Annotated[
        Flag,
        Parameter(
            name=["--interactive", "-i"],
            group=STOPPING,
            help="Ask before stopping, after the tasks were checked. --all-active always asks on a "
            "terminal.",
        ),
    ] = False,
    server: ServerOptions = NO_SERVER,
    requests: RequestOptions = USUAL_REQUESTS,
    output: OutputOptions = USUAL_OUTPUT,
    only: Annotated[
        tuple[StopResult, ...],
        Parameter(
            name="--only",
            group=OUTPUT,
            negative="",
            show_default=False,
            name_transform=same_word,
            help="Show only tasks with this outcome. Can be given several times. With -o ids, if "
            "this is not given: tasks that were stopped, or would be.",
        ),
    ] = (),
    messages: MessageOptions = USUAL_MESSAGES,
) -> int:
    """Stop running tasks.

    Each task is checked first, and a stop is sent only for one that is running.
    """
    for name, value in (("--wait-pending", wait_pending), ("--wait-stopped", wait_stopped)):
        refuse(dry_run and value is not None, f"--dry-run stops nothing: leave out {name}")
    refuse(yes and ask, "--yes does not ask and --interactive does: leave out one of them")
    settings = find_settings(server, more.projects)
    check_usage(tasks, more, settings.projects)
    asks = (more.all_active or ask) and not (yes or dry_run)
    if asks and not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        refuse(ask, "there is no terminal to ask on: leave out --interactive")
        raise UsageError(
            f"this would stop all running tasks of {_projects(settings.projects)}: add --yes if "
            "that is meant, or look first with --dry-run"
        )
    wanted = frozenset(only or (_STOPPED if output.format == "ids" else StopResult))
    command = _Stop(
        words=tasks,
        more=more,
        options=RunOptions(
            dry_run=dry_run,
            follow_restarts=not no_restarts,
            wait_pending=wait_pending,
            wait_stopped=wait_stopped,
            timeout=requests.timeout,
        ),
        asks=asks,
        settings=settings,
        session=connect(settings, server, requests, messages),
        output=output,
        form=STOPS,
        keep=lambda outcome: outcome.result in wanted,
    )
    return run_command(messages, command.run)


@frozen(kw_only=True)
class _Stop(TaskCommand):
    """The command `stop`; `asks` tells whether a person is asked first."""

    asks: bool

    async def run(self, process: Process) -> int:
        """Stop the tasks, show what became of them, and return the exit status."""
        limit, targets, view = await self.prepare(process)
        async with self.session:
            carry_out = self._asked_first if self.asks else self._stopped
            ending = await carry_out(process, targets, limit, view)
        await view.finish(ending.report)
        return self.conclude(process, targets, ending)

    async def _asked_first(
        self, process: Process, targets: Targets, limit: TimeLimit, view: View
    ) -> Ending:
        """Check tasks, ask, stop those that the question was about, and return how that ended.

        Raises:
            CommandError: The answer was no.
            asyncio.CancelledError: A signal came before the answer.
        """
        checked = await self._checked(process, targets, limit)
        chosen = self._active(checked.report)
        for outcome in checked.report.values():
            if outcome.task_id not in chosen:
                view.take(outcome)
        if not chosen:
            return checked
        targets = evolve(targets, by_project=group_by_project(chosen.values()), stream=None)
        return (await self._stopped(process, targets, limit, view)).after(checked)

    async def _stopped(
        self, process: Process, targets: Targets, limit: TimeLimit, view: View
    ) -> Ending:
        """Stop tasks and return how that ended."""
        options = evolve(self.options, timeout=limit.left())
        doing = "Checking" if options.dry_run else "Stopping"
        run = start_run(self.session, targets, options)
        return await follow(process, run, STOPS, doing, view=view)

    async def _checked(self, process: Process, targets: Targets, limit: TimeLimit) -> Ending:
        """Check tasks, ask whether to stop those that run, and return what the check found."""
        options = RunOptions(
            dry_run=True, follow_restarts=self.options.follow_restarts, timeout=limit.left()
        )
        run = start_run(self.session, targets, options)
        checked = await follow(process, run, STOPS, "Checking")
        if checked.interrupted:
            raise asyncio.CancelledError
        active = self._active(checked.report)
        if active:
            for error in checked.errors[:1]:
                left_out = f"tasks without an answer are left out: {sentence(error)}"
                process.note(left_out, "warning")
            now = asyncio.get_running_loop().time
            asked = now()
            if not await _agreed(process, self._question(checked.report, active)):
                raise CommandError("no stop was sent")
            limit.add(now() - asked)
        return checked

    def _active(self, report: StopReport) -> dict[int, StopOutcome]:
        """Return the tasks that are to be stopped, now or once they run."""
        return {
            task_id: outcome
            for task_id, outcome in report.items()
            if outcome.result is StopResult.WOULD_STOP
            or (self.options.wait_pending is not None and _is_pending(outcome))
        }

    def _question(self, report: StopReport, active: dict[int, StopOutcome]) -> str:
        running = report.counts[StopResult.WOULD_STOP]
        pending = len(active) - running
        which = numbered(running, "running task")
        if pending:
            which += f", and {pending:,} in the queue as soon as they run,"
        projects = _projects(sorted({outcome.project_id for outcome in active.values()}))
        return f"Stop {which} of {projects} on {without_secrets(self.settings.get('url'))}?"


def _is_pending(outcome: StopOutcome) -> bool:
    return isinstance(outcome.status, TaskStatus) and outcome.status.pending


def _projects(projects: Sequence[int]) -> str:
    """Return `project 2`, `projects 2 and 3`, or `12 projects`."""
    if len(projects) == 1:
        return f"project {projects[0]}"
    if len(projects) > _PROJECTS_NAMED:
        return f"{len(projects)} projects"
    *first, last = map(str, projects)
    return f"projects {', '.join(first)} and {last}"


async def _agreed(process: Process, question: str) -> bool:
    """Ask a question on the terminal and return whether the answer is yes."""
    process.err.put(f"{visible(question)} [y/N] ")
    await process.err.drain()
    answer = await in_thread(read, stdin_number(), 1024)
    if not answer.endswith(b"\n"):
        process.err.put("\n")
    return answer.strip().lower() in (b"y", b"yes")
