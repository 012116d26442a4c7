"""What a request must be to get as far as the API: path, headers, size, credentials, signature."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from email.utils import formatdate, parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from multidict import CIMultiDict

from ctrlapi_async.simulator import ControlApiSimulator, Options
from ctrlapi_async.simulator._access import HttpRequest, refuse_signature
from tests.support.asking import JSON_HEADERS, ask, check, stop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PATH = "/ctrl_api/v1/json"
BASIC = {"Authorization": "Basic " + base64.b64encode("me:gehe\u00efm".encode()).decode()}
LOGIN = {"login": ("me", "gehe\u00efm")}


def typed(content_type: str, **more: str) -> dict[str, Any]:
    return {"headers": {"Content-Type": content_type, **more}}


# The status, the simulator's options, and what is unusual about the request.
TRANSPORT: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "no such path": (404, {}, {"path": "/"}),
    "a slash too many": (404, {}, {"path": PATH + "/"}),
    "no prefix": (404, {"prefix": "/boro"}, {"path": PATH}),
    "prefix": (200, {"prefix": "/boro"}, {}),
    "GET": (405, {}, {"method": "GET"}),
    "no content type": (415, {}, {"headers": {}}),
    "form": (415, {}, typed("application/x-www-form-urlencoded")),
    "latin-1": (415, {}, typed("application/json; charset=latin-1")),
    "UTF-8": (200, {}, typed("application/json; charset=UTF-8")),
    "broken coding": (400, {}, typed("application/json", **{"Content-Encoding": "deflate"})),
    "longest": (200, {}, {"pad": 500}),
    "too long": (413, {}, {"pad": 501}),
    "too long for any path": (413, {}, {"pad": 501, "path": "/"}),
    "no login": (401, LOGIN, {}),
    "wrong login": (401, LOGIN, typed("application/json", Authorization="Basic bWU6eA==")),
    "login": (200, LOGIN, typed("application/json", **BASIC)),
}


@pytest.mark.parametrize(("status", "options", "change"), TRANSPORT.values(), ids=TRANSPORT.keys())
async def test_what_does_not_reach_the_api_gets_a_page_like_nginx(
    status: int, options: dict[str, Any], change: dict[str, Any]
) -> None:
    async with (
        ControlApiSimulator(max_body=500, **options) as api,
        aiohttp.ClientSession() as http,
        http.request(
            change.get("method", "POST"),
            f"http://127.0.0.1:{api.port}{change.get('path', api.prefix + PATH)}",
            headers=change.get("headers", JSON_HEADERS),
            skip_auto_headers=["Content-Type"],
            data=json.dumps(stop(66)).encode().ljust(change.get("pad", 0)),
        ) as response,
    ):
        assert response.status == status
        if status != 200:
            assert f"<center><h1>{status} ".encode() in await response.read()
            assert response.content_type == "text/html"
        assert ("WWW-Authenticate" in response.headers) is (status == 401)
        assert api.counters.requests == 1
        assert api.endpoint == api.url + PATH
        assert "gehe\u00efm" not in repr(api)


async def test_a_long_body_of_unknown_length_is_not_read_to_its_end() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b" " * 400

    async with (
        ControlApiSimulator(max_body=500) as api,
        aiohttp.ClientSession() as http,
        http.post(api.endpoint, data=endless(), headers=JSON_HEADERS) as response,
    ):
        assert response.status == 413
        assert response.headers["Connection"] == "close"
        assert api.log[0].json is None


@pytest.mark.parametrize("max_body", [5, 500])
async def test_a_body_that_is_too_long_is_not_waited_for(max_body: int) -> None:
    body = json.dumps(stop(66)).encode()
    async with ControlApiSimulator(max_body=max_body) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(
            b"POST /ctrl_api/v1/json HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        )
        if max_body == 500:
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
        answer = b"HTTP/1.1 413 " if max_body == 5 else b"HTTP/1.1 200 "
        assert (await reader.readline()).startswith(answer)
        writer.close()
        await writer.wait_closed()


# --- Signatures -----------------------------------------------------------------------------------

KEY = "AGnO/VenzHB9xkLYZG1i70kQ9iyFBBvugGXSFyTQaB0="
VECTOR_DATE = "Thu, 25 Aug 2022 04:27:52 GMT"
VECTOR_HASH = "OniJqRAkzQHN8KgmAZm/yT5dP94m8CmVVaSTRVg/ptQ="
VECTOR_SIGNATURE = "vPI9MMRwBZLWNrCcnLnbJjZRna0+XP7yFMhc9KMUFdw="
HASH = "X-Authorization-Content-SHA256"
DOCUMENT = check(66)
BODY = json.dumps(DOCUMENT).encode()
NOW = 1_800_000_000


def at(seconds: float) -> str:
    return formatdate(seconds, usegmt=True)


def signed(access_id: str = "1", *, key: str = KEY, date: str = at(NOW)) -> dict[str, str]:
    """Sign the request for the status of task 66, written anew from the wire document."""
    content_hash = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    text = f"POST,application/json,{content_hash},/ctrl_api/v1/json,{date}"
    digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    signature = base64.b64encode(digest).decode()
    authorization = f"APIAuth-HMAC-SHA256 {access_id}:{signature}"
    return {"Date": date, HASH: content_hash, "Authorization": authorization}


def test_the_published_signature_is_good_for_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    # The body that was signed is not known; its hash is.
    digest = base64.b64decode(VECTOR_HASH)
    sha256 = type("Hash", (), {"digest": staticmethod(lambda: digest)})
    monkeypatch.setattr(hashlib, "sha256", lambda _: sha256)
    headers = {**JSON_HEADERS, "Date": VECTOR_DATE, HASH: VECTOR_HASH}
    headers["Authorization"] = f"APIAuth-HMAC-SHA256 1:{VECTOR_SIGNATURE}"
    request = HttpRequest("POST", "", CIMultiDict(headers), "application/json", None)
    signed_at = parsedate_to_datetime(VECTOR_DATE).timestamp()
    options = Options(api_key=KEY, access_id="1")
    for seconds in (0, 60, -60, 61, -61):
        refusal = refuse_signature(request, b"", None, options, signed_at + seconds)
        assert (refusal is None) is (abs(seconds) <= 60)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({}, "request is not signed"),
        (BASIC, "request is not signed"),
        (signed("2"), "access id is unknown"),
        (signed(key="AAAA"), "signature does not match"),
        (signed() | {HASH: VECTOR_HASH}, "content hash does not match"),
        (signed() | {HASH: ""}, "content hash does not match"),
        (signed() | {"Date": ""}, "date is missing or malformed"),
        (signed(date="yesterday GMT"), "date is missing or malformed"),
        (signed(date=at(NOW).replace("GMT", "+0000")), "date is missing or malformed"),
        (signed(date=at(NOW - 3600)), "signature has expired"),
        (signed(date=at(NOW + 3600)), "signature has expired"),
    ],
)
@pytest.mark.parametrize("refusal", [401, 403, 200])
def test_a_bad_signature_is_refused(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], error: str, refusal: Any
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    sim = ControlApiSimulator(api_key=KEY, signature_refusal=refusal)
    sim.add_task(66)
    assert ask(sim, DOCUMENT, headers) == (refusal, {"error": error})
    assert KEY not in repr(sim)


def test_a_signature_is_by_the_user_of_the_request_unless_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)
    sim = ControlApiSimulator(api_key=KEY)
    sim.add_task(66)
    assert ask(sim, DOCUMENT, signed("1"))[0] == 200
    assert ask(sim, b"[]", signed("1")) == (401, {"error": "access id is unknown"})
    sim.access_id = "ops"
    assert [ask(sim, DOCUMENT, signed(name))[0] for name in ("1", "ops")] == [401, 200]


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
async def test_a_skewed_clock_refuses_good_signatures_and_shows_in_the_date(skew: float) -> None:
    async with ControlApiSimulator(api_key=KEY) as api, aiohttp.ClientSession() as http:
        api.add_task(66)
        for api.clock_skew, expected in ((skew, 401), (0.0, 200)):
            headers = JSON_HEADERS | signed(date=at(time.time()))
            async with http.post(api.endpoint, data=BODY, headers=headers) as response:
                assert response.status == expected
                assert ("WWW-Authenticate" in response.headers) is (expected == 401)
                date = parsedate_to_datetime(response.headers["Date"])
            sent = parsedate_to_datetime(headers["Date"])
            assert (date - sent).total_seconds() == pytest.approx(api.clock_skew, abs=30)
