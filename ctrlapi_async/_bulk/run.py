"""A bulk stop under way: what callers see, and what the session does with it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Self

from attrs import field, frozen

from ctrlapi_async._bulk.engine import Engine, Sender
from ctrlapi_async._bulk.plan import StopPlan
from ctrlapi_async._bulk.source import SLICE, StreamReader, Targets, read_listed
from ctrlapi_async._errors import RequestError, StopIncompleteError
from ctrlapi_async._models import Progress, StopOutcome, StopResult
from ctrlapi_async._reports import StopReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from ctrlapi_async._bulk.reconcile import RunOptions
    from ctrlapi_async._limiter import ConcurrencyLimiter
    from ctrlapi_async._models import Batching, RetryPolicy
    from ctrlapi_async._protocol.replies import Row

SOURCE_PATIENCE: Final = 1.0
"""Seconds within which a source must end that was cancelled."""


@frozen
class RunContext:
    """What all runs of a session share.

    Args:
        sender: Sends the requests.
        limiter: The session's concurrency.
        batching: How task ids are packed into requests.
        retry: When and how often requests are repeated.
        check_open: Raises RuntimeError if the session is not open.
        runs: The runs that go on.
    """

    sender: Sender
    limiter: ConcurrencyLimiter
    batching: Batching
    retry: RetryPolicy
    check_open: Callable[[], None]
    runs: set[BulkRun] = field(factory=set)


class _State(Enum):
    NEW = "not started"
    READING = "reading task ids"
    RUNNING = "running"
    ENDED = "ended"


class BulkRun:
    """One run: its plan, its engine and its source of ids.

    Args:
        targets: Which tasks it is about.
        options: What the caller asked for.
        context: What it shares with other runs of its session.
        sized: Whether the number of ids given is the number to fit the chunk to.
        params: More params of TaskStatus.
        on_row: Called with each task that was checked, its row and its chain's current row.
    """

    def __init__(
        self,
        targets: Targets,
        options: RunOptions,
        context: RunContext,
        *,
        sized: bool = True,
        params: Mapping[str, Any] | None = None,
        on_row: Callable[[int, Row, Row], None] | None = None,
    ) -> None:
        self.state = _State.NEW
        self._targets = targets
        self._options = options
        self._context = context
        self._sized = sized
        self._params = params
        self._on_row = on_row
        self._plan = self._make_plan(began=0.0)
        self._engine: Engine | None = None
        self._reader: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._report: StopReport | None = None

    def _make_plan(self, began: float) -> StopPlan:
        return StopPlan(
            self._options,
            self._context.retry,
            began=began,
            random=random.random,
            streaming=self._targets.stream is not None,
            on_row=self._on_row,
        )
