"""What becomes of a request that failed: each row of the table, and each kind of error."""

from __future__ import annotations

import pytest

from ctrlapi_async import (
    HttpError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    TasksDeniedError,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async._bulk.decisions import Action, decide
from ctrlapi_async._bulk.jobs import Job, JobKind
from ctrlapi_async._errors import (
    AuthError,
    CtrlApiError,
    DeadlineError,
    HtmlReplyError,
    ReplyTooLargeError,
    RequestTimeoutError,
    TlsError,
)
from ctrlapi_async._protocol.requests import TaskCall

CHECK, STOP, VERIFY = JobKind.CHECK, JobKind.STOP, JobKind.VERIFY
SINGLE_OUT, SPLIT, END_PROJECT = Action.SINGLE_OUT, Action.SPLIT_PROJECTS, Action.END_PROJECT
END_RUN, HALVE, TELL = Action.END_RUN, Action.HALVE, Action.VERIFY
REPEAT, GIVE_UP = Action.REPEAT, Action.GIVE_UP

DENIED = TasksDeniedError("m", "access denied to tasks [1]", [1])
NO_PROJECT = ProjectNotFoundError("m", "project 2 does not exist")
NO_USER = UserUnavailableError("m", "user 1 is unavailable")
NO_METHOD = UndefinedMethodError("m", "Undefined method 'm'")


def http(status: int) -> HttpError:
    return (AuthError if status in (401, 403) else HttpError)(f"HTTP {status}", status)


def job(kind: JobKind, *sizes: int) -> Job:
    return Job(kind, [TaskCall(n, list(range(size))) for n, size in enumerate(sizes, 2)])


# Error; then what becomes of a check and of a stop while nothing has been answered in the
# session, and later.
TABLE: list[tuple[CtrlApiError, tuple[Action, Action], tuple[Action, Action]]] = [
    (DENIED, (SINGLE_OUT, SINGLE_OUT), (SINGLE_OUT, SINGLE_OUT)),
    (NO_PROJECT, (END_PROJECT, END_PROJECT), (END_PROJECT, END_PROJECT)),
    (NO_USER, (END_RUN, END_RUN), (REPEAT, REPEAT)),
    (NO_METHOD, (END_RUN, END_RUN), (REPEAT, REPEAT)),
    (MethodError("m", "license expired"), (GIVE_UP, TELL), (GIVE_UP, TELL)),
    *((http(n), (END_RUN, END_RUN), (REPEAT, REPEAT)) for n in (401, 403, 404, 405, 407)),
    *((http(n), (END_RUN, END_RUN), (REPEAT, TELL)) for n in (204, 302, 400, 402, 409, 418, 422)),
    *((http(n), (REPEAT, TELL), (REPEAT, TELL)) for n in (408, 425, 500, 502, 503, 504, 599)),
    (http(429), (REPEAT, REPEAT), (REPEAT, REPEAT)),
    (http(413), (HALVE, HALVE), (HALVE, HALVE)),
    (RequestError("cut"), (REPEAT, TELL), (REPEAT, TELL)),
    (RequestError("no connection", sent=False), (REPEAT, REPEAT), (REPEAT, REPEAT)),
    (RequestTimeoutError("late"), (REPEAT, TELL), (REPEAT, TELL)),
    (TlsError("expired"), (END_RUN, END_RUN), (REPEAT, REPEAT)),
    (RequestTimeoutError("no connection", sent=False), (REPEAT, REPEAT), (REPEAT, REPEAT)),
    (DeadlineError("over"), (GIVE_UP, TELL), (GIVE_UP, TELL)),
    (DeadlineError("over", sent=False), (GIVE_UP, GIVE_UP), (GIVE_UP, GIVE_UP)),
    (ReplyError("cut"), (REPEAT, TELL), (REPEAT, TELL)),
    (ReplyTooLargeError("large"), (HALVE, TELL), (HALVE, TELL)),
    (HtmlReplyError("<html>"), (END_RUN, END_RUN), (REPEAT, TELL)),
]


@pytest.mark.parametrize(("error", "at_first", "later"), TABLE, ids=lambda case: repr(case)[:40])
def test_what_becomes_of_a_check_and_of_a_stop(
    error: CtrlApiError, at_first: tuple[Action, Action], later: tuple[Action, Action]
) -> None:
    for proven, expected in ((False, at_first), (True, later)):
        for kind, action in zip((CHECK, STOP), expected, strict=True):
            done = decide(job(kind, 4), error, proven=proven, only_project=True, spoiled=False)
            assert done is action, (kind, proven)


@pytest.mark.parametrize(
    ("error", "kind", "sizes", "flags", "action"),
    [
        # A request of many projects is refused for one user: perhaps one project's.
        (NO_USER, CHECK, (1, 1), "", SPLIT),
        (NO_USER, STOP, (1, 1), "", SPLIT),
        (NO_USER, CHECK, (3,), "", END_PROJECT),
        # One task cannot be divided.
        (http(413), CHECK, (1,), "only", GIVE_UP),
        (http(413), STOP, (1,), "only", GIVE_UP),
        (ReplyTooLargeError("large"), CHECK, (1,), "only", GIVE_UP),
        # What fails alone is halved, down to the task that spoils it.
        *((http(status), CHECK, (4,), "only, spoiled", HALVE) for status in (400, 500, 503, 504)),
        *((http(status), CHECK, (1,), "only, spoiled", REPEAT) for status in (400, 500, 502, 503)),
        (ReplyError("cut"), VERIFY, (4,), "only, spoiled", HALVE),
        (RequestError("cut"), CHECK, (4,), "only, spoiled", HALVE),
        (http(500), STOP, (4,), "only, spoiled", TELL),
        # These are no task's doing.
        (http(429), CHECK, (4,), "only, spoiled", REPEAT),
        *((http(status), CHECK, (4,), "only, spoiled", REPEAT) for status in (404, 408, 425)),
        (RequestError("no connection", sent=False), STOP, (4,), "only, spoiled", REPEAT),
    ],
    ids=lambda case: repr(case)[:30],
)
def test_what_else_counts(
    error: CtrlApiError, kind: JobKind, sizes: tuple[int, ...], flags: str, action: Action
) -> None:
    only_project, spoiled = "only" in flags, "spoiled" in flags
    done = decide(job(kind, *sizes), error, proven=True, only_project=only_project, spoiled=spoiled)
    assert done is action
