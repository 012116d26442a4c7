"""The Control API's JSON: requests to bytes, bytes to replies or to errors that say where. Pure.

Strategy: one typed decoder reads a whole reply, strictly, and names the path of what is wrong.
It takes the last of a repeated member without a word; counting the members' names in the body
tells whether that can have happened, and only then the slow, exact search runs.
"""

from __future__ import annotations

import json
import re
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, Literal, TypeVar

import msgspec

from ctrlapi_async.errors import (
    METHOD_ERRORS,
    CtrlApiError,
    HtmlReplyError,
    MethodError,
    ReplyError,
    TasksDeniedError,
    UserUnavailableError,
)
from ctrlapi_async.models import MAX_ID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ctrlapi_async.models import AllActive

T = TypeVar("T")

TASK_STATUS: Final = "TaskStatus"
TASK_STOP: Final = "TaskStop"
STOP_SENT: Final = "Stop request was sent"

EXCERPT: Final = 200
"""Characters of a body that an error shows."""


class Row(msgspec.Struct, gc=False):
    """One row of a TaskStatus or TaskStop result; `gc=False`: it holds no containers."""

    task_id: Annotated[int, msgspec.Meta(ge=0, le=MAX_ID)]
    status: str | None = None
    error: str | None = None


class CheckedRow(Row, gc=False, kw_only=True):
    """TaskStatus's usual row; msgspec gives the documented texts without making a str each."""

    status: Literal[
        "Scheduled", "Explore", "Running", "Completed", "Rejected", "Canceled", "Stalled"
    ]
    error: None = None


class Entry(msgspec.Struct, Generic[T]):
    """One call's part of a reply."""

    method: str | None = None
    id: int | None = None
    result: T | msgspec.UnsetType | None = msgspec.UNSET
    error: str | None = None
    errors: list[str] | None = None


class _Reply(msgspec.Struct, Generic[T]):
    reply: list[Entry[T]] | msgspec.UnsetType = msgspec.UNSET
    error: str | None = None


def _decoder_of(result: object) -> msgspec.json.Decoder[_Reply[Any]]:
    return msgspec.json.Decoder(_Reply[result])  # type: ignore[valid-type]


class Answer(msgspec.Struct, Generic[T]):
    """What the server answered to one call: its result, the words beside it, and its path.

    Where each task that was asked for has a usual status, and its row nothing else, `marks` may
    stand for the rows: a byte each, in the order asked for (`STATUSES`). The result is empty then.
    """

    result: T
    words: str | None = None
    where: str = "$.reply[0].result"
    marks: bytes = b""


class ReplyDecoder(Generic[T]):
    """Decodes replies whose results have one type.

    Args:
        result: The type of a call's result.
        usual: A narrower type that most results have, and that is faster to read.
    """

    def __init__(self, result: object, usual: object = None) -> None:
        self._decoder: msgspec.json.Decoder[_Reply[T]] = _decoder_of(result)
        self._usual: msgspec.json.Decoder[_Reply[T]] = _decoder_of(usual or result)

    def decode(
        self, body: bytes, methods: Sequence[str], first_id: int = 1
    ) -> list[Answer[T] | CtrlApiError]:
        """Read a reply.

        Args:
            body: The HTTP body.
            methods: The methods called, in order.
            first_id: The `id` of the first call; the others follow it.

        Returns:
            For each call, in order, its answer or its error.

        Raises:
            ReplyError: The body is no reply.
            UserUnavailableError: The server refused the request as a whole.
        """
        try:
            try:
                reply = self._usual.decode(body)
            except msgspec.ValidationError:
                reply = self._decoder.decode(body)
            entries = [] if reply.reply is msgspec.UNSET else reply.reply
            repeated = None if _plain(body, entries) else find_repeated(body)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise _reply_error(error, body) from None
        if repeated is not None:
            name, where = map(_bounded, repeated)
            raise ReplyError(f"member `{name}` stands twice", where, excerpt(body))
        if (refusal := _refusal(reply.error, entries)) is not None:
            whole = method_error(methods[0] if len(methods) == 1 else "request", refusal)
            if isinstance(whole, UserUnavailableError):
                raise whole
            return [method_error(method, refusal) for method in methods]
        if reply.reply is msgspec.UNSET:
            raise ReplyError("no `reply`", "$", excerpt(body))
        found = _by_call(entries, methods, first_id, body)
        return [
            self._answer(method, entry, place, body)
            for method, (place, entry) in zip(methods, found, strict=True)
        ]

    @staticmethod
    def _answer(
        method: str, entry: Entry[T] | None, place: int, body: bytes
    ) -> Answer[T] | CtrlApiError:
        if entry is None:
            return ReplyError(f"no entry for a call of {method}", "$.reply", excerpt(body))
        words = "; ".join(entry.errors) if entry.errors else None
        if entry.error is not None:
            return method_error(method, entry.error)
        if entry.result is msgspec.UNSET:
            if words is not None:
                return method_error(method, words)
            return ReplyError("no `result`", f"$.reply[{place}]", excerpt(body))
        if entry.result is None:
            return ReplyError("`result` is null", f"$.reply[{place}].result", excerpt(body))
        return Answer(entry.result, words, f"$.reply[{place}].result")


ROWS: Final = ReplyDecoder[list[Row]](list[Row], list[CheckedRow])
"""Decodes any reply to TaskStatus or TaskStop."""

# The usual statuses, and the letters by which they are known: those of a row's other parts are
# none of them, and if only these are picked out of a row, this is what is left.
_LETTERS: Final = {
    TASK_STATUS: {
        "Scheduled": b"Sh",
        "Explore": b"x",
        "Running": b"g",
        "Completed": b"Cm",
        "Rejected": b"j",
        "Canceled": b"C",
        "Stalled": b"S",
    },
    TASK_STOP: {STOP_SENT: b"q"},
}

STATUSES: Final = {
    letters[-1]: status for usual in _LETTERS.values() for status, letters in usual.items()
}
"""The usual statuses by their marks: the last of the letters by which they are known."""


class RowDecoder:
    """Decodes one server's replies to TaskStatus or TaskStop.

    Strategy: many of them say of each task asked for, in order, its id and a usual status, and
    differ in nothing else. The first of these is read like any other, and shows how this server
    writes them (`_Hand`); the others are known by that, and not read.

    Args:
        method: The method that is called.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._hand: _Hand | None = None

    def decode(
        self, body: bytes, asked: Sequence[bytes], first_id: int = 1
    ) -> list[Answer[list[Row]] | CtrlApiError]:
        """Read a reply, and give and raise what `ReplyDecoder.decode` does.

        Args:
            body: The HTTP body.
            asked: The ids of each call, as `ids_text` writes them.
            first_id: The `id` of the first call; the others follow it.
        """
        ids = asked[0].strip(b"[]") if len(asked) == 1 and asked[0] != _ALL else b""
        if ids and self._hand is not None and (marks := self._hand.marks(body, ids, first_id)):
            return [Answer([], marks=marks)]
        answers = ROWS.decode(body, [self._method] * len(asked), first_id)
        if b"," in ids and isinstance(answers[0], Answer):
            hand = _Hand.of(self._method, body, ids, answers[0], first_id)
            self._hand = hand or self._hand
        return answers


class _Hand:
    """How a server writes a reply that says of some tasks what is usual.

    Strategy: what the statuses may be is told by single letters. Whether the guess is right, and
    all else as usual, is told by writing the reply anew: it must be the same to the byte.

    Args:
        method: The method that is called.
        head: What stands before the first task's id.
        of_status: What stands from an id to its status.
        of_next: What stands from a status to the next id.
        tail: What stands behind the last status.
    """

    def __init__(
        self, method: str, head: bytes, of_status: bytes, of_next: bytes, tail: bytes
    ) -> None:
        self._head = head
        self._of_next = of_next
        self._tail = tail
        usual = _LETTERS[method]
        # By mark: what stands from an id to the next one.
        self._words = {
            letters[-1]: of_status + status.encode() + of_next for status, letters in usual.items()
        }
        self._pairs = [letters for letters in usual.values() if len(letters) > 1]
        self._others = bytes(set(range(256)).difference(*usual.values()))
        self._letters_before = len(head.translate(None, self._others))
        self._letters_behind = len(tail.translate(None, self._others))

    @classmethod
    def of(
        cls, method: str, body: bytes, ids: bytes, answer: Answer[list[Row]], call_id: int
    ) -> _Hand | None:
        """Learn it from a reply that was read, if that says what is usual of its tasks."""
        found = _TWO_ROWS.match(body, body.find(b'"task_id"'))
        usual = _LETTERS[method]
        if (
            found is None
            or answer.words is not None
            or len(answer.result) != ids.count(b",") + 1
            or not all(row.status in usual and row.error is None for row in answer.result)
        ):
            return None
        first, of_status, of_next = found.groups()
        asked = ids.split(b",")
        head, _, tail = body.partition(
            of_next.join(
                [
                    task_id + of_status + str(row.status).encode()
                    for task_id, row in zip(asked, answer.result, strict=True)
                ]
            )
        )
        around = head + tail
        this_call = rb'("id"\s*:\s*)%d\b' % call_id
        if (
            first != asked[0]  # which may be the end of a longer one
            or not (_UP_TO_ID.search(head) and _FROM_STATUS.match(tail))  # a row with more members
            or around.count(b'"task_id"') != 1  # rows that look otherwise, or are of other tasks
            or b"\\" in around  # with which a name can be spelled in another way
            or around.count(b'"id"') != len(re.findall(this_call, around))  # another call's
        ):
            return None
        head, tail = (re.sub(this_call, rb"\1" + _CALL_ID, part) for part in (head, tail))
        return cls(method, head, of_status, of_next, tail)

    def marks(self, body: bytes, ids: bytes, call_id: int) -> bytes:
        """Give the marks of a reply that is written so; none of any other."""
        marks = self._guess(body, ids)
        if not marks:
            return b""
        number = b"%d" % call_id
        head = self._head.replace(_CALL_ID, number)
        tail = self._words[marks[-1]].removesuffix(self._of_next)
        tail += self._tail.replace(_CALL_ID, number)
        if not marks.strip(marks[:1]):  # all the same
            rows = ids.replace(b",", self._words[marks[0]])
        else:
            rows = ids.replace(b",", b"%b")
            if len(rows) - len(ids) != len(marks) - 1:  # before anything of that size is made
                return b""
            rows %= itemgetter(*marks[:-1])(self._words)
        return marks if b"".join((head, rows, tail)) == body else b""

    def _guess(self, body: bytes, ids: bytes) -> bytes:
        """Give what the marks are if a reply is written so."""
        if len(self._words) == 1:
            return bytes(self._words) * (ids.count(b",") + 1)
        marks = body.translate(None, self._others)[self._letters_before :]
        marks = marks[: len(marks) - self._letters_behind]
        for pair in self._pairs:
            marks = marks.replace(pair, pair[-1:])
        return marks


_ALL: Final = b'"*"'
_TWO_ROWS: Final = re.compile(
    # Not more space than is usual: it will be written into any number of rows.
    rb'"task_id"\s{0,30}:\s{0,30}(\d+)(\s{0,30},\s{0,30}"status"\s{0,30}:\s{0,30}")[^"]*'
    rb'("\s{0,30}}\s{0,30},\s{0,30}{\s{0,30}"task_id"\s{0,30}:\s{0,30})\d'
)
"""How two rows begin that have the documented members only."""
_UP_TO_ID: Final = re.compile(rb'\[\s*{\s*"task_id"\s*:\s*\Z')
_FROM_STATUS: Final = re.compile(rb'"\s*}\s*]')
"""What stands around such rows."""
_CALL_ID: Final = b"\0"
"""A mark that stands in no reply: JSON has no control characters."""


def rows_of(answer: Answer[list[Row]], task_ids: Sequence[int] | None) -> list[Row]:
    """Give the rows of an answer about some tasks; None: about those that the server chose."""
    if task_ids is None or not answer.marks:
        return answer.result
    return [
        Row(task_id, STATUSES[mark]) for task_id, mark in zip(task_ids, answer.marks, strict=True)
    ]


def encode(
    user_id: int, calls: Sequence[tuple[str, Mapping[str, Any]]], first_id: int = 1
) -> bytes:
    """Write a request.

    Args:
        user_id: The user in whose name it is made.
        calls: Method and params of each call.
        first_id: The `id` of the first call; the others count on from it.

    Raises:
        TypeError: A param is nothing that JSON can hold.
    """
    return msgspec.json.encode(
        {
            "user_id": user_id,
            "methods": [
                {"method": method, "id": number, "params": params}
                for number, (method, params) in enumerate(calls, first_id)
            ],
        }
    )


def ids_text(task_ids: list[int] | AllActive) -> bytes:
    """Write the `task_ids` of TaskStatus and TaskStop: one id goes bare, several as an array."""
    text = msgspec.json.encode(task_ids)
    return text if b"," in text else text.strip(b"[]")


def task_params(project_id: int, ids: bytes) -> dict[str, Any]:
    """Give the params of TaskStatus and TaskStop, with ids that `ids_text` wrote."""
    return {"project_id": project_id, "task_ids": msgspec.Raw(ids)}


def method_error(method: str, text: str) -> MethodError:
    """Give the error that the server's words stand for."""
    beginning = text[:EXCERPT]  # the patterns take long on long texts
    for pattern, kind in METHOD_ERRORS:
        if re.search(pattern, beginning, re.IGNORECASE):
            if kind is TasksDeniedError:
                listed = re.search(r"\[([\d\s,]*)\]", text)
                return TasksDeniedError(
                    # 19 digits are the longest 64-bit id.
                    method,
                    text,
                    [int(n) for n in re.findall(r"\b\d{1,19}\b", listed[1])] if listed else (),
                )
            return kind(method, text)
    return MethodError(method, text)


def excerpt(body: bytes, at: int = 0) -> str:
    """Show a bounded piece of a body, from a little before `at`."""
    start = max(0, at - EXCERPT // 4)
    piece = body[start : start + EXCERPT]
    return (
        "..." * (start > 0)
        + piece.decode("utf-8", "replace")
        + "..." * (start + EXCERPT < len(body))
    )


def looks_like_html(body: bytes) -> bool:
    """Tell a web page, which has no place where JSON is due, from a broken reply."""
    return body[:64].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _bounded(text: str) -> str:
    return text if len(text) <= EXCERPT else text[:EXCERPT] + "..."


def _refusal(error: str | None, entries: list[Entry[Any]]) -> str | None:
    """Give the words with which the server refused a request as a whole, wherever they stand."""
    if error is None and len(entries) == 1:
        [entry] = entries
        if entry.id is None and entry.method is None:
            return entry.error
    return error


def _plain(body: bytes, entries: list[Entry[Any]]) -> bool:
    """Tell, by counting, whether no member that is read can stand twice in its object."""
    rows = 0
    checked = True
    for entry in entries:
        if not isinstance(entry.result, list):
            return False
        if entry.result:
            if not isinstance(entry.result[0], Row):
                return False  # all members of such rows are read
            checked = isinstance(entry.result[0], CheckedRow)  # and so in all entries
        rows += len(entry.result)
    # One call's envelope stands before its first row and behind its last one.
    around = (
        body[: body.find(b'"task_id"')] + body[body.rfind(b'"task_id"') :]
        if len(entries) == 1 and rows
        else body
    )
    return (
        # A name may be spelled so, and not be counted; the single character is found much faster.
        not (b"\\" in body and b"\\u00" in body)
        and body.count(b'"task_id"') == rows
        # A row has one of the two (whoever reads rows sees to it), so none has more. An `error`
        # that says something is read wherever it stands, and none was in rows that are usual.
        and body.count(b'"status"') + (around if checked else body).count(b'"error"') == rows
        and around.count(b'"reply"') == 1
        and all(
            around.count(name) <= len(entries)
            for name in (b'"method"', b'"id"', b'"result"', b'"errors"')
        )
    )


def _by_call(
    entries: list[Entry[T]], methods: Sequence[str], first_id: int, body: bytes
) -> list[tuple[int, Entry[T] | None]]:
    """Find the entry of each call: by `id`, and where that is not echoed by method and order."""
    by_id: dict[int, tuple[int, Entry[T]]] = {}
    nameless: list[tuple[int, Entry[T]]] = []
    by_call: list[tuple[int, Entry[T] | None]] = []
    for place, entry in enumerate(entries):
        if entry.id is None:
            nameless.append((place, entry))
        elif by_id.setdefault(entry.id, (place, entry))[1] is not entry:
            raise ReplyError(
                f"a second entry for call {entry.id}", f"$.reply[{place}].id", excerpt(body)
            )
    for number, method in enumerate(methods, first_id):
        found = by_id.get(number)
        if found is None:
            found = next((item for item in nameless if item[1].method in (method, None)), None)
            if found is not None:
                nameless.remove(found)
        elif found[1].method not in (method, None):
            raise ReplyError(
                f"call {number} was {method}, not {_bounded(str(found[1].method))}",
                f"$.reply[{found[0]}].method",
                excerpt(body),
            )
        by_call.append(found or (0, None))
    return by_call


def _reply_error(error: Exception, body: bytes) -> ReplyError:
    """Say what a decoder found wrong, and where."""
    if looks_like_html(body):
        return HtmlReplyError("a web page where JSON was due", "$", excerpt(body))
    if isinstance(error, RecursionError):
        return ReplyError("nested too deeply", "$", excerpt(body))
    if isinstance(error, UnicodeDecodeError):
        return ReplyError("not UTF-8", "$", excerpt(body))
    text = str(error)
    if not body.strip():
        return ReplyError("an empty body", "$", "")
    what, _, path = text.partition(" - at `")
    where = path.rstrip("`") or "$"
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", what):
        where = f"{where}.{missing[1]}"
    at = re.search(r"\(byte (\d+)\)", what)
    return ReplyError(what, where, excerpt(body, int(at[1]) if at else 0))


def find_repeated(body: bytes) -> tuple[str, str] | None:
    """Find the first member that stands twice in an object: its name and the object's path."""

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        members: dict[str, Any] = {}
        for name, value in pairs:
            if name in members:
                return {"": (name,)}
            members[name] = value
        return members

    def search(value: object) -> tuple[str, str] | None:
        children: Iterable[tuple[object, object]]
        if isinstance(value, tuple):
            return value[0], ""
        if isinstance(value, dict):
            children = value.items()
        elif isinstance(value, list):
            children = enumerate(value)
        else:
            return None
        for place, child in children:
            if (found := search(child)) is not None:
                # Paths are spelled on the way back only: all of them would be a square of the body.
                step = f"[{place}]" if isinstance(place, int) else f".{place}"
                step *= not isinstance(child, tuple)
                return found[0], step + found[1]
        return None

    document = json.loads(
        body.decode("utf-8", "replace"),  # what nobody reads may be of any charset
        object_pairs_hook=collect,
        parse_int=str,
        parse_float=str,
        strict=False,
    )
    found = search(document)
    return None if found is None else (found[0], "$" + found[1])
