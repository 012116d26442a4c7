"""The public names: exactly these, each documented, with nothing internal in sight."""

from __future__ import annotations

import re
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any, Final

import pytest

import ctrlapi_async
from ctrlapi_async import CtrlApiError, RequestError, StopIncompleteError, StopReport

SEEN: Final[dict[str, set[str]]] = {
    "ApiKey": {"access_id", "key", "secret", "sign", "signature"},
    "Batching": {"chunk_for", "chunk_size", "linger", "max_concurrency", "start_concurrency"},
    "ControlSession": {
        "aclose", "call", "stop", "stop_running", "stop_running_across", "stopping",
        "stopping_across", "task_status", "task_stop",
    },
    "Progress": {"done", "total"},
    "RetryPolicy": {"attempts", "timeout", "wait_bound", "wait_initial", "wait_max"},
    "StatusReport": {"counts", "from_json", "ids", "of", "to_json"},
    "StopOutcome": {"error", "project_id", "restarted_as", "result", "status", "task_id"},
    "StopReport": {"complete", "counts", "from_json", "ids", "of", "stats", "to_json"},
    "StopResult": {
        "STOP_SENT", "STILL_RUNNING", "NOT_RUNNING", "NOT_FOUND", "UNAVAILABLE", "WOULD_STOP",
        "NOT_SENT", "UNCONFIRMED",
    },
    "StopRun": {"counts", "progress", "report", "wait"},
    "StopStats": {"elapsed", "retries", "status_calls", "stop_calls"},
    "TaskState": {"details", "error", "restarted_as", "status", "task_id"},
    "TaskStatus": {
        "CANCELED", "COMPLETED", "EXPLORE", "REJECTED", "RUNNING", "SCHEDULED", "STALLED",
        "ended", "pending",
    },
}  # fmt: skip
"""What each class of the package adds to what its bases from elsewhere have."""

BASES: Final = {
    "AuthError": "HttpError",
    "CtrlApiError": "Exception",
    "DeadlineError": "RequestError",
    "HtmlReplyError": "ReplyError",
    "HttpError": "CtrlApiError",
    "MethodError": "CtrlApiError",
    "ProjectNotFoundError": "MethodError",
    "ReplyError": "CtrlApiError",
    "ReplyTooLargeError": "ReplyError",
    "RequestError": "CtrlApiError",
    "RequestTimeoutError": "RequestError",
    "StopIncompleteError": "CtrlApiError",
    "TasksDeniedError": "MethodError",
    "TlsError": "RequestError",
    "UndefinedMethodError": "MethodError",
    "UserUnavailableError": "MethodError",
}
NO_CLASSES: Final = {"ALL_ACTIVE", "AnyTaskIds", "TaskIds"}
NAMES: Final = sorted(SEEN.keys() | BASES.keys() | NO_CLASSES)


def test_these_names_and_no_others_are_there() -> None:
    namespace: dict[str, object] = {}
    exec("from ctrlapi_async import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(NAMES)
    assert sorted(ctrlapi_async.__all__) == NAMES
    assert [name for name in dir(ctrlapi_async) if not name.startswith("_")] == NAMES
    with pytest.raises(AttributeError, match="no attribute 'Everything'"):
        ctrlapi_async.Everything  # type: ignore[attr-defined]  # noqa: B018


def test_the_package_has_a_version_and_types() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", ctrlapi_async.__version__)
    assert (Path(ctrlapi_async.__file__).parent / "py.typed").read_bytes() == b""


def own_members(kind: type[Any]) -> dict[str, tuple[type[Any], Any]]:
    """Return the public members that the package defines for a class, and where."""
    return {
        name: (base, member)
        for base in kind.__mro__
        if base.__module__.startswith("ctrlapi_async")
        for name, member in vars(base).items()
        if not name.startswith("_")
    }


@pytest.mark.parametrize("name", SEEN)
def test_nothing_internal_is_seen_of_a_class(name: str) -> None:
    assert own_members(getattr(ctrlapi_async, name)).keys() == SEEN[name]


@pytest.mark.parametrize("name", BASES)
def test_errors_form_the_documented_tree(name: str) -> None:
    kind = getattr(ctrlapi_async, name)
    assert kind.__bases__[0].__name__ == BASES[name]
    assert own_members(kind).keys() <= {"derive"}  # what every ExceptionGroup has


def test_errors_show_only_what_is_documented() -> None:
    report = StopReport()
    errors = {
        RequestError("lost"): {"sent"},
        ctrlapi_async.HttpError("no", 500): {"status", "excerpt", "retry_after"},
        ctrlapi_async.ReplyError("no"): {"where", "excerpt"},
        ctrlapi_async.MethodError("TaskStop", "no"): {"method", "message"},
        ctrlapi_async.TasksDeniedError("TaskStop", "no"): {"method", "message", "task_ids"},
        StopIncompleteError("no", [RequestError("lost")], report): {"report"},
    }
    for error, attributes in errors.items():
        assert set(vars(error)) == attributes
        described = "".join(base.__doc__ or "" for base in type(error).__mro__[:2])
        assert all(f"{attribute}: " in described for attribute in attributes)


def test_every_error_of_the_package_can_be_imported() -> None:
    """Whatever a traceback shows can be caught by its name."""

    def below(kind: type[Exception]) -> set[str]:
        return {kind.__name__}.union(*map(below, kind.__subclasses__()))

    here = {kind for kind in below(CtrlApiError) if kind != "ServersIncompleteError"}
    assert here == BASES.keys()


@pytest.mark.parametrize("name", sorted(SEEN.keys() | BASES.keys()))
def test_every_public_name_method_and_property_has_a_docstring(name: str) -> None:
    kind = getattr(ctrlapi_async, name)
    assert kind.__doc__
    for attribute, (base, member) in own_members(kind).items():
        own = getattr(member, "__func__", member)
        if not isinstance(member, Enum):
            documented = own.__doc__ or f"    {attribute}: " in (base.__doc__ or "")
            assert documented, f"{name}.{attribute}"


def test_importing_it_prints_nothing_and_waits_for_no_aiohttp() -> None:
    program = "import sys, ctrlapi_async; sys.exit('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
