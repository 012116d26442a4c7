"""The wire: requests as documented, replies matched by id, and nothing but our own errors."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import any_json, body, entry, reply, row, sample

from ctrlapi_async import (
    ALL_ACTIVE,
    CtrlApiError,
    MethodError,
    ProjectNotFoundError,
    ReplyError,
    TasksDeniedError,
    UndefinedMethodError,
    UserUnavailableError,
    session,
    wire,
)
from ctrlapi_async.errors import HtmlReplyError

if TYPE_CHECKING:
    from collections.abc import Mapping

DECODERS: list[wire.ReplyDecoder[Any]] = [
    wire.ROWS,
    session._STATES,
    session._ANYTHING,
]
CHECK = [wire.TASK_STATUS]

both_decoders = pytest.mark.parametrize("decoder", DECODERS, ids=["rows", "states", "anything"])


def rows_of(answer: object) -> list[tuple[int, str | None, str | None]]:
    assert isinstance(answer, wire.Answer), answer
    return [(each.task_id, each.status, each.error) for each in answer.result]


def decode(
    reply_body: bytes, methods: list[str] = CHECK, first_id: int = 1
) -> list[wire.Answer[Any] | CtrlApiError]:
    return list(wire.ROWS.decode(reply_body, methods, first_id))


def refused(answer: object) -> CtrlApiError:
    assert isinstance(answer, CtrlApiError), answer
    return answer


# --- Requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stop_one", "stop_two", "stop_missing", "status_all_active"])
def test_requests_are_as_documented_with_an_id(name: str) -> None:
    documented = sample(name)["request"]
    (call,) = documented["methods"]
    task_ids = call["params"]["task_ids"]
    listed = ALL_ACTIVE if task_ids == "*" else task_ids
    params = wire.task_params(2, wire.ids_text([listed] if isinstance(listed, int) else listed))
    sent = json.loads(wire.encode(1, [(call["method"], params)], first_id=7))
    assert sent["methods"][0].pop("id") == 7
    assert sent == documented


@given(st.integers(0), st.lists(st.integers(0, 2**63 - 1), min_size=1))
def test_one_id_goes_bare_and_several_as_an_array(project_id: int, task_ids: list[int]) -> None:
    params = wire.task_params(project_id, wire.ids_text(task_ids))
    assert json.loads(wire.encode(1, [("TaskStop", params)]))["methods"][0]["params"] == {
        "project_id": project_id,
        "task_ids": task_ids[0] if len(task_ids) == 1 else task_ids,
    }


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.tuples(st.text(), st.dictionaries(st.text(), any_json)), min_size=1),
    st.integers(1, 10**9),
)
def test_a_request_is_json_with_ids_that_count_on(
    user_id: int, calls: list[tuple[str, Mapping[str, Any]]], first_id: int
) -> None:
    # Python's own JSON, for what no 64-bit number can hold.
    assert json.loads(wire.encode(user_id, calls, first_id)) == {
        "user_id": user_id,
        "methods": [
            {"method": method, "id": number, "params": params}
            for number, (method, params) in enumerate(calls, first_id)
        ],
    }


def test_what_json_cannot_hold_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        wire.encode(1, [("TaskStop", {"task_ids": object()})])


# --- Replies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stop_one", "stop_two", "stop_missing"])
def test_the_documented_replies_are_read(name: str) -> None:
    documented = sample(name)["reply"]
    [answer] = decode(body(documented), [wire.TASK_STOP])
    assert rows_of(answer) == [
        (each["task_id"], each.get("status"), each.get("error"))
        for each in documented["reply"][0]["result"]
    ]


def test_unknown_members_are_ignored_and_unknown_statuses_survive() -> None:
    [answer] = decode(body(sample("status_rich")["reply"]), first_id=7)
    assert rows_of(answer) == [
        (64, "Running", None),
        (65, "Hibernating", None),
        (66, None, "Task does not exist"),
    ]
    assert isinstance(answer, wire.Answer)
    assert answer.words == "task 66 was not found"
    assert answer.where == "$.reply[0].result"


def test_replies_are_told_apart_by_id() -> None:
    exchange = sample("two_calls")
    methods = [call["method"] for call in exchange["request"]["methods"]]
    first, second = decode(body(exchange["reply"]), methods)
    assert rows_of(first) == [(64, "Explore", None)]
    assert rows_of(second) == [(71, "Running", None), (70, "Completed", None)]
    assert isinstance(first, wire.Answer)
    assert first.where == "$.reply[1].result"


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[list[str], int, list[dict[str, Any]], list[int]]:
    """Calls, and entries that answer them: with or without ids, in an order that tells."""
    methods = draw(st.lists(st.sampled_from(["TaskStatus", "TaskStop", "Other"]), min_size=1))
    first_id = draw(st.integers(1, 1000))
    entries = [entry(row(n), method=method) for n, method in enumerate(methods)]
    order = list(range(len(methods)))
    if draw(st.booleans()):
        order = draw(st.permutations(order))
        for n, each in enumerate(entries):
            each["id"] = first_id + n
            if draw(st.booleans()):
                del each["method"]
    elif draw(st.booleans()):
        # Without ids, the calls of one method are answered in their order.
        by_method = sorted(order, key=lambda n: methods[n])
        order = by_method
    return methods, first_id, [entries[n] for n in order], order


@given(exchanges())
def test_each_call_gets_its_own_answer(
    exchange: tuple[list[str], int, list[dict[str, Any]], list[int]],
) -> None:
    methods, first_id, entries, order = exchange
    answers = decode(reply(*entries), methods, first_id)
    assert [rows_of(answer) for answer in answers] == [
        [(n, "Running", None)] for n in range(len(methods))
    ]
    for n, answer in enumerate(answers):
        assert isinstance(answer, wire.Answer)
        assert answer.where == f"$.reply[{order.index(n)}].result"


def test_entries_that_nobody_asked_for_shift_nothing() -> None:
    mine = entry(row(1), id=5)
    strange = entry(row(9), id=99)
    other = entry(row(8), method="Other")
    [answer] = decode(reply(strange, other, mine), first_id=5)
    assert rows_of(answer) == [(1, "Running", None)]


def test_a_call_without_an_entry_leaves_the_others_theirs() -> None:
    first, second = decode(reply(entry(row(2), id=2)), ["TaskStatus"] * 2)
    error = refused(first)
    assert isinstance(error, ReplyError)
    assert error.where == "$.reply"
    assert rows_of(second) == [(2, "Running", None)]


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
    ("", MethodError),
]


@pytest.mark.parametrize(("text", "kind"), TEXTS)
@both_decoders
def test_refusals_have_their_kind(
    decoder: wire.ReplyDecoder[Any], text: str, kind: type[MethodError]
) -> None:
    [answer] = decoder.decode(reply({"method": "TaskStop", "error": text}), [wire.TASK_STOP])
    assert type(answer) is kind
    assert (answer.method, answer.message) == (wire.TASK_STOP, text)


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
]


@pytest.mark.parametrize(("text", "task_ids"), DENIALS)
def test_a_denial_names_its_ids(text: str, task_ids: tuple[int, ...]) -> None:
    error = wire.method_error(wire.TASK_STOP, text)
    assert isinstance(error, TasksDeniedError)
    assert error.task_ids == task_ids


REFUSALS = ["project_missing", "tasks_denied", "method_undefined"]


@pytest.mark.parametrize("name", REFUSALS)
def test_the_documented_refusals_are_errors_of_their_call(name: str) -> None:
    document = sample(name)["reply"]
    (told,) = document["reply"]
    [answer] = decode(body(document), [told["method"]])
    assert isinstance(answer, MethodError)
    assert type(answer) is not MethodError
    assert (answer.method, answer.message) == (told["method"], told["error"])


@pytest.mark.parametrize("name", ["user_unavailable", "user_unavailable_entry"])
@pytest.mark.parametrize("methods", [["TaskStop"], ["TaskStop"] * 3], ids=len)
def test_an_unavailable_user_refuses_the_request_as_a_whole(name: str, methods: list[str]) -> None:
    with pytest.raises(UserUnavailableError) as caught:
        decode(body(sample(name)["reply"]), methods)
    assert caught.value.message == "user 5 is unavailable"


def test_any_other_error_of_the_whole_request_is_every_calls() -> None:
    answers = decode(body({"error": "license expired"}), ["TaskStatus", "TaskStop"])
    assert [str(answer) for answer in answers] == [
        "TaskStatus: license expired",
        "TaskStop: license expired",
    ]


def test_a_refused_call_leaves_the_others_their_answers() -> None:
    (told,) = sample("project_missing")["reply"]["reply"]
    first, second = decode(
        reply(told | {"id": 2}, entry(row(1), id=1)), [wire.TASK_STATUS, wire.TASK_STOP]
    )
    assert rows_of(first) == [(1, "Running", None)]
    assert isinstance(second, ProjectNotFoundError)


def test_errors_beside_no_result_refuse_the_call() -> None:
    [answer] = decode(reply({"method": "TaskStatus", "errors": ["no disk", "no luck"]}))
    assert isinstance(answer, MethodError)
    assert answer.message == "no disk; no luck"


# --- Malformed replies ----------------------------------------------------------------------------

DEEP = b"[" * 100_000 + b"]" * 100_000
ROW = '{"task_id": 1, "status": "Running"}'


def with_rows(*texts: str) -> bytes:
    return f'{{"reply": [{{"method": "TaskStatus", "result": [{", ".join(texts)}]}}]}}'.encode()


# What comes, and where it is wrong.
MALFORMED: list[tuple[str, bytes, str]] = [
    ("empty", b"", "$"),
    ("blank", b" \r\n", "$"),
    ("truncated", with_rows(ROW, ROW)[:-20], "$"),
    ("more behind it", reply() + b"x", "$"),
    ("not UTF-8", '{"reply": [], "error": "плохо"}'.encode("cp1251"), "$"),
    ("UTF-16", reply().decode().encode("utf-16"), "$"),
    ("NUL bytes", b"\0" * 10, "$"),
    ("a web page", b"<html><body>hello</body></html>", "$"),
    ("a web page after a mark", b"\xef\xbb\xbf\r\n <!DOCTYPE html>", "$"),
    ("words", b"Bad Gateway", "$"),
    ("deep", DEEP, "$"),
    ("deep inside", b'{"reply": [{"method": "TaskStatus", "result": ' + DEEP + b"}]}",
     "$.reply[0].result[0]"),
    ("deep in a member nobody reads", b'{"x": ' + DEEP + b', "reply": []}', "$"),
    ("too deep to be searched", b'{"x": ' + DEEP[99_020:100_980] + b', "id": 1, "reply": []}', "$"),
    ("null", b"null", "$"),
    ("a number", b"66", "$"),
    ("an array", b"[]", "$"),
    ("no reply", b"{}", "$"),
    ("reply is null", b'{"reply": null}', "$.reply"),
    ("reply is an object", b'{"reply": {}}', "$.reply"),
    ("reply is a string", b'{"reply": "ok"}', "$.reply"),
    ("error is a number", b'{"error": 5}', "$.error"),
    ("an entry is null", b'{"reply": [null]}', "$.reply[0]"),
    ("an entry is an array", b'{"reply": [[]]}', "$.reply[0]"),
    ("method is a number", reply(entry(method=5)), "$.reply[0].method"),
    ("id is a string", reply(entry(id="1")), "$.reply[0].id"),
    ("id is a bool", reply(entry(id=True)), "$.reply[0].id"),
    ("id is a float", reply(entry(id=1.0)), "$.reply[0].id"),
    ("errors is a string", reply(entry(errors="no")), "$.reply[0].errors"),
    ("errors holds numbers", reply(entry(errors=["no", 5])), "$.reply[0].errors[1]"),
    ("result is an object", reply({"method": "TaskStatus", "result": {}}), "$.reply[0].result"),
    ("result is a string", reply({"method": "TaskStatus", "result": "ok"}), "$.reply[0].result"),
    ("a row is null", with_rows(ROW, "null"), "$.reply[0].result[1]"),
    ("a row is a number", with_rows("66"), "$.reply[0].result[0]"),
    ("a row is an array", with_rows("[66]"), "$.reply[0].result[0]"),
    ("no task_id", with_rows(ROW, ROW, ROW, '{"status": "Running"}'),
     "$.reply[0].result[3].task_id"),
    *(
        (f"task_id is {value}", with_rows(ROW, f'{{"task_id": {value}, "status": "Running"}}'),
         "$.reply[0].result[1].task_id")
        for value in ("null", '"66"', "66.5", "66.0", "true", "[66]", "-1", str(2**63),
                      "1" + "0" * 400, "1" + "0" * 9000, "1e400")
    ),
    ("task_id is NaN", with_rows('{"task_id": NaN}'), "$"),
    ("status is Infinity", with_rows('{"task_id": 1, "status": Infinity}'), "$"),
    *(
        (f"{name} is {value}", with_rows(f'{{"task_id": 1, "{name}": {value}}}'),
         f"$.reply[0].result[0].{name}")
        for name in ("status", "error") for value in ("5", "true", "[]", "{}", "0.5")
    ),
    ("half a surrogate", with_rows(r'{"task_id": 1, "status": "\ud800"}'), "$"),
    ("a second entry for a call", reply(entry(id=1), entry(id=1)), "$.reply[1].id"),
    ("another method's entry", reply(entry(id=1, method="TaskStop")), "$.reply[0].method"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("reply_body", "where"),
    [(reply_body, where) for _, reply_body, where in MALFORMED],
    ids=[name for name, _, _ in MALFORMED],
)
def test_a_malformed_reply_is_an_error_that_says_where(reply_body: bytes, where: str) -> None:
    with pytest.raises(ReplyError) as caught:
        decode(reply_body)
    assert caught.value.where == where
    assert len(caught.value.excerpt) <= wire.EXCERPT + len("......")
    assert len(str(caught.value)) < 4 * wire.EXCERPT
    assert isinstance(caught.value, HtmlReplyError) is (b"<" in reply_body[:10])


LACKING: list[tuple[dict[str, Any], str]] = [
    ({"method": "TaskStatus"}, "$.reply[0]"),
    ({"method": "TaskStatus", "id": 1}, "$.reply[0]"),
    ({"method": "TaskStatus", "result": None}, "$.reply[0].result"),
    ({"method": "Other", "result": []}, "$.reply"),
    ({"id": 99, "result": []}, "$.reply"),
]


@pytest.mark.parametrize(("told", "where"), LACKING)
@both_decoders
def test_an_entry_without_a_result_fails_its_call(
    decoder: wire.ReplyDecoder[Any], told: dict[str, Any], where: str
) -> None:
    [answer] = decoder.decode(reply(told), CHECK)
    assert isinstance(answer, ReplyError)
    assert answer.where == where


def test_the_excerpt_shows_what_is_wrong_in_a_long_reply() -> None:
    good = ", ".join(ROW for _ in range(100))
    with pytest.raises(ReplyError) as caught:
        decode(with_rows(good, '{"task_id": oops}', good))
    assert "oops" in caught.value.excerpt
    assert caught.value.excerpt.startswith("...")
    assert caught.value.excerpt.endswith("...")


LONG = "x" * 10_000
WORDY = [
    reply(entry(id=1, method=LONG)),
    f'{{"{LONG}": 1, "{LONG}": 2, "error": ""}}'.encode(),
    f'{{"{LONG}": {{"a": 1, "a": 2}}, "error": ""}}'.encode(),
    f'{{"reply": "{LONG}"}}'.encode(),
]


@pytest.mark.parametrize("reply_body", WORDY, ids=range(len(WORDY)))
def test_no_error_is_as_long_as_what_a_server_sends(reply_body: bytes) -> None:
    with pytest.raises(ReplyError) as caught:
        decode(reply_body)
    assert len(str(caught.value)) < 5 * wire.EXCERPT


# --- A member that stands twice -------------------------------------------------------------------

TWICE: list[tuple[str, str]] = [
    ('{"reply": [], "reply": []}', "$"),
    ('{"reply": [], "padding": "' + "x" * 100 + '", "reply": []}', "$"),
    ('{"error": "user 5 is unavailable", "error": "no"}', "$"),
    ('{"error": "no", "error": null, "reply": []}', "$"),
    ('{"reply": [{"method": "TaskStop", "method": "TaskStatus", "result": []}]}', "$.reply[0]"),
    ('{"reply": [{"id": 2, "id": 1, "result": []}]}', "$.reply[0]"),
    ('{"reply": [{"result": [], "result": [' + ROW + "]}]}", "$.reply[0]"),
    ('{"reply": [{"result": [' + ROW + '], "result": []}]}', "$.reply[0]"),
    ('{"reply": [{"result": [' + ROW + '], "id": 2, "id": 1}]}', "$.reply[0]"),
    ('{"reply": [{"result": [], "errors": [], "errors": ["no"]}]}', "$.reply[0]"),
    ('{"reply": [{"error": "a", "error": "b"}]}', "$.reply[0]"),
    (with_rows('{"task_id": 1, "task_id": 2, "status": "Running"}').decode(),
     "$.reply[0].result[0]"),
    (with_rows(ROW, '{"task_id": 1, "status": "Running", "status": "Completed"}').decode(),
     "$.reply[0].result[1]"),
    (with_rows('{"task_id": 1, "status": "Running", "status": "Completed"}',
               '{"task_id": 2, "error": "no"}').decode(), "$.reply[0].result[0]"),
    (with_rows('{"task_id": 1, "error": "a", "error": "b"}').decode(), "$.reply[0].result[0]"),
    (with_rows(r'{"task_id": 1, "t\u0061sk_id": 2, "status": "Running"}').decode(),
     "$.reply[0].result[0]"),
    ('{"x": 1' + "0" * 9000 + ', "reply": [], "reply": []}', "$"),
    ('{"x": {"": [{"a": 1, "a": 2}]}, "error": "no"}', "$.x.[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "where"), TWICE)
def test_a_member_that_stands_twice_is_told(text: str, where: str) -> None:
    with pytest.raises(ReplyError, match="stands twice") as caught:
        decode(text.encode())
    assert caught.value.where == where


@pytest.mark.parametrize("decoder", DECODERS[1:], ids=["states", "anything"])
def test_a_detail_that_stands_twice_is_told_by_who_reads_it(
    decoder: wire.ReplyDecoder[Any],
) -> None:
    with pytest.raises(ReplyError, match="`progress` stands twice"):
        decoder.decode(
            with_rows('{"task_id": 1, "status": "Running", "progress": 1, "progress": 2}'), CHECK
        )


@given(st.data())
def test_no_member_stands_twice_unnoticed_wherever_it_stands(data: st.DataObject) -> None:
    running: dict[str, Any] = {"status": "Running"}
    kinds = [running, running | {"name": "x" * 200}, running | {"error": None}, {"error": "no"}]
    told = [
        {"task_id": n} | kind
        for n, kind in enumerate(
            data.draw(
                st.lists(st.sampled_from(kinds[:-1]), min_size=1, max_size=4)
                | st.lists(st.sampled_from(kinds), min_size=1, max_size=4)
            )
        )
    ]
    document = {"reply": [{"method": "TaskStatus", "id": 1, "result": told, "more": 1}]}
    places: list[dict[str, Any]] = [document, *document["reply"], *told]
    place = data.draw(st.sampled_from(places))
    # What nobody reads may stand as often as it likes.
    name = data.draw(st.sampled_from([name for name in place if name not in ("more", "name")]))
    another = data.draw(
        st.sampled_from(["Running", 0, 1, None, [], "TaskStatus", [{"task_id": 9, "status": "x"}]])
    )
    assume(place.get(name) is not None or another is not None)  # two that say nothing
    text = json.dumps(place)
    spelled = data.draw(st.sampled_from([name, f"\\u{ord(name[0]):04x}{name[1:]}"]))
    member = f'"{spelled}": {json.dumps(another)}'
    twice = f"{{{member}, {text[1:]}" if data.draw(st.booleans()) else f"{text[:-1]}, {member}}}"
    with pytest.raises(ReplyError):
        decode(json.dumps(document).replace(text, twice, 1).encode())


# --- Anything at all ------------------------------------------------------------------------------

half_right = st.fixed_dictionaries(
    {},
    optional={
        "error": any_json,
        "reply": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "method": st.just("TaskStatus") | any_json,
                    "id": st.integers(0, 3) | any_json,
                    "error": st.text() | any_json,
                    "errors": st.lists(st.text()) | any_json,
                    "result": st.lists(
                        st.fixed_dictionaries(
                            {"task_id": st.integers(0, 3)},
                            optional={"status": st.text() | any_json, "error": any_json},
                        )
                    )
                    | any_json,
                },
            )
        )
        | any_json,
    },
)


def only_our_errors(reply_body: bytes, methods: list[str]) -> None:
    for decoder in DECODERS:
        try:
            answers = decoder.decode(reply_body, methods)
        except CtrlApiError:
            pass
        else:
            assert len(answers) == len(methods)
            assert all(isinstance(each, wire.Answer | CtrlApiError) for each in answers)


@given(any_json | half_right, st.lists(st.just("TaskStatus"), min_size=1, max_size=3))
def test_any_json_is_a_reply_or_one_of_our_errors(document: Any, methods: list[str]) -> None:
    only_our_errors(body(document), methods)
    only_our_errors(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"), methods)


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_one_of_our_errors(noise: bytes) -> None:
    for decoder in DECODERS:
        with pytest.raises(CtrlApiError):
            decoder.decode(noise, CHECK)


@given(st.binary(max_size=5), st.data())
def test_a_reply_with_noise_in_it_is_still_no_crash(noise: bytes, data: st.DataObject) -> None:
    good = body(sample("status_rich")["reply"])
    at = data.draw(st.integers(0, len(good)))
    cut = data.draw(st.integers(at, len(good)))
    only_our_errors(good[:at] + noise + good[cut:], CHECK)


def test_numbers_that_json_does_not_know_are_refused() -> None:
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ReplyError):
            session._ANYTHING.decode(reply({"method": "TaskStatus", "result": value}), CHECK)


def test_any_result_of_any_method_is_handed_on_as_it_is() -> None:
    [answer] = session._ANYTHING.decode(
        reply({"method": "TaskInfo", "result": {"status": "ok", "ids": [1, None]}}), ["TaskInfo"]
    )
    assert isinstance(answer, wire.Answer)
    assert answer.result == {"status": "ok", "ids": [1, None]}
