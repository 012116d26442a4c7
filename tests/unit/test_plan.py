"""The plan over the model of the server: request counts, and chains that overtake each other."""

from __future__ import annotations

import math

import pytest

from ctrlapi_async import (
    CtrlApiError,
    HttpError,
    ReplyError,
    RequestError,
    RetryPolicy,
    StopOutcome,
    StopResult,
    TaskStatus,
)
from ctrlapi_async._bulk.jobs import JobKind
from ctrlapi_async._bulk.options import RunOptions
from ctrlapi_async._bulk.plan import StopPlan
from ctrlapi_async._protocol.rows import Row, Rows
from tests.support.drive import Drive, Request
from tests.support.oracle import STATUS, STOP, ModelServer

SENT = StopResult.STOP_SENT


@pytest.mark.parametrize(("count", "running", "chunk"), [(1, 1, 100), (100, 37, 10), (101, 101, 7)])
def test_no_request_is_wasted(count: int, running: int, chunk: int) -> None:
    server = ModelServer()
    for n in range(count):
        server.add(2, n, "Running" if n < running else "Completed")
    drive = Drive(range(count), chunk=chunk, server=server, slots=4).run()
    assert len(drive.sent(STATUS)) == -(-count // chunk)
    assert len(drive.sent(STOP)) == -(-running // chunk)


def chain(*, tasks: int = 2) -> tuple[ModelServer, list[int]]:
    """Return a server with a chain of that many tasks, and their ids."""
    server = ModelServer()
    ids = [server.add(2, 64).task_id]
    ids += [server.restart(64).task_id for _ in range(tasks - 1)]
    return server, ids


def stops_of(drive: Drive) -> list[int]:
    return [task_id for request in drive.sent(STOP) for task_id in request.ids]


@pytest.mark.parametrize("first", [0, 1])
def test_checks_of_one_chain_that_are_in_flight_together_lead_to_one_stop(first: int) -> None:
    server, ids = chain()
    drive = Drive(ids, chunk=1, server=server, slots=2)
    assert drive.send()
    assert drive.send()
    drive.answer(first)
    drive.run()
    assert stops_of(drive) == [ids[-1]]
    assert {outcome.result for outcome in drive.outcomes.values()} == {SENT}
    assert [drive.outcomes[n].restarted_as for n in ids] == [ids[-1], None]


def test_a_stop_that_a_restart_has_outdated_goes_to_the_current_task() -> None:
    server, ids = chain()
    drive = Drive([*ids, 1], chunk=1, server=server, slots=2)
    server.add(2, 1, "Completed")
    assert drive.send()
    assert drive.send()
    drive.answer()  # the chain's stop is ready now
    newest = server.restart(64).task_id
    drive.answer()  # and this answer says that it would come too late
    drive.run()
    assert stops_of(drive) == [newest]
    assert {drive.outcomes[n].restarted_as for n in ids} == {newest}


def test_the_check_of_a_task_whose_chain_is_settled_and_forgotten_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctrlapi_async._bulk.outcomes.CHAINS_KEPT", 0)
    server, ids = chain()
    server.tasks[ids[-1]].status = "Completed"
    drive = Drive(ids, chunk=1, server=server, slots=2, collect=False)
    assert drive.send()
    assert drive.send()
    drive.run()
    assert drive.results(ids) == {StopResult.NOT_RUNNING}
    assert drive.plan.counts[StopResult.NOT_RUNNING] == 2


@pytest.mark.parametrize("status", ["Running", "Completed"])
def test_chains_of_a_stream_that_collects_nothing_are_forgotten(
    monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr("ctrlapi_async._bulk.outcomes.CHAINS_KEPT", 10)
    drive = Drive(chunk=1, streaming=True, slots=2, collect=False)
    for first in range(100):
        drive.server.add(2, first)
        restarted = drive.server.restart(first, status).task_id
        for task_ids in ([first, restarted], [restarted]):
            drive.outcomes.clear()
            drive.plan.add_tasks(2, task_ids, drive.now)
            while len(drive.outcomes) < len(task_ids):
                drive.step()
    table = drive.plan._outcomes.chains(2)
    held = [len(kept) for kept in vars(table).values() if isinstance(kept, dict | set)]
    assert sum(held) <= 4 * 11


def test_a_restart_whose_own_row_is_missing_is_followed() -> None:
    plan = StopPlan(RunOptions(wait_stopped=9.0), RetryPolicy(), began=0.0, random=lambda: 0.5)
    plan.add_tasks(2, [64], 0.0)
    plan.close_input(0.0)
    replies = [
        Rows([Row(64, "Stalled", 64), Row(1064, "Running", 64)]),
        Rows([Row(1064, "Stop request was sent")]),
        Rows([Row(2064, "Running", 1064)]),  # this server names the task before, not the first
        Rows([Row(2064, "Stop request was sent")]),
        Rows([Row(2064, "Canceled", 1064)]),
    ]
    now, asked = 0.0, []
    for reply in replies:
        while (job := plan.next_job(None, now)) is None:
            now = plan.next_wakeup(now)
            plan.wake(now)
        asked += [call.task_ids for call in job.calls]
        plan.receive(job, [reply], now)
    assert plan.done
    assert asked == [[64], [1064], [1064], [2064], [2064]]
    assert plan.snapshot()[64].restarted_as == 2064
    assert plan.snapshot()[64].result is SENT


def test_a_task_that_was_stopped_for_its_chain_tells_so_though_it_was_never_checked() -> None:
    server, ids = chain()
    drive = Drive([64], server=server, streaming=True)
    while not drive.outcomes:
        drive.step()
    drive.plan.add_tasks(2, [ids[-1], 5], drive.now)
    drive.plan.abort(RequestError("the run was left"), drive.now)
    snapshot = drive.plan.snapshot()
    assert {n: one.result for n, one in snapshot.items()} == {
        64: SENT,
        ids[-1]: SENT,
        5: StopResult.NOT_SENT,
    }


def test_two_checks_of_a_chain_that_goes_on_meanwhile_lead_to_one_stop() -> None:
    server, ids = chain()
    drive = Drive(ids, chunk=1, server=server, streaming=True, slots=4)
    assert drive.send()
    assert drive.send()
    drive.answer()
    newest = server.restart(64).task_id
    drive.plan.add_tasks(2, [newest], drive.now)
    drive.plan.close_input(drive.now)
    drive.answer()  # it says that the chain has gone on
    drive.run()
    assert stops_of(drive) == [newest]
    assert drive.results([*ids, newest]) == {SENT}
    assert drive.outcomes[ids[-1]].restarted_as == newest


def test_what_another_check_says_of_a_pending_chain_counts_when_the_wait_is_over() -> None:
    server, ids = chain()
    server.tasks[ids[-1]].status = "Scheduled"
    drive = Drive(ids, chunk=1, server=server, slots=2, wait_pending=0.1)
    assert drive.send()
    assert drive.send()
    drive.answer()
    server.tasks[ids[-1]].status = "Running"
    drive.run()
    assert drive.results() == {SENT}


def test_a_pending_chain_that_turns_out_to_be_another_one_shares_its_stop() -> None:
    plan = StopPlan(RunOptions(wait_pending=0.1), RetryPolicy(), began=0.0, random=lambda: 0.5)
    plan.set_chunk(1)
    plan.add_tasks(2, [64, 1064, 2064], 0.0)
    plan.close_input(0.0)
    first, middle, newest = (plan.next_job(None, 0.0) for _ in range(3))
    assert first is not None
    assert middle is not None
    assert newest is not None
    plan.receive(first, [Rows([Row(64, "Stalled", 64), Row(1064, "Scheduled", 64)])], 0.0)
    plan.receive(middle, [Rows([Row(1064, "Stalled", 64), Row(2064, "Running", 64)])], 0.0)
    plan.receive(newest, [Rows([Row(2064, "Running", 1064)])], 0.0)  # now it names the task before
    stop = plan.next_job(None, 0.0)
    assert stop is not None
    plan.wake(0.1)
    assert plan.next_job(None, 0.1) is None
    plan.receive(stop, [Rows([Row(2064, "Stop request was sent")])], 0.1)
    assert plan.done
    told = {n: (one.result, one.restarted_as) for n, one in plan.snapshot().items()}
    assert told == {64: (SENT, 2064), 1064: (SENT, 2064), 2064: (SENT, None)}


def test_a_lost_stop_is_told_though_another_check_says_how_the_task_ended() -> None:
    server, ids = chain()
    drive = Drive([64], chunk=1, server=server, streaming=True, slots=2)
    drive.fault = lambda request: (
        HttpError("HTTP 503", 503) if request.kind is JobKind.STOP else None
    )
    while JobKind.VERIFY not in [request.kind for request in drive.requests]:
        drive.step()
    drive.answer()  # it runs, and is to be stopped again
    server.tasks[ids[-1]].status = "Canceled"
    drive.plan.add_tasks(2, [ids[-1]], drive.now)
    drive.plan.close_input(drive.now)
    drive.run()
    told = drive.outcomes[64]
    assert (told.result, told.error) == (SENT, "the reply to TaskStop was lost: HTTP 503")


def test_what_came_after_a_lost_stop_was_not_stopped_by_it() -> None:
    server, ids = chain()
    drive = Drive([64], server=server)
    drive.fault = lambda request: (
        RequestError("cut") if request.kind is JobKind.STOP and not drive.sent(STATUS)[1:] else None
    )
    assert drive.send()
    drive.answer()
    assert drive.send()  # the stop of what 64 was restarted as, whose reply is lost
    newest = server.restart(64).task_id
    server.tasks[newest].status = "Canceled"  # by somebody else
    drive.answer()
    drive.run()
    assert stops_of(drive) == [ids[-1]]
    assert drive.outcomes[64] == StopOutcome(
        64, 2, StopResult.NOT_RUNNING, TaskStatus.CANCELED, restarted_as=newest
    )


def test_a_refused_stop_joins_the_chain_that_another_task_has_opened() -> None:
    server = ModelServer()
    server.add(2, 64)
    drive = Drive([64], chunk=1, server=server, streaming=True)
    assert drive.send()
    drive.answer()
    assert drive.send()  # the stop of 64
    restarted = server.restart(64).task_id
    drive.plan.add_tasks(2, [restarted], drive.now)
    drive.plan.close_input(drive.now)
    drive.slots = 2
    assert drive.send()  # the check of what 64 was restarted as
    drive.answer(1)
    drive.answer(0)
    drive.run()
    assert stops_of(drive).count(restarted) == 1
    assert drive.outcomes[64].restarted_as == restarted
    assert {outcome.result for outcome in drive.outcomes.values()} == {SENT}


def test_a_plan_that_is_done_takes_in_nothing_more() -> None:
    drive = Drive([1, 2], chunk=1, slots=2)
    assert drive.send()
    drive.plan.abort(RequestError("the run was left"), drive.now)
    counts = drive.plan.counts
    drive.answer()
    drive.plan.wake(drive.now)
    assert drive.plan.next_wakeup(drive.now) == math.inf
    assert drive.plan.next_job(None, drive.now) is None
    assert drive.plan.counts == counts
    assert drive.requests[0].kind is JobKind.CHECK


@pytest.mark.parametrize("kind", [JobKind.CHECK, JobKind.STOP])
def test_at_the_deadline_tasks_tell_what_their_requests_had_met(kind: JobKind) -> None:
    drive = Drive([1, 2], chunk=1, timeout=5.00001)
    unreached = RequestError("http://host was not reached", sent=False)
    drive.fault = lambda request: unreached if (request.kind, request.ids) == (kind, [1]) else None
    drive.run()
    assert drive.outcomes[1].result is StopResult.NOT_SENT
    assert drive.outcomes[1].error == "http://host was not reached; the run's 5 s are over"
    assert [str(error) for error in drive.plan.errors] == [str(unreached), "the run's 5 s are over"]


def test_a_check_that_fails_for_a_task_that_was_stopped_already_is_no_error() -> None:
    server, ids = chain()
    drive = Drive([64], server=server, streaming=True, policy=RetryPolicy(attempts=1))
    while not drive.outcomes:
        drive.step()
    drive.plan.add_tasks(2, [ids[-1]], drive.now)
    drive.plan.close_input(drive.now)
    drive.fault = lambda _: HttpError("HTTP 500", 500)
    drive.run()
    assert drive.results() == {SENT}
    assert drive.plan.errors == []


@pytest.mark.parametrize("fatal", [False, True])
def test_what_ended_a_run_comes_first_unless_it_was_just_the_time(*, fatal: bool) -> None:
    drive = Drive([1, 2], chunk=1, slots=2, timeout=5)
    busy, denied = HttpError("HTTP 503", 503), HttpError("HTTP 404", 404)
    drive.fault = lambda request: denied if fatal and request.ids == [2] else busy
    drive.run()
    names = [type(error).__name__ for error in drive.plan.errors]
    assert str(drive.plan.errors[0]) == ("HTTP 404" if fatal else "HTTP 503")
    assert names == ["HttpError", "HttpError" if fatal else "DeadlineError"]


def test_at_the_deadline_stopped_tasks_tell_why_nobody_knows_whether_they_ended() -> None:
    drive = Drive([1], timeout=5, wait_stopped=100)
    drive.fault = lambda request: (
        HttpError("HTTP 500", 500) if request.kind is JobKind.POLL_STOPPED else None
    )
    drive.run()
    assert drive.outcomes[1].error == "HTTP 500; the run's 5 s are over"
    assert drive.outcomes[1].result is StopResult.STILL_RUNNING


def test_a_refused_stop_that_nothing_explains_is_unavailable() -> None:
    server = ModelServer()
    server.add(2, 1)
    drive = Drive([1], server=server, policy=RetryPolicy(attempts=1))
    drive.fault = lambda request: (
        HttpError("HTTP 500", 500) if request.kind is JobKind.EXPLAIN else None
    )
    assert drive.send()
    drive.answer()
    server.tasks[1].status = "Completed"
    drive.run()
    assert drive.results() == {StopResult.UNAVAILABLE}
    assert not drive.plan.errors


def test_parts_of_a_listing_come_in_one_after_the_other() -> None:
    plan = StopPlan(RunOptions(dry_run=True), RetryPolicy(), began=0.0, random=lambda: 0.5)
    plan.add_all_active(2)
    plan.close_input(0.0)
    job = plan.next_job(None, 0.0)
    assert job is not None
    plan.receive_part(job, Rows([Row(1, "Running"), Row(2, "Scheduled")]), 0.0)
    odd = ReplyError("no object", "$.reply[0].result[7]")
    plan.receive(job, [Rows([Row(3, "Running"), Row(1, "Running")], unreadable=[odd])], 0.0)
    assert plan.done
    assert list(plan.snapshot()) == [1, 2, 3]
    assert plan.errors == [odd]
    plan.receive_part(job, Rows([Row(4, "Running")]), 0.0)
    assert list(plan.snapshot()) == [1, 2, 3]


@pytest.mark.parametrize(("status", "stops"), [("Running", 1), ("Completed", 1)])
def test_a_task_of_a_chain_that_is_asked_for_later_gets_what_is_due(
    status: str, stops: int
) -> None:
    """Its chain's outcome if that was stopped, and else a stop of its own."""
    server, ids = chain()
    server.tasks[ids[-1]].status = status
    drive = Drive([64], chunk=1, server=server, streaming=True)
    while not drive.outcomes:
        assert drive.step()
    server.tasks[ids[-1]].status = "Running" if status == "Completed" else "Canceled"
    drive.plan.add_tasks(2, [ids[-1]], drive.now)
    drive.plan.close_input(drive.now)
    drive.run()
    assert stops_of(drive) == [ids[-1]] * stops
    assert drive.outcomes[ids[-1]].result is SENT


def test_what_a_task_was_restarted_as_while_its_stop_was_lost_is_stopped_too() -> None:
    server, ids = chain()
    drive = Drive([64], server=server)

    def lose_one(request: Request) -> CtrlApiError | None:
        if request.method != STOP or len(drive.sent(STOP)) > 1:
            return None
        ids.append(server.restart(64).task_id)
        return RequestError("cut")

    drive.fault = lose_one
    drive.run()
    assert stops_of(drive) == ids[1:]
    assert (drive.results(), drive.outcomes[64].restarted_as) == ({SENT}, ids[-1])


def test_what_nobody_waits_for_any_more_is_not_asked_about() -> None:
    drive = Drive([1, 2], streaming=True)
    drive.plan.add_tasks(3, [3], 0.0)
    drive.server.add(3, 3)
    for task_id in (1, 2):
        drive.plan.discard(task_id)
    drive.plan.close_input(0.0)
    drive.run()
    assert [request.ids for request in drive.requests] == [[3], [3]]
    assert (drive.results([1, 2]), drive.results([3])) == ({StopResult.NOT_SENT}, {SENT})
