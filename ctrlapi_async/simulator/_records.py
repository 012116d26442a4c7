"""What the simulator has seen, and the rules by which faults and gates choose requests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Self

from attrs import define, field, frozen, validators

from ctrlapi_async.simulator._waiting import Changes

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence


@frozen(eq=False)
class RequestRecord:
    """One HTTP request, as it arrived.

    Attributes:
        number: Counts all requests, from 1.
        numbers: Counts, for each method called in this request, the requests that contain it,
            this one included.
        http_method: The HTTP method.
        path: The path, without a query.
        headers: The headers, looked up in any case.
        json: The body, or None when it is not strict JSON or too large.
        calls: The methods called and the task ids asked for by each, as far as they can be read;
            ``"*"`` stands for no ids.
    """

    number: int
    numbers: Mapping[str, int]
    http_method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    json: Any
    calls: tuple[tuple[str, Sequence[int]], ...] = field(repr=False)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods called, in order."""
        return tuple(method for method, _ in self.calls)

    @property
    def ids(self) -> tuple[int, ...]:
        """The task ids of all calls, in order."""
        return tuple(task_id for _, ids in self.calls for task_id in ids)


@define
class Counters:
    """What came in since the start or the last ``reset_counters()``.

    Attributes:
        requests: HTTP requests, refused ones included.
        requests_by_method: HTTP requests that contain the method.
        calls: Method calls; a request may hold several.
        ids: Task ids asked for, by method.
        in_flight: Requests being handled now.
        peak: The most requests handled at the same time. A client that hangs up and asks again can
            count twice for as long as the server has not noticed.
        connections: Connections opened.
        connections_open: Connections open now.
    """

    requests: int = 0
    requests_by_method: Counter[str] = field(factory=Counter)
    calls: Counter[str] = field(factory=Counter)
    ids: Counter[str] = field(factory=Counter)
    in_flight: int = 0
    peak: int = 0
    connections: int = 0
    connections_open: int = 0

    def begin_request(self) -> None:
        """Count a request that is being handled from now on."""
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)

    def count_request(self, calls: Sequence[tuple[str, Sequence[int]]]) -> dict[str, int]:
        """Count a request that was read; return its number for each method in it."""
        self.requests += 1
        for method, ids in calls:
            self.calls[method] += 1
            self.ids[method] += len(ids)
        numbers = {}
        for method in dict.fromkeys(method for method, _ in calls):
            self.requests_by_method[method] += 1
            numbers[method] = self.requests_by_method[method]
        return numbers

    def count_connection(self, change: int) -> None:
        """Count a connection that was opened (1) or closed (-1)."""
        self.connections_open += change
        self.connections += max(change, 0)

    def restarted(self) -> Counters:
        """Return counters that start at zero with what is open and in flight now."""
        return Counters(
            in_flight=self.in_flight,
            peak=self.in_flight,
            connections_open=self.connections_open,
        )


@frozen
class Selector:
    """Chooses requests by method and number.

    Args:
        method: Only requests that contain this method.
        number: Only the one of that number, from 1, among those requests; None for all.
        every: That one and all after it.
    """

    method: str | None
    number: int | None = field(validator=validators.optional(validators.ge(1)))
    every: bool

    def matches(self, record: RequestRecord) -> bool:
        """Return whether a request is chosen."""
        own = record.number if self.method is None else record.numbers.get(self.method)
        if own is None or self.number is None:
            return own is not None
        return own >= self.number if self.every else own == self.number


class Gate:
    """Holds requests until it is released; use it as a context manager or call ``release()``.

    Both may be done in any thread.
    """

    def __init__(self, selector: Selector, lock: threading.RLock, *, effect: bool) -> None:
        self._selector = selector
        self._effect = effect
        self._lock = lock
        self._changes = Changes(lock)
        self._open = False
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> int:
        """How many requests wait at the gate."""
        return self._held

    @property
    def released(self) -> bool:
        """Whether the gate holds nothing any more."""
        return self._open

    def release(self) -> None:
        """Let go all that wait and all that come later."""
        with self._lock:
            self._open = True
            self._changes.announce()

    def holds(self, record: RequestRecord, *, effect: bool) -> bool:
        """Return whether a request must wait here, before (or after) it took effect."""
        return not self._open and self._effect is effect and self._selector.matches(record)

    def count(self, change: int) -> None:
        """Count a request that begins to wait (1) or ends (-1); needs the lock."""
        self._held += change

    async def wait(self) -> None:
        """Wait for the release."""
        await self._changes.wait_until(lambda: self._open)
