"""Reports: one outcome a task, in order; and errors, which carry them."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import (
    AuthError,
    CtrlApiError,
    HttpError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    StatusReport,
    StopIncompleteError,
    StopOutcome,
    StopReport,
    StopResult,
    StopStats,
    TasksDeniedError,
    TaskState,
    TaskStatus,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async.errors import CertificateError, DeadlineError, HtmlReplyError

statuses = st.none() | st.sampled_from(TaskStatus) | st.just("Hibernating")
outcomes = st.builds(
    StopOutcome,
    st.integers(0, 12),
    st.integers(0, 2),
    st.sampled_from(StopResult),
    statuses,
    st.none() | st.text(max_size=5),
)
numbers = st.integers(0, 1000)
stats = st.builds(StopStats, numbers, numbers, numbers, st.floats(0, 1e6))
reports = st.builds(StopReport.of, st.lists(outcomes, max_size=12), stats)


def outcome(task_id: int, result: StopResult = StopResult.STOP_SENT, **more: Any) -> StopOutcome:
    return StopOutcome(task_id, 2, result, **more)


# --- The mapping ----------------------------------------------------------------------------------


@given(st.lists(outcomes))
def test_the_last_outcome_of_a_task_stands_in_the_place_of_its_first(
    given_outcomes: list[StopOutcome],
) -> None:
    expected = {each.task_id: each for each in given_outcomes}
    report = StopReport.of(given_outcomes)
    assert list(report.items()) == list(expected.items())
    assert len(report) == len(expected)
    assert all((task_id in report) is (task_id in expected) for task_id in range(14))


@given(reports)
def test_ids_and_counts_are_those_of_the_outcomes(report: StopReport) -> None:
    assert list(report.counts) == list(StopResult)
    for result in StopResult:
        mine = [task_id for task_id, each in report.items() if each.result is result]
        assert report.ids(result) == mine
        assert report.counts[result] == len(mine)
    assert report.ids(*StopResult) == list(report)
    assert report.ids() == []
    unanswered = {StopResult.NOT_SENT, StopResult.UNCONFIRMED}
    assert report.complete is not any(each.result in unanswered for each in report.values())


def test_a_task_that_was_not_asked_for_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        StopReport.of([outcome(1)])[2]
    assert StopReport.of([outcome(1)]).get(2) is None
    assert 2 not in StopReport.of([outcome(1)])


def test_a_report_cannot_be_changed() -> None:
    report = StopReport.of([outcome(1)])
    with pytest.raises(TypeError):
        report.counts[StopResult.STOP_SENT] = 5  # type: ignore[index]
    with pytest.raises(TypeError):
        report[1] = outcome(2)  # type: ignore[index]
    with pytest.raises(AttributeError):
        report.stats = StopStats()  # type: ignore[misc]


@given(reports, reports)
def test_equal_means_the_same_outcomes_in_the_same_order(a: StopReport, b: StopReport) -> None:
    assert (a == b) is (list(a.items()) == list(b.items()))
    assert a == StopReport.of(list(a.values()))
    assert (StopReport.of(reversed(list(a.values()))) == a) is (len(a) < 2)


def test_a_report_is_no_dict_and_no_key() -> None:
    report = StopReport.of([outcome(1)])
    assert report != dict(report)
    with pytest.raises(TypeError):
        hash(report)


LINES: list[tuple[dict[StopResult, int], str]] = [
    (
        {StopResult.NOT_RUNNING: 25, StopResult.STOP_SENT: 40, StopResult.NOT_FOUND: 1},
        "StopReport(66 tasks: 40 stop_sent, 25 not_running, 1 not_found)",
    ),
    ({StopResult.UNCONFIRMED: 1}, "StopReport(1 task: 1 unconfirmed)"),
    ({}, "StopReport(0 tasks)"),
]


@pytest.mark.parametrize(("counts", "line"), LINES)
def test_repr_is_fit_for_a_log_line(counts: dict[StopResult, int], line: str) -> None:
    results = [result for result, count in counts.items() for _ in range(count)]
    assert repr(StopReport.of(outcome(n, result) for n, result in enumerate(results))) == line


# --- Merging --------------------------------------------------------------------------------------


@given(reports, reports, reports)
def test_merging_is_associative_and_the_later_wins(
    a: StopReport, b: StopReport, c: StopReport
) -> None:
    assert list((a | b).items()) == list((dict(a) | dict(b)).items())
    assert (a | b).stats == a.stats | b.stats
    assert (a | b) | c == a | (b | c)
    assert ((a | b) | c).stats == (a | (b | c)).stats
    assert a | StopReport() == a == StopReport() | a


def test_only_reports_merge() -> None:
    with pytest.raises(TypeError):
        StopReport() | {}  # type: ignore[operator]


# --- Out and in again -----------------------------------------------------------------------------


@given(reports)
def test_json_and_pickle_give_the_same_report_again(report: StopReport) -> None:
    assert report.complete in (True, False)  # what is kept of it must not get in the way
    for twin in (
        StopReport.from_json(report.to_json()),
        StopReport.from_json(report.to_json().encode()),
        pickle.loads(pickle.dumps(report)),
        copy.deepcopy(report),
    ):
        assert twin == report
        assert twin.stats == report.stats
        assert twin.counts == report.counts
        kinds = [(type(each.status), type(each.result)) for each in report.values()]
        assert [(type(each.status), type(each.result)) for each in twin.values()] == kinds


def test_json_has_the_documented_words() -> None:
    report = StopReport.of(
        [
            StopOutcome(66, 2, StopResult.STOP_SENT, TaskStatus.RUNNING),
            StopOutcome(68, 2, StopResult.UNAVAILABLE, error="Stopping task is unavailable"),
        ],
        StopStats(1, 1, 0, 0.5),
    )
    assert json.loads(report.to_json()) == {
        "outcomes": [
            {
                "task_id": 66,
                "project_id": 2,
                "result": "stop_sent",
                "status": "Running",
                "error": None,
            },
            {
                "task_id": 68,
                "project_id": 2,
                "result": "unavailable",
                "status": None,
                "error": "Stopping task is unavailable",
            },
        ],
        "stats": {"status_calls": 1, "stop_calls": 1, "retries": 0, "elapsed": 0.5},
    }


def test_whole_seconds_are_a_number_of_seconds_too() -> None:
    report = StopReport.from_json('{"outcomes": [], "stats": {"elapsed": 2}}')
    assert report.stats == StopStats(elapsed=2.0)
    assert type(report.stats.elapsed) is float


ROW: dict[str, Any] = {"task_id": 66, "project_id": 2, "result": "stop_sent"}


def document(**changes: Any) -> str:
    return json.dumps({"outcomes": [ROW | changes], "stats": {}})


BAD_JSON: list[tuple[str | bytes, str]] = [
    ("", ""),
    ("{", ""),
    (b"\xff", ""),
    ("\ud800", ""),
    ("[" * 100_000, ""),
    ("[]", "no JSON object"),
    ("null", "no JSON object"),
    ('"report"', "no JSON object"),
    ("66", "no JSON object"),
    ("{}", "outcomes"),
    ('{"outcomes": []}', "stats"),
    ('{"outcomes": {}, "stats": {}}', "outcomes"),
    ('{"outcomes": 5, "stats": {}}', "outcomes"),
    ('{"outcomes": [5], "stats": {}}', "outcomes[0]"),
    ('{"outcomes": [], "stats": []}', "stats"),
    ('{"outcomes": [], "stats": {}, "more": 1}', "more"),
    ('{"outcomes": [], "stats": {"retries": "1"}}', "stats.retries"),
    ('{"outcomes": [], "stats": {"retries": 1.0}}', "stats.retries"),
    ('{"outcomes": [], "stats": {"elapsed": "1"}}', "stats.elapsed"),
    ('{"outcomes": [], "stats": {"elapsed": 1' + "0" * 400 + "}}", "elapsed"),
    ('{"outcomes": [], "stats": {"elapsed": NaN}}', ""),
    (document(task_id="66"), "outcomes[0].task_id"),
    (document(task_id=True), "outcomes[0].task_id"),
    (document(task_id=66.0), "outcomes[0].task_id"),
    (document(task_id=None), "outcomes[0].task_id"),
    (document(project_id="2"), "outcomes[0].project_id"),
    (document(result="stopped"), "outcomes[0].result"),
    (document(result=None), "outcomes[0].result"),
    (document(status=5), "outcomes[0].status"),
    (document(error=5), "outcomes[0].error"),
    (document(more=1), "more"),
    (json.dumps({"outcomes": [ROW, ROW], "stats": {}}), "more than once"),
]


@pytest.mark.parametrize(("text", "words"), BAD_JSON)
def test_what_is_no_report_is_a_value_error_that_says_where(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match="not a report") as caught:
        StopReport.from_json(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@given(st.binary() | st.text())
def test_no_text_does_worse_than_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError, match="not a report"):
        StopReport.from_json(text)


# --- Status reports -------------------------------------------------------------------------------


def test_a_status_report_is_a_mapping_in_order() -> None:
    states = [
        TaskState(9, TaskStatus.RUNNING),
        TaskState(3, "Hibernating"),
        TaskState(7, error="Task does not exist"),
        TaskState(5, TaskStatus.RUNNING, None, {"stream": {"name": "Новости"}}),
    ]
    report = StatusReport.of([TaskState(9, None, "replaced", {"more": 1}), *states])
    assert list(report.items()) == [(state.task_id, state) for state in states]
    assert list(report.values()) == states
    assert report[5] == states[3]
    assert len(report) == 4
    assert 4 not in report
    with pytest.raises(KeyError):
        report[4]
    assert report.ids(TaskStatus.RUNNING) == [9, 5]
    assert report.ids("Hibernating", None) == [3, 7]
    assert repr(report) == "StatusReport(4 tasks: 2 Running, 1 Hibernating, 1 error)"
    assert repr(StatusReport.of([])) == "StatusReport(0 tasks)"
    assert repr(StatusReport.of(states[:3])) == (
        "StatusReport(3 tasks: 1 Hibernating, 1 Running, 1 error)"
    )
    assert pickle.loads(pickle.dumps(report)) == report


# --- Errors ---------------------------------------------------------------------------------------

REPORT = StopReport.of([outcome(66, StopResult.NOT_SENT)])
GONE = ProjectNotFoundError("TaskStop", "project 9 does not exist")
LOST = RequestError("http://server was not reached: refused", sent=False)

# Each with the kinds it is, its words, and its attributes.
ERRORS: list[tuple[CtrlApiError, tuple[type, ...], str, dict[str, Any]]] = [
    (LOST, (RequestError,), "http://server was not reached: refused", {"sent": False}),
    (RequestError("cut"), (RequestError,), "cut", {"sent": True}),
    (DeadlineError("too late"), (RequestError, TimeoutError), "too late", {"sent": True}),
    (CertificateError("expired"), (RequestError,), "expired", {"sent": False}),
    (
        HttpError("HTTP 502", 502, "<html>", 1.5),
        (HttpError,),
        "HTTP 502",
        {"status": 502, "excerpt": "<html>", "retry_after": 1.5},
    ),
    (
        AuthError("HTTP 403", 403),
        (HttpError, AuthError),
        "HTTP 403",
        {"status": 403, "excerpt": "", "retry_after": None},
    ),
    (
        ReplyError("no `result`", "$.reply[0]", "{}"),
        (ReplyError,),
        "no `result` at $.reply[0]: '{}'",
        {"where": "$.reply[0]", "excerpt": "{}"},
    ),
    (ReplyError("empty"), (ReplyError,), "empty at $", {"where": "$", "excerpt": ""}),
    (HtmlReplyError("a page"), (ReplyError,), "a page at $", {"where": "$"}),
    (
        MethodError("TaskStop", "no"),
        (MethodError,),
        "TaskStop: no",
        {"method": "TaskStop", "message": "no"},
    ),
    (GONE, (MethodError,), "TaskStop: project 9 does not exist", {"method": "TaskStop"}),
    (
        UserUnavailableError("TaskStop", "user 5 is unavailable"),
        (MethodError,),
        "TaskStop: user 5 is unavailable",
        {},
    ),
    (
        TasksDeniedError("TaskStop", "access denied to tasks [1]", [1]),
        (MethodError,),
        "TaskStop: access denied to tasks [1]",
        {"task_ids": (1,), "message": "access denied to tasks [1]"},
    ),
    (UndefinedMethodError("X", "Undefined"), (MethodError,), "X: Undefined", {"method": "X"}),
    (
        StopIncompleteError("1 of 1 task without an answer", [GONE, LOST], REPORT),
        (ExceptionGroup,),
        "1 of 1 task without an answer (2 sub-exceptions)",
        {"report": REPORT, "message": "1 of 1 task without an answer"},
    ),
]


@pytest.mark.parametrize(
    ("error", "kinds", "words", "attributes"), ERRORS, ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("through", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_say_and_keep_what_they_know(
    error: CtrlApiError, kinds: tuple[type, ...], words: str, attributes: Any, through: Any
) -> None:
    for each in (error, through(error)):
        assert type(each) is type(error)
        assert isinstance(each, (CtrlApiError, *kinds))
        assert all(isinstance(each, kind) for kind in kinds)
        assert str(each) == words
        assert {name: getattr(each, name) for name in attributes} == attributes


def test_an_error_without_words_is_silent() -> None:
    assert not str(CtrlApiError())


def test_an_incomplete_stop_pickles_with_its_causes() -> None:
    error = StopIncompleteError("incomplete", [GONE, LOST], REPORT)
    twin = pickle.loads(pickle.dumps(error))
    assert list(map(str, twin.exceptions)) == list(map(str, error.exceptions))
    assert list(map(type, twin.exceptions)) == [ProjectNotFoundError, RequestError]


def test_except_star_reaches_the_causes_with_the_report() -> None:
    caught: list[BaseException] = []

    def handle() -> None:
        try:
            raise StopIncompleteError("incomplete", [GONE, LOST], REPORT)
        except* ProjectNotFoundError as group:
            caught.append(group)

    with pytest.raises(StopIncompleteError) as rest:
        handle()
    (mine,) = caught
    assert isinstance(mine, StopIncompleteError)
    assert mine.report is rest.value.report is REPORT
    assert (mine.exceptions, rest.value.exceptions) == ((GONE,), (LOST,))


def test_an_incomplete_stop_splits_with_its_report() -> None:
    error = StopIncompleteError("incomplete", [GONE, LOST], REPORT)
    mine, others = error.split(RequestError)
    assert isinstance(mine, StopIncompleteError)
    assert isinstance(others, StopIncompleteError)
    assert mine.report is others.report is REPORT
    assert (mine.exceptions, others.exceptions) == ((LOST,), (GONE,))
