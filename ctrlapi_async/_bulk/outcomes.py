"""The outcomes of a run: one shared verdict a task, announced once when it is final."""

from __future__ import annotations

import logging
from collections import Counter, deque
from itertools import repeat
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from msgspec.structs import replace

from ctrlapi_async._bulk.chains import ChainTable
from ctrlapi_async._models import StopResult, TaskStatus
from ctrlapi_async._reports import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ctrlapi_async._bulk.chains import Chain
    from ctrlapi_async._models import StopOutcome

logger = logging.getLogger("ctrlapi_async")

MAX_WARNINGS: Final = 100
"""Unknown statuses that are warned about."""

CHAINS_KEPT: Final = 10_000
"""Restart chains with a final outcome that a run without a report remembers."""


class OutcomeStore:
    """Holds what is known of each task in one dict, in the order in which tasks were asked for.

    Only final verdicts are counted here. What is open lies in a queue or a job of the run, and
    what can be said of it is derived from there.

    Args:
        collect: Whether final verdicts are kept; if not, only their counts are.
    """

    def __init__(self, *, collect: bool) -> None:
        self.collect = collect
        self.total = 0
        """How many tasks were asked for."""
        self.untaken = 0
        """How many outcomes are announced and not taken yet."""
        self.verdicts: dict[int, Verdict] = {}
        self._settled: Counter[StopResult] = Counter()
        self._announced: deque[tuple[list[int], Verdict]] = deque()
        self._muted = False

    def admit(self, task_ids: list[int], verdict: Verdict) -> list[int]:
        """Enter tasks with an open verdict, and return those that are new, in order.

        Raises:
            ValueError: A task is held for another project.
        """
        verdicts = self.verdicts
        held = len(verdicts)
        # One pass that also drops duplicates: what was new is what the dict grew by.
        found = list(map(verdicts.setdefault, task_ids, repeat(verdict)))
        if len(verdicts) == held + len(task_ids):
            fresh = task_ids
        else:
            for task_id, known in zip(task_ids, found, strict=True):
                if known.project_id != verdict.project_id:
                    raise ValueError(
                        f"task {task_id} is asked for in two projects, {known.project_id} and "
                        f"{verdict.project_id}"
                    )
            fresh = _last_keys(verdicts, len(verdicts) - held)
        self.total += len(fresh)
        return fresh

    def mark(self, task_ids: Iterable[int], verdict: Verdict) -> None:
        """Note what is known of tasks whose verdict is not final yet."""
        self.verdicts.update(zip(task_ids, repeat(verdict)))

    def settle(self, task_ids: list[int], verdict: Verdict) -> None:
        """Set the final verdict of tasks and announce it."""
        if not task_ids:
            return
        self._settled[verdict.result] += len(task_ids)
        if self.collect:
            self.verdicts.update(zip(task_ids, repeat(verdict)))
        else:
            for task_id in task_ids:
                del self.verdicts[task_id]
        if not self._muted:
            self._announced.append((task_ids, verdict))
            self.untaken += len(task_ids)

    @property
    def settled(self) -> Counter[StopResult]:
        """How many tasks have each final result."""
        return self._settled

    @property
    def done(self) -> int:
        """How many tasks have their final verdict."""
        return self._settled.total()

    def mute(self) -> None:
        """Stop announcing: nobody takes outcomes one by one."""
        self._muted = True
        self._announced.clear()
        self.untaken = 0

    def take(self) -> Iterator[StopOutcome]:
        """Remove the oldest announcement and return its outcomes; nothing if there is none."""
        if not self._announced:
            return iter(())
        task_ids, verdict = self._announced.popleft()
        self.untaken -= len(task_ids)
        return map(verdict.outcome, task_ids)


def _last_keys(verdicts: dict[int, Verdict], count: int) -> list[int]:
    """Return the `count` keys that were added last, in order."""
    newest = reversed(verdicts)
    keys = [next(newest) for _ in range(count)]
    keys.reverse()
    return keys


class Outcomes:
    """The outcomes of a run by the tasks that requests are about, restart chains included.

    A request is about a chain's current task; what is found of it is the outcome of every task of
    the chain that was asked for.

    Args:
        collect: Whether final outcomes are kept; if not, only their counts are.
        unknown_statuses: Statuses that were warned about already.
    """

    def __init__(self, *, collect: bool, unknown_statuses: set[str] | None = None) -> None:
        self.store = OutcomeStore(collect=collect)
        self._unknown_statuses = set() if unknown_statuses is None else unknown_statuses
        self._chains: dict[int, ChainTable] = {}
        self._overtaken: set[int] = set()
        """Projects in which a task's chain was found before the task was checked itself."""
        self._verdicts: dict[tuple[object, ...], Verdict] = {}

    def chains(self, project_id: int) -> ChainTable:
        """Return the restart chains of a project."""
        table = self._chains.get(project_id)
        if table is None:
            keep = None if self.store.collect else CHAINS_KEPT
            table = self._chains[project_id] = ChainTable(keep)
        return table

    def admit(self, project_id: int, task_ids: list[int]) -> list[int]:
        """Enter tasks that were asked for, and return those to be checked; see `OutcomeStore`."""
        new = self.store.admit(task_ids, self._verdict(project_id, StopResult.NOT_SENT))
        plain, chains = self.chains(project_id).split(new)
        for chain in chains:
            self.join(chain, chain.target)
        return plain

    def unchecked(self, project_id: int, task_ids: list[int]) -> list[int]:
        """Return those tasks of which nothing is known yet, by their chain either."""
        nothing = self._verdict(project_id, StopResult.NOT_SENT)
        verdicts = self.store.verdicts
        return [task_id for task_id in task_ids if verdicts.get(task_id) is nothing]

    def still_to_check(self, project_id: int, task_ids: list[int]) -> list[int]:
        """Return those tasks of a check that no other task's check has brought news of."""
        return self.unchecked(project_id, task_ids) if project_id in self._overtaken else task_ids

    def overtake(self, project_id: int, chain: Chain, task_id: int) -> None:
        """Let a task that waits to be checked share the outcome of an open chain."""
        self._overtaken.add(project_id)
        self.join(chain, task_id)

    def include_target(self, project_id: int, chain: Chain) -> None:
        """Let the current task of an open chain share its outcome if it waits to be checked."""
        if self.unchecked(project_id, [chain.target]):
            self.overtake(project_id, chain, chain.target)

    def asked(self, project_id: int, task_ids: list[int]) -> list[int]:
        """Return the tasks that were asked for, given the tasks that a request is about."""
        return self.chains(project_id).asked(task_ids)

    def mark(
        self,
        project_id: int,
        task_ids: list[int],
        result: StopResult,
        status: TaskStatus | str | None = None,
        error: str | None = None,
    ) -> None:
        """Note what is known of tasks whose outcome is not final yet."""
        plain, chains = self.chains(project_id).split(task_ids)
        verdict = self._verdict(project_id, result, status, error)
        self.store.mark(plain, verdict)
        for chain in chains:
            for group, restarted_as in _by_restart(chain.target, chain.asked):
                self.store.mark(group, verdict.of_restart(restarted_as))

    def join(self, chain: Chain, task_id: int) -> None:
        """Let a task that was asked for share the outcome of an open chain."""
        known = self.store.verdicts[chain.asked[0]]
        chain.asked.append(task_id)
        restarted_as = None if task_id == chain.target else chain.target
        self.store.mark([task_id], known.of_restart(restarted_as))

    def settle_asked(
        self, project_id: int, task_ids: list[int], result: StopResult, error: str | None
    ) -> list[int]:
        """Settle tasks that were not checked, and return those that stand for themselves.

        The others were stopped in the name of their chain, whose outcome they share.
        """
        stopped = self.chains(project_id).stopped(task_ids)
        plain = [n for n in task_ids if n not in stopped] if stopped else task_ids
        self.store.settle(plain, self._verdict(project_id, result, None, error))
        for task_id, chain in stopped.items():
            self.join_closed(chain, [task_id])
        return plain

    def settle(  # noqa: PLR0917 - as for `StopOutcome`
        self,
        project_id: int,
        task_ids: list[int],
        result: StopResult,
        status: TaskStatus | str | None = None,
        error: str | None = None,
        restarted_as: int | None = None,
    ) -> None:
        """Set the final outcome of tasks; arguments as for `StopOutcome`."""
        table = self.chains(project_id)
        plain, chains = table.split(task_ids)
        verdict = self._verdict(project_id, result, status, error, restarted_as)
        self.store.settle(plain, verdict)
        for chain in chains:
            asked = chain.asked
            table.close(chain, verdict)
            self.join_closed(chain, asked)

    def settle_known(
        self, project_id: int, task_ids: list[int], result: StopResult | None, error: str | None
    ) -> None:
        """Settle tasks with the status that they were last seen with.

        Args:
            project_id: Their project.
            task_ids: The tasks.
            result: The result; None for the one that was noted.
            error: The error's text; None for the one that was noted.
        """
        groups: dict[Verdict, list[int]] = {}
        verdicts = self.store.verdicts
        plain, chains = self.chains(project_id).split(task_ids)
        for task_id in plain:
            groups.setdefault(verdicts[task_id], []).append(task_id)
        for chain in chains:
            groups.setdefault(verdicts[chain.asked[0]], []).append(chain.target)
        for known, members in groups.items():
            self.settle(
                project_id,
                members,
                result or known.result,
                known.status,
                error or known.error,
            )

    def join_closed(self, chain: Chain, task_ids: list[int]) -> None:
        """Settle tasks with the outcome of their chain."""
        verdict = cast("Verdict", chain.verdict)
        for group, restarted_as in _by_restart(chain.target, task_ids):
            self.store.settle(group, verdict.of_restart(restarted_as))

    def _verdict(
        self,
        project_id: int,
        result: StopResult,
        status: TaskStatus | str | None = None,
        error: str | None = None,
        restarted_as: int | None = None,
    ) -> Verdict:
        """Return a verdict; the usual ones are made once and shared."""
        unknown = status is not None and not isinstance(status, TaskStatus)
        if unknown:
            self._warn_of(str(status))
        if unknown or error is not None or restarted_as is not None:
            return Verdict(project_id, result, status, error, restarted_as)
        key = (project_id, result, status)
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._verdicts[key] = Verdict(project_id, result, status)
        return verdict

    def _warn_of(self, status: str) -> None:
        if status not in self._unknown_statuses and len(self._unknown_statuses) < MAX_WARNINGS:
            self._unknown_statuses.add(status)
            logger.warning("unknown status %.100r: taken for not Running", status)

    # --- what is known now --------------------------------------------------------------------

    def counts(self, open_tasks: Iterable[OpenTasks]) -> dict[StopResult, int]:
        """Return how many tasks have each result now.

        Args:
            open_tasks: All tasks that were checked and have no final outcome.
        """
        counts = dict.fromkeys(StopResult, 0)
        counts.update(self.store.settled)
        counts[StopResult.NOT_SENT] += self.store.total - self.store.done
        for project_id, task_ids, result, _ in open_tasks:
            size = len(self.asked(project_id, task_ids))
            counts[result] += size
            counts[StopResult.NOT_SENT] -= size
        return counts

    def snapshot(self, open_tasks: Iterable[OpenTasks]) -> dict[int, Verdict]:
        """Return what is known of each task now; arguments as for `counts`."""
        verdicts = dict(self.store.verdicts)
        for project_id, task_ids, result, error in open_tasks:
            if result is StopResult.UNCONFIRMED:  # any other result is marked
                for task_id in self.asked(project_id, task_ids):
                    known = verdicts[task_id]
                    verdicts[task_id] = replace(known, result=result, error=error)
        return verdicts


class OpenTasks(NamedTuple):
    """Tasks that were checked and have no final outcome.

    Args:
        project_id: Their project.
        task_ids: The tasks that requests are about.
        result: Their result, were the run to end now.
        error: Why that would be their result; None: because the run ended.
    """

    project_id: int
    task_ids: list[int]
    result: StopResult
    error: str | None = None


def _by_restart(target: int, task_ids: list[int]) -> list[tuple[list[int], int | None]]:
    """Divide tasks of a chain into those that were restarted as the current one, and that one."""
    if target not in task_ids:
        return [(task_ids, target)]
    others = [task_id for task_id in task_ids if task_id != target]
    return [(others, target), ([target], None)]
