"""How long to wait before a request is sent again. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrlapi_async._errors import HttpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async._models import RetryPolicy


def pause_after(
    policy: RetryPolicy, attempt: int, error: Exception, random: Callable[[], float]
) -> float:
    """Return the seconds to wait after an attempt: what the server asks for, or full jitter.

    Args:
        policy: The bounds of waits of the client's own choice.
        attempt: The number of the attempt that failed.
        error: What it met.
        random: Returns a random number from 0 to below 1.
    """
    if isinstance(error, HttpError) and error.retry_after is not None:
        return error.retry_after
    return random() * policy.wait_bound(max(attempt, 1))


def last_moment(policy: RetryPolicy, first_fault_at: float) -> float:
    """Return until when a request may be sent again, in seconds.

    Args:
        policy: The policy.
        first_fault_at: When the request first failed, in seconds.
    """
    return float("inf") if policy.timeout is None else first_fault_at + policy.timeout
