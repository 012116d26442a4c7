"""API keys, signatures and basic authentication."""

from __future__ import annotations

import base64
import pickle
import traceback
from typing import Any

import pytest

from ctrlapi_async._auth import ApiKey, basic_tokens, expect_auth

SECRET = "AGnO/VenzHB9xkLYZG1i70kQ9iyFBBvugGXSFyTQaB0="
DATE = "Thu, 25 Aug 2022 04:27:52 GMT"
SECONDS = 1661401672


def test_the_published_test_vector() -> None:
    content_hash = "OniJqRAkzQHN8KgmAZm/yT5dP94m8CmVVaSTRVg/ptQ="
    signature = ApiKey(SECRET).signature(content_hash, DATE)
    assert signature == "vPI9MMRwBZLWNrCcnLnbJjZRna0+XP7yFMhc9KMUFdw="


def test_a_request_is_signed_with_its_hash_and_the_date() -> None:
    key = ApiKey(SECRET)
    headers = key.sign(b"{}", 5, SECONDS)
    content_hash = "RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o="
    assert headers == {
        "Date": DATE,
        "X-Authorization-Content-SHA256": content_hash,
        "Authorization": f"APIAuth-HMAC-SHA256 5:{key.signature(content_hash, DATE)}",
    }


@pytest.mark.parametrize("change", [{"body": b"{} "}, {"now": SECONDS + 1}])
def test_another_body_or_another_second_is_signed_otherwise(change: dict[str, Any]) -> None:
    first: dict[str, Any] = {"body": b"{}", "user_id": 5, "now": SECONDS}
    key = ApiKey(SECRET)
    signed = key.sign(**first)["Authorization"]
    assert key.sign(**first | change)["Authorization"] != signed


def test_the_access_id_is_the_user_or_what_the_key_says() -> None:
    assert " 5:" in ApiKey(SECRET).sign(b"", 5, 0)["Authorization"]
    assert " me@x:" in ApiKey(SECRET, "me@x").sign(b"", 5, 0)["Authorization"]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        *(
            ((secret,), ValueError, "not base64")
            for secret in (SECRET.strip("="), "not base64!", "ab\ncd===", "ä" * 8, "a b=")
        ),
        (("",), ValueError, "secret is empty"),
        ((b"AAAA",), TypeError, "secret must be a str, not bytes"),
        ((None,), TypeError, "secret must be a str, not NoneType"),
        ((SECRET, 5), TypeError, "access_id must be a str, not int"),
        *(
            ((SECRET, access_id), ValueError, "access_id must be of printable ASCII")
            for access_id in ("", "a:b", "a\r\nX: y", "mö")
        ),
    ],
)
def test_bad_keys_are_refused_and_not_shown(
    arguments: tuple[Any, ...], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        ApiKey(*arguments)
    secret = arguments[0] or SECRET
    assert str(secret) not in "".join(traceback.format_exception(caught.value)) or secret is None


def test_a_key_does_not_show_its_secret() -> None:
    key = ApiKey(SECRET, "me")
    assert repr(key) == str(key) == "ApiKey(access_id='me')"
    assert pickle.loads(pickle.dumps(key)) == key


@pytest.mark.parametrize(
    ("login", "password", "charsets"),
    [
        ("me", "pw", ["utf-8", "latin-1"]),
        ("mö", "pä", ["utf-8", "latin-1"]),
        ("me", "日本", ["utf-8"]),
        ("me", "\udc80", []),
    ],
)
def test_basic_tokens_in_all_charsets_that_hold_them(
    login: str, password: str, charsets: list[str]
) -> None:
    tokens = [base64.b64encode(f"{login}:{password}".encode(each)).decode() for each in charsets]
    assert basic_tokens(login, password) == tokens


@pytest.mark.parametrize("auth", [None, ("me", "pw"), ("", ""), ("me", "p:w"), ApiKey(SECRET)])
def test_good_credentials(auth: Any) -> None:
    assert expect_auth(auth) is auth


@pytest.mark.parametrize(
    ("auth", "kind", "words"),
    [
        ("me:canary", TypeError, "auth must be a tuple of login and password, or an ApiKey"),
        (["me", "canary"], TypeError, "auth must be a tuple"),
        (("canary",), TypeError, "auth must be a tuple"),
        (("me", "canary", "latin-1"), TypeError, "auth must be a tuple"),
        (("canary", None), TypeError, "auth must be a tuple"),
        (("m:e", "canary"), ValueError, "a login cannot contain a colon"),
        (("me", "canary\udc80"), ValueError, "lone surrogate"),
    ],
)
def test_bad_credentials_are_refused_and_not_shown(
    auth: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        expect_auth(auth)
    assert "canary" not in "".join(traceback.format_exception(caught.value))
