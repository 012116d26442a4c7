"""Large replies in pieces: the rows are the same, in the same order, whatever is in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import ReplyError
from ctrlapi_async._bulk.chains import parts_of, read_statuses
from ctrlapi_async._protocol.pieces import pieces
from ctrlapi_async._protocol.replies import decode_rows
from ctrlapi_async._protocol.rows import Row, Rows

TEXTS = st.text('ab"\\}]{[, ', max_size=8)
MEMBERS = st.recursive(
    st.none() | st.integers(0, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def rows_in(body: bytes) -> list[Row]:
    [answer] = decode_rows(body, ["TaskStatus"], 7)
    assert isinstance(answer, Rows)
    return answer.rows


def reply_of(rows: list[dict[str, Any]], indent: int | None, **after: Any) -> bytes:
    entry = {"method": "TaskStatus", "id": 7, "result": rows, **after}
    return json.dumps({"reply": [entry]}, indent=indent).encode()


@given(
    members=st.lists(MEMBERS, max_size=30),
    size=st.integers(1, 300),
    indent=st.none() | st.integers(0, 2),
    after=st.dictionaries(st.sampled_from(["errors", "more"]), st.lists(TEXTS, max_size=3)),
)
def test_pieces_hold_the_same_rows(
    members: list[Any], size: int, indent: int | None, after: dict[str, Any]
) -> None:
    rows = [{"task_id": n, "status": "Running", "m": each} for n, each in enumerate(members)]
    body = reply_of(rows, indent, **after)
    assert [row for piece in pieces(body, size) for row in rows_in(piece)] == rows_in(body)


def test_a_large_reply_comes_in_pieces_of_the_size_asked_for() -> None:
    rows = [{"task_id": n, "status": "Running", "name": "}, {" * 3} for n in range(1000)]
    found = list(pieces(reply_of(rows, None, errors=["odd"]), 4000))
    assert len(found) > 10
    assert max(map(len, found)) < 2 * 4000 + 200
    whole = Rows([])
    for piece in found:
        assert whole.words is None  # what comes after the rows is in the last piece
        [answer] = decode_rows(piece, ["TaskStatus"], 7)
        assert isinstance(answer, Rows)
        whole.extend(answer)
    assert (len(whole.rows), whole.words) == (1000, "odd")


def test_members_before_the_rows_may_hold_brackets_too() -> None:
    rows = b", ".join(b'{"task_id": %d, "status": "Running"}' % n for n in range(100))
    body = b'{"x": [{"}": "]"}], "reply": [{"id": 7, "result": [' + rows + b"]}]}"
    found = list(pieces(body, 200))
    assert len(found) > 5
    assert [row.task_id for piece in found for row in rows_in(piece)] == list(range(100))


def test_a_beginning_that_is_no_json_harms_nothing() -> None:
    row = b'{"task_id": 1, "status": "Running"}'
    body = b'}]{"reply": [{"result": [' + b", ".join([row] * 100) + b"]}]}"
    for piece in pieces(body, 200):
        with pytest.raises(ReplyError):
            rows_in(piece)


def test_a_broken_end_is_in_the_last_piece() -> None:
    body = b'{"reply": [{"result": [' + b'{"task_id": 1}, {"task_id": 2}, ' * 200 + b"!]}]}"
    *sound, last = pieces(body, 100)
    assert all(rows_in(piece) for piece in sound)
    with pytest.raises(ReplyError):
        rows_in(last)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>" + b"x" * 5000,
        b'{"reply": [{"result": ' + b"x" * 5000,
        b'{"reply": [{"result": [' + b'{"task_id": 1, "status": "Running"}, {' * 200,
        json.dumps({"reply": [{"result": [[{"task_id": 1}, {"task_id": 2}]] * 100}]}).encode(),
        json.dumps({"reply": [{"result": [{"of": [{"a": 1}] * 30, "task_id": 1}]}] * 9}).encode(),
    ],
)
def test_what_cannot_be_divided_stays_whole(body: bytes) -> None:
    assert list(pieces(body, 100)) == [body]


@given(
    chains=st.lists(
        st.lists(st.sampled_from(["Stalled", "Running", "Completed"]), min_size=1, max_size=3),
        max_size=30,
    ),
    size=st.integers(1, 8),
    order=st.randoms(use_true_random=False),
    first_missing=st.booleans(),
)
def test_parts_hold_the_same_tasks_with_their_chains(
    chains: list[list[str]], size: int, order: Any, first_missing: bool
) -> None:
    rows = [
        Row(100 * n + place, status, 100 * n)
        for n, chain in enumerate(chains)
        for place, status in enumerate(chain)
        if not (first_missing and place == 0 and len(chain) > 1)
    ]
    order.shuffle(rows)
    whole = summary([Rows(list(rows))])
    assert summary([part for part in parts_of(Rows(rows), size) if part is not None]) == whole


def summary(parts: list[Rows]) -> tuple[dict[Any, set[int]], dict[int, tuple[int, set[int]]]]:
    by_status: dict[Any, set[int]] = {}
    chains: dict[int, tuple[int, set[int]]] = {}
    for part in parts:
        found = read_statuses(part, None)
        for status, task_ids in found.plain.items():
            by_status.setdefault(status, set()).update(task_ids)
        for chain in found.chains:
            assert chain.initial_id not in chains
            chains[chain.initial_id] = (chain.current.task_id, set(chain.rows))
    return by_status, chains
