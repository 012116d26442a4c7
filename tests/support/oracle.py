"""What a bulk stop may report: a model of the server, and one oracle that all suites share.

The oracle reads what was asked for and what went over the wire, in order, and knows nothing of how
the package works. From that it says which requests may be sent, which outcomes a task may have,
and what holds for every report. What it is told is neutral: ids, and facts like rows.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from attrs import define, field

from ctrlapi_async import StopResult, TaskStatus
from ctrlapi_async._models import UNANSWERED, parse_status

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from ctrlapi_async import StopOutcome

STATUS: Final = "TaskStatus"
STOP: Final = "TaskStop"
RUNNING: Final = "Running"
SENT_TEXT: Final = "Stop request was sent"
UNAVAILABLE_TEXT: Final = "Stopping task is unavailable"
PENDING: Final = ("Scheduled", "Explore")

Calls: TypeAlias = "Sequence[tuple[int, Sequence[int] | None]]"
"""Project and task ids of each call of a request; None: all active tasks."""


class Fact(NamedTuple):
    """One row of a reply."""

    task_id: int
    status: str | None = None
    error: str | None = None
    initial_id: int | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Fact:
        """Return a JSON row's fact."""
        texts = [row.get("error"), *(row.get("errors") or ())]
        error = "; ".join(text for text in texts if text) or None
        return cls(row["task_id"], row.get("status"), error, row.get("initial_task_id"))


@define
class Answer:
    """What one call was answered."""

    facts: list[Fact] | None = None
    """Its rows; None if there were none to be read."""
    odd: Collection[int] = ()
    """Tasks whose rows may have been unreadable."""
    undone: bool = False
    """Whether it says for sure that the call changed nothing."""
    denied: Collection[int] = ()
    """The tasks that do not exist, if the call was refused for them."""
    final: bool = False
    """Whether a task may be given up for it at once."""


class Fate(Enum):
    """What is known of the latest stop of a task."""

    NONE = "none was sent, or it surely changed nothing"
    IN_FLIGHT = "its reply has not come"
    LOST = "nobody knows"
    ACCEPTED = "the server accepted it"
    REFUSED = "the server refused it"


@define(eq=False)
class Known:
    """What the client was told of one task."""

    task_id: int
    initial_id: int
    seen: str | None = None
    """The status that any row told last."""
    status: str | None = None
    """The status told last that counts: without following restarts, where it was asked."""
    statuses: set[str | None] = field(factory=lambda: {None})
    stop: Fate = Fate.NONE
    """The fate of its latest stop."""
    heard_since: bool = True
    """Whether its status was told since that."""
    absent: bool = False
    """Whether it was said not to exist."""
    failures: int = 0
    final: bool = False
    """Whether one of the requests about it that failed may have been the last."""
    lost: bool = False
    """Whether the fate of one of its stops was unknown once."""
    left_out: bool = False
    """Whether a reply about its chain had no status of it, though one was told before."""

    @property
    def liveness(self) -> tuple[int, int]:
        """Orders the tasks of a chain: the current one is the largest."""
        status = parse_status(self.seen)
        if status is None:  # its row could not be read, or said nothing of it
            return -1, self.task_id
        pending = isinstance(status, TaskStatus) and status.pending
        return 2 * (status is TaskStatus.RUNNING) + pending, self.task_id


@define(eq=False, kw_only=True)
class Oracle:
    """Follows one run from outside; arguments as for `ControlSession.stopping`."""

    check: bool = True
    """Whether tasks are checked before they are stopped (not so for `task_stop`)."""
    dry_run: bool = False
    follow_restarts: bool = True
    wait_pending: bool = False
    wait_stopped: bool = False
    attempts: int = 1
    """How many requests about a task have to fail before it may be given up."""
    asked: dict[int, int] = field(factory=dict, init=False)
    """The project of each task that was asked for, in order."""
    tasks: dict[int, Known] = field(factory=dict, init=False)
    discarded: set[int] = field(factory=set, init=False)
    """Tasks that nobody waits for any more."""
    dead: set[int] = field(factory=set, init=False)
    """Projects about which the server said that they do not exist."""
    ended: bool = field(default=False, init=False)
    """Whether the run was cut short, or met what ends all."""

    # --- what goes to and fro -----------------------------------------------------------------

    def ask(self, project_id: int, task_ids: Iterable[int]) -> None:
        """Note tasks that are asked for."""
        for task_id in task_ids:
            self.asked.setdefault(task_id, project_id)
            self._known(task_id)

    def sent(self, method: str, calls: Calls) -> None:
        """Note a request that leaves, and check that it may."""
        assert calls
        for project_id, task_ids in calls:
            assert task_ids is None or task_ids, "a call without ids"
            for task_id in task_ids or ():
                known = self._known(task_id)
                assert any(
                    self.asked.get(one.task_id) == project_id for one in self.chain(task_id)
                ), f"{method} of {task_id}, which belongs to nothing that was asked for"
                if method == STOP:
                    self._check_stop(known)
                    known.stop = Fate.IN_FLIGHT
                    known.heard_since = False

    def _check_stop(self, known: Known) -> None:
        assert not self.dry_run
        assert known.stop is not Fate.IN_FLIGHT, f"two stops of {known} at a time"
        assert known.stop is not Fate.ACCEPTED, f"a second stop of {known}"
        if self.check or known.stop is not Fate.NONE:
            assert known.heard_since, f"a stop of {known} without a look at it"
            assert (known.status is None and not self.check) or known.status == RUNNING, (
                f"a stop of {known}"
            )

    def heard(self, method: str, calls: Calls, answers: Sequence[Answer] | Answer) -> None:
        """Note the answers to a request's calls, or what the request as a whole met."""
        if isinstance(answers, Answer):
            answers = [answers] * len(calls)
        for (project_id, task_ids), answer in zip(calls, answers, strict=True):
            if method == STOP:
                self._hear_stop(task_ids or (), answer)
            else:
                self._hear_status(project_id, task_ids, answer)

    def _hear_stop(self, task_ids: Sequence[int], answer: Answer) -> None:
        for task_id in task_ids:
            known = self._known(task_id)
            rows = {(one.status, one.error) for one in answer.facts or () if one[0] == task_id}
            if answer.facts is None:
                self._fail(known, answer)
            if answer.undone:
                known.stop, known.heard_since = Fate.NONE, True
            elif rows == {(SENT_TEXT, None)}:
                known.stop = Fate.ACCEPTED
            elif rows == {(None, UNAVAILABLE_TEXT)} and not known.lost:
                known.stop = Fate.REFUSED
            else:
                known.stop, known.lost = Fate.LOST, True
                known.failures += 1

    def _hear_status(self, project_id: int, task_ids: Sequence[int] | None, answer: Answer) -> None:
        if answer.facts is None:
            for task_id in task_ids or ():
                for one in self.chain(task_id):
                    self._fail(one, answer)
            return
        told: dict[int, list[Fact]] = {}
        for fact in answer.facts:
            told.setdefault(fact.task_id, []).append(fact)
        with_status = {fact.task_id for fact in answer.facts if fact.status}
        # A row that says nothing is no answer.
        odd = {n for n, facts in told.items() if not any(one.status or one.error for one in facts)}
        odd.update(answer.odd)
        initials = {n: _initial(facts) for n, facts in told.items()}
        wanted = set(task_ids or ())
        wanted_chains = wanted.union(initials.get(n, n) for n in wanted)
        for task_id, facts in told.items():
            if task_ids is None or initials[task_id] in wanted_chains:
                known = self._known(task_id, initials[task_id])
                counts = self.follow_restarts or task_id not in self.asked or task_id in wanted
                self._hear_fact(known, facts, counts=counts)
        for task_id in wanted:
            known, chain = self._known(task_id), self.chain(task_id)
            known.final |= task_id in odd
            known.absent |= task_id not in with_status | odd
            for one in chain:
                one.left_out |= one.seen is not None and one.task_id not in with_status
        if task_ids is None:
            self._admit(project_id, list(told), with_status)

    def _admit(self, project_id: int, told: list[int], with_status: Collection[int]) -> None:
        """Enter the tasks that a listing names, of each chain its current one."""
        current = {max(self.chain(n), key=lambda one: one.liveness).task_id for n in with_status}
        chained = {one.task_id for n in with_status for one in self.chain(n)} - current
        self.ask(project_id, [n for n in told if n not in chained])
        for task_id in told:
            self._known(task_id).absent |= task_id not in with_status

    @staticmethod
    def _fail(known: Known, answer: Answer) -> None:
        known.absent |= known.task_id in answer.denied
        known.failures += not answer.denied
        known.final |= answer.final

    @staticmethod
    def _hear_fact(known: Known, facts: list[Fact], *, counts: bool) -> None:
        statuses = [fact.status for fact in facts if fact.status]
        if not statuses:
            return
        known.seen = next((one for one in statuses if one != RUNNING), RUNNING)
        if not counts:
            return
        known.status = known.seen
        known.statuses.add(parse_status(known.status))
        known.heard_since = True
        if known.stop is Fate.LOST and known.status == "Canceled":
            known.stop = Fate.ACCEPTED

    # --- what is known ------------------------------------------------------------------------

    def _known(self, task_id: int, initial_id: int | None = None) -> Known:
        known = self.tasks.get(task_id)
        if known is None:
            known = self.tasks[task_id] = Known(task_id, task_id)
        if initial_id is not None:
            known.initial_id = initial_id
        return known

    def chain(self, task_id: int) -> list[Known]:
        """Return what is known of the tasks of a task's chain, as far as they were told."""
        initial_id = self._known(task_id).initial_id
        return [one for one in self.tasks.values() if one.initial_id == initial_id]

    # --- what holds ---------------------------------------------------------------------------

    def check_report(
        self,
        outcomes: Mapping[int, Any],
        counts: Mapping[StopResult, int],
        settled: Mapping[StopResult, int] | None = None,
    ) -> None:
        """Check what holds of a report at any moment.

        Args:
            outcomes: Its outcomes, or what has a `result` like one, in order.
            counts: The counts that go with it.
            settled: Results of tasks that are not in it any more.
        """
        recount = Counter(outcome.result for outcome in outcomes.values())
        assert +Counter(counts) == recount + Counter(settled or {})
        assert all(number >= 0 for number in counts.values())
        if settled is None:
            assert list(outcomes) == list(self.asked)

    def check_outcome(
        self, outcome: StopOutcome, *, pending_time: bool = False, stopped_time: bool = False
    ) -> None:
        """Check that a final outcome is one that the news allow.

        Args:
            outcome: The outcome.
            pending_time: Whether pending tasks had more time.
            stopped_time: Whether stopped tasks had more time.
        """
        assert outcome.project_id == self.asked[outcome.task_id]
        own, chain = self._known(outcome.task_id), self.chain(outcome.task_id)
        named = self._known(outcome.restarted_as or outcome.task_id)
        about = named if self.follow_restarts else own
        shown = (outcome, about, own)
        assert named in chain, shown
        assert outcome.restarted_as != outcome.task_id, shown
        excused = (
            self.ended
            or outcome.project_id in self.dead
            or any(
                one.final or one.failures >= self.attempts or one.task_id in self.discarded
                for one in chain
            )
        )
        assert outcome.result in self._allowed(own, about, excused=excused), shown
        if self.wait_stopped and outcome.result is StopResult.STOP_SENT:
            assert outcome.status != RUNNING or about.absent, shown
        last = parse_status(about.status)
        assert outcome.status in ({last} if len(chain) == 1 else about.statuses), shown
        left_out = any(one.left_out for one in chain)
        if not (excused or left_out or outcome.result is StopResult.NOT_FOUND):
            current = max(chain, key=lambda one: one.liveness)
            told = self.follow_restarts or outcome.result is StopResult.NOT_RUNNING
            assert named is current or not (told or outcome.restarted_as), (shown, current)
        self._check_error(outcome, lost=any(one.lost for one in chain))
        if not excused:
            pending = outcome.result is StopResult.NOT_RUNNING and outcome.status in PENDING
            assert not (pending and self.wait_pending and pending_time), shown
            assert not (outcome.result is StopResult.STILL_RUNNING and stopped_time), shown

    def _allowed(self, own: Known, about: Known, *, excused: bool) -> set[StopResult]:
        stop, status, chain = about.stop, about.status, self.chain(about.task_id)
        fates = {one.stop for one in chain} if self.wait_stopped else {stop}
        unsent = stop in (Fate.NONE, Fate.REFUSED)
        # Cut short, a run may not have got to a pending task that another one's check saw running.
        left = excused and self.wait_pending and not set(PENDING).isdisjoint(about.statuses)
        may = {
            StopResult.STOP_SENT: Fate.ACCEPTED in fates,
            StopResult.STILL_RUNNING: self.wait_stopped and Fate.ACCEPTED in fates,
            StopResult.NOT_RUNNING: (left or status not in (None, RUNNING))
            and stop in (Fate.NONE, Fate.LOST),
            StopResult.NOT_FOUND: unsent and (own.absent or about.absent),
            StopResult.UNAVAILABLE: any(one.stop is Fate.REFUSED for one in chain),
            StopResult.WOULD_STOP: self.dry_run and status == RUNNING,
            StopResult.NOT_SENT: unsent and excused and not about.lost,
            StopResult.UNCONFIRMED: (excused or own.absent or about.absent)
            and (about.lost or stop is Fate.IN_FLIGHT),
        }
        return {result for result, so in may.items() if so}

    def _check_error(self, outcome: StopOutcome, *, lost: bool) -> None:
        told = outcome.result in (StopResult.NOT_FOUND, StopResult.UNAVAILABLE, *UNANSWERED)
        if told:
            assert outcome.error, outcome
            assert len(outcome.error) <= 1100, outcome
        else:
            assert outcome.error is None or (lost and "lost" in outcome.error), outcome

    def check_end(
        self, counts: Mapping[StopResult, int], errors: Sequence[Exception], *, other: bool = False
    ) -> None:
        """Check that a run raises if, and only if, its report is incomplete.

        Args:
            counts: The report's counts.
            errors: The errors that it raises in one group.
            other: Whether something else went wrong: with the source of ids, or with a listing.
        """
        assert sum(counts.values()) >= len(self.asked)
        incomplete = any(counts[result] for result in UNANSWERED)
        assert bool(errors) is incomplete or (errors and other), (counts, errors)
        assert len({(type(one), str(one)) for one in errors}) == len(errors)

    def check_truth(
        self, tasks: Mapping[int, Any], outcomes: Mapping[int, StopOutcome], *, sound: bool
    ) -> None:
        """Check that the report is true of what the server did.

        Args:
            tasks: The server's tasks.
            outcomes: The report.
            sound: Whether nothing went wrong on the way.
        """
        for task_id, task in tasks.items():
            if task.stop_requests:
                assert not self.asked.keys().isdisjoint(task.chain), f"{task_id} was stopped"
                assert task.stop_requests == 1 or not sound, f"{task_id} was stopped twice"
        for task_id, outcome in outcomes.items():
            about = tasks.get(outcome.restarted_as or task_id)
            stops = [tasks[n].stop_requests for n in (about.chain if about else ())]
            if outcome.result is StopResult.STOP_SENT:
                assert any(stops), outcome
            elif outcome.result in (StopResult.NOT_SENT, StopResult.WOULD_STOP):
                # Given up early, it may have been stopped for another task of its chain later.
                alone = about is None or self.asked.keys() & set(about.chain) <= {task_id}
                sent = about is not None and about.stop_requests
                assert not (sent and alone) or task_id in self.discarded, outcome


def _initial(facts: list[Fact]) -> int:
    return next((one.initial_id for one in facts if one.initial_id is not None), facts[0].task_id)


# --- the model of the server ----------------------------------------------------------------------


@define(eq=False)
class ModelTask:
    task_id: int
    project_id: int
    status: str
    chain: list[int]
    """All tasks of its chain, oldest first; the tasks of a chain share the list."""
    stop_requests: int = 0
    """How often a stop was accepted."""


class ModelServer:
    """Tasks, projects and chains, without a wire."""

    def __init__(self) -> None:
        self.tasks: dict[int, ModelTask] = {}

    def add(self, project_id: int, task_id: int, status: str = RUNNING) -> ModelTask:
        """Add a task, unless it is there."""
        task = ModelTask(task_id, project_id, status, [task_id])
        return self.tasks.setdefault(task_id, task)

    def restart(self, task_id: int, status: str = RUNNING) -> ModelTask:
        """Let a chain's newest task stall, and start another one in its place."""
        old = self.tasks[self.tasks[task_id].chain[-1]]
        old.status = "Stalled"
        new_id = old.chain[0] + 1000 * len(old.chain)
        task = self.tasks[new_id] = ModelTask(new_id, old.project_id, status, old.chain)
        old.chain.append(new_id)
        return task

    def missing(self, project_id: int, task_ids: Iterable[int]) -> list[int]:
        """Return the tasks that the project does not have."""
        return [
            n for n in task_ids if n not in self.tasks or self.tasks[n].project_id != project_id
        ]

    def status(self, project_id: int, task_ids: Sequence[int] | None) -> Iterator[Fact]:
        """Return the rows for tasks and the rest of their chains; None: for all active ones."""
        if task_ids is None:
            active = (*PENDING, RUNNING)
            task_ids = [n for n, task in self.tasks.items() if task.status in active]
        named = dict.fromkeys(m for n in task_ids if n in self.tasks for m in self.tasks[n].chain)
        for task_id in named:
            task = self.tasks[task_id]
            if task.project_id == project_id:
                initial = task.chain[0] if len(task.chain) > 1 or task_id % 2 else None
                yield Fact(task_id, task.status, None, initial)

    def stop(self, task_ids: Iterable[int]) -> Iterator[Fact]:
        """Stop tasks, and return the rows."""
        for task_id in task_ids:
            task = self.tasks.get(task_id)
            if task is not None and task.status == RUNNING:
                task.stop_requests += 1
                yield Fact(task_id, SENT_TEXT)
            else:
                yield Fact(task_id, None, UNAVAILABLE_TEXT)
