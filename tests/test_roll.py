"""Ids in order with a number beside each, against a plain dict."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ctrlapi_async.roll import Places, Roll, Window

IDS = st.lists(st.integers(0, 40), max_size=9)
ids_in_some_order = IDS | IDS.map(sorted) | IDS.map(lambda ids: sorted(set(ids)))
numbers = st.integers(0, 5)


class RollMachine(RuleBasedStateMachine):
    """Adds ids, changes their numbers and drops some, and keeps account of it in a dict."""

    @initialize(window=st.booleans(), rising=st.booleans())
    def start(self, window: bool, rising: bool) -> None:
        self.roll: Roll | Window = Window() if window else Roll()
        self.rising = rising
        self.model: dict[int, int] = {}
        self.place: dict[int, int] = {}
        self.added = 0

    @rule(task_ids=ids_in_some_order, code=numbers)
    def add(self, task_ids: list[int], code: int) -> None:
        if self.rising:
            task_ids = [max(self.model, default=0) + 1 + n for n in sorted(set(task_ids))]
        fresh = [n for n in dict.fromkeys(task_ids) if n not in self.model]
        places, known = self.roll.add(task_ids, code)
        assert places == range(self.added, self.added + len(fresh))
        assert sorted(known) == sorted({n for n in task_ids if n in self.model})
        self.added += len(fresh)
        self.model |= dict.fromkeys(fresh, code)
        self.place |= zip(fresh, places, strict=True)

    def some(self, data: st.DataObject) -> list[int]:
        return data.draw(st.lists(st.sampled_from(list(self.model)), unique=True))

    def places(self, task_ids: list[int], as_range: bool) -> Places:
        places = [self.place[n] for n in task_ids]
        if as_range and places == list(range(places[0], places[0] + len(places))):
            return range(places[0], places[0] + len(places))
        return places

    @precondition(lambda self: self.model)
    @rule(data=st.data(), as_range=st.booleans())
    def put(self, data: st.DataObject, as_range: bool) -> None:
        task_ids = self.some(data) or list(self.model)
        codes = data.draw(st.lists(numbers, min_size=len(task_ids), max_size=len(task_ids)))
        self.roll.put(self.places(task_ids, as_range), codes)
        self.model |= zip(task_ids, codes, strict=True)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), as_range=st.booleans(), code=numbers)
    def put_all(self, data: st.DataObject, as_range: bool, code: int) -> None:
        task_ids = self.some(data) or list(self.model)
        self.roll.put_all(self.places(task_ids, as_range), code)
        self.model |= dict.fromkeys(task_ids, code)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), as_range=st.booleans())
    def look(self, data: st.DataObject, as_range: bool) -> None:
        task_ids = self.some(data) or list(self.model)
        places = self.places(task_ids, as_range)
        assert self.roll.ids_at(places) == task_ids
        assert list(self.roll.codes_at(places)) == [self.model[n] for n in task_ids]

    @precondition(lambda self: self.model and isinstance(self.roll, Window))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        assert isinstance(self.roll, Window)
        task_ids = self.some(data)
        self.roll.drop([self.place.pop(n) for n in task_ids])
        for n in task_ids:
            del self.model[n]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), code=numbers)
    def change_a_copy(self, data: st.DataObject, code: int) -> None:
        task_ids = self.some(data)
        copy = self.roll.with_codes({self.place[n]: code for n in task_ids})
        entries = copy.entries() if isinstance(copy, Roll) else copy
        assert list(entries) == list((self.model | dict.fromkeys(task_ids, code)).items())

    @invariant()
    def all_is_as_in_the_dict(self) -> None:
        assert list(self.roll.entries()) == list(self.model.items())
        for task_id in range(-1, 60):
            assert self.roll.place(task_id) == self.place.get(task_id)


TestRoll = RollMachine.TestCase


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
