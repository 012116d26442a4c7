"""Values: what they hold, what they refuse, and that they do not change."""

from __future__ import annotations

import copy
import math
import pickle
from enum import IntEnum
from functools import partial
from typing import Any

import attrs
import pytest
from attrs.exceptions import FrozenInstanceError
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async._models import (
    ALL_ACTIVE,
    MAX_ID,
    Batching,
    LazyMapping,
    Progress,
    RetryPolicy,
    StopOutcome,
    StopResult,
    StopStats,
    TaskState,
    TaskStatus,
    expect_ids,
    expect_int,
    parse_status,
)

PENDING = {"Scheduled", "Explore"}
ENDED = {"Completed", "Rejected", "Canceled", "Stalled"}


def test_statuses_are_the_documented_ones() -> None:
    assert {str(status) for status in TaskStatus} == PENDING | {"Running"} | ENDED
    assert {str(status) for status in TaskStatus if status.pending} == PENDING
    assert {str(status) for status in TaskStatus if status.ended} == ENDED


def test_results_are_their_names_in_lower_case() -> None:
    assert [result.name for result in StopResult] == [
        "STOP_SENT",
        "STILL_RUNNING",
        "NOT_RUNNING",
        "NOT_FOUND",
        "UNAVAILABLE",
        "WOULD_STOP",
        "NOT_SENT",
        "UNCONFIRMED",
    ]
    assert all(result.name.lower() == result for result in StopResult)


@pytest.mark.parametrize("status", TaskStatus)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper, str.swapcase])
def test_a_known_status_is_recognised_in_any_case(status: TaskStatus, spell: Any) -> None:
    assert parse_status(spell(str(status))) is status


@given(st.text())
def test_an_unknown_status_stays_as_it_is_and_an_empty_one_is_none(text: str) -> None:
    status = parse_status(text)
    if not isinstance(status, TaskStatus):
        assert status == (text or None)
        assert text.lower() not in {known.lower() for known in TaskStatus}
    assert parse_status(None) is parse_status("") is None


VALUES = [
    ALL_ACTIVE,
    TaskState(64, "Stalled", None, TaskState(1064, "Running"), {"initial_task_id": 64}),
    TaskState(66),
    StopOutcome(66, 2, StopResult.STOP_SENT, TaskStatus.RUNNING, None, 1066),
    StopStats(1, 2, 3, 0.5),
    Progress(None, 5),
    Batching(chunk_size=10, start_concurrency=4),
    RetryPolicy(attempts=2),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_pickle_copy_hash_and_do_not_change(value: Any) -> None:
    for twin in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert twin == value
        assert hash(twin) == hash(value)
        assert repr(twin) == repr(value)
        assert twin is value or value is not ALL_ACTIVE
    for field in attrs.fields(type(value)) if value is not ALL_ACTIVE else ():
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)
    assert repr(ALL_ACTIVE) == "ALL_ACTIVE"


# --- Details --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("accessed", [False, True])
def test_details_are_read_only_and_lazy_ones_made_once(lazy: bool, accessed: bool) -> None:
    members = {"progress": 1}
    loads: list[dict[str, int]] = []

    def load() -> dict[str, Any]:
        loads.append(members)
        return dict(members)

    state = TaskState(66, details=LazyMapping(load) if lazy else members)
    assert not loads
    if accessed:
        assert state.details["progress"] == 1
        assert list(state.details) == ["progress"]
        assert len(state.details) == 1
        assert repr(state.details) in ("{'progress': 1}", "mappingproxy({'progress': 1})")
        assert len(loads) == lazy
        members["progress"] = 2  # which does not reach them any more
    with pytest.raises(TypeError):
        state.details["progress"] = 3  # type: ignore[index]
    members["progress"] = 1
    assert state == TaskState(66, details=members)
    assert state != TaskState(66, details={"progress": 2})
    assert hash(state) == hash(TaskState(66, details=members))
    assert len(loads) == lazy


@pytest.mark.parametrize("accessed", [True, False])
def test_lazy_details_pickle_like_any_others(accessed: bool) -> None:
    state = TaskState(66, details=LazyMapping(partial(dict, progress=1)))
    assert not accessed or state.details["progress"] == 1
    twin = pickle.loads(pickle.dumps(state))
    assert twin == state == TaskState(66, details={"progress": 1})
    assert hash(twin) == hash(state)


# --- Numbers --------------------------------------------------------------------------------------

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


COUNTS = ("chunk_size", "max_concurrency", "start_concurrency")
SECONDS = ("wait_initial", "wait_max", "timeout")
WRONG: list[tuple[type, str, Any, type[Exception]]] = [
    *((Batching, name, value, TypeError) for name in COUNTS for value in (True, 1.0, "1", [1])),
    *((Batching, name, value, ValueError) for name in COUNTS for value in (0, -1, 2**63)),
    (Batching, "max_concurrency", None, TypeError),
    (Batching, "start_concurrency", 9, ValueError),
    *((Batching, "linger", value, TypeError) for value in (True, "1", None)),
    *((Batching, "linger", value, ValueError) for value in (-1, math.nan, math.inf)),
    *((RetryPolicy, "attempts", value, TypeError) for value in (True, 1.0, "1", None)),
    *((RetryPolicy, "attempts", value, ValueError) for value in (0, -1)),
    *((RetryPolicy, name, value, TypeError) for name in SECONDS for value in (True, "1", [1])),
    *(
        (RetryPolicy, name, value, ValueError)
        for name in SECONDS
        for value in (-1, -0.1, math.nan, math.inf)
    ),
    (RetryPolicy, "wait_max", None, TypeError),
]


@pytest.mark.parametrize(("kind", "name", "value", "error"), WRONG)
def test_an_argument_out_of_range_is_named(
    kind: type, name: str, value: Any, error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        kind(**{name: value})
    assert f"{kind.__name__}.{name}" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_optional_arguments_may_be_none() -> None:
    assert Batching(chunk_size=None, start_concurrency=None) == Batching()
    assert RetryPolicy(timeout=None).timeout is None
    assert Batching(max_concurrency=8, start_concurrency=8).start_concurrency == 8


@given(st.integers(0, 10**5), st.integers(1, 100))
def test_a_default_chunk_fits_the_number_of_ids(count: int, concurrency: int) -> None:
    batching = Batching(max_concurrency=concurrency)
    chunk = batching.chunk_for(count)
    assert 100 <= chunk <= 1000
    assert batching.chunk_for(count + 1) >= chunk
    if 100 < chunk < 1000:  # all checks are in flight at once, and no smaller chunk would do
        assert chunk * concurrency >= count > (chunk - 1) * concurrency
    assert batching.chunk_for(None) == 500
    assert {Batching(chunk_size=7).chunk_for(each) for each in (count, None)} == {7}


@given(st.integers(1, 60), st.floats(1e-3, 100), st.floats(0, 100), st.integers(64, MAX_ID))
def test_waits_double_up_to_their_bound(
    attempt: int, initial: float, bound: float, late: int
) -> None:
    policy = RetryPolicy(wait_initial=initial, wait_max=bound)
    assert policy.wait_bound(1) == min(initial, bound)
    assert policy.wait_bound(attempt + 1) == min(bound, 2 * policy.wait_bound(attempt))
    assert policy.wait_bound(late) == bound
    assert RetryPolicy(wait_initial=0, wait_max=bound).wait_bound(attempt) == 0


def test_the_default_waits_outlast_a_restart_of_half_a_minute() -> None:
    policy = RetryPolicy()
    bounds = [policy.wait_bound(attempt) for attempt in range(1, policy.attempts)]
    assert sum(bounds) / 2 > 45  # full jitter waits for half the bound on average
    assert policy.timeout is not None
    assert policy.timeout > 45


# --- Ids ------------------------------------------------------------------------------------------


class Named(IntEnum):
    NEWS = 66


class Index:
    """A number of another library: no int, but usable as one, if it has a value."""

    def __init__(self, value: int | None) -> None:
        self._value = value

    def __index__(self) -> int:
        if self._value is None:
            raise TypeError("no number today")
        return self._value


@given(st.lists(st.integers(0, MAX_ID) | st.just(Named.NEWS) | st.builds(Index, st.just(7))))
def test_ids_become_plain_ints_in_a_new_list(task_ids: list[Any]) -> None:
    checked = expect_ids(task_ids)
    assert checked == [task_id.__index__() for task_id in task_ids]
    assert {type(task_id) for task_id in checked} <= {int}
    assert checked is not task_ids


BAD_IDS = [
    *((bad, TypeError) for bad in (True, 1.0, "66", None, [66])),
    *((bad, ValueError) for bad in (-1, 2**63)),
]


@pytest.mark.parametrize(("bad", "error"), BAD_IDS, ids=repr)
def test_one_bad_id_among_good_ones_is_named(bad: Any, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        expect_ids([1, bad, 3])
    assert "a task id" in str(caught.value)
    assert repr(bad) in str(caught.value)


@pytest.mark.parametrize("value", [10**5000, "x" * 5000], ids=["number", "text"])
def test_an_error_shows_no_endless_value_and_hides_no_other_error(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="user_id must be") as caught:
        expect_int("user_id", value)
    assert len(str(caught.value)) < 200
    with pytest.raises(TypeError, match="no number today"):
        expect_int("user_id", Index(None))
