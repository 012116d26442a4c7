"""The public names: exactly these, each with its words."""

from __future__ import annotations

import inspect
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest

import ctrlapi_async

NAMES = [
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


def test_all_is_exact() -> None:
    assert ctrlapi_async.__all__ == NAMES


def test_every_name_is_there_and_star_brings_just_these() -> None:
    namespace: dict[str, object] = {}
    exec("from ctrlapi_async import *", namespace)
    assert namespace.keys() - {"__builtins__"} == set(NAMES)
    assert set(NAMES) <= set(dir(ctrlapi_async))


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Everything'"):
        ctrlapi_async.Everything  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", [name for name in NAMES if name != "ALL_ACTIVE"])
def test_every_public_name_and_method_has_a_docstring(name: str) -> None:
    thing = getattr(ctrlapi_async, name)
    assert thing.__module__.startswith("ctrlapi_async.")
    assert inspect.isclass(thing)
    assert thing.__doc__
    members = [
        member
        for base in thing.__mro__
        if base.__module__.startswith("ctrlapi_async")
        for each, member in vars(base).items()
        if not each.startswith("_")
    ]
    for member in members:
        inner = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if inspect.isfunction(inner):
            assert inner.__doc__, inner.__qualname__


def test_every_module_has_a_docstring() -> None:
    assert ctrlapi_async.__doc__
    for name in NAMES:
        thing = getattr(ctrlapi_async, name)
        kind = type(thing) if isinstance(thing, Enum) else thing
        assert sys.modules[kind.__module__].__doc__


def test_errors_form_the_documented_tree() -> None:
    tree = {
        "RequestError": "CtrlApiError",
        "HttpError": "CtrlApiError",
        "AuthError": "HttpError",
        "ReplyError": "CtrlApiError",
        "MethodError": "CtrlApiError",
        "UserUnavailableError": "MethodError",
        "ProjectNotFoundError": "MethodError",
        "TasksDeniedError": "MethodError",
        "UndefinedMethodError": "MethodError",
        "StopIncompleteError": "CtrlApiError",
        "CtrlApiError": "Exception",
    }
    assert tree.keys() == {name for name in NAMES if name.endswith("Error")}
    for name, base in tree.items():
        assert getattr(ctrlapi_async, name).__bases__[0].__name__ == base


def test_the_package_is_typed() -> None:
    assert ctrlapi_async.__file__ is not None
    assert (Path(ctrlapi_async.__file__).parent / "py.typed").read_bytes() == b""


def test_importing_it_prints_nothing_and_waits_for_no_aiohttp() -> None:
    program = "import sys, ctrlapi_async; sys.exit('aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
