"""The bulk stop as a plan: which request goes next, and what each answer changes. Pure.

Whoever drives it adds tasks, takes jobs, hands in what came of each, and wakes it when it asks
for that. It never looks at a clock: the time is an argument, and so is chance.

Two rules govern it. A task is stopped only if Running is its last known status. And a stop whose
fate is unknown is neither repeated nor reported before TaskStatus was asked about it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from ctrlapi_async._bulk.answers import Answers
from ctrlapi_async._bulk.causes import Causes
from ctrlapi_async._bulk.cost import RunCost
from ctrlapi_async._bulk.denials import Denials
from ctrlapi_async._bulk.filtering import JobFilter
from ctrlapi_async._bulk.jobs import Job, JobKind, JobState
from ctrlapi_async._bulk.open_tasks import causes, open_tasks, settle_open
from ctrlapi_async._bulk.outcomes import Outcomes
from ctrlapi_async._bulk.placing import Placer
from ctrlapi_async._bulk.polls import Waiting
from ctrlapi_async._bulk.reconcile import Reconciler
from ctrlapi_async._bulk.recovery import Recovery
from ctrlapi_async._bulk.restarts import RestartFollower
from ctrlapi_async._bulk.schedule import Schedule
from ctrlapi_async._errors import (
    CtrlApiError,
    DeadlineError,
    text_of,
)
from ctrlapi_async._models import ALL_ACTIVE, UNANSWERED, StopResult, StopStats
from ctrlapi_async._protocol.requests import TaskCall

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ctrlapi_async._bulk.options import RunOptions
    from ctrlapi_async._bulk.outcomes import OutcomeStore
    from ctrlapi_async._bulk.reconcile import OnRow
    from ctrlapi_async._models import RetryPolicy
    from ctrlapi_async._protocol.replies import Rows
    from ctrlapi_async._reports import Verdict


class StopPlan:
    """Decides what is sent next, and accounts for every task.

    Args:
        options: What the caller asked for.
        policy: When and how often a request is repeated.
        began: When the run began, in seconds.
        random: Returns a random number from 0 to below 1.
        streaming: Whether ids arrive over time.
        on_row: Called with each task that was checked, its row and its chain's current row.
        unknown_statuses: Statuses that were warned about already.
    """

    def __init__(
        self,
        options: RunOptions,
        policy: RetryPolicy,
        *,
        began: float,
        random: Callable[[], float],
        streaming: bool = False,
        on_row: OnRow | None = None,
        unknown_statuses: set[str] | None = None,
    ) -> None:
        self.done = False
        """Whether every task has its final outcome."""
        self._options = options
        self._deadline = began + (math.inf if options.timeout is None else options.timeout)
        self._causes = Causes()
        self._outcomes = Outcomes(collect=options.collect, unknown_statuses=unknown_statuses)
        self._schedule = schedule = Schedule(streaming=streaming)
        self._placer = placer = Placer(self._outcomes, schedule, options, self._causes.note)
        self._restarts = RestartFollower(self._outcomes, placer)
        self._reconciler = Reconciler(self._outcomes, placer, self._restarts, options, on_row)
        self._denials = Denials(schedule, placer)
        self._recovery = Recovery(
            schedule, placer, self._denials, policy, deadline=self._deadline, random=random
        )
        self._answers = Answers(self._reconciler, self._recovery, self._denials)
        self._waiting = Waiting(schedule, placer, options, began)
        self._cost = RunCost(began)
        self._filter = JobFilter(self._outcomes, placer, self._restarts, self._recovery)

    # --- tasks in -----------------------------------------------------------------------------

    def set_chunk(self, chunk: int) -> None:
        """Set how many task ids a request carries at most."""
        self._schedule.chunk = chunk

    def add_tasks(self, project_id: int, task_ids: list[int], now: float) -> None:
        """Ask for tasks; those that were asked for before are passed over.

        Raises:
            ValueError: A task was asked for in another project.
        """
        self._recovery.projects.add(project_id)
        new = self._outcomes.admit(project_id, task_ids)
        if self.done:  # they were read already when the run was ended
            why = None if self.fatal_error is None else text_of(self.fatal_error)
            self._outcomes.settle(project_id, new, StopResult.NOT_SENT, None, why)
            return
        waiting = self._schedule.unchecked if self._options.check else self._schedule.running
        waiting.add(project_id, new, now)

    def add_all_active(self, project_id: int) -> None:
        """Ask for whatever the server calls active in a project."""
        self._recovery.projects.add(project_id)
        self._schedule.queue(Job(JobKind.CHECK, [TaskCall(project_id, ALL_ACTIVE)]))

    def close_input(self, now: float) -> None:
        """Note that no more tasks will be added."""
        self._schedule.input_open = False
        self._conclude(now)

    def discard(self, task_id: int) -> None:
        """Leave a task alone from now on, unless its stop was sent already."""
        self._filter.discard(task_id)

    # --- jobs out -----------------------------------------------------------------------------

    def ready(self, max_ids: int | None, now: float) -> int:
        """Return how many jobs `next_job` could return now; arguments as there."""
        if self.done or self.fatal_error is not None:
            return 0
        return self._schedule.ready(self._limit(max_ids), now)

    def next_job(self, max_ids: int | None, now: float) -> Job | None:
        """Return the job that goes next, as sent, or None.

        Args:
            max_ids: Task ids a request that the server is known to take.
            now: The time in seconds.
        """
        if self.done or self.fatal_error is not None:
            return None
        limit = self._limit(max_ids)
        while (job := self._schedule.take(limit, now)) is not None:
            if self._filter.keep(job, now):
                job.companion = self._denials.companion(job) if job.size < limit else None
                job.state = JobState.IN_FLIGHT
                job.attempt += 1
                self._cost.add(job)
                return job
            del self._schedule.jobs[job]
        self._conclude(now)
        return None

    def _limit(self, max_ids: int | None) -> int:
        return min(self._schedule.chunk, max_ids or self._schedule.chunk)

    # --- answers ------------------------------------------------------------------------------

    def receive(
        self,
        job: Job,
        reply: list[Rows | CtrlApiError] | CtrlApiError,
        now: float,
        proven: Collection[str] = (),
    ) -> None:
        """Note what came of a job.

        Args:
            job: The job, as `next_job` returned it.
            reply: The answer to each of its calls, or what the request as a whole met.
            now: The time in seconds.
            proven: Methods that have had a good answer in this session.
        """
        if self.done:
            return
        del self._schedule.jobs[job]
        if job.kind in (JobKind.STOP, JobKind.VERIFY):
            self._waiting.stop_answered(now)
        self._answers.receive(job, reply, now, proven)
        self._conclude(now)

    def receive_part(self, job: Job, rows: Rows, now: float) -> None:
        """Note a part of the answer to a job that asks for all active tasks of a project.

        Args:
            job: The job; `receive` comes after its last part.
            rows: Some of the rows, those of a restart chain together.
            now: The time in seconds.
        """
        if not self.done:
            [call] = job.calls
            self._reconciler.receive(job, call, rows, now)

    def next_wakeup(self, now: float) -> float:
        """Return when `wake` is to be called next, in seconds; infinite: never."""
        if self.done:
            return math.inf
        return min(self._deadline, self._schedule.next_wakeup(now), self._waiting.next_wakeup())

    def wake(self, now: float) -> None:
        """Do what is due."""
        if self.done:
            return
        if now >= self._deadline:
            timeout = cast("float", self._options.timeout)
            seconds = round(timeout, 2) or timeout  # callers may have calculated it
            self.abort(DeadlineError(f"the run's {seconds:g} s are over"), now)
            return
        self._schedule.wake(now)
        self._waiting.wake(now)
        self._conclude(now)

    # --- the end ------------------------------------------------------------------------------

    @property
    def errors(self) -> list[Exception]:
        """What left tasks without an answer."""
        return self._causes.errors

    @property
    def fatal_error(self) -> Exception | None:
        """Why no further request is sent."""
        return self._recovery.fatal_error

    def note(self, error: Exception) -> None:
        """Keep an error for the end of the run."""
        self._causes.note(error)

    def abort(self, error: Exception, now: float) -> None:
        """End the run at once; a second time does nothing.

        Args:
            error: Why; kept if it leaves a task without an answer.
            now: The time in seconds.
        """
        if self.done:
            return
        self._recovery.fatal_error = self.fatal_error or error
        self._close(self._recovery.fatal_error, now)

    def _conclude(self, now: float) -> None:
        """End the run if there is nothing left to do, or nothing that may be done."""
        if self.done:
            return
        if self.fatal_error is None:
            if self._schedule.resolved:
                self._close(None, now)
        elif not any(self._schedule.in_state(JobState.IN_FLIGHT)):
            self._close(self.fatal_error, now)

    def _close(self, error: Exception | None, now: float) -> None:
        """Settle every task that has no final outcome yet."""
        listing = self.listing
        met = causes(self._schedule, self._outcomes)
        if error is not None:
            dead = self._recovery.dead_projects
            settle_open(self._schedule, self._outcomes, lambda of: text_of(dead.get(of, error)))
        unanswered = any(self._outcomes.store.settled[result] for result in UNANSWERED)
        if error is not None and (listing or unanswered):
            # That the time is over says less than why it was not enough.
            for cause in (*met, error) if isinstance(error, DeadlineError) else (error, *met):
                self.note(cause)
        self.done = True
        self._cost.ended_at = now

    @property
    def counts(self) -> dict[StopResult, int]:
        """How many tasks have each result now."""
        return self._outcomes.counts(() if self.done else open_tasks(self._schedule))

    def snapshot(self) -> dict[int, Verdict]:
        """Return what is known of each task now, in the order asked for."""
        store = self._outcomes.store
        return store.verdicts if self.done else self._outcomes.snapshot(open_tasks(self._schedule))

    @property
    def store(self) -> OutcomeStore:
        """The outcomes, as they are announced."""
        return self._outcomes.store

    @property
    def listing(self) -> bool:
        """Whether more tasks may come to be known: from the source, or in an answer to `"*"`."""
        return self._schedule.input_open or any(
            call.task_ids is ALL_ACTIVE for job in self._schedule.jobs for call in job.calls
        )

    @property
    def backlog(self) -> int:
        """How many tasks wait for a first answer."""
        return self._schedule.backlog

    def stats(self, now: float) -> StopStats:
        """Return what the run has cost so far."""
        return self._cost.stats(now)
