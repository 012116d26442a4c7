"""The users, projects and tasks that a server knows. Pure: the time is an argument."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from itertools import chain, count
from typing import TYPE_CHECKING, Final

from ctrlapi_async.simulator._requests import MAX_INT
from ctrlapi_async.simulator._tasks import (
    ACTIVE,
    RUNNING,
    STALLED,
    STATUSES,
    Project,
    Restart,
    Task,
    Timeline,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

ATTEMPTS: Final = 3
"""Times that a server restarts a Stalled task, when the project says nothing else."""

_MOST_ATTEMPTS: Final = 10


class ServerState:
    """Users, projects and tasks; `settle` carries out what has become due.

    Attributes:
        projects: The projects by id.
        users: The ids of the users.
        tasks: The tasks by id, restarted ones included.
    """

    def __init__(self) -> None:
        self.projects: dict[int, Project] = {}
        self.users: set[int] = set()
        self.tasks: dict[int, Task] = {}
        self._largest_added = 0
        self._largest = 0
        # When a restart is due, in which order it was planned, its task and the timeline it is for.
        self._restarts: list[tuple[float, int, Task, Timeline]] = []
        self._planned = count()

    # Projects and tasks

    def add_project(
        self, project_id: int, user_id: int, attempts_number: int | None = None
    ) -> Project:
        """Add a project and its user, or return the one that is there.

        Args:
            project_id: The project.
            user_id: Its user.
            attempts_number: How often a Stalled task is restarted; None leaves it as it is.
        """
        for name, number in (("project_id", project_id), ("user_id", user_id)):
            if type(number) is not int:
                raise TypeError(f"{name} must be an int, not {number!r}")
        if attempts_number is not None and not 1 <= attempts_number <= _MOST_ATTEMPTS:
            raise ValueError(f"attempts_number must be from 1 to {_MOST_ATTEMPTS}")
        project = self.projects.get(project_id)
        if project is None:
            project = Project(project_id, user_id, ATTEMPTS)
            self.projects[project_id] = project
            self.users.add(user_id)
        elif project.user_id != user_id:
            raise ValueError(f"project {project_id} is user {project.user_id}'s")
        if attempts_number is not None:
            project.attempts_number = attempts_number
        return project

    def add_tasks(
        self,
        task_ids: Iterable[int],
        first: str,
        now: float,
        *,
        project_id: int,
        user_id: int,
        life: Iterable[tuple[float, str]] = (),
        restarts: int | Iterable[str | Restart] = 0,
    ) -> None:
        """Add many tasks that are alike; all of them or, when one can't be, none."""
        timeline = Timeline(now, first, life := tuple(life))
        script = _script(restarts, life)
        ids = self._checked_ids(list(task_ids))
        project = self.projects.get(project_id)
        attempts = ATTEMPTS if project is None else project.attempts_number
        if len(script) > attempts:
            raise ValueError(f"project {project_id} restarts a task {attempts} times at most")
        project = self.add_project(project_id, user_id)
        for task_id in ids:
            task = Task(task_id, project, timeline, script)
            self._enter(task)
        self._largest_added = max([self._largest_added, *ids])

    def add_mixed(
        self,
        total: int,
        now: float,
        *,
        running: float,
        restarted: float,
        seed: int,
        project_id: int,
        user_id: int,
        first_id: int,
    ) -> Counter[str]:
        """Add tasks of all statuses, scattered over their ids by a seed."""
        if total < 0:
            raise ValueError("count must not be below zero")
        if not (running >= 0 and restarted >= 0 and running + restarted <= 1):
            raise ValueError("running and restarted, and their sum, must be from 0 to 1")
        run = round(total * running)
        again = min(round(total * restarted), total - run)
        others = [status for status in STATUSES if status != RUNNING]
        rest = [others[index % len(others)] for index in range(total - run - again)]
        kinds = [(RUNNING, False)] * run + [(STALLED, True)] * again
        kinds += [(status, False) for status in rest]
        random.Random(seed).shuffle(kinds)  # noqa: S311 - scatters tasks, guards nothing
        ids = self._checked_ids(range(first_id, first_id + total))
        project = self.add_project(project_id, user_id)
        timelines = {status: Timeline(now, status) for status in STATUSES}
        self._largest_added = max(self._largest_added, first_id + total - 1)
        once = (Restart(),)
        for task_id, (status, restart) in zip(ids, kinds, strict=True):
            self._enter(Task(task_id, project, timelines[status], once if restart else ()))
        return Counter(status for status, _ in kinds)

    def _checked_ids(self, task_ids: Sequence[int]) -> Sequence[int]:
        unique = set(task_ids)
        if not set(map(type, task_ids)) <= {int}:
            raise TypeError("task ids must be ints")
        if unique and not 0 <= min(unique) <= max(unique) <= MAX_INT:
            raise ValueError(f"task ids must be from 0 to {MAX_INT}")
        if len(unique) != len(task_ids) or not self.tasks.keys().isdisjoint(unique):
            raise ValueError("a task id can be added only once")
        return task_ids

    def _enter(self, task: Task) -> None:
        self.tasks[task.task_id] = task
        self._largest = max(self._largest, task.task_id)
        task.project.tasks.append(task)
        self._plan_restart(task)

    def active(self, project: Project, now: float) -> list[int]:
        """Return the ids of the tasks that run or wait to run."""
        return [task.task_id for task in project.tasks if task.status_at(now) in ACTIVE]

    def set_status(self, task: Task, status: str, now: float) -> None:
        """End whatever a task was going through and give it another status."""
        task.set_timeline(Timeline(now, status))
        self._plan_restart(task)

    # Restart chains

    def settle(self, now: float) -> None:
        """Carry out the restarts that are due by now, each at its own time."""
        while self._restarts and self._restarts[0][0] <= now:
            due, _, task, timeline = heapq.heappop(self._restarts)
            # It may have been stopped, changed or restarted by hand in the meantime.
            if task.newest is task and task.timeline is timeline and task.status_at(due) == STALLED:
                restart = task.restarts[0]
                self._restart(task, Timeline(due, restart.status, restart.life))

    def restart(
        self,
        task_id: int,
        now: float,
        *,
        status: str = RUNNING,
        life: Iterable[tuple[float, str]] = (),
        new_id: int | None = None,
    ) -> int:
        """Restart a task by hand; what it was going through ends, and it is Stalled."""
        task = self.tasks[task_id]
        timeline = Timeline(now, status, life)
        if new_id is not None:
            self._checked_ids([new_id])
        if task.newest is not task:
            raise ValueError(f"task {task_id} was restarted as {task.newest.task_id} already")
        current = task.status_at(now)
        if current not in ACTIVE and current != STALLED:
            raise ValueError(f"a task that is {current} is not restarted")
        attempts = task.project.attempts_number
        if len(task.chain or [task]) > attempts:
            raise ValueError(f"project {task.project.project_id} restarts a task {attempts} times")
        if current != STALLED:
            task.set_timeline(Timeline(now, STALLED))
        return self._restart(task, timeline, new_id).task_id

    def _restart(self, task: Task, timeline: Timeline, new_id: int | None = None) -> Task:
        new = Task(
            self._free_id(task.task_id) if new_id is None else new_id,
            task.project,
            timeline,
            task.restarts[1:],
        )
        members = [task] if task.chain is None else task.chain
        members.append(new)
        task.chain = new.chain = members
        self._enter(new)
        return new

    def _plan_restart(self, task: Task) -> None:
        stalls_at = task.timeline.stalls_at if task.restarts else None
        if stalls_at is not None:
            due = stalls_at + task.restarts[0].after
            heapq.heappush(self._restarts, (due, next(self._planned), task, task.timeline))

    def _free_id(self, task_id: int) -> int:
        # 64 becomes 1064: easy to recognise, and above every id that was added.
        step = 10 ** (len(str(self._largest_added)) + 1)
        ids: Iterator[int] = chain((task_id + step, self._largest + 1), count(1))
        return next(n for n in ids if n <= MAX_INT and n not in self.tasks)


def _script(
    restarts: int | Iterable[str | Restart], life: Sequence[tuple[float, str]]
) -> tuple[Restart, ...]:
    if isinstance(restarts, int):
        if restarts < 0:
            raise ValueError("restarts must not be below zero")
        return (Restart(life=life),) * restarts
    return tuple(Restart(restart) if isinstance(restart, str) else restart for restart in restarts)
