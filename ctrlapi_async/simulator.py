# ruff: noqa: SLF001 - tasks and gates are parts of the simulator
"""A Control API server to test against, with tasks that live on a clock and faults on a script.

It runs inside a test, on a free port of the loopback interface::

    async with ControlApiSimulator() as api:
        api.add_tasks(range(1, 1001), "Running", project_id=2)
        api.fault(HttpStatus(503), method="TaskStop", number=2)
        ...  # let the code under test talk to api.url
        assert api.tasks[66].stopped
        assert api.counters.peak <= 8

It knows TaskStatus and TaskStop and is strict about every request: whatever is not documented is
refused with a 400 that says what is wrong and where. It shares no code with the client of this
package, so that one cannot repeat the other's mistakes.

What happens to a request, in this order:

1. It is read, numbered, counted and logged; waiters of `ControlApiSimulator.wait_until` wake.
2. It waits for the gates of `ControlApiSimulator.hold`.
3. It takes effect, unless a fault says that it does not, and its reply is made; ``tick`` moves the
   clock.
4. It waits for the gates made with ``effect=True``, then for the latency.
5. The reply, or what the fault made of it, is sent.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import struct
import sys
from collections import Counter
from contextlib import suppress
from http import HTTPStatus
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypeAlias, cast, get_args

from aiohttp import web
from attrs import define, evolve, field, frozen, validators

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

__all__ = [
    "STATUSES",
    "Body",
    "ControlApiSimulator",
    "Counters",
    "CutBody",
    "Delay",
    "Drop",
    "Fault",
    "Gate",
    "Hang",
    "HttpStatus",
    "RequestRecord",
    "Rewrite",
    "SimulatedTask",
    "SlowBody",
]

STATUSES: Final = (
    "Scheduled",
    "Explore",
    "Running",
    "Completed",
    "Rejected",
    "Canceled",
    "Stalled",
)
"""Every status that the API's documentation names, in the order of a task's life."""

_PATH: Final = "/ctrl_api/v1/json"
_MAX_INT: Final = 2**63 - 1
_MAX_SHOWN: Final = 60
_RUNNING: Final = "Running"
_CANCELED: Final = "Canceled"
_ACTIVE: Final = frozenset({"Scheduled", "Explore", _RUNNING})
_STATUS: Final = "TaskStatus"
_STOP: Final = "TaskStop"
_STOP_SENT: Final = "Stop request was sent"
_STOP_UNAVAILABLE: Final = "Stopping task is unavailable"
_NO_TASK: Final = "Task does not exist"
# A linger time of zero makes the kernel answer a close with RST; Windows has its own struct.
_LINGER_NOT: Final = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
# Where nginx's wording is not that of the standard.
_NGINX_TITLES: Final = {
    302: "Found",
    401: "Authorization Required",
    405: "Not Allowed",
    413: "Request Entity Too Large",
    503: "Service Temporarily Unavailable",
    504: "Gateway Time-out",
}

Missing: TypeAlias = Literal["denied", "error", "omitted"]
DeniedNames: TypeAlias = Literal["bad", "all", "none"]


# --- Faults ---------------------------------------------------------------------------------------


@frozen
class HttpStatus:
    """Answer with an HTTP status, as the proxy in front of the API would.

    Args:
        status: The HTTP status.
        headers: Headers to add, for example ``Retry-After`` or ``Location``.
        body: The body; None for an HTML page like nginx's.
        effect: Whether the request takes effect all the same.
    """

    status: int = field(validator=[validators.ge(200), validators.le(599)])
    headers: Mapping[str, str] = field(factory=dict, kw_only=True)
    body: str | bytes | None = field(default=None, kw_only=True)
    effect: bool = field(default=False, kw_only=True)


@frozen
class Drop:
    """Reset the connection without a byte of reply.

    Args:
        effect: Whether the request takes effect first.
    """

    effect: bool = field(default=False, kw_only=True)


@frozen
class CutBody:
    """Take effect, announce the whole reply's length, send a part of it and close the connection.

    Args:
        keep: The part of the reply's bytes that is sent, from 0 to below 1.
        effect: Whether the request takes effect first.
    """

    keep: float = field(default=0.5, validator=[validators.ge(0), validators.lt(1)], kw_only=True)
    effect: bool = field(default=True, kw_only=True)


@frozen
class SlowBody:
    """Take effect, then send the reply's body byte by byte.

    Args:
        interval: Seconds before each byte after the first.
        effect: Whether the request takes effect first.
    """

    interval: float = field(default=1.0, validator=validators.ge(0.0), kw_only=True)
    effect: bool = field(default=True, kw_only=True)


@frozen
class Hang:
    """Never answer; the request ends when the client goes away or the simulator stops.

    Args:
        effect: Whether the request takes effect first.
    """

    effect: bool = field(default=False, kw_only=True)


@frozen
class Body:
    """Answer with these very bytes.

    Args:
        body: The body; a str is encoded as UTF-8.
        content_type: The Content-Type header.
        status: The HTTP status.
        effect: Whether the request takes effect first.
    """

    body: str | bytes
    content_type: str = field(default="application/json", kw_only=True)
    status: int = field(
        default=200, validator=[validators.ge(200), validators.le(599)], kw_only=True
    )
    effect: bool = field(default=False, kw_only=True)


@frozen
class Rewrite:
    """Pass the reply's JSON through a function: rows missing, repeated, added or shuffled.

    A reply that is not 200 passes unchanged. What the function raises, the client sees as a 500
    and `ControlApiSimulator.stop` raises again.

    Args:
        change: Gets the reply's JSON, which it may change in place, and returns the JSON to send.
        effect: Whether the request takes effect; if not, the reply is still what it would have
            been.
    """

    change: Callable[[Any], Any]
    effect: bool = field(default=True, kw_only=True)


@frozen
class Delay:
    """Take effect, then answer well, but later than usual.

    Args:
        seconds: Seconds on top of the simulator's latency.
    """

    seconds: float = field(validator=validators.ge(0.0))
    effect: ClassVar[bool] = True


Fault: TypeAlias = HttpStatus | Drop | CutBody | SlowBody | Hang | Body | Rewrite | Delay
"""What can go wrong with a request."""


# --- What the simulator tells ---------------------------------------------------------------------


@frozen(eq=False)
class RequestRecord:
    """One HTTP request, as it arrived.

    Attributes:
        number: Counts all requests, from 1.
        numbers: Counts, for each method called in this request, the requests that contain it,
            this one included.
        http_method: The HTTP method.
        path: The path, without a query.
        headers: The headers, looked up in any case.
        json: The body, or None when it is not strict JSON or too large.
        calls: The methods called and the task ids asked for by each, as far as they can be read;
            ``"*"`` stands for no ids.
    """

    number: int
    numbers: Mapping[str, int]
    http_method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    json: Any
    calls: tuple[tuple[str, Sequence[int]], ...] = field(repr=False)

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods called, in order."""
        return tuple(method for method, _ in self.calls)

    @property
    def ids(self) -> tuple[int, ...]:
        """The task ids of all calls, in order."""
        return tuple(task_id for _, ids in self.calls for task_id in ids)


@define
class Counters:
    """What came in since the start or the last ``reset_counters()``.

    Attributes:
        requests: HTTP requests, refused ones included.
        requests_by_method: HTTP requests that contain the method.
        calls: Method calls; a request may hold several.
        ids: Task ids asked for, by method.
        in_flight: Requests being handled now.
        peak: The most requests handled at the same time. A client that hangs up and asks again can
            count twice for as long as the server has not noticed.
        connections: Connections opened.
        connections_open: Connections open now.
    """

    requests: int = 0
    requests_by_method: Counter[str] = field(factory=Counter)
    calls: Counter[str] = field(factory=Counter)
    ids: Counter[str] = field(factory=Counter)
    in_flight: int = 0
    peak: int = 0
    connections: int = 0
    connections_open: int = 0


class SimulatedTask:
    """A task as it truly is, whatever was answered about it."""

    __slots__ = ("_course", "_stop_at", "stop_requests", "task_id")

    task_id: int
    stop_requests: int
    """TaskStop requests that were accepted, whether or not their replies arrived."""

    def __init__(self, task_id: int, course: _Course) -> None:
        self.task_id = task_id
        self.stop_requests = 0
        self._course = course
        self._stop_at: float | None = None

    def __repr__(self) -> str:
        return f"<SimulatedTask {self.task_id} {self.status}>"

    @property
    def project_id(self) -> int:
        """The project that the task belongs to."""
        return self._course.project_id

    @property
    def status(self) -> str:
        """The status now; set it to end whatever the task was going through."""
        return self._status_at(self._course.clock())

    @status.setter
    def status(self, status: str) -> None:
        course = self._course
        self._course = _Course(course.project_id, course.clock, status)
        self._stop_at = None

    @property
    def stopped(self) -> bool:
        """Whether an accepted stop took effect: the task was Running until then."""
        return self._stopped_at(self._course.clock())

    def _stopped_at(self, now: float) -> bool:
        stop_at = self._stop_at
        return stop_at is not None and now >= stop_at and self._course.at(stop_at) == _RUNNING

    def _status_at(self, now: float) -> str:
        if self._stop_at is not None and self._stopped_at(now):
            return _CANCELED
        course = self._course
        return course.at(now) if course.turns else course.first

    def _accept_stop(self, now: float, delay: float) -> None:
        self.stop_requests += 1
        # A stop that is under way is not put off by another; one that came to nothing is over.
        if self._stop_at is None or now >= self._stop_at:
            self._stop_at = now + delay


class Gate:
    """Holds requests until it is released; use it as a context manager or call ``release()``."""

    def __init__(self, selector: _Selector, *, effect: bool) -> None:
        self._selector = selector
        self._effect = effect
        self._open = asyncio.Event()
        self._held = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def held(self) -> int:
        """How many requests wait at the gate."""
        return self._held

    def release(self) -> None:
        """Let go all that wait and all that come later."""
        self._open.set()

    async def _pass(self, record: RequestRecord, *, effect: bool) -> None:
        if self._effect is not effect or not self._selector.matches(record):
            return
        self._held += 1
        try:
            await self._open.wait()
        finally:
            self._held -= 1


# --- Inside ---------------------------------------------------------------------------------------


@define(eq=False)
class _Project:
    project_id: int
    user_id: int
    tasks: list[SimulatedTask] = field(factory=list)


class _Course:
    """What tasks go through when no one stops them; shared by those that were added together."""

    __slots__ = ("clock", "first", "project_id", "turns")

    def __init__(
        self,
        project_id: int,
        clock: Callable[[], float],
        first: str,
        life: Iterable[tuple[float, str]] = (),
    ) -> None:
        start = clock()
        self.project_id = project_id
        self.clock = clock
        self.first = _known(first, STATUSES, "status")
        self.turns = tuple(
            (start + seconds, _known(status, STATUSES, "status")) for seconds, status in life
        )
        moments = [start, *(moment for moment, _ in self.turns)]
        if any(later <= sooner for sooner, later in pairwise(moments)):
            raise ValueError("the seconds of a life must be above zero and rise")

    def at(self, now: float) -> str:
        status = self.first
        for moment, following in self.turns:
            if now < moment:
                break
            status = following
        return status


@frozen
class _Selector:
    method: str | None
    number: int | None = field(validator=validators.optional(validators.ge(1)))
    every: bool

    def matches(self, record: RequestRecord) -> bool:
        own = record.number if self.method is None else record.numbers.get(self.method)
        if own is None or self.number is None:
            return own is not None
        return own >= self.number if self.every else own == self.number


@frozen
class _Call:
    """One call, checked.

    ``head`` is the start of its reply entry. There is no ``project_id`` when the method is unknown,
    and ``ids`` is None for ``"*"``.
    """

    method: str
    head: str
    project_id: int | None = None
    ids: Sequence[int] | None = None


@frozen
class _Answer:
    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(factory=dict)


class _RefusedError(Exception):
    """A request that is not as documented."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


class _CallError(Exception):
    """A call that is as documented and can't be carried out; the words are the API's."""


class _HookError(Exception):
    """A function of the user's raised."""


class _Server(web.Server):
    """Counts connections, and lets none in any more once it closes."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Any],
        count: Callable[[int], None],
    ) -> None:
        super().__init__(handler, handler_cancellation=True, access_log=None)
        self._count = count
        self._closing = False

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:  # noqa: ANN401 - aiohttp does not export its type
        super().connection_made(handler, transport)
        self._count(1)
        if self._closing:
            transport.abort()

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:  # noqa: ANN401 - aiohttp does not export its type
        super().connection_lost(handler, exc)
        self._count(-1)

    def abort(self) -> None:
        self._closing = True
        for connection in self.connections:
            if connection.transport is not None:
                connection.transport.abort()


def _known(word: str, words: Iterable[str], what: str) -> str:
    if word not in words:
        raise ValueError(f"{what} must be one of {', '.join(words)}, not {word!r}")
    return word


def _page(status: int, headers: Mapping[str, str] | None = None) -> _Answer:
    """Make the page that nginx would send."""
    try:
        words = _NGINX_TITLES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        words = ""
    title = f"{status} {words}".strip()
    body = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n<hr><center>nginx</center>\r\n"
        "</body>\r\n</html>\r\n"
    )
    return _Answer(status, body.encode(), "text/html", headers or {})


def _response(answer: _Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type, "Server": "nginx", **answer.headers}
    response = web.Response(status=answer.status, body=answer.body, headers=headers)
    if headers.get("Connection") == "close":
        response.force_close()
    return response


# --- Reading requests -----------------------------------------------------------------------------


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = next(
            name for name, times in Counter(name for name, _ in pairs).items() if times > 1
        )
        raise ValueError(f"member {_shown(twice)} stands twice")
    return members


def _strict_json(body: bytes) -> Any:  # noqa: ANN401 - JSON is Any
    """Read JSON in UTF-8; raises ValueError or RecursionError."""
    return json.loads(body.decode(), object_pairs_hook=_unique_members, parse_constant=_no_constant)


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _calls_read(document: Any) -> tuple[tuple[str, Sequence[int]], ...]:  # noqa: ANN401 - JSON is Any
    """Read who is called for what ids, from any JSON; the counters and faults go by it."""
    methods = document.get("methods") if isinstance(document, dict) else None
    calls: list[tuple[str, Sequence[int]]] = []
    for entry in methods if isinstance(methods, list) else ():
        method = entry.get("method") if isinstance(entry, dict) else None
        if isinstance(method, str):
            params = entry.get("params")
            ids = params.get("task_ids") if isinstance(params, dict) else None
            ids = ids if isinstance(ids, list) else [ids]
            calls.append((method, [task_id for task_id in ids if type(task_id) is int]))
    return tuple(calls)


def _members(
    value: Any,  # noqa: ANN401 - JSON is Any
    where: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """Check that a value is an object with these members and no others."""
    if not isinstance(value, dict):
        raise _RefusedError(where, "must be an object")
    for name in required:
        if name not in value:
            raise _RefusedError(where, f"member {_shown(name)} is missing")
    for name in value:
        if name not in required and name not in optional:
            raise _RefusedError(where, f"member {_shown(name)} is unknown")
    return value


def _integer(value: Any, where: str, least: int = -_MAX_INT - 1) -> int:  # noqa: ANN401 - JSON is Any
    if type(value) is not int:
        raise _RefusedError(where, f"must be an integer, not {_shown(value)}")
    if not least <= value <= _MAX_INT:
        raise _RefusedError(where, f"must be from {least} to {_MAX_INT}")
    return value


def _task_ids(value: Any, where: str, *, star: bool) -> Sequence[int] | None:  # noqa: ANN401 - JSON is Any
    """Check the ids of a call; None stands for "*"."""
    if value == "*" and star:
        return None
    if not isinstance(value, list):
        if type(value) is int:
            return [_integer(value, where, least=0)]
        words = 'an integer, an array of integers or "*"' if star else "an integer or an array"
        raise _RefusedError(where, f"must be {words}, not {_shown(value)}")
    if not value:
        raise _RefusedError(where, "must not be empty")
    # Good ids are checked by four passes in C; only a bad list is walked through to say where.
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= _MAX_INT:
        if len(set(value)) == len(value):
            return value
        twice = next(task_id for task_id, times in Counter(value).items() if times > 1)
        raise _RefusedError(where, f"task {twice} stands twice")
    return [_integer(task_id, f"{where}[{index}]", least=0) for index, task_id in enumerate(value)]


# --- The simulator --------------------------------------------------------------------------------


class ControlApiSimulator:
    """A Control API server in this process.

    Use it as ``async with ControlApiSimulator() as api``, or call `start` and `stop`.
    Options that have an attribute of their name may be changed at any time.

    Args:
        host: The address to listen on.
        port: The port; 0 for a free one, which a restart then takes again.
        ssl_context: Serves HTTPS.
        prefix: A path to put before ``/ctrl_api/v1/json``, as a proxy might.
        login: A ``(name, password)`` that requests must carry as basic authentication.
        max_body: The longest request body in bytes; a longer one is answered with 413.
        clock: A clock in seconds, such as ``time.monotonic``; None for one that starts at 0 and
            moves only by `advance` and ``tick``.
        tick: Seconds that the hand-driven clock moves after each request.
        stop_delay: Seconds of the clock that a task stays Running after an accepted TaskStop.
        latency: Real seconds before each reply.
        seconds_per_id: Real seconds added to the latency for each task id asked for.
        missing: What an id gets that is not of the project: ``"denied"`` refuses the whole call,
            ``"error"`` gives a row with an error, ``"omitted"`` gives no row.
        denied_names: Which ids the refusal names: the ``"bad"`` ones, ``"all"`` asked for, or
            ``"none"``.
        echo_id: Whether a call's ``id`` comes back.
        user_error_in_reply: Puts "user 5 is unavailable" in the reply array, not at the top.
        refuse_all_active: Answers ``"*"`` with an error.
        plain_rows: Leaves only task_id and status in TaskStatus's rows.
        methods: The methods that this server knows.
        log: Whether to keep a record of each request in `log`.

    Attributes:
        tasks: All tasks by id, as they truly are.
        counters: What came in.
        log: The requests, in the order of their arrival.
        fault_when: A function that may name a fault for a request; asked when none that was set
            with `fault` applies. What it raises, the client sees as a 500 and `stop`
            raises again.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        prefix: str = "",
        login: tuple[str, str] | None = None,
        max_body: int = 1024 * 1024,
        clock: Callable[[], float] | None = None,
        tick: float = 0.0,
        stop_delay: float = 0.0,
        latency: float = 0.0,
        seconds_per_id: float = 0.0,
        missing: Missing = "denied",
        denied_names: DeniedNames = "bad",
        echo_id: bool = True,
        user_error_in_reply: bool = False,
        refuse_all_active: bool = False,
        plain_rows: bool = False,
        methods: Iterable[str] = (_STATUS, _STOP),
        log: bool = True,
    ) -> None:
        for name, number in (
            ("max_body", max_body),
            ("tick", tick),
            ("stop_delay", stop_delay),
            ("latency", latency),
            ("seconds_per_id", seconds_per_id),
        ):
            if not number >= 0:  # NaN is not either
                raise ValueError(f"{name} must not be below zero")
        if clock is not None and tick:
            raise ValueError("tick moves the hand-driven clock; leave out one of clock and tick")
        if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
            raise ValueError("prefix must start with a slash and not end with one")
        _known(missing, get_args(Missing), "missing")
        _known(denied_names, get_args(DeniedNames), "denied_names")

        self.login = login
        self.max_body = max_body
        self.tick = tick
        self.stop_delay = stop_delay
        self.latency = latency
        self.seconds_per_id = seconds_per_id
        self.missing: Missing = missing
        self.denied_names: DeniedNames = denied_names
        self.echo_id = echo_id
        self.user_error_in_reply = user_error_in_reply
        self.refuse_all_active = refuse_all_active
        self.plain_rows = plain_rows
        self.counters = Counters()
        self.log: list[RequestRecord] = []
        self.fault_when: Callable[[RequestRecord], Fault | None] | None = None

        self._host = host
        self._port = port
        self._ssl_context = ssl_context
        self._path = prefix + _PATH
        self._prefix = prefix
        self._methods = frozenset(
            _known(method, (_STATUS, _STOP), "a method") for method in methods
        )
        self._keeps_log = log
        self._hand = 0.0
        self._hand_driven = clock is None
        self._clock = clock or self._read_hand
        self._projects: dict[int, _Project] = {}
        self._users: set[int] = set()
        self._tasks: dict[int, SimulatedTask] = {}
        self.tasks: Mapping[int, SimulatedTask] = MappingProxyType(self._tasks)
        self._faults: list[tuple[_Selector, Fault]] = []
        self._gates: list[Gate] = []
        self._waiters: list[asyncio.Future[None]] = []
        self._hook_errors: list[Exception] = []
        self._server: _Server | None = None
        self._listener: asyncio.Server | None = None

    # Running

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is not None:
            # A failing hook is often why; it must not hide the error that is on its way.
            self._hook_errors.clear()
        await self.stop()

    async def start(self) -> None:
        """Listen; after `stop`, on the same port again.

        Raises:
            RuntimeError: It runs already.
            OSError: The port is taken.
        """
        if self._server is not None:
            raise RuntimeError("the simulator runs already")
        server = self._server = _Server(self._handle, self._count_connection)
        try:
            self._listener = await asyncio.get_running_loop().create_server(
                server, self._host, self._port, ssl=self._ssl_context, backlog=1024
            )
        except BaseException:
            self._server = None
            raise
        self._port = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and abort every connection; tasks, counters and faults stay as they are.

        Raises:
            ExceptionGroup: A hook raised since the start.
        """
        server, listener = self._server, self._listener
        if server is None or listener is None:
            return
        self._server = self._listener = None
        # A connection that asyncio has accepted but not yet wrapped when its server closes is left
        # open for good by Python 3.11. So: accept no more, let it be wrapped, then close.
        for sock in listener.sockets:
            with suppress(NotImplementedError):  # Windows' proactor loop
                asyncio.get_running_loop().remove_reader(sock)
        try:
            await asyncio.sleep(0)
        finally:
            listener.close()
            server.abort()
        # What was aborted ends within a few turns of the loop, for nothing here shields itself
        # from cancellation; the turns after that are for aiohttp's own tasks.
        turns = 3
        while turns or server.connections or self.counters.in_flight:
            turns = max(0, turns - 1)
            await asyncio.sleep(0)
        errors, self._hook_errors = self._hook_errors, []
        if errors:
            raise ExceptionGroup("hooks of the simulator raised", errors)

    @property
    def port(self) -> int:
        """The port; 0 before the first start, when it was not given."""
        return self._port

    @property
    def url(self) -> str:
        """The base URL to give a client, prefix included."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._ssl_context else 'http'}://{host}:{self._port}{self._prefix}"

    @property
    def endpoint(self) -> str:
        """The URL that requests are posted to."""
        return self.url + _PATH

    # The world

    @property
    def now(self) -> float:
        """The clock's seconds."""
        return self._clock()

    def advance(self, seconds: float) -> None:
        """Move the hand-driven clock on."""
        if not self._hand_driven:
            raise RuntimeError("this simulator's clock is not driven by hand")
        if seconds < 0:
            raise ValueError("the clock does not go back")
        self._hand += seconds

    def add_project(self, project_id: int, *, user_id: int = 1) -> None:
        """Add a project, if it is not there yet, and its user.

        Raises:
            ValueError: It is there and another user's.
        """
        self._project(project_id, user_id)

    def add_task(
        self,
        task_id: int,
        status: str = _RUNNING,
        *,
        project_id: int = 2,
        user_id: int = 1,
        life: Iterable[tuple[float, str]] = (),
    ) -> SimulatedTask:
        """Add a task, its project and its user.

        Args:
            task_id: An id that no other task has, in whatever project.
            status: The status from now on.
            project_id: The project, which is added if it is not there yet.
            user_id: The project's user.
            life: Pairs of seconds from now, on the clock, and the status from then on.
        """
        self.add_tasks([task_id], status, project_id=project_id, user_id=user_id, life=life)
        return self._tasks[task_id]

    def add_tasks(
        self,
        task_ids: Iterable[int],
        status: str = _RUNNING,
        *,
        project_id: int = 2,
        user_id: int = 1,
        life: Iterable[tuple[float, str]] = (),
    ) -> None:
        """Add many tasks that are alike; all of them or, when one can't be, none."""
        course = _Course(project_id, self._clock, status, life)
        tasks = [SimulatedTask(task_id, course) for task_id in task_ids]
        self._place(tasks, project_id, user_id)

    def mixed_tasks(
        self,
        count: int,
        *,
        running: float = 0.5,
        seed: int = 0,
        project_id: int = 2,
        user_id: int = 1,
        first_id: int = 1,
    ) -> Counter[str]:
        """Add tasks of all statuses, scattered over their ids in the same way each time.

        Args:
            count: How many.
            running: The share that is Running; the other statuses get equal parts of the rest.
            seed: Another seed scatters them in another way.
            project_id: Their project.
            user_id: The project's user.
            first_id: The lowest id; the others follow it.

        Returns:
            How many got each status.
        """
        if count < 0 or not 0 <= running <= 1:
            raise ValueError("count must not be below zero, and running must be from 0 to 1")
        others = [status for status in STATUSES if status != _RUNNING]
        run = round(count * running)
        statuses = [_RUNNING] * run + [others[i % len(others)] for i in range(count - run)]
        random.Random(seed).shuffle(statuses)  # noqa: S311 - scatters tasks, guards nothing
        courses = {status: _Course(project_id, self._clock, status) for status in STATUSES}
        tasks = [
            SimulatedTask(task_id, courses[status])
            for task_id, status in enumerate(statuses, start=first_id)
        ]
        self._place(tasks, project_id, user_id)
        return Counter(statuses)

    def documented_world(self) -> None:
        """Add what the examples of TaskStop's documentation talk about.

        Tasks 63 to 67 of project 2 and user 1 are Running. There is no task 68, and a task that
        is not there gets a row with an error: ``missing`` becomes ``"error"``.
        """
        self.add_tasks(range(63, 68), _RUNNING, project_id=2, user_id=1)
        self.missing = "error"

    def _project(self, project_id: int, user_id: int) -> _Project:
        for name, number in (("project_id", project_id), ("user_id", user_id)):
            if type(number) is not int:
                raise TypeError(f"{name} must be an int, not {number!r}")
        project = self._projects.get(project_id)
        if project is None:
            project = self._projects[project_id] = _Project(project_id, user_id)
            self._users.add(user_id)
        elif project.user_id != user_id:
            raise ValueError(f"project {project_id} is user {project.user_id}'s")
        return project

    def _place(self, tasks: Sequence[SimulatedTask], project_id: int, user_id: int) -> None:
        added = {task.task_id: task for task in tasks}
        if not set(map(type, added)) <= {int}:
            raise TypeError("task ids must be ints")
        if added and not 0 <= min(added) <= max(added) <= _MAX_INT:
            raise ValueError(f"task ids must be from 0 to {_MAX_INT}")
        if len(added) != len(tasks) or not self._tasks.keys().isdisjoint(added):
            raise ValueError("a task id can be added only once")
        project = self._project(project_id, user_id)
        project.tasks.extend(tasks)
        self._tasks.update(added)

    def _read_hand(self) -> float:
        return self._hand

    # Faults, gates and counters

    def fault(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        number: int | None = None,
        every: bool = False,
    ) -> None:
        """Set a fault; when several apply to a request, the one that was set first is taken.

        Args:
            fault: What is to happen.
            method: Only to requests that contain this method.
            number: Only to the one of that number, from 1, among those requests; None for all.
            every: To that one and all after it.
        """
        self._faults.append((_Selector(method, number, every), fault))

    def clear_faults(self) -> None:
        """Take back every fault, `fault_when` included."""
        self._faults.clear()
        self.fault_when = None

    def hold(
        self,
        method: str | None = None,
        *,
        number: int | None = None,
        every: bool = False,
        effect: bool = False,
    ) -> Gate:
        """Hold requests until the gate is released.

        Args:
            method: Only requests that contain this method.
            number: Only the one of that number, as in `fault`.
            every: That one and all after it.
            effect: Hold them after they took effect, that is, only their replies.
        """
        self._gates = [gate for gate in self._gates if not gate._open.is_set()]
        gate = Gate(_Selector(method, number, every), effect=effect)
        self._gates.append(gate)
        return gate

    def reset_counters(self) -> None:
        """Count from zero, forget the log and number requests from 1 again."""
        old = self.counters
        self.counters = Counters(
            in_flight=old.in_flight, peak=old.in_flight, connections_open=old.connections_open
        )
        self.log = []

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on the counters, looked at whenever one of them changes."""
        while not condition():
            changed = asyncio.get_running_loop().create_future()
            self._waiters.append(changed)
            await changed

    async def wait_for_requests(self, count: int, method: str | None = None) -> None:
        """Wait until so many requests, or requests that contain the method, have arrived."""
        await self.wait_until(
            lambda: (
                (
                    self.counters.requests
                    if method is None
                    else self.counters.requests_by_method[method]
                )
                >= count
            )
        )

    def _count_connection(self, change: int) -> None:
        self.counters.connections_open += change
        self.counters.connections += max(change, 0)
        self._counted()

    def _counted(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _record(self, request: web.BaseRequest, document: Any) -> RequestRecord:  # noqa: ANN401 - JSON is Any
        calls = _calls_read(document)
        counters = self.counters
        counters.requests += 1
        for method, ids in calls:
            counters.calls[method] += 1
            counters.ids[method] += len(ids)
        numbers = {}
        for method in dict.fromkeys(method for method, _ in calls):
            counters.requests_by_method[method] += 1
            numbers[method] = counters.requests_by_method[method]
        record = RequestRecord(
            counters.requests,
            numbers,
            request.method,
            request.path,
            request.headers,
            document,
            calls,
        )
        if self._keeps_log:
            self.log.append(record)
        self._counted()
        return record

    # Handling a request

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        counters = self.counters
        counters.in_flight += 1
        counters.peak = max(counters.peak, counters.in_flight)
        self._counted()
        try:
            return await self._serve(request)
        except _HookError:
            return _response(_page(500))
        finally:
            # Not `counters`: they may have been reset in between.
            self.counters.in_flight -= 1
            self._counted()

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await self._read(request)
        document: Any = None
        problem: str | None = None
        if isinstance(body, bytes):
            try:
                document = _strict_json(body)
            except (ValueError, RecursionError) as error:
                problem = f"$: not strict JSON: {error}"
        record = self._record(request, document)
        fault = self._fault_for(record)

        for gate in self._gates:
            await gate._pass(record, effect=False)
        effect = fault is None or fault.effect
        answer = self._proxy_answer(request) if not isinstance(body, _Answer) else body
        if answer is None:
            answer = self._api_answer(document, problem, effect=effect)
        self._hand += self.tick
        for gate in self._gates:
            await gate._pass(record, effect=True)

        pause = self.latency + self.seconds_per_id * sum(len(ids) for _, ids in record.calls)
        if isinstance(fault, Delay):
            pause += fault.seconds
        if pause:
            await asyncio.sleep(pause)
        return await self._deliver(request, fault, answer)

    async def _read(self, request: web.BaseRequest) -> bytes | _Answer:
        """Read the body, or say why it is refused, with no more than the limit in memory."""
        too_large = _page(413, {"Connection": "close"})
        if (request.content_length or 0) > self.max_body:
            return too_large
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            # aiohttp takes what was written for the start of the reply.
            request.writer.output_size = 0
        body = bytearray()
        try:
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > self.max_body:
                    return too_large
        except web.RequestPayloadError:
            return _page(400, {"Connection": "close"})
        return bytes(body)

    def _fault_for(self, record: RequestRecord) -> Fault | None:
        fault: Fault | None
        for selector, fault in self._faults:
            if selector.matches(record):
                return fault
        fault = None if self.fault_when is None else self._hook(self.fault_when, record)
        return fault

    def _hook(self, function: Callable[[Any], Any], value: Any) -> Any:  # noqa: ANN401 - as the hooks are
        try:
            return function(value)
        except Exception as error:
            self._hook_errors.append(error)
            raise _HookError from error

    def _proxy_answer(self, request: web.BaseRequest) -> _Answer | None:
        """Refuse what does not get as far as the API."""
        if request.path != self._path:
            return _page(404)
        if self.login is not None:
            token = base64.b64encode(":".join(self.login).encode()).decode()
            if request.headers.get("Authorization") != f"Basic {token}":
                return _page(401, {"WWW-Authenticate": 'Basic realm="Control API"'})
        if request.method != "POST":
            return _page(405, {"Allow": "POST"})
        charset = request.charset or "utf-8"
        if request.content_type != "application/json" or charset.lower() != "utf-8":
            return _page(415)
        return None

    async def _deliver(
        self, request: web.BaseRequest, fault: Fault | None, answer: _Answer
    ) -> web.StreamResponse:
        match fault:
            case HttpStatus():
                answer = _page(fault.status, fault.headers)
                if fault.body is not None:
                    body = fault.body.encode() if isinstance(fault.body, str) else fault.body
                    answer = evolve(answer, body=body)
            case Body():
                body = fault.body.encode() if isinstance(fault.body, str) else fault.body
                answer = _Answer(fault.status, body, fault.content_type)
            case Rewrite() if answer.status == HTTPStatus.OK:
                changed = self._hook(lambda body: fault.change(json.loads(body)), answer.body)
                answer = evolve(answer, body=json.dumps(changed).encode())
            case SlowBody():
                return await self._trickle(request, answer, fault.interval)
            case Drop() | CutBody() | Hang():
                await self._break_off(request, fault, answer)
            case _:
                pass
        return _response(answer)

    async def _trickle(
        self, request: web.BaseRequest, answer: _Answer, interval: float
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            status=answer.status,
            headers={"Content-Type": answer.content_type, "Server": "nginx", **answer.headers},
        )
        response.content_length = len(answer.body)
        await response.prepare(request)
        for index in range(len(answer.body)):
            if index:
                await asyncio.sleep(interval)
            await response.write(answer.body[index : index + 1])
        return response

    async def _break_off(
        self, request: web.BaseRequest, fault: Drop | CutBody | Hang, answer: _Answer
    ) -> None:
        """Leave the client without a whole reply; never returns, but is cancelled."""
        # Without a connection this would not run any more: its loss cancels the handler.
        transport = cast("asyncio.Transport", request.transport)
        if isinstance(fault, Drop):
            sock: socket.socket = transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            transport.abort()
        elif isinstance(fault, CutBody):
            part = answer.body[: int(len(answer.body) * fault.keep)]
            head = (
                f"HTTP/1.1 {answer.status} Cut\r\nServer: nginx\r\n"
                f"Content-Type: {answer.content_type}\r\n"
                f"Content-Length: {len(answer.body)}\r\n\r\n"
            )
            transport.write(head.encode() + part)
            # Not abort(), which could take back the part.
            transport.close()
        await asyncio.get_running_loop().create_future()

    # Answering as the API

    def _api_answer(self, document: Any, problem: str | None, *, effect: bool) -> _Answer:  # noqa: ANN401 - JSON is Any
        """Check the whole request, then carry it out: one that is refused changes nothing."""
        if problem is None:
            try:
                user_id, calls = self._checked(document)
            except _RefusedError as refusal:
                problem = str(refusal)
        if problem is not None:
            return _Answer(400, json.dumps({"error": problem}).encode())
        if not self._user_may(user_id, calls):
            error = f'{{"error":"user {user_id} is unavailable"}}'
            if self.user_error_in_reply:
                error = f'{{"reply":[{error}]}}'
            return _Answer(200, error.encode())
        reply = ",".join(self._entry(call, effect=effect) for call in calls)
        return _Answer(200, f'{{"reply":[{reply}]}}'.encode())

    def _checked(self, document: Any) -> tuple[int, list[_Call]]:  # noqa: ANN401 - JSON is Any
        request = _members(document, "$", ["user_id", "methods"])
        user_id = _integer(request["user_id"], "$.user_id")
        methods = request["methods"]
        if not isinstance(methods, list) or not methods:
            raise _RefusedError("$.methods", "must be an array of at least one call")
        return user_id, [
            self._checked_call(entry, f"$.methods[{index}]") for index, entry in enumerate(methods)
        ]

    def _checked_call(self, entry: Any, where: str) -> _Call:  # noqa: ANN401 - JSON is Any
        members = _members(entry, where, ["method"], ["id", "params"])
        method = members["method"]
        if not isinstance(method, str):
            raise _RefusedError(f"{where}.method", f"must be a string, not {_shown(method)}")
        head = f'{{"method":{json.dumps(method)},'
        if "id" in members:
            call_id = _integer(members["id"], f"{where}.id")
            if self.echo_id:
                head += f'"id":{call_id},'
        if method not in self._methods:
            return _Call(method, head)
        # Whoever asks for a method that is there gets its params checked as documented.
        where_params = f"{where}.params"
        params = _members(members.get("params"), where_params, ["project_id", "task_ids"])
        return _Call(
            method,
            head,
            _integer(params["project_id"], f"{where_params}.project_id"),
            _task_ids(params["task_ids"], f"{where_params}.task_ids", star=method == _STATUS),
        )

    def _user_may(self, user_id: int, calls: Iterable[_Call]) -> bool:
        if user_id not in self._users:
            return False
        projects = {call.project_id for call in calls if call.project_id in self._projects}
        return all(self._projects[project_id].user_id == user_id for project_id in projects)

    def _entry(self, call: _Call, *, effect: bool) -> str:
        try:
            rows = self._rows(call, effect=effect)
        except _CallError as error:
            return f'{call.head}"error":{json.dumps(str(error))}}}'
        return f'{call.head}"result":[{",".join(rows)}]}}'

    def _rows(self, call: _Call, *, effect: bool) -> list[str]:
        project_id = call.project_id
        if project_id is None:
            raise _CallError(f"Undefined method '{call.method}'")
        project = self._projects.get(project_id)
        if project is None:
            raise _CallError(f"project {project_id} does not exist")
        now = self._clock()
        if call.ids is None:
            if self.refuse_all_active:
                raise _CallError("task_ids must be an integer or an array of integers")
            active = {
                task.task_id: task for task in project.tasks if task._status_at(now) in _ACTIVE
            }
            return self._status_rows(active, active, now)
        found = {
            task_id: task
            for task_id in call.ids
            if (task := self._tasks.get(task_id)) is not None
            and task._course.project_id == project_id
        }
        if self.missing == "denied" and len(found) != len(call.ids):
            raise _CallError(self._denial(call.ids, found))
        if call.method == _STATUS:
            return self._status_rows(call.ids, found, now)
        return self._stop_rows(call.ids, found, now, effect=effect)

    def _denial(self, ids: Sequence[int], found: Mapping[int, SimulatedTask]) -> str:
        if self.denied_names == "none":
            return "access denied to some of the tasks"
        all_named = self.denied_names == "all"
        named = [task_id for task_id in ids if all_named or task_id not in found]
        return f"access denied to tasks {named}"

    # Rows are put together as text: json.dumps would take longer than all the rest.

    def _status_rows(
        self, ids: Iterable[int], found: Mapping[int, SimulatedTask], now: float
    ) -> list[str]:
        rows = []
        for task_id in ids:
            task = found.get(task_id)
            if task is not None:
                row = f'{{"task_id":{task_id},"status":"{task._status_at(now)}"'
                rows.append(
                    row + "}" if self.plain_rows else f'{row},"initial_task_id":{task_id}}}'
                )
            elif self.missing != "omitted":
                rows.append(f'{{"task_id":{task_id},"error":"{_NO_TASK}"}}')
        return rows

    def _stop_rows(
        self,
        ids: Iterable[int],
        found: Mapping[int, SimulatedTask],
        now: float,
        *,
        effect: bool,
    ) -> list[str]:
        rows = []
        for task_id in ids:
            task = found.get(task_id)
            if task is not None and task._status_at(now) == _RUNNING:
                if effect:
                    task._accept_stop(now, self.stop_delay)
                rows.append(f'{{"task_id":{task_id},"status":"{_STOP_SENT}"}}')
            elif task is not None or self.missing != "omitted":
                rows.append(f'{{"task_id":{task_id},"error":"{_STOP_UNAVAILABLE}"}}')
        return rows
