"""Repeats that are honest: attempts, pauses, lost stops, large requests, tasks that spoil."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import (
    HttpError,
    MethodError,
    ReplyError,
    RequestError,
    RetryPolicy,
    StopResult,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async._bulk.causes import MAX_OF_KIND, Causes
from ctrlapi_async._bulk.jobs import JobKind
from ctrlapi_async._bulk.recovery import SINGLED_OUT_ATTEMPTS
from ctrlapi_async._errors import (
    AuthError,
    HtmlReplyError,
    ReplyTooLargeError,
    RequestTimeoutError,
    TlsError,
    text_of,
)
from tests.support.drive import Drive, Request
from tests.support.oracle import RUNNING, STATUS, STOP, ModelServer

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async import CtrlApiError

SENT, NOT_SENT = StopResult.STOP_SENT, StopResult.NOT_SENT
UNCONFIRMED, NOT_RUNNING = StopResult.UNCONFIRMED, StopResult.NOT_RUNNING
CHECK, STOPPING, VERIFY = JobKind.CHECK, JobKind.STOP, JobKind.VERIFY
POLICY = RetryPolicy(attempts=5, wait_initial=1.0, wait_max=4.0, timeout=None)


def http(status: int, retry_after: float | None = None) -> HttpError:
    kind = AuthError if status in (401, 403) else HttpError
    return kind(f"HTTP {status}", status, retry_after=retry_after)


def always(
    error: CtrlApiError, method: str | None = None
) -> Callable[[Request], CtrlApiError | None]:
    return lambda request: error if method in (None, request.method) else None


def spoiling(
    task_id: int, error: CtrlApiError, method: str | None = None
) -> Callable[[Request], CtrlApiError | None]:
    return lambda one: error if task_id in one.ids and method in (None, one.method) else None


def pauses(drive: Drive) -> list[float]:
    """Return the seconds between one request and the next."""
    times = [request.at for request in drive.requests]
    return [later - at for at, later in pairwise(times)]


def others(task_id: int) -> list[int]:
    return [n for n in range(64) if n != task_id]


# --- attempts and pauses --------------------------------------------------------------------------


def test_a_check_is_repeated_with_pauses_that_grow_and_then_given_up() -> None:
    drive = Drive([1], policy=POLICY, fault=always(http(500))).run()
    assert pauses(drive) == [0.5, 1.0, 2.0, 2.0]  # half of 1, 2, 4 and 4
    assert drive.results() == {NOT_SENT}
    assert [str(error) for error in drive.plan.errors] == ["HTTP 500"]
    stats = drive.plan.stats(drive.now)
    assert (stats.status_calls, stats.stop_calls, stats.retries, stats.elapsed) == (5, 0, 4, 5.5)


@pytest.mark.parametrize(
    ("timeout", "requests"), [(None, 5), (100.0, 5), (3.5, 4), (1.5, 3), (0.4, 1), (0.0, 1)]
)
def test_no_request_is_repeated_after_the_time_of_the_policy(
    timeout: float | None, requests: int
) -> None:
    policy = RetryPolicy(attempts=5, wait_initial=1.0, wait_max=4.0, timeout=timeout)
    drive = Drive([1], policy=policy, fault=always(RequestError("cut"))).run()
    assert len(drive.requests) == requests
    assert drive.now <= (timeout or 100.0)


def test_a_lost_stop_is_not_sent_again_after_the_time_of_the_policy() -> None:
    policy = RetryPolicy(wait_initial=1.0, timeout=0.4)
    drive = Drive([1], policy=policy, fault=always(RequestError("cut"), STOP)).run()
    assert [request.kind for request in drive.requests] == [CHECK, STOPPING, VERIFY]
    assert drive.results() == {UNCONFIRMED}
    assert (drive.outcomes[1].status, drive.outcomes[1].error) == (RUNNING, "cut")


@pytest.mark.parametrize("method", [STATUS, STOP])
def test_retry_after_is_honoured_in_full(method: str) -> None:
    faults = iter([http(429, 30.0), http(503, 0.0), None])
    drive = Drive([1], policy=RetryPolicy(timeout=60.0))
    drive.fault = lambda request: next(faults, None) if request.method == method else None
    drive.run()
    assert drive.results() == {SENT}
    times = [request.at for request in drive.sent(method)]
    assert times[1] == 30.0
    assert 30.0 < times[2] < 31.5


@pytest.mark.parametrize(
    ("options", "timeout"), [({}, 20.0), ({"timeout": 20.0}, None)], ids=["policy", "run"]
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_time_does_not_allow_ends_the_run_at_once_and_says_so(
    options: dict[str, Any], timeout: float | None, status: int
) -> None:
    drive = Drive(
        [1], policy=RetryPolicy(timeout=timeout), fault=always(http(status, 30.0), STOP), **options
    ).run()
    assert drive.now == 0.0
    [error] = {str(error) for error in drive.plan.errors} - {f"HTTP {status}"}
    assert "asks to wait 30 s, longer than allowed" in error
    assert drive.results() == {NOT_SENT if status == 429 else UNCONFIRMED}


def test_a_wait_for_one_task_s_sake_ends_that_task_only() -> None:
    drive = Drive(range(64), chunk=1, fault=spoiling(3, http(500, 1e6))).run()
    assert (drive.results([3]), drive.results(others(3))) == ({NOT_SENT}, {SENT})


# --- slow down ------------------------------------------------------------------------------------


def test_refusals_that_nobody_gets_past_are_counted() -> None:
    drive = Drive(range(400), chunk=100, slots=4, policy=POLICY, fault=always(http(429))).run()
    assert drive.results() == {NOT_SENT}
    assert len(drive.requests) <= 4 * 5 + 2


# --- what is too large, and what spoils a request -------------------------------------------------


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("ceiling", [1, 7, 64])
def test_a_request_that_is_too_large_is_halved(method: str, ceiling: int) -> None:
    def fault(request: Request) -> CtrlApiError | None:
        large = request.method == method and request.size > ceiling
        return http(413) if large else None

    drive = Drive(range(100), fault=fault).run()
    assert drive.results() == {SENT}
    assert all(task.stop_requests == 1 for task in drive.server.tasks.values())
    assert drive.plan.errors == []


@pytest.mark.parametrize("error", [http(413), ReplyTooLargeError("reply of more than 9 bytes")])
def test_one_task_that_is_too_large_is_given_up_at_once(error: CtrlApiError) -> None:
    drive = Drive(range(64), fault=spoiling(3, error)).run()
    assert (drive.results([3]), drive.results(others(3))) == ({NOT_SENT}, {SENT})
    assert len(drive.sent(STATUS)) <= 2 * 6 + 1


SPOILED = [
    *map(http, (500, 502, 503)),
    ReplyError("malformed"),
    RequestError("cut"),
    RequestTimeoutError("no answer"),
]


@pytest.mark.parametrize("error", SPOILED, ids=str)
@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("chunk", [16, 64], ids=["among others", "alone"])
def test_a_task_that_spoils_its_chunk_is_found_and_the_others_go_on(
    error: CtrlApiError, method: str, chunk: int
) -> None:
    drive = Drive(range(64), chunk=chunk, policy=RetryPolicy(timeout=None), slots=2)
    drive.fault = spoiling(50, error, method)
    drive.run()
    assert drive.results(others(50)) == {SENT}
    assert drive.results([50]) == {NOT_SENT if method == STATUS else UNCONFIRMED}
    assert len([one for one in drive.sent(method) if one.ids == [50]]) <= 17
    assert len(drive.requests) < 100


@pytest.mark.parametrize("lasting", [http(400), http(500), http(502)], ids=str)
def test_a_task_that_keeps_failing_while_others_succeed_is_given_up_sooner(
    lasting: HttpError,
) -> None:
    drive = Drive(range(64), chunk=16, fault=spoiling(50, lasting)).run()
    assert (drive.results([50]), drive.results(others(50))) == ({NOT_SENT}, {SENT})
    assert len([one for one in drive.requests if one.ids == [50]]) <= SINGLED_OUT_ATTEMPTS


# --- stops of unknown fate ------------------------------------------------------------------------

UNKNOWN_FATE = [
    *map(http, (302, 400, 408, 410, 500, 503)),
    MethodError(STOP, "license expired"),
    RequestError("cut"),
    RequestTimeoutError("no answer"),
    ReplyError("cut"),
    ReplyTooLargeError("large"),
    HtmlReplyError("<html>"),
]
UNDONE = [
    *map(http, (401, 403, 404, 405, 407, 413, 429)),
    RequestError("no connection", sent=False),
    TlsError("expired"),
    UserUnavailableError(STOP, "user 1 is unavailable"),
]


@pytest.mark.parametrize("error", UNKNOWN_FATE, ids=str)
@pytest.mark.parametrize(
    ("effect", "becomes", "result", "stops"),
    [
        (True, "Canceled", SENT, 1),
        (True, "Completed", NOT_RUNNING, 1),
        (True, "Stalled", NOT_RUNNING, 1),
        (False, RUNNING, SENT, 2),
        (False, None, UNCONFIRMED, 1),
    ],
)
def test_the_fate_of_a_stop_is_asked_after_a_pause(
    error: CtrlApiError, effect: bool, becomes: str | None, result: StopResult, stops: int
) -> None:
    lost = iter([error])

    def fault(request: Request) -> CtrlApiError | None:
        if request.method != STOP or (met := next(lost, None)) is None:
            return None
        if effect:
            list(drive.server.stop(request.ids))
        for task_id in request.ids:
            drive.server.tasks[task_id].status = becomes or ""
        if becomes is None:
            drive.server.tasks.clear()
        return met

    drive = Drive([1, 2], denial="no row", fault=fault)
    drive.run()
    kinds = [request.kind for request in drive.requests]
    assert kinds == [CHECK, STOPPING, VERIFY, *[STOPPING] * (stops - 1)]
    assert drive.requests[2].at > drive.requests[1].at
    assert drive.results() == {result}
    for outcome in drive.outcomes.values():
        assert outcome.status == (becomes or RUNNING)
        assert stops > 1 or text_of(error) in (outcome.error or "")
    assert bool(drive.plan.errors) is (result is UNCONFIRMED)


@pytest.mark.parametrize("error", UNDONE, ids=str)
def test_a_stop_that_surely_changed_nothing_is_repeated_at_once(error: CtrlApiError) -> None:
    faults = iter([error])
    drive = Drive([1, 2], fault=lambda one: next(faults, None) if one.method == STOP else None)
    drive.run()
    kinds = [request.kind for request in drive.requests]
    assert VERIFY not in kinds
    assert drive.results() == {SENT}
    assert drive.outcomes[1].error is None


def test_a_stop_that_is_lost_again_and_again_stays_unconfirmed() -> None:
    drive = Drive([1], policy=POLICY, fault=always(RequestError("cut"), STOP)).run()
    assert (len(drive.sent(STOP)), len(drive.sent(STATUS))) == (5, 6)
    assert drive.results() == {UNCONFIRMED}
    assert [str(error) for error in drive.plan.errors] == ["cut"]


def test_a_stop_whose_fate_cannot_be_learnt_stays_unconfirmed() -> None:
    def fault(request: Request) -> CtrlApiError | None:
        return None if request.kind is CHECK else RequestError(f"cut {request.method}")

    drive = Drive([1], policy=POLICY, fault=fault).run()
    assert len(drive.sent(STOP)) == 1
    assert drive.outcomes[1].error == "cut TaskStop; cut TaskStatus"


def test_a_refusal_after_a_lost_stop_may_be_that_stop_s_work() -> None:
    def fault(request: Request) -> CtrlApiError | None:
        if len(drive.sent(STOP)) == 1 and request.kind is STOPPING:
            return RequestError("cut")
        if request.kind is STOPPING:  # now the first one takes effect
            list(drive.server.stop([1]))
            drive.server.tasks[1].status = "Canceled"
        return None

    drive = Drive([1], fault=fault)
    drive.run()
    assert [one.kind for one in drive.requests] == [CHECK, STOPPING, VERIFY, STOPPING, VERIFY]
    assert (drive.results(), drive.outcomes[1].status) == ({SENT}, "Canceled")


# --- what would meet any request ------------------------------------------------------------------

FATAL = [
    *map(http, (302, 400, 401, 403, 404, 405, 407, 422)),
    HtmlReplyError("<html>"),
    TlsError("expired"),
    UserUnavailableError(STATUS, "user 1 is …"),
    UndefinedMethodError(STATUS, "Undefined method 'TaskStatus'"),
]


@pytest.mark.parametrize("error", FATAL, ids=str)
def test_what_would_meet_any_request_ends_the_run_at_the_start(error: CtrlApiError) -> None:
    drive = Drive(range(40), chunk=10, slots=2, fault=always(error)).run()
    assert len(drive.requests) == 2  # those in flight
    assert drive.plan.fatal_error is error
    assert drive.results() == {NOT_SENT}
    assert drive.plan.errors == [error]


def test_a_reply_in_flight_when_the_run_ends_for_good_is_still_used() -> None:
    drive = Drive(range(20), chunk=10, slots=2, fault=spoiling(0, http(401)))
    for task_id in range(10, 20):
        drive.server.tasks[task_id].status = "Completed"
    drive.run()
    assert drive.results(range(10)) == {NOT_SENT}
    assert drive.results(range(10, 20)) == {NOT_RUNNING}


@pytest.mark.parametrize("error", FATAL[:-2], ids=str)
@pytest.mark.parametrize("lasting", [False, True])
def test_later_it_is_a_passing_fault_within_bounds(error: CtrlApiError, lasting: bool) -> None:
    def fault(_: Request) -> CtrlApiError | None:
        number = len(drive.requests)
        return error if number == 4 or (lasting and number >= 4) else None

    drive = Drive(range(100), chunk=10, policy=POLICY, fault=fault)
    drive.run()
    if lasting:
        assert drive.plan.fatal_error is error
        assert 5 <= len(drive.requests) <= 4 + 5 * 2 * 10
        assert drive.results() <= {SENT, NOT_SENT, UNCONFIRMED}
    else:
        assert drive.results() == {SENT}
        assert drive.plan.errors == []


def test_an_unknown_method_ends_the_run_even_when_the_other_is_known() -> None:
    error = UndefinedMethodError(STOP, "Undefined method 'TaskStop'")
    drive = Drive(range(4), chunk=2, fault=always(error, STOP)).run()
    assert len(drive.sent(STOP)) == 1
    assert drive.results() == {NOT_SENT}


def test_an_unchecked_stop_of_unknown_fate_that_ends_the_run_is_unconfirmed() -> None:
    drive = Drive([1], check=False, follow_restarts=False, fault=always(http(400))).run()
    assert drive.results() == {UNCONFIRMED}
    assert len(drive.requests) == 1


def test_while_waiting_for_pending_tasks_too() -> None:
    server = ModelServer()
    server.add(2, 1, "Scheduled")
    drive = Drive([1], server=server, wait_pending=60.0, policy=POLICY)
    drive.fault = lambda request: http(404) if request.kind is JobKind.POLL_PENDING else None
    drive.run()
    assert (drive.results(), drive.outcomes[1].status) == ({NOT_SENT}, "Scheduled")


def test_each_error_is_kept_once_and_so_many_of_a_kind_at_most() -> None:
    causes = Causes()
    for number in [*range(3 * MAX_OF_KIND), *range(3 * MAX_OF_KIND)]:
        causes.note(RequestError(f"fault {number}"))
        causes.note(ValueError("of another kind"))
    assert Counter(map(type, causes.errors)) == {RequestError: MAX_OF_KIND, ValueError: 1}
    assert str(causes.errors[0]) == "fault 0"


def test_a_user_who_is_unavailable_in_one_project_stops_tasks_of_the_others() -> None:
    server = ModelServer()
    for task_id in range(8):
        server.add(2 + task_id // 4, task_id)
    drive = Drive(range(4), server=server, streaming=True)
    drive.fault = lambda one: UserUnavailableError("m", "user 1 is") if 0 in one.ids else None
    drive.plan.add_tasks(3, list(range(4, 8)), drive.now)
    drive.plan.close_input(drive.now)
    drive.run()
    assert (drive.results([0, 1, 2, 3]), drive.results([4, 5, 6, 7])) == ({NOT_SENT}, {SENT})
    assert [str(error) for error in drive.plan.errors] == ["m: user 1 is"]
