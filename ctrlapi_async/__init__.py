"""An asyncio client for the Control API, with a bulk stop that accounts for every task."""

from typing import TYPE_CHECKING

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from ctrlapi_async._auth import ApiKey
    from ctrlapi_async._bulk.run import StopRun
    from ctrlapi_async._errors import (
        AuthError,
        CtrlApiError,
        DeadlineError,
        HtmlReplyError,
        HttpError,
        MethodError,
        ProjectNotFoundError,
        ReplyError,
        ReplyTooLargeError,
        RequestError,
        RequestTimeoutError,
        StopIncompleteError,
        TasksDeniedError,
        TlsError,
        UndefinedMethodError,
        UserUnavailableError,
    )
    from ctrlapi_async._models import (
        ALL_ACTIVE,
        AnyTaskIds,
        Batching,
        Progress,
        RetryPolicy,
        StopOutcome,
        StopResult,
        StopStats,
        TaskIds,
        TaskState,
        TaskStatus,
    )
    from ctrlapi_async._reports import StatusReport, StopReport
    from ctrlapi_async._session import ControlSession
else:
    # Names are imported when first used (PEP 562), so that the command line's --help need not
    # wait for aiohttp. Type-checkers see the plain imports above.
    from importlib import import_module

    _MODULES = ("_models", "_errors", "_reports", "_auth", "_bulk.run", "_session")

    def __getattr__(name: str) -> object:
        if name in __all__:
            modules = (vars(import_module(f"{__name__}.{module}")) for module in _MODULES)
            found: object = next(names[name] for names in modules if name in names)
            globals()[name] = found
            return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


__all__ = [
    "ALL_ACTIVE",
    "AnyTaskIds",
    "ApiKey",
    "AuthError",
    "Batching",
    "ControlSession",
    "CtrlApiError",
    "DeadlineError",
    "HtmlReplyError",
    "HttpError",
    "MethodError",
    "Progress",
    "ProjectNotFoundError",
    "ReplyError",
    "ReplyTooLargeError",
    "RequestError",
    "RequestTimeoutError",
    "RetryPolicy",
    "StatusReport",
    "StopIncompleteError",
    "StopOutcome",
    "StopReport",
    "StopResult",
    "StopRun",
    "StopStats",
    "TaskIds",
    "TaskState",
    "TaskStatus",
    "TasksDeniedError",
    "TlsError",
    "UndefinedMethodError",
    "UserUnavailableError",
]
