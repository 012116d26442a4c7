"""Read requests, strictly: whatever is not documented is refused, with the place where it is."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

STATUS: Final = "TaskStatus"
STOP: Final = "TaskStop"
METHODS: Final = (STATUS, STOP)
MAX_INT: Final = 2**63 - 1
_MAX_SHOWN: Final = 60

RestartChain: TypeAlias = Literal["first", "last", "exact", "all"]
"""Which tasks of a restart chain TaskStatus answers with."""


class RefusedError(Exception):
    """A request that is not as documented."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: {what}")


@frozen
class Call:
    """One call, checked.

    Attributes:
        method: The method's name, known to this server or not.
        call_id: The call's ``id``, or None.
        project_id: The project, or None when the method is unknown and its params unchecked.
        ids: The task ids, or None for ``"*"``.
        restart_chain: TaskStatus's parameter of that name.
        detailed: TaskStatus's parameter ``detailed_test_results``.
    """

    method: str
    call_id: int | None
    project_id: int | None = None
    ids: Sequence[int] | None = None
    restart_chain: RestartChain = "all"
    detailed: bool = False


@frozen
class CheckedRequest:
    """A request that is as documented."""

    user_id: int
    calls: Sequence[Call]


def parse_json(body: bytes) -> Any:  # noqa: ANN401 - JSON is Any
    """Return the JSON of a body.

    Raises:
        RefusedError: It is not strict JSON in UTF-8, or a member stands twice.
    """
    try:
        return json.loads(
            body.decode(), object_pairs_hook=_unique_members, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise RefusedError("$", f"not strict JSON: {error}") from None


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = next(
            name for name, times in Counter(name for name, _ in pairs).items() if times > 1
        )
        raise ValueError(f"member {_shown(twice)} stands twice")
    return members


def readable_calls(document: Any) -> tuple[tuple[str, Sequence[int]], ...]:  # noqa: ANN401 - JSON is Any
    """Return the methods called and the ids asked for, as far as any JSON tells them."""
    methods = document.get("methods") if isinstance(document, dict) else None
    calls: list[tuple[str, Sequence[int]]] = []
    for entry in methods if isinstance(methods, list) else ():
        method = entry.get("method") if isinstance(entry, dict) else None
        if isinstance(method, str):
            params = entry.get("params")
            ids = params.get("task_ids") if isinstance(params, dict) else None
            ids = ids if isinstance(ids, list) else [ids]
            calls.append((method, [task_id for task_id in ids if type(task_id) is int]))
    return tuple(calls)


def check_request(document: Any, known_methods: Collection[str]) -> CheckedRequest:  # noqa: ANN401 - JSON is Any
    """Check a whole request.

    Args:
        document: The body's JSON.
        known_methods: The methods whose params are checked.

    Raises:
        RefusedError: The request is not as documented.
    """
    request = _members(document, "$", ["user_id", "methods"])
    user_id = _integer(request["user_id"], "$.user_id")
    methods = request["methods"]
    if not isinstance(methods, list) or not methods:
        raise RefusedError("$.methods", "must be an array of at least one call")
    return CheckedRequest(
        user_id,
        [
            _check_call(entry, f"$.methods[{index}]", known_methods)
            for index, entry in enumerate(methods)
        ],
    )


def _check_call(entry: Any, where: str, known_methods: Collection[str]) -> Call:  # noqa: ANN401 - JSON is Any
    members = _members(entry, where, ["method"], ["id", "params"])
    method = members["method"]
    if not isinstance(method, str):
        raise RefusedError(f"{where}.method", f"must be a string, not {_shown(method)}")
    call_id = _integer(members["id"], f"{where}.id") if "id" in members else None
    if method not in known_methods:
        return Call(method, call_id)
    where = f"{where}.params"
    status = method == STATUS
    params = _members(
        members.get("params"),
        where,
        ["project_id", "task_ids"],
        ["detailed_test_results", "restart_chain"] if status else [],
    )
    project_id = _integer(params["project_id"], f"{where}.project_id")
    ids = _task_ids(params["task_ids"], f"{where}.task_ids", star=status)
    restart_chain = params.get("restart_chain", "all")
    if restart_chain not in get_args(RestartChain):
        words = f"must be first, last, exact or all, not {_shown(restart_chain)}"
        raise RefusedError(f"{where}.restart_chain", words)
    detailed = params.get("detailed_test_results", False)
    if not isinstance(detailed, bool):
        words = f"must be true or false, not {_shown(detailed)}"
        raise RefusedError(f"{where}.detailed_test_results", words)
    return Call(method, call_id, project_id, ids, restart_chain, detailed)


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _members(
    value: Any,  # noqa: ANN401 - JSON is Any
    where: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """Check that a value is an object with these members and no others."""
    if not isinstance(value, dict):
        raise RefusedError(where, "must be an object")
    for name in required:
        if name not in value:
            raise RefusedError(where, f"member {_shown(name)} is missing")
    for name in value:
        if name not in required and name not in optional:
            raise RefusedError(where, f"member {_shown(name)} is unknown")
    return value


def _integer(value: Any, where: str, least: int = -MAX_INT - 1) -> int:  # noqa: ANN401 - JSON is Any
    if type(value) is not int:
        raise RefusedError(where, f"must be an integer, not {_shown(value)}")
    if not least <= value <= MAX_INT:
        raise RefusedError(where, f"must be from {least} to {MAX_INT}")
    return value


def _task_ids(value: Any, where: str, *, star: bool) -> Sequence[int] | None:  # noqa: ANN401 - JSON is Any
    """Check the ids of a call; None stands for ``"*"``."""
    if value == "*" and star:
        return None
    if not isinstance(value, list):
        if type(value) is int:
            return [_integer(value, where, least=0)]
        words = 'an integer, an array of integers or "*"' if star else "an integer or an array"
        raise RefusedError(where, f"must be {words}, not {_shown(value)}")
    if not value:
        raise RefusedError(where, "must not be empty")
    # Good ids are checked by four passes in C; only a bad list is walked through to say where.
    if set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= MAX_INT:
        if len(set(value)) == len(value):
            return value
        twice = next(task_id for task_id, times in Counter(value).items() if times > 1)
        raise RefusedError(where, f"task {twice} stands twice")
    return [_integer(task_id, f"{where}[{index}]", least=0) for index, task_id in enumerate(value)]
