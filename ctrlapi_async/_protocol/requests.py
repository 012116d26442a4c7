"""Requests to bytes."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from operator import index
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, SupportsIndex

import msgspec

from ctrlapi_async._models import AllActive

if TYPE_CHECKING:
    from collections.abc import Sequence

TASK_STATUS: Final = "TaskStatus"
TASK_STOP: Final = "TaskStop"

_NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})


class TaskCall(NamedTuple):
    """One call of TaskStatus or TaskStop."""

    project_id: int
    task_ids: list[int] | AllActive


def task_params(
    project_id: int, task_ids: list[int] | AllActive, options: Mapping[str, Any] = _NO_OPTIONS
) -> dict[str, Any]:
    """Return the params of TaskStatus or TaskStop.

    Args:
        project_id: The project.
        task_ids: Its tasks: one id is sent as a bare integer, several as an array.
        options: More params.
    """
    ids: object = task_ids
    if isinstance(task_ids, AllActive):
        ids = task_ids.value
    elif len(task_ids) == 1:
        [ids] = task_ids
    else:
        # Encoded already, so that nobody looks at each of thousands of ids again.
        ids = msgspec.Raw(msgspec.json.encode(task_ids))
    return {"project_id": project_id, "task_ids": ids, **options}


def encode_request(
    user_id: int, calls: Sequence[tuple[str, Mapping[str, Any]]], first_id: int
) -> bytes:
    """Return the body of a request.

    Args:
        user_id: The user in whose name it is made.
        calls: Method and params of each call.
        first_id: The `id` of the first call; those of the others count on from it.

    Raises:
        TypeError: The params hold something that JSON cannot.
    """
    try:
        return msgspec.json.encode(
            {
                "user_id": user_id,
                "methods": [
                    {"method": method, "id": number, "params": _plain(params)}
                    for number, (method, params) in enumerate(calls, first_id)
                ],
            }
        )
    except (ValueError, RecursionError) as error:  # half a surrogate, huge ints; deep nesting
        raise TypeError(f"JSON cannot hold these params: {error}") from None


_READY: Final = frozenset({int, str, bool, type(None), msgspec.Raw})


def _plain(value: object) -> object:
    """Return a value in JSON's own types."""
    if type(value) in _READY:
        return value
    if isinstance(value, Mapping):
        return {_name(name): _plain(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, SupportsIndex):
        return index(value)
    if isinstance(value, float) and isfinite(value):
        return float(value)
    raise TypeError(f"JSON cannot hold {value!r:.80}")


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"a JSON member's name must be a str, not {name!r:.80}")
    return str.__str__(name)
