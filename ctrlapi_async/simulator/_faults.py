"""What can go wrong with a request: values that a test hands to the simulator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from attrs import field, frozen, validators

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@frozen
class HttpStatus:
    """Answer with an HTTP status, as the proxy in front of the API would.

    Args:
        status: The HTTP status.
        headers: Headers to add, for example ``Retry-After`` or ``Location``.
        body: The body; None for an HTML page like nginx's.
        effect: Whether the request takes effect all the same.
    """

    status: int = field(validator=[validators.ge(200), validators.le(599)])
    headers: Mapping[str, str] = field(factory=dict, kw_only=True)
    body: str | bytes | None = field(default=None, kw_only=True)
    effect: bool = field(default=False, kw_only=True)


@frozen
class Drop:
    """Reset the connection without a byte of reply.

    Args:
        effect: Whether the request takes effect first.
    """

    effect: bool = field(default=False, kw_only=True)


@frozen
class CutBody:
    """Announce the length of the whole reply, send a part of it and close the connection.

    Args:
        keep: The part of the reply's bytes that is sent, from 0 to below 1.
        effect: Whether the request takes effect first.
    """

    keep: float = field(default=0.5, validator=[validators.ge(0), validators.lt(1)], kw_only=True)
    effect: bool = field(default=True, kw_only=True)


@frozen
class SlowBody:
    """Send the reply's body byte by byte.

    Args:
        interval: Seconds before each byte after the first.
        effect: Whether the request takes effect first.
    """

    interval: float = field(default=1.0, validator=validators.ge(0.0), kw_only=True)
    effect: bool = field(default=True, kw_only=True)


@frozen
class Hang:
    """Never answer; the request ends when the client goes away or the simulator stops.

    Args:
        effect: Whether the request takes effect first.
    """

    effect: bool = field(default=False, kw_only=True)


@frozen
class Body:
    """Answer with exactly these bytes.

    Args:
        body: The body; a str is encoded as UTF-8.
        content_type: The Content-Type header.
        status: The HTTP status.
        effect: Whether the request takes effect first.
    """

    body: str | bytes
    content_type: str = field(default="application/json", kw_only=True)
    status: int = field(
        default=200, validator=[validators.ge(200), validators.le(599)], kw_only=True
    )
    effect: bool = field(default=False, kw_only=True)


@frozen
class Rewrite:
    """Pass the reply's JSON through a function: rows missing, repeated, added or shuffled.

    A reply that is not 200 passes unchanged. If the function raises, the client gets a 500 and
    `ControlApiSimulator.stop` raises the error again. The function runs in the simulator's thread.

    Args:
        change: Gets the reply's JSON, which it may change in place, and returns the JSON to send.
        effect: Whether the request takes effect; if not, the reply is still what it would have
            been.
    """

    change: Callable[[Any], Any]
    effect: bool = field(default=True, kw_only=True)


@frozen
class Delay:
    """Take effect, then answer well, but later than usual.

    Args:
        seconds: Seconds on top of the simulator's latency.
    """

    seconds: float = field(validator=validators.ge(0.0))
    effect: ClassVar[bool] = True


Fault: TypeAlias = HttpStatus | Drop | CutBody | SlowBody | Hang | Body | Rewrite | Delay
"""Any of the faults above."""
