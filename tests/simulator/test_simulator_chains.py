"""Restart chains: Stalled tasks that the server restarts as new tasks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async.simulator import STATUSES, ControlApiSimulator, Restart
from tests.support.asking import MAX_INT, SENT, UNAVAILABLE, check, rows, statuses, stop


@pytest.fixture
def sim() -> ControlApiSimulator:
    """Return a simulator that does not listen: its rules are asked directly."""
    return ControlApiSimulator()


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
        {"task_id": task_id, "status": status, "initial_task_id": 64}
        for task_id, status in ((64, "Stalled"), (1064, "Stalled"), (2064, "Running"))
    )
    alone = {"task_id": 70, "status": "Running"}
    assert rows(sim, check([64, 70])) == [first, *more, alone]
    sim.chains = "lists"
    assert rows(sim, check([64, 70])) == [[first, *more], alone]
    sim.chains = "nested"
    assert rows(sim, check([70, 64])) == [alone, first | {"restarts": more}]
    assert rows(sim, check(64, restart_chain="exact")) == [first]


def test_all_active_brings_whole_chains_and_a_stop_is_for_the_very_task(
    sim: ControlApiSimulator,
) -> None:
    sim.add_task(64, "Stalled", restarts=1)
    sim.add_task(65, "Stalled", restarts=["Completed"])
    sim.add_task(66, "Stalled")
    assert statuses(sim, "*") == {64: "Stalled", 1064: "Running"}
    assert statuses(sim, "*", restart_chain="last") == {1064: "Running"}
    assert rows(sim, stop([64, 1064])) == [
        {"task_id": 64, "error": UNAVAILABLE},
        {"task_id": 1064, "status": SENT},
    ]
    assert statuses(sim, 64) == {64: "Stalled", 1064: "Canceled"}


# --- Restarts on the clock ------------------------------------------------------------------------


def test_a_task_is_restarted_as_often_as_it_stalls_and_may_be(sim: ControlApiSimulator) -> None:
    task = sim.add_task(64, life=[(5.0, "Stalled")], restarts=2)
    for seconds, seen in (
        (4.0, ["Running"]),
        (1.0, ["Stalled", "Running"]),
        (4.0, ["Stalled", "Running"]),
        (1.0, ["Stalled", "Stalled", "Running"]),
        (5.0, ["Stalled", "Stalled", "Stalled"]),
        (100.0, ["Stalled", "Stalled", "Stalled"]),
    ):
        sim.advance(seconds)
        assert [sim.tasks[n].status for n in task.chain] == seen
    assert task.chain == (64, 1064, 2064)
    assert [sim.tasks[n].restarted_as for n in task.chain] == [2064, 2064, None]
    assert {sim.tasks[n].initial_task_id for n in task.chain} == {64}
    assert (task, hash(task)) == (sim.tasks[64], hash(sim.tasks[64]))
    assert task != sim.tasks[1064]
    sim.add_project(3, attempts_number=10)
    task = sim.add_task(7, "Stalled", project_id=3, restarts=["Stalled"] * 10)
    assert len(task.chain) == 11


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
    assert (sim.tasks[64].status, sim.tasks[64].restarted_as) == ("Canceled", None)
    # This one stalled before its stop took effect.
    assert (sim.tasks[65].stopped, sim.tasks[65].restarted_as) == (False, 1065)


def test_a_status_set_by_hand_decides_about_the_restart(sim: ControlApiSimulator) -> None:
    stalls = sim.add_task(64, restarts=1)
    ends = sim.add_task(65, life=[(5.0, "Stalled")], restarts=1)
    waits = sim.add_task(66, "Stalled", restarts=[Restart(after=5.0)])
    stalls.status, ends.status = "Stalled", "Completed"
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
    ("task_id", "options", "words"),
    [
        (1, {}, "1"),
        (64, {}, "task 64 was restarted as 1064 already"),
        (65, {}, "a task that is Canceled is not restarted"),
        (66, {}, "a task that is Completed is not restarted"),
        (1067, {}, "project 3 restarts a task 1 times"),
        (68, {"status": "Gone"}, "status must be one of"),
        (68, {"new_id": 64}, "only once"),
        (68, {"new_id": -1}, "must be from 0"),
    ],
)
def test_what_is_not_restarted(
    sim: ControlApiSimulator, task_id: int, options: dict[str, Any], words: str
) -> None:
    sim.add_task(64, "Stalled", restarts=1)
    sim.add_tasks([65, 68])
    rows(sim, stop(65))
    sim.add_task(66, "Completed")
    sim.add_project(3, attempts_number=1)
    sim.add_task(67, "Stalled", project_id=3, restarts=1)
    before = {n: task.status for n, task in sim.tasks.items()}
    with pytest.raises(KeyError if task_id == 1 else ValueError, match=words):
        sim.restart(task_id, **options)
    assert {n: task.status for n, task in sim.tasks.items()} == before


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
    for task_id, (life, script) in enumerate(tasks):
        sim.add_task(task_id, life=life, restarts=script)
    for seconds in steps:
        sim.advance(seconds)
        flat = []
        for group in rows(sim, check(list(range(len(tasks))))):
            for row in group if isinstance(group, list) else [group]:
                flat += [row, *row.pop("restarts", ())]
        assert sorted(row["task_id"] for row in flat) == sorted(sim.tasks)
        for row in flat:
            task = sim.tasks[row["task_id"]]
            assert row["status"] == task.status
            assert row.get("initial_task_id", row["task_id"]) == task.initial_task_id
        for task_id, (_, script) in enumerate(tasks):
            chain = sim.tasks[task_id].chain
            assert len(chain) <= 1 + len(script)
            assert chain[0] == task_id
