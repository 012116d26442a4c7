"""The parts of a reply, as both readings of it return them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Generic, TypeVar

import msgspec
from attrs import define, field

from ctrlapi_async._models import MAX_ID

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrlapi_async._errors import ReplyError

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
    """Only while it is read: its texts go into `error`."""


class DetailedRow(Row, gc=False):
    """A row that keeps its JSON."""

    raw: bytes = b""


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


class Entry(msgspec.Struct, Generic[T]):
    """One call's part of a reply."""

    method: str | None = None
    id: int | None = None
    result: T | msgspec.UnsetType | None = msgspec.UNSET
    error: str | None = None
    errors: list[str] | None = None

    @property
    def words(self) -> str | None:
        """The error texts beside the result, or None."""
        return joined(self.errors or ())


def joined(texts: Iterable[str | None]) -> str | None:
    """Return error texts as one, or None if none of them says anything."""
    return "; ".join(filter(None, texts)) or None


def excerpt(body: bytes, at: int = 0) -> str:
    """Return a bounded piece of a body, from a little before `at`."""
    start = max(0, at - _EXCERPT // 4)
    piece = body[start : start + _EXCERPT].decode("utf-8", "replace")
    return f"{'...' * (start > 0)}{piece}{'...' * (start + _EXCERPT < len(body))}"
