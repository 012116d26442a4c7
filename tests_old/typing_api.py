"""The types of the public API, as a caller meets them. Checked by mypy, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, assert_type

from ctrlapi_async import (
    ALL_ACTIVE,
    Batching,
    ControlSession,
    CtrlApiError,
    HttpError,
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
    TasksDeniedError,
    TaskState,
    TaskStatus,
)

if TYPE_CHECKING:
    import aiohttp


async def ids() -> AsyncIterator[int]:
    yield 64


async def calls(client: aiohttp.ClientSession) -> None:
    session = ControlSession(
        "http://172.16.1.41",
        user_id=1,
        auth=("ops", "secret"),
        headers={"X-Trace": "1"},
        ssl=True,
        client=client,
        batching=Batching(chunk_size=None, max_concurrency=8),
        retry=RetryPolicy(attempts=6, wait_initial=0.25, wait_max=30.0, timeout=None),
        request_timeout=30.0,
    )
    async with session as entered:
        assert_type(entered, ControlSession)
        assert_type(await session.call("TaskStatus", {"project_id": 2, "task_ids": 64}), Any)
        assert_type(await session.task_status(2, 64), StatusReport)
        assert_type(await session.task_status(2, ids()), StatusReport)
        assert_type(await session.task_stop(2, [64, 65]), StopReport)
        assert_type(await session.stop_running(2, {64, 65}), StopReport)
        assert_type(await session.stop_running(2, ALL_ACTIVE, dry_run=True), StopReport)
        assert_type(
            await session.stop_running(2, ids(), wait_pending=60, confirm=30.0, timeout=None),
            StopReport,
        )
        assert_type(await session.stop_running_across({2: [64], 3: ALL_ACTIVE, 4: 70}), StopReport)
        assert_type(await session.stop(2, 64), StopOutcome)
        async with session.stopping(2, ids(), collect=False) as run:
            assert_type(run, StopRun)
            async for outcome in run:
                assert_type(outcome, StopOutcome)
            assert_type(run.counts, Mapping[StopResult, int])
            assert_type(run.report, StopReport)
            assert_type(await run.wait(), None)

        await session.stop_running("2", 64)  # type: ignore[arg-type]
        await session.stop_running(2, "64")  # type: ignore[arg-type]
        await session.task_stop(2, ids())  # type: ignore[arg-type]
        await session.stop(2, [64])  # type: ignore[arg-type]
        await session.stop_running(2, 64, True)  # type: ignore[call-arg]


def values(report: StopReport, states: StatusReport) -> None:
    assert_type(report[64], StopOutcome)
    assert_type(list(report), list[int])
    assert_type(report.ids(StopResult.STOP_SENT), list[int])
    assert_type(report.counts, Mapping[StopResult, int])
    assert_type(report.complete, bool)
    assert_type(report.stats, StopStats)
    assert_type(report.stats.elapsed, float)
    assert_type(report | report, StopReport)
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
    outcome.error = "no"  # type: ignore[misc]

    state = states[64]
    assert_type(state, TaskState)
    assert_type(state.status, TaskStatus | str | None)
    assert_type(state.details, Mapping[str, Any])
    assert_type(TaskStatus.RUNNING.pending, bool)
    assert_type(TaskStatus.RUNNING.ended, bool)


def errors(report: StopReport) -> None:
    assert_type(StopIncompleteError("no", [RequestError("lost")], report).report, StopReport)
    try:
        report.to_json()
    except StopIncompleteError as error:
        assert_type(error.report, StopReport)
        assert_type(error.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])
    try:
        report.to_json()
    except HttpError as error:
        assert_type(error.status, int)
        assert_type(error.excerpt, str)
    except ReplyError as error:
        assert_type(error.where, str)
    except TasksDeniedError as error:
        assert_type(error.task_ids, tuple[int, ...])
        assert_type(error.method, str)
        assert_type(error.message, str)
    except CtrlApiError:
        pass
