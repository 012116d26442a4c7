"""Many projects in one run: they share requests, and what is wrong with one stays with it."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from invariants import Witness, assert_stops_were_due, assert_truth, run
from support import arriving

from ctrlapi_async import (
    ALL_ACTIVE,
    Batching,
    ControlSession,
    MethodError,
    ProjectNotFoundError,
    RetryPolicy,
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

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ctrlapi_async.simulator import RequestRecord

AT_ONCE = RetryPolicy(attempts=8, wait_initial=0, wait_max=0)
STRANGER = 7
"""Another user than the one who asks, who is 1."""
NOWHERE = 999
"""A project that is not there."""

FAULTS = (
    HttpStatus(503),
    HttpStatus(429),
    HttpStatus(500),
    HttpStatus(502, effect=True),
    Drop(),
    Drop(effect=True),
    CutBody(keep=0.5),
    CutBody(keep=0.9, effect=False),
    Body("{"),
    Body("{", effect=True),
)
"""Passing ones, before and after the request took effect."""


def open_session(
    api: ControlApiSimulator, chunk: int | None = None, at_once: int = 8, user_id: int = 1
) -> ControlSession:
    return ControlSession(api.url, user_id, batching=Batching(chunk, at_once), retry=AT_ONCE)


async def report_of(
    session: ControlSession, targets: Mapping[int, Any]
) -> tuple[StopReport, StopIncompleteError | None]:
    """Run to the end, whichever it is."""
    try:
        return await session.stop_running_across(targets), None
    except StopIncompleteError as error:
        return error.report, error


def costs(api: ControlApiSimulator) -> tuple[int, int]:
    requests = api.counters.requests_by_method
    return requests["TaskStatus"], requests["TaskStop"]


def stopped(api: ControlApiSimulator) -> set[int]:
    return {task_id for task_id, task in api.tasks.items() if task.stopped}


def answer_for(
    project_id: int, method: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]
) -> Callable[[RequestRecord], Fault | None]:
    """Change the entries of one project in replies to a method; None leaves an entry out."""

    def fault(record: RequestRecord) -> Fault | None:
        calls = record.json["methods"]
        mine = {call["id"] for call in calls if call["params"]["project_id"] == project_id}
        if not mine or method not in record.methods:
            return None

        def changed(document: Any) -> Any:
            entries = [
                change(entry) if entry["id"] in mine else entry for entry in document["reply"]
            ]
            return {"reply": [entry for entry in entries if entry is not None]}

        return Rewrite(changed)

    return fault


# --- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("whole_projects", [False, True])
async def test_1000_projects_of_2_tasks_cost_4_and_2_requests(
    api: ControlApiSimulator, whole_projects: bool
) -> None:
    targets: dict[int, list[int]] = {}
    running = set()
    for project_id in range(1, 1001):
        targets[project_id] = [2 * project_id, 2 * project_id + 1]
        for task_id in targets[project_id]:
            runs = project_id <= 500 if whole_projects else task_id % 2 == 0
            api.add_task(task_id, "Running" if runs else "Completed", project_id=project_id)
            if runs:
                running.add(task_id)

    async with open_session(api, chunk=500) as session:
        report = await session.stop_running_across(targets)

    assert costs(api) == (4, 2)
    assert (report.stats.status_calls, report.stats.stop_calls, report.stats.retries) == (4, 2, 0)
    assert stopped(api) == running == set(report.ids(StopResult.STOP_SENT))
    assert list(report) == [task_id for ids in targets.values() for task_id in ids]
    assert all(report[n].project_id == project for project, ids in targets.items() for n in ids)


async def test_the_chunk_is_fitted_to_the_ids_of_all_projects_together(
    api: ControlApiSimulator,
) -> None:
    targets = {project: range(project * 1000, (project + 1) * 1000) for project in range(20)}
    for project_id, task_ids in targets.items():
        api.add_tasks(task_ids, "Completed", project_id=project_id)
    async with open_session(api) as session:
        await session.stop_running_across(targets)
    assert costs(api) == (20, 0)


async def test_a_request_holds_a_bounded_number_of_calls(api: ControlApiSimulator) -> None:
    for project_id in range(2500):
        api.add_task(project_id, project_id=project_id)
    async with open_session(api, chunk=5000) as session:
        report = await session.stop_running_across({n: n for n in range(2500)})
    assert report.counts[StopResult.STOP_SENT] == 2500
    assert max(len(record.calls) for record in api.log) <= 1000
    assert costs(api) == (3, 3)


@pytest.mark.parametrize("targets", [{}, {2: []}, {2: [], 3: ()}])
async def test_nothing_to_ask_for_costs_nothing(
    api: ControlApiSimulator, targets: dict[int, list[int]]
) -> None:
    async with open_session(api) as session:
        assert await session.stop_running_across(targets) == StopReport.of([])
    assert api.counters.requests == 0


async def test_one_project_goes_as_stop_running_would(api: ControlApiSimulator) -> None:
    api.mixed_tasks(50)
    async with open_session(api, chunk=8) as session:
        one = await session.stop_running(2, range(1, 51), dry_run=True)
        other = await session.stop_running_across({2: range(1, 51)}, dry_run=True)
    assert one == other
    assert one.stats.status_calls == other.stats.status_calls == 7


async def test_an_id_that_is_asked_for_twice_in_one_project_counts_once(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2], project_id=2)
    api.add_tasks([3], project_id=3)
    async with open_session(api) as session:
        report = await session.stop_running_across({3: 3, 2: iter([2, 1, 2, 2])})
    assert list(report) == [3, 2, 1]
    assert api.counters.ids == {"TaskStatus": 3, "TaskStop": 3}


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
        ({2: [1], True: [2]}, TypeError),
        ({"2": [1]}, TypeError),
        ({2: [1], 3: arriving([1])}, TypeError),
        ([(2, [1])], TypeError),
        (None, TypeError),
    ],
)
async def test_what_cannot_be_meant_is_refused_before_any_call(
    api: ControlApiSimulator, targets: Any, kind: type[Exception]
) -> None:
    api.add_tasks([1, 2])
    async with open_session(api) as session:
        with pytest.raises(kind) as caught:
            await session.stop_running_across(targets)
    assert not isinstance(caught.value, StopIncompleteError)
    assert api.counters.requests == 0


async def test_the_error_of_an_id_in_two_projects_names_all_three(
    api: ControlApiSimulator,
) -> None:
    async with open_session(api) as session:
        with pytest.raises(ValueError, match=r"\b66\b.*\b2\b.*\b3\b"):
            await session.stop_running_across({2: [65, 66], 3: [66]})


# --- one project's error is that project's --------------------------------------------------------


def five_projects(api: ControlApiSimulator, *, without: int | None = None) -> dict[int, list[int]]:
    """Add projects 1 to 5 of four Running tasks each, two projects and a half to a request."""
    targets = {project: list(range(project * 10, project * 10 + 4)) for project in range(1, 6)}
    for project_id, task_ids in targets.items():
        if project_id != without:
            api.add_tasks(task_ids, project_id=project_id)
    return targets


def assert_only_project_3_is_left(
    api: ControlApiSimulator,
    report: StopReport,
    targets: dict[int, list[int]],
    words: str,
) -> None:
    others = [n for project, ids in targets.items() if project != 3 for n in ids]
    assert report.ids(StopResult.STOP_SENT) == others
    assert stopped(api) == set(others)
    assert report.ids(StopResult.NOT_SENT) == targets[3]
    assert {report[task_id].error for task_id in targets[3]} == {words}
    assert list(report) == [n for ids in targets.values() for n in ids]


@pytest.mark.parametrize("chunk", [1, 3, 10, 100])
async def test_a_project_that_does_not_exist(api: ControlApiSimulator, chunk: int) -> None:
    targets = five_projects(api, without=3)
    async with open_session(api, chunk) as session:
        report, error = await report_of(session, targets)
    assert_only_project_3_is_left(api, report, targets, "project 3 does not exist")
    assert error is not None
    assert [type(cause) for cause in error.exceptions] == [ProjectNotFoundError]


@pytest.mark.parametrize("chunk", [1, 3, 10, 100])
@pytest.mark.parametrize("in_reply", [False, True])
async def test_a_project_of_another_user(
    api: ControlApiSimulator, chunk: int, in_reply: bool
) -> None:
    api.user_error_in_reply = in_reply
    targets = five_projects(api, without=3)
    api.add_tasks(targets[3], project_id=3, user_id=STRANGER)
    async with open_session(api, chunk) as session:
        report, error = await report_of(session, targets)
    assert_only_project_3_is_left(api, report, targets, "user 1 is unavailable")
    assert error is not None
    assert [type(cause) for cause in error.exceptions] == [UserUnavailableError]


@pytest.mark.parametrize("chunk", [1, 3, 10, 100])
@pytest.mark.parametrize("method", ["TaskStatus", "TaskStop"])
@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("the disk is full", MethodError),
        ("project 3 does not exist", ProjectNotFoundError),
        ("user 1 is unavailable", UserUnavailableError),
    ],
)
async def test_a_call_that_is_refused_for_one_project(
    api: ControlApiSimulator, words: str, kind: type[MethodError], method: str, chunk: int
) -> None:
    targets = five_projects(api)
    api.fault_when = answer_for(
        3, method, lambda entry: {"method": method, "id": entry["id"], "error": words}
    )
    async with open_session(api, chunk) as session:
        report, error = await report_of(session, targets)
    assert report.ids(StopResult.NOT_SENT) == targets[3]
    assert {report[task_id].error for task_id in targets[3]} == {words}
    status = None if method == "TaskStatus" else "Running"
    assert {report[task_id].status for task_id in targets[3]} == {status}
    assert report.counts[StopResult.STOP_SENT] == 16
    assert error is not None
    assert [type(cause) for cause in error.exceptions] == [kind]


async def test_no_call_is_spent_on_a_project_that_is_known_to_be_missing(
    api: ControlApiSimulator,
) -> None:
    targets = {2: range(100), NOWHERE: range(100, 200), 3: range(200, 300)}
    api.add_tasks(targets[2], project_id=2)
    api.add_tasks(targets[3], project_id=3)
    async with open_session(api, chunk=10, at_once=1) as session:
        report, _ = await report_of(session, targets)
    assert report.ids(StopResult.NOT_SENT) == list(targets[NOWHERE])
    assert costs(api) == (21, 20)


@pytest.mark.parametrize("names", ["bad", "all", "none"])
@pytest.mark.parametrize("chunk", [3, 10, 100])
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
    assert stopped(api) == set(report) - {33, 404, 405} == set(report.ids(StopResult.STOP_SENT))
    assert list(report) == [n for ids in targets.values() for n in ids]


@pytest.mark.parametrize("method", ["TaskStatus", "TaskStop"])
async def test_a_call_without_an_answer_is_repeated_alone(
    api: ControlApiSimulator, method: str
) -> None:
    targets = five_projects(api)
    lose = answer_for(3, method, lambda _: None)
    api.fault_when = lambda record: lose(record) if record.numbers.get(method) == 1 else None
    async with open_session(api, chunk=100) as session:
        report = await session.stop_running_across(targets)
    assert report.counts[StopResult.STOP_SENT] == 20
    # What became of a stop without an answer, a check tells; a check that is repeated holds back
    # no stop.
    assert costs(api) == ((2, 2) if method == "TaskStatus" else (2, 1))
    [_, again] = [record for record in api.log if "TaskStatus" in record.methods]
    assert list(again.ids) == targets[3]


async def test_entries_without_ids_are_told_apart_by_their_order(
    api: ControlApiSimulator,
) -> None:
    api.echo_id = False
    targets = five_projects(api)
    for task_id in targets[2]:
        api.tasks[task_id].status = "Stalled"
    async with open_session(api, chunk=7) as session:
        report = await session.stop_running_across(targets)
    assert report.ids(StopResult.NOT_RUNNING) == targets[2]
    assert stopped(api) == set(report.ids(StopResult.STOP_SENT))
    assert report.counts[StopResult.STOP_SENT] == 16


@pytest.mark.parametrize("count", [1, 15, 200, 1500])
@pytest.mark.parametrize("in_reply", [False, True])
async def test_a_wrong_user_ends_all_after_a_bounded_number_of_requests(
    api: ControlApiSimulator, count: int, in_reply: bool
) -> None:
    api.user_error_in_reply = in_reply
    targets = {n: [2 * n, 2 * n + 1] for n in range(count)}
    for project_id, task_ids in targets.items():
        api.add_tasks(task_ids, project_id=project_id)
    async with open_session(api, user_id=STRANGER) as session:
        report, error = await report_of(session, targets)
    assert error is not None
    assert {type(cause) for cause in error.exceptions} == {UserUnavailableError}
    assert report.counts[StopResult.NOT_SENT] == 2 * count
    assert {outcome.error for outcome in report.values()} == {"user 7 is unavailable"}
    # Each project may be the one that is not this user's, so each is asked about by itself.
    assert costs(api)[0] <= 2 * count
    assert costs(api)[1] == 0


async def test_projects_of_another_user_take_no_other_project_with_them(
    api: ControlApiSimulator,
) -> None:
    targets = {n: [2 * n, 2 * n + 1] for n in range(40)}
    for project_id, task_ids in targets.items():
        api.add_tasks(task_ids, project_id=project_id, user_id=2 if project_id < 20 else 1)
    async with open_session(api, at_once=1) as session:
        report, error = await report_of(session, targets)
    assert error is not None
    assert report.ids(StopResult.STOP_SENT) == list(range(40, 80))
    assert report.ids(StopResult.NOT_SENT) == list(range(40))


@pytest.mark.parametrize("status", [401, 403, 404, 302])
async def test_what_dooms_all_ends_all_projects(api: ControlApiSimulator, status: int) -> None:
    targets = five_projects(api)
    api.fault(HttpStatus(status), method="TaskStatus", number=2, every=True)
    async with open_session(api, chunk=4, at_once=1) as session:
        report, error = await report_of(session, targets)
    assert error is not None
    assert costs(api) == (2, 1)
    assert api.log[-1].numbers == {"TaskStatus": 2}, "nothing was sent after it"
    assert report.ids(StopResult.STOP_SENT) == targets[1]
    assert report.counts[StopResult.NOT_SENT] == 16
    assert list(report) == [n for ids in targets.values() for n in ids]


# --- faults of a whole request --------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 8])
async def test_a_proxy_that_takes_small_requests_only(
    api: ControlApiSimulator, at_once: int
) -> None:
    targets = {n: range(5 * n, 5 * n + 5) for n in range(100)}
    for project_id, task_ids in targets.items():
        api.add_tasks(task_ids, project_id=project_id)
    api.max_body = 3000
    async with open_session(api, chunk=500, at_once=at_once) as session:
        report = await session.stop_running_across(targets)
        assert report.counts[StopResult.STOP_SENT] == 500
        assert list(report) == list(range(500))
        refused = [record for record in api.log if record.json is None]
        assert len(refused) <= 2 * at_once + 3
        api.reset_counters()
        await session.stop_running_across(targets)
    assert all(record.json is not None for record in api.log), "the size was learnt"


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("method", ["TaskStatus", "TaskStop"])
async def test_a_fault_of_a_request_of_many_calls(
    api: ControlApiSimulator, fault: Fault, method: str
) -> None:
    targets = five_projects(api)
    witness = Witness(api, lambda record: fault if record.numbers.get(method) in (1, 2) else None)
    async with open_session(api, chunk=7) as session:
        report = await session.stop_running_across(targets)
    assert report.counts[StopResult.STOP_SENT] == 20
    assert {task.stop_requests for task in api.tasks.values()} == {1}
    assert_stops_were_due(witness.events)


async def test_a_server_that_never_answers(api: ControlApiSimulator) -> None:
    targets = five_projects(api)
    api.fault(Drop(), method="TaskStatus", number=2, every=True)
    async with open_session(api, chunk=10, at_once=1) as session:
        report, error = await report_of(session, targets)
    assert error is not None
    first = api.log[0].ids
    assert report.ids(StopResult.STOP_SENT) == list(first)
    assert report.ids(StopResult.NOT_SENT) == [n for n in report if n not in first]
    assert stopped(api) == set(first)
    assert costs(api) == (1 + 8, 1)


# --- "*" among the targets ------------------------------------------------------------------------


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
    assert costs(api) == (2, 1)


async def test_all_active_of_a_missing_project(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2], project_id=2)
    async with open_session(api) as session:
        report, error = await report_of(session, {2: [1, 2], NOWHERE: ALL_ACTIVE})
    assert report.ids(StopResult.STOP_SENT) == [1, 2]
    assert error is not None
    assert [type(cause) for cause in error.exceptions] == [ProjectNotFoundError]


async def test_a_task_that_is_listed_under_another_project_than_its_own(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks([1, 2], project_id=2)
    api.add_task(3, project_id=3)
    async with open_session(api) as session:
        report = await session.stop_running_across({2: [1, 3], 3: ALL_ACTIVE, 4: []})
    # It was asked for as project 2's, and there it is not; a row shifts no other's outcome.
    assert report.ids(StopResult.STOP_SENT) == [1]
    assert report[3].project_id == 2
    assert report[3].result is StopResult.NOT_FOUND
    assert stopped(api) == {1}


# --- any world, any faults ------------------------------------------------------------------------

KINDS = ("there", "there", "there", "missing", "another user's")
tasks = st.lists(st.sampled_from((*STATUSES, "Running", "Running", "absent")), max_size=7)


def populate(api: ControlApiSimulator, projects: list[tuple[str, list[str]]]) -> None:
    """Add projects 1, 2, ... with tasks 10, 11, ..., 20, 21, ... of these statuses."""
    api.add_project(0)
    for project_id, (kind, statuses) in enumerate(projects, 1):
        if kind == "missing":
            continue
        owner = STRANGER if kind == "another user's" else 1
        api.add_project(project_id, user_id=owner)
        for task_id, status in enumerate(statuses, project_id * 10):
            if status != "absent":
                api.add_task(task_id, status, project_id=project_id, user_id=owner)


@given(
    projects=st.lists(st.tuples(st.sampled_from(KINDS), tasks), max_size=6),
    faults=st.dictionaries(st.integers(1, 12), st.sampled_from(FAULTS), max_size=5),
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
        api = ControlApiSimulator(
            own_thread=False, missing=missing, denied_names=names, echo_id=echo_id
        )
        populate(api, projects)
        targets = {
            project_id: list(range(project_id * 10, project_id * 10 + len(statuses)))
            for project_id, (_, statuses) in enumerate(projects, 1)
        }
        bad = {
            task_id
            for project_id, (kind, _) in enumerate(projects, 1)
            if kind != "there"
            for task_id in targets[project_id]
        }
        witness = Witness(api, lambda record: faults.get(record.number))
        before = {task_id: task.status for task_id, task in api.tasks.items()}
        async with api, open_session(api, chunk, at_once) as session:
            report, error = await report_of(session, targets)

        assert list(report) == [n for ids in targets.values() for n in ids]
        assert_stops_were_due(witness.events)
        assert_truth(api, report)
        # No more faults than attempts: all that can be answered for is.
        assert set(report.ids(StopResult.NOT_SENT)) == bad
        assert (error is not None) == bool(bad)
        for task_id in report.keys() - bad:
            outcome = report[task_id]
            match before.get(task_id):
                case None:
                    assert outcome.result is StopResult.NOT_FOUND
                case "Running":
                    assert outcome.result is StopResult.STOP_SENT
                    assert api.tasks[task_id].stop_requests == 1
                case status:
                    assert outcome.result is StopResult.NOT_RUNNING
                    assert outcome.status == status
            assert outcome.project_id == task_id // 10
        if not (faults or bad or (missing == "denied" and before.keys() != set(report))):
            running = report.counts[StopResult.STOP_SENT]
            assert costs(api) == (ceil(len(report) / chunk), ceil(running / chunk))
            assert api.counters.peak <= at_once

    run(main())
