"""The session with one Control API server in one user's name: arguments checked, handed on."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Self, SupportsIndex

from ctrlapi_async._bulk.batcher import Batcher, closed_error
from ctrlapi_async._bulk.options import RunOptions
from ctrlapi_async._bulk.run import BulkRun, RunContext, StopRun
from ctrlapi_async._bulk.source import SLICE, Targets, targets_across, targets_of
from ctrlapi_async._bulk.states import KeptState
from ctrlapi_async._errors import (
    CtrlApiError,
    StopIncompleteError,
    Trait,
    traits_of,
)
from ctrlapi_async._limiter import ConcurrencyLimiter
from ctrlapi_async._models import (
    ALL_ACTIVE,
    Batching,
    RetryPolicy,
    StopOutcome,
    TaskState,
    expect_int,
    expect_seconds,
)
from ctrlapi_async._protocol.requests import TASK_STATUS, encode_request
from ctrlapi_async._reports import StatusReport, StopReport
from ctrlapi_async._retry import impossible_wait, last_moment, log_repeat, pause_after
from ctrlapi_async._sender import RequestSender
from ctrlapi_async._transport import Transport

if TYPE_CHECKING:
    import ssl as tls
    from types import TracebackType

    import aiohttp

    from ctrlapi_async._auth import ApiKey
    from ctrlapi_async._models import AnyTaskIds, TaskIds
    from ctrlapi_async._protocol.replies import Row

# Silent unless asked: without a handler Python prints warnings to stderr.
logging.getLogger("ctrlapi_async").addHandler(logging.NullHandler())

RESTART_CHAINS: Final = ("first", "last", "exact", "all")


class _State(Enum):
    NEW = "new"
    OPEN = "open"
    CLOSED = "closed"


class ControlSession:
    """A session with one Control API server, in the name of one user.

    Use it with `async with`, or call `aclose` at the end.

    Args:
        base_url: The server's root (`http://172.16.1.41`) or the whole endpoint. Credentials in
            it are used as `auth`, and shown nowhere.
        user_id: The user in whose name all calls are made, an int of 0 or more.
        auth: `(login, password)` for basic authentication at the proxy, or an `ApiKey` that
            signs every request.
        headers: HTTP headers to send with each request.
        ssl: True verifies the server's certificate; an `ssl.SSLContext` says how (with a private
            CA, for example); an `aiohttp.Fingerprint` pins it; False does not verify it.
        client: An `aiohttp.ClientSession` to use, with its proxy, tracing and so on; it is never
            closed, and its connector's limits bound the session's concurrency. Without one the
            session makes its own, which ignores proxies named in environment variables.
        batching: How task ids are packed into requests, and how many of these are in flight.
        retry: When and how often a request that failed is sent again.
        request_timeout: Seconds for one request, counted from when it may be sent.
        connect_timeout: Seconds for making a connection. A request that got none was not sent.
        max_reply_bytes: Replies with larger bodies are refused while they are read.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or `base_url` is no HTTP URL.
    """

    def __init__(
        self,
        base_url: str,
        user_id: SupportsIndex,
        *,
        auth: tuple[str, str] | ApiKey | None = None,
        headers: Mapping[str, str] | None = None,
        ssl: bool | tls.SSLContext | aiohttp.Fingerprint = True,
        client: aiohttp.ClientSession | None = None,
        batching: Batching = Batching(),  # noqa: B008 - frozen
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        request_timeout: float = 30.0,
        connect_timeout: float = 10.0,
        max_reply_bytes: int = 64 * 2**20,
    ) -> None:
        self._user_id = expect_int("user_id", user_id)
        for name, value, kind in (("batching", batching, Batching), ("retry", retry, RetryPolicy)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, not {value!r}")
        for name, seconds in (
            ("request_timeout", request_timeout),
            ("connect_timeout", connect_timeout),
        ):
            if expect_seconds(name, seconds) == 0:
                raise ValueError(f"{name} must be more than 0 seconds")
        self._transport = Transport(
            base_url,
            user_id=self._user_id,
            auth=auth,
            headers=headers,
            ssl=ssl,
            client=client,
            request_timeout=request_timeout,
            connect_timeout=connect_timeout,
            max_reply_bytes=expect_int("max_reply_bytes", max_reply_bytes, 1),
        )
        self._retry = retry
        slots = min(batching.max_concurrency, self._transport.connection_limit or 2**31)
        self._limiter = ConcurrencyLimiter(
            slots,
            batching.start_concurrency,
            wait_bound=retry.wait_bound,
            longest_wait=math.inf if retry.timeout is None else retry.timeout,
            random=random.random,
        )
        self._sender = RequestSender(self._transport, self._limiter, self._user_id)
        self._state = _State.NEW
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = RunContext(
            sender=self._sender,
            limiter=self._limiter,
            batching=batching,
            retry=retry,
            check_open=self._check_open,
        )
        self._calls: set[asyncio.Timeout] = set()
        self._batcher = Batcher(self._run_of_single_stops, batching.linger)

    def __repr__(self) -> str:
        return f"ControlSession({str(self._transport.url)!r}, user_id={self._user_id})"

    async def __aenter__(self) -> Self:
        if self._state is not _State.NEW:
            raise RuntimeError(f"{self!r} is {self._state.value} and cannot be entered")
        self._check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End all that goes on in the session and close its connections; twice is once."""
        self._state = _State.CLOSED
        async with AsyncExitStack() as rest:  # all of it, a cancellation notwithstanding
            rest.push_async_callback(self._transport.close)
            for scope in self._calls:
                scope.reschedule(asyncio.get_running_loop().time())
            for run in list(self._context.runs):
                run.abort(closed_error())
                rest.push_async_callback(run.finish)
            rest.push_async_callback(self._batcher.close)  # first, so that no batch leaves now

    # --- the API's methods --------------------------------------------------------------------

    async def call(self, method: str, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Call any one method of the API and return its raw `result`.

        A call that failed is repeated if the server surely did not carry it out, or if it is
        TaskStatus.

        Args:
            method: The method's name, "TaskReport" for example.
            params: Its params, as the API documents them.

        Returns:
            The member `result` of the reply.

        Raises:
            RequestError: The server was not reached, or gave no answer in time.
            HttpError: It answered with another HTTP status than 200.
            ReplyError: Its answer was no reply.
            MethodError: It refused the call.
            TypeError: `method` is no str, or `params` is no mapping that JSON can hold.
        """
        if not isinstance(method, str) or not method:
            raise TypeError(f"method must be the name of a method, not {method!r}")
        if not isinstance(params, Mapping):
            raise TypeError(f"params must be a mapping, not {params!r:.80}")
        encode_request(self._user_id, [(method, params)], 1)  # bad params: before the first call
        self._check_open()
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._calls.add(scope)
                return await self._call(method, params)
        except TimeoutError:
            if scope.expired():  # by `aclose`
                raise closed_error() from None
            raise
        finally:
            self._calls.discard(scope)

    async def _call(self, method: str, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Send a call, and repeat it as far as the policy allows."""
        now = asyncio.get_running_loop().time
        until = math.inf
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._limiter.slot():
                    return await self._sender.call(method, params)
            except CtrlApiError as error:
                if attempt == 1:
                    until = last_moment(self._retry, now())
                if not _may_repeat(method, error):
                    raise
                if (refusal := impossible_wait(error, now(), until)) is not None:
                    raise refusal from error
                pause = pause_after(self._retry, attempt, error, random.random)
                if attempt >= self._retry.attempts or now() + pause > until:
                    raise
                log_repeat(method, 1, error, attempt + 1, pause)
            await asyncio.sleep(pause)

    async def task_status(
        self,
        project_id: SupportsIndex,
        task_ids: AnyTaskIds,
        *,
        detailed_test_results: bool = False,
        restart_chain: str | None = None,
    ) -> StatusReport:
        """Ask for the status of tasks (TaskStatus), in chunks and concurrently.

        A task that the project does not have gets a state with `error`. That of a task that the
        server restarted tells the current task of its chain in `restarted_as`.

        Args:
            project_id: The project.
            task_ids: An int, ints, an async iterable of ints, or `ALL_ACTIVE`.
            detailed_test_results: Whether `test_results` in the details holds a result for each
                group of tests; a param of the API.
            restart_chain: Which tasks of a restart chain the server returns, "first", "last",
                "exact" or "all"; a param of the API. None: the server's default, all.

        Returns:
            A mapping of task id to `TaskState`, in the order asked for.

        Raises:
            CtrlApiError: The first error that left a task without an answer.
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range.
        """
        params: dict[str, Any] = {}
        if not isinstance(detailed_test_results, bool):
            raise TypeError(f"detailed_test_results must be a bool, not {detailed_test_results!r}")
        if detailed_test_results:
            params["detailed_test_results"] = True
        if restart_chain is not None:
            if restart_chain not in RESTART_CHAINS:
                raise ValueError(
                    f"restart_chain must be one of {', '.join(RESTART_CHAINS)}, "
                    f"not {restart_chain!r:.80}"
                )
            params["restart_chain"] = restart_chain
        states: dict[int, KeptState] = {}

        def on_row(task_id: int, row: Row, current: Row) -> None:
            states[task_id] = KeptState(row, None if current.task_id == task_id else current)

        run = BulkRun(
            targets_of(project_id, task_ids),
            RunOptions(dry_run=True, follow_restarts=False),
            self._context,
            params=params,
            on_row=on_row,
        )
        async with StopRun(run) as stop_run:
            try:
                await stop_run.wait()
            except StopIncompleteError as error:
                raise error.exceptions[0] from None
        return await _in_order(run.report, states)

    async def task_stop(self, project_id: SupportsIndex, task_ids: TaskIds) -> StopReport:
        """Stop tasks (TaskStop) without checking them first; prefer `stop_running`.

        Args:
            project_id: The project.
            task_ids: An int or ints.

        Returns:
            An outcome for each of these tasks; no restarts are followed.

        Raises:
            StopIncompleteError: The server did not answer for every task.
            TypeError: A task id is no int.
            ValueError: A task id is out of range, or `task_ids` is `ALL_ACTIVE`.
        """
        if task_ids is ALL_ACTIVE:
            raise ValueError("task_stop takes task ids, not ALL_ACTIVE: use stop_running")
        options = RunOptions(check=False, follow_restarts=False)
        return await self._finish(BulkRun(targets_of(project_id, task_ids), options, self._context))

    async def stop_running(
        self,
        project_id: SupportsIndex,
        task_ids: AnyTaskIds,
        *,
        dry_run: bool = False,
        follow_restarts: bool = True,
        wait_pending: float | None = None,
        wait_stopped: float | None = None,
        timeout: float | None = None,
    ) -> StopReport:
        """Stop those of the tasks that are Running: TaskStatus first, then TaskStop.

        Args:
            project_id: The project.
            task_ids: An int, ints, an async iterable of ints, or `ALL_ACTIVE`.
            dry_run: Only find out which tasks would be stopped.
            follow_restarts: Whether the outcome of a task that the server restarted is about the
                current task of its restart chain, which is stopped in its place.
            wait_pending: Seconds, from the run's start, for which tasks that are Scheduled or
                Explore are checked again, to be stopped once they run.
            wait_stopped: Seconds, from the last stop, for which stopped tasks are checked again,
                until none of them is Running.
            timeout: Seconds for the whole run.

        Returns:
            An outcome for each task.

        Raises:
            StopIncompleteError: The server did not answer for every task; see its `report`.
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range.
        """
        options = _options(dry_run, follow_restarts, wait_pending, wait_stopped, timeout)
        return await self._finish(BulkRun(targets_of(project_id, task_ids), options, self._context))

    async def stop_running_across(
        self,
        targets: Mapping[int, TaskIds],
        *,
        dry_run: bool = False,
        follow_restarts: bool = True,
        wait_pending: float | None = None,
        wait_stopped: float | None = None,
        timeout: float | None = None,
    ) -> StopReport:
        """Stop those of the tasks of many projects that are Running, as `stop_running` does.

        Calls for many projects share a request. What is wrong with one project ends that
        project's tasks only.

        Args:
            targets: For each project id an int, ints, or `ALL_ACTIVE`.
            dry_run: As for `stop_running`.
            follow_restarts: As for `stop_running`.
            wait_pending: As for `stop_running`.
            wait_stopped: As for `stop_running`.
            timeout: As for `stop_running`.

        Returns:
            An outcome for each task.

        Raises:
            StopIncompleteError: The server did not answer for every task; see its `report`.
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range, or a task is asked for in two projects.
        """
        options = _options(dry_run, follow_restarts, wait_pending, wait_stopped, timeout)
        return await self._finish(BulkRun(targets_across(targets), options, self._context))

    def stopping(
        self,
        project_id: SupportsIndex,
        task_ids: AnyTaskIds,
        *,
        collect: bool = True,
        dry_run: bool = False,
        follow_restarts: bool = True,
        wait_pending: float | None = None,
        wait_stopped: float | None = None,
        timeout: float | None = None,
    ) -> StopRun:
        """Return a run that yields each outcome as soon as it is known.

        `async with session.stopping(...) as run: async for outcome in run: ...`

        Args:
            project_id: The project.
            task_ids: An int, ints, an async iterable of ints, which is read as the run goes, or
                `ALL_ACTIVE`.
            collect: Whether the run keeps a report. Without it the run's memory is bounded by
                what is in flight and what `wait_pending` and `wait_stopped` ask about again; a
                task that comes again after its outcome counts as another one.
            dry_run: As for `stop_running`.
            follow_restarts: As for `stop_running`.
            wait_pending: As for `stop_running`.
            wait_stopped: As for `stop_running`.
            timeout: As for `stop_running`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range.
        """
        options = _options(dry_run, follow_restarts, wait_pending, wait_stopped, timeout, collect)
        return StopRun(BulkRun(targets_of(project_id, task_ids), options, self._context))

    def stopping_across(
        self,
        targets: Mapping[int, TaskIds],
        *,
        collect: bool = True,
        dry_run: bool = False,
        follow_restarts: bool = True,
        wait_pending: float | None = None,
        wait_stopped: float | None = None,
        timeout: float | None = None,
    ) -> StopRun:
        """Return a run for tasks of many projects that yields each outcome once it is known.

        Args:
            targets: For each project id an int, ints, or `ALL_ACTIVE`.
            collect: As for `stopping`.
            dry_run: As for `stop_running`.
            follow_restarts: As for `stop_running`.
            wait_pending: As for `stop_running`.
            wait_stopped: As for `stop_running`.
            timeout: As for `stop_running`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range.
        """
        options = _options(dry_run, follow_restarts, wait_pending, wait_stopped, timeout, collect)
        return StopRun(BulkRun(targets_across(targets), options, self._context))

    async def stop(self, project_id: SupportsIndex, task_id: SupportsIndex) -> StopOutcome:
        """Stop one task if it is Running; concurrent calls are gathered into batches.

        Cancelling one caller touches no other, and its task is left alone if its stop had not
        been sent.

        Args:
            project_id: The project.
            task_id: The task.

        Returns:
            The task's outcome.

        Raises:
            StopIncompleteError: The server gave no answer, or the session was closed before it
                did; with a report of this one task.
            TypeError: An argument is no int.
            ValueError: An argument is out of range.
        """
        project_id = expect_int("project_id", project_id)
        task_id = expect_int("task_id", task_id)
        self._check_open()
        return await self._batcher.stop(project_id, task_id)

    # --- inside -------------------------------------------------------------------------------

    def _check_open(self) -> None:
        """Open the session on first use; raise RuntimeError if it cannot be used here."""
        if self._state is _State.CLOSED:
            raise RuntimeError(f"{self!r} is closed")
        loop = asyncio.get_running_loop()
        if self._state is _State.NEW:
            self._transport.open()
            self._state, self._loop = _State.OPEN, loop
        elif self._loop is not loop:
            raise RuntimeError(f"{self!r} was opened on another event loop, and works only there")

    def _run_of_single_stops(self, targets: Targets) -> BulkRun:
        return BulkRun(targets, RunOptions(), self._context, sized=False)

    @staticmethod
    async def _finish(run: BulkRun) -> StopReport:
        async with StopRun(run) as stop_run:
            await stop_run.wait()
        return run.report


def _may_repeat(method: str, error: CtrlApiError) -> bool:
    traits = traits_of(error)
    return Trait.PASSING in traits and (method == TASK_STATUS or Trait.NOT_CARRIED_OUT in traits)


def _options(  # noqa: PLR0917 - the same for four methods
    dry_run: bool,
    follow_restarts: bool,
    wait_pending: float | None,
    wait_stopped: float | None,
    timeout: float | None,
    collect: bool = True,
) -> RunOptions:
    for name, flag in (
        ("dry_run", dry_run),
        ("follow_restarts", follow_restarts),
        ("collect", collect),
    ):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be a bool, not {flag!r:.80}")
    for name, seconds in (
        ("wait_pending", wait_pending),
        ("wait_stopped", wait_stopped),
        ("timeout", timeout),
    ):
        if seconds is not None:
            expect_seconds(name, seconds)
    if dry_run and wait_pending is not None:
        raise ValueError("a dry_run stops nothing, so it cannot wait for pending tasks")
    return RunOptions(
        dry_run=dry_run,
        follow_restarts=follow_restarts,
        wait_pending=wait_pending,
        wait_stopped=wait_stopped,
        timeout=timeout,
        collect=collect,
    )


async def _in_order(report: StopReport, states: dict[int, KeptState]) -> StatusReport:
    """Return the states in the order of a report, with the event loop's turns in between."""
    ordered: dict[int, KeptState | TaskState] = {}
    outcomes = iter(report)
    while piece := list(islice(outcomes, SLICE)):
        for task_id in piece:
            kept = states.get(task_id)
            ordered[task_id] = kept or TaskState(task_id, None, report[task_id].error)
        await asyncio.sleep(0)
    return StatusReport(ordered)
