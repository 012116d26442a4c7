"""The plan's driver: senders up to the limit, one timer, replies in. It decides nothing."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol

from ctrlapi_async._bulk.chains import parts_of
from ctrlapi_async._errors import CtrlApiError, RequestError
from ctrlapi_async._models import ALL_ACTIVE
from ctrlapi_async._protocol.replies import Rows
from ctrlapi_async._protocol.requests import TASK_STOP

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence

    from ctrlapi_async._bulk.jobs import Job
    from ctrlapi_async._bulk.plan import StopPlan
    from ctrlapi_async._limiter import ConcurrencyLimiter
    from ctrlapi_async._protocol.requests import TaskCall

logger = logging.getLogger("ctrlapi_async")

NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})

PATIENCE: Final = 1.0
"""Seconds that a cancelled task may take to clean up."""

PART: Final = 2000
"""Rows of an answer about all active tasks that are handed in at a time."""

_Reply = list[Rows | CtrlApiError] | CtrlApiError


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
        self._cancelled: set[asyncio.Task[None]] = set()
        self._senders: set[_Sending] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def now(self) -> float:
        """The running loop's time in seconds."""
        return self._loop.time()

    def advance(self) -> None:
        """Send what is ready, set the timer, and report progress."""
        while len(self._senders) < self._limiter.slots and self._more_senders_wanted():
            sending = _Sending()
            self._senders.add(sending)
            self.spawn(self._send_one(sending), partial(self._senders.discard, sending))
        if self._plan.done:
            self._stop()
        else:
            self._set_timer()
        self._on_progress()

    def spawn(
        self, work: Coroutine[Any, Any, None], ended: Callable[[], None]
    ) -> asyncio.Task[None]:
        """Start a task of the run; what it raises ends the run.

        Args:
            work: What it does. Somebody may cancel it before its first step.
            ended: Called when it has ended in whatever way.
        """
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._reap, ended))
        return task

    def cancel(self, task: asyncio.Task[None]) -> None:
        """Cancel a task of the run, once: a second time would cut off its cleaning up."""
        if task not in self._cancelled and task is not asyncio.current_task(self._loop):
            self._cancelled.add(task)
            task.cancel()

    async def closed(self) -> bool:
        """Wait until no task of the run is left, the current one apart.

        A cancellation meanwhile comes out afterwards.

        Returns:
            Whether none is left. One that swallows its cancellation, as only code of the caller's
            makes it, is cancelled once more, and then left to itself.
        """
        await until_done(self._tasks, PATIENCE)
        for task in self._others():
            task.cancel()
        await until_done(self._tasks, PATIENCE / 4)
        return not self._others()

    @property
    def is_inside(self) -> bool:
        """Whether the current task is one of the run's, as in code of the caller's."""
        return asyncio.current_task(self._loop) in self._tasks

    def _others(self) -> set[asyncio.Task[None]]:
        return self._tasks - {asyncio.current_task(self._loop)}

    # --- senders ------------------------------------------------------------------------------

    def _more_senders_wanted(self) -> bool:
        waiting = sum(not sending.has_job for sending in self._senders)
        return waiting < self._plan.ready(self._limiter.max_ids, self.now)

    async def _send_one(self, sending: _Sending) -> None:
        """Send the job that goes next when there is a slot for it."""
        async with self._limiter.slot():
            sending.has_job = True
            job = self._plan.next_job(self._limiter.max_ids, self.now)
            if job is None:
                return
            reply = await self._attempt(job)
        await self._hand_in_parts(job, reply)
        self._plan.receive(job, reply, self.now, self._sender.proven)

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

    async def _hand_in_parts(self, job: Job, reply: _Reply) -> None:
        """Hand in most of a large answer about all active tasks, with the loop's turns between."""
        [call, *_] = job.calls
        if call.task_ids is not ALL_ACTIVE or isinstance(reply, CtrlApiError):
            return
        [answer] = reply
        if isinstance(answer, Rows) and len(answer.rows) > 2 * PART:
            for part in parts_of(answer, PART):
                if part is not None:
                    self._plan.receive_part(job, part, self.now)
                    self.advance()
                await asyncio.sleep(0)

    def _reap(self, ended: Callable[[], None], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._cancelled.discard(task)
        ended()
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
        for task in self._tasks:
            self.cancel(task)


class _Sending:
    """What a sender is at."""

    def __init__(self) -> None:
        self.has_job = False


async def until_done(tasks: set[asyncio.Task[None]], patience: float | None = None) -> None:
    """Wait until a set that tasks leave by themselves is empty, the current task apart.

    A cancellation meanwhile comes out afterwards.

    Args:
        tasks: The set.
        patience: Seconds to wait at most.
    """
    loop = asyncio.get_running_loop()
    until = None if patience is None else loop.time() + patience
    cancelled: asyncio.CancelledError | None = None
    while others := tasks - {asyncio.current_task()}:
        left = None if until is None else until - loop.time()
        if left is not None and left <= 0:
            break
        try:
            await asyncio.wait(others, timeout=left)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
