"""How restart chains are followed: whichever task was asked for, the current one is stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrlapi_async._bulk.chains import WITH_STOP
from ctrlapi_async._bulk.jobs import JobKind, listed_ids
from ctrlapi_async._bulk.placing import Visit, status_of
from ctrlapi_async._models import TaskStatus
from ctrlapi_async._protocol.requests import TaskCall

if TYPE_CHECKING:
    from ctrlapi_async._bulk.chains import Chain, ChainFinding, ChainTable, Findings
    from ctrlapi_async._bulk.outcomes import Outcomes
    from ctrlapi_async._bulk.placing import Placer
    from ctrlapi_async._errors import CtrlApiError
    from ctrlapi_async._protocol.replies import Row


class RestartFollower:
    """Brings the restart chains of a run in line with what the server said.

    Args:
        outcomes: Holds the chains.
        placer: Puts their current tasks where they are dealt with next.
    """

    def __init__(self, outcomes: Outcomes, placer: Placer) -> None:
        self._outcomes = outcomes
        self._placer = placer

    def chains_by_status(
        self, visit: Visit, found: Findings
    ) -> dict[tuple[TaskStatus | str, bool], list[int]]:
        """Return the current tasks of restart chains that are to be placed now.

        Returns:
            The tasks by status, and by whether they are placed as checked for the first time.
        """
        groups: dict[tuple[TaskStatus | str, bool], list[int]] = {}
        members = [n for finding in found.chains for n in (*finding.asked, *finding.rows)]
        unchecked = set(self._outcomes.unchecked(visit.project_id, members))
        table = self._outcomes.chains(visit.project_id)
        for finding in found.chains:
            current = finding.current
            status = status_of(current)
            for task_id in finding.asked:
                chain = self._chain_of(visit, table, finding, current, task_id, unchecked)
                if chain is not None:
                    as_check = self._is_new(visit, chain, task_id, status)
                    groups.setdefault((status, as_check), []).append(chain.target)
        return groups

    def _chain_of(  # noqa: PLR0917 - a part of the loop above
        self,
        visit: Visit,
        table: ChainTable,
        finding: ChainFinding,
        current: Row,
        task_id: int,
        unchecked: set[int],
    ) -> Chain | None:
        """Return the chain that a task stands for; None if it is dealt with elsewhere.

        Args:
            visit: What was asked.
            table: The project's chains.
            finding: What the reply says of the chain.
            current: The row of its current task.
            task_id: A task of it that was asked about.
            unchecked: Tasks of which nothing was known before; those that join a chain leave it.
        """
        initial_id = finding.initial_id
        if visit.kind is JobKind.CHECK and task_id not in unchecked:
            # Another task of the chain has brought it here. Only the latest news are new.
            if (known := table.find(initial_id, current.task_id)) is not None:
                table.note(known, current)
            return None
        unchecked.discard(task_id)
        chain = table.by_target(task_id)
        if chain is None:
            chain = self._join(table, initial_id, current, task_id)
        else:
            chain = table.retarget(chain, current)
        if chain is not None:
            for other in finding.rows.keys() & unchecked:
                unchecked.discard(other)
                self._outcomes.overtake(visit.project_id, chain, other)
        return chain

    def _is_new(self, visit: Visit, chain: Chain, task_id: int, status: TaskStatus | str) -> bool:
        """Return whether the current task of a chain is placed as if checked for the first time."""
        if visit.lost is not None and chain.target != task_id:
            # What the lost stop was for is over; the task that came after it was never stopped.
            return True
        return (
            visit.kind is JobKind.POLL_STOPPED
            and chain.stop_sent_to != chain.target
            and self._placer.waiting_stopped
            and status is TaskStatus.RUNNING
        )

    def _join(self, table: ChainTable, initial_id: int, current: Row, task_id: int) -> Chain | None:
        """Return the new chain of a task; None if the task joined one that is dealt with."""
        known = table.find(initial_id, current.task_id)
        if known is None:
            return table.open(initial_id, current, task_id)
        if known.verdict is None:
            table.note(known, current)
            self._outcomes.join(known, task_id)
            return None
        if known.target == current.task_id and known.verdict.result in WITH_STOP:
            self._outcomes.join_closed(known, [task_id])
            return None
        return table.open(initial_id, current, task_id)

    def still_current(
        self, call: TaskCall, now: float, lost: CtrlApiError | None, *, sent: bool
    ) -> TaskCall:
        """Return the part of a stop that is not outdated; the chains of the rest go on.

        Args:
            call: A call of TaskStop.
            now: The time in seconds.
            lost: Why the fate of an earlier stop of the tasks is unknown, if one was sent.
            sent: Whether the stop was sent; if not, a task that is not Running is outdated too.
        """
        project_id, task_ids = call.project_id, listed_ids(call)
        table = self._outcomes.chains(project_id)
        outdated = {
            task_id: chain
            for task_id, chain in table.with_news(task_ids)
            if chain.current.task_id != task_id
            or not (sent or status_of(chain.current) is TaskStatus.RUNNING)
        }
        if not outdated:
            return call
        visit = Visit(JobKind.VERIFY, project_id, now, lost)
        for task_id, chain in outdated.items():
            current = chain.current
            if chain.target == task_id:
                moved = table.retarget(chain, current)
            else:
                moved = self._join(table, chain.initial_id, current, task_id)
            if moved is not None:
                self._outcomes.include_target(project_id, moved)
                seen_as = visit if current.task_id == task_id else visit.as_check()
                self._placer.place(seen_as, [moved.target], status_of(current))
        return TaskCall(project_id, [task_id for task_id in task_ids if task_id not in outdated])
