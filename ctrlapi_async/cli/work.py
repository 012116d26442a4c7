"""What the commands do; everything heavy is imported from here on."""

from __future__ import annotations

import asyncio
import getpass
import logging
import random
import signal
import ssl
import sys
import time
import traceback
import warnings
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
from ctrlapi_async.cli.ids import named
from ctrlapi_async.cli.thread import Stdout, write
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
from ctrlapi_async.models import ALL_ACTIVE, Batching, RetryPolicy, StopResult, TaskStatus
from ctrlapi_async.report import StopReport
from ctrlapi_async.session import ControlSession
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from rich.table import Table

    from ctrlapi_async.bulk import StopRun
    from ctrlapi_async.cli.app import Course, Format, Result, Server, Status, Talk, Tasks
    from ctrlapi_async.models import StopOutcome
    from ctrlapi_async.session import AnyTaskIds
    from ctrlapi_async.simulator import Missing, RequestRecord

CAUSES: Final = 5
"""Different errors that are told of at most."""


# --- the commands ---------------------------------------------------------------------------------


def stop(
    words: Sequence[str],
    more: Tasks,
    server: Server,
    course: Course,
    talk: Talk,
    *,
    dry_run: bool,
    wait_pending: float | None,
    confirm: float | None,
    format: Format | None,  # noqa: A002 - the option's name
    only: Sequence[Result],
) -> int:
    """Carry out `stop`; arguments as in `app`."""
    if dry_run and wait_pending is not None:
        raise UsageError("--dry-run stops nothing: leave out --wait-pending")
    project_id, task_ids = _targets(words, more)
    stopped = (StopResult.STOP_SENT, StopResult.WOULD_STOP)
    wanted = frozenset(only or (stopped if format == "ids" else StopResult))
    view = View(
        format=_format(format),
        keep=lambda outcome: outcome.result in wanted,
        line=show.line,
        document=show.stop_document,
        table=show.stop_table,
        doing="Checking" if dry_run else "Stopping",
        afterwards="Waiting" if wait_pending else "Confirming" if confirm else "",
    )

    def begin(session: ControlSession) -> StopRun:
        return session.stopping(
            project_id,
            task_ids,
            dry_run=dry_run,
            wait_pending=wait_pending,
            confirm=confirm,
            timeout=course.timeout,
        )

    return _carry_out(server, course, talk, view, begin, sized=_sized(task_ids))


def status(
    words: Sequence[str],
    more: Tasks,
    server: Server,
    course: Course,
    talk: Talk,
    *,
    format: Format | None,  # noqa: A002 - the option's name
    only: Sequence[Status],
) -> int:
    """Carry out `status`: a stop that is never sent; arguments as in `app`."""
    project_id, task_ids = _targets(words, more)
    wanted = frozenset(only or ([TaskStatus.RUNNING] if format == "ids" else ()))
    view = View(
        format=_format(format),
        keep=lambda outcome: not wanted or outcome.status in wanted,
        line=lambda outcome: show.line(outcome, with_result=False),
        document=show.status_document,
        table=show.status_table,
        doing="Checking",
    )

    def begin(session: ControlSession) -> StopRun:
        return session.stopping(project_id, task_ids, dry_run=True, timeout=course.timeout)

    return _carry_out(server, course, talk, view, begin, sized=_sized(task_ids))


def demo(
    tasks: int, running: float, absent: int, latency: float, course: Course, talk: Talk
) -> int:
    """Carry out `demo`; arguments as in `app`."""
    view = View(format="", doing="Stopping")

    async def stop_them() -> int:
        async with ControlApiSimulator(latency=latency, log=False) as api:
            api.mixed_tasks(tasks, running=running)
            session = _session(api.url, 1, course)

            def begin(session: ControlSession) -> StopRun:
                return session.stopping(2, range(1, tasks + absent + 1), timeout=course.timeout)

            ending = await _follow(session, begin, view, sized=True)
            requests = api.counters.requests
        await _print(_drawn(show.demo_table(ending.report, requests)))
        _explain(ending, talk)
        # That some are not found is what was asked for.
        verdict = _exit_status(ending)
        return OK if verdict == REFUSED else verdict

    with _logging(talk):
        return in_loop(stop_them())


@frozen
class World:
    """What a simulated server holds; attributes as `simulate` has them in `app`."""

    tasks: int | None
    running: float
    seed: int
    project: int
    user_id: int
    missing: Missing | None
    stop_delay: float


def simulate(
    world: World, *, host: str, port: int, auth: str | None, latency: float, fail: float
) -> int:
    """Carry out `simulate`; arguments as in `app`."""
    login, colon, password = (auth or "").partition(":")
    if auth is not None and not colon:
        raise UsageError("--auth must be LOGIN:PASSWORD here")
    api = ControlApiSimulator(
        host=host,
        port=port,
        login=(login, password) if auth is not None else None,
        clock=time.monotonic,
        stop_delay=world.stop_delay,
        latency=latency,
        log=False,
    )
    if world.tasks is None:
        api.documented_world()
        project_id, user_id = 2, 1
        there = "tasks 63 to 67, all Running, as in the API's documentation"
    else:
        project_id, user_id = world.project, world.user_id
        counts = api.mixed_tasks(
            world.tasks,
            running=world.running,
            seed=world.seed,
            project_id=project_id,
            user_id=user_id,
        )
        there = f"tasks 1 to {world.tasks}: " + ", ".join(
            f"{counts[status]:,} {status}" for status in TaskStatus if counts[status]
        )
    if world.missing is not None:
        api.missing = world.missing
    dice = random.Random(world.seed)  # noqa: S311 - guards nothing

    def fault(record: RequestRecord) -> HttpStatus | None:
        del record
        return HttpStatus(503) if dice.random() < fail else None

    if fail:
        api.fault_when = fault

    async def serve() -> int:
        try:
            await api.start()
        except OSError as error:
            complain(f"cannot listen on {host}:{port}: {error.strerror}; give another --port")
            return NOTHING
        try:
            await _print(
                f"Control API simulator on {api.endpoint}\n"
                f"project {project_id} of user {user_id}: {there}\n"
                "Ctrl-C ends it\n"
            )
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            _go_on()  # an interrupt is how this ends
        finally:
            await api.stop()
        calls = api.counters.requests_by_method
        await _print(
            f"{show.numbered(api.counters.requests, 'request')} answered: "
            f"{calls['TaskStatus']:,} TaskStatus, {calls['TaskStop']:,} TaskStop\n"
        )
        return OK

    return in_loop(serve())


# --- from options to values -----------------------------------------------------------------------


def _needed(value: Any, what: str, option: str, variable: str) -> Any:  # noqa: ANN401 - any option
    if value is None:
        raise UsageError(f"{what} is not given: use {option}, or set {variable}")
    return value


def _targets(words: Sequence[str], more: Tasks) -> tuple[int, AnyTaskIds]:
    project_id: int = _needed(more.project, "the project", "--project", "CTRLAPI_PROJECT_ID")
    if not more.all_active:
        if not words and more.source is None:
            raise UsageError("no task is named: give ids (64 65 100-199), --from or --all-active")
        return project_id, named(words, more.source, project_id)
    if words or more.source is not None:
        raise UsageError("--all-active means every task: leave out ids and --from")
    return project_id, ALL_ACTIVE


def _sized(task_ids: AnyTaskIds) -> bool:
    return not hasattr(task_ids, "__aiter__")


def _format(asked: Format | None) -> str:
    return asked or ("table" if _at_terminal(sys.stdout) else "ndjson")


def _at_terminal(stream: Any) -> bool:  # noqa: ANN401 - whatever took its place
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # closed, or never there
        return False


def _session(
    url: str,
    user_id: int,
    course: Course,
    *,
    auth: tuple[str, str] | None = None,
    tls: bool | ssl.SSLContext = True,
) -> ControlSession:
    try:
        return ControlSession(
            url,
            user_id,
            auth=auth,
            ssl=tls,
            batching=Batching(course.chunk_size, course.concurrency),
            retry=RetryPolicy(attempts=course.retries + 1),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None


def _connect(server: Server, course: Course) -> ControlSession:
    return _session(
        _needed(server.url, "the server", "--url", "CTRLAPI_URL"),
        _needed(server.user_id, "the user", "--user-id", "CTRLAPI_USER_ID"),
        course,
        auth=_credentials(server.auth),
        tls=_tls(server),
    )


def _credentials(auth: str | None) -> tuple[str, str] | None:
    if not auth:
        return None
    login, colon, password = auth.partition(":")
    if not colon:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            try:
                password = getpass.getpass(f"Password of {login}: ")
            except (getpass.GetPassWarning, EOFError, OSError):
                raise UsageError(
                    "there is no terminal to ask for the password on: "
                    "set CTRLAPI_AUTH=LOGIN:PASSWORD"
                ) from None
    return login, password


def _tls(server: Server) -> bool | ssl.SSLContext:
    if server.insecure:
        if server.ca_file is not None:
            raise UsageError("--ca-file verifies and --insecure does not: leave out one of them")
        sys.stderr.write("warning: the server's certificate is not verified (--insecure)\n")
        return False
    if server.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=server.ca_file)
    except OSError as error:  # ssl.SSLError is one
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise UsageError(f"--ca-file {server.ca_file} cannot be used: {reason}") from None


# --- following a run ------------------------------------------------------------------------------


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
        doing: What the progress bar says.
        afterwards: What it says once every task has an outcome.
    """

    format: str
    keep: Callable[[StopOutcome], bool] = _everything
    line: Callable[[StopOutcome], str] = show.line
    document: Callable[[StopReport, Callable[[StopOutcome], bool]], str] = show.stop_document
    table: Callable[[StopReport, Callable[[StopOutcome], bool]], Table] = show.stop_table
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
        line = self.line if self.format == "ndjson" else _id_line
        async for outcome in run:
            if self.keep(outcome):
                out.put(line(outcome))
                await out.room()

    def whole(self, report: StopReport) -> str:
        """Write what is shown at the end."""
        if self.format == "json":
            return self.document(report, self.keep)
        return _drawn(self.table(report, self.keep)) if self.format == "table" else ""


def _id_line(outcome: StopOutcome) -> str:
    return f"{outcome.task_id}\n"


@frozen
class Ending:
    """How a run ended."""

    report: StopReport
    error: StopIncompleteError | None = None
    interrupted: bool = False
    unwritten: OSError | None = None


def _carry_out(
    server: Server,
    course: Course,
    talk: Talk,
    view: View,
    begin: Callable[[ControlSession], StopRun],
    *,
    sized: bool,
) -> int:
    session = _connect(server, course)

    async def follow() -> int:
        ending = await _follow(session, begin, view, sized=sized)
        _explain(ending, talk)
        return _exit_status(ending)

    with _logging(talk):
        return in_loop(follow())


async def _follow(
    session: ControlSession,
    begin: Callable[[ControlSession], StopRun],
    view: View,
    *,
    sized: bool,
) -> Ending:
    """Begin a run and see it to its end, whichever that is."""
    out = Stdout()
    # Lines on the terminal and a bar on the same would run through each other.
    with_bar = _at_terminal(sys.stderr) and not (view.live and _at_terminal(sys.stdout))
    async with session:
        run = begin(session)
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(run)
                if with_bar:
                    from ctrlapi_async.cli.bar import following

                    bar = following(run, view.doing, view.afterwards, sized=sized)
                    await stack.enter_async_context(bar)
                await view.follow(run, out)
            ending = Ending(run.report)
        except StopIncompleteError as error:
            ending = Ending(error.report, error)
        except asyncio.CancelledError:
            _go_on()
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


def _go_on() -> None:
    """Go on after a cancellation that was meant for the run only."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


# --- what is said at the end ----------------------------------------------------------------------


def _drawn(table: Table) -> str:
    terminal = _at_terminal(sys.stdout)
    console = Console(
        force_terminal=terminal, width=None if terminal else 120, highlight=False, soft_wrap=False
    )
    with console.capture() as capture:
        console.print(table)
    return capture.get()


async def _print(text: str) -> None:
    out = Stdout()
    out.put(text)
    await out.drain()


@contextmanager
def _logging(talk: Talk) -> Iterator[None]:
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


def _explain(ending: Ending, talk: Talk) -> None:
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


def _exit_status(ending: Ending) -> int:
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
