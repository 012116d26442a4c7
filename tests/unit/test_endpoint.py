"""Addresses and headers as arguments, and the credentials of a caller's client."""

from __future__ import annotations

import re
import traceback
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctrlapi_async import _endpoint
from ctrlapi_async._auth import basic_tokens
from ctrlapi_async._endpoint import (
    client_secrets,
    expect_endpoint,
    expect_headers,
    netrc_login,
)

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "canary-5f1c"


@pytest.mark.parametrize("prefix", ["", "/vod", "/a/b%2Fc/%C3%B6"])
@pytest.mark.parametrize("path", ["", "/", "/ctrl_api/v1/json", "/ctrl_api/v1/json/"])
def test_the_base_url_is_the_root_or_the_whole_endpoint(prefix: str, path: str) -> None:
    url = expect_endpoint(f"https://host:81{prefix}{path}")
    assert str(url) == f"https://host:81{prefix}/ctrl_api/v1/json"


NO_URLS = [
    *("", "host", "host:80", "/ctrl_api/v1/json", "ftp://host", "http://", "http://:80"),
    *("http://host:0", "http://host:65536", "http://host:port", "http://[::1", "http://a..b"),
    "http://" + "x" * 64,
]
WITH_CREDENTIALS = [
    *(f"http://operator:{CANARY}@", f"http://operator:{CANARY}@host:port"),
    *(f"http://operator:{CANARY}@host:99999", f"http://operator:\n{CANARY}@host:port"),
    *(f"http://operator:a/{CANARY}@host", f"http://operator:{CANARY}/@host"),
    *(f"{scheme}operator:{CANARY}@host" for scheme in ("", "//", "ftp://")),
    *(f"http://host/?token={CANARY}", f"http://host/#{CANARY}"),
    f"http://operator:{CANARY}@host/?a#b",
]


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        (b"http://host", TypeError, "must be a str, not bytes"),
        (None, TypeError, "must be a str, not NoneType"),
        *((url, ValueError, f"must be an HTTP URL.*not {re.escape(repr(url))}") for url in NO_URLS),
        ("http://host/?a=b", ValueError, "must have no query"),
        ("http://host/#a", ValueError, "must have .*no fragment"),
        *((url, ValueError, "must") for url in WITH_CREDENTIALS),
    ],
)
def test_an_address_that_cannot_be_is_refused_and_shown_without_its_credentials(
    url: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=f"base_url {words}") as caught:
        expect_endpoint(url)
    assert type(caught.value) is kind
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        assert expect_endpoint("http://" + text).path.endswith("/ctrl_api/v1/json")
    except ValueError as error:
        assert "base_url" in str(error)  # noqa: PT017 - either is right


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "kind", "words"),
    [
        ({"X": 1}, TypeError, "must be strings: 'X'"),
        ({1: "X"}, TypeError, "must be strings: 1"),
        ({"X": CANARY.encode()}, TypeError, "must be strings: 'X'"),
        ([("X", CANARY)], TypeError, "must be a mapping, not list"),
        (f"X: {CANARY}", TypeError, "must be a mapping, not str"),
        *(
            ({"X": CANARY + bad}, ValueError, "the value of 'X' has a control character")
            for bad in ("\r\nY: b", "\0", "\x1b[1m", "\x7f", "\udc80")
        ),
        *(
            ({name: "a"}, ValueError, f"{re.escape(repr(name))} cannot be a header's name")
            for name in ("X\n", "", "X Y")
        ),
        *(
            ({name: "5"}, ValueError, f"'{name}' cannot be chosen")
            for name in ("content-length", "Transfer-Encoding", "CONTENT-ENCODING")
        ),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_and_not_shown(
    headers: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=f"headers:? {words}") as caught:
        expect_headers(headers)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@given(st.none() | st.dictionaries(st.text(), st.text()))
@example(None)
@example({"X-Id": "7", "user-agent": "a\tb", "X": "mö", "Y": ""})
def test_headers_that_are_accepted_are_a_copy_that_can_be_written(
    headers: dict[str, str] | None,
) -> None:
    try:
        accepted = expect_headers(headers)
    except ValueError:
        assert headers
        assert "X-Id" not in headers
        return
    assert dict(accepted) == (headers or {})
    assert accepted is not cast("object", headers)
    for name, value in accepted.items():
        line = f"{name}: {value}".encode()
        assert not re.search(rb"[\r\n\0]", line)


# --- the caller's client --------------------------------------------------------------------------


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "netrc"
    file.write_text(f"machine host login me password {CANARY}\nmachine odd login you\n")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(file))
    return file


def client(**more: Any) -> Any:
    return SimpleNamespace(**{"auth": None, "trust_env": False, "headers": {}} | more)


@pytest.fixture
def env_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    proxies = {"http": "http://env:e-pw@proxy:1", "no": "localhost"}
    monkeypatch.setattr(_endpoint, "getproxies", lambda: proxies)


def login(user: str, password: str) -> Any:
    return SimpleNamespace(login=user, password=password)


@pytest.mark.usefixtures("env_proxy")
def test_the_credentials_of_a_client_and_of_its_proxy_are_known() -> None:
    secrets = client_secrets(
        client(
            auth=login("me", "pw-1"),
            headers={"X-Api-Key": "pw-2", "Accept": "all"},
            _default_proxy="http://p:pw%203@proxy:2",
            _default_proxy_auth=login("q", "pw-4"),
        ),
        "host",
    )
    logins = (("me", "pw-1"), ("p", "pw 3"), ("q", "pw-4"))
    assert {"pw-2", *(password for _, password in logins)} <= set(secrets)
    assert {basic_tokens(*pair)[0] for pair in logins} <= set(secrets)
    assert not {"all", "e-pw"} & set(secrets)


@pytest.mark.usefixtures("netrc", "env_proxy")
def test_where_a_client_trusts_the_environment_its_credentials_are_known() -> None:
    assert {CANARY, "e-pw"} <= set(client_secrets(client(trust_env=True), "host"))
    assert client_secrets(client(), "host") == []


@pytest.mark.usefixtures("netrc")
@pytest.mark.parametrize(
    ("host", "found"), [("host", ("me", CANARY)), ("odd", ("you", "")), ("other", None)]
)
def test_netrc_is_read_where_the_environment_says(host: str, found: tuple[str, str] | None) -> None:
    assert netrc_login(host) == found


def test_netrc_is_read_at_home(
    netrc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("HOME", str(tmp_path))
    for platform, name in (("linux", ".netrc"), ("win32", "_netrc")):
        monkeypatch.setattr(_endpoint, "sys", SimpleNamespace(platform=platform))
        assert netrc_login("host") is None
        netrc.rename(tmp_path / name)
        assert netrc_login("host") == ("me", CANARY)
        (tmp_path / name).rename(netrc)


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"nonsense"])
def test_a_netrc_that_cannot_be_read_holds_nothing(netrc: Path, content: bytes | None) -> None:
    if content is None:
        netrc.unlink()
    else:
        netrc.write_bytes(content)
    assert netrc_login("host") is None
