"""A run from its beginning to its end, whichever that is, and what is said about it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import traceback
from contextlib import AsyncExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, frozen
from rich.console import Console

from ctrlapi_async.cli import (
    INCOMPLETE,
    INTERRUPTED,
    NOTHING,
    OK,
    REFUSED,
    USAGE,
    UsageError,
    complain,
    show,
)
from ctrlapi_async.cli.thread import Stdout
from ctrlapi_async.errors import (
    AuthError,
    CertificateError,
    DeadlineError,
    HttpError,
    ProjectNotFoundError,
    ReplyError,
    RequestError,
    StopIncompleteError,
    UndefinedMethodError,
    UserUnavailableError,
)
from ctrlapi_async.models import StopResult

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from rich.table import Table

    from ctrlapi_async.bulk import StopRun
    from ctrlapi_async.cli.app import Format, Talk
    from ctrlapi_async.models import StopOutcome
    from ctrlapi_async.report import StopReport
    from ctrlapi_async.session import ControlSession

CAUSES: Final = 5
"""Different errors that are told of at most."""


def format_of(asked: Format | None) -> str:
    """Give the format that was asked for, or the one that suits standard output."""
    return asked or ("table" if at_terminal(sys.stdout) else "ndjson")


def at_terminal(stream: Any) -> bool:  # noqa: ANN401 - whatever took its place
    """Tell whether a stream of the process is a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # closed, or never there
        return False


def _everything(_: StopOutcome) -> bool:
    return True


@frozen(kw_only=True)
class View:
    """How a run is shown.

    Attributes:
        format: One of `app.Format`, or nothing.
        keep: Which outcomes are shown.
        line: Writes one outcome as a line of JSON.
        document: Writes all of them as JSON.
        table: Draws all of them.
        apart: Whether an id alone does not tell whose task it is.
        doing: What the progress bar says.
        afterwards: What it says once every task has an outcome.
    """

    format: str
    keep: Callable[[StopOutcome], bool] = _everything
    line: Callable[[StopOutcome], str] = show.line
    document: Callable[[StopReport, Callable[[StopOutcome], bool]], str] = show.stop_document
    table: Callable[[StopReport, Callable[[StopOutcome], bool], bool], Table] = show.stop_table
    apart: bool = False
    doing: str
    afterwards: str = ""

    @property
    def live(self) -> bool:
        """Whether outcomes are written as they become known."""
        return self.format in ("ndjson", "ids")

    async def follow(self, run: StopRun, out: Stdout) -> None:
        """See a run to its end; raises what it raises."""
        if not self.live:
            await run.wait()
            return
        line = self.line if self.format == "ndjson" else self._id_line
        async for outcome in run:
            if self.keep(outcome):
                out.put(line(outcome))
                await out.room()

    def whole(self, report: StopReport) -> str:
        """Write what is shown at the end."""
        if self.format == "json":
            return self.document(report, self.keep)
        if self.format == "table":
            return drawn(self.table(report, self.keep, self.apart)) + show.summary(report)
        return ""

    def _id_line(self, outcome: StopOutcome) -> str:
        return f"{outcome.project_id}:" * self.apart + f"{outcome.task_id}\n"


@frozen
class Ending:
    """How a run ended."""

    report: StopReport
    error: StopIncompleteError | None = None
    interrupted: bool = False
    unwritten: OSError | None = None


def carry_out(
    session: ControlSession,
    talk: Talk,
    view: View,
    begin: Callable[[ControlSession], StopRun],
    *,
    sized: bool,
) -> int:
    """Begin a run, see it to its end, say what came of it, and give the exit status.

    Args:
        session: Not entered yet.
        talk: What is said besides.
        view: How the run is shown.
        begin: Makes the run.
        sized: Whether the number of tasks is known before the last one is.
    """

    async def work() -> int:
        ending = await follow(session, begin, view, sized=sized)
        explain(ending, talk)
        return exit_status(ending)

    with logging_to_stderr(talk):
        return in_loop(work())


async def follow(
    session: ControlSession,
    begin: Callable[[ControlSession], StopRun],
    view: View,
    *,
    sized: bool,
) -> Ending:
    """Begin a run and see it to its end, whichever that is."""
    out = Stdout()
    # Lines on the terminal and a bar on the same would run through each other.
    with_bar = at_terminal(sys.stderr) and not (view.live and at_terminal(sys.stdout))
    async with session:
        try:
            run = begin(session)
        except ValueError as error:
            raise UsageError(str(error)) from None
        try:
            async with AsyncExitStack() as stack:
                try:
                    await stack.enter_async_context(run)
                except ValueError as error:  # a task in two projects
                    raise UsageError(f"{error}: name it once") from None
                if with_bar:
                    from ctrlapi_async.cli.bar import following

                    bar = following(run, view.doing, view.afterwards, sized=sized)
                    await stack.enter_async_context(bar)
                await view.follow(run, out)
            ending = Ending(run.report)
        except StopIncompleteError as error:
            ending = Ending(error.report, error)
        except asyncio.CancelledError:
            go_on()
            # Leaving the block has ended the run, so this waits for nothing.
            with suppress(StopIncompleteError):
                await view.follow(run, out)
            ending = Ending(run.report, interrupted=True)
    out.put(view.whole(ending.report))
    await out.drain()
    return evolve(ending, unwritten=out.error)


def in_loop(work: Coroutine[Any, Any, int]) -> int:
    """Run a command's coroutine; both Ctrl-C and SIGTERM cancel it.

    Raises:
        KeyboardInterrupt: It was cancelled, and did not go on from there.
    """

    async def main() -> int:
        task = asyncio.current_task()
        # Not on Windows, and not in a thread.
        with suppress(NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # type: ignore[union-attr]
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def go_on() -> None:
    """Go on after a cancellation that was meant for the run only."""
    asyncio.current_task().uncancel()  # type: ignore[union-attr]  # there is one


# --- what is said at the end ----------------------------------------------------------------------


def drawn(table: Table) -> str:
    """Write a table as suits standard output: with colours on a terminal only."""
    terminal = at_terminal(sys.stdout)
    console = Console(
        force_terminal=terminal, width=None if terminal else 120, highlight=False, soft_wrap=False
    )
    with console.capture() as capture:
        console.print(table)
    return capture.get()


async def print_out(text: str) -> None:
    """Write to standard output; that it is closed is no error."""
    out = Stdout()
    out.put(text)
    await out.drain()


@contextmanager
def logging_to_stderr(talk: Talk) -> Iterator[None]:
    """Let the package's log be read on standard error, if that is wanted."""
    if not (talk.verbose or talk.debug):
        yield
        return

    class ToStderr(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            # Looked up each time: the progress bar puts itself in its place.
            sys.stderr.write(f"{record.levelname.lower()}: {self.format(record)}\n")

    logger = logging.getLogger("ctrlapi_async")
    handler, level = ToStderr(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


_ADVICE: Final[tuple[tuple[type[Exception], str], ...]] = (
    (CertificateError, "name its CA with --ca-file, or do without with --insecure"),
    (DeadlineError, "give it more time, or ask for fewer tasks at once with --chunk-size"),
    (RequestError, "check --url, and whether the server is up"),
    (AuthError, "check CTRLAPI_AUTH or --auth"),
    (ReplyError, "check that --url is that of a Control API"),
    (UserUnavailableError, "check --user-id, and that the project is this user's"),
    (ProjectNotFoundError, "check --project"),
    (UndefinedMethodError, "check that --url is that of a Control API that can stop tasks"),
)


def _sentence(error: Exception) -> str:
    """Say in one sentence what an error is, and what to do next."""
    words = " ".join(str(error).split()).rstrip(".")
    if isinstance(error, HttpError) and not isinstance(error, AuthError):
        passing = error.status >= 500 or error.status in (408, 425, 429)
        return f"{words}; " + ("try again later" if passing else "check --url")
    advice = next((advice for kind, advice in _ADVICE if isinstance(error, kind)), "")
    return f"{words}; {advice}" if advice else words


def explain(ending: Ending, talk: Talk) -> None:
    """Tell on standard error why a run did not end well, if it did not."""
    counts = ending.report.counts
    open_ = counts[StopResult.NOT_SENT] + counts[StopResult.UNCONFIRMED]
    of_all = f"{open_:,} of {show.numbered(len(ending.report), 'task')} without an answer"
    if ending.error is not None:
        sentences = list(dict.fromkeys(map(_sentence, ending.error.exceptions)))
        for sentence in sentences[:CAUSES]:
            complain(sentence)
        if len(sentences) > CAUSES:
            complain(f"and {len(sentences) - CAUSES:,} other errors")
        if 0 < open_ < len(ending.report):
            complain(f"{of_all}: name these again")
        if talk.debug:
            traceback.print_exception(ending.error, file=sys.stderr)
    if ending.interrupted:
        complain(f"interrupted, {of_all}")
    if ending.unwritten is not None and not isinstance(ending.unwritten, BrokenPipeError):
        complain(f"standard output cannot be written: {ending.unwritten.strerror}")


def exit_status(ending: Ending) -> int:
    """Give the exit status that tells how a run ended."""
    counts = ending.report.counts
    refused = counts[StopResult.NOT_FOUND] + counts[StopResult.UNAVAILABLE]
    if ending.interrupted:
        return INTERRUPTED
    if ending.error is not None:
        if any(isinstance(error, UsageError) for error in ending.error.exceptions):
            return USAGE
        unsent = counts[StopResult.NOT_SENT]
        return NOTHING if unsent == len(ending.report) else INCOMPLETE
    return REFUSED if refused or _failed_to_write(ending) else OK


def _failed_to_write(ending: Ending) -> bool:
    # A reader who goes away has seen enough; a full disk has not.
    return ending.unwritten is not None and not isinstance(ending.unwritten, BrokenPipeError)
