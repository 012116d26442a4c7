"""An asyncio client for the Control API, with a bulk stop that accounts for every task."""

from ctrlapi_async.bulk import StopRun
from ctrlapi_async.errors import (
    AuthError,
    CtrlApiError,
    HttpError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    StopIncompleteError,
    TasksDeniedError,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async.models import (
    ALL_ACTIVE,
    Batching,
    RetryPolicy,
    StopOutcome,
    StopResult,
    StopStats,
    TaskState,
    TaskStatus,
)
from ctrlapi_async.report import StatusReport, StopReport
from ctrlapi_async.session import ControlSession

__all__ = [
    "ALL_ACTIVE",
    "AuthError",
    "Batching",
    "ControlSession",
    "CtrlApiError",
    "HttpError",
    "MethodError",
    "ProjectNotFoundError",
    "ReplyError",
    "RequestError",
    "RetryPolicy",
    "StatusReport",
    "StopIncompleteError",
    "StopOutcome",
    "StopReport",
    "StopResult",
    "StopRun",
    "StopStats",
    "TaskState",
    "TaskStatus",
    "TasksDeniedError",
    "UndefinedMethodError",
    "UserUnavailableError",
]
