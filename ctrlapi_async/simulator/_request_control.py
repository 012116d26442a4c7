"""What users do about requests: set faults, hold, count and wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import define, field, setters

from ctrlapi_async.simulator._options import Options
from ctrlapi_async.simulator._processing import Clock, Processor
from ctrlapi_async.simulator._records import Gate, Selector

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.simulator._faults import Fault
    from ctrlapi_async.simulator._records import Counters, RequestRecord


@define(eq=False, kw_only=True, slots=False, repr=False)
class RequestControl(Options):
    """Faults, gates, counters and the log of a simulator; safe in any thread."""

    _user_clock: Callable[[], float] | None = field(
        default=None, alias="clock", on_setattr=setters.frozen
    )
    _keeps_log: bool = field(default=True, alias="log", on_setattr=setters.frozen)
    _processor: Processor = field(init=False)

    def __attrs_post_init__(self) -> None:
        if self._user_clock is not None and self.tick:
            raise ValueError("tick moves the hand-driven clock; leave out one of clock and tick")
        if self.login is not None and self.api_key is not None:
            raise ValueError("a request has one Authorization header; leave out login or api_key")
        self._processor = Processor(self, Clock(self._user_clock), keeps_log=self._keeps_log)

    @property
    def counters(self) -> Counters:
        """What came in."""
        return self._processor.counters

    @property
    def log(self) -> list[RequestRecord]:
        """The requests, in the order of their arrival."""
        return self._processor.log

    @property
    def fault_when(self) -> Callable[[RequestRecord], Fault | None] | None:
        """A function that may name a fault for a request.

        It is asked when no fault that was set with `fault` applies, in the simulator's thread. If
        it raises, the client gets a 500 and `ControlApiSimulator.stop` raises the error again.
        """
        return self._processor.fault_when

    @fault_when.setter
    def fault_when(self, function: Callable[[RequestRecord], Fault | None] | None) -> None:
        self._processor.fault_when = function

    def fault(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        number: int | None = None,
        every: bool = False,
    ) -> None:
        """Set a fault; when several apply to a request, the one that was set first is taken.

        Args:
            fault: What is to happen.
            method: Only to requests that contain this method.
            number: Only to the one of that number, from 1, among those requests; None for all.
            every: To that one and all after it.
        """
        selector = Selector(method, number, every)
        with self._processor.lock:
            self._processor.faults.append((selector, fault))

    def clear_faults(self) -> None:
        """Take back every fault, `fault_when` included."""
        with self._processor.lock:
            self._processor.faults.clear()
            self._processor.fault_when = None

    def hold(
        self,
        method: str | None = None,
        *,
        number: int | None = None,
        every: bool = False,
        effect: bool = False,
    ) -> Gate:
        """Hold requests until the gate is released.

        Args:
            method: Only requests that contain this method.
            number: Only the one of that number, as in `fault`.
            every: That one and all after it.
            effect: Hold them after they took effect, that is, only their replies.
        """
        processor = self._processor
        gate = Gate(Selector(method, number, every), processor.lock, effect=effect)
        with processor.lock:
            processor.gates = [other for other in processor.gates if not other.released]
            processor.gates.append(gate)
        return gate

    def reset_counters(self) -> None:
        """Count from zero, forget the log and number requests from 1 again."""
        with self._processor.lock:
            self._processor.counters = self._processor.counters.restarted()
            self._processor.log = []

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, looked at whenever something changes at the server.

        It works in a task of asyncio and of trio, and has no limit of its own.

        Args:
            condition: Looks at counters, tasks or gates; it must not wait itself.
        """
        await self._processor.changes.wait_until(condition)

    async def wait_for_requests(self, count: int, method: str | None = None) -> None:
        """Wait until so many requests, or requests that contain the method, have arrived."""
        await self.wait_until(lambda: self._arrived(method) >= count)

    def wait_until_sync(self, condition: Callable[[], bool], *, timeout: float = 10.0) -> None:
        """Wait as `wait_until` does, in a thread without an event loop.

        Raises:
            TimeoutError: The condition did not hold within the timeout's seconds.
        """
        self._processor.changes.wait_until_sync(condition, timeout)

    def wait_for_requests_sync(
        self, count: int, method: str | None = None, *, timeout: float = 10.0
    ) -> None:
        """Wait as `wait_for_requests` does, in a thread without an event loop.

        Raises:
            TimeoutError: Fewer arrived within the timeout's seconds.
        """
        self.wait_until_sync(lambda: self._arrived(method) >= count, timeout=timeout)

    def _arrived(self, method: str | None) -> int:
        counters = self.counters
        return counters.requests if method is None else counters.requests_by_method[method]
