"""What users do about tasks: add them, restart them, and let time go by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from ctrlapi_async.simulator._handles import SimulatedTask, SimulatedTasks
from ctrlapi_async.simulator._request_control import RequestControl
from ctrlapi_async.simulator._tasks import RUNNING

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable, Mapping

    from ctrlapi_async.simulator._tasks import Restart


@define(eq=False, kw_only=True, slots=False, repr=False)
class TaskControl(RequestControl):
    """The projects, tasks and clock of a simulator; safe in any thread."""

    tasks: Mapping[int, SimulatedTask] = field(init=False)
    """All tasks by id, as they truly are."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.tasks = SimulatedTasks(self._processor)

    @property
    def now(self) -> float:
        """The clock's seconds."""
        return self._processor.clock.now

    def advance(self, seconds: float) -> None:
        """Move the hand-driven clock on."""
        if not self._processor.clock.hand_driven:
            raise RuntimeError("this simulator's clock is not driven by hand")
        if not seconds >= 0:
            raise ValueError("the clock does not go back")
        with self._processor.lock:
            self._processor.clock.advance(seconds)
            self._processor.changes.announce()

    def add_project(
        self, project_id: int, *, user_id: int = 1, attempts_number: int | None = None
    ) -> None:
        """Add a project, if it is not there yet, and its user.

        Args:
            project_id: The project.
            user_id: Its user.
            attempts_number: How often the server restarts a Stalled task at most, from 1 to 10;
                None leaves it as it is, which is 3 at first.

        Raises:
            ValueError: The project is there and another user's.
        """
        with self._processor.lock:
            self._processor.state.add_project(project_id, user_id, attempts_number)

    def add_task(
        self,
        task_id: int,
        status: str = RUNNING,
        *,
        project_id: int = 2,
        user_id: int = 1,
        life: Iterable[tuple[float, str]] = (),
        restarts: int | Iterable[str | Restart] = 0,
    ) -> SimulatedTask:
        """Add a task, its project and its user.

        Args:
            task_id: An id that no other task has, in whatever project.
            status: The status from now on.
            project_id: The project, which is added if it is not there yet.
            user_id: The project's user.
            life: Pairs of seconds from now, on the clock, and the status from then on.
            restarts: What the server does each time when the newest task of the chain becomes
                Stalled: restart it as a new task with this first status, or as this `Restart`
                says. A number stands for so many restarts that are Running at first and have the
                same `life`. No more than the project's ``attempts_number``. The id of the new task
                is `SimulatedTask.restarted_as`.
        """
        self.add_tasks(
            [task_id],
            status,
            project_id=project_id,
            user_id=user_id,
            life=life,
            restarts=restarts,
        )
        return self.tasks[task_id]

    def add_tasks(
        self,
        task_ids: Iterable[int],
        status: str = RUNNING,
        *,
        project_id: int = 2,
        user_id: int = 1,
        life: Iterable[tuple[float, str]] = (),
        restarts: int | Iterable[str | Restart] = 0,
    ) -> None:
        """Add many tasks that are alike; all of them or, when one can't be, none."""
        task_ids = list(task_ids)
        with self._processor.lock:
            self._processor.state.add_tasks(
                task_ids,
                status,
                self._processor.settled(),
                project_id=project_id,
                user_id=user_id,
                life=life,
                restarts=restarts,
            )
            self._processor.changes.announce()

    def restart(
        self,
        task_id: int,
        status: str = RUNNING,
        *,
        life: Iterable[tuple[float, str]] = (),
        new_id: int | None = None,
    ) -> int:
        """Let a task stall now, unless it has already, and restart it as a new task.

        Args:
            task_id: The newest task of its chain; it is Stalled or has not ended.
            status: The new task's status from now on.
            life: Pairs of seconds from now, on the clock, and the new task's status from then on.
            new_id: The new task's id; None for one that is free.

        Returns:
            The new task's id.

        Raises:
            KeyError: There is no such task.
            ValueError: It is not the newest, it has ended otherwise (a Canceled task is not
                restarted), or the project's ``attempts_number`` is used up.
        """
        with self._processor.lock:
            restarted_as = self._processor.state.restart(
                task_id, self._processor.settled(), status=status, life=life, new_id=new_id
            )
            self._processor.changes.announce()
        return restarted_as

    def mixed_tasks(
        self,
        count: int,
        *,
        running: float = 0.5,
        restarted: float = 0.0,
        seed: int = 0,
        project_id: int = 2,
        user_id: int = 1,
        first_id: int = 1,
    ) -> Counter[str]:
        """Add tasks of all statuses, scattered over their ids in the same way each time.

        Args:
            count: How many.
            running: The share that is Running.
            restarted: The share that is Stalled and was restarted as a new task, which is Running.
                Its id is ten times as long as the longest of these ids, or longer. The other
                statuses get equal parts of the rest.
            seed: Another seed scatters them in another way.
            project_id: Their project.
            user_id: The project's user.
            first_id: The lowest id; the others follow it.

        Returns:
            How many of these ids got each status.
        """
        with self._processor.lock:
            return self._processor.state.add_mixed(
                count,
                self._processor.settled(),
                running=running,
                restarted=restarted,
                seed=seed,
                project_id=project_id,
                user_id=user_id,
                first_id=first_id,
            )

    def documented_world(self) -> None:
        """Add what the examples of TaskStop's documentation talk about.

        Tasks 63 to 67 of project 2 and user 1 are Running. There is no task 68, and a task that
        is not there gets a row with an error: ``missing`` becomes ``"error"``.
        """
        self.add_tasks(range(63, 68))
        self.missing = "error"
