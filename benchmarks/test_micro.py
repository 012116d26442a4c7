"""The pure parts by themselves: `pytest benchmarks/test_micro.py`; a chunk of 500 tasks each."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Final

import pytest

from benchmarks.clients import PROJECT, USER
from benchmarks.server import runs, status_row, stop_row
from ctrlapi_async import StopOutcome, StopReport, StopResult, TaskStatus, wire
from ctrlapi_async.ledger import Ledger
from ctrlapi_async.plan import StopPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

IDS: Final = list(range(1_000_000, 1_000_500))
RUNNING: Final = list(filter(runs, IDS))


def reply(method: str, row: Callable[[int], str], ids: Sequence[int]) -> bytes:
    """Give the body of a reply to one call."""
    rows = ",".join(map(row, ids))
    return f'{{"reply":[{{"method":"{method}","id":1,"result":[{rows}]}}]}}'.encode()


CHECKED: Final = reply("TaskStatus", status_row, IDS)
STOPPED: Final = reply("TaskStop", stop_row, RUNNING)


@pytest.fixture
def report() -> StopReport:
    """Give a report of some tasks that were stopped and some that were not running."""
    return StopReport.of(
        StopOutcome(n, PROJECT, StopResult.STOP_SENT, TaskStatus.RUNNING)
        if runs(n)
        else StopOutcome(n, PROJECT, StopResult.NOT_RUNNING, TaskStatus.COMPLETED)
        for n in IDS
    )


def test_encode(benchmark: BenchmarkFixture) -> None:
    """A request is written."""

    def write() -> bytes:
        params = wire.task_params(PROJECT, wire.ids_text(IDS))
        return wire.encode(USER, [(wire.TASK_STATUS, params)])

    assert benchmark(write)


@pytest.mark.parametrize("known", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(
    ("method", "body", "ids"),
    [(wire.TASK_STATUS, CHECKED, IDS), (wire.TASK_STOP, STOPPED, RUNNING)],
    ids=["status", "stop"],
)
def test_decode(
    benchmark: BenchmarkFixture, method: str, body: bytes, ids: list[int], *, known: bool
) -> None:
    """A reply is read, the first one of its hand or a later one."""
    decoder = wire.RowDecoder(method)
    asked = [wire.ids_text(ids)]
    decoder.decode(body, asked)
    [answer] = benchmark(
        lambda: (decoder if known else wire.RowDecoder(method)).decode(body, asked)
    )
    assert isinstance(answer, wire.Answer)
    assert bool(answer.marks) is known


def test_plan(benchmark: BenchmarkFixture) -> None:
    """A chunk is fed, checked and stopped, from decoded replies to its last verdict."""
    answers = []
    for method, body, ids in (
        (wire.TASK_STATUS, CHECKED, IDS),
        (wire.TASK_STOP, STOPPED, RUNNING),
    ):
        decoder = wire.RowDecoder(method)
        decoder.decode(body, [wire.ids_text(ids)])
        answers.append(decoder.decode(body, [wire.ids_text(ids)]))

    def run() -> Ledger:
        ledger = Ledger(collect=True)
        plan = StopPlan(ledger)
        plan.chunk = len(IDS)
        plan.feed(PROJECT, IDS)
        plan.source_open = False
        for answer in answers:
            job = plan.pick()
            assert job is not None
            plan.launch(job)
            plan.answered(job, answer)
        return ledger

    assert benchmark(run).counts[StopResult.STOP_SENT] == len(RUNNING)


def test_look_up(benchmark: BenchmarkFixture, report: StopReport) -> None:
    """One outcome is looked up."""
    assert benchmark(report.__getitem__, IDS[0]).task_id == IDS[0]


def test_iterate(benchmark: BenchmarkFixture, report: StopReport) -> None:
    """All outcomes are gone through."""
    assert len(benchmark(lambda: list(report.values()))) == len(IDS)


def test_merge(benchmark: BenchmarkFixture, report: StopReport) -> None:
    """Two reports become one."""
    assert benchmark(report.__or__, report) == report


def test_json(benchmark: BenchmarkFixture, report: StopReport) -> None:
    """A report goes to JSON and back."""
    assert benchmark(lambda: StopReport.from_json(report.to_json())) == report


def test_pickle(benchmark: BenchmarkFixture, report: StopReport) -> None:
    """A report goes through pickle."""
    assert benchmark(lambda: pickle.loads(pickle.dumps(report))) == report  # noqa: S301 - its own
