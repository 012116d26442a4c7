"""Requests as the plan sees them: what each is for, which tasks it carries, how it is doing."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from attrs import define, evolve

from ctrlapi_async._models import AllActive
from ctrlapi_async._protocol.requests import TASK_STATUS, TASK_STOP, TaskCall

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrlapi_async._errors import CtrlApiError

MAX_CALLS: Final = 1000
"""Method calls a request at most: some 100 kB of JSON around their ids."""


class JobKind(Enum):
    """What a request is for; `method` is the API's method that does it."""

    STOP = "stop", TASK_STOP
    """Stop tasks that were Running when last seen."""
    CHECK = "check", TASK_STATUS
    """Ask about tasks for the first time."""
    VERIFY = "verify", TASK_STATUS
    """Ask what became of tasks whose stop may have been sent."""
    EXPLAIN = "explain", TASK_STATUS
    """Ask how tasks ended that the server refused to stop."""
    POLL_PENDING = "poll pending", TASK_STATUS
    """Ask again about tasks that are Scheduled or Explore."""
    POLL_STOPPED = "poll stopped", TASK_STATUS
    """Ask whether tasks that were stopped still run."""

    def __init__(self, _: str, method: str) -> None:
        self.method = method


class JobState(Enum):
    """Where a job is; a job that was answered is gone."""

    QUEUED = auto()
    IN_FLIGHT = auto()
    BACKING_OFF = auto()


@define(eq=False)
class Job:
    """One request, with all its repeats.

    Args:
        kind: What it is for.
        calls: Its method calls, one a project.
        state: Where it is.
        due: When it is queued again, in seconds, if it is backing off.
        attempt: How often it was sent.
        stop: The stop that is being verified, with its own repeats and failures.
        fault: What it met when it was last sent; None before that.
        first_fault_at: When it first failed, in seconds.
        successes_seen: How many requests of the run had succeeded when it last failed.
        successes_at_first: How many had succeeded when it first failed.
        singled_out: Whether it was halved because one of its tasks may spoil it.
        lost: Why the fate of an earlier stop of its tasks is unknown, if one was sent.
        companion: A task that is known to exist, asked about along with doubtful ones.
        doubtful: Whether one of its tasks is known not to exist.
    """

    kind: JobKind
    calls: list[TaskCall]
    state: JobState = JobState.QUEUED
    due: float = 0.0
    attempt: int = 0
    stop: Job | None = None
    fault: CtrlApiError | None = None
    first_fault_at: float | None = None
    successes_seen: int = 0
    successes_at_first: int = 0
    singled_out: bool = False
    lost: CtrlApiError | None = None
    companion: int | None = None
    doubtful: bool = False

    @property
    def size(self) -> int:
        """How many task ids it carries; `"*"` counts as one."""
        return sum(len(call) for call in map(listed_ids, self.calls)) or 1

    @property
    def causes(self) -> list[CtrlApiError]:
        """Why its tasks will have no answer if the run ends now, apart from that."""
        if self.kind in (JobKind.EXPLAIN, JobKind.POLL_PENDING):
            return []  # its tasks have an answer
        return [error for error in (self.lost, self.fault) if error is not None]

    @property
    def wire_calls(self) -> list[TaskCall]:
        """The calls to send, with the companion."""
        if self.companion is None:
            return self.calls
        [call] = self.calls
        return [TaskCall(call.project_id, [*listed_ids(call), self.companion])]

    def part(self, calls: list[TaskCall]) -> Job:
        """Return a queued job for some of the calls, with the same history."""
        return evolve(self, calls=calls, state=JobState.QUEUED, companion=None, doubtful=False)

    def renewed(self, calls: list[TaskCall]) -> Job:
        """Return a queued job for some of the calls, without history: it was answered."""
        return evolve(self.part(calls), attempt=0, fault=None, first_fault_at=None)

    def halves(self) -> tuple[Job, Job]:
        """Return two jobs with half of the tasks each; there must be two or more."""
        room = self.size // 2
        front: list[TaskCall] = []
        back: list[TaskCall] = []
        for call in self.calls:
            ids = listed_ids(call)
            if ids[:room]:
                front.append(TaskCall(call.project_id, ids[:room]))
            if ids[room:]:
                back.append(TaskCall(call.project_id, ids[room:]))
            room = max(0, room - len(ids))
        return self.part(front), self.part(back)


def listed_ids(call: TaskCall) -> list[int]:
    """Return the ids of a call; none if it asks for all active tasks."""
    return [] if isinstance(call.task_ids, AllActive) else call.task_ids


class TaskQueue:
    """Tasks that wait for a request, project by project, first come, first served."""

    def __init__(self) -> None:
        self._entries: deque[tuple[int, list[int], float]] = deque()
        self._start = 0
        self.size = 0

    @property
    def since(self) -> float:
        """When the task at the front was added, in seconds; infinite for an empty queue."""
        return self._entries[0][2] if self._entries else float("inf")

    def add(self, project_id: int, task_ids: list[int], now: float) -> None:
        """Put tasks at the end."""
        if task_ids:
            self._entries.append((project_id, task_ids, now))
            self.size += len(task_ids)

    def take(self, limit: int, *, projects: int = MAX_CALLS) -> list[TaskCall]:
        """Remove up to `limit` tasks, of so many projects at most, from the front."""
        taken: dict[int, list[int]] = {}
        room = limit
        while room and self._entries:
            project_id, task_ids, _ = self._entries[0]
            if project_id not in taken and len(taken) == projects:
                break
            piece = task_ids[self._start : self._start + room]
            room -= len(piece)
            self._start += len(piece)
            if self._start == len(task_ids):
                self._entries.popleft()
                self._start = 0
            if project_id in taken:
                taken[project_id] += piece
            else:
                taken[project_id] = piece
        self.size -= limit - room
        return [TaskCall(project_id, task_ids) for project_id, task_ids in taken.items()]

    def take_all(self) -> list[tuple[int, list[int]]]:
        """Remove all tasks, and return them by project."""
        entries = list(self)
        self._entries.clear()
        self._start = 0
        self.size = 0
        return entries

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        start = self._start
        for project_id, task_ids, _ in self._entries:
            yield project_id, task_ids[start:]
            start = 0
