"""Single stops, asked for at about the same time: they share requests, and nothing else."""

from __future__ import annotations

import asyncio
import pickle
from math import ceil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants import Witness, assert_stops_were_due, run

from ctrlapi_async import (
    Batching,
    ControlSession,
    ProjectNotFoundError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopResult,
)
from ctrlapi_async.simulator import STATUSES, ControlApiSimulator, Drop, HttpStatus

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrlapi_async.simulator import Fault

AT_ONCE = RetryPolicy(attempts=4, wait_initial=0, wait_max=0)


def open_session(api: ControlApiSimulator, **batching: Any) -> ControlSession:
    return ControlSession(api.url, 1, batching=Batching(**batching), retry=AT_ONCE)


def costs(api: ControlApiSimulator) -> tuple[int, int]:
    requests = api.counters.requests_by_method
    return requests["TaskStatus"], requests["TaskStop"]


def stopped(api: ControlApiSimulator) -> set[int]:
    return {task_id for task_id, task in api.tasks.items() if task.stopped}


def call(session: ControlSession, task_id: int, project_id: int = 2) -> asyncio.Task[StopOutcome]:
    return asyncio.ensure_future(session.stop(project_id, task_id))


async def answers(callers: Iterable[asyncio.Task[StopOutcome]]) -> list[Any]:
    return list(await asyncio.gather(*callers, return_exceptions=True))


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# --- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [0, 4321, 10_000])
async def test_10000_callers_cost_20_checks_and_a_stop_for_each_500_running(
    api: ControlApiSimulator, running: int
) -> None:
    before = api.mixed_tasks(10_000, running=running / 10_000)
    assert before["Running"] == running
    was = {task_id: task.status for task_id, task in api.tasks.items()}
    async with open_session(api) as session:
        outcomes = await asyncio.gather(*(session.stop(2, n) for n in api.tasks))
    assert costs(api) == (20, ceil(running / 500))
    assert [outcome.task_id for outcome in outcomes] == list(api.tasks)
    for outcome in outcomes:
        runs = was[outcome.task_id] == "Running"
        assert outcome.result is (StopResult.STOP_SENT if runs else StopResult.NOT_RUNNING)
        assert outcome.status == was[outcome.task_id]
    assert stopped(api) == {task_id for task_id, status in was.items() if status == "Running"}


async def test_the_usual_chunk_size_is_kept(api: ControlApiSimulator) -> None:
    api.add_tasks(range(20))
    async with open_session(api, chunk_size=6) as session:
        await asyncio.gather(*(session.stop(2, n) for n in range(20)))
    assert costs(api) == (4, 4)


async def test_one_caller_gets_what_stop_running_would_report(api: ControlApiSimulator) -> None:
    api.documented_world()
    async with open_session(api) as session:
        outcome = await session.stop(2, 66)
        assert outcome == StopOutcome(66, 2, StopResult.STOP_SENT, outcome.status)
        assert outcome.status == "Running"
        assert (await session.stop(2, 66)).result is StopResult.NOT_RUNNING
        assert (await session.stop(2, 68)).result is StopResult.NOT_FOUND
    assert costs(api) == (3, 1)


async def test_the_same_task_wanted_by_many_is_asked_for_once(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        outcomes = await asyncio.gather(*(session.stop(2, n) for n in [1, 2, 1, 1]))
    assert [outcome.task_id for outcome in outcomes] == [1, 2, 1, 1]
    assert {outcome.result for outcome in outcomes} == {StopResult.STOP_SENT}
    assert api.counters.ids == {"TaskStatus": 2, "TaskStop": 2}


async def test_callers_of_many_projects_share_requests(api: ControlApiSimulator) -> None:
    for n in range(100):
        api.add_task(n, project_id=n)
    async with open_session(api) as session:
        outcomes = await asyncio.gather(*(session.stop(n, n) for n in range(100)))
    assert [(outcome.project_id, outcome.result) for outcome in outcomes] == [
        (n, StopResult.STOP_SENT) for n in range(100)
    ]
    assert costs(api) == (1, 1)


# --- when a batch leaves --------------------------------------------------------------------------


async def test_callers_of_one_turn_go_together_and_later_ones_do_not_wait(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(6))
    async with open_session(api) as session:
        with api.hold("TaskStatus", number=1):
            first = [call(session, n) for n in (0, 1, 2)]
            await api.wait_for_requests(1)
            second = [call(session, n) for n in (3, 4, 5)]
            assert {outcome.task_id for outcome in await answers(second)} == {3, 4, 5}
            assert not any(caller.done() for caller in first)
        await answers(first)
    checks = [set(record.ids) for record in api.log if "TaskStatus" in record.methods]
    assert checks == [{0, 1, 2}, {3, 4, 5}]


def test_a_batch_lingers_for_callers_of_later_turns() -> None:
    async def main() -> None:
        async with (
            ControlApiSimulator(own_thread=False) as api,
            open_session(api, linger=0.5) as session,
        ):
            api.add_tasks(range(4))
            callers = []
            for n in range(3):
                callers.append(call(session, n))
                await asyncio.sleep(0.2)
            assert api.counters.requests == 0 or len(api.log[0].ids) == 3
            await answers(callers)
            assert costs(api) == (1, 1)
            await session.stop(2, 3)
            assert costs(api) == (2, 2)

    run(main())


def test_nobody_waits_longer_than_the_linger_for_the_batch_to_leave() -> None:
    async def main() -> None:
        async with (
            ControlApiSimulator(own_thread=False) as api,
            open_session(api, linger=1.0) as session,
        ):
            api.add_tasks(range(20))
            callers = []
            for n in range(20):
                callers.append(call(session, n))
                await asyncio.sleep(0.3)
            await answers(callers)
            checks = [record.ids for record in api.log if "TaskStatus" in record.methods]
            assert [len(ids) for ids in checks] == [4, 4, 4, 4, 4]

    run(main())


async def test_one_id_under_two_projects(api: ControlApiSimulator) -> None:
    api.add_tasks([5, 6], project_id=2)
    api.add_tasks([7], project_id=3)
    async with open_session(api) as session:
        wanted = [(2, 5), (3, 5), (2, 5), (2, 6), (3, 7), (3, 6)]
        outcomes = await asyncio.gather(*(session.stop(*pair) for pair in wanted))
    assert [(outcome.project_id, outcome.task_id) for outcome in outcomes] == wanted
    results = {pair: outcome.result for pair, outcome in zip(wanted, outcomes, strict=True)}
    assert results[3, 5] is results[3, 6] is StopResult.NOT_FOUND
    assert results[2, 6] is results[3, 7] is StopResult.STOP_SENT
    assert results[2, 5] is StopResult.STOP_SENT
    assert stopped(api) == {5, 6, 7}
    assert api.counters.ids["TaskStop"] == 3


@pytest.mark.parametrize(
    ("project_id", "task_id", "kind"),
    [(2, -1, ValueError), (2, 2**63, ValueError), (2, True, TypeError), ("2", 1, TypeError)],
)
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
    assert api.counters.ids == {"TaskStatus": 1, "TaskStop": 1}


async def test_a_session_that_is_not_open_takes_no_caller(api: ControlApiSimulator) -> None:
    session = open_session(api)
    with pytest.raises(RuntimeError):
        await session.stop(2, 1)
    async with session:
        pass
    with pytest.raises(RuntimeError):
        await session.stop(2, 1)


# --- each caller's own outcome or error -----------------------------------------------------------


async def test_each_caller_gets_the_error_of_its_own_task(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2], project_id=2)
    api.add_task(3, "Stalled", project_id=2)
    async with open_session(api) as session:
        callers = [call(session, 1), call(session, 80, 8), call(session, 3), call(session, 90, 9)]
        callers += [call(session, 44), call(session, 2), call(session, 81, 8)]
        good, eight, stalled, nine, absent, good_too, eight_too = await answers(callers)
    assert good.result is good_too.result is StopResult.STOP_SENT
    assert (stalled.result, stalled.status) == (StopResult.NOT_RUNNING, "Stalled")
    assert absent.result is StopResult.NOT_FOUND
    for error, task_id, project_id in ((eight, 80, 8), (nine, 90, 9), (eight_too, 81, 8)):
        assert isinstance(error, StopIncompleteError)
        words = f"project {project_id} does not exist"
        assert dict(error.report) == {
            task_id: StopOutcome(task_id, project_id, StopResult.NOT_SENT, None, words)
        }
        [cause] = error.exceptions
        assert isinstance(cause, ProjectNotFoundError)
        assert cause.message == words


@pytest.mark.parametrize(
    ("method", "fault", "result"),
    [
        ("TaskStatus", Drop(), StopResult.NOT_SENT),
        ("TaskStatus", HttpStatus(401), StopResult.NOT_SENT),
        ("TaskStop", HttpStatus(503), StopResult.NOT_SENT),
        ("TaskStop", HttpStatus(403), StopResult.NOT_SENT),
    ],
)
async def test_callers_without_an_answer_get_an_error_that_pickles(
    api: ControlApiSimulator, method: str, fault: Fault, result: StopResult
) -> None:
    api.add_tasks([1, 2])
    api.fault(fault, method=method)
    async with open_session(api) as session:
        errors = await answers([call(session, 1), call(session, 2), call(session, 2)])
    for task_id, error in zip([1, 2, 2], errors, strict=True):
        assert isinstance(error, StopIncompleteError)
        again = pickle.loads(pickle.dumps(error))
        for one in (error, again):
            assert list(one.report) == [task_id]
            assert one.report[task_id].result is result
            assert str(task_id) in str(one)
            assert one.exceptions
        assert again.report == error.report
        assert repr(again.exceptions) == repr(error.exceptions)


async def test_a_stop_whose_fate_is_unknown_is_unconfirmed_for_its_caller(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2])
    api.fault(Drop(effect=True), method="TaskStop")
    api.fault(Drop(), method="TaskStatus", number=2, every=True)
    async with open_session(api) as session:
        errors = await answers([call(session, 1), call(session, 2)])
    assert [error.report[n].result for n, error in zip([1, 2], errors, strict=True)] == [
        StopResult.UNCONFIRMED
    ] * 2


# --- cancelling -----------------------------------------------------------------------------------


async def test_a_caller_cancelled_before_its_batch_left_is_not_sent(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2, 3])
    async with open_session(api) as session:
        callers = [call(session, n) for n in (1, 2, 3)]
        await turns(1)
        callers[1].cancel()
        results = await answers(callers)
    assert isinstance(results[1], asyncio.CancelledError)
    assert stopped(api) == {1, 3}
    assert all(2 not in record.ids for record in api.log)
    assert costs(api) == (1, 1)


@pytest.mark.parametrize("count", range(8))
async def test_a_caller_cancelled_in_any_turn_touches_no_other(
    api: ControlApiSimulator, count: int
) -> None:
    api.add_tasks([1, 2, 3])
    async with open_session(api) as session:
        with api.hold("TaskStatus", effect=True):
            callers = [call(session, n) for n in (1, 2, 3)]
            await turns(count)
            callers[1].cancel()
            await asyncio.wait([callers[1]])
        results = await answers(callers)
    assert isinstance(results[1], asyncio.CancelledError)
    assert [results[n].result for n in (0, 2)] == [StopResult.STOP_SENT] * 2
    assert stopped(api) == {1, 3}


@pytest.mark.parametrize("also", [False, True])
async def test_a_caller_cancelled_between_check_and_stop(
    api: ControlApiSimulator, also: bool
) -> None:
    api.add_tasks([1, 2, 3])
    async with open_session(api) as session:
        with api.hold("TaskStatus", effect=True):
            callers = [call(session, n) for n in (1, 2, 3, *[2] * also)]
            await api.wait_for_requests(1)
            callers[1].cancel()
            await asyncio.wait([callers[1]])
        results = await answers(callers)
    assert isinstance(results.pop(1), asyncio.CancelledError)
    assert {outcome.result for outcome in results} == {StopResult.STOP_SENT}
    wanted = {1, 2, 3} if also else {1, 3}
    assert stopped(api) == wanted
    assert costs(api) == (1, 1)
    assert set(api.log[-1].ids) == wanted


def test_a_caller_cancelled_while_its_check_waits_to_be_repeated() -> None:
    async def main() -> None:
        async with ControlApiSimulator(own_thread=False) as api, open_session(api) as session:
            api.add_tasks([1, 2])
            api.fault(HttpStatus(500), number=1)
            session._retry = RetryPolicy(wait_initial=60, wait_max=60)
            callers = [call(session, n) for n in (1, 2)]
            await api.wait_until(lambda: api.counters.requests == 1 and not api.counters.in_flight)
            await turns(20)
            callers[0].cancel()
            assert (await callers[1]).result is StopResult.STOP_SENT
            assert [set(record.ids) for record in api.log] == [{1, 2}, {2}, {2}]

    run(main())


async def test_a_caller_cancelled_while_its_stop_is_under_way(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        with api.hold("TaskStop"):
            callers = [call(session, n) for n in (1, 2)]
            await api.wait_for_requests(1, "TaskStop")
            callers[0].cancel()
            await asyncio.wait([callers[0]])
        results = await answers(callers)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1].result is StopResult.STOP_SENT
    assert stopped(api) == {1, 2}


@pytest.mark.parametrize("count", range(5))
async def test_all_callers_cancelled_before_an_answer(api: ControlApiSimulator, count: int) -> None:
    api.add_tasks(range(5))
    async with open_session(api) as session:
        with api.hold("TaskStatus", number=1):
            callers = [call(session, n) for n in range(5)]
            await turns(count)
            for caller in callers:
                caller.cancel()
            results = await answers(callers)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        # The session goes on as if nothing had been.
        api.add_task(99)
        assert (await session.stop(2, 99)).result is StopResult.STOP_SENT
    assert stopped(api) == {99}


async def test_a_task_can_be_wanted_again_after_its_caller_was_cancelled(
    api: ControlApiSimulator,
) -> None:
    api.add_task(1)
    async with open_session(api) as session:
        with api.hold("TaskStatus", number=1, effect=True):
            first = call(session, 1)
            await api.wait_for_requests(1)
            first.cancel()
            assert (await session.stop(2, 1)).result is StopResult.STOP_SENT
        [result] = await answers([first])
    assert isinstance(result, asyncio.CancelledError)
    assert api.tasks[1].stop_requests == 1


async def test_a_caller_may_give_up_after_its_own_time(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        with api.hold("TaskStatus", number=1, effect=True):
            patient = call(session, 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.stop(2, 2), 0.001)
        assert (await patient).result is StopResult.STOP_SENT
    assert stopped(api) == {1}


# --- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("linger", [0, 60])
@pytest.mark.parametrize("busy", [False, True])
async def test_a_session_closed_with_callers_waiting(
    api: ControlApiSimulator, count: int, linger: float, busy: bool
) -> None:
    api.add_tasks([1, 2, 3])
    with api.hold("TaskStatus"):
        async with open_session(api, linger=linger) as session:
            if busy:
                await session.stopping(2, [3]).__aenter__()
                await api.wait_for_requests(1)
            callers = [call(session, n) for n in (1, 2, 1)]
            await turns(1 + count)
        assert all(caller.done() for caller in callers), "closing waits for them to be told"
        errors = await answers(callers)
    for task_id, error in zip([1, 2, 1], errors, strict=True):
        assert isinstance(error, StopIncompleteError)
        assert list(error.report) == [task_id]
        assert error.report[task_id].result is StopResult.NOT_SENT
        assert [type(cause) for cause in error.exceptions] == [RequestError]
        assert "closed" in str(error.exceptions[0])
        assert pickle.loads(pickle.dumps(error)).report == error.report
    assert not stopped(api)


async def test_a_session_closed_while_the_stop_is_under_way(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    with api.hold("TaskStop"):
        async with open_session(api) as session:
            callers = [call(session, n) for n in (1, 2)]
            await api.wait_for_requests(1, "TaskStop")
        errors = await answers(callers)
    assert [error.report[n].result for n, error in zip([1, 2], errors, strict=True)] == [
        StopResult.UNCONFIRMED
    ] * 2


async def test_a_session_left_by_an_error_tells_its_callers_too(api: ControlApiSimulator) -> None:
    api.add_task(1)
    callers = []

    async def leave() -> None:
        async with open_session(api) as session:
            callers.append(call(session, 1))
            await api.wait_for_requests(1)
            raise ZeroDivisionError

    with api.hold("TaskStatus"), pytest.raises(ZeroDivisionError):
        await leave()
    assert isinstance(callers[0].exception(), StopIncompleteError)


# --- any callers, any cancellations ---------------------------------------------------------------


def assert_answer(result: Any, task_id: int, project_id: int, status: str) -> None:
    """Check what a caller got for a task of project 2, project 9 being none."""
    if project_id == 9:
        assert isinstance(result, StopIncompleteError)
        assert list(result.report) == [task_id]
        return
    assert isinstance(result, StopOutcome), result
    assert (result.task_id, result.project_id) == (task_id, project_id)
    if project_id == 3 or status == "absent":
        assert result.result is StopResult.NOT_FOUND
    elif status == "Running":
        assert result.result is StopResult.STOP_SENT
    else:
        assert (result.result, result.status) == (StopResult.NOT_RUNNING, status)


@given(
    statuses=st.lists(st.sampled_from((*STATUSES, "Running", "Running", "absent")), max_size=12),
    wishes=st.lists(
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
    wishes: list[tuple[int, int, str]],
    chunk: int,
    at_once: int,
    faults: dict[int, Fault],
) -> None:
    async def main() -> None:
        api = ControlApiSimulator(own_thread=False)
        api.add_project(2)
        api.add_project(3)
        for task_id, status in enumerate(statuses):
            if status != "absent":
                api.add_task(task_id, status)
        witness = Witness(api, lambda record: faults.get(record.number))
        batching = {"chunk_size": chunk, "max_concurrency": at_once}
        async with api, open_session(api, **batching) as session:
            with api.hold("TaskStop"):
                callers = [call(session, task_id, project) for task_id, project, _ in wishes]
                await turns(1)
                cancel(callers, "before")
                if any(when != "before" for _, _, when in wishes):
                    await api.wait_for_requests(1)
                cancel(callers, "checked")
                early = {
                    task_id
                    for record in witness.requests
                    if "TaskStop" in record.methods
                    for task_id in record.ids
                }
            results = await answers(callers)

        assert_stops_were_due(witness.events)
        for (task_id, project_id, when), result in zip(wishes, results, strict=True):
            if when == "stays":
                status = statuses[task_id] if task_id < len(statuses) else "absent"
                assert_answer(result, task_id, project_id, status)
            else:
                assert isinstance(result, asyncio.CancelledError)
        asked = {task_id for task_id, _, when in wishes if when != "before"}
        wanted = {n for n, project_id, when in wishes if when == "stays" and project_id == 2}
        running = {n for n, status in enumerate(statuses) if status == "Running"}
        assert stopped(api) >= wanted & running
        # What nobody wants any more is only stopped where the stop had left already.
        assert stopped(api) <= wanted | early
        assert {task_id for record in witness.requests for task_id in record.ids} <= asked

    def cancel(callers: list[asyncio.Task[StopOutcome]], moment: str) -> None:
        for caller, (_, _, when) in zip(callers, wishes, strict=True):
            if when == moment:
                caller.cancel()

    run(main())


async def test_who_gives_up_when_the_session_closes_is_told_nothing_else(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(2))
    async with open_session(api, linger=1000) as session:
        callers = [call(session, 0), call(session, 1)]
        await turns(2)
        callers[0].cancel()
    quitter, other = await answers(callers)
    assert isinstance(quitter, asyncio.CancelledError)
    assert isinstance(other, StopIncompleteError)
    assert costs(api) == (0, 0)


async def test_when_all_tasks_are_cancelled_no_caller_is_left_waiting(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(3))
    async with open_session(api) as session:
        before = asyncio.all_tasks()
        with api.hold("TaskStatus"):
            callers = [call(session, n) for n in range(3)]
            await api.wait_for_requests(1)
            # As asyncio.run does at its end; the callers' own tasks are spared here.
            for task in asyncio.all_tasks() - before - set(callers):
                if "_serve" in repr(task.get_coro()):
                    task.cancel()
            told = await answers(callers)
    assert [type(each) for each in told] == [asyncio.CancelledError] * 3
