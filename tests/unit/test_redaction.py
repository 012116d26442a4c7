"""Credentials are taken out of texts, in whatever form a server sends them back."""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async._redaction import CUT, LONGEST, MASK, Redactor, secrets_of_headers

if TYPE_CHECKING:
    from collections.abc import Callable

PASSWORD = 'canary/"p@ss"&<wörd>+%41'
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "html": html.escape,
    "json": lambda text: json.dumps(text)[1:-1],
    "json in UTF-8": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    "slashes escaped": lambda text: text.replace("/", "\\/"),
    "php": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "query": quote,
    "quoted": lambda text: quote(text, safe=""),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_found_in_every_form(form: str) -> None:
    echoed = FORMS[form](PASSWORD)
    redactor = Redactor([PASSWORD])
    assert redactor.redact(f"bad password {echoed}.") == f"bad password {MASK}."
    assert redactor.finds(f"x{echoed}y")
    assert not redactor.finds("bad password")


TWICE = "abab-abab-c"


@pytest.mark.parametrize(
    ("secrets", "text", "redacted"),
    [
        # The user's part of every URL is taken out.
        ([], "see http://me:pw@host/path", "see http://***@host/path"),
        ([], "see https://me@host", "see https://***@host"),
        ([], "(socks5://me:p@w@host:1080)", "(socks5://***@host:1080)"),
        ([], "url='http://me:p@h', 'http://you:p@g'", "url='http://***@h', 'http://***@g'"),
        ([], "//me:pw@host", "//***@host"),
        ([], r'"http:\/\/me:pw@host\/x"', r'"http:\/\/***@host\/x"'),
        ([], "to=http%3A%2F%2Fme%3Apw%40host", "to=http%3A%2F%2F***@host"),
        *(([], url, url) for url in ("http://host/a@b", "http://host?a@b", "http://@host")),
        ([], "write to me@host", "write to me@host"),
        # The scheme of a signature shows no signature.
        ([], "APIAuth-HMAC-SHA256 5:vPI9MMRwBZL=\nHost: x", "APIAuth-HMAC-SHA256 ***\nHost: x"),
        # The longer of two secrets that begin alike is found.
        (["canary", "canary-bird", ""], "a canary-bird", "a ***"),
        # What only looks like the part of a secret stays.
        ([TWICE], "...zab-abab-x...", "...zab-abab-x..."),
        ([TWICE], "...bab-c x abab-aba...", "...*** x ***..."),
        ([TWICE], "...xabab-cabab-x...", "...xabab-cabab-x..."),
        (["abc"], "...bc ab...", "...bc ab..."),
    ],
)
def test_what_is_taken_out_of_a_text_and_what_stays(
    secrets: list[str], text: str, redacted: str
) -> None:
    assert Redactor(secrets).redact(text) == redacted


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
def test_no_secret_is_left_in_any_text(text: str, secrets: list[str]) -> None:
    redacted = Redactor(secrets).redact(text)
    for secret in secrets:
        assert secret not in redacted.replace(MASK, "").replace(CUT, "") or secret in MASK + CUT


@given(
    before=st.text("xyz ", max_size=20),
    after=st.text("xyz ", max_size=20),
    start=st.integers(0, 10),
    end=st.integers(0, 10),
)
def test_an_excerpt_that_cuts_a_secret_shows_no_part_of_it(
    before: str, after: str, start: int, end: int
) -> None:
    secret = "canary-5f1c"
    redactor = Redactor([secret])
    shown = redactor.redact(f"{CUT}{secret[start:]}{after}{CUT}")
    assert len(secret) - start < 4 or secret[start:] not in shown
    shown = redactor.redact(f"{CUT}{before}{secret[:end]}{CUT}")
    assert end < 4 or secret[:end] not in shown


def test_of_an_endless_text_only_the_beginning_is_read() -> None:
    secret = "canary" * 1000
    text = Redactor([secret]).redact("x" * (LONGEST - 10) + secret)
    assert text == "x" * (LONGEST - 10) + MASK + CUT


@pytest.mark.parametrize(
    "text", ["//" * 100_000, "%2F%2Fx" * 50_000, "//x" * 70_000, "a" * 200_000]
)
def test_long_texts_cost_no_square(text: str) -> None:
    redactor = Redactor(["a" * 4000 + "b"])
    assert not redactor.finds(text)
    assert len(redactor.redact(text)) <= LONGEST + len(CUT)


@pytest.mark.parametrize(
    ("headers", "secrets"),
    [
        ({}, set()),
        ({"Accept": "canary-long"}, set()),
        ({"Authorization": "Bearer canary.e30"}, {"Bearer canary.e30", "canary.e30"}),
        ({"X-API-Key": "short"}, {"short"}),
        (
            {"cookie": "session=canary-77; theme=dark"},
            {"session=canary-77; theme=dark", "session=canary-77", "canary-77", "theme=dark"},
        ),
        ({"X-Auth-Token": "a,canary-1"}, {"a,canary-1", "canary-1"}),
    ],
)
def test_headers_with_secret_names_hold_secrets(headers: dict[str, str], secrets: set[str]) -> None:
    assert set(secrets_of_headers(headers)) == secrets
