"""What a reply says: statuses in any form and order, restart chains, odd rows, and who shares."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import ReplyError, StopResult, TaskStatus
from ctrlapi_async._bulk.chains import ChainTable, read_statuses, stopped_tasks
from ctrlapi_async._bulk.outcomes import CHAINS_KEPT, OpenTasks, Outcomes
from ctrlapi_async._models import parse_status
from ctrlapi_async._protocol.rows import Row, Rows
from ctrlapi_async._reports import Verdict

RUNNING, STALLED = TaskStatus.RUNNING, TaskStatus.STALLED
SENT, UNAVAILABLE = "Stop request was sent", "Stopping task is unavailable"
STATUSES = [*TaskStatus, "running", "COMPLETED", "Hibernating"]


def read(rows: list[Row], asked: list[int] | None, **more: Any) -> dict[str, Any]:
    """Return what is found, by the names of what is not empty."""
    follow = more.pop("follow", True)
    found = read_statuses(Rows(rows, **more), asked, follow=follow)
    parts = {
        "plain": {(*told,): ids for told, ids in found.plain.items()},
        "chains": {one.initial_id: (one.current.task_id, one.asked) for one in found.chains},
        "refused": found.refused,
        "missing": found.missing,
        "unreadable": {n: str(error) for ids, error in found.unreadable for n in ids},
    }
    return {name: part for name, part in parts.items() if part}


# --- statuses -------------------------------------------------------------------------------------


@given(
    chains=st.lists(st.lists(st.sampled_from(STATUSES), min_size=1, max_size=4), max_size=12),
    order=st.randoms(use_true_random=False),
    choice=st.sets(st.integers(0, 60)),
    first_named=st.booleans(),
    follow=st.booleans(),
)
def test_chains_are_found_in_any_order_of_rows(
    chains: list[list[str]], order: Any, choice: set[int], first_named: bool, follow: bool
) -> None:
    rows, current, statuses = [], {}, {}
    for first, members in enumerate(chains):
        ids = [first + 100 * place for place in range(len(members))]
        for task_id, text in zip(ids, members, strict=True):
            named = len(members) > 1 or first_named
            rows.append(Row(task_id, text, first if named else None))
            statuses[task_id] = parse_status(text)
        rank = {RUNNING: 2, TaskStatus.SCHEDULED: 1, TaskStatus.EXPLORE: 1}
        live = max(ids, key=lambda n: (rank.get(statuses[n], 0), n))  # type: ignore[call-overload]
        current.update(dict.fromkeys(ids, live))
    asked = [row.task_id for place, row in enumerate(rows) if place in choice]
    order.shuffle(asked)
    if order.random() < 0.7:
        order.shuffle(rows)
    found = read_statuses(Rows(rows), asked, follow=follow)
    alone = [n for n in asked if not follow or len(chains[n % 100]) == 1]
    said = {n: told for told, ids in found.plain.items() for n in ids}
    assert said == {n: (statuses[n], None if current[n] == n else current[n]) for n in alone}
    assert sorted(n for ids in found.plain.values() for n in ids) == sorted(alone)
    for chain in found.chains:
        assert all(current[n] == chain.current.task_id for n in chain.asked)
    assert sorted(alone + [n for one in found.chains for n in one.asked]) == sorted(asked)


BAD = ReplyError("Expected `str`", "$.reply[0].result[3].status")
NO = Row(1, None, None, "no")
FIRST, RESTART = Row(64, "Stalled", 64), Row(1064, "Running", 64)


def plain(status: TaskStatus, *task_ids: int, restarted_as: int | None = None) -> dict[str, Any]:
    return {"plain": {(status, restarted_as): [*task_ids]}}


@pytest.mark.parametrize(
    ("rows", "asked", "more", "expected"),
    [
        ([], [1], {}, {"missing": [1]}),
        ([Row(7, "Running")], [1], {}, {"missing": [1]}),
        ([NO], [1], {}, {"refused": {"no": [1]}}),
        ([Row(1, "Running"), Row(2, "running")], [1, 2], {}, plain(RUNNING, 1, 2)),
        # Of several rows for one task, one that is not Running wins, and a status over an error.
        ([Row(1, "Running"), Row(1, "Stalled")], [1], {}, plain(STALLED, 1)),
        ([Row(1, "Stalled"), Row(1, "Running")], [1], {}, plain(STALLED, 1)),
        ([Row(1, "Stalled"), Row(1, "Completed")], [1], {}, plain(STALLED, 1)),
        ([Row(1, "running"), Row(1, "Running")], [1], {}, plain(RUNNING, 1)),
        ([NO, Row(1, "Stalled")], [1], {}, plain(STALLED, 1)),
        ([Row(1, "Stalled"), NO], [1], {}, plain(STALLED, 1)),
        # A row that says nothing is no answer, and is named with its place.
        (
            [Row(2, "Stalled"), Row(1)],
            [1, 2],
            {"where": "$.reply[3].result"},
            plain(STALLED, 2)
            | {"unreadable": {1: "neither `status` nor `error` at $.reply[3].result[1]"}},
        ),
        ([Row(1, "")], [1], {}, {"unreadable": {1: "neither"}}),
        # Rows that could not be read: of a known task, or of any that has no other row.
        ([], [1, 2], {"unreadable_tasks": {1: BAD}}, {"unreadable": {1: "Exp"}, "missing": [2]}),
        (
            [Row(2, "Stalled")],
            [1, 2],
            {"unreadable": [BAD]},
            plain(STALLED, 2) | {"unreadable": {1: "Exp"}},
        ),
        (
            [Row(9, "Explore")],
            None,
            {"unreadable_tasks": {1: BAD}},
            plain(TaskStatus.EXPLORE, 9) | {"unreadable": {1: "Exp"}},
        ),
        # Without ids, all tasks that are named, of each chain its current one.
        (
            [FIRST, Row(9, "Explore"), RESTART, NO],
            None,
            {},
            plain(TaskStatus.EXPLORE, 9) | {"chains": {64: (1064, [1064])}, "refused": {"no": [1]}},
        ),
        # A chain speaks for a task without a row of its own only by a later task.
        ([RESTART], [64], {}, {"chains": {64: (1064, [64])}}),
        (
            [FIRST, Row(1064, None, 64, "no")],
            [64, 1064],
            {},
            {"chains": {64: (64, [64])}, "refused": {"no": [1064]}},
        ),
        # A restart that comes alone, one that comes twice, and one that nobody asked for.
        ([RESTART], [1064], {}, {"chains": {64: (1064, [1064])}}),
        ([Row(64, "Stalled"), RESTART, RESTART], [64], {}, {"chains": {64: (1064, [64])}}),
        ([Row(1, "Running"), RESTART], [1], {}, plain(RUNNING, 1)),
        # Restarts that are not followed are told all the same.
        ([FIRST, RESTART], [64], {"follow": False}, plain(STALLED, 64, restarted_as=1064)),
        ([RESTART], [64], {"follow": False}, {"missing": [64]}),
    ],
    ids=str,
)
def test_what_is_read_of_a_reply_and_odd_rows_cost_their_own_task_at_most(
    rows: list[Row], asked: list[int] | None, more: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = read(rows, asked, **more)
    texts = found.get("unreadable", {})
    for task_id, text in expected.get("unreadable", {}).items():
        assert texts[task_id].startswith(text)
    assert found == expected | ({"unreadable": texts} if texts else {})


def test_the_answer_to_a_stop_is_unclear_without_a_row_and_with_two_that_differ() -> None:
    rows = [Row(1, SENT), Row(2, SENT), Row(2, None, None, UNAVAILABLE), Row(9, SENT)]
    found, unclear = stopped_tasks(Rows([*rows, rows[0]]), [3, 1, 2])
    assert ({*found}, unclear) == ({1, 9}, [3, 2])


# --- chains of a run, and the outcomes that their tasks share -------------------------------------


def chained(*, collect: bool = True) -> tuple[Outcomes, ChainTable]:
    """Return outcomes in which 64 and 65 share a chain whose current task is 1064."""
    outcomes = Outcomes(collect=collect)
    assert outcomes.admit(2, [1, 64, 65, 1]) == [1, 64, 65]
    table = outcomes.chains(2)
    chain = table.open(64, Row(1064, "Running", 64), 64)
    outcomes.mark(2, [1064], StopResult.NOT_SENT, RUNNING)
    outcomes.join(chain, 65)
    return outcomes, table


def test_the_tasks_of_a_chain_share_what_is_known_and_its_outcome() -> None:
    outcomes, table = chained()
    assert outcomes.asked(2, [1, 1064]) == [1, 64, 65]
    assert outcomes.unchecked(2, [1, 64, 65]) == [1]
    assert outcomes.admit(2, [1064, 7]) == [7]  # it is in its chain already
    waiting = [OpenTasks(2, [1064], StopResult.UNCONFIRMED, "cut")]
    snapshot = outcomes.snapshot(waiting)
    assert {n: (one.result, one.status, one.restarted_as) for n, one in snapshot.items()} == {
        1: (StopResult.NOT_SENT, None, None),
        7: (StopResult.NOT_SENT, None, None),
        64: (StopResult.UNCONFIRMED, RUNNING, 1064),
        65: (StopResult.UNCONFIRMED, RUNNING, 1064),
        1064: (StopResult.UNCONFIRMED, RUNNING, None),
    }
    assert outcomes.counts(waiting)[StopResult.UNCONFIRMED] == 3
    assert outcomes.counts(waiting)[StopResult.NOT_SENT] == 2
    outcomes.settle_known(2, [1, 1064], StopResult.STOP_SENT, None)
    assert [list(outcomes.store.take()) for _ in range(4)][-1] == []
    assert outcomes.store.settled == {StopResult.STOP_SENT: 4}
    assert table.by_target(1064) is None
    known = table.find(64, 1064)
    assert known is not None
    outcomes.join_closed(known, [7])
    assert outcomes.store.verdicts[7] == outcomes.store.verdicts[64]


def test_news_of_a_chain_last_until_it_is_dealt_with_or_forgotten() -> None:
    table = ChainTable(keep=0)
    chain = table.open(64, Row(1064, "Running", 64), 64)
    assert table.with_news([64, 1064]) == []
    table.note(chain, Row(2064, "Running", 64))
    assert table.with_news([1064, 64, 5]) == [(64, chain), (1064, chain)]
    table.retarget(chain, chain.current)
    assert table.with_news([64, 1064, 2064]) == [(64, chain)]
    table.close(chain, Verdict(2, StopResult.STOP_SENT))
    assert table.with_news([64, 1064, 2064]) == []
    assert table.stopped([2064]) == {}
    alive = table.open(7, Row(7, "Running", 7), 8)
    table.close(alive, Verdict(2, StopResult.STOP_SENT))
    assert table.with_news([7]) == []


def test_two_chains_that_turn_out_to_be_one_go_on_as_one() -> None:
    outcomes, table = chained()
    outcomes.admit(2, [70])
    other = table.open(70, Row(1070, "Running", 70), 70)
    assert table.retarget(other, Row(1064, "Running", 70)) is None
    assert outcomes.asked(2, [1064]) == [64, 65, 70]
    assert table.find(70, 1070) is table.by_target(1064)


@pytest.mark.parametrize("collect", [True, False])
def test_closed_chains_are_remembered_and_without_a_report_only_so_many(collect: bool) -> None:
    table = ChainTable(None if collect else 3)
    verdict = next(iter(chained()[0].store.verdicts.values()))
    table.open(0, Row(1000, "Running", 0), 0)
    for first in range(1, 9):
        table.close(table.open(first, Row(1000 + first, "Running", first), first), verdict)
    kept = [first for first in range(9) if table.find(first, -1) is not None]
    assert kept == (list(range(9)) if collect else [0, 6, 7, 8])
    assert CHAINS_KEPT >= 1000


def test_without_a_report_a_task_that_comes_again_is_another_one() -> None:
    outcomes = Outcomes(collect=False)
    for _ in range(2):
        assert outcomes.admit(2, [5, 6]) == [5, 6]
        outcomes.settle(2, [5, 6], StopResult.NOT_RUNNING, TaskStatus.COMPLETED)
    assert (outcomes.store.total, outcomes.store.done, outcomes.store.verdicts) == (4, 4, {})
    outcomes.store.mute()
    outcomes.admit(2, [7])
    outcomes.settle(2, [7], StopResult.NOT_RUNNING, TaskStatus.COMPLETED)
    outcomes.settle(2, [], StopResult.NOT_RUNNING)
    assert (outcomes.store.untaken, list(outcomes.store.take())) == (0, [])


def test_a_task_in_two_projects_is_refused() -> None:
    outcomes = Outcomes(collect=True)
    outcomes.admit(2, [5])
    with pytest.raises(ValueError, match=r"task 5 is asked for in two projects, 2 and 3"):
        outcomes.admit(3, [4, 5])


def test_an_unknown_status_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    known: set[str] = set()
    for _ in range(2):
        outcomes = Outcomes(collect=True, unknown_statuses=known)
        outcomes.admit(2, list(range(300)))
        for number in range(300):
            outcomes.settle(2, [number], StopResult.NOT_RUNNING, f"Odd {number}")
    assert (len(caplog.messages), caplog.messages[0][:23]) == (100, "unknown status 'Odd 0':")
