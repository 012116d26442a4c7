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

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from attrs import frozen

from ctrlapi_async._bulk.chains import read_statuses, rows_by_task, stopped_tasks
from ctrlapi_async._bulk.jobs import JobKind, listed_ids
from ctrlapi_async._errors import DeadlineError, bounded, text_of
from ctrlapi_async._models import AllActive, StopResult, TaskStatus, parse_status
from ctrlapi_async._protocol.requests import TaskCall

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from ctrlapi_async._bulk.chains import Chain, ChainFinding, Findings
    from ctrlapi_async._bulk.jobs import Job
    from ctrlapi_async._bulk.outcomes import Outcomes
    from ctrlapi_async._bulk.schedule import Schedule
    from ctrlapi_async._errors import CtrlApiError
    from ctrlapi_async._protocol.replies import Row, Rows

STOP_SENT: Final = "Stop request was sent"
STOPPING_UNAVAILABLE: Final = "Stopping task is unavailable"
NO_ROW: Final = "the reply holds no row for it"

EXPLAIN_ROUNDS: Final = 3
"""How often a task is asked about after the server refused to stop it."""

_WITH_STOP: Final = (
    StopResult.STOP_SENT,
    StopResult.STILL_RUNNING,
    StopResult.UNAVAILABLE,
    StopResult.UNCONFIRMED,
)
"""Results that another task of the same chain shares: its current task is not stopped twice."""

OnRow = Callable[[int, "Row", "Row"], None]


@frozen
class RunOptions:
    """What a caller asked of a run; seconds, None for none.

    Args:
        check: Whether tasks are checked before they are stopped.
        dry_run: Whether Running tasks are left alone.
        follow_restarts: Whether the outcome of a task is about its chain's current task.
        wait_pending: How long pending tasks are checked again.
        wait_stopped: How long stopped tasks are checked again.
        timeout: How long the whole run may take.
        collect: Whether the run keeps a report.
    """

    check: bool = True
    dry_run: bool = False
    follow_restarts: bool = True
    wait_pending: float | None = None
    wait_stopped: float | None = None
    timeout: float | None = None
    collect: bool = True


class Reconciler:
    """Brings outcomes and schedule in line with what the server said.

    Args:
        outcomes: Where outcomes are noted.
        schedule: Where tasks wait for what is next.
        options: What the caller asked for.
        note: Keeps an error for the end of the run.
        on_row: Called with each task that was checked, its row and its chain's current row.
    """

    def __init__(
        self,
        outcomes: Outcomes,
        schedule: Schedule,
        options: RunOptions,
        note: Callable[[Exception], None],
        on_row: OnRow | None = None,
    ) -> None:
        self.waiting_pending = options.wait_pending is not None
        """Whether pending tasks are asked about again."""
        self.waiting_stopped = options.wait_stopped is not None
        """Whether tasks that were stopped and still run are asked about again."""
        self.known_tasks: dict[int, int] = {}
        """For each project a task that is known to exist."""
        self._outcomes = outcomes
        self._schedule = schedule
        self._options = options
        self.note = note
        """Keeps an error for the end of the run."""
        self._on_row = on_row
        self._refusals: Counter[int] = Counter()

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
            self.give_up(job, project_id, task_ids, error)
        for text, task_ids in _without_status(found, answer):
            self.settle_missing(job, project_id, task_ids, text)
        visit = _Visit(job.kind, project_id, now, job.lost)
        again: list[int] = []
        for told, task_ids in found.plain.items():
            again += self._place(visit, task_ids, *told)
        for (of_chains, status), task_ids in self._chains_by_status(visit, found).items():
            again += self._place(of_chains, task_ids, status)
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
            found.keep(lambda task_ids: self._outcomes.unchecked(project_id, task_ids))
        for task_ids in found.plain.values():
            self.known_tasks[project_id] = task_ids[-1]
        return found

    def _place(
        self,
        visit: _Visit,
        task_ids: list[int],
        status: TaskStatus | str,
        restarted_as: int | None = None,
    ) -> list[int]:
        """Put tasks with a status where they are dealt with next, or settle them.

        Returns:
            Those that are to be stopped once more because a lost stop did not stop them.
        """
        kind, project_id, now, lost = visit
        outcomes, schedule = self._outcomes, self._schedule
        if lost is not None:
            if status is TaskStatus.RUNNING:
                outcomes.mark(project_id, task_ids, StopResult.NOT_SENT, status)
                return task_ids
            canceled = status is TaskStatus.CANCELED
            result = StopResult.STOP_SENT if canceled else StopResult.NOT_RUNNING
            text = bounded(f"the reply to TaskStop was lost: {text_of(lost)}")
            outcomes.settle(project_id, task_ids, result, status, text, restarted_as)
        elif kind is JobKind.POLL_STOPPED:
            self._place_stopped(visit, task_ids, status, restarted_as)
        elif status is TaskStatus.RUNNING and self._options.dry_run:
            outcomes.settle(project_id, task_ids, StopResult.WOULD_STOP, status)
        elif status is TaskStatus.RUNNING:
            if exhausted := self._exhausted(task_ids):
                self._settle_refused(project_id, exhausted, status)
                task_ids = [n for n in task_ids if n not in exhausted]
            outcomes.mark(project_id, task_ids, StopResult.NOT_SENT, status)
            schedule.running.add(project_id, task_ids, now)
        elif self.waiting_pending and _is_pending(status):
            outcomes.mark(project_id, task_ids, StopResult.NOT_RUNNING, status)
            schedule.pending.add(project_id, task_ids, now)
        elif kind is JobKind.EXPLAIN:
            self._settle_refused(project_id, task_ids, status, restarted_as)
        else:
            outcomes.settle(
                project_id, task_ids, StopResult.NOT_RUNNING, status, None, restarted_as
            )
        return []

    def _exhausted(self, task_ids: list[int]) -> set[int]:
        """Return the tasks that the server has refused to stop too often."""
        refusals = self._refusals
        if not refusals:
            return set()
        return {n for n in task_ids if n in refusals and refusals[n] >= EXPLAIN_ROUNDS}

    def _settle_refused(
        self,
        project_id: int,
        task_ids: Collection[int],
        status: TaskStatus | str,
        restarted_as: int | None = None,
    ) -> None:
        for task_id in task_ids:
            self._refusals.pop(task_id, None)
        self._outcomes.settle(
            project_id,
            list(task_ids),
            StopResult.UNAVAILABLE,
            status,
            STOPPING_UNAVAILABLE,
            restarted_as,
        )

    def _place_stopped(
        self,
        visit: _Visit,
        task_ids: list[int],
        status: TaskStatus | str,
        restarted_as: int | None = None,
    ) -> None:
        """Place tasks for which a stop was sent."""
        project_id = visit.project_id
        if self.waiting_stopped and (status is TaskStatus.RUNNING or _is_pending(status)):
            self._outcomes.mark(project_id, task_ids, StopResult.STOP_SENT, status)
            self._schedule.stopped.add(project_id, task_ids, visit.now)
        elif status is not TaskStatus.RUNNING:
            self._outcomes.settle(
                project_id, task_ids, StopResult.STOP_SENT, status, None, restarted_as
            )
        else:
            seconds = self._options.wait_stopped
            error = DeadlineError(f"tasks were still Running {seconds:g} s after the last stop")
            self.note(error)
            self._outcomes.settle(
                project_id, task_ids, StopResult.STILL_RUNNING, status, text_of(error)
            )

    # --- restart chains -----------------------------------------------------------------------

    def _chains_by_status(
        self, visit: _Visit, found: Findings
    ) -> dict[tuple[_Visit, TaskStatus | str], list[int]]:
        """Return the current tasks of restart chains that are to be placed now."""
        groups: dict[tuple[_Visit, TaskStatus | str], list[int]] = {}
        for finding in found.chains:
            current = finding.current
            status = _status(current)
            for task_id in finding.asked:
                chain = self._chain_of(visit, finding, current, task_id)
                if chain is None:
                    continue
                as_what = self._visit_of(visit, chain, task_id, status)
                groups.setdefault((as_what, status), []).append(chain.target)
        return groups

    def _chain_of(
        self, visit: _Visit, finding: ChainFinding, current: Row, task_id: int
    ) -> Chain | None:
        """Return the chain that a task stands for; None if it is dealt with elsewhere."""
        initial_id, project_id = finding.initial_id, visit.project_id
        table = self._outcomes.chains(project_id)
        chain = table.by_target(task_id)
        if visit.kind is JobKind.CHECK and not self._outcomes.unchecked(project_id, [task_id]):
            # Another task of the chain has brought it here. Only the latest news are new.
            if (known := table.find(initial_id, current.task_id)) is not None:
                known.current = current
            return None
        if chain is None:
            chain = self._join(project_id, initial_id, current, task_id)
        elif chain.target in finding.rows:
            chain = table.retarget(chain, current)
        if chain is not None:
            for other in self._outcomes.unchecked(project_id, list(finding.rows)):
                if other != task_id:
                    self._outcomes.join(chain, other)
        return chain

    def _visit_of(
        self, visit: _Visit, chain: Chain, task_id: int, status: TaskStatus | str
    ) -> _Visit:
        """Return as what the current task of a chain is placed."""
        if visit.lost is not None and chain.target != task_id:
            # What the lost stop was for is over; the task that came after it was never stopped.
            return visit.as_check()
        if (
            visit.kind is JobKind.POLL_STOPPED
            and chain.stop_sent_to != chain.target
            and self.waiting_stopped
            and status is TaskStatus.RUNNING
        ):
            return visit.as_check()
        return visit

    def _join(self, project_id: int, initial_id: int, current: Row, task_id: int) -> Chain | None:
        """Return the new chain of a task; None if the task joined one that is dealt with."""
        table = self._outcomes.chains(project_id)
        known = table.find(initial_id, current.task_id)
        if known is None:
            return table.open(initial_id, current, [task_id])
        if known.verdict is None:
            known.current = current
            self._outcomes.join(known, task_id)
            return None
        if known.target == current.task_id and known.verdict.result in _WITH_STOP:
            self._outcomes.join_closed(known, [task_id])
            return None
        return table.open(initial_id, current, [task_id])

    def still_current(self, call: TaskCall, now: float, *, sent: bool) -> TaskCall:
        """Return the part of a stop that is not outdated; the chains of the rest go on.

        Args:
            call: A call of TaskStop.
            now: The time in seconds.
            sent: Whether the stop was sent; if not, a task that is not Running is outdated too.
        """
        project_id, task_ids = call.project_id, listed_ids(call)
        table = self._outcomes.chains(project_id)
        if not table.known_any:
            return call
        left: list[int] = []
        visit = _Visit(JobKind.CHECK, project_id, now)
        for task_id in task_ids:
            chain = table.find(task_id, task_id)
            if chain is None or (
                chain.current.task_id == task_id
                and (sent or _status(chain.current) is TaskStatus.RUNNING)
            ):
                left.append(task_id)
                continue
            current = chain.current
            if chain.target == task_id:
                moved = table.retarget(chain, current)
            else:
                moved = self._join(project_id, chain.initial_id, current, task_id)
            if moved is not None:
                self._place(visit, [moved.target], _status(current))
        return TaskCall(project_id, left)

    # --- all active tasks ---------------------------------------------------------------------

    def _admit_listed(self, project_id: int, found: Findings, answer: Rows) -> None:
        """Enter the tasks that a reply about all active tasks names."""
        for error in answer.unreadable[:1]:
            self.note(error)  # who knows which task that was
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
                self.note(
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

    def settle_missing(self, job: Job, project_id: int, task_ids: list[int], text: str) -> None:
        """Settle tasks of which the server says that they are not there."""
        outcomes = self._outcomes
        if job.kind is JobKind.CHECK:
            task_ids = outcomes.unchecked(project_id, task_ids)
            outcomes.settle_asked(project_id, task_ids, StopResult.NOT_FOUND, text)
        elif job.kind in (JobKind.EXPLAIN, JobKind.POLL_STOPPED):
            outcomes.settle_known(project_id, task_ids, None, None)
        elif job.lost is not None:
            self.settle_lost(job.lost, project_id, task_ids, f"when checked: {text}")
        else:
            outcomes.settle_known(project_id, task_ids, StopResult.NOT_FOUND, text)

    # --- TaskStop -----------------------------------------------------------------------------

    def _receive_stop(self, job: Job, call: TaskCall, answer: Rows, now: float) -> list[int]:
        project_id = call.project_id
        asked = listed_ids(self.still_current(call, now, sent=True))
        seen = TaskStatus.RUNNING if self._options.check or job.lost is not None else None
        sent = [r.task_id for r in answer.rows if r.status == STOP_SENT and r.error is None]
        if sent == asked and len(answer.rows) == len(asked):  # the usual reply
            self._receive_sent(project_id, sent, seen, now)
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
        self._receive_sent(project_id, sent, seen, now)
        if not self._options.check:
            self._outcomes.settle(
                project_id, refused, StopResult.UNAVAILABLE, None, STOPPING_UNAVAILABLE
            )
        elif refused:
            self._refusals.update(refused)
            self._outcomes.mark(
                project_id, refused, StopResult.UNAVAILABLE, seen, STOPPING_UNAVAILABLE
            )
            self._schedule.refused.add(project_id, refused, now)
        return unclear

    def _receive_sent(
        self, project_id: int, task_ids: list[int], seen: TaskStatus | None, now: float
    ) -> None:
        """Note that the server accepted stops."""
        if not task_ids:
            return
        if self.waiting_stopped:
            for chain in self._outcomes.chains(project_id).split(task_ids)[1]:
                chain.stop_sent_to = chain.target
            self._outcomes.mark(project_id, task_ids, StopResult.STOP_SENT, seen)
            self._schedule.stopped.add(project_id, task_ids, now)
        else:
            self._outcomes.settle(project_id, task_ids, StopResult.STOP_SENT, seen)

    # --- without an answer --------------------------------------------------------------------

    def settle_lost(self, lost: Exception, project_id: int, task_ids: list[int], text: str) -> None:
        """Settle tasks whose stop was lost and of which nothing more can be learnt."""
        self.note(lost)
        cause = text_of(lost)
        text = cause if text == cause else f"{cause}; {text}"
        self._outcomes.settle_known(project_id, task_ids, StopResult.UNCONFIRMED, text)

    def give_up(self, job: Job, project_id: int, task_ids: list[int], error: Exception) -> None:
        """Settle tasks of a job that got no answer."""
        outcomes, text = self._outcomes, text_of(error)
        if job.kind is JobKind.CHECK:
            task_ids = outcomes.unchecked(project_id, task_ids)
        if not task_ids:
            return
        if job.kind is JobKind.EXPLAIN:
            outcomes.settle_known(project_id, task_ids, None, None)
            return
        self.note(error)
        if job.kind is JobKind.CHECK:
            outcomes.settle_asked(project_id, task_ids, StopResult.NOT_SENT, text)
        elif job.kind is JobKind.POLL_STOPPED:
            outcomes.settle_known(project_id, task_ids, StopResult.STILL_RUNNING, text)
        elif job.lost is not None:
            self.settle_lost(job.lost, project_id, task_ids, text)
        else:
            outcomes.settle_known(project_id, task_ids, StopResult.NOT_SENT, text)


class _Visit(NamedTuple):
    """What tasks were asked for that are placed now.

    Args:
        kind: The kind of the job.
        project_id: Their project.
        now: The time in seconds.
        lost: Why the fate of a stop of theirs is unknown, if one was sent.
    """

    kind: JobKind
    project_id: int
    now: float
    lost: CtrlApiError | None = None

    def as_check(self) -> _Visit:
        """Return the same for tasks that are checked for the first time."""
        return self._replace(kind=JobKind.CHECK, lost=None)


def _without_status(found: Findings, answer: Rows) -> Iterator[tuple[str, list[int]]]:
    """Return tasks for which a check brought no status, by what is said of them."""
    yield from found.refused.items()
    if found.missing:
        yield answer.words or NO_ROW, found.missing


def _status(row: Row) -> TaskStatus | str:
    return parse_status(row.status) or ""


def _is_pending(status: TaskStatus | str) -> bool:
    return isinstance(status, TaskStatus) and status.pending
