"""The running account of a bulk stop: one verdict a task, and how many have each. Pure."""

from __future__ import annotations

from collections import Counter, deque
from itertools import islice
from typing import TYPE_CHECKING, Final, cast

from ctrlapi_async.models import StopOutcome, StopResult, StopStats, TaskStatus
from ctrlapi_async.report import StopReport, Verdict
from ctrlapi_async.roll import Roll, Window

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

TEXTS: Final = 100
"""Verdicts in a server's own words that a ledger which does not collect holds on to."""

PORTION: Final = 1000
"""Tasks at the end that are looked through in one go."""


class Ledger:
    """Holds the verdict of every task of a run, and announces each one that is final.

    A verdict is known by a small number. An open one may still change: it is part of every
    snapshot, but is not announced.

    Args:
        collect: Whether final verdicts are kept. If not, only open ones are, and the final
            ones are known by their counts alone.
    """

    def __init__(self, *, collect: bool) -> None:
        self.collect = collect
        self._roll = Roll() if collect else Window()
        self._verdicts: dict[int, Verdict] = {}
        self._numbers: dict[tuple[Verdict, bool], int] = {}
        self._next = 0
        self._open: set[int] = set()
        # How many tasks have each verdict; counted along from the first time that it is asked
        # for, or from the start where what is final is not kept.
        self._population: Counter[int] | None = None if collect else Counter()
        # And how many had one that is not held any more.
        self._gone: Counter[StopResult] = Counter()
        self._texts = TEXTS
        self._announced: deque[tuple[list[int], Sequence[int] | int]] = deque()
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
        """Give the number by which the ledger knows a verdict.

        Without a report a number whose verdict holds a text of the server's is good for the next
        booking only.
        """
        key = (Verdict(project_id, result, status, error), final)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self._next
            self._next += 1
            self._verdicts[number] = key[0]
            if not final:
                self._open.add(number)
        return number

    def __contains__(self, task_id: int) -> bool:
        return task_id in self._roll

    def verdict(self, task_id: int) -> Verdict:
        """Give the verdict of a task."""
        [code] = self._roll.codes_at([task_id])
        return self._verdicts[code]

    def admit(self, task_ids: list[int], code: int) -> list[int]:
        """Enter tasks under an open verdict: give those that are new, in order.

        Raises:
            ValueError: One of them is held for another project.
        """
        fresh, known = self._roll.add(task_ids, code)
        project_id = self._verdicts[code].project_id
        for task_id in known:
            if (other := self.verdict(task_id).project_id) != project_id:
                raise ValueError(
                    f"task {task_id} is asked for in two projects, {other} and {project_id}"
                )
        if self._population is not None:
            self._population[code] += len(fresh)
        return fresh

    def move(self, task_ids: list[int], codes: Sequence[int], was: int | None = None) -> None:
        """Give each task the verdict in its place.

        Args:
            task_ids: Tasks that the ledger holds.
            codes: As many numbers of verdicts.
            was: The number that all of them have, where the caller knows that it is one.
        """
        if self._population is not None:
            self._leave(self._population, task_ids, was)
            self._population.update(codes)
        if not (self._muted or self._open.issuperset(codes)):
            self._announce(task_ids, codes)
        self._roll.put(task_ids, codes)
        if isinstance(self._roll, Window):
            self._roll.drop(
                [n for n, code in zip(task_ids, codes, strict=True) if code not in self._open]
            )
            self._forget()

    def move_all(self, task_ids: list[int], code: int, was: int | None = None) -> None:
        """Give all of some tasks one verdict; arguments as for `move`."""
        if self._population is not None:
            self._leave(self._population, task_ids, was)
            self._population[code] += len(task_ids)
        final = code not in self._open
        if final and not self._muted:
            self._announce(task_ids, code)
        if final and isinstance(self._roll, Window):
            self._roll.drop(task_ids)
            self._forget()
        else:
            self._roll.put_all(task_ids, code, was)

    def amend(
        self, task_ids: list[int], change: Callable[[Verdict], Verdict], *, final: bool = True
    ) -> None:
        """Give each task a verdict made of the one it has."""
        was = self._roll.codes_at(task_ids)
        codes: dict[int, int] = {}
        for code in set(was):
            verdict = change(self._verdicts[code])
            codes[code] = self.code(
                verdict.project_id, verdict.result, verdict.status, verdict.error, final=final
            )
        self.move(task_ids, list(map(codes.__getitem__, was)))

    def _leave(self, population: Counter[int], task_ids: list[int], was: int | None) -> None:
        if was is not None:
            population[was] -= len(task_ids)
        else:
            population.subtract(self._roll.codes_at(task_ids))

    def _forget(self) -> None:
        """Let go of texts that nobody needs any more: a server may have no end of them."""
        if len(self._verdicts) <= self._texts:
            return
        population = cast("Counter[int]", self._population)
        needed = set(self._open)  # and so all that the tasks have which are held
        for _, codes in self._announced:
            needed.update([codes] if isinstance(codes, int) else codes)
        for (verdict, final), number in list(self._numbers.items()):
            plain = verdict.error is None and isinstance(verdict.status, TaskStatus | None)
            if not plain and number not in needed:
                del self._numbers[verdict, final], self._verdicts[number]
                self._gone[verdict.result] += population.pop(number, 0)
        self._texts = 2 * len(self._verdicts) + TEXTS

    def _announce(self, task_ids: list[int], codes: Sequence[int] | int) -> None:
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
        if isinstance(codes, int):
            codes = [codes] * len(task_ids)
        # What is taken must outlive what is forgotten.
        verdicts = {code: self._verdicts[code] for code in set(codes) - self._open}
        return (
            verdicts[code].outcome(task_id)
            for task_id, code in zip(task_ids, codes, strict=True)
            if code in verdicts
        )

    def leftovers(self) -> Iterator[Iterator[StopOutcome]]:
        """Go through the tasks whose verdict never became final, in portions."""
        if not self._roll.may_hold(self._open):
            return
        entries = iter(self._roll.entries())
        while portion := list(islice(entries, PORTION)):
            yield (
                self._verdicts[code].outcome(task_id)
                for task_id, code in portion
                if code in self._open
            )

    def reword(self, change: Callable[[Verdict], Verdict]) -> None:
        """Put another verdict in the place of each open one, for all tasks that have it."""
        for code in self._open:
            self._verdicts[code] = change(self._verdicts[code])

    @property
    def counts(self) -> dict[StopResult, int]:
        """How many tasks have each result, open verdicts included."""
        if self._population is None:
            self._population = cast("Roll", self._roll).tally()
        counts = dict.fromkeys(StopResult, 0) | self._gone
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
            changes: The verdict, for now, of some tasks; None at the end, when the report takes
                over what the ledger holds.
        """
        if isinstance(self._roll, Window):
            return StopReport.of(
                (
                    self._verdicts[code].outcome(task_id)
                    for task_id, code in self._roll.with_codes(changes or {})
                ),
                stats,
            )
        roll = self._roll if changes is None else self._roll.with_codes(changes)
        return StopReport(roll=roll, verdicts=tuple(self._verdicts.values()), stats=stats)
