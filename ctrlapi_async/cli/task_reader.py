"""From text to task ids: ids, ranges and JSON lines, read piece by piece. Pure."""

from __future__ import annotations

import json
import re
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from ctrlapi_async.cli.exits import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_ID: Final = 2**63 - 1
WORD_LENGTH: Final = 60
"""Characters of a word at most: two ids of 19 digits, a project and a dash fit well."""
JSON_LENGTH: Final = 2**20
"""Characters of a JSON line at most."""

Tasks = tuple[int, range | list[int]]
"""A project, and ids of tasks in it: a range or a list."""

_PLAIN: Final = re.compile(r"[\s,]*(?:[0-9]{1,18}[\s,]+)*")
_WORDS: Final = re.compile(r",|[^\s,]+")
_SEPARATOR: Final = re.compile(r"[\s,]")


class _Line(Enum):
    """What the current line has turned out to be."""

    BLANK = auto()
    WORDS = auto()
    JSON = auto()
    COMMENT = auto()


class TaskReader:
    """Reads text that names tasks, in pieces of any size, in linear time and bounded memory.

    A word is an id (`64`) or a range (`100-199`); words stand between white space and commas. A
    project before a word (`2:64`) also counts for the words that follow after commas on the same
    line (`2:64,65`). `#` begins a comment. A line that begins with `{` is a JSON object with
    `task_id` and perhaps `project_id`.

    Args:
        projects: The projects that `--project` names. A single one is the project of each task
            that is written without one.
        source: What to call the text in an error; nothing for the command line itself.
        only_project: Whether tasks of other projects than this single one are refused.
    """

    def __init__(
        self, projects: Sequence[int], source: str = "", *, only_project: bool = False
    ) -> None:
        self._projects = projects
        self._source = source
        self._only_project = only_project
        self._number = 1
        self._start_line()

    def _start_line(self) -> None:
        self._line = _Line.BLANK
        self._unfinished = ""
        self._json: list[str] = []
        self._json_length = 0
        self._project: int | None = None
        self._after_comma = False

    def feed(self, text: str) -> Iterator[Tasks]:
        """Read the next piece of text and yield the tasks in it.

        Raises:
            UsageError: The text names no task; the message says where.
        """
        last_line = text.rfind("\n") + 1
        if self._line in (_Line.BLANK, _Line.WORDS) and self._project is None and last_line:
            lines = self._unfinished + text[:last_line]
            if _PLAIN.fullmatch(lines):  # the usual case: nothing but ids
                yield from self._located(self._words(lines))
                self._number += lines.count("\n")
                self._start_line()
                text = text[last_line:]
        first, *others = text.split("\n")
        yield from self._located(self._fragment(first))
        for fragment in others:
            yield from self._located(self._end_of_line())
            self._number += 1
            self._start_line()
            yield from self._located(self._fragment(fragment))

    def close(self) -> Iterator[Tasks]:
        """Yield the tasks that only the end of the text completes; raises as `feed` does."""
        yield from self._located(self._end_of_line())

    def _located(self, tasks: Iterator[Tasks]) -> Iterator[Tasks]:
        try:
            yield from tasks
        except UsageError as error:
            if not self._source:
                raise
            raise UsageError(f"{self._source}, line {self._number}: {error}") from None

    def _fragment(self, text: str) -> Iterator[Tasks]:
        """Read a part of a line."""
        if self._line is _Line.BLANK:
            text = text.lstrip()
            if not text:
                return
            self._line = _Line.JSON if text.startswith("{") else _Line.WORDS
        if self._line is _Line.JSON:
            self._json.append(text)
            self._json_length += len(text)
            if self._json_length > JSON_LENGTH:
                raise UsageError(f"a JSON line of more than {JSON_LENGTH:,} characters")
        elif self._line is _Line.WORDS:
            text = self._unfinished + text
            before, comment, _ = text.partition("#")
            if comment:
                self._line = _Line.COMMENT
                self._unfinished = ""
                yield from self._words(before + " ")
            else:
                self._unfinished = _SEPARATOR.split(text[-WORD_LENGTH - 1 :])[-1]
                if len(self._unfinished) > WORD_LENGTH:
                    raise UsageError(_no_task_id(self._unfinished))
                yield from self._words(text[: len(text) - len(self._unfinished)])

    def _end_of_line(self) -> Iterator[Tasks]:
        if self._line is _Line.JSON:
            yield self._record("".join(self._json))
            return
        yield from self._words(self._unfinished + " ")
        if self._after_comma and self._project is not None:
            raise UsageError(
                f"no task of project {self._project} follows the last comma: "
                "leave the comma out, or write all tasks of the project on one line"
            )

    def _words(self, text: str) -> Iterator[Tasks]:
        """Read words, the last of which is complete."""
        if self._project is None and _PLAIN.fullmatch(text):
            if listed := list(map(int, text.replace(",", " ").split())):
                yield self._project_of(str(listed[0]), None), listed
            return
        for word in _WORDS.findall(text):
            if word == ",":
                self._after_comma = True
                continue
            before, colon, rest = word.rpartition(":")
            if colon:
                self._project = _number(before, word, "project")
            elif not self._after_comma:
                self._project = None
            self._after_comma = False
            span = _id_or_range(rest, word)
            yield self._project_of(rest, self._project), span

    def _record(self, text: str) -> Tasks:
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"not JSON: {error}") from None
        task_id = _member(record, "task_id")
        project_id = _member(record, "project_id") if "project_id" in record else None
        return self._project_of(str(task_id), project_id), [task_id]

    def _project_of(self, word: str, written: int | None) -> int:
        """Return the project of a task: the one written with it, else that of `--project`."""
        if written is None:
            if len(self._projects) == 1:
                return self._projects[0]
            if not self._projects:
                raise UsageError(
                    "no project is given: use --project, set CTRLAPI_PROJECT_ID, or write the "
                    f"project before the task, as in 2:{word}"
                )
            raise UsageError(
                f"task {word} could be in any of the {len(self._projects)} projects given with "
                f"--project: write {self._projects[0]}:{word}, for example"
            )
        if self._only_project and written != self._projects[0]:
            raise UsageError(
                f"task {word} is in project {written}, but a pipe that is read as it comes holds "
                f"tasks of one project, here {self._projects[0]}: with --project "
                f"{self._projects[0]} --project {written} it is read to its end first"
            )
        return written


def whole_number(text: str) -> int | None:
    """Return the whole number from 0 to 2**63 - 1 that a text is, or None if it is none."""
    if not (text.isascii() and text.isdecimal()) or len(text.lstrip("0")) > 19:
        return None
    number = int(text)
    return number if number <= MAX_ID else None


def _member(record: dict[str, object], name: str) -> int:
    value = record.get(name)
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise UsageError(f"`{name}` must be a whole number, 0 or more, not {value!r:.80}")
    return value


def _id_or_range(text: str, word: str) -> range:
    first, dash, last = text.partition("-")
    start = _number(first, word, "task")
    end = _number(last, word, "task") if dash else start
    if end < start:
        raise UsageError(f"{word!r} runs backwards: write {end}-{start}")
    return range(start, end + 1)


def _number(text: str, word: str, what: str) -> int:
    number = whole_number(text)
    if number is not None:
        return number
    if text.isascii() and text.isdecimal():
        raise UsageError(f"{word[:WORD_LENGTH]!r} is too large: {what} ids go to 2**63 - 1")
    raise UsageError(_no_task_id(word))


def _no_task_id(word: str) -> str:
    return (
        f"{word[:WORD_LENGTH]!r} is no task id: write 64, 100-199 for a range, or 2:64 for "
        "project 2"
    )
