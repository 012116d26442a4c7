"""What a run makes of stops of unknown fate, denied ids, requests too large, and spoiled tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from ctrlapi_async import (
    RetryPolicy,
    StopIncompleteError,
    StopReport,
    StopResult,
)
from ctrlapi_async.simulator import Body, ControlApiSimulator, DeniedNames, Drop, Fault, HttpStatus
from tests.support.oracle import Oracle
from tests.support.simulated import STATUS, STOP, ended, letters, open_session, simulated, stopped
from tests.support.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ctrlapi_async.simulator import RequestRecord

SENT = StopResult.STOP_SENT
NOT_FOUND = StopResult.NOT_FOUND
NOT_SENT = StopResult.NOT_SENT
UNCONFIRMED = StopResult.UNCONFIRMED


async def stop_all(
    api: ControlApiSimulator,
    task_ids: Sequence[int],
    choose: Callable[[RequestRecord], Fault | None] = lambda _: None,
    *,
    attempts: int = 3,
    chunk: int = 5,
    checked: bool = True,
) -> tuple[Witness, StopReport, StopIncompleteError | None]:
    """Stop tasks in a session of their own, judged by the oracle."""
    oracle = Oracle(check=checked, attempts=attempts)
    oracle.ask(2, task_ids)
    witness = Witness(api, choose, oracle)
    retry = RetryPolicy(attempts=attempts, wait_initial=0)
    async with open_session(api, chunk, 1, retry=retry) as session:
        stop = session.stop_running if checked else session.task_stop
        report, error = await ended(stop(2, task_ids))
    witness.check(task_ids, report, error)
    return witness, report, error


# --- stops of unknown fate ------------------------------------------------------------------------

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
@simulated(tick=1)
async def test_stop_whose_reply_was_lost_is_looked_into(
    api: ControlApiSimulator, delay: float, *, always: bool
) -> None:
    requests, result, status = DELAYS[delay, always]
    lost = range(1, 100 if always else 2)
    api.stop_delay = delay
    api.add_task(1)
    witness, report, _ = await stop_all(
        api, [1], lambda one: Drop(effect=True) if one.numbers.get(STOP) in lost else None
    )
    assert letters(witness.requests) == requests
    assert (report[1].result, report[1].status) == (result, status)
    assert ("lost" in (report[1].error or "")) == (result is SENT and status == "Canceled")


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
    witness, report, _ = await stop_all(api, [1], choose, attempts=attempts)
    assert report[1].result is UNCONFIRMED
    assert letters(witness.requests) == "S" + ("T" + "S" * (faulty_checks + 1)) * attempts
    assert report.stats.retries == attempts - 1 + attempts * faulty_checks


# --- ids that the server denies -------------------------------------------------------------------


@pytest.mark.parametrize("checked", [True, False], ids=[STATUS, STOP])
@pytest.mark.parametrize("names", ["bad", "all", "none"])
@pytest.mark.parametrize("bad", [{321}, {7, 150, 299, 301}, {*range(1, 401, 2)}], ids=len)
@simulated()
async def test_denied_ids_are_singled_out(
    api: ControlApiSimulator, bad: set[int], names: DeniedNames, *, checked: bool
) -> None:
    ids = range(1, 401)
    good = [n for n in ids if n not in bad]
    api.denied_names = names
    api.add_tasks(good)
    witness, report, error = await stop_all(api, ids, chunk=100, checked=checked)
    assert {api.tasks[n].stop_requests for n in good} == {1}
    assert error is None
    assert report.ids(SENT) == good
    assert set(report.ids(NOT_FOUND)) == bad
    assert all("access denied to" in (report[n].error or "") for n in bad)
    assert report.stats.retries == 0
    # Where denials name the bad ids, each chunk goes once more, and one call tells that they do.
    most = 6 if names == "bad" else min(400 * (1 if checked else 2) + 10, 3 * len(bad) * 9)
    method = STATUS if checked else STOP
    assert sum(method in record.methods for record in witness.requests) <= 4 + most


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("named", ["[3]", "[3, 99]"])
@simulated()
async def test_a_denial_that_names_a_task_costs_that_task_and_no_request_more(
    api: ControlApiSimulator, named: str, method: str
) -> None:
    words = f"access denied to tasks {named}"
    api.add_tasks(range(1, 6))
    api.fault(Body(f'{{"reply": [{{"error": "{words}"}}]}}'), method=method, number=1)
    async with open_session(api) as session:
        report = await session.stop_running(2, range(1, 6))
    assert (report.ids(NOT_FOUND), report[3].error) == ([3], words)
    assert report.ids(SENT) == [1, 2, 4, 5]
    assert api.counters.requests == 3


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


# --- tasks that spoil their requests --------------------------------------------------------------


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize(
    "fault", [HttpStatus(500), HttpStatus(400), HttpStatus(413), Body('{"reply": [' + " " * 30_000)]
)
@simulated()
async def test_a_task_that_spoils_its_requests_takes_no_other_along(
    api: ControlApiSimulator, fault: Fault, method: str
) -> None:
    api.add_tasks(range(1, 1001))
    api.fault_when = lambda record: (
        fault if method in record.methods and 777 in record.ids else None
    )
    retry = RetryPolicy(attempts=8, wait_initial=0.1, wait_max=1)
    async with open_session(api, 100, 4, retry=retry, max_reply_bytes=30_000) as session:
        report, error = await ended(session.stop_running(2, range(1, 1001)))
    assert error is not None
    assert len(report.ids(SENT)) == 999
    surely_not = method == STATUS or fault == HttpStatus(413)
    assert report[777].result is (NOT_SENT if surely_not else UNCONFIRMED)
    assert sum(777 in record.ids for record in api.log) <= 40
