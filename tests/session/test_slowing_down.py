"""What a session does when the server asks it to slow down, or is in trouble for a while."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Final

import pytest

from ctrlapi_async import HttpError, RetryPolicy, StopResult
from ctrlapi_async.simulator import Body, ControlApiSimulator, Fault, HttpStatus
from tests.support.simulated import (
    STATUS,
    STOP,
    ended,
    moments,
    open_session,
    simulated,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.simulator import RequestRecord

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


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize(
    ("policy", "timeout"), [(1, None), (None, 3), (0, None)], ids=["policy", "run", "no repeats"]
)
@simulated()
async def test_a_wait_that_time_does_not_allow_is_given_up_at_once_and_holds_nobody_up(
    api: ControlApiSimulator, policy: float | None, timeout: float | None, method: str
) -> None:
    api.add_tasks([1, 2, 3, 4])
    api.fault(HttpStatus(429, headers={"Retry-After": "4"}), method=method, number=1, every=True)
    async with open_session(api, 2, 1, retry=RetryPolicy(timeout=policy)) as session:
        began = api.now
        report, error = await ended(session.stop_running(2, [1, 2, 3, 4], timeout=timeout))
        assert api.now - began < 1
        assert report.counts[NOT_SENT] == 4
        assert "asks to wait 4 s, longer than allowed here" in str(error)
        assert api.counters.requests_by_method[method] == 1
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


@pytest.mark.parametrize("retry_after", [None, "1"])
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("rate", "burst"), [(1, 1), (1, 5), (5, 1), (5, 5), (0.2, 1)])
@simulated()
async def test_slow_rate_limits_lose_no_task_with_the_default_policy(
    api: ControlApiSimulator, rate: float, burst: int, status: int, retry_after: str | None
) -> None:
    """As nginx's `limit_req`: so many requests a second, a bucket for a burst, refusals above."""
    ids = list(range(1, 3006))
    api.mixed_tasks(3005, running=0.6)
    refusal = HttpStatus(status, headers={"Retry-After": retry_after} if retry_after else {})
    excess, last, refused = 0.0, -math.inf, 0

    def limit(_: object) -> Fault | None:
        nonlocal excess, last, refused
        more = max(0.0, excess - (api.now - last) * rate) + 1
        if more > burst + 1:
            refused += 1
            return refusal
        excess, last = more, api.now
        return None

    api.fault_when = limit
    async with open_session(api, retry=RetryPolicy()) as session:
        report = await session.stop_running(2, ids)
    assert report.complete
    assert report.counts[SENT] == 1803
    assert refused < 150  # of some 30 requests that get through


RELOADS: Final = {20: 404, 21: 404, 23: 502, 25: 401, 28: 403}
TROUBLES: Final[dict[str, Callable[[ControlApiSimulator, RequestRecord], int | None]]] = {
    # What the server answers a request with if anything goes wrong. As nginx's `limit_conn`:
    # whatever comes beside a request that is served is refused.
    "one connection": lambda api, _: 503 if api.counters.in_flight > 1 else None,
    "two connections": lambda api, _: 503 if api.counters.in_flight > 2 else None,
    "down for half a minute": lambda api, _: 502 if 1002 < api.now < 1032 else None,
    "a proxy reloads in mid-run": lambda _, record: RELOADS.get(record.number),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@simulated(latency=0.5)
async def test_a_server_in_passing_trouble_loses_no_task_with_the_default_policy(
    api: ControlApiSimulator, trouble: str
) -> None:
    ids = list(range(1, 3006))
    api.add_tasks(ids)

    def fault(record: RequestRecord) -> Fault | None:
        status = TROUBLES[trouble](api, record)
        return HttpStatus(status) if status else None

    api.fault_when = fault
    api.fault(Body("<html>", content_type="text/html"), number=27)
    async with open_session(api, 100, retry=RetryPolicy()) as session:
        report = await session.stop_running(2, ids)
    assert report.ids(SENT) == ids


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
