"""Faults, over a real socket."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from ctrlapi_async.simulator import Body, CutBody, Delay, Drop, Hang, HttpStatus, Rewrite, SlowBody
from tests.support.asking import NO_REPLY, SENT, Served, call, check, envelope, stop
from tests.support.simulated import rewrite_rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


EFFECT = pytest.mark.parametrize("effect", [False, True])


@pytest.fixture
async def api() -> AsyncIterator[Served]:
    async with Served() as served:
        served.add_task(66)
        yield served


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
@EFFECT
async def test_an_http_status_is_answered(
    api: Served, status: int, title: str, *, effect: bool
) -> None:
    api.fault(HttpStatus(status, headers={"Retry-After": "7"}, effect=effect))
    async with api.post(stop(66)) as response:
        assert f"<title>{title}</title>" in await response.text()
    assert (response.status, response.content_type) == (status, "text/html")
    assert response.headers["Retry-After"] == "7"
    assert api.tasks[66].stopped is effect


@pytest.mark.parametrize("body", ["caf\u00e9", "caf\u00e9".encode(), "", b"\xff"])
async def test_any_body_is_answered(api: Served, body: str | bytes) -> None:
    api.fault(HttpStatus(500, body=body), number=1)
    api.fault(Body(body, content_type="text/plain", status=201, effect=True))
    expected = body.encode() if isinstance(body, str) else body
    assert await api.send(stop(66)) == (500, expected)
    assert not api.tasks[66].stopped
    async with api.post(stop(66)) as response:
        assert (response.status, response.content_type) == (201, "text/plain")
        assert await response.read() == expected
    assert api.tasks[66].stopped


@EFFECT
async def test_a_drop_leaves_no_byte(api: Served, *, effect: bool) -> None:
    api.fault(Drop(effect=effect), method="TaskStop")
    with pytest.raises(NO_REPLY):
        await api.send(stop(66))
    assert api.tasks[66].stopped is effect
    [row] = await api.sent_rows(check(66))
    assert row["status"] == ("Canceled" if effect else "Running")
    # A client that asks again at once is not counted twice.
    assert (api.counters.connections, api.counters.peak) == (2, 1)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
@EFFECT
async def test_a_cut_body_is_shorter_than_announced(
    api: Served, keep: float, *, effect: bool
) -> None:
    api.fault(CutBody(keep=keep, effect=effect))
    async with api.post(stop(66)) as response:
        announced = int(response.headers["Content-Length"])
        got = await response.content.read(int(announced * keep))
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()
    assert response.status == 200
    assert len(got) <= int(announced * keep) < announced
    assert b'{"reply":[{"method":"TaskStop"'.startswith(got[:20])
    assert api.tasks[66].stopped is effect


async def test_a_slow_body_comes_byte_by_byte(api: Served) -> None:
    api.fault(SlowBody(interval=0.0, effect=False), number=1)
    api.fault(SlowBody(interval=3600.0))
    assert await api.sent_rows(stop(66)) == [{"task_id": 66, "status": SENT}]
    assert not api.tasks[66].stopped
    response = await api.http.post(api.endpoint, json=stop(66))
    assert await response.content.readexactly(1) == b"{"
    assert (api.counters.in_flight, api.tasks[66].stopped) == (1, True)
    response.close()
    await api.wait_until(lambda: api.counters.in_flight == 0)
    await api.wait_until(lambda: api.counters.connections_open == 0)


@EFFECT
async def test_a_hang_ends_when_the_client_goes(api: Served, *, effect: bool) -> None:
    api.fault(Hang(effect=effect))
    sending = api.start_sending(stop(66))
    await api.wait_for_requests(1, "TaskStop")
    assert api.tasks[66].stopped is effect
    sending.cancel()
    await asyncio.wait([sending])
    await api.wait_until(lambda: api.counters.in_flight == 0)


@EFFECT
async def test_a_reply_can_be_rewritten(api: Served, *, effect: bool) -> None:
    api.add_task(67)
    api.fault(rewrite_rows(lambda rows: rows[::-1], effect=effect))
    result = await api.sent_rows(stop([66, 67]))
    assert result == [{"task_id": 67, "status": SENT}, {"task_id": 66, "status": SENT}]
    assert api.tasks[66].stopped is effect
    status, body = await api.send({})
    assert (status, "error" in json.loads(body)) == (400, True)


async def test_latency_is_for_each_request_and_each_id(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept = []

    async def sleep(seconds: float, real: Any = asyncio.sleep) -> None:
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    api.latency, api.seconds_per_id = 10.0, 0.5
    api.add_tasks(range(4))
    api.fault(Delay(100.0), method="TaskStop")
    assert await api.sent(check([0, 1, 2]), stop([0, 1, 2, 3]), check("*")) == [200, 200, 200]
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
async def test_faults_strike_by_number(api: Served, where: dict[str, Any], got: list[int]) -> None:
    both = envelope(call("TaskStatus", 66), call("TaskStop", 66), call("TaskStop", 66))
    api.fault(HttpStatus(500), **where)
    api.fault(HttpStatus(502), **where)
    assert await api.sent(check(66), stop(66), check(66), both, stop(66), {}) == got
    api.clear_faults()
    assert await api.sent(check(66), stop(66)) == [200, 200]


async def test_a_function_may_name_the_fault_unless_one_is_due_by_number(api: Served) -> None:
    api.add_task(67)
    assert api.fault_when is None
    api.fault_when = lambda record: HttpStatus(502) if 66 in record.ids else None
    api.fault(HttpStatus(503), number=3)
    assert await api.sent(check(66), check(67), check(66)) == [502, 200, 503]
    api.clear_faults()
    assert await api.sent(check(66)) == [200]


def fail(_: Any) -> Any:
    raise LookupError("oops")


async def use(api: Served, error: Exception | None) -> None:
    async with api:
        api.add_task(66)
        api.fault(Rewrite(fail), number=1)
        api.fault_when = fail
        assert await api.sent(check(66), check(66)) == [500, 500]
        if error is not None:
            raise error


@pytest.mark.parametrize("own_thread", [False, True])
async def test_a_hook_that_raises_makes_stop_raise_but_hides_no_other_error(
    *, own_thread: bool
) -> None:
    with pytest.raises(ExceptionGroup, match="hooks of the simulator raised") as raised:
        await use(Served(own_thread=own_thread), None)
    assert [str(error) for error in raised.value.exceptions] == ["oops", "oops"]
    with pytest.raises(ZeroDivisionError):
        await use(Served(own_thread=own_thread), ZeroDivisionError())
