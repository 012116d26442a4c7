"""Addresses and headers as arguments, and the credentials of a caller's client."""

from __future__ import annotations

import re
import traceback
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
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


@pytest.mark.parametrize(
    ("url", "kind", "words"),
    [
        (b"http://host", TypeError, "base_url must be a str, not bytes"),
        (None, TypeError, "base_url must be a str, not NoneType"),
        ("", ValueError, "must be an HTTP URL.*not ''"),
        ("host", ValueError, "not 'host'"),
        ("host:80", ValueError, "not 'host:80'"),
        ("/ctrl_api/v1/json", ValueError, "not '/ctrl_api/v1/json'"),
        ("ftp://host", ValueError, "not 'ftp://host'"),
        ("http://", ValueError, "not 'http://'"),
        ("http://:80", ValueError, "not 'http://:80'"),
        ("http://host:0", ValueError, "not 'http://host:0'"),
        ("http://host:65536", ValueError, "not 'http://host:65536'"),
        ("http://host:port", ValueError, "not 'http://host:port'"),
        ("http://[::1", ValueError, "not 'http://"),
        ("http://a..b", ValueError, "must be an HTTP URL"),
        ("http://" + "x" * 64, ValueError, "must be an HTTP URL"),
        ("http://host/?a=b", ValueError, "no query"),
        ("http://host/#a", ValueError, "no fragment"),
    ],
)
def test_an_address_that_cannot_be_is_refused(url: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        expect_endpoint(url)
    assert type(caught.value) is kind


@pytest.mark.parametrize(
    "url",
    [
        "http://operator:%s@",
        "http://operator:%s@host:port",
        "http://operator:%s@host:99999",
        "http://operator:a/%s@host",
        "http://operator:%s/@host",
        "operator:%s@host",
        "//operator:%s@host",
        "ftp://operator:%s@host",
        "http://host/?token=%s",
        "http://host/#%s",
        "http://operator:%s@host/?a#b",
        "http://operator:\n%s@host:port",
    ],
)
def test_a_refused_address_is_shown_without_its_credentials(url: str) -> None:
    with pytest.raises(ValueError, match="base_url") as caught:
        expect_endpoint(url.replace("%s", CANARY))
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        assert expect_endpoint("http://" + text).path.endswith("/ctrl_api/v1/json")
    except ValueError as error:
        assert "base_url" in str(error)  # noqa: PT017 - either is right


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers", [None, {}, {"X-Id": "7", "user-agent": "a\tb"}, {"X": "mö"}, {"X": ""}]
)
def test_good_headers_are_copied(headers: Any) -> None:
    copy = expect_headers(headers)
    assert dict(copy) == (headers or {})
    assert copy is not headers


@pytest.mark.parametrize(
    ("headers", "kind", "words"),
    [
        ({"X": 1}, TypeError, "headers must be strings: 'X'"),
        ({1: "X"}, TypeError, "headers must be strings: 1"),
        ({"X": CANARY.encode()}, TypeError, "headers must be strings: 'X'"),
        ([("X", CANARY)], TypeError, "headers must be a mapping, not list"),
        (f"X: {CANARY}", TypeError, "headers must be a mapping, not str"),
        ({"X": f"{CANARY}\r\nY: b"}, ValueError, "the value of 'X' has a control character"),
        ({"X": f"{CANARY}\0"}, ValueError, "the value of 'X' has a control character"),
        ({"X": f"{CANARY}\x1b[1m"}, ValueError, "the value of 'X' has a control character"),
        ({"X": f"{CANARY}\x7f"}, ValueError, "the value of 'X' has a control character"),
        ({"X": f"{CANARY}\udc80"}, ValueError, "the value of 'X' has a control character"),
        ({"X\n": "a"}, ValueError, r"'X\\n' cannot be a header's name"),
        ({"": "a"}, ValueError, "'' cannot be a header's name"),
        ({"X Y": "a"}, ValueError, "'X Y' cannot be a header's name"),
        ({"content-length": "5"}, ValueError, "'content-length' cannot be chosen"),
        ({"Transfer-Encoding": "chunked"}, ValueError, "'Transfer-Encoding' cannot be chosen"),
        ({"CONTENT-ENCODING": "gzip"}, ValueError, "'CONTENT-ENCODING' cannot be chosen"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused_and_not_shown(
    headers: Any, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words) as caught:
        expect_headers(headers)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@given(st.dictionaries(st.text(), st.text()))
def test_headers_that_are_accepted_can_be_written(headers: dict[str, str]) -> None:
    try:
        accepted = expect_headers(headers)
    except ValueError:
        return
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


def login(user: str, password: str) -> Any:
    return SimpleNamespace(login=user, password=password)


def test_the_credentials_of_a_client_and_of_its_proxy_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_endpoint, "getproxies", lambda: {"http": "http://env:e-pw@proxy:1"})
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
    assert "all" not in secrets
    assert "e-pw" not in secrets


@pytest.mark.usefixtures("netrc")
def test_where_a_client_trusts_the_environment_its_credentials_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        _endpoint, "getproxies", lambda: {"http": "http://env:e-pw@proxy:1", "no": "localhost"}
    )
    secrets = client_secrets(client(trust_env=True), "host")
    assert {CANARY, "e-pw"} <= set(secrets)
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
