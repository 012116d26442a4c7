"""Replies to rows, or to errors that say where.

A sound reply is read by one typed decoder, which skips what nobody needs. What that cannot read,
and what may hold rows at other places, is read once more (`tolerant`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from ctrlapi_async._errors import CtrlApiError, HtmlReplyError, ReplyError, UserUnavailableError
from ctrlapi_async._models import LazyMapping
from ctrlapi_async._protocol import tolerant
from ctrlapi_async._protocol.error_texts import method_error
from ctrlapi_async._protocol.rows import DetailedRow, Entry, Row, Rows, excerpt, reply_error

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DetailedRow", "Row", "Rows", "decode_result", "decode_rows", "details_of"]

T = TypeVar("T")


class _Reply(msgspec.Struct, Generic[T]):
    error: str | None = None
    reply: list[Entry[T]] | None = None


_ANY: Final = msgspec.json.Decoder(_Reply[Any])
_ROWS: Final = msgspec.json.Decoder(_Reply[list[Row]])
_RAW_ROWS: Final = msgspec.json.Decoder(_Reply[list[msgspec.Raw]])

_BOM: Final = b"\xef\xbb\xbf"
_FAULTS: Final = (msgspec.DecodeError, ValueError, RecursionError)

_Found = tuple[str | None, "Sequence[Entry[Any] | ReplyError] | None"]
"""The error text of the whole request, and the entries."""


def decode_rows(
    body: bytes, methods: Sequence[str], first_id: int, *, keep_bytes: bool = False
) -> list[Rows | CtrlApiError]:
    """Return the rows of a reply to calls of TaskStatus or TaskStop.

    Args:
        body: The HTTP body.
        methods: The methods called, in order.
        first_id: The `id` of the first call; those of the others count on from it.
        keep_bytes: Whether to return `DetailedRow`, each of which keeps its JSON.

    Returns:
        For each call, in order, its rows or its error.

    Raises:
        ReplyError: The body is no reply.
        UserUnavailableError: The server refused the request as a whole.
    """
    body = body.removeprefix(_BOM)
    try:
        found = _read_rows(body, keep_bytes=keep_bytes)
        fault: Exception | None = None
    except _FAULTS as error:
        found, fault = None, error
    if found is None:
        found = _read_tolerantly(body, fault, rows=True, keep_bytes=keep_bytes)
    return _answers(body, methods, first_id, *found)


def decode_result(body: bytes, method: str, call_id: int) -> Any:  # noqa: ANN401 - any JSON
    """Return the result in a reply to one call of any method.

    Args:
        body: The HTTP body.
        method: The method called.
        call_id: The call's `id`.

    Raises:
        CtrlApiError: The server refused the call, or the body is no reply to it.
    """
    body = body.removeprefix(_BOM)
    found: _Found
    try:
        reply = _ANY.decode(body)
        found = reply.error, reply.reply
    except _FAULTS as fault:
        found = _read_tolerantly(body, fault, rows=False)
    [result] = _answers(body, [method], call_id, *found)
    if isinstance(result, CtrlApiError):
        raise result
    return result


def details_of(row: Row) -> LazyMapping:
    """Return the other members of a row, which are parsed on first access.

    Args:
        row: A `DetailedRow`; any other has none.
    """
    return LazyMapping(partial(load_details, row.raw) if isinstance(row, DetailedRow) else {})


def load_details(raw: bytes) -> dict[str, Any]:
    """Return those members of a row's JSON that `Row` has no field for, and the chain's id."""
    members: dict[str, Any] = tolerant.load_json(raw)
    return {
        name: value for name, value in members.items() if name not in ("task_id", "status", "error")
    }


def _read_rows(body: bytes, *, keep_bytes: bool) -> _Found | None:
    """Return a sound reply with `Rows` as results; None if it may hold rows at other places.

    Raises:
        Exception: One of `_FAULTS`, if the reply is not sound.
    """
    reply: _Reply[Any] = _ROWS.decode(body)
    texts: list[Any] | None = _RAW_ROWS.decode(body).reply if keep_bytes else None
    arrays = 1
    total = 0
    for place, entry in enumerate(reply.reply or ()):
        arrays += entry.errors is not None
        if entry.result is msgspec.UNSET:
            continue
        rows: list[Row] = entry.result
        if texts is not None:
            rows = list(map(DetailedRow.of, rows, map(bytes, texts[place].result)))
        for row in rows:
            if row.error is not None or row.errors is not None or not row.status:
                row.normalize()
        entry.result = Rows(rows, entry.words, f"$.reply[{place}].result")
        arrays += 1
        total += len(rows)
    at = -1
    for _ in range(arrays):
        at = body.find(b"[", at + 1)
    # Looking for one more bracket is fifty times as fast as counting the rows.
    if body.find(b"[", at + 1) >= 0 and body.count(b'"task_id"') > total:
        return None
    return reply.error, reply.reply


def _read_tolerantly(
    body: bytes, fault: Exception | None, *, rows: bool, keep_bytes: bool = False
) -> _Found:
    """Return what the second reading finds.

    Raises:
        ReplyError: The body is no reply; if it is no JSON, as the first reading saw it (`fault`).
    """
    try:
        return tolerant.read_reply(body, rows=rows, keep_bytes=keep_bytes)
    except (ValueError, RecursionError) as error:
        fault = fault or error
    if body[:64].lstrip().startswith(b"<"):
        raise HtmlReplyError("a web page where JSON was due", "$", excerpt(body))
    if isinstance(fault, RecursionError):
        raise ReplyError("nested too deeply", "$", excerpt(body))
    if not body.strip():
        raise ReplyError("an empty body", "$")
    raise reply_error(fault, "$", body)


def _answers(
    body: bytes,
    methods: Sequence[str],
    first_id: int,
    error: str | None,
    entries: Sequence[Entry[Any] | ReplyError] | None,
) -> list[Any | CtrlApiError]:
    """Return for each call its result or its error.

    An entry is matched to its call by `id`, or, where it has none, by method and order.
    """
    only = entries[0] if entries and len(entries) == 1 else None
    if isinstance(only, Entry) and only.id is None and only.method is None:
        error = error or only.error
    if error:
        whole = method_error(methods[0] if len(methods) == 1 else "request", error)
        if isinstance(whole, UserUnavailableError):
            raise whole
        return [method_error(method, error) for method in methods]
    if entries is None:
        raise ReplyError("no `reply`", "$", excerpt(body))
    calls = dict(enumerate(methods, first_id))
    answers: dict[int, Any | CtrlApiError] = {}
    unmatched = next((entry for entry in entries if isinstance(entry, ReplyError)), None)
    placed = [(n, entry) for n, entry in enumerate(entries) if isinstance(entry, Entry)]
    for place, entry in sorted(placed, key=lambda each: each[1].id is None):
        number = entry.id
        if number is None:
            fitting = (n for n, method in calls.items() if entry.method in (method, None))
            number = next((n for n in fitting if n not in answers), None)
        if number not in calls:
            continue
        where = f"$.reply[{place}]"
        if number in answers:
            answers[number] = ReplyError(
                f"a second entry for call {number}", f"{where}.id", excerpt(body)
            )
        elif entry.method not in (calls[number], None):
            answers[number] = ReplyError(
                f"call {number} was {calls[number]}, not {entry.method}",
                f"{where}.method",
                excerpt(body),
            )
        else:
            answers[number] = _answer(calls[number], entry, where, body)
    return [
        answers[number]
        if number in answers
        else unmatched or ReplyError(f"no entry for a call of {method}", "$.reply", excerpt(body))
        for number, method in calls.items()
    ]


def _answer(method: str, entry: Entry[T], where: str, body: bytes) -> T | CtrlApiError:
    """Return what an entry says of its call."""
    if entry.error:
        return method_error(method, entry.error)
    if entry.result is not msgspec.UNSET and not isinstance(entry.result, ReplyError):
        return entry.result
    if entry.words is not None:
        return method_error(method, entry.words)
    if entry.result is msgspec.UNSET:
        return ReplyError("no `result`", where, excerpt(body))
    return entry.result
