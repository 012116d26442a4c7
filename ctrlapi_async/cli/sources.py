"""Which tasks are meant: those on the command line, in files, and on standard input."""

from __future__ import annotations

import asyncio
import codecs
import errno
import os
import stat
import sys
from array import array
from itertools import chain
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

import ctrlapi_async as api
from ctrlapi_async.cli.exits import CommandError, UsageError
from ctrlapi_async.cli.streams import complain, in_thread, is_terminal, read, stdin_number
from ctrlapi_async.cli.task_reader import TaskReader, Tasks
from ctrlapi_async.cli.text import visible

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence

    from ctrlapi_async.cli.options import TaskOptions

STDIN: Final = "-"
MAX_TASKS: Final = 10_000_000
"""Task ids at most that arguments and files may name. A pipe that is read as it comes may bring
any number."""

PIECE: Final = 64 * 1024
"""Bytes that are read at once."""

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


@frozen
class Targets:
    """The tasks that a command is about.

    Attributes:
        by_project: The tasks of each project, unless they are a stream.
        stream: A project, and its tasks as they arrive.
        with_project: Whether an id alone does not tell which task is meant.
    """

    by_project: Mapping[int, api.TaskIds] = field(factory=dict)
    stream: tuple[int, AsyncIterator[int]] | None = None
    with_project: bool = False

    @property
    def all_active(self) -> bool:
        """Whether all active tasks are meant, in place of tasks that are named."""
        return api.ALL_ACTIVE in self.by_project.values()


class _Listed:
    """Task ids by project, in little memory."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: dict[int, list[range | list[int] | array[int]]] = {}

    def add(self, tasks: Iterable[Tasks]) -> None:
        """Add tasks; raises `UsageError` if they are too many."""
        for project_id, task_ids in tasks:
            self.count += _length(task_ids)
            if self.count > MAX_TASKS:
                raise UsageError(
                    f"these are more than {MAX_TASKS:,} task ids: name fewer at a time"
                )
            parts = self._parts.setdefault(project_id, [])
            if isinstance(task_ids, range):
                parts.append(task_ids)
            elif parts and isinstance(parts[-1], array):
                parts[-1].extend(task_ids)
            else:
                parts.append(array("q", task_ids))

    def by_project(self) -> dict[int, Iterable[int]]:
        """Return the ids of each project, in the order in which they were added."""
        return {project_id: chain.from_iterable(parts) for project_id, parts in self._parts.items()}

    def all_in(self, project_id: int) -> bool:
        """Return whether there are no tasks of other projects."""
        return self._parts.keys() <= {project_id}


def check_usage(words: Sequence[str], options: TaskOptions, projects: Sequence[int]) -> None:
    """Check what can be checked before anything is read.

    Raises:
        UsageError: No task is named, or a word on the command line names none.
    """
    if options.all_active:
        if words or options.sources:
            raise UsageError("--all-active means all tasks: leave out task ids and --from")
        if not projects:
            raise UsageError("no project is given: use --project, or set CTRLAPI_PROJECT_ID")
    elif not words and not options.sources:
        raise UsageError(
            "no task is named: give task ids such as 64 65 100-199, or --from, or --all-active"
        )
    _Listed().add(_words(words, projects))


async def find_targets(
    words: Sequence[str],
    options: TaskOptions,
    projects: Sequence[int],
    *,
    timeout: float | None,
    quiet: bool,
) -> Targets:
    """Return the tasks that a command is about, all of them read and checked.

    Pipes are left to be read as they come if all else is in one project: that of `--project`.

    Args:
        words: The command's arguments.
        options: Its options.
        projects: The projects that are given for tasks named without one.
        timeout: Seconds that the reading may take.
        quiet: Whether not to say that standard input is waited for.

    Raises:
        UsageError: A word names no task, a file cannot be read, or no task is named at all.
        CommandError: The time was over.
    """
    if options.all_active:
        by_project = dict.fromkeys(projects, api.ALL_ACTIVE)
        return Targets(by_project, with_project=len(projects) > 1)
    listed = _Listed()
    listed.add(_words(words, projects))
    if STDIN in options.sources and is_terminal(sys.stdin) and not quiet:
        complain("reading task ids from the terminal; Ctrl-D on an empty line ends them", "note")
    source_names = " and ".join(map(_name, dict.fromkeys(options.sources)))
    try:
        async with asyncio.timeout(timeout):
            pipes = []
            for source in dict.fromkeys(options.sources):
                if await in_thread(_is_file, source):
                    await _read_all(listed, source, projects)
                else:
                    pipes.append(source)
            if pipes and len(projects) == 1 and listed.all_in(projects[0]):
                return Targets(stream=(projects[0], _stream(listed, pipes, projects, source_names)))
            for source in pipes:
                await _read_all(listed, source, projects)
    except TimeoutError:
        raise CommandError(
            f"the time of --timeout was over before all task ids were read from {source_names}; "
            "nothing was sent"
        ) from None
    if not listed.count:
        raise UsageError(f"no task id in {source_names}")
    tasks = listed.by_project()
    plain = len(projects) == 1 and listed.all_in(projects[0])
    return Targets(tasks, with_project=not plain)


def _length(task_ids: range | list[int]) -> int:
    # The length of a range may be too large for `len`.
    return task_ids.stop - task_ids.start if isinstance(task_ids, range) else len(task_ids)


def _words(words: Sequence[str], projects: Sequence[int]) -> Iterator[Tasks]:
    reader = TaskReader(projects)
    yield from reader.feed(" ".join(words))
    yield from reader.close()


def _name(source: str) -> str:
    return "standard input" if source == STDIN else visible(source)


def _is_file(source: str) -> bool:
    """Return whether a source is a regular file, which ends; raises `UsageError`."""
    try:
        status = os.stat(stdin_number() if source == STDIN else source)  # noqa: PTH116 - a number
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
    except OSError as error:
        raise _unreadable(source, error) from None
    return stat.S_ISREG(status.st_mode)


def _unreadable(source: str, error: OSError) -> UsageError:
    return UsageError(f"{_name(source)} cannot be read: {error.strerror}")


async def _read_all(listed: _Listed, source: str, projects: Sequence[int]) -> None:
    reader = TaskReader(projects, _name(source))
    async for text in _pieces(source):
        listed.add(reader.feed(text))
    listed.add(reader.close())


async def _stream(
    listed: _Listed, pipes: Sequence[str], projects: Sequence[int], source_names: str
) -> AsyncIterator[int]:
    """Yield the ids of one project as they arrive: those that are listed, then those of pipes."""
    some = bool(listed.count)
    for task_id in listed.by_project().get(projects[0], ()):
        yield task_id
    for source in pipes:
        reader = TaskReader(projects, _name(source), only_project=True)
        async for text in _pieces(source):
            for _, task_ids in reader.feed(text):
                some = True
                for task_id in task_ids:
                    yield task_id
        for _, task_ids in reader.close():
            some = True
            for task_id in task_ids:
                yield task_id
    if not some:
        raise UsageError(f"no task id in {source_names}")


async def _pieces(source: str) -> AsyncIterator[str]:
    """Yield the text of a file or a pipe as it is read; raises `UsageError`."""
    try:
        at_stdin = source == STDIN
        number = stdin_number() if at_stdin else await in_thread(os.open, source, os.O_RDONLY)
        head = await in_thread(_head, number)
        bom, encoding = next(
            ((bom, name) for bom, name in _BOMS if head.startswith(bom)), (b"", "utf-8")
        )
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        piece = head[len(bom) :]
        while head:  # a terminal would have more after its end
            yield decoder.decode(piece)
            head = piece = await in_thread(read, number, PIECE)
        yield decoder.decode(b"", final=True)
        # When this is cancelled, a thread may still be reading: then the process's end closes it.
        if not at_stdin:
            os.close(number)
    except OSError as error:
        raise _unreadable(source, error) from None


def _head(number: int) -> bytes:
    """Read a first piece that shows whether it begins with a byte order mark."""
    head = read(number, PIECE)
    while head and len(head) < 3 and any(bom.startswith(head) for bom, _ in _BOMS):
        more = read(number, PIECE)
        if not more:
            break
        head += more
    return head
