"""A bulk stop under way: what callers see, and what the session does with it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from enum import Enum
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, cast

from attrs import field, frozen

from ctrlapi_async._bulk.engine import NO_OPTIONS, Engine, Sender
from ctrlapi_async._bulk.plan import StopPlan
from ctrlapi_async._bulk.source import SLICE, StreamReader, Targets, read_listed
from ctrlapi_async._errors import RequestError, StopIncompleteError
from ctrlapi_async._models import UNANSWERED, Progress, StopOutcome, StopResult
from ctrlapi_async._reports import StopReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from ctrlapi_async._bulk.options import RunOptions
    from ctrlapi_async._bulk.reconcile import OnRow
    from ctrlapi_async._limiter import ConcurrencyLimiter
    from ctrlapi_async._models import Batching, RetryPolicy

logger = logging.getLogger("ctrlapi_async")


@frozen
class RunContext:
    """What all runs of a session share.

    Args:
        sender: Sends the requests.
        limiter: The session's concurrency.
        batching: How task ids are packed into requests.
        retry: When and how often requests are repeated.
        check_open: Raises RuntimeError if the session is not open.
        runs: The runs that go on.
        unknown_statuses: Statuses that were warned about already.
    """

    sender: Sender
    limiter: ConcurrencyLimiter
    batching: Batching
    retry: RetryPolicy
    check_open: Callable[[], None]
    runs: set[BulkRun] = field(factory=set)
    unknown_statuses: set[str] = field(factory=set)


class _State(Enum):
    NEW = "not started"
    READING = "reading task ids"
    RUNNING = "running"
    ENDED = "ended"


class BulkRun:
    """One run: its plan, its engine and its source of ids.

    Args:
        targets: Which tasks it is about.
        options: What the caller asked for.
        context: What it shares with other runs of its session.
        sized: Whether the number of ids given is the number to fit the chunk to.
        params: More params of TaskStatus.
        on_row: Called with each task that was checked, its row and its chain's current row.
    """

    def __init__(
        self,
        targets: Targets,
        options: RunOptions,
        context: RunContext,
        *,
        sized: bool = True,
        params: Mapping[str, Any] = NO_OPTIONS,
        on_row: OnRow | None = None,
    ) -> None:
        self.state = _State.NEW
        self._targets = targets
        self._options = options
        self._context = context
        self._sized = sized
        self._params = params
        self._on_row = on_row
        self._plan = self._make_plan(began=0.0)
        self._engine: Engine | None = None
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._report: StopReport | None = None

    def _make_plan(self, began: float) -> StopPlan:
        return StopPlan(
            self._options,
            self._context.retry,
            began=began,
            random=random.random,
            streaming=self._targets.stream is not None,
            on_row=self._on_row,
            unknown_statuses=self._context.unknown_statuses,
        )

    # --- start and end ------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the ids that are listed, then send.

        Raises:
            RuntimeError: The run was started before, or the session is not open.
            TypeError: A task id is no int.
            ValueError: A task id is out of range, or is asked for in two projects.
        """
        if self.state is not _State.NEW:
            raise RuntimeError("a StopRun can be entered only once")
        self._context.check_open()
        self.state = _State.READING
        loop = asyncio.get_running_loop()
        self._plan = self._make_plan(loop.time())
        self._engine = Engine(
            self._plan,
            self._context.sender,
            self._context.limiter,
            on_progress=self._on_progress,
            options=self._params,
            keep_bytes=self._on_row is not None,
        )
        self._context.runs.add(self)
        try:
            await read_listed(self._targets, self._add_listed, self._plan.note)
        except BaseException:
            self.abort(RequestError("the run was left before it began", sent=False))
            self._context.runs.discard(self)
            raise
        if not self._plan.done:
            self._begin(self._engine)
        self.state = _State.RUNNING
        self._engine.advance()

    def _add_listed(self, project_id: int, task_ids: list[int]) -> bool:
        now = asyncio.get_running_loop().time()
        self._plan.add_tasks(project_id, task_ids, now)
        self._plan.wake(now)  # the deadline may come while ids are read
        return not self._plan.done

    def _begin(self, engine: Engine) -> None:
        """Set the chunk, and let the plan and the reader of a stream begin."""
        for project_id in self._targets.all_active:
            self._plan.add_all_active(project_id)
        sized = self._sized and self._targets.listed
        chunk = self._context.batching.chunk_for(self._plan.backlog if sized else None)
        self._plan.set_chunk(chunk)
        if self._targets.stream is None:
            self._plan.close_input(engine.now)
            return
        project_id, source = self._targets.stream
        reader = StreamReader(
            source,
            batch=min(chunk, SLICE),
            add=lambda task_ids: self._add_read(engine, project_id, task_ids),
            wait_for_room=lambda: self._wait_for_room(chunk),
            note=self._plan.note,
        )
        work = reader.run(lambda: self._reading_is_over)
        self._reader = engine.spawn(work, partial(self._reading_ended, engine))

    def _reading_ended(self, engine: Engine) -> None:
        if self._reader is not None and self._reader.cancelled() and not self._reading_is_over:
            # By its own code or somebody else's: nobody knows what it would still have yielded.
            error = RequestError("the source of task ids was cancelled by other code", sent=False)
            self._plan.note(error)
        self._reader = None
        self._plan.close_input(engine.now)

    @property
    def _reading_is_over(self) -> bool:
        return self._plan.done or self._plan.fatal_error is not None

    def _add_read(self, engine: Engine, project_id: int, task_ids: list[int]) -> None:
        if self.state is not _State.ENDED:
            self._plan.add_tasks(project_id, task_ids, engine.now)
            engine.advance()

    async def _wait_for_room(self, chunk: int) -> None:
        window = chunk * self._context.batching.max_concurrency
        while max(self._plan.backlog, self._plan.store.untaken) > window:
            self._room.clear()
            await self._room.wait()

    def _on_progress(self) -> None:
        self._changed.set()
        self._room.set()
        if self._reading_is_over and self._reader is not None:
            cast("Engine", self._engine).cancel(self._reader)

    def abort(self, error: Exception) -> None:
        """End the run now; a second time does nothing.

        Args:
            error: Why; kept if it leaves a task without an answer.
        """
        engine = cast("Engine", self._engine)
        self._plan.abort(error, engine.now)
        engine.advance()

    async def finish(self) -> None:
        """End the run if it goes on, and wait until nothing of it is left."""
        self.abort(RequestError("the run was left before its end"))
        self._context.runs.discard(self)
        await self.close()

    async def close(self) -> None:
        """Wait until nothing of a run that is done is left: its source may yield some last ids."""
        if self._engine is None or self.state is _State.ENDED:
            return
        alone = await self._engine.closed()
        if not alone and not self.ended:
            logger.warning("a source of task ids or a client's hook swallows its cancellation")
        if not self._engine.is_inside:
            self.state = _State.ENDED

    def discard(self, task_id: int) -> None:
        """Leave a task alone from now on, unless its stop was sent already."""
        self._plan.discard(task_id)

    # --- what is known ------------------------------------------------------------------------

    def take(self) -> Iterator[StopOutcome]:
        """Return outcomes that are known and were not taken yet; perhaps none."""
        self._changed.clear()
        outcomes = self._plan.store.take()
        self._room.set()
        return outcomes

    @property
    def untaken(self) -> int:
        """How many outcomes are known and were not taken yet."""
        return self._plan.store.untaken

    @property
    def done(self) -> bool:
        """Whether every task has its outcome."""
        return self._plan.done

    @property
    def ended(self) -> bool:
        """Whether nothing of it is left."""
        return self.state is _State.ENDED

    async def changed(self) -> None:
        """Wait until there may be something new."""
        await self._changed.wait()

    async def wait(self) -> None:
        """Wait for the end without taking outcomes one by one."""
        self._plan.store.mute()
        while not self._plan.done:
            self._room.set()
            self._changed.clear()
            await self._changed.wait()
        await self.close()
        self.raise_if_incomplete()

    def raise_if_incomplete(self) -> None:
        """Raise StopIncompleteError if the server did not answer for every task."""
        if not self._plan.errors:
            return
        counts = self.counts
        total = sum(counts.values())
        unanswered = sum(counts[result] for result in UNANSWERED)
        raise StopIncompleteError(
            f"{unanswered} of {total} task{'s' * (total != 1)} without an answer",
            self._plan.errors,
            self.report,
        )

    @property
    def report(self) -> StopReport:
        """What is known now of every task that was asked for so far."""
        if self._report is not None:
            return self._report
        now = self._engine.now if self._engine is not None else 0.0
        report = StopReport(self._plan.snapshot(), stats=self._plan.stats(now))
        if self.ended:
            self._report = report
        return report

    @property
    def counts(self) -> Mapping[StopResult, int]:
        """How many tasks have each result now; every `StopResult` is a key."""
        return MappingProxyType(self._plan.counts)

    @property
    def progress(self) -> Progress:
        """How many tasks there are, and how many have their outcome."""
        store = self._plan.store
        return Progress(None if self._more_may_come else store.total, store.done)

    @property
    def _more_may_come(self) -> bool:
        return not self._plan.done and self._plan.listing


class StopRun(AsyncIterator[StopOutcome]):
    """A bulk stop under way; `ControlSession.stopping` returns one.

    `async with` starts it, and cancels at its end what is left of it. `async for` yields each
    task's outcome once, as soon as it is known, and raises `StopIncompleteError` after the last
    one if the server did not answer for every task.
    """

    def __init__(self, run: BulkRun) -> None:
        self._run = run
        self._batch: Iterator[StopOutcome] = iter(())
        self._taken_by: str | None = None

    def __repr__(self) -> str:
        total, done = self.progress.total, self.progress.done
        of = "an unknown number of" if total is None else str(total)
        return f"<StopRun {self._run.state.value}: {done} of {of} tasks done>"

    async def __aenter__(self) -> Self:
        await self._run.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._run.finish()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StopOutcome:
        """Return the next outcome.

        Raises:
            StopIncompleteError: There are no more, and the server did not answer for every task.
        """
        self._take_by("async for")
        while (outcome := next(self._batch, None)) is None:
            if self._run.untaken:
                self._batch = self._run.take()
                # A loop body that never awaits must not keep others from their turn.
                await asyncio.sleep(0)
            elif self._run.ended:
                self._run.raise_if_incomplete()
                raise StopAsyncIteration
            elif self._run.done:
                await self._run.close()
            else:
                self._run.take()
                await self._run.changed()
        return outcome

    async def wait(self) -> None:
        """Wait for the end without taking the outcomes one by one.

        Raises:
            StopIncompleteError: The server did not answer for every task.
            RuntimeError: The outcomes are taken with `async for`.
        """
        self._take_by("wait()")
        await self._run.wait()

    def _take_by(self, way: str) -> None:
        if self._run.state is _State.NEW:
            raise RuntimeError("a StopRun starts with `async with`")
        if self._taken_by not in (None, way):
            raise RuntimeError(f"the outcomes of this run are taken with {self._taken_by}")
        self._taken_by = way

    @property
    def report(self) -> StopReport:
        """What is known now of every task that was asked for so far.

        A task whose stop is in flight is UNCONFIRMED, one that waits for it NOT_SENT.
        """
        return self._run.report

    @property
    def counts(self) -> Mapping[StopResult, int]:
        """How many tasks have each result now; every `StopResult` is a key."""
        return self._run.counts

    @property
    def progress(self) -> Progress:
        """How many tasks there are (None while more may come), and how many are done."""
        return self._run.progress
