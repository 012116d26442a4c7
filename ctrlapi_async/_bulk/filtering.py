"""What need not be asked any more by the time a job is sent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrlapi_async._bulk.jobs import Job, JobKind, listed_ids
from ctrlapi_async._errors import RequestError
from ctrlapi_async._models import ALL_ACTIVE
from ctrlapi_async._protocol.requests import TaskCall

if TYPE_CHECKING:
    from ctrlapi_async._bulk.outcomes import Outcomes
    from ctrlapi_async._bulk.placing import Placer
    from ctrlapi_async._bulk.recovery import Recovery
    from ctrlapi_async._bulk.restarts import RestartFollower


class JobFilter:
    """Takes tasks out of jobs that are about to be sent.

    Args:
        outcomes: Tells which tasks were asked for.
        placer: Settles what is taken out.
        restarts: Tells which tasks restart chains have outdated.
        recovery: Tells which projects are dead.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        placer: Placer,
        restarts: RestartFollower,
        recovery: Recovery,
    ) -> None:
        self._outcomes = outcomes
        self._placer = placer
        self._restarts = restarts
        self._recovery = recovery
        self._unwanted: set[int] = set()

    def discard(self, task_id: int) -> None:
        """Note that no caller waits for a task any more."""
        self._unwanted.add(task_id)

    def keep(self, job: Job, now: float) -> bool:
        """Take out of a job what need not be asked any more; return whether something is left."""
        return self._keep_current(job, now) and self._keep_wanted(job)

    def _keep_current(self, job: Job, now: float) -> bool:
        """Take out of a job what restart chains have outdated; return whether something is left."""
        if job.kind is JobKind.STOP:
            calls = [
                self._restarts.still_current(call, now, job.lost, sent=False) for call in job.calls
            ]
            job.calls = [call for call in calls if call.task_ids]
        elif job.kind is JobKind.CHECK:
            calls = [self._unchecked_of(call) for call in job.calls]
            job.calls = [call for call in calls if call.task_ids]
        return bool(job.calls)

    def _unchecked_of(self, call: TaskCall) -> TaskCall:
        if call.task_ids is ALL_ACTIVE:
            return call
        project_id, task_ids = call.project_id, listed_ids(call)
        return TaskCall(project_id, self._outcomes.still_to_check(project_id, task_ids))

    def _keep_wanted(self, job: Job) -> bool:
        """Take out of a job what need not be asked any more; return whether something is left."""
        if self._recovery.dead_projects:
            calls, job.calls = job.calls, []
            for call in calls:
                if (error := self._recovery.dead_projects.get(call.project_id)) is not None:
                    self._placer.give_up(job, call.project_id, listed_ids(call), error)
                else:
                    job.calls.append(call)
        if self._unwanted and job.kind in (JobKind.CHECK, JobKind.STOP) and job.lost is None:
            dropped = RequestError("no caller waits for this task any more", sent=False)
            calls, job.calls = job.calls, []
            for call in calls:
                wanted, unwanted = self._divide(job, call)
                self._placer.give_up(job, call.project_id, unwanted, dropped)
                if wanted or call.task_ids is ALL_ACTIVE:
                    job.calls.append(TaskCall(call.project_id, wanted or ALL_ACTIVE))
        return bool(job.calls)

    def _divide(self, job: Job, call: TaskCall) -> tuple[list[int], list[int]]:
        wanted: list[int] = []
        unwanted: list[int] = []
        for task_id in listed_ids(call):
            asked = [task_id]
            if job.kind is not JobKind.CHECK:
                asked = self._outcomes.asked(call.project_id, asked)
            (unwanted if self._unwanted.issuperset(asked) else wanted).append(task_id)
        return wanted, unwanted
