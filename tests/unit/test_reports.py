"""Reports: mappings in the order asked for, as JSON and as pickles."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async._models import StopOutcome, StopResult, StopStats, TaskState, TaskStatus
from ctrlapi_async._reports import StatusReport, StopReport
from tests.support.wire import any_json

statuses = st.none() | st.sampled_from(TaskStatus) | st.just("Hibernating")
errors = st.none() | st.text(max_size=5)
outcomes = st.builds(
    StopOutcome,
    st.integers(0, 12),
    st.just(2),
    st.sampled_from(StopResult),
    statuses,
    errors,
    st.none() | st.integers(1000, 1012),
)
numbers = st.integers(0, 1000)
stats = st.builds(StopStats, numbers, numbers, numbers, st.floats(0, 1e6))
reports = st.builds(StopReport.of, st.lists(outcomes, max_size=12), stats)

details = st.dictionaries(st.text(max_size=3), any_json, max_size=2)
current = st.builds(TaskState, st.integers(1000, 1012), statuses, errors, st.none(), details)
states = st.builds(TaskState, st.integers(0, 12), statuses, errors, st.none() | current, details)
status_reports = st.builds(StatusReport.of, st.lists(states, max_size=12))


def outcome(task_id: int, result: StopResult = StopResult.STOP_SENT, **more: Any) -> StopOutcome:
    return StopOutcome(task_id, 2, result, **more)


# --- The mapping ----------------------------------------------------------------------------------


@given(st.lists(outcomes))
def test_the_last_outcome_of_a_task_wins_in_the_place_of_its_first(
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
    unanswered = {StopResult.NOT_SENT, StopResult.UNCONFIRMED, StopResult.STILL_RUNNING}
    assert report.complete is not any(each.result in unanswered for each in report.values())


@pytest.mark.parametrize("report", [StopReport.of([outcome(1)]), StatusReport.of([TaskState(1)])])
def test_a_report_is_a_mapping_that_cannot_be_changed(report: Any) -> None:
    with pytest.raises(KeyError):
        report[2]
    assert report.get(2) is None
    with pytest.raises(TypeError):
        report[1] = report[1]
    with pytest.raises(TypeError):
        report.counts[next(iter(report.counts))] = 5
    with pytest.raises(AttributeError):
        report.stats = StopStats()
    assert report != dict(report)
    with pytest.raises(TypeError):
        hash(report)


@given(reports, reports)
def test_equal_reports_have_the_same_outcomes_in_the_same_order(
    a: StopReport, b: StopReport
) -> None:
    assert (a == b) is (list(a.items()) == list(b.items()))
    assert a == StopReport.of(list(a.values()))
    assert (StopReport.of(reversed(list(a.values()))) == a) is (len(a) < 2)


LINES: list[tuple[dict[StopResult, int], str]] = [
    (
        {StopResult.NOT_RUNNING: 25, StopResult.STOP_SENT: 40, StopResult.NOT_FOUND: 1},
        "StopReport(66 tasks: 40 stop_sent, 25 not_running, 1 not_found)",
    ),
    ({StopResult.UNCONFIRMED: 1}, "StopReport(1 task: 1 unconfirmed)"),
    ({}, "StopReport(0 tasks)"),
]


@pytest.mark.parametrize(("counts", "line"), LINES)
def test_the_repr_fits_into_a_log_line(counts: dict[StopResult, int], line: str) -> None:
    results = [result for result, count in counts.items() for _ in range(count)]
    assert repr(StopReport.of(outcome(n, result) for n, result in enumerate(results))) == line


# --- Merging --------------------------------------------------------------------------------------


@given(reports, reports, reports)
def test_merging_is_associative_and_the_later_report_wins(
    a: StopReport, b: StopReport, c: StopReport
) -> None:
    assert list((a | b).items()) == list((dict(a) | dict(b)).items())
    assert (a | b).stats == a.stats | b.stats
    assert (a | b) | c == a | (b | c)
    assert ((a | b) | c).stats == (a | (b | c)).stats
    assert a | StopReport() == a == StopReport() | a


def test_only_reports_merge_and_not_those_with_one_id_in_two_projects() -> None:
    elsewhere = StopReport.of([StopOutcome(1, 3, StopResult.STOP_SENT)])
    with pytest.raises(ValueError, match="task 1 is in two projects: 2 and 3"):
        _ = StopReport.of([outcome(1)]) | elsewhere
    assert len(StopReport.of([outcome(2)]) | elsewhere) == 2
    with pytest.raises(TypeError):
        StopReport() | {}  # type: ignore[operator]


# --- JSON and pickle ------------------------------------------------------------------------------


@given(reports | status_reports)
def test_json_and_pickle_return_an_equal_report(report: StopReport | StatusReport) -> None:
    assert sum(report.counts.values()) == len(report)  # the cached counts must not get in the way
    for twin in (
        type(report).from_json(report.to_json()),
        type(report).from_json(report.to_json().encode()),
        pickle.loads(pickle.dumps(report)),
        copy.deepcopy(report),
    ):
        assert twin == report
        assert list(twin) == list(report)
        assert twin.counts == report.counts
        assert getattr(twin, "stats", None) == getattr(report, "stats", None)
        assert list(map(repr, twin.values())) == list(map(repr, report.values()))


def test_the_json_of_a_report_has_the_documented_words() -> None:
    no = "Stopping task is unavailable"
    stopped = StopReport.of(
        [
            StopOutcome(64, 2, StopResult.STOP_SENT, TaskStatus.RUNNING, restarted_as=1064),
            StopOutcome(68, 2, StopResult.UNAVAILABLE, error=no),
        ],
        StopStats(1, 1, 0, 0.5),
    )
    names = ("task_id", "project_id", "result", "status", "error", "restarted_as")
    rows = (64, 2, "stop_sent", "Running", None, 1064), (68, 2, "unavailable", None, no, None)
    assert json.loads(stopped.to_json()) == {
        "outcomes": [dict(zip(names, row, strict=True)) for row in rows],
        "stats": {"status_calls": 1, "stop_calls": 1, "retries": 0, "elapsed": 0.5},
    }
    live = TaskState(1064, TaskStatus.RUNNING, details={"initial_task_id": 64})
    told = StatusReport.of([TaskState(64, TaskStatus.STALLED, restarted_as=live)])
    inner = {"task_id": 1064, "status": "Running", "error": None, "restarted_as": None}
    inner["details"] = {"initial_task_id": 64}
    outer = {"task_id": 64, "status": "Stalled", "error": None, "restarted_as": inner}
    assert json.loads(told.to_json()) == {"states": [outer | {"details": {}}]}


ROW: dict[str, Any] = {"task_id": 66, "project_id": 2, "result": "stop_sent"}
STATE: dict[str, Any] = {"task_id": 66, "status": "Running"}


def document(**changes: Any) -> str:
    return json.dumps({"outcomes": [ROW | changes], "stats": {}})


def state_document(**changes: Any) -> str:
    return json.dumps({"states": [STATE | changes]})


def test_members_of_later_versions_are_ignored_and_whole_seconds_are_seconds() -> None:
    text = {"outcomes": [ROW | {"new": 1}], "stats": {"new": 1, "elapsed": 2}, "new": [1]}
    report = StopReport.from_json(json.dumps(text))
    assert report == StopReport.of([outcome(66)])
    assert (report.stats, type(report.stats.elapsed)) == (StopStats(elapsed=2.0), float)
    assert StatusReport.from_json(state_document(new=1)) == StatusReport.of(
        [TaskState(66, "Running")]
    )


BAD_ANYWHERE: list[tuple[str | bytes, str]] = [
    ("", ""),
    ("{", ""),
    (b"\xff", ""),
    ("\ud800", ""),
    ("[" * 100_000, ""),
    ("[]", "expected dict"),
    ("null", "expected dict"),
    ('"report"', "expected dict"),
    ("66", "expected dict"),
]
BAD_STOP_REPORTS: list[tuple[str | bytes, str]] = [
    *BAD_ANYWHERE,
    ("{}", "outcomes"),
    ('{"outcomes": []}', "stats"),
    ('{"outcomes": {}, "stats": {}}', "outcomes"),
    ('{"outcomes": 5, "stats": {}}', "outcomes"),
    ('{"outcomes": [5], "stats": {}}', "outcomes[0]"),
    ('{"outcomes": [], "stats": []}', "stats"),
    *(
        (json.dumps({"outcomes": [], "stats": {name: value}}), f"stats.{name}")
        for name, value in (("retries", "1"), ("retries", 1.0), ("elapsed", "1"))
    ),
    ('{"outcomes": [], "stats": {"elapsed": 1' + "0" * 400 + "}}", "elapsed"),
    ('{"outcomes": [], "stats": {"elapsed": NaN}}', ""),
    *(
        (document(**{name: value}), f"outcomes[0].{name}")
        for name, values in {
            "task_id": ("66", True, 66.0, None),
            "project_id": ("2",),
            "result": ("stopped", None),
            "status": (5,),
            "error": (5,),
            "restarted_as": ("1066",),
        }.items()
        for value in values
    ),
    (json.dumps({"outcomes": [ROW, ROW], "stats": {}}), "more than once"),
]
BAD_STATUS_REPORTS: list[tuple[str | bytes, str]] = [
    *BAD_ANYWHERE,
    ("{}", "states"),
    ('{"states": {}}', "states"),
    (state_document(task_id="66"), "states[0].task_id"),
    (state_document(status=5), "states[0].status"),
    (state_document(details=[]), "states[0].details"),
    (state_document(restarted_as=5), "states[0].restarted_as"),
    (json.dumps({"states": [STATE, STATE]}), "more than once"),
]


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        *((StopReport, *case) for case in BAD_STOP_REPORTS),
        *((StatusReport, *case) for case in BAD_STATUS_REPORTS),
    ],
)
def test_a_text_that_is_no_report_is_a_value_error_that_says_where(
    kind: type[StopReport | StatusReport], text: str | bytes, words: str
) -> None:
    with pytest.raises(ValueError, match="not a report") as caught:
        kind.from_json(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("kind", [StopReport, StatusReport])
@given(text=st.binary() | st.text() | any_json.map(json.dumps))
def test_no_text_does_worse_than_a_value_error(
    kind: type[StopReport | StatusReport], text: str | bytes
) -> None:
    with pytest.raises(ValueError, match="not a report"):
        kind.from_json(text)


# --- Status reports -------------------------------------------------------------------------------


def test_a_status_report_is_in_order_and_counts_all_statuses_and_those_that_occur() -> None:
    given_states = [
        TaskState(9, TaskStatus.RUNNING),
        TaskState(3, "Hibernating"),
        TaskState(7, error="Task does not exist"),
        TaskState(5, TaskStatus.RUNNING, details={"stream": {"name": "Новости"}}),
    ]
    report = StatusReport.of([TaskState(9, None, "replaced"), *given_states])
    assert list(report.items()) == [(state.task_id, state) for state in given_states]
    assert report[5] is given_states[3]
    assert report.ids(TaskStatus.RUNNING) == [9, 5]
    assert report.ids("Hibernating", None) == [3, 7]
    assert list(report.counts) == [*TaskStatus, "Hibernating", None]
    assert (report.counts[TaskStatus.RUNNING], report.counts[TaskStatus.STALLED]) == (2, 0)
    assert report.counts["Hibernating"] == report.counts[None] == 1
    assert repr(report) == "StatusReport(4 tasks: 2 Running, 1 Hibernating, 1 error)"
    assert repr(StatusReport()) == "StatusReport(0 tasks)"
