"""Every fault, in every place of a run: what becomes of the tasks, and what it costs."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from attrs import evolve, field, frozen

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
from tests.support.simulated import (
    STATUS,
    STOP,
    ended,
    rewrite_rows,
    simulated,
)
from tests.support.witness import Witness

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ctrlapi_async.simulator import RequestRecord

STOP_SENT = StopResult.STOP_SENT
NOT_RUNNING = StopResult.NOT_RUNNING
NOT_FOUND = StopResult.NOT_FOUND
UNAVAILABLE = StopResult.UNAVAILABLE
NOT_SENT = StopResult.NOT_SENT
UNCONFIRMED = StopResult.UNCONFIRMED

ATTEMPTS: Final = 3
AT_ONCE: Final = RetryPolicy(attempts=ATTEMPTS, wait_initial=0)


def script(
    fault: Fault, method: str, number: int, *, always: bool
) -> Callable[[RequestRecord], Fault | None]:
    """Return a script of one fault: for the request of that number, or for all from it on."""

    def choose(record: RequestRecord) -> Fault | None:
        own = record.numbers.get(method, 0)
        return fault if own == number or (always and own > number) else None

    return choose


async def stop_all(
    api: ControlApiSimulator,
    task_ids: Iterable[int],
    *,
    url: str | None = None,
    client: aiohttp.ClientSession | None = None,
) -> tuple[StopReport, StopIncompleteError | None]:
    """Stop tasks in a session of their own, in chunks of five, one after the other."""
    session = ControlSession(
        url or api.url, 1, client=client, batching=Batching(5, 1), retry=AT_ONCE
    )
    async with session:
        return await ended(session.stop_running(2, task_ids))


def witness_of(
    api: ControlApiSimulator,
    choose: Callable[[RequestRecord], Fault | None],
    task_ids: Iterable[int],
    attempts: int = ATTEMPTS,
) -> Witness:
    oracle = Oracle(attempts=attempts)
    oracle.ask(2, task_ids)
    return Witness(api, choose, oracle)


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
    """What a fault does to a run.

    Args:
        once: What the tasks struck end as when it happens once; None: as without it.
        always: What they end as when it happens to all such requests from then on.
        ends_run: Whether it ends the run if it comes first, and if it goes on.
        of_method: Whether that means the first request of the method.
        errors: The class of the errors that are raised, if any are.
        words: What they say.
        first_only: Whether only the first task of a request is struck.
        extra: How many more requests than usual it takes when it happens once.
        repeats: How many of these are repeats of one that was sent.
    """

    once: StopResult | None = None
    always: StopResult | None = None
    ends_run: bool = field(default=False, kw_only=True)
    of_method: bool = field(default=False, kw_only=True)
    errors: type[CtrlApiError] | None = field(default=None, kw_only=True)
    words: str = field(default="", kw_only=True)
    first_only: bool = field(default=False, kw_only=True)
    extra: int | None = field(default=None, kw_only=True)
    repeats: int | None = field(default=None, kw_only=True)


class Case(NamedTuple):
    """A fault, and its effects on the two methods."""

    fault: Fault
    status: Effect
    stop: Effect


NOTHING = Effect(extra=0, repeats=0)
SETTLED = Effect(extra=1, repeats=0)
"""Tasks are checked again after their stop, and found Canceled."""
STRUCK_FIRST = Effect(NOT_FOUND, NOT_FOUND, first_only=True)
ODD_FIRST = Effect(
    NOT_SENT, NOT_SENT, first_only=True, errors=ReplyError, words="neither `status` nor `error`"
)


def passing(errors: type[CtrlApiError], words: str) -> Effect:
    """Repeated; when it does not pass, nothing was stopped."""
    return Effect(None, NOT_SENT, errors=errors, words=words, extra=1, repeats=1)


def lost(errors: type[CtrlApiError], words: str) -> Effect:
    """A stop that did not arrive, for all that the client can tell: checked, and repeated."""
    return Effect(None, UNCONFIRMED, errors=errors, words=words, extra=2, repeats=1)


def refused(status: int, words: str = "") -> Case:
    """A passing HTTP error after which a stop surely did not happen."""
    effect = passing(HttpError, f"HTTP {status} {words}")
    return Case(HttpStatus(status), effect, effect)


def fateless(fault: Fault, errors: type[CtrlApiError], words: str) -> Case:
    """A passing fault that leaves the fate of a stop open, which did not happen."""
    return Case(fault, passing(errors, words), lost(errors, words))


def taken(fault: Fault, errors: type[CtrlApiError], words: str) -> Case:
    """A passing fault that hides that the tasks were stopped, until they are checked."""
    return Case(fault, passing(errors, words), SETTLED)


def fatal(fault: Fault, errors: type[CtrlApiError], words: str, *, sure: bool = True) -> Case:
    """A fault that ends the run if it is there at the start, or stays."""
    status = Effect(None, NOT_SENT, ends_run=True, errors=errors, words=words, extra=1, repeats=1)
    if sure:
        return Case(fault, status, status)
    stop = Effect(None, UNCONFIRMED, errors=errors, words=words, extra=2, repeats=1)
    return Case(fault, status, stop)


def final(text: str, errors: type[CtrlApiError]) -> Case:
    """A refusal of the one project, or of the user, that no repeat would change."""
    effect = Effect(NOT_SENT, NOT_SENT, ends_run=True, errors=errors, words=text)
    return Case(Body(f'{{"reply": [{{"error": "{text}"}}]}}'), effect, effect)


def answer(text: str) -> Body:
    return Body(f'{{"reply": [{{"error": "{text}"}}]}}')


def first_row(**members: Any) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Put other members into the first row than its task id."""
    return lambda rows: [{"task_id": rows[0]["task_id"], **members}, *rows[1:]]


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
TOO_LARGE = Effect(None, NOT_SENT, errors=HttpError, words="HTTP 413 .*too large")
DENIED = Effect(None, NOT_FOUND)
LOCKED = "database is locked"
LOCKED_STOP = Effect(None, UNCONFIRMED, errors=MethodError, words=LOCKED, extra=2, repeats=1)
LOCKED_CASE = Effect(NOT_SENT, NOT_SENT, errors=MethodError, words=LOCKED)

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
        HttpStatus(400, effect=True),
        fatal(HttpStatus(400), HttpError, "HTTP 400").status,
        SETTLED,
    ),
    "401": fatal(HttpStatus(401), AuthError, "HTTP 401 .*credentials"),
    "403": fatal(HttpStatus(403), AuthError, "HTTP 403 .*Control API"),
    "404": fatal(HttpStatus(404), HttpError, "HTTP 404 .*no Control API at this address"),
    "405": fatal(HttpStatus(405), HttpError, "HTTP 405 .*no Control API at this address"),
    "407": fatal(HttpStatus(407), HttpError, "HTTP 407 .*proxy"),
    "408": fateless(HttpStatus(408), HttpError, "HTTP 408"),
    "410": fatal(HttpStatus(410), HttpError, "HTTP 410", sure=False),
    "413": Case(HttpStatus(413), TOO_LARGE, TOO_LARGE),
    "425": fateless(HttpStatus(425), HttpError, "HTTP 425"),
    "429": refused(429),
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
    "user": Case(
        Body('{"error": "user 1 is unavailable"}'),
        *(fatal(Drop(), UserUnavailableError, "user 1 is unavailable")[1:]),
    ),
    "project": final("project 2 does not exist", ProjectNotFoundError),
    "method": Case(
        answer("Undefined method 'TaskX'"),
        *[
            evolve(effect, of_method=True)
            for effect in fatal(Drop(), UndefinedMethodError, "TaskX")[1:]
        ],
    ),
    "denied, unreadably": Case(answer("access denied to tasks"), DENIED, DENIED),
    "denied, others named": Case(answer("access denied to tasks [98,99]"), DENIED, DENIED),
    # What it does not.
    "unknown text": Case(answer(LOCKED), LOCKED_CASE, LOCKED_STOP),
    "unknown text at the top": Case(
        Body('{"error": "database is locked"}'), LOCKED_CASE, LOCKED_STOP
    ),
    # Rows.
    "a row missing": Case(rewrite_rows(lambda rows: rows[1:]), STRUCK_FIRST, SETTLED),
    "all rows missing": Case(rewrite_rows(lambda _: []), Effect(NOT_FOUND, NOT_FOUND), SETTLED),
    "a row without a word": Case(rewrite_rows(first_row()), ODD_FIRST, SETTLED),
    "rows with errors": Case(
        rewrite_rows(
            lambda rows: [{"task_id": n, "error": "No"} for n in ids_in(rows)], effect=False
        ),
        Effect(NOT_FOUND, NOT_FOUND),
        Effect(None, UNCONFIRMED, errors=ReplyError, words="no clear answer"),
    ),
    "rows repeated": Case(rewrite_rows(lambda rows: rows * 2), NOTHING, NOTHING),
    "rows that contradict": Case(
        rewrite_rows(lambda rows: [*rows, {"task_id": rows[0]["task_id"], "status": "Stalled"}]),
        Effect(NOT_RUNNING, NOT_RUNNING, first_only=True),
        SETTLED,
    ),
    "a row's status unknown": Case(
        rewrite_rows(first_row(status="Dreaming")),
        Effect(NOT_RUNNING, NOT_RUNNING, first_only=True),
        SETTLED,
    ),
    "a row unreadable": Case(
        rewrite_rows(first_row(status=["Running"])),
        Effect(NOT_SENT, NOT_SENT, errors=ReplyError, words=r"result\[0\]", first_only=True),
        SETTLED,
    ),
    "extra rows": Case(
        rewrite_rows(lambda rows: [{"task_id": 98, "status": "Running"}, *rows]), NOTHING, NOTHING
    ),
    "rows of other tasks": Case(
        rewrite_rows(
            lambda rows: [
                *rows,
                *({"task_id": n, "status": "Stalled"} for n in TASKS if n not in ids_in(rows)),
            ]
        ),
        NOTHING,
        NOTHING,
    ),
    "rows in another order": Case(rewrite_rows(lambda rows: rows[::-1]), NOTHING, NOTHING),
    "errors beside the result": Case(changed(errors=["disk is nearly full"]), NOTHING, NOTHING),
    "no id echoed": Case(changed(id=None), NOTHING, NOTHING),
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
        if method == STOP:
            results |= dict.fromkeys(task_ids, STOP_SENT)
        else:
            results |= {n: NOT_RUNNING for n in task_ids if n in ENDED}
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
    api.add_tasks(RUNNING)
    api.add_tasks(ENDED, "Completed")
    witness = witness_of(api, script(case.fault, method, number, always=always), TASKS)
    report, error = await stop_all(api, TASKS)
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
    api.add_tasks(RUNNING)
    api.add_tasks(ENDED, "Completed")
    report, error = await stop_all(api, TASKS)
    assert error is None
    assert report.ids(STOP_SENT) == list(RUNNING)
    assert tuple((*record.methods, record.ids) for record in api.log) == REQUESTS


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
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,
    ) -> list[ResolveResult]:
        self._asked += 1
        detour = self._asked in self._numbers
        self.taken += detour
        port = self._other if detour else self._server
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0
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
    # Whether the connection is accepted: what tasks end as that run and cannot be stopped.
    "connect refused": (False, NOT_SENT, "was not reached"),
    "reset before send": (True, UNCONFIRMED, BROKEN),
}


@pytest.mark.parametrize("always", [False, True], ids=["once", "always"])
@pytest.mark.parametrize("place", range(len(REQUESTS)))
@pytest.mark.parametrize(("accepts", "result", "words"), UNREACHABLE.values(), ids=UNREACHABLE)
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
    loop = asyncio.get_running_loop()
    api.add_tasks(RUNNING)
    api.add_tasks(ENDED, "Completed")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        port = nobody.getsockname()[1]
        server = await loop.create_server(Resetting, "127.0.0.1", 0) if accepts else None
        if server is not None:
            port = server.sockets[0].getsockname()[1]
        numbers = range(place + 1, 1000 if always else place + 2)
        detours = Detours(api.port, port, numbers)
        connector = aiohttp.TCPConnector(resolver=detours, force_close=True, use_dns_cache=False)
        async with aiohttp.ClientSession(connector=connector) as client:
            report, error = await stop_all(api, TASKS, url="http://api.example", client=client)
        if server is not None:
            server.close()
            await server.wait_closed()
    results = {n: outcome.result for n, outcome in report.items()}
    if not always:
        assert error is None
        assert results == NORMAL
        assert report.stats.retries == detours.taken == 1
        return
    seen = {n for method, ids in REQUESTS[:place] if method == STATUS for n in ids}
    assert results == {n: result if n in seen else NOT_SENT for n in TASKS} | before(place)
    assert_told(report, error, Effect(errors=RequestError, words=words))
