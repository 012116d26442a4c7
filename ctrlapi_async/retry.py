"""When what failed is tried again: stamina, driven by a `RetryPolicy`."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, TypeVar

import stamina

from ctrlapi_async.errors import CtrlApiError, HttpError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ctrlapi_async.models import RetryPolicy

T = TypeVar("T")

logger = logging.getLogger("ctrlapi_async")
logger.addHandler(logging.NullHandler())
# stamina logs each repeat as well, for those who listen; without a listener Python would print it.
logging.getLogger("stamina").addHandler(logging.NullHandler())


def pause_after(policy: RetryPolicy, attempt: int, error: CtrlApiError) -> float:
    """Give the seconds to wait after a failed attempt: what the server asks for, or full jitter.

    Args:
        policy: The bounds.
        attempt: The number of the attempt that failed.
        error: What it met.
    """
    if isinstance(error, HttpError) and error.retry_after is not None:
        return min(error.retry_after, policy.wait_max)
    return random.uniform(0.0, policy.wait_bound(attempt))  # noqa: S311 - no secret hangs on it


async def try_again(
    policy: RetryPolicy,
    attempt: int,
    error: CtrlApiError,
    once: Callable[[], Awaitable[T]],
    passing: Callable[[CtrlApiError], bool] = lambda _: True,
) -> T:
    """Try something that failed again, as often as the policy allows.

    Args:
        policy: How often, and with what pauses.
        attempt: The number of the attempt that failed.
        error: What it met.
        once: Makes one attempt; raises a `CtrlApiError` if it fails.
        passing: Whether an attempt that met this error is worth another.

    Raises:
        CtrlApiError: What the last attempt met.
    """
    number = attempt

    def pause(met: Exception) -> bool | float:
        if not isinstance(met, CtrlApiError) or not passing(met):
            return False
        return pause_after(policy, number, met)

    async for trial in stamina.retry_context(
        on=pause, attempts=policy.attempts - attempt + 1, timeout=policy.timeout
    ):
        with trial:
            if trial.num == 1:
                raise error
            number += 1
            logger.warning("attempt %d of %d", number, policy.attempts)
            return await once()
    raise AssertionError("unreachable")  # pragma: no cover - stamina returns or raises
