"""The bulk stop's engine: workers that carry out a plan's jobs, and the run that a caller sees."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from itertools import islice
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from attrs import field, frozen

from ctrlapi_async.errors import (
    CtrlApiError,
    DeadlineError,
    RequestError,
    StopIncompleteError,
)
from ctrlapi_async.ledger import Ledger
from ctrlapi_async.models import StopOutcome, StopResult, StopStats, expect_ids, expect_int
from ctrlapi_async.plan import Repeat, StopPlan, Work
from ctrlapi_async.retry import try_again

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping
    from types import TracebackType

    from ctrlapi_async import wire
    from ctrlapi_async.models import Batching, RetryPolicy
    from ctrlapi_async.pace import Pace
    from ctrlapi_async.plan import Call, Job
    from ctrlapi_async.report import StopReport

FEED: Final = 5000
"""Task ids that are taken in one go: more would hold up the caller's event loop."""

FEED_CALL: Final = 250
"""Task ids whose taking costs as much as what is done for each list of them, a project's say."""

AGE: Final = 40
"""As many times ids are taken, then the garbage collector goes through the lists of them. Later it
would go through all in one go: some 10 ms for a million."""

FLUSH: Final = 0.05
"""Seconds that ids of an async source wait for a full chunk."""

POLL_FIRST: Final = 0.2
POLL_GROWTH: Final = 1.5
POLL_MAX: Final = 5.0
"""Seconds between checks of tasks that are pending or were stopped: a series that grows."""


@frozen
class Targets:
    """Which tasks a run is about.

    Args:
        listed: Task ids by project.
        all_active: Projects of which all active tasks are meant.
        stream: A project, and a source of ids that is read as the run goes.
    """

    listed: Mapping[int, Iterable[int]] = field(factory=dict)
    all_active: tuple[int, ...] = ()
    stream: tuple[int, AsyncIterable[int]] | None = None


@frozen
class Options:
    """What a caller asked of a run; seconds, None for none.

    `sized` says whether the number of ids given is the number meant to fit the chunk to.
    """

    dry_run: bool = False
    wait_pending: float | None = None
    confirm: float | None = None
    timeout: float | None = None
    collect: bool = True
    sized: bool = True
    first: Work = Work.CHECK


class Send(Protocol):
    """Sends one request of several calls once; its session's doing."""

    async def __call__(
        self, method: str, calls: list[Call], /
    ) -> list[wire.Answer[list[wire.Row]] | CtrlApiError]:
        """Give the answer or the error of each call, or raise what the whole request met."""


async def until_gone(tasks: set[asyncio.Task[None]]) -> None:
    """Wait until a set that tasks leave by themselves is empty.

    A cancellation meanwhile comes out afterwards: nothing may stay behind.
    """
    cancelled: asyncio.CancelledError | None = None
    while tasks:
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


class StopRun(AsyncIterator[StopOutcome]):
    """A bulk stop under way; made by `ControlSession.stopping`.

    `async with` starts it, and cancels what is left of it at its end. `async for` gives each
    task's outcome once, as soon as it is known, and raises `StopIncompleteError` after the last
    one if the server did not answer for every task.
    """

    def __init__(
        self,
        targets: Targets,
        options: Options,
        *,
        send: Send,
        pace: Pace,
        policy: RetryPolicy,
        batching: Batching,
        registry: set[StopRun],
        check_open: Callable[[], None],
    ) -> None:
        self._targets = targets
        self._options = options
        self._send = send
        self._pace = pace
        self._policy = policy
        self._batching = batching
        self._registry = registry
        self._check_open = check_open
        self._ledger = Ledger(collect=options.collect)
        self._plan = StopPlan(
            self._ledger,
            first=options.first,
            dry_run=options.dry_run,
            watch=options.wait_pending is not None,
            confirm=options.confirm is not None,
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._workers = 0
        self._idle = 0
        self._intake: list[int] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._pause = POLL_FIRST
        self._only_confirming = False
        self._began = self._ended_at = self._last_stop = 0.0
        self._calls = dict.fromkeys(Work, 0)
        self._retries = 0
        self._entered = False
        self._feeding = False
        # Why the run is to end as soon as it knows all its tasks.
        self._ending: CtrlApiError | None = None
        self._done = asyncio.Event()
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._crash: BaseException | None = None
        self._batch: Iterator[StopOutcome] = iter(())
        self._leftovers = self._ledger.leftovers()
        self._final: StopReport | None = None

    # --- what a caller sees -------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a StopRun can be entered once only")
        self._check_open()
        self._entered = True
        self._began = self._last_stop = self._pace.now()
        self._registry.add(self)
        if self._options.timeout is not None:
            self._after("deadline", self._options.timeout, self._expire)
        self._feeding = True
        try:
            await self._feed()
        except BaseException:
            self.end(RequestError("the run was left before it began", sent=False))
            self._registry.discard(self)
            raise
        finally:
            self._feeding = False
            if self._ending is not None:
                self.end(self._ending)
        self._staff()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(RequestError("the run was left before its end"))
        self._registry.discard(self)
        await self.quiet()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StopOutcome:
        self._expect_entered()
        while (outcome := next(self._batch, None)) is None:
            self._news.clear()
            if self._ledger.untaken:
                self._batch = self._ledger.take()
                self._room.set()
            elif not self._done.is_set():
                await self._news.wait()
                continue
            elif (left := next(self._leftovers, None)) is not None:
                self._batch = left
            else:
                self._raise_if_incomplete()
                raise StopAsyncIteration
            # A loop body that never awaits must not keep others from their turn.
            await asyncio.sleep(0)
        return outcome

    async def wait(self) -> None:
        """Wait for the end without taking the outcomes one by one.

        Raises:
            StopIncompleteError: The server did not answer for every task.
        """
        self._expect_entered()
        self._ledger.mute()
        self._room.set()
        await self._done.wait()
        self._raise_if_incomplete()

    @property
    def report(self) -> StopReport:
        """What is known now, of every task that was asked for so far.

        A task whose stop is under way is UNCONFIRMED, one that waits for it NOT_SENT.
        """
        if self._final is not None:
            return self._final
        if not self._done.is_set():
            return self._ledger.report(self._stats, self._plan.unconfirmed())
        self._final = self._ledger.report(self._stats)
        return self._final

    @property
    def counts(self) -> Mapping[StopResult, int]:
        """How many tasks have each result now; every `StopResult` is a key."""
        counts = self._ledger.counts
        under_way = self._plan.unconfirmed_count()
        counts[StopResult.NOT_SENT] -= under_way
        counts[StopResult.UNCONFIRMED] += under_way
        return MappingProxyType(counts)

    def _expect_entered(self) -> None:
        if not self._entered:
            raise RuntimeError("a StopRun starts with `async with`")

    # --- the ending ---------------------------------------------------------------------------

    def end(self, error: CtrlApiError | None) -> None:
        """End the run now; a second time does nothing.

        Args:
            error: Why, if it ends before its time; kept if that leaves a task without an answer.
        """
        if self._done.is_set():
            return
        if self._feeding:
            self._ending = self._ending or error
            return
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            if not task.cancelling():  # else it would be cut off in its cleaning up
                task.cancel()
        self._take_in()
        cut_short = self._plan.listing
        self._plan.close(str(error) if error else "")
        self._ended_at = self._pace.now()
        if error is not None and (cut_short or self._ledger.unanswered):
            self._plan.note(error)
        self._done.set()
        self._news.set()

    async def quiet(self) -> None:
        """Wait until no task of the run is left; a cancellation meanwhile comes out afterwards."""
        await until_gone(self._tasks)

    def forget(self, task_id: int) -> None:
        """Leave a task alone from now on, unless its stop was sent already."""
        self._plan.forget(task_id)

    def _expire(self) -> None:
        self.end(DeadlineError(f"the run's {self._options.timeout:g} s were over"))

    @property
    def _stats(self) -> StopStats:
        stop_calls = self._calls[Work.STOP]
        under_way = self._entered and not self._done.is_set()
        end = self._pace.now() if under_way else self._ended_at
        return StopStats(
            status_calls=sum(self._calls.values()) - stop_calls,
            stop_calls=stop_calls,
            retries=self._retries,
            elapsed=end - self._began,
        )

    def _raise_if_incomplete(self) -> None:
        if self._crash is not None:
            raise self._crash
        if not self._plan.errors:  # none, and so no task without an answer
            return
        counts = self.counts
        total = sum(counts.values())
        unanswered = self._ledger.unanswered
        raise StopIncompleteError(
            f"{unanswered} of {total} task{'s' * (total != 1)} without an answer "
            f"({counts[StopResult.NOT_SENT]} not_sent, "
            f"{counts[StopResult.UNCONFIRMED]} unconfirmed)",
            self._plan.errors,
            self.report,
        )

    # --- tasks in -----------------------------------------------------------------------------

    async def _feed(self) -> None:
        fed = pauses = 0
        for project_id, task_ids in self._targets.listed.items():
            iterator = iter(task_ids)
            while piece := list(islice(iterator, FEED)):
                self._plan.feed(project_id, expect_ids(piece))
                fed += len(piece) + FEED_CALL
                if fed >= FEED:
                    fed = 0
                    pauses += 1
                    # A threshold of 0 is a way to switch it off.
                    if pauses % AGE == 0 and gc.isenabled() and gc.get_threshold()[0]:
                        gc.collect(1)
                    await asyncio.sleep(0)
        for project_id in self._targets.all_active:
            self._plan.feed_all_active(project_id)
        # Without a list the number of ids is not known beforehand.
        self._plan.chunk = self._batching.chunk_for(
            self._plan.backlog if self._targets.listed and self._options.sized else None
        )
        if self._targets.stream is not None:
            self._reader = self._spawn(self._read(aiter(self._targets.stream[1])))
        else:
            self._plan.source_open = False

    async def _read(self, source: AsyncIterator[int]) -> None:
        """Feed the plan from an async source to its end; what it raises joins the run's errors."""
        try:
            try:
                await self._read_on(source)
            finally:
                if not self._done.is_set():
                    self._take_in()
                self._plan.source_open = False
                if close := getattr(source, "aclose", None):
                    await close()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._plan.note(RequestError("the source of task ids was cancelled", sent=False))
        except Exception as error:  # noqa: BLE001 - the caller's source may raise anything
            self._plan.note(error)

    async def _read_on(self, source: AsyncIterator[int]) -> None:
        """Feed the plan from an async source, no faster than the run gets on."""
        unchecked = 0
        async for task_id in source:
            self._intake.append(expect_int("a task id", task_id))
            unchecked += 1
            if unchecked >= min(self._plan.chunk, FEED):
                unchecked = 0
                self._take_in()
                self._staff()
                await self._wait_for_room()
            elif "flush" not in self._timers:
                self._after("flush", FLUSH, self._flush)

    def _take_in(self) -> None:
        """Hand the plan what the source gave."""
        if self._intake and self._targets.stream is not None:
            self._plan.feed(self._targets.stream[0], self._intake)
            self._intake = []

    async def _wait_for_room(self) -> None:
        window = self._plan.chunk * self._pace.max_concurrency
        await asyncio.sleep(0)
        while max(self._plan.backlog, self._ledger.untaken) > window:
            self._room.clear()
            await self._room.wait()

    def _flush(self) -> None:
        self._take_in()
        self._plan.flush()
        self._staff()

    # --- the workers --------------------------------------------------------------------------

    def _staff(self) -> int:
        """See to it that all that can be done now is being done, and end when all is done.

        Returns:
            How many jobs there are to be picked.
        """
        if self._done.is_set():
            return 0
        self._news.set()
        self._room.set()
        plan = self._plan
        if plan.doom is not None and self._reader is not None and not self._reader.cancelling():
            self._reader.cancel()
        ready = plan.pickable(self._pace.ceiling)
        while self._idle < ready and self._workers < self._pace.max_concurrency:
            self._workers += 1
            self._idle += 1
            self._spawn(self._work())
        if plan.source_open and plan.partial and "flush" not in self._timers:
            self._after("flush", FLUSH, self._flush)
        polled = plan.has_pending or plan.confirming
        if plan.confirming and not (plan.stopping or self._only_confirming):
            # The last stop is answered: its tasks are asked about before the seconds are over.
            self._only_confirming = True
            self._pause = min(POLL_FIRST, (self._options.confirm or 0.0) / 2)
            if timer := self._timers.pop("poll", None):
                timer.cancel()
        if polled and "poll" not in self._timers:
            self._after("poll", min(self._pause, self._time_left()), self._poll)
        if not (self._tasks or polled) or (plan.doom is not None and not plan.flying):
            self.end(None)
        return ready

    async def _work(self) -> None:
        """Carry out one job after the other, each picked when a slot is there for it."""
        ready = 1
        while ready:
            async with self._pace:
                self._idle -= 1
                job = self._plan.pick(self._pace.ceiling)
                repeats = await self._attempt(job) if job is not None else []
            self._idle += 1
            for repeat in repeats:
                self._spawn(self._persist(repeat))
            ready = self._staff()
        self._idle -= 1
        self._workers -= 1

    async def _attempt(self, job: Job) -> list[Repeat]:
        """Send a job once and book what came of it; give what is to be repeated."""
        self._plan.launch(job)
        self._calls[job.work] += 1
        try:
            answers = await self._send(job.work.method, job.calls)
        except CtrlApiError as error:
            self._quit_if_over()
            repeats = self._plan.failed(job, error)
        else:
            self._quit_if_over()
            repeats = self._plan.answered(job, answers)
        if job.work in (Work.STOP, Work.SETTLE):
            self._last_stop = self._pace.now()
        return repeats

    def _quit_if_over(self) -> None:
        """Leave a task whose cancellation the HTTP client took for that of its own time limit."""
        if self._done.is_set():
            raise asyncio.CancelledError

    async def _persist(self, repeat: Repeat) -> None:
        """Send a job again, with pauses in which it holds no slot, until it is done or given up."""
        job, error = repeat
        work = job.work

        async def once() -> None:
            nonlocal job
            async with self._pace:
                if not self._plan.recall(job):
                    return
                job.attempt += 1
                self._retries += 1
                repeats = await self._attempt(job)
            # A stop that its check puts back counts attempts of its own.
            same = next((other for other in repeats if other.job.work is work), None)
            for other in repeats:
                if other is not same:
                    self._spawn(self._persist(other))
            self._staff()
            if same is not None:
                job, met = same
                raise met

        try:
            await try_again(self._policy, job.attempt, error, once)
        except CtrlApiError as met:
            self._plan.give_up(job, met)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task is self._reader:
            self._reader = None
        if not task.cancelled() and (error := task.exception()) is not None:
            # A fault of this package, not of the server: it must not look like one.
            self._crash = self._crash or error
            self.end(None)
        self._staff()

    # --- timers -------------------------------------------------------------------------------

    def _after(self, name: str, delay: float, call: Callable[[], None]) -> None:
        def ring() -> None:
            del self._timers[name]
            call()

        self._timers[name] = asyncio.get_running_loop().call_later(delay, ring)

    def _time_left(self) -> float:
        """Give the seconds until pending or stopped tasks are no longer checked."""
        now = self._pace.now()
        ends = []
        if self._plan.has_pending and self._options.wait_pending is not None:
            ends.append(self._began + self._options.wait_pending)
        if self._plan.confirming:
            ends.append(now + POLL_MAX if self._plan.stopping else self._confirm_end)
        return max(0.0, min(ends) - now)

    @property
    def _confirm_end(self) -> float:
        return self._last_stop + (self._options.confirm or 0.0)

    def _poll(self) -> None:
        """Check the tasks again that are pending, and those that were stopped."""
        now = self._pace.now()
        if self._plan.has_pending:
            if now >= self._began + (self._options.wait_pending or 0.0):
                self._plan.stop_rechecking()
            else:
                self._plan.recheck()
        if self._plan.confirming and now >= self._confirm_end and not self._plan.stopping:
            self.end(None)
        self._plan.follow()
        self._pause = min(self._pause * POLL_GROWTH, POLL_MAX)
        self._staff()
