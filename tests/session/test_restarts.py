"""Restart chains, end to end: the job is stopped, whatever task it has become."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import ALL_ACTIVE, StopOutcome, StopReport, StopResult, TaskStatus
from ctrlapi_async.simulator import ControlApiSimulator, Drop, Restart
from tests.support.simulated import (
    STOP,
    arriving,
    costs,
    letters,
    open_session,
    outcomes_of,
    simulated,
    stopped,
)

if TYPE_CHECKING:
    from ctrlapi_async import ControlSession
    from ctrlapi_async.simulator import Fault, RequestRecord

SENT = StopResult.STOP_SENT
NOT_RUNNING = StopResult.NOT_RUNNING
RUNNING = TaskStatus.RUNNING
FORMS = ["flat", "lists", "nested"]


def told(report: StopReport) -> dict[int, tuple[StopResult, str | None, int | None]]:
    """Return result, status and restart of each task."""
    return {n: (each.result, each.status, each.restarted_as) for n, each in report.items()}


def add_chain(api: ControlApiSimulator, task_id: int, *statuses: str, project_id: int = 2) -> None:
    """Add a task that is Stalled and its restarts, with ids like 1064 for 64."""
    api.add_task(task_id, "Stalled", project_id=project_id)
    newest = task_id
    for number, status in enumerate(statuses, 1):
        newest = api.restart(newest, status, new_id=1000 * number + task_id)


async def use_all_ways(
    session: ControlSession, ids: list[int], **options: Any
) -> tuple[StopReport, StopReport]:
    """Stop tasks in all ways that there are, as dry runs but for the last; return these two."""
    streamed = await session.stop_running(2, arriving(ids), dry_run=True, **options)
    across = await session.stop_running_across({2: ids, 3: []}, dry_run=True, **options)
    dry = await session.stop_running(2, ids, dry_run=True, **options)
    async with session.stopping(2, arriving(ids), collect=False, dry_run=True, **options) as one:
        uncollected = {outcome.task_id: outcome for outcome in await outcomes_of(one)}
    assert streamed == across == dry
    assert uncollected == dict(dry)
    return dry, await session.stop_running(2, ids, **options)


# --- what a chain's outcome is about --------------------------------------------------------------

CHAINS: dict[str, tuple[tuple[str, ...], tuple[StopResult, str, int | None]]] = {
    # The statuses of the restarts of a Stalled task 64 -> its outcome.
    "restarted twice": (("Stalled", "Running"), (SENT, "Running", 2064)),
    "queued": (("Scheduled",), (NOT_RUNNING, "Scheduled", 1064)),
    "stalled for good": (("Stalled", "Stalled", "Stalled"), (NOT_RUNNING, "Stalled", 3064)),
    "canceled": (("Canceled",), (NOT_RUNNING, "Canceled", 1064)),
    "not restarted": ((), (NOT_RUNNING, "Stalled", None)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", ["documented", "narrow"])
@pytest.mark.parametrize(("statuses", "outcome"), CHAINS.values(), ids=CHAINS)
@simulated()
async def test_the_outcome_is_about_the_chains_current_task(
    api: ControlApiSimulator, statuses: tuple[str, ...], outcome: Any, rows: Any, form: Any
) -> None:
    api.chains, api.rows = form, rows
    add_chain(api, 64, *statuses)
    add_chain(api, 68, "Running")
    api.add_task(66)
    async with open_session(api) as session:
        dry, report = await use_all_ways(session, [64, 66])
    result, status, restarted_as = outcome
    assert told(report) == {64: outcome, 66: (SENT, "Running", None)}
    would = StopResult.WOULD_STOP if result is SENT else result
    assert told(dry)[64] == (would, status, restarted_as)
    assert stopped(api) == ({66, restarted_as} if result is SENT else {66})
    assert costs(api) == (5, 1)


@simulated()
async def test_without_following_only_the_task_itself_counts(api: ControlApiSimulator) -> None:
    add_chain(api, 64, "Running")
    add_chain(api, 65, "Stalled", "Completed")
    add_chain(api, 67, "Running")
    async with open_session(api) as session:
        _, report = await use_all_ways(session, [64, 65, 1064], follow_restarts=False)
        assert told(report) == {
            64: (NOT_RUNNING, "Stalled", 1064),
            65: (NOT_RUNNING, "Stalled", 2065),
            1064: (SENT, "Running", None),
        }
        assert told(await session.task_stop(2, [67]))[67] == (StopResult.UNAVAILABLE, None, None)
        assert stopped(api) == {1064}
        assert (await session.stop(2, 67)) == StopOutcome(67, 2, SENT, RUNNING, None, 1067)


@pytest.mark.parametrize("chunk", [1, 2, 3, 10])
@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("ids", [[64, 1064], [1064, 64], [64, 1, 2, 2064, 3, 1064], [2064, 4, 64]])
@simulated()
async def test_tasks_of_one_chain_share_its_one_stop_in_whichever_chunk(
    api: ControlApiSimulator, ids: list[int], chunk: int, at_once: int
) -> None:
    add_chain(api, 64, "Stalled", "Running")
    api.add_tasks([1, 2, 3, 4])
    async with open_session(api, chunk, at_once) as session:
        report = await session.stop_running(2, ids)
    assert told(report) == {n: (SENT, "Running", 2064 if n in (64, 1064) else None) for n in ids}
    stops = {n: task.stop_requests for n, task in api.tasks.items() if task.stop_requests}
    assert stops == dict.fromkeys({*ids, 2064} - {64, 1064}, 1)


@pytest.mark.parametrize("form", FORMS)
@simulated()
async def test_all_active_reports_each_chain_once_under_its_live_task(
    api: ControlApiSimulator, form: Any
) -> None:
    api.chains = form
    add_chain(api, 64, "Running")
    add_chain(api, 65, "Scheduled")
    add_chain(api, 66, "Completed")
    api.add_task(67)
    async with open_session(api) as session:
        states = await session.task_status(2, ALL_ACTIVE)
        report = await session.stop_running(2, ALL_ACTIVE)
    assert told(report) == {
        1064: (SENT, "Running", None),
        1065: (NOT_RUNNING, "Scheduled", None),
        67: (SENT, "Running", None),
    }
    assert states.keys() == report.keys()
    assert stopped(api) == {1064, 67}


@pytest.mark.parametrize("form", FORMS)
@simulated()
async def test_task_status_tells_the_current_task(api: ControlApiSimulator, form: Any) -> None:
    api.chains = form
    add_chain(api, 64, "Stalled", "Running")
    async with open_session(api) as session:
        states = await session.task_status(2, [64, 2064], detailed_test_results=True)
        exact = await session.task_status(2, [64], restart_chain="exact")
        bad: dict[str, Any]
        for bad in ({"restart_chain": "none"}, {"detailed_test_results": 1}):
            with pytest.raises((TypeError, ValueError)):
                await session.task_status(2, [64], **bad)
    assert list(states) == [64, 2064]
    current = states[64].restarted_as
    assert current is not None
    assert (states[64].status, current.task_id, current.status) == ("Stalled", 2064, "Running")
    assert current.details["initial_task_id"] == 64
    assert states[2064].restarted_as is exact[64].restarted_as is None
    assert "file_summary" in states[64].details["test_results"]
    params = [record.json["methods"][0]["params"] for record in api.log]
    assert params[0]["detailed_test_results"] is True
    assert params[1]["restart_chain"] == "exact"


# --- restarts in the middle of a run --------------------------------------------------------------


@simulated(stop_delay=10)
async def test_restarts_are_followed_while_tasks_are_asked_about_again(
    api: ControlApiSimulator,
) -> None:
    """A queued restart starts; a task stalls before its stop takes effect, and is restarted."""
    api.add_task(64, "Stalled")
    api.restart(64, "Scheduled", new_id=1064, life=[(5, "Running")])
    api.add_task(65, life=[(5, "Stalled")], restarts=[Restart()])
    async with open_session(api) as session:
        report = await session.stop_running(2, [64, 65], wait_pending=60, wait_stopped=60)
    restarted_as = api.tasks[65].restarted_as
    assert restarted_as is not None
    assert told(report) == {64: (SENT, "Canceled", 1064), 65: (SENT, "Canceled", restarted_as)}
    assert stopped(api) == {1064, restarted_as}


@pytest.mark.parametrize(
    ("becomes", "requests", "outcome"),
    [
        ("Completed", "STS", (StopResult.UNAVAILABLE, "Completed", None)),
        ("Stalled", "STS", (StopResult.UNAVAILABLE, "Stalled", None)),
        ("restarted", "STST", (SENT, "Running", 1064)),
    ],
)
@simulated()
async def test_a_stop_that_comes_too_late_is_explained_and_a_restart_followed(
    api: ControlApiSimulator, becomes: str, requests: str, outcome: Any
) -> None:
    api.add_tasks([64, 65])
    gate = api.hold(STOP, number=1)
    async with open_session(api) as session:
        task = asyncio.create_task(session.stop_running(2, [64, 65]))
        await api.wait_until(lambda: gate.held == 1)
        if becomes == "restarted":
            api.restart(64, new_id=1064)
        else:
            api.tasks[64].status = becomes
        gate.release()
        report = await task
    assert told(report) == {64: outcome, 65: (SENT, "Running", None)}
    unavailable = outcome[0] is StopResult.UNAVAILABLE
    assert report[64].error == ("Stopping task is unavailable" if unavailable else None)
    assert letters(api.log) == requests
    assert stopped(api) == ({65} if unavailable else {65, 1064})


@simulated()
async def test_restarts_are_followed_three_times_at_most(api: ControlApiSimulator) -> None:
    api.add_project(2, attempts_number=10)
    api.add_task(64)
    newest = 64

    def restart(record: RequestRecord) -> None:
        nonlocal newest
        if STOP in record.methods:
            newest = api.restart(newest, new_id=newest + 1000)

    api.fault_when = restart
    async with open_session(api) as session:
        report = await session.stop_running(2, [64])
    assert report[64].result is StopResult.UNAVAILABLE
    assert report[64].restarted_as == newest
    assert letters(api.log).count("T") <= 4


@pytest.mark.parametrize(
    ("effect", "current", "status"),
    [(True, 1064, "Canceled"), (False, 1064, "Running"), (False, 2064, "Running")],
)
@simulated()
async def test_a_lost_stop_of_a_chain_is_looked_into(
    api: ControlApiSimulator, current: int, status: str, *, effect: bool
) -> None:
    add_chain(api, 64, "Running")

    def lose(record: RequestRecord) -> Fault | None:
        if record.numbers.get(STOP) != 1:
            return None
        if current == 2064:
            api.restart(1064, new_id=2064)
        return Drop(effect=effect)

    api.fault_when = lose
    async with open_session(api) as session:
        report = await session.stop_running(2, [64])
    assert told(report) == {64: (SENT, status, current)}
    assert stopped(api) == {current}
