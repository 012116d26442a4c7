"""The running account of a bulk stop: one verdict a task, and how many have each. Pure."""

from __future__ import annotations

from collections import Counter, deque
from itertools import repeat
from typing import TYPE_CHECKING

from ctrlapi_async.models import StopOutcome, StopResult, StopStats, TaskStatus
from ctrlapi_async.report import StopReport, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


class Ledger:
    """Holds the verdict of every task of a run, and announces each one that is final.

    A verdict is known by a small number. An open one may still change: it is part of every
    snapshot, but is not announced.

    Args:
        collect: Whether final verdicts are kept. If not, only open ones are, and the final
            ones are known by their counts alone.
    """

    def __init__(self, *, collect: bool) -> None:
        self._collect = collect
        self._codes: dict[int, int] = {}
        self._verdicts: list[Verdict] = []
        self._numbers: dict[tuple[Verdict, bool], int] = {}
        self._open: set[int] = set()
        # How many tasks have each verdict; counted along from the first time that it is asked
        # for, or from the start where what is final is not kept.
        self._population: Counter[int] | None = None if collect else Counter()
        self._announced: deque[tuple[Sequence[int], Sequence[int] | repeat[int]]] = deque()
        self._muted = False
        self.untaken = 0
        """How many announced verdicts (open ones among them) nobody has taken yet."""

    def code(
        self,
        project_id: int,
        result: StopResult,
        status: TaskStatus | str | None = None,
        error: str | None = None,
        *,
        final: bool = True,
    ) -> int:
        """Give the number by which the ledger knows a verdict."""
        key = (Verdict(project_id, result, status, error), final)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._verdicts)
            self._verdicts.append(key[0])
            if not final:
                self._open.add(number)
        return number

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._codes

    def verdict(self, task_id: int) -> Verdict:
        """Give the verdict of a task that the ledger holds."""
        return self._verdicts[self._codes[task_id]]

    def admit(self, task_ids: list[int], code: int) -> list[int]:
        """Enter tasks under an open verdict, and give those that it did not hold yet, in order.

        Raises:
            ValueError: It holds one of them for another project.
        """
        fresh = task_ids
        if not self._codes.keys().isdisjoint(task_ids):
            project_id = self._verdicts[code].project_id
            for task_id in self._codes.keys() & set(task_ids):
                if (other := self.verdict(task_id).project_id) != project_id:
                    raise ValueError(
                        f"task {task_id} is asked for in two projects, {other} and {project_id}"
                    )
            fresh = [task_id for task_id in task_ids if task_id not in self._codes]
        before = len(self._codes)
        self._codes.update(zip(fresh, repeat(code)))
        if len(self._codes) - before < len(fresh):
            fresh = list(dict.fromkeys(fresh))
        if self._population is not None:
            self._population[code] += len(fresh)
        return fresh

    def move(self, task_ids: Sequence[int], codes: Sequence[int], was: int | None = None) -> None:
        """Give each task the verdict beside it.

        Args:
            task_ids: Tasks that the ledger holds.
            codes: As many numbers of verdicts.
            was: The number that all of them have, where the caller knows that it is one.
        """
        if self._population is not None:
            self._leave(self._population, task_ids, was)
            self._population.update(codes)
        if self._collect:
            self._codes.update(zip(task_ids, codes, strict=True))
        else:
            for task_id, code in zip(task_ids, codes, strict=True):
                if code in self._open:
                    self._codes[task_id] = code
                else:
                    del self._codes[task_id]
        if not (self._muted or self._open.issuperset(codes)):
            self._announce(task_ids, codes)

    def move_all(self, task_ids: Sequence[int], code: int, was: int | None = None) -> None:
        """Give all tasks one verdict; arguments as for `move`."""
        if self._population is not None:
            self._leave(self._population, task_ids, was)
            self._population[code] += len(task_ids)
        final = code not in self._open
        if final and not self._collect:
            for task_id in task_ids:
                del self._codes[task_id]
        else:
            self._codes.update(zip(task_ids, repeat(code)))
        if final and not self._muted:
            self._announce(task_ids, repeat(code))

    def amend(self, task_ids: Sequence[int], change: Callable[[Verdict], Verdict]) -> None:
        """Give each task a final verdict made of the one it has."""
        codes: dict[int, int] = {}
        for was in set(map(self._codes.__getitem__, task_ids)):
            verdict = change(self._verdicts[was])
            codes[was] = self.code(
                verdict.project_id, verdict.result, verdict.status, verdict.error
            )
        self.move(task_ids, [codes[self._codes[task_id]] for task_id in task_ids])

    def _leave(self, population: Counter[int], task_ids: Sequence[int], was: int | None) -> None:
        if was is not None:
            population[was] -= len(task_ids)
        else:
            population.subtract(map(self._codes.__getitem__, task_ids))

    def _announce(self, task_ids: Sequence[int], codes: Sequence[int] | repeat[int]) -> None:
        self._announced.append((task_ids, codes))
        self.untaken += len(task_ids)

    def mute(self) -> None:
        """Announce nothing any more: nobody takes it."""
        self._muted = True
        self._announced.clear()
        self.untaken = 0

    def take(self) -> Iterator[StopOutcome]:
        """Take the oldest announcement; an empty one if there is none."""
        if not self._announced:
            return iter(())
        task_ids, codes = self._announced.popleft()
        self.untaken -= len(task_ids)
        return self._outcomes(zip(task_ids, codes, strict=False), final=True)

    def leftovers(self) -> Iterator[StopOutcome]:
        """Go through the tasks whose verdict never became final."""
        return self._outcomes(self._codes.items(), final=False)

    def _outcomes(self, coded: Iterable[tuple[int, int]], *, final: bool) -> Iterator[StopOutcome]:
        return (
            self._verdicts[code].outcome(task_id)
            for task_id, code in coded
            if (code not in self._open) is final
        )

    def reword(self, change: Callable[[Verdict], Verdict]) -> None:
        """Put another verdict in the place of each open one, for all tasks that have it."""
        for code in self._open:
            self._verdicts[code] = change(self._verdicts[code])

    @property
    def counts(self) -> dict[StopResult, int]:
        """How many tasks have each result, open verdicts included."""
        if self._population is None:
            self._population = Counter(self._codes.values())
        counts = dict.fromkeys(StopResult, 0)
        for code, count in self._population.items():
            counts[self._verdicts[code].result] += count
        return counts

    @property
    def unanswered(self) -> int:
        """How many tasks are NOT_SENT or UNCONFIRMED."""
        counts = self.counts
        return counts[StopResult.NOT_SENT] + counts[StopResult.UNCONFIRMED]

    def report(self, stats: StopStats, changes: dict[int, int] | None = None) -> StopReport:
        """Make a report of what is known now.

        Args:
            stats: What the run has cost so far.
            changes: Tasks whose verdict is another for now; None at the end, when the report
                takes over what the ledger holds.
        """
        codes = self._codes if changes is None else self._codes | changes
        return StopReport(codes, tuple(self._verdicts), stats)
