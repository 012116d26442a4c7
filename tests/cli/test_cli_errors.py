"""Exit statuses, and what is said about errors: one sentence each, with what to do.

`usage.txt` holds what is typed wrong, and what is said about it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ctrlapi_async import RequestError, StopOutcome, StopReport, StopResult, cli
from ctrlapi_async.cli import app
from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.messages import CAUSES, explain
from ctrlapi_async.cli.options import MessageOptions
from ctrlapi_async.cli.process import Process, run_command
from ctrlapi_async.cli.running import Ending
from ctrlapi_async.simulator import HttpStatus
from tests.cli.support import Call, World

FOLDER = Path(__file__).parent
USAGE = (FOLDER / "usage.txt").read_text("utf-8")


@pytest.mark.parametrize(("typed", "said"), re.findall(r"(?m)^(\S.*?)(?: {2,})(\S.*)$", USAGE))
def test_usage(call: Call, world: World, typed: str, said: str) -> None:
    typed, said = (text.replace("@", str(FOLDER)) for text in (typed, said))
    result = call(world, *typed.split())
    assert result.err.startswith(f"error: {said}")
    assert result.err.count("\n") == 1
    assert (result.status, result.out, world.counters.requests) == (Exit.USAGE, "", 0)
    assert "base_url" not in result.err


def test_tasks_that_are_not_there_exit_1(call: Call, world: World) -> None:
    result = call(world, "stop", "1", "99")
    assert (result.status, result.err) == (Exit.REFUSED, "")
    assert result.results == {1: "stop_sent", 99: "not_found"}


def test_tasks_without_an_answer_exit_3(call: Call, world: World) -> None:
    world.fault(HttpStatus(403), method="TaskStop", number=1)
    result = call(world, "stop", "1-5", "--retries", "0", "-o", "ndjson")
    assert result.status == Exit.INCOMPLETE
    assert (result.results[1], result.results[4]) == ("not_sent", "not_running")
    assert result.err.splitlines()[-1] == "error: 3 of 5 tasks without an answer: name them again"


def test_a_deadline_exits_3_with_what_is_known(call: Call, world: World) -> None:
    with world.hold("TaskStop"):
        result = call(world, "stop", "1-5", "--timeout", "0.2", "-o", "ndjson")
    assert (result.status, result.results[1]) == (Exit.INCOMPLETE, "unconfirmed")
    assert "; give it more time with --timeout\n" in result.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--project 9", "TaskStatus: project 9 does not exist; check --project"),
        ("--user-id 5", "TaskStatus: user 5 is unavailable; check --user-id"),
        ("--url http://127.0.0.1:1 --retries 0", "check --url, and whether"),
    ],
)
def test_nothing_could_be_done_exits_4(call: Call, world: World, options: str, words: str) -> None:
    result = call(world, "stop", "1-5", "-o", "table", *options.split())
    assert result.status == Exit.NOTHING
    assert words in result.err
    assert "ssl:default" not in result.err
    assert result.err.count("\n") == 1
    assert "5 tasks: 5 not sent" in result.out
    status = call(world, "status", "1-5", "-o", "table", *options.split())
    assert "5 tasks: 5 no answer" in status.out


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            HttpStatus(401),
            "; give --auth or --api-key-file, or set CTRLAPI_AUTH or CTRLAPI_API_KEY",
        ),
        (HttpStatus(403), "the server's settings must switch the Control API on"),
        (HttpStatus(404), "there is no Control API at this address; check --url"),
        (HttpStatus(302, headers={"Location": "/x"}), "redirects to /x"),
        (HttpStatus(502), "; try again later"),
        (HttpStatus(200), "; check that --url is a Control API"),
    ],
)
def test_what_a_proxy_answers_is_one_sentence(
    call: Call, world: World, fault: HttpStatus, words: str
) -> None:
    world.fault_when = lambda _: fault
    result = call(world, "status", "1-5", "--retries", "0")
    assert result.status == Exit.NOTHING
    assert words in result.err
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    table = call(world, "status", "1-5", "--retries", "0", "-o", "table").out
    assert not re.search("`|ApiKey|ssl:", result.err + table)


def test_what_a_server_refuses(call: Call, world: World) -> None:
    world.refuse_all_active = True
    result = call(world, "stop", "--all-active", "-y")
    assert result.status == Exit.NOTHING
    assert "TaskStatus: task_ids must be an integer or an array of integers\n" in result.err
    with World(methods=["TaskStop"]) as api:
        api.add_task(1)
        result = call(api, "stop", "1")
    assert result.status == Exit.NOTHING
    assert "Undefined method 'TaskStatus'; check that --url" in result.err


def test_no_more_than_a_few_causes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    report = StopReport.of([StopOutcome(1, 2, StopResult.NOT_SENT)])
    errors = tuple(RequestError(f"fault {number}") for number in range(9))

    async def command(process: Process) -> int:
        explain(process, Ending(report, errors * 2))
        return 0

    run_command(MessageOptions(), command)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == CAUSES + 1
    assert lines[-1] == "error: and 4 other errors"


def test_debug_shows_where_an_error_comes_from(call: Call, world: World) -> None:
    plain = call(world, "stop", "1", "--project", "9")
    debugged = call(world, "stop", "1", "--project", "9", "--debug")
    assert "ProjectNotFoundError" not in plain.err
    assert "ProjectNotFoundError" in debugged.err
    assert debugged.status == plain.status == Exit.NOTHING


def test_verbose_logs_each_request_and_retries_are_told(call: Call, world: World) -> None:
    world.fault(HttpStatus(503, headers={"Retry-After": "0"}), number=1)
    result = call(world, "stop", "1-5", "-v", "-o", "table", "--retries", "1")
    assert re.search(r"^debug: TaskStatus.* 5 ", result.err, re.MULTILINE)
    assert re.search(r"^debug: TaskStop.* 3 ", result.err, re.MULTILINE)
    assert "2 TaskStatus requests and 1 TaskStop request, 1 of them repeated" in result.out
    quiet = call(world, "stop", "1-5", "-q", "-o", "table")
    assert (quiet.err, "requests" in quiet.out) == ("", False)


def test_a_request_that_keeps_failing_is_told_once(
    call: Call, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.random", lambda: 0.0)
    for number in (1, 2, 3, 5):
        world.fault(HttpStatus(503, headers={"Retry-After": "0"}), number=number)
    result = call(world, "stop", "1-5")
    assert result.status == Exit.OK
    assert re.fullmatch(
        r"warning: TaskStatus of 5 tasks: attempt 3 in .* HTTP 503 .*\(-v shows every attempt\)\n",
        result.err,
    )


def test_a_fault_of_the_program_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: list[str]) -> int:
        raise ZeroDivisionError("1 / 0")

    monkeypatch.setattr(app, "run", broken)
    assert cli.main(["stop", "1"]) == Exit.INCOMPLETE
    assert capsys.readouterr().err == (
        "error: ZeroDivisionError: 1 / 0; this is a fault in the program: --debug shows where\n"
    )
    with pytest.raises(ZeroDivisionError):
        cli.main(["stop", "1", "--debug"])
