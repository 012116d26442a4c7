"""Where requests go and what is sent with each of them: arguments checked, secrets found."""

from __future__ import annotations

import netrc
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies

from multidict import CIMultiDict
from yarl import URL

from ctrlapi_async._auth import API_PATH, basic_tokens
from ctrlapi_async._redaction import secrets_of_headers

if TYPE_CHECKING:
    import aiohttp

_MANAGED_HEADERS: Final = ("Content-Encoding", "Content-Length", "Transfer-Encoding")
"""Headers that say how a request is written on the wire, so that callers cannot choose them."""


def expect_endpoint(base_url: object) -> URL:
    """Return the address that requests go to, credentials included.

    Args:
        base_url: The server's root or the whole endpoint.

    Raises:
        TypeError: It is no str.
        ValueError: It is no HTTP URL, or has a query or fragment.
    """
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a str, not {type(base_url).__name__}")
    # Whatever may be a credential, in whatever a string that is no URL may look like.
    shown = re.sub(r"(?s)^(\w+:)?(//)?.*@", r"\1\2***@", base_url)
    shown = re.sub(r"(?s)[?#].+", "?***", shown)
    try:
        url = URL(base_url)
        port = url.port
        (url.raw_host or "").encode("idna")  # as resolving will: labels of 1 to 63 characters
    except ValueError:
        raise ValueError(f"base_url must be an HTTP URL, not {shown!r}") from None
    if url.scheme not in ("http", "https") or not url.host or port == 0:
        raise ValueError(
            f"base_url must be an HTTP URL, http://172.16.1.41 for example, not {shown!r}"
        )
    if url.query_string or url.fragment:
        raise ValueError(f"base_url must have no query and no fragment: {shown!r}")
    path = url.raw_path.rstrip("/")
    return url.with_path(path if path.endswith(API_PATH) else path + API_PATH, encoded=True)


def expect_headers(headers: object) -> CIMultiDict[str]:
    """Return a copy of the argument `headers`.

    Raises:
        TypeError: It is no mapping of strings.
        ValueError: A name or a value cannot stand in a request.
    """
    if headers is None:
        return CIMultiDict()
    if not isinstance(headers, Mapping):
        raise TypeError(f"headers must be a mapping, not {type(headers).__name__}")
    for name, value in headers.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"headers must be strings: {name!r} is not, or its value is not")
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError(f"headers: {name!r} cannot be a header's name")
        if re.search(r"[\0-\x08\n-\x1f\x7f\ud800-\udfff]", value):
            raise ValueError(f"headers: the value of {name!r} has a control character")
        if name.title() in _MANAGED_HEADERS:
            raise ValueError(f"headers: {name!r} cannot be chosen")
    return CIMultiDict(headers)


def client_secrets(client: aiohttp.ClientSession, host: str) -> list[str]:
    """Return the credentials that a caller's client sends to a host, or to its proxy.

    Args:
        client: The client.
        host: The host that requests go to.
    """
    # aiohttp has no public attribute for the proxy; without it only its URL is hidden in texts.
    logins = [
        _login_of(login) for login in (client.auth, getattr(client, "_default_proxy_auth", None))
    ]
    proxies = [getattr(client, "_default_proxy", None)]
    if client.trust_env:
        proxies += getproxies().values()
        logins.append(netrc_login(host))
    for proxy in filter(None, proxies):
        url = URL(str(proxy))
        logins += [(url.user or "", url.password or ""), netrc_login(url.host or "")]
    return secrets_of_headers(client.headers) + [
        secret
        for login, password in filter(None, logins)
        for secret in (password, *basic_tokens(login, password))
    ]


def netrc_login(host: str) -> tuple[str, str] | None:
    """Return login and password that netrc has for a host, where aiohttp looks for it too."""
    try:
        given = os.environ.get("NETRC")
        name = "_netrc" if sys.platform == "win32" else ".netrc"
        path = Path.home() / name if given is None else Path(given)
        found = netrc.netrc(str(path)).authenticators(host)
    except (OSError, RuntimeError, ValueError, netrc.NetrcParseError):
        return None
    return None if found is None else (found[0], found[2] or "")


def _login_of(auth: aiohttp.BasicAuth | None) -> tuple[str, str] | None:
    return None if auth is None else (auth.login, auth.password)
