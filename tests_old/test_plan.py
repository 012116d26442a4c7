"""The plan, driven by hand: no event loop, no clock, and replies in any state of disrepair."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctrlapi_async import (
    ALL_ACTIVE,
    HttpError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    StopOutcome,
    StopReport,
    StopResult,
    StopStats,
    TasksDeniedError,
    TaskStatus,
)
from ctrlapi_async.ledger import Ledger
from ctrlapi_async.plan import (
    MAX_ERRORS,
    Call,
    Job,
    Pool,
    StopPlan,
    Work,
    dooms,
    passes,
    undone,
)
from ctrlapi_async.wire import STATUSES as STATUSES_BY_MARK
from ctrlapi_async.wire import STOP_SENT, Answer, Row

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterable

    from ctrlapi_async import CtrlApiError
    from ctrlapi_async.plan import Repeat

STATUSES = [str(status) for status in TaskStatus]
MISSING = "(no row)"
DENIED = "(an error)"
STRANGE = "Hibernating"
UNASKED = 10**6

# Task by task: what TaskStatus says of it.
worlds = st.dictionaries(
    st.integers(0, 60),
    st.sampled_from([*STATUSES, "Running", "Running", STRANGE, MISSING, DENIED]),
    max_size=25,
)
chunks = st.integers(1, 12)
chances = st.randoms(use_true_random=False)


def project_of(task_id: int) -> int:
    return 2 + task_id % 2


class Drive:
    """Drives a plan to its end, and keeps its own account of what the replies said.

    Args:
        world: What TaskStatus says of each task.
        chance: Decides what happens next, and what becomes of the rows.
        chunk: Task ids a request.
        mangle: Whether rows are shuffled, repeated, left out and added.
        options: For the plan.
    """

    def __init__(
        self,
        world: dict[int, str],
        chance: random.Random,
        *,
        chunk: int,
        mangle: bool = False,
        fault: Callable[[Job], CtrlApiError | None] = lambda _: None,
        collect: bool = True,
        **options: Any,
    ) -> None:
        self.world = dict(world)
        self.chance = chance
        self.mangle = mangle
        self.fault = fault
        self.ledger = Ledger(collect=collect)
        self.plan = StopPlan(self.ledger, **options)
        self.plan.chunk = chunk
        self.jobs: Counter[Work] = Counter()
        self.heard: dict[int, str] = {}
        self.lost: set[int] = set()
        self.settled: Counter[int] = Counter()
        self.expected: dict[int, StopOutcome] = {}
        self.taken: list[StopOutcome] = []
        self.flying: list[Job] = []
        self.paused: list[Repeat] = []

    # --- driving

    def feed(self, task_ids: Iterable[int]) -> None:
        for task_id in task_ids:
            self.plan.feed(project_of(task_id), [task_id])

    def run(self, rechecks: int = 2) -> StopReport:
        while True:
            moves: list[Callable[[], None]] = [self.answer] * len(self.flying)
            moves += [self.bring_back] * bool(self.paused)
            moves += [self.launch] * bool(self.plan.pickable())
            if moves:
                self.chance.choice(moves)()
            elif rechecks and (self.plan.has_pending or self.plan.has_stopped):
                rechecks -= 1
                self.live_on()
                self.plan.recheck()
                self.plan.follow()
            elif self.plan.has_pending or self.plan.has_stopped:
                self.plan.stop_rechecking()
                self.plan.stop_following()
            else:
                assert self.plan.pick() is None
                break
            self.taken += self.ledger.take()
        while self.ledger.untaken:
            self.taken += self.ledger.take()
        assert not self.plan.stopping
        assert self.plan.backlog == 0
        self.plan.close("over")
        return self.ledger.report(StopStats(), {})

    def live_on(self) -> None:
        """Let some pending tasks start, and some stopped ones end."""
        for task_id, status in self.world.items():
            turns = {"Scheduled": "Explore", "Explore": "Running"}
            if self.expected.get(task_id) and self.expected[task_id].result == "stop_sent":
                turns = {"Running": self.chance.choice(["Canceled", "Completed", "Running"])}
            self.world[task_id] = turns.get(status, status)

    def launch(self) -> None:
        job = self.plan.pick()
        assert job is not None
        self.start(job)

    def start(self, job: Job) -> None:
        calls = job.calls
        assert calls
        assert 0 < job.size <= self.plan.chunk
        assert len({call.project_id for call in calls}) == len(calls)
        self.jobs[job.work] += 1
        if job.work is Work.STOP:
            for task_id in ids_of(job):
                assert self.heard.get(task_id) == "Running", "stopped without need"
        self.plan.launch(job)
        self.flying.append(job)

    def bring_back(self) -> None:
        job, error = self.paused.pop(self.chance.randrange(len(self.paused)))
        if job.attempt >= 3:
            self.plan.give_up(job, error)
        elif self.plan.recall(job):
            job.attempt += 1
            self.start(job)

    def answer(self) -> None:
        job = self.flying.pop(self.chance.randrange(len(self.flying)))
        if (error := self.fault(job)) is not None:
            if job.work is Work.STOP and not undone(error):
                for task_id in ids_of(job):
                    self.heard[task_id] = "?"
            if isinstance(error, MethodError):
                self.paused += self.plan.answered(job, [error] * len(job.calls))
            else:
                self.paused += self.plan.failed(job, error)
            return
        book = {
            Work.CHECK: self.check,
            Work.STOP: self.stop,
            Work.SETTLE: self.settle,
            Work.CONFIRM: self.confirm,
        }[job.work]
        answers: list[Answer[list[Row]] | CtrlApiError] = []
        for call in job.calls:
            rows = [row for task_id in call.task_ids for row in book(task_id)]  # type: ignore[union-attr]
            if self.mangle:
                if self.chance.random() < 0.3:
                    rows += [Row(UNASKED, "Running"), Row(UNASKED + 1, None, "no")]
                self.chance.shuffle(rows)
            answers.append(Answer(rows))
        self.paused += self.plan.answered(job, answers)

    # --- what the rows say, and what follows from them

    def tell(self, task_id: int, result: StopResult, error: str | None = None) -> None:
        status = self.heard.get(task_id)
        known = status if status is None or status == STRANGE else TaskStatus(status)
        self.expected[task_id] = StopOutcome(task_id, project_of(task_id), result, known, error)

    def check(self, task_id: int) -> list[Row]:
        said = self.world[task_id]
        if self.mangle and self.chance.random() < 0.1:
            said = MISSING
        if said in (MISSING, DENIED):
            self.heard.pop(task_id, None)
            words = "the reply holds no row for it" if said == MISSING else "no such task"
            self.tell(task_id, StopResult.NOT_FOUND, words)
            return [Row(task_id, None, "no such task")] if said == DENIED else []
        rows = [Row(task_id, said)]
        if self.mangle and self.chance.random() < 0.2:
            # It was Running a moment ago, says one row; another knows better.
            rows.append(Row(task_id, self.chance.choice([said, "Running"])))
        self.heard[task_id] = said
        if said == "Running":
            result = StopResult.WOULD_STOP if self.plan._dry_run else StopResult.NOT_SENT
        else:
            result = StopResult.NOT_RUNNING
        self.tell(task_id, result)
        return rows

    def stop(self, task_id: int) -> list[Row]:
        sent = Row(task_id, STOP_SENT)
        unavailable = Row(task_id, None, "Stopping task is unavailable")
        answer = self.chance.choice(range(7)) if self.mangle else 0
        if answer < 2:
            self.tell(task_id, StopResult.STOP_SENT)
            return [sent] * (answer + 1)
        if answer == 2 and task_id not in self.lost:
            self.tell(task_id, StopResult.UNAVAILABLE, "Stopping task is unavailable")
            return [unavailable]
        # Nobody knows now what became of the stop.
        self.lost.add(task_id)
        self.heard[task_id] = "?"
        return {
            2: [unavailable],
            3: [],
            4: [Row(task_id, "Stop request was sunk")],
            5: [sent, unavailable],
            6: [Row(task_id, STOP_SENT), Row(task_id, "Perhaps")],
        }[answer]

    def settle(self, task_id: int) -> list[Row]:
        self.settled[task_id] += 1
        fates = ["Canceled", "Completed", MISSING]
        # It cannot go on for ever: the third answer settles it.
        said = self.chance.choice(fates + ["Running"] * (4 if self.settled[task_id] < 3 else 0))
        if said == MISSING:
            self.heard[task_id] = "Running"
            self.tell(task_id, StopResult.UNCONFIRMED)
            return []
        self.heard[task_id] = said
        if said != "Running":
            canceled = said == "Canceled"
            self.tell(task_id, StopResult.STOP_SENT if canceled else StopResult.NOT_RUNNING)
        return [Row(task_id, said)]

    def confirm(self, task_id: int) -> list[Row]:
        assert self.expected[task_id].result is StopResult.STOP_SENT
        said = self.world[task_id]
        if self.mangle and self.chance.random() < 0.2:
            return []
        self.heard[task_id] = said
        self.tell(task_id, StopResult.STOP_SENT)
        return [Row(task_id, said)]


def ids_of(job: Job) -> list[int]:
    return [task_id for call in job.calls for task_id in call.task_ids]  # type: ignore[union-attr]


def ceil_div(count: int, size: int) -> int:
    return -(-count // size)


def said(report: StopReport) -> dict[int, tuple[Any, ...]]:
    """Give what was said of each task, but for our own words about lost stops."""
    return {
        n: (
            each.project_id,
            each.result,
            each.status,
            None if each.result is StopResult.UNCONFIRMED else each.error,
        )
        for n, each in report.items()
    }


# --- The promises ---------------------------------------------------------------------------------


@given(worlds, chunks, chances, st.booleans())
def test_each_task_has_its_outcome_and_no_call_is_wasted(
    world: dict[int, str], chunk: int, chance: random.Random, dry_run: bool
) -> None:
    drive = Drive(world, chance, chunk=chunk, dry_run=dry_run)
    drive.feed(world)
    drive.feed(chance.choices(list(world), k=5) if world else [])  # duplicates count once
    drive.plan.source_open = False
    report = drive.run()
    running = sum(status == "Running" for status in world.values())
    assert drive.jobs == +Counter(
        {
            Work.CHECK: ceil_div(len(world), chunk),
            Work.STOP: 0 if dry_run else ceil_div(running, chunk),
        }
    )
    assert list(report) == list(world)
    assert dict(report) == drive.expected
    assert report.complete
    assert {each.task_id: each for each in drive.taken} == drive.expected
    assert len(drive.taken) == len(world)
    assert drive.plan.errors == []


polling = st.fixed_dictionaries({"watch": st.booleans(), "confirm": st.booleans()})


@settings(max_examples=300)
@given(worlds, chunks, chances, polling, st.booleans())
def test_rows_in_any_disorder_shift_no_outcome(
    world: dict[int, str], chunk: int, chance: random.Random, options: Any, late: bool
) -> None:
    drive = Drive(world, chance, chunk=chunk, mangle=True, **options)
    drive.feed(world)
    if late:
        drive.plan.flush()
    drive.plan.source_open = False
    report = drive.run()
    assert list(report) == list(world)
    assert said(report) == said(StopReport.of(drive.expected.values()))
    assert sorted(each.task_id for each in drive.taken) == sorted(world)
    assert report.complete is (report.counts[StopResult.UNCONFIRMED] == 0)
    assert bool(drive.plan.errors) is not report.complete


FAULTS: list[Callable[[Job, list[int]], CtrlApiError]] = [
    lambda _, __: RequestError("cut"),
    lambda _, __: RequestError("not reached", sent=False),
    lambda _, __: HttpError("HTTP 500", 500),
    lambda _, __: HttpError("HTTP 503", 503),
    lambda _, __: HttpError("HTTP 413", 413),
    lambda _, __: ReplyError("cut short"),
    lambda job, _: MethodError(job.work.method, "license expired"),
    lambda job, ids: TasksDeniedError(job.work.method, "access denied to tasks", ids[:1]),
    lambda job, _: TasksDeniedError(job.work.method, "access denied to tasks"),
]


@settings(max_examples=300)
@given(worlds, chunks, chances, st.booleans(), st.booleans())
def test_whatever_fails_each_task_has_one_outcome_and_no_stop_is_sent_blindly(
    world: dict[int, str], chunk: int, chance: random.Random, confirm: bool, collect: bool
) -> None:
    def fault(job: Job) -> CtrlApiError | None:
        return chance.choice(FAULTS)(job, ids_of(job)) if chance.random() < 0.3 else None

    drive = Drive(
        world, chance, chunk=chunk, mangle=True, fault=fault, confirm=confirm, collect=collect
    )
    drive.feed(world)
    drive.plan.source_open = False
    report = drive.run()
    assert sum(drive.ledger.counts.values()) == len(world)
    assert sorted(each.task_id for each in drive.taken) == sorted(world)
    if collect:
        assert list(report) == list(world)
        assert {each.task_id: each for each in drive.taken} == dict(report)
        assert report.complete or drive.plan.errors
        for task_id, each in report.items():
            if each.result is StopResult.STOP_SENT:
                assert drive.expected[task_id].result is StopResult.STOP_SENT


@given(worlds, chunks, chances, st.integers(0, 30))
def test_at_any_moment_all_is_accounted_for(
    world: dict[int, str], chunk: int, chance: random.Random, moves: int
) -> None:
    drive = Drive(world, chance, chunk=chunk, mangle=True)
    drive.feed(world)
    drive.plan.source_open = False
    for _ in range(moves):
        if drive.flying and chance.random() < 0.5:
            drive.answer()
        elif drive.plan.pickable():
            drive.launch()
        under_way = drive.plan.unconfirmed()
        assert len(under_way) == drive.plan.unconfirmed_count()
        report = drive.ledger.report(StopStats(), under_way)
        assert list(report) == list(world)
        counts = drive.ledger.counts
        counts[StopResult.NOT_SENT] -= len(under_way)
        counts[StopResult.UNCONFIRMED] += len(under_way)
        assert report.counts == counts
    stops = {n for job in drive.flying if job.work is Work.STOP for n in ids_of(job)}
    drive.plan.close("the deadline")
    end = drive.ledger.report(StopStats(), {})
    assert list(end) == list(world)
    for task_id, each in end.items():
        if task_id in stops:
            assert each.result is StopResult.UNCONFIRMED
        if each.result is StopResult.NOT_SENT:
            assert each.error == "the deadline"


# --- What goes first ------------------------------------------------------------------------------


def planned(chunk: int, count: int, **options: Any) -> StopPlan:
    plan = StopPlan(Ledger(collect=True), **options)
    plan.chunk = chunk
    plan.feed(2, list(range(count)))
    return plan


def answered(plan: StopPlan, job: Job, status: str = "Running") -> None:
    plan.launch(job)
    (call,) = job.calls
    assert isinstance(call.task_ids, list)
    assert plan.answered(job, [Answer([Row(n, status) for n in call.task_ids])]) == []


def test_a_full_stop_goes_before_the_next_check_and_a_partial_one_last() -> None:
    plan = planned(2, 5)
    plan.source_open = False
    order = []
    while job := plan.pick():
        order.append((job.work, job.size))
        answered(plan, job, "Running" if job.work is Work.CHECK else STOP_SENT)
    assert order == [
        (Work.CHECK, 2),
        (Work.STOP, 2),
        (Work.CHECK, 2),
        (Work.STOP, 2),
        (Work.CHECK, 1),
        (Work.STOP, 1),
    ]


def test_a_partial_stop_waits_for_checks_under_way() -> None:
    plan = planned(2, 3)
    plan.source_open = False
    first, second = plan.pick(), plan.pick()
    assert first is not None
    assert second is not None
    plan.launch(first)
    answered(plan, second)
    assert plan.pickable() == 0
    assert plan.pick() is None
    plan.answered(first, [Answer([Row(0, "Running"), Row(1, "Completed")])])
    job = plan.pick()
    assert job is not None
    assert (job.work, job.size) == (Work.STOP, 2)


def test_too_little_for_a_chunk_waits_while_the_source_is_open() -> None:
    plan = planned(4, 3)
    assert plan.partial
    assert plan.pick() is None
    plan.flush()
    job = plan.pick()
    assert job is not None
    assert (job.work, job.size) == (Work.CHECK, 3)
    plan.launch(job)
    assert not plan.partial
    plan.answered(job, [Answer([Row(n, "Running") for n in range(3)])])
    assert plan.pick() is None
    assert plan.partial
    plan.flush()
    job = plan.pick()
    assert job is not None
    assert (job.work, job.size) == (Work.STOP, 3)


def test_all_active_is_whatever_the_server_names() -> None:
    plan = StopPlan(ledger := Ledger(collect=True))
    plan.chunk = 2
    plan.feed_all_active(2)
    plan.source_open = False
    job = plan.pick()
    assert job is not None
    assert job.calls == [Call(2, ALL_ACTIVE)]
    plan.launch(job)
    rows = [Row(9, "Running"), Row(5, "Scheduled"), Row(7, "Running"), Row(9, "Completed")]
    plan.answered(job, [Answer(rows)])
    stop = plan.pick()
    assert stop is not None
    assert stop.calls == [Call(2, [7])]
    answered(plan, stop, STOP_SENT)
    assert plan.pick() is None
    report = ledger.report(StopStats(), {})
    assert [(n, each.result, each.status) for n, each in report.items()] == [
        (9, StopResult.NOT_RUNNING, TaskStatus.COMPLETED),
        (5, StopResult.NOT_RUNNING, TaskStatus.SCHEDULED),
        (7, StopResult.STOP_SENT, TaskStatus.RUNNING),
    ]


def test_tasks_are_stopped_unchecked_where_that_is_asked_for() -> None:
    plan = planned(2, 3, first=Work.STOP)
    plan.source_open = False
    works = []
    while job := plan.pick():
        works.append(job.work)
        answered(plan, job, STOP_SENT)
    assert works == [Work.STOP, Work.STOP]
    report = plan._ledger.report(StopStats(), {})
    assert {(each.result, each.status) for each in report.values()} == {
        (StopResult.STOP_SENT, None)
    }


def test_a_row_that_says_nothing_is_a_malformed_reply_that_says_where() -> None:
    plan = planned(2, 2)
    job = plan.pick()
    assert job is not None
    plan.launch(job)
    answer = Answer([Row(0, "Running"), Row(1)], where="$.reply[3].result")
    [(again, error)] = plan.answered(job, [answer])
    assert ids_of(again) == [0, 1]
    assert isinstance(error, ReplyError)
    assert error.where == "$.reply[3].result[1]"


def test_the_words_beside_a_result_tell_why_a_row_is_missing() -> None:
    plan = planned(2, 2)
    plan.source_open = False
    job = plan.pick()
    assert job is not None
    plan.launch(job)
    plan.answered(job, [Answer([Row(0, "Completed")], words="task 1 was archived")])
    outcome = plan._ledger.report(StopStats(), {})[1]
    assert (outcome.result, outcome.error) == (StopResult.NOT_FOUND, "task 1 was archived")


# --- The pool -------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers()))),
    st.lists(st.integers(1, 9)),
)
def test_a_pool_gives_back_what_it_got_in_order(
    portions: list[tuple[int, list[int]]], limits: list[int]
) -> None:
    pool = Pool()
    inside: list[tuple[int, int]] = []
    for project_id, task_ids in portions:
        pool.add(project_id, task_ids)
        inside += [(project_id, n) for n in task_ids]
    given_in = deepcopy(portions)
    for limit in limits:
        taken, inside = inside[:limit], inside[limit:]
        assert pool.take(limit) == [
            (project, [n for mine, n in taken if mine == project])
            for project in dict.fromkeys(mine for mine, _ in taken)
        ]
        assert pool.size == len(inside)
    assert pool.take_all(1) == [[(project_id, [n])] for project_id, n in inside]
    assert portions == given_in  # others may hold these lists, too


# --- What an error means --------------------------------------------------------------------------

DOOM, PASSING, FINAL = "doom", "passing", "final"
ERRORS: list[tuple[CtrlApiError, str, bool]] = [
    *((HttpError("", status), DOOM, True) for status in (400, 404, 405, 422)),
    *((HttpError("", status), DOOM, False) for status in (301, 302, 307)),
    *((HttpError("", status), PASSING, True) for status in (425, 429, 503)),
    *((HttpError("", status), PASSING, False) for status in (408, 500, 502, 504)),
    (HttpError("", 413), FINAL, True),
    (MethodError("TaskStop", ""), FINAL, True),
    (RequestError("", sent=False), PASSING, True),
    (RequestError(""), PASSING, False),
    (ReplyError(""), PASSING, False),
]


@pytest.mark.parametrize(("error", "kind", "nothing_done"), ERRORS, ids=repr)
def test_what_an_error_means(error: CtrlApiError, kind: str, nothing_done: bool) -> None:
    assert dooms(error) is (kind == DOOM)
    assert passes(error) is (kind == PASSING)
    assert undone(error) is nothing_done


def test_pending_and_stopped_tasks_are_asked_about_again_when_told_to() -> None:
    plan = planned(2, 1, watch=True, confirm=True)
    plan.source_open = False
    works = []
    for status in ("Scheduled", "Explore", "Running", STOP_SENT, "Running", "Canceled"):
        job = plan.pick()
        assert job is not None
        works.append(job.work)
        answered(plan, job, status)
        if plan.has_pending or plan.has_stopped:
            assert plan.pick() is None
            plan.recheck()
            plan.follow()
    assert works == [*[Work.CHECK] * 3, Work.STOP, *[Work.CONFIRM] * 2]
    assert plan.pick() is None
    outcome = plan._ledger.report(StopStats(), {})[0]
    assert (outcome.result, outcome.status) == (StopResult.STOP_SENT, TaskStatus.CANCELED)


def two_projects() -> tuple[StopPlan, Job, Job]:
    """A plan with two checks of project 2 under way, and another project beside it."""
    plan = StopPlan(Ledger(collect=True))
    plan.chunk = 2
    plan.feed(2, [20, 21, 22, 23])
    plan.feed(3, [30])
    plan.source_open = False
    jobs = [job for job in (plan.pick(), plan.pick()) if job is not None]
    for job in jobs:
        plan.launch(job)
    first, second = jobs
    return plan, first, second


GONE = ProjectNotFoundError("TaskStatus", "project 2 does not exist")


def test_what_a_dead_project_still_answers_is_not_stopped() -> None:
    plan, first, second = two_projects()
    plan.answered(first, [GONE])
    plan.answered(second, [Answer([Row(22, "Running"), Row(23, "Completed")])])
    while job := plan.pick():
        assert [call.project_id for call in job.calls] == [3]
        answered(plan, job, "Completed")
    plan.close("")
    outcomes = said(plan._ledger.report(StopStats()))
    assert {n: outcomes[n][1] for n in (20, 22, 23)} == {
        20: StopResult.NOT_SENT,
        22: StopResult.NOT_SENT,
        23: StopResult.NOT_RUNNING,
    }


def test_a_job_of_two_projects_goes_on_for_the_one_that_lives() -> None:
    plan = StopPlan(Ledger(collect=True))
    plan.chunk = 4
    plan.feed(2, [20, 21])
    plan.feed(3, [30, 31])
    plan.feed(4, [40])
    plan.source_open = False
    shared, other = plan.pick(), plan.pick()
    assert shared is not None
    assert other is not None
    for job in (shared, other):
        plan.launch(job)
    plan.failed(shared, HttpError("too large", 413))  # two jobs that wait
    first = plan.pick()
    assert first is not None
    plan.launch(first)
    plan.failed(other, RequestError("no answer"))
    assert [call.project_id for call in first.calls] == [2]
    plan.answered(first, [GONE])
    second = plan.pick()
    assert second is not None
    assert [call.project_id for call in second.calls] == [3]


def test_a_waiting_job_loses_only_the_project_that_died() -> None:
    plan = StopPlan(Ledger(collect=True))
    plan.chunk = 4
    plan.feed(2, [20, 21, 22])
    plan.feed(3, [30])
    plan.feed(2, [23])
    plan.source_open = False
    shared, last = plan.pick(), plan.pick()
    assert shared is not None
    assert last is not None
    for job in (shared, last):
        plan.launch(job)
    plan.failed(shared, HttpError("too large", 413))
    plan.answered(last, [GONE])  # while 20, 21 and 22 beside 30 wait
    rest = plan.pick()
    assert rest is not None
    assert rest.calls == [Call(3, [30])]
    assert plan.pick() is None


def test_a_job_that_pauses_when_its_project_dies_is_not_done_again() -> None:
    plan, first, second = two_projects()
    [repeat] = plan.failed(second, RequestError("no answer"))
    plan.answered(first, [GONE])
    assert not plan.recall(repeat.job)
    assert said(plan._ledger.report(StopStats()))[22][1] is StopResult.NOT_SENT


@pytest.mark.parametrize("collect", [False, True])
def test_errors_are_kept_once_each_and_without_a_report_a_hundred_of_a_kind(collect: bool) -> None:
    plan = StopPlan(Ledger(collect=collect))
    for _ in range(2):
        for number in range(3 * MAX_ERRORS):
            plan.note(RequestError(f"fault {number}"))
        plan.note(ValueError("of another kind"))
    kinds = Counter(map(type, plan.errors))
    assert kinds == {RequestError: 3 * MAX_ERRORS if collect else MAX_ERRORS, ValueError: 1}


@pytest.mark.parametrize("again", ["confirm", "watch"])
def test_what_is_asked_again_goes_after_what_was_never_asked(again: str) -> None:
    plan = planned(1, 3, **{again: True})
    plan.source_open = False
    first = plan.pick()
    assert first is not None
    answered(plan, first, "Running" if again == "confirm" else "Scheduled")
    if again == "confirm":
        stop = plan.pick()
        assert stop is not None
        answered(plan, stop, STOP_SENT)
    plan.recheck()
    plan.follow()
    asked = []
    while job := plan.pick():
        asked.append([call.task_ids for call in job.calls])
        plan.launch(job)
    assert asked == [[[1]], [[2]], [[0]]]


def test_a_task_may_be_forgotten_before_it_is_fed() -> None:
    plan = StopPlan(ledger := Ledger(collect=True))
    plan.chunk = 2
    plan.forget(1)
    plan.feed(2, [0, 1])
    job = plan.pick()
    assert job is not None
    assert job.calls == [Call(2, [0])]
    assert ledger.report(StopStats())[1].error == "nobody waits for it any more"


def test_what_is_known_of_a_dead_project_is_said_of_all_its_tasks_at_any_end() -> None:
    plan, first, _ = two_projects()
    plan.answered(first, [GONE])
    plan.close("the deadline")
    outcomes = plan._ledger.report(StopStats())
    assert {n: outcomes[n].error for n in (20, 22, 30)} == {
        20: "project 2 does not exist",
        22: "project 2 does not exist",
        30: "the deadline",
    }


def test_marks_mean_the_same_in_any_number_of_projects() -> None:
    ledger = Ledger(collect=True)
    plan = StopPlan(ledger)
    marks = bytes(mark for mark, status in STATUSES_BY_MARK.items() if status in STATUSES)
    [sent] = [bytes([mark]) for mark, status in STATUSES_BY_MARK.items() if status == STOP_SENT]
    plan.chunk = len(marks)
    for project_id in range(60):  # with more verdicts than a byte has numbers for
        plan.feed(project_id, [100 * project_id + place for place in range(len(marks))])
    plan.source_open = False
    while (job := plan.pick()) is not None:
        plan.launch(job)
        answers = [
            Answer(list[Row](), marks=marks if job.work is Work.CHECK else sent * call.size)
            for call in job.calls
        ]
        assert not plan.answered(job, answers)
    outcomes = ledger.report(StopStats())
    for project_id in range(60):
        for place, mark in enumerate(marks):
            outcome = outcomes[100 * project_id + place]
            runs = STATUSES_BY_MARK[mark] == "Running"
            assert outcome.result is (StopResult.STOP_SENT if runs else StopResult.NOT_RUNNING)
            assert (outcome.project_id, outcome.status) == (project_id, STATUSES_BY_MARK[mark])
