"""When tasks are asked about again and again: a series of pauses that grow."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ctrlapi_async._bulk.jobs import TaskQueue
    from ctrlapi_async._bulk.options import RunOptions
    from ctrlapi_async._bulk.placing import Placer
    from ctrlapi_async._bulk.schedule import Schedule

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
            return math.inf
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


class Waiting:
    """Has pending tasks asked about until they run, and stopped ones until they have ended.

    Args:
        schedule: Where these tasks wait.
        placer: Is told when the waiting is over.
        options: For how long the caller wants to wait.
        began: When the run began, in seconds.
    """

    def __init__(
        self, schedule: Schedule, placer: Placer, options: RunOptions, began: float
    ) -> None:
        self._schedule = schedule
        self._placer = placer
        self._pending_polls = PollSeries(schedule.pending, schedule.due_pending, began)
        self._pending_end = began + (options.wait_pending or 0.0)
        self._stopped_polls = PollSeries(schedule.stopped, schedule.due_stopped, began)
        self._stopped_wait = options.wait_stopped or 0.0
        self._only_following = False
        self._last_stop = began

    def stop_answered(self, now: float) -> None:
        """Note that the answer to a stop came: the wait for stopped tasks begins anew."""
        self._last_stop = now

    def next_wakeup(self) -> float:
        """Return when `wake` is to be called next, in seconds; infinite: not for this."""
        times = [self._pending_polls.at, self._stopped_polls.at]
        if self._schedule.pending.size:
            times.append(self._pending_end)
        if self._following_only:
            times.append(self._stopped_end)
        return min(times)

    def wake(self, now: float) -> None:
        """Do what is due."""
        if self._schedule.pending.size and now >= self._pending_end:
            self._placer.stop_waiting_pending(now)
        self._pending_polls.wake(now)
        if self._following_only:
            if not self._only_following:
                self._only_following = True
                self._stopped_polls.restart(now)
            if now >= self._stopped_end:
                # One last look at those that were still Running.
                self._placer.waiting_stopped = False
                self._stopped_polls.move(now)
        self._stopped_polls.wake(now)

    @property
    def _stopped_end(self) -> float:
        return self._last_stop + self._stopped_wait

    @property
    def _following_only(self) -> bool:
        """Whether all that is left is to see stopped tasks end."""
        return bool(
            self._placer.waiting_stopped
            and self._schedule.stopped.size
            and not self._schedule.stopping
        )
