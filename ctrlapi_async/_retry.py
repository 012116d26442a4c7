"""How long to wait before a request is sent again, and how that is logged. Pure otherwise."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ctrlapi_async._errors import HttpError

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async._errors import CtrlApiError
    from ctrlapi_async._models import RetryPolicy

logger = logging.getLogger("ctrlapi_async")


def pause_after(
    policy: RetryPolicy, attempt: int, error: Exception, random: Callable[[], float]
) -> float:
    """Return the seconds to wait after an attempt: full jitter, but what the server asks for.

    Args:
        policy: The bounds of waits of the client's own choice.
        attempt: The number of the attempt that failed.
        error: What it met.
        random: Returns a random number from 0 to below 1.
    """
    asked = (error.retry_after or 0.0) if isinstance(error, HttpError) else 0.0
    # Not just what is asked for: repeats that come in step with each other would go on so.
    return max(asked, random() * policy.wait_bound(max(attempt, 1)))


def last_moment(policy: RetryPolicy, first_fault_at: float) -> float:
    """Return until when a request may be sent again, in seconds.

    Args:
        policy: The policy.
        first_fault_at: When the request first failed, in seconds.
    """
    return float("inf") if policy.timeout is None else first_fault_at + policy.timeout


def impossible_wait(error: CtrlApiError, now: float, until: float) -> CtrlApiError | None:
    """Return an error that says so if the server asks to wait for longer than is allowed.

    Args:
        error: What was met.
        now: The time in seconds.
        until: Until when waiting is allowed, in seconds.
    """
    if not isinstance(error, HttpError) or error.retry_after is None:
        return None
    if now + error.retry_after <= until:
        return None
    return type(error)(
        f"{error.args[0]}; it asks to wait {error.retry_after:g} s, longer than allowed here",
        *error.args[1:],
    )


def log_repeat(method: str, tasks: int, error: Exception, attempt: int, pause: float) -> None:
    """Log that a request will be sent again.

    Args:
        method: Its method.
        tasks: How many tasks it is about.
        error: What it met.
        attempt: The number of the attempt to come.
        pause: Seconds until then.
    """
    logger.info(
        "%s of %d task%s: attempt %d in %.2f s, after: %s",
        method,
        tasks,
        "s" * (tasks != 1),
        attempt,
        pause,
        error,
        extra={"attempt": attempt},
    )
