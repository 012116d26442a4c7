"""What goes next: queues that keep their order, jobs that divide, and who comes first."""

from __future__ import annotations

from copy import deepcopy
from itertools import count
from math import inf
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async._bulk.jobs import Job, JobKind, JobState, TaskQueue, listed_ids
from ctrlapi_async._bulk.polls import FIRST_PAUSE, GROWTH, LONGEST_PAUSE, PollSeries
from ctrlapi_async._bulk.schedule import DOUBTFUL_IN_FLIGHT, FLUSH_AFTER, Schedule
from ctrlapi_async._protocol.requests import TaskCall

if TYPE_CHECKING:
    from collections.abc import Callable

CHECK, STOP, VERIFY, EXPLAIN = JobKind.CHECK, JobKind.STOP, JobKind.VERIFY, JobKind.EXPLAIN
POLL_PENDING, POLL_STOPPED = JobKind.POLL_PENDING, JobKind.POLL_STOPPED


# --- jobs and queues ------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 99)))),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3))),
)
def test_a_queue_returns_what_it_was_given_in_order(
    added: list[tuple[int, list[int]]], limits: list[tuple[int, int]]
) -> None:
    queue = TaskQueue()
    inside: list[tuple[int, int, float]] = []
    for place, (project_id, task_ids) in enumerate(added):
        queue.add(project_id, task_ids, place)
        inside += [(project_id, n, place) for n in task_ids]
    given_in = deepcopy(added)
    for limit, projects in [*limits, (10**6, 10**6)]:
        taken: dict[int, list[int]] = {}
        for project_id, task_id, _ in inside[:limit]:
            if len(taken.keys() | {project_id}) > projects:
                break
            taken.setdefault(project_id, []).append(task_id)
        del inside[: sum(map(len, taken.values()))]
        assert queue.take(limit, projects=projects) == list(taken.items())
        assert (queue.size, queue.since) == (len(inside), inside[0][2] if inside else inf)
        left = [(project_id, n) for project_id, ids in queue for n in ids]
        assert left == [(project_id, n) for project_id, n, _ in inside]
    assert added == given_in  # others may hold these lists too


@given(st.lists(st.lists(st.integers(), min_size=1), min_size=1))
def test_halves_hold_all_tasks_in_order_and_the_history_but_not_the_companion(
    groups: list[list[int]],
) -> None:
    job = Job(STOP, [TaskCall(n, ids) for n, ids in enumerate(groups)], attempt=3, doubtful=True)
    if len(groups) == 1:
        job.companion = 7
        assert job.wire_calls == [TaskCall(0, [*groups[0], 7])]
    if job.size < 2:
        return
    front, back = job.halves()
    assert (front.size, back.size) == (job.size // 2, job.size - job.size // 2)
    halves = [(p, listed_ids(TaskCall(p, ids))) for p, ids in front.calls + back.calls]
    assert all(ids for _, ids in halves)
    assert [(p, n) for p, ids in halves for n in ids] == [
        (p, n) for p, ids in enumerate(groups) for n in ids
    ]
    for half in (front, back):
        assert (half.attempt, half.companion, half.doubtful) == (3, None, False)
        assert half.renewed(half.calls).attempt == 0


# --- the schedule ---------------------------------------------------------------------------------


def schedule(streaming: bool = False, input_open: bool = False, **queues: int) -> Schedule:
    """Return a schedule with so many tasks in each queue, since time 0; requests take 4."""
    made = Schedule(streaming=streaming)
    made.chunk, made.input_open = 4, input_open
    ids = count()
    for name, size in queues.items():
        getattr(made, name).add(2, [next(ids) for _ in range(size)], 0.0)
    return made


def drained(made: Schedule, now: float = 0.0) -> list[tuple[JobKind, int]]:
    """Take all jobs that can be taken, all in flight at once."""
    taken: list[tuple[JobKind, int]] = []
    while True:
        ready = made.ready(4, now)
        job = made.take(4, now)
        assert (job is None) is (ready == 0)
        if job is None:
            return taken
        job.state = JobState.IN_FLIGHT
        taken.append((job.kind, job.size))


@pytest.mark.parametrize(
    ("made", "order"),
    [
        (lambda: schedule(unchecked=6), [(CHECK, 4), (CHECK, 2)]),
        # A full stop goes first; a partial one waits for the checks, in flight too.
        (lambda: schedule(unchecked=5, running=9), [(STOP, 4), (STOP, 4), (CHECK, 4), (CHECK, 1)]),
        (lambda: schedule(running=5), [(STOP, 4), (STOP, 1)]),
        # What was asked before comes when there is nothing else to do.
        (lambda: schedule(running=1, refused=2, due_stopped=1), [(STOP, 1), (POLL_STOPPED, 1)]),
        (
            lambda: schedule(refused=5, due_pending=2, due_stopped=1),
            [(EXPLAIN, 4), (EXPLAIN, 1), (POLL_PENDING, 2), (POLL_STOPPED, 1)],
        ),
        # While more may come, only what is full goes.
        (lambda: schedule(input_open=True, unchecked=6, running=3), [(CHECK, 4)]),
        (lambda: schedule(input_open=True, unchecked=3, running=6), [(STOP, 4)]),
        (lambda: schedule(pending=4, stopped=4), []),
    ],
    ids=[str(n) for n in range(8)],
)
def test_stops_go_before_checks_and_polls_come_last(
    made: Callable[[], Schedule], order: list[tuple[JobKind, int]]
) -> None:
    assert drained(made()) == order


@pytest.mark.parametrize("queue", ["unchecked", "running", "refused"])
def test_on_a_stream_no_task_waits_for_more_than_50_ms(queue: str) -> None:
    made = schedule(True, True, **{queue: 1})
    made.jobs[Job(CHECK, [TaskCall(2, [99])], JobState.IN_FLIGHT)] = None
    assert made.next_wakeup(0.0) == FLUSH_AFTER == 0.05
    assert drained(made, 0.049) == []
    [(_, size)] = drained(made, 0.05)
    assert size == 1
    assert schedule(False, True, **{queue: 1}).next_wakeup(0.0) == inf  # not a stream


def test_jobs_wait_for_their_time_and_stops_among_them_go_first() -> None:
    made = schedule()
    check, stop = Job(CHECK, [TaskCall(2, [1])]), Job(STOP, [TaskCall(2, [2])])
    made.back_off(check, 3.0)
    made.back_off(stop, 4.0)
    made.wake(2.9)
    assert made.next_wakeup(2.9) == 3.0
    assert made.take(4, 2.9) is None
    made.wake(4.0)
    assert (made.take(4, 4.0), made.backlog) == (stop, 2)


@given(st.integers(1, 40), st.integers(1, 9))
def test_a_queued_job_is_divided_until_each_part_fits(size: int, limit: int) -> None:
    made = schedule()
    made.queue(Job(CHECK, [TaskCall(2, list(range(size)))]))
    ids: list[int] = []
    while (job := made.take(limit, 0.0)) is not None:
        assert job.size <= limit
        ids += listed_ids(job.calls[0])
        del made.jobs[job]
    assert ids == list(range(size))


def test_few_requests_at_a_time_look_for_tasks_that_do_not_exist() -> None:
    made = schedule(doubtful=9)
    made.group_size = 2
    made.doubtful.add(3, [77], 0.0)
    assert drained(made) == [(CHECK, 2)] * DOUBTFUL_IN_FLIGHT
    made.group_size = 1
    assert drained(made) == [(CHECK, 1)] * (4 - DOUBTFUL_IN_FLIGHT)


@pytest.mark.parametrize("input_open", [False, True])
@pytest.mark.parametrize(
    ("queues", "stopping", "backlog"),
    [
        *(([queue], True, 1) for queue in ("unchecked", "running", "refused", "doubtful")),
        *(([queue], True, 0) for queue in ("pending", "due_pending")),
        *(([queue], False, 0) for queue in ("stopped", "due_stopped")),
        ([], False, 0),
    ],
)
def test_what_is_left_to_do_is_derived(
    queues: list[str], stopping: bool, backlog: int, input_open: bool
) -> None:
    made = schedule(False, input_open, **dict.fromkeys(queues, 1))
    assert made.stopping is (stopping or input_open)
    assert made.resolved is not (made.stopping or bool(queues))
    assert made.backlog == backlog


# --- polls ----------------------------------------------------------------------------------------


def test_tasks_are_polled_after_pauses_that_grow() -> None:
    waiting, due = TaskQueue(), TaskQueue()
    series = PollSeries(waiting, due, 0.0)
    assert series.at == inf
    waiting.add(2, [1], 100.0)  # who has just come is left alone for a moment
    now, pauses = 100.0, []
    for _ in range(12):
        pauses.append(series.at - now)
        now = series.at
        series.wake(now - 0.001)
        assert waiting.size == 1
        series.wake(now)
        assert (waiting.size, due.size) == (0, 1)
        waiting.add(2, [1], now)
        due.take_all()
    assert pauses[:4] == pytest.approx([FIRST_PAUSE * GROWTH**n for n in range(4)])
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE)
    series.restart(now)
    assert series.at == pytest.approx(now + FIRST_PAUSE)
