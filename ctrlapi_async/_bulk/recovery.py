"""What becomes of a job that met an error: the decision carried out, with attempts and pauses."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final, cast

from attrs import evolve

from ctrlapi_async._bulk.decisions import Action, decide
from ctrlapi_async._bulk.jobs import Job, JobKind, listed_ids
from ctrlapi_async._errors import (
    CtrlApiError,
    TasksDeniedError,
    Trait,
    UndefinedMethodError,
    traits_of,
)
from ctrlapi_async._models import ALL_ACTIVE
from ctrlapi_async._retry import impossible_wait, last_moment, log_repeat, pause_after

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ctrlapi_async._bulk.denials import Denials
    from ctrlapi_async._bulk.placing import Placer
    from ctrlapi_async._bulk.schedule import Schedule
    from ctrlapi_async._models import RetryPolicy

logger = logging.getLogger("ctrlapi_async")

SINGLED_OUT_ATTEMPTS: Final = 6
"""How often a request for one task is sent that fails while others succeed."""


class Recovery:
    """Repeats, verifies, divides or gives up jobs that met an error.

    Args:
        schedule: Where jobs wait.
        placer: Settles tasks that are given up.
        denials: Singles out tasks that do not exist.
        policy: When and how often a request is repeated.
        deadline: When the run ends, in seconds.
        random: Returns a random number from 0 to below 1.
    """

    def __init__(
        self,
        schedule: Schedule,
        placer: Placer,
        denials: Denials,
        policy: RetryPolicy,
        *,
        deadline: float,
        random: Callable[[], float],
    ) -> None:
        self.fatal_error: Exception | None = None
        """Why no further request is sent."""
        self.projects: set[int] = set()
        """The projects that the run is about."""
        self.dead_projects: dict[int, CtrlApiError] = {}
        """Projects about which the server will not answer, and why."""
        self._schedule = schedule
        self._placer = placer
        self._denials = denials
        self._policy = policy
        self._deadline = deadline
        self._random = random
        self._successes: Counter[str] = Counter()

    def succeeded(self, job: Job) -> None:
        """Note that a call of a job was answered."""
        self._successes[job.kind.method] += 1

    def receive(self, job: Job, error: CtrlApiError, now: float, proven: Collection[str]) -> None:
        """Do what the error calls for.

        Args:
            job: The job that met it.
            error: The error.
            now: The time in seconds.
            proven: Methods that have had a good answer in this session.
        """
        job.fault = error
        self._count_failure(job, error, now)
        method = job.kind.method
        action = decide(
            job,
            error,
            proven=method in proven if isinstance(error, UndefinedMethodError) else bool(proven),
            only_project=len(self.projects) == 1,
            spoiled=self._may_be_spoiled(job, error),
        )
        if action is Action.SINGLE_OUT and isinstance(error, TasksDeniedError):
            self._denials.refused(job, error, now)
        elif action is Action.SPLIT_PROJECTS:
            middle = len(job.calls) // 2
            for calls in (job.calls[:middle], job.calls[middle:]):
                self._schedule.queue(job.renewed(calls))
        elif action is Action.END_PROJECT:
            self._end_project(job, error)
        elif action is Action.END_RUN:
            self._end_run(job, error)
        elif action is Action.HALVE:
            self._halve(job, error)
        elif action is Action.VERIFY:
            self.verify(job, error, now)
        elif action is Action.REPEAT:
            self._repeat(job, error, now)
        else:
            self._give_up(job, error)

    def _count_failure(self, job: Job, error: CtrlApiError, now: float) -> None:
        successes = self._successes[job.kind.method]
        if job.first_fault_at is None:
            job.first_fault_at = now
            job.successes_at_first = successes
        elif Trait.SLOW_DOWN in traits_of(error) and successes > job.successes_seen:
            # It is told to wait while others get through: that is no fault of its own.
            job.attempt -= 1
            job.first_fault_at = now
        job.successes_seen = successes

    def _others_succeed(self, job: Job) -> bool:
        return self._successes[job.kind.method] > job.successes_at_first

    def _may_be_spoiled(self, job: Job, error: CtrlApiError) -> bool:
        """Return whether one of a job's tasks may be why it fails.

        Either it fails again while others succeed, or it has failed often, and there may be no
        others: then halves of it are tried once. A server that wants fewer requests refuses some
        and takes others, whatever the tasks; only if that happens often are halves tried.
        """
        often = job.attempt >= self._policy.attempts // 2
        alone = self._others_succeed(job) and (
            job.singled_out or Trait.SLOW_DOWN not in traits_of(error)
        )
        return job.attempt > 1 and (alone or (often and not job.singled_out))

    def _attempts(self, job: Job) -> int:
        """Return how often a job is sent at most."""
        attempts = self._policy.attempts
        spoiled = job.singled_out and job.size == 1 and self._others_succeed(job)
        return min(attempts, SINGLED_OUT_ATTEMPTS) if spoiled else attempts

    def _halve(self, job: Job, error: CtrlApiError) -> None:
        may_be_spoiled = Trait.TASK_MAY_CAUSE in traits_of(error)
        for half in job.halves():
            half.singled_out = may_be_spoiled
            if self._others_succeed(job) or not may_be_spoiled:
                # Half as large, it is another request; if it fails as well, that counts twice.
                half.attempt = int(may_be_spoiled)
            self._schedule.queue(half)

    def _repeat(self, job: Job, error: CtrlApiError, now: float) -> None:
        """Send a job again after a pause, if the policy and the server's wish allow it."""
        pause = self._pause(job.attempt, error)
        if (refusal := self._impossible_wait(job, error, now)) is not None:
            self._give_up_waiting(job, refusal)
        elif job.attempt < self._attempts(job) and now + pause <= self._last_moment(job, now):
            log_repeat(job.kind.method, job.size, error, job.attempt + 1, pause)
            self._schedule.back_off(job, now + pause)
        elif Trait.FATAL in traits_of(error) and not (
            job.singled_out and self._others_succeed(job)
        ):
            self._end_run(job, error)
        else:
            self._give_up(job, error)

    def verify(self, job: Job, error: CtrlApiError, now: float) -> None:
        """Ask what became of stops of unknown fate, after a pause."""
        verify = Job(JobKind.VERIFY, job.calls, stop=job, lost=error)
        if (refusal := self._impossible_wait(job, error, now)) is not None:
            self._give_up_waiting(verify, refusal)
            return
        pause = self._pause(job.attempt, error)
        logger.warning(
            "TaskStop of %d tasks may have been carried out: TaskStatus in %.2f s, after: %s",
            job.size,
            pause,
            error,
        )
        self._schedule.back_off(verify, now + pause)

    def stop_again(self, job: Job, now: float) -> None:
        """Send the stop again of tasks that a lost stop did not stop."""
        lost = cast("CtrlApiError", job.lost)
        stop = evolve(cast("Job", job.stop).part(job.calls), lost=lost)
        if stop.attempt >= self._attempts(stop) or now > self._last_moment(stop, now):
            self._give_up(stop, lost)
        elif (
            stop.size > 1
            and Trait.TASK_MAY_CAUSE in traits_of(lost)
            and self._may_be_spoiled(stop, lost)
        ):
            self._halve(stop, lost)
        else:
            # Right after the check it would be one request too many for a server that wants fewer.
            slow_down = Trait.SLOW_DOWN in traits_of(lost)
            pause = self._random() * self._policy.wait_bound(stop.attempt) if slow_down else 0.0
            log_repeat(stop.kind.method, stop.size, lost, stop.attempt + 1, pause)
            self._schedule.back_off(stop, now + pause)
            self._schedule.wake(now)

    # --- pauses and endings -------------------------------------------------------------------

    def _pause(self, attempt: int, error: CtrlApiError) -> float:
        return pause_after(self._policy, attempt, error, self._random)

    def _last_moment(self, job: Job, now: float) -> float:
        since = now if job.first_fault_at is None else job.first_fault_at
        return last_moment(self._policy, since)

    def _impossible_wait(self, job: Job, error: CtrlApiError, now: float) -> CtrlApiError | None:
        """Return an error that says so if the server asks to wait for longer than the run can."""
        return impossible_wait(error, now, min(self._last_moment(job, now), self._deadline))

    def _give_up_waiting(self, job: Job, refusal: CtrlApiError) -> None:
        """End a job that may not wait as long as it should; the run, if the server is busy."""
        if Trait.SLOW_DOWN in traits_of(refusal):
            self._end_run(job, refusal)
        else:
            self._give_up(job, refusal)

    def _give_up(self, job: Job, error: Exception) -> None:
        for call in job.calls:
            if call.task_ids is ALL_ACTIVE:
                self._placer.note(error)
            self._placer.give_up(job, call.project_id, listed_ids(call), error)

    def _end_project(self, job: Job, error: CtrlApiError) -> None:
        for call in job.calls:
            self.dead_projects[call.project_id] = error
        if self.dead_projects.keys() >= self.projects:
            self._end_run(job, error)
        else:
            self._give_up(job, error)

    def _end_run(self, job: Job, error: CtrlApiError) -> None:
        """Send no further request; replies in flight are still used."""
        self.fatal_error = self.fatal_error or error
        job.fault = error
        if job.kind is JobKind.STOP and Trait.NOT_CARRIED_OUT not in traits_of(error):
            job.lost = job.lost or error
        if job.kind is JobKind.POLL_PENDING:
            self._give_up(job, error)  # nobody knows whether they would have started
        else:
            self._schedule.queue(job)  # settled with all that is left
