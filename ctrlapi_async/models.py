"""The nouns of the Control API as frozen values; knows no wire and no I/O."""

from __future__ import annotations

import sys
from collections.abc import Mapping  # noqa: TC003 - attrs resolves it at run time
from enum import Enum, StrEnum
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final

from attrs import Attribute, define, field, frozen
from msgspec import Meta, ValidationError, convert

if TYPE_CHECKING:
    from collections.abc import Callable


class TaskStatus(StrEnum):
    """The statuses of a task that the API documents, spelled as on the wire (TaskStop page)."""

    SCHEDULED = "Scheduled"
    EXPLORE = "Explore"
    RUNNING = "Running"
    COMPLETED = "Completed"
    REJECTED = "Rejected"
    CANCELED = "Canceled"
    STALLED = "Stalled"

    @property
    def pending(self) -> bool:
        """Whether the task has not started yet: Scheduled or Explore."""
        return self in (TaskStatus.SCHEDULED, TaskStatus.EXPLORE)

    @property
    def ended(self) -> bool:
        """Whether the task will not run any more: Completed, Rejected, Canceled or Stalled."""
        return not self.pending and self is not TaskStatus.RUNNING


class StopResult(StrEnum):
    """What became of the wish to stop one task; every task of a report has exactly one."""

    STOP_SENT = "stop_sent"
    """The server answered "Stop request was sent", or was found to have stopped the task."""
    NOT_RUNNING = "not_running"
    """The check named another status than Running; no stop was spent, but perhaps a lost one."""
    NOT_FOUND = "not_found"
    """Access denied, or no row for it: the project has no such task."""
    UNAVAILABLE = "unavailable"
    """Running when checked, but "Stopping task is unavailable": it ended in between."""
    WOULD_STOP = "would_stop"
    """Dry run: the task is Running."""
    NOT_SENT = "not_sent"
    """No stop took place: the check had no answer, or the run ended or was refused first."""
    UNCONFIRMED = "unconfirmed"
    """A stop may have been sent, and neither its reply nor a check afterwards tells."""


class AllActive(Enum):
    """The type of `ALL_ACTIVE`."""

    ALL_ACTIVE = "*"

    def __repr__(self) -> str:
        return self.name


ALL_ACTIVE: Final = AllActive.ALL_ACTIVE
"""In place of task ids: all running tasks of the project and those in its queue ("*")."""


def parse_status(text: str | None) -> TaskStatus | str | None:
    """Give the enum's member for a known status, and any other text as it came."""
    return _STATUSES.get(text, text) if text is not None else None


_STATUSES: Final[dict[str, TaskStatus | str]] = {str(status): status for status in TaskStatus}


def _frozen_mapping(members: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(members))


@frozen
class TaskState:
    """One row of a TaskStatus reply.

    Args:
        task_id: The task.
        status: A `TaskStatus`, another text if the server knows more statuses, or None.
        error: The server's words in place of a status, or None.
        details: The row's other members, as they came.
    """

    task_id: int
    status: TaskStatus | str | None = None
    error: str | None = None
    details: Mapping[str, Any] = field(factory=dict, converter=_frozen_mapping, hash=False)

    def __reduce__(self) -> tuple[type[TaskState], tuple[Any, ...]]:
        # A mapping proxy, which keeps `details` read-only, does not pickle.
        return TaskState, (self.task_id, self.status, self.error, dict(self.details))


@define
class OutcomeFields:
    """What `StopOutcome` freezes; internal."""

    task_id: int
    project_id: int
    result: StopResult
    status: TaskStatus | str | None = None
    error: str | None = None


@frozen
class StopOutcome(OutcomeFields):
    """What became of the wish to stop one task.

    Args:
        task_id: The task.
        project_id: The project it was asked for in.
        result: What became of it.
        status: The task's status when last seen, or None.
        error: The server's or the client's words, or None.
    """


@frozen
class StopStats:
    """What a run cost.

    Args:
        status_calls: TaskStatus requests sent, repeats included.
        stop_calls: TaskStop requests sent, repeats included.
        retries: The repeats among them.
        elapsed: Seconds from the run's start to its end; the longest when merged.
    """

    status_calls: int = 0
    stop_calls: int = 0
    retries: int = 0
    elapsed: float = 0.0

    def __or__(self, other: StopStats) -> StopStats:
        return StopStats(
            self.status_calls + other.status_calls,
            self.stop_calls + other.stop_calls,
            self.retries + other.retries,
            max(self.elapsed, other.elapsed),
        )


def _whole(least: int) -> Callable[[object, Attribute[Any], object], None]:
    def check(instance: object, attribute: Attribute[Any], value: object) -> None:
        expect_int(f"{type(instance).__name__}.{attribute.name}", value, least)

    return check


def _seconds(instance: object, attribute: Attribute[Any], value: object) -> None:
    expect_seconds(f"{type(instance).__name__}.{attribute.name}", value)


def expect_int(name: str, value: object, least: int = 0) -> int:
    """Give `value` back if it is an int of at least `least` that 64 bits hold.

    Raises:
        TypeError: It is no int, or a bool.
        ValueError: It is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not least <= value <= MAX_ID:
        raise ValueError(f"{name} must be from {least} to 2**63 - 1, not {value!r}")
    return int(value)  # a plain one, which JSON can hold


def expect_ids(task_ids: list[Any]) -> list[int]:
    """Give ints from 0 to 2**63 - 1, plain ones, in a list; raises as `expect_int` does."""
    try:
        return convert(task_ids, _TaskIds)
    except ValidationError:
        return list(map(partial(expect_int, "a task id"), task_ids))  # says which, and why


def expect_seconds(name: str, value: object) -> float:
    """Give `value` back if it is a finite number of seconds, 0 or more.

    Raises:
        TypeError: It is no number, or a bool.
        ValueError: It is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number of seconds, 0 or more, not {value!r}")
    return value


MAX_ID: Final = 2**63 - 1

_TaskIds = list[Annotated[int, Meta(ge=0, le=MAX_ID)]]


def _optional(
    check: Callable[[object, Attribute[Any], object], None],
) -> Callable[[object, Attribute[Any], object], None]:
    def check_unless_none(instance: object, attribute: Attribute[Any], value: object) -> None:
        if value is not None:
            check(instance, attribute, value)

    return check_unless_none


@frozen
class Batching:
    """How a session packs task ids into requests.

    Args:
        chunk_size: Task ids a request at most; None fits it to the number of ids, so that all
            checks are in flight at once: 100 at least and 1,000 at most, and 500 where the
            number is not known beforehand.
        max_concurrency: Requests of the session in flight at most.
        linger: Seconds that single stops (`ControlSession.stop`) wait for others to go with;
            0: only those asked for in the same turn of the event loop go together.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value is out of range.
    """

    chunk_size: int | None = field(default=None, validator=_optional(_whole(1)))
    max_concurrency: int = field(default=8, validator=_whole(1))
    linger: float = field(default=0.0, validator=_seconds)

    def chunk_for(self, count: int | None) -> int:
        """Give the task ids a request for `count` ids, or for an unknown number (None)."""
        if self.chunk_size is not None:
            return self.chunk_size
        return 500 if count is None else min(max(-(-count // self.max_concurrency), 100), 1000)


@frozen
class RetryPolicy:
    """When and how often a request that failed is sent again.

    The wait before attempt n+1 is random between 0 and
    min(wait_max, wait_initial * 2**(n-1)) seconds ("full jitter").

    Args:
        attempts: How often a request is sent at most, the first time included; 1: no repeats.
        wait_initial: Seconds, the bound of the first wait.
        wait_max: Seconds, the bound of every wait, one that the server asks for included.
        timeout: Seconds after a request's first fault when it is no longer repeated; None: none.

    Raises:
        TypeError: A value is no number.
        ValueError: A value is out of range.
    """

    attempts: int = field(default=6, validator=_whole(1))
    wait_initial: float = field(default=0.25, validator=_seconds)
    wait_max: float = field(default=30.0, validator=_seconds)
    timeout: float | None = field(default=120.0, validator=_optional(_seconds))

    def wait_bound(self, attempt: int) -> float:
        """Give the bound in seconds of the wait after the failed attempt of that number."""
        # The exponent's cap only keeps the power from overflowing a float.
        return min(self.wait_max, self.wait_initial * 2.0 ** min(attempt - 1, 64))
