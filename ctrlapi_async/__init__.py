"""An asyncio client for the Control API, with a bulk stop that accounts for every task."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
else:
    # Names are imported when first used (PEP 562): the command line's --help, and whoever wants
    # one room only, need not wait for aiohttp. Type-checkers see the plain imports above.
    from importlib import import_module

    _HOMES = {
        "bulk": ("StopRun",),
        "errors": (
            "AuthError",
            "CtrlApiError",
            "HttpError",
            "MethodError",
            "ProjectNotFoundError",
            "ReplyError",
            "RequestError",
            "StopIncompleteError",
            "TasksDeniedError",
            "UndefinedMethodError",
            "UserUnavailableError",
        ),
        "models": (
            "ALL_ACTIVE",
            "Batching",
            "RetryPolicy",
            "StopOutcome",
            "StopResult",
            "StopStats",
            "TaskState",
            "TaskStatus",
        ),
        "report": ("StatusReport", "StopReport"),
        "session": ("ControlSession",),
    }

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                value = getattr(import_module(f"{__name__}.{home}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


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
