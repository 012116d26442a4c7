"""What a session does when the server asks it to slow down."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import pytest

from ctrlapi_async import HttpError, RetryPolicy, StopResult
from ctrlapi_async.simulator import ControlApiSimulator, Fault, HttpStatus
from tests.support.simulated import (
    STATUS,
    STOP,
    ended,
    letters,
    moments,
    open_session,
    simulated,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SENT = StopResult.STOP_SENT
NOT_SENT = StopResult.NOT_SENT
PATIENT: Final = RetryPolicy(attempts=3, wait_initial=0, wait_max=20, timeout=600)


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


PAUSES: Final[dict[str, tuple[Callable[[], str], float, float]]] = {
    # Retry-After, and the seconds, at least and at most, until the next request.
    "seconds": (lambda: "7", 7, 8),
    "no seconds": (lambda: "0", 0, 1),
    "more than wait_max": (lambda: "300", 300, 301),
    "a date": (lambda: http_date(10), 8, 11),
    "a date past": (lambda: http_date(-10), 0, 1),
    "a date after wait_max": (lambda: http_date(300), 298, 301),
    "nonsense": (lambda: "soon", 0, 1),
    "a negative number": (lambda: "-5", 0, 1),
}


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize(("header", "least", "most"), PAUSES.values(), ids=PAUSES)
@simulated()
async def test_retry_after_is_honoured_in_full(  # noqa: PLR0917 - one for each column
    api: ControlApiSimulator,
    header: Callable[[], str],
    least: float,
    most: float,
    method: str,
    status: int,
) -> None:
    api.add_tasks([1, 2, 3])
    fault = HttpStatus(status, headers={"Retry-After": header()})
    times = moments(api, None, lambda one: fault if one.numbers.get(method) == 1 else None)
    async with open_session(api, 5, 1, retry=PATIENT) as session:
        report = await session.stop_running(2, [1, 2, 3])
    assert report.ids(SENT) == [1, 2, 3]
    place = 0 if method == STATUS else 1
    assert least <= times[place + 1] - times[place] <= most


IMPOSSIBLE: Final[dict[str, tuple[RetryPolicy, float | None]]] = {
    "longer than the policy allows": (RetryPolicy(timeout=1), None),
    "longer than the run's time": (RetryPolicy(timeout=None), 3),
    "no time for repeats": (RetryPolicy(timeout=0), None),
}


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize(("retry", "timeout"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
@simulated()
async def test_a_wait_that_cannot_be_is_given_up_at_once(
    api: ControlApiSimulator, retry: RetryPolicy, timeout: float | None, method: str
) -> None:
    api.add_tasks([1, 2, 3, 4])
    api.fault(HttpStatus(429, headers={"Retry-After": "4"}), method=method, number=1, every=True)
    async with open_session(api, 2, 1, retry=retry) as session:
        began = api.now
        report, error = await ended(session.stop_running(2, [1, 2, 3, 4], timeout=timeout))
        assert api.now - began < 1
        assert report.counts[NOT_SENT] == 4
        assert "asks to wait 4 s, longer than allowed here" in str(error)
        assert api.counters.requests_by_method[method] == 1
        # Whoever comes next is not held up by it.
        api.clear_faults()
        if timeout is None:
            began = api.now
            await session.stop_running(2, [1, 2, 3, 4])
            assert api.now - began < 2
            api.fault(HttpStatus(503, headers={"Retry-After": "50"}))
            with pytest.raises(HttpError, match="longer than allowed here"):
                await session.call(STATUS, {"project_id": 2, "task_ids": 1})


@simulated()
async def test_slowing_down_holds_for_all_runs_of_a_session(api: ControlApiSimulator) -> None:
    api.add_tasks(range(40))
    slow = HttpStatus(429, headers={"Retry-After": "10"})
    times = moments(api, None, lambda record: slow if record.number == 1 else None)
    async with open_session(api, 5, 4, retry=PATIENT) as session:
        gate = api.hold(number=2, every=True)
        runs = asyncio.gather(
            session.stop_running(2, range(20)), session.stop_running(2, range(20, 40))
        )
        await api.wait_until(lambda: gate.held == 3)
        await asyncio.sleep(1)  # the refusal has arrived by now
        gate.release()
        reports = await runs
    assert [len(report.ids(SENT)) for report in reports] == [20, 20]
    assert sum(report.stats.retries for report in reports) == 1
    # Four were under way; nothing followed for ten seconds, whichever run it was of.
    assert times[3] - times[0] < 1
    assert times[4] - times[0] >= 10


class RateLimit:
    """Nginx's `limit_req`: so many requests a second, a bucket for a burst, 503 or 429 above."""

    def __init__(self, api: ControlApiSimulator, rate: float, burst: int, refusal: Fault) -> None:
        self._api = api
        self._rate = rate
        self._burst = burst
        self._refusal = refusal
        self._excess = 0.0
        self._last = -math.inf
        self.refused = 0

    def __call__(self, _: Any) -> Fault | None:
        now = self._api.now
        excess = max(0.0, self._excess - (now - self._last) * self._rate) + 1
        if excess > self._burst + 1:
            self.refused += 1
            return self._refusal
        self._excess, self._last = excess, now
        return None


@pytest.mark.parametrize("retry_after", [None, "1"])
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("rate", "burst"), [(1, 1), (1, 5), (5, 1), (5, 5), (0.2, 1)])
@simulated()
async def test_slow_rate_limits_lose_no_task_with_the_default_policy(
    api: ControlApiSimulator, rate: float, burst: int, status: int, retry_after: str | None
) -> None:
    ids = list(range(1, 3006))
    api.mixed_tasks(3005, running=0.6)
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    api.fault_when = limit = RateLimit(api, rate, burst, HttpStatus(status, headers=headers))
    async with open_session(api, retry=RetryPolicy()) as session:
        report = await session.stop_running(2, ids)
    assert report.complete
    assert report.counts[SENT] == 1803
    assert limit.refused < 150  # of some 30 requests that get through


@pytest.mark.parametrize("at_once", [1, 2])
@simulated(latency=0.5)
async def test_a_limit_on_connections_loses_no_task(api: ControlApiSimulator, at_once: int) -> None:
    """As nginx's `limit_conn`: whatever comes beside a request that is served is refused."""
    ids = list(range(1, 1006))
    api.add_tasks(ids)
    api.fault_when = lambda _: HttpStatus(503) if api.counters.in_flight > at_once else None
    async with open_session(api, 100, retry=RetryPolicy()) as session:
        report = await session.stop_running(2, ids)
    assert report.ids(SENT) == ids


@simulated()
async def test_a_session_recovers_from_slowing_down(api: ControlApiSimulator) -> None:
    api.add_tasks(range(4000))
    for number in range(1, 20):
        api.fault(HttpStatus(429), number=number)
    api.latency = 0.1
    async with open_session(api, 10, retry=RetryPolicy()) as session:
        await session.stop_running(2, range(4000))
        api.reset_counters()
        await session.stop_running(2, range(4000), dry_run=True)
    assert api.counters.peak == 8


@simulated()
async def test_nothing_follows_a_fatal_answer_that_comes_during_a_pause(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(1, 21))
    slow = HttpStatus(429, headers={"Retry-After": "10"})
    faults = {1: slow, 2: HttpStatus(403)}
    api.fault_when = lambda record: faults.get(record.number)
    with api.hold(number=3), api.hold(number=2) as fatal, api.hold(number=4) as good:
        async with open_session(api, 2, 4, retry=PATIENT) as session:
            stopping = asyncio.create_task(ended(session.stop_running(2, range(1, 21))))
            await api.wait_for_requests(4)
            await asyncio.sleep(1)  # the pause has begun
            fatal.release()
            await asyncio.sleep(1)
            good.release()
            await asyncio.sleep(20)  # it is over, and the third request still under way
            assert api.counters.requests == 4
            await session.aclose()
            report, _ = await stopping
    assert len(report.ids(NOT_SENT)) == 20


@pytest.mark.parametrize("retry", [RetryPolicy(timeout=0), RetryPolicy(attempts=1)])
@simulated()
async def test_a_policy_without_repeats_repeats_nothing(
    api: ControlApiSimulator, retry: RetryPolicy
) -> None:
    api.add_tasks([1, 2])
    api.fault(HttpStatus(500), method=STATUS, number=1)
    async with open_session(api, retry=retry) as session:
        report, _ = await ended(session.stop_running(2, [1, 2]))
        assert report.ids(NOT_SENT) == [1, 2]
        assert letters(api.log) == "S"


@simulated()
async def test_pauses_between_repeats_grow_up_to_wait_max(
    api: ControlApiSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.random", lambda: 0.999)
    api.add_task(1)
    times = moments(api, None, lambda _: HttpStatus(500))
    retry = RetryPolicy(attempts=8, wait_initial=1, wait_max=10, timeout=None)
    async with open_session(api, retry=retry) as session:
        await ended(session.stop_running(2, [1]))
    pauses = [later - sooner for sooner, later in pairwise(times)]
    assert [round(pause) for pause in pauses] == [1, 2, 4, 8, 10, 10, 10]
