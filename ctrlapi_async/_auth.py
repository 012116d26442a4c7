"""Credentials: HTTP basic authentication, and requests signed with an API key. Pure.

The signature is the scheme `APIAuth-HMAC-SHA256` of the api-auth libraries: an HMAC over method,
content type, hash of the body, path and date. It is valid for one minute, so each attempt of each
request is signed anew.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import re
from email.utils import formatdate
from typing import Final

from attrs import field, frozen

API_PATH: Final = "/ctrl_api/v1/json"
CONTENT_TYPE: Final = "application/json"
SIGNATURE_LIFETIME: Final = 60.0
"""Seconds for which the server takes a signature."""


@frozen
class ApiKey:
    """The API key of a user, with which each request is signed.

    Args:
        secret: The key as the server shows it, base64.
        access_id: Whose key it is; None: the session's user id.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: The secret is no base64, or the access id cannot stand in a header.
    """

    secret: str = field(repr=False)
    access_id: str | None = None

    def __attrs_post_init__(self) -> None:
        # No message shows a value: each may be the secret.
        if not isinstance(self.secret, str):
            raise TypeError(f"secret must be a str, not {type(self.secret).__name__}")
        if not self.key:
            raise ValueError("secret is empty")
        if self.access_id is None:
            return
        if not isinstance(self.access_id, str):
            raise TypeError(f"access_id must be a str, not {type(self.access_id).__name__}")
        if not re.fullmatch(r"[!-9;-~]+", self.access_id):
            raise ValueError("access_id must be of printable ASCII without spaces and colons")

    @property
    def key(self) -> bytes:
        """The key's bytes."""
        try:
            return base64.b64decode(self.secret, validate=True)
        except ValueError:  # binascii.Error is one; non-ASCII text raises another
            raise ValueError("secret is not base64") from None

    def sign(self, body: bytes, user_id: int, now: float) -> dict[str, str]:
        """Return the headers that sign a request.

        Args:
            body: The request's body.
            user_id: The user in whose name it is made, if the key does not say.
            now: Seconds since the epoch.
        """
        date = formatdate(now, usegmt=True)
        content_hash = base64.b64encode(hashlib.sha256(body).digest()).decode()
        signature = self.signature(content_hash, date)
        access_id = str(user_id) if self.access_id is None else self.access_id
        return {
            "Date": date,
            "X-Authorization-Content-SHA256": content_hash,
            "Authorization": f"APIAuth-HMAC-SHA256 {access_id}:{signature}",
        }

    def signature(self, content_hash: str, date: str) -> str:
        """Return the signature of a request with this hash of its body, made at this date."""
        canonical = f"POST,{CONTENT_TYPE},{content_hash},{API_PATH},{date}"
        digest = hmac.digest(self.key, canonical.encode(), "sha256")
        return base64.b64encode(digest).decode()


def basic_tokens(login: str, password: str) -> list[str]:
    """Return the tokens of HTTP basic authentication in the charsets in use, UTF-8 first."""
    tokens = []
    for charset in ("utf-8", "latin-1"):
        with contextlib.suppress(UnicodeEncodeError):
            tokens.append(base64.b64encode(f"{login}:{password}".encode(charset)).decode())
    return tokens


def expect_auth(auth: object) -> tuple[str, str] | ApiKey | None:
    """Return the argument `auth`.

    Raises:
        TypeError: It is neither a login with its password nor an `ApiKey` nor None.
        ValueError: The login or the password cannot be sent.
    """
    if auth is None or isinstance(auth, ApiKey):
        return auth
    if not (
        isinstance(auth, tuple) and len(auth) == 2 and all(isinstance(part, str) for part in auth)
    ):
        raise TypeError("auth must be a tuple of login and password, or an ApiKey")
    if ":" in auth[0]:
        raise ValueError("auth: a login cannot contain a colon")
    if re.search("[\ud800-\udfff]", "".join(auth)):
        raise ValueError("auth: a lone surrogate stands for no character")
    return auth
