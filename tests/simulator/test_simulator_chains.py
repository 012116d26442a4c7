"""Restart chains: Stalled tasks that the server restarts as new tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async.simulator import STATUSES, ControlApiSimulator, Restart
from tests.support.asking import MAX_INT, SENT, UNAVAILABLE, check, rows, statuses, stop

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def sim() -> ControlApiSimulator:
    """Return a simulator that does not listen: its rules are asked directly."""
    return ControlApiSimulator()


def narrow(task_id: int, status: str, initial_task_id: int | None = None) -> dict[str, Any]:
    row = {"task_id": task_id, "status": status}
    return row if initial_task_id is None else row | {"initial_task_id": initial_task_id}


# --- What TaskStatus answers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("all", [64, 1064, 2064, 70]),
        ("first", [64, 70]),
        ("last", [2064, 70]),
        ("exact", [1064, 64, 70]),
        (None, [64, 1064, 2064, 70]),
    ],
)
def test_a_reply_holds_the_asked_part_of_each_chain_once(
    sim: ControlApiSimulator, asked: str | None, answered: list[int]
) -> None:
    sim.add_task(64, "Stalled", restarts=["Stalled", "Running"])
    sim.add_task(70)
    params: dict[str, Any] = {} if asked is None else {"restart_chain": asked}
    result = rows(sim, check([1064, 70, 64], **params))
    assert [row["task_id"] for row in result] == answered
    assert {row["initial_task_id"] for row in result[:-1]} == {64}
    assert [row["status"] for row in result if row["task_id"] == 2064] in ([], ["Running"])


def test_chains_stand_flat_in_lists_or_in_a_member(sim: ControlApiSimulator) -> None:
    sim.rows = "narrow"
    sim.add_task(64, "Stalled", restarts=["Stalled", "Running"])
    sim.add_task(70)
    first, *more = (
        narrow(64, "Stalled", 64),
        narrow(1064, "Stalled", 64),
        narrow(2064, "Running", 64),
    )
    alone = narrow(70, "Running")
    assert rows(sim, check([64, 70])) == [first, *more, alone]
    sim.chains = "lists"
    assert rows(sim, check([64, 70])) == [[first, *more], alone]
    sim.chains = "nested"
    assert rows(sim, check([70, 64])) == [alone, first | {"restarts": more}]
    assert rows(sim, check(64, restart_chain="exact")) == [first]


def test_all_active_brings_the_whole_chains_of_what_is_active(sim: ControlApiSimulator) -> None:
    sim.add_task(64, "Stalled", restarts=1)
    sim.add_task(65, "Stalled", restarts=["Completed"])
    sim.add_task(66, "Stalled")
    assert statuses(sim, "*") == {64: "Stalled", 1064: "Running"}
    assert statuses(sim, "*", restart_chain="last") == {1064: "Running"}


def test_a_stop_is_for_the_very_task(sim: ControlApiSimulator) -> None:
    sim.add_task(64, "Stalled", restarts=1)
    assert rows(sim, stop([64, 1064])) == [
        {"task_id": 64, "error": UNAVAILABLE},
        {"task_id": 1064, "status": SENT},
    ]
    assert statuses(sim, 64) == {64: "Stalled", 1064: "Canceled"}


# --- Restarts on the clock ------------------------------------------------------------------------


def test_a_task_is_restarted_as_often_as_it_stalls_and_may_be(sim: ControlApiSimulator) -> None:
    task = sim.add_task(64, life=[(5.0, "Stalled")], restarts=2)
    seen = []
    for seconds in (4.0, 1.0, 4.0, 1.0, 5.0, 100.0):
        sim.advance(seconds)
        seen.append([sim.tasks[n].status for n in task.chain])
    assert seen == [
        ["Running"],
        ["Stalled", "Running"],
        ["Stalled", "Running"],
        ["Stalled", "Stalled", "Running"],
        ["Stalled", "Stalled", "Stalled"],
        ["Stalled", "Stalled", "Stalled"],
    ]
    assert task.chain == (64, 1064, 2064)
    assert [sim.tasks[n].restarted_as for n in task.chain] == [2064, 2064, None]
    assert {sim.tasks[n].initial_task_id for n in task.chain} == {64}
    assert task == sim.tasks[64]
    assert hash(task) == hash(sim.tasks[64])
    assert task != sim.tasks[1064]


def test_many_restarts_that_are_due_come_each_at_its_time(sim: ControlApiSimulator) -> None:
    queued = Restart("Scheduled", life=[(2.0, "Running"), (4.0, "Stalled")], after=3.0)
    sim.add_task(64, life=[(1.0, "Stalled")], restarts=[queued, queued, "Running"])
    sim.advance(5.0)
    assert statuses(sim, 64) == {64: "Stalled", 1064: "Scheduled"}
    sim.advance(1.0)
    assert statuses(sim, 64) == {64: "Stalled", 1064: "Running"}
    sim.advance(100.0)
    assert statuses(sim, 64) == {64: "Stalled", 1064: "Stalled", 2064: "Stalled", 3064: "Running"}


def test_a_canceled_task_is_not_restarted() -> None:
    sim = ControlApiSimulator(stop_delay=1.0)
    for task_id, stalls_at in ((64, 2.0), (65, 0.5)):
        sim.add_task(task_id, life=[(stalls_at, "Stalled")], restarts=1)
    rows(sim, stop([64, 65]))
    sim.advance(10.0)
    assert sim.tasks[64].status == "Canceled"
    assert sim.tasks[64].restarted_as is None
    # This one stalled before its stop took effect.
    assert not sim.tasks[65].stopped
    assert sim.tasks[65].restarted_as == 1065


def test_a_status_set_by_hand_decides_about_the_restart(sim: ControlApiSimulator) -> None:
    stalls, ends, waits = (
        sim.add_task(64, restarts=1),
        sim.add_task(65, life=[(5.0, "Stalled")], restarts=1),
        sim.add_task(66, "Stalled", restarts=[Restart(after=5.0)]),
    )
    stalls.status = "Stalled"
    ends.status = "Completed"
    sim.restart(66, new_id=7)
    sim.advance(10.0)
    assert (stalls.restarted_as, ends.restarted_as, waits.restarted_as) == (1064, None, 7)
    assert waits.chain == (66, 7)


# --- Restarts by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["Scheduled", "Explore", "Running", "Stalled"])
def test_a_restart_by_hand_returns_the_new_id(sim: ControlApiSimulator, status: str) -> None:
    sim.add_task(64, status)
    assert sim.restart(64) == 1064
    assert sim.restart(1064, "Scheduled", life=[(1.0, "Running")], new_id=3) == 3
    sim.advance(1.0)
    assert statuses(sim, 64) == {64: "Stalled", 1064: "Stalled", 3: "Running"}
    assert [task.project_id for task in sim.tasks.values()] == [2, 2, 2]


@pytest.mark.parametrize(
    ("restart", "error", "words"),
    [
        (lambda sim: sim.restart(1), KeyError, "1"),
        (lambda sim: sim.restart(64), ValueError, "task 64 was restarted as 1064 already"),
        (lambda sim: sim.restart(65), ValueError, "a task that is Canceled is not restarted"),
        (lambda sim: sim.restart(66), ValueError, "a task that is Completed is not restarted"),
        (lambda sim: sim.restart(1067), ValueError, "project 3 restarts a task 1 times"),
        (lambda sim: sim.restart(68, "Gone"), ValueError, "status must be one of"),
        (lambda sim: sim.restart(68, new_id=64), ValueError, "only once"),
        (lambda sim: sim.restart(68, new_id=-1), ValueError, "must be from 0"),
    ],
)
def test_what_is_not_restarted(
    sim: ControlApiSimulator,
    restart: Callable[[ControlApiSimulator], int],
    error: type[Exception],
    words: str,
) -> None:
    sim.add_task(64, "Stalled", restarts=1)
    sim.add_task(65)
    rows(sim, stop(65))
    sim.add_task(66, "Completed")
    sim.add_project(3, attempts_number=1)
    sim.add_task(67, "Stalled", project_id=3, restarts=1)
    sim.add_task(68)
    before = {task_id: task.status for task_id, task in sim.tasks.items()}
    with pytest.raises(error, match=words):
        restart(sim)
    assert {task_id: task.status for task_id, task in sim.tasks.items()} == before


def test_a_project_may_restart_ten_times(sim: ControlApiSimulator) -> None:
    sim.add_project(2, attempts_number=10)
    task = sim.add_task(64, "Stalled", restarts=["Stalled"] * 10)
    assert len(task.chain) == 11
    assert set(statuses(sim, 64).values()) == {"Stalled"}


def test_a_new_id_is_always_free(sim: ControlApiSimulator) -> None:
    sim.add_tasks([0, 64, MAX_INT - 1], "Stalled", restarts=1)
    assert [sim.tasks[n].restarted_as for n in (0, 64, MAX_INT - 1)] == [MAX_INT, 1, 2]


moments = st.lists(
    st.tuples(st.floats(0.1, 5), st.sampled_from(STATUSES)),
    max_size=3,
    unique_by=lambda turn: turn[0],
).map(sorted)
restarts = st.builds(Restart, st.sampled_from(STATUSES), life=moments, after=st.floats(0, 3))


@given(
    st.lists(st.tuples(moments, st.lists(restarts, max_size=3)), min_size=1, max_size=4),
    st.lists(st.floats(0, 4), max_size=5),
    st.sampled_from(["flat", "lists", "nested"]),
)
def test_every_chain_is_whole_whenever_it_is_looked_at(
    tasks: list[Any], steps: list[float], form: Any
) -> None:
    sim = ControlApiSimulator(chains=form, rows="narrow")
    for task_id, (life, script) in enumerate(tasks, start=1):
        sim.add_task(task_id, life=life, restarts=script)
    for seconds in steps:
        sim.advance(seconds)
        answered = rows(sim, check(list(range(1, len(tasks) + 1))))
        flat = [
            row for group in answered for row in (group if isinstance(group, list) else [group])
        ]
        flat += [inner for row in flat for inner in row.pop("restarts", ())]
        assert sorted(row["task_id"] for row in flat) == sorted(sim.tasks)
        for row in flat:
            task = sim.tasks[row["task_id"]]
            assert row["status"] == task.status
            assert row.get("initial_task_id", row["task_id"]) == task.initial_task_id
        for task_id, (_, script) in enumerate(tasks, start=1):
            chain = sim.tasks[task_id].chain
            assert len(chain) <= 1 + len(script)
            assert chain[0] == task_id
