"""What users hold of the tasks: views that are safe in any thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ctrlapi_async.simulator._processing import Processor
    from ctrlapi_async.simulator._tasks import Task


class SimulatedTask:
    """A task as it truly is, whatever was answered about it."""

    __slots__ = ("_processor", "_task")

    def __init__(self, processor: Processor, task: Task) -> None:
        self._processor = processor
        self._task = task

    def __repr__(self) -> str:
        return f"<SimulatedTask {self.task_id} {self.status}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SimulatedTask) and self._task is other._task

    def __hash__(self) -> int:
        return hash(self._task)

    @property
    def task_id(self) -> int:
        """The task's id."""
        return self._task.task_id

    @property
    def project_id(self) -> int:
        """The project that the task belongs to."""
        return self._task.project.project_id

    @property
    def status(self) -> str:
        """The status now; set it to end whatever the task was going through."""
        with self._processor.lock:
            return self._task.status_at(self._processor.settled())

    @status.setter
    def status(self, status: str) -> None:
        with self._processor.lock:
            now = self._processor.settled()
            self._processor.state.set_status(self._task, status, now)
            self._processor.changes.announce()

    @property
    def stopped(self) -> bool:
        """Whether an accepted stop took effect: the task was Running until then."""
        return self._task.stopped_at(self._processor.clock.now)

    @property
    def stop_requests(self) -> int:
        """TaskStop requests that were accepted, whether or not their replies arrived."""
        return self._task.stop_requests

    @property
    def chain(self) -> tuple[int, ...]:
        """The ids of the tasks of its restart chain, oldest first; its own alone without one."""
        with self._processor.lock:
            self._processor.settled()
            return tuple(task.task_id for task in self._task.chain or [self._task])

    @property
    def initial_task_id(self) -> int:
        """The id of the first task of its restart chain."""
        return self.chain[0]

    @property
    def restarted_as(self) -> int | None:
        """The id of the newest task of its restart chain, or None if that is this one."""
        newest = self.chain[-1]
        return None if newest == self.task_id else newest


class SimulatedTasks(Mapping[int, SimulatedTask]):
    """All tasks by id, in the order in which they were added or restarted."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor

    def __getitem__(self, task_id: int) -> SimulatedTask:
        with self._processor.lock:
            self._processor.settled()
            return SimulatedTask(self._processor, self._processor.state.tasks[task_id])

    def __iter__(self) -> Iterator[int]:
        with self._processor.lock:
            self._processor.settled()
            return iter(list(self._processor.state.tasks))

    def __len__(self) -> int:
        with self._processor.lock:
            self._processor.settled()
            return len(self._processor.state.tasks)

    def __repr__(self) -> str:
        return f"<SimulatedTasks: {len(self)}>"
