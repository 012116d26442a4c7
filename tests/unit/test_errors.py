"""Errors: their kinds, texts and attributes, and what they mean for the requests to come."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from ctrlapi_async._errors import (
    MAX_TEXT,
    AuthError,
    CtrlApiError,
    DeadlineError,
    HtmlReplyError,
    HttpError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    ReplyTooLargeError,
    RequestError,
    RequestTimeoutError,
    StopIncompleteError,
    TasksDeniedError,
    TlsError,
    Trait,
    UndefinedMethodError,
    UserUnavailableError,
    bounded,
    text_of,
    traits_of,
)
from ctrlapi_async._models import StopOutcome, StopResult
from ctrlapi_async._reports import StopReport

REPORT = StopReport.of([StopOutcome(66, 2, StopResult.NOT_SENT)])
GONE = ProjectNotFoundError("TaskStop", "project 9 does not exist")
LOST = RequestError("http://server was not reached: refused", sent=False)
SUMMARY = "1 of 1 task without an answer"

# Each with its text and its attributes.
ERRORS: list[tuple[CtrlApiError, str, dict[str, Any]]] = [
    (CtrlApiError(), "", {}),
    (LOST, "http://server was not reached: refused", {"sent": False}),
    (RequestError("cut"), "cut", {"sent": True}),
    (DeadlineError("too late"), "too late", {"sent": True}),
    (RequestTimeoutError("no answer", sent=False), "no answer", {"sent": False}),
    (TlsError("expired"), "expired", {"sent": False}),
    (
        HttpError("HTTP 502", 502, "<html>", 1.5),
        "HTTP 502",
        {"status": 502, "excerpt": "<html>", "retry_after": 1.5},
    ),
    (AuthError("no", 403), "no", {"status": 403, "excerpt": "", "retry_after": None}),
    (
        ReplyError("no `result`", "$.reply[0]", "{}"),
        "no `result` at $.reply[0]: '{}'",
        {"where": "$.reply[0]", "excerpt": "{}"},
    ),
    (ReplyError("empty"), "empty at $", {"where": "$", "excerpt": ""}),
    (HtmlReplyError("a page"), "a page at $", {"where": "$"}),
    (ReplyTooLargeError("too large"), "too large at $", {}),
    (MethodError("TaskStop", "no"), "TaskStop: no", {"method": "TaskStop", "message": "no"}),
    (GONE, "TaskStop: project 9 does not exist", {"method": "TaskStop"}),
    (UserUnavailableError("X", "user 5 is"), "X: user 5 is", {"message": "user 5 is"}),
    (TasksDeniedError("X", "denied", [1]), "X: denied", {"task_ids": (1,), "message": "denied"}),
    (UndefinedMethodError("X", "Undefined"), "X: Undefined", {"method": "X"}),
    (
        StopIncompleteError(SUMMARY, [LOST, GONE], REPORT),
        f"{SUMMARY}: http://server was not reached: refused",
        {"report": REPORT, "message": SUMMARY},
    ),
]


@pytest.mark.parametrize(
    ("error", "text", "attributes"), ERRORS, ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("through", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_keep_what_they_know_when_copied_and_pickled(
    error: CtrlApiError, text: str, attributes: Any, through: Any
) -> None:
    for each in (error, through(error)):
        assert type(each) is type(error)
        assert str(each) == text
        assert {name: getattr(each, name) for name in attributes} == attributes
        causes = getattr(error, "exceptions", ())
        assert list(map(repr, getattr(each, "exceptions", ()))) == list(map(repr, causes))


def test_late_answers_are_timeouts_too_and_an_incomplete_stop_is_a_group() -> None:
    assert issubclass(DeadlineError, TimeoutError)
    assert issubclass(RequestTimeoutError, TimeoutError)
    assert issubclass(StopIncompleteError, ExceptionGroup)


# --- Bounds ---------------------------------------------------------------------------------------

LONG = "x" * 100_000
WORDY: list[CtrlApiError] = [
    CtrlApiError(LONG),
    RequestError(LONG),
    TlsError(LONG),
    HttpError(LONG, 502, LONG),
    ReplyError(LONG, LONG, LONG),
    MethodError(LONG, LONG),
    TasksDeniedError(LONG, LONG, [1]),
    StopIncompleteError(SUMMARY, [RequestError(LONG), ValueError(LONG)], REPORT),
    StopIncompleteError(SUMMARY, [ValueError(LONG)], REPORT),
]


@pytest.mark.parametrize("error", WORDY, ids=lambda error: type(error).__name__)
def test_no_text_of_an_error_is_endless(error: CtrlApiError) -> None:
    texts = [str(error), text_of(error), *map(str, vars(error).values())]
    assert all(len(text) <= MAX_TEXT for text in texts)


def test_a_bounded_text_shows_that_it_was_cut() -> None:
    assert bounded("x" * MAX_TEXT) == "x" * MAX_TEXT
    cut = bounded("x" * (MAX_TEXT + 1))
    assert len(cut) == MAX_TEXT
    assert cut.endswith("x...")


def test_the_text_of_an_error_is_the_servers_own_where_there_is_one() -> None:
    assert text_of(GONE) == "project 9 does not exist"
    assert text_of(LOST) == str(LOST)
    assert text_of(OSError("disk full")) == "disk full"


# --- The group ------------------------------------------------------------------------------------


def test_an_incomplete_stop_names_its_first_cause() -> None:
    nested = ExceptionGroup("source", [KeyError(), GONE])
    assert str(StopIncompleteError(SUMMARY, [nested, LOST], REPORT)) == f"{SUMMARY}: KeyError"
    assert str(StopIncompleteError(SUMMARY, [GONE], REPORT)) == f"{SUMMARY}: {GONE}"


def test_except_star_reaches_the_causes_with_the_report() -> None:
    caught: list[BaseException] = []

    def handle() -> None:
        try:
            raise StopIncompleteError(SUMMARY, [GONE, LOST], REPORT)
        except* ProjectNotFoundError as group:
            caught.append(group)

    with pytest.raises(StopIncompleteError) as rest:
        handle()
    (mine,) = caught
    assert isinstance(mine, StopIncompleteError)
    assert mine.report is rest.value.report is REPORT
    assert (mine.exceptions, rest.value.exceptions) == ((GONE,), (LOST,))


def test_what_http_statuses_say_for_sure() -> None:
    said = {
        trait: {n for n in range(201, 600) if trait in traits_of(HttpError("", n))}
        for trait in Trait
    }
    assert said[Trait.NOT_CARRIED_OUT] == {401, 403, 404, 405, 407, 413, 429}
    assert said[Trait.SLOW_DOWN] == {429, 503}
    assert said[Trait.TOO_LARGE] == {413}
    assert said[Trait.PASSING] == {408, 425, 429, *range(500, 600)}
    assert said[Trait.FATAL] == {*range(201, 500)} - {408, 413, 425, 429}
    assert said[Trait.NO_ANSWER] == set()
