"""What a TaskStatus reply says of the tasks asked about, and the restart chains of a run.

The server restarts a Stalled task as a new task with another id; all tasks of such a chain share
their `initial_task_id`. A chain's *current* task is its live one (Running before pending), else
its newest. Only chains of more than one task, and tasks that are themselves restarts, are dealt
with as chains; any other task stands for itself.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attrs import define, evolve, field

from ctrlapi_async._errors import ReplyError
from ctrlapi_async._models import StopResult, TaskStatus, parse_status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from ctrlapi_async._protocol.replies import Row, Rows
    from ctrlapi_async._reports import Verdict

WITH_STOP: Final = (
    StopResult.STOP_SENT,
    StopResult.STILL_RUNNING,
    StopResult.UNAVAILABLE,
    StopResult.UNCONFIRMED,
)
"""Results that another task of the same chain shares: its current task is not stopped twice."""

_LIVENESS: Final[Mapping[str | None, int]] = {
    status: 2 if status is TaskStatus.RUNNING else int(status.pending) for status in TaskStatus
}
"""How much a task is alive, by its status; 0 for all others."""


@define
class ChainFinding:
    """What a reply says of one restart chain.

    Args:
        initial_id: The chain's first task, by which the chain is known.
        rows: The chain's rows with a status, by task id.
        asked: Those task ids of the request that belong to it.
    """

    initial_id: int
    rows: dict[int, Row]
    asked: list[int] = field(factory=list)

    @property
    def current(self) -> Row:
        """The row of the live task, else of the newest."""
        return max(self.rows.values(), key=_liveness)

    def speaks_for(self, task_id: int) -> bool:
        """Return whether a task's own row is among them, or that of a later task."""
        return task_id in self.rows or self.current.task_id > task_id


class Told(NamedTuple):
    """What a reply says of tasks that stand for themselves.

    Args:
        status: Their status.
        restarted_as: The current task of their chain, if that is another one; only if restarts
            are not followed.
    """

    status: TaskStatus | str
    restarted_as: int | None = None


@define
class Findings:
    """What a reply says of the tasks of one call.

    Args:
        plain: Tasks that stand for themselves.
        chains: Restart chains.
        refused: Tasks whose row has an error in place of a status, by the error's text.
        missing: Tasks without a row.
        unreadable: Tasks whose row could not be read, and why.
    """

    plain: dict[Told, list[int]] = field(factory=dict)
    chains: list[ChainFinding] = field(factory=list)
    refused: dict[str, list[int]] = field(factory=dict)
    missing: list[int] = field(factory=list)
    unreadable: list[tuple[list[int], ReplyError]] = field(factory=list)

    @property
    def groups(self) -> list[list[int]]:
        """All tasks that do not stand for a chain."""
        unreadable = (task_ids for task_ids, _ in self.unreadable)
        return [*self.plain.values(), *self.refused.values(), self.missing, *unreadable]

    def keep(self, choose: Callable[[list[int]], list[int]]) -> None:
        """Leave out tasks that do not stand for a chain; `choose` returns those that remain."""
        for task_ids in self.groups:
            task_ids[:] = choose(task_ids)
        self.plain = {told: task_ids for told, task_ids in self.plain.items() if task_ids}


@define(eq=False)
class Chain:
    """A restart chain of which at least one task was asked for.

    Args:
        initial_id: The chain's first task.
        target: The task that requests are about, which is in one queue or job.
        asked: Tasks that were asked for and have no final verdict yet.
        current: The row of the chain's current task in the latest reply, perhaps of another task
            than `target`: then the chain goes on with that one when its turn comes.
        stop_sent_to: The task for which the server accepted a stop.
        verdict: The final verdict; None while the chain is open.
    """

    initial_id: int
    target: int
    asked: list[int]
    current: Row
    stop_sent_to: int | None = None
    verdict: Verdict | None = None


class ChainTable:
    """The restart chains of one project.

    A task id stands for its chain wherever it is the target of an open one, but for requests that
    check tasks for the first time: there each id stands for itself.

    Args:
        keep: How many chains with a final verdict are remembered; None: all.
    """

    def __init__(self, keep: int | None) -> None:
        self._keep = keep
        self._by_initial: dict[int, Chain] = {}
        self._open: dict[int, Chain] = {}
        self._stopped: dict[int, Chain] = {}
        """Chains with a final verdict, by the task to which a stop was sent."""
        self._news: set[int] = set()
        """Tasks that may be in a queue although their chain goes on with another one."""

    def find(self, initial_id: int, target: int) -> Chain | None:
        """Return the open chain with this target, else the chain with this first task."""
        return self._open.get(target) or self._by_initial.get(initial_id)

    def with_news(self, task_ids: list[int]) -> list[tuple[int, Chain]]:
        """Return those tasks whose chain may have gone on with another task, with the chain."""
        known = self._news.intersection(task_ids) if self._news else ()
        found = ((n, self._open.get(n) or self._by_initial.get(n)) for n in sorted(known))
        return [(n, chain) for n, chain in found if chain is not None]

    def by_target(self, task_id: int) -> Chain | None:
        """Return the open chain whose target this is."""
        return self._open.get(task_id)

    def initial_of(self, task_id: int) -> int:
        """Return the first task of the open chain whose target this is; else the task itself."""
        chain = self._open.get(task_id)
        return task_id if chain is None else chain.initial_id

    def stopped(self, task_ids: list[int]) -> dict[int, Chain]:
        """Return those tasks to which a stop was sent in the name of a chain, and the chain."""
        if not self._stopped:
            return {}
        return {n: self._stopped[n] for n in task_ids if n in self._stopped}

    def split(self, task_ids: list[int]) -> tuple[list[int], list[Chain]]:
        """Return the tasks that stand for themselves, and the open chains of the others."""
        targets = self._open.keys() & task_ids if self._open else ()
        if not targets:
            return task_ids, []
        plain = [task_id for task_id in task_ids if task_id not in targets]
        return plain, [self._open[task_id] for task_id in sorted(targets)]

    def asked(self, task_ids: list[int]) -> list[int]:
        """Return the tasks that were asked for, given the tasks that requests are about."""
        plain, chains = self.split(task_ids)
        return plain + [task_id for chain in chains for task_id in chain.asked]

    def open(self, initial_id: int, current: Row, asked: int) -> Chain:
        """Return a new chain, in place of any closed one, of which a task was asked for."""
        if (closed := self._by_initial.get(initial_id)) is not None:
            self._stopped.pop(closed.target, None)
        chain = Chain(initial_id, current.task_id, [asked], current)
        self._by_initial[initial_id] = chain
        self._open[chain.target] = chain
        if asked != initial_id:
            self._news.add(initial_id)
        return chain

    def note(self, chain: Chain, current: Row) -> None:
        """Note the latest row of a chain that is dealt with elsewhere."""
        if current.task_id < chain.current.task_id and not _liveness(current)[0]:
            return  # a reply without the newest task's row
        chain.current = current
        if chain.verdict is None:
            self._news |= {chain.initial_id, chain.target}

    def retarget(self, chain: Chain, current: Row) -> Chain | None:
        """Let a chain go on with its current task; return None if another chain does already."""
        self._leave_target(chain)
        chain.current = current
        other = self._open.setdefault(current.task_id, chain)
        if other is not chain:
            self._by_initial[chain.initial_id] = other
            other.asked += chain.asked
            return None
        chain.target = current.task_id
        return chain

    def close(self, chain: Chain, verdict: Verdict) -> None:
        """Note a chain's final verdict."""
        self._leave_target(chain)
        chain.verdict = verdict
        chain.asked = []
        lost = verdict.result is StopResult.NOT_RUNNING and verdict.error is not None
        if lost or verdict.result in WITH_STOP:
            self._stopped[chain.target] = chain
        if self._keep is not None and len(self._by_initial) - len(self._open) > self._keep:
            oldest = next(key for key, one in self._by_initial.items() if one.verdict is not None)
            self._stopped.pop(self._by_initial.pop(oldest).target, None)
            self._news.discard(oldest)

    def _leave_target(self, chain: Chain) -> None:
        del self._open[chain.target]
        if chain.target not in self._by_initial:
            self._news.discard(chain.target)


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


def read_statuses(answer: Rows, asked: list[int] | None, *, follow: bool = True) -> Findings:
    """Return what an answer to TaskStatus says.

    Args:
        answer: The rows, in any order; of several for one task, one that is not Running wins.
        asked: The tasks asked about; None for all that the server names, of each chain its
            current task.
        follow: Whether tasks of a restart chain stand for the chain.
    """
    usual = None if asked is None else _read_usual(answer.rows, asked, follow=follow)
    if usual is not None:
        return usual
    findings = Findings()
    by_task = rows_by_task(answer.rows)
    members = _chain_members(by_task)
    chains = {initial_id: ChainFinding(initial_id, of) for initial_id, of in members.items()}
    if asked is None:
        currents = {one.current.task_id for one in chains.values()}
        asked = [n for n, row in by_task.items() if n in currents or _initial(row) not in members]
        asked += answer.unreadable_tasks.keys() - by_task.keys()
    statuses: dict[tuple[str, int | None], list[int]] = {}
    for task_id in asked:
        row = by_task.get(task_id)
        chain = chains.get(task_id if row is None else _initial(row))
        if follow and chain is not None and chain.speaks_for(task_id):
            chain.asked.append(task_id)
        elif row is None or not (row.status or row.error):
            _note_missing(findings, answer, task_id, row)
        elif row.status:
            current = task_id if chain is None else chain.current.task_id
            restarted_as = None if current == task_id else current
            statuses.setdefault((row.status, restarted_as), []).append(task_id)
        else:
            findings.refused.setdefault(row.error or "", []).append(task_id)
    for (text, restarted_as), task_ids in statuses.items():
        _note(findings, text, task_ids, restarted_as)
    findings.chains = [chain for chain in chains.values() if chain.asked]
    return findings


def _read_usual(rows: list[Row], asked: list[int], *, follow: bool) -> Findings | None:
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
    if list(by_task) != asked or len(asked) + len(restarts) != len(rows) or not all(statuses):
        return None
    chains = _usual_chains(by_task, restarts)
    if chains is None:
        return None
    for text in {by_task[initial_id].status for initial_id in chains}:
        statuses[text] = [task_id for task_id in statuses[text] if task_id not in chains]
    findings = Findings()
    for text, task_ids in statuses.items():
        if task_ids:
            _note(findings, text, task_ids)
    if follow:
        findings.chains = list(chains.values())
        return findings
    for initial_id, chain in chains.items():
        current = chain.current.task_id
        restarted_as = None if current == initial_id else current
        _note(findings, by_task[initial_id].status or "", [initial_id], restarted_as)
    return findings


def _usual_chains(by_task: dict[int, Row], restarts: list[Row]) -> dict[int, ChainFinding] | None:
    """Return the chains of tasks that were restarted; None if a row is of two, or of none."""
    news = {row.task_id for row in restarts}
    if len(news) < len(restarts) or not news.isdisjoint(by_task):
        return None
    chains: dict[int, ChainFinding] = {}
    for row in restarts:
        initial_id = _initial(row)
        first = by_task.get(initial_id)
        if first is None or not row.status:
            return None
        finding = ChainFinding(initial_id, {initial_id: first}, [initial_id])
        chains.setdefault(initial_id, finding).rows[row.task_id] = row
    return chains


def _note(
    findings: Findings, text: str, task_ids: list[int], restarted_as: int | None = None
) -> None:
    """Note the status of tasks, however it is spelled."""
    told = Told(parse_status(text) or text, restarted_as)
    if told in findings.plain:
        findings.plain[told] += task_ids
    else:
        findings.plain[told] = task_ids


def _note_missing(findings: Findings, answer: Rows, task_id: int, row: Row | None) -> None:
    """Note a task without a readable row, or whose row says nothing."""
    if row is not None:
        where = f"{answer.where}[{answer.rows.index(row)}]"
        nothing = ReplyError("neither `status` nor `error`", where)
        findings.unreadable.append(([task_id], nothing))
    elif (error := answer.unreadable_tasks.get(task_id)) is not None:
        findings.unreadable.append(([task_id], error))
    elif answer.unreadable:
        findings.unreadable.append(([task_id], answer.unreadable[0]))
    else:
        findings.missing.append(task_id)


def _initial(row: Row) -> int:
    return row.task_id if row.initial_task_id is None else row.initial_task_id


def rows_by_task(rows: Iterable[Row]) -> dict[int, Row]:
    """Return one row a task."""
    by_task: dict[int, Row] = {}
    for row in rows:
        known = by_task.setdefault(row.task_id, row)
        if known is not row and (
            not known.status or (row.status and parse_status(known.status) is TaskStatus.RUNNING)
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
            if (initial_id := _initial(row)) in members and row.status:
                members[initial_id][row.task_id] = row
    return {initial_id: rows for initial_id, rows in members.items() if rows}


def _liveness(row: Row) -> tuple[int, int]:
    liveness = _LIVENESS.get(row.status)
    if liveness is None:
        liveness = _LIVENESS.get(parse_status(row.status), 0)
    return liveness, row.task_id


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
