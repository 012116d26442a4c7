"""What goes next: tasks that wait in queues, and jobs with one state each.

Whatever can be derived from these is derived: which job goes next, how many are ready, when the
next one will be, whether anything is unresolved.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

from ctrlapi_async._bulk.jobs import Job, JobKind, JobState, TaskQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

FLUSH_AFTER: Final = 0.05
"""Seconds that tasks of a stream wait for a full chunk."""

DOUBTFUL_IN_FLIGHT: Final = 2
"""Requests at a time that look for tasks that do not exist: each one's answer steers the next."""


class _Portion(NamedTuple):
    """Jobs that a queue could be cut into now."""

    queue: TaskQueue
    kind: JobKind
    limit: int
    jobs: int
    projects: int = 1000
    urgent: bool = False
    """Whether it goes before jobs that are queued."""


class Schedule:
    """Holds all tasks and jobs of a run that are not resolved yet.

    Args:
        streaming: Whether ids arrive over time, so that a partial chunk must not wait for long.
    """

    def __init__(self, *, streaming: bool) -> None:
        self._streaming = streaming
        self.chunk = 1
        """Task ids a request at most."""
        self.input_open = True
        """Whether more tasks may be added."""
        self.jobs: dict[Job, None] = {}
        self.unchecked = TaskQueue()
        self.running = TaskQueue()
        self.refused = TaskQueue()
        """Tasks that the server refused to stop, to be asked about once more."""
        self.doubtful = TaskQueue()
        """Tasks among which some do not exist."""
        self.group_size: int | None = None
        """How many doubtful tasks are asked about together; None: a chunk."""
        self.pending = TaskQueue()
        self.stopped = TaskQueue()
        self.due_pending = TaskQueue()
        self.due_stopped = TaskQueue()

    # --- jobs ---------------------------------------------------------------------------------

    def in_state(self, state: JobState, *kinds: JobKind) -> Iterator[Job]:
        """Iterate over the jobs in a state, of some kinds or of all."""
        return (job for job in self.jobs if job.state is state and (not kinds or job.kind in kinds))

    def any_job(self, *kinds: JobKind, waiting: bool = True) -> bool:
        """Return whether there are jobs of some kinds; `waiting`: those backing off included."""
        return any(
            job.kind in kinds and (waiting or job.state is not JobState.BACKING_OFF)
            for job in self.jobs
        )

    def queue(self, job: Job) -> None:
        """Put a job at the end of those that are ready."""
        self.jobs.pop(job, None)
        job.state = JobState.QUEUED
        self.jobs[job] = None

    def back_off(self, job: Job, until: float) -> None:
        """Let a job wait until a time in seconds."""
        job.state = JobState.BACKING_OFF
        job.due = until
        self.jobs[job] = None

    def wake(self, now: float) -> None:
        """Queue the jobs whose time has come."""
        for job in [one for one in self.in_state(JobState.BACKING_OFF) if one.due <= now]:
            self.queue(job)

    # --- what is derived ----------------------------------------------------------------------

    def ready(self, limit: int, now: float) -> int:
        """Return how many jobs could be taken now.

        Args:
            limit: Task ids a request at most.
            now: The time in seconds.
        """
        queued = sum(-(-job.size // limit) for job in self.in_state(JobState.QUEUED))
        return queued + sum(portion.jobs for portion in self._portions(limit, now))

    def take(self, limit: int, now: float) -> Job | None:
        """Remove the job that goes next; arguments as for `ready`."""
        portion = next(self._portions(limit, now), None)
        queued = (self.in_state(JobState.QUEUED, JobKind.STOP), self.in_state(JobState.QUEUED))
        job = next(chain(*queued), None)
        if portion is not None and (portion.urgent or job is None):
            return self._cut(portion)
        while job is not None and job.size > limit:
            del self.jobs[job]
            job, other = job.halves()
            self.jobs = {job: None, other: None} | self.jobs
        return job

    def _cut(self, portion: _Portion) -> Job:
        calls = portion.queue.take(portion.limit, projects=portion.projects)
        job = Job(portion.kind, calls, doubtful=portion.queue is self.doubtful)
        self.jobs[job] = None
        return job

    def _portions(self, limit: int, now: float) -> Iterator[_Portion]:
        """Return what each queue offers, in the order in which jobs are taken.

        Stops go first when a chunk is full or has waited too long, and else when there is nothing
        left to check. What was asked before is asked again when there is nothing else to do.
        """
        waited = self._waited(self.running, now)
        if jobs := _jobs(self.running, limit, waited):
            yield _Portion(self.running, JobKind.STOP, limit, jobs, urgent=True)
        if self.doubtful.size:
            yield from self._doubtful_portion(limit)
        partial = not self.input_open or self._waited(self.unchecked, now)
        if jobs := _jobs(self.unchecked, limit, partial):
            yield _Portion(self.unchecked, JobKind.CHECK, limit, jobs)
        checked = not (
            self.input_open
            or self.unchecked.size
            or self.doubtful.size
            or self.any_job(JobKind.CHECK, waiting=False)
        )
        if checked and not waited and self.running.size % limit:
            yield _Portion(self.running, JobKind.STOP, limit, 1)
        stopped = checked and not (
            self.running.size or self.any_job(JobKind.STOP, JobKind.VERIFY, waiting=False)
        )
        stopped = stopped or self._waited(self.refused, now)
        for queue, kind, partial in (
            (self.refused, JobKind.EXPLAIN, stopped),
            (self.due_pending, JobKind.POLL_PENDING, True),
            (self.due_stopped, JobKind.POLL_STOPPED, True),
        ):
            if jobs := _jobs(queue, limit, partial):
                yield _Portion(queue, kind, limit, jobs)

    def _doubtful_portion(self, limit: int) -> Iterator[_Portion]:
        size = min(limit, self.group_size or limit)
        room = DOUBTFUL_IN_FLIGHT if size > 1 else limit
        room -= sum(job.doubtful for job in self.in_state(JobState.IN_FLIGHT, JobKind.CHECK))
        if room > 0:
            jobs = min(_jobs(self.doubtful, size, partial=True), room)
            yield _Portion(self.doubtful, JobKind.CHECK, size, jobs, projects=1)

    def _waited(self, queue: TaskQueue, now: float) -> bool:
        return self._streaming and queue.since + FLUSH_AFTER <= now

    def next_wakeup(self, now: float) -> float:
        """Return when more jobs will be ready, in seconds; infinite: not by time alone."""
        times = [job.due for job in self.in_state(JobState.BACKING_OFF)]
        if self._streaming:
            times += [
                due
                for queue in (self.unchecked, self.running, self.refused)
                if (due := queue.since + FLUSH_AFTER) > now
            ]
        return min(times, default=float("inf"))

    @property
    def backlog(self) -> int:
        """How many tasks wait for a first answer, those in failed requests included."""
        waiting = (self.unchecked, self.running, self.refused, self.doubtful)
        return sum(queue.size for queue in waiting) + sum(
            job.size
            for job in self.jobs
            if job.state is not JobState.IN_FLIGHT
            and job.kind not in (JobKind.POLL_PENDING, JobKind.POLL_STOPPED)
        )

    @property
    def stopping(self) -> bool:
        """Whether a stop may yet be sent, or its answer come."""
        return bool(
            self.input_open
            or self.unchecked.size
            or self.running.size
            or self.refused.size
            or self.doubtful.size
            or self.pending.size
            or self.due_pending.size
            or any(job.kind is not JobKind.POLL_STOPPED for job in self.jobs)
        )

    @property
    def resolved(self) -> bool:
        """Whether nothing is left to do."""
        return not (self.stopping or self.stopped.size or self.due_stopped.size or self.jobs)


def _jobs(queue: TaskQueue, limit: int, partial: bool) -> int:
    full, rest = divmod(queue.size, limit)
    return full + (rest > 0 and partial)
