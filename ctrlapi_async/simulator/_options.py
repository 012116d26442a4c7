"""How a simulated server behaves."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from attrs import define, field, setters

from ctrlapi_async.simulator._requests import METHODS
from ctrlapi_async.simulator._rows import ChainForm, ErrorForm, RowForm
from ctrlapi_async.simulator._tasks import known

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from attrs import Attribute

Missing: TypeAlias = Literal["denied", "error", "omitted"]
"""What an id gets that is not of the project."""

DeniedNames: TypeAlias = Literal["bad", "all", "none"]
"""Which ids a refused call names."""

SignatureRefusal: TypeAlias = Literal[401, 403, 200]
"""The HTTP status that a request with a bad signature gets."""

_CHOICES: Final[dict[str, tuple[Any, ...]]] = {
    "missing": get_args(Missing),
    "denied_names": get_args(DeniedNames),
    "rows": get_args(RowForm),
    "chains": get_args(ChainForm),
    "row_errors": get_args(ErrorForm),
}


def _one_of(_: Any, attribute: Attribute[Any], value: str) -> None:  # noqa: ANN401 - attrs' signature
    known(value, _CHOICES[attribute.name], attribute.name)


def _not_below_zero(_: Any, attribute: Attribute[Any], value: float) -> None:  # noqa: ANN401 - attrs' signature
    if not value >= 0:  # NaN is not either
        raise ValueError(f"{attribute.name} must not be below zero")


def _base64(_: Any, attribute: Attribute[Any], value: str | None) -> None:  # noqa: ANN401 - attrs' signature
    try:
        decoded = base64.b64decode(value or "AA==", validate=True)
    except (ValueError, binascii.Error):
        decoded = b""
    if not decoded:
        raise ValueError(f"{attribute.name} must be base64")


def _prefix(_: Any, attribute: Attribute[Any], value: str) -> None:  # noqa: ANN401 - attrs' signature
    if value and (not value.startswith("/") or value.endswith("/")):
        raise ValueError(f"{attribute.name} must start with a slash and not end with one")


def _known_methods(methods: Iterable[str]) -> frozenset[str]:
    return frozenset(known(method, METHODS, "a method") for method in methods)


@define(eq=False, kw_only=True, slots=False)
class Options:
    """How a simulated server behaves; what is not fixed may be changed at any time.

    Args:
        host: The address to listen on.
        ssl_context: Serves HTTPS.
        prefix: A path to put before ``/ctrl_api/v1/json``, as a proxy might.
        login: A ``(name, password)`` that requests must carry as basic authentication.
        api_key: A base64 key; requests must be signed with it (``APIAuth-HMAC-SHA256``).
        access_id: Who signs; None for the ``user_id`` of the request.
        signature_refusal: The HTTP status that a bad signature gets.
        clock_skew: Seconds that the server's wall clock, by which signatures expire and the
            ``Date`` header is made, is ahead of this machine's.
        max_body: The longest request body in bytes; a longer one is answered with 413.
        tick: Seconds that the hand-driven clock moves after each request.
        stop_delay: Seconds of the clock that a task stays Running after an accepted TaskStop.
        latency: Real seconds before each reply.
        seconds_per_id: Real seconds added to the latency for each task id asked for.
        missing: What an id gets that is not of the project: ``"denied"`` refuses the whole call,
            ``"error"`` gives a row with an error, ``"omitted"`` gives no row.
        denied_names: Which ids the refusal names: the ``"bad"`` ones, ``"all"`` asked for, or
            ``"none"``.
        rows: The rows of TaskStatus: ``"documented"`` ones have all members, ``"narrow"`` ones
            the task's id and status, and the chain's id where a task was restarted.
        chains: Where the rows of a restart chain stand: ``"flat"`` in the result, in ``"lists"``
            of their own inside it, or ``"nested"`` in a member of the first task's row.
        row_errors: Whether a row says what is wrong in ``"error"`` or in a list, ``"errors"``,
            which is then empty in other rows.
        echo_id: Whether a call's ``id`` comes back.
        user_error_in_reply: Puts "user 5 is unavailable" in the reply array, not at the top.
        refuse_all_active: Answers ``"*"`` with an error.
        methods: The methods that this server knows.
    """

    host: str = field(default="127.0.0.1", on_setattr=setters.frozen)
    ssl_context: ssl.SSLContext | None = field(default=None, on_setattr=setters.frozen)
    prefix: str = field(default="", validator=_prefix, on_setattr=setters.frozen)
    login: tuple[str, str] | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, validator=_base64, repr=False)
    access_id: str | None = None
    signature_refusal: SignatureRefusal = 401
    clock_skew: float = 0.0
    max_body: int = field(default=1024 * 1024, validator=_not_below_zero)
    tick: float = field(default=0.0, validator=_not_below_zero)
    stop_delay: float = field(default=0.0, validator=_not_below_zero)
    latency: float = field(default=0.0, validator=_not_below_zero)
    seconds_per_id: float = field(default=0.0, validator=_not_below_zero)
    missing: Missing = field(default="denied", validator=_one_of)
    denied_names: DeniedNames = field(default="bad", validator=_one_of)
    rows: RowForm = field(default="documented", validator=_one_of)
    chains: ChainForm = field(default="flat", validator=_one_of)
    row_errors: ErrorForm = field(default="error", validator=_one_of)
    echo_id: bool = True
    user_error_in_reply: bool = False
    refuse_all_active: bool = False
    methods: frozenset[str] = field(
        default=frozenset(METHODS), converter=_known_methods, on_setattr=setters.frozen
    )
