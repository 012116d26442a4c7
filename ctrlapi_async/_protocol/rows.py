"""The parts of a reply, as both readings of it return them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Generic, TypeVar

import msgspec
from attrs import define, field

from ctrlapi_async._errors import ReplyError, bounded
from ctrlapi_async._models import MAX_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

T = TypeVar("T")

_EXCERPT: Final = 200
"""Characters of a body that an error shows."""

_Id = Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]


class Row(msgspec.Struct, gc=False):
    """One row of a TaskStatus or TaskStop result; `gc=False`: it is part of no cycle."""

    task_id: _Id
    status: str | None = None
    initial_task_id: _Id | None = None
    error: str | None = None
    errors: list[str] | None = None
    """Only while it is read: `normalize` moves its texts to `error`."""

    def normalize(self) -> None:
        """Move all error texts to `error`, and put None for texts that say nothing."""
        self.status = self.status or None
        self.error = joined([self.error, *(self.errors or ())])
        self.errors = None


class DetailedRow(Row, gc=False):
    """A row that keeps its JSON."""

    raw: bytes = b""

    @classmethod
    def of(cls, row: Row, raw: bytes) -> DetailedRow:
        """Return a row together with its JSON."""
        # It is not decoded as such: a server's row may have a member of the name `raw`.
        return cls(row.task_id, row.status, row.initial_task_id, row.error, row.errors, raw)


@define
class Rows:
    """The result of one call of TaskStatus or TaskStop.

    Attributes:
        rows: The rows that could be read.
        words: The entry's error texts beside its result, or None.
        where: The JSON path of the result.
        unreadable: What is wrong with rows whose task is unknown.
        unreadable_tasks: What is wrong with other rows, by task id.
    """

    rows: list[Row]
    words: str | None = None
    where: str = "$.reply[0].result"
    unreadable: list[ReplyError] = field(factory=list)
    unreadable_tasks: dict[int, ReplyError] = field(factory=dict)

    def extend(self, others: Rows) -> None:
        """Add the rows of another piece of the same result."""
        self.words = others.words or self.words
        self.rows += others.rows
        self.unreadable += others.unreadable
        self.unreadable_tasks |= others.unreadable_tasks


class Entry(msgspec.Struct, Generic[T]):
    """One call's part of a reply."""

    method: str | None = None
    id: int | None = None
    result: T | msgspec.UnsetType = msgspec.UNSET
    error: str | None = None
    errors: list[str] | None = None

    @property
    def words(self) -> str | None:
        """The error texts beside the result, or None."""
        return joined(self.errors or ())


def joined(texts: Iterable[str | None]) -> str | None:
    """Return error texts as one that is bounded, or None if none of them says anything."""
    return bounded("; ".join(filter(None, texts))) or None


def excerpt(body: bytes, at: int = 0) -> str:
    """Return a bounded piece of a body, from a little before `at`."""
    start = max(0, at - _EXCERPT // 4)
    piece = body[start : start + _EXCERPT].decode("utf-8", "replace")
    return f"{'...' * (start > 0)}{piece}{'...' * (start + _EXCERPT < len(body))}"


def reply_error(fault: Exception, where: str = "$", body: bytes = b"") -> ReplyError:
    """Return the error for what msgspec found wrong.

    Args:
        fault: What it raised.
        where: The JSON path of the value that it was given.
        body: The body, if it was given all of it.
    """
    what, _, path = str(fault).partition(" - at `$")
    missing = re.fullmatch(r"Object missing required field `(\w+)`", what)
    at = re.search(r"\(byte (\d+)\)", what)
    where += path.rstrip("`") + (f".{missing[1]}" if missing else "")
    return ReplyError(what, where, excerpt(body, int(at[1]) if at else 0))
