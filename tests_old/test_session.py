"""The door: what a session sends, reads, takes and refuses."""

from __future__ import annotations

import json
import math
import pickle
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aioresponses import aioresponses as AioResponses  # noqa: N812 - it is a class
from hypothesis import given
from hypothesis import strategies as st
from invariants import run
from support import any_json, arriving, body, entry, row, sample
from yarl import URL

from ctrlapi_async import (
    ALL_ACTIVE,
    Batching,
    ControlSession,
    CtrlApiError,
    ProjectNotFoundError,
    ReplyError,
    RetryPolicy,
    StatusReport,
    StopIncompleteError,
    StopOutcome,
    StopReport,
    StopResult,
    TaskState,
    TaskStatus,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async.simulator import Body, ControlApiSimulator, Delay, Rewrite

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST = "http://172.16.1.41"
ENDPOINT = f"{HOST}/ctrl_api/v1/json"
ONCE = RetryPolicy(attempts=1)
AT_ONCE = RetryPolicy(wait_initial=0, wait_max=0)
SENT = StopResult.STOP_SENT


def asked(canned: AioResponses) -> list[dict[str, Any]]:
    """Give the requests that were sent, each checked for what all have in common."""
    requests = []
    for (method, url), calls in canned.requests.items():
        assert (method, url) == ("POST", URL(ENDPOINT))
        for each in calls:
            assert each.kwargs["headers"]["Content-Type"] == "application/json"
            assert each.kwargs["allow_redirects"] is False
            requests.append(json.loads(each.kwargs["data"]))
    return requests


def without_ids(request: dict[str, Any]) -> dict[str, Any]:
    """Take the calls' ids, which the documentation leaves out, from a request."""
    calls = [dict(each) for each in request["methods"]]
    ids = [each.pop("id") for each in calls]
    assert all(type(each) is int for each in ids)
    assert len(set(ids)) == len(ids)
    return request | {"methods": calls}


# --- The documentation's examples -----------------------------------------------------------------

EXAMPLES = ["stop_one", "stop_two", "stop_missing"]


@pytest.mark.parametrize("name", EXAMPLES)
async def test_documented_examples_against_canned_replies(name: str, canned: AioResponses) -> None:
    documented = sample(name)
    canned.post(ENDPOINT, payload=documented["reply"])
    (call,) = documented["request"]["methods"]
    async with ControlSession(HOST, user_id=1) as session:
        report = await session.task_stop(**call["params"])
    assert list(map(without_ids, asked(canned))) == [documented["request"]]
    assert report == expected_report(documented, status=None)


@pytest.mark.parametrize("name", EXAMPLES)
async def test_documented_examples_against_the_simulator(
    name: str, api: ControlApiSimulator
) -> None:
    documented = sample(name)
    (call,) = documented["request"]["methods"]
    api.documented_world()
    async with ControlSession(api.url, user_id=1) as session:
        report = await session.task_stop(**call["params"])
    assert [without_ids(record.json) for record in api.log] == [documented["request"]]
    assert [record.headers["Content-Type"] for record in api.log] == ["application/json"]
    assert report == expected_report(documented, status=None)
    assert {n for n, task in api.tasks.items() if task.stopped} == set(report.ids(SENT))


def expected_report(documented: Any, status: TaskStatus | None) -> StopReport:
    (told,) = documented["reply"]["reply"]
    return StopReport.of(
        StopOutcome(
            each["task_id"],
            2,
            SENT if "status" in each else StopResult.UNAVAILABLE,
            status,
            each.get("error"),
        )
        for each in told["result"]
    )


async def test_the_main_job_on_the_documented_tasks(api: ControlApiSimulator) -> None:
    api.documented_world()
    async with ControlSession(api.url, user_id=1) as session:
        report = await session.stop_running(2, [66, 67, 68])
    assert [record.methods for record in api.log] == [("TaskStatus",), ("TaskStop",)]
    assert api.log[1].json["methods"][0]["params"] == {"project_id": 2, "task_ids": [66, 67]}
    assert report.ids(SENT) == [66, 67]
    assert report[68].result is StopResult.NOT_FOUND
    assert report.stats.status_calls == report.stats.stop_calls == 1


# --- Where requests go, and as whom ---------------------------------------------------------------

URLS = [
    (HOST, ENDPOINT),
    (f"{HOST}/", ENDPOINT),
    (ENDPOINT, ENDPOINT),
    (f"{ENDPOINT}/", ENDPOINT),
    (f"{HOST}:8080/", f"{HOST}:8080/ctrl_api/v1/json"),
    (f"{HOST}/qc", f"{HOST}/qc/ctrl_api/v1/json"),
    (f"{HOST}/qc/", f"{HOST}/qc/ctrl_api/v1/json"),
    (f"{HOST}/qc/ctrl_api/v1/json/", f"{HOST}/qc/ctrl_api/v1/json"),
    ("https://[::1]:8443", "https://[::1]:8443/ctrl_api/v1/json"),
]


@pytest.mark.parametrize(("base_url", "endpoint"), URLS)
async def test_a_base_url_is_the_root_or_the_whole_endpoint(
    base_url: str, endpoint: str, canned: AioResponses
) -> None:
    canned.post(endpoint, payload={"reply": [entry(row(66))]})
    async with ControlSession(base_url, 1) as session:
        await session.task_status(2, 66)
    assert [str(url) for _, url in canned.requests] == [endpoint]


async def test_a_prefix_a_login_and_headers_reach_the_server() -> None:
    async with ControlApiSimulator(own_thread=False, prefix="/qc", login=("ops", "s3cret")) as api:
        api.add_task(66)
        async with ControlSession(
            api.url, 1, auth=("ops", "s3cret"), headers={"X-Trace": "17"}
        ) as session:
            assert (await session.stop_running(2, 66)).ids(SENT) == [66]
    assert {record.headers["X-Trace"] for record in api.log} == {"17"}


async def test_no_repr_shows_a_password() -> None:
    for session in (
        ControlSession("http://ops:s3cret@172.16.1.41", 1),
        ControlSession(HOST, 1, auth=("ops", "s3cret"), headers={"X-Api-Key": "s3cret"}),
    ):
        assert repr(session) == f"ControlSession({ENDPOINT!r}, user_id=1)"


async def test_a_client_of_the_callers_is_used_and_left_open(api: ControlApiSimulator) -> None:
    api.add_task(66)
    async with aiohttp.ClientSession(headers={"X-Mine": "yes"}) as client:
        async with ControlSession(api.url, 1, client=client) as session:
            await session.task_status(2, 66)
        assert not client.closed
    assert [record.headers["X-Mine"] for record in api.log] == ["yes"]


# --- In and out -----------------------------------------------------------------------------------

METHODS: list[Callable[[ControlSession], Awaitable[object]]] = [
    lambda session: session.call("TaskStatus", {}),
    lambda session: session.task_status(2, 66),
    lambda session: session.task_stop(2, 66),
    lambda session: session.stop_running(2, 66),
    lambda session: session.stop_running_across({2: 66}),
    lambda session: session.stop(2, 66),
    lambda session: session.stopping(2, 66).__aenter__(),
]


@pytest.mark.parametrize("method", METHODS, ids=range(len(METHODS)))
async def test_a_session_is_used_inside_its_async_with(
    method: Callable[[ControlSession], Awaitable[object]],
) -> None:
    session = ControlSession(HOST, 1)
    with pytest.raises(RuntimeError, match="not entered yet: use `async with`"):
        await method(session)
    async with session:
        pass
    with pytest.raises(RuntimeError, match="is closed"):
        await method(session)


async def test_a_session_is_entered_once_at_a_time(api: ControlApiSimulator) -> None:
    api.add_task(66)
    session = ControlSession(api.url, 1)
    async with session:
        with pytest.raises(RuntimeError, match="entered already"):
            await session.__aenter__()
        assert (await session.task_status(2, 66))[66].status is TaskStatus.RUNNING
    async with session:  # and again, once it is closed
        assert (await session.task_status(2, 66))[66].status is TaskStatus.RUNNING


def test_a_requests_time_starts_when_it_gets_its_slot() -> None:
    async def main() -> None:
        async with ControlApiSimulator(own_thread=False) as api:
            api.add_tasks(range(4))
            api.fault(Delay(20.0))
            batching = Batching(chunk_size=1, max_concurrency=1)
            async with ControlSession(api.url, 1, batching=batching, retry=ONCE) as session:
                # Four requests one after the other, 20 s each: none takes longer than 30.
                report = await session.task_status(2, range(4))
        assert report.ids(TaskStatus.RUNNING) == [0, 1, 2, 3]
        assert api.counters.peak == 1

    run(main())


# --- Arguments ------------------------------------------------------------------------------------

BAD_SESSIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(({"base_url": value}, TypeError, "base_url") for value in (None, 5, b"http://x", URL(HOST))),
    *(
        ({"base_url": value}, ValueError, "base_url")
        for value in (
            "", "172.16.1.41", "ftp://host", "http://", "http://host:port", "http://host:0",
            f"{HOST}?a=b", f"{HOST}#top",
        )
    ),
    *(({"user_id": value}, TypeError, "user_id") for value in (None, True, "1", 1.0)),
    *(({"user_id": value}, ValueError, "user_id") for value in (-1, 2**63)),
    *(({"auth": value}, TypeError, "auth") for value in ("ops:x", ("ops",), ("ops", None), 5)),
    ({"auth": ("o:ps", "x")}, ValueError, "auth"),
    ({"headers": {"X": 5}}, TypeError, "headers"),
    ({"headers": {"X": "a\r\nY: b"}}, ValueError, "headers"),
    *(({"ssl": value}, TypeError, "ssl") for value in (None, "yes", 5)),
    ({"client": "mine"}, TypeError, "client"),
    ({"batching": 100}, TypeError, "batching"),
    ({"retry": 3}, TypeError, "retry"),
    *(({"request_timeout": value}, TypeError, "request_timeout") for value in (None, "30", True)),
    *(
        ({"request_timeout": value}, ValueError, "request_timeout")
        for value in (0, -1, math.nan, math.inf)
    ),
    ({"max_reply_bytes": 0}, ValueError, "max_reply_bytes"),
    ({"max_reply_bytes": 1.5}, TypeError, "max_reply_bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "name"), BAD_SESSIONS)
def test_a_sessions_arguments_are_checked_when_it_is_made(
    arguments: dict[str, Any], error: type[Exception], name: str
) -> None:
    good: dict[str, Any] = {"base_url": HOST, "user_id": 1}
    with pytest.raises(error, match=name):
        ControlSession(**good | arguments)


BAD_IDS: list[tuple[Any, type[Exception]]] = [
    *((value, TypeError) for value in (None, True, 66.0, "66", b"66", bytearray(b"66"), object())),
    *((value, ValueError) for value in (-1, 2**63)),
    *(([66, value], TypeError) for value in (None, True, 66.0, "66", [66], object())),
    *(([66, value], ValueError) for value in (-1, 2**63)),
]
BAD_RUNS: list[tuple[dict[str, Any], type[Exception], str]] = [
    *(({"task_ids": value}, error, "task") for value, error in BAD_IDS),
    *(({"project_id": value}, TypeError, "project_id") for value in (None, True, "2", 2.0)),
    *(({"project_id": value}, ValueError, "project_id") for value in (-1, 2**63)),
    *(
        ({name: value}, error, name)
        for name in ("wait_pending", "confirm", "timeout")
        for value, error in (
            (True, TypeError), ("1", TypeError), (-1, ValueError), (math.nan, ValueError),
            (math.inf, ValueError),
        )
    ),
    ({"dry_run": True, "wait_pending": 1}, ValueError, "dry_run"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error", "name"), BAD_RUNS)
async def test_bad_arguments_are_named_before_the_first_call(
    arguments: dict[str, Any], error: type[Exception], name: str, api: ControlApiSimulator
) -> None:
    good: dict[str, Any] = {"project_id": 2, "task_ids": [66]}
    async with ControlSession(api.url, 1) as session:
        with pytest.raises(error, match=name):
            await session.stop_running(**good | arguments)
        with pytest.raises(error, match=name):
            async with session.stopping(**good | arguments):
                pass
        if not arguments.keys() - good.keys():
            with pytest.raises(error, match=name):
                await session.task_status(**good | arguments)
            with pytest.raises(error, match=name):
                await session.task_stop(**good | arguments)
    assert api.counters.requests == 0


async def test_all_active_is_not_to_be_stopped_unchecked(api: ControlApiSimulator) -> None:
    async with ControlSession(api.url, 1) as session:
        with pytest.raises(ValueError, match="ALL_ACTIVE"):
            await session.task_stop(2, ALL_ACTIVE)
    assert api.counters.requests == 0


@pytest.mark.parametrize(
    ("method", "params"),
    [(None, {}), ("", {}), (5, {}), ("X", None), ("X", [1]), ("X", {"a": {1j}})],
)
async def test_a_calls_arguments_are_checked_first(
    method: Any, params: Any, api: ControlApiSimulator
) -> None:
    async with ControlSession(api.url, 1) as session:
        with pytest.raises(TypeError):
            await session.call(method, params)
    assert api.counters.requests == 0


# --- The methods ----------------------------------------------------------------------------------


async def test_call_gives_the_raw_result(api: ControlApiSimulator) -> None:
    api.add_task(66)
    async with ControlSession(api.url, 1) as session:
        result = await session.call("TaskStatus", {"project_id": 2, "task_ids": 66})
    assert [(row["task_id"], row["status"]) for row in result] == [(66, "Running")]


async def test_call_raises_what_the_server_refused_with(api: ControlApiSimulator) -> None:
    async with ControlSession(api.url, 1) as session:
        with pytest.raises(UserUnavailableError):
            await session.call("TestMethod", {})
        api.add_project(2)
        with pytest.raises(UndefinedMethodError) as caught:
            await session.call("TestMethod", {})
        with pytest.raises(ProjectNotFoundError):
            await session.call("TaskStatus", {"project_id": 9, "task_ids": 66})
    assert caught.value.method == "TestMethod"
    assert api.counters.requests == 3  # none of them was worth a repeat


async def test_task_status_gives_whole_rows_in_the_order_asked_for(canned: AioResponses) -> None:
    told = sample("status_rich")["reply"]
    told["reply"][0]["id"] = 1
    canned.post(ENDPOINT, payload=told)
    async with ControlSession(HOST, 1) as session:
        report = await session.task_status(2, [66, 64, 65, 67])
    assert isinstance(report, StatusReport)
    assert list(report.values()) == [
        TaskState(66, None, "Task does not exist", {}),
        TaskState(
            64,
            TaskStatus.RUNNING,
            None,
            {
                "initial_task_id": 60,
                "progress": 0.42,
                "stream": {"name": "Новости", "status": "ok"},
            },
        ),
        TaskState(65, "Hibernating", None, {"initial_task_id": 65}),
        TaskState(67, None, "task 66 was not found", {}),
    ]


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        (
            [row(64, progress=5), row(64, "Completed", stream="a")],
            TaskState(64, TaskStatus.COMPLETED, None, {"stream": "a"}),
        ),
        (
            [row(64, "Completed", stream="a"), row(64, progress=5)],
            TaskState(64, TaskStatus.COMPLETED, None, {"stream": "a"}),
        ),
        (
            [row(64, "Completed"), row(64, "Canceled", stream="b"), row(1, progress=7)],
            TaskState(64, TaskStatus.COMPLETED),
        ),
        (
            [row(64, stream="a"), {"task_id": 64, "error": "no", "code": 9}],
            TaskState(64, TaskStatus.RUNNING, None, {"stream": "a"}),
        ),
    ],
)
async def test_task_status_tells_of_one_row(
    rows: list[Any], state: TaskState, canned: AioResponses
) -> None:
    # The first reply is no good, as 65 has neither a status nor an error; it leaves no trace.
    canned.post(
        ENDPOINT, payload={"reply": [entry(row(64, progress=4), {"task_id": 65, "code": 1}, id=1)]}
    )
    canned.post(ENDPOINT, payload={"reply": [entry(*rows, row(65, "Completed"), id=2)]})
    async with ControlSession(HOST, 1, retry=AT_ONCE) as session:
        report = await session.task_status(2, [64, 65])
    assert report == {64: state, 65: TaskState(65, TaskStatus.COMPLETED)}
    assert b"progress" not in pickle.dumps(report)


async def test_task_status_of_all_active_and_of_an_async_source(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 3])
    api.add_task(2, "Explore")
    api.add_task(4, "Completed")
    async with ControlSession(api.url, 1) as session:
        active = await session.task_status(2, ALL_ACTIVE)
        streamed = await session.task_status(2, arriving([4, 2]))
    assert {n: str(state.status) for n, state in active.items()} == {
        1: "Running", 2: "Explore", 3: "Running",
    }  # fmt: skip
    assert {n: str(state.status) for n, state in streamed.items()} == {4: "Completed", 2: "Explore"}
    assert api.log[0].json["methods"][0]["params"] == {"project_id": 2, "task_ids": "*"}


async def test_task_status_of_a_denied_id_says_so(api: ControlApiSimulator) -> None:
    api.add_task(66)
    async with ControlSession(api.url, 1) as session:
        report = await session.task_status(2, [66, 67])
    assert report[66].status is TaskStatus.RUNNING
    assert report[67] == TaskState(67, None, "access denied to tasks [67]")


async def test_task_status_raises_the_plain_error(api: ControlApiSimulator) -> None:
    api.add_project(2)
    async with ControlSession(api.url, 1) as session:
        with pytest.raises(ProjectNotFoundError):
            await session.task_status(9, 66)


async def test_task_stop_asks_nothing_first(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    api.add_task(3, "Completed")
    async with ControlSession(api.url, 1, batching=Batching(chunk_size=2)) as session:
        report = await session.task_stop(2, iter([1, 3, 2, 1]))
    assert [record.methods for record in api.log] == [("TaskStop",), ("TaskStop",)]
    assert list(report.values()) == [
        StopOutcome(1, 2, SENT),
        StopOutcome(3, 2, StopResult.UNAVAILABLE, None, "Stopping task is unavailable"),
        StopOutcome(2, 2, SENT),
    ]
    assert report.stats.stop_calls == 2
    assert report.stats.status_calls == 0


# --- Whatever a server sends ----------------------------------------------------------------------


@given(any_json.map(body) | st.binary())
async def test_only_our_errors_come_out_of_a_session(answer: bytes) -> None:
    with AioResponses() as canned:
        canned.post(ENDPOINT, body=answer, repeat=True)
        async with ControlSession(HOST, 1, retry=ONCE) as session:
            for each in METHODS[:6]:
                try:
                    await each(session)
                except StopIncompleteError as error:
                    assert list(error.report) == [66]  # noqa: PT017 - it may come or not
                except CtrlApiError:
                    pass


NONSENSE = [
    b"",
    b"null",
    b"<html>",
    b"{}",
    b'{"reply": []}',
    b'{"reply": [{"result": [{"task_id": 66}]}]}',
    b'{"reply": [{"result": [{"task_id": "66", "status": "Running"}]}]}',
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("answer", NONSENSE)
async def test_nonsense_over_a_socket_is_a_reply_error_that_leaves_every_task_an_outcome(
    answer: bytes, api: ControlApiSimulator
) -> None:
    api.fault(Body(answer))
    async with ControlSession(api.url, 1, retry=ONCE) as session:
        with pytest.raises(ReplyError):
            await session.task_status(2, 66)
        with pytest.raises(StopIncompleteError) as caught:
            await session.stop_running(2, [66, 67])
    assert caught.value.report.ids(StopResult.NOT_SENT) == [66, 67]
    assert all(isinstance(error, ReplyError) for error in caught.value.exceptions)


@pytest.mark.parametrize("echo_id", [True, False])
async def test_entries_and_rows_may_come_in_any_order(
    echo_id: bool, api: ControlApiSimulator
) -> None:
    def shuffle(told: Any) -> Any:
        for each in told["reply"]:
            each["result"].reverse()
        told["reply"].reverse()
        told["reply"].insert(0, entry(row(67, "Completed"), method="Other", id=10**6))
        return told

    api.echo_id = echo_id
    api.add_tasks([64, 65])
    api.add_task(66, "Stalled")
    api.fault(Rewrite(shuffle))
    async with ControlSession(api.url, 1) as session:
        report = await session.stop_running(2, [66, 65, 64])
    assert list(report) == [66, 65, 64]
    assert report.ids(SENT) == [65, 64]
    assert report[66].status is TaskStatus.STALLED


async def test_a_run_of_a_closed_session_does_not_start(api: ControlApiSimulator) -> None:
    async with ControlSession(api.url, 1) as session:
        run = session.stopping(2, [1])
    with pytest.raises(RuntimeError, match="is closed"):
        await run.__aenter__()
    assert api.counters.requests == 0


async def test_a_session_that_is_entered_again_is_as_good_as_new(api: ControlApiSimulator) -> None:
    api.add_tasks([1, 2])
    session = ControlSession(api.url, 1)
    for task_id in (1, 2):
        async with session:
            outcome = await session.stop(2, task_id)
        assert outcome.result is StopResult.STOP_SENT


async def test_ints_of_another_class_go_as_ints(api: ControlApiSimulator) -> None:
    class Number(int):
        pass

    api.add_tasks(range(30))
    async with ControlSession(api.url, 1) as session:
        report = await session.stop_running(Number(2), [*range(29), Number(29)])
        assert (await session.stop(Number(2), Number(3))).result is StopResult.NOT_RUNNING
    assert report.counts[StopResult.STOP_SENT] == 30
