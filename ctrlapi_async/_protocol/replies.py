"""Replies to rows, or to errors that say where.

A sound reply is read by one typed decoder, which skips what nobody needs. What that cannot read,
and what may hold rows at other places, is read once more (`tolerant`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from ctrlapi_async._errors import CtrlApiError, HtmlReplyError, ReplyError, UserUnavailableError
from ctrlapi_async._models import LazyMapping
from ctrlapi_async._protocol import tolerant
from ctrlapi_async._protocol.error_texts import method_error
from ctrlapi_async._protocol.rows import DetailedRow, Entry, Row, Rows, excerpt, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["DetailedRow", "Row", "Rows", "decode_result", "decode_rows", "details_of"]

T = TypeVar("T")

_BOM: Final = b"\xef\xbb\xbf"
_FAULTS: Final = (msgspec.DecodeError, ValueError, RecursionError)


class _Reply(msgspec.Struct, Generic[T]):
    error: str | None = None
    reply: list[Entry[T]] | msgspec.UnsetType = msgspec.UNSET


_ANY: Final = msgspec.json.Decoder(_Reply[Any])
_ROWS: Final = msgspec.json.Decoder(_Reply[list[Row]])
_RAW_ROWS: Final = msgspec.json.Decoder(_Reply[list[msgspec.Raw]])
_DETAILED_ROW: Final = msgspec.json.Decoder(DetailedRow)

_Entries = list[Entry[Any] | ReplyError]


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
    strict = True
    try:
        error, entries = _read_strictly(body, keep_bytes=keep_bytes)
        if _may_hide_rows(body, entries or []):
            strict = False
            error, entries = tolerant.read_reply(body)
    except _FAULTS as fault:
        strict = False
        error, entries = _read_tolerantly(body, fault)
    answers: list[Rows | CtrlApiError] = []
    for found in _answers(body, methods, first_id, error, entries):
        if isinstance(found, CtrlApiError):
            answers.append(found)
            continue
        place, entry = found
        where = f"$.reply[{place}].result"
        result: Any = entry.result
        if result is None:
            answers.append(ReplyError("`result` is null", where, excerpt(body)))
        elif strict:
            answers.append(Rows(result, entry.words, where))
        else:
            answers.append(tolerant.read_rows(result, entry.words, where, keep_bytes=keep_bytes))
    return answers


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
    try:
        reply = _ANY.decode(body)
        error, entries = reply.error, _entries_of(reply)
    except _FAULTS as fault:
        error, entries = _read_tolerantly(body, fault)
    [found] = _answers(body, [method], call_id, error, entries)
    if isinstance(found, CtrlApiError):
        raise found
    return found[1].result


def details_of(row: Row) -> LazyMapping:
    """Return the other members of a row, which are parsed on first access.

    Args:
        row: A row that keeps its JSON.
    """
    return LazyMapping(row.raw if isinstance(row, DetailedRow) else {}, tolerant.load_details)


def _entries_of(reply: _Reply[Any]) -> _Entries | None:
    return None if reply.reply is msgspec.UNSET else [*reply.reply]


def _read_strictly(body: bytes, *, keep_bytes: bool) -> tuple[str | None, _Entries | None]:
    reply: _Reply[Any] = (_RAW_ROWS if keep_bytes else _ROWS).decode(body)
    for entry in reply.reply or ():
        if not entry.result:
            continue
        if keep_bytes:
            entry.result = [_detailed(raw) for raw in entry.result]
        for row in entry.result:
            if row.error is not None or row.errors is not None:
                row.error = joined([row.error, *(row.errors or ())])
                row.errors = None
    return reply.error, _entries_of(reply)


def _detailed(raw: msgspec.Raw) -> DetailedRow:
    row = _DETAILED_ROW.decode(raw)
    row.raw = bytes(raw)
    return row


def _may_hide_rows(body: bytes, entries: _Entries) -> bool:
    """Return whether rows may be in lists that were skipped, as members of other rows."""
    arrays = 1
    rows = 0
    for entry in entries:
        if isinstance(entry, Entry):
            arrays += isinstance(entry.result, list) + (entry.errors is not None)
            rows += len(entry.result or ()) if isinstance(entry.result, list) else 0
    at = -1
    for _ in range(arrays):
        at = body.find(b"[", at + 1)
    # Looking for one more bracket is fifty times as fast as counting the rows.
    return body.find(b"[", at + 1) >= 0 and body.count(b'"task_id"') > rows


def _read_tolerantly(body: bytes, fault: Exception) -> tuple[str | None, _Entries | None]:
    try:
        return tolerant.read_reply(body)
    except (ValueError, RecursionError):
        raise _malformed(body, fault) from None


def _malformed(body: bytes, fault: Exception) -> ReplyError:
    """Return the error for a body that is no JSON."""
    if body[:64].lstrip().startswith(b"<"):
        return HtmlReplyError("a web page where JSON was due", "$", excerpt(body))
    if isinstance(fault, RecursionError):
        return ReplyError("nested too deeply", "$", excerpt(body))
    if not body.strip():
        return ReplyError("an empty body", "$")
    what, _, path = str(fault).partition(" - at `")
    at = re.search(r"\(byte (\d+)\)", what)
    return ReplyError(what, path.rstrip("`") or "$", excerpt(body, int(at[1]) if at else 0))


def _answers(
    body: bytes, methods: Sequence[str], first_id: int, error: str | None, entries: _Entries | None
) -> list[tuple[int, Entry[Any]] | CtrlApiError]:
    """Return for each call its entry, with the entry's place in the reply, or its error."""
    refusal = _refusal(error, entries)
    if refusal is not None:
        whole = method_error(methods[0] if len(methods) == 1 else "request", refusal)
        if isinstance(whole, UserUnavailableError):
            raise whole
        return [method_error(method, refusal) for method in methods]
    if entries is None:
        raise ReplyError("no `reply`", "$", excerpt(body))
    found = _match(entries, methods, first_id, body)
    return [
        each if isinstance(each, CtrlApiError) else _checked(method, *each, body)
        for method, each in zip(methods, found, strict=True)
    ]


def _refusal(error: str | None, entries: _Entries | None) -> str | None:
    """Return the text with which the server refused the request as a whole."""
    if not error and entries and len(entries) == 1:
        [entry] = entries
        if isinstance(entry, Entry) and entry.id is None and entry.method is None:
            return entry.error or None
    return error or None


def _checked(
    method: str, place: int, entry: Entry[Any], body: bytes
) -> tuple[int, Entry[Any]] | CtrlApiError:
    if entry.error:
        return method_error(method, entry.error)
    if entry.result in (None, msgspec.UNSET) and entry.words:
        return method_error(method, entry.words)
    if entry.result is msgspec.UNSET:
        return ReplyError("no `result`", f"$.reply[{place}]", excerpt(body))
    return place, entry


def _match(
    entries: _Entries, methods: Sequence[str], first_id: int, body: bytes
) -> list[tuple[int, Entry[Any]] | ReplyError]:
    """Return the entry of each call: by `id`, or where there is none by method and order."""
    by_id: dict[int, tuple[int, Entry[Any]] | ReplyError] = {}
    others: list[tuple[int, Entry[Any]]] = []
    odd: ReplyError | None = None
    for place, entry in enumerate(entries):
        if isinstance(entry, ReplyError):
            odd = odd or entry
        elif entry.id is None:
            others.append((place, entry))
        elif entry.id in by_id:
            by_id[entry.id] = ReplyError(
                f"a second entry for call {entry.id}", f"$.reply[{place}].id", excerpt(body)
            )
        else:
            by_id[entry.id] = place, entry
    found: list[tuple[int, Entry[Any]] | ReplyError] = []
    for number, method in enumerate(methods, first_id):
        match = by_id.get(number)
        if match is None:
            match = next((each for each in others if each[1].method in (method, None)), None)
            if match is not None:
                others.remove(match)
        elif not isinstance(match, ReplyError) and match[1].method not in (method, None):
            match = ReplyError(
                f"call {number} was {method}, not {match[1].method}",
                f"$.reply[{match[0]}].method",
                excerpt(body),
            )
        missing = odd or ReplyError(f"no entry for a call of {method}", "$.reply", excerpt(body))
        found.append(match or missing)
    return found
