"""Many tasks, and a little of everything that can go wrong."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest

from ctrlapi_async import RetryPolicy, StopReport, StopResult
from ctrlapi_async.simulator import (
    Body,
    ControlApiSimulator,
    CutBody,
    Drop,
    Fault,
    Hang,
    HttpStatus,
    SlowBody,
)
from tests.support.clock import run
from tests.support.simulated import (
    STATUS,
    STOP,
    disconnected,
    open_session,
    rewrite_rows,
    simulator,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.simulator import RequestRecord

TASKS: Final = 200_000
MANY: Final = 50
RATE: Final = 0.01
"""Of each kind of fault, the share of requests that it strikes."""
SECOND: Final = {"Retry-After": "1"}

FAULTS: Final[dict[str, Fault]] = {
    "drop before effect": Drop(),
    "drop after effect": Drop(effect=True),
    "cut body": CutBody(),
    "cut body, no effect": CutBody(effect=False),
    "slow body": SlowBody(interval=1e6),
    "timeout": Hang(),
    "timeout after effect": Hang(effect=True),
    **{str(status): HttpStatus(status) for status in (408, 425, 429, 500, 502, 503, 504)},
    **{
        f"{status} after effect": HttpStatus(status, effect=True)
        for status in (400, 408, 500, 502, 503, 504)
    },
    **{f"{status}, with seconds": HttpStatus(status, headers=SECOND) for status in (429, 503)},
    "502 page in mid-run": Body("<html>", content_type="text/html", effect=True),
    "404 in mid-run": HttpStatus(404),
    "empty": Body(""),
    "half": Body('{"reply": [{"result": [', effect=True),
    "no entry": Body('{"reply": []}'),
    "denied, unreadably": Body('{"reply": [{"error": "access denied to tasks"}]}'),
    "rows repeated": rewrite_rows(lambda rows: rows * 2),
    "rows in another order": rewrite_rows(lambda rows: rows[::-1]),
    "extra rows": rewrite_rows(lambda rows: [{"task_id": 10**9, "status": "Running"}, *rows]),
    "a stop's row missing": rewrite_rows(lambda rows: rows[1:]),
    "a stop's rows missing": rewrite_rows(lambda _: []),
}
DENIED: Final = "denied, unreadably"
"""Of a single task this would be the truth; where there are more, halving finds it a lie."""
OF_STOPS: Final = ("a stop's row missing", "a stop's rows missing")
"""Of a check these would make tasks that are there look as if they were not."""
OF_MID_RUN: Final = ("502 page in mid-run", "404 in mid-run", "400 after effect")


class Chance:
    """Strikes requests at random, and sees to it that no stop is spent in vain."""

    def __init__(self, api: ControlApiSimulator) -> None:
        self._api = api
        self._random = random.Random(3)
        self.struck: Counter[str] = Counter()

    def __call__(self, record: RequestRecord) -> Fault | None:
        if STOP in record.methods:
            # Nothing ends by itself here: a stop is due for what truly runs.
            assert {self._api.tasks[n].status for n in record.ids} <= {"Running"}
        place = int(self._random.random() / RATE)
        if place >= len(FAULTS):
            return None
        name = list(FAULTS)[place]
        if (
            (name in OF_STOPS and STATUS in record.methods)
            or (name == DENIED and len(record.ids) < MANY)
            or (name in OF_MID_RUN and min(record.numbers.values(), default=0) < MANY)
        ):
            return None
        self.struck[name] += 1
        return FAULTS[name]


@pytest.mark.slow
def test_soak(
    capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    missing = range(TASKS + 1, TASKS + 1 + TASKS // 1000)

    async def main() -> tuple[StopReport, ControlApiSimulator, Counter[str]]:
        async with simulator(log=False, max_body=2000) as api:
            api.mixed_tasks(TASKS, running=0.5, restarted=0.1)
            ids = [*range(1, TASKS + 1), *missing]
            due = {n: api.tasks[n].chain[-1] for n in range(1, TASKS + 1)}
            due = {n: last for n, last in due.items() if api.tasks[last].status == "Running"}
            api.fault_when = chance = Chance(api)
            random.Random(5).shuffle(ids)
            # No time limit: waiting for slots behind requests that hang is no fault of a request.
            retry = RetryPolicy(attempts=12, wait_initial=0.01, wait_max=1, timeout=None)
            async with open_session(api, 400, retry=retry) as session:
                report = await session.stop_running(2, ids)
            await disconnected(api)
            assert list(report) == ids
            assert {n: report[n].restarted_as or n for n in report.ids(StopResult.STOP_SENT)} == due
            assert set(report.ids(StopResult.NOT_FOUND)) == set(missing)
            assert report.counts[StopResult.NOT_RUNNING] == TASKS - len(due)
            assert all(api.tasks[last].stop_requests == 1 for last in due.values())
            assert report.complete
        return report, api, chance.struck

    began = time.perf_counter()
    report, api, struck = run(main())
    seconds = time.perf_counter() - began
    assert set(struck) == set(FAULTS)
    stats = report.stats
    assert stats.status_calls + stats.stop_calls == api.counters.requests
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "tasks": len(report),
        "requests": api.counters.requests,
        "faults": sum(struck.values()),
        "kinds": len(struck),
        "retries": stats.retries,
        "seconds": round(seconds, 1),
        "peak_mb": round(memory / (2**20 if sys.platform == "darwin" else 2**10)),
    }
    for name, value in figures.items():
        record_property(name, value)
    with capsys.disabled():
        print("\nsoak:", *(f"{name} {value}," for name, value in figures.items()))  # noqa: T201
