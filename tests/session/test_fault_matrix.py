"""Every fault, in every place of a run: what becomes of the tasks, and what it costs."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from attrs import evolve, frozen

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
    UndefinedMethodError,
    UserUnavailableError,
)
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
from tests.support.oracle import Oracle
from tests.support.simulated import STATUS, STOP, ended, rewrite_rows, simulated
from tests.support.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ctrlapi_async.simulator import RequestRecord

STOP_SENT, NOT_RUNNING = StopResult.STOP_SENT, StopResult.NOT_RUNNING
NOT_FOUND, NOT_SENT = StopResult.NOT_FOUND, StopResult.NOT_SENT
UNCONFIRMED = StopResult.UNCONFIRMED
ATTEMPTS: Final = 3


def script(
    fault: Fault, method: str, number: int, *, always: bool
) -> Callable[[RequestRecord], Fault | None]:
    """Return a script of one fault: for the request of that number, or for all from it on."""

    def choose(record: RequestRecord) -> Fault | None:
        own = record.numbers.get(method, 0)
        return fault if own == number or (always and own > number) else None

    return choose


async def stop_all(
    api: ControlApiSimulator, *, url: str | None = None, client: aiohttp.ClientSession | None = None
) -> tuple[StopReport, StopIncompleteError | None]:
    """Stop all tasks in a session of their own, in chunks of five, one after the other."""
    api.add_tasks(RUNNING)
    api.add_tasks(ENDED, "Completed")
    at_once = RetryPolicy(attempts=ATTEMPTS, wait_initial=0)
    async with ControlSession(
        url or api.url, 1, client=client, batching=Batching(5, 1), retry=at_once
    ) as session:
        return await ended(session.stop_running(2, TASKS))


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


@frozen
class Effect:
    """What a fault does to a run."""

    once: StopResult | None = None
    """What the tasks struck end as when it happens once; None: as without it."""
    always: StopResult | None = None
    """What they end as when it happens to all such requests from then on."""
    errors: type[CtrlApiError] | None = None
    """The class of the errors that are raised, and what they say."""
    words: str = ""
    extra: int | None = None
    """How many more requests than usual it takes once, and how many of these are repeats."""
    repeats: int | None = None
    ends_run: bool = False
    """Whether it ends the run if it comes first (of its method), and if it goes on."""
    of_method: bool = False
    first_only: bool = False
    """Whether only the first task of a request is struck."""


class Case(NamedTuple):
    """A fault, and its effects on the two methods."""

    fault: Fault
    status: Effect
    stop: Effect


NOTHING = Effect(extra=0, repeats=0)
SETTLED = Effect(extra=1, repeats=0)
"""Tasks are checked again after their stop, and found Canceled."""
STRUCK_FIRST = Effect(NOT_FOUND, NOT_FOUND, first_only=True)
ODD_FIRST = Effect(NOT_SENT, NOT_SENT, ReplyError, "neither `status` nor `error`", first_only=True)


def passing(errors: type[CtrlApiError], words: str) -> Effect:
    """Repeated; when it does not pass, nothing was stopped."""
    return Effect(None, NOT_SENT, errors, words, extra=1, repeats=1)


def lost(errors: type[CtrlApiError], words: str) -> Effect:
    """A stop that did not arrive, for all that the client can tell: checked, and repeated."""
    return Effect(None, UNCONFIRMED, errors, words, extra=2, repeats=1)


def fateless(fault: Fault, errors: type[CtrlApiError], words: str) -> Case:
    """A passing fault that leaves the fate of a stop open, which did not happen."""
    return Case(fault, passing(errors, words), lost(errors, words))


def taken(fault: Fault, errors: type[CtrlApiError], words: str) -> Case:
    """A passing fault that hides that the tasks were stopped, until they are checked."""
    return Case(fault, passing(errors, words), SETTLED)


def fatal(fault: Fault, errors: type[CtrlApiError], words: str, *, sure: bool = True) -> Case:
    """A fault that ends the run if it is there at the start, or stays."""
    status = evolve(passing(errors, words), ends_run=True)
    return Case(fault, status, status if sure else lost(errors, words))


def alike(fault: Fault, effect: Effect) -> Case:
    return Case(fault, effect, effect)


def answer(text: str) -> Body:
    return Body(f'{{"reply": [{{"error": "{text}"}}]}}')


def first_row(**members: Any) -> Rewrite:
    """Put other members into the first row than its task id."""
    return rewrite_rows(lambda rows: [{"task_id": rows[0]["task_id"], **members}, *rows[1:]])


def changed(**members: Any) -> Rewrite:
    """Change the members of a reply's only entry; None leaves one out."""

    def apply(reply: Any) -> Any:
        entry = reply["reply"][0] | members
        return {"reply": [{name: value for name, value in entry.items() if value is not None}]}

    return Rewrite(apply)


def ids_in(rows: Iterable[dict[str, Any]]) -> set[int]:
    return {row["task_id"] for row in rows}


BROKEN = r"broke off"
LATE = r"no answer from \S+ within 30 s"
DENIED = Effect(None, NOT_FOUND)
LOCKED = "database is locked"
LOCKED_STATUS = Effect(NOT_SENT, NOT_SENT, MethodError, LOCKED)
NO_PROJECT = "project 2 does not exist"

MATRIX: Final[dict[str, Case]] = {
    # The connection.
    "drop before effect": fateless(Drop(), RequestError, BROKEN),
    "drop after effect": taken(Drop(effect=True), RequestError, BROKEN),
    "cut body": taken(CutBody(), RequestError, BROKEN),
    "cut body, nothing of it": taken(CutBody(keep=0), RequestError, BROKEN),
    "cut body, no effect": fateless(CutBody(effect=False), RequestError, BROKEN),
    "slow body": taken(SlowBody(interval=1e6), RequestError, LATE),
    "timeout": fateless(Hang(), RequestError, LATE),
    "timeout after effect": taken(Hang(effect=True), RequestError, LATE),
    # HTTP.
    "400": fatal(HttpStatus(400), HttpError, "HTTP 400 .*does not understand", sure=False),
    "400 after effect": Case(
        HttpStatus(400, effect=True), fatal(Drop(), HttpError, "HTTP 400").status, SETTLED
    ),
    "401": fatal(HttpStatus(401), AuthError, "HTTP 401 .*credentials"),
    "403": fatal(HttpStatus(403), AuthError, "HTTP 403 .*Control API"),
    "404": fatal(HttpStatus(404), HttpError, "HTTP 404 .*no Control API at this address"),
    "405": fatal(HttpStatus(405), HttpError, "HTTP 405 .*no Control API at this address"),
    "407": fatal(HttpStatus(407), HttpError, "HTTP 407 .*proxy"),
    "408": fateless(HttpStatus(408), HttpError, "HTTP 408"),
    "410": fatal(HttpStatus(410), HttpError, "HTTP 410", sure=False),
    "413": alike(HttpStatus(413), Effect(None, NOT_SENT, HttpError, "HTTP 413 .*too large")),
    "425": fateless(HttpStatus(425), HttpError, "HTTP 425"),
    "429": alike(HttpStatus(429), passing(HttpError, "HTTP 429 ")),
    "500": fateless(HttpStatus(500), HttpError, "HTTP 500"),
    "500 after effect": taken(HttpStatus(500, effect=True), HttpError, "HTTP 500"),
    "502": fateless(HttpStatus(502), HttpError, "HTTP 502"),
    "503": fateless(HttpStatus(503), HttpError, "HTTP 503"),
    "503 after effect": taken(HttpStatus(503, effect=True), HttpError, "HTTP 503"),
    "504 after effect": taken(HttpStatus(504, effect=True), HttpError, "HTTP 504"),
    "302": fatal(
        HttpStatus(302, headers={"Location": "https://new.example/"}),
        HttpError,
        "redirects to https://new.example/, which is not followed",
        sure=False,
    ),
    "HTML": fatal(
        Body("<html>hello</html>", content_type="text/html"), ReplyError, "web page", sure=False
    ),
    # JSON.
    "empty": fateless(Body(""), ReplyError, "empty"),
    "empty after effect": taken(Body("", effect=True), ReplyError, "empty"),
    "half": fateless(Body('{"reply": [{"res'), ReplyError, "truncated"),
    "another JSON": fateless(Body("[1, 2]"), ReplyError, r"[Ee]xpected"),
    "no reply": fateless(Body('{"hello": 1}'), ReplyError, "reply"),
    "no entry": fateless(Body('{"reply": []}'), ReplyError, "no entry"),
    "no result": fateless(Body('{"reply": [{}]}'), ReplyError, "result"),
    "null result": fateless(Body('{"reply": [{"result": null}]}'), ReplyError, "result"),
    # What the API documents.
    "user": fatal(
        Body('{"error": "user 1 is unavailable"}'), UserUnavailableError, "user 1 is unavailable"
    ),
    "project": alike(
        answer(NO_PROJECT),
        Effect(NOT_SENT, NOT_SENT, ProjectNotFoundError, NO_PROJECT, ends_run=True),
    ),
    "method": alike(
        answer("Undefined method 'TaskX'"),
        evolve(passing(UndefinedMethodError, "TaskX"), ends_run=True, of_method=True),
    ),
    "denied, unreadably": alike(answer("access denied to tasks"), DENIED),
    "denied, others named": alike(answer("access denied to tasks [98,99]"), DENIED),
    # What it does not.
    "unknown text": Case(answer(LOCKED), LOCKED_STATUS, lost(MethodError, LOCKED)),
    "unknown text at the top": Case(
        Body(f'{{"error": "{LOCKED}"}}'), LOCKED_STATUS, lost(MethodError, LOCKED)
    ),
    # Rows.
    "a row missing": Case(rewrite_rows(lambda rows: rows[1:]), STRUCK_FIRST, SETTLED),
    "all rows missing": Case(rewrite_rows(lambda _: []), Effect(NOT_FOUND, NOT_FOUND), SETTLED),
    "a row without a word": Case(first_row(), ODD_FIRST, SETTLED),
    "rows with errors": Case(
        rewrite_rows(
            lambda rows: [{"task_id": n, "error": "No"} for n in ids_in(rows)], effect=False
        ),
        Effect(NOT_FOUND, NOT_FOUND),
        Effect(None, UNCONFIRMED, ReplyError, "no clear answer"),
    ),
    "rows repeated": alike(rewrite_rows(lambda rows: rows * 2), NOTHING),
    "rows that contradict": Case(
        rewrite_rows(lambda rows: [*rows, {"task_id": rows[0]["task_id"], "status": "Stalled"}]),
        Effect(NOT_RUNNING, NOT_RUNNING, first_only=True),
        SETTLED,
    ),
    "a row's status unknown": Case(
        first_row(status="Dreaming"), Effect(NOT_RUNNING, NOT_RUNNING, first_only=True), SETTLED
    ),
    "a row unreadable": Case(
        first_row(status=["Running"]),
        Effect(NOT_SENT, NOT_SENT, ReplyError, r"result\[0\]", first_only=True),
        SETTLED,
    ),
    "extra rows": alike(
        rewrite_rows(lambda rows: [{"task_id": 98, "status": "Running"}, *rows]), NOTHING
    ),
    "rows of other tasks": alike(
        rewrite_rows(
            lambda rows: (
                rows + [{"task_id": n, "status": "Stalled"} for n in set(TASKS) - ids_in(rows)]
            )
        ),
        NOTHING,
    ),
    "rows in another order": alike(rewrite_rows(lambda rows: rows[::-1]), NOTHING),
    "errors beside the result": alike(changed(errors=["disk is nearly full"]), NOTHING),
    "no id echoed": alike(changed(id=None), NOTHING),
}
NORMAL: Final = {n: NOT_RUNNING if n in ENDED else STOP_SENT for n in TASKS}


def expected(place: int, effect: Effect, *, always: bool) -> dict[int, StopResult]:
    """Return what each task ends as when a fault strikes the request at that place."""
    if ends_run(place, effect, always=always):
        return dict.fromkeys(TASKS, NOT_SENT) | before(place)
    results = dict(NORMAL)
    verdict = effect.always if always else effect.once
    if verdict is not None and not effect.ends_run:
        for at, (method, task_ids) in enumerate(REQUESTS):
            if method == REQUESTS[place][0] and (at == place or (always and at > place)):
                results |= dict.fromkeys(task_ids[:1] if effect.first_only else task_ids, verdict)
    return results


def ends_run(place: int, effect: Effect, *, always: bool) -> bool:
    """Whether a fault there ends the run."""
    methods = [method for method, _ in REQUESTS[:place]]
    first = REQUESTS[place][0] not in methods if effect.of_method else not place
    return effect.ends_run and (always or first or effect.once is not None)


def before(place: int) -> dict[int, StopResult]:
    """Return what is known of tasks before the request at that place."""
    results: dict[int, StopResult] = {}
    for method, task_ids in REQUESTS[:place]:
        known = task_ids if method == STOP else set(task_ids) & set(ENDED)
        results |= {n: NORMAL[n] for n in known}
    return results


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("case", MATRIX.values(), ids=MATRIX)
@simulated(hand_driven=True)
async def test_matrix(
    api: ControlApiSimulator, case: Case, method: str, number: int, *, always: bool
) -> None:
    effect = case.status if method == STATUS else case.stop
    oracle = Oracle(attempts=ATTEMPTS)
    oracle.ask(2, TASKS)
    witness = Witness(api, script(case.fault, method, number, always=always), oracle)
    report, error = await stop_all(api)
    witness.check(TASKS, report, error)
    place = [at for at, (asked, _) in enumerate(REQUESTS) if asked == method][number - 1]
    results = {n: outcome.result for n, outcome in report.items()}
    wanted = expected(place, effect, always=always)
    if always and place and effect.ends_run:
        # Until it is sure that the fault stays, others may get through.
        wanted |= {n: result for n, result in results.items() if result is NORMAL[n]}
    assert results == wanted
    assert_told(report, error, effect)
    if ends_run(place, effect, always=always):
        assert witness.requests[-1].methods == (method,)
    elif not always and effect.extra is not None:
        assert len(witness.requests) == len(REQUESTS) + effect.extra
        assert report.stats.retries == effect.repeats
    elif always and effect.repeats:
        asked = Counter(n for one in witness.requests if method in one.methods for n in one.ids)
        # Tasks that may be to blame are asked about in smaller requests, each of them less often.
        assert max(asked[n] for n in results if results[n] is effect.always) == ATTEMPTS


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


@simulated()
async def test_matrix_is_what_a_run_without_faults_sends(api: ControlApiSimulator) -> None:
    report, error = await stop_all(api)
    assert error is None
    assert report.ids(STOP_SENT) == list(RUNNING)
    assert tuple((*record.methods, record.ids) for record in api.log) == REQUESTS


# --- a server that cannot be reached --------------------------------------------------------------


class Detours(AbstractResolver):
    """Leads one connection after the other to the ports given."""

    def __init__(self, ports: Iterable[int]) -> None:
        self._ports = iter(ports)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        port = next(self._ports)
        server = ResolveResult(
            hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0
        )
        return [server]

    async def close(self) -> None:
        pass


class Resetting(asyncio.Protocol):
    """A server that resets every connection before a byte of a request is read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        at_once = struct.pack("ii", 1, 0)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("place", range(len(REQUESTS)))
@pytest.mark.parametrize(
    ("accepts", "result", "words"),
    [(False, NOT_SENT, "was not reached"), (True, UNCONFIRMED, BROKEN)],
    ids=["connect refused", "reset before send"],
)
@simulated()
async def test_matrix_of_lost_connections(
    api: ControlApiSimulator,
    place: int,
    words: str,
    result: StopResult,
    *,
    accepts: bool,
    always: bool,
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))  # and nobody listens unless this is accepted
        port = other.getsockname()[1]
        server: AbstractAsyncContextManager[Any] = nullcontext()
        if accepts:
            server = await asyncio.get_running_loop().create_server(Resetting, sock=other)
        ports = [*[api.port] * place, *[port] * (1000 if always else 1), *[api.port] * 1000]
        connector = aiohttp.TCPConnector(
            resolver=Detours(ports), force_close=True, use_dns_cache=False
        )
        async with server, aiohttp.ClientSession(connector=connector) as client:
            report, error = await stop_all(api, url="http://api.example", client=client)
    results = {n: outcome.result for n, outcome in report.items()}
    if not always:
        assert error is None
        assert results == NORMAL
        assert report.stats.retries == 1
        return
    seen = {n for method, ids in REQUESTS[:place] if method == STATUS for n in ids}
    assert results == {n: result if n in seen else NOT_SENT for n in TASKS} | before(place)
    assert_told(report, error, Effect(errors=RequestError, words=words))
