"""Tasks and what becomes of them as time goes by. Pure: the time is an argument."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STATUSES: Final = (
    "Scheduled",
    "Explore",
    "Running",
    "Completed",
    "Rejected",
    "Canceled",
    "Stalled",
)
"""Every status that the API's documentation names, in the order of a task's life."""

RUNNING: Final = "Running"
CANCELED: Final = "Canceled"
STALLED: Final = "Stalled"
ACTIVE: Final = frozenset({"Scheduled", "Explore", RUNNING})


def known(word: str, words: Iterable[str], what: str) -> str:
    """Return the word if it is one of the words; raise ValueError if it is not."""
    if word not in words:
        raise ValueError(f"{what} must be one of {', '.join(words)}, not {word!r}")
    return word


class Timeline:
    """The statuses of a task that is not stopped; shared by the tasks that were added together.

    Args:
        start: The time from which `first` counts.
        first: The first status.
        life: Pairs of seconds since the start and the status from then on.
    """

    __slots__ = ("changes", "first", "start")

    def __init__(self, start: float, first: str, life: Iterable[tuple[float, str]] = ()) -> None:
        self.start = start
        self.first = known(first, STATUSES, "status")
        self.changes = tuple(
            (start + seconds, known(status, STATUSES, "status")) for seconds, status in life
        )
        moments = [start, *(moment for moment, _ in self.changes)]
        if any(later <= sooner for sooner, later in pairwise(moments)):
            raise ValueError("the seconds of a life must be above zero and rise")

    def at(self, now: float) -> str:
        """Return the status at a time."""
        status = self.first
        for moment, following in self.changes:
            if now < moment:
                break
            status = following
        return status

    @property
    def stalls_at(self) -> float | None:
        """When the task is Stalled for the first time, or None."""
        moments = [(self.start, self.first), *self.changes]
        return next((moment for moment, status in moments if status == STALLED), None)


@frozen
class Restart:
    """A restart of a Stalled task, as the server will carry it out.

    Args:
        status: The new task's first status.
        life: Pairs of seconds since the restart and the new task's status from then on.
        after: Seconds from the moment the old task stalled to the restart.
    """

    status: str = field(default=RUNNING)
    life: Sequence[tuple[float, str]] = field(default=(), kw_only=True)
    after: float = field(default=0.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        Timeline(0.0, self.status, self.life)
        if not self.after >= 0:
            raise ValueError("after must not be below zero")


@define(eq=False)
class Project:
    """A project: its user, its tasks, and how often a Stalled task of it is restarted."""

    project_id: int
    user_id: int
    attempts_number: int
    tasks: list[Task] = field(factory=list)


class Task:
    """A task as it truly is.

    Attributes:
        task_id: The id.
        project: The project that it belongs to.
        timeline: Its statuses as long as no stop takes effect.
        restarts: The restarts that are to come.
        chain: The tasks of its restart chain, oldest first; None while there is no other.
        stop_at: When the last accepted stop takes effect, or None.
        stop_requests: TaskStop requests that were accepted.
    """

    __slots__ = (
        "chain",
        "project",
        "restarts",
        "stop_at",
        "stop_requests",
        "task_id",
        "timeline",
    )

    def __init__(
        self, task_id: int, project: Project, timeline: Timeline, restarts: Sequence[Restart] = ()
    ) -> None:
        self.task_id = task_id
        self.project = project
        self.timeline = timeline
        self.restarts = restarts
        self.chain: list[Task] | None = None
        self.stop_at: float | None = None
        self.stop_requests = 0

    @property
    def initial_task_id(self) -> int:
        """The id of the first task of the chain."""
        return self.task_id if self.chain is None else self.chain[0].task_id

    @property
    def newest(self) -> Task:
        """The newest task of the chain."""
        return self if self.chain is None else self.chain[-1]

    def status_at(self, now: float) -> str:
        """Return the status at a time."""
        if self.stop_at is not None and self.stopped_at(now):
            return CANCELED
        timeline = self.timeline
        return timeline.at(now) if timeline.changes else timeline.first

    def stopped_at(self, now: float) -> bool:
        """Return whether an accepted stop has taken effect: the task was Running until then."""
        stop_at = self.stop_at
        return stop_at is not None and now >= stop_at and self.timeline.at(stop_at) == RUNNING

    def accept_stop(self, now: float, delay: float) -> None:
        """Accept a TaskStop, which takes effect after a delay."""
        self.stop_requests += 1
        # A stop that is under way is not put off by another; one that came to nothing is over.
        if self.stop_at is None or now >= self.stop_at:
            self.stop_at = now + delay

    def set_timeline(self, timeline: Timeline) -> None:
        """Set other statuses for the task and forget a stop that was accepted."""
        self.timeline = timeline
        self.stop_at = None
