"""What a TaskStatus reply says of the tasks asked about, and the restart chains of a run.

The server restarts a Stalled task as a new task with another id; all tasks of such a chain share
their `initial_task_id`. A chain's *current* task is its live one (Running before pending), else
its newest. Only chains of more than one task, and tasks that are themselves restarts, are dealt
with as chains; any other task stands for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field

from ctrlapi_async._models import TaskStatus, parse_status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrlapi_async._errors import ReplyError
    from ctrlapi_async._protocol.replies import Row, Rows
    from ctrlapi_async._reports import Verdict


@define
class ChainFinding:
    """What a reply says of one restart chain.

    Args:
        initial_id: The chain's first task, by which the chain is known.
        rows: The chain's readable rows by task id.
        asked: Those task ids of the request that belong to it.
    """

    initial_id: int
    rows: dict[int, Row]
    asked: list[int] = field(factory=list)

    @property
    def current(self) -> Row:
        """The row of the live task, else of the newest."""
        return max(self.rows.values(), key=_liveness)


@define
class Findings:
    """What a reply says of the tasks of one call.

    Args:
        by_status: Tasks that stand for themselves, by status.
        chains: Restart chains.
        refused: Tasks whose row has an error in place of a status, by the error's text.
        missing: Tasks without a row.
        unreadable: Tasks whose row could not be read, and why.
    """

    by_status: dict[TaskStatus | str, list[int]] = field(factory=dict)
    chains: list[ChainFinding] = field(factory=list)
    refused: dict[str, list[int]] = field(factory=dict)
    missing: list[int] = field(factory=list)
    unreadable: list[tuple[list[int], ReplyError]] = field(factory=list)


@define(eq=False)
class Chain:
    """A restart chain of which at least one task was asked for.

    Args:
        initial_id: The chain's first task.
        target: Its current task, the one that is asked about and stopped.
        asked: Tasks that were asked for and have no final verdict yet.
        stop_sent_to: The task for which the server accepted a stop.
        verdict: The final verdict; None while the chain is open.
    """

    initial_id: int
    target: int
    asked: list[int]
    stop_sent_to: int | None = None
    verdict: Verdict | None = None


class ChainTable:
    """The restart chains of one project.

    Args:
        keep: How many chains with a final verdict are remembered; None: all.
    """

    def __init__(self, keep: int | None) -> None:
        self._keep = keep
        self._by_initial: dict[int, Chain] = {}
        self._open: dict[int, Chain] = {}

    def by_initial(self, initial_id: int) -> Chain | None:
        """Return the chain with this first task."""
        return self._by_initial.get(initial_id)

    def by_target(self, task_id: int) -> Chain | None:
        """Return the open chain whose current task this is."""
        return self._open.get(task_id)

    def split(self, task_ids: list[int]) -> tuple[list[int], list[Chain]]:
        """Return the tasks that stand for themselves, and the open chains of the others."""
        chains = self._open
        if not chains or chains.keys().isdisjoint(task_ids):
            return task_ids, []
        plain = [task_id for task_id in task_ids if task_id not in chains]
        return plain, [chains[task_id] for task_id in task_ids if task_id in chains]

    def asked(self, task_ids: list[int]) -> list[int]:
        """Return the tasks that were asked for, given the tasks that requests are about."""
        plain, chains = self.split(task_ids)
        return plain + [task_id for chain in chains for task_id in chain.asked]

    def open(self, initial_id: int, target: int, asked: list[int]) -> Chain:
        """Return a new chain, or the known one opened again for other tasks."""
        chain = Chain(initial_id, target, asked)
        self._by_initial[initial_id] = chain
        self._open[target] = chain
        return chain

    def retarget(self, chain: Chain, target: int) -> bool:
        """Note a chain's current task; return False if it has become one with another chain."""
        del self._open[chain.target]
        other = self._open.setdefault(target, chain)
        if other is not chain:
            other.asked += chain.asked
            return False
        chain.target = target
        return True

    def close(self, chain: Chain, verdict: Verdict) -> None:
        """Note a chain's final verdict."""
        del self._open[chain.target]
        chain.verdict = verdict
        chain.asked = []
        if self._keep is not None and len(self._by_initial) - len(self._open) > self._keep:
            oldest = next(key for key, one in self._by_initial.items() if one.verdict is not None)
            del self._by_initial[oldest]


def read_statuses(answer: Rows, asked: list[int] | None) -> Findings:
    """Return what an answer to TaskStatus says.

    Args:
        answer: The rows, in any order; of several for one task, one that is not Running wins.
        asked: The tasks asked about; None for all that the server names, of each chain its
            current task.
    """
    findings = Findings()
    rows = answer.rows
    if asked is not None and len(rows) == len(asked) and _say_it_in_order(rows, asked, findings):
        return findings
    by_task = _by_task(rows)
    members = _chain_members(by_task)
    chains = {initial_id: ChainFinding(initial_id, of) for initial_id, of in members.items()}
    if asked is None:
        currents = {one.current.task_id for one in chains.values()}
        asked = [n for n, row in by_task.items() if n in currents or _initial(row) not in members]
    statuses: dict[str, list[int]] = {}
    for task_id in asked:
        row = by_task.get(task_id)
        chain = chains.get(task_id if row is None else _initial(row))
        if chain is not None:
            chain.asked.append(task_id)
        elif row is None:
            _note_missing(findings, answer, task_id)
        elif row.status is not None:
            statuses.setdefault(row.status, []).append(task_id)
        else:
            findings.refused.setdefault(row.error or "", []).append(task_id)
    _group(findings, statuses)
    findings.chains = [chain for chain in chains.values() if chain.asked]
    return findings


def _say_it_in_order(rows: list[Row], asked: list[int], findings: Findings) -> bool:
    """Read the usual reply: a status of each task asked about, in order, and no chains."""
    statuses: dict[str, list[int]] = {}
    for task_id, row in zip(asked, rows, strict=True):
        status = row.status
        if row.task_id != task_id or status is None or row.initial_task_id not in (None, task_id):
            return False
        try:
            statuses[status].append(task_id)
        except KeyError:
            statuses[status] = [task_id]
    _group(findings, statuses)
    return True


def _group(findings: Findings, statuses: dict[str, list[int]]) -> None:
    """Group tasks by status, however it is spelled."""
    for text, task_ids in statuses.items():
        status = parse_status(text) or text
        if status in findings.by_status:
            findings.by_status[status] += task_ids
        else:
            findings.by_status[status] = task_ids


def _note_missing(findings: Findings, answer: Rows, task_id: int) -> None:
    """Note a task without a readable row."""
    if (error := answer.unreadable_tasks.get(task_id)) is not None:
        findings.unreadable.append(([task_id], error))
    elif answer.unreadable:
        findings.unreadable.append(([task_id], answer.unreadable[0]))
    else:
        findings.missing.append(task_id)


def _initial(row: Row) -> int:
    return row.task_id if row.initial_task_id is None else row.initial_task_id


def _by_task(rows: Iterable[Row]) -> dict[int, Row]:
    """Return one row a task."""
    by_task: dict[int, Row] = {}
    for row in rows:
        known = by_task.setdefault(row.task_id, row)
        if known is not row and (
            known.status is None
            or (row.status is not None and parse_status(known.status) is TaskStatus.RUNNING)
        ):
            by_task[row.task_id] = row
    return by_task


def _chain_members(by_task: dict[int, Row]) -> dict[int, dict[int, Row]]:
    """Return the rows of each chain that has a restart, by the chain's first task."""
    members: dict[int, dict[int, Row]] = {
        _initial(row): {} for row in by_task.values() if _initial(row) != row.task_id
    }
    if members:
        for row in by_task.values():
            if (initial_id := _initial(row)) in members and row.status is not None:
                members[initial_id][row.task_id] = row
    return {initial_id: rows for initial_id, rows in members.items() if rows}


def _liveness(row: Row) -> tuple[int, int]:
    status = parse_status(row.status)
    if status is TaskStatus.RUNNING:
        return 2, row.task_id
    pending = isinstance(status, TaskStatus) and status.pending
    return int(pending), row.task_id


def stopped_tasks(answer: Rows, asked: list[int]) -> tuple[dict[int, Row], list[int]]:
    """Return the rows of an answer to TaskStop by task id, and the tasks without a clear one.

    A task is unclear without a row, and with two that contradict each other.
    """
    found: dict[int, Row] = {}
    contradicted: set[int] = set()
    for row in answer.rows:
        known = found.setdefault(row.task_id, row)
        if known is not row and (known.status, known.error) != (row.status, row.error):
            contradicted.add(row.task_id)
    unclear = [n for n in asked if n not in found or n in contradicted]
    for task_id in contradicted:
        del found[task_id]
    return found, unclear
