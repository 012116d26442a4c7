"""The bulk stop as a plan: which request goes next, and what each answer changes. Pure.

Two rules govern it. A task is stopped only if Running is the last that was heard of it. And a
stop whose reply was lost is neither repeated nor reported before TaskStatus was asked about it.

| work | asks | about | and then |
| --- | --- | --- | --- |
| CHECK | TaskStatus | tasks not asked about yet, or pending | Running ones are pooled |
| STOP | TaskStop | Running tasks, a chunk at a time | outcome; lost replies: SETTLE |
| SETTLE | TaskStatus | tasks whose stop has an unknown fate | outcome, or STOP again |
| CONFIRM | TaskStatus | tasks that were stopped | outcome, or CONFIRM later |
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from itertools import chain, compress
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, cast

from attrs import define, evolve, field

from ctrlapi_async import wire
from ctrlapi_async.errors import (
    CertificateError,
    CtrlApiError,
    HtmlReplyError,
    HttpError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    TasksDeniedError,
    UndefinedMethodError,
    UserUnavailableError,
    words_of,
)
from ctrlapi_async.models import ALL_ACTIVE, AllActive, StopResult, TaskStatus, parse_status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ctrlapi_async.ledger import Ledger

MAX_CALLS: Final = 1000
"""Method calls a request at most: some 100 kB of JSON around their ids."""


MAX_ERRORS: Final = 100
"""Different errors of one kind that are kept for the end where no report is."""


class Work(Enum):
    """What a job is for; `method` is the API's method that does it."""

    CHECK = "check", wire.TASK_STATUS
    STOP = "stop", wire.TASK_STOP
    SETTLE = "settle", wire.TASK_STATUS
    CONFIRM = "confirm", wire.TASK_STATUS

    def __init__(self, _: str, method: str) -> None:
        self.method = method

    __hash__ = object.__hash__  # Enum's own takes a good part of a microsecond


class Call(NamedTuple):
    """One method call of a request: tasks of one project."""

    project_id: int
    task_ids: list[int] | AllActive

    @property
    def size(self) -> int:
        """How many task ids it carries; `"*"` is one."""
        return 1 if isinstance(self.task_ids, AllActive) else len(self.task_ids)


@define(eq=False)
class Job:
    """What one request does.

    Args:
        work: What it is for.
        calls: Its method calls, one a project.
        attempt: The number of its latest attempt.
        stops: How often a stop was sent for its tasks, if one was lost.
        fresh: Whether nothing was heard of its tasks yet but what put them here.
        lost: Why the fate of an earlier stop of its tasks is not known, if one was sent.
    """

    work: Work
    calls: list[Call]
    attempt: int = 1
    stops: int = 0
    fresh: bool = True
    lost: CtrlApiError | None = None

    @property
    def size(self) -> int:
        """How many task ids it carries; `"*"` is one."""
        return sum(call.size for call in self.calls)


class Repeat(NamedTuple):
    """A job to be done again after a pause, and why."""

    job: Job
    error: CtrlApiError


class Pool:
    """Tasks that wait for a request, project by project, first come, first served."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, list[int]]] = deque()
        self._start = 0
        self.size = 0

    def add(self, project_id: int, task_ids: list[int]) -> None:
        """Put tasks at the end."""
        if task_ids:
            self._waiting.append((project_id, task_ids))
            self.size += len(task_ids)

    def take(self, limit: int) -> list[Call]:
        """Take tasks from the front: `limit` of them, or fewer of very many projects."""
        taken: dict[int, list[int]] = {}
        room = limit
        while room and self._waiting and len(taken) < MAX_CALLS:
            project_id, task_ids = self._waiting[0]
            piece = task_ids[self._start : self._start + room]
            room -= len(piece)
            self._start += len(piece)
            if self._start == len(task_ids):
                self._waiting.popleft()
                self._start = 0
            if project_id in taken:
                taken[project_id] += piece
            else:
                taken[project_id] = piece
        self.size -= limit - room
        return [Call(*call) for call in taken.items()]

    def take_all(self, limit: int) -> list[list[Call]]:
        """Take everything, in portions of `limit` tasks."""
        portions = []
        while self.size:
            portions.append(self.take(limit))
        return portions


@define(eq=False)
class _Codes:
    """The ledger's numbers for what becomes of most tasks of a project.

    Args:
        unasked: Not asked about yet.
        running: Running when checked, and not stopped yet.
        sent: Stopped.
        found: By the status that a check finds.
        marked: By the status' mark.
        table: The same for `bytes.translate`; None if a byte does not hold the numbers.
    """

    unasked: int
    running: int
    sent: int
    found: dict[str | None, int] = field(factory=dict)
    marked: dict[int, int] = field(factory=dict)
    table: bytes | None = None


class StopPlan:
    """Decides what to ask next, and books what is answered into a ledger.

    Whoever drives it feeds it tasks, takes jobs with `pick`, reports each with `launch` and then
    `answered` or `failed`, brings back the jobs that these two give it after a pause, or drops
    them with `give_up`, and ends it with `close`.

    Args:
        ledger: Where verdicts are booked.
        first: CHECK, or STOP for tasks that are to be stopped unchecked.
        dry_run: Whether to find Running tasks and leave them alone.
        watch: Whether pending tasks are to be checked again (`recheck`).
        confirm: Whether stopped tasks are to be followed (`follow`).
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        first: Work = Work.CHECK,
        dry_run: bool = False,
        watch: bool = False,
        confirm: bool = False,
    ) -> None:
        self.errors: list[Exception] = []
        self._noted: dict[type[Exception], set[str]] = {}
        self.doom: CtrlApiError | None = None
        self.source_open = True
        self._ledger = ledger
        self.chunk = 1
        """Task ids a request at most; whoever drives the plan sets it before the first `pick`."""
        self._first = first
        self._dry_run = dry_run
        self._watch = watch
        self._confirm = confirm
        self._fed = Pool()
        self._running = Pool()
        self._pending = Pool()
        self._stopped = Pool()
        self._ready: deque[Job] = deque()
        # Those that ask again what was asked before: all others go before them.
        self._later: deque[Job] = deque()
        self._flying: set[Job] = set()
        # Those that pause before they are done again.
        self._resting: set[Job] = set()
        self._checking = 0
        # Jobs over tasks for which a stop of unknown fate was sent, wherever they are.
        self._lost: set[Job] = set()
        self._unwanted: set[int] = set()
        self._projects: set[int] = set()
        # Methods whose denials name the bad ids only.
        self._exact: set[str] = set()
        self._dead_projects: dict[int, MethodError] = {}
        self._codes: dict[int, _Codes] = {}

    # --- tasks in -----------------------------------------------------------------------------

    def feed(self, project_id: int, task_ids: list[int]) -> None:
        """Ask for tasks; those asked for before are passed over."""
        self._projects.add(project_id)
        self._fed.add(project_id, self._ledger.admit(task_ids, self._codes_of(project_id).unasked))

    def feed_all_active(self, project_id: int) -> None:
        """Ask for whatever the server calls active in a project."""
        self._projects.add(project_id)
        self._ready.append(Job(Work.CHECK, [Call(project_id, ALL_ACTIVE)]))

    # --- jobs out -----------------------------------------------------------------------------

    def pick(self, ceiling: int | None = None) -> Job | None:
        """Take the job that goes next, or None.

        Full stops go before all else, the last, partial stop when nothing is left to check.

        Args:
            ceiling: Task ids a request that the server is known to take.
        """
        limit = min(self.chunk, ceiling or self.chunk)
        while (job := self._next(limit)) is not None and not self._still_wanted(job):
            pass
        return job

    def _next(self, limit: int) -> Job | None:
        if self.doom:
            return None
        if self._running.size >= limit:
            return Job(Work.STOP, self._running.take(limit))
        if self._ready:
            return self._first_of(self._ready, limit)
        if self._fed.size >= limit or (self._fed.size and not self.source_open):
            return Job(self._first, self._fed.take(limit))
        if self._tail:
            return Job(Work.STOP, self._running.take(limit))
        return self._first_of(self._later, limit) if self._later else None

    def _first_of(self, queue: deque[Job], limit: int) -> Job:
        while (job := queue.popleft()).size > limit:
            self._lost.discard(job)
            queue.extendleft(map(self._keep_lost, _halves(job)))
        return job

    def forget(self, task_id: int) -> None:
        """Leave a task alone from now on, unless its stop was sent already."""
        self._unwanted.add(task_id)

    def _still_wanted(self, job: Job) -> bool:
        """Take out of a job what need not be asked any more; tell if something is left."""
        if not (self._dead_projects or self._unwanted):
            return True
        if self._dead_projects:
            calls, job.calls = job.calls, []
            for call in calls:
                if error := self._dead_projects.get(call.project_id):
                    self._give_up_call(job, call, error)
                else:
                    job.calls.append(call)
        if self._unwanted and job.work in (Work.CHECK, Work.STOP) and job.lost is None:
            dropped = RequestError("nobody waits for it any more", sent=False)
            calls, job.calls = job.calls, []
            for call in calls:
                unwanted, wanted = _divided(call, self._unwanted)
                if unwanted:
                    self._fail(Call(call.project_id, unwanted), dropped)
                if wanted or call.task_ids is ALL_ACTIVE:
                    job.calls.append(Call(call.project_id, wanted or ALL_ACTIVE))
        if not job.calls:
            self._lost.discard(job)
        return bool(job.calls)

    def pickable(self, ceiling: int | None = None) -> int:
        """Count the jobs that `pick` could give now."""
        if self.doom:
            return 0
        limit = min(self.chunk, ceiling or self.chunk)
        fed, rest = divmod(self._fed.size, limit)
        return (
            self._running.size // limit
            + len(self._ready)
            + len(self._later)
            + fed
            + (rest > 0 and not self.source_open)
            + self._tail
        )

    @property
    def _tail(self) -> bool:
        """Whether the Running tasks that make no full chunk are all that is left."""
        return bool(
            self._running.size and not (self._checking or self._fed.size or self.source_open)
        )

    def flush(self) -> None:
        """Make jobs of what is too little for a full chunk, while more may yet be fed."""
        portions = self._fed.take_all(self.chunk)
        self._ready.extend(Job(self._first, calls) for calls in portions)
        if not (portions or self._checking):
            self._ready.extend(Job(Work.STOP, c) for c in self._running.take_all(self.chunk))

    @property
    def partial(self) -> bool:
        """Whether there is something that `flush` could send."""
        return bool(self._fed.size or (self._running.size and not self._checking))

    def recheck(self) -> None:
        """Check the pending tasks again."""
        self._later.extend(
            Job(Work.CHECK, calls, fresh=False) for calls in self._pending.take_all(self.chunk)
        )

    def follow(self) -> None:
        """Ask what became of the tasks that were stopped."""
        self._later.extend(
            Job(Work.CONFIRM, calls, fresh=False) for calls in self._stopped.take_all(self.chunk)
        )

    def stop_rechecking(self) -> None:
        """Leave the pending tasks as they are: not running."""
        self._watch = False
        self._codes.clear()
        self._finish_all(self._pending)

    def stop_following(self) -> None:
        """Leave the stopped tasks with the status they were last seen with."""
        self._confirm = False
        self._codes.clear()
        self._finish_all(self._stopped)

    def _finish_all(self, pool: Pool) -> None:
        for calls in pool.take_all(self.chunk):
            for call in calls:
                self._finish(_listed(call))

    @property
    def has_pending(self) -> bool:
        """Whether pending tasks wait for `recheck`."""
        return self._pending.size > 0

    @property
    def has_stopped(self) -> bool:
        """Whether stopped tasks wait for `follow`."""
        return self._stopped.size > 0

    @property
    def stopping(self) -> bool:
        """Whether a stop may yet be sent, or its answer come."""
        return bool(
            self.source_open
            or self._fed.size
            or self._running.size
            or self._pending.size
            or any(job.work is not Work.CONFIRM for job in self._jobs)
        )

    @property
    def confirming(self) -> bool:
        """Whether stopped tasks are followed, or wait for it."""
        return self._confirm and (
            self._stopped.size > 0 or any(job.work is Work.CONFIRM for job in self._jobs)
        )

    @property
    def flying(self) -> bool:
        """Whether an answer may come."""
        return bool(self._flying)

    @property
    def listing(self) -> bool:
        """Whether more tasks may come to be known: from the source, or in an answer to `"*"`."""
        return self.source_open or any(
            call.task_ids is ALL_ACTIVE for job in self._jobs for call in job.calls
        )

    @property
    def _jobs(self) -> Iterator[Job]:
        return chain(self._ready, self._later, self._flying, self._resting)

    @property
    def backlog(self) -> int:
        """How many tasks wait for a request, a repeated one included, but not to be polled."""
        waiting = chain(self._ready, self._resting)
        # Polls never end while tasks stay as they are: no other task is to wait for that.
        others = sum(job.size for job in waiting if job.fresh)
        return self._fed.size + self._running.size + others

    def recall(self, job: Job) -> bool:
        """Tell whether a job that paused is still to be done; what died meanwhile is booked."""
        self._resting.discard(job)
        return self.doom is None and self._still_wanted(job)

    # --- answers ------------------------------------------------------------------------------

    def launch(self, job: Job) -> None:
        """Note that a job's request is about to be sent."""
        self._flying.add(job)
        self._checking += job.work is Work.CHECK

    def answered(
        self, job: Job, answers: Sequence[wire.Answer[list[wire.Row]] | CtrlApiError]
    ) -> list[Repeat]:
        """Book what the server answered to each call of a job; give what is to be repeated."""
        self._land(job)
        repeats: list[Repeat] = []
        unread: list[Call] = []
        why: CtrlApiError | None = None
        unsettled: list[Call] = []
        where = ""
        for call, answer in zip(job.calls, answers, strict=True):
            try:
                if isinstance(answer, CtrlApiError):
                    raise answer
                if left := self._BOOK[job.work](self, job, call, answer):
                    unsettled.append(Call(call.project_id, left))
                    where = where or answer.where
            except MethodError as error:
                repeats += self._refuse(evolve(job, calls=[call]), error)
            except CtrlApiError as error:
                unread.append(call)
                why = why or error
        if unsettled:
            repeats += self._go_on(evolve(job, calls=unsettled), where)
        if why is not None:  # in one request again, as they were
            repeats += self._refuse(evolve(job, calls=unread), why)
        return repeats

    def failed(self, job: Job, error: CtrlApiError) -> list[Repeat]:
        """Book that a job's request as a whole met an error; give what is to be repeated."""
        self._land(job)
        return self._refuse(job, error)

    def give_up(self, job: Job, error: CtrlApiError) -> None:
        """Book that a job is not repeated any more."""
        self._resting.discard(job)
        self._lost.discard(job)
        for call in job.calls:
            self._give_up_call(job, call, error)

    def close(self, words: str) -> None:
        """Give every task its last verdict.

        Args:
            words: Why no more is asked, unless a server's answer doomed the run.
        """
        words = words_of(self.doom) if self.doom else words
        for job in self._doubtful():
            if job.lost is not None:
                self.note(job.lost)
            for call in job.calls:
                # Without a report, too, it shall be known which they are.
                self._unconfirm(
                    _listed(call), words_of(job.lost) if job.lost else words, final=False
                )
        if self.doom is not None and (self.listing or self._ledger.unanswered):
            self.note(self.doom)
        self._lost.clear()
        self._flying.clear()
        self._resting.clear()
        dead = {project_id: words_of(error) for project_id, error in self._dead_projects.items()}
        self._ledger.reword(
            lambda verdict: (
                evolve(verdict, error=dead.get(verdict.project_id, words))
                if verdict.result is StopResult.NOT_SENT
                else verdict
            )
        )

    def unconfirmed(self) -> dict[int, int]:
        """Give the verdict, for now, of each task whose stop is under way."""
        verdicts: dict[int, int] = {}
        for job in self._doubtful():
            for call in job.calls:
                code = self._code(call.project_id, StopResult.UNCONFIRMED, self._seen)
                verdicts |= dict.fromkeys(_listed(call), code)
        return verdicts

    def unconfirmed_count(self) -> int:
        """Count the tasks whose stop is under way."""
        return sum(job.size for job in self._doubtful())

    def note(self, error: Exception) -> None:
        """Keep an error for the end, once if the same comes again and again."""
        noted = self._noted.setdefault(type(error), set())
        if str(error) not in noted and (self._ledger.collect or len(noted) < MAX_ERRORS):
            noted.add(str(error))
            self.errors.append(error)

    # --- inside -------------------------------------------------------------------------------

    def _doubtful(self) -> set[Job]:
        return self._lost | {job for job in self._flying if job.work is Work.STOP}

    def _land(self, job: Job) -> None:
        self._lost.discard(job)
        self._checking -= job.work is Work.CHECK
        self._flying.remove(job)

    def _keep_lost(self, job: Job) -> Job:
        """Keep count of a job that carries stops of unknown fate."""
        if job.lost is not None:
            self._lost.add(job)
        return job

    def _queue(self, job: Job) -> None:
        self._ready.append(self._keep_lost(job))

    def _repeat(self, job: Job, error: CtrlApiError) -> list[Repeat]:
        self._resting.add(job)
        return [Repeat(self._keep_lost(job), error)]

    @property
    def _seen(self) -> TaskStatus | None:
        """The status of a task whose stop is sent."""
        return TaskStatus.RUNNING if self._first is Work.CHECK else None

    def _code(
        self,
        project_id: int,
        result: StopResult,
        status: TaskStatus | str | None = None,
        error: str | None = None,
        *,
        final: bool = True,
    ) -> int:
        return self._ledger.code(project_id, result, status, error, final=final)

    def _codes_of(self, project_id: int) -> _Codes:
        codes = self._codes.get(project_id)
        if codes is None:
            seen = self._seen
            codes = self._codes[project_id] = _Codes(
                self._code(project_id, StopResult.NOT_SENT, final=False),
                self._code(project_id, StopResult.NOT_SENT, seen, final=False),
                self._code(project_id, StopResult.STOP_SENT, seen, final=not self._confirm),
            )
        return codes

    def _status_code(self, project_id: int, text: str) -> int:
        """Give the verdict of a task that a check found with this status."""
        status = parse_status(text)
        if status is not TaskStatus.RUNNING:
            pending = self._watch and isinstance(status, TaskStatus) and status.pending
            return self._code(project_id, StopResult.NOT_RUNNING, status, final=not pending)
        if self._dry_run:
            return self._code(project_id, StopResult.WOULD_STOP, status)
        return self._codes_of(project_id).running

    def _book_check(self, job: Job, call: Call, answer: wire.Answer[list[wire.Row]]) -> list[int]:
        project_id, task_ids = call
        known = self._codes_of(project_id)
        if isinstance(task_ids, AllActive):
            # One that is asked for by its id, in whatever project, has its outcome there.
            task_ids = [n for n in by_task(answer, None) if n not in self._ledger]
            task_ids = self._ledger.admit(task_ids, known.unasked)
        codes = _packed(self._codes_in_order(project_id, task_ids, answer))
        self._ledger.move(task_ids, codes, known.unasked if job.fresh else None)
        if not self._dry_run:
            self._running.add(project_id, _select(task_ids, codes, known.running))
        if self._watch:
            for status in (TaskStatus.SCHEDULED, TaskStatus.EXPLORE):
                code = self._status_code(project_id, status)
                self._pending.add(project_id, _select(task_ids, codes, code))
        return []

    def _codes_in_order(
        self, project_id: int, asked: list[int], answer: wire.Answer[list[wire.Row]]
    ) -> Sequence[int]:
        """Give the verdict of each task that was asked for."""
        if answer.marks:
            return self._codes_of_marks(project_id, answer.marks)
        rows = answer.result
        if rows and isinstance(rows[0], wire.CheckedRow) and [row.task_id for row in rows] == asked:
            known = self._codes_of(project_id).found
            try:
                return [known[row.status] for row in rows]
            except KeyError:  # the first one with this status
                texts = {row.status for row in rows if row.status is not None}
                known.update({text: self._status_code(project_id, text) for text in texts})
                return [known[row.status] for row in rows]
        told = by_task(answer, asked)
        texts = {row.status for row in told.values() if row.status is not None}
        found = {text: self._status_code(project_id, text) for text in texts}
        return [
            self._missing_code(project_id, row, answer.words)
            if (row := told.get(task_id)) is None or row.status is None
            else found[row.status]
            for task_id in asked
        ]

    def _codes_of_marks(self, project_id: int, marks: bytes) -> Sequence[int]:
        """Give the verdicts that the marks of statuses stand for."""
        known = self._codes_of(project_id)
        if new := marks.translate(None, bytes(known.marked)):
            for mark in set(new):
                known.marked[mark] = self._status_code(project_id, wire.STATUSES[mark])
            codes = _packed(list(known.marked.values()))
            known.table = (
                bytes.maketrans(bytes(known.marked), codes) if isinstance(codes, bytes) else None
            )
        if known.table is not None:
            return marks.translate(known.table)
        return [known.marked[mark] for mark in marks]

    def _missing_code(self, project_id: int, row: wire.Row | None, words: str | None) -> int:
        """Give the verdict of a task for which a check brought no status."""
        error = row.error if row is not None else words or "the reply holds no row for it"
        return self._code(project_id, StopResult.NOT_FOUND, None, error)

    def _book_stop(self, job: Job, call: Call, answer: wire.Answer[list[wire.Row]]) -> list[int]:
        """Book what became of stops; give those of which that is not known."""
        project_id, asked = call.project_id, _listed(call)
        was = self._codes_of(project_id).running if job.lost is None else None
        if answer.marks:  # there is one usual status only
            self._sent(project_id, asked, was)
            return []
        sent: list[int] = []
        unavailable: dict[str, list[int]] = {}
        unclear: list[int] = []
        found = _by_stopped_task(answer, asked)
        for task_id in asked:
            row = found.get(task_id)
            if row is not None and row.error is None and row.status == wire.STOP_SENT:
                sent.append(task_id)
            elif row is not None and row.error is not None and job.lost is None:
                unavailable.setdefault(row.error, []).append(task_id)
            else:
                # Without a word of it; or unavailable, perhaps because the stop before this
                # one, whose reply was lost, did its work.
                unclear.append(task_id)
        self._sent(project_id, sent, was)
        for words, task_ids in unavailable.items():
            code = self._code(project_id, StopResult.UNAVAILABLE, self._seen, words)
            self._ledger.move_all(task_ids, code, was)
        return unclear

    def _sent(self, project_id: int, task_ids: list[int], was: int | None) -> None:
        if task_ids:
            self._ledger.move_all(task_ids, self._codes_of(project_id).sent, was)
            if self._confirm:
                self._stopped.add(project_id, task_ids)

    def _go_on(self, job: Job, where: str) -> list[Repeat]:
        """Go on with tasks whose stop was lost, or was not lost but has had no effect."""
        if job.work is Work.SETTLE:  # they are still running
            stop = evolve(job, work=Work.STOP, attempt=job.stops)
            return self._repeat(stop, cast("CtrlApiError", job.lost))
        self._settle(
            job, job.lost or ReplyError("no word of some tasks in the reply to TaskStop", where)
        )
        return []

    def _settle(self, job: Job, error: CtrlApiError) -> None:
        """Ask what became of the tasks of a stop whose reply was lost."""
        self._queue(evolve(job, work=Work.SETTLE, attempt=1, stops=job.attempt, lost=error))

    def _book_settle(self, job: Job, call: Call, answer: wire.Answer[list[wire.Row]]) -> list[int]:
        """Book what became of lost stops; give those that did not stop anything."""
        project_id, asked = call.project_id, _listed(call)
        told = by_task(answer, asked)
        found: dict[TaskStatus | str, list[int]] = {}
        again: list[int] = []
        for task_id in asked:
            row = told.get(task_id)
            status = parse_status(row.status) if row is not None else None
            if status is None:
                words = (row.error if row is not None else answer.words) or "no row for it"
                self._leave_lost(job, [task_id], f"when checked: {words}")
            elif status is TaskStatus.RUNNING:
                again.append(task_id)
            else:
                found.setdefault(status, []).append(task_id)
        for status, task_ids in found.items():
            stopped = status is TaskStatus.CANCELED
            result = StopResult.STOP_SENT if stopped else StopResult.NOT_RUNNING
            self._ledger.move_all(task_ids, self._code(project_id, result, status))
        return again

    def _leave_lost(self, job: Job, task_ids: list[int], words: str) -> None:
        """Book tasks whose stop was lost and of which nothing more can be learnt."""
        lost = cast("CtrlApiError", job.lost)
        self.note(lost)
        self._unconfirm(task_ids, f"{words_of(lost)}; {words}")

    def _book_confirm(self, job: Job, call: Call, answer: wire.Answer[list[wire.Row]]) -> list[int]:
        del job
        project_id, asked = call.project_id, _listed(call)
        told = by_task(answer, asked)
        found: dict[TaskStatus | str, list[int]] = {}
        unknown: list[int] = []
        running: list[int] = []
        for task_id in asked:
            row = told.get(task_id)
            status = parse_status(row.status) if row is not None else None
            if status is TaskStatus.RUNNING and self._confirm:
                running.append(task_id)
            elif status is None:
                unknown.append(task_id)
            else:
                found.setdefault(status, []).append(task_id)
        self._finish(unknown)
        for status, task_ids in found.items():
            code = self._code(project_id, StopResult.STOP_SENT, status)
            self._ledger.move_all(task_ids, code)
        self._stopped.add(project_id, running)
        return []

    def _refuse(self, job: Job, error: CtrlApiError) -> list[Repeat]:
        """Decide what becomes of a job that met an error as a whole."""
        too_large = isinstance(error, HttpError) and error.status == 413
        if too_large and job.size > 1:
            for half in _halves(job):
                self._queue(half)
        elif isinstance(error, UserUnavailableError) and len(job.calls) > 1:
            # It may be one project that is not this user's.
            middle = len(job.calls) // 2
            for calls in (job.calls[middle:], job.calls[:middle]):
                # At the front, so that a single project is soon reached.
                self._ready.appendleft(self._keep_lost(evolve(job, calls=calls)))
        elif isinstance(error, UndefinedMethodError) or dooms(error):
            self._end(job, error)
        elif isinstance(error, MethodError):
            for call in job.calls:
                self._refuse_call(evolve(job, calls=[call]), error)
        elif too_large:
            self.give_up(job, error)
        elif job.work is Work.STOP and not undone(error):
            self._settle(job, error)
        else:
            return self._repeat(job, error)
        return []

    def _refuse_call(self, job: Job, error: MethodError) -> None:
        """Decide what becomes of one call that the server refused."""
        [call] = job.calls
        if isinstance(error, ProjectNotFoundError | UserUnavailableError):
            self._end_project(job, error)
        elif isinstance(error, TasksDeniedError) and not isinstance(call.task_ids, AllActive):
            denied, rest = _divided(call, set(error.task_ids))
            if job.size == 1 or (job.work.method in self._exact and not rest):
                self._deny(job, call.task_ids, error)
            elif denied and rest:
                # A server that names a part of what it was asked names the bad ones.
                self._exact.add(job.work.method)
                self._deny(job, denied, error)
                self._queue(evolve(job, calls=[Call(call.project_id, rest)]))
            else:
                for half in _halves(job):
                    self._queue(half)
        else:
            self.give_up(job, error)

    def _deny(self, job: Job, task_ids: list[int], error: TasksDeniedError) -> None:
        """Book tasks that the server says are not there."""
        if job.work is Work.CONFIRM:
            self._finish(task_ids)
        elif job.lost is not None:
            self._leave_lost(job, task_ids, f"then: {error.message}")
        else:
            self._amend(task_ids, StopResult.NOT_FOUND, error.message)

    def _end_project(self, job: Job, error: MethodError) -> None:
        """End what concerns one project, and so all if there is no other."""
        [call] = job.calls
        self._dead_projects[call.project_id] = error
        if self._dead_projects.keys() >= self._projects:
            self._end(job, error)
        else:
            self.give_up(job, error)

    def _end(self, job: Job, error: CtrlApiError) -> None:
        """End everything: no request leaves any more, but replies under way are still booked."""
        if job.work is not Work.CONFIRM or self.listing:
            self.note(error)  # else it may be that every task has its answer
        self.doom = self.doom or error
        if job.work is Work.CHECK and not job.fresh:
            self.give_up(job, error)  # whether its tasks would have started nobody knows
        if job.lost is not None or (job.work is Work.STOP and not undone(error)):
            self._lost.add(evolve(job, lost=job.lost or error))
        self.stop_rechecking()
        self.stop_following()

    def _give_up_call(self, job: Job, call: Call, error: CtrlApiError) -> None:
        if job.work is Work.CONFIRM:
            self._finish(_listed(call))  # the stop itself was answered
        elif job.lost is not None:
            self.note(error)
            self._unconfirm(_listed(call), words_of(job.lost))
        else:
            self._fail(call, error)

    def _fail(self, call: Call, error: CtrlApiError) -> None:
        """Book tasks for which no stop was sent, and why."""
        self.note(error)
        self._amend(_listed(call), StopResult.NOT_SENT, words_of(error))

    def _unconfirm(self, task_ids: list[int], words: str, *, final: bool = True) -> None:
        self._amend(task_ids, StopResult.UNCONFIRMED, words, final=final)

    def _amend(
        self, task_ids: list[int], result: StopResult, words: str, *, final: bool = True
    ) -> None:
        """Give tasks a last verdict, with the status that they were last seen with."""
        self._ledger.amend(
            task_ids, lambda verdict: evolve(verdict, result=result, error=words), final=final
        )

    def _finish(self, task_ids: list[int]) -> None:
        """Make the verdict of tasks the last one, as it is."""
        self._ledger.amend(task_ids, lambda verdict: verdict)

    _BOOK: ClassVar = {
        Work.CHECK: _book_check,
        Work.STOP: _book_stop,
        Work.SETTLE: _book_settle,
        Work.CONFIRM: _book_confirm,
    }


def dooms(error: CtrlApiError) -> bool:
    """Tell an error that any further request would meet again."""
    if isinstance(error, HttpError):
        return 300 <= error.status < 500 and error.status not in (408, 413, 425, 429)
    return isinstance(error, HtmlReplyError | CertificateError)


def passes(error: CtrlApiError) -> bool:
    """Tell an error that a repeat may not meet."""
    return not (
        dooms(error)
        or isinstance(error, MethodError)
        or (isinstance(error, HttpError) and error.status == 413)
    )


def undone(error: CtrlApiError) -> bool:
    """Tell an error after which a TaskStop that met it surely stopped nothing."""
    if isinstance(error, HttpError):
        return error.status == 503 or (400 <= error.status < 500 and error.status != 408)
    return isinstance(error, MethodError) or (isinstance(error, RequestError) and not error.sent)


def _listed(call: Call) -> list[int]:
    return [] if isinstance(call.task_ids, AllActive) else call.task_ids


def _divided(call: Call, chosen: set[int]) -> tuple[list[int], list[int]]:
    """Divide the tasks of a call into those that are chosen and the others."""
    listed = _listed(call)
    return [n for n in listed if n in chosen], [n for n in listed if n not in chosen]


def _halves(job: Job) -> tuple[Job, Job]:
    """Cut a job of two or more ids in two."""
    room = job.size // 2
    front: list[Call] = []
    back: list[Call] = []
    for call in job.calls:
        size = call.size
        if size <= room:
            front.append(call)
        elif room == 0:
            back.append(call)
        else:
            listed = _listed(call)
            front.append(Call(call.project_id, listed[:room]))
            back.append(Call(call.project_id, listed[room:]))
        room -= min(size, room)
    return evolve(job, calls=front), evolve(job, calls=back)


def _packed(codes: Sequence[int]) -> Sequence[int]:
    """Give numbers in a byte each, in which they are quickly looked through, if they are small."""
    try:
        return bytes(codes)
    except ValueError:
        return codes


def _select(task_ids: list[int], codes: Sequence[int], wanted: int) -> list[int]:
    """Give the tasks whose number is the one that is wanted."""
    if isinstance(codes, bytes) and wanted < 256:
        wanted_only = bytes(wanted) + b"\1" + bytes(255 - wanted)
        return list(compress(task_ids, codes.translate(wanted_only)))
    return [n for n, code in zip(task_ids, codes, strict=True) if code == wanted]


def by_task(
    answer: wire.Answer[list[wire.Row]], asked: Sequence[int] | None
) -> dict[int, wire.Row]:
    """Give what TaskStatus said of each task; of several rows one that is not Running wins."""
    found: dict[int, wire.Row] = {}
    for row in _told(answer, asked):
        known = found.setdefault(row.task_id, row)
        if known.status is None or (known.status == TaskStatus.RUNNING and row.status is not None):
            found[row.task_id] = row
    return found


def _by_stopped_task(
    answer: wire.Answer[list[wire.Row]], asked: Sequence[int]
) -> dict[int, wire.Row]:
    """Give what TaskStop said of each task, and nothing where two rows contradict each other."""
    found: dict[int, wire.Row] = {}
    torn: set[int] = set()
    for row in _told(answer, asked):
        known = found.setdefault(row.task_id, row)
        if (known.status, known.error) != (row.status, row.error):
            torn.add(row.task_id)
    return {task_id: row for task_id, row in found.items() if task_id not in torn}


def _told(answer: wire.Answer[list[wire.Row]], asked: Sequence[int] | None) -> Iterable[wire.Row]:
    """Go through the rows of tasks that were asked for; None: of all tasks."""
    wanted = None if asked is None else set(asked)
    for place, row in enumerate(wire.rows_of(answer, asked)):
        if row.status is None and row.error is None:
            raise ReplyError("neither `status` nor `error`", f"{answer.where}[{place}]")
        if wanted is None or row.task_id in wanted:
            yield row
