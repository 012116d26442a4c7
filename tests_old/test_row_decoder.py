"""Replies that need not be read: what is known of them is what reading would tell."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import CtrlApiError, ReplyError, TaskStatus, wire

STATES = [str(status) for status in TaskStatus]
USUAL = {wire.TASK_STATUS: STATES, wire.TASK_STOP: [wire.STOP_SENT]}

Hand = Callable[[str, list[dict[str, Any]], int], bytes]


def written(method: str, entry: dict[str, Any], **how: Any) -> bytes:
    return json.dumps({"reply": [{"method": method} | entry]}, **how).encode()


def rows(method: str, ids: list[int], start: int = 0) -> list[dict[str, Any]]:
    statuses = cycle(USUAL[method][start:] + USUAL[method][:start])
    return [
        {"task_id": task_id, "status": status}
        for task_id, status in zip(ids, statuses, strict=False)
    ]


def text(ids: list[int]) -> bytes:
    return wire.ids_text(ids)


# Ways of a server to write of some tasks what is usual.
HANDS: dict[str, Hand] = {
    "usual": lambda method, rows, call: written(method, {"id": call, "result": rows}),
    "dense": lambda method, rows, call: written(
        method, {"id": call, "result": rows}, separators=(",", ":")
    ),
    "indented": lambda method, rows, call: written(method, {"id": call, "result": rows}, indent=2),
    "id last": lambda method, rows, call: written(method, {"result": rows, "id": call}),
    "no id": lambda method, rows, _: written(method, {"result": rows}),
    "more members": lambda method, rows, call: written(
        method, {"id": call, "took": {"ms": 12}, "result": rows, "progress": "Sh, Cm, x"}
    ),
}
# And some that are read each time.
ODD_HANDS: dict[str, Hand] = {
    "task_id last": lambda method, rows, call: written(
        method, {"id": call, "result": [dict(reversed(row.items())) for row in rows]}
    ),
    "with words": lambda method, rows, call: written(
        method, {"id": call, "result": rows, "errors": ["slow"]}
    ),
    "another id": lambda method, rows, call: written(
        method, {"id": call, "result": rows, "of": {"id": 12}}
    ),
    "escaped": lambda method, rows, call: written(
        method, {"id": call, "result": rows, "server": "\u00e9"}
    ),
    "rows with times": lambda method, rows, call: written(
        method, {"id": call, "result": [row | {"at": n} for n, row in enumerate(rows)]}
    ),
    "first row with more": lambda method, rows, call: written(
        method, {"id": call, "result": [rows[0] | {"at": 0}, *rows[1:]]}
    ),
    "last row with more": lambda method, rows, call: written(
        method, {"id": call, "result": [*rows[:-1], {"at": 0} | rows[-1]]}
    ),
    "first row with more in front": lambda method, rows, call: written(
        method, {"id": call, "result": [{"at": 0} | rows[0], *rows[1:]]}
    ),
    "last row with more behind": lambda method, rows, call: written(
        method, {"id": call, "result": [*rows[:-1], rows[-1] | {"at": 0}]}
    ),
    "told twice": lambda method, rows, call: written(
        method, {"id": call, "before": rows, "result": rows}
    ),
    "backwards": lambda method, rows, call: written(method, {"id": call, "result": rows[::-1]}),
    "wide rows": lambda method, rows, call: written(method, {"id": call, "result": rows}).replace(
        b'}, {"task_id": ', b'}, {"task_id": ' + b" " * 500
    ),
    "with an error": lambda method, rows, call: written(
        method, {"id": call, "result": [*rows[:-1], rows[-1] | {"error": "odd"}]}
    ),
    "with a row without status": lambda method, rows, call: written(
        method,
        {"id": call, "result": [*rows[:-1], {"task_id": rows[-1]["task_id"], "error": "no"}]},
    ),
    "with another status": lambda method, rows, call: written(
        method, {"id": call, "result": [*rows[:-1], rows[-1] | {"status": "Odd"}]}
    ),
}
hands = st.sampled_from([*HANDS.values(), *ODD_HANDS.values()])
methods = st.sampled_from([wire.TASK_STATUS, wire.TASK_STOP])
some_ids = st.lists(st.integers(0, 12) | st.integers(0, 2**63 - 1), min_size=1, unique=True)
both_methods = pytest.mark.parametrize("method", [wire.TASK_STATUS, wire.TASK_STOP])


def meaning(answers: Callable[[], list[Any]], asked: list[list[int]]) -> list[object]:
    """Tell what a decoder makes of a reply."""
    try:
        told = answers()
    except CtrlApiError as error:
        return [repr(error)]
    assert len(told) == len(asked)
    return [
        repr(answer)
        if isinstance(answer, CtrlApiError)
        else (
            [(row.task_id, row.status, row.error) for row in wire.rows_of(answer, ids)],
            answer.words,
        )
        for answer, ids in zip(told, asked, strict=True)
    ]


@both_methods
@pytest.mark.parametrize("hand", HANDS.values(), ids=HANDS)
def test_what_is_written_like_one_before_is_not_read_again(hand: Hand, method: str) -> None:
    decoder = wire.RowDecoder(method)
    ids = [1, 12, 123]
    [first] = decoder.decode(hand(method, rows(method, ids), 1), [text(ids)], 1)
    assert isinstance(first, wire.Answer)
    assert first.result
    assert not first.marks
    for ids, call in ([5, 4], 2), ([9], 1), ([1, 12, 123], 12), (list(range(99)), 3):
        for start in range(len(USUAL[method])):
            told = rows(method, ids, start)
            [later] = decoder.decode(hand(method, told, call), [text(ids)], call)
            assert isinstance(later, wire.Answer)
            assert not later.result
            assert [wire.STATUSES[mark] for mark in later.marks] == [row["status"] for row in told]


@both_methods
@pytest.mark.parametrize("hand", ODD_HANDS.values(), ids=ODD_HANDS)
def test_other_replies_are_read(hand: Hand, method: str) -> None:
    decoder = wire.RowDecoder(method)
    for call, ids in enumerate(([1, 2], [1, 2], [1, 2, 3], [1, 2, 3])):
        [answer] = decoder.decode(hand(method, rows(method, ids), call), [text(ids)], call)
        assert isinstance(answer, wire.Answer)
        assert not answer.marks
        assert len(answer.result) == len(ids)


@both_methods
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("ids", [[], [1], [1, 2], [1, 2, 3, 4]])
def test_a_reply_about_fewer_or_more_tasks_is_read(
    ids: list[int], known: bool, method: str
) -> None:
    decoder = wire.RowDecoder(method)
    dense = HANDS["dense"]
    if known:
        decoder.decode(dense(method, rows(method, [1, 2, 3]), 1), [b"[1,2,3]"], 1)
    for _ in range(2):
        [answer] = decoder.decode(dense(method, rows(method, ids), 1), [b"[1,2,3]"], 1)
        assert isinstance(answer, wire.Answer)
        assert [row.task_id for row in answer.result] == ids


def body_of(entries: str) -> bytes:
    return f'{{"reply": [{entries}]}}'.encode()


def entry_of(call: int, *task_ids: int, before: str = "", behind: str = "") -> str:
    """Write an entry whose first row has a member more in front, and the last one behind."""
    told = ", ".join(f'"task_id": {task_id}, "status": "Running"' for task_id in task_ids)
    middle = told.replace(', "task_id"', '}, {"task_id"')
    return f'{{"id": {call}, "result": [{{{before}{middle}{behind}}}]}}'


WITH_ANOTHER_CALL = (
    '{"result": [{"task_id": 1, "status": "Running"}, {"task_id": 2, "status": "Running"}]}, '
    '{"method": "TaskStatus", "id": 9, "error": "access denied to tasks [1]"}'
)

SIMILAR = {
    "ids that end alike": (entry_of(1, 164, 65), entry_of(2, 170, 71), [[64, 65], [70, 71]], 2),
    "an entry of another call": (
        WITH_ANOTHER_CALL,
        WITH_ANOTHER_CALL,
        [[1, 2], [1, 2]],
        9,
    ),
    "the first and the last row in one": (
        entry_of(1, 1, 2, before='"error": null, ', behind=', "error": null'),
        entry_of(2, 3, before='"error": null, ', behind=', "error": null'),
        [[1, 2], [3]],
        2,
    ),
}


@pytest.mark.parametrize(("first", "second", "asked", "call"), SIMILAR.values(), ids=SIMILAR)
def test_what_is_similar_to_a_reply_before_is_read(
    first: str, second: str, asked: list[list[int]], call: int
) -> None:
    decoder = wire.RowDecoder(wire.TASK_STATUS)
    decoder.decode(body_of(first), [text(asked[0])], 1)
    body = body_of(second)
    assert meaning(lambda: decoder.decode(body, [text(asked[1])], call), asked[1:]) == meaning(
        lambda: wire.ROWS.decode(body, [wire.TASK_STATUS], call), asked[1:]
    )


def test_a_reply_full_of_letters_takes_memory_of_its_own_size() -> None:
    decoder = wire.RowDecoder(wire.TASK_STATUS)
    ids = [1, 2]
    reply = written(wire.TASK_STATUS, {"id": 1, "result": rows(wire.TASK_STATUS, ids)})
    decoder.decode(reply, [text(ids)], 1)
    large = reply.removesuffix(b"}") + b', "more": "' + b"xg" * 500_000 + b'"}'
    tracemalloc.start()
    try:
        [answer] = decoder.decode(large, [text(ids)], 1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(answer, wire.Answer)
    assert len(answer.result) == len(ids)
    assert peak < 5 * len(large)


@both_methods
@pytest.mark.parametrize("odd", ODD_HANDS)
def test_an_odd_reply_in_between_changes_nothing(odd: str, method: str) -> None:
    decoder = wire.RowDecoder(method)
    for name, known in ("usual", False), (odd, False), ("usual", True):
        hand = (HANDS | ODD_HANDS)[name]
        [answer] = decoder.decode(hand(method, rows(method, [1, 2]), 1), [text([1, 2])], 1)
        assert isinstance(answer, wire.Answer)
        assert bool(answer.marks) is known


def test_a_reply_about_all_tasks_is_read() -> None:
    decoder = wire.RowDecoder(wire.TASK_STATUS)
    hand = HANDS["dense"]
    decoder.decode(hand(wire.TASK_STATUS, rows(wire.TASK_STATUS, [1, 2]), 1), [b"[1,2]"], 1)
    body = hand(wire.TASK_STATUS, [{"task_id": "*", "status": "Running"}], 2)
    with pytest.raises(ReplyError, match=r"Expected `int`, got `str`"):
        decoder.decode(body, [b'"*"'], 2)


@both_methods
def test_a_reply_to_several_calls_is_read(method: str) -> None:
    decoder = wire.RowDecoder(method)
    usual = HANDS["usual"]
    decoder.decode(usual(method, rows(method, [1, 2]), 1), [text([1, 2])], 1)
    asked = [text([3, 4]), text([6])]
    two = [
        json.loads(usual(method, rows(method, ids), call))["reply"][0]
        for ids, call in (([3, 4], 5), ([6], 6))
    ]
    _, missing = decoder.decode(usual(method, rows(method, [3, 4]), 5), asked, 5)
    assert isinstance(missing, ReplyError)
    with pytest.raises(ReplyError, match="malformed"):
        decoder.decode(usual(method, rows(method, [7]), 5).replace(b"7", b""), asked, 5)
    first, second = decoder.decode(json.dumps({"reply": two}).encode(), asked, 5)
    assert isinstance(first, wire.Answer)
    assert isinstance(second, wire.Answer)
    assert [row.task_id for row in first.result + second.result] == [3, 4, 6]


@both_methods
@pytest.mark.parametrize("byte", [b"7", b" ", b"x", b'"'])
def test_no_byte_of_a_reply_goes_unseen(byte: bytes, method: str) -> None:
    decoder = wire.RowDecoder(method)
    body = HANDS["dense"](method, rows(method, [1, 12]), 1)
    decoder.decode(body, [b"[1,12]"], 1)
    for at in range(len(body)):
        other = body[:at] + byte + body[at + 1 :]
        assert meaning(lambda: decoder.decode(other, [b"[1,12]"], 1), [[1, 12]]) == meaning(  # noqa: B023
            lambda: list(wire.ROWS.decode(other, [method], 1)),  # noqa: B023
            [[1, 12]],
        )


@given(st.data())
def test_what_is_known_is_what_reading_would_tell(data: st.DataObject) -> None:
    """Whatever was seen before, and whatever came of a reply on its way."""
    method = data.draw(methods)
    hand = data.draw(hands)
    ids = data.draw(some_ids)
    call = data.draw(st.integers(1, 12))
    decoder = wire.RowDecoder(method)
    for before in data.draw(st.lists(some_ids, max_size=2)):
        decoder.decode(hand(method, rows(method, before), 1), [text(before)], 1)

    told_of = data.draw(st.just(ids) | st.permutations(ids) | some_ids)
    told = [
        {"task_id": n, "status": data.draw(st.sampled_from([*USUAL[method], "Odd"]))}
        if data.draw(st.integers(0, 9))
        else {"task_id": n, "error": data.draw(st.sampled_from(STATES))}
        for n in told_of
    ]
    body = data.draw(st.sampled_from([hand, HANDS["usual"]]))(
        method, told, data.draw(st.just(call) | st.integers(1, 12))
    )
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(body)))
        cut = data.draw(st.integers(at, min(len(body), at + 9)))
        noise = data.draw(
            st.sampled_from([b"", b"0", b"1", b" ", b",", b'"', b"\0", b"\1", b"}", b"S", b"g"])
        )
        body = body[:at] + noise + body[cut:]
    asked = data.draw(st.sampled_from([[ids], [ids, [99]]]))
    assert meaning(lambda: decoder.decode(body, list(map(text, asked)), call), asked) == meaning(
        lambda: list(wire.ROWS.decode(body, [method] * len(asked), call)), asked
    )
