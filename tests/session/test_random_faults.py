"""Random tasks, random packing, random faults: what holds after every run holds after these."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import frozen
from hypothesis import event, given
from hypothesis import strategies as st

from ctrlapi_async import CtrlApiError, RetryPolicy, StopIncompleteError, StopReport, StopResult
from ctrlapi_async.simulator import STATUSES, Body, CutBody, Drop, Fault, HttpStatus, Rewrite
from tests.support.clock import run
from tests.support.oracle import Oracle
from tests.support.simulated import disconnected, ended, open_session, rewrite_rows, simulator
from tests.support.witness import Witness

if TYPE_CHECKING:
    from ctrlapi_async.simulator import RequestRecord

T = TypeVar("T")


def rows_at_random(seed: int) -> Rewrite:
    """Leave rows out, repeat them, add some that nobody asked for, and shuffle them all."""

    def change(rows: list[Any]) -> list[Any]:
        chance = random.Random(seed)
        kept = [row for row in rows if chance.random() < 0.8]
        kept += [row for row in kept if chance.random() < 0.2]
        kept.append({"task_id": 10**9 + chance.randrange(9), "status": "Running"})
        chance.shuffle(kept)
        return kept

    return rewrite_rows(change)


PASSING: Final[list[Fault]] = [
    *(Drop(effect=effect) for effect in (False, True)),
    *(CutBody(keep=keep, effect=effect) for keep in (0, 0.5, 0.99) for effect in (False, True)),
    *(HttpStatus(status) for status in (408, 413, 425, 429, 500, 502, 503, 504)),
    *(HttpStatus(status, effect=True) for status in (408, 500, 502, 503, 504)),
    *(HttpStatus(status, headers={"Retry-After": "0"}) for status in (429, 503)),
    *(Body(body, effect=effect) for body in ("", "{", "[]", "{}") for effect in (False, True)),
    Body('{"reply": [{"error": "access denied to tasks"}]}'),
    Body('{"reply": [{"error": "database is locked"}]}'),
    *map(rows_at_random, range(10)),
]
FATAL: Final[list[Fault]] = [
    *(HttpStatus(status) for status in (302, 400, 401, 403, 404, 405)),
    Body("<html></html>", content_type="text/html"),
    Body('{"error": "user 1 is unavailable"}'),
    Body('{"reply": [{"error": "project 2 does not exist"}]}'),
    Body('{"reply": [{"error": "Undefined method \'TaskStop\'"}]}'),
]


@frozen
class Setup:
    """A run, and what goes wrong in it.

    Args:
        statuses: The status of each task, from 1 on; None: there is no such task.
        restarts: The newest status of those tasks that were restarted.
        faults: What happens to each request, by its number from 1.
        chunk: Task ids a request.
        at_once: Requests at once.
        attempts: How often a request is sent.
        options: Options of the simulator.
    """

    statuses: list[str | None]
    restarts: dict[int, str]
    faults: dict[int, Fault]
    chunk: int
    at_once: int
    attempts: int
    options: dict[str, Any]


def lists_of(items: list[T], most: int) -> st.SearchStrategy[list[T]]:
    """Draw lists of any length up to `most`; by themselves, long ones would be rare."""
    return st.integers(0, most).flatmap(
        lambda size: st.lists(st.sampled_from(items), min_size=size, max_size=size)
    )


def scripts(most: int) -> st.SearchStrategy[dict[int, Fault]]:
    """Draw faults by the number of their request: few, or many; and perhaps a fatal one."""
    passing = st.integers(0, 3).flatmap(
        lambda rarity: lists_of([*PASSING, *[None] * (rarity * len(PASSING))], most)
    )
    fatal = st.dictionaries(st.integers(1, most), st.sampled_from(FATAL), max_size=1)
    return st.builds(
        lambda faults, fatal: {n: fault for n, fault in enumerate(faults, 1) if fault} | fatal,
        passing,
        st.just({}) | fatal,
    )


setups = st.builds(
    Setup,
    statuses=lists_of(["Running"] * 8 + [*STATUSES, None], 40),
    restarts=st.dictionaries(st.integers(1, 40), st.sampled_from(["Running", *STATUSES])),
    faults=scripts(60),
    chunk=st.integers(1, 12),
    at_once=st.integers(1, 5),
    attempts=st.integers(1, 4),
    options=st.fixed_dictionaries(
        {
            "stop_delay": st.sampled_from([0.0, 0.5, 1.5, 3.5, 1e9]),
            "missing": st.sampled_from(["denied", "error", "omitted"]),
            "denied_names": st.sampled_from(["bad", "all", "none"]),
            "chains": st.sampled_from(["flat", "lists", "nested"]),
            "row_errors": st.sampled_from(["error", "errors"]),
            "echo_id": st.booleans(),
        }
    ),
)


async def carry_out(setup: Setup) -> tuple[Witness, StopReport, StopIncompleteError | None]:
    def script(record: RequestRecord) -> Fault | None:
        return setup.faults.get(record.number)

    ids = range(1, len(setup.statuses) + 1)
    async with simulator(tick=1, **setup.options) as api:
        api.add_project(2)
        for task_id, status in zip(ids, setup.statuses, strict=True):
            if status is not None and task_id in setup.restarts:
                api.add_task(task_id, "Stalled")
                api.restart(task_id, setup.restarts[task_id], new_id=1000 + task_id)
            elif status is not None:
                api.add_task(task_id, status)
        oracle = Oracle(attempts=setup.attempts)
        oracle.ask(2, ids)
        witness = Witness(api, script, oracle)
        retry = RetryPolicy(attempts=setup.attempts, wait_initial=0)
        async with open_session(api, setup.chunk, setup.at_once, retry=retry) as session:
            report, error = await ended(session.stop_running(2, ids))
        await disconnected(api)
        witness.check(list(ids), report, error)
        assert api.counters.peak <= setup.at_once + len(setup.faults)
    return witness, report, error


@given(setups)
def test_no_fault_loses_an_outcome_or_spends_a_stop_in_vain(setup: Setup) -> None:
    witness, report, error = run(carry_out(setup))
    for task_id, outcome in report.items():
        event(outcome.result)
        truth = setup.statuses[task_id - 1]
        if truth is not None:
            truth = setup.restarts.get(task_id, truth)
        if outcome.result in (StopResult.STOP_SENT, StopResult.UNCONFIRMED):
            assert truth == "Running", outcome
        assert outcome.result is not StopResult.UNAVAILABLE, "no task ends by itself here"
        if outcome.result is StopResult.NOT_RUNNING:
            # Perhaps the rows of its restarts were left out.
            behind = task_id in setup.restarts and outcome.restarted_as is None
            assert outcome.status == ("Stalled" if behind else truth) != "Running", outcome
    if error is not None:
        assert all(isinstance(met, CtrlApiError) for met in error.exceptions)
    if setup.faults.get(1) in FATAL:
        # Nothing but what was under way already follows.
        assert len(witness.requests) <= setup.at_once
