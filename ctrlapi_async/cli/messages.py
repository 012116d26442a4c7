"""What is said about the end of a command: errors with advice, and the exit status. Pure."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Final

import ctrlapi_async as api
from ctrlapi_async import StopResult
from ctrlapi_async.cli.exits import Exit, UnwrittenError, UsageError
from ctrlapi_async.cli.outcomes import NO_ANSWER, REFUSED, unknown_status
from ctrlapi_async.cli.text import id_list, numbered, own_words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrlapi_async.cli.process import Process
    from ctrlapi_async.cli.running import Ending

CAUSES: Final = 5
"""Different errors that are shown."""


def advice(error: Exception, option_for_time: str) -> str:
    """Return what to do about an error, or nothing; an option that gives more time is one thing."""
    if isinstance(error, api.HttpError):
        if isinstance(error, api.AuthError):
            return "give --auth or --api-key-file, or set CTRLAPI_AUTH or CTRLAPI_API_KEY"
        passing = error.status >= 500 or error.status in (408, 425, 429)
        return "try again later" if passing else "check --url"
    table: tuple[tuple[type[Exception], str], ...] = (
        (api.TlsError, "name the certificate's CA with --ca-file, or see whether --url is right"),
        (api.DeadlineError, f"give it more time with {option_for_time}"),
        (api.RequestError, "check --url, and whether the server is up"),
        (api.ReplyError, "check that --url is a Control API"),
        (api.UserUnavailableError, "check --user-id, and that the project belongs to this user"),
        (api.ProjectNotFoundError, "check --project"),
        (api.UndefinedMethodError, "check that --url is a Control API that can stop tasks"),
    )
    return next((words for kind, words in table if isinstance(error, kind)), "")


def sentence(error: Exception, option_for_time: str = "--timeout") -> str:
    """Return in one sentence what an error is, and what to do about it.

    Args:
        error: The error.
        option_for_time: The option that gives more time, if that was too short.
    """
    parts = (own_words(str(error)).rstrip("."), advice(error, option_for_time))
    return "; ".join(filter(None, parts))


def explain(process: Process, ending: Ending, *, with_project: bool = False) -> None:
    """Say on standard error what did not go well, if anything.

    Args:
        process: The process.
        ending: How its run ended.
        with_project: Whether ids are written with their projects.
    """
    report = ending.report
    missing = sum(report.counts[result] for result in NO_ANSWER)
    running = report.ids(StopResult.STILL_RUNNING)
    option_for_time = "--wait-stopped" if running and not missing else "--timeout"
    sentences = list(dict.fromkeys(sentence(error, option_for_time) for error in ending.errors))
    for words in sentences[:CAUSES]:
        process.say("error", words)
    if len(sentences) > CAUSES:
        process.say("error", f"and {numbered(len(sentences) - CAUSES, 'other error')}")
    if process.messages.debug:
        for error in ending.errors:
            process.say_lines("".join(traceback.format_exception(error)))
    total = numbered(len(report), "task")
    if ending.interrupted:
        process.say("error", f"interrupted; {missing:,} of {total} without an answer")
    elif 0 < missing < len(report):
        process.say("error", f"{missing:,} of {total} without an answer: name them again")
    if running:
        ids = id_list(
            ((report[task_id].project_id, task_id) for task_id in running),
            with_project=with_project,
        )
        process.say("error", f"{len(running):,} of {total} still running: {ids}")
    if process.out.error is not None:
        process.say("error", UnwrittenError(process.out.error))


def warn_of_unknown(process: Process, outcomes: Iterable[api.StopOutcome]) -> None:
    """Say which statuses are not known, if any."""
    unknown = dict.fromkeys(str(one.status) for one in outcomes if unknown_status(one))
    if unknown:
        words = ", ".join(map(repr, list(unknown)[:CAUSES]))
        process.note(f"unknown status {words}: such tasks are not stopped", "warning")


def exit_status(process: Process, ending: Ending, *, active_left: bool = False) -> Exit:
    """Return the exit status that tells how a command ended.

    Args:
        process: The process.
        ending: How its run ended.
        active_left: Whether tasks are still active that should not be.
    """
    report = ending.report
    usage = any(isinstance(error, UsageError) for error in ending.errors)
    nothing = ending.errors and report.counts[StopResult.NOT_SENT] == len(report)
    refused = any(report.counts[result] for result in REFUSED)
    causes = (
        (ending.interrupted, process.ended_by or Exit.INTERRUPTED),
        (process.out.error is not None, Exit.UNWRITTEN),
        (usage, Exit.USAGE),
        (nothing, Exit.NOTHING),
        (ending.errors or not report.complete or active_left, Exit.INCOMPLETE),
        (refused or any(map(unknown_status, report.values())), Exit.REFUSED),
    )
    return next((status for cause, status in causes if cause), Exit.OK)
