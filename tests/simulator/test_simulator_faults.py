"""Faults, over a real socket."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from asking import SENT, call, check, envelope, send, sent_rows, stop

from ctrlapi_async.simulator import (
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

NO_REPLY = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def replies(
    http: aiohttp.ClientSession, api: ControlApiSimulator, documents: Iterable[Any]
) -> list[int]:
    return [(await send(http, api, document))[0] for document in documents]


@pytest.mark.parametrize(
    ("status", "title"),
    [
        (302, "302 Found"),
        (429, "429 Too Many Requests"),
        (500, "500 Internal Server Error"),
        (503, "503 Service Temporarily Unavailable"),
        (504, "504 Gateway Time-out"),
        (599, "599"),
    ],
)
@pytest.mark.parametrize("effect", [False, True])
async def test_an_http_status_is_answered(
    http: aiohttp.ClientSession, api: ControlApiSimulator, status: int, title: str, *, effect: bool
) -> None:
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
    http: aiohttp.ClientSession,
    api: ControlApiSimulator,
    make: Callable[[str | bytes], Fault],
    body: str | bytes,
) -> None:
    api.add_task(66)
    api.fault(make(body))
    _, got = await send(http, api, stop(66))
    assert got == (body.encode() if isinstance(body, str) else body)
    assert not api.tasks[66].stopped


async def test_a_body_has_the_status_and_type_that_it_is_given(
    http: aiohttp.ClientSession, api: ControlApiSimulator
) -> None:
    api.add_task(66)
    api.fault(Body("<html>", content_type="text/html", status=201, effect=True))
    async with http.post(api.endpoint, json=stop(66)) as response:
        assert (response.status, response.content_type) == (201, "text/html")
    assert api.tasks[66].stopped


@pytest.mark.parametrize("effect", [False, True])
async def test_a_drop_leaves_no_byte(
    http: aiohttp.ClientSession, api: ControlApiSimulator, *, effect: bool
) -> None:
    api.add_task(66)
    api.fault(Drop(effect=effect), method="TaskStop")
    with pytest.raises(NO_REPLY):
        await send(http, api, stop(66))
    assert api.tasks[66].stopped is effect
    (row,) = await sent_rows(http, api, check(66))
    assert row["status"] == ("Canceled" if effect else "Running")
    assert api.counters.connections == 2
    # A client that asks again at once is not counted twice.
    assert api.counters.peak == 1


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("effect", [False, True])
async def test_a_cut_body_is_shorter_than_announced(
    http: aiohttp.ClientSession, api: ControlApiSimulator, keep: float, *, effect: bool
) -> None:
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
    http: aiohttp.ClientSession, api: ControlApiSimulator, *, effect: bool
) -> None:
    api.add_task(66)
    api.fault(SlowBody(interval=0.0, effect=effect))
    assert await sent_rows(http, api, stop(66)) == [{"task_id": 66, "status": SENT}]
    assert api.tasks[66].stopped is effect


async def test_a_slow_body_ends_when_the_client_goes(
    http: aiohttp.ClientSession, api: ControlApiSimulator
) -> None:
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
    http: aiohttp.ClientSession, api: ControlApiSimulator, *, effect: bool
) -> None:
    api.add_task(66)
    api.fault(Hang(effect=effect))
    sending = asyncio.create_task(send(http, api, stop(66)))
    await api.wait_for_requests(1, "TaskStop")
    assert api.tasks[66].stopped is effect
    sending.cancel()
    await asyncio.wait([sending])
    await api.wait_until(lambda: api.counters.in_flight == 0)


@pytest.mark.parametrize("effect", [False, True])
async def test_a_reply_can_be_rewritten(
    http: aiohttp.ClientSession, api: ControlApiSimulator, *, effect: bool
) -> None:
    def reverse(reply: Any) -> Any:
        reply["reply"][0]["result"].reverse()
        return reply

    api.add_tasks([66, 67])
    api.fault(Rewrite(reverse, effect=effect))
    result = await sent_rows(http, api, stop([66, 67]))
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
        await sent_rows(http, api, check([0, 1, 2]))
        await sent_rows(http, api, stop([0, 1, 2, 3]))
        await sent_rows(http, api, check("*"))
        assert slept == [11.5, 112.0, 10.0]
        assert api.tasks[0].stopped


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
    http: aiohttp.ClientSession, api: ControlApiSimulator, where: dict[str, Any], got: list[int]
) -> None:
    both = envelope(call("TaskStatus", 66), call("TaskStop", 66), call("TaskStop", 66))
    api.add_task(66)
    api.fault(HttpStatus(500), **where)
    api.fault(HttpStatus(502), **where)
    documents = [check(66), stop(66), check(66), both, stop(66), {}]
    assert await replies(http, api, documents) == got
    api.clear_faults()
    assert await replies(http, api, [check(66), stop(66)]) == [200, 200]


async def test_a_function_may_name_the_fault(
    http: aiohttp.ClientSession, api: ControlApiSimulator
) -> None:
    def when(record: RequestRecord) -> Fault | None:
        return HttpStatus(502) if 66 in record.ids else None

    api.add_tasks([66, 67])
    assert api.fault_when is None
    api.fault_when = when
    api.fault(HttpStatus(503), number=3)
    assert await replies(http, api, [check(66), check(67), check(66)]) == [502, 200, 503]
    api.clear_faults()
    assert await replies(http, api, [check(66)]) == [200]


def fail(_: Any) -> Any:
    raise LookupError("oops")


@pytest.mark.parametrize("own_thread", [False, True])
async def test_a_hook_that_raises_makes_stop_raise(
    http: aiohttp.ClientSession, *, own_thread: bool
) -> None:
    api = ControlApiSimulator(own_thread=own_thread)
    await api.start()
    api.add_task(66)
    api.fault(Rewrite(fail), number=1)
    api.fault_when = fail
    assert await replies(http, api, [check(66), check(66)]) == [500, 500]
    with pytest.raises(ExceptionGroup, match="hooks of the simulator raised") as raised:
        await api.stop()
    assert [str(error) for error in raised.value.exceptions] == ["oops", "oops"]
    await api.stop()


async def test_a_hook_that_raises_hides_no_other_error(http: aiohttp.ClientSession) -> None:
    async def use() -> None:
        async with ControlApiSimulator() as api:
            api.fault_when = fail
            assert await replies(http, api, [check(66)]) == [500]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
