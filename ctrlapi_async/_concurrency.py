"""Strategies for the number of requests in flight. Pure: the time is an argument.

Both react to a server that asks to slow down with half the slots, and take them back one by one.
"""

from __future__ import annotations

from typing import NamedTuple

from ctrlapi_async._errors import Trait


class Finished(NamedTuple):
    """A request that has had its answer, or none.

    Attributes:
        sent_at: When it was sent, in seconds.
        now: When that became known.
        size: The task ids in it.
        traits: What its error means; None after a good reply.
        all_in_use: Whether all slots were in use at some time since it was sent.
        alone: Whether no other request is in flight.
        answered: Whether the server answered at all.
    """

    sent_at: float
    now: float
    size: int
    traits: Trait | None
    all_in_use: bool
    alone: bool
    answered: bool = True


class FixedConcurrency:
    """As many slots as allowed, fewer only while the server asks for that.

    A request to slow down halves the slots, once for all requests that were in flight together.
    After as many good replies as there are slots, there is one more.

    Args:
        limit: The most slots there are.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.slots = limit
        self._good_replies = 0
        self._slowed_at = float("-inf")

    def finished(self, request: Finished) -> None:
        """Take in how a request ended."""
        if request.traits is None:
            self._good_replies += 1
            if self.slots < self.limit and self._good_replies >= self.slots:
                self.slots += 1
                self._good_replies = 0
        elif Trait.SLOW_DOWN in request.traits:
            self._good_replies = 0
            # Requests that were in flight at the last slow-down tell nothing new.
            if request.sent_at >= self._slowed_at:
                self.slots = max(1, self.slots // 2)
                self._slowed_at = request.now
