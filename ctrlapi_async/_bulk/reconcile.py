"""What one answer changes, for each kind of job.

| job | a task is Running | pending | has ended | no row, or an error in its row |
| --- | --- | --- | --- | --- |
| CHECK, POLL_PENDING | stop it | wait, or NOT_RUNNING | NOT_RUNNING | NOT_FOUND |
| EXPLAIN | stop it, three times at most | wait, or UNAVAILABLE | UNAVAILABLE | UNAVAILABLE |
| VERIFY | stop it again | NOT_RUNNING | STOP_SENT if Canceled, else NOT_RUNNING | UNCONFIRMED |
| POLL_STOPPED | ask again, or STILL_RUNNING | as when it has ended | STOP_SENT | STOP_SENT |

Where a chain has gone on with another task, that task is dealt with as a checked one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from ctrlapi_async._bulk.chains import read_statuses, rows_by_task, stopped_tasks
from ctrlapi_async._bulk.jobs import JobKind, listed_ids
from ctrlapi_async._bulk.placing import STOPPING_UNAVAILABLE, Visit
from ctrlapi_async._models import AllActive, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrlapi_async._bulk.chains import Findings
    from ctrlapi_async._bulk.jobs import Job
    from ctrlapi_async._bulk.options import RunOptions
    from ctrlapi_async._bulk.outcomes import Outcomes
    from ctrlapi_async._bulk.placing import Placer
    from ctrlapi_async._bulk.restarts import RestartFollower
    from ctrlapi_async._protocol.replies import Row, Rows
    from ctrlapi_async._protocol.requests import TaskCall

STOP_SENT: Final = "Stop request was sent"
NO_ROW: Final = "the reply holds no row for it"


OnRow = Callable[[int, "Row", "Row"], None]


class Reconciler:
    """Brings outcomes and schedule in line with what the server said.

    Args:
        outcomes: Where outcomes are noted.
        placer: Puts tasks where they are dealt with next.
        restarts: Follows restart chains.
        options: What the caller asked for.
        on_row: Called with each task that was checked, its row and its chain's current row.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        placer: Placer,
        restarts: RestartFollower,
        options: RunOptions,
        on_row: OnRow | None = None,
    ) -> None:
        self._outcomes = outcomes
        self._placer = placer
        self._restarts = restarts
        self._options = options
        self._on_row = on_row

    def receive(self, job: Job, call: TaskCall, answer: Rows, now: float) -> list[int]:
        """Note what the server said in answer to one call.

        Args:
            job: The job.
            call: One of its calls.
            answer: The answer.
            now: The time in seconds.

        Returns:
            The tasks of which the fate of a stop is not known (STOP), or which are to be stopped
            once more because a lost stop did not stop them (VERIFY).
        """
        if job.kind is JobKind.STOP:
            return self._receive_stop(job, call, answer, now)
        project_id = call.project_id
        found = self._findings(job, call, answer)
        for task_ids, error in found.unreadable:
            self._placer.give_up(job, project_id, task_ids, error)
        for text, task_ids in _without_status(found, answer):
            self._placer.settle_missing(job, project_id, task_ids, text)
        visit = Visit(job.kind, project_id, now, job.lost)
        again: list[int] = []
        chains = self._restarts.chains_by_status(visit, found)
        for told, task_ids in found.plain.items():
            if told.restarted_as is None:
                task_ids.extend(chains.pop((told.status, False), ()))
            again += self._placer.place(visit, task_ids, *told)
        for (status, as_check), task_ids in chains.items():
            asked_as = visit.as_check() if as_check else visit
            again += self._placer.place(asked_as, task_ids, status)
        return again

    # --- TaskStatus ---------------------------------------------------------------------------

    def _findings(self, job: Job, call: TaskCall, answer: Rows) -> Findings:
        """Return what an answer says of the tasks that are not dealt with already."""
        project_id, follow = call.project_id, self._options.follow_restarts
        asked = None if isinstance(call.task_ids, AllActive) else call.task_ids
        found = read_statuses(answer, asked, follow=follow)
        if self._on_row is not None:
            self._hand_rows_on(answer, found)
        if asked is None:
            self._admit_listed(project_id, found, answer)
        elif job.kind is JobKind.CHECK:
            found.keep(lambda task_ids: self._outcomes.still_to_check(project_id, task_ids))
        for task_ids in found.plain.values():
            self._placer.known_tasks[project_id] = task_ids[-1]
        return found

    # --- all active tasks ---------------------------------------------------------------------

    def _admit_listed(self, project_id: int, found: Findings, answer: Rows) -> None:
        """Enter the tasks that a reply about all active tasks names."""
        for error in answer.unreadable[:1]:
            self._placer.note(error)  # who knows which task that was
        groups = [*found.groups, *(chain.asked for chain in found.chains)]
        named = {task_id for group in groups for task_id in group}
        in_order = dict.fromkeys((*(row.task_id for row in answer.rows), *named))
        new = set(self._admit_new(project_id, [n for n in in_order if n in named]))
        found.keep(lambda task_ids: [task_id for task_id in task_ids if task_id in new])
        for chain in found.chains:
            chain.asked = [task_id for task_id in chain.asked if task_id in new]

    def _admit_new(self, project_id: int, task_ids: list[int]) -> list[int]:
        verdicts = self._outcomes.store.verdicts
        new = [task_id for task_id in task_ids if task_id not in verdicts]
        for task_id in set(task_ids).difference(new):
            if (other := verdicts[task_id].project_id) != project_id:
                self._placer.note(
                    ValueError(
                        f"task {task_id} is active in project {project_id}, and was asked "
                        f"for in project {other}"
                    )
                )
        return self._outcomes.admit(project_id, new)

    def _hand_rows_on(self, answer: Rows, found: Findings) -> None:
        on_row = cast("OnRow", self._on_row)
        rows = rows_by_task(answer.rows)
        for told, task_ids in found.plain.items():
            for task_id in task_ids:
                on_row(task_id, rows[task_id], rows[told.restarted_as or task_id])
        for task_ids in found.refused.values():
            for task_id in task_ids:
                on_row(task_id, rows[task_id], rows[task_id])

    # --- TaskStop -----------------------------------------------------------------------------

    def _receive_stop(self, job: Job, call: TaskCall, answer: Rows, now: float) -> list[int]:
        project_id = call.project_id
        asked = listed_ids(self._restarts.still_current(call, now, job.lost, sent=True))
        seen = TaskStatus.RUNNING if self._options.check or job.lost is not None else None
        sent = [r.task_id for r in answer.rows if r.status == STOP_SENT and r.error is None]
        if sent == asked and len(answer.rows) == len(asked):  # the usual reply
            self._placer.place_sent(project_id, sent, seen, now)
            return []
        sent = []
        rows, unclear = stopped_tasks(answer, asked)
        refused: list[int] = []
        for task_id in asked:
            row = rows.get(task_id)
            if row is None:
                continue
            if row.error is None and row.status == STOP_SENT:
                sent.append(task_id)
            elif (
                row.error is not None
                and STOPPING_UNAVAILABLE.lower() in row.error.lower()
                and job.lost is None
            ):
                refused.append(task_id)
            else:
                # Neither of the documented texts; or refused, perhaps because the stop before
                # this one, whose reply was lost, did its work.
                unclear.append(task_id)
        self._placer.place_sent(project_id, sent, seen, now)
        self._placer.place_refused(project_id, refused, seen, now)
        return unclear


def _without_status(found: Findings, answer: Rows) -> Iterator[tuple[str, list[int]]]:
    """Return tasks for which a check brought no status, by what is said of them."""
    yield from found.refused.items()
    if found.missing:
        yield answer.words or NO_ROW, found.missing
