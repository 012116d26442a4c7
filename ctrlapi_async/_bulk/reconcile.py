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
from typing import TYPE_CHECKING, Final, cast

from attrs import frozen

from ctrlapi_async._bulk.chains import read_statuses, stopped_tasks
from ctrlapi_async._bulk.jobs import JobKind, listed_ids
from ctrlapi_async._errors import DeadlineError, text_of
from ctrlapi_async._models import AllActive, StopResult, TaskStatus, parse_status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrlapi_async._bulk.chains import Chain, ChainFinding, Findings
    from ctrlapi_async._bulk.jobs import Job
    from ctrlapi_async._bulk.outcomes import Outcomes
    from ctrlapi_async._bulk.schedule import Schedule
    from ctrlapi_async._protocol.replies import Row, Rows
    from ctrlapi_async._protocol.requests import TaskCall
    from ctrlapi_async._reports import Verdict

STOP_SENT: Final = "Stop request was sent"
STOPPING_UNAVAILABLE: Final = "Stopping task is unavailable"
NO_ROW: Final = "the reply holds no row for it"

EXPLAIN_ROUNDS: Final = 3
"""How often a task is asked about after the server refused to stop it."""

_WITHOUT_STOP: Final = (StopResult.NOT_RUNNING, StopResult.NOT_FOUND, StopResult.NOT_SENT)


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

    @property
    def seen(self) -> TaskStatus | None:
        """The status of a task whose stop is sent."""
        return TaskStatus.RUNNING if self._options.check else None

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
        asked = None if isinstance(call.task_ids, AllActive) else call.task_ids
        found = read_statuses(answer, asked)
        if self._on_row is not None:
            self._hand_rows_on(answer, found)
        if asked is None:
            self._admit_listed(call.project_id, found)
        for task_ids in found.by_status.values():
            self.known_tasks[call.project_id] = task_ids[-1]
        for task_ids, error in found.unreadable:
            self.give_up(job, call.project_id, task_ids, error)
        for text, task_ids in _without_status(found, answer):
            self.settle_missing(job, call.project_id, task_ids, text)
        if job.kind is JobKind.VERIFY:
            return self._receive_verify(job, call.project_id, found, now)
        for status, task_ids in found.by_status.items():
            self._place(job.kind, call.project_id, task_ids, status, now)
        self._place_chains(job.kind, call.project_id, found.chains, now)
        return []

    # --- TaskStatus ---------------------------------------------------------------------------

    def _place(
        self,
        kind: JobKind,
        project_id: int,
        task_ids: list[int],
        status: TaskStatus | str,
        now: float,
        restarted_as: int | None = None,
    ) -> None:
        """Put tasks with a status where they are dealt with next, or settle them."""
        outcomes, schedule = self._outcomes, self._schedule
        if kind is JobKind.POLL_STOPPED:
            self._place_stopped(project_id, task_ids, status, now)
        elif status is TaskStatus.RUNNING and self._options.dry_run:
            outcomes.settle(project_id, task_ids, StopResult.WOULD_STOP, status)
        elif status is TaskStatus.RUNNING:
            if exhausted := self._exhausted(task_ids):
                outcomes.settle_known(project_id, exhausted, None, None)
                task_ids = [n for n in task_ids if n not in exhausted]
            schedule.running.add(project_id, task_ids, now)
        elif self.waiting_pending and _is_pending(status):
            outcomes.mark(project_id, task_ids, StopResult.NOT_RUNNING, status)
            schedule.pending.add(project_id, task_ids, now)
        else:
            explained = kind is JobKind.EXPLAIN
            result = StopResult.UNAVAILABLE if explained else StopResult.NOT_RUNNING
            error = STOPPING_UNAVAILABLE if explained else None
            outcomes.settle(project_id, task_ids, result, status, error, restarted_as)

    def _exhausted(self, task_ids: list[int]) -> list[int]:
        """Return the tasks that the server has refused to stop too often."""
        refusals = self._refusals
        if not refusals:
            return []
        return [n for n in task_ids if n in refusals and refusals[n] >= EXPLAIN_ROUNDS]

    def _place_stopped(
        self, project_id: int, task_ids: list[int], status: TaskStatus | str, now: float
    ) -> None:
        """Place tasks for which a stop was sent."""
        if status is not TaskStatus.RUNNING:
            self._outcomes.settle(project_id, task_ids, StopResult.STOP_SENT, status)
        elif self.waiting_stopped:
            self._schedule.stopped.add(project_id, task_ids, now)
        else:
            self.settle_still_running(project_id, task_ids)

    def settle_still_running(
        self, project_id: int, task_ids: list[int], error: str | None = None
    ) -> None:
        """Settle tasks that were stopped, and of which nobody knows that they ended."""
        seconds = self._options.wait_stopped
        self.note(DeadlineError(f"tasks were still Running {seconds:g} s after the last stop"))
        self._outcomes.settle_known(project_id, task_ids, StopResult.STILL_RUNNING, error)

    def _place_chains(
        self, kind: JobKind, project_id: int, findings: list[ChainFinding], now: float
    ) -> None:
        """Place the tasks of restart chains."""
        if not self._options.follow_restarts:
            for finding in findings:
                self._place_apart(kind, project_id, finding, now)
            return
        by_status: dict[TaskStatus | str, list[int]] = {}
        for finding in findings:
            current = finding.current
            for task_id in finding.asked:
                chain = self._join(project_id, finding.initial_id, current, task_id)
                if chain is None:
                    continue
                if kind is JobKind.POLL_STOPPED:
                    self._place_current(kind, project_id, chain, current, now)
                else:
                    by_status.setdefault(_status(current), []).append(chain.target)
        for status, task_ids in by_status.items():
            self._place(kind, project_id, task_ids, status, now)

    def _place_apart(
        self, kind: JobKind, project_id: int, finding: ChainFinding, now: float
    ) -> None:
        """Place the tasks of a restart chain that is not followed: each stands for itself."""
        current = finding.current
        for task_id in finding.asked:
            own = finding.rows.get(task_id)
            later = current.task_id if current.task_id != task_id else None
            if own is None:
                self._outcomes.settle(
                    project_id, [task_id], StopResult.NOT_FOUND, None, NO_ROW, later
                )
            else:
                self._place(kind, project_id, [task_id], _status(own), now, later)

    def _join(self, project_id: int, initial_id: int, current: Row, task_id: int) -> Chain | None:
        """Return the chain that a task now stands for; None if another task does already."""
        table = self._outcomes.chains(project_id)
        target = current.task_id
        chain = table.by_target(task_id)
        if chain is not None:
            return chain if table.retarget(chain, target) else None
        known = table.by_target(target) or table.by_initial(initial_id)
        if known is not None and known.verdict is None:
            known.asked.append(task_id)
            return None
        if known is not None and _still_holds(known, current):
            self._outcomes.join_closed(known, [task_id])
            return None
        return table.open(initial_id, target, [task_id])

    def _place_current(
        self, kind: JobKind, project_id: int, chain: Chain, current: Row, now: float
    ) -> None:
        """Place a chain by the status of its current task."""
        status = _status(current)
        followed = kind is JobKind.POLL_STOPPED and self.waiting_stopped
        if kind is JobKind.POLL_STOPPED and chain.stop_sent_to != chain.target:
            if not followed:
                result = (
                    StopResult.STILL_RUNNING
                    if status is TaskStatus.RUNNING
                    else StopResult.STOP_SENT
                )
                self._outcomes.mark(project_id, [chain.target], result, status)
                if result is StopResult.STILL_RUNNING:
                    self.settle_still_running(project_id, [chain.target])
                else:
                    self._outcomes.settle_known(project_id, [chain.target], None, None)
                return
            if status is TaskStatus.RUNNING:
                kind = JobKind.CHECK
            elif _is_pending(status):
                self._outcomes.mark(project_id, [chain.target], StopResult.STOP_SENT, status)
                self._schedule.stopped.add(project_id, [chain.target], now)
                return
        self._place(kind, project_id, [chain.target], status, now)

    def _admit_listed(self, project_id: int, found: Findings) -> None:
        """Enter the tasks that a reply about all active tasks names."""
        for group in (
            *found.by_status.values(),
            *(chain.asked for chain in found.chains),
            *found.refused.values(),
        ):
            group[:] = self._admit_new(project_id, group)
        found.chains = [chain for chain in found.chains if chain.asked]
        found.by_status = {status: ids for status, ids in found.by_status.items() if ids}

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
        rows = {row.task_id: row for row in answer.rows}
        for task_ids in (*found.by_status.values(), *found.refused.values()):
            for task_id in task_ids:
                on_row(task_id, rows[task_id], rows[task_id])
        for chain in found.chains:
            for task_id in chain.asked:
                on_row(task_id, chain.rows.get(task_id, chain.current), chain.current)

    def settle_missing(self, job: Job, project_id: int, task_ids: list[int], text: str) -> None:
        """Settle tasks of which the server says that they are not there."""
        outcomes = self._outcomes
        if job.kind in (JobKind.EXPLAIN, JobKind.POLL_STOPPED):
            outcomes.settle_known(project_id, task_ids, None, None)
        elif job.lost is not None:
            self.settle_lost(job.lost, project_id, task_ids, f"when checked: {text}")
        else:
            seen = self.seen if job.kind is JobKind.STOP else None
            outcomes.settle_known(project_id, task_ids, StopResult.NOT_FOUND, text, seen)

    # --- TaskStop -----------------------------------------------------------------------------

    def _receive_stop(self, job: Job, call: TaskCall, answer: Rows, now: float) -> list[int]:
        project_id, asked = call.project_id, listed_ids(call)
        sent = [r.task_id for r in answer.rows if r.status == STOP_SENT and r.error is None]
        if sent == asked and len(answer.rows) == len(asked):  # the usual reply
            self._receive_sent(project_id, sent, now)
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
        self._receive_sent(project_id, sent, now)
        if not self._options.check:
            self._outcomes.settle(
                project_id, refused, StopResult.UNAVAILABLE, None, STOPPING_UNAVAILABLE
            )
        elif refused:
            self._refusals.update(refused)
            self._outcomes.mark(
                project_id, refused, StopResult.UNAVAILABLE, self.seen, STOPPING_UNAVAILABLE
            )
            self._schedule.refused.add(project_id, refused, now)
        return unclear

    def _receive_sent(self, project_id: int, task_ids: list[int], now: float) -> None:
        """Note that the server accepted stops."""
        if not task_ids:
            return
        if self.waiting_stopped:
            for chain in self._outcomes.chains(project_id).split(task_ids)[1]:
                chain.stop_sent_to = chain.target
            self._outcomes.mark(project_id, task_ids, StopResult.STOP_SENT, self.seen)
            self._schedule.stopped.add(project_id, task_ids, now)
        else:
            self._outcomes.settle(project_id, task_ids, StopResult.STOP_SENT, self.seen)

    def _receive_verify(self, job: Job, project_id: int, found: Findings, now: float) -> list[int]:
        """Settle tasks whose stop was lost; return those that it did not stop."""
        lost = f"the reply to TaskStop was lost: {text_of(job.lost)}" if job.lost else None
        again: list[int] = []
        groups = dict(found.by_status)
        for chain in found.chains:
            for task_id in chain.asked:
                current, own = chain.current, chain.rows.get(task_id, chain.current)
                moved = self._options.follow_restarts and current.task_id != task_id
                ended = _status(own) is not TaskStatus.RUNNING
                if moved and ended and _is_live(_status(current)):
                    one = type(chain)(chain.initial_id, chain.rows, [task_id])
                    self._place_chains(JobKind.CHECK, project_id, [one], now)
                else:
                    groups.setdefault(_status(own), []).append(task_id)
        for status, task_ids in groups.items():
            if status is TaskStatus.RUNNING:
                self._outcomes.mark(project_id, task_ids, StopResult.UNCONFIRMED, status)
                again += task_ids
            else:
                canceled = status is TaskStatus.CANCELED
                result = StopResult.STOP_SENT if canceled else StopResult.NOT_RUNNING
                self._outcomes.settle(project_id, task_ids, result, status, lost)
        return again

    # --- without an answer --------------------------------------------------------------------

    def settle_lost(self, lost: Exception, project_id: int, task_ids: list[int], text: str) -> None:
        """Settle tasks whose stop was lost and of which nothing more can be learnt."""
        self.note(lost)
        cause = text_of(lost)
        text = cause if text == cause else f"{cause}; {text}"
        self._outcomes.settle_known(project_id, task_ids, StopResult.UNCONFIRMED, text, self.seen)

    def give_up(self, job: Job, project_id: int, task_ids: list[int], error: Exception) -> None:
        """Settle tasks of a job that got no answer."""
        text = text_of(error)
        if job.kind is JobKind.EXPLAIN:
            self._outcomes.settle_known(project_id, task_ids, None, None)
            return
        self.note(error)
        if job.kind is JobKind.POLL_STOPPED:
            self.settle_still_running(project_id, task_ids, text)
        elif job.lost is not None:
            self.settle_lost(job.lost, project_id, task_ids, text)
        elif job.kind is JobKind.STOP:
            self._outcomes.settle(project_id, task_ids, StopResult.NOT_SENT, self.seen, text)
        else:
            self._outcomes.settle_known(project_id, task_ids, StopResult.NOT_SENT, text)


def _without_status(found: Findings, answer: Rows) -> Iterator[tuple[str, list[int]]]:
    """Return tasks for which a check brought no status, by what is said of them."""
    yield from found.refused.items()
    if found.missing:
        yield answer.words or NO_ROW, found.missing


def _still_holds(chain: Chain, current: Row) -> bool:
    """Return whether the outcome of a chain says all about what was found now."""
    result = cast("Verdict", chain.verdict).result
    return current.task_id == chain.target and (
        _status(current) is not TaskStatus.RUNNING or result not in _WITHOUT_STOP
    )


def _status(row: Row) -> TaskStatus | str:
    return parse_status(row.status) or ""


def _is_live(status: TaskStatus | str) -> bool:
    return status is TaskStatus.RUNNING or _is_pending(status)


def _is_pending(status: TaskStatus | str) -> bool:
    return isinstance(status, TaskStatus) and status.pending
