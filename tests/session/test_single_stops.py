"""Single stops, asked for at about the same time: they share requests, and nothing else."""

from __future__ import annotations

import asyncio
import pickle
from math import ceil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import (
    ControlSession,
    ProjectNotFoundError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopResult,
)
from ctrlapi_async.simulator import STATUSES, ControlApiSimulator, Drop, HttpStatus
from tests.support.clock import run
from tests.support.oracle import Oracle
from tests.support.simulated import (
    STATUS,
    STOP,
    asked,
    costs,
    disconnected,
    open_session,
    simulated,
    simulator,
    stopped,
    turns,
)
from tests.support.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrlapi_async.simulator import Fault

SENT = StopResult.STOP_SENT


def call(session: ControlSession, task_id: int, project_id: int = 2) -> asyncio.Task[StopOutcome]:
    return asyncio.create_task(session.stop(project_id, task_id))


async def answers(callers: Iterable[asyncio.Task[StopOutcome]]) -> list[Any]:
    return list(await asyncio.gather(*callers, return_exceptions=True))


# --- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [0, 1234, 3000])
@simulated()
async def test_3000_callers_cost_6_checks_and_a_stop_for_each_500_running(
    api: ControlApiSimulator, running: int
) -> None:
    api.mixed_tasks(3000, running=running / 3000)
    was = {task_id: task.status for task_id, task in api.tasks.items()}
    async with open_session(api) as session:
        outcomes = await asyncio.gather(*(session.stop(2, n) for n in api.tasks))
    assert costs(api) == (6, ceil(running / 500))
    assert [outcome.task_id for outcome in outcomes] == list(api.tasks)
    for outcome in outcomes:
        status = was[outcome.task_id]
        assert outcome.result is (SENT if status == "Running" else StopResult.NOT_RUNNING)
        assert outcome.status == status
    assert stopped(api) == {task_id for task_id, status in was.items() if status == "Running"}


@simulated()
async def test_what_callers_share(api: ControlApiSimulator) -> None:
    api.add_tasks(range(20))
    for n in range(100, 200):
        api.add_task(n, project_id=n)
    async with open_session(api, 6) as session:
        await asyncio.gather(*(session.stop(2, n) for n in range(20)))
        assert costs(api) == (4, 4), "the usual chunk size is kept"
    async with open_session(api) as session:
        api.reset_counters()
        await asyncio.gather(*(session.stop(n, n) for n in range(100, 200)))
        assert costs(api) == (1, 1), "of many projects too"
        api.add_tasks([30, 31])
        outcomes = await asyncio.gather(*(session.stop(2, n) for n in [30, 31, 30, 30]))
        assert [outcome.task_id for outcome in outcomes] == [30, 31, 30, 30]
        assert {outcome.result for outcome in outcomes} == {SENT}
        assert {n: api.tasks[n].stop_requests for n in (30, 31)} == {30: 1, 31: 1}


@simulated()
async def test_one_caller_gets_what_stop_running_would_report(api: ControlApiSimulator) -> None:
    api.documented_world()
    async with open_session(api) as session:
        outcome = await session.stop(2, 66)
        assert outcome == StopOutcome(66, 2, SENT, outcome.status)
        assert outcome.status == "Running"
        assert (await session.stop(2, 66)).result is StopResult.NOT_RUNNING
        assert (await session.stop(2, 68)).result is StopResult.NOT_FOUND
    assert costs(api) == (3, 1)


# --- when a batch leaves --------------------------------------------------------------------------


@simulated()
async def test_callers_of_one_turn_go_together_and_later_ones_do_not_wait(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(6))
    async with open_session(api) as session:
        with api.hold(STATUS, number=1):
            first = [call(session, n) for n in (0, 1, 2)]
            await api.wait_for_requests(1)
            second = [call(session, n) for n in (3, 4, 5)]
            assert {outcome.task_id for outcome in await answers(second)} == {3, 4, 5}
            assert not any(caller.done() for caller in first)
        await answers(first)
    assert asked(api, STATUS) == [[0, 1, 2], [3, 4, 5]]


@simulated()
async def test_a_batch_lingers_for_callers_of_later_turns(api: ControlApiSimulator) -> None:
    api.add_tasks(range(21))
    async with open_session(api, linger=1.0) as session:
        callers = []
        for n in range(20):
            callers.append(call(session, n))
            await asyncio.sleep(0.3)
        await answers(callers)
        assert [len(ids) for ids in asked(api, STATUS)] == [4, 4, 4, 4, 4]
        await session.stop(2, 20)


@simulated()
async def test_one_id_under_two_projects(api: ControlApiSimulator) -> None:
    api.add_tasks([5, 6], project_id=2)
    api.add_tasks([7], project_id=3)
    async with open_session(api) as session:
        wanted = [(2, 5), (3, 5), (2, 5), (2, 6), (3, 7), (3, 6)]
        outcomes = await asyncio.gather(*(session.stop(*pair) for pair in wanted))
    assert [(outcome.project_id, outcome.task_id) for outcome in outcomes] == wanted
    found = {pair: one.result is SENT for pair, one in zip(wanted, outcomes, strict=True)}
    assert found == {(2, 5): True, (2, 6): True, (3, 7): True, (3, 5): False, (3, 6): False}
    assert stopped(api) == {5, 6, 7}
    assert api.counters.ids[STOP] == 3


@pytest.mark.parametrize(
    ("project_id", "task_id", "kind"),
    [(2, -1, ValueError), (2, 2**63, ValueError), (2, True, TypeError), ("2", 1, TypeError)],
)
@simulated()
async def test_what_cannot_be_meant_touches_no_other_caller(
    api: ControlApiSimulator, project_id: Any, task_id: Any, kind: type[Exception]
) -> None:
    api.add_task(1)
    async with open_session(api) as session:
        good, bad = await asyncio.gather(
            session.stop(2, 1), session.stop(project_id, task_id), return_exceptions=True
        )
    assert isinstance(good, StopOutcome)
    assert type(bad) is kind
    assert api.counters.ids == {STATUS: 1, STOP: 1}


# --- each caller's own outcome or error -----------------------------------------------------------


@simulated()
async def test_each_caller_gets_the_error_of_its_own_task(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2], project_id=2)
    api.add_task(3, "Stalled", project_id=2)
    async with open_session(api) as session:
        callers = [call(session, 1), call(session, 80, 8), call(session, 3), call(session, 90, 9)]
        callers += [call(session, 44), call(session, 2), call(session, 81, 8)]
        good, eight, stalled, nine, absent, good_too, eight_too = await answers(callers)
    assert good.result is good_too.result is SENT
    assert (stalled.result, stalled.status) == (StopResult.NOT_RUNNING, "Stalled")
    assert absent.result is StopResult.NOT_FOUND
    for error, task_id, project_id in ((eight, 80, 8), (nine, 90, 9), (eight_too, 81, 8)):
        assert isinstance(error, StopIncompleteError)
        words = f"project {project_id} does not exist"
        outcome = StopOutcome(task_id, project_id, StopResult.NOT_SENT, None, words)
        assert dict(error.report) == {task_id: outcome}
        [cause] = error.exceptions
        assert isinstance(cause, ProjectNotFoundError)
        assert cause.message == words


@pytest.mark.parametrize(
    ("method", "fault", "result"),
    [
        (STATUS, Drop(), StopResult.NOT_SENT),
        (STATUS, HttpStatus(401), StopResult.NOT_SENT),
        (STOP, HttpStatus(429), StopResult.NOT_SENT),
        (STOP, HttpStatus(503), StopResult.UNCONFIRMED),
        (STOP, Drop(effect=True), SENT),
    ],
)
@simulated()
async def test_callers_without_an_answer_get_an_error_that_pickles(
    api: ControlApiSimulator, method: str, fault: Fault, result: StopResult
) -> None:
    api.add_tasks([1, 2])
    api.fault(fault, method=method)
    async with open_session(api) as session:
        errors = await answers([call(session, 1), call(session, 2), call(session, 2)])
    for task_id, error in zip([1, 2, 2], errors, strict=True):
        if result is SENT:
            assert error.result is SENT
            continue
        assert isinstance(error, StopIncompleteError)
        again = pickle.loads(pickle.dumps(error))
        for one in (error, again):
            assert list(one.report) == [task_id]
            assert one.report[task_id].result is result
            assert str(task_id) in str(one)
            assert one.exceptions
        assert again.report == error.report
        assert repr(again.exceptions) == repr(error.exceptions)


# --- cancelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("count", [*range(8), None])
@simulated()
async def test_a_caller_cancelled_in_any_turn_touches_no_other(
    api: ControlApiSimulator, count: int | None, *, also: bool
) -> None:
    """None: when the check has its answer; `also`: another caller still wants the task."""
    api.add_tasks([1, 2, 3])
    async with open_session(api) as session:
        with api.hold(STATUS, effect=True):
            callers = [call(session, n) for n in (1, 2, 3, *[2] * also)]
            await (turns(count) if count is not None else api.wait_for_requests(1))
            callers[1].cancel()
            await asyncio.wait([callers[1]])
        results = await answers(callers)
    assert isinstance(results.pop(1), asyncio.CancelledError)
    assert {outcome.result for outcome in results} == {SENT}
    assert stopped(api) == ({1, 2, 3} if also else {1, 3})
    assert costs(api) == (1, 1)


@simulated()
async def test_a_caller_cancelled_while_its_check_waits_to_be_repeated(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2])
    api.fault(HttpStatus(500), number=1)
    retry = RetryPolicy(wait_initial=60, wait_max=60)
    async with open_session(api, retry=retry) as session:
        callers = [call(session, n) for n in (1, 2)]
        await api.wait_until(lambda: api.counters.requests == 1 and not api.counters.in_flight)
        await turns(20)
        callers[0].cancel()
        assert (await callers[1]).result is SENT
    assert [sorted(record.ids) for record in api.log] == [[1, 2], [2], [2]]


@simulated()
async def test_a_caller_cancelled_while_its_stop_is_in_flight(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        with api.hold(STOP):
            callers = [call(session, n) for n in (1, 2)]
            await api.wait_for_requests(1, STOP)
            callers[0].cancel()
            await asyncio.wait([callers[0]])
        results = await answers(callers)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1].result is SENT
    assert stopped(api) == {1, 2}


@pytest.mark.parametrize("count", range(5))
@simulated()
async def test_all_callers_cancelled_before_an_answer(api: ControlApiSimulator, count: int) -> None:
    api.add_tasks([*range(5), 99])
    async with open_session(api) as session:
        with api.hold(STATUS, number=1):
            callers = [call(session, n) for n in range(5)]
            await turns(count)
            for caller in callers:
                caller.cancel()
            results = await answers(callers)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        # The session goes on as if nothing had been, and a task can be wanted again.
        for task_id in (99, 0):
            assert (await session.stop(2, task_id)).result is SENT
    assert stopped(api) == {99, 0}


@simulated()
async def test_a_caller_may_give_up_after_its_own_time(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        with api.hold(STATUS, number=1, effect=True):
            patient = call(session, 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.stop(2, 2), 0.5)
        assert (await patient).result is SENT
    assert stopped(api) == {1}


# --- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("linger", [0, 60])
@pytest.mark.parametrize("busy", [False, True])
@simulated()
async def test_a_session_closed_with_callers_waiting(
    api: ControlApiSimulator, count: int, linger: float, *, busy: bool
) -> None:
    api.add_tasks([1, 2, 3])
    with api.hold(STATUS):
        async with open_session(api, linger=linger) as session:
            if busy:
                await session.stopping(2, [3]).__aenter__()
                await api.wait_for_requests(1)
            callers = [call(session, n) for n in (1, 2, 1)]
            await turns(1 + count)
            if count == 7:
                callers[1].cancel()
        await turns(1)
        assert all(caller.done() for caller in callers), "closing waits for them to be told"
        errors = await answers(callers)
    for task_id, error in zip([1, 2, 1], errors, strict=True):
        if count == 7 and task_id == 2:
            assert isinstance(error, asyncio.CancelledError)
            continue
        assert isinstance(error, StopIncompleteError)
        assert list(error.report) == [task_id]
        assert error.report[task_id].result is StopResult.NOT_SENT
        assert [type(cause) for cause in error.exceptions] == [RequestError]
        assert "closed" in str(error.exceptions[0])
        assert pickle.loads(pickle.dumps(error)).report == error.report
    assert not stopped(api)


@simulated()
async def test_a_session_closed_while_the_stop_is_in_flight(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    with api.hold(STOP):
        async with open_session(api) as session:
            callers = [call(session, n) for n in (1, 2)]
            await api.wait_for_requests(1, STOP)
        errors = await answers(callers)
    for task_id, error in zip([1, 2], errors, strict=True):
        assert error.report[task_id].result is StopResult.UNCONFIRMED


# --- any callers, any cancellations ---------------------------------------------------------------


@given(
    statuses=st.lists(st.sampled_from((*STATUSES, "Running", "Running", "absent")), max_size=12),
    wanted=st.lists(
        st.tuples(
            st.integers(0, 11),
            st.sampled_from([2, 2, 2, 3, 9]),
            st.sampled_from(["stays", "stays", "before", "checked"]),
        ),
        max_size=25,
    ),
    chunk=st.integers(1, 6),
    at_once=st.integers(1, 4),
    faults=st.dictionaries(
        st.integers(1, 10),
        st.sampled_from([HttpStatus(503), Drop(), Drop(effect=True), HttpStatus(500)]),
        max_size=3,
    ),
)
def test_callers_do_not_touch_each_other(
    statuses: list[str],
    wanted: list[tuple[int, int, str]],
    chunk: int,
    at_once: int,
    faults: dict[int, Fault],
) -> None:
    def cancel(callers: list[asyncio.Task[StopOutcome]], moment: str) -> None:
        for caller, (_, _, when) in zip(callers, wanted, strict=True):
            if when == moment:
                caller.cancel()

    async def main() -> None:
        api = simulator()
        api.add_project(2)
        api.add_project(3)
        for task_id, status in enumerate(statuses):
            if status != "absent":
                api.add_task(task_id, status)
        oracle = Oracle(attempts=4)
        for task_id, project_id, _ in wanted:
            oracle.ask(project_id, [task_id])
        witness = Witness(api, lambda record: faults.get(record.number), oracle)
        witness.judges = len({n for n, _, _ in wanted}) == len({one[:2] for one in wanted})
        async with api:
            async with open_session(api, chunk, at_once) as session:
                with api.hold(STOP):
                    callers = [call(session, task_id, project) for task_id, project, _ in wanted]
                    await turns(1)
                    cancel(callers, "before")
                    if any(when != "before" for _, _, when in wanted):
                        await api.wait_for_requests(1)
                    cancel(callers, "checked")
                    early = {n for one in witness.requests if STOP in one.methods for n in one.ids}
                results = await answers(callers)
            await disconnected(api)
        for (task_id, project_id, when), result in zip(wanted, results, strict=True):
            status = statuses[task_id] if task_id < len(statuses) else "absent"
            if when != "stays":
                assert isinstance(result, asyncio.CancelledError)
            elif project_id == 9:
                assert isinstance(result, StopIncompleteError)
                assert list(result.report) == [task_id]
            elif project_id == 3 or status == "absent":
                assert result.result is StopResult.NOT_FOUND
            elif status == "Running":
                assert result.result is SENT
            else:
                assert (result.result, result.status) == (StopResult.NOT_RUNNING, status)
        staying = {n for n, project_id, when in wanted if when == "stays" and project_id == 2}
        running = {n for n, status in enumerate(statuses) if status == "Running"}
        # What nobody wants any more is only stopped where the stop had left already.
        assert staying & running <= stopped(api) <= staying | early
        assert {n for one in witness.requests for n in one.ids} <= {
            n for n, _, when in wanted if when != "before"
        }

    run(main())
