"""How fast a session may go: slots for requests in flight, and one pause for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

logger = logging.getLogger("ctrlapi_async")


class Pace:
    """Hands out slots, first come, first served; `async with pace:` takes one.

    Strategy: the number of slots halves when the server asks to slow down, at most once a round
    trip, and grows by one after as many successes as there are slots. During a pause no slot is
    handed out.

    Args:
        max_concurrency: Slots at most.
    """

    def __init__(self, max_concurrency: int) -> None:
        self.max_concurrency = max_concurrency
        self.ceiling: int | None = None
        """Task ids that one request may carry, once the server has refused a larger one."""
        self._slots = max_concurrency
        self._taken = 0
        self._successes = 0
        self._resume_at = 0.0
        self._slowed_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._free and not self._waiters:
            self._taken += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._hand_out()
        try:
            await waiter
        except BaseException:
            if waiter.done() and not waiter.cancelled():
                self._give_back()  # handed out and cancelled in the same turn
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            if self._timer is not None and not self._waiters:
                self._timer.cancel()  # it belongs to a loop that may end before it rings
                self._timer = None
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._taken -= 1
        if self._waiters:
            self._hand_out()

    def now(self) -> float:
        """Give the running loop's time in seconds."""
        return asyncio.get_running_loop().time()

    def succeeded(self) -> None:
        """Note a good answer: after enough of them there is one more slot."""
        self._successes += 1
        if self._slots < self.max_concurrency and self._successes >= self._slots:
            self._slots += 1
            self._successes = 0
            self._hand_out()

    def slow_down(self, began: float, pause: float) -> None:
        """Note that the server wants less.

        Args:
            began: When the request was sent that was answered so, by `now`.
            pause: Seconds before which no request is sent.
        """
        self._successes = 0
        if began >= self._slowed_at:
            # Requests that were under way already at the last slow-down tell nothing new.
            self._slots = max(1, self._slots // 2)
            self._slowed_at = self.now()
        self._resume_at = max(self._resume_at, self.now() + pause)
        logger.warning("slowing down: %d at once, after %.2f s", self._slots, pause)

    def shrink(self, size: int) -> None:
        """Note that a request of so many task ids was too large."""
        self.ceiling = max(1, min(self.ceiling or size, size // 2))
        logger.warning("request too large: %d task ids at most from now on", self.ceiling)

    @property
    def _free(self) -> bool:
        return self._taken < self._slots and (not self._resume_at or self.now() >= self._resume_at)

    def _give_back(self) -> None:
        self._taken -= 1
        self._hand_out()

    def _hand_out(self) -> None:
        if not self._waiters:
            return
        while self._waiters and self._free:
            waiter = self._waiters.popleft()
            if not waiter.done():  # else cancelled, and not yet come to know it
                self._taken += 1
                waiter.set_result(None)
        if self._waiters and self._timer is None and self.now() < self._resume_at:
            self._timer = asyncio.get_running_loop().call_at(self._resume_at, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._hand_out()
