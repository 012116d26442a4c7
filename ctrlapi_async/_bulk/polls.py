"""When tasks are asked about again and again: a series of pauses that grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ctrlapi_async._bulk.jobs import TaskQueue

FIRST_PAUSE: Final = 0.2
GROWTH: Final = 1.5
LONGEST_PAUSE: Final = 5.0


class PollSeries:
    """The times at which the tasks of a queue are asked about again.

    Args:
        waiting: The tasks to be asked about.
        due: Where they are put when it is time.
        now: The time in seconds.
    """

    def __init__(self, waiting: TaskQueue, due: TaskQueue, now: float) -> None:
        self._waiting = waiting
        self._due = due
        self.restart(now)

    def restart(self, now: float) -> None:
        """Begin the series anew."""
        self._pause = FIRST_PAUSE
        self._next_at = now + self._pause

    @property
    def at(self) -> float:
        """When tasks are asked about next, in seconds; infinite if none wait."""
        if not self._waiting.size:
            return float("inf")
        return max(self._next_at, self._waiting.since + FIRST_PAUSE)

    def wake(self, now: float) -> None:
        """Move the tasks that wait if it is time."""
        if self.at <= now:
            self.move(now)
            self._pause = min(self._pause * GROWTH, LONGEST_PAUSE)
            self._next_at = now + self._pause

    def move(self, now: float) -> None:
        """Move the tasks that wait, whatever the time."""
        for project_id, task_ids in self._waiting.take_all():
            self._due.add(project_id, task_ids, now)
