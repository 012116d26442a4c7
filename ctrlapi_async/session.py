"""The door: a session with one Control API server in one user's name."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

from ctrlapi_async import wire
from ctrlapi_async.bulk import Options, StopRun, Targets
from ctrlapi_async.errors import (
    CtrlApiError,
    HttpError,
    MethodError,
    ReplyError,
    RequestError,
    StopIncompleteError,
)
from ctrlapi_async.gather import Gatherer
from ctrlapi_async.models import (
    ALL_ACTIVE,
    AllActive,
    Batching,
    RetryPolicy,
    StopOutcome,
    expect_int,
    expect_seconds,
)
from ctrlapi_async.pace import Pace
from ctrlapi_async.plan import Call, Work, by_task, passes, undone
from ctrlapi_async.report import StatusReport, StopReport
from ctrlapi_async.retry import pause_after, try_again
from ctrlapi_async.transport import Transport

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable, Sequence
    from types import TracebackType

    import aiohttp

    from ctrlapi_async.bulk import Send

logger = logging.getLogger("ctrlapi_async")

T = TypeVar("T")

TaskIds = int | Iterable[int] | AllActive
AnyTaskIds = TaskIds | AsyncIterable[int]

_STATES: Final = wire.ReplyDecoder[list[dict[str, Any]]](list[dict[str, Any]])
_ANYTHING: Final = wire.ReplyDecoder[Any](Any)


class ControlSession:
    """A session with one Control API server, in the name of one user; used with `async with`.

    Args:
        base_url: The server's root (`http://172.16.1.41`) or the whole endpoint. Credentials in
            it are used as `auth`, and shown nowhere.
        user_id: The user in whose name all calls are made, an int of 0 or more.
        auth: Login and password for the proxy's basic authentication.
        headers: HTTP headers to send with each request.
        ssl: True verifies the server's certificate, an `ssl.SSLContext` says how (a private CA,
            say), an `aiohttp.Fingerprint` pins it, False does without.
        client: An `aiohttp.ClientSession` to use, with its proxy, tracing and so on; it is never
            closed. Without one the session makes its own, which ignores proxies that the
            environment names.
        batching: How task ids are packed into requests, and how many of these are in flight.
        retry: When and how often a request that failed is sent again.
        request_timeout: Seconds for one request, counted from when it may be sent.
        max_reply_bytes: Replies with larger bodies are refused while they are read.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range, or `base_url` is no HTTP URL.
    """

    def __init__(
        self,
        base_url: str,
        user_id: int,
        *,
        auth: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        ssl: bool | tls.SSLContext | aiohttp.Fingerprint = True,
        client: aiohttp.ClientSession | None = None,
        batching: Batching = Batching(),  # noqa: B008 - frozen
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        request_timeout: float = 30.0,
        max_reply_bytes: int = 64 * 2**20,
    ) -> None:
        self._user_id = expect_int("user_id", user_id)
        for name, value, kind in (("batching", batching, Batching), ("retry", retry, RetryPolicy)):
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, not {value!r}")
        if expect_seconds("request_timeout", request_timeout) == 0:
            raise ValueError("request_timeout must be more than 0 seconds")
        self._transport = Transport(
            base_url,
            auth=auth,
            headers=headers,
            ssl=ssl,
            client=client,
            request_timeout=request_timeout,
            max_reply_bytes=expect_int("max_reply_bytes", max_reply_bytes, 1),
        )
        self._batching = batching
        self._retry = retry
        self._pace = Pace(batching.max_concurrency)
        self._ids = itertools.count(1)
        self._decoders = {
            method: wire.RowDecoder(method) for method in (wire.TASK_STATUS, wire.TASK_STOP)
        }
        self._state = "is not entered yet: use `async with`"
        self._runs: set[StopRun] = set()
        self._gatherer = Gatherer(self._run, batching.linger)

    def __repr__(self) -> str:
        return f"ControlSession({str(self._transport.url)!r}, user_id={self._user_id})"

    async def __aenter__(self) -> Self:
        if self._state:
            self._transport.open()
            self._gatherer = Gatherer(self._run, self._batching.linger)
            self._state = ""
            return self
        raise RuntimeError(f"{self!r} is entered already")

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._state = "is closed"
        async with AsyncExitStack() as rest:  # all of it, a cancellation notwithstanding
            rest.push_async_callback(self._transport.close)
            for run in list(self._runs):
                run.end(RequestError("the session was closed"))
                rest.push_async_callback(run.quiet)
            rest.push_async_callback(self._gatherer.close)  # first, so that no batch leaves now

    # --- the API's methods --------------------------------------------------------------------

    async def call(self, method: str, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Call any one method of the API and give its raw `result`.

        A call that failed is repeated if the server surely did not carry it out, or if it is
        TaskStatus.

        Args:
            method: The method's name, "TaskStatus" say.
            params: Its params, as the API documents them.

        Raises:
            RequestError: The server was not reached, or gave no answer in time.
            HttpError: It answered with another HTTP status than 200.
            ReplyError: Its answer was no reply.
            MethodError: It refused the call.
            TypeError: `method` is no str, or `params` are no mapping that JSON can hold.
        """
        self._check_open()
        if not isinstance(method, str) or not method:
            raise TypeError(f"method must be a name, not {method!r}")
        if not isinstance(params, Mapping):
            raise TypeError(f"params must be a mapping, not {params!r}")
        calls = [(method, params)]
        wire.encode(self._user_id, calls)  # what JSON cannot hold comes out before the first try

        async def once() -> Any:  # noqa: ANN401
            async with self._pace:
                [answer] = await self._exchange(
                    calls, lambda body, first_id: _ANYTHING.decode(body, [method], first_id), size=1
                )
            if isinstance(answer, CtrlApiError):
                raise answer
            return answer.result

        def passing(error: CtrlApiError) -> bool:
            again = method == wire.TASK_STATUS or undone(error)
            return again and passes(error) and not self._state

        try:
            return await once()
        except CtrlApiError as error:
            if not passing(error):
                raise
            return await try_again(self._retry, 1, error, once, passing)

    async def task_status(self, project_id: int, task_ids: AnyTaskIds) -> StatusReport:
        """Ask for the status of tasks (TaskStatus), in chunks and at once.

        A task that the project does not have gets a row with `error`.

        Args:
            project_id: The project.
            task_ids: An int, ints, an async iterable of ints, or `ALL_ACTIVE`.

        Raises:
            CtrlApiError: The first error that left a task without an answer.
            TypeError: A task id is no int.
            ValueError: A task id is out of range.
        """
        details: dict[int, dict[str, Any]] = {}

        async def send(method: str, calls: list[Call]) -> _Answers:
            return await self._send(method, calls, details)

        run = self._run(_targets(project_id, task_ids), Options(dry_run=True), send)
        async with run:
            try:
                await run.wait()
            except StopIncompleteError as error:
                raise error.exceptions[0] from None
        return StatusReport.found(run.report, details)

    async def task_stop(self, project_id: int, task_ids: TaskIds) -> StopReport:
        """Stop tasks (TaskStop) without checking them first; rather use `stop_running`.

        Args:
            project_id: The project.
            task_ids: An int or ints.

        Raises:
            StopIncompleteError: The server did not answer for every task.
            TypeError: A task id is no int.
            ValueError: A task id is out of range, or `task_ids` is `ALL_ACTIVE`.
        """
        if task_ids is ALL_ACTIVE:
            raise ValueError("task_stop takes task ids, not ALL_ACTIVE: use stop_running")
        return await self._finish(
            self._run(_targets(project_id, task_ids), Options(first=Work.STOP))
        )

    async def stop_running(
        self,
        project_id: int,
        task_ids: AnyTaskIds,
        *,
        dry_run: bool = False,
        wait_pending: float | None = None,
        confirm: float | None = None,
        timeout: float | None = None,
    ) -> StopReport:
        """Stop those of the tasks that are Running: TaskStatus first, then TaskStop.

        Args:
            project_id: The project.
            task_ids: An int, ints, an async iterable of ints, or `ALL_ACTIVE`.
            dry_run: Only tell which tasks would be stopped.
            wait_pending: Seconds, from the run's start, for which tasks that are Scheduled or
                Explore are checked again, to be stopped once they run.
            confirm: Seconds, from the last stop, for which stopped tasks are checked again,
                until none of them is Running.
            timeout: Seconds for the whole run.

        Raises:
            StopIncompleteError: The server did not answer for every task.
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range.
        """
        return await self._finish(
            self.stopping(
                project_id,
                task_ids,
                dry_run=dry_run,
                wait_pending=wait_pending,
                confirm=confirm,
                timeout=timeout,
            )
        )

    def stopping(
        self,
        project_id: int,
        task_ids: AnyTaskIds,
        *,
        collect: bool = True,
        dry_run: bool = False,
        wait_pending: float | None = None,
        confirm: float | None = None,
        timeout: float | None = None,
    ) -> StopRun:
        """Stop those of the tasks that are Running, and give each outcome as it becomes known.

        `async with session.stopping(...) as run: async for outcome in run: ...`

        Args:
            project_id: The project.
            task_ids: An int, ints, an async iterable of ints, which is read as the run goes, or
                `ALL_ACTIVE`.
            collect: Whether the run keeps a report. Without it the run's memory is bounded by
                what is in flight and what `wait_pending` and `confirm` ask about again, and only
                duplicates close to each other count once.
            dry_run: As for `stop_running`.
            wait_pending: As for `stop_running`.
            confirm: As for `stop_running`.
            timeout: As for `stop_running`.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range.
        """
        return self._run(
            _targets(project_id, task_ids),
            _options(
                collect=collect,
                dry_run=dry_run,
                wait_pending=wait_pending,
                confirm=confirm,
                timeout=timeout,
            ),
        )

    async def stop_running_across(
        self,
        targets: Mapping[int, TaskIds],
        *,
        dry_run: bool = False,
        wait_pending: float | None = None,
        confirm: float | None = None,
        timeout: float | None = None,
    ) -> StopReport:
        """Stop those of the tasks of many projects that are Running, as `stop_running` does.

        Calls for many projects share a request. What is wrong with one project ends that
        project's tasks only.

        Args:
            targets: For each project id an int, ints, or `ALL_ACTIVE`.
            dry_run: As for `stop_running`.
            wait_pending: As for `stop_running`.
            confirm: As for `stop_running`.
            timeout: As for `stop_running`.

        Raises:
            StopIncompleteError: The server did not answer for every task.
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range, or a task is asked for in two projects.
        """
        return await self._finish(
            stopping_across(
                self,
                targets,
                dry_run=dry_run,
                wait_pending=wait_pending,
                confirm=confirm,
                timeout=timeout,
            )
        )

    async def stop(self, project_id: int, task_id: int) -> StopOutcome:
        """Stop one task if it is Running; concurrent calls are gathered into batches.

        Cancelling one caller touches no other, and its task is left alone if its request had
        not been sent.

        Args:
            project_id: The project.
            task_id: The task.

        Raises:
            StopIncompleteError: The server gave no answer, or the session was closed before it
                did; with a report of this one task.
            TypeError: An argument is no int.
            ValueError: An argument is out of range.
        """
        self._check_open()
        return await self._gatherer.stop(
            expect_int("project_id", project_id), expect_int("task_id", task_id)
        )

    # --- inside -------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._state:
            raise RuntimeError(f"{self!r} {self._state}")

    def _run(self, targets: Targets, options: Options, send: Send | None = None) -> StopRun:
        self._check_open()
        return StopRun(
            targets,
            options,
            send=send or self._send,
            pace=self._pace,
            policy=self._retry,
            batching=self._batching,
            registry=self._runs,
            check_open=self._check_open,
        )

    @staticmethod
    async def _finish(run: StopRun) -> StopReport:
        async with run:
            await run.wait()
        return run.report

    async def _send(
        self, method: str, calls: list[Call], details: dict[int, dict[str, Any]] | None = None
    ) -> _Answers:
        """Send one request of a run; `details` take in its rows' members that no run needs."""
        asked = [wire.ids_text(task_ids) for _, task_ids in calls]

        def read(body: bytes, first_id: int) -> _Answers:
            answers = self._decoders[method].decode(body, asked, first_id)
            # What is known by marks has no other members.
            if details is not None and not any(
                isinstance(answer, wire.Answer) and answer.marks for answer in answers
            ):
                whole = _STATES.decode(body, [method] * len(asked), first_id)
                for call, answer, same in zip(calls, answers, whole, strict=True):
                    if isinstance(answer, wire.Answer) and isinstance(same, wire.Answer):
                        details.update(_details(call, answer, same.result))
            return answers

        return await self._exchange(
            [
                (method, wire.task_params(call.project_id, ids))
                for call, ids in zip(calls, asked, strict=True)
            ],
            read,
            size=sum([call.size for call in calls]),
        )

    async def _exchange(
        self,
        calls: Sequence[tuple[str, Mapping[str, Any]]],
        read: Callable[[bytes, int], list[wire.Answer[T] | CtrlApiError]],
        *,
        size: int,
    ) -> list[wire.Answer[T] | CtrlApiError]:
        """Send one request once, in a slot that the caller holds, and heed what it says of pace.

        Args:
            calls: Method and params of each call.
            read: Makes answers of the reply's body and the first call's `id`.
            size: How many task ids the request carries.
        """
        began = self._pace.now()
        first_id = next(self._ids)
        for _ in calls[1:]:
            next(self._ids)
        fate = "no answer"
        try:
            body = await self._transport.post(wire.encode(self._user_id, calls, first_id))
            answers = self._redacted(body, read(body, first_id))
            self._pace.succeeded()
            fate = "200"
        except HttpError as error:
            fate = str(error.status)
            if error.status in (429, 503):
                self._pace.slow_down(began, pause_after(self._retry, 1, error))
            elif error.status == 413 and size > 1:
                self._pace.shrink(size)
            raise
        except (MethodError, ReplyError) as error:
            fate = "bad reply" if isinstance(error, ReplyError) else "refused"
            raise self._transport.redacted(error) from None
        finally:
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug(
                    "%s of %d tasks: %s after %.1f ms",
                    calls[0][0],
                    size,
                    fate,
                    (self._pace.now() - began) * 1000,
                )
        return answers

    def _redacted(
        self, body: bytes, answers: list[wire.Answer[T] | CtrlApiError]
    ) -> list[wire.Answer[T] | CtrlApiError]:
        """Take the session's credentials out of the error texts of a reply, if it has any."""
        if self._transport.has_secrets and (
            b'"error' in body or any(isinstance(answer, CtrlApiError) for answer in answers)
        ):
            return list(map(self._transport.redacted_answer, answers))
        return answers


def stopping_across(
    session: ControlSession,
    targets: Mapping[int, TaskIds],
    *,
    dry_run: bool = False,
    wait_pending: float | None = None,
    confirm: float | None = None,
    timeout: float | None = None,
) -> StopRun:
    """Make the run that `stop_running_across` waits for; internal, for the command line as well."""
    if not isinstance(targets, Mapping):
        raise TypeError(f"targets must map project ids to task ids, not {targets!r:.80}")
    return session._run(  # noqa: SLF001 - of the same house
        _many_targets(targets),
        _options(
            collect=True,
            dry_run=dry_run,
            wait_pending=wait_pending,
            confirm=confirm,
            timeout=timeout,
        ),
    )


_Answers = list[wire.Answer[list[wire.Row]] | CtrlApiError]


def _details(
    call: Call, answer: wire.Answer[list[wire.Row]], whole: list[dict[str, Any]]
) -> dict[int, dict[str, Any]]:
    """Give, by task id, those members of the rows that count that are of no use for stopping.

    Args:
        call: The call of TaskStatus.
        answer: What it brought.
        whole: The same rows, with all their members.
    """
    members = dict(zip(map(id, answer.result), whole, strict=True))
    asked = None if isinstance(call.task_ids, AllActive) else call.task_ids
    return {
        task_id: more
        for task_id, row in by_task(answer, asked).items()
        if (
            more := {
                name: value
                for name, value in members[id(row)].items()
                if name not in ("task_id", "status", "error")
            }
        )
    }


def _targets(project_id: int, task_ids: AnyTaskIds) -> Targets:
    project_id = expect_int("project_id", project_id)
    if isinstance(task_ids, AllActive):
        return Targets(all_active=(project_id,))
    if isinstance(task_ids, AsyncIterable):
        return Targets(stream=(project_id, task_ids))
    if isinstance(task_ids, int):
        return Targets(listed={project_id: [expect_int("a task id", task_ids)]})
    if isinstance(task_ids, str | bytes | bytearray | memoryview) or not isinstance(
        task_ids, Iterable
    ):
        raise TypeError(
            "task_ids must be an int, an iterable or async iterable of ints, or ALL_ACTIVE, "
            f"not {task_ids!r:.80}"
        )
    return Targets(listed={project_id: task_ids})


def _many_targets(targets: Mapping[int, TaskIds]) -> Targets:
    listed: dict[int, Iterable[int]] = {}
    all_active: list[int] = []
    for project_id, task_ids in targets.items():
        if isinstance(task_ids, AsyncIterable):
            raise TypeError(f"project {project_id}: an async iterable cannot be one of several")
        one = _targets(project_id, task_ids)
        listed |= one.listed
        all_active += one.all_active
    return Targets(listed=listed, all_active=tuple(all_active))


def _options(
    *,
    collect: bool,
    dry_run: bool,
    wait_pending: float | None,
    confirm: float | None,
    timeout: float | None,
) -> Options:
    for name, seconds in (
        ("wait_pending", wait_pending),
        ("confirm", confirm),
        ("timeout", timeout),
    ):
        if seconds is not None:
            expect_seconds(name, seconds)
    if dry_run and wait_pending is not None:
        raise ValueError("a dry_run stops nothing, so it cannot wait for pending tasks")
    return Options(
        collect=collect,
        dry_run=dry_run,
        wait_pending=wait_pending,
        confirm=confirm,
        timeout=timeout,
    )
