"""From settings and options to a session with the server."""

from __future__ import annotations

import getpass
import ssl
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ctrlapi_async as api
from ctrlapi_async.cli.exits import UsageError
from ctrlapi_async.cli.options import refuse
from ctrlapi_async.cli.settings import read_secret_file
from ctrlapi_async.cli.streams import complain
from ctrlapi_async.cli.text import own_words

if TYPE_CHECKING:
    from ctrlapi_async.cli.options import MessageOptions, RequestOptions, ServerOptions
    from ctrlapi_async.cli.settings import Settings


def connect(
    settings: Settings, server: ServerOptions, requests: RequestOptions, messages: MessageOptions
) -> api.ControlSession:
    """Return a session with the server that is meant, not entered yet.

    Raises:
        UsageError: Something is missing or cannot be used.
    """
    url = _needed(settings, "url", "server", "--url", "CTRLAPI_URL")
    user_id = _needed(settings, "user_id", "user", "--user-id", "CTRLAPI_USER_ID")
    tls = _tls(settings, insecure=server.insecure)
    if server.insecure and not messages.quiet:
        complain("the server's certificate is not checked (--insecure)", "warning")
    return session_of(url, user_id, requests, auth=_credentials(settings), tls=tls)


def session_of(
    url: str,
    user_id: int,
    requests: RequestOptions,
    *,
    auth: tuple[str, str] | api.ApiKey | None = None,
    tls: bool | ssl.SSLContext = True,
) -> api.ControlSession:
    """Return a session that sends requests as the options say; raises `UsageError`."""
    retry = {} if requests.retries is None else {"attempts": requests.retries + 1}
    try:
        return api.ControlSession(
            url,
            user_id,
            auth=auth,
            ssl=tls,
            batching=api.Batching(requests.chunk_size, requests.concurrency),
            retry=api.RetryPolicy(**retry),
            connect_timeout=requests.connect_timeout,
        )
    except ValueError as error:
        raise UsageError(own_words(str(error))) from None


def _needed(settings: Settings, name: str, what: str, option: str, variable: str) -> Any:  # noqa: ANN401 - each setting has its own type
    value = settings.get(name)
    if value is None:
        raise UsageError(
            f"no {what} is given: use {option}, set {variable}, or write {name} into a profile "
            "(ctrlapi-async config shows where)"
        )
    return value


def _credentials(settings: Settings) -> tuple[str, str] | api.ApiKey | None:
    auth = settings.get("auth")
    if auth is not None:
        login, colon, password = auth.partition(":")
        return login, password if colon else _asked_password(login)
    key = settings.get("api_key")
    if key is None:
        if "api_key_file" not in settings.found:
            return None
        key = read_secret_file(settings.found["api_key_file"])
    access_id, _, secret = key.strip().rpartition(":")
    try:
        return api.ApiKey(secret, access_id or None)
    except ValueError as error:
        raise UsageError(f"the API key cannot be used: {error}") from None


def _asked_password(login: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(f"Password of {login}: ")
        except (getpass.GetPassWarning, EOFError, OSError):
            raise UsageError(
                "there is no terminal to ask for the password on: set CTRLAPI_AUTH=LOGIN:PASSWORD"
            ) from None


def _tls(settings: Settings, *, insecure: bool) -> bool | ssl.SSLContext:
    given = settings.found.get("ca_file")
    if insecure:
        refuse(
            given is not None and given.origin == "--ca-file",
            "--ca-file checks the server's certificate and --insecure does not: leave out one",
        )
        return False
    if given is None:
        return True
    path = given.base / Path(given.value).expanduser()
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise UsageError(f"CA file {path} cannot be used: {reason}") from None
