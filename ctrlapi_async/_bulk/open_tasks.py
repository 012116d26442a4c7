"""The tasks of a run without a final outcome, derived from where they wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ctrlapi_async._bulk.jobs import JobKind, JobState, listed_ids
from ctrlapi_async._bulk.outcomes import OpenTasks
from ctrlapi_async._errors import text_of
from ctrlapi_async._models import ALL_ACTIVE, UNANSWERED, StopResult
from ctrlapi_async._protocol.rows import joined

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ctrlapi_async._bulk.outcomes import Outcomes
    from ctrlapi_async._bulk.schedule import Schedule
    from ctrlapi_async._errors import CtrlApiError

_RESULT_OF_JOB: Final = {
    JobKind.STOP: StopResult.NOT_SENT,
    JobKind.VERIFY: StopResult.UNCONFIRMED,
    JobKind.EXPLAIN: StopResult.UNAVAILABLE,
    JobKind.POLL_PENDING: StopResult.NOT_RUNNING,
    JobKind.POLL_STOPPED: StopResult.STOP_SENT,
}
"""The result of a job's tasks, were the run to end now."""


def unchecked_tasks(schedule: Schedule, outcomes: Outcomes) -> Iterator[OpenTasks]:
    """Yield all tasks of which nothing is known yet."""
    waiting: list[tuple[int, list[int], str | None]] = [
        (project_id, task_ids, None)
        for queue in (schedule.unchecked, schedule.doubtful)
        for project_id, task_ids in queue
    ]
    waiting += [
        (call.project_id, listed_ids(call), joined(dict.fromkeys(map(text_of, job.causes))))
        for job in schedule.jobs
        if job.kind is JobKind.CHECK
        for call in job.calls
    ]
    for project_id, task_ids, error in waiting:
        unchecked = outcomes.still_to_check(project_id, task_ids)
        yield OpenTasks(project_id, unchecked, StopResult.NOT_SENT, error)


def causes(schedule: Schedule, outcomes: Outcomes) -> list[CtrlApiError]:
    """Return what requests have met whose tasks have no answer."""
    return [
        error
        for job in schedule.jobs
        if job.kind is not JobKind.CHECK
        or any(
            call.task_ids is ALL_ACTIVE
            or outcomes.still_to_check(call.project_id, listed_ids(call))
            for call in job.calls
        )
        for error in job.causes
    ]


def open_tasks(schedule: Schedule) -> Iterator[OpenTasks]:
    """Yield all tasks that were checked and have no final outcome."""
    for queue, result in (
        (schedule.running, StopResult.NOT_SENT),
        (schedule.refused, StopResult.UNAVAILABLE),
        (schedule.pending, StopResult.NOT_RUNNING),
        (schedule.due_pending, StopResult.NOT_RUNNING),
        (schedule.stopped, StopResult.STOP_SENT),
        (schedule.due_stopped, StopResult.STOP_SENT),
    ):
        for project_id, task_ids in queue:
            yield OpenTasks(project_id, task_ids, result)
    for job in schedule.jobs:
        if job.kind is JobKind.CHECK:
            continue
        result = _RESULT_OF_JOB[job.kind]
        error = joined(dict.fromkeys(map(text_of, job.causes)))
        if job.lost is not None:
            result = StopResult.UNCONFIRMED
        elif job.kind is JobKind.STOP and job.state is JobState.IN_FLIGHT:
            result, error = StopResult.UNCONFIRMED, None
        for call in job.calls:
            yield OpenTasks(call.project_id, listed_ids(call), result, error)


def settle_open(schedule: Schedule, outcomes: Outcomes, why_ended: Callable[[int], str]) -> None:
    """Settle every task that has no final outcome.

    Args:
        schedule: Where they wait.
        outcomes: Where they are settled.
        why_ended: Returns why nothing more is asked about a project's tasks.
    """
    for project_id, task_ids, result, error in list(unchecked_tasks(schedule, outcomes)):
        why = joined(dict.fromkeys((error, why_ended(project_id))))
        outcomes.settle_asked(project_id, task_ids, result, why)
    for project_id, task_ids, result, error in list(open_tasks(schedule)):
        # Nobody knows that a stopped task has ended.
        final = StopResult.STILL_RUNNING if result is StopResult.STOP_SENT else result
        why = joined(dict.fromkeys((error, why_ended(project_id))))
        outcomes.settle_known(project_id, task_ids, final, why if final in UNANSWERED else None)
