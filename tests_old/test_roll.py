"""Ids in order with a number beside each, against a plain dict."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ctrlapi_async.roll import Roll, Window

if TYPE_CHECKING:
    from random import Random

IDS = st.lists(st.integers(0, 40), max_size=9)
ids_in_some_order = IDS | IDS.map(sorted) | IDS.map(lambda ids: sorted(set(ids)))
numbers = st.integers(0, 5) | st.sampled_from([254, 255, 256, 70_000])


class RollMachine(RuleBasedStateMachine):
    """Adds ids, changes their numbers and drops some, and keeps account of it in a dict."""

    @initialize(window=st.booleans(), rising=st.booleans())
    def start(self, window: bool, rising: bool) -> None:
        self.roll: Roll | Window = Window() if window else Roll()
        self.rising = rising
        self.model: dict[int, int] = {}
        self.copies: list[tuple[Roll, dict[int, int]]] = []

    @rule(task_ids=ids_in_some_order, code=numbers)
    def add(self, task_ids: list[int], code: int) -> None:
        if self.rising:
            task_ids = [max(self.model, default=0) + 1 + n for n in sorted(set(task_ids))]
        fresh = [n for n in dict.fromkeys(task_ids) if n not in self.model]
        added, known = self.roll.add(task_ids, code)
        assert added == fresh
        assert sorted(known) == sorted({n for n in task_ids if n in self.model})
        self.model |= dict.fromkeys(fresh, code)

    def some(self, data: st.DataObject, among: list[int] | None = None) -> list[int]:
        """Some ids, in any order or in that in which they stand, or a row of neighbours."""
        held = list(self.model) if among is None else among
        chosen = st.lists(st.sampled_from(held), unique=True)
        return data.draw(
            chosen
            | chosen.map(lambda some: sorted(some, key=held.index))
            | st.tuples(st.integers(0, len(held)), st.integers(0, len(held))).map(
                lambda ends: held[min(ends) : max(ends)]
            )
        )

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        task_ids = self.some(data)
        codes = data.draw(st.lists(numbers, min_size=len(task_ids), max_size=len(task_ids)))
        self.roll.put(task_ids, codes)
        self.model |= zip(task_ids, codes, strict=True)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), code=numbers, known=st.booleans())
    def put_all(self, data: st.DataObject, code: int, known: bool) -> None:
        was = data.draw(st.sampled_from(list(self.model.values()))) if known else None
        task_ids = self.some(data, [n for n in self.model if was in (None, self.model[n])])
        self.roll.put_all(task_ids, code, was)
        self.model |= dict.fromkeys(task_ids, code)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        task_ids = self.some(data)
        assert list(self.roll.codes_at(task_ids)) == [self.model[n] for n in task_ids]

    @precondition(lambda self: self.model and isinstance(self.roll, Window))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        assert isinstance(self.roll, Window)
        task_ids = self.some(data)
        self.roll.drop(task_ids)
        for n in task_ids:
            del self.model[n]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), code=numbers)
    def change_a_copy(self, data: st.DataObject, code: int) -> None:
        changes = dict.fromkeys(self.some(data), code)
        copy = self.roll.with_codes(changes)
        if isinstance(copy, Roll):
            self.copies.append((copy, self.model | changes))
        else:
            assert list(copy) == list((self.model | changes).items())

    @invariant()
    def all_is_as_in_the_dict(self) -> None:
        assert list(self.roll.entries()) == list(self.model.items())
        there = set(self.model.values())
        assert self.roll.may_hold(there) is bool(there)
        if isinstance(self.roll, Roll):
            if isinstance(self.roll.codes, bytearray):
                assert not self.roll.may_hold({0, 1, 2, 255, 256, 70_000} - there)
            assert self.roll.tally() == Counter(self.model.values())
        for copy, model in self.copies:
            assert list(copy.entries()) == list(model.items())
            assert [n for n in range(60) if n in copy] == sorted(model.keys() & {*range(60)})
        for task_id in range(-1, 60):
            assert (task_id in self.roll) is (task_id in self.model)


TestRoll = RollMachine.TestCase


kinds = st.sampled_from(["other", "left alone", "changed"])
"""Of an id: it has another number than those that are changed, the same, or is one of them."""


@given(
    st.lists(st.tuples(kinds, st.integers(1, 30)), max_size=20),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_those_of_one_number_are_changed_wherever_they_stand(
    rows: list[tuple[str, int]], step: int, random: Random
) -> None:
    kind_of = dict(enumerate((kind for kind, count in rows for _ in range(count)), 5))
    roll = Roll.of({step * n: 2 if kind == "other" else 1 for n, kind in kind_of.items()})
    changed = [step * n for n, kind in kind_of.items() if kind == "changed"]
    random.shuffle(changed)
    roll.put_all(changed, 3, was=1)
    expected = {"other": 2, "left alone": 1, "changed": 3}
    assert list(roll.entries()) == [(step * n, expected[kind]) for n, kind in kind_of.items()]


@given(st.dictionaries(st.integers(0, 2**63 - 1), numbers))
def test_a_roll_of_a_mapping_holds_what_it_holds(codes: dict[int, int]) -> None:
    assert list(Roll.of(codes).entries()) == list(codes.items())


@given(st.lists(st.integers(0, 2**63 - 1), unique=True, min_size=1))
def test_ids_are_found_however_far_apart_they_are(task_ids: list[int]) -> None:
    for ids in (task_ids, sorted(task_ids)):
        roll = Roll()
        roll.add(ids, 0)
        assert [roll.place(n) for n in ids] == list(range(len(ids)))
        assert roll.place(sum(ids) + 1) is None


@pytest.mark.parametrize("stranger", [None, "5", 5.5, -1, 2**70, float("nan"), float("inf"), 1j])
@pytest.mark.parametrize("task_ids", [[], [5], [4, 5, 6], [6, 5, 4]])
def test_what_is_no_id_has_no_place(stranger: object, task_ids: list[int]) -> None:
    roll = Roll()
    roll.add(task_ids, 0)
    assert roll.place(stranger) is None


@pytest.mark.parametrize("task_ids", [[4, 5, 6], [6, 5, 4], [2, 5, 9]])
@pytest.mark.parametrize("alike", [5.0, Decimal(5)])
def test_what_equals_an_id_is_found(task_ids: list[int], alike: object) -> None:
    roll = Roll()
    roll.add(task_ids, 0)
    assert roll.place(alike) == task_ids.index(5)
