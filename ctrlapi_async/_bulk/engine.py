"""The plan's driver: senders up to the limit, one timer, replies in. It decides nothing."""

from __future__ import annotations

import asyncio
import logging
import math
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from ctrlapi_async._errors import CtrlApiError, RequestError
from ctrlapi_async._protocol.requests import TASK_STOP

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence

    from ctrlapi_async._bulk.jobs import Job
    from ctrlapi_async._bulk.plan import StopPlan
    from ctrlapi_async._limiter import ConcurrencyLimiter
    from ctrlapi_async._protocol.replies import Rows
    from ctrlapi_async._protocol.requests import TaskCall

logger = logging.getLogger("ctrlapi_async")

NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})

_Reply = list["Rows | CtrlApiError"] | CtrlApiError


class Sender(Protocol):
    """Sends one request of several calls once."""

    @property
    def proven(self) -> Collection[str]:
        """The methods that have had a good answer in this session."""
        ...

    async def send(
        self,
        method: str,
        calls: Sequence[TaskCall],
        *,
        options: Mapping[str, Any] = NO_OPTIONS,
        keep_bytes: bool = False,
    ) -> list[Rows | CtrlApiError]:
        """Return the answer or the error of each call, or raise what the request as a whole met."""
        ...


class Engine:
    """Carries out a plan on the running event loop.

    Args:
        plan: The plan.
        sender: Sends the requests.
        limiter: The session's concurrency.
        on_progress: Called whenever something may have changed.
        options: More params of TaskStatus.
        keep_bytes: Whether rows keep their JSON.
    """

    def __init__(
        self,
        plan: StopPlan,
        sender: Sender,
        limiter: ConcurrencyLimiter,
        *,
        on_progress: Callable[[], None],
        options: Mapping[str, Any] = NO_OPTIONS,
        keep_bytes: bool = False,
    ) -> None:
        self._plan = plan
        self._sender = sender
        self._limiter = limiter
        self._on_progress = on_progress
        self._options = options
        self._keep_bytes = keep_bytes
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._senders = 0
        self._without_job = 0
        self._advancing = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def now(self) -> float:
        """The running loop's time in seconds."""
        return self._loop.time()

    def advance(self) -> None:
        """Send what is ready, set the timer, and report progress."""
        if self._advancing:
            return  # called by a sender that an eager task factory started in the loop below
        self._advancing = True
        try:
            while self._without_job < self._ready() and self._senders < self._limiter.slots:
                self._senders += 1
                self._without_job += 1
                self.spawn(self._send_one())
        finally:
            self._advancing = False
        if self._plan.done:
            self._stop()
        else:
            self._set_timer()
        self._on_progress()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task of the run; what it raises ends the run."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    async def closed(self) -> None:
        """Wait until no task of the run is left, the current one apart.

        A cancellation meanwhile comes out afterwards: nothing may stay behind.
        """
        await until_done(self._tasks)

    # --- senders ------------------------------------------------------------------------------

    def _ready(self) -> int:
        return self._plan.ready(self._limiter.max_ids, self.now)

    async def _send_one(self) -> None:
        """Send the job that goes next when there is a slot for it."""
        waiting = True
        try:
            async with self._limiter.slot():
                self._without_job -= 1
                waiting = False
                job = self._plan.next_job(self._limiter.max_ids, self.now)
                if job is None:
                    return
                reply = await self._attempt(job)
            self._plan.receive(job, reply, self.now, self._sender.proven)
        finally:
            self._without_job -= waiting
            self._senders -= 1

    async def _attempt(self, job: Job) -> _Reply:
        """Send a job once and return what came of it."""
        method, calls = job.kind.method, job.wire_calls
        try:
            if method == TASK_STOP:
                return await self._sender.send(method, calls)
            return await self._sender.send(
                method, calls, options=self._options, keep_bytes=self._keep_bytes
            )
        except CtrlApiError as error:
            return error
        except asyncio.CancelledError:
            if self._plan.done:
                raise
            # Somebody else's doing. What becomes of the tasks must be known all the same.
            return RequestError("the request was cancelled by other code")

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, Exception):
                return  # KeyboardInterrupt and SystemExit come out of the loop itself
            logger.error("a fault of ctrlapi_async ended a run", exc_info=error)
            self._plan.abort(error, self.now)
        self.advance()

    # --- time ---------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        at = self._plan.next_wakeup(self.now)
        if self._timer is not None:
            if self._timer.when() == at and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if at < math.inf:
            self._timer = self._loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._plan.wake(self.now)
        self.advance()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        current = asyncio.current_task(self._loop)
        for task in self._tasks:
            # One that is being cancelled already would be cut off in its cleaning up.
            if task is not current and not task.cancelling():
                task.cancel()


async def until_done(tasks: set[asyncio.Task[None]]) -> None:
    """Wait until a set that tasks leave by themselves is empty, the current task apart.

    A cancellation meanwhile comes out afterwards.
    """
    cancelled: asyncio.CancelledError | None = None
    while others := tasks - {asyncio.current_task()}:
        try:
            await asyncio.wait(others)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
