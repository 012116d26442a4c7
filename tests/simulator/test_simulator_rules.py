"""What the simulator answers, asked without a socket."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import simulator
from ctrlapi_async.simulator import (
    STATUSES,
    Body,
    ControlApiSimulator,
    CutBody,
    Delay,
    Drop,
    HttpStatus,
    Restart,
    SlowBody,
)
from tests.support.asking import (
    MAX_INT,
    SENT,
    UNAVAILABLE,
    ask,
    call,
    check,
    entries,
    envelope,
    rows,
    statuses,
    stop,
)

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def sim() -> ControlApiSimulator:
    """Return a simulator that does not listen: its rules are asked directly."""
    return ControlApiSimulator()


# --- The documentation's examples -----------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("ids", [63, [64, 65], [66, 67, 68]], ids=str)
def test_curl_gets_the_documented_replies(api: ControlApiSimulator, ids: Any) -> None:
    api.documented_world()
    curl = subprocess.run(
        [
            *("curl", "--silent", "--show-error", "--noproxy", "*", api.endpoint),
            *("-H", "Content-Type: application/json", "--data", json.dumps(stop(ids))),
        ],
        capture_output=True,
        check=True,
    )
    result = [
        {"task_id": n} | ({"error": UNAVAILABLE} if n == 68 else {"status": SENT})
        for n in (ids if isinstance(ids, list) else [ids])
    ]
    assert json.loads(curl.stdout) == {"reply": [{"method": "TaskStop", "result": result}]}


# --- TaskStatus and TaskStop ----------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
def test_only_a_running_task_is_stopped(sim: ControlApiSimulator, status: str) -> None:
    task = sim.add_task(66, status)
    assert statuses(sim, 66) == {66: status}
    (row,) = rows(sim, stop(66))
    running = status == "Running"
    assert row == {"task_id": 66, **({"status": SENT} if running else {"error": UNAVAILABLE})}
    assert statuses(sim, [66]) == {66: "Canceled" if running else status}
    assert (task.stopped, task.stop_requests) == (running, running)


def test_rows_have_the_documented_members_unless_narrow(sim: ControlApiSimulator) -> None:
    sim.add_task(66)
    (row,) = rows(sim, check(66))
    assert (row["task_id"], row["initial_task_id"], row["status"]) == (66, 66, "Running")
    assert row["test_results"] == {"total": "In progress"}
    assert row["source"] == {"status": "Opened", "error": None}
    assert {"name", "uri", "template_id", "app_id", "priority", "start"} <= row.keys()
    assert 150 <= len(json.dumps(row)) <= 300
    (row,) = rows(sim, check(66, detailed_test_results=True))
    assert len(row["test_results"]) == 6
    assert row["test_results"]["video_quality"] == {"status": "In progress", "error": ""}
    sim.rows = "narrow"
    assert rows(sim, check(66)) == [{"task_id": 66, "status": "Running"}]


def test_all_active_is_what_runs_or_waits_in_that_project(sim: ControlApiSimulator) -> None:
    for task_id, status in enumerate(STATUSES):
        sim.add_task(task_id, status)
    sim.add_task(100, project_id=3)
    sim.add_project(4)
    assert statuses(sim, "*") == {0: "Scheduled", 1: "Explore", 2: "Running"}
    assert rows(sim, check("*", 4)) == []
    sim.refuse_all_active = True
    error = "task_ids must be an integer or an array of integers"
    assert entries(sim, check("*")) == [{"method": "TaskStatus", "error": error}]


def test_calls_of_one_request_are_answered_in_order_and_fail_alone(
    sim: ControlApiSimulator,
) -> None:
    document = envelope(
        call("TaskStatus", [1, 2], id=7),
        call("TaskStop", 2, id=-1),
        call("Nothing's there", 2, id=0),
        call("TaskStop", 2, project_id=9),
        call("TaskStatus", 2),
        call("TaskStop", 3, project_id=0, id=9),
    )
    sim.rows = "narrow"
    sim.add_tasks([1, 2])
    sim.add_task(3, project_id=0)
    answers = [
        {
            "method": "TaskStatus",
            "id": 7,
            "result": [{"task_id": 1, "status": "Running"}, {"task_id": 2, "status": "Running"}],
        },
        {"method": "TaskStop", "id": -1, "result": [{"task_id": 2, "status": SENT}]},
        {"method": "Nothing's there", "id": 0, "error": "Undefined method 'Nothing's there'"},
        {"method": "TaskStop", "error": "project 9 does not exist"},
        {"method": "TaskStatus", "result": [{"task_id": 2, "status": "Canceled"}]},
        {"method": "TaskStop", "id": 9, "result": [{"task_id": 3, "status": SENT}]},
    ]
    assert entries(sim, document) == answers
    sim.echo_id = False
    assert not any("id" in entry for entry in entries(sim, document))
    fewer = ControlApiSimulator(methods=["TaskStop"])
    fewer.add_project(2)
    answer = {"method": "TaskStatus", "error": "Undefined method 'TaskStatus'"}
    assert entries(fewer, envelope({"method": "TaskStatus"})) == [answer]


@pytest.mark.parametrize("in_reply", [False, True])
@pytest.mark.parametrize(("user_id", "project_id"), [(5, 2), (5, 9), (1, 3), (3, 2)], ids=str)
def test_a_user_without_rights_changes_nothing(
    sim: ControlApiSimulator, user_id: int, project_id: int, *, in_reply: bool
) -> None:
    """5 is no user; 2 is user 1's project, 3 is user 3's, 9 is no project."""
    sim.user_error_in_reply = in_reply
    sim.add_task(66)
    sim.add_task(67, project_id=3, user_id=3)
    good = call("TaskStop", 66, 2) if user_id == 1 else call("TaskStop", 67, 3)
    error = {"error": f"user {user_id} is unavailable"}
    answer = ask(sim, envelope(good, call("TaskStop", 66, project_id), user_id=user_id))
    assert answer == (200, {"reply": [error]} if in_reply else error)
    assert not any(task.stop_requests for task in sim.tasks.values())


@pytest.mark.parametrize(
    ("names", "error"),
    [
        ("bad", "access denied to tasks [68, 70]"),
        ("all", "access denied to tasks [66, 68, 70]"),
        ("none", "access denied to some of the tasks"),
    ],
)
@pytest.mark.parametrize("method", ["TaskStatus", "TaskStop"])
def test_one_bad_id_refuses_the_call(
    sim: ControlApiSimulator, method: str, names: Any, error: str
) -> None:
    """68 is no task, and 70 is another project's."""
    sim.denied_names = names
    sim.add_task(66)
    sim.add_task(70, project_id=3)
    (entry,) = entries(sim, envelope(call(method, [66, 68, 70], id=1)))
    assert entry == {"method": method, "id": 1, "error": error}
    assert sim.tasks[66].stop_requests == 0


@pytest.mark.parametrize(
    ("method", "text"), [("TaskStatus", "Task does not exist"), ("TaskStop", UNAVAILABLE)]
)
@pytest.mark.parametrize("errors", ["error", "errors"])
def test_a_bad_id_can_be_a_row_or_no_row(method: str, text: str, errors: Any) -> None:
    sim = ControlApiSimulator(missing="error", row_errors=errors)
    sim.add_tasks([66, 67])
    sim.add_task(68, project_id=3)
    sim.tasks[67].status = "Completed"
    result = rows(sim, envelope(call(method, [66, 68, 67])))
    assert [row["task_id"] for row in result] == [66, 68, 67]
    assert result[1] == {"task_id": 68, errors: [text] if errors == "errors" else text}
    if method == "TaskStatus":
        assert result[0].get("errors") == ([] if errors == "errors" else None)
    sim.missing = "omitted"
    result = rows(sim, envelope(call(method, [66, 68, 67])))
    assert [row["task_id"] for row in result] == [66, 67]


# --- Time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_life_goes_by_the_clock(*, by_hand: bool) -> None:
    now = 100.0
    sim = ControlApiSimulator() if by_hand else ControlApiSimulator(clock=lambda: now)
    if by_hand:
        sim.advance(100.0)
    else:
        with pytest.raises(RuntimeError, match="not driven by hand"):
            sim.advance(1.0)
    life = [(5.0, "Explore"), (8.0, "Running"), (60.0, "Completed")]
    task = sim.add_task(66, "Scheduled", life=life)
    seen = []
    for seconds in (0.0, 4.9, 0.1, 3.0, 51.0, 1.0, 1000.0):
        now += seconds
        if by_hand:
            sim.advance(seconds)
        assert (sim.now, statuses(sim, 66)) == (now, {66: task.status})
        seen.append(task.status)
    assert seen == ["Scheduled"] * 2 + ["Explore"] + ["Running"] * 2 + ["Completed"] * 2
    assert repr(task) == "<SimulatedTask 66 Completed>"
    assert (task.project_id, task.stopped) == (2, False)


def test_a_stop_takes_its_delay_unless_the_task_ends_before() -> None:
    sim = ControlApiSimulator(stop_delay=3.0)
    runs = sim.add_task(66)
    ends = sim.add_task(67, life=[(2.0, "Completed"), (10.0, "Running")])
    rows(sim, stop([66, 67]))
    sim.advance(1.0)
    assert statuses(sim, [66, 67]) == {66: "Running", 67: "Running"}
    assert rows(sim, stop(66)) == [{"task_id": 66, "status": SENT}]
    assert (runs.stop_requests, runs.stopped) == (2, False)
    sim.advance(2.0)
    assert statuses(sim, [66, 67]) == {66: "Canceled", 67: "Completed"}
    assert (runs.stopped, ends.stopped) == (True, False)
    sim.advance(7.0)
    rows(sim, stop(67))
    sim.advance(3.0)
    assert (ends.status, ends.stop_requests, ends.stopped) == ("Canceled", 2, True)


def test_the_clock_ticks_after_each_request() -> None:
    sim = ControlApiSimulator(tick=1.0)
    sim.add_task(66, life=[(1.0, "Completed")])
    assert statuses(sim, 66) == {66: "Running"}
    assert rows(sim, stop(66)) == [{"task_id": 66, "error": UNAVAILABLE}]
    assert sim.now == 2.0


def test_a_status_can_be_set(sim: ControlApiSimulator) -> None:
    first, second = sim.add_task(66), sim.add_task(67)
    rows(sim, stop(66))
    first.status = "Running"
    assert (first.status, first.stopped, second.status) == ("Running", False, "Running")
    first.status = "Completed"
    assert statuses(sim, [66, 67]) == {66: "Completed", 67: "Running"}
    with pytest.raises(ValueError, match="status must be one of"):
        first.status = "running"


# --- Adding tasks ---------------------------------------------------------------------------------


@given(
    count=st.integers(0, 300),
    running=st.floats(0, 0.7),
    restarted=st.floats(0, 0.3),
    seed=st.integers(),
)
def test_mixed_tasks_are_shared_out_and_scattered_alike(
    count: int, running: float, restarted: float, seed: int
) -> None:
    one, other = ControlApiSimulator(), ControlApiSimulator()
    for sim in (one, other):
        counts = sim.mixed_tasks(count, running=running, restarted=restarted, seed=seed, first_id=5)
    truth, same = (
        {task_id: (task.status, task.restarted_as) for task_id, task in sim.tasks.items()}
        for sim in (one, other)
    )
    assert truth == same
    added = range(5, 5 + count)
    assert list(truth)[:count] == list(added)
    assert counts == Counter(truth[task_id][0] for task_id in added)
    assert counts["Running"] == round(count * running)
    again = [truth[n] for n in added if truth[n][1] is not None]
    assert len(again) == min(round(count * restarted), count - round(count * running))
    for status, new_id in again:
        assert new_id is not None
        assert (status, truth[new_id][0]) == ("Stalled", "Running")
        assert len(str(new_id)) > len(str(4 + count))
    counts["Stalled"] -= len(again)
    rest = [counts[status] for status in STATUSES if status != "Running"]
    assert max(rest) - min(rest) <= 1


def test_the_number_of_tasks_is_shown(sim: ControlApiSimulator) -> None:
    sim.add_tasks(range(10), "Explore", project_id=3, user_id=4)
    sim.add_tasks([], project_id=4)
    assert list(sim.tasks) == list(range(10))
    assert repr(sim.tasks) == "<SimulatedTasks: 10>"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda sim: sim.add_tasks([20, 9]), "only once"),
        (lambda sim: sim.add_tasks([20, 20]), "only once"),
        (lambda sim: sim.add_tasks([20, -1]), "must be from 0"),
        (lambda sim: sim.add_tasks([20, MAX_INT + 1]), "must be from 0"),
        (lambda sim: sim.add_tasks([20, True]), "must be ints"),
        (lambda sim: sim.add_tasks([20, "21"]), "must be ints"),
        (lambda sim: sim.add_task(20, project_id=3), "project 3 is user 4's"),
        (lambda sim: sim.add_project(3, user_id="1"), "user_id must be an int"),
        (lambda sim: sim.add_task(1, "running"), "status must be one of"),
        (lambda sim: sim.add_task(1, life=[(1.0, "done")]), "status must be one of"),
        (lambda sim: sim.add_task(1, life=[(0.0, "Stalled")]), "above zero and rise"),
        (lambda sim: sim.add_task(1, life=[(2.0, "Stalled")] * 2), "above zero and rise"),
        (lambda sim: sim.add_task(1, restarts=-1), "restarts must not"),
        (lambda sim: sim.add_task(1, restarts=4), "restarts a task 3 times at most"),
        (lambda sim: sim.add_task(1, restarts="Running"), "status must be one of"),
        (lambda sim: sim.add_project(1, attempts_number=0), "attempts_number must be from 1 to 10"),
        (lambda sim: sim.add_project(1, attempts_number=11), "attempts_number must be from"),
        (lambda _: Restart("Gone"), "status must be one of"),
        (lambda _: Restart(after=-1.0), "after must not be below zero"),
        (lambda sim: sim.advance(-1.0), "does not go back"),
        (lambda sim: sim.mixed_tasks(-1), "count must not"),
        (lambda sim: sim.mixed_tasks(1, running=1.1), "from 0 to 1"),
        (lambda sim: sim.mixed_tasks(1, running=0.6, restarted=0.6), "from 0 to 1"),
        (lambda sim: sim.fault(Drop(), number=0), "number"),
        (lambda sim: sim.hold(number=0), "number"),
        *(
            (lambda sim, option=option: setattr(sim, option, "x"), f"{option} must be one of")
            for option in ("missing", "denied_names", "rows", "chains", "row_errors")
        ),
        (lambda sim: setattr(sim, "latency", -1.0), "latency must not be below zero"),
        (lambda _: ControlApiSimulator(latency=float("nan")), "latency must not be below zero"),
        (lambda _: ControlApiSimulator(tick=1.0, clock=lambda: 0.0), "leave out one"),
        (lambda _: ControlApiSimulator(login=("a", "b"), api_key="AA=="), "leave out login"),
        (lambda _: ControlApiSimulator(api_key="no base64"), "api_key must be base64"),
        (lambda _: ControlApiSimulator(prefix="api"), "prefix must start"),
        (lambda _: ControlApiSimulator(prefix="/api/"), "prefix must start"),
        (lambda _: ControlApiSimulator(rows="wide"), "rows must be one of"),  # type: ignore[arg-type]
        (lambda _: ControlApiSimulator(methods=["TaskInfo"]), "a method must be one of"),
        (lambda _: HttpStatus(99), "status"),
        (lambda _: Body("", status=600), "status"),
        (lambda _: CutBody(keep=1.0), "keep"),
        (lambda _: SlowBody(interval=-1.0), "interval"),
        (lambda _: Delay(-1.0), "seconds"),
    ],
)
def test_impossible_values_are_refused_and_change_nothing(
    sim: ControlApiSimulator, make: Callable[[ControlApiSimulator], Any], words: str
) -> None:
    sim.add_task(9, project_id=3, user_id=4)
    with pytest.raises((ValueError, TypeError), match=words):
        make(sim)
    assert list(sim.tasks) == [9]


# --- Requests that are not as documented ----------------------------------------------------------

CALL = "$.methods[0]"
IDS = f"{CALL}.params.task_ids"
ONE_OR_MANY = f"{IDS}: must be an integer or an array, not"
RANGE = f"must be from 0 to {MAX_INT}"


def stop_with(**params: Any) -> dict[str, Any]:
    return envelope({"method": "TaskStop", "params": params})


MALFORMED: list[tuple[Any, str]] = [
    (b"", "$: not strict JSON"),
    (b'{"user_id":1,"methods":[', "$: not strict JSON"),
    (b'{"user_id":1,"methods":"\xff"}', "$: not strict JSON"),
    ('{"user_id":1}'.encode("utf-16"), "$: not strict JSON"),
    (b'{"user_id":NaN,"methods":[]}', "$: not strict JSON: NaN is not JSON"),
    (b"[" * 100_000, "$: not strict JSON"),
    (b'{"user_id":' + b"9" * 5000 + b"}", "$: not strict JSON"),
    (b'{"user_id":1,"user_id":1}', '$: not strict JSON: member "user_id" stands twice'),
    ([], "$: must be an object"),
    ({"methods": []}, '$: member "user_id" is missing'),
    ({"user_id": 1}, '$: member "methods" is missing'),
    ({"user_id": 1, "methods": [], "x" * 99: 1}, f'$: member "{"x" * 59}... is unknown'),
    (envelope(user_id="1"), '$.user_id: must be an integer, not "1"'),
    (envelope(user_id=2**63), f"$.user_id: must be from {-(2**63)} to {MAX_INT}"),
    (envelope(), "$.methods: must be an array of at least one call"),
    ({"user_id": 1, "methods": {}}, "$.methods: must be an array"),
    (envelope("TaskStop"), f"{CALL}: must be an object"),
    (envelope({}), f'{CALL}: member "method" is missing'),
    (envelope({"method": "X", "jsonrpc": "2.0"}), f'{CALL}: member "jsonrpc" is unknown'),
    (envelope({"method": 1}), f"{CALL}.method: must be a string, not 1"),
    (stop(66, id="1"), f'{CALL}.id: must be an integer, not "1"'),
    (envelope({"method": "TaskStop"}), f"{CALL}.params: must be an object"),
    (stop_with(task_ids=66), f'{CALL}.params: member "project_id" is missing'),
    (stop_with(project_id=2), f'{CALL}.params: member "task_ids" is missing'),
    (stop_with(project_id="2", task_ids=66), f"{CALL}.params.project_id: must be an integer"),
    (
        stop_with(project_id=2, task_ids=66, restart_chain="all"),
        f'{CALL}.params: member "restart_chain" is unknown',
    ),
    (check(66, restart_chain=[]), f"{CALL}.params.restart_chain: must be first, last, exact or"),
    (
        check(66, detailed_test_results=1),
        f"{CALL}.params.detailed_test_results: must be true or false, not 1",
    ),
    (stop([]), f"{IDS}: must not be empty"),
    (stop("*"), f'{ONE_OR_MANY} "*"'),
    (stop(True), f"{ONE_OR_MANY} true"),
    (stop({}), f"{ONE_OR_MANY} an object"),
    (check("**"), f'{IDS}: must be an integer, an array of integers or "*", not "**"'),
    (check(["*"]), f'{IDS}[0]: must be an integer, not "*"'),
    (stop(-1), f"{IDS}: {RANGE}"),
    (stop(MAX_INT + 1), f"{IDS}: {RANGE}"),
    (stop([66, 67.0]), f"{IDS}[1]: must be an integer, not 67.0"),
    (stop([66, True]), f"{IDS}[1]: must be an integer, not true"),
    (stop([66, 2**64]), f"{IDS}[1]: {RANGE}"),
    (stop([66, 67, 66]), f"{IDS}: task 66 stands twice"),
    (
        envelope(call("TaskStop", 66), call("TaskStop", "x")),
        "$.methods[1].params.task_ids: must be an integer or an array",
    ),
]


@pytest.mark.parametrize(("document", "words"), MALFORMED, ids=[words for _, words in MALFORMED])
def test_what_is_not_documented_is_refused_and_changes_nothing(
    sim: ControlApiSimulator, document: Any, words: str
) -> None:
    sim.add_tasks([66, 67])
    status, error = ask(sim, document)
    assert (status, list(error)) == (400, ["error"])
    assert error["error"].startswith(words)
    assert not any(task.stop_requests for task in sim.tasks.values())


@pytest.mark.parametrize("task_ids", [0, MAX_INT, [0], [MAX_INT, 0]])
def test_the_least_and_the_greatest_id_are_ids(sim: ControlApiSimulator, task_ids: Any) -> None:
    sim.add_tasks([0, MAX_INT])
    result = rows(sim, stop(task_ids))
    assert [row["status"] for row in result] == [SENT] * len(result)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=4) | st.sampled_from(["method", "id"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
ANY_IDS = st.just("*") | st.integers() | st.lists(st.integers(0, 9), max_size=4) | JSON_VALUES
CALLS = st.builds(call, st.sampled_from(["TaskStop", "TaskStatus", "X"]), ANY_IDS, st.just(2))
ENVELOPES = st.builds(lambda calls, user: envelope(*calls, user_id=user), st.lists(CALLS), ANY_IDS)


@given(JSON_VALUES | ENVELOPES)
def test_any_json_gets_a_documented_answer(document: Any) -> None:
    sim = ControlApiSimulator()
    sim.add_tasks(range(5))
    status, reply = ask(sim, document)
    assert (status, list(reply)) in [(400, ["error"]), (200, ["error"]), (200, ["reply"])]
    if "reply" in reply:
        assert len(reply["reply"]) == len(document["methods"])


def test_the_public_names_are_exact() -> None:
    public = {name for name in vars(simulator) if name[0] not in "_@"}  # @: pytest's own
    assert public == set(simulator.__all__)
