"""The types of the public API, as a caller meets them; type-checked, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, SupportsIndex, assert_type

import numpy as np

from ctrlapi_async import (
    ALL_ACTIVE,
    AnyTaskIds,
    ApiKey,
    Batching,
    ControlSession,
    CtrlApiError,
    DeadlineError,
    HttpError,
    Progress,
    ReplyError,
    RequestError,
    RetryPolicy,
    StatusReport,
    StopIncompleteError,
    StopOutcome,
    StopReport,
    StopResult,
    StopRun,
    StopStats,
    TaskIds,
    TasksDeniedError,
    TaskState,
    TaskStatus,
)

if TYPE_CHECKING:
    import aiohttp


class Row:
    """Has an `__index__`, as the ints of other libraries do."""

    def __index__(self) -> int:
        return 64


async def ids() -> AsyncIterator[int]:
    yield 64


async def numpy_ids() -> AsyncIterator[np.int64]:
    yield np.int64(64)


async def calls(client: aiohttp.ClientSession) -> None:
    session = ControlSession(
        "http://172.16.1.41",
        user_id=1,
        auth=("ops", "secret"),
        headers={"X-Trace": "1"},
        ssl=True,
        client=client,
        batching=Batching(chunk_size=None, max_concurrency=8, start_concurrency=2, linger=0.01),
        retry=RetryPolicy(attempts=6, wait_initial=0.25, wait_max=30.0, timeout=None),
        request_timeout=30.0,
        connect_timeout=5.0,
        max_reply_bytes=10**6,
    )
    assert_type(ControlSession("https://host", np.int64(1), auth=ApiKey("a2V5")), ControlSession)
    async with session as entered:
        assert_type(entered, ControlSession)
        assert_type(await session.call("TaskStatus", {"project_id": 2, "task_ids": 64}), Any)
        assert_type(await session.task_status(2, 64), StatusReport)
        assert_type(await session.task_status(2, ids(), restart_chain="last"), StatusReport)
        assert_type(await session.task_stop(2, [64, 65]), StopReport)
        assert_type(await session.stop_running(2, {64, 65}), StopReport)
        assert_type(await session.stop_running(2, ALL_ACTIVE, dry_run=True), StopReport)
        assert_type(
            await session.stop_running(
                2, ids(), follow_restarts=False, wait_pending=60, wait_stopped=30.0, timeout=None
            ),
            StopReport,
        )
        assert_type(await session.stop_running_across({2: [64], 3: ALL_ACTIVE, 4: 70}), StopReport)
        assert_type(await session.stop(2, 64), StopOutcome)
        async with session.stopping(2, ids(), collect=False) as run:
            assert_type(run, StopRun)
            async for outcome in run:
                assert_type(outcome, StopOutcome)
            assert_type(run.counts, Mapping[StopResult, int])
            assert_type(run.progress, Progress)
            assert_type(run.progress.total, int | None)
            assert_type(run.progress.done, int)
            assert_type(run.report, StopReport)
            assert_type(await run.wait(), None)
        async with session.stopping_across({2: range(9)}, wait_stopped=9) as across:
            assert_type(across, StopRun)

        await session.stop_running("2", 64)  # type: ignore[arg-type]
        await session.stop_running(2, "64")  # type: ignore[arg-type]
        await session.stop_running(2, [64.0])  # type: ignore[list-item]
        await session.task_stop(2, ids())  # type: ignore[arg-type]
        await session.stop(2, [64])  # type: ignore[arg-type]
        await session.stop_running(2, 64, True)  # type: ignore[call-arg]
        session.stopping_across({2: ids()})  # type: ignore[dict-item]
    assert_type(await session.aclose(), None)


async def ids_of_other_kinds(session: ControlSession, array: np.ndarray[Any, Any]) -> None:
    """Accept anything with `__index__` as an id, one by one and in any iterable."""
    project_id: SupportsIndex = np.int32(2)
    several: list[TaskIds] = [Row(), np.int64(64), (Row(),), [np.int64(64)], range(9), array]
    for task_ids in several:
        await session.task_stop(project_id, task_ids)
    await session.task_status(project_id, numpy_ids())
    await session.stop_running(Row(), numpy_ids())
    await session.stop(project_id, Row())
    streamed: AnyTaskIds = numpy_ids()
    session.stopping(project_id, streamed)


def values(report: StopReport, states: StatusReport) -> None:
    assert_type(report[64], StopOutcome)
    assert_type(list(report), list[int])
    assert_type(report.ids(StopResult.STOP_SENT), list[int])
    assert_type(report.counts, Mapping[StopResult, int])
    assert_type(report.complete, bool)
    assert_type(report.stats, StopStats)
    assert_type(report.stats.elapsed, float)
    assert_type(report | report, StopReport)
    assert_type(StopReport.of([report[64]]), StopReport)
    assert_type(report.to_json(), str)
    assert_type(StopReport.from_json("{}"), StopReport)
    mapping: Mapping[int, StopOutcome] = report
    del mapping

    outcome = report[64]
    assert_type(outcome.task_id, int)
    assert_type(outcome.project_id, int)
    assert_type(outcome.result, StopResult)
    assert_type(outcome.status, TaskStatus | str | None)
    assert_type(outcome.error, str | None)
    assert_type(outcome.restarted_as, int | None)
    outcome.error = "no"  # type: ignore[misc]

    state = states[64]
    assert_type(state, TaskState)
    assert_type(state.status, TaskStatus | str | None)
    assert_type(state.restarted_as, TaskState | None)
    assert_type(state.details, Mapping[str, Any])
    assert_type(states.ids(TaskStatus.RUNNING, "Hibernating", None), list[int])
    assert_type(states.counts, Mapping[TaskStatus | str | None, int])
    assert_type(StatusReport.from_json(states.to_json()), StatusReport)
    assert_type(StatusReport.of([state]), StatusReport)
    assert_type(TaskStatus.RUNNING.pending, bool)
    assert_type(TaskStatus.RUNNING.ended, bool)


def errors(
    incomplete: StopIncompleteError,
    deadline: DeadlineError,
    http: HttpError,
    reply: ReplyError,
    denied: TasksDeniedError,
) -> None:
    made = StopIncompleteError("no", [RequestError("lost")], incomplete.report)
    assert_type(made.report, StopReport)
    assert_type(incomplete.report, StopReport)
    assert_type(incomplete.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])
    timeout: TimeoutError = deadline
    several: list[CtrlApiError] = [deadline, http, reply, denied]
    del timeout, several
    assert_type(deadline.sent, bool)
    assert_type(http.status, int)
    assert_type(http.excerpt, str)
    assert_type(http.retry_after, float | None)
    assert_type(reply.where, str)
    assert_type(denied.task_ids, tuple[int, ...])
    assert_type(denied.method, str)
    assert_type(denied.message, str)
