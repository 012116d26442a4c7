"""Replies: matched by id, and nothing but our own errors; an odd row costs its own task at most."""

from __future__ import annotations

import json
import pickle
import sys
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async._errors import (
    MAX_TEXT,
    CtrlApiError,
    HtmlReplyError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    TasksDeniedError,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async._models import MAX_ID, TaskState, TaskStatus
from ctrlapi_async._protocol import tolerant
from ctrlapi_async._protocol.error_texts import method_error
from ctrlapi_async._protocol.replies import (
    DetailedRow,
    Rows,
    decode_result,
    decode_rows,
    details_of,
)
from ctrlapi_async._protocol.requests import TASK_STATUS, TASK_STOP
from tests.support.wire import any_json, documented_row, entry, reply, row, sample, to_bytes

CHECK = [TASK_STATUS]
BOM = b"\xef\xbb\xbf"

Read = list[tuple[int, str | None, int | None, str | None]]
RUNNING: Read = [(1, "Running", None, None)]


def result_of(answer: Rows | CtrlApiError) -> Rows:
    assert isinstance(answer, Rows), answer
    return answer


def read(body: bytes) -> Rows:
    """Return the rows of a reply to one call, which are the same with and without their bytes."""
    [plain] = map(result_of, decode_rows(body, CHECK, 1))
    [detailed] = map(result_of, decode_rows(body, CHECK, 1, keep_bytes=True))
    assert members(detailed) == members(plain)
    assert all(isinstance(each, DetailedRow) for each in detailed.rows)
    assert (detailed.words, detailed.where) == (plain.words, plain.where)
    assert list(map(str, detailed.unreadable)) == list(map(str, plain.unreadable))
    assert detailed.unreadable_tasks.keys() == plain.unreadable_tasks.keys()
    return plain


def members(rows: Rows) -> Read:
    return [(each.task_id, each.status, each.initial_task_id, each.error) for each in rows.rows]


def statuses(rows: Rows) -> list[tuple[int, str | None]]:
    return [(each.task_id, each.status) for each in rows.rows]


def refused(answer: object) -> CtrlApiError:
    assert isinstance(answer, CtrlApiError), answer
    return answer


@pytest.fixture
def only_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the second reading fail the test."""

    def fail(*_: object, **__: object) -> None:
        pytest.fail("the reply was read a second time")

    monkeypatch.setattr(tolerant, "read_reply", fail)


# --- Sound replies --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stop_one", "stop_two", "stop_missing"])
@pytest.mark.usefixtures("only_strict")
def test_the_documented_replies_are_read_once(name: str) -> None:
    documented = sample(name)["reply"]
    [answer] = decode_rows(to_bytes(documented), [TASK_STOP], 1)
    assert members(result_of(answer)) == [
        (each["task_id"], each.get("status"), None, each.get("error"))
        for each in documented["reply"][0]["result"]
    ]


@pytest.mark.usefixtures("only_strict")
def test_unknown_members_are_ignored_and_unknown_statuses_kept() -> None:
    [answer] = decode_rows(to_bytes(sample("status_rich")["reply"]), CHECK, 7)
    rows = result_of(answer)
    assert members(rows) == [
        (64, "Running", 60, None),
        (65, "Hibernating", 65, None),
        (66, None, None, "Task does not exist"),
    ]
    assert rows.words == "task 66 was not found"
    assert rows.where == "$.reply[0].result"


ERROR_TEXTS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    *(({"error": nothing}, None) for nothing in (None, "")),
    *(({"errors": nothing}, None) for nothing in (None, [], [""])),
    ({"error": "a", "errors": None}, "a"),
    ({"errors": ["a"]}, "a"),
    ({"errors": ["a", "", "b"]}, "a; b"),
    ({"error": "a", "errors": ["b"]}, "a; b"),
]
REPEATED_MEMBERS = (
    b'{"reply": [{"id": 5, "id": 1, "result": '
    b'[{"task_id": 9, "task_id": 1, "status": "Running", "status": "Stalled"}]}]}'
)
SOUND: list[tuple[bytes, Read]] = [
    (
        reply(entry(*(documented_row(n, status) for n, status in enumerate(TaskStatus)))),
        [(n, status, n, None) for n, status in enumerate(TaskStatus)],
    ),
    # Lists that are no rows, in members that nobody reads.
    (reply(entry(row(1, audio=["de", "[en]"], groups=[{"status": "ok"}]))), RUNNING),
    (BOM + reply(entry(row(1))), RUNNING),
    (reply(entry(row(1, "", error="no"))), [(1, None, None, "no")]),
    (REPEATED_MEMBERS, [(1, "Stalled", None, None)]),  # the last one counts
    # All error texts of a row become one.
    *(
        (reply(entry(row(1), {"task_id": 2, **texts})), [*RUNNING, (2, None, None, error)])
        for texts, error in ERROR_TEXTS
    ),
]


@pytest.mark.parametrize(("body", "expected"), SOUND)
@pytest.mark.usefixtures("only_strict")
def test_a_sound_reply_is_read_once(body: bytes, expected: Read) -> None:
    assert members(read(body)) == expected
    assert decode_result(body, TASK_STATUS, 1)


@pytest.mark.parametrize("told", [{"error": "x" * 10**6}, {"errors": ["x" * 1000] * 1000}])
@pytest.mark.parametrize("odd", [[], [5]], ids=["sound", "odd"])
def test_the_texts_of_a_server_are_bounded(told: dict[str, Any], odd: list[Any]) -> None:
    rows = read(reply(entry({"task_id": 1, **told}, *odd, errors=["x" * 10**6])))
    assert len(rows.rows[0].error or "") == len(rows.words or "") == MAX_TEXT


# --- Odd rows -------------------------------------------------------------------------------------

WHERE = "$.reply[0].result[1]"

# Rows that are readable, though not as documented.
ODD_BUT_READABLE: list[tuple[Any, Read]] = [
    (row(1, error=[]), RUNNING),
    (row(1, error=False, errors={}), RUNNING),
    (row(1, error=0, errors=""), RUNNING),
    (row(1, "", error=[]), [(1, None, None, None)]),
    (row(1, None), [(1, None, None, None)]),
    (row(1, initial_task_id="64"), RUNNING),
    (row(1, initial_task_id=-1), RUNNING),
    (row(1, initial_task_id=2**63), RUNNING),
    # They name no task, or an impossible one.
    ({}, []),
    ({"status": "Running"}, []),
    (row(None), []),
    (row(-1), []),
    (row(2**63), []),
    (row(10**400), []),
    ([], []),
]

# Rows whose task is known, and what is wrong with them.
ODD_STATUSES: list[Any] = [5, True, [], [1], {}, {"a": 1}, 0.5]
UNREADABLE_OF_TASK: list[tuple[Any, str]] = [
    *((row(1, value), f"{WHERE}.status") for value in ODD_STATUSES),
    *((row(1, error=value), f"{WHERE}.error") for value in (5, True, ["a"], {"a": 1})),
    *((row(1, errors=value), f"{WHERE}.errors") for value in (5, True, "a", {"a": 1})),
    (row(1, errors=["a", 5]), f"{WHERE}.errors[1]"),
]

# Rows whose task is unknown, and what is wrong with them.
NO_ROWS: list[Any] = [None, 66, 0.5, "text", True]
NO_IDS: list[Any] = ["66", 66.5, True, [66], {}, ""]
UNREADABLE: list[tuple[Any, str]] = [
    *((each, WHERE) for each in NO_ROWS),
    *((row(value), f"{WHERE}.task_id") for value in NO_IDS),
    ([66], f"{WHERE}[0]"),
    ([[[[[row(1)]]]]], f"{WHERE}[0][0][0][0]"),
]


@pytest.mark.parametrize(
    ("odd", "expected", "of_task", "of_none"),
    [
        *((odd, expected, {}, []) for odd, expected in ODD_BUT_READABLE),
        *((odd, [], {1: where}, []) for odd, where in UNREADABLE_OF_TASK),
        *((odd, [], {}, [where]) for odd, where in UNREADABLE),
    ],
)
def test_an_odd_row_is_read_as_far_as_it_makes_sense_or_else_named_by_its_task_or_path(
    odd: Any, expected: Read, of_task: dict[int, str], of_none: list[str]
) -> None:
    rows = read(reply(entry(documented_row(64), odd, documented_row(65))))
    sound = (64, "Running", 64, None), (65, "Running", 65, None)
    assert members(rows) == [sound[0], *expected, sound[1]]
    assert {task_id: error.where for task_id, error in rows.unreadable_tasks.items()} == of_task
    assert [error.where for error in rows.unreadable] == of_none


RAW_ODDITIES = {
    "NaN": b"NaN",
    "Infinity": b"-Infinity",
    "half a surrogate": rb'"a \ud800 b"',
    "the other half": rb'"\udfffa"',
    "a whole surrogate after an escaped backslash": rb'"\\\\\ud83d\ude00"',
    "an escaped backslash before a u": rb'"\\ud800"',
    "a number too large for a float": b"1e999",
    "a number of 9,000 digits": b"1" + b"0" * 9000,
    "a control character": b'"a\tb"',
    "another charset": '"плохо"'.encode("cp1251"),
}


@pytest.mark.parametrize("value", RAW_ODDITIES.values(), ids=RAW_ODDITIES)
@pytest.mark.parametrize("name", ["name", "status", "error", "task_id", "initial_task_id"])
def test_a_value_that_is_hardly_json_costs_no_other_row(name: str, value: bytes) -> None:
    told = to_bytes(documented_row(1) | {name: "THE VALUE"}).replace(b'"THE VALUE"', value)
    body = reply(entry(documented_row(64), "THE ROW", documented_row(65)))
    body = body.replace(b'"THE ROW"', told)
    rows = read(body)
    assert statuses(rows)[0] == (64, "Running")
    assert statuses(rows)[-1] == (65, "Running")
    for each in rows.rows:
        f"{each.status}{each.error}".encode()  # texts can be shown and written
    [detailed] = map(result_of, decode_rows(body, CHECK, 1, keep_bytes=True))
    for each in detailed.rows:
        assert isinstance(each, DetailedRow)
        assert "uri" in details_of(each)


half_right_rows = st.fixed_dictionaries(
    {},
    optional={
        "task_id": st.integers(0, 3) | any_json,
        "status": st.sampled_from(TaskStatus) | any_json,
        "initial_task_id": st.integers(0, 3) | any_json,
        "error": st.text() | any_json,
        "errors": st.lists(st.text()) | any_json,
        "test_results": any_json,
        "chain": st.lists(st.builds(row, st.integers(0, 3), any_json) | any_json),
    },
)


@given(
    st.lists(st.integers(100, 10**6), unique=True, min_size=1),
    st.lists(any_json | half_right_rows | st.lists(half_right_rows), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_odd_rows_cost_no_other_task(task_ids: list[int], odd: list[Any], random: Any) -> None:
    told: list[Any] = [documented_row(task_id) for task_id in task_ids]
    for each in odd:
        told.insert(random.randrange(len(told) + 1), each)
    rows = read(reply(entry(*told)))
    found = [each for each in members(rows) if each[0] in task_ids]
    assert found == [(task_id, "Running", task_id, None) for task_id in task_ids]
    assert rows.unreadable_tasks.keys().isdisjoint(task_ids)


# --- Chains ---------------------------------------------------------------------------------------


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[Any], dict[int, tuple[str, int | None]]]:
    """Return a result with restart chains in any form, and each task's status and chain."""
    ids = iter(draw(st.lists(st.integers(0, MAX_ID), unique=True, min_size=12, max_size=12)))
    result: list[Any] = []
    expected: dict[int, tuple[str, int | None]] = {}
    for size in draw(st.lists(st.integers(1, 3), max_size=4)):
        chain = [next(ids) for _ in range(size)]
        rows = [row(task_id, draw(st.sampled_from(TaskStatus))) for task_id in chain]
        form = draw(st.sampled_from(["flat", "list", "member"]))
        given_in = draw(st.sampled_from(["none", "first", "all"]))
        if form != "member" and size > 1:
            given_in = "all"  # nothing else proves that they belong together
        for each in rows[: {"none": 0, "first": 1, "all": size}[given_in]]:
            each["initial_task_id"] = min(chain)
        alone = size == 1 and given_in == "none"
        expected |= {
            each["task_id"]: (each["status"], None if alone else min(chain)) for each in rows
        }
        if form == "flat":
            result += rows
        elif form == "list":
            result.append(draw(st.permutations(rows)))
        else:
            first, *others = draw(st.permutations(rows))
            result.append(first | {draw(st.sampled_from(["chain", "", "результат"])): others})
    return draw(st.permutations(result)), expected


@given(chains())
def test_chains_are_found_in_all_their_forms(
    case: tuple[list[Any], dict[int, tuple[str, int | None]]],
) -> None:
    result, expected = case
    rows = read(reply(entry(*result)))
    assert {each[0]: each[1:3] for each in members(rows)} == expected
    assert len(rows.rows) == len(expected)
    assert not rows.unreadable
    assert not rows.unreadable_tasks


NESTED: list[tuple[Any, Read, dict[int, str]]] = [
    (row(1), RUNNING, {}),  # one row may come without its array
    # A chain that is given is not overruled by the smallest id.
    (
        [row(64, "Stalled", chain=[row(1064, initial_task_id=7), row(1065, initial_task_id=8)])],
        [(64, "Stalled", 7, None), (1064, "Running", 7, None), (1065, "Running", 8, None)],
        {},
    ),
    # A reference to a task is no row.
    ([row(1, depends_on=[{"task_id": 7}, {"task_id": "8", "status": "x"}, 9])], RUNNING, {}),
    ([row(1, chain=[row(2, 5)])], RUNNING, {2: "$.reply[0].result[0].chain[0].status"}),
    # A list around rows makes no chain of them.
    (
        [[row(1), row(65), row(1066, initial_task_id=66)]],
        [*RUNNING, (65, "Running", None, None), (1066, "Running", 66, None)],
        {},
    ),
]


@pytest.mark.parametrize(("result", "expected", "unreadable"), NESTED)
def test_of_what_is_nested_only_rows_are_read_and_only_chains_make_chains(
    result: Any, expected: Read, unreadable: dict[int, str]
) -> None:
    rows = read(reply({"method": TASK_STATUS, "result": result}))
    assert members(rows) == expected
    assert {task_id: error.where for task_id, error in rows.unreadable_tasks.items()} == unreadable
    assert not rows.unreadable


# --- Details --------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"error": []}, {"raw": 5, "": 1}], ids=str)
def test_a_row_keeps_its_other_members(extra: dict[str, Any]) -> None:
    told = documented_row(64) | extra
    [answer] = decode_rows(reply(entry(told)), CHECK, 1, keep_bytes=True)
    [found] = result_of(answer).rows
    assert isinstance(found, DetailedRow)
    hidden = ("task_id", "status", "error")
    expected = {name: value for name, value in told.items() if name not in hidden}
    assert details_of(found) == expected
    state = TaskState(64, found.status, details=details_of(found))
    assert pickle.loads(pickle.dumps(state)) == state == TaskState(64, "Running", details=expected)


def test_a_row_without_its_json_has_no_details() -> None:
    [answer] = decode_rows(reply(entry(documented_row(64))), CHECK, 1)
    assert details_of(result_of(answer).rows[0]) == {}


# --- Which call an entry answers ------------------------------------------------------------------


def test_replies_are_told_apart_by_id() -> None:
    exchange = sample("two_calls")
    methods = [call["method"] for call in exchange["request"]["methods"]]
    first, second = map(result_of, decode_rows(to_bytes(exchange["reply"]), methods, 1))
    assert statuses(first) == [(64, "Explore")]
    assert statuses(second) == [(71, "Running"), (70, "Completed")]
    assert first.where == "$.reply[1].result"


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[list[str], int, list[dict[str, Any]], list[int]]:
    """Return calls, and the entries that answer them: with ids, or in an order that tells."""
    methods = draw(st.lists(st.sampled_from([TASK_STATUS, TASK_STOP, "Other"]), min_size=1))
    first_id = draw(st.integers(1, 1000))
    odd_row = draw(st.sampled_from([[], [5]]))  # which makes for a second reading
    entries = [entry(row(n), *odd_row, method=method) for n, method in enumerate(methods)]
    order = list(range(len(methods)))
    if draw(st.booleans()):
        order = draw(st.permutations(order))
        for n, each in enumerate(entries):
            each["id"] = first_id + n
            if draw(st.booleans()):
                del each["method"]
    elif draw(st.booleans()):
        # Without ids, the calls of one method are answered in their order.
        order = sorted(order, key=lambda n: methods[n])
    return methods, first_id, [entries[n] for n in order], order


@given(exchanges())
def test_each_call_gets_its_own_answer(
    exchange: tuple[list[str], int, list[dict[str, Any]], list[int]],
) -> None:
    methods, first_id, entries, order = exchange
    answers = list(map(result_of, decode_rows(reply(*entries), methods, first_id)))
    assert [statuses(answer) for answer in answers] == [[(n, "Running")] for n in range(len(order))]
    for n, answer in enumerate(answers):
        assert answer.where == f"$.reply[{order.index(n)}].result"


def test_entries_that_nobody_asked_for_shift_nothing() -> None:
    mine = entry(row(1), id=5)
    others = [entry(row(9), id=99), entry(row(8), method="Other")]
    [answer] = decode_rows(reply(*others, mine), CHECK, 5)
    assert statuses(result_of(answer)) == [(1, "Running")]


# What comes beside a good answer to call 2, and where the answer to call 1 is wrong.
ODD_ENTRIES: list[tuple[list[Any], str]] = [
    ([], "$.reply"),
    ([None], "$.reply[1]"),
    ([[]], "$.reply[1]"),
    ([5, entry(method="Other")], "$.reply[1]"),
    ([entry(row(1), id="1")], "$.reply[1].id"),
    ([entry(row(1), id=True)], "$.reply[1].id"),
    ([entry(row(1), id=1.0)], "$.reply[1].id"),
    ([entry(row(1), method=5, id=1)], "$.reply[1].method"),
    ([entry(row(1), method=TASK_STOP, id=1)], "$.reply[1].method"),
    ([entry(row(1), id=1), entry(row(1), id=1)], "$.reply[2].id"),
    ([{"id": 1}], "$.reply[1]"),
    ([{"id": 1, "result": None}], "$.reply[1].result"),
    ([{"id": 1, "result": None, "error": "", "errors": [""]}], "$.reply[1].result"),
    ([{"id": 1, "result": "ok"}], "$.reply[1].result"),
    ([{"id": 1, "result": 5}], "$.reply[1].result"),
]


@pytest.mark.parametrize(("odd", "where"), ODD_ENTRIES)
def test_an_odd_entry_costs_its_own_call_at_most(odd: list[Any], where: str) -> None:
    first, second = decode_rows(reply(entry(row(2), id=2), *odd), [TASK_STATUS] * 2, 1)
    error = refused(first)
    assert isinstance(error, ReplyError)
    assert error.where == where
    assert statuses(result_of(second)) == [(2, "Running")]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"error": None, "errors": None}, None),
        ({"error": "", "errors": []}, None),
        ({"error": [], "errors": ""}, None),
        ({"errors": ["a", "", "b"]}, "a; b"),
        ({"errors": "a"}, "a"),
        ({"errors": [5, {"a": None}, None]}, '5; {"a":null}'),
    ],
)
def test_texts_of_any_shape_refuse_only_what_has_no_result(
    told: dict[str, Any], words: str | None
) -> None:
    rows = read(reply(entry(row(1), **told)))
    assert (statuses(rows), rows.words) == ([(1, "Running")], words)
    body = to_bytes({"error": told.get("error"), "reply": [entry(row(1), **told)]})
    assert statuses(read(body)) == [(1, "Running")]
    for more in ({}, {"result": None}, {"result": "none"}):
        [answer] = decode_rows(reply({"method": TASK_STATUS, **more, **told}), CHECK, 1)
        assert isinstance(answer, MethodError if words else ReplyError)
        assert getattr(answer, "message", None) == words


# --- Refusals -------------------------------------------------------------------------------------

TEXTS: list[tuple[str, type[MethodError]]] = [
    ("user 5 is unavailable", UserUnavailableError),
    ("User 5 is unavailable.", UserUnavailableError),
    ("project 9 does not exist", ProjectNotFoundError),
    ("access denied to tasks [66, 68]", TasksDeniedError),
    ("Access denied to task 66", TasksDeniedError),
    ("Undefined method 'TestMethod'", UndefinedMethodError),
    ("undefined method", UndefinedMethodError),
    ("task 5 is unavailable", MethodError),
    ("superuser is unavailable", MethodError),
    ("license expired", MethodError),
]


@pytest.mark.parametrize(("text", "kind"), TEXTS)
def test_the_texts_of_refusals_have_their_classes(text: str, kind: type[MethodError]) -> None:
    body = reply({"method": TASK_STOP, "error": text})
    [answer] = decode_rows(body, [TASK_STOP], 1)
    assert isinstance(answer, MethodError)
    assert type(answer) is kind
    assert (answer.method, answer.message) == (TASK_STOP, text)
    with pytest.raises(kind):
        decode_result(body, TASK_STOP, 1)


DENIALS: list[tuple[str, tuple[int, ...]]] = [
    ("access denied to tasks [66, 68]", (66, 68)),
    ("access denied to tasks [66,68]", (66, 68)),
    ("access denied to tasks [ 66 ,68 ]", (66, 68)),
    ("access denied to tasks [66]", (66,)),
    ("access denied to tasks []", ()),
    ("access denied to tasks 66, 68", ()),
    ("access denied to tasks [all]", ()),
    ("access denied to tasks [66, -68]", ()),
    ("access denied to tasks [" + "9" * 5000 + "]", ()),
    (f"access denied to tasks [{2**63}, {MAX_ID}]", (MAX_ID,)),
    ("access denied to tasks [٦٦]", ()),
    (f"access denied to tasks {list(range(1000))}", tuple(range(1000))),
]


@pytest.mark.parametrize(("text", "task_ids"), DENIALS)
def test_a_denial_names_its_ids(text: str, task_ids: tuple[int, ...]) -> None:
    error = method_error(TASK_STOP, text)
    assert isinstance(error, TasksDeniedError)
    assert error.task_ids == task_ids


@pytest.mark.parametrize("name", ["user_unavailable", "user_unavailable_entry"])
@pytest.mark.parametrize("methods", [[TASK_STOP], [TASK_STOP] * 3], ids=len)
def test_an_unavailable_user_refuses_the_whole_request(name: str, methods: list[str]) -> None:
    with pytest.raises(UserUnavailableError) as caught:
        decode_rows(to_bytes(sample(name)["reply"]), methods, 1)
    assert caught.value.message == "user 5 is unavailable"


@pytest.mark.parametrize("error", ["license expired", ["license expired"], 5, True])
def test_any_other_error_of_the_whole_request_is_one_of_every_call(error: Any) -> None:
    answers = decode_rows(to_bytes({"error": error}), [TASK_STATUS, TASK_STOP], 1)
    text = error if isinstance(error, str) else json.dumps(error)
    assert [str(answer) for answer in answers] == [f"TaskStatus: {text}", f"TaskStop: {text}"]
    assert {type(answer) for answer in answers} == {MethodError}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("project_missing", ProjectNotFoundError),
        ("tasks_denied", TasksDeniedError),
        ("method_undefined", UndefinedMethodError),
    ],
)
def test_the_documented_refusals_leave_the_other_calls_their_answers(
    name: str, kind: type[MethodError]
) -> None:
    (told,) = sample(name)["reply"]["reply"]
    [alone] = decode_rows(reply(told), [told["method"]], 1)
    body = reply(told | {"id": 2}, entry(row(1), id=1))
    first, second = decode_rows(body, [TASK_STATUS, told["method"]], 1)
    assert statuses(result_of(first)) == [(1, "Running")]
    for answer in (alone, second):
        assert isinstance(answer, kind)
        assert (answer.method, answer.message) == (told["method"], told["error"])


# --- Bodies that are no reply ---------------------------------------------------------------------

DEEP = b"[" * 100_000 + b"]" * 100_000
GOOD = reply(entry(row(1), row(2)))

NO_REPLIES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "$"),
    "blank": (b" \r\n", "$"),
    "truncated": (GOOD[:-20], "$"),
    "more behind it": (GOOD + b"x", "$"),
    "UTF-16": (GOOD.decode().encode("utf-16"), "$"),
    "NUL bytes": (b"\0" * 10, "$"),
    "a web page": (b"<html><body>hello</body></html>", "$"),
    "a web page after a mark": (BOM + b"\r\n <!DOCTYPE html>", "$"),
    "words": (b"Bad Gateway", "$"),
    "deep": (DEEP, "$"),
    "deep inside": (b'{"reply": [{"method": "TaskStatus", "result": ' + DEEP + b"}]}", "$"),
    "deep in an unread member": (b'{"x": ' + DEEP + b', "reply": []}', "$"),
    "null": (b"null", "$"),
    "a number": (b"66", "$"),
    "an array": (b"[]", "$"),
    "no reply": (b"{}", "$"),
    "reply is null": (b'{"reply": null}', "$"),
    "reply is null beside an odd error": (b'{"error": [], "reply": null}', "$.reply"),
    "reply is an object": (b'{"reply": {}}', "$.reply"),
    "reply is a string": (b'{"reply": "ok"}', "$.reply"),
}


@pytest.mark.parametrize(("body", "where"), NO_REPLIES.values(), ids=NO_REPLIES)
def test_a_body_that_is_no_reply_is_an_error_that_says_where(body: bytes, where: str) -> None:
    for decode in (
        lambda: decode_rows(body, CHECK, 1),
        lambda: decode_rows(body, CHECK, 1, keep_bytes=True),
        lambda: decode_result(body, TASK_STATUS, 1),
    ):
        with pytest.raises(ReplyError) as caught:
            decode()
        assert caught.value.where.startswith(where)
        assert len(str(caught.value)) <= MAX_TEXT
        assert isinstance(caught.value, HtmlReplyError) is (b"<" in body[:10])
        assert str(caught.value.args[0])


def test_the_excerpt_shows_what_is_wrong_in_a_long_reply() -> None:
    good = b", ".join(map(to_bytes, map(row, range(100))))
    body = b'{"reply": [{"result": [' + good + b', {"task_id": oops}, ' + good + b"]}]}"
    with pytest.raises(ReplyError) as caught:
        decode_rows(body, CHECK, 1)
    assert "oops" in caught.value.excerpt
    assert caught.value.excerpt.startswith("...")
    assert caught.value.excerpt.endswith("...")


def test_a_reply_at_the_edge_of_what_can_be_nested_is_no_crash() -> None:
    for depth in range(100, sys.getrecursionlimit() + 100):
        deep = b"[" * depth + b"]" * depth
        body = b'{"reply": [{"result": [{"task_id": 1, "status": 5, "x": ' + deep + b"}]}]}"
        only_our_errors(body, CHECK)


# --- The result of any method ---------------------------------------------------------------------

RESULTS = [{"status": "ok", "ids": [1, None]}, None, 5, "text", [], [[{"task_id": 1}]]]


@pytest.mark.parametrize("result", RESULTS, ids=str)
@pytest.mark.parametrize("more", [{}, {"errors": "odd"}], ids=str)
def test_any_result_of_any_method_is_returned_as_it_is(result: Any, more: dict[str, Any]) -> None:
    body = reply({"method": "TaskInfo", "id": 7, "result": result, **more})
    assert decode_result(body, "TaskInfo", 7) == result


@pytest.mark.parametrize(
    ("told", "kind", "where"),
    [
        ({"method": "TaskInfo"}, ReplyError, "$.reply[0]"),
        ({"method": "Other", "result": 5}, ReplyError, "$.reply"),
        ({"method": "TaskInfo", "errors": ["a", "b"]}, MethodError, ""),
    ],
)
def test_a_call_without_a_result_raises(
    told: dict[str, Any], kind: type[CtrlApiError], where: str
) -> None:
    with pytest.raises(kind) as caught:
        decode_result(reply(told), "TaskInfo", 1)
    assert getattr(caught.value, "where", "") == where


# --- Anything at all ------------------------------------------------------------------------------

half_right = st.fixed_dictionaries(
    {},
    optional={
        "error": any_json,
        "reply": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "method": st.just(TASK_STATUS) | any_json,
                    "id": st.integers(0, 3) | any_json,
                    "error": st.text() | any_json,
                    "errors": st.lists(st.text()) | any_json,
                    "result": st.lists(half_right_rows | st.lists(half_right_rows)) | any_json,
                },
            )
        )
        | any_json,
    },
)


def only_our_errors(body: bytes, methods: list[str]) -> None:
    for keep_bytes in (False, True):
        try:
            answers = decode_rows(body, methods, 1, keep_bytes=keep_bytes)
        except CtrlApiError:
            continue
        assert len(answers) == len(methods)
        assert all(isinstance(each, Rows | CtrlApiError) for each in answers)
        for answer in answers:
            for each in answer.rows if isinstance(answer, Rows) else ():
                assert 0 <= each.task_id <= MAX_ID
                assert each.errors is None
                assert each.error is None or each.error
                assert each.status is None or each.status
    with suppress(CtrlApiError):
        decode_result(body, methods[0], 1)


def outcome(body: bytes) -> object:
    try:
        [answer] = decode_rows(body, CHECK, 1)
    except CtrlApiError as error:
        return type(error)
    return members(answer) if isinstance(answer, Rows) else type(answer)


@given(any_json | half_right, st.lists(st.just(TASK_STATUS), min_size=1, max_size=3))
def test_any_json_is_a_reply_or_one_of_our_errors_and_both_readings_agree(
    document: Any, methods: list[str]
) -> None:
    only_our_errors(to_bytes(document), methods)
    only_our_errors(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"), methods)
    if isinstance(document, dict):
        # A member that nobody reads, and that only the second reading accepts, changes nothing.
        second = to_bytes({"x": "THE VALUE"} | document).replace(b'"THE VALUE"', b"NaN", 1)
        assert outcome(to_bytes(document)) == outcome(second)


@given(st.binary() | st.text().map(str.encode), st.data())
def test_a_reply_with_noise_in_it_or_nothing_but_noise_is_no_crash(
    noise: bytes, data: st.DataObject
) -> None:
    only_our_errors(noise, CHECK)
    good = to_bytes(sample("status_rich")["reply"])
    at = data.draw(st.integers(0, len(good)))
    cut = data.draw(st.integers(at, len(good)))
    only_our_errors(good[:at] + noise + good[cut:], CHECK)
