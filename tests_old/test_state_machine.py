"""The plan and its ledger beside a model of the server: many projects, events in any order."""

from __future__ import annotations

import random
import sys
from collections import Counter, deque
from functools import partial
from itertools import chain, count
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import pytest
from attrs import define, field
from hypothesis import HealthCheck, event, settings
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
    ALL_ACTIVE,
    HttpError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    StopOutcome,
    StopResult,
    StopStats,
    TasksDeniedError,
    TaskStatus,
    UndefinedMethodError,
    UserUnavailableError,
    ledger,
    plan,
)
from ctrlapi_async.errors import (
    AuthError,
    CertificateError,
    CtrlApiError,
    DeadlineError,
    HtmlReplyError,
    words_of,
)
from ctrlapi_async.ledger import Ledger
from ctrlapi_async.models import parse_status
from ctrlapi_async.plan import Call, Job, Repeat, StopPlan, Work
from ctrlapi_async.wire import STATUSES as STATUSES_BY_MARK
from ctrlapi_async.wire import STOP_SENT, Answer, CheckedRow, Row, rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")

PROJECTS: Final = range(2, 7)
PLACES: Final = 10
"""Tasks a project at most."""

FLIGHTS: Final = 5
ATTEMPTS: Final = 3
RUNNING, CANCELED, STRANGE, ABSENT = "Running", "Canceled", "Hibernating", "(no such task)"
STATUSES: Final = [str(status) for status in TaskStatus]
ACTIVE: Final = ("Scheduled", "Explore", RUNNING)
OMITTED: Final = "the reply holds no row for it"
UNWANTED: Final = "nobody waits for it any more"
CLOSED: Final = "the end of the test"

SENT, UNCONFIRMED = StopResult.STOP_SENT, StopResult.UNCONFIRMED
NOT_SENT, NOT_RUNNING = StopResult.NOT_SENT, StopResult.NOT_RUNNING
NOT_FOUND, UNAVAILABLE = StopResult.NOT_FOUND, StopResult.UNAVAILABLE


class Fault(NamedTuple):
    """What a whole request may meet.

    Args:
        make: Gives the error, with these words.
        undone: Whether it says that the request took no effect.
    """

    make: Callable[[str], CtrlApiError]
    undone: bool = False


def http(status: int, undone: bool) -> Fault:
    return Fault(lambda words: HttpError(words, status), undone)


PASSING: Final = [
    Fault(lambda words: RequestError(words, sent=True)),
    Fault(lambda words: RequestError(words, sent=False), undone=True),
    Fault(DeadlineError),
    Fault(ReplyError),
    http(408, undone=False),
    http(413, undone=True),
    http(429, undone=True),
    http(500, undone=False),
    http(503, undone=True),
]
DOOMING: Final = [
    Fault(lambda words: AuthError(words, 401), undone=True),
    http(404, undone=True),
    http(302, undone=False),
    Fault(HtmlReplyError),
    Fault(CertificateError, undone=True),
]
# What a call may be answered: a method error, a reply that cannot be read, or rows.
ROWS, BLANK, UNREAD = "rows", "a row that says nothing", "unreadable"
REFUSED, DENIED, GONE, FOREIGN, UNKNOWN = "refused", "denied", "gone", "foreign", "unknown"
ODD: Final = [*[ROWS] * 3, BLANK, BLANK, *[UNREAD] * 3, REFUSED, *[DENIED] * 4, GONE, FOREIGN]
KINDS: Final = {
    REFUSED: MethodError,
    GONE: ProjectNotFoundError,
    FOREIGN: UserUnavailableError,
    UNKNOWN: UndefinedMethodError,
}


def task_of(project_id: int, place: int) -> int:
    return place * len(PROJECTS) + project_id


def project_of(task_id: int) -> int:
    return PROJECTS[(task_id - PROJECTS[0]) % len(PROJECTS)]


def listed(call: Call) -> list[int]:
    return call.task_ids if isinstance(call.task_ids, list) else []


def whim(chance: random.Random | None, plain: T, odd: Sequence[T], plainly: float = 0.7) -> T:
    """Choose the plain thing mostly, and always where nothing is left to chance."""
    return plain if chance is None or chance.random() < plainly else chance.choice(odd)


def as_decoded(rows: list[Row]) -> list[Row]:
    """Give the rows the types that the wire's decoder gives them."""
    if any(row.error is not None for row in rows):
        return rows
    if all(row.status in STATUSES for row in rows):
        return [CheckedRow(row.task_id, status=row.status) for row in rows]  # type: ignore[arg-type]
    return rows


@define
class Task:
    """A task as the server has it.

    Args:
        status: Its status.
        ending: Whether it is about to be canceled.
        stopped: Whether it took a stop.
    """

    status: str
    ending: bool = False
    stopped: bool = False


@define(eq=False)
class Account:
    """What a client was told of a task since it was asked for.

    Args:
        due: The result that the last news demand, but for stops of unknown fate.
        status: The status in the last news.
        clear: Whether it may be stopped.
        flies: Whether its stop is under way.
        lost: Whether a stop of it has an unknown fate.
        open: Whether the news may yet be followed by others.
        over: Whether the client has to leave it as it is.
        denied: Whether the server may have said that there is no such task.
        unwanted: Whether it was to be left alone.
        done: Whether the server stopped it.
        stops: How often its stop was sent, refusals of the ids and of the size put aside.
        words: What its outcome may say.
        outcome: What was announced.
    """

    due: StopResult = NOT_SENT
    status: str | None = None
    clear: bool = False
    flies: bool = False
    lost: bool = False
    open: bool = True
    over: bool = False
    denied: bool = False
    unwanted: bool = False
    done: bool = False
    stops: int = 0
    words: set[str] = field(factory=set)
    outcome: StopOutcome | None = None

    @property
    def unsure(self) -> bool:
        return self.flies or self.lost

    @property
    def now(self) -> StopResult:
        """The result in a report before the end."""
        return UNCONFIRMED if self.unsure else self.due


# Of a seed: so much is left to chance that it would be too much to draw.
chances = st.builds(random.Random, st.integers(0, 2**16))
indexes = st.integers(0, FLIGHTS)
projects = st.sampled_from(PROJECTS)
wishes = st.lists(
    st.tuples(
        st.integers(0, PLACES - 1),
        st.sampled_from([*[RUNNING] * 9, *STATUSES, *["Scheduled"] * 3, STRANGE, ABSENT]),
    ),
    min_size=1,
    max_size=12,
)
troubles = st.sampled_from([0.0, 0.3, 0.7])


def still_open(self: Any) -> bool:
    return not self.closed


def flying(self: Any) -> bool:
    return bool(self.flying) and not self.closed


def paused(self: Any) -> bool:
    return bool(self.paused) and not self.closed


def late(self: Any) -> bool:
    return self.moves >= self.peace and not self.closed


class Machine(RuleBasedStateMachine):
    """Does with a plan whatever a run may do, and knows by itself what each task's outcome is."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.server: dict[int, Task] = {}
        self.accounts: dict[int, Account] = {}
        # Those whose task was asked for again after its outcome, which was not taken yet.
        self.former: dict[int, deque[Account]] = {}
        self.asked: list[int] = []
        self.known: set[int] = set()  # projects asked for
        self.dead: dict[int, set[str]] = {}
        self.told: Counter[StopResult] = Counter()
        self.flying: list[Job] = []
        self.paused: list[Repeat] = []
        self.doom_words: set[str] = set()
        self.closed = self.cut_short = self.blamed = False
        self.moves = self.stars = 0
        self.forgotten: set[int] = set()
        self.serial = count(1)
        self.end: dict[int, StopOutcome] | None = None

    @initialize(
        collect=st.booleans(),
        dry_run=st.sampled_from([False, False, False, True]),
        watch=st.booleans(),
        confirm=st.booleans(),
        first=st.sampled_from([Work.CHECK, Work.CHECK, Work.CHECK, Work.STOP]),
        chunk=st.sampled_from([7, 5, 4, 3, 2, 1]),
        max_calls=st.sampled_from([1000, 3, 2, 1000]),
        texts=st.sampled_from([0, 3, 100]),
        peace=st.integers(0, 80),
        wanted=st.dictionaries(projects, wishes, max_size=4),
    )
    def begin(
        self,
        *,
        collect: bool,
        dry_run: bool,
        watch: bool,
        confirm: bool,
        first: Work,
        chunk: int,
        max_calls: int,
        texts: int,
        peace: int,
        wanted: dict[int, list[tuple[int, str]]],
    ) -> None:
        self.patch.setattr(plan, "MAX_CALLS", max_calls)
        self.patch.setattr(ledger, "TEXTS", texts)
        self.collect, self.watching, self.following = collect, watch, confirm
        self.first, self.peace = first, peace
        # The status that goes with a stop.
        self.seen = RUNNING if first is Work.CHECK else None
        self.dry_run = dry_run and first is Work.CHECK
        self.ledger = Ledger(collect=collect)
        self.plan = StopPlan(
            self.ledger, first=first, dry_run=self.dry_run, watch=watch, confirm=confirm
        )
        self.plan.chunk = chunk
        self.feed_many(wanted)

    # --- tasks in

    def exist(self, project_id: int, wanted: list[tuple[int, str]]) -> list[int]:
        for place, status in wanted:
            # What is stopped unchecked, and Canceled already, looks as if the stop had done it.
            odd = self.first is Work.STOP and status == CANCELED
            self.server.setdefault(task_of(project_id, place), Task("Stalled" if odd else status))
        return [task_of(project_id, place) for place, _ in wanted]

    def admit(self, task_ids: Sequence[int]) -> None:
        for task_id in task_ids:
            if task_id in self.ledger:
                continue
            if account := self.accounts.get(task_id):
                assert not self.collect
                if account.outcome is None:
                    self.former.setdefault(task_id, deque()).append(account)
            self.accounts[task_id] = Account(
                clear=self.first is Work.STOP, unwanted=task_id in self.forgotten
            )
            self.asked.append(task_id)

    @precondition(still_open)
    @rule(wanted=st.dictionaries(projects, wishes, min_size=1))
    def feed_many(self, wanted: dict[int, list[tuple[int, str]]]) -> None:
        for project_id, tasks in wanted.items():
            self.feed(project_id, tasks)

    def feed(self, project_id: int, wanted: list[tuple[int, str]]) -> None:
        task_ids = self.exist(project_id, wanted)
        self.known.add(project_id)
        self.admit(list(dict.fromkeys(task_ids)))
        self.plan.feed(project_id, task_ids)

    @precondition(lambda self: self.stars < 3 and not self.closed)
    @rule(project_id=projects, others=wishes)
    def feed_all_active(self, project_id: int, others: list[tuple[int, str]]) -> None:
        self.exist(project_id, others)
        self.known.add(project_id)
        self.stars += 1
        self.plan.feed_all_active(project_id)

    @precondition(still_open)
    @rule()
    def flush(self) -> None:
        self.plan.flush()

    @precondition(still_open)
    @rule()
    def end_source(self) -> None:
        self.plan.source_open = False

    # --- jobs out

    def ids_of(self, job: Job) -> list[int]:
        return [task_id for call in job.calls for task_id in listed(call)]

    @precondition(lambda self: len(self.flying) < FLIGHTS and not self.closed)
    @rule(ceiling=st.none() | st.integers(1, 9), most=st.integers(1, FLIGHTS))
    def launch(self, ceiling: int | None, most: int) -> None:
        for _ in range(min(most, FLIGHTS - len(self.flying))):
            if not self.send_next(ceiling):
                break

    def send_next(self, ceiling: int | None = None) -> bool:
        ready = self.plan.pickable(ceiling)
        job = self.plan.pick(ceiling)
        if job is None:
            assert not ready or self.dead or self.forgotten, "it said that there is a job"
            return False
        assert ready
        self.start(job, min(self.plan.chunk, ceiling or self.plan.chunk))
        return True

    def start(self, job: Job, limit: int) -> None:
        """Send a job, if it is one that may be sent."""
        assert not self.doomed, "a request after the doom"
        self.plan.launch(job)
        calls = job.calls
        assert calls
        assert all(call.task_ids for call in calls)
        assert job.size <= limit
        assert len(calls) <= plan.MAX_CALLS
        assert len({call.project_id for call in calls}) == len(calls)
        task_ids = self.ids_of(job)
        assert len(set(task_ids)) == len(task_ids)
        undecided = {each.task_id for each in self.leftovers}
        for call in calls:
            assert call.project_id not in self.dead
            for task_id in listed(call):
                assert project_of(task_id) == call.project_id
                assert task_id in undecided, f"{job.work} of {task_id}, which has its outcome"
                self.depart(job.work, task_id, self.accounts[task_id])
        self.flying.append(job)

    def depart(self, work: Work, task_id: int, account: Account) -> None:
        assert not account.flies, "it is in two jobs"
        if work in (Work.CHECK, Work.STOP) and not account.lost:
            assert not account.unwanted
        if work is Work.CHECK:
            assert not account.unsure
            assert account.status is None or account.due is NOT_RUNNING
        elif work is Work.STOP:
            assert not self.dry_run
            assert account.clear, f"a stop of {task_id} without need"
            account.clear = False
            account.flies = True
            account.stops += 1
            assert account.stops <= ATTEMPTS
        elif work is Work.SETTLE:
            assert account.lost
            assert not account.clear
        else:
            assert account.due is SENT
            assert account.open

    @precondition(paused)
    @rule(index=indexes)
    def bring_back(self, index: int) -> None:
        job, error = self.paused.pop(index % len(self.paused))
        if job.attempt >= ATTEMPTS:
            self.abandon(job, error)
        elif self.plan.recall(job):
            job.attempt += 1
            self.start(job, self.plan.chunk)

    @precondition(still_open)
    @rule(chance=chances, moves=st.integers(1, 30), trouble=troubles)
    def go_on(self, chance: random.Random, moves: int, trouble: float) -> None:
        """Let the run do what it does by itself, and the server what it may."""
        for _ in range(moves):
            ceiling = whim(chance, None, [1, 2, 3])
            ways: list[Callable[[], object]] = [partial(self.launch, ceiling, 1)] * 3
            if self.flying:
                ways += [lambda: self.hit(chance.randrange(FLIGHTS), trouble, chance)] * 3
            if self.paused:
                ways += [lambda: self.bring_back(chance.randrange(FLIGHTS))] * 2
            if self.plan.has_pending or self.plan.has_stopped:
                ways += [lambda: self.poll(chance)]
            chance.choice(ways)()
            self.each_task_has_one_outcome()

    def hit(self, index: int, trouble: float, chance: random.Random) -> None:
        if chance.random() >= trouble:
            self.answer(index, chance)
        elif chance.random() < 0.4:
            self.answer_oddly(index, chance)
        elif chance.random() < 0.15:
            self.answer_alike(index, chance)
        elif chance.random() < 0.15:
            self.refuse_user(index)
        elif late(self) and chance.random() < 0.1:
            self.fail_for_good(index, chance.choice(DOOMING), chance)
        else:
            self.fail(index, chance.choice(PASSING), chance)

    @precondition(paused)
    @rule(index=indexes)
    def give_up(self, index: int) -> None:
        self.abandon(*self.paused.pop(index % len(self.paused)))

    def abandon(self, job: Job, error: CtrlApiError) -> None:
        for call in job.calls:
            self.leave(call)
        self.plan.give_up(job, error)

    @precondition(still_open)
    @rule(chance=chances)
    def poll(self, chance: random.Random) -> None:
        self.live_on(chance)
        if whim(chance, True, [False]):
            self.plan.recheck()
        if whim(chance, True, [False]):
            self.plan.follow()

    @precondition(lambda self: self.moves >= self.peace // 3 and not self.closed)
    @rule()
    def stop_rechecking(self) -> None:
        self.watching = False
        self.plan.stop_rechecking()
        assert not self.plan.has_pending

    @precondition(lambda self: self.moves >= self.peace // 3 and not self.closed)
    @rule()
    def stop_following(self) -> None:
        self.following = False
        self.plan.stop_following()
        assert not self.plan.has_stopped
        assert not self.plan.confirming

    @precondition(lambda self: self.asked and len(self.forgotten) < 5 and not self.closed)
    @rule(number=st.integers(0, 60))
    def forget(self, number: int) -> None:
        unsure = [task_id for task_id in self.asked if self.accounts[task_id].unsure]
        task_id = (unsure or self.asked)[number % len(unsure or self.asked)]
        self.forgotten.add(task_id)
        self.accounts[task_id].unwanted |= task_id in self.ledger
        self.plan.forget(task_id)

    @precondition(still_open)
    @rule(number=st.integers(0, 2))
    def note(self, number: int) -> None:
        self.blamed = True
        self.plan.note(ValueError(f"the source's fault {number}"))

    # --- the server

    def live_on(self, chance: random.Random) -> None:
        for task in self.server.values():
            if chance.random() < 0.4:
                self.age(task, chance)

    @staticmethod
    def age(task: Task, chance: random.Random | None) -> None:
        if task.ending:
            task.status = whim(chance, CANCELED, ["Completed", STRANGE])
            task.ending = False
        elif task.status in ACTIVE:
            place = ACTIVE.index(task.status)
            task.status = whim(chance, [*ACTIVE, "Completed"][place + 1], ["Rejected"])

    def take_stop(self, task_id: int, chance: random.Random | None) -> bool:
        """Stop a task, and tell if that did something."""
        task = self.server[task_id]
        took = task.status == RUNNING and not (task.ending and whim(chance, False, [True]))
        if took:
            task.ending = task.stopped = True
            self.accounts[task_id].done = True
        return took

    def words(self, *task_ids: int) -> str:
        """Give words that nothing but these tasks may report."""
        words = f"fault {next(self.serial)}."
        for task_id in task_ids:
            self.accounts[task_id].words.add(words)
        return words

    # --- replies

    @precondition(flying)
    @rule(index=indexes, chance=chances)
    def answer(self, index: int, chance: random.Random) -> None:
        self.land(self.flying.pop(index % len(self.flying)), ROWS, chance)

    @precondition(flying)
    @rule(index=indexes, chance=chances)
    def answer_oddly(self, index: int, chance: random.Random) -> None:
        self.land(self.flying.pop(index % len(self.flying)), None, chance)

    @precondition(flying)
    @rule(index=indexes, chance=chances)
    def answer_alike(self, index: int, chance: random.Random) -> None:
        """Answer each call alike, as servers do that refuse a request as a whole."""
        kind = chance.choice([REFUSED, DENIED, GONE, UNREAD, UNREAD])
        self.land(self.flying.pop(index % len(self.flying)), kind, chance)

    @precondition(lambda self: late(self) and self.flying)
    @rule(index=indexes, chance=chances)
    def know_no_method(self, index: int, chance: random.Random) -> None:
        self.land(self.flying.pop(index % len(self.flying)), UNKNOWN, chance)

    def land(self, job: Job, kind: str | None, chance: random.Random | None) -> None:
        """Answer a job: each of its calls in one way, or in any (None)."""
        answers: list[Answer[list[Row]] | CtrlApiError] = []
        for call in job.calls:
            way = kind or whim(chance, ROWS, ODD, 0.0)
            answers.append(self.reply(job, call, way, chance))
        self.pause(self.plan.answered(job, answers))

    def pause(self, repeats: list[Repeat]) -> None:
        self.paused += repeats
        resting = [task_id for job, _ in self.paused for task_id in self.ids_of(job)]
        resting += [task_id for job in self.flying for task_id in self.ids_of(job)]
        assert len(resting) == len(set(resting))

    def reply(
        self, job: Job, call: Call, kind: str, chance: random.Random | None
    ) -> Answer[list[Row]] | CtrlApiError:
        """Give what a server says to one call, and see to what it means."""
        if kind in (GONE, FOREIGN) and self.spared(call.project_id):
            kind = DENIED
        if kind == ROWS:
            answer = self.rows(job, call, chance)
            self.hear(job, call, answer)
            return answer
        if kind in (BLANK, UNREAD):
            return self.garbled(job, call, kind, chance)
        words = self.words(*listed(call))
        if job.work is Work.STOP:
            self.undo(call)
        if kind == DENIED and listed(call):
            return TasksDeniedError(job.work.method, words, self.deny(job, call, chance))
        if kind in (GONE, FOREIGN):
            self.die(job, call, words)
        elif kind == UNKNOWN:
            self.doom(job, call, words)
        else:
            self.leave(call)
        return KINDS.get(kind, TasksDeniedError)(job.work.method, words)

    def garbled(
        self, job: Job, call: Call, kind: str, chance: random.Random | None
    ) -> Answer[list[Row]] | CtrlApiError:
        """Give an answer that cannot be read, whatever the server did."""
        answer = Answer(list[Row]())
        if kind == BLANK or whim(chance, True, [False]):
            answer = self.rows(job, call, chance)
        self.garble(job, call)
        # What was unreadable goes together from then on.
        words = self.words(*self.ids_of(job))
        for task_id in self.ids_of(job):
            self.accounts[task_id].words.add("neither `status` nor `error`")
        answer.result = [Row(0), *rows_of(answer, listed(call))]
        answer.marks = b""
        return answer if kind == BLANK else ReplyError(words)

    def rows(self, job: Job, call: Call, chance: random.Random | None) -> Answer[list[Row]]:
        """Give rows that hold the truth, somewhere."""
        task_ids = listed(call)
        if call.task_ids is ALL_ACTIVE:
            task_ids = [
                task_id
                for task_id, task in self.server.items()
                if project_of(task_id) == call.project_id and task.status in ACTIVE
            ]
        of = self.stop_rows if job.work is Work.STOP else self.state_rows
        rows = [row for task_id in task_ids for row in of(task_id, chance)]
        if chance and listed(call):
            strays = {chance.randrange(60) for _ in range(3)}.difference(task_ids)
            says = [STOP_SENT, RUNNING, RUNNING, CANCELED, "Scheduled"]
            rows += whim(chance, [], [[Row(n, chance.choice(says)) for n in strays]])
        if chance and whim(chance, False, [True]):
            chance.shuffle(rows)
        words = whim(chance, None, [self.words(*listed(call))])
        usual = {status: bytes([mark]) for mark, status in STATUSES_BY_MARK.items()}
        statuses = [usual[row.status] for row in rows if row.status in usual]
        in_order = rows == [Row(n, row.status) for n, row in zip(listed(call), rows, strict=False)]
        known_by_marks = in_order and len(statuses) == len(rows) == len(listed(call)) > 0
        if known_by_marks and words is None and whim(chance, len(rows) % 2, [0, 1]):
            return Answer([], marks=b"".join(statuses))
        return Answer(as_decoded(rows), words)

    def state_rows(self, task_id: int, chance: random.Random | None) -> list[Row]:
        status = self.server[task_id].status
        bad = Row(task_id, None, f"task {task_id} is hidden.")
        if status == ABSENT:
            return whim(chance, [], [[bad]])
        row = Row(task_id, status)
        stale = Row(task_id, RUNNING)
        return whim(
            chance, [row], [[], [bad], [row] * 2, [bad, row], [row, bad], [row, stale]], 0.8
        )

    def stop_rows(self, task_id: int, chance: random.Random | None) -> list[Row]:
        took = self.take_stop(task_id, chance)
        sent = Row(task_id, STOP_SENT)
        bad = Row(task_id, None, f"task {task_id} is hidden.")
        row = sent if took else bad
        torn = [[sent, bad], [bad, sent], [row, Row(task_id, "Perhaps")]]
        return whim(chance, [row], [[], [row] * 2, *torn, [Row(task_id, "Sunk")]], 0.8)

    # --- what replies mean

    def hear(self, job: Job, call: Call, answer: Answer[list[Row]]) -> None:
        told = rows_of(answer, listed(call))
        rows: dict[int, list[Row]] = {task_id: [] for task_id in listed(call)}
        if call.task_ids is ALL_ACTIVE:
            names = dict.fromkeys(row.task_id for row in told)
            rows = {task_id: [] for task_id in names if task_id not in self.ledger}
            self.admit(list(rows))
        for row in told:
            if row.task_id in rows:
                rows[row.task_id].append(row)
        for task_id, mine in rows.items():
            account = self.accounts[task_id]
            account.words |= {row.error for row in mine if row.error}
            account.denied = False
            if job.work is Work.STOP:
                account.flies = False
                self.hear_stop(account, mine, answer.where)
                continue
            heard = self.server[task_id].status if any(row.status for row in mine) else None
            account.words.add(OMITTED)
            account.words.add("no row for it")
            if job.work is Work.CHECK:
                self.hear_state(account, heard)
            elif job.work is Work.SETTLE:
                self.hear_fate(account, heard)
            else:
                self.hear_end(account, heard)

    def hear_state(self, account: Account, heard: str | None) -> None:
        account.status = heard
        account.clear = account.open = False
        if heard is None:
            account.due = NOT_FOUND
        elif heard != RUNNING:
            account.due = NOT_RUNNING
            account.open = self.watching and heard in ("Scheduled", "Explore")
        elif self.dry_run:
            account.due = StopResult.WOULD_STOP
        else:
            account.due = NOT_SENT
            account.status = self.seen
            account.clear = account.open = True

    def hear_stop(self, account: Account, rows: list[Row], where: str) -> None:
        said = {(row.status, row.error) for row in rows}
        if said == {(STOP_SENT, None)}:
            self.hear_sent(account, self.seen)
            account.open = self.following
        elif len(said) == 1 and rows[0].error is not None and not account.lost:
            account.due = UNAVAILABLE
            account.open = False
        else:
            account.lost = True
            account.words.add(f"in the reply to TaskStop at {where}")

    @staticmethod
    def hear_sent(account: Account, status: str | None) -> None:
        account.due = SENT
        account.status = status
        account.lost = account.open = False

    def hear_fate(self, account: Account, heard: str | None) -> None:
        if heard is None:
            account.over = True
        elif heard == RUNNING:
            account.clear = True
        elif heard == CANCELED:
            self.hear_sent(account, heard)
        else:
            self.hear_sent(account, heard)
            account.due = NOT_RUNNING

    def hear_end(self, account: Account, heard: str | None) -> None:
        if heard is None:
            account.over = True
        elif heard != RUNNING or not self.following:
            account.status = heard
            account.open = False

    def garble(self, job: Job, call: Call) -> None:
        """Leave open what became of a call."""
        for task_id in listed(call) if job.work is Work.STOP else ():
            account = self.accounts[task_id]
            account.flies, account.lost = False, True

    def undo(self, call: Call, again: bool = False) -> None:
        """Take a stop back that surely took no effect; `again`: nor counts as an attempt."""
        for task_id in listed(call):
            account = self.accounts[task_id]
            account.flies, account.clear = False, True
            account.stops -= again

    def leave(self, call: Call) -> None:
        """Expect no more news of what a call is about."""
        self.blamed |= call.task_ids is ALL_ACTIVE
        for task_id in listed(call):
            self.accounts[task_id].over = True

    def deny(self, job: Job, call: Call, chance: random.Random | None) -> list[int]:
        """Name tasks of a call, and perhaps others, as none of its project's."""
        task_ids = listed(call)
        named = whim(chance, task_ids[:1], [task_ids, task_ids[1:], [], [0, *task_ids[-1:]]], 0.4)
        some = [task_id for task_id in task_ids if task_id in named]
        surely = task_ids if len(task_ids) == 1 else some if some != task_ids else []
        for task_id in task_ids:
            account = self.accounts[task_id]
            account.stops -= job.work is Work.STOP
            account.denied |= task_id in some
            if task_id not in surely:
                continue
            account.over = True
            if job.work is not Work.CONFIRM and not account.lost:
                account.due = NOT_FOUND
        return named

    def spared(self, project_id: int) -> bool:
        """Whether a project's death would be the end of all, while it is too early for that."""
        return not late(self) and {*self.dead, project_id} >= self.known

    def die(self, job: Job, call: Call, words: str) -> None:
        """Hear that a project is not there, or not this user's."""
        self.blamed |= self.stars > 0
        self.dead.setdefault(call.project_id, set()).add(words)
        if self.dead.keys() >= self.known:
            self.doom(job, call, words)
        else:
            self.leave(call)

    def doom(self, job: Job, call: Call, words: str) -> None:
        """Hear what any other request would hear."""
        self.blamed = True
        self.doom_words.add(words)
        self.watching = self.following = False
        for task_id in listed(call) if job.work is Work.CHECK else ():
            self.accounts[task_id].over |= self.accounts[task_id].due is NOT_RUNNING

    @property
    def leftovers(self) -> list[StopOutcome]:
        return list(chain.from_iterable(self.ledger.leftovers()))

    @property
    def doomed(self) -> bool:
        return bool(self.doom_words)

    # --- requests that fail as a whole

    @precondition(flying)
    @rule(index=indexes, fault=st.sampled_from(PASSING), chance=chances)
    def fail(self, index: int, fault: Fault, chance: random.Random) -> None:
        job = self.flying.pop(index % len(self.flying))
        error = self.met(job, fault, chance)
        if isinstance(error, HttpError) and error.status == 413:
            for call in job.calls:
                self.shrink(job, call)
        self.pause(self.plan.failed(job, error))

    def shrink(self, job: Job, call: Call) -> None:
        """Hear that a request was too large."""
        if job.size == 1:
            self.leave(call)
        elif job.work is Work.STOP:
            self.undo(call, again=True)

    def met(self, job: Job, fault: Fault, chance: random.Random) -> CtrlApiError:
        """Give an error that a job meets, and let the server do what it says that it may have."""
        words = self.words(*self.ids_of(job))
        for call in job.calls if job.work is Work.STOP else ():
            if fault.undone:
                self.undo(call)
                continue
            self.garble(job, call)
            for task_id in listed(call):
                if whim(chance, True, [False], 0.5):
                    self.take_stop(task_id, chance)
        return fault.make(words)

    @precondition(flying)
    @rule(index=indexes)
    def refuse_user(self, index: int) -> None:
        job = self.flying.pop(index % len(self.flying))
        if len(job.calls) == 1 and self.spared(job.calls[0].project_id):
            self.land(job, ROWS, None)
            return
        words = self.words(*self.ids_of(job))
        for call in job.calls:
            if job.work is Work.STOP:
                self.undo(call, again=len(job.calls) > 1)
            if len(job.calls) == 1:
                self.die(job, call, words)
        self.pause(self.plan.failed(job, UserUnavailableError("request", words)))

    @precondition(lambda self: late(self) and self.flying)
    @rule(index=indexes, fault=st.sampled_from(DOOMING), chance=chances)
    def fail_for_good(self, index: int, fault: Fault, chance: random.Random) -> None:
        job = self.flying.pop(index % len(self.flying))
        error = self.met(job, fault, chance)
        for call in job.calls:
            self.doom(job, call, words_of(error))
        self.pause(self.plan.failed(job, error))

    # --- outcomes

    @rule()
    def take(self) -> None:
        untaken = self.ledger.untaken
        outcomes = list(self.ledger.take())
        assert bool(untaken) >= bool(outcomes)
        assert untaken - self.ledger.untaken >= len(outcomes)
        for outcome in outcomes:
            former = self.former.get(outcome.task_id)
            account = former.popleft() if former else self.accounts[outcome.task_id]
            assert account.outcome is None, f"{outcome} after {account.outcome}"
            self.assert_final(outcome, account)
            account.outcome = outcome
            self.told[outcome.result] += 1

    @rule()
    def count_results(self) -> None:
        """Take all outcomes, and count them and those to come."""
        while self.ledger.untaken:
            self.take()
        counts = self.told + Counter(each.result for each in self.leftovers)
        assert +Counter(self.ledger.counts) == counts
        assert self.ledger.unanswered == counts[NOT_SENT] + counts[UNCONFIRMED]

    @precondition(late)
    @rule()
    def close(self) -> None:
        self.cut_short = True
        self.finish()

    # --- what holds

    def assert_final(self, outcome: StopOutcome, account: Account) -> None:
        """Check that an outcome is what the news demand, and that the news were the last."""
        assert outcome.result in self.allowed(outcome.task_id, account), (outcome, account)
        assert outcome.status == parse_status(account.status), (outcome, account)
        assert outcome.project_id == project_of(outcome.task_id)
        assert not account.done or outcome.result in (SENT, UNCONFIRMED, NOT_RUNNING), outcome
        if outcome.result is SENT:
            assert self.server[outcome.task_id].stopped, outcome
        if outcome.result in (SENT, NOT_RUNNING, StopResult.WOULD_STOP):
            assert outcome.error is None, outcome
        else:
            assert outcome.error, outcome
            assert any(words in outcome.error for words in self.causes(outcome, account)), outcome

    def allowed(self, task_id: int, account: Account) -> set[StopResult]:
        gone = account.over or project_of(task_id) in self.dead
        ends = gone or account.denied or self.closed
        gone |= account.unwanted
        if account.unsure:
            may = {UNCONFIRMED: ends}
        elif account.due is NOT_SENT:
            may = {NOT_SENT: gone or self.closed, NOT_FOUND: account.denied}
        elif account.due is SENT:
            may = {SENT: ends or not (account.open and self.following)}
        elif account.open and account.due is NOT_RUNNING:
            may = {
                NOT_RUNNING: self.closed or not self.watching,
                NOT_SENT: gone,
                NOT_FOUND: account.denied,
            }
        else:
            may = {account.due: True}
        return {result for result, so in may.items() if so}

    def causes(self, outcome: StopOutcome, account: Account) -> Iterator[str]:
        yield from account.words
        yield from self.dead.get(outcome.project_id, ())
        if account.unwanted:
            yield UNWANTED
        if self.closed:
            yield from self.doom_words or {CLOSED}

    @invariant()
    def each_task_has_one_outcome(self) -> None:
        self.moves += 1
        undecided = {each.task_id: each for each in self.leftovers}
        under_way = self.plan.unconfirmed()
        report = self.ledger.report(StopStats(), under_way)
        for task_id in undecided:
            account, outcome = self.accounts[task_id], report[task_id]
            assert account.outcome is None, "announced before its time"
            unsure = account.unsure and not self.closed
            assert (task_id in under_way) is unsure
            assert outcome.project_id == project_of(task_id)
            if self.closed:
                self.assert_final(outcome, account)
            else:
                assert outcome.result is account.now, (outcome, account)
                assert account.open or account.unsure
                assert not account.over
        assert undecided.keys() >= under_way.keys()
        assert self.plan.unconfirmed_count() == len(under_way)
        if not self.collect:
            assert sum(self.ledger.counts.values()) == len(self.asked)
            assert report.keys() == undecided.keys()
            return
        assert list(report) == self.asked
        for task_id in report.keys() - undecided.keys():
            self.assert_final(report[task_id], self.accounts[task_id])
            assert self.accounts[task_id].outcome in (None, report[task_id])

    @invariant()
    def the_plan_knows_how_it_stands(self) -> None:
        assert (self.plan.doom is not None) is self.doomed
        if not self.closed:
            assert self.plan.flying is bool(self.flying)
            assert self.plan.stopping >= bool(
                [job for job in self.flying if job.work is not Work.CONFIRM]
            )
        reasons = [(type(error), str(error)) for error in self.plan.errors]
        assert len(reasons) == len(set(reasons))
        if self.end is not None:
            assert dict(self.ledger.report(StopStats())) == self.end

    # --- the end

    def drain(self) -> None:
        """Go on without faults until nothing is left to do, as a run does."""
        self.plan.source_open = False
        rounds = 2
        while True:
            self.take()
            self.each_task_has_one_outcome()
            if self.flying:
                self.land(self.flying.pop(0), ROWS, None)
            elif self.doomed:
                break
            elif self.paused:
                self.bring_back(0)
            elif self.send_next():
                continue
            elif not (self.plan.has_pending or self.plan.has_stopped):
                break
            elif rounds:
                rounds -= 1
                for task in self.server.values():
                    self.age(task, None)
                self.plan.recheck()
                self.plan.follow()
            else:
                self.stop_rechecking()
                self.stop_following()

    def finish(self) -> None:
        """Close, and check the account that is left."""
        self.closed = True
        self.plan.close(CLOSED)
        self.flying.clear()
        self.paused.clear()
        self.end = dict(self.ledger.report(StopStats()))
        assert not self.plan.flying
        assert self.plan.unconfirmed() == {}
        self.each_task_has_one_outcome()
        self.count_results()
        leftovers = {each.task_id for each in self.leftovers}
        for task_id, account in self.accounts.items():
            assert (account.outcome is None) is (task_id in leftovers)
        assert not any(self.former.values())
        assert sum(self.ledger.counts.values()) == len(self.asked)
        if self.ledger.unanswered:
            assert self.plan.errors or self.cut_short
        else:
            assert self.blamed or not self.plan.errors

    def teardown(self) -> None:
        self.patch.undo()
        if sys.exc_info()[0] is not None:
            return  # the machine stopped in the middle of something
        if not self.closed:
            self.drain()
            if not self.doomed:
                assert not self.plan.stopping
                assert not self.plan.confirming
                assert not self.plan.listing
                assert self.plan.backlog == self.plan.pickable() == 0
                assert not self.leftovers
            self.finish()
        event(f"{'doomed' if self.doomed else 'cut short' if self.cut_short else 'to the end'}")
        for result, number in self.ledger.counts.items():
            if number:
                event(result)


def test_in_any_order_of_events_each_task_has_the_outcome_that_its_news_demand() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            deadline=None,
            max_examples=2 * settings().max_examples,
            suppress_health_check=list(HealthCheck),
        ),
    )
