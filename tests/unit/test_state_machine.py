"""The plan beside a model of the server: events in any order, faults of every kind, no loop."""

from __future__ import annotations

import math
import random
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ctrlapi_async import (
    HttpError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    RetryPolicy,
    StopResult,
    TasksDeniedError,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async._bulk.jobs import JobKind, listed_ids
from ctrlapi_async._bulk.options import RunOptions
from ctrlapi_async._bulk.plan import StopPlan
from ctrlapi_async._errors import (
    AuthError,
    HtmlReplyError,
    ReplyTooLargeError,
    RequestTimeoutError,
    TlsError,
)
from ctrlapi_async._models import ALL_ACTIVE
from ctrlapi_async._protocol.replies import Row, Rows
from tests.support.oracle import PENDING, RUNNING, STATUS, STOP, Answer, Fact, ModelServer, Oracle

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async import CtrlApiError, StopOutcome
    from ctrlapi_async._bulk.jobs import Job
    from ctrlapi_async._protocol.requests import TaskCall

PROJECTS: Final = (2, 3, 4)
ATTEMPTS: Final = 4
IN_FLIGHT: Final = 5
STRANGE: Final = "Hibernating"
STATUSES: Final = [*[RUNNING] * 8, *PENDING, *PENDING, "Completed", "Rejected", "Canceled", STRANGE]


class Fault(NamedTuple):
    """What a whole request may meet."""

    make: Callable[[str], CtrlApiError]
    undone: bool = False
    """Whether it says that nothing was carried out."""
    final: bool = False
    """Whether the tasks may be given up at once."""


def http(status: int, retry_after: float | None = None) -> Fault:
    kind = AuthError if status in (401, 403) else HttpError
    undone = status in (401, 403, 404, 405, 407, 413, 429)
    return Fault(
        lambda text: kind(text, status, retry_after=retry_after), undone, final=status == 413
    )


PASSING: Final = [
    Fault(RequestError),
    Fault(lambda text: RequestError(text, sent=False), undone=True),
    Fault(RequestTimeoutError),
    Fault(ReplyError),
    Fault(ReplyTooLargeError, final=True),
    *map(http, (408, 413, 425, 429, 500, 502, 503, 504)),
    http(429, 3.0),
    http(503, 0.0),
    http(503, 7.0),
]
FATAL: Final = [
    *map(http, (302, 400, 401, 403, 404, 405, 407, 422)),
    Fault(HtmlReplyError),
    Fault(TlsError, undone=True),
]

# Of a seed: so much is left to chance that it would take too long to draw.
chances = st.builds(random.Random, st.integers(0, 2**16))
indexes = st.integers(0, IN_FLIGHT)
wishes = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([*STATUSES, None])), min_size=1, max_size=14
)
seconds = st.none() | st.sampled_from([0.0, 0.3, 2.0, 20.0])


def project_of(task_id: int) -> int:
    return PROJECTS[task_id % len(PROJECTS)]


def late(self: Any) -> bool:
    return self.moves >= self.peace and not self.plan.done


open_run = precondition(lambda self: not self.plan.done)
some_in_flight = precondition(lambda self: bool(self.in_flight) and not self.plan.done)


class Machine(RuleBasedStateMachine):
    """Does with a plan whatever a run may do, on a clock of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.server = ModelServer()
        self.in_flight: list[Job] = []
        self.announced: dict[int, StopOutcome] = {}
        self.proven: set[str] = set()
        self.now = self.last_stop = 100.0
        self.moves = self.faults = 0
        self.blamed = False
        self.input_open = True

    @initialize(
        options=st.builds(
            RunOptions,
            check=st.sampled_from([True, True, True, False]),
            dry_run=st.sampled_from([False, False, False, True]),
            follow_restarts=st.sampled_from([True, True, False]),
            wait_pending=seconds,
            wait_stopped=seconds,
            timeout=st.none() | st.sampled_from([1.0, 30.0]),
            collect=st.booleans(),
        ),
        policy=st.builds(
            RetryPolicy,
            attempts=st.just(ATTEMPTS),
            timeout=st.sampled_from([None, None, 0.0, 10.0]),
        ),
        sizes=st.tuples(st.sampled_from([7, 5, 4, 3, 2, 1]), st.integers(0, 60)),
        streaming=st.booleans(),
        listings=st.sampled_from([(), (), (2,), (3, 2), PROJECTS]),
        denial=st.sampled_from(["bad", "bad", "all", "none", "no row"]),
        wanted=wishes,
        chance=chances,
    )
    def begin(
        self, options: RunOptions, policy: RetryPolicy, chance: random.Random, **more: Any
    ) -> None:
        if not options.check:  # as `task_stop` does
            options = RunOptions(check=False, follow_restarts=False, collect=options.collect)
        if options.dry_run and options.wait_pending is not None:
            options = RunOptions(dry_run=True, follow_restarts=options.follow_restarts)
        (self.chunk, self.peace), self.denial = more["sizes"], more["denial"]
        self.options, streaming = options, more["streaming"]
        self.attempts = ATTEMPTS if policy.timeout is None else 1
        self.plan = StopPlan(
            options, policy, began=self.now, random=chance.random, streaming=streaming
        )
        self.plan.set_chunk(self.chunk)
        self.oracle = Oracle(
            check=options.check,
            dry_run=options.dry_run,
            follow_restarts=options.follow_restarts,
            wait_pending=options.wait_pending is not None,
            wait_stopped=options.wait_stopped is not None,
            attempts=self.attempts,
        )
        self.listings = more["listings"] if options.check and not streaming else ()
        self.blamed = bool(self.listings)
        for project_id in self.listings:
            self.plan.add_all_active(project_id)
        self.add(more["wanted"], chance)
        if not streaming:
            self.close_input()

    # --- tasks in

    def add(self, wanted: list[tuple[int, str | None]], chance: random.Random) -> None:
        for number, status in wanted:
            if not self.options.check and status == "Canceled":
                continue  # as if an unchecked stop had done it
            if status is not None and number not in self.server.tasks:
                self.server.add(project_of(number), number, status)
                while status in ("Running", "Scheduled") and chance.random() < 0.3:
                    self.server.restart(number, status)
        for project_id in set(PROJECTS).difference(self.listings):
            ids = [n for n, _ in wanted if project_of(n) == project_id]
            # Some ask for the restarts by their own ids as well.
            ids += [m for n in ids if n in self.server.tasks for m in self.server.tasks[n].chain]
            ids = chance.sample(ids, len(ids))
            ids = [n for n in ids if self.options.collect or n not in self.oracle.asked]
            if ids:
                self.oracle.ask(project_id, ids)
                self.plan.add_tasks(project_id, ids, self.now)

    @precondition(lambda self: self.input_open and not self.plan.done)
    @rule(wanted=wishes, chance=chances)
    def add_more(self, wanted: list[tuple[int, str | None]], chance: random.Random) -> None:
        self.add(wanted, chance)

    @precondition(lambda self: self.input_open)
    @rule()
    def close_input(self) -> None:
        self.input_open = False
        self.plan.close_input(self.now)

    # --- jobs out

    @precondition(lambda self: len(self.in_flight) < IN_FLIGHT and not self.plan.done)
    @rule(max_ids=st.sampled_from([None, None, 1, 2, 5]), most=st.integers(1, IN_FLIGHT))
    def launch(self, max_ids: int | None, most: int) -> None:
        self.send(max_ids, most)

    def send(self, max_ids: int | None, most: int = 1) -> bool:
        sent = False
        for _ in range(min(most, IN_FLIGHT - len(self.in_flight))):
            ready = self.plan.ready(max_ids, self.now)
            job = self.plan.next_job(max_ids, self.now)
            if job is None:
                restarted = any(len(task.chain) > 1 for task in self.server.tasks.values())
                gone = self.oracle.dead or self.oracle.discarded or restarted
                assert not ready or gone or self.oracle.ended or sent
                break
            assert ready
            assert not self.plan.done
            size = sum(len(listed_ids(call)) for call in job.wire_calls)
            assert size <= min(self.chunk, max_ids or self.chunk)
            assert len({call.project_id for call in job.calls}) == len(job.calls)
            self.oracle.sent(job.kind.method, self.calls_of(job))
            self.in_flight.append(job)
            sent = True
        self.take()
        return sent

    @staticmethod
    def calls_of(job: Job) -> list[tuple[int, list[int] | None]]:
        return [
            (project_id, None if ids is ALL_ACTIVE else list(ids)) for project_id, ids in job.calls
        ]

    # --- answers

    @some_in_flight
    @rule(index=indexes, chance=chances)
    def answer(self, index: int, chance: random.Random) -> None:
        self.reply(index, chance, odd=False)

    @some_in_flight
    @rule(index=indexes, chance=chances)
    def answer_oddly(self, index: int, chance: random.Random) -> None:
        self.reply(index, chance, odd=True)

    def reply(self, index: int, chance: random.Random | None, *, odd: bool) -> None:
        job = self.in_flight.pop(index % len(self.in_flight))
        self.faults += odd
        replies: list[Rows | CtrlApiError] = []
        answers: list[Answer] = []
        for call, wire in zip(job.calls, job.wire_calls, strict=True):
            reply, answer = self.reply_to(job, call, wire, chance, odd=odd)
            replies.append(reply)
            answers.append(answer)
        if any(isinstance(reply, Rows) for reply in replies):
            self.proven.add(job.kind.method)
        self.oracle.heard(job.kind.method, self.calls_of(job), answers)
        self.receive(job, replies)

    def reply_to(
        self, job: Job, call: TaskCall, wire: TaskCall, chance: random.Random | None, *, odd: bool
    ) -> tuple[Rows | CtrlApiError, Answer]:
        """Return what the server says to one call, and the same for the oracle."""
        method, project_id, ids = job.kind.method, call.project_id, listed_ids(wire)
        listing = call.task_ids is ALL_ACTIVE
        if project_id in self.oracle.dead:
            error: CtrlApiError = ProjectNotFoundError(method, f"project {project_id} is not there")
            return error, self.end_project()
        missing = self.server.missing(project_id, ids)
        if missing and self.denial != "no row":
            named = {"bad": missing, "all": ids, "none": []}[self.denial]
            error = TasksDeniedError(method, f"access denied to tasks {named}", named)
            return error, Answer(undone=True, denied=missing)
        if odd and chance is not None and chance.random() < 0.4:
            return self.refuse(job, call, chance)
        if method == STOP:
            facts = list(self.server.stop(ids))
        else:
            facts = list(self.server.status(project_id, None if listing else ids))
        where = "$.reply[0].result"
        rows = Rows([], None, where)
        answer = Answer(facts)
        if odd and chance is not None:
            facts = self.garble(facts, ids, chance)
            if unread := [n for n in ids if chance.random() < 0.2]:
                error_at = ReplyError("Expected `str`", f"{where}[0].status")
                facts = [fact for fact in facts if fact.task_id not in unread]
                if chance.random() < 0.5:
                    rows.unreadable_tasks = dict.fromkeys(unread, error_at)
                else:
                    rows.unreadable = [error_at]
                    named_ids = {fact.task_id for fact in facts}
                    unread = [n for n in ids if n not in named_ids]
            answer = Answer(facts, odd=unread)
        if chance is not None:
            chance.shuffle(facts)
        rows.rows = [Row(n, status, initial, text) for n, status, text, initial in facts]
        return rows, answer

    @staticmethod
    def garble(facts: list[Fact], ids: list[int], chance: random.Random) -> list[Fact]:
        """Leave out, repeat and add rows."""
        garbled: list[Fact] = []
        for fact in facts:
            other = fact._replace(status="Completed", error=None)
            error = fact._replace(status=None, error="hidden")
            garbled += chance.choice(
                [*[[fact]] * 6, [fact, fact], [fact, other], [error], [error, fact], []]
            )
        if ids and chance.random() < 0.3:
            garbled.append(Fact(99_999, RUNNING))
        return garbled

    def refuse(
        self, job: Job, call: TaskCall, chance: random.Random
    ) -> tuple[CtrlApiError, Answer]:
        """Refuse one call for a reason that need not be true."""
        method, ids = job.kind.method, listed_ids(call)
        effect = method == STOP and chance.random() < 0.5
        kind = chance.choice(["unknown", "unread", "project", "user", "method"])
        if kind in ("project", "user", "method") and not late(self):
            kind = "unknown"
        if kind == "project":
            self.oracle.dead.add(call.project_id)
            return ProjectNotFoundError(method, "no such project"), self.end_project()
        if kind == "user":
            self.oracle.ended = True
            return UserUnavailableError(method, "user 1 is unavailable"), Answer(undone=True)
        if kind == "method":
            self.oracle.ended |= method not in self.proven or self.impatient(job)
            return UndefinedMethodError(method, "undefined method"), Answer(undone=True)
        if effect:
            list(self.server.stop(ids))
        if kind == "unread":
            return ReplyError("cut"), Answer()
        return MethodError(method, "license expired"), Answer(final=method == STATUS)

    def end_project(self) -> Answer:
        self.oracle.ended |= self.oracle.dead.issuperset(project_of(n) for n in self.oracle.asked)
        return Answer(undone=True, final=True)

    @some_in_flight
    @rule(index=indexes, fault=st.sampled_from(PASSING), effect=st.booleans())
    def fail(self, index: int, fault: Fault, effect: bool) -> None:
        job = self.in_flight.pop(index % len(self.in_flight))
        self.faults += 1
        if job.kind is JobKind.STOP and effect and not fault.undone:
            list(self.server.stop([n for call in job.calls for n in listed_ids(call)]))
        error = fault.make(f"fault {self.faults}")
        if isinstance(error, HttpError) and error.retry_after:
            self.oracle.ended |= self.attempts == 1 or self.options.timeout is not None
        final = fault.final and job.size == 1
        self.oracle.heard(
            job.kind.method, self.calls_of(job), Answer(undone=fault.undone, final=final)
        )
        self.receive(job, error)

    @precondition(lambda self: late(self) and self.in_flight)
    @rule(index=indexes, fault=st.sampled_from(FATAL), effect=st.booleans())
    def fail_for_good(self, index: int, fault: Fault, effect: bool) -> None:
        job = self.in_flight[index % len(self.in_flight)]
        self.oracle.ended |= not self.proven or self.impatient(job)
        self.fail(index, fault, effect)
        if not self.proven:
            assert self.plan.fatal_error is not None
            assert self.plan.ready(None, self.now) == 0

    def impatient(self, job: Job) -> bool:
        """Return whether a request may not be sent again."""
        return self.attempts == 1 or job.attempt >= ATTEMPTS

    def receive(self, job: Job, reply: list[Rows | CtrlApiError] | CtrlApiError) -> None:
        if job.kind in (JobKind.STOP, JobKind.VERIFY):
            self.last_stop = self.now
        self.plan.receive(job, reply, self.now, self.proven)
        self.take()

    # --- time

    @open_run
    @rule(step=st.sampled_from([0.01, 0.05, 0.3, 2.0, 9.0]))
    def pass_time(self, step: float) -> None:
        self.now += step
        self.wake()

    @open_run
    @rule()
    def sleep(self) -> None:
        at = self.plan.next_wakeup(self.now)
        if at < math.inf:
            self.now = max(self.now, at)
            self.wake()

    def wake(self) -> None:
        timeout = self.options.timeout
        if timeout is not None and self.now >= 100.0 + timeout:
            self.oracle.ended = True
        self.plan.wake(self.now)
        assert self.plan.next_wakeup(self.now) > self.now, "it would spin"
        self.take()

    @open_run
    @rule(chance=chances)
    def live_on(self, chance: random.Random) -> None:
        """Let time pass at the server."""
        for task in list(self.server.tasks.values()):
            if chance.random() < 0.6:
                continue
            if task.status in PENDING:
                task.status = chance.choice([RUNNING, "Explore", RUNNING, "Rejected"])
            elif task.status == RUNNING and task.stop_requests:
                task.status = "Canceled"
            elif task.status == RUNNING and chance.random() < 0.7 and len(task.chain) < 4:
                self.server.restart(task.task_id, chance.choice([RUNNING, "Scheduled"]))
            elif task.status == RUNNING:
                task.status = "Completed"

    # --- cut short

    @precondition(lambda self: late(self) and len(self.oracle.discarded) < 5)
    @rule(number=st.integers(0, 50))
    def discard(self, number: int) -> None:
        task_ids = list(self.oracle.asked)
        if task_ids:
            task_id = task_ids[number % len(task_ids)]
            self.oracle.discarded.add(task_id)
            self.plan.discard(task_id)

    @precondition(lambda self: late(self) and self.moves > self.peace + 20)
    @rule()
    def abort(self) -> None:
        self.oracle.ended = self.blamed = True
        self.plan.abort(RequestError("the run was left"), self.now)
        assert self.plan.done
        self.take()

    @open_run
    @rule(chance=chances, moves=st.integers(1, 30), trouble=st.sampled_from([0.0, 0.0, 0.3, 0.7]))
    def go_on(self, chance: random.Random, moves: int, trouble: float) -> None:
        """Let the run do what it does by itself, and the server what it may."""
        for _ in range(moves):
            if self.plan.done:
                return
            move = chance.choice(["send", "send", "reply", "reply", "reply", "sleep", "live"])
            if move == "send" and len(self.in_flight) < IN_FLIGHT:
                self.send(chance.choice([None, None, None, 2]))
            elif move == "reply" and self.in_flight:
                if chance.random() >= trouble:
                    self.reply(chance.randrange(9), chance, odd=False)
                elif chance.random() < 0.5:
                    self.reply(chance.randrange(9), chance, odd=True)
                else:
                    self.fail(chance.randrange(9), chance.choice(PASSING), chance.random() < 0.5)
            elif move == "sleep":
                self.sleep()
            elif move == "live" and chance.random() < 0.3:
                self.live_on(chance)
            self.all_is_accounted_for()

    # --- what holds

    @rule()
    def take(self) -> None:
        """Take the outcomes that are announced."""
        # Ended before its time, the run may have missed tasks.
        self.blamed |= self.plan.done and self.input_open
        store, options = self.plan.store, self.options
        pending_time = self.now < 100.0 + (options.wait_pending or 0.0)
        stopped_time = self.now < self.last_stop + (options.wait_stopped or 0.0)
        while store.untaken:
            for outcome in store.take():
                assert outcome.task_id not in self.announced
                self.announced[outcome.task_id] = outcome
                self.oracle.check_outcome(
                    outcome, pending_time=pending_time, stopped_time=stopped_time
                )

    @invariant()
    def all_is_accounted_for(self) -> None:
        self.moves += 1
        plan = self.plan
        snapshot = plan.snapshot()
        settled = None if self.options.collect else plan.store.settled
        self.oracle.check_report(snapshot, plan.counts, settled)
        assert plan.store.done == len(self.announced)
        if self.options.collect:
            for task_id, outcome in self.announced.items():
                assert snapshot[task_id].outcome(task_id) == outcome
        if plan.done:
            assert self.announced.keys() == self.oracle.asked.keys()
            assert plan.ready(None, self.now) == 0
            assert plan.next_wakeup(self.now) == math.inf
            return
        assert (
            self.in_flight
            or self.input_open
            or plan.ready(None, self.now)
            or plan.next_wakeup(self.now) < math.inf
        ), "it would wait for ever"
        for job in self.in_flight if plan.fatal_error is None else ():
            for call in job.calls if job.kind is JobKind.STOP else ():
                for task_id in snapshot.keys() & listed_ids(call) - self.announced.keys():
                    assert snapshot[task_id].result is StopResult.UNCONFIRMED

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None or not hasattr(self, "plan"):
            return
        if self.input_open:
            self.close_input()
        for _ in range(2000):
            if self.plan.done:
                break
            if self.in_flight:
                self.reply(0, None, odd=False)
            elif not self.send(None):
                self.sleep()
            self.all_is_accounted_for()
        assert self.plan.done, "it does not end"
        self.take()
        self.all_is_accounted_for()
        self.oracle.check_end(self.plan.counts, self.plan.errors, other=self.blamed)
        self.oracle.check_truth(self.server.tasks, self.announced, sound=not self.faults)
        for told in (self.oracle.ended, *{outcome.result for outcome in self.announced.values()}):
            if currently_in_test_context():
                event(str(told))


def test_in_any_order_of_events_each_task_has_one_outcome_that_the_news_allow() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            deadline=None,
            max_examples=2 * settings().max_examples,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
        ),
    )


def few_chains(chance: random.Random, trouble: float) -> None:
    """Let a run go on about up to three jobs of a project, which the server restarts often."""

    def wanted() -> list[tuple[int, str | None]]:
        numbers = [len(PROJECTS) * chance.randrange(3) for _ in range(chance.randint(1, 3))]
        return [(n, chance.choice([RUNNING, RUNNING, RUNNING, "Scheduled"])) for n in numbers]

    machine = Machine()
    machine.begin(
        RunOptions(
            wait_pending=chance.choice([None, 20.0]),
            wait_stopped=chance.choice([None, 2.0]),
            collect=chance.random() < 0.5,
        ),
        RetryPolicy(attempts=ATTEMPTS, timeout=None),
        chance,
        sizes=(chance.choice([1, 1, 2, 3]), 200),
        streaming=True,
        listings=(),
        denial="bad",
        wanted=wanted(),
    )
    for _ in range(chance.randint(5, 40)):
        if machine.plan.done:
            break
        if chance.random() < 0.2:
            machine.add(wanted(), chance)
        if chance.random() < 0.2:
            machine.live_on(chance)
        machine.go_on(chance, chance.randint(1, 3), trouble)
    machine.teardown()


@pytest.mark.parametrize("trouble", [0.0, 0.25])
def test_checks_of_few_chains_that_meet_bring_each_task_one_outcome(trouble: float) -> None:
    for seed in range(500):
        few_chains(random.Random(seed), trouble)
