"""Whole replies, before a fault changes them."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where nginx's wording is not that of the standard.
_NGINX_TITLES: Final = {
    302: "Found",
    401: "Authorization Required",
    405: "Not Allowed",
    413: "Request Entity Too Large",
    503: "Service Temporarily Unavailable",
    504: "Gateway Time-out",
}


@frozen
class Answer:
    """An HTTP reply."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(factory=dict)


def json_answer(
    status: int,
    document: Any,  # noqa: ANN401 - JSON is Any
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Return a reply with a JSON body."""
    return Answer(status, json.dumps(document).encode(), headers=headers or {})


def page(status: int, headers: Mapping[str, str] | None = None) -> Answer:
    """Return the page that nginx would send."""
    try:
        words = _NGINX_TITLES.get(status) or HTTPStatus(status).phrase
    except ValueError:
        words = ""
    title = f"{status} {words}".strip()
    body = (
        f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n"
        f"<center><h1>{title}</h1></center>\r\n<hr><center>nginx</center>\r\n"
        "</body>\r\n</html>\r\n"
    )
    return Answer(status, body.encode(), "text/html", headers or {})
