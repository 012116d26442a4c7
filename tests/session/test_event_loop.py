"""The event loop beside a large run: others have their turn, counted in turns and not in time."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import (
    ALL_ACTIVE,
    AuthError,
    Batching,
    RequestError,
    RetryPolicy,
    StopIncompleteError,
    StopOutcome,
    StopResult,
)
from ctrlapi_async._bulk.reconcile import RunOptions
from ctrlapi_async._bulk.run import BulkRun, RunContext, StopRun
from ctrlapi_async._bulk.source import Targets
from ctrlapi_async._limiter import ConcurrencyLimiter
from ctrlapi_async._protocol.replies import Row, Rows
from tests.support.clock import run
from tests.support.oracle import RUNNING, SENT_TEXT, STATUS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from ctrlapi_async import CtrlApiError
    from ctrlapi_async._protocol.requests import TaskCall
