"""Signed requests: each attempt anew, and what a refusal tells."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import (
    ApiKey,
    AuthError,
    ControlSession,
    MethodError,
    RetryPolicy,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus
from tests.support.sockets import raw_server, response, transport

if TYPE_CHECKING:
    from ctrlapi_async.simulator import SignatureRefusal

SECRET = base64.b64encode(b"a key of 32 bytes, 32 bytes long").decode()
AT_ONCE = RetryPolicy(attempts=4, wait_initial=0)


KEY = ApiKey(SECRET)


def signed(api: ControlApiSimulator, key: ApiKey = KEY, **more: Any) -> ControlSession:
    return ControlSession(api.url, 1, auth=key, retry=AT_ONCE, **more)


async def test_a_server_that_verifies_signatures_takes_ours() -> None:
    async with ControlApiSimulator(api_key=SECRET) as api, signed(api) as session:
        api.add_tasks(range(1, 11))
        report = await session.stop_running(2, range(1, 11))
        assert report.counts[StopResult.STOP_SENT] == 10
        assert (await session.task_status(2, 1))[1].status is not None


async def test_behind_a_prefix_the_path_of_the_api_is_signed() -> None:
    async with ControlApiSimulator(api_key=SECRET, prefix="/vod") as api, signed(api) as session:
        api.add_task(1)
        assert (await session.stop_running(2, 1)).complete


async def test_each_attempt_is_signed_anew() -> None:
    clock = iter(range(1_000_000, 2_000_000, 100))
    async with (
        raw_server(response()) as server,
        transport(server.url, auth=KEY, wall_clock=lambda: next(clock)) as sender,
    ):
        for _ in range(3):
            await sender.post(b"{}")
        signatures = [server.header("Authorization", place) for place in range(3)]
        dates = [server.header("Date", place) for place in range(3)]
    assert dates == [
        "Mon, 12 Jan 1970 13:46:40 GMT",
        "Mon, 12 Jan 1970 13:48:20 GMT",
        "Mon, 12 Jan 1970 13:50:00 GMT",
    ]
    assert len(set(signatures)) == 3


async def test_a_repeated_request_is_signed_anew() -> None:
    async with ControlApiSimulator(api_key=SECRET) as api, signed(api) as session:
        api.add_task(1)
        api.fault(HttpStatus(502), number=1)
        assert (await session.stop_running(2, 1)).complete
        assert len({record.headers["Authorization"] for record in api.log}) == 3


async def test_our_headers_of_a_signature_win() -> None:
    headers = {"date": "yesterday", "authorization": "Bearer x", "X-Id": "7"}
    async with (
        ControlApiSimulator(api_key=SECRET) as api,
        signed(api, headers=headers) as session,
    ):
        api.add_task(1)
        assert (await session.stop_running(2, 1)).complete
        assert all(record.headers["X-Id"] == "7" for record in api.log)


@pytest.mark.parametrize(
    ("skew", "words"),
    [
        (7200.0, r"this machine's clock is 7(199|200|201) s behind the server's"),
        (-90.0, r"this machine's clock is (89|90|91) s ahead of the server's"),
    ],
)
async def test_a_clock_that_is_off_is_told_by_how_much(skew: float, words: str) -> None:
    async with (
        ControlApiSimulator(api_key=SECRET, clock_skew=skew) as api,
        signed(api) as session,
    ):
        api.add_tasks(range(1, 11))
        with pytest.raises(AuthError, match=words) as caught:
            await session.call("TaskStatus", {"project_id": 2, "task_ids": 1})
        assert SECRET not in str(caught.value)
        with pytest.raises(StopIncompleteError) as incomplete:
            await session.stop_running(2, range(1, 11))
        assert re.search(words, str(incomplete.value))
        assert incomplete.value.report.counts[StopResult.NOT_SENT] == 10
        assert api.counters.requests == 2  # what is final is asked for once


@pytest.mark.parametrize("status", [200, 401, 403])
async def test_a_wrong_key_is_said_to_be(status: SignatureRefusal) -> None:
    other = ApiKey(base64.b64encode(b"another key").decode())
    async with (
        ControlApiSimulator(api_key=SECRET, signature_refusal=status) as api,
        signed(api, other) as session,
    ):
        api.add_task(1)
        kind = MethodError if status == 200 else AuthError
        words = {200: "signature", 401: "check the key", 403: "an ApiKey"}[status]
        with pytest.raises(kind, match=words):
            await session.call("TaskStatus", {"project_id": 2, "task_ids": 1})


async def test_the_access_id_may_be_another_than_the_user() -> None:
    async with (
        raw_server(response()) as server,
        transport(server.url, auth=ApiKey(SECRET, "robot"), user_id=5) as sender,
        transport(server.url, auth=KEY, user_id=5) as plain,
    ):
        await sender.post(b"{}")
        await plain.post(b"{}")
        assert str(server.header("Authorization", 0)).startswith("APIAuth-HMAC-SHA256 robot:")
        assert str(server.header("Authorization", 1)).startswith("APIAuth-HMAC-SHA256 5:")
