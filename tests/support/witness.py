"""Hears every request and every reply of a simulator, and tells the oracle of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from ctrlapi_async.simulator import Body, HttpStatus, Rewrite
from tests.support.oracle import STATUS, STOP, Answer, Fact, Fate, Oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ctrlapi_async import StopIncompleteError, StopReport
    from ctrlapi_async.simulator import ControlApiSimulator, Fault, RequestRecord

    Calls = list[tuple[int, list[int] | None]]

NOT_CARRIED_OUT: Final = (401, 403, 404, 405, 407, 413, 429)
"""HTTP statuses after which nothing was stopped."""

AGES: Final = 1e12
"""Seconds after which whatever a simulator has under way has come to pass."""


class Witness:
    """Follows one run from the server's side, and sets the faults of a script.

    Args:
        api: The simulator.
        script: Returns what goes wrong with a request.
        oracle: Judges the run.
    """

    def __init__(
        self,
        api: ControlApiSimulator,
        script: Callable[[RequestRecord], Fault | None] = lambda _: None,
        oracle: Oracle | None = None,
    ) -> None:
        self.requests: list[RequestRecord] = []
        self.oracle = oracle or Oracle()
        self.judges = True
        """Whether each request is judged when it arrives."""
        self._api = api
        self._script = script
        api.fault_when = self._fault_for

    def _fault_for(self, record: RequestRecord) -> Fault:
        self.requests.append(record)
        method, calls = calls_of(record)
        if self.judges:
            self.oracle.sent(method, calls)
        fault = self._script(record)
        change: Callable[[Any], Any] = lambda reply: reply  # noqa: E731
        if isinstance(fault, Rewrite):
            change = fault.change
        elif isinstance(fault, Body) and fault.status == 200:
            self._hear(method, calls, _parsed(fault.body))
            return fault
        elif fault is not None and not hasattr(fault, "seconds"):
            status = fault.status if isinstance(fault, HttpStatus | Body) else 0
            final = 300 <= status < 500 and status not in (408, 425, 429)
            answer = Answer(undone=status in NOT_CARRIED_OUT, final=final)
            self.oracle.ended |= final and status != 413
            self.oracle.heard(method, calls, answer)
            return fault

        def hear(reply: Any) -> Any:
            changed = change(reply)
            self._hear(method, calls, changed)
            return changed

        return Rewrite(hear, effect=fault is None or fault.effect)

    def _hear(self, method: str, calls: Calls, reply: Any) -> None:
        entries = reply.get("reply") if isinstance(reply, dict) else None
        if not isinstance(entries, list) or len(entries) != len(calls):
            text = reply.get("error", "") if isinstance(reply, dict) else ""
            self.oracle.ended |= reply == "<"
            self.oracle.heard(method, calls, self._refusal(str(text), calls))
            return
        answers = [
            self._answer(entry, call) if isinstance(entry, dict) else Answer()
            for entry, call in zip(entries, calls, strict=True)
        ]
        self.oracle.heard(method, calls, answers)

    def _answer(self, entry: dict[str, Any], call: tuple[int, list[int] | None]) -> Answer:
        if not isinstance(entry.get("result"), list):
            return self._refusal(str(entry.get("error") or ""), [call])
        rows = list(rows_in(entry["result"]))
        facts = [Fact.of(row) for row in rows if isinstance(row.get("status") or "", str)]
        facts = [fact for fact in facts if fact.status or fact.error]
        odd = {row["task_id"] for row in rows} - {fact.task_id for fact in facts}
        if not self.oracle.wait_stopped and len(call[1] or ()) > 1:
            # What was stopped before is asked about only to learn which others do not exist.
            facts = [fact for fact in facts if self._is_open(fact.task_id)]
        return Answer(facts, odd)

    def _is_open(self, task_id: int) -> bool:
        known = self.oracle.tasks.get(task_id)
        return known is None or known.stop is not Fate.ACCEPTED

    def _refusal(self, text: str, calls: Calls) -> Answer:
        if "access denied" in text:
            ids = [n for _, task_ids in calls for n in task_ids or ()]
            absent = [n for n in ids if n not in self._api.tasks]
            return Answer(undone=True, denied=absent or ids)
        ends = any(part in text for part in ("unavailable", "does not exist", "Undefined method"))
        self.oracle.ended |= ends
        return Answer(undone=ends, final=bool(text))

    def check(
        self,
        task_ids: Sequence[int] | None,
        report: StopReport,
        error: StopIncompleteError | None,
        *,
        unreached: int = 0,
        sound: bool = False,
        other: bool = False,
    ) -> None:
        """Check what holds after every run that was not cut short by its caller.

        Args:
            task_ids: What was asked for; None: all active tasks.
            report: What the run reported.
            error: What it raised.
            unreached: Requests that were sent and did not arrive.
            sound: Whether no stop was lost or repeated.
            other: Whether something else than the server's answers went wrong.
        """
        api, oracle = self._api, self.oracle
        if api._processor.clock.hand_driven:
            api.advance(AGES)
        if task_ids is None:
            task_ids = sorted(oracle.asked)
            oracle.asked = {n: oracle.asked[n] for n in report}
            assert task_ids == sorted(report)
        else:
            assert list(report) == list(dict.fromkeys(task_ids))
        oracle.check_report(report, report.counts)
        for outcome in report.values():
            oracle.check_outcome(outcome)
        oracle.check_end(report.counts, error.exceptions if error else [], other=other)
        oracle.check_truth(api.tasks, report, sound=sound)
        assert error is None or error.report == report
        stats = report.stats
        requests = api.counters.requests_by_method
        assert stats.status_calls + stats.stop_calls - unreached == len(self.requests)
        if not unreached:
            assert (stats.status_calls, stats.stop_calls) == (requests[STATUS], requests[STOP])


def calls_of(record: RequestRecord) -> tuple[str, Calls]:
    """Return the method of a request, and project and task ids of its calls."""
    calls: Calls = []
    for call in record.json["methods"]:
        ids = call["params"]["task_ids"]
        ids = None if ids == "*" else ids if isinstance(ids, list) else [ids]
        calls.append((call["params"]["project_id"], ids))
    return record.methods[0], calls


def rows_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the rows of a result, of whatever shape it is."""
    if isinstance(value, dict):
        if type(value.get("task_id")) is int:
            yield value
        for member in value.values():
            if isinstance(member, list):
                yield from rows_in(member)
    elif isinstance(value, list):
        for item in value:
            yield from rows_in(item)


def _parsed(body: str | bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return body[:1]  # "<" of a web page
