"""Replies to TaskStop that need not be read: what is known of them is what reading would tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import CtrlApiError, ReplyError, wire

Hand = Callable[[list[int], int], bytes]


def sent(n: int) -> dict[str, Any]:
    return {"task_id": n, "status": wire.STOP_SENT}


def written(entry: dict[str, Any], **how: Any) -> bytes:
    return json.dumps({"reply": [{"method": "TaskStop"} | entry]}, **how).encode()


# Ways of a server to write that the stops of some tasks were sent.
HANDS: dict[str, Hand] = {
    "usual": lambda ids, call: written({"id": call, "result": [sent(n) for n in ids]}),
    "dense": lambda ids, call: written(
        {"id": call, "result": [sent(n) for n in ids]}, separators=(",", ":")
    ),
    "indented": lambda ids, call: written({"id": call, "result": [sent(n) for n in ids]}, indent=2),
    "id last": lambda ids, call: written({"result": [sent(n) for n in ids], "id": call}),
    "no id": lambda ids, _: written({"result": [sent(n) for n in ids]}),
    "task_id last": lambda ids, call: written(
        {"id": call, "result": [dict(reversed(sent(n).items())) for n in ids]}
    ),
    "more members": lambda ids, call: written(
        {"id": call, "took": {"id": 12}, "result": [sent(n) | {"task": {"n": 1}} for n in ids]}
    ),
    "with words": lambda ids, call: written(
        {"id": call, "result": [sent(n) for n in ids], "errors": ["slow"]}
    ),
}
# And some that tell too little of how the next one will be written.
ODD_HANDS: dict[str, Hand] = {
    "rows with times": lambda ids, call: written(
        {"id": call, "result": [sent(n) | {"at": [call, row]} for row, n in enumerate(ids)]}
    ),
    "a task in a task": lambda ids, call: written(
        {"id": call, "result": [{"of": {"task_id": n}, **sent(n)} for n in ids]}
    ),
    "wide rows": lambda ids, call: written({"id": call, "result": [sent(n) for n in ids]}).replace(
        b'}, {"task_id": ', b'}, {"task_id": ' + b" " * 500
    ),
    "long rows": lambda ids, call: written(
        {"id": call, "result": [sent(n) | {"log": "x" * 500} for n in ids]}
    ),
}
hands = st.sampled_from([*HANDS.values(), *ODD_HANDS.values()])
some_ids = st.lists(st.integers(0, 12) | st.integers(0, 2**63 - 1), min_size=1, unique=True)


def meaning(answers: Callable[[], list[Any]], asked: list[list[int]]) -> list[object]:
    """Tell what a decoder makes of a reply."""
    try:
        told = answers()
    except CtrlApiError as error:
        return [repr(error)]
    assert len(told) == len(asked)
    meant: list[object] = []
    for answer, ids in zip(told, asked, strict=True):
        if isinstance(answer, CtrlApiError):
            meant.append(repr(answer))
        elif answer.all_sent:
            meant.append([(n, wire.STOP_SENT, None) for n in ids])
        else:
            meant.append([(row.task_id, row.status, row.error) for row in answer.result])
    return meant


@pytest.mark.parametrize("hand", HANDS.values(), ids=HANDS)
def test_what_differs_in_the_ids_only_is_not_read_again(hand: Hand) -> None:
    decoder = wire.StopDecoder()
    [first] = decoder.decode(hand([1, 12, 123], 1), [[1, 12, 123]], 1)
    assert isinstance(first, wire.Answer)
    assert first.all_sent
    assert first.result
    for ids, call in ([5, 4], 2), ([9], 1), ([1, 12, 123], 12):
        [later] = decoder.decode(hand(ids, call), [ids], call)
        assert isinstance(later, wire.Answer)
        assert later.all_sent
        assert not later.result


@pytest.mark.parametrize("hand", ODD_HANDS.values(), ids=ODD_HANDS)
def test_other_replies_are_read(hand: Hand) -> None:
    decoder = wire.StopDecoder()
    for call, ids in enumerate(([1, 2], [1, 2], [1, 2, 3], [1, 2, 3])):
        [answer] = decoder.decode(hand(ids, call), [ids], call)
        assert isinstance(answer, wire.Answer)
        assert answer.all_sent
        assert len(answer.result) == len(ids)


def test_a_reply_to_several_calls_is_read() -> None:
    decoder = wire.StopDecoder()
    usual = HANDS["usual"]
    decoder.decode(usual([1, 2], 1), [[1, 2]], 1)
    two = [json.loads(usual(ids, call))["reply"][0] for ids, call in (([3, 4], 5), ([6], 6))]
    del two[1]["result"][0]["status"]
    two[1]["result"][0]["error"] = "Stopping task is unavailable"
    _, missing = decoder.decode(usual([3, 4], 5), [[3, 4], [6]], 5)
    assert isinstance(missing, ReplyError)
    with pytest.raises(ReplyError, match="malformed"):
        decoder.decode(usual([7], 5).replace(b"7", b""), [[7], [7]], 5)
    first, second = decoder.decode(json.dumps({"reply": two}).encode(), [[3, 4], [6]], 5)
    assert isinstance(first, wire.Answer)
    assert isinstance(second, wire.Answer)
    assert [row.status for row in first.result] == [wire.STOP_SENT] * 2
    assert not second.all_sent
    assert second.result[0].error == "Stopping task is unavailable"


@given(st.data())
def test_what_is_known_is_what_reading_would_tell(data: st.DataObject) -> None:
    """Whatever was seen before, and whatever came of a reply on its way."""
    hand = data.draw(hands)
    ids = data.draw(some_ids)
    call = data.draw(st.integers(1, 12))
    decoder = wire.StopDecoder()
    for before in data.draw(st.lists(some_ids, max_size=2)):
        decoder.decode(hand(before, 1), [before], 1)

    body = data.draw(st.sampled_from([hand, HANDS["usual"]]))(
        data.draw(st.just(ids) | st.permutations(ids) | some_ids | st.just([])),
        data.draw(st.just(call) | st.integers(1, 12)),
    )
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(body)))
        cut = data.draw(st.integers(at, min(len(body), at + 9)))
        noise = data.draw(st.sampled_from([b"", b"0", b"1", b" ", b",", b'"', b"\0", b"\1", b"}"]))
        body = body[:at] + noise + body[cut:]
    asked = data.draw(st.sampled_from([[ids], [ids, [99]]]))
    methods = [wire.TASK_STOP] * len(asked)
    assert meaning(lambda: decoder.decode(body, asked, call), asked) == meaning(
        lambda: wire._STOPS.decode(body, methods, call), asked
    )
