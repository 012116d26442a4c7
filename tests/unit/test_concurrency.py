"""Strategies for the number of requests in flight: pure, with the time in the test's hands."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import HttpError, RequestError
from ctrlapi_async._adaptive import AdaptiveConcurrency
from ctrlapi_async._concurrency import Finished, FixedConcurrency
from ctrlapi_async._errors import RequestTimeoutError, traits_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async._errors import Trait

BUSY = traits_of(HttpError("busy", 503))
NO_ANSWER = traits_of(RequestError("no answer", sent=False))
BROKEN = traits_of(HttpError("broken", 500))


def good(sent_at: float, now: float, *, full: bool = True, alone: bool = False) -> Finished:
    return Finished(sent_at, now, 100, None, full, alone)


def failed(sent_at: float, now: float, traits: Trait) -> Finished:
    return Finished(sent_at, now, 100, traits, all_in_use=True, alone=False)


# --- fixed ----------------------------------------------------------------------------------------


def test_the_slots_halve_once_for_requests_that_were_in_flight_together() -> None:
    strategy = FixedConcurrency(8)
    strategy.finished(failed(0, 10, BUSY))
    assert strategy.slots == 4
    strategy.finished(failed(1, 11, BUSY))
    strategy.finished(failed(9.9, 12, BUSY))
    assert strategy.slots == 4
    strategy.finished(failed(10, 13, BUSY))
    assert strategy.slots == 2
    strategy.finished(failed(13, 14, BUSY))
    strategy.finished(failed(14, 15, BUSY))
    assert strategy.slots == 1


def test_the_slots_come_back_one_by_one() -> None:
    strategy = FixedConcurrency(4)
    strategy.finished(failed(0, 1, BUSY))
    counts = []
    for now in range(2, 10):
        strategy.finished(good(now, now + 1))
        counts.append(strategy.slots)
    assert counts == [2, 3, 3, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("traits", [None, NO_ANSWER, BROKEN])
def test_a_server_that_is_never_busy_gets_all_slots(traits: Trait | None) -> None:
    strategy = FixedConcurrency(8)
    for now in range(100):
        strategy.finished(Finished(now, now + 1, 100, traits, all_in_use=True, alone=False))
        assert strategy.slots == 8


# --- adaptive -------------------------------------------------------------------------------------


class Server:
    """Answers requests in full rounds, at a rate that depends on their number."""

    def __init__(self, strategy: AdaptiveConcurrency, rate: Callable[[int], float]) -> None:
        self.strategy = strategy
        self.rate = rate
        self.now = 0.0
        self.in_flight = [0.0] * strategy.slots
        """When they were sent."""

    def reply(self, *, full: bool = True) -> None:
        """Answer the request that was sent first."""
        self.now += 1 / self.rate(len(self.in_flight))
        self.strategy.finished(good(self.in_flight.pop(0), self.now, full=full))
        while len(self.in_flight) < self.strategy.slots:
            self.in_flight.append(self.now)

    def rounds(self, count: int) -> list[int]:
        """Answer so many rounds, and return the slots after each."""
        slots = []
        for _ in range(count):
            for _ in range(self.strategy.slots):
                self.reply()
            slots.append(self.strategy.slots)
        return slots


def server(rate: Callable[[int], float], start: int = 8, limit: int = 32) -> Server:
    """Return a server whose first round came from no line."""
    made = Server(AdaptiveConcurrency(start, limit), rate)
    for place in range(start):
        made.strategy.finished(good(place * 1e-6, 1 + place * 1e-6))
    made.now = 1.00001
    made.in_flight = [1.0] * made.strategy.slots
    return made


def test_slots_double_while_that_pays() -> None:
    side_by_side = server(float)
    assert side_by_side.strategy.slots == 16
    assert max(side_by_side.rounds(10)) == side_by_side.strategy.slots == 32
    # A failure that is not the server's load changes nothing.
    side_by_side.strategy.finished(failed(side_by_side.now, side_by_side.now + 1, BROKEN))
    assert side_by_side.strategy.slots == 32
    single = AdaptiveConcurrency(1, 4)
    single.finished(good(0, 1, alone=True))
    assert single.slots == 2


def test_slots_that_bring_nothing_are_taken_back_and_tried_again_more_and_more_rarely() -> None:
    full = server(lambda _: 8.0)
    slots = full.rounds(100)
    tries = [place for place, (one, two) in enumerate(pairwise(slots)) if two > one]
    gaps = [two - one for one, two in pairwise(tries)]
    assert set(slots) == {8, 16}
    assert gaps == sorted(gaps)
    assert gaps[-1] > 2 * gaps[0]


def test_a_try_that_brings_a_little_keeps_a_little() -> None:
    some = server(lambda slots: 8.0 if slots <= 8 else 9.5)
    assert 9 in some.rounds(3)


def test_requests_that_wait_in_a_line_are_not_made_more() -> None:
    strategy = AdaptiveConcurrency(8, 32)
    for place in range(8):
        strategy.finished(good(place * 1e-6, 1.0 + place))
    assert strategy.slots == 8
    line = Server(strategy, lambda _: 1.0)
    line.now = 8.0
    assert set(line.rounds(60)) == {8}
    assert 16 in line.rounds(10)


def test_rounds_in_which_slots_were_free_do_not_count() -> None:
    idle = Server(AdaptiveConcurrency(8, 32), float)
    for _ in range(200):
        idle.reply(full=False)
    assert idle.strategy.slots == 8
    for _ in range(7):
        idle.reply()
    idle.reply(full=False)
    assert idle.strategy.slots == 8


def test_a_gain_that_no_longer_holds_is_taken_back() -> None:
    busier = server(float)
    busier.rounds(5)
    assert busier.strategy.slots == 32
    busier.rate = lambda _: 4.0
    slots = busier.rounds(4)
    assert slots[-1] <= 16
    assert min(busier.rounds(40)) == 8


@pytest.mark.parametrize("traits", [BUSY, NO_ANSWER, traits_of(RequestTimeoutError("late"))])
@pytest.mark.parametrize(("replies", "slots"), [(1, 16), (100, 32)], ids=["in a try", "later"])
def test_a_server_that_wants_less_than_more_slots_never_gets_them_again(
    traits: Trait, replies: int, slots: int
) -> None:
    grown = server(float)
    for _ in range(replies):
        grown.reply()
    assert grown.strategy.slots == slots
    while slots > 8:
        slots //= 2
        for _ in range(2):  # of those in flight at that time, the second tells nothing new
            grown.strategy.finished(failed(grown.now, grown.now + 1, traits))
            assert grown.strategy.slots == slots
        grown.now += 1
        assert max(grown.rounds(50)) == slots


def test_with_no_more_slots_than_at_the_start_it_is_as_the_fixed_one() -> None:
    strategy, fixed = AdaptiveConcurrency(8, 32), FixedConcurrency(8)
    for each in (strategy, fixed):
        each.finished(failed(0, 1, BUSY))
        each.finished(failed(1, 2, BUSY))
        each.finished(failed(2, 3, NO_ANSWER))
        for now in range(3, 6):
            each.finished(good(now, now + 1, full=False))
    assert strategy.slots == fixed.slots == 3


def test_after_a_pause_a_line_is_looked_for_again() -> None:
    strategy = server(float, start=8, limit=9).strategy
    assert strategy.slots == 9
    strategy = server(lambda _: 8.0).strategy
    strategy.finished(good(90, 91, full=False, alone=True))
    slots = strategy.slots
    for place in range(2 * slots):
        strategy.finished(good(100 + place * 1e-6, 101.0 + place))
    assert strategy.slots <= slots


@given(
    start=st.integers(1, 9),
    more=st.integers(1, 30),
    events=st.lists(
        st.tuples(
            st.sampled_from([None, BUSY, NO_ANSWER, BROKEN]),
            st.floats(0, 10),
            st.floats(0, 10),
            st.booleans(),
            st.booleans(),
        ),
        max_size=200,
    ),
)
def test_whatever_comes_the_slots_are_from_one_to_the_limit(
    start: int, more: int, events: list[tuple[Trait | None, float, float, bool, bool]]
) -> None:
    strategy = AdaptiveConcurrency(start, start + more)
    now = 0.0
    for traits, pause, time, full, alone in events:
        now += pause
        strategy.finished(Finished(now - time, now, 100, traits, full, alone))
        assert 1 <= strategy.slots <= start + more
