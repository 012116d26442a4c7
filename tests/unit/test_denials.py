"""Tasks that do not exist are found with few requests, however the server names them."""

from __future__ import annotations

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import MethodError, RequestError, RetryPolicy, StopResult, TasksDeniedError
from tests.support.drive import Drive
from tests.support.oracle import STATUS, STOP, ModelServer

NAMES = ["bad", "all", "none"]


def server_with(task_ids: set[int]) -> ModelServer:
    server = ModelServer()
    for task_id in task_ids:
        server.add(2, task_id, "Completed")
    return server


@pytest.mark.parametrize("denial", NAMES)
@given(
    size=st.integers(1, 60),
    bad=st.sets(st.integers(0, 59)),
    chunk=st.integers(1, 20),
    slots=st.integers(1, 4),
)
def test_bad_tasks_are_found_and_the_others_go_on(
    denial: str, size: int, bad: set[int], chunk: int, slots: int
) -> None:
    ids = list(range(size))
    server = server_with(set(ids) - bad)
    drive = Drive(ids, chunk=chunk, server=server, denial=denial, slots=slots).run()
    for task_id, outcome in drive.outcomes.items():
        missing = StopResult.NOT_FOUND if task_id in bad else StopResult.NOT_RUNNING
        assert (task_id, outcome.result) == (task_id, missing)
        assert (outcome.error or "").startswith("access denied" * (task_id in bad))
    assert len(drive.outcomes) == size
    assert drive.plan.errors == []
    assert max(request.size for request in drive.requests) <= chunk
    # One request an id at most, what it takes to ask in chunks, and what it takes to be sure.
    assert len(drive.requests) <= size + size / chunk + 12


@pytest.mark.parametrize(
    ("denial", "bad", "known", "most"),
    [
        # A list that leaves out a task names only bad ones: one more request for the others.
        ("bad", 1, True, 2),
        ("bad", 500, True, 2),
        # All of a chunk: a known task that goes along tells.
        ("bad", 1000, True, 4),
        # Nothing tells: groups, and in the end one request an id.
        ("bad", 1000, False, 1000 + 12),
        ("all", 1000, True, 1000 + 12),
        ("none", 1000, False, 1000 + 12),
        # A few bad tasks among many cost some requests each.
        ("all", 1, True, 3 * log2(1000) + 4),
        ("none", 3, True, 3 * 3 * log2(1000) + 4),
    ],
)
def test_how_many_requests_it_takes_to_find_bad_tasks(
    denial: str, bad: int, known: bool, most: float
) -> None:
    ids = list(range(1000))
    server = server_with({*ids[bad:], *range(1000, 1000 + known)})
    # The known one is in a chunk of its own, and is asked about first.
    drive = Drive(
        [*range(1000, 1000 + known)], chunk=1000, server=server, denial=denial, streaming=True
    )
    if known:
        drive.sleep()
        drive.step()
        drive.step()
    drive.plan.add_tasks(2, ids, drive.now)
    drive.plan.close_input(drive.now)
    drive.run()
    assert drive.results(ids[:bad]) == {StopResult.NOT_FOUND}
    assert drive.results(ids[bad:]) <= {StopResult.NOT_RUNNING}
    assert len(drive.requests) - known <= most


@pytest.mark.parametrize("denial", NAMES)
def test_a_denied_stop_says_which_tasks_went_away(denial: str) -> None:
    server = ModelServer()
    for task_id in range(8):
        server.add(2, task_id)
    drive = Drive(range(8), server=server, denial=denial)
    drive.step()
    drive.step()
    for task_id in (2, 5):
        del server.tasks[task_id]
    drive.run()
    assert drive.results([2, 5]) == {StopResult.NOT_FOUND}
    assert {drive.outcomes[n].status for n in (2, 5)} == {"Running"}  # when last seen
    assert drive.results([0, 1, 3, 4, 6, 7]) == {StopResult.STOP_SENT}
    assert all(server.tasks[n].stop_requests == 1 for n in server.tasks)


def test_denials_are_answers_and_cost_no_attempts() -> None:
    server = server_with(set())
    failures = iter([None, None, None, RequestError("cut"), RequestError("cut")])
    policy = RetryPolicy(attempts=3)
    drive = Drive(range(4), server=server, denial="none", policy=policy)
    drive.fault = lambda _: next(failures, None)
    drive.run()
    assert drive.results() == {StopResult.NOT_FOUND}
    assert drive.plan.stats(drive.now).retries == 2


@pytest.mark.parametrize(
    "error",
    [TasksDeniedError(STATUS, "access denied to tasks"), MethodError(STATUS, "license expired")],
)
def test_a_refused_listing_ends_with_an_error_and_no_tasks(error: MethodError) -> None:
    drive = Drive(streaming=True, fault=lambda _: error)
    drive.plan.add_all_active(2)
    drive.plan.close_input(0.0)
    drive.run()
    assert drive.outcomes == {}
    assert drive.plan.errors == [error]


def test_without_the_check_too_bad_tasks_are_singled_out() -> None:
    drive = Drive(
        range(9), server=server_with({1, 4}), denial="all", check=False, follow_restarts=False
    ).run()
    assert drive.results([n for n in range(9) if n not in {1, 4}]) == {StopResult.NOT_FOUND}
    assert drive.results([1, 4]) == {StopResult.UNAVAILABLE}
    assert {request.method for request in drive.requests} == {STOP}
