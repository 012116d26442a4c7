# mypy: disable-error-code="no-untyped-call, import-not-found"
# distributed annotates few of its functions, and is an extra.
"""The bulk stop spread over the workers of a Dask cluster; needs the extra `dask`.

The task ids of each server are cut into shards, about one a worker, and each shard is an ordinary
run in a session of its own. Dask starts a task again, unasked, when the worker under it dies. A
shard that has begun refuses to run again (an event on the scheduler tells), since its stops may
have taken effect. It is submitted anew as a shard with a *second look*: what that finds Canceled
counts as stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import reduce
from itertools import cycle, islice
from operator import or_
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, TypeVar
from uuid import uuid4

from attrs import evolve, field, frozen

from ctrlapi_async._bulk.source import targets_across
from ctrlapi_async._errors import CtrlApiError, RequestError, StopIncompleteError, text_of
from ctrlapi_async._models import UNANSWERED, StopOutcome, StopResult, TaskStatus, expect_ids
from ctrlapi_async._redaction import Redactor
from ctrlapi_async._reports import StopReport

try:
    from distributed import CancelledError, Client, Event, KilledWorker, get_client
    from distributed.protocol import pickle
except ImportError as error:
    raise ImportError(
        "ctrlapi_async.distributed needs distributed, which the extra brings: "
        f"pip install 'ctrlapi-async[dask]' ({error})"
    ) from error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence

    from ctrlapi_async._models import TaskIds
    from ctrlapi_async._session import ControlSession

__all__ = ["ServersIncompleteError", "stop_running_on"]

S = TypeVar("S", bound=Hashable)

Projects = dict[int, list[int]]
"""Distinct task ids by project."""

SHARD_MIN: Final = 1_000
SHARD_MAX: Final = 50_000
"""Task ids a shard: fewer are not worth a session, more take too long to check again."""

SUBMISSIONS: Final = 3
"""How often a shard is submitted at most, if workers keep dying under it."""

WATCH_INTERVAL: Final = 0.5
"""Seconds after which a running shard looks again whether it is wanted: Dask does not tell it."""

_ENDED: Final = (StopResult.NOT_RUNNING, StopResult.UNAVAILABLE)
"""The results of tasks that had ended, whoever stopped them."""

_NOT_BY_STOP: Final = (TaskStatus.COMPLETED, TaskStatus.REJECTED, TaskStatus.STALLED)


class ServersIncompleteError(CtrlApiError, ExceptionGroup[StopIncompleteError]):
    """Some servers did not answer for every task; groups a `StopIncompleteError` for each.

    As for that one, `except*` reaches the causes, and `except` catches the error itself.

    Attributes:
        reports: The `StopReport` of every server, those that did answer included.
    """

    reports: Mapping[Any, StopReport]

    def __new__(
        cls, message: str, errors: Sequence[Exception], reports: Mapping[Any, StopReport]
    ) -> Self:
        """Make the group; an ExceptionGroup takes its parts here."""
        group = super().__new__(cls, message, errors)  # type: ignore[arg-type]  # see derive
        group.reports = reports
        return group

    def __init__(self, message: str, errors: Sequence[Exception], _: object) -> None:
        # The keys of the reports may hold credentials, so they stay out of the repr.
        Exception.__init__(self, message, errors)

    def _text(self) -> str:
        return f"{self.message}: {self.exceptions[0]}"

    def derive(self, excs: Sequence[Exception]) -> ServersIncompleteError:  # type: ignore[override]
        """Return a group of some of the errors with the same reports (for `except*`, `split`)."""
        return ServersIncompleteError(self.message, excs, self.reports)

    def __reduce__(self) -> tuple[Any, ...]:
        return ServersIncompleteError, (self.message, self.exceptions, self.reports)


async def stop_running_on(
    client: Client,
    targets: Mapping[S, Mapping[int, TaskIds]],
    *,
    session_factory: Callable[[S], ControlSession],
) -> dict[S, StopReport]:
    """Stop the Running ones among tasks of many servers, on the workers of a Dask cluster.

    Restart chains are followed, as `ControlSession.stop_running_across` does. A server has at
    most as many sessions at a time as there are workers. A task that a worker may have stopped
    before it died, and that is found Canceled, is STOP_SENT, with an `error` that says so. When
    this call is cancelled, running shards notice within half a second.

    Args:
        client: A client made with `asynchronous=True`, in its event loop.
        targets: For each server and project id an int or ints. A server is whatever
            `session_factory` makes a session of, its base URL for example. `ALL_ACTIVE` is
            refused: it would not name the tasks that a worker had stopped before it died.
        session_factory: Returns a session, not yet entered, for a server; called on a worker.

    Returns:
        A report for each server, in the order of `targets`; its tasks in the order asked for.

    Raises:
        ServersIncompleteError: Some servers did not answer for every task; carries all reports.
        TypeError: An argument is of the wrong type, or cannot be pickled.
        ValueError: An id is out of range, or a server's task is asked for in two projects.
    """
    if not isinstance(client, Client) or not client.asynchronous:
        raise TypeError(f"client must be an asynchronous Client of this loop, not {client!r:.80}")
    wanted = _expect_targets(targets)
    if not callable(session_factory):
        raise TypeError(f"session_factory must be callable, not {_shown(session_factory)}")
    try:
        pickle.dumps((list(wanted), session_factory))
    except Exception as error:  # noqa: BLE001 - whatever pickling meets
        raise TypeError(f"servers and session_factory must pickle: {_shown(error)}") from None

    workers = list(await client.nthreads()) or [None]  # None: the first one that comes
    next_worker = cycle(workers)
    results: dict[S, dict[int, ShardResult]] = {}
    async with asyncio.TaskGroup() as group:
        for server, projects in wanted.items():
            parts = split(projects, len(workers))
            shards = enumerate([Shard(server, part, session_factory) for part in parts])
            results[server] = {}
            for worker in islice(next_worker, min(len(workers), len(parts))):
                group.create_task(_work_through(client, worker, shards, results[server]))
    return _merged(results)


class ShardResult(NamedTuple):
    """What became of a shard: a report, and the errors that left tasks without an answer."""

    report: StopReport
    errors: tuple[Exception, ...] = ()


@frozen
class Shard:
    """Some tasks of one server. Workers log it, so its repr shows nothing that may be secret.

    Args:
        server: The server.
        projects: The tasks.
        session_factory: Returns a session for the server.
        name: Names the shard's events on the scheduler; each submission has its own.
        second_look: Whether a worker that died may have sent stops for these tasks.
    """

    server: Any = field(repr=False)
    projects: Projects = field(repr=False)
    session_factory: Callable[[Any], ControlSession] = field(repr=False)
    name: str = ""
    second_look: bool = False

    def without_answer(self, result: StopResult, error: Exception) -> ShardResult:
        """Return a result that is the same for all tasks, because of an error."""
        text = text_of(error) or type(error).__name__
        outcomes = (
            StopOutcome(task_id, project_id, result, None, text)
            for project_id, task_ids in self.projects.items()
            for task_id in task_ids
        )
        return ShardResult(StopReport.of(outcomes), (error,))


def split(projects: Projects, workers: int) -> list[Projects]:
    """Cut a server's tasks, in order, into parts of the same size that keep all workers busy."""
    total = sum(map(len, projects.values()))
    rounds = -(-total // (workers * SHARD_MAX))
    size = -(-total // max(1, min(workers * rounds, -(-total // SHARD_MIN))))
    parts: list[Projects] = []
    room = 0
    for project_id, task_ids in projects.items():
        start = 0
        while start < len(task_ids):
            if not room:
                parts.append({})
                room = size
            piece = parts[-1][project_id] = task_ids[start : start + room]
            start += len(piece)
            room -= len(piece)
    return parts


def went_on(report: StopReport) -> Projects:
    """Return tasks whose restart chain has ended otherwise than Canceled, with another task.

    A worker that died may have stopped a task of the chain before the chain went on.
    """
    projects: Projects = {}
    for task_id in report.ids(*_ENDED):
        outcome = report[task_id]
        if outcome.restarted_as is not None and outcome.status in _NOT_BY_STOP:
            projects.setdefault(outcome.project_id, []).append(task_id)
    return projects


def after_second_look(report: StopReport, own: StopReport) -> StopReport:
    """Return the report of a shard that a worker may have begun before it died.

    Args:
        report: What was found and done this time.
        own: What was found of the tasks of `went_on` themselves, their restarts left aside.
    """

    def reworded(outcome: StopOutcome) -> StopOutcome:
        if outcome.result is StopResult.NOT_SENT:
            text = f"a worker that died may have stopped it; {outcome.error}"
            return evolve(outcome, result=StopResult.UNCONFIRMED, error=text)
        before = own.get(outcome.task_id)
        if before is not None and before.status is TaskStatus.CANCELED:
            outcome = evolve(before, restarted_as=None)
        if outcome.result in _ENDED and outcome.status is TaskStatus.CANCELED:
            text = "found Canceled after a worker died that may have stopped it"
            return evolve(outcome, result=StopResult.STOP_SENT, error=text)
        return outcome

    return StopReport.of(map(reworded, report.values()), report.stats | own.stats)


def _merged(results: Mapping[S, Mapping[int, ShardResult]]) -> dict[S, StopReport]:
    """Return a report for each server, or raise ServersIncompleteError."""
    reports: dict[S, StopReport] = {}
    incomplete = []
    for server, by_index in results.items():
        ordered = [result for _, result in sorted(by_index.items())]
        report = reports[server] = reduce(or_, (one.report for one in ordered), StopReport())
        if errors := [error for one in ordered for error in one.errors]:
            count = len(report.ids(*UNANSWERED))
            text = f"{_shown(server)}: {count} of {len(report)} tasks without an answer"
            incomplete.append(StopIncompleteError(text, errors, report))
    if incomplete:
        text = f"{len(incomplete)} of {len(reports)} servers did not answer for every task"
        raise ServersIncompleteError(text, incomplete, reports)
    return reports


def _expect_targets(targets: Any) -> dict[Any, Projects]:  # noqa: ANN401 - checked here
    """Return the targets with lists of distinct ids."""
    if not isinstance(targets, Mapping):
        raise TypeError(f"targets must map servers to projects, not {_shown(targets)}")
    wanted: dict[Any, Projects] = {}
    for server, projects in targets.items():
        try:
            wanted[server] = _expect_projects(projects)
        except TypeError as error:
            raise TypeError(f"{_shown(server)}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{_shown(server)}: {error}") from error
    return wanted


def _expect_projects(projects: Any) -> Projects:  # noqa: ANN401 - checked here
    targets = targets_across(projects)
    if targets.all_active:
        raise TypeError(f"project {targets.all_active[0]}: task_ids must be ints, not ALL_ACTIVE")
    seen: set[int] = set()
    distinct: Projects = {}
    for project_id, task_ids in targets.listed.items():
        ids = distinct[project_id] = list(dict.fromkeys(expect_ids(list(task_ids))))
        if twice := seen.intersection(ids):
            raise ValueError(f"task {min(twice)} is asked for in two projects")
        seen.update(ids)
    return distinct


def _shown(value: object) -> str:
    """Return the repr of a server, for example, without the credentials that a URL may hold."""
    return Redactor().redact(repr(value))[:200]


async def _work_through(
    client: Client,
    worker: str | None,
    shards: Iterator[tuple[int, Shard]],
    results: dict[int, ShardResult],
) -> None:
    """Have one worker complete one shard after another, from an iterator that others share."""
    for index, shard in shards:
        results[index] = await _complete(client, worker, shard)


async def _complete(client: Client, worker: str | None, shard: Shard) -> ShardResult:
    """Return the result of a shard, submitting it anew if its worker dies; raise no error."""
    begun = False
    error: Exception | None = None
    try:
        for where in (worker, *[None] * (SUBMISSIONS - 1)):
            one = evolve(shard, name=f"ctrlapi-{uuid4().hex}", second_look=begun)
            async with _events(client, one.name) as has_begun:
                before, begun = begun, True  # unless the event tells otherwise
                answer = await _submit(client, where, one)
                if isinstance(answer, ShardResult):
                    return answer
                begun = before or await has_begun.is_set()
            if answer is not None:
                error = answer
                break
    except Exception as caught:  # noqa: BLE001 - the scheduler cannot be reached
        error = caught
    error = error or RequestError(f"{SUBMISSIONS} workers died under a shard", sent=begun)
    return shard.without_answer(StopResult.UNCONFIRMED if begun else StopResult.NOT_SENT, error)


async def _submit(
    client: Client, worker: str | None, shard: Shard
) -> ShardResult | Exception | None:
    """Submit a shard once; return its result, what it raised, or None if it was lost."""
    others = worker is not None
    future = client.submit(
        run_shard, shard, workers=worker, allow_other_workers=others, pure=False, retries=0
    )
    try:
        result: ShardResult | None = await future
    except asyncio.CancelledError:
        with suppress(Exception):  # with the scheduler gone there is nothing to cancel
            await client.cancel([future])
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return None  # it was the shard that was cancelled: its worker closed
    except (CancelledError, KilledWorker):
        return None
    except Exception as error:  # noqa: BLE001 - whatever the session factory raised, for example
        return error
    finally:
        future.release()
    return result


@asynccontextmanager
async def _events(client: Client, name: str) -> AsyncIterator[Event]:
    """Mark a shard as wanted on the scheduler, and yield the event that says that it began."""
    wanted, begun = Event(f"{name}-wanted", client), Event(f"{name}-begun", client)
    await wanted.set()
    try:
        yield begun
    finally:
        with suppress(Exception):  # the scheduler is gone, and its events with it
            await wanted.clear()
            await begun.clear()


async def run_shard(shard: Shard) -> ShardResult | None:
    """Return the result of a shard; None if it has begun before, or is no longer wanted."""
    client = await get_client()
    wanted, begun = Event(f"{shard.name}-wanted", client), Event(f"{shard.name}-begun", client)
    async with shard.session_factory(shard.server) as session:
        if await begun.is_set() or not await wanted.is_set():
            return None
        await begun.set()
        run = asyncio.create_task(_stop(session, shard))
        try:
            while not (await asyncio.wait([run], timeout=WATCH_INTERVAL))[0]:
                if not await wanted.is_set():
                    return None
            return run.result()
        finally:
            run.cancel()
            await asyncio.wait([run])


async def _stop(session: ControlSession, shard: Shard) -> ShardResult:
    report, errors = await _ended(session.stop_running_across(shard.projects))
    if not shard.second_look:
        return ShardResult(report, errors)
    look = session.stop_running_across(went_on(report), dry_run=True, follow_restarts=False)
    own, _ = await _ended(look)  # if it fails, the outcomes stay as they are
    return ShardResult(after_second_look(report, own), errors)


async def _ended(run: Coroutine[Any, Any, StopReport]) -> ShardResult:
    try:
        return ShardResult(await run)
    except StopIncompleteError as error:
        return ShardResult(error.report, error.exceptions)
