"""The running account, against a plain dict that does the same the slow way."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ctrlapi_async.ledger import TEXTS, Ledger
from ctrlapi_async.models import StopOutcome, StopResult, StopStats, TaskStatus
from ctrlapi_async.report import StopReport

OPEN = (StopResult.NOT_SENT, None, False)
POOLED = (StopResult.NOT_SENT, TaskStatus.RUNNING, False)
VERDICTS = [
    POOLED,
    (StopResult.STOP_SENT, TaskStatus.RUNNING, True),
    (StopResult.NOT_RUNNING, TaskStatus.COMPLETED, True),
]


class LedgerMachine(RuleBasedStateMachine):
    """Admits and moves tasks, and keeps account of it twice."""

    @initialize(collect=st.booleans(), counting=st.booleans())
    def start(self, collect: bool, counting: bool) -> None:
        self.collect = collect
        self.counting = counting  # from the first look on; it may come early or late
        self.ledger = Ledger(collect=collect)
        self.open: dict[int, tuple[StopResult, TaskStatus | None, bool]] = {}
        self.final: dict[int, tuple[StopResult, TaskStatus | None, bool]] = {}
        self.order: list[int] = []
        self.untaken: list[StopOutcome] = []

    def code(self, verdict: tuple[StopResult, TaskStatus | None, bool]) -> int:
        result, status, final = verdict
        return self.ledger.code(2, result, status, final=final)

    def book(self, task_id: int, verdict: tuple[StopResult, TaskStatus | None, bool]) -> None:
        self.open.pop(task_id)
        (self.final if verdict[2] else self.open)[task_id] = verdict
        if verdict[2]:
            self.untaken.append(StopOutcome(task_id, 2, *verdict[:2]))

    @rule(task_ids=st.lists(st.integers(0, 30), unique=True))
    def admit(self, task_ids: list[int]) -> None:
        # Without a report a final verdict is forgotten; then nobody asks for the task again.
        task_ids = [n for n in task_ids if self.collect or n not in self.final]
        fresh = self.ledger.admit(task_ids, self.code(OPEN))
        assert fresh == [n for n in task_ids if n not in self.open and n not in self.final]
        self.open |= dict.fromkeys(fresh, OPEN)
        self.order += fresh

    @precondition(lambda self: self.open)
    @rule(data=st.data(), known=st.booleans())
    def move(self, data: st.DataObject, known: bool) -> None:
        was = data.draw(st.sampled_from(list(self.open.values()))) if known else None
        candidates = [n for n, verdict in self.open.items() if was in (None, verdict)]
        moved = data.draw(st.lists(st.sampled_from(candidates), unique=True))
        verdicts = data.draw(
            st.lists(st.sampled_from(VERDICTS), min_size=len(moved), max_size=len(moved))
        )
        self.ledger.move(moved, list(map(self.code, verdicts)), self.code(was) if was else None)
        for task_id, verdict in zip(moved, verdicts, strict=True):
            self.book(task_id, verdict)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), verdict=st.sampled_from(VERDICTS), known=st.booleans())
    def move_all(
        self, data: st.DataObject, verdict: tuple[StopResult, TaskStatus, bool], known: bool
    ) -> None:
        was = data.draw(st.sampled_from(list(self.open.values()))) if known else None
        candidates = [n for n, verdict in self.open.items() if was in (None, verdict)]
        moved = data.draw(st.lists(st.sampled_from(candidates), unique=True))
        self.ledger.move_all(moved, self.code(verdict), self.code(was) if was else None)
        for task_id in moved:
            self.book(task_id, verdict)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def amend(self, data: st.DataObject) -> None:
        moved = data.draw(st.lists(st.sampled_from(list(self.open)), unique=True))
        self.ledger.amend(moved, lambda verdict: evolve(verdict, result=StopResult.UNCONFIRMED))
        for task_id in moved:
            self.book(task_id, (StopResult.UNCONFIRMED, self.open[task_id][1], True))

    @rule()
    def look(self) -> None:
        self.counting = True

    @rule()
    def take(self) -> None:
        taken = list(self.ledger.take())
        assert taken == self.untaken[: len(taken)]
        del self.untaken[: len(taken)]

    @rule()
    def take_all(self) -> None:
        taken: list[StopOutcome] = []
        while self.ledger.untaken:
            taken += self.ledger.take()
        assert taken == self.untaken
        self.untaken.clear()

    @invariant()
    def the_accounts_agree(self) -> None:
        verdicts = self.open | self.final
        counts = Counter(result for result, _, _ in verdicts.values())
        if self.counting:
            assert self.ledger.counts == {result: counts[result] for result in StopResult}
        kept = verdicts if self.collect else self.open
        report = self.ledger.report(StopStats(), {})
        expected = {n: StopOutcome(n, 2, *kept[n][:2]) for n in self.order if n in kept}
        assert dict(report) == expected
        if self.collect:
            assert list(report) == self.order
        assert {
            each.task_id for each in chain.from_iterable(self.ledger.leftovers())
        } == self.open.keys()
        for task_id, (result, status, _) in self.open.items():
            assert task_id in self.ledger
            verdict = self.ledger.verdict(task_id)
            assert (verdict.result, verdict.status) == (result, status)


TestLedger = LedgerMachine.TestCase


def test_a_task_of_two_projects_is_refused() -> None:
    ledger = Ledger(collect=True)
    ledger.admit([1, 2], ledger.code(2, StopResult.NOT_SENT, final=False))
    with pytest.raises(ValueError, match="task 2 is asked for in two projects, 2 and 3"):
        ledger.admit([3, 2], ledger.code(3, StopResult.NOT_SENT, final=False))


def test_a_muted_ledger_announces_nothing_and_counts_on() -> None:
    ledger = Ledger(collect=True)
    asked = ledger.code(2, StopResult.NOT_SENT, final=False)
    sent = ledger.code(2, StopResult.STOP_SENT)
    ledger.admit([1, 2], asked)
    ledger.move_all([1], sent)
    ledger.mute()
    ledger.move_all([2], sent)
    assert ledger.untaken == 0
    assert list(ledger.take()) == []
    assert ledger.counts[StopResult.STOP_SENT] == 2


def test_changes_are_in_the_report_and_nowhere_else() -> None:
    ledger = Ledger(collect=True)
    ledger.admit([1, 2], ledger.code(2, StopResult.NOT_SENT, final=False))
    doubtful = ledger.code(2, StopResult.UNCONFIRMED)
    report = ledger.report(StopStats(stop_calls=1), {1: doubtful})
    assert report == StopReport.of(
        [StopOutcome(1, 2, StopResult.UNCONFIRMED), StopOutcome(2, 2, StopResult.NOT_SENT)]
    )
    assert report.stats.stop_calls == 1
    assert ledger.counts[StopResult.UNCONFIRMED] == 0


def test_a_report_is_a_snapshot() -> None:
    ledger = Ledger(collect=True)
    asked = ledger.code(2, StopResult.NOT_SENT, final=False)
    ledger.admit([1], asked)
    before = ledger.report(StopStats(), {})
    ledger.move_all([1], ledger.code(2, StopResult.STOP_SENT))
    assert before[1].result is StopResult.NOT_SENT


def test_rewording_reaches_open_verdicts_only() -> None:
    ledger = Ledger(collect=True)
    ledger.admit([1, 2], ledger.code(2, StopResult.NOT_SENT, final=False))
    ledger.move_all([1], ledger.code(2, StopResult.NOT_SENT, error="refused"))
    ledger.reword(lambda verdict: evolve(verdict, error="late"))
    assert [each.error for each in ledger.report(StopStats(), {}).values()] == ["refused", "late"]


@given(st.booleans())
def test_open_verdicts_that_are_announced_on_the_way_are_not_given_out(collect: bool) -> None:
    ledger = Ledger(collect=collect)
    asked = ledger.code(2, StopResult.NOT_SENT, final=False)
    pooled = ledger.code(2, StopResult.NOT_SENT, TaskStatus.RUNNING, final=False)
    done = ledger.code(2, StopResult.NOT_RUNNING, TaskStatus.COMPLETED)
    ledger.admit([1, 2, 3], asked)
    ledger.move([1, 2, 3], [pooled, done, pooled], asked)
    assert [each.task_id for each in ledger.take()] == [2]
    assert [each.task_id for each in chain.from_iterable(ledger.leftovers())] == [1, 3]


@pytest.mark.parametrize("collect", [False, True])
def test_what_a_server_says_of_each_task_is_told_and_counted(collect: bool) -> None:
    count = 3 * TEXTS
    ledger = Ledger(collect=collect)
    asked = ledger.code(2, StopResult.NOT_SENT, final=False)
    pooled = ledger.code(2, StopResult.NOT_SENT, TaskStatus.RUNNING, final=False)
    task_ids = ledger.admit(list(range(count)), asked)
    first = iter(list[StopOutcome]())
    for task_id in task_ids:
        texts = [ledger.code(2, StopResult.NOT_FOUND, None, f"no task {task_id}"), pooled]
        ledger.move([task_id], [texts[task_id % 2]], asked)
        if task_id == 0:
            first = ledger.take()  # begun before what it tells of is forgotten
    odd = [n for n in task_ids if n % 2]
    for task_id in odd:
        code = ledger.code(2, StopResult.NOT_RUNNING, f"Status {task_id}")
        ledger.move_all([task_id], code, pooled)
    told = list(first)
    while ledger.untaken:
        told += ledger.take()
    assert told == [
        *(
            StopOutcome(n, 2, StopResult.NOT_FOUND, None, f"no task {n}")
            for n in range(0, count, 2)
        ),
        *(StopOutcome(n, 2, StopResult.NOT_RUNNING, f"Status {n}") for n in odd),
    ]
    counts = {StopResult.NOT_FOUND: count - len(odd), StopResult.NOT_RUNNING: len(odd)}
    assert ledger.counts == dict.fromkeys(StopResult, 0) | counts
    assert len(ledger.report(StopStats())) == (count if collect else 0)
