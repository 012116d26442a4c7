"""Single stops that are asked for at about the same time, gathered into one run."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from attrs import define, field

from ctrlapi_async._bulk.engine import until_done
from ctrlapi_async._bulk.run import StopRun
from ctrlapi_async._bulk.source import Targets
from ctrlapi_async._errors import RequestError, StopIncompleteError, text_of
from ctrlapi_async._models import UNANSWERED, StopOutcome, StopResult, StopStats
from ctrlapi_async._reports import StopReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ctrlapi_async._bulk.run import BulkRun

Caller = asyncio.Future[StopOutcome]


class _Wanted(NamedTuple):
    """A task to be stopped, and who waits for that."""

    project_id: int
    callers: list[Caller]


@define(eq=False)
class _Batch:
    """What goes into one run, which is None until it begins; `timer` says when it leaves."""

    tasks: dict[int, _Wanted] = field(factory=dict)
    run: BulkRun | None = None
    timer: asyncio.TimerHandle = field(init=False)

    def takes(self, project_id: int, task_id: int) -> bool:
        """Return whether a task can go along: one report cannot hold it for two projects."""
        return self.tasks.get(task_id, (project_id,))[0] == project_id

    def targets(self) -> Targets:
        """Return the tasks that somebody still wants stopped."""
        listed: dict[int, list[int]] = {}
        for task_id, (project_id, callers) in self.tasks.items():
            if callers:
                listed.setdefault(project_id, []).append(task_id)
        return Targets(listed=listed)

    def answer(self, outcome: StopOutcome) -> None:
        """Hand a task's outcome to those of its callers that still wait for it."""
        for caller in self._waiting_for(outcome.task_id):
            caller.set_result(outcome)

    def answer_rest(self, error: BaseException | None) -> None:
        """End the waiting of all other callers with an error that tells what is known."""
        report = StopReport() if self.run is None else self.run.report
        for task_id, (project_id, _) in self.tasks.items():
            for caller in self._waiting_for(task_id):
                if not isinstance(error, Exception):
                    caller.cancel()  # the loop itself is about to end
                    continue
                causes = error.exceptions if isinstance(error, StopIncompleteError) else [error]
                nothing = StopOutcome(
                    task_id, project_id, StopResult.NOT_SENT, None, text_of(error)
                )
                # Each has an error of its own, since raising it adds to its traceback.
                outcome = report.get(task_id, nothing)
                caller.set_exception(_incomplete(outcome, causes, report.stats))

    def _waiting_for(self, task_id: int) -> list[Caller]:
        return [caller for caller in self.tasks[task_id].callers if not caller.done()]


class Batcher:
    """Turns concurrent single stops into runs; each caller gets its own outcome.

    Args:
        make_run: Returns a run for some targets.
        linger: Seconds that a batch waits for more callers; 0: those of one turn of the loop.
    """

    def __init__(self, make_run: Callable[[Targets], BulkRun], linger: float) -> None:
        self._make_run = make_run
        self._linger = linger
        self._waiting: list[_Batch] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def stop(self, project_id: int, task_id: int) -> StopOutcome:
        """Stop one task with the next batch; cancelling this touches no other caller."""
        loop = asyncio.get_running_loop()
        batch = next((one for one in self._waiting if one.takes(project_id, task_id)), None)
        if batch is None:
            batch = _Batch()
            batch.timer = loop.call_later(self._linger, self._leave, batch)
            self._waiting.append(batch)
        caller: Caller = loop.create_future()
        callers = batch.tasks.setdefault(task_id, _Wanted(project_id, [])).callers
        callers.append(caller)
        try:
            return await caller
        except asyncio.CancelledError:
            callers.remove(caller)
            if not callers and batch.run is not None:
                batch.run.discard(task_id)
            raise

    def _leave(self, batch: _Batch) -> None:
        """Send a batch on its way."""
        self._waiting.remove(batch)
        task = asyncio.get_running_loop().create_task(self._serve(batch))
        self._tasks.add(task)
        task.add_done_callback(partial(self._served, batch))

    async def _serve(self, batch: _Batch) -> None:
        """Run a batch, and answer those callers whose task has an answer."""
        if self._closed:
            raise closed_error()
        batch.run = self._make_run(batch.targets())
        async with StopRun(batch.run) as run:
            async for outcome in run:
                if outcome.result not in UNANSWERED:  # else the reason comes at the end
                    batch.answer(outcome)

    def _served(self, batch: _Batch, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        cancelled = RequestError("the batch was cancelled by other code")
        batch.answer_rest(cancelled if task.cancelled() else task.exception())

    async def close(self) -> None:
        """Turn away what has not begun, and wait until all callers have an answer."""
        self._closed = True
        for batch in self._waiting:
            batch.timer.cancel()
            batch.answer_rest(closed_error())
        self._waiting.clear()
        await until_done(self._tasks)


def closed_error() -> RequestError:
    """Return the error for what a closed session does not do any more."""
    return RequestError("the session was closed", sent=False)


def _incomplete(
    outcome: StopOutcome, errors: Sequence[Exception], stats: StopStats
) -> StopIncompleteError:
    """Return the part of a run's error that is about one task."""
    text = f"{outcome.error}; "  # after a lost stop it goes on with what was heard of it later
    causes = [cause for cause in errors if text.startswith(f"{text_of(cause)}; ")]
    return StopIncompleteError(
        f"task {outcome.task_id} has no answer", causes or errors, StopReport.of([outcome], stats)
    )
