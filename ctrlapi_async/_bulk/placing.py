"""Where tasks go whose status is known: to what is next for them, or to their outcome."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from ctrlapi_async._bulk.jobs import JobKind
from ctrlapi_async._errors import DeadlineError, bounded, text_of
from ctrlapi_async._models import StopResult, TaskStatus, parse_status

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ctrlapi_async._bulk.jobs import Job
    from ctrlapi_async._bulk.options import RunOptions
    from ctrlapi_async._bulk.outcomes import Outcomes
    from ctrlapi_async._bulk.schedule import Schedule
    from ctrlapi_async._errors import CtrlApiError
    from ctrlapi_async._protocol.replies import Row

STOPPING_UNAVAILABLE: Final = "Stopping task is unavailable"

EXPLAIN_ROUNDS: Final = 3
"""How often a task is asked about after the server refused to stop it."""


class Visit(NamedTuple):
    """What tasks were asked for that are placed now.

    Args:
        kind: The kind of the job.
        project_id: Their project.
        now: The time in seconds.
        lost: Why the fate of a stop of theirs is unknown, if one was sent.
    """

    kind: JobKind
    project_id: int
    now: float
    lost: CtrlApiError | None = None

    def as_check(self) -> Visit:
        """Return the same for tasks that are checked for the first time."""
        return self._replace(kind=JobKind.CHECK, lost=None)


class Placer:
    """Puts tasks where they are dealt with next, or settles them.

    Args:
        outcomes: Where outcomes are noted.
        schedule: Where tasks wait for what is next.
        options: What the caller asked for.
        note: Keeps an error for the end of the run.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        schedule: Schedule,
        options: RunOptions,
        note: Callable[[Exception], None],
    ) -> None:
        self.waiting_pending = options.wait_pending is not None
        """Whether pending tasks are asked about again."""
        self.waiting_stopped = options.wait_stopped is not None
        """Whether tasks that were stopped and still run are asked about again."""
        self.note = note
        """Keeps an error for the end of the run."""
        self.known_tasks: dict[int, int] = {}
        """For each project a task that is known to exist."""
        self._outcomes = outcomes
        self._schedule = schedule
        self._options = options
        self._refusals: Counter[int] = Counter()

    def place(
        self,
        visit: Visit,
        task_ids: list[int],
        status: TaskStatus | str,
        restarted_as: int | None = None,
    ) -> list[int]:
        """Put tasks with a status where they are dealt with next, or settle them.

        Returns:
            Those that are to be stopped once more because a lost stop did not stop them.
        """
        kind, project_id, now, lost = visit
        outcomes, schedule = self._outcomes, self._schedule
        if lost is not None:
            if status is TaskStatus.RUNNING:
                outcomes.mark(project_id, task_ids, StopResult.NOT_SENT, status)
                return task_ids
            canceled = status is TaskStatus.CANCELED
            result = StopResult.STOP_SENT if canceled else StopResult.NOT_RUNNING
            text = bounded(f"the reply to TaskStop was lost: {text_of(lost)}")
            outcomes.settle(project_id, task_ids, result, status, text, restarted_as)
        elif kind is JobKind.POLL_STOPPED:
            self._place_stopped(visit, task_ids, status, restarted_as)
        elif status is TaskStatus.RUNNING and self._options.dry_run:
            outcomes.settle(project_id, task_ids, StopResult.WOULD_STOP, status)
        elif status is TaskStatus.RUNNING:
            if exhausted := self._exhausted(project_id, task_ids):
                self._settle_refused(project_id, exhausted, status)
                task_ids = [n for n in task_ids if n not in exhausted]
            outcomes.mark(project_id, task_ids, StopResult.NOT_SENT, status)
            schedule.running.add(project_id, task_ids, now)
        elif self.waiting_pending and is_pending(status):
            outcomes.mark(project_id, task_ids, StopResult.NOT_RUNNING, status)
            schedule.pending.add(project_id, task_ids, now)
        elif kind is JobKind.EXPLAIN:
            self._settle_refused(project_id, task_ids, status, restarted_as)
        else:
            outcomes.settle(
                project_id, task_ids, StopResult.NOT_RUNNING, status, None, restarted_as
            )
        return []

    def _exhausted(self, project_id: int, task_ids: list[int]) -> set[int]:
        """Return the tasks that the server has refused to stop too often, restarts included."""
        refusals = self._refusals
        if not refusals:
            return set()
        chains = self._outcomes.chains(project_id)
        return {n for n in task_ids if refusals[chains.initial_of(n)] >= EXPLAIN_ROUNDS}

    def _settle_refused(
        self,
        project_id: int,
        task_ids: Collection[int],
        status: TaskStatus | str,
        restarted_as: int | None = None,
    ) -> None:
        chains = self._outcomes.chains(project_id)
        for task_id in task_ids:
            self._refusals.pop(chains.initial_of(task_id), None)
        self._outcomes.settle(
            project_id,
            list(task_ids),
            StopResult.UNAVAILABLE,
            status,
            STOPPING_UNAVAILABLE,
            restarted_as,
        )

    def _place_stopped(
        self,
        visit: Visit,
        task_ids: list[int],
        status: TaskStatus | str,
        restarted_as: int | None = None,
    ) -> None:
        """Place tasks for which a stop was sent."""
        project_id = visit.project_id
        if self.waiting_stopped and (status is TaskStatus.RUNNING or is_pending(status)):
            self._outcomes.mark(project_id, task_ids, StopResult.STOP_SENT, status)
            self._schedule.stopped.add(project_id, task_ids, visit.now)
        elif status is not TaskStatus.RUNNING:
            self._outcomes.settle(
                project_id, task_ids, StopResult.STOP_SENT, status, None, restarted_as
            )
        else:
            seconds = self._options.wait_stopped
            error = DeadlineError(f"tasks were still Running {seconds:g} s after the last stop")
            self.note(error)
            self._outcomes.settle(
                project_id, task_ids, StopResult.STILL_RUNNING, status, text_of(error)
            )

    def place_sent(
        self, project_id: int, task_ids: list[int], seen: TaskStatus | None, now: float
    ) -> None:
        """Note that the server accepted stops."""
        if not task_ids:
            return
        if self.waiting_stopped:
            for chain in self._outcomes.chains(project_id).split(task_ids)[1]:
                chain.stop_sent_to = chain.target
            self._outcomes.mark(project_id, task_ids, StopResult.STOP_SENT, seen)
            self._schedule.stopped.add(project_id, task_ids, now)
        else:
            self._outcomes.settle(project_id, task_ids, StopResult.STOP_SENT, seen)

    def place_refused(
        self, project_id: int, task_ids: list[int], seen: TaskStatus | None, now: float
    ) -> None:
        """Note that the server refused to stop tasks: unless they were not checked, ask why."""
        if not self._options.check:
            self._outcomes.settle(
                project_id, task_ids, StopResult.UNAVAILABLE, None, STOPPING_UNAVAILABLE
            )
        elif task_ids:
            self._refusals.update(map(self._outcomes.chains(project_id).initial_of, task_ids))
            self._outcomes.mark(
                project_id, task_ids, StopResult.UNAVAILABLE, seen, STOPPING_UNAVAILABLE
            )
            self._schedule.refused.add(project_id, task_ids, now)

    def stop_waiting_pending(self, now: float) -> None:
        """Settle pending tasks as they are, those that are about to be asked about included."""
        self.waiting_pending = False
        for queue in (self._schedule.pending, self._schedule.due_pending):
            for project_id, task_ids in queue.take_all():
                table = self._outcomes.chains(project_id)
                news = {n: one for n, one in table.with_news(task_ids) if one is table.by_target(n)}
                waiting = [task_id for task_id in task_ids if task_id not in news]
                self._outcomes.settle_known(project_id, waiting, None, None)
                for chain in news.values():
                    # Another task's check has said how this one goes on.
                    if (moved := table.retarget(chain, chain.current)) is not None:
                        self._outcomes.include_target(project_id, moved)
                        visit = Visit(JobKind.CHECK, project_id, now)
                        self.place(visit, [moved.target], status_of(moved.current))

    # --- without a status ---------------------------------------------------------------------

    def settle_missing(self, job: Job, project_id: int, task_ids: list[int], text: str) -> None:
        """Settle tasks of which the server says that they are not there."""
        outcomes = self._outcomes
        if job.kind is JobKind.CHECK:
            task_ids = outcomes.unchecked(project_id, task_ids)
            outcomes.settle_asked(project_id, task_ids, StopResult.NOT_FOUND, text)
        elif job.kind in (JobKind.EXPLAIN, JobKind.POLL_STOPPED):
            outcomes.settle_known(project_id, task_ids, None, None)
        elif job.lost is not None:
            self.settle_lost(job.lost, project_id, task_ids, f"when checked: {text}")
        else:
            outcomes.settle_known(project_id, task_ids, StopResult.NOT_FOUND, text)

    def settle_lost(self, lost: Exception, project_id: int, task_ids: list[int], text: str) -> None:
        """Settle tasks whose stop was lost and of which nothing more can be learnt."""
        self.note(lost)
        cause = text_of(lost)
        text = cause if text == cause else f"{cause}; {text}"
        self._outcomes.settle_known(project_id, task_ids, StopResult.UNCONFIRMED, text)

    def give_up(self, job: Job, project_id: int, task_ids: list[int], error: Exception) -> None:
        """Settle tasks of a job that got no answer."""
        outcomes, text = self._outcomes, text_of(error)
        if job.kind is JobKind.CHECK:
            task_ids = outcomes.unchecked(project_id, task_ids)
            if outcomes.settle_asked(project_id, task_ids, StopResult.NOT_SENT, text):
                self.note(error)
            return
        if not task_ids:
            return
        if job.kind is JobKind.EXPLAIN:
            outcomes.settle_known(project_id, task_ids, None, None)
            return
        self.note(error)
        if job.kind is JobKind.POLL_STOPPED:
            outcomes.settle_known(project_id, task_ids, StopResult.STILL_RUNNING, text)
        elif job.lost is not None:
            self.settle_lost(job.lost, project_id, task_ids, text)
        else:
            outcomes.settle_known(project_id, task_ids, StopResult.NOT_SENT, text)


def status_of(row: Row) -> TaskStatus | str:
    return parse_status(row.status) or ""


def is_pending(status: TaskStatus | str) -> bool:
    return isinstance(status, TaskStatus) and status.pending
