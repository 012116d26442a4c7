"""Everything that goes wrong between a caller and a Control API server.

```
CtrlApiError
├── RequestError              not reached, or no answer in time
├── HttpError                 an HTTP answer that is not 200: .status, .excerpt
│   └── AuthError             401, 403
├── ReplyError                a 200 that is no Control API reply: .where, .excerpt
├── MethodError               the server refused the call: .method, .message
│   ├── UserUnavailableError
│   ├── ProjectNotFoundError
│   ├── TasksDeniedError      .task_ids
│   └── UndefinedMethodError
└── StopIncompleteError       also an ExceptionGroup: .report
```

All of them pickle. The finer kinds at the end of this module tell the pipeline what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ctrlapi_async.report import StopReport


class CtrlApiError(Exception):
    """Base of all errors of this package, bad arguments apart (TypeError, ValueError)."""

    def __str__(self) -> str:
        # The other arguments are there for the attributes, and for pickle.
        return str(self.args[0]) if self.args else ""


class RequestError(CtrlApiError):
    """The server was not reached, or gave no answer in time.

    Attributes:
        sent: Whether the request may have reached the server.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class HttpError(CtrlApiError):
    """An HTTP answer with another status than 200.

    Attributes:
        status: The HTTP status.
        excerpt: The beginning of the answer's body.
        retry_after: Seconds after which the server wants to be asked again, or None.
    """

    def __init__(
        self, message: str, status: int, excerpt: str = "", retry_after: float | None = None
    ) -> None:
        super().__init__(message, status, excerpt, retry_after)
        self.status = status
        self.excerpt = excerpt
        self.retry_after = retry_after


class AuthError(HttpError):
    """401 or 403: the server wants credentials, or does not let its API be used."""


class ReplyError(CtrlApiError):
    """An HTTP 200 whose body is no Control API reply.

    Attributes:
        where: The JSON path of what is wrong, `$.reply[0].result[3].task_id` say.
        excerpt: A bounded piece of the body.
    """

    def __init__(self, message: str, where: str = "$", excerpt: str = "") -> None:
        super().__init__(message, where, excerpt)
        self.where = where
        self.excerpt = excerpt

    def __str__(self) -> str:
        shown = f": {self.excerpt!r}" if self.excerpt else ""
        return f"{self.args[0]} at {self.where}{shown}"


class MethodError(CtrlApiError):
    """The server refused a call.

    Attributes:
        method: The method that was called.
        message: The server's words.
    """

    def __init__(self, method: str, message: str) -> None:
        super().__init__(method, message)
        self.method = method
        self.message = message

    def __str__(self) -> str:
        return f"{self.method}: {self.message}"


class UserUnavailableError(MethodError):
    """ "user 5 is unavailable": there is no such user, or the project is not this user's."""


class ProjectNotFoundError(MethodError):
    """ "project 9 does not exist"."""


class TasksDeniedError(MethodError):
    """ "access denied to tasks [66, 68]": at least one task is not there, or another project's.

    Attributes:
        task_ids: The ids that the server named, perhaps more than the bad ones, perhaps none.
    """

    def __init__(self, method: str, message: str, task_ids: Sequence[int] = ()) -> None:
        super().__init__(method, message)
        self.task_ids = tuple(task_ids)
        self.args = (method, message, self.task_ids)


class UndefinedMethodError(MethodError):
    """ "Undefined method 'TestMethod'": this server does not know the method."""


class StopIncompleteError(CtrlApiError, ExceptionGroup[Exception]):
    """The server did not answer for every task; groups the errors that caused it.

    `except*` reaches the causes: `except* ProjectNotFoundError`, say.

    Attributes:
        report: An outcome for every task, a `StopReport`.
    """

    report: StopReport

    def __new__(cls, message: str, errors: Sequence[Exception], report: StopReport) -> Self:
        """Make the group; as an ExceptionGroup's, its parts are set here."""
        group = super().__new__(cls, message, errors)
        group.report = report
        return group

    def __init__(self, message: str, errors: Sequence[Exception], report: StopReport) -> None:
        Exception.__init__(self, message, errors, report)

    def __str__(self) -> str:
        return ExceptionGroup.__str__(self)

    def derive(self, excs: Sequence[Exception]) -> StopIncompleteError:  # type: ignore[override]
        """Give a group of some of the errors with the same report (for `except*`, `split`)."""
        return StopIncompleteError(self.message, excs, self.report)

    def __reduce__(self) -> tuple[Any, ...]:
        return StopIncompleteError, (self.message, self.exceptions, self.report)


# --- finer kinds, caught by their bases -------------------------------------------------------


class DeadlineError(RequestError, TimeoutError):
    """A time limit of the caller's passed: the run's, or one request's."""


class CertificateError(RequestError):
    """The server's TLS certificate was refused; asking again would not help."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


class HtmlReplyError(ReplyError):
    """A web page where a reply was due: this address is no Control API."""


def words_of(error: Exception) -> str:
    """Give what a task's outcome says of an error: the server's own words, if it has any."""
    return error.message if isinstance(error, MethodError) else str(error)


METHOD_ERRORS: Final[tuple[tuple[str, type[MethodError]], ...]] = (
    (r"\buser\b.*\bis unavailable\b", UserUnavailableError),
    (r"\bproject\b.*\bdoes not exist\b", ProjectNotFoundError),
    (r"\baccess denied to\b[\w ]*\btasks?\b", TasksDeniedError),
    (r"\bundefined method\b", UndefinedMethodError),
)
"""The documented error texts (general information, common response errors)."""
