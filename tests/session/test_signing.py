"""Signed requests: each attempt anew, and what a refusal tells."""

from __future__ import annotations

import base64
import re
from typing import Any

import pytest

from ctrlapi_async import (
    ApiKey,
    AuthError,
    ControlSession,
    CtrlApiError,
    MethodError,
    StopIncompleteError,
    StopResult,
)
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus
from tests.support.simulated import AT_ONCE
from tests.support.sockets import response, served

SECRET = base64.b64encode(b"a key of 32 bytes, 32 bytes long").decode()
KEY = ApiKey(SECRET)
OTHER = ApiKey(base64.b64encode(b"another key").decode())


def signed(api: ControlApiSimulator, key: ApiKey = KEY, **more: Any) -> ControlSession:
    return ControlSession(api.url, 1, auth=key, retry=AT_ONCE, **more)


@pytest.mark.parametrize(
    ("prefix", "headers"),
    [
        ("", {}),
        ("/vod", {}),  # the path of the API is signed, not the one behind the proxy
        ("", {"date": "yesterday", "authorization": "Bearer x", "X-Id": "7"}),  # ours win
    ],
)
async def test_a_server_that_verifies_signatures_takes_ours(
    prefix: str, headers: dict[str, str]
) -> None:
    async with (
        ControlApiSimulator(api_key=SECRET, prefix=prefix) as api,
        signed(api, headers=headers) as session,
    ):
        api.add_tasks(range(1, 11))
        api.fault(HttpStatus(502), number=1)
        report = await session.stop_running(2, range(1, 11))
        assert report.counts[StopResult.STOP_SENT] == 10
        assert {record.headers.get("X-Id") for record in api.log} == {headers.get("X-Id")}
        # A repeated request is signed anew.
        assert len({record.headers["Authorization"] for record in api.log}) == 3


async def test_each_attempt_is_signed_anew_for_the_user_or_whom_the_key_names() -> None:
    clock = iter(range(1_000_000, 2_000_000, 100))
    dates, signatures = [], []
    for key in (KEY, ApiKey(SECRET, "robot")):
        async with served(response(), auth=key, user_id=5, wall_clock=lambda: next(clock)) as (
            server,
            sender,
        ):
            for place in range(2):
                await sender.post(b"{}")
                dates.append(server.header("Date", place))
                signatures.append(str(server.header("Authorization", place)))
    assert dates == [
        "Mon, 12 Jan 1970 13:46:40 GMT",
        "Mon, 12 Jan 1970 13:48:20 GMT",
        "Mon, 12 Jan 1970 13:50:00 GMT",
        "Mon, 12 Jan 1970 13:51:40 GMT",
    ]
    assert len(set(signatures)) == 4
    schemes = [signature.partition(":")[0] for signature in signatures]
    assert schemes == ["APIAuth-HMAC-SHA256 5"] * 2 + ["APIAuth-HMAC-SHA256 robot"] * 2


@pytest.mark.parametrize(
    ("options", "key", "kind", "words"),
    [
        ({"clock_skew": 7200.0}, KEY, AuthError, r"clock is 7(199|200|201) s behind the server's"),
        ({"clock_skew": -90.0}, KEY, AuthError, r"clock is (89|90|91) s ahead of the server's"),
        ({"signature_refusal": 200}, OTHER, MethodError, "signature"),
        ({"signature_refusal": 401}, OTHER, AuthError, "check the key"),
        ({"signature_refusal": 403}, OTHER, AuthError, "an ApiKey"),
    ],
)
async def test_a_refused_signature_tells_what_is_wrong_and_ends_all_at_once(
    options: dict[str, Any], key: ApiKey, kind: type[CtrlApiError], words: str
) -> None:
    async with ControlApiSimulator(api_key=SECRET, **options) as api, signed(api, key) as session:
        api.add_tasks(range(1, 11))
        with pytest.raises(kind, match=words) as caught:
            await session.call("TaskStatus", {"project_id": 2, "task_ids": 1})
        assert SECRET not in str(caught.value)
        with pytest.raises(StopIncompleteError) as incomplete:
            await session.stop_running(2, range(1, 11))
        assert re.search(words, str(incomplete.value))
        assert incomplete.value.report.counts[StopResult.NOT_SENT] == 10
        # What is final is asked for once.
        assert api.counters.requests == 2 or kind is MethodError
