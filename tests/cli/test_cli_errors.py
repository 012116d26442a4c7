"""Exit statuses, and what is said about errors: one sentence each, with what to do.

`usage.txt` holds what is typed wrong, and what is said about it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ctrlapi_async import RequestError, StopOutcome, StopReport, StopResult, cli
from ctrlapi_async.cli import app
from ctrlapi_async.cli.exits import Exit
from ctrlapi_async.cli.messages import CAUSES, explain
from ctrlapi_async.cli.options import MessageOptions
from ctrlapi_async.cli.process import Process, run_command
from ctrlapi_async.cli.running import Ending
from ctrlapi_async.simulator import Body, Fault, Hang, HttpStatus

if TYPE_CHECKING:
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


@pytest.mark.parametrize(
    ("options", "fault", "status", "results", "said"),
    [
        ("1 99", None, 1, "stop_sent not_found", ""),
        ("1 9:91 3:31", None, 3, "stop_sent stop_sent not_sent", "project 9 does not exist; check"),
        (
            "1 9:91 3:31",
            None,
            3,
            "stop_sent stop_sent not_sent",
            "\nerror: 1 of 3 tasks without an",
        ),
        ("1 4 --retries 0", HttpStatus(403), 3, "not_sent not_running", "\nerror: 1 of 2 tasks"),
        ("1 4 --timeout 0.2", Hang(), 3, "unconfirmed not_running", "more time with --timeout\n"),
    ],
)
def test_the_status_tells_whether_all_tasks_have_an_answer(
    call: Call, worlds: World, *, options: str, fault: Any, status: int, results: str, said: str
) -> None:
    worlds.fault_when = lambda record: fault if "TaskStop" in record.methods else None
    result = call(worlds, "stop", *options.split(), "-o", "ndjson")
    assert (result.status, said in result.err) == (status, True)
    assert [result.results[n] for n in sorted(result.results)] == results.split()
    assert bool(result.err) is bool(said)


@pytest.mark.parametrize(
    ("options", "fault", "words"),
    [
        ("--project 9", None, "TaskStatus: project 9 does not exist; check --project"),
        ("--user-id 5", None, "TaskStatus: user 5 is unavailable; check --user-id"),
        ("--url http://127.0.0.1:1", None, "check --url, and whether"),
        (
            "",
            HttpStatus(401),
            "; give --auth or --api-key-file, or set CTRLAPI_AUTH or CTRLAPI_API_KEY",
        ),
        ("", HttpStatus(403), "the server's settings must switch the Control API on"),
        ("", HttpStatus(404), "there is no Control API at this address; check --url"),
        ("", HttpStatus(302, headers={"Location": "/x"}), "redirects to /x"),
        ("", HttpStatus(502), "; try again later"),
        ("", HttpStatus(200), "; check that --url is a Control API"),
        (
            "",
            Body('{"reply": [{"error": "Undefined method \'TaskStatus\'"}]}'),
            "Undefined method 'TaskStatus'; check that --url",
        ),
    ],
)
def test_where_nothing_could_be_done_one_sentence_says_why_and_the_status_is_4(
    call: Call, world: World, options: str, fault: Fault | None, words: str
) -> None:
    world.fault_when = lambda _: fault
    for command, summary in (("stop", "5 not sent"), ("status", "5 no answer")):
        result = call(world, command, "1-5", "--retries", "0", "-o", "table", *options.split())
        assert result.status == Exit.NOTHING
        assert result.err.startswith("error: ")
        assert words in result.err
        assert result.err.count("\n") == 1
        assert f"5 tasks: {summary}" in result.out
        assert not re.search("`|ApiKey|ssl:", result.err + result.out)


def test_a_server_that_lists_no_active_tasks_is_told(call: Call, world: World) -> None:
    world.refuse_all_active = True
    result = call(world, "stop", "--all-active", "-y")
    assert result.status == Exit.NOTHING
    assert "TaskStatus: task_ids must be an integer or an array of integers\n" in result.err


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
