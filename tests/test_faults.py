"""What goes wrong between a client and its server, and what a bulk stop makes of it."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import product
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from attrs import field, frozen
from invariants import (
    PROJECT,
    STATUS,
    STOP,
    Witness,
    assert_sound,
    halving_bound,
    rows_of,
    run,
)

from ctrlapi_async import (
    AuthError,
    Batching,
    ControlSession,
    CtrlApiError,
    HttpError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopReport,
    StopResult,
    TasksDeniedError,
    TaskStatus,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async.pace import Pace
from ctrlapi_async.simulator import (
    Body,
    ControlApiSimulator,
    CutBody,
    Drop,
    Fault,
    Hang,
    HttpStatus,
    Rewrite,
    SlowBody,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ctrlapi_async.simulator import RequestRecord

STOP_SENT = StopResult.STOP_SENT
NOT_RUNNING = StopResult.NOT_RUNNING
NOT_FOUND = StopResult.NOT_FOUND
UNAVAILABLE = StopResult.UNAVAILABLE
NOT_SENT = StopResult.NOT_SENT
UNCONFIRMED = StopResult.UNCONFIRMED

ATTEMPTS: Final = 3
CHUNK: Final = 5
AT_ONCE: Final = RetryPolicy(attempts=ATTEMPTS, wait_initial=0)


def script(
    fault: Fault | None, method: str | None, number: int, *, always: bool = False
) -> Callable[[RequestRecord], Fault | None]:
    """Set one fault: for the request of that number, or for all from that number on."""

    def choose(record: RequestRecord) -> Fault | None:
        own = record.number if method is None else record.numbers.get(method, 0)
        return fault if own == number or (always and own > number) else None

    return choose


async def stop_all(
    api: ControlApiSimulator,
    task_ids: Iterable[int],
    *,
    url: str | None = None,
    client: aiohttp.ClientSession | None = None,
    policy: RetryPolicy = AT_ONCE,
    chunk: int = CHUNK,
    concurrency: int = 1,
    checked: bool = True,
    user_id: int = 1,
    **options: Any,
) -> tuple[StopReport, StopIncompleteError | None]:
    """Stop tasks in a session of their own; give the report, and the error if there was one."""
    async with ControlSession(
        url or api.url,
        user_id,
        client=client,
        batching=Batching(chunk, concurrency),
        retry=policy,
        request_timeout=30.0,
    ) as session:
        stop = session.stop_running if checked else session.task_stop
        try:
            return await stop(PROJECT, task_ids, **options), None
        except StopIncompleteError as error:
            return error.report, error


# --- the matrix -----------------------------------------------------------------------------------

# Fifteen tasks, three of them at an end, in chunks of five and one after the other: this gives
# these requests, in this order.
TASKS: Final = range(1, 16)
ENDED: Final = (5, 10, 15)
RUNNING: Final = tuple(task_id for task_id in TASKS if task_id not in ENDED)
REQUESTS: Final = (
    (STATUS, (1, 2, 3, 4, 5)),
    (STATUS, (6, 7, 8, 9, 10)),
    (STOP, (1, 2, 3, 4, 6)),
    (STATUS, (11, 12, 13, 14, 15)),
    (STOP, (7, 8, 9, 11, 12)),
    (STOP, (13, 14)),
)
PLACES: Final = {"first": 1, "middle": 2, "last": 3}


@frozen
class Effect:
    """What a fault does to a run.

    Args:
        once: What the tasks struck end as when it happens once; None: as without it.
        always: What they end as when it happens to all such requests from then on.
        dooms: Whether nothing is asked after it.
        errors: The class of the errors that are raised, if any are.
        words: What they say.
        first_only: Whether only the first task of a request is struck.
        extra: How many more requests than usual it takes when it happens once.
        repeats: How many of these are repeats of one that was sent.
    """

    once: StopResult | None = None
    always: StopResult | None = None
    dooms: bool = field(default=False, kw_only=True)
    errors: type[CtrlApiError] | None = field(default=None, kw_only=True)
    words: str = field(default="", kw_only=True)
    first_only: bool = field(default=False, kw_only=True)
    extra: int | None = field(default=None, kw_only=True)
    repeats: int = field(default=0, kw_only=True)


class Case(NamedTuple):
    """A fault, and its effects on the two methods."""

    fault: Fault
    status: Effect
    stop: Effect


NOTHING = Effect(extra=0)
SETTLED = Effect(extra=1)
"""Tasks are checked again after their stop, and found Canceled."""
STRUCK_FIRST = Effect(NOT_FOUND, NOT_FOUND, first_only=True)


def passing(errors: type[CtrlApiError], words: str) -> Effect:
    """Repeated; when it does not pass, nothing was stopped."""
    return Effect(None, NOT_SENT, errors=errors, words=words, extra=1, repeats=1)


def lost(errors: type[CtrlApiError], words: str) -> Effect:
    """A stop that did not arrive, for all that the client can tell: checked, and repeated."""
    return Effect(None, UNCONFIRMED, errors=errors, words=words, extra=2, repeats=1)


def dooming(errors: type[CtrlApiError], words: str, result: StopResult = NOT_SENT) -> Effect:
    return Effect(result, result, dooms=True, errors=errors, words=words)


def http(status: int, words: str = "", **options: Any) -> Case:
    """A passing HTTP error after which a stop surely did not happen."""
    effect = passing(HttpError, f"HTTP {status} {words}")
    return Case(HttpStatus(status, **options), effect, effect)


def fateless(fault: Fault, errors: type[CtrlApiError], words: str) -> Case:
    """A passing fault that leaves the fate of a stop open, which did not happen."""
    return Case(fault, passing(errors, words), lost(errors, words))


def taken(fault: Fault, errors: type[CtrlApiError], words: str) -> Case:
    """A passing fault that hides that the tasks were stopped, until they are checked."""
    return Case(fault, passing(errors, words), SETTLED)


def doom(fault: Fault, errors: type[CtrlApiError], words: str) -> Case:
    effect = dooming(errors, words)
    return Case(fault, effect, effect)


def rewrite(change: Callable[[list[dict[str, Any]]], Any], *, effect: bool = True) -> Rewrite:
    """Change the rows of a reply's only entry."""

    def apply(reply: Any) -> Any:
        [entry] = reply["reply"]
        if "result" in entry:
            entry["result"] = change(entry["result"])
        return reply

    return Rewrite(apply, effect=effect)


def first_row(**members: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Put other members into the first row than its task id."""
    return lambda rows: [{"task_id": rows[0]["task_id"], **members}, *rows[1:]]


def refusal(text: str) -> Body:
    return Body(f'{{"reply": [{{"error": "{text}"}}]}}')


def with_errors(reply: Any) -> Any:
    reply["reply"][0]["errors"] = ["disk is nearly full"]
    return reply


def without_id(reply: Any) -> Any:
    del reply["reply"][0]["id"]
    return reply


UNHEARD = r"was not heard to the end"
LATE = r"no answer from \S+ within 30 s"
TOO_LARGE = Effect(None, NOT_SENT, errors=HttpError, words="HTTP 413 .*too large")
DENIED = Effect(None, NOT_FOUND)
LOCKED = Effect(NOT_SENT, NOT_SENT, errors=MethodError, words="database is locked")

MATRIX: Final[dict[str, Case]] = {
    # The connection.
    "drop before effect": fateless(Drop(), RequestError, UNHEARD),
    "drop after effect": taken(Drop(effect=True), RequestError, UNHEARD),
    "cut body": taken(CutBody(), RequestError, UNHEARD),
    "cut body, nothing of it": taken(CutBody(keep=0), RequestError, UNHEARD),
    "cut body, no effect": fateless(CutBody(effect=False), RequestError, UNHEARD),
    "slow body": taken(SlowBody(interval=1e6), RequestError, LATE),
    "timeout": fateless(Hang(), RequestError, LATE),
    "timeout after effect": taken(Hang(effect=True), RequestError, LATE),
    # HTTP.
    "400": doom(HttpStatus(400), HttpError, "HTTP 400 .*does not understand"),
    "401": doom(HttpStatus(401), AuthError, "HTTP 401 .*credentials"),
    "403": doom(HttpStatus(403), AuthError, "HTTP 403 .*enable it on the server"),
    "404": doom(HttpStatus(404), HttpError, "HTTP 404 .*no Control API at this address"),
    "405": doom(HttpStatus(405), HttpError, "HTTP 405 .*no Control API at this address"),
    "408": fateless(HttpStatus(408), HttpError, "HTTP 408"),
    "410": doom(HttpStatus(410), HttpError, "HTTP 410"),
    "413": Case(HttpStatus(413), TOO_LARGE, TOO_LARGE),
    "425": http(425),
    "429": http(429),
    "429 after seconds": http(429, headers={"Retry-After": "7"}),
    "429 after a date": http(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "500": fateless(HttpStatus(500), HttpError, "HTTP 500"),
    "500 after effect": taken(HttpStatus(500, effect=True), HttpError, "HTTP 500"),
    "502": fateless(HttpStatus(502), HttpError, "HTTP 502"),
    "502 after effect": taken(HttpStatus(502, effect=True), HttpError, "HTTP 502"),
    "503": http(503),
    "503 after seconds": http(503, headers={"Retry-After": "7"}),
    "504": fateless(HttpStatus(504), HttpError, "HTTP 504"),
    "504 after effect": taken(HttpStatus(504, effect=True), HttpError, "HTTP 504"),
    "302": Case(
        HttpStatus(302, headers={"Location": "https://new.example/"}),
        dooming(HttpError, "redirects to https://new.example/, which is not followed"),
        dooming(HttpError, "redirects to https://new.example/", UNCONFIRMED),
    ),
    "HTML": Case(
        Body("<html>hello</html>", content_type="text/html"),
        dooming(ReplyError, "a web page where JSON was due"),
        dooming(ReplyError, "a web page where JSON was due", UNCONFIRMED),
    ),
    # JSON.
    "empty": fateless(Body(""), ReplyError, "an empty body"),
    "empty after effect": taken(Body("", effect=True), ReplyError, "an empty body"),
    "half": fateless(Body('{"reply": [{"res'), ReplyError, "truncated"),
    "another JSON": fateless(Body("[1, 2]"), ReplyError, r"[Ee]xpected"),
    "no reply": fateless(Body('{"hello": 1}'), ReplyError, "no `reply`"),
    "no entry": fateless(Body('{"reply": []}'), ReplyError, "no entry for a call"),
    "no result": fateless(Body('{"reply": [{}]}'), ReplyError, "no `result`"),
    "null result": fateless(Body('{"reply": [{"result": null}]}'), ReplyError, "is null"),
    "a row of nothing": Case(
        rewrite(first_row()), passing(ReplyError, "neither `status` nor `error`"), SETTLED
    ),
    # What the API documents.
    "user": doom(
        Body('{"error": "user 1 is unavailable"}'), UserUnavailableError, "user 1 is unavail"
    ),
    "user in the reply": doom(
        refusal("user 1 is unavailable"), UserUnavailableError, "user 1 is unavailable"
    ),
    "project": doom(
        refusal("project 2 does not exist"), ProjectNotFoundError, "project 2 does not exist"
    ),
    "method": doom(
        refusal("Undefined method 'TaskX'"), UndefinedMethodError, "Undefined method 'TaskX'"
    ),
    "denied, unreadably": Case(refusal("access denied to tasks"), DENIED, DENIED),
    "denied, others named": Case(refusal("access denied to tasks [98,99]"), DENIED, DENIED),
    # What it does not.
    "unknown words": Case(refusal("database is locked"), LOCKED, LOCKED),
    "unknown words at the top": Case(Body('{"error": "database is locked"}'), LOCKED, LOCKED),
    # Rows.
    "a row missing": Case(rewrite(lambda rows: rows[1:]), STRUCK_FIRST, SETTLED),
    "all rows missing": Case(rewrite(lambda _: []), Effect(NOT_FOUND, NOT_FOUND), SETTLED),
    "rows with errors": Case(
        rewrite(lambda rows: [{"task_id": n, "error": "No"} for n in ids_in(rows)], effect=False),
        Effect(NOT_FOUND, NOT_FOUND),
        Effect(UNAVAILABLE, UNAVAILABLE),
    ),
    "rows repeated": Case(rewrite(lambda rows: rows * 2), NOTHING, NOTHING),
    "rows that contradict": Case(
        rewrite(lambda rows: [*rows, {"task_id": rows[0]["task_id"], "status": "Stalled"}]),
        Effect(NOT_RUNNING, NOT_RUNNING, first_only=True),
        SETTLED,
    ),
    "a row's status unknown": Case(
        rewrite(first_row(status="Dreaming")),
        Effect(NOT_RUNNING, NOT_RUNNING, first_only=True),
        SETTLED,
    ),
    "extra rows": Case(
        rewrite(lambda rows: [{"task_id": 98, "status": "Running"}, *rows]),
        NOTHING,
        NOTHING,
    ),
    "rows of another request's tasks": Case(
        rewrite(
            lambda rows: [
                *rows,
                *({"task_id": n, "status": "Stalled"} for n in TASKS if n not in ids_in(rows)),
            ]
        ),
        NOTHING,
        NOTHING,
    ),
    "rows in another order": Case(rewrite(lambda rows: rows[::-1]), NOTHING, NOTHING),
    "more members": Case(
        rewrite(lambda rows: [{**row, "x": {"status": 1}} for row in rows]), NOTHING, NOTHING
    ),
    "errors beside the result": Case(Rewrite(with_errors), NOTHING, NOTHING),
    "no id echoed": Case(Rewrite(without_id), NOTHING, NOTHING),
}


def ids_in(rows: Iterable[Mapping[str, Any]]) -> set[int]:
    return {row["task_id"] for row in rows}


def expected(method: str, number: int, effect: Effect, *, always: bool) -> dict[int, StopResult]:
    """Give what each task ends as when a fault strikes the request of that number."""
    place = [at for at, (asked, _) in enumerate(REQUESTS) if asked == method][number - 1]
    verdict = effect.always if always else effect.once
    results = {n: NOT_RUNNING if n in ENDED else STOP_SENT for n in TASKS}
    if effect.dooms:
        results = dict.fromkeys(TASKS, NOT_SENT) | before(place)
    if verdict is not None:
        struck = REQUESTS[place:] if always and not effect.dooms else REQUESTS[place : place + 1]
        for asked, task_ids in struck:
            if asked == method:
                results |= dict.fromkeys(task_ids[:1] if effect.first_only else task_ids, verdict)
    return results


def before(place: int) -> dict[int, StopResult]:
    """Give what is known of tasks before the request at that place."""
    results: dict[int, StopResult] = {}
    for method, task_ids in REQUESTS[:place]:
        if method == STOP:
            results |= dict.fromkeys(task_ids, STOP_SENT)
        else:
            results |= {n: NOT_RUNNING for n in task_ids if n in ENDED}
    return results


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("number", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("case", MATRIX.values(), ids=MATRIX)
def test_matrix(case: Case, method: str, number: int, *, always: bool) -> None:
    effect = case.status if method == STATUS else case.stop

    async def main() -> None:
        async with ControlApiSimulator() as api:
            api.add_tasks(RUNNING)
            api.add_tasks(ENDED, "Completed")
            witness = Witness(api, script(case.fault, method, number, always=always))
            report, error = await stop_all(api, TASKS)
        assert_sound(witness, TASKS, report, error, attempts=ATTEMPTS)
        results = {n: outcome.result for n, outcome in report.items()}
        assert results == expected(method, number, effect, always=always)
        assert_told(report, error, effect)
        requests = witness.requests
        if effect.dooms:
            assert [*requests[-1].numbers.items()] == [(method, number)]
        elif not always and effect.extra is not None:
            assert len(requests) == len(REQUESTS) + effect.extra
            assert report.stats.retries == effect.repeats
        elif always and effect.repeats:
            asked = Counter(
                n for request in requests if method in request.methods for n in request.ids
            )
            assert {asked[n] for n in results if results[n] is effect.always} == {ATTEMPTS}

    run(main())


def assert_told(report: StopReport, error: StopIncompleteError | None, effect: Effect) -> None:
    """The errors raised, and those of tasks without an answer, say what happened."""
    unanswered = [report[n].error for n in report.ids(NOT_SENT, UNCONFIRMED)]
    assert all(words and re.search(effect.words, words) for words in unanswered), unanswered
    assert (error is None) is not bool(unanswered)
    if error is not None:
        assert effect.errors is not None
        for met in error.exceptions:
            assert isinstance(met, effect.errors)
            assert re.search(effect.words, str(met))


def test_matrix_is_what_a_run_without_faults_sends() -> None:
    async def main() -> None:
        async with ControlApiSimulator() as api:
            api.add_tasks(RUNNING)
            api.add_tasks(ENDED, "Completed")
            report, error = await stop_all(api, TASKS)
        assert error is None
        assert report.ids(STOP_SENT) == list(RUNNING)
        assert tuple((*record.methods, record.ids) for record in api.log) == REQUESTS

    run(main())


# --- a server that cannot be reached --------------------------------------------------------------


class Detours(AbstractResolver):
    """Leads some connections, by their number from 1, to another port than the server's."""

    def __init__(self, server: int, other: int, numbers: Iterable[int]) -> None:
        self._server = server
        self._other = other
        self._numbers = numbers
        self._asked = 0
        self.taken = 0

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self._asked += 1
        detour = self._asked in self._numbers
        self.taken += detour
        return [
            ResolveResult(
                hostname=host,
                host="127.0.0.1",
                port=self._other if detour else self._server,
                family=family,
                proto=0,
                flags=0,
            )
        ]

    async def close(self) -> None:
        pass


class Resetting(asyncio.Protocol):
    """A server that resets every connection before a byte of a request is read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        at_once = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, at_once
        )
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


UNREACHABLE: Final = {
    # What tasks end as that are seen Running and cannot be stopped.
    "connect refused": (False, NOT_SENT, "was not reached"),
    "reset before send": (True, UNCONFIRMED, UNHEARD),
}


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("place", range(len(REQUESTS)))
@pytest.mark.parametrize(("accepts", "result", "words"), UNREACHABLE.values(), ids=UNREACHABLE)
def test_matrix_of_lost_connections(
    place: int, words: str, result: StopResult, *, accepts: bool, always: bool
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))  # and does not listen
            port = nobody.getsockname()[1]
            server = await loop.create_server(Resetting, "127.0.0.1", 0) if accepts else None
            if server is not None:
                port = server.sockets[0].getsockname()[1]
            async with ControlApiSimulator() as api:
                api.add_tasks(RUNNING)
                api.add_tasks(ENDED, "Completed")
                witness = Witness(api)
                numbers = range(place + 1, 1000 if always else place + 2)
                detours = Detours(api.port, port, numbers)
                connector = aiohttp.TCPConnector(
                    resolver=detours, force_close=True, use_dns_cache=False
                )
                async with aiohttp.ClientSession(connector=connector) as client:
                    report, error = await stop_all(
                        api, TASKS, url="http://api.example", client=client
                    )
            if server is not None:
                server.close()
                await server.wait_closed()
        unreached = detours.taken
        assert_sound(
            witness, TASKS, report, error, attempts=ATTEMPTS, unreached=unreached
        )
        results = {n: outcome.result for n, outcome in report.items()}
        if not always:
            assert error is None
            assert results == {n: NOT_RUNNING if n in ENDED else STOP_SENT for n in TASKS}
            assert report.stats.retries == unreached == 1
            return
        seen = {n for method, ids in REQUESTS[:place] if method == STATUS for n in ids}
        assert results == {n: result if n in seen else NOT_SENT for n in TASKS} | before(place)
        assert_told(report, error, Effect(errors=RequestError, words=words))

    run(main())


# --- stops of unknown fate ------------------------------------------------------------------------

TAKEN: Final[dict[str, Fault]] = {
    "drop": Drop(effect=True),
    "cut body": CutBody(),
    "timeout": Hang(effect=True),
    "500": HttpStatus(500, effect=True),
    "504": HttpStatus(504, effect=True),
    "empty": Body("", effect=True),
}
FOREVER: Final = 1e9
DELAYS: Final = {
    # Seconds until a stop takes effect, whether every stop's reply is lost -> the requests: one a
    # second, T for TaskStop and S for TaskStatus.
    (0.5, False): ("STS", STOP_SENT, "Canceled"),
    (0.5, True): ("STS", STOP_SENT, "Canceled"),
    # Canceled between the check and the second stop, which is then "unavailable": checked again.
    (1.5, False): ("STSTS", STOP_SENT, "Canceled"),
    (1.5, True): ("STSTS", STOP_SENT, "Canceled"),
    (2.5, False): ("STST", STOP_SENT, "Running"),
    (2.5, True): ("STSTS", STOP_SENT, "Canceled"),
    (FOREVER, False): ("STST", STOP_SENT, "Running"),
    (FOREVER, True): ("STSTSTS", UNCONFIRMED, "Running"),
}


def letters(requests: Iterable[RequestRecord]) -> str:
    return "".join("S" if request.methods == (STATUS,) else "T" for request in requests)


@pytest.mark.parametrize(("delay", "always"), DELAYS)
@pytest.mark.parametrize("fault", TAKEN.values(), ids=TAKEN)
def test_stop_whose_reply_was_lost_is_checked(fault: Fault, delay: float, *, always: bool) -> None:
    asked, result, status = DELAYS[delay, always]

    async def main() -> None:
        async with ControlApiSimulator(tick=1, stop_delay=delay) as api:
            api.add_tasks([1, 2, 3])
            witness = Witness(api, script(fault, STOP, 1, always=always))
            report, error = await stop_all(api, [1, 2, 3])
        assert_sound(witness, [1, 2, 3], report, error, attempts=ATTEMPTS)
        assert letters(witness.requests) == asked
        assert {(outcome.result, outcome.status) for outcome in report.values()} == {
            (result, status)
        }

    run(main())


ENDINGS: Final = {
    # When the task completes by itself, while its stop does not arrive -> the requests.
    "before the check": (1.5, "STS"),
    "between the check and the second stop": (2.5, "STSTS"),
}


@pytest.mark.parametrize(("moment", "asked"), ENDINGS.values(), ids=ENDINGS)
def test_task_that_ended_by_itself_is_not_running(moment: float, asked: str) -> None:
    async def main() -> None:
        async with ControlApiSimulator(tick=1) as api:
            api.add_task(1, life=[(moment, "Completed")])
            witness = Witness(api, script(Drop(), STOP, 1))
            report, error = await stop_all(api, [1])
        assert_sound(witness, [1], report, error, attempts=ATTEMPTS)
        assert letters(witness.requests) == asked
        assert report[1].result is NOT_RUNNING
        assert report[1].status is TaskStatus.COMPLETED

    run(main())


SILENCES: Final[dict[str, tuple[Fault, type[CtrlApiError]]]] = {
    # What the check after a lost stop meets, again and again -> the class of the error raised.
    "no row": (rewrite(lambda _: []), RequestError),
    "a row with an error": (rewrite(lambda rows: [{**row, "status": None, "error": "No"} for row in rows]), RequestError),
    "denied": (refusal("access denied to tasks [1]"), RequestError),
    "dropped": (Drop(), RequestError),
    "500": (HttpStatus(500), HttpError),
    "403": (HttpStatus(403), AuthError),
    "unknown words": (refusal("database is locked"), MethodError),
}


@pytest.mark.parametrize("effect", [False, True])
@pytest.mark.parametrize(("silence", "errors"), SILENCES.values(), ids=SILENCES)
def test_stop_that_no_check_can_settle_is_unconfirmed(
    silence: Fault, errors: type[CtrlApiError], *, effect: bool
) -> None:
    def choose(record: RequestRecord) -> Fault | None:
        if STOP in record.methods:
            return Drop(effect=effect)
        return silence if record.number > 1 else None

    async def main() -> None:
        async with ControlApiSimulator() as api:
            api.add_task(1)
            witness = Witness(api, choose)
            report, error = await stop_all(api, [1])
        assert_sound(witness, [1], report, error, attempts=ATTEMPTS)
        assert api.counters.requests_by_method[STOP] == 1
        assert report[1].result is UNCONFIRMED
        assert report[1].status is TaskStatus.RUNNING
        assert report[1].error
        assert error is not None
        assert any(isinstance(met, errors) for met in error.exceptions)

    run(main())


@pytest.mark.parametrize("attempts", range(1, 5))
@pytest.mark.parametrize("again", [Drop(), HttpStatus(503)], ids=["lost", "refused"])
@pytest.mark.parametrize("faulty_checks", range(4))
def test_attempts_do_not_multiply(attempts: int, again: Fault, faulty_checks: int) -> None:
    """Every stop is in vain, and each check between them fails a few times before it succeeds."""
    faulty_checks = min(faulty_checks, attempts - 1)
    failed = 0

    def choose(record: RequestRecord) -> Fault | None:
        nonlocal failed
        if STOP in record.methods:
            failed = 0
            return Drop() if record.numbers[STOP] == 1 else again
        failed += 1
        return HttpStatus(500) if failed <= faulty_checks and record.number > 1 else None

    async def main() -> None:
        async with ControlApiSimulator() as api:
            api.add_task(1)
            witness = Witness(api, choose)
            report, error = await stop_all(
                api, [1], policy=RetryPolicy(attempts=attempts, wait_initial=0)
            )
        assert_sound(witness, [1], report, error, attempts=attempts)
        assert report[1].result is UNCONFIRMED
        settles = attempts if isinstance(again, Drop) else 1
        check = "S" * (faulty_checks + 1)
        rest = ("T" + check) * settles + "T" * (attempts - settles)
        assert letters(witness.requests) == "S" + rest
        assert report.stats.retries == attempts - 1 + settles * faulty_checks

    run(main())
