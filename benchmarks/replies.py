"""What the canned servers answer: the Control API in three tables, and the peers' protocols.

A responder takes the body of a request and returns a whole HTTP response. Rows are made once, when
their task is first asked for, so that a reply costs little more than joining them.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from itertools import cycle
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_OTHERS: Final = ("Scheduled", "Explore", "Completed", "Rejected", "Canceled", "Stalled")
_RESTARTED: Final = 50
_RESTART_OFFSET: Final = 10_000_000
_ID: Final = re.compile(rb'"id": *(\d+)')
_TASK_IDS: Final = re.compile(rb'"task_ids": *\[?([\d, ]+)')


@frozen
class Response:
    """A response as it goes over the wire."""

    data: bytes
    """With headers; empty where the server hangs up without an answer."""
    ids: int = 0
    """How many tasks or items it is about."""
    close: bool = False
    """Whether the connection ends with it."""


def http(body: bytes, status: int = 200, kind: str = "application/json", more: str = "") -> bytes:
    """Return a response as nginx words it."""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nServer: nginx\r\n"
        f"Date: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: keep-alive\r\n{more}\r\n"
    )
    return head.encode() + body


# --- The tasks ------------------------------------------------------------------------------------


def current_task(task_id: int, *, chains: bool) -> int:
    """Return the id under which a task goes on: one in fifty stalled and was restarted."""
    restarted = chains and task_id % _RESTARTED == 0 and task_id < _RESTART_OFFSET
    return task_id + _RESTART_OFFSET if restarted else task_id


def is_running(task_id: int) -> bool:
    """Return whether a task that was not restarted is Running: half of them are, scattered."""
    return bool(task_id * 2654435761 >> 16 & 1)


def _status(task_id: int) -> str:
    return "Running" if is_running(task_id) else _OTHERS[task_id % len(_OTHERS)]


def narrow_row(task_id: int) -> str:
    """Return a row of two members."""
    return f'{{"task_id":{task_id},"status":"{_status(task_id)}"}}'


def _documented_row(task_id: int, initial: int, status: str) -> str:
    total = "Errors" if task_id % 7 == 0 else "Passed"
    return (
        f'{{"task_id":{task_id},"initial_task_id":{initial},"status":"{status}",'
        f'"name":"channel {initial % 400}","uri":"/mnt/media/ingest/2026-11/{initial:09d}.mxf",'
        f'"template_id":{3 + task_id % 5},"app_id":{1 + task_id % 16},"priority":{task_id % 10},'
        f'"start":"2026-11-02 08:15:30","source":{{"status":"Opened","error":null}},'
        f'"test_results":{{"total":"{total}"}}}}'
    )


def documented_rows(task_id: int) -> str:
    """Return the row of a task with all documented members, and those of the rest of its chain."""
    if task_id >= _RESTART_OFFSET:
        return documented_rows(task_id - _RESTART_OFFSET)
    restart = current_task(task_id, chains=True)
    if restart == task_id:
        return _documented_row(task_id, task_id, _status(task_id))
    first = _documented_row(task_id, task_id, "Stalled")
    return f"{first},{_documented_row(restart, task_id, _status(restart))}"


def _stop_row(task_id: int) -> str:
    if is_running(task_id):
        return f'{{"task_id":{task_id},"status":"Stop request was sent"}}'
    return f'{{"task_id":{task_id},"error":"Stopping task is unavailable"}}'


class _Rows(dict[bytes, bytes]):
    """Rows by task id, as it stands in the request; made when first asked for."""

    def __init__(self, make: Callable[[int], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, task_id: bytes) -> bytes:
        rows = self[task_id] = self._make(int(task_id)).encode()
        return rows


# --- The Control API ------------------------------------------------------------------------------


class ControlApi:
    """A server without faults, whose TaskStatus rows are made by a function."""

    def __init__(self, status_rows: Callable[[int], str]) -> None:
        self._rows = {b"TaskStatus": _Rows(status_rows), b"TaskStop": _Rows(_stop_row)}

    def __call__(self, body: bytes) -> Response:
        """Answer a request of one call."""
        method = b"TaskStop" if b'"TaskStop"' in body else b"TaskStatus"
        found = _TASK_IDS.search(body)
        ids = found[1].replace(b" ", b"").split(b",") if found else []
        call_id = _ID.search(body)
        entry = b'"method":"%b","id":%b' % (method, call_id[1] if call_id else b"0")
        reply = b'{"reply":[{%b,%b}]}' % (entry, self.outcome(method, ids))
        return Response(http(reply), len(ids))

    def outcome(self, method: bytes, ids: list[bytes]) -> bytes:
        """Return the member that holds what became of a call."""
        return b'"result":[%b]' % b",".join(map(self._rows[method].__getitem__, ids))


_PAGE: Final = b"<html><head><title>%b</title></head><body>nginx</body></html>" % (b"-" * 60)
_DENIED_EVERY: Final = 50_000
_ODD_EVERY: Final = 50_000
_GONE_EVERY: Final = 100


class FaultyControlApi(ControlApi):
    """A server of which one request, one stop and one chunk in a hundred meets a fault.

    - Every 100th request: the connection is dropped, or the answer is 502, 503, 429, or cut.
    - One stop in a hundred comes too late, and a check after it says that the task is Completed.
    - One task in 50,000 does not exist, so that its chunk is denied; one has a row with `errors`.
    """

    def __init__(self) -> None:
        super().__init__(documented_rows)
        self._requests = 0
        self._faults = cycle((0, 502, 503, 429, -1))
        self._gone: set[bytes] = set()

    def __call__(self, body: bytes) -> Response:
        """Answer a request of one call, or meet it with a fault."""
        self._requests += 1
        if self._requests % 100:
            return super().__call__(body)
        fault = next(self._faults)
        if fault > 0:
            return Response(http(_PAGE, fault, "text/html"))
        whole = super().__call__(body).data
        return Response(whole[: len(whole) // 2] if fault else b"", close=True)

    def outcome(self, method: bytes, ids: list[bytes]) -> bytes:
        """Return the member that holds what became of a call."""
        if denied := [each for each in ids if int(each) % _DENIED_EVERY == _DENIED_EVERY // 2 + 1]:
            return b'"error":"access denied to tasks [%b]"' % b", ".join(denied)
        make = self._late_stop if method == b"TaskStop" else self._odd_status
        return b'"result":[%b]' % b",".join(map(make, ids))

    def _late_stop(self, task_id: bytes) -> bytes:
        if int(task_id) % _GONE_EVERY != _GONE_EVERY - 1:
            return self._rows[b"TaskStop"][task_id]
        self._gone.add(task_id)
        return b'{"task_id":%b,"error":"Stopping task is unavailable"}' % task_id

    def _odd_status(self, task_id: bytes) -> bytes:
        if int(task_id) % _ODD_EVERY == _ODD_EVERY // 4 + 1:
            return b'{"task_id":%b,"errors":["storage is offline"]}' % task_id
        row = self._rows[b"TaskStatus"][task_id]
        if task_id in self._gone:
            self._gone.remove(task_id)  # the next run finds it Running again
            return row.replace(b'"Running"', b'"Completed"')
        return row


# --- The peers ------------------------------------------------------------------------------------

_DELETED: Final = re.compile(rb'"_id": *"(\d+)"')
_INFO: Final = b'{"name":"canned","version":{"number":"9.0.0","build_flavor":"default"}}'


def _deleted_row(number: int) -> str:
    return (
        f'{{"delete":{{"_index":"tasks","_id":"{number}","_version":2,"result":"deleted",'
        f'"_shards":{{"total":2,"successful":1,"failed":0}},"_seq_no":{number},'
        f'"_primary_term":1,"status":200}}}}'
    )


class Elasticsearch:
    """The bulk endpoint of an Elasticsearch server, on which each delete finds its document."""

    def __init__(self) -> None:
        self._rows = _Rows(_deleted_row)

    def __call__(self, body: bytes) -> Response:
        """Answer a bulk request, or the question who is there."""
        ids = _DELETED.findall(body)
        items = b",".join(map(self._rows.__getitem__, ids))
        reply = b'{"took":30,"errors":false,"items":[%b]}' % items if ids else _INFO
        kind = "application/vnd.elasticsearch+json;compatible-with=9"
        return Response(
            http(reply, kind=kind, more="X-Elastic-Product: Elasticsearch\r\n"), len(ids)
        )


def dynamodb(body: bytes) -> Response:
    """Answer BatchWriteItem of DynamoDB, which deletes all that it is asked to."""
    reply = http(b'{"UnprocessedItems":{}}', kind="application/x-amz-json-1.0")
    return Response(reply, body.count(b"DeleteRequest"))


SERVERS: Final[Mapping[str, Callable[[], Callable[[bytes], Response]]]] = {
    "documented": lambda: ControlApi(documented_rows),
    "narrow": lambda: ControlApi(narrow_row),
    "faults": FaultyControlApi,
    "elasticsearch": Elasticsearch,
    "dynamodb": lambda: dynamodb,
}
"""What makes the responder of each server."""
