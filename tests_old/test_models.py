"""The nouns: what they hold, what they refuse, and that they stay as they are."""

from __future__ import annotations

import copy
import math
import pickle
from enum import IntEnum
from typing import Any

import attrs
import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import (
    ALL_ACTIVE,
    Batching,
    RetryPolicy,
    StopOutcome,
    StopReport,
    StopResult,
    StopStats,
    TaskState,
    TaskStatus,
)
from ctrlapi_async.models import expect_ids, parse_status

PENDING = {"Scheduled", "Explore"}
ENDED = {"Completed", "Rejected", "Canceled", "Stalled"}


def test_the_statuses_are_those_of_the_documentation() -> None:
    assert {str(status) for status in TaskStatus} == PENDING | {"Running"} | ENDED
    assert {str(status) for status in TaskStatus if status.pending} == PENDING
    assert {str(status) for status in TaskStatus if status.ended} == ENDED


def test_results_are_their_names_in_lower_case() -> None:
    assert [str(result) for result in StopResult] == [
        "stop_sent",
        "not_running",
        "not_found",
        "unavailable",
        "would_stop",
        "not_sent",
        "unconfirmed",
    ]
    assert all(result.name.lower() == result for result in StopResult)


@given(st.text() | st.sampled_from([str(status) for status in TaskStatus]))
def test_a_status_is_the_enums_member_or_stays_as_it_came(text: str) -> None:
    status = parse_status(text)
    assert status == text
    assert isinstance(status, TaskStatus) is (text in {str(known) for known in TaskStatus})


def test_no_status_is_none() -> None:
    assert parse_status(None) is None


def test_all_active_is_one_thing_and_says_so() -> None:
    assert repr(ALL_ACTIVE) == "ALL_ACTIVE"
    assert pickle.loads(pickle.dumps(ALL_ACTIVE)) is ALL_ACTIVE
    assert copy.deepcopy(ALL_ACTIVE) is ALL_ACTIVE


STATE = TaskState(66, TaskStatus.RUNNING, None, {"initial_task_id": 60})
OUTCOME = StopOutcome(66, 2, StopResult.STOP_SENT, TaskStatus.RUNNING)
VALUES = [
    STATE,
    TaskState(66),
    OUTCOME,
    StopReport.of([OUTCOME])[66],
    StopStats(1, 2, 3, 0.5),
    Batching(chunk_size=10),
    RetryPolicy(attempts=2),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_values_pickle_copy_hash_and_do_not_change(value: Any) -> None:
    for twin in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert twin == value
        assert hash(twin) == hash(value)
    for field in attrs.fields(type(value)):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)


def test_a_states_details_are_its_own_and_cannot_be_written() -> None:
    row = {"progress": 1}
    state = TaskState(66, details=row)
    row["progress"] = 2
    assert state.details == {"progress": 1}
    with pytest.raises(TypeError):
        state.details["progress"] = 3  # type: ignore[index]


numbers = st.integers(0, 10**6)
stats = st.builds(StopStats, numbers, numbers, numbers, st.floats(0, 1e6))


@given(stats, stats, stats)
def test_stats_add_up_but_for_the_time(a: StopStats, b: StopStats, c: StopStats) -> None:
    assert (a | b) | c == a | (b | c)
    assert a | b == StopStats(
        a.status_calls + b.status_calls,
        a.stop_calls + b.stop_calls,
        a.retries + b.retries,
        max(a.elapsed, b.elapsed),
    )


WRONG: list[tuple[type, str, Any, type[Exception]]] = [
    *((Batching, name, value, TypeError) for name in ("chunk_size", "max_concurrency")
      for value in (True, 1.0, "1", [1])),
    *((Batching, name, value, ValueError) for name in ("chunk_size", "max_concurrency")
      for value in (0, -1, 2**63)),
    (Batching, "max_concurrency", None, TypeError),
    *((RetryPolicy, "attempts", value, TypeError) for value in (True, 1.0, "1", None)),
    *((RetryPolicy, "attempts", value, ValueError) for value in (0, -1)),
    *((RetryPolicy, name, value, TypeError) for name in ("wait_initial", "wait_max", "timeout")
      for value in (True, "1", [1])),
    *((RetryPolicy, name, value, ValueError) for name in ("wait_initial", "wait_max", "timeout")
      for value in (-1, -0.1, math.nan, math.inf)),
    (RetryPolicy, "wait_max", None, TypeError),
    *((Batching, "linger", value, TypeError) for value in (True, "1", None)),
    *((Batching, "linger", value, ValueError) for value in (-1, math.nan, math.inf)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "value", "error"), WRONG)
def test_what_is_out_of_range_is_named(
    kind: type, name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        kind(**{name: value})
    assert f"{kind.__name__}.{name}" in str(caught.value)
    assert repr(value) in str(caught.value)


@given(st.integers(0, 10**5), st.integers(1, 100))
def test_a_chunk_that_is_not_given_fits_the_number_of_ids(count: int, at_once: int) -> None:
    batching = Batching(max_concurrency=at_once)
    chunk = batching.chunk_for(count)
    assert 100 <= chunk <= 1000
    assert batching.chunk_for(count + 1) >= chunk
    if 100 < chunk < 1000:  # all checks fit in at once, and no smaller chunk would do
        assert chunk * at_once >= count > (chunk - 1) * at_once
    assert Batching(chunk_size=7).chunk_for(count) == 7


def test_a_chunk_for_an_unknown_number_of_ids() -> None:
    assert Batching().chunk_for(None) == 500
    assert Batching(chunk_size=7).chunk_for(None) == 7


@given(st.integers(1, 60), st.floats(0, 100), st.floats(0, 100))
def test_waits_double_up_to_their_bound(attempt: int, initial: float, bound: float) -> None:
    policy = RetryPolicy(wait_initial=initial, wait_max=bound)
    assert policy.wait_bound(1) == min(initial, bound)
    assert policy.wait_bound(attempt + 1) == min(bound, 2 * policy.wait_bound(attempt))


class Named(IntEnum):
    NEWS = 66


class Id(int):
    pass


@given(st.lists(st.integers(0, 2**63 - 1) | st.sampled_from([Named.NEWS, Id(67)]), min_size=1))
def test_good_ids_pass(task_ids: list[int]) -> None:
    expect_ids(task_ids)


@given(st.integers(1, 2**63 - 1), st.floats(1e-3, 100), st.floats(0, 100))
def test_no_wait_passes_its_bound(attempt: int, initial: float, bound: float) -> None:
    policy = RetryPolicy(wait_initial=initial, wait_max=bound)
    assert policy.wait_bound(attempt) <= bound
    assert policy.wait_bound(attempt + 64) == bound


BAD_IDS = [
    (True, TypeError),
    (1.0, TypeError),
    ("66", TypeError),
    (None, TypeError),
    ([66], TypeError),
    (-1, ValueError),
    (2**63, ValueError),
]


@pytest.mark.parametrize(("bad", "error"), BAD_IDS, ids=repr)
def test_one_bad_id_among_good_ones_is_named(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        expect_ids([1, bad, 3])
    assert "a task id" in str(caught.value)
    assert repr(bad) in str(caught.value)
