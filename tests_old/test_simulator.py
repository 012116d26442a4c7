"""What the simulator promises, seen from the other end of a loopback connection."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import socket
import ssl
from collections import Counter
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import simulator
from ctrlapi_async.simulator import (
    STATUSES,
    Body,
    ControlApiSimulator,
    CutBody,
    Delay,
    Drop,
    Fault,
    Hang,
    HttpStatus,
    RequestRecord,
    Rewrite,
    SlowBody,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

JSON_HEADERS = {"Content-Type": "application/json"}
SENT = "Stop request was sent"
UNAVAILABLE = "Stopping task is unavailable"
MAX_INT = 2**63 - 1


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def call(method: str, task_ids: Any, project_id: int = 2, **more: Any) -> dict[str, Any]:
    return {"method": method, **more, "params": {"project_id": project_id, "task_ids": task_ids}}


def envelope(*calls: Any, user_id: Any = 1) -> dict[str, Any]:
    return {"user_id": user_id, "methods": list(calls)}


def stop(task_ids: Any, project_id: int = 2, **more: Any) -> dict[str, Any]:
    return envelope(call("TaskStop", task_ids, project_id, **more))


def check(task_ids: Any, project_id: int = 2, **more: Any) -> dict[str, Any]:
    return envelope(call("TaskStatus", task_ids, project_id, **more))


async def send(
    http: aiohttp.ClientSession, api: ControlApiSimulator, document: Any
) -> tuple[int, bytes]:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    async with http.post(
        api.endpoint, data=body, headers=JSON_HEADERS, allow_redirects=False
    ) as response:
        return response.status, await response.read()


async def answer(http: aiohttp.ClientSession, api: ControlApiSimulator, document: Any) -> Any:
    status, body = await send(http, api, document)
    assert status == 200, body
    return json.loads(body)


async def rows(http: aiohttp.ClientSession, api: ControlApiSimulator, document: Any) -> Any:
    reply = await answer(http, api, document)
    (entry,) = reply["reply"]
    return entry["result"]


async def statuses(
    http: aiohttp.ClientSession, api: ControlApiSimulator, task_ids: Any
) -> dict[int, str]:
    return {row["task_id"]: row["status"] for row in await rows(http, api, check(task_ids))}


# --- The documentation's examples -----------------------------------------------------------------

DOCUMENTED = {
    "one task": (
        {"project_id": 2, "task_ids": 63},
        [{"task_id": 63, "status": SENT}],
    ),
    "two tasks": (
        {"project_id": 2, "task_ids": [64, 65]},
        [{"task_id": 64, "status": SENT}, {"task_id": 65, "status": SENT}],
    ),
    "the third is not there": (
        {"project_id": 2, "task_ids": [66, 67, 68]},
        [
            {"task_id": 66, "status": SENT},
            {"task_id": 67, "status": SENT},
            {"task_id": 68, "error": UNAVAILABLE},
        ],
    ),
}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(("params", "result"), DOCUMENTED.values(), ids=DOCUMENTED.keys())
async def test_curl_gets_the_documented_replies(params: Any, result: Any) -> None:
    request = {"user_id": 1, "methods": [{"method": "TaskStop", "params": params}]}
    async with ControlApiSimulator() as api:
        api.documented_world()
        curl = await asyncio.create_subprocess_exec(
            *("curl", "--silent", "--show-error", "--noproxy", "*", api.endpoint),
            *("-H", "Content-Type: application/json", "--data", json.dumps(request)),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await curl.communicate()
    assert curl.returncode == 0
    assert json.loads(out) == {"reply": [{"method": "TaskStop", "result": result}]}


# --- TaskStatus and TaskStop ----------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
async def test_only_a_running_task_is_stopped(http: aiohttp.ClientSession, status: str) -> None:
    async with ControlApiSimulator() as api:
        task = api.add_task(66, status)
        before = await statuses(http, api, 66)
        (row,) = await rows(http, api, stop(66))
        after = await statuses(http, api, [66])
    running = status == "Running"
    assert before == {66: status}
    assert row == {"task_id": 66, **({"status": SENT} if running else {"error": UNAVAILABLE})}
    assert after == {66: "Canceled" if running else status}
    assert task.stopped is running
    assert task.stop_requests == running


async def test_rows_of_task_status_carry_more_unless_told(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        more = await rows(http, api, check(66))
        api.plain_rows = True
        plain = await rows(http, api, check(66))
    assert more == [{"task_id": 66, "status": "Running", "initial_task_id": 66}]
    assert plain == [{"task_id": 66, "status": "Running"}]


async def test_star_is_what_runs_or_waits_in_that_project(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator() as api:
        for task_id, status in enumerate(STATUSES):
            api.add_task(task_id, status)
        api.add_task(100, project_id=3)
        api.add_project(4)
        assert await statuses(http, api, "*") == {0: "Scheduled", 1: "Explore", 2: "Running"}
        assert await rows(http, api, check("*", 4)) == []
        api.refuse_all_active = True
        (entry,) = (await answer(http, api, check("*")))["reply"]
        assert entry == {
            "method": "TaskStatus",
            "error": "task_ids must be an integer or an array of integers",
        }


async def test_calls_of_one_request_are_answered_in_order(http: aiohttp.ClientSession) -> None:
    document = envelope(
        call("TaskStatus", [1, 2], id=7),
        call("TaskStop", 2, id=-1),
        call("Nothing's there", 2, id=0),
        call("TaskStatus", 2),
        call("TaskStop", 3, project_id=0, id=9),
    )
    async with ControlApiSimulator(plain_rows=True) as api:
        api.add_tasks([1, 2])
        api.add_task(3, project_id=0)
        reply = (await answer(http, api, document))["reply"]
        api.echo_id = False
        without = (await answer(http, api, document))["reply"]
    assert reply == [
        {
            "method": "TaskStatus",
            "id": 7,
            "result": [{"task_id": 1, "status": "Running"}, {"task_id": 2, "status": "Running"}],
        },
        {"method": "TaskStop", "id": -1, "result": [{"task_id": 2, "status": SENT}]},
        {"method": "Nothing's there", "id": 0, "error": "Undefined method 'Nothing's there'"},
        {"method": "TaskStatus", "result": [{"task_id": 2, "status": "Canceled"}]},
        {"method": "TaskStop", "id": 9, "result": [{"task_id": 3, "status": SENT}]},
    ]
    assert not any("id" in entry for entry in without)


@pytest.mark.parametrize("in_reply", [False, True])
@pytest.mark.parametrize(("user_id", "project_id"), [(5, 2), (5, 9), (1, 3), (3, 2)], ids=str)
async def test_a_user_without_rights_gets_nothing_done(
    http: aiohttp.ClientSession, user_id: int, project_id: int, *, in_reply: bool
) -> None:
    """5 is no user; 2 is user 1's project, 3 is user 3's, 9 is no project."""
    async with ControlApiSimulator(user_error_in_reply=in_reply) as api:
        api.add_task(66)
        api.add_task(67, project_id=3, user_id=3)
        good = (66, 2) if user_id == 1 else (67, 3)
        calls = [call("TaskStop", *good), call("TaskStop", 66, project_id)]
        reply = await answer(http, api, envelope(*calls, user_id=user_id))
        error = {"error": f"user {user_id} is unavailable"}
        assert reply == ({"reply": [error]} if in_reply else error)
        assert not any(task.stop_requests for task in api.tasks.values())


async def test_each_user_reaches_projects_of_its_own(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator() as api:
        for user_id in (1, 2, 3):
            api.add_task(user_id, project_id=user_id + 10, user_id=user_id)
        for user_id in (1, 2, 3):
            calls = [call("TaskStop", user_id, user_id + 10)]
            reply = await answer(http, api, envelope(*calls, user_id=user_id))
            assert reply["reply"][0]["result"] == [{"task_id": user_id, "status": SENT}]


async def test_a_project_that_is_not_there_fails_its_call_alone(
    http: aiohttp.ClientSession,
) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        bad, good = (
            await answer(http, api, envelope(call("TaskStop", 66, 9), call("TaskStop", 66)))
        )["reply"]
    assert bad == {"method": "TaskStop", "error": "project 9 does not exist"}
    assert good["result"] == [{"task_id": 66, "status": SENT}]


@pytest.mark.parametrize("method", ["TaskStatus", "TaskStop"])
async def test_a_method_can_be_left_out(http: aiohttp.ClientSession, method: str) -> None:
    other = "TaskStop" if method == "TaskStatus" else "TaskStatus"
    async with ControlApiSimulator(methods=[other]) as api:
        api.add_task(66)
        calls = [call(method, 66), call(other, 66), {"method": method}]
        refused, answered, bare = (await answer(http, api, envelope(*calls)))["reply"]
    assert refused == bare == {"method": method, "error": f"Undefined method '{method}'"}
    assert len(answered["result"]) == 1


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ("bad", "access denied to tasks [68, 70]"),
        ("all", "access denied to tasks [66, 68, 70]"),
        ("none", "access denied to some of the tasks"),
    ],
)
@pytest.mark.parametrize("method", ["TaskStatus", "TaskStop"])
async def test_one_bad_id_refuses_the_call(
    http: aiohttp.ClientSession, method: str, names: Any, error: str
) -> None:
    """68 is no task, and 70 is another project's."""
    async with ControlApiSimulator(denied_names=names) as api:
        api.add_task(66)
        api.add_task(70, project_id=3)
        document = envelope(call(method, [66, 68, 70], id=1))
        (entry,) = (await answer(http, api, document))["reply"]
        assert entry == {"method": method, "id": 1, "error": error}
        assert api.tasks[66].stop_requests == 0


@pytest.mark.parametrize(
    ("method", "missing", "row"),
    [
        ("TaskStatus", "error", [{"task_id": 68, "error": "Task does not exist"}]),
        ("TaskStop", "error", [{"task_id": 68, "error": UNAVAILABLE}]),
        ("TaskStatus", "omitted", []),
        ("TaskStop", "omitted", []),
    ],
)
async def test_a_bad_id_can_be_a_row_or_no_row(
    http: aiohttp.ClientSession, method: str, missing: Any, row: Any
) -> None:
    async with ControlApiSimulator(missing=missing) as api:
        api.add_tasks([66, 67])
        api.add_task(68, project_id=3)
        api.tasks[67].status = "Completed"
        result = await rows(http, api, envelope(call(method, [66, 68, 67])))
    assert [r["task_id"] for r in result] == ([66, 68, 67] if row else [66, 67])
    assert [r for r in result if r["task_id"] == 68] == row


# --- Lives ----------------------------------------------------------------------------------------


async def test_a_life_goes_by_the_clock(http: aiohttp.ClientSession) -> None:
    life = [(5.0, "Explore"), (8.0, "Running"), (60.0, "Completed")]
    async with ControlApiSimulator() as api:
        api.advance(100.0)
        task = api.add_task(66, "Scheduled", life=life)
        seen = []
        for seconds in (0.0, 4.9, 0.1, 3.0, 51.0, 1.0, 1000.0):
            api.advance(seconds)
            assert await statuses(http, api, 66) == {66: task.status}
            seen.append((api.now, task.status))
    assert seen == [
        (100.0, "Scheduled"),
        (104.9, "Scheduled"),
        (105.0, "Explore"),
        (108.0, "Running"),
        (159.0, "Running"),
        (160.0, "Completed"),
        (1160.0, "Completed"),
    ]
    assert repr(task) == "<SimulatedTask 66 Completed>"
    assert task.project_id == 2
    assert not task.stopped


async def test_a_stop_takes_its_delay(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator(stop_delay=3.0) as api:
        task = api.add_task(66)
        await rows(http, api, stop(66))
        api.advance(2.0)
        assert await statuses(http, api, 66) == {66: "Running"}
        assert await rows(http, api, stop(66)) == [{"task_id": 66, "status": SENT}]
        assert (task.stop_requests, task.stopped) == (2, False)
        api.advance(1.0)
        assert await statuses(http, api, 66) == {66: "Canceled"}
        assert task.stopped


async def test_a_task_may_end_before_its_stop_takes_effect(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator(stop_delay=3.0) as api:
        task = api.add_task(66, life=[(2.0, "Completed"), (10.0, "Running")])
        await rows(http, api, stop(66))
        api.advance(4.0)
        assert await statuses(http, api, 66) == {66: "Completed"}
        assert (task.stop_requests, task.stopped) == (1, False)
        api.advance(6.0)
        await rows(http, api, stop(66))
        api.advance(3.0)
        assert (task.status, task.stop_requests, task.stopped) == ("Canceled", 2, True)


async def test_the_clock_ticks_after_each_request(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator(tick=1.0) as api:
        api.add_task(66, life=[(1.0, "Stalled")])
        assert await statuses(http, api, 66) == {66: "Running"}
        assert await rows(http, api, stop(66)) == [{"task_id": 66, "error": UNAVAILABLE}]
        assert api.now == 2.0


async def test_a_clock_can_be_given() -> None:
    seconds = 7.0
    api = ControlApiSimulator(clock=lambda: seconds)
    task = api.add_task(66, "Scheduled", life=[(1.0, "Explore")])
    assert (api.now, task.status) == (7.0, "Scheduled")
    seconds = 8.0
    assert task.status == "Explore"
    with pytest.raises(RuntimeError, match="not driven by hand"):
        api.advance(1.0)


async def test_a_status_can_be_set(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator() as api:
        first, second = api.add_task(66), api.add_task(67)
        await rows(http, api, stop(66))
        first.status = "Running"
        assert (first.status, first.stopped, second.status) == ("Running", False, "Running")
        first.status = "Completed"
        assert await statuses(http, api, [66, 67]) == {66: "Completed", 67: "Running"}
        with pytest.raises(ValueError, match="status must be one of"):
            first.status = "running"


# --- The world ------------------------------------------------------------------------------------


@given(count=st.integers(0, 500), running=st.floats(0, 1), seed=st.integers())
def test_mixed_tasks_are_shared_out_and_scattered_alike(
    count: int, running: float, seed: int
) -> None:
    one, other = ControlApiSimulator(), ControlApiSimulator()
    counts = one.mixed_tasks(count, running=running, seed=seed, first_id=5)
    other.mixed_tasks(count, running=running, seed=seed, first_id=5)
    truth = {task_id: task.status for task_id, task in one.tasks.items()}
    assert list(truth) == list(range(5, 5 + count))
    assert truth == {task_id: task.status for task_id, task in other.tasks.items()}
    assert counts == Counter(truth.values())
    assert counts["Running"] == round(count * running)
    rest = [counts[status] for status in STATUSES if status != "Running"]
    assert max(rest) - min(rest) <= 1


def test_tasks_are_added_all_or_none() -> None:
    api = ControlApiSimulator()
    api.add_tasks(range(10), "Explore", project_id=3, user_id=4)
    api.add_tasks([], project_id=4)
    bad: list[tuple[type[Exception], str, Iterable[Any]]] = [
        (ValueError, "only once", [20, 9]),
        (ValueError, "only once", [20, 20]),
        (ValueError, "must be from 0", [20, -1]),
        (ValueError, "must be from 0", [20, MAX_INT + 1]),
        (TypeError, "must be ints", [20, True]),
        (TypeError, "must be ints", [20, "21"]),
    ]
    for error, words, ids in bad:
        with pytest.raises(error, match=words):
            api.add_tasks(ids)
    with pytest.raises(ValueError, match="project 3 is user 4's"):
        api.add_task(20, project_id=3)
    with pytest.raises(TypeError, match="user_id must be an int"):
        api.add_project(3, user_id="1")  # type: ignore[arg-type]
    assert list(api.tasks) == list(range(10))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda api: api.add_task(1, "running"), "status must be one of"),
        (lambda api: api.add_task(1, life=[(1.0, "done")]), "status must be one of"),
        (lambda api: api.add_task(1, life=[(0.0, "Stalled")]), "above zero and rise"),
        (
            lambda api: api.add_task(1, life=[(2.0, "Stalled"), (2.0, "Running")]),
            "above zero and rise",
        ),
        (lambda api: api.advance(-1.0), "does not go back"),
        (lambda api: api.mixed_tasks(-1), "count must not"),
        (lambda api: api.mixed_tasks(1, running=1.1), "from 0 to 1"),
        (lambda api: api.fault(Drop(), number=0), "number"),
        (lambda api: api.hold(number=0), "number"),
        (lambda _: ControlApiSimulator(latency=-1.0), "latency must not be below zero"),
        (lambda _: ControlApiSimulator(tick=1.0, clock=lambda: 0.0), "leave out one"),
        (lambda _: ControlApiSimulator(prefix="api"), "prefix must start"),
        (lambda _: ControlApiSimulator(prefix="/api/"), "prefix must start"),
        (lambda _: ControlApiSimulator(missing="lost"), "missing must be one of"),  # type: ignore[arg-type]
        (lambda _: ControlApiSimulator(denied_names=""), "denied_names must be one of"),  # type: ignore[arg-type]
        (lambda _: ControlApiSimulator(methods=["TaskInfo"]), "a method must be one of"),
        (lambda _: HttpStatus(99), "status"),
        (lambda _: Body("", status=600), "status"),
        (lambda _: CutBody(keep=1.0), "keep"),
        (lambda _: SlowBody(interval=-1.0), "interval"),
        (lambda _: Delay(-1.0), "seconds"),
    ],
)
def test_nonsense_is_refused(make: Callable[[ControlApiSimulator], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(ControlApiSimulator())


# --- Requests that are not as documented ----------------------------------------------------------


def page(status: int) -> Callable[[int, bytes], bool]:
    return lambda got, body: (
        got == status and f"<center><h1>{status} ".encode() in body and b"nginx" in body
    )


TRANSPORT: dict[str, tuple[int, dict[str, Any]]] = {
    "no such path": (404, {"path": "/"}),
    "a slash too many": (404, {"path": "/ctrl_api/v1/json/"}),
    "GET": (405, {"method": "GET"}),
    "PUT": (405, {"method": "PUT"}),
    "no content type": (415, {"headers": {}}),
    "form": (415, {"headers": {"Content-Type": "application/x-www-form-urlencoded"}}),
    "latin-1": (415, {"headers": {"Content-Type": "application/json; charset=latin-1"}}),
    "UTF-8": (200, {"headers": {"Content-Type": "application/json; charset=UTF-8"}}),
    "broken coding": (400, {"headers": {**JSON_HEADERS, "Content-Encoding": "deflate"}}),
    "longest": (200, {"pad": 500}),
    "too long": (413, {"pad": 501}),
    "too long for any path": (413, {"pad": 501, "path": "/"}),
}


@pytest.mark.parametrize(("status", "change"), TRANSPORT.values(), ids=TRANSPORT.keys())
async def test_what_does_not_reach_the_api_gets_a_page_like_nginx(
    http: aiohttp.ClientSession, status: int, change: dict[str, Any]
) -> None:
    async with ControlApiSimulator(max_body=500) as api:
        api.add_task(66)
        async with http.request(
            change.get("method", "POST"),
            api.url + change.get("path", "/ctrl_api/v1/json"),
            headers=change.get("headers", JSON_HEADERS),
            skip_auto_headers=["Content-Type"],
            data=json.dumps(stop(66)).encode().ljust(change.get("pad", 0)),
        ) as response:
            body = await response.read()
        assert response.status == status
        if status != 200:
            assert f"<center><h1>{status} ".encode() in body
            assert response.content_type == "text/html"
        assert api.tasks[66].stop_requests == (status == 200)
        assert api.counters.requests == 1


async def test_a_long_body_of_unknown_length_is_not_read_to_its_end(
    http: aiohttp.ClientSession,
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 400

    async with ControlApiSimulator(max_body=500) as api:
        async with http.post(api.endpoint, data=endless(), headers=JSON_HEADERS) as response:
            assert response.status == 413
            assert response.headers["Connection"] == "close"
        assert api.log[0].json is None


async def test_a_body_that_is_too_long_costs_the_connection() -> None:
    async with ControlApiSimulator(max_body=5) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n123456")
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
        writer.close()
        await writer.wait_closed()


async def test_a_client_that_waits_for_continue_is_told_so() -> None:
    body = json.dumps(stop(66)).encode()
    async with ControlApiSimulator() as api:
        api.add_task(66)
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(
            b"POST /ctrl_api/v1/json HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("Bearer x", 401),
        ("Basic " + base64.b64encode(b"me:wrong").decode(), 401),
        ("Basic " + base64.b64encode("me:gehe\u00efm".encode()).decode(), 200),
    ],
)
async def test_a_login_can_be_demanded(
    http: aiohttp.ClientSession, authorization: str | None, status: int
) -> None:
    async with ControlApiSimulator(login=("me", "gehe\u00efm")) as api:
        api.add_task(66)
        headers = JSON_HEADERS | ({"Authorization": authorization} if authorization else {})
        async with http.post(api.endpoint, json=stop(66), headers=headers) as response:
            body = await response.read()
        assert response.status == status
        if status == 401:
            assert b"<h1>401 Authorization Required</h1>" in body
            assert response.headers["WWW-Authenticate"].startswith("Basic ")
        assert "gehe\u00efm" not in repr(api)


async def test_a_prefix_goes_before_the_path(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator(prefix="/boro") as api:
        api.add_task(66)
        assert api.url == f"http://127.0.0.1:{api.port}/boro"
        assert api.endpoint == api.url + "/ctrl_api/v1/json"
        assert await statuses(http, api, 66) == {66: "Running"}
        async with http.post(f"http://127.0.0.1:{api.port}/ctrl_api/v1/json") as response:
            assert response.status == 404


PARAMS = "$.methods[0].params"
MALFORMED: dict[str, tuple[Any, str]] = {
    "empty": (b"", "$: not strict JSON"),
    "cut": (b'{"user_id":1,"methods":[', "$: not strict JSON"),
    "not UTF-8": (b'{"user_id":1,"methods":"\xff"}', "$: not strict JSON"),
    "UTF-16": ('{"user_id":1}'.encode("utf-16"), "$: not strict JSON"),
    "NaN": (b'{"user_id":NaN,"methods":[]}', "$: not strict JSON: NaN is not JSON"),
    "deep": (b"[" * 100_000, "$: not strict JSON"),
    "huge number": (b'{"user_id":' + b"9" * 5000 + b"}", "$: not strict JSON"),
    "twice": (
        b'{"user_id":1,"methods":[],"user_id":1}',
        '$: not strict JSON: member "user_id" stands twice',
    ),
    "array": ([], "$: must be an object"),
    "null": (None, "$: must be an object"),
    "no user": ({"methods": []}, '$: member "user_id" is missing'),
    "no methods": ({"user_id": 1}, '$: member "methods" is missing'),
    "unknown": ({"user_id": 1, "methods": [], "x": 1}, '$: member "x" is unknown'),
    "long unknown": ({"user_id": 1, "methods": [], "x" * 99: 1}, f'$: member "{"x" * 59}... is'),
    "user text": (envelope(user_id="1"), '$.user_id: must be an integer, not "1"'),
    "user bool": (envelope(user_id=True), "$.user_id: must be an integer, not true"),
    "user float": (envelope(user_id=1.0), "$.user_id: must be an integer, not 1.0"),
    "user array": (envelope(user_id=[]), "$.user_id: must be an integer, not an array"),
    "user long": (envelope(user_id=2**63), f"$.user_id: must be from {-(2**63)} to {MAX_INT}"),
    "methods none": (envelope(), "$.methods: must be an array of at least one call"),
    "methods object": ({"user_id": 1, "methods": {}}, "$.methods: must be an array"),
    "call text": (envelope("TaskStop"), "$.methods[0]: must be an object"),
    "call empty": (envelope({}), '$.methods[0]: member "method" is missing'),
    "call unknown": (
        envelope({"method": "X", "jsonrpc": "2.0"}),
        '$.methods[0]: member "jsonrpc" is unknown',
    ),
    "method number": (envelope({"method": 1}), "$.methods[0].method: must be a string, not 1"),
    "id text": (stop(66, id="1"), '$.methods[0].id: must be an integer, not "1"'),
    "id null": (stop(66, id=None), "$.methods[0].id: must be an integer, not null"),
    "id bool": (stop(66, id=False), "$.methods[0].id: must be an integer, not false"),
    "no params": (envelope({"method": "TaskStop"}), f"{PARAMS}: must be an object"),
    "params array": (envelope({"method": "TaskStop", "params": [2, 66]}), f"{PARAMS}: must be"),
    "no project": (
        envelope({"method": "TaskStop", "params": {"task_ids": 66}}),
        f'{PARAMS}: member "project_id" is missing',
    ),
    "no ids": (
        envelope({"method": "TaskStop", "params": {"project_id": 2}}),
        f'{PARAMS}: member "task_ids" is missing',
    ),
    "project text": (
        envelope({"method": "TaskStop", "params": {"project_id": "2", "task_ids": 66}}),
        f'{PARAMS}.project_id: must be an integer, not "2"',
    ),
    "ids empty": (stop([]), f"{PARAMS}.task_ids: must not be empty"),
    "ids text": (stop("66"), f'{PARAMS}.task_ids: must be an integer or an array, not "66"'),
    "ids null": (stop(None), f"{PARAMS}.task_ids: must be an integer or an array, not null"),
    "ids bool": (stop(True), f"{PARAMS}.task_ids: must be an integer or an array, not true"),
    "ids object": (stop({}), f"{PARAMS}.task_ids: must be an integer or an array, not an object"),
    "stop all": (stop("*"), f'{PARAMS}.task_ids: must be an integer or an array, not "*"'),
    "check text": (
        check("**"),
        f'{PARAMS}.task_ids: must be an integer, an array of integers or "*", not "**"',
    ),
    "star in array": (check(["*"]), f'{PARAMS}.task_ids[0]: must be an integer, not "*"'),
    "id below zero": (stop(-1), f"{PARAMS}.task_ids: must be from 0 to {MAX_INT}"),
    "id too long": (stop(MAX_INT + 1), f"{PARAMS}.task_ids: must be from 0 to {MAX_INT}"),
    "ids float": (stop([66, 67.0]), f"{PARAMS}.task_ids[1]: must be an integer, not 67.0"),
    "ids of bool": (stop([66, True]), f"{PARAMS}.task_ids[1]: must be an integer, not true"),
    "ids nested": (stop([[66]]), f"{PARAMS}.task_ids[0]: must be an integer, not an array"),
    "ids below zero": (stop([66, -1]), f"{PARAMS}.task_ids[1]: must be from 0 to {MAX_INT}"),
    "ids too long": (stop([66, 2**64]), f"{PARAMS}.task_ids[1]: must be from 0 to {MAX_INT}"),
    "ids twice": (stop([66, 67, 66]), f"{PARAMS}.task_ids: task 66 stands twice"),
    "second call": (
        envelope(call("TaskStop", 66), call("TaskStop", "x")),
        "$.methods[1].params.task_ids: must be an integer or an array",
    ),
}


@pytest.mark.parametrize(("document", "words"), MALFORMED.values(), ids=MALFORMED.keys())
async def test_what_is_not_documented_is_refused_and_changes_nothing(
    http: aiohttp.ClientSession, document: Any, words: str
) -> None:
    async with ControlApiSimulator() as api:
        api.add_tasks([66, 67])
        status, body = await send(http, api, document)
        error = json.loads(body)
        assert (status, list(error)) == (400, ["error"])
        assert error["error"].startswith(words)
        assert not any(task.stop_requests for task in api.tasks.values())


@pytest.mark.parametrize("task_ids", [0, MAX_INT, [0], [MAX_INT, 0]])
async def test_the_least_and_the_greatest_id_are_ids(
    http: aiohttp.ClientSession, task_ids: Any
) -> None:
    async with ControlApiSimulator() as api:
        api.add_tasks([0, MAX_INT])
        result = await rows(http, api, stop(task_ids))
    assert [row["status"] for row in result] == [SENT] * len(result)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["method", "id"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
IDS = st.just("*") | st.integers() | st.lists(st.integers(0, 9), max_size=4) | JSON_VALUES
CALLS = st.builds(call, st.sampled_from(["TaskStop", "TaskStatus", "X"]), IDS, st.integers(1, 3))
ENVELOPES = st.builds(lambda calls, user: envelope(*calls, user_id=user), st.lists(CALLS), IDS)


@given(JSON_VALUES | ENVELOPES)
def test_any_json_gets_a_documented_answer(document: Any) -> None:
    api = ControlApiSimulator()
    api.add_tasks(range(5))
    simulator._calls_read(document)
    made = api._api_answer(document, None, effect=True)
    reply = json.loads(made.body)
    assert (made.status, list(reply)) in [(400, ["error"]), (200, ["error"]), (200, ["reply"])]
    if "reply" in reply:
        assert len(reply["reply"]) == len(document["methods"])


# --- Faults ---------------------------------------------------------------------------------------

NO_REPLY = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (302, "302 Found"),
        (429, "429 Too Many Requests"),
        (500, "500 Internal Server Error"),
        (502, "502 Bad Gateway"),
        (503, "503 Service Temporarily Unavailable"),
        (504, "504 Gateway Time-out"),
        (599, "599"),
    ],
)
@pytest.mark.parametrize("effect", [False, True])
async def test_an_http_status_is_answered(
    http: aiohttp.ClientSession, status: int, title: str, *, effect: bool
) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        api.fault(HttpStatus(status, headers={"Retry-After": "7"}, effect=effect))
        async with http.post(api.endpoint, json=stop(66), allow_redirects=False) as response:
            body = await response.text()
        assert response.status == status
        assert response.headers["Retry-After"] == "7"
        assert response.content_type == "text/html"
        assert f"<title>{title}</title>" in body
        assert api.tasks[66].stopped is effect


@pytest.mark.parametrize("body", ["caf\u00e9", "caf\u00e9".encode(), "", b"\xff"])
@pytest.mark.parametrize("make", [lambda body: HttpStatus(500, body=body), Body])
async def test_any_body_is_answered(
    http: aiohttp.ClientSession, make: Callable[[str | bytes], Fault], body: str | bytes
) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        api.fault(make(body))
        _, got = await send(http, api, stop(66))
        assert got == (body.encode() if isinstance(body, str) else body)
        assert not api.tasks[66].stopped


async def test_a_body_has_the_status_and_type_that_it_is_given(
    http: aiohttp.ClientSession,
) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        api.fault(Body("<html>", content_type="text/html", status=201, effect=True))
        async with http.post(api.endpoint, json=stop(66)) as response:
            assert (response.status, response.content_type) == (201, "text/html")
        assert api.tasks[66].stopped


@pytest.mark.parametrize("effect", [False, True])
async def test_a_drop_leaves_no_byte(http: aiohttp.ClientSession, *, effect: bool) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        api.fault(Drop(effect=effect), method="TaskStop")
        with pytest.raises(NO_REPLY):
            await send(http, api, stop(66))
        assert api.tasks[66].stopped is effect
        assert await statuses(http, api, 66) == {66: "Canceled" if effect else "Running"}
        assert api.counters.connections == 2


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("effect", [False, True])
async def test_a_cut_body_is_shorter_than_announced(
    http: aiohttp.ClientSession, keep: float, *, effect: bool
) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        api.fault(CutBody(keep=keep, effect=effect))
        async with http.post(api.endpoint, json=stop(66)) as response:
            assert response.status == 200
            announced = int(response.headers["Content-Length"])
            got = await response.content.read(int(announced * keep))
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
        assert len(got) <= int(announced * keep) < announced
        assert b'{"reply":[{"method":"TaskStop"'.startswith(got[:20])
        assert api.tasks[66].stopped is effect


@pytest.mark.parametrize("effect", [False, True])
async def test_a_slow_body_comes_whole_when_it_is_awaited(
    http: aiohttp.ClientSession, *, effect: bool
) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        api.fault(SlowBody(interval=0.0, effect=effect))
        assert await rows(http, api, stop(66)) == [{"task_id": 66, "status": SENT}]
        assert api.tasks[66].stopped is effect


async def test_a_slow_body_ends_when_the_client_goes(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        api.fault(SlowBody(interval=3600.0))
        response = await http.post(api.endpoint, json=stop(66))
        assert await response.content.readexactly(1) == b"{"
        assert api.counters.in_flight == 1
        response.close()
        await api.wait_until(lambda: api.counters.in_flight == 0)
        await api.wait_until(lambda: api.counters.connections_open == 0)


@pytest.mark.parametrize("effect", [False, True])
async def test_a_hang_ends_when_the_client_goes(
    http: aiohttp.ClientSession, *, effect: bool
) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        api.fault(Hang(effect=effect))
        sending = asyncio.create_task(send(http, api, stop(66)))
        await api.wait_for_requests(1, "TaskStop")
        sending.cancel()
        await asyncio.wait([sending])
        await api.wait_until(lambda: api.counters.in_flight == 0)
        assert api.tasks[66].stopped is effect


@pytest.mark.parametrize("effect", [False, True])
async def test_a_reply_can_be_rewritten(http: aiohttp.ClientSession, *, effect: bool) -> None:
    def shuffled(reply: Any) -> Any:
        reply["reply"][0]["result"].reverse()
        return reply

    async with ControlApiSimulator() as api:
        api.add_tasks([66, 67])
        api.fault(Rewrite(shuffled, effect=effect))
        result = await rows(http, api, stop([66, 67]))
        assert result == [{"task_id": 67, "status": SENT}, {"task_id": 66, "status": SENT}]
        assert api.tasks[66].stopped is effect
        status, body = await send(http, api, {})
        assert (status, "error" in json.loads(body)) == (400, True)


async def test_latency_is_for_each_request_and_each_id(
    http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    async with ControlApiSimulator(latency=10.0, seconds_per_id=0.5) as api:
        api.add_tasks(range(4))
        api.fault(Delay(100.0), method="TaskStop")
        await rows(http, api, check([0, 1, 2]))
        await rows(http, api, stop([0, 1, 2, 3]))
        await rows(http, api, check("*"))
        assert slept == [11.5, 112.0, 10.0]
        assert api.tasks[0].stopped


async def struck(
    http: aiohttp.ClientSession, api: ControlApiSimulator, documents: Iterable[Any]
) -> list[int]:
    return [(await send(http, api, document))[0] for document in documents]


@pytest.mark.parametrize(
    ("where", "got"),
    [
        ({}, [500, 500, 500, 500, 500, 500]),
        ({"number": 2}, [200, 500, 200, 200, 200, 400]),
        ({"number": 2, "every": True}, [200, 500, 500, 500, 500, 500]),
        ({"method": "TaskStop"}, [200, 500, 200, 500, 500, 400]),
        ({"method": "TaskStop", "number": 2}, [200, 200, 200, 500, 200, 400]),
        ({"method": "TaskStop", "number": 2, "every": True}, [200, 200, 200, 500, 500, 400]),
        ({"method": "TaskStatus", "number": 3}, [200, 200, 200, 500, 200, 400]),
        ({"method": "Other"}, [200, 200, 200, 200, 200, 400]),
    ],
)
async def test_faults_strike_by_number(
    http: aiohttp.ClientSession, where: dict[str, Any], got: list[int]
) -> None:
    both = envelope(call("TaskStatus", 66), call("TaskStop", 66), call("TaskStop", 66))
    async with ControlApiSimulator() as api:
        api.add_task(66)
        api.fault(HttpStatus(500), **where)
        api.fault(HttpStatus(502), **where)
        assert await struck(http, api, [check(66), stop(66), check(66), both, stop(66), {}]) == got
        api.clear_faults()
        assert await struck(http, api, [check(66), stop(66)]) == [200, 200]


async def test_a_function_may_name_the_fault(http: aiohttp.ClientSession) -> None:
    def when(record: RequestRecord) -> Fault | None:
        return HttpStatus(502) if 66 in record.ids else None

    async with ControlApiSimulator() as api:
        api.add_tasks([66, 67])
        api.fault_when = when
        api.fault(HttpStatus(503), number=3)
        assert await struck(http, api, [check(66), check(67), check(66)]) == [502, 200, 503]
        api.clear_faults()
        assert await struck(http, api, [check(66)]) == [200]


async def test_a_hook_that_raises_is_not_overheard(http: aiohttp.ClientSession) -> None:
    def bad(_: Any) -> Any:
        raise LookupError("oops")

    api = ControlApiSimulator()
    await api.start()
    api.add_task(66)
    api.fault(Rewrite(bad), number=1)
    api.fault_when = bad
    assert await struck(http, api, [check(66), check(66)]) == [500, 500]
    with pytest.raises(ExceptionGroup, match="hooks of the simulator raised") as raised:
        await api.stop()
    assert [str(error) for error in raised.value.exceptions] == ["oops", "oops"]
    await api.stop()


async def test_a_hook_that_raises_hides_no_other_error(http: aiohttp.ClientSession) -> None:
    def bad(_: Any) -> Any:
        raise LookupError("oops")

    async def failing() -> None:
        async with ControlApiSimulator() as api:
            api.fault_when = bad
            assert await struck(http, api, [check(66)]) == [500]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()


# --- Gates, counters and the log ------------------------------------------------------------------


@pytest.mark.parametrize("effect", [False, True])
async def test_requests_are_held_until_released(
    http: aiohttp.ClientSession, *, effect: bool
) -> None:
    async with ControlApiSimulator() as api:
        task = api.add_task(66)
        with api.hold("TaskStop", effect=effect) as gate:
            sending = asyncio.create_task(send(http, api, stop(66)))
            await api.wait_for_requests(1, "TaskStop")
            await statuses(http, api, 66)
            assert (gate.held, sending.done(), task.stopped) == (1, False, effect)
        status, _ = await sending
        assert (status, gate.held, task.stopped) == (200, 0, True)
        assert await struck(http, api, [stop(66)]) == [200]


async def test_one_request_can_be_held_alone(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        with api.hold(number=2):
            assert await struck(http, api, [check(66)]) == [200]
            sending = asyncio.create_task(send(http, api, check(66)))
            await api.wait_for_requests(2)
            assert await struck(http, api, [check(66)]) == [200]
            assert not sending.done()
        assert (await sending)[0] == 200
        with api.hold(number=10, every=True), api.hold():
            sending = asyncio.create_task(send(http, api, check(66)))
            await api.wait_for_requests(4)
            sending.cancel()
            await asyncio.wait([sending])
            await api.wait_until(lambda: api.counters.in_flight == 0)


async def test_everything_is_counted(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator() as api:
        api.add_tasks(range(10))
        gate = api.hold()
        documents = [check([1, 2, 3]), envelope(call("TaskStop", 4), call("TaskStop", [5, 6])), {}]
        sending = [asyncio.create_task(send(http, api, document)) for document in documents]
        await api.wait_for_requests(3)
        waiting = asyncio.create_task(api.wait_for_requests(9))
        await asyncio.sleep(0)
        waiting.cancel()
        counters = api.counters
        assert (counters.in_flight, counters.peak) == (3, 3)
        assert (counters.connections, counters.connections_open) == (3, 3)
        gate.release()
        await asyncio.gather(*sending)
        await statuses(http, api, "*")
        assert (counters.requests, counters.in_flight, counters.peak) == (4, 0, 3)
        assert counters.requests_by_method == {"TaskStatus": 2, "TaskStop": 1}
        assert counters.calls == {"TaskStatus": 2, "TaskStop": 2}
        assert counters.ids == {"TaskStatus": 3, "TaskStop": 3}


async def test_every_request_is_logged(http: aiohttp.ClientSession) -> None:
    both = envelope(call("TaskStop", 4), call("TaskStatus", [5, True]), call("TaskStop", [6]))
    async with ControlApiSimulator() as api:
        assert await struck(http, api, [check(1), both, b"{", 5]) == [200, 400, 400, 400]
        first, second, third, fourth = api.log
    assert (first.number, first.json, first.numbers) == (1, check(1), {"TaskStatus": 1})
    assert (first.http_method, first.path) == ("POST", "/ctrl_api/v1/json")
    assert first.headers["content-type"] == "application/json"
    assert second.json == both
    assert second.numbers == {"TaskStop": 1, "TaskStatus": 2}
    assert second.methods == ("TaskStop", "TaskStatus", "TaskStop")
    assert second.ids == (4, 5, 6)
    assert (third.number, third.json, third.methods) == (3, None, ())
    assert (fourth.number, fourth.json, fourth.ids) == (4, 5, ())


async def test_the_log_can_be_switched_off(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator(log=False) as api:
        await send(http, api, check(1))
        assert (api.log, api.counters.requests) == ([], 1)


async def test_a_reset_numbers_requests_from_one_again(http: aiohttp.ClientSession) -> None:
    async with ControlApiSimulator() as api:
        api.add_task(66)
        with api.hold(number=2):
            await statuses(http, api, 66)
            sending = asyncio.create_task(send(http, api, check(66)))
            await api.wait_for_requests(2)
            api.reset_counters()
            assert api.log == []
            assert (api.counters.requests, api.counters.connections) == (0, 0)
            assert (api.counters.in_flight, api.counters.peak) == (1, 1)
            assert api.counters.connections_open == 1
        await sending
        assert api.counters.in_flight == 0
        await statuses(http, api, 66)
        assert [record.number for record in api.log] == [1]


# --- Start and stop -------------------------------------------------------------------------------


async def test_it_starts_again_on_its_port(http: aiohttp.ClientSession) -> None:
    api = ControlApiSimulator()
    assert api.port == 0
    api.add_task(66)
    await api.start()
    url = api.url
    with pytest.raises(RuntimeError, match="runs already"):
        await api.start()
    assert await statuses(http, api, 66) == {66: "Running"}
    await api.stop()
    await api.stop()
    with pytest.raises(aiohttp.ClientConnectorError):
        await send(http, api, check(66))
    await api.start()
    assert api.url == url == f"http://127.0.0.1:{api.port}"
    assert await statuses(http, api, 66) == {66: "Running"}
    await api.stop()
    assert api.counters.requests == 2


async def test_a_port_that_is_taken_is_an_error_and_nothing_else() -> None:
    async with ControlApiSimulator() as api:
        other = ControlApiSimulator(port=api.port)
        with pytest.raises(OSError, match="address already in use"):
            await other.start()
    await other.start()
    await other.stop()


@pytest.mark.parametrize("fault", [Hang(), SlowBody(interval=3600.0), Delay(3600.0), None], ids=str)
async def test_stop_ends_what_is_going_on(http: aiohttp.ClientSession, fault: Fault | None) -> None:
    before = asyncio.all_tasks()
    api = ControlApiSimulator()
    await api.start()
    api.add_task(66)
    await statuses(http, api, 66)
    if fault is None:
        api.hold()
    else:
        api.fault(fault)
    sending = asyncio.create_task(send(http, api, check(66)))
    await api.wait_for_requests(2)
    _, idle = await asyncio.open_connection("127.0.0.1", api.port)
    await api.wait_until(lambda: api.counters.connections_open == 2)
    await api.stop()
    assert asyncio.all_tasks() - {sending} == before
    assert (api.counters.in_flight, api.counters.connections_open) == (0, 0)
    with pytest.raises((*NO_REPLY, aiohttp.ClientPayloadError)):
        await sending
    idle.close()


@pytest.mark.parametrize("turns", range(6))
async def test_no_connection_outlives_stop_however_far_it_got(turns: int) -> None:
    api = ControlApiSimulator()
    await api.start()
    with socket.create_connection(("127.0.0.1", api.port), timeout=10.0) as client:
        # The loop accepts it and wraps it step by step.
        for _ in range(turns):
            await asyncio.sleep(0)
        await api.stop()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    assert api.counters.connections_open == 0


async def test_a_host_of_version_six_stands_in_brackets() -> None:
    assert ControlApiSimulator(host="::1", port=80).url == "http://[::1]:80"


async def test_it_serves_https(http: aiohttp.ClientSession) -> None:
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    async with ControlApiSimulator(ssl_context=server) as api:
        api.add_task(66)
        assert api.url == f"https://127.0.0.1:{api.port}"
        api.fault(Drop(), number=2)
        async with http.post(api.endpoint, json=check(66), ssl=client) as response:
            assert response.status == 200
        with pytest.raises(NO_REPLY):
            await http.post(api.endpoint, json=check(66), ssl=client)
