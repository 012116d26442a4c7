"""Drives a plan over the model of the server, on a clock of its own: no loop, no socket."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from ctrlapi_async import RetryPolicy, StopOutcome, TasksDeniedError
from ctrlapi_async._bulk.jobs import listed_ids
from ctrlapi_async._bulk.options import RunOptions
from ctrlapi_async._bulk.plan import StopPlan
from ctrlapi_async._errors import CtrlApiError
from ctrlapi_async._models import ALL_ACTIVE
from ctrlapi_async._protocol.rows import Row, Rows
from tests.support.oracle import STOP, ModelServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from ctrlapi_async import StopResult
    from ctrlapi_async._bulk.jobs import Job, JobKind
    from ctrlapi_async._protocol.requests import TaskCall

Reply = list[Rows | CtrlApiError] | CtrlApiError


class Request(NamedTuple):
    """A request that was sent.

    Args:
        at: When, in seconds.
        kind: What for.
        ids: All its task ids.
    """

    at: float
    kind: JobKind
    ids: list[int]

    @property
    def method(self) -> str:
        return self.kind.method

    @property
    def size(self) -> int:
        return len(self.ids)


def rows_of(facts: Iterable[Any]) -> Rows:
    """Return decoded rows for the model's facts."""
    return Rows([Row(n, status, initial, error) for n, status, error, initial in facts])


class Drive:
    """One run against the model.

    Args:
        task_ids: The tasks of project 2 that are asked for; Running unless the server knows them.
        chunk: Task ids a request at most.
        policy: When requests are repeated.
        server: The model.
        fault: Returns what a request meets in place of an answer; None: an answer. It may use
            the server to let a stop take effect.
        denial: How the server names tasks that it does not have: "bad", "all", "none", or by
            leaving out their rows ("no row").
        slots: Requests in flight at most.
        options: For `RunOptions`.
    """

    def __init__(
        self,
        task_ids: Iterable[int] = (),
        *,
        chunk: int = 100,
        policy: RetryPolicy | None = None,
        server: ModelServer | None = None,
        fault: Callable[[Request], CtrlApiError | None] = lambda _: None,
        denial: str = "bad",
        slots: int = 1,
        streaming: bool = False,
        jitter: float = 0.5,
        max_ids: int | None = None,
        **options: Any,
    ) -> None:
        self.server = ModelServer() if server is None else server
        self.fault, self.denial, self.slots, self.max_ids = fault, denial, slots, max_ids
        self.now = 0.0
        self.requests: list[Request] = []
        self.in_flight: list[tuple[Job, Request]] = []
        self.outcomes: dict[int, StopOutcome] = {}
        self.proven: set[str] = set()
        self.on_time: Callable[[], None] = lambda: None
        self.plan = StopPlan(
            RunOptions(**options),
            policy or RetryPolicy(),
            began=0.0,
            random=lambda: jitter,
            streaming=streaming,
        )
        self.plan.set_chunk(chunk)
        ids = list(task_ids)
        if server is None:
            for task_id in ids:
                self.server.add(2, task_id)
        if ids:
            self.plan.add_tasks(2, ids, self.now)
        if not streaming:
            self.plan.close_input(self.now)

    def send(self) -> bool:
        """Send the request that goes next; return whether there was one."""
        job = self.plan.next_job(self.max_ids, self.now)
        if job is None:
            return False
        ids = [task_id for call in job.wire_calls for task_id in listed_ids(call)]
        request = Request(self.now, job.kind, ids)
        self.requests.append(request)
        self.in_flight.append((job, request))
        return True

    def answer(self, index: int = 0) -> None:
        """Answer a request in flight."""
        job, request = self.in_flight.pop(index)
        error = self.fault(request)
        reply: Reply = error or [self._answer(job, call) for call in job.wire_calls]
        if isinstance(reply, list) and any(isinstance(one, Rows) for one in reply):
            self.proven.add(job.kind.method)
        self.plan.receive(job, reply, self.now, self.proven)
        self._take()

    def _answer(self, job: Job, call: TaskCall) -> Rows | CtrlApiError:
        method, ids = job.kind.method, listed_ids(call)
        missing = self.server.missing(call.project_id, ids)
        if missing and self.denial != "no row":
            named = {"bad": missing, "all": ids, "none": []}[self.denial]
            return TasksDeniedError(method, f"access denied to tasks {named}", named)
        if method == STOP:
            return rows_of(self.server.stop(ids))
        listing = call.task_ids is ALL_ACTIVE
        return rows_of(self.server.status(call.project_id, None if listing else ids))

    def sleep(self) -> bool:
        """Let the time pass until the plan wants to be woken; return whether it does."""
        at = self.plan.next_wakeup(self.now)
        if at == math.inf:
            return False
        self.now = max(self.now, at)
        self.on_time()
        self.plan.wake(self.now)
        self._take()
        return True

    def _take(self) -> None:
        while self.plan.store.untaken:
            for outcome in self.plan.store.take():
                assert outcome.task_id not in self.outcomes
                self.outcomes[outcome.task_id] = outcome

    def step(self) -> bool:
        """Do what goes next; return False if nothing does."""
        if len(self.in_flight) < self.slots and self.send():
            return True
        if self.in_flight:
            self.answer()
            return True
        return self.sleep()

    def run(self, most: int = 20_000) -> Drive:
        """Go on to the end."""
        for _ in range(most):
            if self.plan.done or not self.step():
                break
        assert self.plan.done
        self._take()
        return self

    def sent(self, method: str) -> list[Request]:
        """Return the requests of one method."""
        return [request for request in self.requests if request.method == method]

    @property
    def sizes(self) -> list[tuple[JobKind, int]]:
        """Kind and number of ids of each request."""
        return [(request.kind, request.size) for request in self.requests]

    def results(self, task_ids: Sequence[int] | None = None) -> set[StopResult]:
        """Return the results of some tasks, or of all."""
        return {self.outcomes[n].result for n in (self.outcomes if task_ids is None else task_ids)}
