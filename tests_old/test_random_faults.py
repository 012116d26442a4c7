"""Random tasks, random packing, random faults: what holds after every run holds after these."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import frozen
from hypothesis import event, given
from hypothesis import strategies as st
from invariants import PROJECT, Witness, assert_sound, run

from ctrlapi_async import (
    Batching,
    ControlSession,
    CtrlApiError,
    RetryPolicy,
    StopIncompleteError,
    StopReport,
    StopResult,
)
from ctrlapi_async.simulator import (
    STATUSES,
    Body,
    ControlApiSimulator,
    CutBody,
    Drop,
    Fault,
    HttpStatus,
    Rewrite,
)

if TYPE_CHECKING:
    from ctrlapi_async.simulator import RequestRecord

T = TypeVar("T")


def rewrites(seed: int) -> Rewrite:
    """Leave rows out, repeat them, add some that nobody asked for, and shuffle them all."""

    def change(reply: Any) -> Any:
        chance = random.Random(seed)
        for entry in reply.get("reply", ()):
            rows = entry.get("result")
            if rows:
                kept = [row for row in rows if chance.random() < 0.8]
                kept += [row for row in rows if row in kept and chance.random() < 0.2]
                kept += [{"task_id": 10**9 + chance.randrange(9), "status": "Running"}]
                chance.shuffle(kept)
                entry["result"] = kept
        return reply

    return Rewrite(change)


PASSING: Final[list[Fault]] = [
    *(Drop(effect=effect) for effect in (False, True)),
    *(CutBody(keep=keep, effect=effect) for keep in (0, 0.5, 0.99) for effect in (False, True)),
    *(HttpStatus(status) for status in (408, 413, 425, 429, 500, 502, 503, 504)),
    *(HttpStatus(status, effect=True) for status in (408, 500, 502, 504)),
    *(HttpStatus(status, headers={"Retry-After": "0"}) for status in (429, 503)),
    *(Body(body, effect=effect) for body in ("", "{", "[]", "{}") for effect in (False, True)),
    Body('{"reply": [{"error": "access denied to tasks"}]}'),
    Body('{"reply": [{"error": "database is locked"}]}'),
    *map(rewrites, range(10)),
]
DOOMING: Final[list[Fault]] = [
    *(HttpStatus(status) for status in (302, 400, 401, 403, 404, 405)),
    Body("<html></html>", content_type="text/html"),
    Body('{"error": "user 1 is unavailable"}'),
    Body('{"reply": [{"error": "project 2 does not exist"}]}'),
    Body('{"reply": [{"error": "Undefined method \'TaskStop\'"}]}'),
]


@frozen
class Plan:
    """A run, and what goes wrong in it.

    Args:
        statuses: The status of each task, from 1 on; None: there is no such task.
        faults: What happens to each request, by its number from 0.
        stop_delay: Requests until a stop takes effect.
    """

    statuses: list[str | None]
    faults: dict[int, Fault]
    chunk: int
    concurrency: int
    attempts: int
    stop_delay: float
    missing: Any
    names: Any
    echo_id: bool


def lists_of(items: list[T], most: int) -> st.SearchStrategy[list[T]]:
    """Draw lists of any length up to `most`; by themselves, long ones would be rare."""
    return st.integers(0, most).flatmap(
        lambda size: st.lists(st.sampled_from(items), min_size=size, max_size=size)
    )


def scripts(most: int) -> st.SearchStrategy[dict[int, Fault]]:
    """Draw faults by the number of their request: few, or many; and perhaps one that dooms."""
    passing = st.integers(0, 3).flatmap(
        lambda rarity: lists_of([*PASSING, *[None] * (rarity * len(PASSING))], most)
    )
    doom = st.dictionaries(st.integers(0, most), st.sampled_from(DOOMING), max_size=1)
    return st.builds(
        lambda faults, doom: {n: fault for n, fault in enumerate(faults) if fault} | doom,
        passing,
        st.just({}) | doom,
    )


plans = st.builds(
    Plan,
    statuses=lists_of(["Running"] * 8 + [*STATUSES, None], 40),
    faults=scripts(60),
    chunk=st.integers(1, 12),
    concurrency=st.integers(1, 5),
    attempts=st.integers(1, 4),
    stop_delay=st.sampled_from([0.0, 0.5, 1.5, 3.5, 1e9]),
    missing=st.sampled_from(["denied", "error", "omitted"]),
    names=st.sampled_from(["bad", "all", "none"]),
    echo_id=st.booleans(),
)


async def carry_out(plan: Plan) -> tuple[Witness, StopReport, StopIncompleteError | None]:
    def choose(record: RequestRecord) -> Fault | None:
        return plan.faults.get(record.number - 1)

    async with ControlApiSimulator(
        own_thread=False,
        tick=1,
        stop_delay=plan.stop_delay,
        missing=plan.missing,
        denied_names=plan.names,
        echo_id=plan.echo_id,
    ) as api:
        api.add_project(PROJECT)
        for task_id, status in enumerate(plan.statuses, start=1):
            if status is not None:
                api.add_task(task_id, status)
        witness = Witness(api, choose)
        async with ControlSession(
            api.url,
            1,
            batching=Batching(plan.chunk, plan.concurrency),
            retry=RetryPolicy(attempts=plan.attempts, wait_initial=0),
        ) as session:
            try:
                report = await session.stop_running(PROJECT, range(1, len(plan.statuses) + 1))
            except StopIncompleteError as error:
                return witness, error.report, error
    return witness, report, None


@given(plans)
def test_no_fault_loses_an_outcome_or_spends_a_stop_in_vain(plan: Plan) -> None:
    witness, report, error = run(carry_out(plan))
    for result in StopResult:
        if report.counts[result]:
            event(result)
    assert_sound(witness, range(1, len(plan.statuses) + 1), report, error, attempts=plan.attempts)
    assert witness.api.counters.peak <= plan.concurrency + len(plan.faults)
    for task_id, outcome in report.items():
        truth = plan.statuses[task_id - 1]
        if outcome.result in (StopResult.STOP_SENT, StopResult.UNCONFIRMED):
            assert truth == "Running", outcome
        if outcome.result is StopResult.UNAVAILABLE:
            raise AssertionError(f"no task ends by itself here: {outcome}")
        if outcome.result is StopResult.NOT_RUNNING:
            assert truth not in (None, "Running"), outcome
            assert outcome.status == truth
    if error is not None:
        assert all(isinstance(met, CtrlApiError) for met in error.exceptions)
    dooms = [number for number, fault in plan.faults.items() if fault in DOOMING]
    if dooms and len(witness.requests) > dooms[0]:
        # Nothing but what was under way already follows.
        assert len(witness.requests) <= dooms[0] + plan.concurrency
