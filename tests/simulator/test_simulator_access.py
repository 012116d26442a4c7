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
from asking import JSON_HEADERS, ask, check, sent_rows, stop
from multidict import CIMultiDict

from ctrlapi_async.simulator import ControlApiSimulator
from ctrlapi_async.simulator._access import HttpRequest, refuse_signature
from ctrlapi_async.simulator._options import Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


TRANSPORT: dict[str, tuple[int, dict[str, Any]]] = {
    "no such path": (404, {"path": "/"}),
    "a slash too many": (404, {"path": "/ctrl_api/v1/json/"}),
    "GET": (405, {"method": "GET"}),
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


async def test_a_client_that_waits_for_continue_is_answered_so(api: ControlApiSimulator) -> None:
    body = json.dumps(stop(66)).encode()
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
        (row,) = await sent_rows(http, api, check(66))
        assert row["status"] == "Running"
        async with http.post(f"http://127.0.0.1:{api.port}/ctrl_api/v1/json") as response:
            assert response.status == 404


# --- Signatures -----------------------------------------------------------------------------------

KEY = "AGnO/VenzHB9xkLYZG1i70kQ9iyFBBvugGXSFyTQaB0="
VECTOR_DATE = "Thu, 25 Aug 2022 04:27:52 GMT"
VECTOR_HASH = "OniJqRAkzQHN8KgmAZm/yT5dP94m8CmVVaSTRVg/ptQ="
VECTOR_SIGNATURE = "vPI9MMRwBZLWNrCcnLnbJjZRna0+XP7yFMhc9KMUFdw="
DOCUMENT = check(66)
BODY = json.dumps(DOCUMENT).encode()


def signed(access_id: str = "1", *, key: str = KEY, date: str | None = None) -> dict[str, str]:
    """Sign the request for the status of task 66, written anew from the wire document."""
    date = formatdate(usegmt=True) if date is None else date
    content_hash = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    text = f"POST,application/json,{content_hash},/ctrl_api/v1/json,{date}"
    digest = hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()
    return {
        "Date": date,
        "X-Authorization-Content-SHA256": content_hash,
        "Authorization": f"APIAuth-HMAC-SHA256 {access_id}:{base64.b64encode(digest).decode()}",
    }


def test_the_published_signature_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {
        "Content-Type": "application/json",
        "Date": VECTOR_DATE,
        "X-Authorization-Content-SHA256": VECTOR_HASH,
        "Authorization": f"APIAuth-HMAC-SHA256 1:{VECTOR_SIGNATURE}",
    }
    digest = base64.b64decode(VECTOR_HASH)
    # The body that was signed is not known; its hash is.
    monkeypatch.setattr(
        hashlib, "sha256", lambda _: type("Hash", (), {"digest": staticmethod(lambda: digest)})
    )
    request = HttpRequest("POST", "", CIMultiDict(headers), "application/json", None)
    options = Options(api_key=KEY, access_id="1")
    now = parsedate_to_datetime(VECTOR_DATE).timestamp()
    for seconds, refused in ((0, False), (60, False), (-60, False), (61, True), (-61, True)):
        refusal = refuse_signature(request, b"", None, options, now + seconds)
        assert (refusal is not None) is refused


def ago(seconds: float) -> str:
    return formatdate(time.time() - seconds, usegmt=True)


BAD_SIGNATURES: dict[str, tuple[dict[str, str], str]] = {
    "none": ({}, "request is not signed"),
    "basic": ({"Authorization": "Basic bWU6"}, "request is not signed"),
    "another user": (signed("2"), "access id is unknown"),
    "another key": (signed(key="AAAA"), "signature does not match"),
    "another body": (
        signed() | {"X-Authorization-Content-SHA256": VECTOR_HASH},
        "content hash does not match",
    ),
    "no hash": (
        {k: v for k, v in signed().items() if k != "X-Authorization-Content-SHA256"},
        "content hash does not match",
    ),
    "no date": (
        {k: v for k, v in signed().items() if k != "Date"},
        "date is missing or malformed",
    ),
    "malformed date": (signed(date="yesterday GMT"), "date is missing or malformed"),
    "another zone": (
        signed(date=ago(0).replace("GMT", "+0000")),
        "date is missing or malformed",
    ),
    "expired": (signed(date=ago(3600)), "signature has expired"),
    "from the future": (signed(date=ago(-3600)), "signature has expired"),
}


@pytest.mark.parametrize(("headers", "error"), BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
@pytest.mark.parametrize("refusal", [401, 403, 200])
def test_a_bad_signature_is_refused(
    monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], error: str, refusal: Any
) -> None:
    # Signed when this file was loaded, however long ago.
    loaded = parsedate_to_datetime(signed_when_loaded).timestamp()
    monkeypatch.setattr(time, "time", lambda: loaded)
    sim = ControlApiSimulator(api_key=KEY, signature_refusal=refusal)
    sim.add_task(66)
    assert ask(sim, DOCUMENT, headers) == (refusal, {"error": error})
    assert KEY not in repr(sim)


signed_when_loaded = BAD_SIGNATURES["another user"][0]["Date"]


def test_a_signature_is_by_the_user_of_the_request_unless_told() -> None:
    sim = ControlApiSimulator(api_key=KEY)
    sim.add_task(66)
    assert ask(sim, DOCUMENT, signed("1"))[0] == 200
    assert ask(sim, b"[]", signed("1")) == (401, {"error": "access id is unknown"})
    sim.access_id = "ops"
    assert ask(sim, DOCUMENT, signed("1"))[0] == 401
    assert ask(sim, DOCUMENT, signed("ops"))[0] == 200


@pytest.mark.parametrize("skew", [-3600.0, 3600.0])
async def test_a_skewed_clock_refuses_good_signatures_and_shows_in_the_date(
    http: aiohttp.ClientSession, skew: float
) -> None:
    async with ControlApiSimulator(api_key=KEY, clock_skew=skew) as api:
        api.add_task(66)
        for expected in (401, 200):
            headers = JSON_HEADERS | signed()
            async with http.post(api.endpoint, data=BODY, headers=headers) as response:
                assert response.status == expected
                date = parsedate_to_datetime(response.headers["Date"]).timestamp()
                challenge = response.headers.get("WWW-Authenticate")
            sent = parsedate_to_datetime(headers["Date"]).timestamp()
            assert date - sent == pytest.approx(api.clock_skew, abs=30)
            assert challenge == ("APIAuth-HMAC-SHA256" if expected == 401 else None)
            api.clock_skew = 0.0
