"""Single stops, asked for at about the same time: they share requests, and nothing else."""

from __future__ import annotations

import asyncio
import pickle
from math import ceil
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ctrlapi_async import (
    ControlSession,
    ProjectNotFoundError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopResult,
)
from ctrlapi_async._bulk.batcher import Batcher
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus
from tests.support.simulated import (
    STATUS,
    STOP,
    asked,
    costs,
    open_session,
    simulated,
    stopped,
    turns,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrlapi_async.simulator import Fault

SENT = StopResult.STOP_SENT


def caller(session: ControlSession, task_id: int, project_id: int = 2) -> asyncio.Task[StopOutcome]:
    return asyncio.create_task(session.stop(project_id, task_id))


async def answers(callers: Iterable[asyncio.Task[StopOutcome]]) -> list[Any]:
    """Return what came of some callers: an outcome, or an error."""
    return list(await asyncio.gather(*callers, return_exceptions=True))


def the_error_of(answer: Any, task_id: int) -> StopIncompleteError:
    """Return the error of a caller, which must tell of its own task alone."""
    assert isinstance(answer, StopIncompleteError)
    assert list(answer.report) == [task_id]
    return answer


# --- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [0, 4321, 10_000])
@simulated()
async def test_10_000_callers_cost_what_a_run_of_10_000_tasks_costs(
    api: ControlApiSimulator, running: int
) -> None:
    api.mixed_tasks(10_000, running=running / 10_000)
    was = {task_id: task.status for task_id, task in api.tasks.items()}
    async with open_session(api, 500) as session:
        outcomes = await asyncio.gather(*(session.stop(2, n) for n in was))
    assert costs(api) == (20, ceil(running / 500))
    assert [outcome.task_id for outcome in outcomes] == list(was)
    for outcome in outcomes:
        runs = was[outcome.task_id] == "Running"
        assert outcome.result is (SENT if runs else StopResult.NOT_RUNNING)
        assert outcome.status == was[outcome.task_id]
    assert stopped(api) == {task_id for task_id, status in was.items() if status == "Running"}


@simulated()
async def test_one_caller_gets_what_stop_running_would_report(api: ControlApiSimulator) -> None:
    api.documented_world()
    api.add_task(70, "Stalled", restarts=["Running"])
    async with open_session(api) as session:
        assert await session.stop(2, 66) == StopOutcome(66, 2, SENT, "Running")
        assert (await session.stop(2, 66)).result is StopResult.NOT_RUNNING
        assert (await session.stop(2, 68)).result is StopResult.NOT_FOUND
        restarted = await session.stop(2, 70)
        assert (restarted.task_id, restarted.result) == (70, SENT)
        assert restarted.restarted_as == api.tasks[70].restarted_as is not None


@simulated()
async def test_callers_share_requests_whatever_their_projects_and_ask_once_for_a_task(
    api: ControlApiSimulator,
) -> None:
    for n in range(100):
        api.add_task(n, project_id=n)
    wanted = [*((n, n) for n in range(100)), (2, 5), (5, 5), (3, 5), (2, 2)]
    async with open_session(api) as session:
        outcomes = await asyncio.gather(*(session.stop(*pair) for pair in wanted))
        assert [(outcome.project_id, outcome.task_id) for outcome in outcomes] == wanted
        assert [outcome.result for outcome in outcomes] == [
            SENT if project_id == task_id else StopResult.NOT_FOUND
            for project_id, task_id in wanted
        ]
    assert stopped(api) == set(range(100))
    assert api.counters.ids[STOP] == 100
    assert costs(api)[1] == 1


# --- when a batch leaves --------------------------------------------------------------------------


@simulated()
async def test_callers_of_one_turn_go_together_and_later_ones_do_not_wait(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(6))
    async with open_session(api) as session:
        with api.hold(STATUS, number=1):
            first = [caller(session, n) for n in (0, 1, 2)]
            await api.wait_for_requests(1)
            second = await answers(caller(session, n) for n in (3, 4, 5))
            assert [outcome.task_id for outcome in second] == [3, 4, 5]
            assert not any(each.done() for each in first)
        await answers(first)
    assert asked(api, STATUS) == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("linger", "batches"), [(15.0, [2] * 10), (35.0, [4] * 5), (600.0, [20])], ids=str
)
@simulated()
async def test_a_batch_waits_for_callers_as_long_as_it_may_linger(
    api: ControlApiSimulator, linger: float, batches: list[int]
) -> None:
    api.add_tasks(range(20))
    async with open_session(api, linger=linger) as session:
        callers = []
        for n in range(20):
            callers.append(caller(session, n))
            await asyncio.sleep(10)
        await answers(callers)
    assert list(map(len, asked(api, STATUS))) == batches


# --- each caller's own outcome or error -----------------------------------------------------------


@simulated()
async def test_each_caller_gets_the_error_of_its_own_task(api: ControlApiSimulator) -> None:
    api.add_task(1)
    wanted: list[Any] = [(2, 1), (8, 80), (2, 44), (9, 90), (8, 81), (2, -1), (2, True), ("2", 1)]
    async with open_session(api) as session:
        results = await answers([caller(session, n, project) for project, n in wanted])
    good, _, absent, *_ = results
    assert good.result is SENT
    assert absent.result is StopResult.NOT_FOUND
    assert list(map(type, results[5:])) == [ValueError, TypeError, TypeError]
    for place in (1, 3, 4):
        project_id, task_id = wanted[place]
        words = f"project {project_id} does not exist"
        error = the_error_of(results[place], task_id)
        assert error.report[task_id] == StopOutcome(
            task_id, project_id, StopResult.NOT_SENT, None, words
        )
        [cause] = error.exceptions
        assert isinstance(cause, ProjectNotFoundError)
        assert cause.message == words


@pytest.mark.parametrize(
    ("faults", "result"),
    [
        ({STATUS: HttpStatus(401)}, StopResult.NOT_SENT),
        ({STOP: HttpStatus(429)}, StopResult.NOT_SENT),
        ({STOP: HttpStatus(503)}, StopResult.UNCONFIRMED),
    ],
    ids=str,
)
@simulated()
async def test_callers_without_an_answer_get_errors_of_their_own(
    api: ControlApiSimulator, faults: dict[str, Fault], result: StopResult
) -> None:
    api.add_tasks([1, 2])
    for method, fault in faults.items():
        api.fault(fault, method=method)
    async with open_session(api) as session:
        errors = await answers([caller(session, n) for n in (1, 2, 2)])
    assert len(set(map(id, errors))) == 3
    for task_id, error in zip([1, 2, 2], errors, strict=True):
        again = pickle.loads(pickle.dumps(error))
        for one in (error, again):
            assert the_error_of(one, task_id).report[task_id].result is result
            assert f"task {task_id} has no answer: " in str(one)
            assert one.exceptions
        assert again.report == error.report
        assert repr(again.exceptions) == repr(error.exceptions)


# --- cancelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("wanted", [(1, 2, 3), range(1, 6001)], ids=len)
@pytest.mark.parametrize("left", [None, STATUS, STOP])
@simulated()
async def test_a_task_is_left_alone_when_its_last_caller_is_cancelled_before_the_stop(
    api: ControlApiSimulator, wanted: Iterable[int], left: str | None, *, also: bool
) -> None:
    """A stop that left is not taken back, and no other caller is touched."""
    api.add_tasks(wanted)
    async with open_session(api, 6000) as session:
        with api.hold(left, effect=left is STATUS):
            callers = [caller(session, n) for n in (*wanted, *[2] * also)]
            await (api.wait_for_requests(1, left) if left else turns(1))
            callers[1].cancel()
            await asyncio.wait([callers[1]])
        results = await answers(callers)
    assert isinstance(results.pop(1), asyncio.CancelledError)
    assert {outcome.result for outcome in results} == {SENT}
    assert stopped(api) == {n for n in wanted if n != 2 or also or left is STOP}
    assert api.counters.ids[STOP] == len(stopped(api))
    assert (2 in asked(api, STATUS)[0]) == (also or left is not None)


@simulated()
async def test_a_caller_cancelled_while_its_check_waits_to_be_repeated(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2])
    api.fault(HttpStatus(500), number=1)
    async with open_session(api, retry=RetryPolicy(wait_initial=60, wait_max=60)) as session:
        callers = [caller(session, n) for n in (1, 2)]
        await api.wait_until(lambda: api.counters.requests == 1 and not api.counters.in_flight)
        await turns(20)
        callers[0].cancel()
        assert (await callers[1]).result is SENT
    assert [set(record.ids) for record in api.log] == [{1, 2}, {2}, {2}]


@simulated()
async def test_a_task_can_be_wanted_again_after_its_caller_gave_up(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        with api.hold(STATUS, number=1, effect=True):
            patient = caller(session, 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.stop(2, 2), 0.5)
            assert (await session.stop(2, 2)).result is SENT
        assert (await patient).result is SENT
    assert {n: task.stop_requests for n, task in api.tasks.items()} == {1: 1, 2: 1}


# --- closing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("linger", [0, 60])
@simulated()
async def test_a_session_that_closes_answers_whoever_waits(
    api: ControlApiSimulator, count: int, linger: float
) -> None:
    api.add_tasks([1, 2, 3])
    with api.hold(STATUS):
        async with open_session(api, linger=linger) as session:
            callers = [caller(session, n) for n in (1, 2, 1)]
            gone = caller(session, 3)
            call = asyncio.create_task(session.call(STATUS, {"project_id": 2, "task_ids": 1}))
            await turns(count)
            gone.cancel()
        await turns(2)  # their own tasks' last ones
        assert all(each.done() for each in callers)
        errors = await answers(callers)
    assert gone.cancelled()
    assert isinstance(call.exception(), RequestError)
    for task_id, error in zip([1, 2, 1], errors, strict=True):
        assert the_error_of(error, task_id).report[task_id].result is StopResult.NOT_SENT
        assert [type(cause) for cause in error.exceptions] == [RequestError]
        assert "closed" in str(error)
        assert pickle.loads(pickle.dumps(error)).report == error.report
    assert not stopped(api)


def test_nobody_waits_for_a_batch_that_was_interrupted() -> None:
    def interrupt(_: object) -> NoReturn:
        raise KeyboardInterrupt

    async def main() -> asyncio.Task[StopOutcome]:
        return asyncio.create_task(Batcher(interrupt, 0).stop(2, 1))

    with asyncio.Runner() as runner:
        waiting = runner.run(main())
        with pytest.raises(KeyboardInterrupt):
            runner.run(asyncio.sleep(1))
        runner.run(asyncio.sleep(0))
        assert waiting.cancelled()
