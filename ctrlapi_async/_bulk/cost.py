"""What a run costs."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ctrlapi_async._models import StopStats
from ctrlapi_async._protocol.requests import TASK_STOP

if TYPE_CHECKING:
    from ctrlapi_async._bulk.jobs import Job


class RunCost:
    """Counts a run's requests and its time.

    Args:
        began: When the run began, in seconds.
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self.ended_at: float | None = None
        """When it ended, in seconds."""
        self._requests: Counter[str] = Counter()
        self._retries = 0

    def add(self, job: Job) -> None:
        """Count a request that is sent."""
        self._requests[job.kind.method] += 1
        self._retries += job.attempt > 1

    def stats(self, now: float) -> StopStats:
        """Return what the run has cost until its end, or until now."""
        stop_calls = self._requests[TASK_STOP]
        end = now if self.ended_at is None else self.ended_at
        return StopStats(
            status_calls=self._requests.total() - stop_calls,
            stop_calls=stop_calls,
            retries=self._retries,
            elapsed=end - self._began,
        )
