"""The object that sends: encodes, tells the limiter, decodes, redacts, logs."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import (
    ALL_ACTIVE,
    CtrlApiError,
    HttpError,
    MethodError,
    ReplyError,
    RequestError,
    RetryPolicy,
    TasksDeniedError,
    UserUnavailableError,
)
from ctrlapi_async._limiter import ConcurrencyLimiter
from ctrlapi_async._protocol.pieces import PIECE
from ctrlapi_async._protocol.requests import TaskCall
from ctrlapi_async._protocol.rows import DetailedRow, Rows
from ctrlapi_async._redaction import Redactor
from ctrlapi_async._sender import RequestSender

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "canary-5f1c"


class Wire:
    """A transport that is a function."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer
        self.redactor = Redactor([SECRET])
        self.requests: list[Any] = []
        self.traces: list[Any] = []

    async def post(self, body: bytes, *, trace: object = None) -> bytes:
        self.requests.append(json.loads(body))
        self.traces.append(trace)
        await asyncio.sleep(0)
        answer = self.answer(self.requests[-1])
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


class Told(ConcurrencyLimiter):
    """A limiter that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(8, wait_bound=RetryPolicy().wait_bound, random=random.random)
        self.told: list[tuple[int, CtrlApiError | None]] = []

    def finished(
        self, *, sent_at: float, now: float, size: int, error: CtrlApiError | None
    ) -> None:
        assert sent_at <= now
        self.told.append((size, error))
        super().finished(sent_at=sent_at, now=now, size=size, error=error)


def sender(answer: Callable[[Any], Any]) -> tuple[RequestSender, Wire, Told]:
    wire, told = Wire(answer), Told()
    return RequestSender(wire, told, 7), wire, told  # type: ignore[arg-type]


def entry(call: Any, **members: Any) -> dict[str, Any]:
    return {"method": call["method"], "id": call["id"], **members}


def running(request: Any) -> Any:
    """Answer that all tasks are Running."""
    replies = []
    for call in request["methods"]:
        ids = call["params"]["task_ids"]
        ids = ids if isinstance(ids, list) else [ids]
        rows = [{"task_id": each, "status": "Running", "uri": f"{each}.ts"} for each in ids]
        replies.append(entry(call, result=rows))
    return {"reply": replies}


async def test_several_calls_go_in_one_request() -> None:
    sends, wire, told = sender(running)
    calls = [TaskCall(2, [64, 65]), TaskCall(3, [70])]
    answers = await sends.send("TaskStatus", calls, options={"restart_chain": "last"})
    assert wire.requests == [
        {
            "user_id": 7,
            "methods": [
                {
                    "method": "TaskStatus",
                    "id": 1,
                    "params": {"project_id": 2, "task_ids": [64, 65], "restart_chain": "last"},
                },
                {
                    "method": "TaskStatus",
                    "id": 2,
                    "params": {"project_id": 3, "task_ids": 70, "restart_chain": "last"},
                },
            ],
        }
    ]
    assert [
        [row.task_id for row in answer.rows] for answer in answers if isinstance(answer, Rows)
    ] == [[64, 65], [70]]
    assert wire.traces == [{"method": "TaskStatus", "tasks": 3}]
    assert told.told == [(3, None)]


async def test_the_ids_of_calls_go_on_from_request_to_request() -> None:
    sends, wire, _ = sender(running)
    await sends.send("TaskStatus", [TaskCall(2, [1]), TaskCall(3, [2])])
    await sends.call("TaskStatus", {"project_id": 2, "task_ids": 1})
    await sends.send("TaskStop", [TaskCall(2, [1])])
    ids = [call["id"] for request in wire.requests for call in request["methods"]]
    assert ids == [1, 2, 3, 4]


async def test_all_active_counts_as_one() -> None:
    sends, wire, told = sender(lambda request: {"reply": [entry(request["methods"][0], result=[])]})
    await sends.send("TaskStatus", [TaskCall(2, ALL_ACTIVE)])
    assert wire.requests[0]["methods"][0]["params"]["task_ids"] == "*"
    assert told.told == [(1, None)]


async def test_rows_keep_their_json_where_asked() -> None:
    sends, _, _ = sender(running)
    for keep in (False, True):
        [answer] = await sends.send("TaskStatus", [TaskCall(2, [1])], keep_bytes=keep)
        assert isinstance(answer, Rows)
        assert isinstance(answer.rows[0], DetailedRow) == keep


async def test_a_call_returns_the_raw_result() -> None:
    sends, _, told = sender(running)
    rows = await sends.call("TaskStatus", {"project_id": 2, "task_ids": [1]})
    assert rows == [{"task_id": 1, "status": "Running", "uri": "1.ts"}]
    assert told.told == [(1, None)]


async def test_methods_are_proven_by_a_good_answer() -> None:
    def answer(request: Any) -> Any:
        [call] = request["methods"]
        if call["method"] == "TaskStatus":
            return running(request)
        return {"reply": [entry(call, error="no")]}

    sends, _, _ = sender(answer)
    assert sends.proven == set()
    await sends.send("TaskStop", [TaskCall(2, [1])])
    with pytest.raises(MethodError):
        await sends.call("Other", {})
    assert sends.proven == set()
    await sends.send("TaskStatus", [TaskCall(2, [1])])
    assert sends.proven == {"TaskStatus"}
    sends, _, _ = sender(running)
    await sends.call("TaskStatus", {"task_ids": 1})
    assert sends.proven == {"TaskStatus"}


async def test_what_json_cannot_hold_is_never_sent() -> None:
    sends, wire, told = sender(running)
    with pytest.raises(TypeError):
        await sends.call("TaskStatus", {"task_ids": {1, 2}})
    assert wire.requests == []
    assert told.told == []


@pytest.mark.parametrize(
    "error",
    [RequestError("lost"), RequestError("never", sent=False), HttpError("no", 503, "", 3.0)],
)
async def test_errors_of_the_transport_come_out_as_they_are(error: CtrlApiError) -> None:
    sends, _, told = sender(lambda _: error)
    with pytest.raises(type(error)) as caught:
        await sends.send("TaskStatus", [TaskCall(2, [1, 2])])
    assert caught.value is error
    assert told.told == [(2, error)]


async def test_the_cause_of_an_error_stays() -> None:
    error = RequestError("lost")
    error.__cause__ = OSError("why")
    sends, _, _ = sender(lambda _: error)
    with pytest.raises(RequestError) as caught:
        await sends.call("TaskStatus", {})
    assert isinstance(caught.value.__cause__, OSError)


async def test_a_cancelled_request_tells_the_limiter_nothing() -> None:
    sends, _, told = sender(lambda _: asyncio.CancelledError())
    with pytest.raises(asyncio.CancelledError):
        await sends.call("TaskStatus", {})
    assert told.told == []


# --- redaction ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"<html>" + SECRET.encode(), ReplyError),
        (b'{"x": "' + SECRET.encode(), ReplyError),
        ({"error": f"user {SECRET} is unavailable"}, UserUnavailableError),
    ],
)
async def test_errors_of_the_whole_reply_are_redacted(answer: Any, kind: type[Exception]) -> None:
    sends, _, told = sender(lambda _: answer)
    for sending in (sends.send("TaskStatus", [TaskCall(2, [1])]), sends.call("TaskStatus", {})):
        with pytest.raises(kind) as caught:
            await sending
        assert "***" in str(caught.value)
        assert SECRET not in repr(vars(caught.value)) + repr(caught.value)
        assert caught.value.__context__ is caught.value.__cause__ is None
    assert SECRET not in repr(told.told)


async def test_errors_of_calls_and_rows_are_redacted() -> None:
    def answer(request: Any) -> Any:
        first, second, third = request["methods"]
        rows = [
            {"task_id": 1, "error": f"bad {SECRET}"},
            {"task_id": 2, "status": "Running"},
            {"task_id": 3, "status": [SECRET]},
            {"task_id": 4, "error": "http://me:pw@host"},
            {"task_id": [SECRET]},
        ]
        return {
            "reply": [
                entry(first, result=rows, errors=[SECRET]),
                entry(second, error=f"access denied to tasks [5] {SECRET}"),
                entry(third, result=[]),
            ]
        }

    sends, _, _ = sender(answer)
    rows, denied, empty = await sends.send(
        "TaskStatus", [TaskCall(2, [1, 2, 3, 4]), TaskCall(3, [5]), TaskCall(4, [6])]
    )
    assert isinstance(rows, Rows)
    assert isinstance(denied, TasksDeniedError)
    assert isinstance(empty, Rows)
    assert denied.task_ids == (5,)
    assert rows.words == "***"
    assert {row.task_id: row.error for row in rows.rows} == {
        1: "bad ***",
        2: None,
        4: "http://***@host",
    }
    assert set(rows.unreadable_tasks) == {3}
    everything = [denied, rows.words, *rows.rows, *rows.unreadable, *rows.unreadable_tasks.values()]
    assert SECRET not in repr(everything) + repr(list(map(str, everything)))


# --- large replies --------------------------------------------------------------------------------


def wide(count: int, **more: Any) -> Callable[[Any], Any]:
    """Return an answer with so many rows of half a piece."""

    def answer(request: Any) -> Any:
        rows = [
            {"task_id": number, "status": "Running", "name": "x" * (PIECE // 2), **more}
            for number in range(count)
        ]
        return {"reply": [entry(call, result=rows) for call in request["methods"]]}

    return answer


@pytest.mark.parametrize("calls", [1, 2])
async def test_the_loop_turns_while_a_large_reply_is_read(calls: int) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    sends, _, _ = sender(wide(20, error=SECRET))
    counting = asyncio.create_task(count())
    answers = await sends.send("TaskStatus", [TaskCall(2, ALL_ACTIVE)] * calls)
    counting.cancel()
    await asyncio.wait([counting])
    assert (turns > 5) == (calls == 1)
    for answer in answers:
        assert isinstance(answer, Rows)
        assert [row.task_id for row in answer.rows] == list(range(20))
        assert {row.error for row in answer.rows} == {"***"}


async def test_a_large_reply_with_an_error_is_that_error() -> None:
    def answer(request: Any) -> Any:
        reply = wide(20)(request)
        reply["reply"][0]["error"] = f"bad {SECRET}"
        return reply

    sends, _, _ = sender(answer)
    [error] = await sends.send("TaskStatus", [TaskCall(2, ALL_ACTIVE)])
    assert isinstance(error, MethodError)
    assert error.message == "bad ***"


# --- the log --------------------------------------------------------------------------------------


async def test_debug_has_a_line_a_request(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ctrlapi_async")
    answers: Iterator[Callable[[Any], Any]] = iter(
        [
            running,
            running,
            lambda _: HttpError("no", 404),
            lambda _: RequestError("lost"),
            lambda _: b"{}",
            lambda _: asyncio.CancelledError(),
        ]
    )

    def answer(request: Any) -> Any:
        return next(answers)(request)

    sends, _, _ = sender(answer)
    await sends.send("TaskStatus", [TaskCall(2, [1, 2])])
    await sends.call("TaskStatus", {"task_ids": 1})
    for _ in range(4):
        with pytest.raises((CtrlApiError, asyncio.CancelledError)):
            await sends.call("X" * 1000, {})
    lines = [record.getMessage() for record in caplog.records]
    assert [re.sub(r"\d+\.\d ms", "1 ms", line) for line in lines] == [
        "TaskStatus of 2 tasks: 200 after 1 ms",
        "TaskStatus of 1 task: 200 after 1 ms",
        "X" * 100 + " of 1 task: 404 after 1 ms",
        "X" * 100 + " of 1 task: RequestError after 1 ms",
        "X" * 100 + " of 1 task: ReplyError after 1 ms",
        "X" * 100 + " of 1 task: no answer after 1 ms",
    ]
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
