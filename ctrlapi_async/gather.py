"""Single stops that are asked for at about the same time, gathered into one run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from attrs import define, field

from ctrlapi_async.bulk import Options, Targets, until_gone
from ctrlapi_async.errors import RequestError, StopIncompleteError, words_of
from ctrlapi_async.models import StopOutcome, StopResult, StopStats
from ctrlapi_async.report import StopReport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ctrlapi_async.bulk import StopRun

Caller = asyncio.Future[StopOutcome]


class _Wish(NamedTuple):
    """A task to be stopped, and who waits for that."""

    project_id: int
    callers: list[Caller]


@define(eq=False)
class _Batch:
    """What goes into one run, which is None until it begins; `timer` says when it leaves."""

    wishes: dict[int, _Wish] = field(factory=dict)
    run: StopRun | None = None
    timer: asyncio.TimerHandle = field(init=False)

    def takes(self, project_id: int, task_id: int) -> bool:
        """Tell whether a task can go along: one report cannot hold it for two projects."""
        return self.wishes.get(task_id, (project_id,))[0] == project_id

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

    def cancel(self) -> None:
        """Cancel whoever still waits."""
        for wish in self.wishes.values():
            for caller in wish.callers:
                caller.cancel()


class Gatherer:
    """Turns concurrent `stop` calls into runs; each caller gets its own outcome.

    Args:
        start: Makes a run.
        linger: Seconds that a batch waits for more callers; 0: those of one turn of the loop.
    """

    def __init__(self, start: Callable[[Targets, Options], StopRun], linger: float) -> None:
        self._start = start
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
        callers = batch.wishes.setdefault(task_id, _Wish(project_id, [])).callers
        callers.append(caller)
        try:
            return await caller
        except asyncio.CancelledError:
            callers.remove(caller)
            if not callers and batch.run is not None:
                batch.run.forget(task_id)
            raise

    def _leave(self, batch: _Batch) -> None:
        """Send a batch on its way."""
        self._waiting.remove(batch)
        task = asyncio.get_running_loop().create_task(self._serve(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, batch: _Batch) -> None:
        """Run a batch, and tell each caller what became of its task."""
        if self._closed:
            self._turn_away(batch)
            return
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
            stats = error.report.stats
            for outcome in unanswered:
                batch.tell(outcome.task_id, _without_answer(outcome, error.exceptions, stats))
        except asyncio.CancelledError:
            batch.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the callers' to see
            for task_id in batch.wishes:
                batch.tell(task_id, error)

    async def close(self) -> None:
        """End what has not begun, and wait for all callers to be told."""
        self._closed = True
        for batch in self._waiting:
            batch.timer.cancel()
            self._turn_away(batch)
        self._waiting.clear()
        await until_gone(self._tasks)

    @staticmethod
    def _turn_away(batch: _Batch) -> None:
        """Tell the callers of a batch that was never sent."""
        error = RequestError("the session was closed", sent=False)
        for task_id, wish in batch.wishes.items():
            outcome = StopOutcome(
                task_id, wish.project_id, StopResult.NOT_SENT, error=words_of(error)
            )
            batch.tell(task_id, _without_answer(outcome, [error], StopStats()))


def _without_answer(
    outcome: StopOutcome, errors: Sequence[Exception], stats: StopStats
) -> StopIncompleteError:
    """Give the part of a run's error that is about one task."""
    words = f"{outcome.error}; "  # of a lost stop they go on with what was heard of it later
    causes = [cause for cause in errors if words.startswith(f"{words_of(cause)}; ")]
    return StopIncompleteError(
        f"task {outcome.task_id} is without an answer",
        causes or errors,
        StopReport.of([outcome], stats),
    )
