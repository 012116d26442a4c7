"""Single stops that are asked for at about the same time, gathered into one run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from attrs import define, field

from ctrlapi_async.bulk import Options, Targets, until_gone
from ctrlapi_async.errors import RequestError, StopIncompleteError, words_of
from ctrlapi_async.models import StopOutcome, StopResult
from ctrlapi_async.report import StopReport

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.bulk import StopRun

Caller = asyncio.Future[StopOutcome]


class _Wish(NamedTuple):
    """A task to be stopped, and who waits for that."""

    project_id: int
    callers: list[Caller]


@define(eq=False)
class _Batch:
    """What goes into one run; `run` is None until it leaves."""

    wishes: dict[int, _Wish] = field(factory=dict)
    run: StopRun | None = None

    def targets(self) -> Targets:
        """Give the tasks that somebody still wants stopped."""
        listed: dict[int, list[int]] = {}
        for task_id, wish in self.wishes.items():
            if wish.callers:
                listed.setdefault(wish.project_id, []).append(task_id)
        return Targets(listed=listed)

    def tell(self, task_id: int, news: StopOutcome | Exception) -> None:
        """Give the callers of one task what they wait for, those that still do."""
        for caller in self.wishes[task_id].callers:
            if caller.done():
                continue
            if isinstance(news, Exception):
                caller.set_exception(news)
            else:
                caller.set_result(news)


class Gatherer:
    """Turns concurrent `stop` calls into runs; each caller gets its own outcome.

    Args:
        start: Makes a run.
        linger: Seconds that a batch waits for more callers; 0: those of one turn of the loop.
    """

    def __init__(self, start: Callable[[Targets, Options], StopRun], linger: float) -> None:
        self._start = start
        self._linger = linger
        self._batch: _Batch | None = None
        self._timer: asyncio.Handle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def stop(self, project_id: int, task_id: int) -> StopOutcome:
        """Stop one task with the next batch; cancelling this touches no other caller."""
        batch = self._batch
        if batch is not None and batch.wishes.get(task_id, (project_id,))[0] != project_id:
            self._leave()  # one report cannot hold a task of two projects
            batch = None
        loop = asyncio.get_running_loop()
        if batch is None:
            batch = self._batch = _Batch()
            self._timer = loop.call_later(self._linger, self._leave)
        caller: Caller = loop.create_future()
        callers = batch.wishes.setdefault(task_id, _Wish(project_id, [])).callers
        callers.append(caller)
        try:
            return await caller
        except asyncio.CancelledError:
            callers.remove(caller)
            if not callers and batch.run is not None:
                batch.run.forget(task_id)
            raise

    def _leave(self) -> None:
        """Send the batch on its way."""
        if self._batch is not None and self._timer is not None:
            self._timer.cancel()
            task = asyncio.get_running_loop().create_task(self._serve(self._batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._batch = None

    async def _serve(self, batch: _Batch) -> None:
        """Run a batch, and tell each caller what became of its task."""
        unanswered: list[StopOutcome] = []
        try:
            batch.run = self._start(batch.targets(), Options(sized=False))
            async with batch.run as run:
                async for outcome in run:
                    if outcome.result in (StopResult.NOT_SENT, StopResult.UNCONFIRMED):
                        unanswered.append(outcome)  # the reason comes at the end
                    else:
                        batch.tell(outcome.task_id, outcome)
        except StopIncompleteError as error:
            for outcome in unanswered:
                batch.tell(outcome.task_id, _without_answer(outcome, error))
        except asyncio.CancelledError:
            for wish in batch.wishes.values():
                for caller in wish.callers:
                    caller.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the callers' to see
            for task_id in batch.wishes:
                batch.tell(task_id, error)

    async def close(self) -> None:
        """End what waits for its batch, and wait for the callers of ended runs to be told."""
        if self._batch is not None and self._timer is not None:
            self._timer.cancel()
            for task_id in self._batch.wishes:
                self._batch.tell(task_id, RequestError("the session was closed", sent=False))
            self._batch = None
        await until_gone(self._tasks)


def _without_answer(outcome: StopOutcome, error: StopIncompleteError) -> StopIncompleteError:
    """Give the part of a run's error that is about one task."""
    causes = [cause for cause in error.exceptions if words_of(cause) == outcome.error]
    return StopIncompleteError(
        f"task {outcome.task_id} is without an answer",
        causes or error.exceptions,
        StopReport.of([outcome], error.report.stats),
    )
