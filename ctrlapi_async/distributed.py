# mypy: disable-error-code="no-untyped-call, import-not-found"
# distributed annotates few of its functions, and is an extra.
"""The bulk stop spread over the workers of a Dask cluster; needs the extra `dask`.

The ids of each server are cut into shards, about one a worker, and each shard is an ordinary run
on a session of its own. Dask starts a task once more, unasked, when the worker under it dies; a
shard that began already refuses to (a flag on the scheduler tells), for its stops may have taken
effect. It is submitted anew, to be checked again: what is then found Canceled counts as stopped.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Hashable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import reduce
from itertools import cycle, islice
from operator import or_
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from uuid import uuid4

from attrs import evolve, field, frozen

from ctrlapi_async._errors import CtrlApiError, RequestError, StopIncompleteError, text_of
from ctrlapi_async._models import StopOutcome, StopResult, TaskStatus, expect_ids, expect_int
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

    from ctrlapi_async._session import ControlSession

S = TypeVar("S", bound=Hashable)

Projects = Mapping[int, list[int]]
Ending = tuple[StopReport, tuple[Exception, ...]]

SHARD_MIN: Final = 1_000
SHARD_MAX: Final = 50_000
"""Task ids a shard: fewer are not worth one of their own, more take too long to check again."""

RUNS: Final = 3
"""How often a shard is submitted at most, if workers keep dying under it."""

WATCH: Final = 0.5
"""Seconds between a running shard's looks whether it is still wanted: Dask would let it run on."""


class ServersIncompleteError(CtrlApiError, ExceptionGroup[StopIncompleteError]):
    """Not every server answered for every task; groups a `StopIncompleteError` for each such one.

    `except*` reaches the causes: `except* ProjectNotFoundError`, say.

    Attributes:
        reports: The `StopReport` of every server, those that did answer included.
    """

    reports: Mapping[Any, StopReport]

    def __new__(
        cls, message: str, errors: Sequence[Exception], reports: Mapping[Any, StopReport]
    ) -> Self:
        """Make the group; as an ExceptionGroup's, its parts are set here."""
        group = super().__new__(cls, message, errors)  # type: ignore[arg-type]  # see derive
        group.reports = reports
        return group

    def __init__(self, message: str, errors: Sequence[Exception], _: object) -> None:
        # The reports' keys, which may hold credentials, stay out of the repr.
        Exception.__init__(self, message, errors)

    def derive(self, excs: Sequence[Exception]) -> ServersIncompleteError:  # type: ignore[override]
        """Give a group of some of the errors with the same reports (for `except*`, `split`)."""
        return ServersIncompleteError(self.message, excs, self.reports)

    def __reduce__(self) -> tuple[Any, ...]:
        return ServersIncompleteError, (self.message, self.exceptions, self.reports)


async def stop_running_on(
    client: Client,
    targets: Mapping[S, Mapping[int, int | Iterable[int]]],
    *,
    session_factory: Callable[[S], ControlSession],
) -> dict[S, StopReport]:
    """Stop those of many servers' tasks that are Running, on the workers of a Dask cluster.

    A server is sent to by at most as many sessions at a time as there are workers. A task that
    may have been stopped by a worker that died, and is found Canceled, is STOP_SENT with words
    that say so. When this is cancelled, shards under way notice within half a second.

    Args:
        client: A client made with `asynchronous=True`, in its event loop.
        targets: For each server and project id an int or ints. A server is what
            `session_factory` makes a session of, its base URL say. There is no `ALL_ACTIVE`
            here: it would not name the tasks that a dead worker had stopped.
        session_factory: Makes the session, not yet entered, with a server; called on a worker.

    Returns:
        A report for each server, in the order of `targets`; its tasks in the order asked for.

    Raises:
        ServersIncompleteError: Not every server answered for every task; carries all reports.
        TypeError: An argument is of the wrong type, or does not pickle.
        ValueError: An id is out of range, or a server's task is asked for in two projects.
    """
    if not isinstance(client, Client) or not client.asynchronous:
        raise TypeError(f"client must be an asynchronous Client of this loop, not {client!r}")
    wanted = _expect_targets(targets)
    if not callable(session_factory):
        raise TypeError(f"session_factory must be callable, not {_shown(session_factory)}")
    try:
        pickle.dumps((list(wanted), session_factory))
    except Exception as error:  # noqa: BLE001 - whatever pickling meets
        raise TypeError(f"servers and session_factory must pickle: {_shown(error)}") from None

    workers = list(await client.nthreads()) or [None]  # None: the first that comes
    turns = cycle(workers)
    endings: dict[S, dict[int, Ending]] = {}
    async with asyncio.TaskGroup() as lanes:
        for server, projects in wanted.items():
            parts = split(projects, len(workers))
            queue = enumerate([Shard(server, part, session_factory) for part in parts])
            endings[server] = {}
            for worker in islice(turns, min(len(workers), len(parts))):
                lanes.create_task(_drain(client, worker, queue, endings[server]))
    return _concluded(endings)


# --- pure -------------------------------------------------------------------------------------


@frozen
class Shard:
    """Some tasks of one server. Workers log what failed, so nothing that may be secret shows."""

    server: Any = field(repr=False)
    projects: Projects = field(repr=False)
    session_factory: Callable[[Any], ControlSession] = field(repr=False)
    name: str = ""
    again: bool = False

    def unanswered(self, result: StopResult, error: Exception) -> Ending:
        """Give all tasks one result, because of an error."""
        words = text_of(error) or type(error).__name__
        outcomes = (
            StopOutcome(task_id, project_id, result, None, words)
            for project_id, task_ids in self.projects.items()
            for task_id in task_ids
        )
        return StopReport.of(outcomes), (error,)


def split(projects: Projects, workers: int) -> list[dict[int, list[int]]]:
    """Cut a server's ids, in order, into parts that are alike and keep all workers busy."""
    total = sum(map(len, projects.values()))
    rounds = -(-total // (workers * SHARD_MAX))
    size = -(-total // max(1, min(workers * rounds, -(-total // SHARD_MIN))))
    parts: list[dict[int, list[int]]] = []
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


def settled(report: StopReport, late: StopReport) -> StopReport:
    """Reword the report of a shard that was checked again after the worker under it died.

    Args:
        report: What the second run found.
        late: What a check found afterwards of its UNAVAILABLE: they may have ended by a stop
            of the dead worker's that took a while.
    """

    def reworded(outcome: StopOutcome) -> StopOutcome:
        last = late.get(outcome.task_id, outcome)
        status = last.status or outcome.status
        if StopResult.NOT_SENT in (outcome.result, last.result):
            words = f"a worker that died may have stopped it; {last.error}"
            return evolve(outcome, result=StopResult.UNCONFIRMED, status=status, error=words)
        ended = (StopResult.NOT_RUNNING, StopResult.UNAVAILABLE)
        if outcome.result in ended and status is TaskStatus.CANCELED:
            words = "found Canceled after a worker died that may have stopped it"
            return evolve(outcome, result=StopResult.STOP_SENT, status=status, error=words)
        return evolve(outcome, status=status)

    return StopReport.of(map(reworded, report.values()), report.stats | late.stats)


def _concluded(endings: Mapping[S, Mapping[int, Ending]]) -> dict[S, StopReport]:
    reports: dict[S, StopReport] = {}
    incomplete = []
    for server, parts in endings.items():
        ordered = [ending for _, ending in sorted(parts.items())]
        report = reports[server] = reduce(or_, (part for part, _ in ordered), StopReport())
        if errors := [error for _, group in ordered for error in group]:
            count = len(report.ids(StopResult.NOT_SENT, StopResult.UNCONFIRMED))
            words = f"{_shown(server)}: {count} of {len(report)} tasks without an answer"
            incomplete.append(StopIncompleteError(words, errors, report))
    if incomplete:
        words = f"{len(incomplete)} of {len(reports)} servers did not answer for every task"
        raise ServersIncompleteError(words, incomplete, reports)
    return reports


def _expect_targets(targets: Any) -> dict[Any, Projects]:  # noqa: ANN401 - checked here
    """Give the targets with lists of distinct ids."""
    if not isinstance(targets, Mapping):
        raise TypeError(f"targets must map servers to projects, not {_shown(targets)}")
    wanted: dict[Any, Projects] = {}
    for server, projects in targets.items():
        if not isinstance(projects, Mapping):
            raise TypeError(f"{_shown(server)} must map projects to task ids, not {projects!r:.80}")
        seen: set[int] = set()
        lists = wanted[server] = {}
        for project_id, task_ids in projects.items():
            try:
                expect_int("project_id", project_id)
                ids = _expect_task_ids(task_ids)
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"{_shown(server)}, project {project_id!r}: {error}") from error
            if twice := seen.intersection(ids):
                raise ValueError(
                    f"{_shown(server)}: task {min(twice)} is asked for in two projects"
                )
            seen.update(ids)
            lists[project_id] = ids
    return wanted


def _expect_task_ids(task_ids: object) -> list[int]:
    if isinstance(task_ids, int):
        task_ids = [task_ids]
    if isinstance(task_ids, str | bytes | bytearray | memoryview) or not isinstance(
        task_ids, Iterable
    ):
        raise TypeError(f"task_ids must be an int or an iterable of ints, not {task_ids!r:.80}")
    ids = list(task_ids)
    if ids:
        expect_ids(ids)
    return list(dict.fromkeys(ids))


def _shown(server: object) -> str:
    """Show a server, say, without the credentials that a URL may hold."""
    return re.sub(r"//[^/]*@", "//***@", repr(server))[:200]


# --- in the caller's process ------------------------------------------------------------------


async def _drain(
    client: Client,
    worker: str | None,
    queue: Iterator[tuple[int, Shard]],
    endings: dict[int, Ending],
) -> None:
    """Have one worker do one shard after the other, of a queue that others take from as well."""
    for index, shard in queue:
        endings[index] = await _account(client, worker, shard)


async def _account(client: Client, worker: str | None, shard: Shard) -> Ending:
    """Have a shard done, however often its worker dies, within bounds; never raises an error."""
    began = False
    error: Exception | None = None
    try:
        for where in (worker, *[None] * (RUNS - 1)):
            one = evolve(shard, name=f"ctrlapi-{uuid4().hex}", again=began)
            async with _flags(client, one.name) as begun:
                before, began = began, True  # as long as the flag does not tell
                ending = await _submit(client, where, one)
                if isinstance(ending, tuple):
                    return ending
                began = before or await begun.is_set()
            if ending is not None:
                error = ending
                break
    except Exception as met:  # noqa: BLE001 - the scheduler is out of reach
        error = met
    error = error or RequestError(f"{RUNS} workers died under a shard, one by one", sent=began)
    return shard.unanswered(StopResult.UNCONFIRMED if began else StopResult.NOT_SENT, error)


async def _submit(client: Client, worker: str | None, shard: Shard) -> Ending | Exception | None:
    """Have a shard done once: its ending, what it raised, or None if it was lost on the way."""
    future = client.submit(
        run_shard,
        shard,
        workers=worker,
        allow_other_workers=worker is not None,
        pure=False,
        retries=0,
    )
    try:
        ending: Ending | None = await future
    except asyncio.CancelledError:
        with suppress(Exception):  # with the scheduler gone there is nothing to cancel
            await client.cancel([future])
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return None  # it was the shard that was cancelled: its worker closed
    except (CancelledError, KilledWorker):
        return None
    except Exception as error:  # noqa: BLE001 - whatever the factory raised, say
        return error
    finally:
        future.release()
    return ending


@asynccontextmanager
async def _flags(client: Client, name: str) -> AsyncIterator[Event]:
    """Mark a shard as wanted on the scheduler, and give the flag that tells whether it began."""
    wanted, begun = Event(f"{name}-wanted", client), Event(f"{name}-begun", client)
    await wanted.set()
    try:
        yield begun
    finally:
        with suppress(Exception):  # the scheduler is gone, and its flags with it
            await wanted.clear()
            await begun.clear()


# --- on a worker ------------------------------------------------------------------------------


async def run_shard(shard: Shard) -> Ending | None:
    """Carry out a shard; None if it began before, or is no longer wanted."""
    client = await get_client()
    wanted, begun = Event(f"{shard.name}-wanted", client), Event(f"{shard.name}-begun", client)
    async with shard.session_factory(shard.server) as session:
        if await begun.is_set() or not await wanted.is_set():
            return None
        await begun.set()
        run = asyncio.create_task(_stop(session, shard))
        try:
            while not (await asyncio.wait([run], timeout=WATCH))[0]:
                if not await wanted.is_set():
                    return None
            return run.result()
        finally:
            run.cancel()
            await asyncio.wait([run])


async def _stop(session: ControlSession, shard: Shard) -> Ending:
    report, errors = await _ended(session.stop_running_across(shard.projects))
    if not shard.again:
        return report, errors
    unavailable: dict[int, list[int]] = {}
    for task_id in report.ids(StopResult.UNAVAILABLE):
        unavailable.setdefault(report[task_id].project_id, []).append(task_id)
    late, more = await _ended(session.stop_running_across(unavailable, dry_run=True))
    return settled(report, late), errors + more


async def _ended(run: Coroutine[Any, Any, StopReport]) -> Ending:
    try:
        return await run, ()
    except StopIncompleteError as error:
        return error.report, error.exceptions
