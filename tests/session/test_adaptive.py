"""Sessions that start with few requests in flight and send more while that pays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from ctrlapi_async import Batching, ControlSession, RetryPolicy
from ctrlapi_async.simulator import ControlApiSimulator, Delay, Drop, HttpStatus
from tests.support.simulated import simulated, turns

if TYPE_CHECKING:
    from ctrlapi_async.simulator import Fault, RequestRecord

IDS = range(1, 2001)
PATIENT = RetryPolicy(attempts=50, timeout=None)
Server = Callable[[ControlApiSimulator], Callable[["RequestRecord"], "Fault"]]


def adaptive(api: ControlApiSimulator) -> ControlSession:
    four_to_sixteen = Batching(20, 16, start_concurrency=4)
    return ControlSession(api.url, 1, batching=four_to_sixteen, retry=PATIENT)


def side_by_side(_: ControlApiSimulator) -> Callable[[RequestRecord], Fault]:
    return lambda _: Delay(1.0)


def limited(most: int, fault: Fault) -> Server:
    """Return a server that refuses what is more than it wants in flight."""
    return lambda api: lambda _: fault if api.counters.in_flight > most else Delay(1.0)


def one_worker(api: ControlApiSimulator) -> Callable[[RequestRecord], Fault]:
    free_at = 0.0

    def answer(_: RequestRecord) -> Fault:
        nonlocal free_at
        free_at = max(free_at, api.now) + 1.0
        return Delay(free_at - api.now)

    return answer


@pytest.mark.parametrize(
    ("server", "least", "most", "peak"),
    [
        (side_by_side, 16, 16, 16),
        (one_worker, 4, 4, 8),  # 64 rounds of 4 pass before a try; there are 200 requests
        (limited(2, HttpStatus(503)), 1, 16, 16),
        (limited(4, HttpStatus(429)), 1, 5, 16),
        (limited(6, HttpStatus(503)), 1, 7, 16),
        (limited(10, HttpStatus(429)), 1, 11, 16),
        (limited(8, Drop()), 4, 8, 16),
    ],
)
@simulated()
async def test_it_grows_as_far_as_requests_run_side_by_side_and_a_limit_is_kept(
    api: ControlApiSimulator, server: Server, least: int, most: int, peak: int
) -> None:
    api.add_tasks(IDS)
    api.fault_when = server(api)
    async with adaptive(api) as session:
        assert (await session.stop_running(2, IDS)).complete
        assert least <= session._limiter.slots <= most
    assert least <= api.counters.peak <= peak


@simulated()
async def test_cancelling_in_the_middle_of_a_try_leaves_all_slots_free(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(IDS)
    api.fault_when = side_by_side(api)
    async with adaptive(api) as session:
        stopping = asyncio.create_task(session.stop_running(2, IDS))
        await api.wait_until(lambda: api.counters.peak > 4)
        stopping.cancel()
        await asyncio.wait([stopping])
        assert session._limiter.in_flight == 0
        await turns(5)
        assert (await session.stop_running(2, IDS)).complete
        assert session._limiter.in_flight == 0


@simulated()
async def test_bursts_with_pauses_between_them_measure_nothing(api: ControlApiSimulator) -> None:
    api.add_tasks(IDS)
    api.fault_when = side_by_side(api)
    async with adaptive(api) as session:
        for first in range(1, 400, 40):  # two requests a burst
            await session.stop_running(2, range(first, first + 40))
            await asyncio.sleep(10)
        assert session._limiter.slots == 4


@simulated()
async def test_two_sessions_beside_each_other_both_come_to_an_end(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(IDS)
    api.fault_when = limited(12, HttpStatus(503))(api)
    async with adaptive(api) as first, adaptive(api) as second:
        reports = await asyncio.gather(
            first.stop_running(2, IDS[:1000]), second.stop_running(2, IDS[1000:])
        )
    assert all(report.complete for report in reports)


@simulated()
async def test_a_gain_that_no_longer_holds_is_taken_back(api: ControlApiSimulator) -> None:
    api.fault_when = side_by_side(api)
    api.add_tasks(IDS)
    async with adaptive(api) as session:
        await session.stop_running(2, IDS[:1000])
        assert session._limiter.slots == 16
        api.fault_when = one_worker(api)
        await session.stop_running(2, IDS[1000:])
        assert session._limiter.slots < 16
