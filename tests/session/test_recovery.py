"""What a run makes of stops of unknown fate, denied ids, requests too large, and spoiled tasks."""

from __future__ import annotations

import asyncio
from math import ceil, log2
from typing import TYPE_CHECKING, Any, Final

import pytest

from ctrlapi_async import (
    AuthError,
    CtrlApiError,
    HttpError,
    MethodError,
    ProjectNotFoundError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopReport,
    StopResult,
    TaskStatus,
)
from ctrlapi_async.simulator import (
    Body,
    ControlApiSimulator,
    CutBody,
    DeniedNames,
    Drop,
    Fault,
    Hang,
    HttpStatus,
)
from tests.support.oracle import Oracle
from tests.support.simulated import (
    STATUS,
    STOP,
    ended,
    letters,
    open_session,
    rewrite_rows,
    simulated,
    stopped,
)
from tests.support.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ctrlapi_async.simulator import RequestRecord

SENT = StopResult.STOP_SENT
NOT_RUNNING = StopResult.NOT_RUNNING
NOT_FOUND = StopResult.NOT_FOUND
NOT_SENT = StopResult.NOT_SENT
UNCONFIRMED = StopResult.UNCONFIRMED
THREE: Final = RetryPolicy(attempts=3, wait_initial=0)


async def stop_all(
    api: ControlApiSimulator,
    task_ids: Sequence[int],
    choose: Callable[[RequestRecord], Fault | None] = lambda _: None,
    *,
    retry: RetryPolicy = THREE,
    chunk: int = 5,
    at_once: int = 1,
    checked: bool = True,
    sound: bool = False,
) -> tuple[Witness, StopReport, StopIncompleteError | None]:
    """Stop tasks in a session of their own, judged by the oracle."""
    oracle = Oracle(check=checked, attempts=retry.attempts)
    oracle.ask(2, task_ids)
    witness = Witness(api, choose, oracle)
    async with open_session(api, chunk, at_once, retry=retry) as session:
        stop = session.stop_running if checked else session.task_stop
        report, error = await ended(stop(2, task_ids))
    witness.check(task_ids, report, error, sound=sound)
    return witness, report, error


def of_stops(fault: Fault, number: int = 1, *, always: bool = False) -> Callable[[Any], Any]:
    """Return a script of one fault, for a TaskStop or for all from it on."""

    def choose(record: RequestRecord) -> Fault | None:
        own = record.numbers.get(STOP, 0)
        return fault if own == number or (always and own > number) else None

    return choose


# --- stops of unknown fate ------------------------------------------------------------------------

TAKEN: Final[dict[str, Fault]] = {
    "drop": Drop(effect=True),
    "cut body": CutBody(),
    "timeout": Hang(effect=True),
    "500": HttpStatus(500, effect=True),
    "503": HttpStatus(503, effect=True),
    "400": HttpStatus(400, effect=True),
    "unknown text": Body('{"reply": [{"error": "database is locked"}]}', effect=True),
    "empty": Body("", effect=True),
}
FOREVER: Final = 1e9
DELAYS: Final = {
    # Seconds until a stop takes effect, whether every stop's reply is lost -> the requests: one a
    # second, T for TaskStop and S for TaskStatus.
    (0.5, False): ("STS", SENT, "Canceled"),
    (0.5, True): ("STS", SENT, "Canceled"),
    # Canceled between the check and the second stop, which is then "unavailable": checked again.
    (1.5, False): ("STSTS", SENT, "Canceled"),
    (1.5, True): ("STSTS", SENT, "Canceled"),
    (2.5, False): ("STST", SENT, "Running"),
    (2.5, True): ("STSTS", SENT, "Canceled"),
    (FOREVER, False): ("STST", SENT, "Running"),
    (FOREVER, True): ("STSTSTS", UNCONFIRMED, "Running"),
}


@pytest.mark.parametrize(("delay", "always"), DELAYS)
@pytest.mark.parametrize("fault", TAKEN.values(), ids=TAKEN)
@simulated(tick=1)
async def test_stop_whose_reply_was_lost_is_looked_into(
    api: ControlApiSimulator, fault: Fault, delay: float, *, always: bool
) -> None:
    requests, result, status = DELAYS[delay, always]
    api.stop_delay = delay
    api.add_task(1)
    witness, report, _ = await stop_all(api, [1], of_stops(fault, always=always))
    assert letters(witness.requests) == requests
    assert {(one.result, one.status) for one in report.values()} == {(result, status)}
    lost = {"lost" in (one.error or "") for one in report.values()}
    assert lost == {result is SENT and status == "Canceled"}


@pytest.mark.parametrize(("moment", "requests"), [(1.5, "STS"), (2.5, "STSTS")])
@simulated(tick=1)
async def test_task_that_ended_by_itself_while_its_stop_was_lost_is_not_running(
    api: ControlApiSimulator, moment: float, requests: str
) -> None:
    api.add_task(1, life=[(moment, "Completed")])
    witness, report, _ = await stop_all(api, [1], of_stops(Drop()))
    assert letters(witness.requests) == requests
    assert (report[1].result, report[1].status) == (NOT_RUNNING, TaskStatus.COMPLETED)


SILENCES: Final[dict[str, tuple[Fault, type[CtrlApiError]]]] = {
    # What the check after a lost stop meets, again and again -> the class of the error raised.
    "no row": (rewrite_rows(lambda _: []), RequestError),
    "a row with an error": (
        rewrite_rows(lambda rows: [{**row, "status": None, "error": "No"} for row in rows]),
        RequestError,
    ),
    "denied": (Body('{"reply": [{"error": "access denied to tasks [1]"}]}'), RequestError),
    "dropped": (Drop(), RequestError),
    "500": (HttpStatus(500), HttpError),
    "403": (HttpStatus(403), AuthError),
    "unknown text": (Body('{"reply": [{"error": "database is locked"}]}'), MethodError),
}


@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize(("silence", "errors"), SILENCES.values(), ids=SILENCES)
@simulated()
async def test_stop_that_no_check_can_settle_is_unconfirmed(
    api: ControlApiSimulator, silence: Fault, errors: type[CtrlApiError], *, effect: bool
) -> None:
    def choose(record: RequestRecord) -> Fault | None:
        if STOP in record.methods:
            return Drop(effect=effect)
        return silence if record.number > 1 else None

    api.add_task(1)
    witness, report, error = await stop_all(api, [1], choose)
    assert letters(witness.requests).count("T") == 1
    assert (report[1].result, report[1].status) == (UNCONFIRMED, TaskStatus.RUNNING)
    assert error is not None
    assert any(isinstance(met, errors) for met in error.exceptions)


@pytest.mark.parametrize("attempts", range(1, 5))
@pytest.mark.parametrize("faulty_checks", range(4))
@simulated()
async def test_attempts_do_not_multiply(
    api: ControlApiSimulator, attempts: int, faulty_checks: int
) -> None:
    """Every stop is in vain, and each check between them fails a few times before it succeeds."""
    faulty_checks = min(faulty_checks, attempts - 1)
    failed = 0

    def choose(record: RequestRecord) -> Fault | None:
        nonlocal failed
        if STOP in record.methods:
            failed = 0
            return Drop()
        failed += 1
        return HttpStatus(500) if failed <= faulty_checks and record.number > 1 else None

    api.add_task(1)
    retry = RetryPolicy(attempts=attempts, wait_initial=0)
    witness, report, _ = await stop_all(api, [1], choose, retry=retry)
    assert report[1].result is UNCONFIRMED
    assert letters(witness.requests) == "S" + ("T" + "S" * (faulty_checks + 1)) * attempts
    assert report.stats.retries == attempts - 1 + attempts * faulty_checks


@pytest.mark.parametrize("status", [400, 500, 502, 503, 504])
@simulated()
async def test_a_backend_that_dies_after_taking_the_request_loses_nothing(
    api: ControlApiSimulator, status: int
) -> None:
    """As Varnish says 503 when the backend died with the request in hand."""
    ids = list(range(1, 201))
    api.mixed_tasks(200, running=0.7)
    fault = HttpStatus(status, effect=True)
    _, report, error = await stop_all(api, ids, of_stops(fault, always=True), chunk=50)
    assert error is None
    assert set(report.ids(SENT)) == stopped(api)
    assert len(stopped(api)) == 140
    assert {task.stop_requests for task in api.tasks.values()} <= {0, 1}


# --- ids that the server denies -------------------------------------------------------------------

DENIALS: Final = {
    # Ids asked for, chunk, and the bad ones among them.
    "alone": (range(1, 2), 1, {1}),
    "one of two": (range(1, 3), 2, {2}),
    "first of a chunk": (range(1, 101), 100, {1}),
    "last of a chunk": (range(1, 101), 100, {100}),
    "one among hundreds": (range(1, 501), 250, {321}),
    "one in every chunk": (range(1, 401), 100, {7, 150, 299, 301}),
    "scattered": (range(1, 101), 100, {3, 33, 60, 99}),
    "a whole chunk": (range(1, 41), 20, set(range(1, 21))),
    "all": (range(1, 11), 10, set(range(1, 11))),
    "every second one": (range(1, 101), 50, set(range(1, 101, 2))),
}


@pytest.mark.parametrize("checked", [True, False], ids=[STATUS, STOP])
@pytest.mark.parametrize("names", ["bad", "all", "none"])
@pytest.mark.parametrize(("task_ids", "chunk", "bad"), DENIALS.values(), ids=DENIALS)
@simulated()
async def test_denied_ids_are_singled_out(
    api: ControlApiSimulator,
    task_ids: Sequence[int],
    chunk: int,
    bad: set[int],
    names: DeniedNames,
    *,
    checked: bool,
) -> None:
    good = [n for n in task_ids if n not in bad]
    api.denied_names = names
    api.add_project(2)
    api.add_tasks(good)
    witness, report, error = await stop_all(api, task_ids, chunk=chunk, checked=checked, sound=True)
    assert error is None
    assert report.ids(SENT) == good
    assert set(report.ids(NOT_FOUND)) == bad
    assert all("access denied to" in (report[n].error or "") for n in bad)
    assert report.stats.retries == 0
    method = STATUS if checked else STOP
    requests = sum(method in record.methods for record in witness.requests)
    chunks = ceil(len(task_ids) / chunk)
    struck = sum(
        not bad.isdisjoint(task_ids[at : at + chunk]) for at in range(0, len(task_ids), chunk)
    )
    exact = names == "bad" and any(
        not bad.issuperset(task_ids[at : at + chunk]) for at in range(0, chunk * struck, chunk)
    )
    if exact:
        # Each chunk that was refused goes once more, and one call tells that lists are exact.
        assert requests <= chunks + struck + 2
    else:
        search = 3 * len(bad) * (ceil(log2(chunk)) + 2)
        assert requests <= chunks + min(len(task_ids) * (1 if checked else 2) + 10, search)


WORDINGS: Final = {
    # The words of a denial of the tasks 1 to 5 -> the ids that end as NOT_FOUND.
    "access denied to tasks [3]": {3},
    "Access denied to task [3]": {3},
    "access denied to tasks [ 2 ,  4 ]": {2, 4},
    "access denied to tasks [3, 99]": {3},
    "access denied to tasks [1, 2, 3, 4]": {1, 2, 3, 4},
}


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("words", WORDINGS)
@simulated()
async def test_denial_is_read_in_any_spelling(
    api: ControlApiSimulator, words: str, method: str
) -> None:
    bad = WORDINGS[words]
    api.add_tasks(range(1, 6))
    denial = Body(f'{{"reply": [{{"error": "{words}"}}]}}')
    async with open_session(api) as session:
        api.fault(denial, method=method, number=1)
        report = await session.stop_running(2, range(1, 6))
    assert set(report.ids(NOT_FOUND)) == bad
    assert {report[n].error for n in bad} == {words}
    assert set(report.ids(SENT)) == set(range(1, 6)) - bad
    assert api.counters.requests == 3


@simulated()
async def test_ids_of_a_wrong_project_cost_a_request_each_at_most(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(1, 401), project_id=3)
    api.add_project(2)
    async with open_session(api) as session:
        report = await session.stop_running(2, range(1, 401))
        assert report.ids(NOT_FOUND) == list(range(1, 401))
        assert api.counters.requests <= 400 + 20
        api.reset_counters()
        api.add_tasks([5000, 5001])
        report = await session.stop_running(2, [*range(1, 401), 5000, 5001])
    assert report.ids(SENT) == [5000, 5001]
    assert report.counts[NOT_FOUND] == 400
    assert api.counters.requests <= 20


@simulated()
async def test_wrong_project_ends_its_own_tasks_only(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2, 3], project_id=2)
    api.add_tasks([7, 8, 9], project_id=4)
    async with open_session(api, 2, 1) as session:
        targets = {2: [1, 2, 3], 3: [4, 5, 6], 4: [7, 8, 9]}
        report, error = await ended(session.stop_running_across(targets))
    assert report.ids(SENT) == [1, 2, 3, 7, 8, 9]
    assert {report[n].error for n in report.ids(NOT_SENT)} == {"project 3 does not exist"}
    assert error is not None
    assert [type(met) for met in error.exceptions] == [ProjectNotFoundError]


# --- requests that are too large ------------------------------------------------------------------


@pytest.mark.parametrize("checked", [True, False], ids=[STATUS, STOP])
@simulated(max_body=300)
async def test_session_remembers_what_was_too_large_and_tries_larger_ones_again(
    api: ControlApiSimulator, *, checked: bool
) -> None:
    ids = range(1001, 9001)
    api.add_tasks(ids)
    async with open_session(api, 200, 1) as session:
        stop = session.stop_running if checked else session.task_stop
        assert (await stop(2, ids[:400])).stats.retries == 0
        refused = [record for record in api.log if record.json is None]
        assert 0 < len(refused) <= 5
        api.reset_counters()
        assert (await stop(2, ids[400:800])).ids(SENT) == list(ids[400:800])
        sizes = [len(record.ids) for record in api.log if record.ids]
        assert max(sizes) <= 50
        # Larger ones are tried after some time; once they fit, the ceiling rises.
        api.max_body = 10**6
        await stop(2, ids[800:])
        assert max(len(record.ids) for record in api.log) >= 200
    assert stopped(api) == set(ids)


@pytest.mark.parametrize("checked", [True, False], ids=[STATUS, STOP])
@simulated()
async def test_single_id_that_is_too_large_is_an_error_of_that_id(
    api: ControlApiSimulator, *, checked: bool
) -> None:
    long = 2**63 - 1
    params = f'{{"project_id":2,"task_ids":{long}}}'
    body = f'{{"user_id":1,"methods":[{{"method":"{STOP}","id":1,"params":{params}}}]}}'
    api.max_body = len(body) - 1
    api.add_tasks([1, 2, 3, long])
    async with open_session(api, 4, 1, retry=THREE) as session:
        stop = session.stop_running if checked else session.task_stop
        report, error = await ended(stop(2, [1, 2, long, 3]))
    assert report.ids(SENT) == [1, 2, 3]
    assert report.ids(NOT_SENT) == [long]
    assert error is not None
    [met] = error.exceptions
    assert isinstance(met, HttpError)
    assert met.status == 413
    assert [record.json for record in api.log].count(None) <= 3
    assert report.stats.retries == 0


# --- tasks that spoil their requests --------------------------------------------------------------

SPOILING: Final[dict[str, Fault]] = {
    "500": HttpStatus(500),
    "unreadable": Body("{"),
    "too large": Body('{"reply": [' + " " * 30_000),
    "400": HttpStatus(400),
}


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("fault", SPOILING.values(), ids=SPOILING)
@simulated()
async def test_a_task_that_spoils_its_requests_takes_no_other_along(
    api: ControlApiSimulator, fault: Fault, method: str
) -> None:
    ids = list(range(1, 1001))
    api.add_tasks(ids)
    api.fault_when = lambda record: (
        fault if method in record.methods and 777 in record.ids else None
    )
    retry = RetryPolicy(attempts=8, wait_initial=0.1, wait_max=1)
    async with open_session(api, 100, 4, retry=retry, max_reply_bytes=30_000) as session:
        report, error = await ended(session.stop_running(2, ids))
    assert error is not None
    assert len(report.ids(SENT)) == 999
    assert report[777].result is (NOT_SENT if method == STATUS else UNCONFIRMED)
    assert sum(777 in record.ids for record in api.log) <= 40


@simulated()
async def test_a_proxy_that_reloads_in_mid_run_ends_nothing(api: ControlApiSimulator) -> None:
    ids = list(range(1, 10_001))
    api.add_tasks(ids)
    for number, status in ((20, 404), (21, 404), (23, 502), (25, 401), (28, 403)):
        api.fault(HttpStatus(status), number=number)
    api.fault(Body("<html>", content_type="text/html"), number=27)
    async with open_session(api, 500) as session:
        report = await session.stop_running(2, ids)
    assert report.ids(SENT) == ids


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 407])
@simulated()
async def test_what_any_request_would_meet_ends_the_run_at_the_start(
    api: ControlApiSimulator, status: int
) -> None:
    ids = list(range(1, 101))
    api.add_tasks(ids)
    api.fault(HttpStatus(status))
    async with open_session(api, 5, 3) as session:
        report, error = await ended(session.stop_running(2, ids))
    assert report.ids(NOT_SENT) == ids
    assert error is not None
    assert len(error.exceptions) == 1
    assert str(error).startswith(f"100 of 100 tasks without an answer: HTTP {status}")
    assert api.counters.requests <= 3


@pytest.mark.parametrize("status", [401, 403, 404, 405])
@simulated()
async def test_replies_in_flight_are_used_when_the_run_ends(
    api: ControlApiSimulator, status: int
) -> None:
    api.add_tasks([1, 2, 4, 6])
    api.add_tasks([3, 5], "Completed")
    api.add_tasks(range(7, 20))
    api.fault(HttpStatus(status), number=1)
    gate = api.hold(number=2, every=True, effect=True)
    async with open_session(api, 2, 3) as session:
        stopping = asyncio.create_task(ended(session.stop_running(2, range(1, 20))))
        await api.wait_until(lambda: gate.held == 2)
        await asyncio.sleep(1)  # the refusal has arrived by now
        gate.release()
        report, _ = await stopping
    assert api.counters.requests == 3
    assert report.ids(NOT_RUNNING) == [3, 5]
    assert [report[n].status for n in (1, 4, 6, 7)] == [None, "Running", "Running", None]


@simulated()
async def test_an_upstream_that_is_down_for_half_a_minute_loses_nothing_by_default(
    api: ControlApiSimulator,
) -> None:
    ids = list(range(1, 3001))
    api.add_tasks(ids)
    began = api.now
    api.fault_when = lambda _: HttpStatus(502) if 2 < api.now - began < 32 else None
    api.latency = 0.5
    async with open_session(api, 100, retry=RetryPolicy()) as session:
        report = await session.stop_running(2, ids)
    assert report.ids(SENT) == ids
