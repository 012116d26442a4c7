"""Many tasks, and a little of everything that can go wrong."""

from __future__ import annotations

import random
import resource
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest
from invariants import PROJECT, STATUS, STOP, run

from ctrlapi_async import Batching, ControlSession, RetryPolicy, StopReport, StopResult
from ctrlapi_async.simulator import (
    Body,
    ControlApiSimulator,
    CutBody,
    Drop,
    Fault,
    Hang,
    HttpStatus,
    Rewrite,
    SlowBody,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.simulator import RequestRecord

TASKS: Final = 200_000
MANY: Final = 50
RATE: Final = 0.01
"""Of each kind of fault, the share of requests that it strikes."""


def rows(change: Callable[[list[Any]], list[Any]]) -> Rewrite:
    """Change the rows of the only entry of a reply."""

    def apply(reply: Any) -> Any:
        for entry in reply["reply"]:
            if "result" in entry:
                entry["result"] = change(entry["result"])
        return reply

    return Rewrite(apply)


FAULTS: Final[dict[str, Fault]] = {
    "drop before effect": Drop(),
    "drop after effect": Drop(effect=True),
    "cut body": CutBody(),
    "cut body, no effect": CutBody(effect=False),
    "slow body": SlowBody(interval=1e6),
    "timeout": Hang(),
    "timeout after effect": Hang(effect=True),
    "408": HttpStatus(408),
    "425": HttpStatus(425),
    "429": HttpStatus(429),
    "429 after seconds": HttpStatus(429, headers={"Retry-After": "1"}),
    "500": HttpStatus(500),
    "500 after effect": HttpStatus(500, effect=True),
    "502": HttpStatus(502),
    "502 after effect": HttpStatus(502, effect=True),
    "503": HttpStatus(503),
    "503 after seconds": HttpStatus(503, headers={"Retry-After": "1"}),
    "504": HttpStatus(504),
    "504 after effect": HttpStatus(504, effect=True),
    "empty": Body(""),
    "half": Body('{"reply": [{"result": [', effect=True),
    "no entry": Body('{"reply": []}'),
    "denied, unreadably": Body('{"reply": [{"error": "access denied to tasks"}]}'),
    "rows repeated": rows(lambda rows: rows * 2),
    "rows in another order": rows(lambda rows: rows[::-1]),
    "extra rows": rows(lambda rows: [{"task_id": 10**9, "status": "Running"}, *rows]),
    "a stop's row missing": rows(lambda rows: rows[1:]),
    "a stop's rows missing": rows(lambda _: []),
}
DENIED: Final = "denied, unreadably"
"""Of a single task this would be the truth; where there are more, halving finds it a lie."""
OF_STOPS: Final = ("a stop's row missing", "a stop's rows missing")
"""Of a check these would make tasks that are there look as if they were not."""


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
        if name in OF_STOPS and STATUS in record.methods:
            return None
        if name == DENIED and len(record.ids) < MANY:
            return None
        self.struck[name] += 1
        return FAULTS[name]


@pytest.mark.slow
def test_soak(
    capsys: pytest.CaptureFixture[str], record_property: Callable[[str, object], None]
) -> None:
    missing = range(TASKS + 1, TASKS + 1 + TASKS // 1000)

    async def main() -> tuple[StopReport, ControlApiSimulator, Counter[str]]:
        async with ControlApiSimulator(own_thread=False, log=False, max_body=1000) as api:
            api.mixed_tasks(TASKS, running=0.6)
            due = {n for n, task in api.tasks.items() if task.status == "Running"}
            api.fault_when = chance = Chance(api)
            ids = [*range(1, TASKS + 1), *missing]
            random.Random(5).shuffle(ids)
            async with ControlSession(
                api.url,
                1,
                batching=Batching(400, 8),
                retry=RetryPolicy(attempts=12, wait_initial=0.01, wait_max=1),
            ) as session:
                report = await session.stop_running(PROJECT, ids)
            assert list(report) == ids
            assert set(report.ids(StopResult.STOP_SENT)) == due
            assert set(report.ids(StopResult.NOT_FOUND)) == set(missing)
            assert report.counts[StopResult.NOT_RUNNING] == TASKS - len(due)
            assert all(api.tasks[n].stop_requests == 1 for n in due)
            assert report.complete
        return report, api, chance.struck

    began = time.perf_counter()
    report, api, struck = run(main())
    seconds = time.perf_counter() - began
    assert set(struck) == set(FAULTS)
    counters, stats = api.counters, report.stats
    assert stats.status_calls + stats.stop_calls == counters.requests
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = {
        "tasks": len(report),
        "requests": counters.requests,
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
