"""What came of a job, handed to those that deal with it: answers, refusals and faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrlapi_async._bulk.jobs import JobKind
from ctrlapi_async._errors import CtrlApiError, MethodError, ReplyError
from ctrlapi_async._protocol.requests import TaskCall

if TYPE_CHECKING:
    from collections.abc import Collection

    from ctrlapi_async._bulk.denials import Denials
    from ctrlapi_async._bulk.jobs import Job
    from ctrlapi_async._bulk.reconcile import Reconciler
    from ctrlapi_async._bulk.recovery import Recovery
    from ctrlapi_async._protocol.replies import Rows


class Answers:
    """Divides a reply among those that deal with its parts.

    Args:
        reconciler: Takes the answers.
        recovery: Takes the errors.
        denials: Is told of success.
    """

    def __init__(self, reconciler: Reconciler, recovery: Recovery, denials: Denials) -> None:
        self._reconciler = reconciler
        self._recovery = recovery
        self._denials = denials

    def receive(
        self,
        job: Job,
        reply: list[Rows | CtrlApiError] | CtrlApiError,
        now: float,
        proven: Collection[str],
    ) -> None:
        """Hand in what came of a job; arguments as for `StopPlan.receive`."""
        if isinstance(reply, CtrlApiError):
            self._recovery.receive(job, reply, now, proven)
            return
        unread: list[TaskCall] = []
        unresolved: list[TaskCall] = []
        why: CtrlApiError | None = None
        where = "$"
        for call, answer in zip(job.calls, reply, strict=True):
            if isinstance(answer, MethodError):
                self._recovery.receive(
                    job if len(job.calls) == 1 else job.part([call]), answer, now, proven
                )
            elif isinstance(answer, CtrlApiError):
                unread.append(call)
                why = why or answer
            else:
                self._recovery.succeeded(job)
                self._denials.succeeded(job)
                if left := self._reconciler.receive(job, call, answer, now):
                    unresolved.append(TaskCall(call.project_id, left))
                    where = answer.where
        if why is not None:  # in one request again, as they were
            self._recovery.receive(job.part(unread), why, now, proven)
        if unresolved and job.kind is JobKind.VERIFY:
            self._recovery.stop_again(job.part(unresolved), now)
        elif unresolved:
            error = ReplyError("no clear answer about some tasks in the reply to TaskStop", where)
            self._recovery.verify(job.part(unresolved), job.lost or error, now)
