"""What `stop` and `status` do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ctrlapi_async.cli import UsageError, show
from ctrlapi_async.cli.connect import connect, meant
from ctrlapi_async.cli.follow import View, carry_out, format_of
from ctrlapi_async.models import StopResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrlapi_async.bulk import StopRun
    from ctrlapi_async.cli.app import Course, Format, Result, Server, Status, Talk, Tasks
    from ctrlapi_async.session import ControlSession


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
    tasks = meant(words, more)
    stopped = (StopResult.STOP_SENT, StopResult.WOULD_STOP)
    wanted = frozenset(only or (stopped if format == "ids" else StopResult))
    view = View(
        format=format_of(format),
        keep=lambda outcome: outcome.result in wanted,
        line=show.line,
        document=show.stop_document,
        table=show.stop_table,
        apart=tasks.apart,
        doing="Checking" if dry_run else "Stopping",
        afterwards="Waiting" if wait_pending else "Confirming" if confirm else "",
    )

    def begin(session: ControlSession) -> StopRun:
        return tasks.stopping(
            session,
            dry_run=dry_run,
            wait_pending=wait_pending,
            confirm=confirm,
            timeout=course.timeout,
        )

    return carry_out(connect(server, course), talk, view, begin, sized=tasks.sized)


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
    tasks = meant(words, more)
    wanted: frozenset[str] = frozenset(only or (["Running"] if format == "ids" else ()))
    view = View(
        format=format_of(format),
        keep=lambda outcome: not wanted or outcome.status in wanted,
        line=lambda outcome: show.line(outcome, with_result=False),
        document=show.status_document,
        table=show.status_table,
        apart=tasks.apart,
        doing="Checking",
    )

    def begin(session: ControlSession) -> StopRun:
        return tasks.stopping(session, dry_run=True, timeout=course.timeout)

    return carry_out(connect(server, course), talk, view, begin, sized=tasks.sized)
