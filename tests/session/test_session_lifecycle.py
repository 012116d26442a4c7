"""A session's life: opened on first use, closed once, on one loop; its arguments and methods."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aioresponses import aioresponses as AioResponses  # noqa: N812 - it is a class
from hypothesis import given, settings
from hypothesis import strategies as st
from yarl import URL

from ctrlapi_async import (
    ALL_ACTIVE,
    ControlSession,
    CtrlApiError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopResult,
    StopRun,
    TaskState,
    TaskStatus,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async.simulator import Body, Drop, HttpStatus
from tests.support.clock import run
from tests.support.simulated import (
    STATUS,
    STOP,
    disconnected,
    open_session,
    simulated,
    simulator,
    stopped,
    turns,
)
from tests.support.wire import any_json, documented_row, entry, row, sample, to_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ctrlapi_async.simulator import ControlApiSimulator

HOST = "http://172.16.1.41"
ENDPOINT = f"{HOST}/ctrl_api/v1/json"
ONCE = RetryPolicy(attempts=1)
SENT = StopResult.STOP_SENT

METHODS: dict[str, Callable[[ControlSession], Awaitable[object]]] = {
    "call": lambda session: session.call(STATUS, {"project_id": 2, "task_ids": 66}),
    "task_status": lambda session: session.task_status(2, 66),
    "task_stop": lambda session: session.task_stop(2, 66),
    "stop_running": lambda session: session.stop_running(2, 66),
    "stop_running_across": lambda session: session.stop_running_across({2: 66}),
    "stop": lambda session: session.stop(2, 66),
    "stopping": lambda session: session.stopping(2, 66).__aenter__(),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


# --- open and closed ------------------------------------------------------------------------------


@each_method
@simulated()
async def test_the_first_use_opens_a_session_and_aclose_ends_it(
    api: ControlApiSimulator, method: Callable[[ControlSession], Awaitable[object]]
) -> None:
    api.add_task(66)
    session = open_session(api)
    await method(session)
    await session.aclose()
    await disconnected(api)
    before = api.counters.requests
    for _ in range(2):
        await session.aclose()
        with pytest.raises(RuntimeError, match="is closed"):
            await method(session)
        with pytest.raises(RuntimeError, match="is closed and cannot be entered"):
            await session.__aenter__()
    assert api.counters.requests == before


@simulated()
async def test_a_session_is_entered_once_and_may_be_closed_unused(
    api: ControlApiSimulator,
) -> None:
    async with open_session(api) as session:
        assert repr(session) == f"ControlSession({api.endpoint!r}, user_id=1)"
        with pytest.raises(RuntimeError, match="is open and cannot be entered"):
            await session.__aenter__()
        run_ = session.stopping(2, [1])
    with pytest.raises(RuntimeError, match="is closed"):
        await run_.__aenter__()
    assert api.counters.connections == 0


@pytest.mark.parametrize("cancelled", [False, True])
@simulated()
async def test_closing_answers_whatever_goes_on(api: ControlApiSimulator, cancelled: bool) -> None:
    api.add_task(66)
    gate = api.hold()
    session = open_session(api)
    works = [asyncio.ensure_future(method(session)) for method in METHODS.values()]
    await api.wait_until(lambda: gate.held == len(works))
    closing = [asyncio.create_task(session.aclose()) for _ in range(2)]
    await turns(1)
    if cancelled:
        closing[0].cancel()
    *answers, stopping = await asyncio.gather(*works, return_exceptions=True)
    await asyncio.wait(closing)
    assert [each.cancelled() for each in closing] == [cancelled, False]
    assert isinstance(stopping, StopRun)
    answers += await asyncio.gather(stopping.wait(), return_exceptions=True)
    for error in answers:
        [cause] = error.exceptions if isinstance(error, StopIncompleteError) else [error]
        assert isinstance(cause, RequestError)
        assert "the session was closed" in str(error)
    await disconnected(api)


def test_a_session_belongs_to_the_loop_that_opens_it() -> None:
    async def use(session: ControlSession) -> None:
        assert len(await session.task_status(2, [1, 2])) == 2

    async def use_and_close(session: ControlSession) -> None:
        async with session:
            await use(session)

    async def main() -> None:
        async with simulator() as api:
            api.add_tasks([1, 2])
            for _ in range(2):
                # Made on this loop, or before there is any, and used on another.
                await asyncio.to_thread(asyncio.run, use_and_close(open_session(api)))
            session = open_session(api)
            await use(session)
            with pytest.raises(RuntimeError, match="opened on another event loop"):
                await asyncio.to_thread(asyncio.run, use(session))
            await session.aclose()
            assert api.counters.requests == 3

    run(main())


@simulated()
async def test_sessions_share_a_client_and_nothing_else(api: ControlApiSimulator) -> None:
    api.add_tasks(range(4))
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as client:
        sessions = [open_session(api, client=client, headers={"X-No": str(n)}) for n in range(4)]
        gate = api.hold(STATUS)
        stops = [asyncio.create_task(each.stop(2, n)) for n, each in enumerate(sessions)]
        await api.wait_until(lambda: gate.held == 4)
        await sessions[0].aclose()
        gate.release()
        error, *outcomes = await asyncio.gather(*stops, return_exceptions=True)
        for each in sessions:
            await each.aclose()
        assert not client.closed
    assert isinstance(error, StopIncompleteError)
    assert [getattr(outcome, "result", None) for outcome in outcomes] == [SENT] * 3
    assert stopped(api) == {1, 2, 3}
    assert {record.headers["X-Mine"] for record in api.log} == {"yes"}
    assert {record.headers["X-No"] for record in api.log} == {"0", "1", "2", "3"}


@simulated()
async def test_a_session_is_silent_unless_asked(
    api: ControlApiSimulator, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a program that has not configured logging.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    api.add_tasks(range(10))
    api.fault(HttpStatus(503), number=1)
    api.fault(Drop(effect=True), method=STOP, number=1)
    async with open_session(api) as session:
        report = await session.stop_running(2, range(10))
    assert report.complete
    assert report.stats.retries
    assert capfd.readouterr() == ("", "")


# --- arguments ------------------------------------------------------------------------------------

NO_SECONDS = [-1, math.nan, math.inf]
BAD_SESSIONS: list[tuple[str, type[Exception], list[Any]]] = [
    ("base_url", TypeError, [None, 5, b"http://x", URL(HOST)]),
    ("user_id", TypeError, [None, True, "1", 1.0]),
    ("user_id", ValueError, [-1, 2**63]),
    ("batching", TypeError, [100]),
    ("retry", TypeError, [3]),
    *((name, TypeError, [None, "30", True]) for name in ("request_timeout", "connect_timeout")),
    *((name, ValueError, [0, *NO_SECONDS]) for name in ("request_timeout", "connect_timeout")),
    ("ssl", TypeError, [None, "/etc/ca.pem"]),
    ("client", TypeError, ["client"]),
    ("auth", TypeError, ["me:pw"]),
    ("max_reply_bytes", ValueError, [0]),
    ("max_reply_bytes", TypeError, [1.5]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "values"), BAD_SESSIONS)
def test_a_bad_argument_of_a_session_is_named(
    name: str, kind: type[Exception], values: list[Any]
) -> None:
    good: dict[str, Any] = {"base_url": HOST, "user_id": 1}
    for value in values:
        with pytest.raises(kind, match=name):
            ControlSession(**good | {name: value})


NOT_IDS = [None, True, 66.0, "66", [66], object()]
BAD_RUNS: list[tuple[str, type[Exception], list[Any]]] = [
    ("task", TypeError, [None, True, 66.0, "66", b"66", bytearray(b"66"), {66: 1}, object()]),
    ("task", TypeError, [[66, value] for value in NOT_IDS]),
    ("task", ValueError, [-1, 2**63, [66, -1], [66, 2**63]]),
    ("project_id", TypeError, [None, True, "2", 2.0]),
    ("project_id", ValueError, [-1, 2**63]),
    *((name, TypeError, [True, "1"]) for name in ("wait_pending", "wait_stopped", "timeout")),
    *((name, ValueError, NO_SECONDS) for name in ("wait_pending", "wait_stopped", "timeout")),
    *((name, TypeError, [None, 1]) for name in ("dry_run", "follow_restarts")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "values"), BAD_RUNS)
@simulated()
async def test_a_bad_argument_of_a_run_is_named_before_the_first_call(
    api: ControlApiSimulator, name: str, kind: type[Exception], values: list[Any]
) -> None:
    good: dict[str, Any] = {"project_id": 2, "task_ids": [66]}
    async with open_session(api) as session:
        methods: list[Callable[..., Awaitable[Any]]] = [
            session.stop_running,
            lambda **more: session.stopping(**more).__aenter__(),
        ]
        if name in {"task", "project_id"}:
            methods += [session.task_status, session.task_stop]
        for value in values:
            for method in methods:
                with pytest.raises(kind, match=name):
                    await method(**good | {"task_ids" if name == "task" else name: value})
    assert api.counters.requests == 0


@simulated()
async def test_what_makes_no_sense_is_refused_before_the_first_call(
    api: ControlApiSimulator,
) -> None:
    async with open_session(api) as session:
        with pytest.raises(ValueError, match="ALL_ACTIVE"):
            await session.task_stop(2, ALL_ACTIVE)
        with pytest.raises(ValueError, match="dry_run"):
            await session.stop_running(2, 66, dry_run=True, wait_pending=1)
        bad_calls: list[Any] = [(None, {}), ("", {}), ("X", None), ("X", [1]), ("X", {"a": {1j}})]
        for method, params in bad_calls:
            with pytest.raises(TypeError):
                await session.call(method, params)
    assert api.counters.requests == 0


# --- the methods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stop_one", "stop_two", "stop_missing"])
@simulated()
async def test_the_documented_examples(api: ControlApiSimulator, name: str) -> None:
    documented = sample(name)
    [call], [told] = documented["request"]["methods"], documented["reply"]["reply"]
    api.documented_world()
    async with open_session(api) as session:
        report = await session.task_stop(**call["params"])
    [sent] = [record.json for record in api.log]
    assert isinstance(sent["methods"][0].pop("id"), int)
    assert sent == documented["request"]
    assert list(report.values()) == [
        StopOutcome(one["task_id"], 2, SENT)
        if "status" in one
        else StopOutcome(one["task_id"], 2, StopResult.UNAVAILABLE, None, one["error"])
        for one in told["result"]
    ]
    assert stopped(api) == set(report.ids(SENT))
    assert (report.stats.status_calls, report.stats.stop_calls) == (0, 1)


@simulated()
async def test_call_returns_the_raw_result_or_raises_the_refusal(api: ControlApiSimulator) -> None:
    async with open_session(api) as session:
        with pytest.raises(UserUnavailableError):
            await session.call("TestMethod", {})
        api.add_task(66)
        [told] = await session.call(STATUS, {"project_id": 2, "task_ids": 66})
        assert (told["task_id"], told["status"]) == (66, "Running")
        with pytest.raises(UndefinedMethodError) as caught:
            await session.call("TestMethod", {})
        with pytest.raises(ProjectNotFoundError):
            await session.call(STATUS, {"project_id": 9, "task_ids": 66})
    assert caught.value.method == "TestMethod"
    # A refusal is not repeated, and ids of calls are used once.
    assert [call["id"] for record in api.log for call in record.json["methods"]] == [1, 2, 3, 4]


async def test_task_status_returns_whole_rows_in_the_order_asked_for(canned: AioResponses) -> None:
    rows = [documented_row(64), row(65, "Hibernating", x=1), {"task_id": 67, "error": "no"}]
    canned.post(ENDPOINT, payload={"reply": [entry(*rows, id=1)]})
    async with ControlSession(HOST, 1) as session:
        report = await session.task_status(2, [66, 67, 64, 65])
    known = {"task_id", "status"}
    details = {name: value for name, value in rows[0].items() if name not in known}
    assert list(report) == [66, 67, 64, 65]
    assert report[64] == TaskState(64, TaskStatus.RUNNING, details=details)
    assert report[65] == TaskState(65, "Hibernating", details={"x": 1})
    assert (report[67].status, report[67].error) == (None, "no")
    assert report[66].status is None
    assert report[66].error


@simulated()
async def test_task_status_tells_of_a_denied_task_and_raises_the_plain_error(
    api: ControlApiSimulator,
) -> None:
    api.add_task(66)
    async with open_session(api) as session:
        report = await session.task_status(2, [66, 67])
        with pytest.raises(ProjectNotFoundError):
            await session.task_status(9, 66)
        api.fault(Body("{}"))
        with pytest.raises(ReplyError):
            await session.task_status(2, 66)
    assert report[66].status is TaskStatus.RUNNING
    assert report[67] == TaskState(67, None, "access denied to tasks [67]")


@settings(max_examples=20)
@given(any_json.map(to_bytes) | st.binary())
async def test_nothing_but_our_errors_comes_of_any_answer(answer: bytes) -> None:
    with AioResponses() as canned:
        canned.post(ENDPOINT, body=answer, repeat=True)
        async with ControlSession(HOST, 1, retry=ONCE) as session:
            for name in ("call", "task_status", "task_stop", "stop_running"):
                try:
                    await METHODS[name](session)
                except StopIncompleteError as error:
                    assert list(error.report) == [66]  # noqa: PT017 - it may come or not
                except CtrlApiError:
                    pass
