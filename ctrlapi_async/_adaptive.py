"""Concurrency that grows while it pays: delivery-rate doubling, as BBR starts up. Pure.

A round is as many good replies as there are slots, all of which were in use. Its rate counts task
ids, and for each request as much as `_REQUEST_COST` ids. From idle, if the requests sent last in
the first round took much longer than those sent first, they wait in a line at the server, and
more of them would only wait longer. Else the slots are doubled for a round. If that does not pay,
most of the new slots are taken back, and the strategy rests for some rounds.
"""

from __future__ import annotations

from typing import Final

from ctrlapi_async._concurrency import Finished, FixedConcurrency
from ctrlapi_async._errors import Trait

_REQUEST_COST: Final = 100
"""What a request costs a server besides its ids, in ids."""
_LEAST_GAIN: Final = 1.25
"""The ratio of rates from which twice the slots pay."""
_LINE: Final = 1.5
"""The ratio of times from which the requests sent later in a round have waited in a line."""
_LINE_REST, _FIRST_REST = 64, 4
"""Rounds without a try, after a line and after the first try that did not pay."""

_WANTS_LESS: Final = Trait.SLOW_DOWN | Trait.NO_ANSWER


class AdaptiveConcurrency(FixedConcurrency):
    """From some slots towards more; with no more than at the start, as `FixedConcurrency`.

    Args:
        start: The slots to start with.
        limit: The most slots there are.
    """

    def __init__(self, start: int, limit: int) -> None:
        super().__init__(start)
        self._start = start
        self._cap = limit
        self._try_from: tuple[int, float] | None = None
        """Slots and rate before the try that goes on."""
        self._useful: list[tuple[int, float]] = []
        """Slots and rate before each try that paid."""
        self._rest = 0
        self._next_rest = _FIRST_REST
        self._from_idle = True
        self._begin_round(None)

    def finished(self, request: Finished) -> None:
        """Take in how a request ended."""
        if request.traits is None:
            super().finished(request)
            self._measure(request)
        elif self.slots > self._start and request.traits & _WANTS_LESS:
            if request.sent_at >= self._slowed_at:
                self._slowed_at = request.now
                self.slots = self._cap = max(self._start, self.slots // 2)
                self._useful = [each for each in self._useful if each[0] < self.slots]
            self._try_from = None
            self._begin_round(None)
        else:
            super().finished(request)
        self._from_idle = self._from_idle or request.alone

    def _begin_round(self, now: float | None) -> None:
        self._began = now
        self._work = 0
        self._times: list[tuple[float, float]] = []

    def _measure(self, request: Finished) -> None:
        if not request.all_in_use:
            self._begin_round(None)  # what counts is what all slots bring together
            return
        began = self._began
        if began is None:
            began = request.sent_at if self._from_idle else request.now
            self._begin_round(began)
            if not self._from_idle:
                return
        self._work += request.size + _REQUEST_COST
        self._times.append((request.sent_at, request.now - request.sent_at))
        if len(self._times) < self.slots:
            return
        rate = self._work / max(request.now - began, 1e-9)
        in_line = self._from_idle and _is_line([time for _, time in sorted(self._times)])
        self._from_idle = False
        self._begin_round(request.now)
        self._end_round(rate, in_line=in_line)

    def _end_round(self, rate: float, *, in_line: bool) -> None:
        if self._try_from is not None:
            slots, before = self._try_from
            self._try_from = None
            if rate < before * _LEAST_GAIN:
                self.slots = max(slots, int(slots * rate / before))
                self._rest = self._next_rest
                self._next_rest *= 2
                return
            self._useful.append((slots, before))
        elif self._useful and rate < self._useful[-1][1]:
            self.slots, _ = self._useful.pop()  # the gain is gone
            self._rest = self._next_rest
            return
        if in_line:
            self._rest = _LINE_REST
        elif self._rest:
            self._rest -= 1
        elif self._start <= self.slots < self._cap:
            self._try_from = self.slots, rate
            self.slots = min(self._cap, self.slots * 2)


def _is_line(times: list[float]) -> bool:
    half = len(times) // 2
    return half > 0 and sum(times[-half:]) > sum(times[:half]) * _LINE
