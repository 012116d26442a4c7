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

# Each with its bases, its text and its attributes.
ERRORS: list[tuple[CtrlApiError, tuple[type, ...], str, dict[str, Any]]] = [
    (LOST, (RequestError,), "http://server was not reached: refused", {"sent": False}),
    (RequestError("cut"), (RequestError,), "cut", {"sent": True}),
    (DeadlineError("too late"), (RequestError, TimeoutError), "too late", {"sent": True}),
    (
        RequestTimeoutError("no answer", sent=False),
        (RequestError, TimeoutError),
        "no answer",
        {"sent": False},
    ),
    (TlsError("expired"), (RequestError,), "expired", {"sent": False}),
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
    (ReplyTooLargeError("too large"), (ReplyError,), "too large at $", {}),
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
        StopIncompleteError(SUMMARY, [LOST, GONE], REPORT),
        (ExceptionGroup,),
        f"{SUMMARY}: http://server was not reached: refused",
        {"report": REPORT, "message": SUMMARY},
    ),
]


@pytest.mark.parametrize(
    ("error", "kinds", "text", "attributes"), ERRORS, ids=lambda value: type(value).__name__
)
@pytest.mark.parametrize("through", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_errors_keep_what_they_know_when_copied_and_pickled(
    error: CtrlApiError, kinds: tuple[type, ...], text: str, attributes: Any, through: Any
) -> None:
    for each in (error, through(error)):
        assert type(each) is type(error)
        assert all(isinstance(each, kind) for kind in (CtrlApiError, *kinds))
        assert str(each) == text
        assert {name: getattr(each, name) for name in attributes} == attributes


def test_an_error_without_a_text_has_an_empty_one() -> None:
    assert not str(CtrlApiError())


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


def test_an_incomplete_stop_pickles_with_its_causes() -> None:
    twin = pickle.loads(pickle.dumps(StopIncompleteError(SUMMARY, [GONE, LOST], REPORT)))
    assert list(map(str, twin.exceptions)) == [str(GONE), str(LOST)]
    assert list(map(type, twin.exceptions)) == [ProjectNotFoundError, RequestError]


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


def test_an_incomplete_stop_splits_and_derives_with_its_report() -> None:
    error = StopIncompleteError(SUMMARY, [GONE, LOST], REPORT)
    mine, others = error.split(RequestError)
    assert isinstance(mine, StopIncompleteError)
    assert isinstance(others, StopIncompleteError)
    assert mine.report is others.report is error.derive([LOST]).report is REPORT
    assert (mine.exceptions, others.exceptions) == ((LOST,), (GONE,))


# --- Traits ---------------------------------------------------------------------------------------

N, P, F = Trait.NOT_CARRIED_OUT, Trait.PASSING, Trait.FATAL
S, L, T, A = Trait.SLOW_DOWN, Trait.TOO_LARGE, Trait.TASK_MAY_CAUSE, Trait.NO_ANSWER

BY_STATUS = {
    204: F,
    302: F,
    400: F | T,
    401: N | F,
    402: F,
    403: N | F,
    404: N | F,
    405: N | F,
    406: F,
    407: N | F,
    408: P,
    409: F,
    410: F,
    413: N | L,
    418: F,
    425: P,
    426: F,
    429: N | P | S,
    500: P | T,
    502: P | T,
    503: P | T | S,
    504: P | T,
    507: P | T,
    520: P | T,
}


@pytest.mark.parametrize(("status", "traits"), BY_STATUS.items())
def test_traits_of_an_http_status(status: int, traits: Trait) -> None:
    kind = AuthError if status in (401, 403) else HttpError
    assert traits_of(kind(f"HTTP {status}", status)) is traits


BY_KIND: list[tuple[Exception, Trait]] = [
    (RequestError("cut"), P | T | A),
    (RequestError("refused", sent=False), P | N | A),
    (RequestTimeoutError("no answer"), P | T | A),
    (RequestTimeoutError("no connection", sent=False), P | N | A),
    (DeadlineError("too late"), Trait(0)),
    (DeadlineError("too late", sent=False), N),
    (TlsError("expired"), F | N),
    (ReplyError("malformed"), P | T),
    (HtmlReplyError("a page"), F),
    (ReplyTooLargeError("too large"), T),
    (MethodError("TaskStop", "license expired"), Trait(0)),
    (UserUnavailableError("TaskStop", "user 5 is unavailable"), F | N),
    (UndefinedMethodError("X", "Undefined method 'X'"), F | N),
    (GONE, N),
    (TasksDeniedError("TaskStop", "access denied to tasks [1]"), N),
    (StopIncompleteError(SUMMARY, [GONE], REPORT), Trait(0)),
    (KeyError("a bug"), Trait(0)),
]


@pytest.mark.parametrize(("error", "traits"), BY_KIND, ids=lambda value: type(value).__name__)
def test_traits_of_a_kind_of_error(error: Exception, traits: Trait) -> None:
    assert traits_of(error) is traits
