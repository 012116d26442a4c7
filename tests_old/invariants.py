"""What holds after every run, whatever went wrong; and a loop on which no test has to wait."""

from __future__ import annotations

import asyncio
import json
import selectors
import time
from collections import Counter
from contextlib import suppress
from math import ceil, log2
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from ctrlapi_async import StopIncompleteError, StopReport, StopResult
from ctrlapi_async.simulator import Body, ControlApiSimulator, Fault, HttpStatus, Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from ctrlapi_async.simulator import RequestRecord

T = TypeVar("T")

STATUS: Final = "TaskStatus"
STOP: Final = "TaskStop"
PROJECT: Final = 2
AGES: Final = 1e12
"""Seconds after which whatever a simulator has under way has come to pass."""


# --- time -----------------------------------------------------------------------------------------


class JumpingSelector(selectors.DefaultSelector):
    """Lets the clock jump to the next timer whenever nothing else is going to happen."""

    GRACE: Final = 0.01
    """Seconds without a sign from any socket after which all sockets count as idle."""

    STUCK: Final = 20.0

    def __init__(self) -> None:
        super().__init__()
        self.jumped = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= self.GRACE:
            return super().select(timeout)
        if events := super().select(self.GRACE if timeout is not None else self.STUCK):
            return events
        if timeout is None:
            raise RuntimeError("nothing is going to happen any more")
        self.jumped += timeout - self.GRACE
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time: clients and servers in it share its clock."""

    def __init__(self) -> None:
        self._jumping = JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return time.monotonic() + self._jumping.jumped


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a test's coroutine on a jumping loop; it must leave no task behind."""

    async def alone() -> T:
        result = await main
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(alone())


# --- what was asked and told ----------------------------------------------------------------------


class Event(NamedTuple):
    """A request that arrived (`reply` is None), or the JSON that was sent for it."""

    record: RequestRecord
    fault: Fault | None
    reply: Any


class Witness:
    """Hears every request and every reply of a simulator, and sets the faults of a script."""

    def __init__(
        self,
        api: ControlApiSimulator,
        script: Callable[[RequestRecord], Fault | None] = lambda _: None,
    ) -> None:
        self.api = api
        self.script = script
        self.events: list[Event] = []
        api.fault_when = self._fault_for

    def _fault_for(self, record: RequestRecord) -> Fault:
        fault = self.script(record)
        self.events.append(Event(record, fault, None))
        if fault is None:
            fault = Rewrite(lambda reply: reply)
        if isinstance(fault, Body) and fault.status == 200:
            with suppress(ValueError):
                self.events.append(Event(record, fault, json.loads(fault.body)))
        if not isinstance(fault, Rewrite):
            return fault
        change, heard = fault.change, fault

        def tell(reply: Any) -> Any:
            told = change(reply)
            self.events.append(Event(record, heard, told))
            return told

        return Rewrite(tell, effect=fault.effect)

    @property
    def requests(self) -> list[RequestRecord]:
        return [event.record for event in self.events if event.reply is None]


def rows_of(reply: Any) -> list[dict[str, Any]]:
    """Give the rows of a reply, of whatever shape it is."""
    entries = reply.get("reply") if isinstance(reply, dict) else None
    if not isinstance(entries, list):
        return []
    results = [entry.get("result") for entry in entries if isinstance(entry, dict)]
    return [
        row
        for result in results
        if isinstance(result, list)
        for row in result
        if isinstance(row, dict) and "task_id" in row
    ]


def refused(reply: Any) -> bool:
    """Tell a reply in which the server refused the only call."""
    if not isinstance(reply, dict):
        return False
    entries = reply.get("reply")
    return "error" in reply or (
        isinstance(entries, list)
        and len(entries) == 1
        and isinstance(entries[0], dict)
        and "error" in entries[0]
    )


def surely_undone(fault: Fault | None) -> bool:
    """Tell a fault that says itself that the request took no effect."""
    return isinstance(fault, HttpStatus) and (
        fault.status == 503 or (400 <= fault.status < 500 and fault.status != 408)
    )


# --- the invariants -------------------------------------------------------------------------------


def assert_sound(
    witness: Witness,
    task_ids: Sequence[int],
    report: StopReport,
    error: StopIncompleteError | None,
    *,
    attempts: int,
    checked: bool = True,
    unreached: int = 0,
) -> None:
    """Check what holds after every run that was not cut short by its caller.

    Args:
        witness: What went to and fro.
        task_ids: What was asked for.
        report: What the run reported.
        error: What it raised.
        attempts: The retry policy's.
        checked: Whether tasks were to be checked before they are stopped.
        unreached: Requests that were sent and did not arrive.
    """
    assert list(report) == list(dict.fromkeys(task_ids))
    assert sum(report.counts.values()) == len(report)
    assert report.complete is (error is None)
    if error is not None:
        assert error.report == report
        assert error.exceptions
    assert_stops_were_due(witness.events, checked=checked)
    assert_truth(witness.api, report)
    assert_bounded(witness.events, attempts)
    counted = witness.api.counters.requests_by_method
    stats = report.stats
    assert stats.status_calls + stats.stop_calls - unreached == witness.api.counters.requests
    if not unreached:
        assert (stats.status_calls, stats.stop_calls) == (counted[STATUS], counted[STOP])
    assert_retries_counted(witness.requests, stats.retries, unreached)


def assert_retries_counted(
    requests: Sequence[RequestRecord], retries: int, unreached: int = 0
) -> None:
    """Repeats are counted: stops that were sent before, and checks that may be."""
    sent: list[tuple[tuple[str, ...], frozenset[int]]] = []
    again = repeated = 0
    for record in requests:
        request = (record.methods, frozenset(record.ids))
        repeated += record.methods == (STOP,) and request in sent
        again += any(request[0] == other[0] and request[1] <= other[1] for other in sent)
        sent.append(request)
    assert repeated - unreached <= retries <= again + unreached


def assert_stops_were_due(events: Iterable[Event], *, checked: bool = True) -> None:
    """No TaskStop but for a task whose last news is that it runs, and none twice without need."""
    running: set[int] = set()
    known: set[int] = set()
    for record, fault, reply in events:
        if reply is None and STOP in record.methods:
            due = running if checked else running | (set(record.ids) - known)
            assert due.issuperset(record.ids), f"request {record.number}"
            known.update(record.ids)
            if not surely_undone(fault):
                running.difference_update(record.ids)
        elif reply is not None and STOP in record.methods:
            if refused(reply):
                running.update(record.ids)
        elif reply is not None:
            news: dict[int, bool] = {}
            for row in rows_of(reply):
                if "status" in row and row["task_id"] in record.ids:
                    runs = row["status"] == "Running"
                    news[row["task_id"]] = news.get(row["task_id"], True) and runs
            for task_id, runs in news.items():
                (running.add if runs else running.discard)(task_id)


def assert_truth(api: ControlApiSimulator, report: StopReport) -> None:
    """What the server did, and what the report says that it did, agree."""
    if api._processor.clock.hand_driven:
        api.advance(AGES)
    for task_id, outcome in report.items():
        task = api.tasks.get(task_id)
        if task is not None and task.stopped:
            assert outcome.result in (StopResult.STOP_SENT, StopResult.UNCONFIRMED), outcome
        if outcome.result is StopResult.STOP_SENT:
            assert task is not None, outcome
            assert task.stop_requests, outcome
        if outcome.result is StopResult.NOT_SENT:
            assert task is None or not task.stop_requests, outcome


def assert_bounded(events: Sequence[Event], attempts: int) -> None:
    """Attempts never multiply: requests that were refused for their size or ids put aside."""
    divided = {
        event.record.number
        for event in events
        if "access denied" in json.dumps(event.reply).lower()
        or (isinstance(event.fault, HttpStatus) and event.fault.status == 413)
    }
    asked = {STATUS: Counter[int](), STOP: Counter[int]()}
    for record, _, reply in events:
        if reply is None and record.number not in divided:
            for method, ids in record.calls:
                asked[method].update(ids)
    for task_id, count in asked[STOP].items():
        assert count <= attempts, f"task {task_id}: {count} stops"
    for task_id, count in asked[STATUS].items():
        assert count <= attempts * (1 + asked[STOP][task_id]), f"task {task_id}: {count} checks"


def halving_bound(bad: int, chunk: int) -> int:
    """How many extra requests it may take to find the bad ids of a chunk by halving."""
    return 2 * bad * ceil(log2(chunk)) + 1
