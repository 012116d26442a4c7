"""From options to values: which tasks, which server, in whose name."""

from __future__ import annotations

import getpass
import ssl
import sys
import warnings
from typing import TYPE_CHECKING, Any

from attrs import frozen

from ctrlapi_async.cli import UsageError
from ctrlapi_async.cli.ids import named
from ctrlapi_async.models import ALL_ACTIVE, Batching, RetryPolicy
from ctrlapi_async.session import ControlSession, stopping_across

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from ctrlapi_async.bulk import StopRun
    from ctrlapi_async.cli.app import Course, Server, Tasks
    from ctrlapi_async.session import TaskIds


def needed(value: Any, what: str, option: str, variable: str) -> Any:  # noqa: ANN401 - any option
    """Give an option's value, or raise `UsageError` if it was not given."""
    if value is None:
        raise UsageError(f"{what} is not given: use {option}, or set {variable}")
    return value


@frozen
class Meant:
    """The tasks that are meant.

    Attributes:
        tasks: Those of each project; or a project, and its tasks as they come.
        apart: Whether the project must be told with a task, since it is not that of `--project`.
    """

    tasks: Mapping[int, TaskIds] | tuple[int, AsyncIterator[int]]
    apart: bool

    @property
    def sized(self) -> bool:
        """Whether their number is known before the last one is."""
        return not isinstance(self.tasks, tuple)

    def stopping(
        self,
        session: ControlSession,
        *,
        dry_run: bool = False,
        wait_pending: float | None = None,
        confirm: float | None = None,
        timeout: float | None = None,
    ) -> StopRun:
        """Make the run; arguments as for `ControlSession.stopping`."""
        if isinstance(self.tasks, tuple):
            return session.stopping(
                *self.tasks,
                dry_run=dry_run,
                wait_pending=wait_pending,
                confirm=confirm,
                timeout=timeout,
            )
        return stopping_across(
            session,
            self.tasks,
            dry_run=dry_run,
            wait_pending=wait_pending,
            confirm=confirm,
            timeout=timeout,
        )


def meant(words: Sequence[str], more: Tasks) -> Meant:
    """Give the tasks that are meant; raises `UsageError`."""
    projects = tuple(dict.fromkeys(more.project))
    if more.all_active:
        if words or more.source is not None:
            raise UsageError("--all-active means every task: leave out ids and --from")
        needed(projects or None, "the project", "--project", "CTRLAPI_PROJECT_ID")
        return Meant(dict.fromkeys(projects, ALL_ACTIVE), apart=len(projects) > 1)
    if not words and more.source is None:
        raise UsageError("no task is named: give ids (64 65 100-199), --from or --all-active")
    tasks = named(words, more.source, projects)
    plain = isinstance(tasks, tuple) or (len(projects) == 1 and tasks.keys() <= {*projects})
    return Meant(tasks, apart=not plain)


def session_of(
    url: str,
    user_id: int,
    course: Course,
    *,
    auth: tuple[str, str] | None = None,
    tls: bool | ssl.SSLContext = True,
) -> ControlSession:
    """Make a session, not entered yet; raises `UsageError`."""
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


def connect(server: Server, course: Course) -> ControlSession:
    """Make a session with the server that is meant; raises `UsageError`."""
    return session_of(
        needed(server.url, "the server", "--url", "CTRLAPI_URL"),
        needed(server.user_id, "the user", "--user-id", "CTRLAPI_USER_ID"),
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
