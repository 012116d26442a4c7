"""The object that sends: encodes, tells the limiter, decodes, redacts, logs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import (
    ALL_ACTIVE,
    CtrlApiError,
    HttpError,
    MethodError,
    RequestError,
    TasksDeniedError,
)
from ctrlapi_async._protocol.pieces import PIECE
from ctrlapi_async._protocol.requests import TaskCall
from ctrlapi_async._protocol.rows import Rows
from ctrlapi_async._redaction import Redactor
from ctrlapi_async._sender import RequestSender
from tests.support.steps import watched

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "canary-5f1c"


class Wire:
    """A transport that is a function."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer
        self.redactor = Redactor([SECRET])

    async def post(self, body: bytes, **_: object) -> bytes:
        await asyncio.sleep(0)
        answer = self.answer(json.loads(body))
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


def sender(
    answer: Callable[[Any], Any],
) -> tuple[RequestSender, list[tuple[int, CtrlApiError | None]]]:
    """Return a sender, and what its limiter is told."""
    told: list[tuple[int, CtrlApiError | None]] = []

    def finished(*, sent_at: float, now: float, size: int, error: CtrlApiError | None) -> None:
        assert sent_at <= now
        told.append((size, error))

    limiter = SimpleNamespace(finished=finished)
    return RequestSender(Wire(answer), limiter, 7), told  # type: ignore[arg-type]


def entry(call: Any, **members: Any) -> dict[str, Any]:
    return {"method": call["method"], "id": call["id"], **members}


@pytest.mark.parametrize(
    "error",
    [RequestError("lost"), RequestError("never", sent=False), HttpError("no", 503, "", 3.0)],
)
async def test_errors_of_the_transport_come_out_as_they_are(error: CtrlApiError) -> None:
    error.__cause__ = cause = OSError("why")
    sends, told = sender(lambda _: error)
    with pytest.raises(type(error)) as caught:
        await sends.send("TaskStatus", [TaskCall(2, [1, 2])])
    assert caught.value is error
    assert caught.value.__cause__ is cause
    assert told == [(2, error)]


async def test_errors_of_calls_and_rows_are_redacted() -> None:
    def answer(request: Any) -> Any:
        first, second = request["methods"]
        rows = [
            {"task_id": 1, "error": f"bad {SECRET}"},
            {"task_id": 2, "status": "Running"},
            {"task_id": 3, "status": [SECRET]},
            {"task_id": 4, "error": "http://me:pw@host"},
            {"task_id": [SECRET]},
        ]
        denial = f"access denied to tasks [5] {SECRET}"
        return {"reply": [entry(first, result=rows, errors=[SECRET]), entry(second, error=denial)]}

    sends, _ = sender(answer)
    calls = [TaskCall(2, [1, 2, 3, 4]), TaskCall(3, [5])]
    rows, denied = await sends.send("TaskStatus", calls)
    assert isinstance(rows, Rows)
    assert isinstance(denied, TasksDeniedError)
    assert denied.task_ids == (5,)
    assert rows.words == "***"
    errors = {row.task_id: row.error for row in rows.rows}
    assert errors == {1: "bad ***", 2: None, 4: "http://***@host"}
    assert set(rows.unreadable_tasks) == {3}
    everything = [denied, rows.words, *rows.rows, *rows.unreadable, *rows.unreadable_tasks.values()]
    assert SECRET not in repr(everything) + repr(list(map(str, everything)))


# --- large replies --------------------------------------------------------------------------------


def wide(request: Any, **more: Any) -> Any:
    """Answer with 20 rows of half a piece."""
    name = "x" * (PIECE // 2)
    rows = [{"task_id": n, "status": "Running", "name": name, "error": SECRET} for n in range(20)]
    return {"reply": [entry(call, result=rows, **more) for call in request["methods"]]}


@pytest.mark.parametrize("calls", [1, 2])
async def test_the_loop_turns_while_a_large_reply_is_read(calls: int) -> None:
    sends, _ = sender(wide)
    async with watched() as turns:
        answers = await sends.send("TaskStatus", [TaskCall(2, ALL_ACTIVE)] * calls)
    assert (len(turns) > 5) == (calls == 1)
    for answer in answers:
        assert isinstance(answer, Rows)
        assert [row.task_id for row in answer.rows] == list(range(20))
        assert {row.error for row in answer.rows} == {"***"}


async def test_a_large_reply_with_an_error_is_that_error() -> None:
    sends, _ = sender(lambda request: wide(request, error=f"bad {SECRET}"))
    [error] = await sends.send("TaskStatus", [TaskCall(2, ALL_ACTIVE)])
    assert isinstance(error, MethodError)
    assert error.message == "bad ***"


# --- the log --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "fate"),
    [
        (HttpError("no", 404), "404"),
        (RequestError("lost"), "RequestError"),
        (b"{}", "ReplyError"),
        (asyncio.CancelledError(), "no answer"),
    ],
)
async def test_debug_has_a_line_of_bounded_length_a_request(
    answer: Any, fate: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ctrlapi_async")
    sends, told = sender(lambda _: answer)
    with pytest.raises((CtrlApiError, asyncio.CancelledError)):
        await sends.call("X" * 1000, {})
    assert len(told) == (fate != "no answer")  # a cancelled request tells the limiter nothing
    [line] = caplog.messages
    assert re.fullmatch(rf"X{{100}} of 1 task: {fate} after \d+\.\d ms", line)
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
