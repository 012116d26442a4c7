"""Sessions that start with few requests in flight and send more while that pays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from ctrlapi_async import Batching, ControlSession, RetryPolicy
from ctrlapi_async.simulator import ControlApiSimulator, Delay, Drop, HttpStatus
from tests.support.simulated import simulated, turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.simulator import Fault, RequestRecord

IDS = range(1, 2001)
FOUR_TO_SIXTEEN = Batching(20, 16, start_concurrency=4)
PATIENT = RetryPolicy(attempts=50, timeout=None)


def adaptive(api: ControlApiSimulator, batching: Batching = FOUR_TO_SIXTEEN) -> ControlSession:
    return ControlSession(api.url, 1, batching=batching, retry=PATIENT)


def side_by_side(_: RequestRecord) -> Fault:
    return Delay(1.0)


def one_worker(api: ControlApiSimulator) -> Callable[[RequestRecord], Fault]:
    free_at = 0.0

    def answer(_: RequestRecord) -> Fault:
        nonlocal free_at
        free_at = max(free_at, api.now) + 1.0
        return Delay(free_at - api.now)

    return answer


async def stop_all(api: ControlApiSimulator, session: ControlSession) -> None:
    api.add_tasks(IDS)
    assert (await session.stop_running(2, IDS)).complete


@simulated()
async def test_it_grows_where_requests_run_side_by_side(api: ControlApiSimulator) -> None:
    api.fault_when = side_by_side
    async with adaptive(api) as session:
        await stop_all(api, session)
    assert api.counters.peak == 16


@simulated()
async def test_it_does_not_grow_where_requests_wait_in_a_line(api: ControlApiSimulator) -> None:
    api.fault_when = one_worker(api)
    async with adaptive(api) as session:
        await stop_all(api, session)
    # 64 rounds of 4 pass before a try; there are 200 requests.
    assert api.counters.peak <= 8
    assert session._limiter.slots == 4


@pytest.mark.parametrize(("most", "status"), [(2, 503), (4, 429), (6, 503), (10, 429)])
@simulated()
async def test_a_limit_of_connections_is_found_and_kept(
    api: ControlApiSimulator, most: int, status: int
) -> None:
    def limited(_: RequestRecord) -> Fault:
        return HttpStatus(status) if api.counters.in_flight > most else Delay(1.0)

    api.fault_when = limited
    async with adaptive(api) as session:
        await stop_all(api, session)
        if most >= 4:
            assert session._limiter.slots <= max(4, most + 1)


@simulated()
async def test_connections_that_break_under_more_load_end_the_growth(
    api: ControlApiSimulator,
) -> None:
    api.fault_when = lambda _: Drop() if api.counters.in_flight > 8 else Delay(1.0)
    async with adaptive(api) as session:
        await stop_all(api, session)
        assert 4 <= session._limiter.slots <= 8


@simulated()
async def test_cancelling_in_the_middle_of_a_try_leaves_all_slots_free(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(IDS)
    api.fault_when = side_by_side
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
    api.fault_when = side_by_side
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
    api.fault_when = lambda _: HttpStatus(503) if api.counters.in_flight > 12 else Delay(1.0)
    async with adaptive(api) as first, adaptive(api) as second:
        reports = await asyncio.gather(
            first.stop_running(2, IDS[:1000]), second.stop_running(2, IDS[1000:])
        )
    assert all(report.complete for report in reports)


@simulated()
async def test_a_gain_that_no_longer_holds_is_taken_back(api: ControlApiSimulator) -> None:
    api.fault_when = side_by_side
    api.add_tasks(IDS)
    async with adaptive(api) as session:
        await session.stop_running(2, IDS[:1000])
        assert session._limiter.slots == 16
        api.fault_when = one_worker(api)
        await session.stop_running(2, IDS[1000:])
        assert session._limiter.slots < 16
