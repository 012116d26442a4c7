"""The running account of a bulk stop: one verdict a task, and how many have each. Pure."""

from __future__ import annotations

from collections import Counter, deque
from itertools import repeat
from typing import TYPE_CHECKING

from ctrlapi_async.models import StopOutcome, StopResult, StopStats, TaskStatus
from ctrlapi_async.report import StopReport, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


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
        self._population: list[int] = []
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
            self._population.append(0)
            if not final:
                self._open.add(number)
        return number

    def verdict(self, task_id: int) -> Verdict:
        """Give the verdict of a task that the ledger holds."""
        return self._verdicts[self._codes[task_id]]

    def admit(self, task_ids: list[int], code: int) -> list[int]:
        """Enter tasks under an open verdict, and give those that it did not hold yet, in order.

        Raises:
            ValueError: It holds one of them for another project.
        """
        fresh = dict.fromkeys(task_ids, code)
        if not self._codes.keys().isdisjoint(fresh):
            project_id = self._verdicts[code].project_id
            for task_id in fresh.keys() & self._codes.keys():
                if (other := self.verdict(task_id).project_id) != project_id:
                    raise ValueError(
                        f"task {task_id} is asked for in two projects, {other} and {project_id}"
                    )
            fresh = {task_id: code for task_id in fresh if task_id not in self._codes}
        self._codes.update(fresh)
        self._population[code] += len(fresh)
        return task_ids if len(fresh) == len(task_ids) else list(fresh)

    def move(self, task_ids: Sequence[int], codes: Sequence[int], was: int | None = None) -> None:
        """Give each task the verdict beside it.

        Args:
            task_ids: Tasks that the ledger holds.
            codes: As many numbers of verdicts.
            was: The number that all of them have, where the caller knows that it is one.
        """
        self._leave(task_ids, was)
        counts = Counter(codes)
        for code, count in counts.items():
            self._population[code] += count
        if self._collect:
            self._codes.update(zip(task_ids, codes, strict=True))
        else:
            for task_id, code in zip(task_ids, codes, strict=True):
                if code in self._open:
                    self._codes[task_id] = code
                else:
                    del self._codes[task_id]
        if not counts.keys() <= self._open:
            self._announce(task_ids, codes)

    def move_all(self, task_ids: Sequence[int], code: int, was: int | None = None) -> None:
        """Give all tasks one verdict; arguments as for `move`."""
        self._leave(task_ids, was)
        self._population[code] += len(task_ids)
        final = code not in self._open
        if final and not self._collect:
            for task_id in task_ids:
                del self._codes[task_id]
        else:
            self._codes.update(dict.fromkeys(task_ids, code))
        if final:
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

    def _leave(self, task_ids: Sequence[int], was: int | None) -> None:
        if was is not None:
            self._population[was] -= len(task_ids)
            return
        for code, count in Counter(map(self._codes.__getitem__, task_ids)).items():
            self._population[code] -= count

    def _announce(self, task_ids: Sequence[int], codes: Sequence[int] | repeat[int]) -> None:
        if not self._muted:
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
        counts = dict.fromkeys(StopResult, 0)
        for verdict, count in zip(self._verdicts, self._population, strict=True):
            counts[verdict.result] += count
        return counts

    def report(self, stats: StopStats, changes: dict[int, int]) -> StopReport:
        """Make a report of what is known now.

        Args:
            stats: What the run has cost so far.
            changes: Tasks whose verdict is another for now.
        """
        return StopReport(self._codes | changes, tuple(self._verdicts), stats)
