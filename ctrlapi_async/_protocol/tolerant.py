"""The second reading of a reply, of any JSON: it keeps what is sound and names what is odd."""

from __future__ import annotations

import json
import re
from typing import Any, Final, TypeVar

import msgspec

from ctrlapi_async._errors import ReplyError
from ctrlapi_async._models import MAX_ID
from ctrlapi_async._protocol.rows import DetailedRow, Entry, Row, Rows, reply_error

T = TypeVar("T")

_MAX_NESTING: Final = 4
"""Levels of lists in which rows are looked for."""

_ESCAPES: Final = re.compile(
    r"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u[dD][89a-fA-F]..|.)", re.DOTALL
)
_HALF: Final = len(r"\ud800")


def load_json(data: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Return what JSON says, or almost says: half surrogates, NaN, other charsets in strings.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError):
        text = data.decode("utf-8", "replace")
    return json.loads(
        _ESCAPES.sub(lambda found: r"\ufffd" if len(found[0]) == _HALF else found[0], text),
        # Python converts no more digits, and they are no id.
        parse_int=lambda digits: int(digits) if len(digits) < 4000 else None,
        parse_constant=lambda _: None,
        strict=False,
    )


def read_reply(
    body: bytes, *, rows: bool, keep_bytes: bool = False
) -> tuple[str | None, list[Entry[Any] | ReplyError] | None]:
    """Return the error text of the whole request, and its entries if there are any.

    Args:
        body: The HTTP body.
        rows: Whether the results are read as `Rows`.
        keep_bytes: Whether the rows keep their JSON.

    Raises:
        ReplyError: The body is no reply.
        ValueError: The body is no JSON.
        RecursionError: The body is nested too deeply.
    """
    document = _convert(load_json(body), dict[str, Any], "$")
    error = _any_text(document.get("error"))
    if error is not None or "reply" not in document:
        return error, None
    entries: list[Entry[Any] | ReplyError] = []
    for place, value in enumerate(_convert(document["reply"], list[Any], "$.reply")):
        where = f"$.reply[{place}]"
        try:
            members = _convert(value, dict[str, Any], where)
            known = {name: members.get(name) for name in ("method", "id")}
            entry = _convert(known, Entry[Any], where)
        except ReplyError as odd:
            entries.append(odd)
            continue
        entry.error = _any_text(members.get("error"))
        errors = members.get("errors")
        texts = map(_any_text, errors if isinstance(errors, list) else [errors])
        entry.errors = [*filter(None, texts)]
        entry.result = members.get("result", msgspec.UNSET)
        if rows and entry.result is not msgspec.UNSET:
            reader = _RowReader(entry.words, f"{where}.result", keep_bytes=keep_bytes)
            entry.result = reader.read_result(entry.result)
        entries.append(entry)
    return None, entries


def _convert(value: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as fault:
        raise reply_error(fault, where) from None


def _any_text(value: object) -> str | None:
    """Return an error text of any JSON; None for what says nothing."""
    if not value:
        return None
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


class _RowReader:
    """Reads the rows of one result.

    Rows in a list that is a member of a row belong to that row's chain, whether or not they say so.
    A list within the list proves nothing: a server may wrap all its rows in one.
    """

    def __init__(self, words: str | None, where: str, *, keep_bytes: bool) -> None:
        self._found = Rows([], words, where)
        self._keep_bytes = keep_bytes

    def read_result(self, result: object) -> Rows | ReplyError:
        """Return the rows of a result, or the error if it holds none."""
        where = self._found.where
        try:
            # One row may come without its array, as one id goes without.
            items = [result] if isinstance(result, dict) else _convert(result, list[Any], where)
        except ReplyError as odd:
            return odd
        for place, item in enumerate(items):
            self._found.rows += self._read(item, f"{where}[{place}]", 0)
        return self._found

    def _read(self, item: object, where: str, depth: int) -> list[Row]:
        """Return the rows of an item: a row and the others of its chain, or a list of them."""
        rows: list[Row] = []
        if isinstance(item, dict):
            row = self._read_row(item, where)
            if row is not None:
                rows.append(row)
            if list in map(type, item.values()) and depth < _MAX_NESTING:
                rows += self._read_members(item, where, depth)
                rows = _chained(rows) if len(rows) > 1 else rows
        elif isinstance(item, list) and depth < _MAX_NESTING:
            for place, value in enumerate(item):
                rows += self._read(value, f"{where}[{place}]", depth + 1)
        else:
            self._found.unreadable.append(ReplyError("Expected `object`", where))
        return rows

    def _read_members(self, item: dict[str, Any], where: str, depth: int) -> list[Row]:
        return [
            row
            for name, member in item.items()
            if isinstance(member, list)
            for place, value in enumerate(member)
            if _is_row(value)
            for row in self._read(value, f"{where}.{name}[{place}]", depth + 1)
        ]

    def _read_row(self, item: dict[str, Any], where: str) -> Row | None:
        """Return the row; None if it names no task or an impossible one, or is unreadable."""
        try:
            row = msgspec.convert(item, Row)
        except msgspec.ValidationError:
            task_id = item.get("task_id")
            if task_id is None or (type(task_id) is int and not _is_id(task_id)):
                return None
            try:
                row = _convert(_without_oddities(item), Row, where)
            except ReplyError as odd:
                if _is_id(task_id):
                    self._found.unreadable_tasks.setdefault(task_id, odd)
                else:
                    self._found.unreadable.append(odd)
                return None
        row.normalize()
        return DetailedRow.of(row, msgspec.json.encode(item)) if self._keep_bytes else row


def _without_oddities(item: dict[str, Any]) -> dict[str, Any]:
    """Return a row without errors that say nothing, and without an impossible chain."""
    texts = ("error", "errors")
    row = {name: value for name, value in item.items() if value or name not in texts}
    if not _is_id(row.get("initial_task_id")):
        row.pop("initial_task_id", None)
    return row


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _is_row(value: object) -> bool:
    return (
        isinstance(value, dict)
        and _is_id(value.get("task_id"))
        and not value.keys().isdisjoint(("status", "error", "errors"))
    )


def _chained(rows: list[Row]) -> list[Row]:
    """Return the rows of one chain with its `initial_task_id` in each of them."""
    given = (row.initial_task_id for row in rows if row.initial_task_id is not None)
    initial = next(given, min(row.task_id for row in rows))
    for row in rows:
        if row.initial_task_id is None:
            row.initial_task_id = initial
    return rows
