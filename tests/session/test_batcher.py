"""Single stops, asked for at about the same time: they share requests, and nothing else."""

from __future__ import annotations

import asyncio
import pickle
from math import ceil
from typing import TYPE_CHECKING, Any, NoReturn

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
from ctrlapi_async._bulk.batcher import Batcher
from ctrlapi_async.simulator import STATUSES, ControlApiSimulator, Drop, HttpStatus
from tests.support.clock import run
from tests.support.simulated import (
    STATUS,
    STOP,
    asked,
    costs,
    open_session,
    simulated,
    simulator,
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
async def test_a_task_wanted_by_many_is_asked_for_once(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        outcomes = await asyncio.gather(*(session.stop(2, n) for n in [1, 2, 1, 1]))
    assert [(outcome.task_id, outcome.result) for outcome in outcomes] == [
        (n, SENT) for n in [1, 2, 1, 1]
    ]
    assert api.counters.ids == {STATUS: 2, STOP: 2}


@simulated()
async def test_callers_of_many_projects_share_requests(api: ControlApiSimulator) -> None:
    for n in range(100):
        api.add_task(n, project_id=n)
    async with open_session(api) as session:
        outcomes = await asyncio.gather(*(session.stop(n, n) for n in range(100)))
    assert [(each.project_id, each.result) for each in outcomes] == [(n, SENT) for n in range(100)]
    assert costs(api) == (1, 1)


@simulated()
async def test_one_id_under_two_projects(api: ControlApiSimulator) -> None:
    api.add_tasks([5, 6], project_id=2)
    api.add_tasks([7], project_id=3)
    wanted = [(2, 5), (3, 5), (2, 5), (2, 6), (3, 7), (3, 6)]
    async with open_session(api) as session:
        outcomes = await asyncio.gather(*(session.stop(*pair) for pair in wanted))
    assert [(outcome.project_id, outcome.task_id) for outcome in outcomes] == wanted
    assert [outcome.result for outcome in outcomes] == [
        StopResult.NOT_FOUND if pair in {(3, 5), (3, 6)} else SENT for pair in wanted
    ]
    assert stopped(api) == {5, 6, 7}
    assert api.counters.ids[STOP] == 3


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


@pytest.mark.parametrize(
    ("project_id", "task_id", "kind"),
    [(2, -1, ValueError), (2, 2**63, ValueError), (2, True, TypeError), ("2", 1, TypeError)],
)
@simulated()
async def test_a_bad_argument_touches_no_other_caller(
    api: ControlApiSimulator, project_id: Any, task_id: Any, kind: type[Exception]
) -> None:
    api.add_task(1)
    async with open_session(api) as session:
        good, bad = await answers([caller(session, 1), caller(session, task_id, project_id)])
    assert good.result is SENT
    assert type(bad) is kind
    assert api.counters.ids == {STATUS: 1, STOP: 1}


@simulated()
async def test_each_caller_gets_the_error_of_its_own_task(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    api.add_task(3, "Stalled")
    wanted = [(2, 1), (8, 80), (2, 3), (9, 90), (2, 44), (2, 2), (8, 81)]
    async with open_session(api) as session:
        results = await answers([caller(session, n, project_id) for project_id, n in wanted])
    good, eight, stalled, nine, absent, good_too, eight_too = results
    assert good.result is good_too.result is SENT
    assert (stalled.result, stalled.status) == (StopResult.NOT_RUNNING, "Stalled")
    assert absent.result is StopResult.NOT_FOUND
    for error, task_id, project_id in ((eight, 80, 8), (nine, 90, 9), (eight_too, 81, 8)):
        words = f"project {project_id} does not exist"
        assert the_error_of(error, task_id).report[task_id] == StopOutcome(
            task_id, project_id, StopResult.NOT_SENT, None, words
        )
        [cause] = error.exceptions
        assert isinstance(cause, ProjectNotFoundError)
        assert cause.message == words


@pytest.mark.parametrize(
    ("faults", "result"),
    [
        ({STATUS: Drop()}, StopResult.NOT_SENT),
        ({STATUS: HttpStatus(401)}, StopResult.NOT_SENT),
        ({STOP: HttpStatus(429)}, StopResult.NOT_SENT),
        ({STOP: HttpStatus(503)}, StopResult.UNCONFIRMED),
        ({STOP: Drop(effect=True), "later": Drop()}, StopResult.UNCONFIRMED),
    ],
    ids=str,
)
@simulated()
async def test_callers_without_an_answer_get_errors_of_their_own(
    api: ControlApiSimulator, faults: dict[str, Fault], result: StopResult
) -> None:
    api.add_tasks([1, 2])
    if later := faults.get("later"):
        api.fault(later, method=STATUS, number=2, every=True)
    for method in (STATUS, STOP):
        if method in faults:
            api.fault(faults[method], method=method)
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


@simulated()
async def test_the_task_of_a_caller_cancelled_before_its_batch_leaves_is_in_no_request(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2, 3])
    async with open_session(api) as session:
        callers = [caller(session, n) for n in (1, 2, 3)]
        await turns(1)
        callers[1].cancel()
        results = await answers(callers)
    assert isinstance(results[1], asyncio.CancelledError)
    assert stopped(api) == {1, 3}
    assert asked(api, STATUS) == asked(api, STOP) == [[1, 3]]


@pytest.mark.parametrize("count", range(8))
@simulated()
async def test_a_caller_cancelled_in_any_turn_touches_no_other(
    api: ControlApiSimulator, count: int
) -> None:
    api.add_tasks([1, 2, 3])
    async with open_session(api) as session:
        with api.hold(STATUS, effect=True):
            callers = [caller(session, n) for n in (1, 2, 3)]
            await turns(count)
            callers[1].cancel()
            await asyncio.wait([callers[1]])
        results = await answers(callers)
    assert isinstance(results[1], asyncio.CancelledError)
    assert [results[n].result for n in (0, 2)] == [SENT] * 2
    assert stopped(api) == {1, 3}


@pytest.mark.parametrize("also", [False, True])
@pytest.mark.parametrize("wanted", [(1, 2, 3), range(1, 6001)], ids=len)
@simulated()
async def test_a_task_is_left_alone_when_its_last_caller_is_cancelled_before_the_stop(
    api: ControlApiSimulator, wanted: Iterable[int], also: bool
) -> None:
    api.add_tasks(wanted)
    async with open_session(api) as session:
        with api.hold(STATUS, effect=True):
            callers = [caller(session, n) for n in (*wanted, *[2] * also)]
            await api.wait_for_requests(1)
            callers[1].cancel()
            await asyncio.wait([callers[1]])
        results = await answers(callers)
    assert isinstance(results.pop(1), asyncio.CancelledError)
    assert {outcome.result for outcome in results} == {SENT}
    assert stopped(api) == {n for n in wanted if n != 2 or also}
    assert api.counters.ids[STOP] == len(stopped(api))


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
async def test_a_stop_that_left_is_not_taken_back(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        with api.hold(STOP):
            callers = [caller(session, n) for n in (1, 2)]
            await api.wait_for_requests(1, STOP)
            callers[0].cancel()
            await asyncio.wait([callers[0]])
        results = await answers(callers)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1].result is SENT
    assert stopped(api) == {1, 2}


@pytest.mark.parametrize("count", range(5))
@simulated()
async def test_a_session_goes_on_when_all_callers_are_cancelled(
    api: ControlApiSimulator, count: int
) -> None:
    api.add_tasks([*range(5), 99])
    async with open_session(api) as session:
        with api.hold(STATUS, number=1):
            callers = [caller(session, n) for n in range(5)]
            await turns(count)
            for each in callers:
                each.cancel()
            results = await answers(callers)
        assert {type(result) for result in results} == {asyncio.CancelledError}
        assert (await session.stop(2, 99)).result is SENT
    assert stopped(api) == {99}


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


@pytest.mark.parametrize("count", range(8))
@pytest.mark.parametrize("linger", [0, 60])
@pytest.mark.parametrize("busy", [False, True])
@simulated()
async def test_a_session_that_closes_answers_whoever_waits(
    api: ControlApiSimulator, count: int, linger: float, busy: bool
) -> None:
    api.add_tasks([1, 2, 3])
    with api.hold(STATUS):
        async with open_session(api, linger=linger) as session:
            if busy:
                await session.stopping(2, [3]).__aenter__()
                await api.wait_for_requests(1)
            callers = [caller(session, n) for n in (1, 2, 1)]
            await turns(1 + count)
        assert all(each.done() for each in callers)
        errors = await answers(callers)
    for task_id, error in zip([1, 2, 1], errors, strict=True):
        assert the_error_of(error, task_id).report[task_id].result is StopResult.NOT_SENT
        assert [type(cause) for cause in error.exceptions] == [RequestError]
        assert "closed" in str(error)
        assert pickle.loads(pickle.dumps(error)).report == error.report
    assert not stopped(api)


@simulated()
async def test_a_session_that_closes_while_stops_are_under_way(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    with api.hold(STOP):
        async with open_session(api) as session:
            callers = [caller(session, n) for n in (1, 2)]
            await api.wait_for_requests(1, STOP)
        errors = await answers(callers)
    assert [the_error_of(error, n).report[n].result for n, error in enumerate(errors, 1)] == [
        StopResult.UNCONFIRMED
    ] * 2


@simulated()
async def test_a_session_left_by_an_error_answers_whoever_waits(api: ControlApiSimulator) -> None:
    api.add_task(1)
    callers = []

    async def leave() -> None:
        async with open_session(api) as session:
            callers.append(caller(session, 1))
            await api.wait_for_requests(1)
            raise ZeroDivisionError

    with api.hold(STATUS), pytest.raises(ZeroDivisionError):
        await leave()
    the_error_of(callers[0].exception(), 1)


@simulated()
async def test_a_caller_cancelled_before_the_session_closes_is_cancelled(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(2))
    async with open_session(api, linger=1000) as session:
        callers = [caller(session, 0), caller(session, 1)]
        await turns(2)
        callers[0].cancel()
    cancelled, other = await answers(callers)
    assert isinstance(cancelled, asyncio.CancelledError)
    the_error_of(other, 1)
    assert costs(api) == (0, 0)


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


# --- any callers, any cancellations ---------------------------------------------------------------


def check_answer(answer: Any, task_id: int, project_id: int, status: str) -> None:
    """Check what a caller got for a task of project 2; there is no project 9."""
    if project_id == 9:
        the_error_of(answer, task_id)
        return
    assert isinstance(answer, StopOutcome), answer
    assert (answer.task_id, answer.project_id) == (task_id, project_id)
    if project_id == 3 or status == "absent":
        assert answer.result is StopResult.NOT_FOUND
    elif status == "Running":
        assert answer.result is SENT
    else:
        assert (answer.result, answer.status) == (StopResult.NOT_RUNNING, status)


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
        api = simulator()
        for project_id in (2, 3):
            api.add_project(project_id)
        for task_id, status in present.items():
            api.add_task(task_id, status)
        api.fault_when = lambda record: faults.get(record.number)
        async with api, open_session(api, chunk, at_once) as session:
            with api.hold(STOP):
                callers = [caller(session, n, project_id) for n, project_id, _ in wishes]
                await turns(1)
                cancel(callers, "before")
                if requestable:
                    await api.wait_for_requests(1)
                cancel(callers, "checked")
                early = {n for ids in asked(api, STOP) for n in ids}
            results = await answers(callers)

        for (task_id, project_id, when), result in zip(wishes, results, strict=True):
            if when == "stays":
                check_answer(result, task_id, project_id, present.get(task_id, "absent"))
            else:
                assert isinstance(result, asyncio.CancelledError)
        assert stopped(api) >= wanted & running
        # What nobody wants any more is only stopped where the stop had left already.
        assert stopped(api) <= (wanted | early) & running
        assert {task_id for record in api.log for task_id in record.ids} <= requestable
        assert all(task.stop_requests <= 1 for task in api.tasks.values())

    def cancel(callers: list[asyncio.Task[StopOutcome]], moment: str) -> None:
        for each, (_, _, when) in zip(callers, wishes, strict=True):
            if when == moment:
                each.cancel()

    present = {n: status for n, status in enumerate(statuses) if status != "absent"}
    running = {n for n, status in present.items() if status == "Running"}
    requestable = {n for n, _, when in wishes if when != "before"}
    wanted = {n for n, project_id, when in wishes if when == "stays" and project_id == 2}
    run(main())
