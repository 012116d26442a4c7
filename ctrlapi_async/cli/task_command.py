"""What `stop` and `status` have in common: tasks, a server, and an output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from ctrlapi_async.cli.messages import exit_status, explain, warn_of_unknown
from ctrlapi_async.cli.running import TimeLimit, View, new_view
from ctrlapi_async.cli.sources import find_targets

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ctrlapi_async import ControlSession, StopOutcome
    from ctrlapi_async.cli.exits import Exit
    from ctrlapi_async.cli.options import OutputOptions, TaskOptions
    from ctrlapi_async.cli.outcomes import Form
    from ctrlapi_async.cli.process import Process
    from ctrlapi_async.cli.running import Ending, RunOptions
    from ctrlapi_async.cli.settings import Settings
    from ctrlapi_async.cli.sources import Targets


@frozen(kw_only=True)
class TaskCommand:
    """A command about tasks, as its options make it.

    Attributes:
        words: The tasks that are named one by one.
        more: Which tasks are meant besides.
        options: The options of its run.
        settings: The settings that are in force.
        session: The session with the server, not entered yet.
        output: How results are shown.
        form: What is said of each task.
        keep: Tells whether a task is shown.
    """

    words: Sequence[str]
    more: TaskOptions
    options: RunOptions
    settings: Settings
    session: ControlSession
    output: OutputOptions
    form: Form
    keep: Callable[[StopOutcome], bool]

    async def prepare(self, process: Process) -> tuple[TimeLimit, Targets, View]:
        """Return the time there is, the tasks that are meant, and what shows them.

        Raises:
            UsageError: The tasks cannot be read, or there are none.
            CommandError: The time was over before they were read.
        """
        limit = TimeLimit(self.options.timeout)
        targets = await find_targets(
            self.words,
            self.more,
            self.settings.projects,
            timeout=limit.left(),
            quiet=process.messages.quiet,
        )
        view = new_view(
            process, self.output, self.form, self.keep, with_project=targets.with_project
        )
        return limit, targets, view

    def conclude(
        self, process: Process, targets: Targets, ending: Ending, *, active_left: bool = False
    ) -> Exit:
        """Say what did not go well, and return the exit status.

        Args:
            process: The process.
            targets: The tasks.
            ending: How the command's run ended.
            active_left: Whether tasks are still active that should not be.
        """
        explain(process, ending, with_project=targets.with_project)
        warn_of_unknown(process, ending.report.values())
        return exit_status(process, ending, active_left=active_left)
