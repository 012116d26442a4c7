"""How much a session sends: requests in flight, pauses, and task ids a request.

What decides is pure and is handed the time: a strategy for the number of slots (`_concurrency`,
`_adaptive`), the backoff of the whole session, and the ceiling of ids a request.
`ConcurrencyLimiter` gives out the slots, first come, first served.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from ctrlapi_async._adaptive import AdaptiveConcurrency
from ctrlapi_async._concurrency import Finished, FixedConcurrency
from ctrlapi_async._errors import CtrlApiError, HttpError, Trait, traits_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

logger = logging.getLogger("ctrlapi_async")

_LONGEST_TIMER: Final = 3600.0
"""Seconds after which a timer looks again at the time; loops refuse timers that are too long."""
_FULL_REQUESTS: Final = 16
"""Good replies to requests as large as allowed after which larger ones are tried."""


class Strategy(Protocol):
    """Decides how many requests may be in flight."""

    @property
    def slots(self) -> int:
        """Requests that may be in flight."""
        ...

    def finished(self, request: Finished) -> None:
        """Take in how a request ended."""


class Backoff:
    """The pause of a session that is told to slow down: longer while refusals go on.

    Its bound grows by one level with the refusals of requests that were in flight together, and
    shrinks by one level with each good reply.

    Args:
        wait_bound: Returns the bound in seconds of the pause at a level, from 1.
        random: Returns a number from 0 to 1.
    """

    def __init__(self, wait_bound: Callable[[int], float], random: Callable[[], float]) -> None:
        self._wait_bound = wait_bound
        self._random = random
        self._level = 0
        self._refused_at = float("-inf")
        self.resume_at = 0.0
        """When the next request may be sent."""

    def refused(self, sent_at: float, now: float, retry_after: float | None) -> None:
        """Take in that the server wants fewer requests.

        Args:
            sent_at: When the request was sent that was refused.
            now: When the refusal came.
            retry_after: The seconds that the server asks for, or None.
        """
        pause = retry_after or 0.0
        if sent_at >= self._refused_at:
            self._level += 1
            self._refused_at = now
            pause = max(pause, self._random() * self._wait_bound(self._level))
        self.resume_at = max(self.resume_at, now + pause)

    def succeeded(self) -> None:
        """Take in a good reply."""
        self._level = max(0, self._level - 1)


class IdCeiling:
    """How many task ids a request may carry once the server has refused one as too large.

    A refusal halves the number. After some good replies to requests of that size it doubles; each
    time that proves wrong, twice as many good replies are needed for the next try.
    """

    def __init__(self) -> None:
        self.max_ids: int | None = None
        """Task ids a request at most; None: any number."""
        self._needed = _FULL_REQUESTS
        self._full_replies = 0
        self._raised = False

    def refused(self, size: int) -> None:
        """Take in that a request of so many ids was too large."""
        half = max(1, size // 2)
        if self.max_ids is not None and half >= self.max_ids:
            return  # it was sent under a ceiling that has been lowered since
        self.max_ids = half
        self._full_replies = 0
        if self._raised:
            self._needed *= 2
            self._raised = False

    def succeeded(self, size: int) -> None:
        """Take in a good reply to a request of so many ids."""
        if self.max_ids is None or size < self.max_ids:
            return
        self._full_replies += 1
        if self._full_replies >= self._needed:
            self.max_ids *= 2
            self._full_replies = 0
            self._raised = True


class ConcurrencyLimiter:
    """Gives out a session's slots: `async with limiter.slot(): ...` sends one request.

    Slots go to whoever has waited longest. During a pause none is given out.

    Args:
        max_concurrency: Requests in flight at most.
        start_concurrency: Requests in flight at first, if the number shall adapt; None: fixed.
        wait_bound: Returns the bound in seconds of the pause at a level of backoff, from 1.
        longest_wait: Seconds that a server may ask for; whoever is told to wait for longer gives
            up, and the others do not wait.
        random: Returns a number from 0 to 1.
    """

    def __init__(
        self,
        max_concurrency: int,
        start_concurrency: int | None = None,
        *,
        wait_bound: Callable[[int], float],
        longest_wait: float = float("inf"),
        random: Callable[[], float],
    ) -> None:
        self._strategy: Strategy = (
            FixedConcurrency(max_concurrency)
            if start_concurrency is None or start_concurrency >= max_concurrency
            else AdaptiveConcurrency(start_concurrency, max_concurrency)
        )
        self._backoff = Backoff(wait_bound, random)
        self._longest_wait = longest_wait
        self._ceiling = IdCeiling()
        self._taken = 0
        self._all_in_use_at = float("-inf")
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._slot = _Slot(self)

    @property
    def slots(self) -> int:
        """Requests that may be in flight."""
        return self._strategy.slots

    @property
    def in_flight(self) -> int:
        """Slots that are taken."""
        return self._taken

    @property
    def max_ids(self) -> int | None:
        """Task ids a request at most; None: any number."""
        return self._ceiling.max_ids

    @property
    def resume_at(self) -> float:
        """The loop's time before which no request is sent."""
        return self._backoff.resume_at

    def slot(self) -> _Slot:
        """Return a context manager that waits for a slot, and frees it at the end."""
        return self._slot

    async def acquire(self) -> None:
        """Wait for a slot."""
        if not self._waiters and self._may_send():
            self._taken += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._give_out()
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self.release()  # given out and cancelled in the same turn of the loop
            else:
                with suppress(ValueError):  # passed over already
                    self._waiters.remove(waiter)
                self._give_out()
            raise

    def release(self) -> None:
        """Free a slot."""
        self._taken -= 1
        self._give_out()

    def finished(
        self, *, sent_at: float, now: float, size: int, error: CtrlApiError | None
    ) -> None:
        """Take in how a request ended; its slot is still taken.

        Args:
            sent_at: The loop's time when it was sent.
            now: The loop's time.
            size: The task ids in it.
            error: What it met; None after a good reply.
        """
        traits = None if error is None else traits_of(error)
        if self._taken >= self._strategy.slots:
            self._all_in_use_at = now
        # Slots that became free since, by replies of the same moment, say nothing.
        all_in_use = self._all_in_use_at >= sent_at
        alone = self._taken <= 1
        self._strategy.finished(Finished(sent_at, now, size, traits, all_in_use, alone))
        if traits is None:
            self._backoff.succeeded()
            self._ceiling.succeeded(size)
        elif Trait.SLOW_DOWN in traits:
            retry_after = error.retry_after if isinstance(error, HttpError) else None
            if retry_after is not None and retry_after > self._longest_wait:
                retry_after = None
            before = self.resume_at
            self._backoff.refused(sent_at, now, retry_after)
            if self.resume_at > before:
                logger.warning(
                    "slowing down: %d requests at once, after %.2f s",
                    self.slots,
                    self.resume_at - now,
                )
        elif Trait.TOO_LARGE in traits and size > 1:
            before_ids = self.max_ids
            self._ceiling.refused(size)
            if self.max_ids != before_ids:
                logger.warning("request too large: %d task ids at most from now on", self.max_ids)
        self._give_out()

    def _may_send(self) -> bool:
        return self._taken < self._strategy.slots and (
            not self.resume_at or asyncio.get_running_loop().time() >= self.resume_at
        )

    def _give_out(self) -> None:
        while self._waiters and self._may_send():
            waiter = self._waiters.popleft()
            if not waiter.done():  # else cancelled, and its task has not run since
                self._taken += 1
                waiter.set_result(None)
        self._arm_timer()

    def _arm_timer(self) -> None:
        """Have a timer if, and only if, somebody waits for the end of a pause."""
        if not self._waiters:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            now = loop.time()
            if now < self.resume_at:
                due = min(self.resume_at, now + _LONGEST_TIMER)
                self._timer = loop.call_at(due, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._give_out()


class _Slot:
    def __init__(self, limiter: ConcurrencyLimiter) -> None:
        self._limiter = limiter

    async def __aenter__(self) -> None:
        await self._limiter.acquire()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._limiter.release()
