"""HTTP answers that are not 200: their words, what to do about them, when to come back."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import AuthError, HttpError
from ctrlapi_async._errors import MAX_TEXT
from ctrlapi_async._http_errors import Answer, http_error, retry_after
from ctrlapi_async._redaction import Redactor

NOW = 1_700_000_000.0


def error_for(
    status: int,
    body: str = "",
    *,
    reason: str = "Words",
    secrets: tuple[str, ...] = (),
    signed: bool = False,
    **headers: str,
) -> HttpError:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = Answer("http://host/x", status, reason, named, body.encode())
    return http_error(answer, redactor=Redactor(secrets), now=NOW, signed=signed)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "the server does not understand the request"),
        (401, "the server wants credentials, or refuses those given"),
        (403, "access to the Control API is denied"),
        (404, "there is no Control API at this address"),
        (405, "there is no Control API at this address"),
        (407, "the proxy wants credentials, or refuses those given"),
        (413, "the request was too large"),
        (500, "HTTP 500 Words from http://host/x"),
        (204, "HTTP 204 Words from http://host/x"),
    ],
)
def test_the_message_says_what_to_do(status: int, words: str) -> None:
    error = error_for(status)
    assert str(error).startswith(f"HTTP {status} Words from http://host/x")
    assert words in str(error)
    assert error.status == status
    assert isinstance(error, AuthError) == (status in (401, 403))


@pytest.mark.parametrize("status", [401, 403])
def test_the_advice_on_access_names_all_ways(status: int) -> None:
    message = str(error_for(status, "<title>" + "words " * 15 + "</title>", signed=status == 401))
    for way in ("ApiKey(...)", "(login, password)", "settings", "nginx", "must allow it"):
        assert way in message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("<html><head><title>400 No required SSL certificate</title>", "400 No required SSL"),
        ("<TITLE lang=en>\n plain  HTTP request\nwas sent to HTTPS port </TITLE>", "plain HTTP re"),
        ("<title>a &lt;b&gt;</title>", "a <b>"),
        ("the signature has expired\n", "the signature has expired"),
        ('{"error": "bad signature"}', '{"error": "bad signature"}'),
        # Pages that say nothing more are not quoted.
        *((body, "") for body in ("", " \n", "<html><body>no title</body>", "x" * 101)),
        *((f"<title>{title}</title>", "") for title in ("", "404 Words", "x" * 101)),
        *((unfinished, "") for unfinished in ("<title>unfinished", "<title>" * 2000)),
    ],
)
def test_the_answers_own_words_reach_the_person(body: str, words: str) -> None:
    beginning, end = "HTTP 404 Words from http://host/x", "there is no Control API at this address"
    message = str(error_for(404, body))
    if words:
        assert message.startswith(f"{beginning} ({words}")
        assert message.endswith(f"; {end}")
    else:
        assert message == f"{beginning}; {end}"


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
def test_a_redirect_tells_its_target(status: int) -> None:
    message = str(
        error_for(status, Location="http://me:pw@other/?token=canary", secrets=("canary",))
    )
    assert "redirects to http://***@other/?token=***, which is not followed" in message
    assert "redirects to nowhere" in str(error_for(status))


def test_no_part_shows_a_secret_or_what_cannot_be_written() -> None:
    error = error_for(
        302,
        "<title>canary</title> canary",
        reason="canary gef\udcfcnden",
        secrets=("canary",),
        Location="canary",
    )
    assert "canary" not in repr(error) + str(error) + error.excerpt
    assert error.excerpt == "<title>***</title> ***"
    assert "*** gef\ufffdnden" in str(error).encode().decode()


@given(st.text(), st.text(), st.integers(201, 599), st.dictionaries(st.text(), st.text()))
def test_whatever_the_answer_is_the_error_is_bounded(
    reason: str, body: str, status: int, headers: dict[str, str]
) -> None:
    answer = Answer("http://host/x", status, reason * 50, headers, body.encode("utf-8", "ignore"))
    error = http_error(answer, redactor=Redactor(), now=NOW, signed=True)
    assert max(len(str(error)), len(error.excerpt)) <= MAX_TEXT


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date", "words"),
    [
        *((formatdate(NOW - n), "this machine's clock is right: check the key") for n in (0, 29)),
        (formatdate(NOW - 31), "clock is 31 s ahead of the server's"),
        (formatdate(NOW - 7200), "clock is 7200 s ahead of the server's"),
        (formatdate(NOW + 95), "clock is 95 s behind the server's"),
        *((odd, "compare this machine's clock") for odd in ("", "soon")),
        ("Fri, 32 Dec 2100 00:00:00 GMT", "compare this machine's clock"),
    ],
)
def test_a_refused_signature_tells_how_far_the_clock_is_off(date: str, words: str) -> None:
    assert words in str(error_for(401, Date=date, signed=True))
    assert "clock" not in str(error_for(401, Date=date))
    assert "clock" not in str(error_for(403, Date=date, signed=True))
    assert "compare this machine's clock" in str(error_for(401, signed=True))


# --- Retry-After ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        *((text, 7.0) for text in ("7", " 7 ", "007")),
        *(("9" * digits, math.inf) for digits in (400, 5000)),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("Sun Nov  6 08:49:37 1994", 0.0),
        *((text, None) for text in ("", "-1", "1.5", "1e3", "soon", "7, 8", "\u00b2")),
        ("Fri, 32 Dec 2100 00:00:00 GMT", None),
        ("Fri, 31 Dec 99999999999999999999 00:00:00 GMT", None),
        ("Fri, 31 Dec 2100 00:00:00 +9999", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(value: str, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds
    assert error_for(503, Retry_After=value).retry_after == seconds
    assert error_for(503).retry_after is retry_after(None, NOW) is None


@pytest.mark.parametrize("zone", ["GMT", "UTC", "+0000", "-0000", ""])
def test_a_date_counts_from_now_in_gmt(zone: str) -> None:
    date = format_datetime(datetime.fromtimestamp(NOW + 100, UTC), usegmt=True)
    assert retry_after(date.replace("GMT", zone).strip(), NOW) == 100


@given(st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ \d+:\d+:\d+ [+-]?\w+"))
def test_whatever_retry_after_says_it_is_read_without_a_crash(value: str) -> None:
    seconds = retry_after(value, NOW)
    assert seconds is None or seconds >= 0
