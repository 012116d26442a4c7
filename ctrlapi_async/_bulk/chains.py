"""What a TaskStatus reply says of the tasks asked about, and the restart chains of a run.

The server restarts a Stalled task as a new task with another id; all tasks of such a chain share
their `initial_task_id`. A chain's *current* task is its live one (Running before pending), else
its newest. Only chains of more than one task, and tasks that are themselves restarts, are dealt
with as chains; any other task stands for itself.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from attrs import define, evolve, field

from ctrlapi_async._models import TaskStatus, parse_status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ctrlapi_async._errors import ReplyError
    from ctrlapi_async._protocol.replies import Row, Rows
    from ctrlapi_async._reports import Verdict

NO_STATUS: Final = "its row has neither a status nor an error"

_LIVENESS: Final[Mapping[object, int]] = {
    TaskStatus.RUNNING: 2,
    TaskStatus.SCHEDULED: 1,
    TaskStatus.EXPLORE: 1,
}
"""How much a task is alive, by its status; 0 for all others."""


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


def parts_of(answer: Rows, size: int) -> Iterator[Rows | None]:
    """Yield a large answer in parts, with the rows of each restart chain in one of them.

    Args:
        answer: The answer; its rows are taken out.
        size: Rows a part, more or less.

    Yields:
        A part, or None where nothing but time has passed.
    """
    restarts: dict[int, list[Row]] = {}
    parts: list[list[Row]] = []
    for start in range(0, len(answer.rows), size):
        part: list[Row] = []
        for row in answer.rows[start : start + size]:
            if row.initial_task_id in (None, row.task_id):
                part.append(row)
            else:
                restarts.setdefault(_initial(row), []).append(row)
        parts.append(part)
        yield None
    answer.rows = []
    for part in parts:
        chained = [restarts.pop(row.task_id) for row in part if row.task_id in restarts]
        yield evolve(answer, rows=part + [row for rows in chained for row in rows])
    for rows in restarts.values():
        yield evolve(answer, rows=rows)


def read_statuses(answer: Rows, asked: list[int] | None) -> Findings:
    """Return what an answer to TaskStatus says.

    Args:
        answer: The rows, in any order; of several for one task, one that is not Running wins.
        asked: The tasks asked about; None for all that the server names, of each chain its
            current task.
    """
    if asked is not None and (usual := _read_usual(answer.rows, asked)) is not None:
        return usual
    findings = Findings()
    by_task = _by_task(answer.rows)
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
            findings.refused.setdefault(row.error or NO_STATUS, []).append(task_id)
    _group(findings, statuses)
    findings.chains = [chain for chain in chains.values() if chain.asked]
    return findings


def _read_usual(rows: list[Row], asked: list[int]) -> Findings | None:
    """Read a reply of the usual form in one pass; return None if it has another.

    Usual is: a row with a status for each task asked about, in order, and restarts of some.
    """
    by_task: dict[int, Row] = {}
    restarts: list[Row] = []
    statuses: defaultdict[Any, list[int]] = defaultdict(list)
    for row in rows:
        task_id = row.task_id
        initial_id = row.initial_task_id
        if initial_id is None or initial_id == task_id:
            by_task[task_id] = row
            statuses[row.status].append(task_id)
        else:
            restarts.append(row)
    if list(by_task) != asked or len(asked) + len(restarts) != len(rows) or None in statuses:
        return None
    restarted_as = {row.task_id for row in restarts}
    if len(restarted_as) < len(restarts) or not restarted_as.isdisjoint(by_task):
        return None
    chains: dict[int, ChainFinding] = {}
    for row in restarts:
        initial_id = _initial(row)
        first = by_task.get(initial_id)
        if first is None or row.status is None:
            return None
        finding = ChainFinding(initial_id, {initial_id: first}, [initial_id])
        chains.setdefault(initial_id, finding).rows[row.task_id] = row
    for text in {by_task[initial_id].status for initial_id in chains}:
        statuses[text] = [task_id for task_id in statuses[text] if task_id not in chains]
    findings = Findings(chains=list(chains.values()))
    _group(findings, statuses)
    return findings


def _group(findings: Findings, statuses: dict[str, list[int]]) -> None:
    """Group tasks by status, however it is spelled."""
    for text, task_ids in statuses.items():
        status = parse_status(text) or text
        if status in findings.by_status:
            findings.by_status[status] += task_ids
        elif task_ids:
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
    return _LIVENESS.get(parse_status(row.status), 0), row.task_id


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
