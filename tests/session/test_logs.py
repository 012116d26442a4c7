"""What is said of a run: log lines, each once, and error texts, none of them long."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import CtrlApiError, RetryPolicy, StopResult
from ctrlapi_async.simulator import Body, ControlApiSimulator, CutBody, Drop, HttpStatus
from tests.support.simulated import STATUS, STOP, ended, open_session, rewrite_rows, simulated

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.simulator import Fault


def each_row(row: Callable[[int], dict[str, Any]]) -> Fault:
    """Return a fault that puts another row in the place of each task's."""
    return rewrite_rows(lambda rows: [row(each["task_id"]) for each in rows])


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """Return the messages of a level, without what differs from run to run."""
    return [
        re.sub(r"http://\S+|\d+\.\d+", "#", record.getMessage())
        for record in caplog.records
        if record.name == "ctrlapi_async" and record.levelno == level
    ]


@simulated()
async def test_a_repeat_is_one_line_with_method_tasks_cause_attempt_and_seconds(
    api: ControlApiSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api.add_task(1)
    api.fault(HttpStatus(500), method=STATUS, number=1)
    api.fault(CutBody(keep=0), method=STATUS, number=2)
    async with open_session(api) as session:
        await session.stop_running(2, 1)
        api.fault(HttpStatus(502), number=5)
        await session.call(STATUS, {"project_id": 2, "task_ids": 1})
    assert logged(caplog, logging.WARNING) == []
    first, second, third = logged(caplog, logging.INFO)
    attempt = "TaskStatus of 1 task: attempt {} in # s, after: "
    assert first == f"{attempt.format(2)}HTTP 500 Internal Server Error from #"
    assert second.startswith(f"{attempt.format(3)}the connection to #")
    assert third.startswith(f"{attempt.format(2)}HTTP 502 Bad Gateway")
    # And each request is a line for whoever debugs.
    assert logged(caplog, logging.DEBUG) == [
        "TaskStatus of 1 task: 500 after # ms",
        "TaskStatus of 1 task: RequestError after # ms",
        "TaskStatus of 1 task: 200 after # ms",
        "TaskStop of 1 task: 200 after # ms",
        "TaskStatus of 1 task: 502 after # ms",
        "TaskStatus of 1 task: 200 after # ms",
    ]


@simulated()
async def test_a_lost_stop_is_a_warning_and_said_once(
    api: ControlApiSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api.add_tasks([1, 2])
    api.fault(Drop(), method=STOP, number=1)
    api.fault(HttpStatus(500), method=STATUS, number=2)
    async with open_session(api) as session:
        await session.stop_running(2, [1, 2])
    [lost] = logged(caplog, logging.WARNING)
    assert lost.startswith(
        "TaskStop of 2 tasks may have been carried out: TaskStatus in # s, after"
    )
    repeats = [line.split(",")[0] for line in logged(caplog, logging.INFO)]
    assert repeats == [
        "TaskStatus of 2 tasks: attempt 2 in # s",
        "TaskStop of 2 tasks: attempt 2 in # s",
    ]


@simulated()
async def test_an_unknown_status_is_warned_about_once_a_session(
    api: ControlApiSimulator, caplog: pytest.LogCaptureFixture
) -> None:
    api.add_tasks(range(30))
    api.fault(each_row(lambda task_id: {"task_id": task_id, "status": f"Dreaming {task_id % 2}"}))
    async with open_session(api, 5) as session:
        for _ in range(2):
            report = await session.stop_running(2, range(30))
            assert report.counts[StopResult.NOT_RUNNING] == 30
        await session.task_status(2, range(30))
        assert sorted(logged(caplog, logging.WARNING)) == [
            f"unknown status 'Dreaming {n}': taken for not Running" for n in (0, 1)
        ]
        api.clear_faults()
        api.fault(each_row(lambda task_id: {"task_id": task_id, "status": "Dozing" * 999}))
        await session.stop_running(2, range(30))
    long = logged(caplog, logging.WARNING)[-1]
    assert "Dozing" in long
    assert len(long) < 200


@simulated()
async def test_a_run_without_faults_says_nothing_above_debug(
    api: ControlApiSimulator, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    api.mixed_tasks(1000)
    async with open_session(api, 100) as session:
        await session.stop_running(2, range(1, 1001))
    assert logged(caplog, logging.WARNING) + logged(caplog, logging.INFO) == []
    assert capsys.readouterr() == ("", "")


X = "x" * 9000
LONG: dict[str, Fault] = {
    "a page": HttpStatus(500, body=X * 17),
    "a title": HttpStatus(404, body=f"<title>{X * 17}</title>"),
    "a location": HttpStatus(302, headers={"Location": f"http://{X[:7000]}"}),
    "a refusal": Body(f'{{"reply": [{{"error": "{X * 17}"}}]}}'),
    "no JSON": Body(X * 17),
    "errors beside no rows": Body(f'{{"reply": [{{"result": [], "errors": ["{X * 17}"]}}]}}'),
    "a row's error": each_row(lambda task_id: {"task_id": task_id, "error": X}),
    "a row that cannot be read": each_row(lambda task_id: {"task_id": task_id, "status": [X]}),
    "a bad id": each_row(lambda _: {"task_id": X}),
}


@pytest.mark.parametrize("method", [STATUS, STOP])
@pytest.mark.parametrize("fault", LONG.values(), ids=LONG)
@simulated()
async def test_no_text_is_longer_than_500_characters(
    api: ControlApiSimulator, fault: Fault, method: str
) -> None:
    api.add_tasks(range(100))
    api.fault(fault, method=method)
    async with open_session(api, 50, retry=RetryPolicy(attempts=2, wait_initial=0)) as session:
        report, error = await ended(session.stop_running(2, range(100)))
        texts = [outcome.error or "" for outcome in report.values()]
        texts += [f"{met}" for met in (error.exceptions if error else ())]
        assert max(map(len, texts)) <= 1100  # of two errors at most
        assert len(str(error or "")) <= 500
        assert len(report.to_json()) < 100 * 1500
        params = {"project_id": 2, "task_ids": 1}
        try:
            await session.call(method, params)
        except CtrlApiError as met:
            assert len(str(met)) <= 500  # noqa: PT017 - it may come or not


@simulated()
async def test_incomplete_error_says_how_many_tasks_and_names_the_first_cause(
    api: ControlApiSimulator,
) -> None:
    api.add_tasks(range(10))
    async with open_session(api, 3, 1) as session:
        api.fault(HttpStatus(401), method=STATUS, number=3, every=True)
        _, error = await ended(session.stop_running(2, range(10)))
        assert str(error).startswith("4 of 10 tasks without an answer: HTTP 401 Unauthorized from")
        api.clear_faults()
        _, other = await ended(session.stop_running_across({2: [1], 9: [77]}))
        assert str(other) == (
            "1 of 2 tasks without an answer: TaskStatus: project 9 does not exist"
        )
