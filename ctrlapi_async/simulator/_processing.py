"""Carry requests out, step by step, and make every step visible at once.

Between two points at which a request has to wait (for a gate, for the latency), everything happens
under one lock. A test that sees that a request has arrived therefore sees its effect as well.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define

from ctrlapi_async.simulator._access import refuse_at_proxy, refuse_signature
from ctrlapi_async.simulator._answers import Answer, json_answer
from ctrlapi_async.simulator._api import answer_request
from ctrlapi_async.simulator._records import Counters, RequestRecord
from ctrlapi_async.simulator._requests import RefusedError, parse_json, readable_calls
from ctrlapi_async.simulator._state import ServerState
from ctrlapi_async.simulator._waiting import Changes

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.simulator._access import HttpRequest
    from ctrlapi_async.simulator._faults import Fault
    from ctrlapi_async.simulator._options import Options
    from ctrlapi_async.simulator._records import Gate, Selector

T = TypeVar("T")


class HookError(Exception):
    """A function of the user's raised."""


class Clock:
    """The clock that tasks live by: the user's, or one that is driven by hand."""

    def __init__(self, clock: Callable[[], float] | None) -> None:
        self._clock = clock
        self._hand = 0.0

    @property
    def hand_driven(self) -> bool:
        """Whether `advance` moves it."""
        return self._clock is None

    @property
    def now(self) -> float:
        """The clock's seconds."""
        return self._hand if self._clock is None else self._clock()

    def advance(self, seconds: float) -> None:
        """Move the hand on."""
        self._hand += seconds


@define(eq=False)
class Exchange:
    """A request that is being carried out.

    Attributes:
        request: The request's head.
        record: What of it is kept.
        fault: What goes wrong with it.
        body: The body, or the answer to one that could not be read.
        document: The body's JSON.
        problem: What is wrong with the JSON.
        gate: The gate at which it waits.
        answer: The reply, once the request has taken effect.
    """

    request: HttpRequest
    record: RequestRecord
    fault: Fault | None
    body: bytes | Answer
    document: Any
    problem: str | None
    gate: Gate | None = None
    answer: Answer | None = None


class Processor:
    """The state of a simulated server, and the way of a request through it.

    Attributes:
        lock: Guards everything here.
        changes: Announces every change.
        state: The users, projects and tasks.
        clock: The clock that tasks live by.
        counters: What came in.
        log: The requests, when they are kept.
        faults: The faults that were set, with the requests they are for.
        fault_when: A function that may name a fault for a request.
        gates: The gates that hold requests.
        hook_errors: What functions of the user's raised.
    """

    def __init__(self, options: Options, clock: Clock, *, keeps_log: bool) -> None:
        self.lock = threading.RLock()
        self.changes = Changes(self.lock)
        self.state = ServerState()
        self.clock = clock
        self.counters = Counters()
        self.log: list[RequestRecord] = []
        self.faults: list[tuple[Selector, Fault]] = []
        self.fault_when: Callable[[RequestRecord], Fault | None] | None = None
        self.gates: list[Gate] = []
        self.hook_errors: list[Exception] = []
        self._options = options
        self._keeps_log = keeps_log

    def settled(self) -> float:
        """Carry out what is due and return the time; needs the lock."""
        now = self.clock.now
        self.state.settle(now)
        return now

    @property
    def wall_time(self) -> float:
        """The server's wall clock, in seconds since 1970."""
        return time.time() + self._options.clock_skew

    # The way of a request

    def arrive(self, request: HttpRequest, body: bytes | Answer) -> Exchange:
        """Number, count and log a request, and carry it as far as it gets without waiting.

        Raises:
            HookError: `fault_when` raised.
        """
        document: Any = None
        problem: str | None = None
        if isinstance(body, bytes):
            try:
                document = parse_json(body)
            except RefusedError as refusal:
                problem = str(refusal)
        with self.lock:
            record = self._record(request, document)
            try:
                fault = self._fault_for(record)
            except HookError:
                self.changes.announce()
                raise
            exchange = Exchange(request, record, fault, body, document, problem)
            self.proceed(exchange)
        return exchange

    def proceed(self, exchange: Exchange) -> None:
        """Carry a request on until a gate holds it or its reply is ready."""
        with self.lock:
            self.leave_gate(exchange)
            gate = self._gate_for(exchange, effect=False) if exchange.answer is None else None
            if gate is None:
                if exchange.answer is None:
                    exchange.answer = self._answer(exchange)
                    self.clock.advance(self._options.tick)
                gate = self._gate_for(exchange, effect=True)
            if gate is not None:
                gate.count(1)
                exchange.gate = gate
            self.changes.announce()

    def leave_gate(self, exchange: Exchange) -> None:
        """Take a request away from the gate that holds it, if one does."""
        with self.lock:
            if exchange.gate is not None:
                exchange.gate.count(-1)
                exchange.gate = None
                self.changes.announce()

    def run_hook(self, function: Callable[[T], Any], value: T) -> Any:  # noqa: ANN401 - as the hooks are
        """Call a function of the user's.

        Raises:
            HookError: It raised; its error is kept.
        """
        try:
            return function(value)
        except Exception as error:
            self.hook_errors.append(error)
            raise HookError from error

    def begin(self) -> None:
        """Count a request that is being handled from now on."""
        with self.lock:
            self.counters.begin_request()
            self.changes.announce()

    def end(self) -> None:
        """Count a request that is handled no more."""
        with self.lock:
            # Not the counters that it began with: they may have been reset in between.
            self.counters.in_flight -= 1
            self.changes.announce()

    def count_connection(self, change: int) -> None:
        """Count a connection that was opened (1) or closed (-1)."""
        with self.lock:
            self.counters.count_connection(change)
            self.changes.announce()

    def _record(self, request: HttpRequest, document: Any) -> RequestRecord:  # noqa: ANN401 - JSON is Any
        calls = readable_calls(document)
        numbers = self.counters.count_request(calls)
        record = RequestRecord(
            self.counters.requests,
            numbers,
            request.method,
            request.path,
            request.headers,
            document,
            calls,
        )
        if self._keeps_log:
            self.log.append(record)
        return record

    def _fault_for(self, record: RequestRecord) -> Fault | None:
        fault: Fault | None
        for selector, fault in self.faults:
            if selector.matches(record):
                return fault
        fault = None if self.fault_when is None else self.run_hook(self.fault_when, record)
        return fault

    def _gate_for(self, exchange: Exchange, *, effect: bool) -> Gate | None:
        return next(
            (gate for gate in self.gates if gate.holds(exchange.record, effect=effect)), None
        )

    def _answer(self, exchange: Exchange) -> Answer:
        body, request, options = exchange.body, exchange.request, self._options
        if isinstance(body, Answer):
            return body
        refusal = refuse_at_proxy(request, options) or refuse_signature(
            request, body, exchange.document, options, self.wall_time
        )
        if refusal is not None:
            return refusal
        if exchange.problem is not None:
            return json_answer(400, {"error": exchange.problem})
        fault = exchange.fault
        return answer_request(
            exchange.document,
            self.state,
            options,
            self.settled(),
            effect=fault is None or fault.effect,
        )
