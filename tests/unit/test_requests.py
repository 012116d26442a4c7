"""Requests: as documented, and a TypeError for what JSON cannot hold."""

from __future__ import annotations

import json
import math
from collections import OrderedDict, UserDict
from decimal import Decimal
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async._models import ALL_ACTIVE, MAX_ID
from ctrlapi_async._protocol.requests import encode_request, task_params
from tests.support.wire import any_json, sample

if TYPE_CHECKING:
    from collections.abc import Mapping

JSON_PARAMS = st.dictionaries(st.text(), any_json, max_size=3)


def params_sent(params: Any) -> Any:
    return json.loads(encode_request(1, [("Any", params)], 1))["methods"][0]["params"]


@pytest.mark.parametrize("name", ["stop_one", "stop_two", "stop_missing", "status_all_active"])
def test_requests_are_as_documented_with_an_id(name: str) -> None:
    documented = sample(name)["request"]
    (call,) = documented["methods"]
    ids = call["params"]["task_ids"]
    listed = ALL_ACTIVE if ids == "*" else [ids] if isinstance(ids, int) else ids
    sent = json.loads(encode_request(1, [(call["method"], task_params(2, listed))], 7))
    assert sent["methods"][0].pop("id") == 7
    assert sent == documented


@given(st.integers(0), st.lists(st.integers(0, MAX_ID), min_size=1), JSON_PARAMS)
def test_one_id_is_sent_bare_and_several_as_an_array_beside_the_options(
    project_id: int, ids: list[int], options: dict[str, Any]
) -> None:
    assert params_sent(task_params(project_id, ids, options)) == {
        "project_id": project_id,
        "task_ids": ids[0] if len(ids) == 1 else ids,
        **options,
    }


@given(
    st.integers(0, MAX_ID),
    st.lists(st.tuples(st.text(), JSON_PARAMS), min_size=1, max_size=3),
    st.integers(1, 10**9),
)
def test_a_request_is_json_with_ids_that_count_on(
    user_id: int, calls: list[tuple[str, Mapping[str, Any]]], first_id: int
) -> None:
    assert json.loads(encode_request(user_id, calls, first_id)) == {
        "user_id": user_id,
        "methods": [
            {"method": method, "id": number, "params": params}
            for number, (method, params) in enumerate(calls, first_id)
        ],
    }


class Chain(StrEnum):
    LAST = "last"


class Level(IntEnum):
    HIGH = 9


class Text(str):
    __slots__ = ()


class Index:
    def __index__(self) -> int:
        return 66


class Ratio(float):
    pass


EQUIVALENT: list[tuple[Any, Any]] = [
    (MappingProxyType({"a": 1}), {"a": 1}),
    (UserDict({"a": MappingProxyType({})}), {"a": {}}),
    (OrderedDict(b=(1, 2)), {"b": [1, 2]}),
    ({Text("a"): Chain.LAST}, {"a": "last"}),
    ({"a": [Level.HIGH, Index(), True, Ratio(0.5), None]}, {"a": [9, 66, True, 0.5, None]}),
    ({"a": [[1, [2.5]], "x"]}, {"a": [[1, [2.5]], "x"]}),
    ({"a": 10**100}, {"a": 10**100}),
]


@pytest.mark.parametrize(("params", "sent"), EQUIVALENT)
def test_values_that_json_has_a_form_for_are_sent_in_it(params: Any, sent: Any) -> None:
    assert params_sent(params) == sent


def nested(depth: int) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for _ in range(depth):
        params = {"a": params}
    return params


CYCLE: dict[str, Any] = {}
CYCLE["a"] = [CYCLE]

IMPOSSIBLE: list[Any] = [
    *({"a": number} for number in (math.nan, [math.inf], -math.inf, Decimal(1), 10**5000)),
    *({"a": value} for value in (object(), [1, object()], {1, 2}, b"bytes", iter([1]), "\ud800")),
    *({key: 1} for key in ("\ud800", 1)),
    {"a": {None: 1}},
    nested(100_000),
    CYCLE,
]


@pytest.mark.parametrize("params", IMPOSSIBLE, ids=range(len(IMPOSSIBLE)))
def test_a_value_that_json_cannot_hold_is_a_type_error(params: Any) -> None:
    with pytest.raises(TypeError, match="JSON"):
        encode_request(1, [("Any", params)], 1)
