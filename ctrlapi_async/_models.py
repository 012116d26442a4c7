"""What users hold in their hands: frozen values and the checks of arguments; no wire, no I/O."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from enum import Enum, StrEnum
from functools import partial
from operator import index
from typing import TYPE_CHECKING, Annotated, Any, Final, SupportsIndex, TypeAlias

from attrs import field, frozen
from msgspec import Meta, ValidationError, convert

if TYPE_CHECKING:
    from attrs import Attribute

MAX_ID: Final = 2**63 - 1
"""The largest id that a signed 64-bit integer holds."""


class TaskStatus(StrEnum):
    """The documented statuses of a task, spelled as on the wire."""

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
    """The result of stopping one task; every task of a report has exactly one."""

    STOP_SENT = "stop_sent"
    """The server accepted the stop; with `wait_stopped`, the task also no longer runs."""
    STILL_RUNNING = "still_running"
    """The server accepted the stop, and the task still ran when `wait_stopped` ended."""
    NOT_RUNNING = "not_running"
    """The check returned another status than Running, so no stop was sent."""
    NOT_FOUND = "not_found"
    """The project has no such task: access denied, or no row for it."""
    UNAVAILABLE = "unavailable"
    """Running when checked, "Stopping task is unavailable" when stopped: it ended in between."""
    WOULD_STOP = "would_stop"
    """Dry run: the task is Running."""
    NOT_SENT = "not_sent"
    """No stop was sent: the check had no answer, or the run ended first."""
    UNCONFIRMED = "unconfirmed"
    """A stop may have been sent, but neither its reply nor a later check tells."""


UNANSWERED: Final = (StopResult.NOT_SENT, StopResult.UNCONFIRMED, StopResult.STILL_RUNNING)
"""The results of tasks for which a report is incomplete."""


class AllActive(Enum):
    """The type of `ALL_ACTIVE`."""

    ALL_ACTIVE = "*"

    def __repr__(self) -> str:
        return self.name


ALL_ACTIVE: Final = AllActive.ALL_ACTIVE
"""In place of task ids: all running tasks of the project and those in its queue ("*")."""

TaskIds: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | AllActive
"""One task id, an iterable of them, or `ALL_ACTIVE`."""

AnyTaskIds: TypeAlias = TaskIds | AsyncIterable[SupportsIndex]
"""`TaskIds`, or an async iterable of ids."""

_STATUSES: Final = {
    spelled: status for status in TaskStatus for spelled in (status, status.lower())
}


def parse_status(text: str | None) -> TaskStatus | str | None:
    """Return the member for a known status in any case, None for "", other text as it is."""
    if not text:
        return None
    return _STATUSES.get(text) or _STATUSES.get(text.lower(), text)


class LazyMapping(Mapping[str, Any]):
    """A read-only mapping that is made on first access.

    Args:
        source: The members, or a function without arguments that returns them.
    """

    __slots__ = ("_source",)

    def __init__(self, source: Mapping[str, Any] | Callable[[], Mapping[str, Any]]) -> None:
        self._source = source

    def _members(self) -> Mapping[str, Any]:
        if not isinstance(self._source, Mapping):
            self._source = self._source()
        return self._source

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - any JSON
        return self._members()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members())

    def __len__(self) -> int:
        return len(self._members())

    def __repr__(self) -> str:
        return repr(self._members())


def _lazy(members: Mapping[str, Any]) -> LazyMapping:
    # A mapping proxy would be read-only too, but does not pickle.
    return members if isinstance(members, LazyMapping) else LazyMapping(dict(members))


@frozen
class TaskState:
    """What TaskStatus says of one task.

    Args:
        task_id: The task.
        status: A `TaskStatus`, another text if the server knows more statuses, or None.
        error: The server's text in place of a status, or None.
        restarted_as: The state of the current task of the restart chain, or None if that is
            this task.
        details: The row's other members, read-only.
    """

    task_id: int
    status: TaskStatus | str | None = None
    error: str | None = None
    restarted_as: TaskState | None = None
    details: Mapping[str, Any] = field(factory=dict, converter=_lazy, hash=False)


@frozen
class StopOutcome:
    """What became of stopping one task.

    Args:
        task_id: The task that was asked for.
        project_id: Its project.
        result: What became of it.
        status: The last status seen, of the task that the outcome is about; or None.
        error: The server's or the client's text, or None.
        restarted_as: The current task of the restart chain, which the outcome is about; None
            if that is the task itself.
    """

    task_id: int
    project_id: int
    result: StopResult
    status: TaskStatus | str | None = None
    error: str | None = None
    restarted_as: int | None = None


@frozen
class StopStats:
    """What a run cost; `a | b` adds up all but the time.

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


@frozen
class Progress:
    """How far a run is.

    Args:
        total: Tasks of the run, or None while more may come.
        done: Tasks that have their outcome.
    """

    total: int | None
    done: int


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # an int with too many digits to be converted
        return f"an {type(value).__name__} that is too long to show"


def expect_int(name: str, value: object, least: int = 0) -> int:
    """Return `value` as a plain int; anything with `__index__` but a bool is one.

    Args:
        name: How an error calls the value.
        value: The value to check.
        least: The smallest int allowed; the largest is `MAX_ID`.

    Raises:
        TypeError: It is no int, or a bool.
        ValueError: It is out of range.
    """
    # What most values are needs no slow look at its protocols.
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, SupportsIndex)):
        raise TypeError(f"{name} must be an int, not {_shown(value)}")
    number = index(value)
    if not least <= number <= MAX_ID:
        raise ValueError(f"{name} must be from {least} to 2**63 - 1, not {_shown(value)}")
    return number


_IdList = list[Annotated[int, Meta(ge=0, le=MAX_ID)]]


def expect_ids(task_ids: list[Any]) -> list[int]:
    """Return task ids as a new list of plain ints; raise as `expect_int` does."""
    try:
        return convert(task_ids, _IdList)
    except ValidationError:
        # Slower, but accepts `__index__` and names the id that is wrong.
        return list(map(partial(expect_int, "a task id"), task_ids))


def expect_seconds(name: str, value: object) -> float:
    """Return `value` if it is a finite number of seconds, 0 or more.

    Raises:
        TypeError: It is no number, or a bool.
        ValueError: It is negative, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {_shown(value)}")
    if not 0 <= value <= sys.float_info.max:
        raise ValueError(
            f"{name} must be a finite number of seconds, 0 or more, not {_shown(value)}"
        )
    return value


_Validator: TypeAlias = "Callable[[object, Attribute[Any], object], None]"


def _checked_by(expect: Callable[[str, object], object], *, optional: bool = False) -> _Validator:
    def validate(instance: object, attribute: Attribute[Any], value: object) -> None:
        if value is not None or not optional:
            expect(f"{type(instance).__name__}.{attribute.name}", value)

    return validate


_expect_count = partial(expect_int, least=1)


@frozen
class Batching:
    """How a session packs task ids into requests.

    Args:
        chunk_size: Task ids a request at most; None fits it to the number of ids, so that all
            checks are in flight at once: 100 at least and 1,000 at most, and 500 where the
            number is not known beforehand.
        max_concurrency: Requests of the session in flight at most.
        start_concurrency: Requests in flight at first; more, up to `max_concurrency`, only while
            they make the session faster. None: always `max_concurrency`.
        linger: Seconds that single stops (`ControlSession.stop`) wait for others to join them;
            0: only those asked for in the same turn of the event loop go together.

    Raises:
        TypeError: A value is of the wrong type.
        ValueError: A value is out of range.
    """

    chunk_size: int | None = field(
        default=None, validator=_checked_by(_expect_count, optional=True)
    )
    max_concurrency: int = field(default=8, validator=_checked_by(_expect_count))
    start_concurrency: int | None = field(
        default=None, validator=_checked_by(_expect_count, optional=True)
    )
    linger: float = field(default=0.0, validator=_checked_by(expect_seconds))

    def __attrs_post_init__(self) -> None:
        if self.start_concurrency is not None and self.start_concurrency > self.max_concurrency:
            raise ValueError(
                "Batching.start_concurrency must not exceed max_concurrency "
                f"({self.max_concurrency}), but is {self.start_concurrency}"
            )

    def chunk_for(self, count: int | None) -> int:
        """Return the task ids a request for `count` ids, or for an unknown number (None)."""
        if self.chunk_size is not None:
            return self.chunk_size
        return 500 if count is None else min(max(-(-count // self.max_concurrency), 100), 1000)


@frozen
class RetryPolicy:
    """When and how often a request that failed is sent again.

    The wait after attempt n is random between 0 and min(wait_max, wait_initial * 2**(n-1))
    seconds ("full jitter"). The defaults ride out a server that is restarted for 30 seconds.

    Args:
        attempts: How often a request is sent at most, the first time included; 1: no repeats.
        wait_initial: Seconds, the bound of the first wait.
        wait_max: Seconds, the bound of every wait of the client's own choice.
        timeout: Seconds after a request's first failure when it is no longer repeated;
            None: no limit.

    Raises:
        TypeError: A value is no number.
        ValueError: A value is out of range.
    """

    attempts: int = field(default=16, validator=_checked_by(_expect_count))
    wait_initial: float = field(default=0.5, validator=_checked_by(expect_seconds))
    wait_max: float = field(default=15.0, validator=_checked_by(expect_seconds))
    timeout: float | None = field(
        default=120.0, validator=_checked_by(expect_seconds, optional=True)
    )

    def wait_bound(self, attempt: int) -> float:
        """Return the bound in seconds of the wait after the failed attempt of that number."""
        # The exponent is capped so that the power cannot overflow a float.
        return min(self.wait_max, self.wait_initial * 2.0 ** min(attempt - 1, 64))
