"""Restart chains, end to end: the job is stopped, whatever task it has become."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import ALL_ACTIVE, StopOutcome, StopReport, StopResult, TaskStatus
from ctrlapi_async.simulator import (
    STATUSES,
    ControlApiSimulator,
    CutBody,
    Drop,
    Fault,
    HttpStatus,
    Restart,
)
from tests.support.clock import run
from tests.support.oracle import Oracle
from tests.support.simulated import (
    STOP,
    arriving,
    costs,
    disconnected,
    ended,
    letters,
    open_session,
    outcomes_of,
    simulated,
    simulator,
    stopped,
)
from tests.support.witness import Witness

if TYPE_CHECKING:
    from ctrlapi_async import ControlSession
    from ctrlapi_async.simulator import RequestRecord

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
) -> dict[str, StopReport]:
    """Stop tasks in each of the ways that there are, as dry runs but for the last one."""
    streamed = await session.stop_running(2, arriving(ids), dry_run=True, **options)
    across = await session.stop_running_across({2: ids, 3: []}, dry_run=True, **options)
    dry = await session.stop_running(2, ids, dry_run=True, **options)
    async with session.stopping(2, arriving(ids), collect=False, dry_run=True, **options) as one:
        uncollected = StopReport.of(
            sorted(await outcomes_of(one), key=lambda o: ids.index(o.task_id))
        )
    assert streamed == across == dry == uncollected
    return {"dry": dry, "stop": await session.stop_running(2, ids, **options)}


# --- what a chain's outcome is about --------------------------------------------------------------

CHAINS: dict[str, tuple[tuple[str, ...], tuple[StopResult, str, int | None]]] = {
    # The statuses of the restarts of a Stalled task 64 -> its outcome.
    "running": (("Running",), (SENT, "Running", 1064)),
    "restarted twice": (("Stalled", "Running"), (SENT, "Running", 2064)),
    "queued": (("Scheduled",), (NOT_RUNNING, "Scheduled", 1064)),
    "completed": (("Completed",), (NOT_RUNNING, "Completed", 1064)),
    "stalled for good": (("Stalled", "Stalled", "Stalled"), (NOT_RUNNING, "Stalled", 3064)),
    "canceled": (("Canceled",), (NOT_RUNNING, "Canceled", 1064)),
    "not restarted": ((), (NOT_RUNNING, "Stalled", None)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", ["documented", "narrow"])
@pytest.mark.parametrize(("statuses", "outcome"), CHAINS.values(), ids=CHAINS)
@simulated()
async def test_the_outcome_is_about_the_chains_current_task(
    api: ControlApiSimulator,
    statuses: tuple[str, ...],
    outcome: tuple[StopResult, str, int | None],
    rows: Any,
    form: Any,
) -> None:
    api.chains, api.rows = form, rows
    add_chain(api, 64, *statuses)
    api.add_tasks([65, 66])
    api.add_task(67, "Completed")
    async with open_session(api) as session:
        reports = await use_all_ways(session, [64, 65, 66, 67])
    result, status, restarted_as = outcome
    assert told(reports["stop"]) == {
        64: outcome,
        65: (SENT, "Running", None),
        66: (SENT, "Running", None),
        67: (NOT_RUNNING, "Completed", None),
    }
    would = StopResult.WOULD_STOP if result is SENT else result
    assert told(reports["dry"])[64] == (would, status, restarted_as)
    runs = {restarted_as} if result is SENT else set()
    assert stopped(api) == {65, 66} | runs
    assert costs(api) == (5, 1)


@simulated()
async def test_without_following_only_the_task_itself_counts(api: ControlApiSimulator) -> None:
    add_chain(api, 64, "Running")
    add_chain(api, 65, "Stalled", "Completed")
    api.add_task(66)
    async with open_session(api) as session:
        reports = await use_all_ways(session, [64, 65, 66, 1064], follow_restarts=False)
    assert told(reports["stop"]) == {
        64: (NOT_RUNNING, "Stalled", 1064),
        65: (NOT_RUNNING, "Stalled", 2065),
        66: (SENT, "Running", None),
        1064: (SENT, "Running", None),
    }
    assert stopped(api) == {66, 1064}


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
    for task_id in ids:
        restarted_as = 2064 if task_id in (64, 1064) else None
        assert told(report)[task_id] == (SENT, "Running", restarted_as)
    assert api.tasks[2064].stop_requests == 1
    assert sum(task.stop_requests for task in api.tasks.values()) == len({*ids, 2064} - {64, 1064})


@simulated()
async def test_nothing_but_the_chains_of_asked_tasks_is_stopped(api: ControlApiSimulator) -> None:
    add_chain(api, 64, "Running")
    add_chain(api, 65, "Running")
    api.add_task(66)
    async with open_session(api) as session:
        await session.stop_running(2, [64])
        assert stopped(api) == {1064}
        assert (await session.stop(2, 65)) == StopOutcome(65, 2, SENT, RUNNING, None, 1065)
        assert stopped(api) == {1064, 1065}
        report = await session.task_stop(2, [64, 66])
    assert told(report)[64] == (StopResult.UNAVAILABLE, None, None)
    assert stopped(api) == {1064, 1065, 66}


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
    api.add_task(65, "Completed")
    async with open_session(api) as session:
        states = await session.task_status(2, [64, 65, 2064], detailed_test_results=True)
        exact = await session.task_status(2, [64], restart_chain="exact")
        bad: dict[str, Any]
        for bad in ({"restart_chain": "none"}, {"detailed_test_results": 1}):
            with pytest.raises((TypeError, ValueError)):
                await session.task_status(2, [64], **bad)
    assert list(states) == [64, 65, 2064]
    current = states[64].restarted_as
    assert current is not None
    assert (states[64].status, current.task_id, current.status) == ("Stalled", 2064, "Running")
    assert current.details["initial_task_id"] == 64
    assert states[65].restarted_as is states[2064].restarted_as is None
    assert "file_summary" in states[64].details["test_results"]
    assert exact[64].restarted_as is None
    params = [record.json["methods"][0]["params"] for record in api.log]
    assert params[0]["detailed_test_results"] is True
    assert params[1]["restart_chain"] == "exact"


# --- restarts in the middle of a run --------------------------------------------------------------


@simulated()
async def test_a_queued_restart_is_waited_for(api: ControlApiSimulator) -> None:
    api.add_task(64, "Stalled")
    api.restart(64, "Scheduled", new_id=1064, life=[(5, "Running")])
    api.add_task(65, "Scheduled", life=[(2, "Running"), (3, "Stalled")], restarts=1)
    async with open_session(api) as session:
        report = await session.stop_running(2, [64, 65], wait_pending=60)
    assert told(report)[64] == (SENT, "Running", 1064)
    assert report[65].result is SENT
    assert stopped(api) == {1064, report[65].restarted_as or 65}


@simulated(stop_delay=10)
async def test_wait_stopped_follows_a_restart_that_came_in_between(
    api: ControlApiSimulator,
) -> None:
    """The task stalls before its stop takes effect; what it was restarted as is stopped too."""
    api.add_task(64, life=[(5, "Stalled")], restarts=[Restart()])
    api.add_task(65)
    async with open_session(api) as session:
        report = await session.stop_running(2, [64, 65], wait_stopped=60)
    restarted_as = api.tasks[64].restarted_as
    assert told(report) == {
        64: (SENT, "Canceled", restarted_as),
        65: (SENT, "Canceled", None),
    }
    assert stopped(api) == {65, restarted_as}


@pytest.mark.parametrize("ending", ["Completed", "Stalled"])
@simulated(tick=1)
async def test_unavailable_is_explained_by_one_more_check(
    api: ControlApiSimulator, ending: str
) -> None:
    api.add_task(64, life=[(1.5, ending)])
    api.add_task(65)
    gate = api.hold(STOP)
    async with open_session(api) as session:
        task = asyncio.create_task(session.stop_running(2, [64, 65]))
        await api.wait_until(lambda: gate.held == 1)
        api.advance(1)
        gate.release()
        report = await task
    assert told(report) == {
        64: (StopResult.UNAVAILABLE, ending, None),
        65: (SENT, "Running", None),
    }
    assert report[64].error == "Stopping task is unavailable"
    assert letters(api.log) == "STS"


@simulated()
async def test_a_restart_between_check_and_stop_is_followed(api: ControlApiSimulator) -> None:
    api.add_task(64)
    gate = api.hold(STOP, number=1)
    async with open_session(api) as session:
        task = asyncio.create_task(session.stop_running(2, [64]))
        await api.wait_until(lambda: gate.held == 1)
        api.restart(64, new_id=1064)
        gate.release()
        report = await task
    assert told(report) == {64: (SENT, "Running", 1064)}
    assert stopped(api) == {1064}
    assert letters(api.log) == "STST"


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


@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize("restarts", [False, True])
@simulated()
async def test_a_lost_stop_of_a_chain_is_looked_into(
    api: ControlApiSimulator, *, effect: bool, restarts: bool
) -> None:
    add_chain(api, 64, "Running")

    def lose(record: RequestRecord) -> Fault | None:
        if record.numbers.get(STOP) == 1:
            if restarts and not effect:
                api.restart(1064, new_id=2064)
            return Drop(effect=effect)
        return None

    api.fault_when = lose
    async with open_session(api) as session:
        report = await session.stop_running(2, [64])
    current = 2064 if restarts and not effect else 1064
    assert told(report) == {64: (SENT, "Canceled" if effect else "Running", current)}
    assert stopped(api) == {current}


@simulated()
async def test_a_stream_of_chains_needs_memory_for_a_window_only(
    api: ControlApiSimulator,
) -> None:
    for task_id in range(100):
        add_chain(api, task_id, "Running" if task_id % 2 else "Completed")
    async with (
        open_session(api, 10, 2) as session,
        session.stopping(2, arriving(range(100)), collect=False) as stopping,
    ):
        seen = await outcomes_of(stopping)
    assert sorted(one.task_id for one in seen) == list(range(100))
    assert stopped(api) == {1000 + n for n in range(1, 100, 2)}


# --- any chains, any order, any faults ------------------------------------------------------------

FAULTS = [HttpStatus(503), HttpStatus(500, effect=True), Drop(), Drop(effect=True), CutBody()]
statuses = st.sampled_from([*STATUSES, "Running", "Running"])


@given(
    chains=st.lists(st.tuples(st.integers(0, 3), statuses), min_size=1, max_size=8),
    seed=st.integers(0, 10**6),
    form=st.sampled_from(FORMS),
    chunk=st.integers(1, 7),
    at_once=st.integers(1, 3),
    follow=st.booleans(),
    faults=st.dictionaries(st.integers(1, 12), st.sampled_from(FAULTS), max_size=2),
    restart_at=st.lists(st.integers(1, 8), max_size=3),
)
def test_each_asked_task_has_one_outcome_and_each_live_task_one_stop(
    *,
    chains: list[tuple[int, str]],
    seed: int,
    form: Any,
    chunk: int,
    at_once: int,
    follow: bool,
    faults: dict[int, Fault],
    restart_at: list[int],
) -> None:
    chance = random.Random(seed)

    async def main() -> None:
        api = simulator(chains=form)
        api.add_project(2, attempts_number=10)
        for task_id, (restarts, status) in enumerate(chains, 10):
            if restarts:
                add_chain(api, task_id, *["Stalled"] * (restarts - 1), status)
            else:
                api.add_task(task_id, status)
        ids = [n for n in api.tasks if chance.random() < 0.6]
        chance.shuffle(ids)

        def script(record: RequestRecord) -> Fault | None:
            if record.number in restart_at and follow:
                running = [n for n, task in api.tasks.items() if task.status == "Running"]
                if running and len(api.tasks) < 100:
                    api.restart(chance.choice(running))
            return faults.get(record.number)

        oracle = Oracle(follow_restarts=follow, attempts=4)
        oracle.ask(2, ids)
        witness = Witness(api, script, oracle)
        async with api:
            async with open_session(api, chunk, at_once) as session:
                report, error = await ended(session.stop_running(2, ids, follow_restarts=follow))
            await disconnected(api)
        witness.check(ids, report, error, sound=not faults)
        assert error is None
        if not restart_at and follow:
            for task_id in ids:
                newest = api.tasks[api.tasks[task_id].chain[-1]]
                assert newest.status != "Running", task_id

    run(main())
