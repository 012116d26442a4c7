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
    from collections.abc import AsyncIterator, Iterable, Iterator

MAX_ID: Final = 2**63 - 1
MAX_COUNT: Final = 10_000_000
"""Ids at most that a command line or a file may name; a pipe has no bound."""

STDIN: Final = "standard input"

_READ: Final = 64 * 1024


class Reader:
    """Reads the words that name tasks.

    Args:
        project_id: The project that all of them belong to.
    """

    def __init__(self, project_id: int) -> None:
        self._project_id = project_id

    def word(self, word: str) -> range:
        """Read one word: an id (`64`) or a range (`100-199`).

        Raises:
            UsageError: It is neither.
        """
        first, dash, last = word.partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(end.isascii() and end.isdecimal() for end in ends):
            raise UsageError(f"{word[:80]!r} is no task id: give 64, or 100-199 for a range")
        if not all(len(end) < 40 and int(end) <= MAX_ID for end in ends):
            raise UsageError(f"{word[:80]!r} is too large: task ids go to 2**63 - 1")
        start, end = map(int, ends)
        if end < start:
            raise UsageError(f"{word!r} runs backwards: give {end}-{start}")
        return range(start, end + 1)

    def line(self, line: str) -> Iterator[range]:
        """Read one line: words between white space and commas, or a JSON object with `task_id`.

        Raises:
            UsageError: It is neither.
        """
        if line.lstrip().startswith("{"):
            yield self._record(line)
        else:
            yield from map(self.word, filter(None, re.split(r"[\s,]+", line)))

    def lines(self, lines: Iterable[bytes], name: str, first: int = 1) -> Iterator[range]:
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

    def _record(self, line: str) -> range:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not JSON: {error}") from None
        task_id = record.get("task_id")
        if type(task_id) is not int or not 0 <= task_id <= MAX_ID:
            raise UsageError(f"`task_id` must be an integer, 0 or more, not {task_id!r:.80}")
        project_id = record.get("project_id", self._project_id)
        if project_id != self._project_id:
            raise UsageError(
                f"task {task_id} is of project {project_id!r:.80}, "
                f"and --project says {self._project_id}"
            )
        return range(task_id, task_id + 1)


def named(
    words: Iterable[str], source: str | None, project_id: int
) -> Iterator[int] | AsyncIterator[int]:
    """Give the ids of the tasks that are meant; of a pipe as they come, else checked beforehand.

    Args:
        words: Ids and ranges.
        source: A file, or `-` for standard input, that names more.
        project_id: The project that all of them belong to.

    Raises:
        UsageError: A word or the file cannot be read.
    """
    reader = Reader(project_id)
    ranges = [span for word in words for span in reader.line(word)]
    name = STDIN if source == "-" else source
    try:
        if name is STDIN and not stat.S_ISREG(os.fstat(0).st_mode):
            return _stream(ranges, reader)
        if source is not None and name is not None:
            content = sys.stdin.buffer.read() if name is STDIN else Path(source).read_bytes()
            ranges.extend(reader.lines(content.splitlines(), name))
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    if sum(span.stop - span.start for span in ranges) > MAX_COUNT:
        raise UsageError(f"these are more than {MAX_COUNT:,} ids: name fewer at a time")
    return chain.from_iterable(ranges)


async def _stream(ranges: Iterable[range], reader: Reader) -> AsyncIterator[int]:
    for task_id in chain.from_iterable(ranges):
        yield task_id
    rest = b""
    number = 1
    while chunk := await in_thread(os.read, 0, _READ):
        *lines, rest = (rest + chunk).split(b"\n")
        for span in reader.lines(lines, STDIN, number):
            for task_id in span:
                yield task_id
        number += len(lines)
    for span in reader.lines([rest], STDIN, number):
        for task_id in span:
            yield task_id
