"""How tasks are found that do not exist: "access denied to tasks [...]" refuses a whole call.

The server may list just the bad ids, or all that it was asked for. A list that leaves out a task
of the request proves that it names only bad ones, so a task that is known to exist is asked about
along with doubtful ones. Where the lists tell nothing, groups are asked about whose size halves
with every refusal and doubles with every success: few bad tasks cost some requests each, and a
thousand bad ones about one request each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ctrlapi_async._bulk.jobs import Job, JobKind, listed_ids
from ctrlapi_async._models import AllActive
from ctrlapi_async._protocol.requests import TaskCall

if TYPE_CHECKING:
    from ctrlapi_async._bulk.placing import Placer
    from ctrlapi_async._bulk.schedule import Schedule
    from ctrlapi_async._errors import TasksDeniedError

SPARE_REQUESTS: Final = 10
"""Requests for groups that may be refused before single tasks are asked about; each group that is
accepted saves as many as it has other tasks. So there is one request a task at most, and these."""


class Denials:
    """Singles out the tasks that do not exist.

    Args:
        schedule: Where the other tasks wait.
        placer: Settles the bad ones.
    """

    def __init__(self, schedule: Schedule, placer: Placer) -> None:
        self._schedule = schedule
        self._placer = placer
        self._spare = SPARE_REQUESTS
        self._exact: set[str] = set()
        """Methods whose refusals are known to name only bad ids."""
        self._inexact: set[str] = set()
        """Methods whose refusals are known to name good ids as well."""

    def companion(self, job: Job) -> int | None:
        """Return a known task to be asked about along with doubtful ones, if that may tell more."""
        if not job.doubtful or job.kind.method in self._exact | self._inexact:
            return None
        [call] = job.calls
        known = self._placer.known_tasks.get(call.project_id)
        return None if known in listed_ids(call) else known

    def succeeded(self, job: Job) -> None:
        """Note that the server accepted all tasks of a call."""
        if job.doubtful:
            self._spare += job.size - 1
            if job.size == self._schedule.group_size and self._spare > 0:
                self._schedule.group_size = 2 * job.size

    def refused(self, job: Job, error: TasksDeniedError, now: float) -> None:
        """Settle the tasks of a refused call that are known to be bad; the others go on.

        Args:
            job: The job, of one call.
            error: The refusal.
            now: The time in seconds.
        """
        [call] = job.calls
        if isinstance(call.task_ids, AllActive):
            self._placer.note(error)
            return
        listed = set(error.task_ids)
        named = [task_id for task_id in call.task_ids if task_id in listed]
        rest = [task_id for task_id in call.task_ids if task_id not in listed]
        method = job.kind.method
        if job.companion in listed or not named:
            self._inexact.add(method)
        elif named and (rest or job.companion is not None):
            self._exact.add(method)
        if method in self._exact and named:
            self._deny(job, call.project_id, named, error)
            if rest:
                self._schedule.queue(job.renewed([TaskCall(call.project_id, rest)]))
        elif job.size == 1:
            self._deny(job, call.project_id, call.task_ids, error)
        elif job.kind is JobKind.CHECK:
            self._spare -= job.doubtful
            size = min(self._schedule.group_size or job.size, job.size // 2)
            self._schedule.group_size = max(1, size) if self._spare > 0 else 1
            self._schedule.doubtful.add(call.project_id, call.task_ids, now)
        else:
            for half in job.halves():
                self._schedule.queue(half.renewed(half.calls))

    def _deny(
        self, job: Job, project_id: int, task_ids: list[int], error: TasksDeniedError
    ) -> None:
        self._placer.settle_missing(job, project_id, task_ids, error.message)
