"""Many projects in one run: they share requests, and what is wrong with one stays with it."""

from __future__ import annotations

import asyncio
from math import ceil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    STATUSES,
    Body,
    ControlApiSimulator,
    CutBody,
    Drop,
    Fault,
    HttpStatus,
    Rewrite,
)
from tests.support.clock import run
from tests.support.oracle import Oracle
from tests.support.simulated import (
    STATUS,
    STOP,
    arriving,
    asked,
    costs,
    disconnected,
    ended,
    open_session,
    outcomes_of,
    simulated,
    simulator,
    stopped,
)
from tests.support.witness import Witness

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
        empty: tuple[dict[int, Any], ...] = ({}, {2: []}, {2: [], 3: ()})
        for targets in empty:
            assert await session.stop_running_across(targets) == StopReport.of([])
        assert api.counters.requests == 0
        one = await session.stop_running(2, range(1, 51), dry_run=True)
        other = await session.stop_running_across({2: range(1, 51)}, dry_run=True)
        assert one == other
        assert one.stats.status_calls == other.stats.status_calls == 7
        report = await session.stop_running_across({3: 101, 2: iter([2, 1, 2, 2])}, dry_run=True)
        assert list(report) == [101, 2, 1]


@simulated()
async def test_stopping_across_yields_outcomes_of_all_projects(api: ControlApiSimulator) -> None:
    targets = {project: range(project * 10, project * 10 + 5) for project in range(1, 6)}
    for project_id, task_ids in targets.items():
        api.add_tasks(task_ids, project_id=project_id)
    async with open_session(api, 4, 2) as session:
        async with session.stopping_across(targets, collect=False, wait_stopped=5) as stopping:
            seen = await outcomes_of(stopping)
        assert stopping.progress.total == stopping.progress.done == 25
    assert {(one.project_id, one.task_id) for one in seen} == {
        (project, n) for project, ids in targets.items() for n in ids
    }
    assert {one.result for one in seen} == {SENT}


# --- what is refused before the first call --------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "kind"),
    [
        ({2: [1, 2], 3: [4, 2]}, ValueError),
        ({2: 1, 3: 1}, ValueError),
        ({2: iter(range(30_000)), 3: iter([29_999])}, ValueError),
        ({2: [1], 3: [-1]}, ValueError),
        ({2: [1], -1: [2]}, ValueError),
        ({2: [1], 3: [2**63]}, ValueError),
        ({2: [1], 3: ["2"]}, TypeError),
        ({2: [1], 3: "2"}, TypeError),
        ({2: [1], 3: True}, TypeError),
        ({2: [1], 3: None}, TypeError),
        ({2: [1], 3: {4: 5}}, TypeError),
        ({2: [1], True: [2]}, TypeError),
        ({"2": [1]}, TypeError),
        ({2: [1], 3: arriving([1])}, TypeError),
        ([(2, [1])], TypeError),
        (None, TypeError),
    ],
)
@simulated()
async def test_what_cannot_be_meant_is_refused_before_any_call(
    api: ControlApiSimulator, targets: Any, kind: type[Exception]
) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        with pytest.raises(kind) as caught:
            await session.stop_running_across(targets)
        if targets == {2: [1, 2], 3: [4, 2]}:
            for number in ("task 2", "2", "3"):
                assert number in str(caught.value)
    assert not isinstance(caught.value, StopIncompleteError)
    assert api.counters.requests == 0


# --- one project's error is that project's --------------------------------------------------------


def five_projects(api: ControlApiSimulator, *, without: int | None = None) -> dict[int, list[int]]:
    """Add projects 1 to 5 of four Running tasks each, two projects and a half to a request."""
    targets = {project: list(range(project * 10, project * 10 + 4)) for project in range(1, 6)}
    for project_id, task_ids in targets.items():
        if project_id != without:
            api.add_tasks(task_ids, project_id=project_id)
    return targets


def refuse(words: str, method: str) -> Callable[[ControlApiSimulator], None]:
    """Return what makes a server refuse calls of a method for project 3."""

    def spoil(api: ControlApiSimulator) -> None:
        api.add_tasks(range(30, 34), project_id=3)
        api.fault_when = answer_for(
            3, method, lambda entry: {"method": method, "id": entry["id"], "error": words}
        )

    return spoil


def of_another_user(api: ControlApiSimulator) -> None:
    api.add_tasks(range(30, 34), project_id=3, user_id=OTHER_USER)


MISSING = ("project 3 does not exist", ProjectNotFoundError)
UNAVAILABLE = ("user 1 is unavailable", UserUnavailableError)
BAD_PROJECTS: dict[str, tuple[Callable[[ControlApiSimulator], object], str, type[MethodError]]] = {
    # What is wrong with project 3 -> what its tasks and the error say.
    "missing": (lambda _: None, *MISSING),
    "another user's": (of_another_user, *UNAVAILABLE),
    **{
        f"{words}, says {method}": (refuse(words, method), words, kind)
        for method in (STATUS, STOP)
        for words, kind in (MISSING, UNAVAILABLE)
    },
}


@pytest.mark.parametrize("chunk", [1, 3, 10, 100])
@pytest.mark.parametrize("in_reply", [False, True])
@pytest.mark.parametrize(("spoil", "words", "kind"), BAD_PROJECTS.values(), ids=BAD_PROJECTS)
@simulated()
async def test_a_bad_project_ends_its_own_tasks_only(
    api: ControlApiSimulator,
    spoil: Callable[[ControlApiSimulator], object],
    words: str,
    kind: type[MethodError],
    chunk: int,
    *,
    in_reply: bool,
) -> None:
    api.user_error_in_reply = in_reply
    targets = five_projects(api, without=3)
    spoil(api)
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


@pytest.mark.parametrize("method", [STATUS, STOP])
@simulated()
async def test_an_unknown_text_for_one_project(api: ControlApiSimulator, method: str) -> None:
    targets = five_projects(api)
    api.fault_when = answer_for(
        3, method, lambda entry: {"method": method, "id": entry["id"], "error": "the disk is full"}
    )
    async with open_session(api, 10) as session:
        report, error = await ended(session.stop_running_across(targets))
    # After such an answer to TaskStop nobody knows, and TaskStatus says what became of them.
    assert report.counts[SENT] == (16 if method == STATUS else 20)
    assert (error is None) is (method == STOP)
    assert {task.stop_requests for task in api.tasks.values()} <= {0, 1}


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
@simulated()
async def test_ids_that_are_not_of_their_project(
    api: ControlApiSimulator, names: Any, chunk: int
) -> None:
    api.denied_names = names
    targets = five_projects(api)
    targets[2].append(33)  # task of project 3
    targets[3].remove(33)
    targets[4][1:1] = [404, 405]  # nobody's
    async with open_session(api, chunk) as session:
        report = await session.stop_running_across(targets)
    assert report.ids(StopResult.NOT_FOUND) == [33, 404, 405]
    assert report[33].project_id == 2
    assert stopped(api) == set(report) - {33, 404, 405} == set(report.ids(SENT))
    assert list(report) == [n for ids in targets.values() for n in ids]


@pytest.mark.parametrize("method", [STATUS, STOP])
@simulated()
async def test_a_call_without_an_answer_is_repeated_alone(
    api: ControlApiSimulator, method: str
) -> None:
    targets = five_projects(api)
    lose = answer_for(3, method, lambda _: None)
    api.fault_when = lambda record: lose(record) if record.numbers.get(method) == 1 else None
    async with open_session(api, 100) as session:
        report = await session.stop_running_across(targets)
    assert report.counts[SENT] == 20
    # What became of a stop without an answer, a check tells; a check that is repeated holds back
    # no stop.
    assert costs(api) == ((2, 2) if method == STATUS else (2, 1))
    assert asked(api, STATUS)[1] == targets[3]


@simulated(echo_id=False)
async def test_entries_without_ids_are_told_apart_by_their_order(api: ControlApiSimulator) -> None:
    targets = five_projects(api)
    for task_id in targets[2]:
        api.tasks[task_id].status = "Stalled"
    async with open_session(api, 7) as session:
        report = await session.stop_running_across(targets)
    assert report.ids(StopResult.NOT_RUNNING) == targets[2]
    assert stopped(api) == set(report.ids(SENT))
    assert report.counts[SENT] == 16


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


@pytest.mark.parametrize("status", [401, 403, 404, 302])
@simulated()
async def test_what_any_request_would_meet_ends_all_projects(
    api: ControlApiSimulator, status: int
) -> None:
    targets = five_projects(api)
    api.fault(HttpStatus(status))
    async with open_session(api, 4, 1) as session:
        report, error = await ended(session.stop_running_across(targets))
    assert error is not None
    assert costs(api) == (1, 0)
    assert report.counts[NOT_SENT] == 20


# --- faults of a whole request --------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 8])
@simulated(max_body=3000)
async def test_a_proxy_that_takes_small_requests_only(
    api: ControlApiSimulator, at_once: int
) -> None:
    targets = {n: range(5 * n, 5 * n + 5) for n in range(100)}
    for project_id, task_ids in targets.items():
        api.add_tasks(task_ids, project_id=project_id)
    async with open_session(api, 500, at_once) as session:
        report = await session.stop_running_across(targets)
        assert report.counts[SENT] == 500
        assert list(report) == list(range(500))
        refused = [record for record in api.log if record.json is None]
        assert len(refused) <= 2 * at_once + 4


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
        _, error = await ended(session.stop_running_across({2: [2], NOWHERE: ALL_ACTIVE}))
    assert error is not None
    assert [type(cause) for cause in error.exceptions] == [ProjectNotFoundError]


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


@simulated()
async def test_a_task_that_is_listed_under_another_project_than_its_own(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2], project_id=2)
    api.add_task(3, project_id=3)
    async with open_session(api) as session:
        report, error = await ended(session.stop_running_across({2: [1, 3], 3: ALL_ACTIVE, 4: []}))
    # It was asked for as project 2's, and there it is not; that it is active elsewhere is told.
    assert report.ids(SENT) == [1]
    assert report[3].project_id == 2
    assert report[3].result is StopResult.NOT_FOUND
    assert stopped(api) == {1}
    assert "task 3 is active in project 3" in str(error)


# --- any world, any faults ------------------------------------------------------------------------

FAULTS = (
    HttpStatus(503),
    HttpStatus(429),
    HttpStatus(502, effect=True),
    Drop(),
    Drop(effect=True),
    CutBody(keep=0.5),
    CutBody(keep=0.9, effect=False),
    Body("{"),
    Body("{", effect=True),
)
KINDS = ("there", "there", "there", "missing", "another user's")
tasks = st.lists(st.sampled_from((*STATUSES, "Running", "Running", "absent")), max_size=7)


@given(
    projects=st.lists(st.tuples(st.sampled_from(KINDS), tasks), max_size=6),
    faults=st.dictionaries(st.integers(1, 12), st.sampled_from(FAULTS), max_size=3),
    chunk=st.integers(1, 12),
    at_once=st.integers(1, 4),
    missing=st.sampled_from(["denied", "error", "omitted"]),
    names=st.sampled_from(["bad", "all", "none"]),
    echo_id=st.booleans(),
)
def test_every_task_has_the_outcome_that_is_true(
    *,
    projects: list[tuple[str, list[str]]],
    faults: dict[int, Fault],
    chunk: int,
    at_once: int,
    missing: Any,
    names: Any,
    echo_id: bool,
) -> None:
    async def main() -> None:
        api = simulator(missing=missing, denied_names=names, echo_id=echo_id)
        api.add_project(0)
        oracle = Oracle(attempts=4)
        targets: dict[int, list[int]] = {}
        bad: set[int] = set()
        for project_id, (kind, statuses) in enumerate(projects, 1):
            targets[project_id] = list(range(project_id * 10, project_id * 10 + len(statuses)))
            oracle.ask(project_id, targets[project_id])
            owner = OTHER_USER if kind == "another user's" else 1
            bad |= set(targets[project_id]) if kind != "there" else set()
            if kind == "missing":
                continue
            api.add_project(project_id, user_id=owner)
            for task_id, status in zip(targets[project_id], statuses, strict=True):
                if status != "absent":
                    api.add_task(task_id, status, project_id=project_id, user_id=owner)
        witness = Witness(api, lambda record: faults.get(record.number), oracle)
        before = {task_id: task.status for task_id, task in api.tasks.items()}
        async with api:
            async with open_session(api, chunk, at_once) as session:
                report, error = await ended(session.stop_running_across(targets))
            await disconnected(api)
        witness.check(list(oracle.asked), report, error)
        # No more faults than attempts: all that can be answered for is.
        assert set(report.ids(NOT_SENT)) == bad
        for task_id in report.keys() - bad:
            outcome = report[task_id]
            match before.get(task_id):
                case None:
                    assert outcome.result is StopResult.NOT_FOUND
                case "Running":
                    assert outcome.result is SENT
                    assert api.tasks[task_id].stop_requests == 1
                case status:
                    assert (outcome.result, outcome.status) == (StopResult.NOT_RUNNING, status)
        if not (faults or bad or (missing == "denied" and before.keys() != set(report))):
            running = report.counts[SENT]
            assert costs(api) == (ceil(len(report) / chunk), ceil(running / chunk))
            assert api.counters.peak <= at_once

    run(main())
