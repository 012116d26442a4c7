"""The second reading of a reply, of any JSON: it keeps what is sound and names what is odd."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any, Final

import msgspec

from ctrlapi_async._errors import ReplyError
from ctrlapi_async._models import MAX_ID
from ctrlapi_async._protocol.rows import DetailedRow, Entry, Row, Rows, joined

_MAX_NESTING: Final = 4
"""Levels of lists in which rows are looked for."""

_KINDS: Final = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "null",
}


def _unexpected(expected: str, value: object, where: str) -> ReplyError:
    return ReplyError(f"expected {expected}, not {_KINDS[type(value)]}", where)


# --- Any JSON -------------------------------------------------------------------------------------

_SURROGATES: Final = re.compile(
    r"\\(?:[^u]|u[dD][89abAB]..\\u[dD][c-fC-F]..|u[dD][89a-fA-F]..)", re.DOTALL
)


def _repaired(escape: re.Match[str]) -> str:
    text = escape[0]
    return r"\ufffd" if len(text) == len(r"\ud800") else text


def _integer(digits: str) -> int | float | None:
    return int(digits) if len(digits) <= 20 else _number(digits)


def _number(text: str) -> float | None:
    number = float(text)
    return number if isfinite(number) else None


def load_json(data: bytes) -> Any:  # noqa: ANN401
    """Return what JSON says, or all but says: half surrogates, NaN, other charsets in strings.

    Raises:
        ValueError: It is no JSON.
        RecursionError: It is nested too deeply.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError):
        pass
    return json.loads(
        _SURROGATES.sub(_repaired, data.decode("utf-8", "replace")),
        parse_int=_integer,
        parse_float=_number,
        parse_constant=lambda _: None,
        strict=False,
    )


def load_details(raw: bytes) -> dict[str, Any]:
    """Return those members of a row that have no place of their own in a `TaskState`."""
    members = load_json(raw)
    for name in ("task_id", "status", "error"):
        members.pop(name, None)
    return members  # type: ignore[no-any-return]


# --- The envelope ---------------------------------------------------------------------------------


def read_reply(body: bytes) -> tuple[str | None, list[Entry[Any] | ReplyError] | None]:
    """Return the error text of the whole request, and the entries if there are any.

    An entry that cannot belong to any call is an error in the list.

    Raises:
        ReplyError: The body is no reply.
        ValueError: The body is no JSON.
        RecursionError: The body is nested too deeply.
    """
    document = load_json(body)
    if not isinstance(document, dict):
        raise _unexpected("an object", document, "$")
    error = _any_text(document.get("error"))
    entries = document.get("reply")
    if isinstance(entries, list):
        return error, [_read_entry(each, f"$.reply[{n}]") for n, each in enumerate(entries)]
    if error is None and "reply" in document:
        raise _unexpected("an array", entries, "$.reply")
    return error, None


def _read_entry(entry: object, where: str) -> Entry[Any] | ReplyError:
    if not isinstance(entry, dict):
        return _unexpected("an object", entry, where)
    method, number = entry.get("method"), entry.get("id")
    if not isinstance(method, str | None):
        return _unexpected("a string", method, f"{where}.method")
    if number is not None and type(number) is not int:
        return _unexpected("an integer", number, f"{where}.id")
    errors = entry.get("errors")
    return Entry(
        method,
        number,
        entry.get("result", msgspec.UNSET),
        _any_text(entry.get("error")),
        [text for each in _listed(errors) if (text := _any_text(each)) is not None],
    )


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _any_text(value: object) -> str | None:
    """Return an error text of any JSON; None for what says nothing."""
    if isinstance(value, str) or not value:
        return str(value) if value else None
    return msgspec.json.encode(value).decode()


# --- Rows -----------------------------------------------------------------------------------------


def read_rows(
    result: object, words: str | None, where: str, *, keep_bytes: bool
) -> Rows | ReplyError:
    """Return the rows of a result.

    Rows in a list within the list, and rows in a list that is a member of a row, form a chain.

    Args:
        result: The result, of any JSON.
        words: The entry's error texts beside it.
        where: Its JSON path.
        keep_bytes: Whether the rows keep their JSON.
    """
    if isinstance(result, dict):
        result = [result]
    if not isinstance(result, list):
        return _unexpected("an array", result, where)
    reader = _RowReader(Rows([], words, where), keep_bytes=keep_bytes)
    for place, item in enumerate(result):
        reader.rows.rows += reader.read(item, f"{where}[{place}]", 0)
    return reader.rows


class _RowReader:
    def __init__(self, rows: Rows, *, keep_bytes: bool) -> None:
        self.rows = rows
        self._keep_bytes = keep_bytes

    def read(self, item: object, where: str, depth: int) -> list[Row]:
        """Return the rows of an item of a list: a row with its chain's, or a list of them."""
        found: list[Row] = []
        if isinstance(item, dict):
            row = self._read_row(item, where)
            if row is not None:
                found.append(row)
            if depth < _MAX_NESTING:
                found += self._read_members(item, where, depth)
        elif isinstance(item, list) and depth < _MAX_NESTING:
            for place, inner in enumerate(item):
                found += self.read(inner, f"{where}[{place}]", depth + 1)
        else:
            self.rows.unreadable.append(_unexpected("an object", item, where))
        return _chained(found)

    def _read_members(self, item: dict[str, Any], where: str, depth: int) -> list[Row]:
        return [
            row
            for name, member in item.items()
            if isinstance(member, list)
            for place, inner in enumerate(member)
            if _looks_like_row(inner)
            for row in self.read(inner, f"{where}.{name}[{place}]", depth + 1)
        ]

    def _read_row(self, item: dict[str, Any], where: str) -> Row | None:
        task_id = item.get("task_id")
        if task_id is None or (type(task_id) is int and not _possible(task_id)):
            return None
        if type(task_id) is not int:
            error = _unexpected("an integer", task_id, f"{where}.task_id")
            self.rows.unreadable.append(error)
            return None
        try:
            status = _text(item.get("status"), f"{where}.status")
            texts = [*_texts(item, "error", where), *_texts(item, "errors", where)]
        except ReplyError as error:
            self.rows.unreadable_tasks.setdefault(task_id, error)
            return None
        initial = item.get("initial_task_id")
        if not _possible(initial):
            initial = None
        if self._keep_bytes:
            raw = msgspec.json.encode(item)
            return DetailedRow(task_id, status, initial, joined(texts), raw=raw)
        return Row(task_id, status, initial, joined(texts))


def _possible(task_id: object) -> bool:
    return type(task_id) is int and 0 <= task_id <= MAX_ID


def _looks_like_row(item: object) -> bool:
    return (
        isinstance(item, dict)
        and _possible(item.get("task_id"))
        and not item.keys().isdisjoint(("status", "error", "errors"))
    )


def _text(value: object, where: str) -> str | None:
    if isinstance(value, str | None):
        return value
    raise _unexpected("a string", value, where)


def _texts(item: dict[str, Any], name: str, where: str) -> list[str | None]:
    value = item.get(name)
    if not value:  # null, "", [] and the like
        return []
    return [_text(each, f"{where}.{name}") for each in _listed(value)]


def _chained(rows: list[Row]) -> list[Row]:
    """Return the rows of a chain with its `initial_task_id` in each of them."""
    if len(rows) > 1:
        given = [row.initial_task_id for row in rows if row.initial_task_id is not None]
        initial = given[0] if given else min(row.task_id for row in rows)
        for row in rows:
            if row.initial_task_id is None:
                row.initial_task_id = initial
    return rows
