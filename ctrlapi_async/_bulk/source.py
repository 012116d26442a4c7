"""Task ids in: which tasks a run is about, and how they are read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Collection, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, SupportsIndex

from attrs import field, frozen

from ctrlapi_async._models import AllActive, expect_ids, expect_int

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from ctrlapi_async._models import AnyTaskIds, TaskIds

SLICE: Final = 5000
"""Task ids that are read in one go: more would hold up the event loop."""

TURN: Final = 0.004
"""Seconds of the event loop that reading may take in one go."""

SLICE_CALL: Final = 250
"""Task ids whose reading costs as much as what is done for each project."""


@frozen
class Targets:
    """Which tasks a run is about.

    Args:
        listed: Task ids by project.
        all_active: Projects of which all active tasks are meant.
        stream: A project, and a source of ids that is read as the run goes.
    """

    listed: Mapping[int, Iterable[SupportsIndex]] = field(factory=dict)
    all_active: tuple[int, ...] = ()
    stream: tuple[int, AsyncIterable[SupportsIndex]] | None = None


def targets_of(project_id: SupportsIndex, task_ids: AnyTaskIds) -> Targets:
    """Return the targets for the tasks of one project; collections are copied.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of range.
    """
    project_id = expect_int("project_id", project_id)
    if isinstance(task_ids, AllActive):
        return Targets(all_active=(project_id,))
    if isinstance(task_ids, AsyncIterable):
        return Targets(stream=(project_id, task_ids))
    if isinstance(task_ids, range):
        return Targets(listed={project_id: task_ids})
    wrong = isinstance(task_ids, str | bytes | bytearray | memoryview | Mapping | bool)
    if not wrong and isinstance(task_ids, Iterable):
        copied = tuple(task_ids) if isinstance(task_ids, Collection) else task_ids
        return Targets(listed={project_id: copied})
    if not wrong and isinstance(task_ids, SupportsIndex):
        return Targets(listed={project_id: [expect_int("a task id", task_ids)]})
    raise TypeError(
        "task_ids must be an int, an iterable or async iterable of ints, or ALL_ACTIVE, "
        f"not {task_ids!r:.80}"
    )


def targets_across(targets: Mapping[int, TaskIds]) -> Targets:
    """Return the targets for the tasks of several projects; see `targets_of`."""
    if not isinstance(targets, Mapping):
        raise TypeError(f"targets must map project ids to task ids, not {targets!r:.80}")
    listed: dict[int, Iterable[SupportsIndex]] = {}
    all_active: list[int] = []
    for project_id, task_ids in targets.items():
        if isinstance(task_ids, AsyncIterable):
            raise TypeError(f"project {project_id}: an async iterable cannot be one of several")
        one = targets_of(project_id, task_ids)
        listed |= one.listed
        all_active += one.all_active
    return Targets(listed=listed, all_active=tuple(all_active))


async def read_listed(
    targets: Targets,
    add: Callable[[int, list[int]], bool],
    note: Callable[[Exception], None],
) -> None:
    """Read the ids that are listed, with the event loop's turns in between.

    Args:
        targets: What to read.
        add: Takes some ids of a project, and returns whether more are wanted.
        note: Takes what an iterable of the caller's raises; what it yielded before counts.

    Raises:
        TypeError: A task id is no int.
        ValueError: A task id is out of range.
    """
    clock = asyncio.get_running_loop().time
    began, read = clock(), 0
    for project_id, task_ids in targets.listed.items():
        for piece in _slices(task_ids, note, clock):
            if not add(project_id, expect_ids(piece)):
                return
            read += len(piece) + SLICE_CALL
            if read >= SLICE or clock() >= began + TURN:
                await asyncio.sleep(0)
                began, read = clock(), 0


def _slices(
    task_ids: Iterable[SupportsIndex],
    note: Callable[[Exception], None],
    clock: Callable[[], float],
) -> Iterator[list[SupportsIndex]]:
    """Return the ids in lists of up to `SLICE`, fewer from an iterable that takes its time."""
    if isinstance(task_ids, list | tuple | range):
        for start in range(0, len(task_ids), SLICE):
            yield list(task_ids[start : start + SLICE])
        return
    piece: list[SupportsIndex] = []
    until = clock() + TURN
    try:
        for task_id in task_ids:
            piece.append(task_id)
            if len(piece) == SLICE or clock() >= until:
                yield piece
                piece = []
                until = clock() + TURN
    except Exception as error:  # noqa: BLE001 - an iterable of the caller's may raise anything
        note(error)
    if piece:
        yield piece


class StreamReader:
    """Reads an async source of ids, no faster than the run gets on.

    Args:
        source: The source.
        batch: Ids after which it waits for room.
        add: Takes ids; the source is read on after the event loop's turn.
        wait_for_room: Returns when more ids are wanted.
        note: Takes what the source raises.
    """

    def __init__(
        self,
        source: AsyncIterable[SupportsIndex],
        *,
        batch: int,
        add: Callable[[list[int]], None],
        wait_for_room: Callable[[], Awaitable[None]],
        note: Callable[[Exception], None],
    ) -> None:
        self._source = source
        self._batch = batch
        self._add = add
        self._wait_for_room = wait_for_room
        self._note = note
        self._read: list[int] = []

    async def run(self, is_over: Callable[[], bool]) -> None:
        """Read to the end, or until the run is over."""
        with self._noting():
            iterator = aiter(self._source)
            try:
                with self._noting():
                    await self._read_on(iterator, is_over)
            finally:
                self._hand_in()
                if close := getattr(iterator, "aclose", None):
                    await close()

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a source of the caller's may raise anything
            self._note(error)

    async def _read_on(
        self, iterator: AsyncIterator[SupportsIndex], is_over: Callable[[], bool]
    ) -> None:
        loop = asyncio.get_running_loop()
        unchecked = 0
        async for task_id in iterator:
            if not self._read:
                # Ids that come in the same turn of the loop go together.
                loop.call_soon(self._hand_in)
            self._read.append(expect_int("a task id", task_id))
            if is_over():
                return
            unchecked += 1
            if unchecked == self._batch:
                unchecked = 0
                self._hand_in()
                await asyncio.sleep(0)
                await self._wait_for_room()

    def _hand_in(self) -> None:
        if self._read:
            read, self._read = self._read, []
            self._add(read)
