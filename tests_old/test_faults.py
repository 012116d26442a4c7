"""What goes wrong between a client and its server, and what a bulk stop makes of it."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
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
    TaskStatus,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async.pace import Pace
from ctrlapi_async.simulator import (
    Body,
    ControlApiSimulator,
    CutBody,
    DeniedNames,
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
        async with ControlApiSimulator(own_thread=False) as api:
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
        async with ControlApiSimulator(own_thread=False) as api:
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
        self,
        host: str,
        port: int = 0,  # noqa: ARG002 - aiohttp gives it
        family: socket.AddressFamily = socket.AF_INET,
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
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
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
            async with ControlApiSimulator(own_thread=False) as api:
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
        assert_sound(witness, TASKS, report, error, attempts=ATTEMPTS, unreached=unreached)
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
        async with ControlApiSimulator(own_thread=False, tick=1, stop_delay=delay) as api:
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
        async with ControlApiSimulator(own_thread=False, tick=1) as api:
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
    "a row with an error": (
        rewrite(lambda rows: [{**row, "status": None, "error": "No"} for row in rows]),
        RequestError,
    ),
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
        async with ControlApiSimulator(own_thread=False) as api:
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
        async with ControlApiSimulator(own_thread=False) as api:
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


# --- ids that the server denies -------------------------------------------------------------------

DENIALS: Final = {
    # Ids asked for, chunk, and the bad ones among them.
    "alone": ([1], 1, {1}),
    "one of two": ([1, 2], 2, {2}),
    "first of a chunk": (range(1, 101), 100, {1}),
    "last of a chunk": (range(1, 101), 100, {100}),
    "one among thousands": (range(1, 3001), 1000, {1234}),
    "one in every chunk": (range(1, 401), 100, {7, 150, 299, 301}),
    "neighbours": (range(1, 101), 100, {50, 51}),
    "scattered": (range(1, 101), 100, {3, 33, 60, 99}),
    "a whole chunk": (range(1, 41), 20, set(range(1, 21))),
    "all": (range(1, 11), 10, set(range(1, 11))),
}


@pytest.mark.parametrize("checked", [True, False], ids=[STATUS, STOP])
@pytest.mark.parametrize("names", ["bad", "all", "none"])
@pytest.mark.parametrize(("task_ids", "chunk", "bad"), DENIALS.values(), ids=DENIALS)
def test_denied_ids_are_singled_out(
    task_ids: Sequence[int], chunk: int, bad: set[int], names: DeniedNames, *, checked: bool
) -> None:
    good = [n for n in task_ids if n not in bad]

    async def main() -> None:
        async with ControlApiSimulator(own_thread=False, denied_names=names) as api:
            api.add_project(PROJECT)
            api.add_tasks(good)
            witness = Witness(api)
            report, error = await stop_all(api, task_ids, chunk=chunk, checked=checked)
        assert error is None
        assert_sound(witness, task_ids, report, None, attempts=1, checked=checked)
        assert report.ids(STOP_SENT) == good
        assert set(report.ids(NOT_FOUND)) == bad
        assert all("access denied to" in (report[n].error or "") for n in bad)
        assert report.stats.retries == 0

        method = STATUS if checked else STOP
        requests = [set(record.ids) for record in witness.requests if method in record.methods]
        chunks = [set(task_ids[at : at + chunk]) for at in range(0, len(task_ids), chunk)]
        for asked in chunks:
            extra = sum(request <= asked for request in requests) - 1
            struck = len(asked & bad)
            if not struck:
                assert extra == 0
            elif names == "bad" and struck < len(asked):
                assert extra == 1
            else:
                assert extra <= halving_bound(struck, len(asked))

    run(main())


WORDINGS: Final = {
    # The words of a denial of the tasks 1 to 5 -> the ids that end as NOT_FOUND.
    "access denied to tasks [3]": {3},
    "Access denied to task [3]": {3},
    "access denied to tasks [2,4]": {2, 4},
    "access denied to tasks [ 2 ,  4 ]": {2, 4},
    "access denied to tasks [3, 99]": {3},
    "access denied to tasks [1, 2, 3, 4]": {1, 2, 3, 4},
}


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("words", WORDINGS)
def test_denial_is_read_in_any_spelling(words: str, method: str) -> None:
    bad = WORDINGS[words]

    async def main() -> None:
        async with ControlApiSimulator(own_thread=False) as api:
            api.add_tasks(range(1, 6))
            witness = Witness(api, script(refusal(words), method, 1))
            report, error = await stop_all(api, range(1, 6))
        assert_sound(witness, range(1, 6), report, error, attempts=1)
        assert set(report.ids(NOT_FOUND)) == bad
        assert {report[n].error for n in bad} == {words}
        assert set(report.ids(STOP_SENT)) == set(range(1, 6)) - bad
        assert len(witness.requests) == 3

    run(main())


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"result": [], "errors": ["task 1 is in the archive", "ask there"]}, "in the archive"),
        ({"result": [{"task_id": 1, "error": "No such task"}]}, "No such task"),
        ({"result": []}, "no row"),
    ],
    ids=["errors beside the result", "row with an error", "no row"],
)
def test_task_without_a_status_is_not_found_with_the_servers_words(
    entry: dict[str, Any], words: str
) -> None:
    async def main() -> None:
        async with ControlApiSimulator(own_thread=False) as api:
            api.add_task(1)
            witness = Witness(api, script(Rewrite(lambda _: {"reply": [entry]}), STATUS, 1))
            report, error = await stop_all(api, [1])
        assert_sound(witness, [1], report, error, attempts=1)
        assert report[1].result is NOT_FOUND
        assert words in (report[1].error or "")

    run(main())


def test_project_that_is_not_there_dooms_its_own_tasks_only() -> None:
    async def main() -> None:
        async with ControlApiSimulator(own_thread=False) as api:
            api.add_tasks([1, 2, 3], project_id=2)
            api.add_tasks([7, 8, 9], project_id=4)
            async with ControlSession(api.url, 1, batching=Batching(2, 1)) as session:
                with pytest.raises(StopIncompleteError) as raised:
                    await session.stop_running_across({2: [1, 2, 3], 3: [4, 5, 6], 4: [7, 8, 9]})
        report = raised.value.report
        assert [*report] == [*range(1, 10)]
        assert report.ids(STOP_SENT) == [1, 2, 3, 7, 8, 9]
        assert report.ids(NOT_SENT) == [4, 5, 6]
        assert {report[n].error for n in (4, 5, 6)} == {"project 3 does not exist"}
        [met] = raised.value.exceptions
        assert isinstance(met, ProjectNotFoundError)

    run(main())


# --- requests that are too large ------------------------------------------------------------------


@pytest.mark.parametrize("method", [STATUS, STOP])
def test_session_remembers_what_was_too_large(method: str) -> None:
    async def main() -> None:
        async with ControlApiSimulator(own_thread=False, max_body=300) as api:
            ids = range(1001, 1401)
            api.add_tasks(ids)
            async with ControlSession(api.url, 1, batching=Batching(200, 1)) as session:
                stop = session.stop_running if method == STATUS else session.task_stop
                first = await stop(PROJECT, ids[:200])
                at_first = [len(record.ids) for record in api.log]
                api.log.clear()
                second = await stop(PROJECT, ids[200:])
        assert first.ids(STOP_SENT) == [*ids[:200]]
        assert second.ids(STOP_SENT) == [*ids[200:]]
        # 413 was met, by ever smaller requests, and not once again by the second run.
        assert api.log
        sizes = [len(record.ids) for record in api.log if record.ids]
        assert len(sizes) == len(api.log)
        largest = max(sizes)
        assert largest <= 50
        assert -(-200 // largest) * (1 + (method == STATUS)) <= len(sizes)
        assert len(at_first) > len(sizes)
        assert first.stats.retries == second.stats.retries == 0

    run(main())


@pytest.mark.parametrize("checked", [True, False], ids=[STATUS, STOP])
def test_single_id_that_is_too_large_is_an_error_of_that_id(*, checked: bool) -> None:
    async def main() -> None:
        long = 2**63 - 1
        params = f'{{"project_id":{PROJECT},"task_ids":{long}}}'
        body = f'{{"user_id":1,"methods":[{{"method":"{STOP}","id":1,"params":{params}}}]}}'
        async with ControlApiSimulator(own_thread=False, max_body=len(body) - 1) as api:
            api.add_tasks([1, 2, 3, long])
            report, error = await stop_all(api, [1, 2, long, 3], chunk=4, checked=checked)
        assert report.ids(STOP_SENT) == [1, 2, 3]
        assert report.ids(NOT_SENT) == [long]
        assert error is not None
        [met] = error.exceptions
        assert isinstance(met, HttpError)
        assert met.status == 413
        assert "413" in (report[long].error or "")
        # Single ids are not cut any further, and not tried twice.
        assert [record.json for record in api.log].count(None) <= 3
        assert report.stats.retries == 0

    run(main())


# --- slowing down ---------------------------------------------------------------------------------


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


PAUSES: Final[dict[str, tuple[Callable[[], str], float, float]]] = {
    # Retry-After, and the seconds, at least and at most, until the next request.
    "seconds": (lambda: "7", 7, 7),
    "no seconds": (lambda: "0", 0, 0),
    "more than wait_max": (lambda: "3600", 20, 20),
    "a date": (lambda: http_date(10), 8, 10),
    "a date past": (lambda: http_date(-10), 0, 0),
    "a date after wait_max": (lambda: http_date(3600), 20, 20),
    "nonsense": (lambda: "soon", 0, 0),
    "a negative number": (lambda: "-5", 0, 0),
}
SLACK: Final = 1.0


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize(("header", "least", "most"), PAUSES.values(), ids=PAUSES)
def test_retry_after_is_honoured_up_to_wait_max(
    header: Callable[[], str], least: float, most: float, method: str, status: int
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        times: list[float] = []

        def choose(record: RequestRecord) -> Fault | None:
            times.append(loop.time())
            fault = HttpStatus(status, headers={"Retry-After": header()})
            return script(fault, method, 1)(record)

        async with ControlApiSimulator(own_thread=False) as api:
            api.add_tasks([1, 2, 3])
            witness = Witness(api, choose)
            report, error = await stop_all(
                api, [1, 2, 3], policy=RetryPolicy(attempts=3, wait_initial=0, wait_max=20)
            )
        assert_sound(witness, [1, 2, 3], report, error, attempts=3)
        assert report.ids(STOP_SENT) == [1, 2, 3]
        struck = 0 if method == STATUS else 1
        assert least <= times[struck + 1] - times[struck] <= most + SLACK

    run(main())


@pytest.mark.parametrize("method", [STATUS, STOP])
def test_retry_after_is_capped_by_the_runs_deadline(method: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        fault = HttpStatus(503, headers={"Retry-After": "20"})
        async with ControlApiSimulator(own_thread=False) as api:
            api.add_tasks([1, 2, 3])
            witness = Witness(api, script(fault, method, 1))
            began = loop.time()
            report, error = await stop_all(api, [1, 2, 3], timeout=5)
            took = loop.time() - began
        assert_sound(witness, [1, 2, 3], report, error, attempts=1)
        assert 5 <= took <= 5 + SLACK
        assert report.ids(NOT_SENT) == [1, 2, 3]
        assert error is not None
        assert error.subgroup(TimeoutError) is not None

    run(main())


def test_slow_down_holds_for_all_runs_of_a_session() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        times: list[float] = []

        def choose(record: RequestRecord) -> Fault | None:
            times.append(loop.time())
            fault = HttpStatus(429, headers={"Retry-After": "10"})
            return fault if record.number == 1 else None

        async with ControlApiSimulator(own_thread=False) as api:
            api.add_tasks(range(1, 41))
            api.fault_when = choose
            async with ControlSession(
                api.url, 1, batching=Batching(5, 4), retry=AT_ONCE
            ) as session:
                runs = asyncio.gather(
                    session.stop_running(PROJECT, range(1, 21)),
                    session.stop_running(PROJECT, range(21, 41)),
                )
                with api.hold(number=2, every=True):
                    await api.wait_for_requests(4)
                    await asyncio.sleep(1)  # the refusal has arrived by now
                reports = await runs
        assert [len(report.ids(STOP_SENT)) for report in reports] == [20, 20]
        assert sum(report.stats.retries for report in reports) == 1
        # Four were under way; nothing followed for ten seconds, whichever run it was of.
        assert times[3] - times[0] <= SLACK
        assert times[4] - times[0] >= 10

    run(main())


# --- the pace -------------------------------------------------------------------------------------


async def slots(pace: Pace, wanted: int = 20) -> int:
    """Count how many of many get a slot now."""
    released = asyncio.Event()
    holding = 0

    async def hold() -> None:
        nonlocal holding
        async with pace:
            holding += 1
            await released.wait()

    tasks = [asyncio.create_task(hold()) for _ in range(wanted)]
    for _ in range(3):
        await asyncio.sleep(0)
    count = holding
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return count


class Slow(NamedTuple):
    """The server asks to slow down, in answer to a request sent so many seconds ago."""

    ago: float = 0.0
    pause: float = 0.0


class Good(NamedTuple):
    """So many good answers."""

    answers: int


class Wait(NamedTuple):
    """Seconds pass."""

    seconds: float


PACES: Final[dict[str, tuple[int, list[Slow | Good | Wait], int]]] = {
    "as many as allowed": (8, [], 8),
    "good answers do not add to that": (8, [Good(100)], 8),
    "halved": (8, [Slow()], 4),
    "halved, an odd number": (7, [Slow()], 3),
    "once a round": (8, [Slow(), Slow(ago=1), Slow(ago=1)], 4),
    "again in the next round": (8, [Slow(), Wait(1), Slow()], 2),
    "never to nothing": (4, [Slow(), Wait(1), Slow(), Wait(1), Slow(), Wait(1), Slow()], 1),
    "a single one stays": (1, [Slow()], 1),
    "one more after as many good answers": (8, [Slow(), Good(4)], 5),
    "not before": (8, [Slow(), Good(3)], 4),
    "and one more": (8, [Slow(), Good(4 + 5)], 6),
    "back at the top, and never above": (8, [Slow(), Good(1000)], 8),
    "good answers from before do not count": (8, [Good(3), Slow(), Good(3)], 4),
    "nothing during a pause": (8, [Slow(pause=5)], 0),
    "nothing until its end": (8, [Slow(pause=5), Wait(4)], 0),
    "half after the pause": (8, [Slow(pause=5), Wait(6)], 4),
    "the longest pause counts": (8, [Slow(pause=5), Slow(ago=1, pause=2), Wait(4)], 0),
    "pauses do not add up": (8, [Slow(pause=5), Slow(ago=1, pause=5), Wait(6)], 4),
}


@pytest.mark.parametrize(("most", "story", "left"), PACES.values(), ids=PACES)
def test_pace(most: int, story: list[Slow | Good | Wait], left: int) -> None:
    async def main() -> None:
        pace = Pace(most)
        for event in story:
            match event:
                case Slow():
                    pace.slow_down(pace.now() - event.ago, event.pause)
                case Good():
                    for _ in range(event.answers):
                        pace.succeeded()
                case Wait():
                    await asyncio.sleep(event.seconds)
        assert await slots(pace) == left
        assert await slots(pace) == left  # all came back

    run(main())


def test_slots_are_given_in_the_order_of_asking_and_resume_after_a_pause() -> None:
    async def main() -> None:
        pace = Pace(2)
        order: list[int] = []

        async def take(number: int) -> None:
            async with pace:
                order.append(number)
                await asyncio.sleep(1)

        pace.slow_down(pace.now(), 5)
        began = pace.now()
        tasks = [asyncio.create_task(take(number)) for number in range(4)]
        await asyncio.sleep(1)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert order == [0, 2, 3]
        # One at a time, after the pause.
        assert 5 + 3 <= pace.now() - began <= 5 + 3 + SLACK

    run(main())


# --- what dooms all, with requests in flight ------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_replies_in_flight_are_used_when_doom_strikes(status: int) -> None:
    async def main() -> None:
        async with ControlApiSimulator(own_thread=False) as api:
            api.add_tasks([1, 2, 4, 6])
            api.add_tasks([3, 5], "Completed")
            api.add_tasks(range(7, 20))
            witness = Witness(api, script(HttpStatus(status), STATUS, 1))
            with api.hold(number=2, every=True, effect=True) as gate:
                stopping = asyncio.create_task(stop_all(api, range(1, 20), chunk=2, concurrency=3))
                await api.wait_until(lambda: gate.held == 2)
                await asyncio.sleep(1)  # the doom has arrived by now
            report, error = await stopping
        assert_sound(witness, range(1, 20), report, error, attempts=1)
        assert len(witness.requests) == 3
        assert report.ids(NOT_RUNNING) == [3, 5]
        assert len(report.ids(NOT_SENT)) == 17
        assert [report[n].status for n in (1, 4, 6, 7)] == [None, "Running", "Running", None]

    run(main())


def test_stops_in_flight_are_reported_when_doom_strikes() -> None:
    async def main() -> None:
        async with ControlApiSimulator(own_thread=False) as api:
            api.add_tasks(range(1, 9))
            witness = Witness(api, script(HttpStatus(403), STOP, 2))
            with api.hold(STOP, number=1, effect=True) as gate:
                stopping = asyncio.create_task(stop_all(api, range(1, 9), chunk=2, concurrency=2))
                await api.wait_until(lambda: gate.held == 1)
                await asyncio.sleep(1)
            report, error = await stopping
        assert_sound(witness, range(1, 9), report, error, attempts=1)
        assert report.ids(STOP_SENT) == list(
            api.log[[r.numbers.get(STOP) for r in api.log].index(1)].ids
        )
        assert api.counters.requests_by_method[STOP] == 2
        assert len(report.ids(NOT_SENT)) == 6
        assert error is not None
        [met] = error.exceptions
        assert isinstance(met, AuthError)

    run(main())


def test_doom_that_strikes_during_a_pause_lets_nothing_follow_it() -> None:
    def choose(record: RequestRecord) -> Fault | None:
        slow = HttpStatus(429, headers={"Retry-After": "10"})
        return {1: slow, 2: HttpStatus(403)}.get(record.number)

    async def main() -> None:
        async with ControlApiSimulator(own_thread=False) as api:
            api.add_tasks(range(1, 21))
            witness = Witness(api, choose)
            with api.hold(number=3), api.hold(number=2) as doom, api.hold(number=4) as good:
                stopping = asyncio.create_task(stop_all(api, range(1, 21), chunk=2, concurrency=4))
                await api.wait_for_requests(4)
                await asyncio.sleep(1)  # the pause has begun
                doom.release()
                await asyncio.sleep(1)
                good.release()
                await asyncio.sleep(20)  # it is over, and the third request still under way
            report, error = await stopping
        assert_sound(witness, range(1, 21), report, error, attempts=1)
        assert len(witness.requests) == 4
        assert len(report.ids(NOT_SENT)) == 20

    run(main())
