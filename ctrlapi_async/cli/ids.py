"""Which tasks are meant: ids and ranges as arguments, in a file or on standard input."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ctrlapi_async.cli import UsageError
from ctrlapi_async.cli.thread import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

MAX_ID: Final = 2**63 - 1
MAX_COUNT: Final = 10_000_000
"""Ids at most that a command line or a file may name; a pipe for one project has no bound."""

STDIN: Final = "standard input"

_READ: Final = 64 * 1024

Span = tuple[int, range]
"""A project, and ids of tasks of it."""


class Reader:
    """Reads the words that name tasks.

    Args:
        projects: Those that `--project` names. If this is one, it is that of each task for which
            no project is written.
        alone: Whether tasks of other projects than this one can no longer be taken.
    """

    def __init__(self, projects: Sequence[int], *, alone: bool = False) -> None:
        self._projects = projects
        self._alone = alone

    def line(self, line: str) -> Iterator[Span]:
        """Read one line: words between white space and commas, or a JSON object with `task_id`.

        A word is an id (`64`) or a range (`100-199`). A project before it (`2:64`) is also that
        of the words that follow after commas (`2:64,65`).

        Raises:
            UsageError: It is neither.
        """
        if line.lstrip().startswith("{"):
            yield self._record(line)
            return
        project_id = None
        after_comma = False
        for word in re.findall(r",|[^\s,]+", line):
            if word == ",":
                after_comma = True
                continue
            before, colon, rest = word.rpartition(":")
            if colon:
                project_id = _number(before, word, "project")
            elif not after_comma:
                project_id = None
            after_comma = False
            span = _span(rest, word)
            yield self._project_of(rest, project_id), span
        if after_comma and project_id is not None:
            raise UsageError(
                f"no task of project {project_id} follows the last comma: "
                "leave it out, or write all of them on one line"
            )

    def lines(self, lines: Iterable[bytes], name: str, first: int = 1) -> Iterator[Span]:
        """Read several lines.

        Args:
            lines: The lines.
            name: What to call their source in an error.
            first: The number of the first.

        Raises:
            UsageError: One of them cannot be read; it says which.
        """
        for number, line in enumerate(lines, first):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
            try:
                yield from self.line(text)
            except UsageError as error:
                raise UsageError(f"{name}, line {number}: {error}") from None

    def _record(self, line: str) -> Span:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not JSON: {error}") from None
        task_id = _member(record, "task_id")
        project_id = _member(record, "project_id") if "project_id" in record else None
        return self._project_of(str(task_id), project_id), range(task_id, task_id + 1)

    def _project_of(self, word: str, written: int | None) -> int:
        """Give the project of a task: the one written with it, else that of `--project`."""
        if written is None:
            if len(self._projects) == 1:
                return self._projects[0]
            if not self._projects:
                raise UsageError(
                    "the project is not given: use --project, or set CTRLAPI_PROJECT_ID, or "
                    f"write it before the task, as in 2:{word}"
                )
            raise UsageError(
                f"task {word} may be of any of the {len(self._projects)} projects of --project: "
                f"write {self._projects[0]}:{word}, say"
            )
        if self._alone and written != self._projects[0]:
            raise UsageError(
                f"task {word} is of project {written}, and a pipe is read as it comes for one "
                f"project, {self._projects[0]}: give --project {self._projects[0]} "
                f"--project {written}, and it is read to its end first"
            )
        return written


def _member(record: dict[str, object], name: str) -> int:
    value = record.get(name)
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise UsageError(f"`{name}` must be an integer, 0 or more, not {value!r:.80}")
    return value


def _span(text: str, word: str) -> range:
    first, dash, last = text.partition("-")
    start = _number(first, word, "task")
    end = _number(last, word, "task") if dash else start
    if end < start:
        raise UsageError(f"{word!r} runs backwards: give {end}-{start}")
    return range(start, end + 1)


def _number(text: str, word: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise UsageError(
            f"{word[:80]!r} is no task id: give 64, 100-199 for a range, or 2:64 for project 2"
        )
    if len(text) >= 40 or (number := int(text)) > MAX_ID:
        raise UsageError(f"{word[:80]!r} is too large: {what} ids go to 2**63 - 1")
    return number


def named(
    words: Iterable[str], source: str | None, projects: Sequence[int]
) -> dict[int, Iterable[int]] | tuple[int, AsyncIterator[int]]:
    """Give the tasks that are meant, by project, all of them checked beforehand.

    Of a pipe, if all is of one project so far: this project, and its tasks as they come.

    Args:
        words: Ids and ranges.
        source: A file, or `-` for standard input, that names more.
        projects: Those that `--project` names.

    Raises:
        UsageError: A word or the file cannot be read.
    """
    reader = Reader(projects)
    listed: dict[int, list[range]] = {}
    room = MAX_COUNT

    def enter(spans: Iterable[Span]) -> None:
        nonlocal room
        for project_id, span in spans:
            room -= span.stop - span.start
            if room < 0:
                raise UsageError(f"these are more than {MAX_COUNT:,} ids: name fewer at a time")
            listed.setdefault(project_id, []).append(span)

    enter(reader.line(" ".join(words)))
    name = STDIN if source == "-" else source
    try:
        if name is STDIN:
            alone = len(projects) == 1 and listed.keys() <= {*projects}
            if alone and not stat.S_ISREG(os.fstat(0).st_mode):
                return projects[0], _stream(listed.get(projects[0], []), projects)
            enter(reader.lines(sys.stdin.buffer, name))
        elif name is not None:
            enter(reader.lines(Path(name).read_bytes().splitlines(), name))
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    return {project_id: chain.from_iterable(spans) for project_id, spans in listed.items()}


async def _stream(first: Iterable[range], projects: Sequence[int]) -> AsyncIterator[int]:
    for task_id in chain.from_iterable(first):
        yield task_id
    reader = Reader(projects, alone=True)
    rest = b""
    number = 1
    while chunk := await in_thread(os.read, 0, _READ):
        *lines, rest = (rest + chunk).split(b"\n")
        for _, span in reader.lines(lines, STDIN, number):
            for task_id in span:
                yield task_id
        number += len(lines)
    for _, span in reader.lines([rest], STDIN, number):
        for task_id in span:
            yield task_id
