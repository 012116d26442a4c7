"""Many projects in one run: they share requests, and what is wrong with one stays with it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import (
    ALL_ACTIVE,
    MethodError,
    ProjectNotFoundError,
    StopIncompleteError,
    StopReport,
    StopResult,
    UserUnavailableError,
)
from ctrlapi_async.simulator import (
    ControlApiSimulator,
    Fault,
    Rewrite,
)
from tests.support.simulated import (
    STATUS,
    STOP,
    arriving,
    asked,
    costs,
    ended,
    open_session,
    simulated,
    stopped,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.simulator import RequestRecord

SENT = StopResult.STOP_SENT
NOT_SENT = StopResult.NOT_SENT
OTHER_USER = 7
NOWHERE = 999
"""A project that is not there."""


def answer_for(
    project_id: int, method: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]
) -> Callable[[RequestRecord], Fault | None]:
    """Change the entries of one project in replies to a method; None leaves an entry out."""

    def fault(record: RequestRecord) -> Fault | None:
        calls = record.json["methods"]
        own = {call["id"] for call in calls if call["params"]["project_id"] == project_id}
        if not own or method not in record.methods:
            return None

        def changed(document: Any) -> Any:
            entries = [change(one) if one["id"] in own else one for one in document["reply"]]
            return {"reply": [entry for entry in entries if entry is not None]}

        return Rewrite(changed)

    return fault


# --- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_projects", [False, True])
@simulated()
async def test_1000_projects_of_2_tasks_cost_4_and_2_requests(
    api: ControlApiSimulator, *, whole_projects: bool
) -> None:
    targets = {project: [2 * project, 2 * project + 1] for project in range(1, 1001)}
    running = set()
    for project_id, task_ids in targets.items():
        for task_id in task_ids:
            runs = project_id <= 500 if whole_projects else task_id % 2 == 0
            api.add_task(task_id, "Running" if runs else "Completed", project_id=project_id)
            running |= {task_id} if runs else set()
    async with open_session(api, 500) as session:
        report = await session.stop_running_across(targets)
    assert costs(api) == (4, 2)
    assert stopped(api) == running == set(report.ids(SENT))
    assert list(report) == [task_id for ids in targets.values() for task_id in ids]
    assert all(report[n].project_id == project for project, ids in targets.items() for n in ids)


@simulated()
async def test_a_request_holds_a_bounded_number_of_calls(api: ControlApiSimulator) -> None:
    for project_id in range(2100):
        api.add_task(project_id, project_id=project_id)
    async with open_session(api, 5000) as session:
        report = await session.stop_running_across({n: n for n in range(2100)})
    assert report.counts[SENT] == 2100
    assert max(len(record.calls) for record in api.log) <= 1000
    assert costs(api) == (3, 3)


@simulated()
async def test_small_and_empty_targets(api: ControlApiSimulator) -> None:
    api.mixed_tasks(50)
    api.add_tasks([100, 101], project_id=3)
    async with open_session(api, 8) as session:
        empty: tuple[dict[int, Any], ...] = ({}, {2: []}, {2: iter(()), 3: ()})
        for targets in empty:
            assert await session.stop_running_across(targets) == StopReport.of([])
        assert api.counters.requests == 0
        one = await session.stop_running(2, range(1, 51), dry_run=True)
        other = await session.stop_running_across({2: range(1, 51)}, dry_run=True)
        assert one == other
        assert one.stats.status_calls == other.stats.status_calls == 7
        report = await session.stop_running_across({3: 101, 2: iter([2, 1, 2, 2])}, dry_run=True)
        assert list(report) == [101, 2, 1]


# --- what is refused before the first call --------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ValueError, [{2: [1, 2], 3: [4, 2]}, {2: iter(range(30_000)), 3: iter([29_999])}]),
        (ValueError, [{2: 1, 3: 1}, {2: [1], 3: [-1]}, {2: [1], -1: [2]}, {2: [1], 3: [2**63]}]),
        (TypeError, [{2: [1], 3: bad} for bad in (["2"], "2", True, None, {4: 5})]),
        (TypeError, [{2: [1], True: [2]}, {"2": [1]}, {2: [1], 3: arriving([1])}]),
        (TypeError, [[(2, [1])], None]),
    ],
)
@simulated()
async def test_what_cannot_be_meant_is_refused_before_any_call(
    api: ControlApiSimulator, kind: type[Exception], values: list[Any]
) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        for targets in values:
            with pytest.raises(kind) as caught:
                await session.stop_running_across(targets)
            assert not isinstance(caught.value, StopIncompleteError)
            if targets == {2: [1, 2], 3: [4, 2]}:
                for number in ("task 2", "2", "3"):
                    assert number in str(caught.value)
    assert api.counters.requests == 0


# --- one project's error is that project's --------------------------------------------------------


def five_projects(api: ControlApiSimulator, *, without: int | None = None) -> dict[int, list[int]]:
    """Add projects 1 to 5 of four Running tasks each, two projects and a half to a request."""
    targets = {project: list(range(project * 10, project * 10 + 4)) for project in range(1, 6)}
    for project_id, task_ids in targets.items():
        if project_id != without:
            api.add_tasks(task_ids, project_id=project_id)
    return targets


BAD_PROJECTS: dict[str, tuple[str | None, str, type[MethodError]]] = {
    # What is wrong with project 3: the method that says so, or another reason -> the words.
    "missing": (None, "project 3 does not exist", ProjectNotFoundError),
    "another user's": (None, "user 1 is unavailable", UserUnavailableError),
    **{
        f"{words}, says {method}": (method, words, kind)
        for method in (STATUS, STOP)
        for words, kind in (
            ("project 3 does not exist", ProjectNotFoundError),
            ("user 1 is unavailable", UserUnavailableError),
        )
    },
}


@pytest.mark.parametrize("chunk", [1, 3, 10, 100])
@pytest.mark.parametrize("in_reply", [False, True])
@pytest.mark.parametrize("bad", BAD_PROJECTS)
@simulated()
async def test_a_bad_project_ends_its_own_tasks_only(
    api: ControlApiSimulator, bad: str, chunk: int, *, in_reply: bool
) -> None:
    method, words, kind = BAD_PROJECTS[bad]
    api.user_error_in_reply = in_reply
    targets = five_projects(api, without=3)
    if bad != "missing":
        api.add_tasks(targets[3], project_id=3, user_id=1 if method else OTHER_USER)
    if method:
        refusal = {"method": method, "error": words}
        api.fault_when = answer_for(3, method, lambda entry: refusal | {"id": entry["id"]})
    async with open_session(api, chunk) as session:
        report, error = await ended(session.stop_running_across(targets))
    others = [n for project, ids in targets.items() if project != 3 for n in ids]
    assert report.ids(SENT) == others
    assert stopped(api) >= set(others)
    assert report.ids(NOT_SENT) == targets[3]
    assert {report[task_id].error for task_id in targets[3]} == {words}
    assert list(report) == [n for ids in targets.values() for n in ids]
    assert error is not None
    assert [type(cause) for cause in error.exceptions] == [kind]


@simulated()
async def test_no_call_is_spent_on_a_project_that_is_known_to_be_missing(
    api: ControlApiSimulator,
) -> None:
    targets = {2: range(100), NOWHERE: range(100, 200), 3: range(200, 300)}
    api.add_tasks(targets[2], project_id=2)
    api.add_tasks(targets[3], project_id=3)
    async with open_session(api, 10, 1) as session:
        report, _ = await ended(session.stop_running_across(targets))
    assert report.ids(NOT_SENT) == list(targets[NOWHERE])
    assert costs(api) == (21, 20)


@pytest.mark.parametrize("names", ["bad", "all", "none"])
@pytest.mark.parametrize("chunk", [3, 10, 100])
@simulated(echo_id=False)
async def test_ids_that_are_not_of_their_project(
    api: ControlApiSimulator, names: Any, chunk: int
) -> None:
    """Entries without ids of their calls are told apart by their order."""
    api.denied_names = names
    targets = five_projects(api)
    targets[2].append(33)  # task of project 3
    targets[3].remove(33)
    targets[4][1:1] = [404, 405]  # nobody's
    for task_id in targets[5]:
        api.tasks[task_id].status = "Stalled"
    async with open_session(api, chunk) as session:
        report = await session.stop_running_across(targets)
    assert report.ids(StopResult.NOT_FOUND) == [33, 404, 405]
    assert report[33].project_id == 2
    assert report.ids(StopResult.NOT_RUNNING) == targets[5]
    assert stopped(api) == set(report) - {33, 404, 405, *targets[5]} == set(report.ids(SENT))
    assert list(report) == [n for ids in targets.values() for n in ids]


@pytest.mark.parametrize("error", [None, "the disk is full"])
@pytest.mark.parametrize("method", [STATUS, STOP])
@simulated()
async def test_a_call_without_an_answer_or_with_an_unknown_text_concerns_its_project_only(
    api: ControlApiSimulator, method: str, error: str | None
) -> None:
    targets = five_projects(api)
    spoil = answer_for(3, method, lambda one: {"id": one["id"], "error": error} if error else None)
    api.fault_when = lambda record: spoil(record) if record.numbers.get(method) == 1 else None
    async with open_session(api, 100) as session:
        report, _ = await ended(session.stop_running_across(targets))
    # A check with such a text is an answer. What became of a stop, a check tells; a check that is
    # repeated holds back no stop.
    given_up = method == STATUS and error is not None
    assert report.ids(NOT_SENT) == (targets[3] if given_up else [])
    assert report.counts[SENT] == (16 if given_up else 20)
    assert costs(api) == ((2, 1) if method == STOP else (1, 1) if given_up else (2, 2))
    assert given_up or asked(api, STATUS)[1] == targets[3]
    assert {task.stop_requests for task in api.tasks.values()} <= {0, 1}


@pytest.mark.parametrize("count", [1, 15, 200])
@pytest.mark.parametrize("in_reply", [False, True])
@simulated()
async def test_a_wrong_user_ends_all_after_a_bounded_number_of_requests(
    api: ControlApiSimulator, count: int, *, in_reply: bool
) -> None:
    api.user_error_in_reply = in_reply
    targets = {n: [2 * n, 2 * n + 1] for n in range(count)}
    for project_id, task_ids in targets.items():
        api.add_tasks(task_ids, project_id=project_id)
    async with open_session(api, user_id=OTHER_USER) as session:
        report, error = await ended(session.stop_running_across(targets))
    assert error is not None
    assert {type(cause) for cause in error.exceptions} == {UserUnavailableError}
    assert {(one.result, one.error) for one in report.values()} == {
        (NOT_SENT, "user 7 is unavailable")
    }
    # Each project may be the one that is not this user's, so each is asked about by itself.
    assert costs(api)[0] <= 2 * count
    assert costs(api)[1] == 0


# --- "*" among the targets ------------------------------------------------------------------------


@simulated()
async def test_all_active_of_some_projects(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2], project_id=2)
    api.add_task(3, "Completed", project_id=2)
    api.add_tasks([10, 11], project_id=3)
    api.add_task(12, "Scheduled", project_id=3)
    async with open_session(api) as session:
        report = await session.stop_running_across({3: ALL_ACTIVE, 2: [3, 1]})
        assert set(report) == {3, 1, 10, 11, 12}
        assert stopped(api) == {1, 10, 11}
        assert report[12].result is StopResult.NOT_RUNNING
        assert costs(api)[1] == 1
        # Task 12 is asked for as project 2's, and there it is not; that it is active is told.
        targets: dict[int, Any] = {2: [2, 12], 3: ALL_ACTIVE, NOWHERE: ALL_ACTIVE}
        report, error = await ended(session.stop_running_across(targets))
    assert report.ids(SENT) == [2]
    assert (report[12].project_id, report[12].result) == (2, StopResult.NOT_FOUND)
    assert error is not None
    assert {type(cause) for cause in error.exceptions} == {ProjectNotFoundError, ValueError}
    assert "task 12 is active in project 3" in str(error)


@pytest.mark.parametrize("dry_run", [False, True])
@simulated()
async def test_a_task_that_is_active_in_two_projects_is_no_silence(
    api: ControlApiSimulator, *, dry_run: bool
) -> None:
    """Ids of a server may be unique in a project only: no task may vanish behind another."""
    api.add_tasks([1, 2], project_id=2)
    api.add_tasks([3], project_id=3)
    both = answer_for(
        3,
        STATUS,
        lambda one: {**one, "result": [{"task_id": n, "status": "Running"} for n in (2, 3)]},
    )
    api.fault_when = both
    async with open_session(api) as session:
        stopping = session.stop_running_across({2: ALL_ACTIVE, 3: ALL_ACTIVE}, dry_run=dry_run)
        report, error = await ended(stopping)
        assert set(report) == {1, 2, 3}
        assert error is not None
        assert [type(cause) for cause in error.exceptions] == [ValueError]
        assert "task 2" in str(error)
        one, other = await asyncio.gather(
            session.stop_running(2, [2], dry_run=True),
            session.stop_running(3, ALL_ACTIVE, dry_run=True),
        )
    with pytest.raises(ValueError, match="2"):
        assert one | other
