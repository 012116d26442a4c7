"""Everything that can go wrong between a caller and a Control API server.

```
CtrlApiError
├── RequestError              not reached, no answer in time, or the caller's client failed
│   ├── DeadlineError         the run's time is up (also a TimeoutError)
│   ├── RequestTimeoutError   one request's time is up (also a TimeoutError)
│   └── TlsError              no TLS connection can be made
├── HttpError                 an HTTP answer that is not 200: .status, .excerpt
│   └── AuthError             401, 403
├── ReplyError                a 200 that is no Control API reply: .where, .excerpt
│   ├── HtmlReplyError        a web page
│   └── ReplyTooLargeError    more bytes than `max_reply_bytes`
├── MethodError               the server refused the call: .method, .message
│   ├── UserUnavailableError
│   ├── ProjectNotFoundError
│   ├── TasksDeniedError      .task_ids
│   └── UndefinedMethodError
└── StopIncompleteError       also an ExceptionGroup: .report
```

All of them pickle, and no text of theirs is longer than `MAX_TEXT` characters. What an error means
for the next request is decided in one place: `traits_of`.
"""

from __future__ import annotations

from enum import Flag, auto
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ctrlapi_async._reports import StopReport

MAX_TEXT: Final = 500
"""Characters of an error text at most."""


def bounded(text: str) -> str:
    """Return a text of at most `MAX_TEXT` characters."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


class CtrlApiError(Exception):
    """Base of all errors of this package, bad arguments apart (TypeError, ValueError)."""

    def _text(self) -> str:
        # The other arguments are there for the attributes, and for pickle.
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return bounded(self._text())


class RequestError(CtrlApiError):
    """The server was not reached, gave no answer in time, or the caller's client failed.

    Attributes:
        sent: Whether the request may have reached the server.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(bounded(message))
        self.sent = sent


class DeadlineError(RequestError, TimeoutError):
    """The time of the whole run is up."""


class RequestTimeoutError(RequestError, TimeoutError):
    """The time of one request is up."""


class TlsError(RequestError):
    """No TLS connection can be made: another attempt would fail alike.

    The certificate was refused, a client certificate is missing, the versions do not match, or
    the port does not speak TLS.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


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
        super().__init__(bounded(message), status, bounded(excerpt), retry_after)
        self.status = status
        self.excerpt = bounded(excerpt)
        self.retry_after = retry_after


class AuthError(HttpError):
    """401 or 403: the server wants credentials, or does not allow its API to be used."""


class ReplyError(CtrlApiError):
    """An HTTP 200 whose body is no Control API reply.

    Attributes:
        where: The JSON path of what is wrong, `$.reply[0].result[3].task_id` for example.
        excerpt: A piece of the body.
    """

    def __init__(self, message: str, where: str = "$", excerpt: str = "") -> None:
        super().__init__(bounded(message), bounded(where), bounded(excerpt))
        self.where = bounded(where)
        self.excerpt = bounded(excerpt)

    def _text(self) -> str:
        shown = f": {self.excerpt!r}" if self.excerpt else ""
        return f"{self.args[0]} at {self.where}{shown}"


class HtmlReplyError(ReplyError):
    """A web page where a reply was due: this address is no Control API."""


class ReplyTooLargeError(ReplyError):
    """A reply of more bytes than the session accepts."""


class MethodError(CtrlApiError):
    """The server refused a call.

    Attributes:
        method: The method that was called.
        message: The server's text.
    """

    def __init__(self, method: str, message: str) -> None:
        super().__init__(bounded(method), bounded(message))
        self.method = bounded(method)
        self.message = bounded(message)

    def _text(self) -> str:
        return f"{self.method}: {self.message}"


class UserUnavailableError(MethodError):
    """ "user 5 is unavailable": there is no such user, or the project is not this user's."""


class ProjectNotFoundError(MethodError):
    """ "project 9 does not exist"."""


class TasksDeniedError(MethodError):
    """ "access denied to tasks [66, 68]": at least one does not exist or is another project's.

    Attributes:
        task_ids: The ids that the server named, perhaps more than the bad ones, perhaps none.
    """

    def __init__(self, method: str, message: str, task_ids: Iterable[int] = ()) -> None:
        super().__init__(method, message)
        self.task_ids = tuple(task_ids)
        self.args = (self.method, self.message, self.task_ids)


class UndefinedMethodError(MethodError):
    """ "Undefined method 'TestMethod'": this server does not know the method."""


class StopIncompleteError(CtrlApiError, ExceptionGroup[Exception]):
    """The server did not answer for every task; groups the errors that caused it.

    `except* ProjectNotFoundError` reaches the causes; catch the error itself with
    `except StopIncompleteError`, since `except*` refuses to catch groups.

    Attributes:
        report: The `StopReport` with an outcome for every task.
    """

    report: StopReport

    def __new__(cls, message: str, errors: Sequence[Exception], report: StopReport) -> Self:
        """Make the group; an ExceptionGroup takes its parts here."""
        group = super().__new__(cls, message, errors)
        group.report = report
        return group

    def __init__(self, message: str, errors: Sequence[Exception], report: StopReport) -> None:
        Exception.__init__(self, message, errors, report)

    def _text(self) -> str:
        cause: Exception = self
        while isinstance(cause, ExceptionGroup):
            cause = cause.exceptions[0]
        return f"{self.message}: {str(cause) or type(cause).__name__}"

    def derive(self, excs: Sequence[Exception]) -> StopIncompleteError:  # type: ignore[override]
        """Return a group of some of the errors with the same report (for `except*`, `split`)."""
        return StopIncompleteError(self.message, excs, self.report)

    def __reduce__(self) -> tuple[Any, ...]:
        return StopIncompleteError, (self.message, self.exceptions, self.report)


def text_of(error: Exception) -> str:
    """Return what an outcome says of an error: the server's own text, if there is one."""
    return error.message if isinstance(error, MethodError) else bounded(str(error))


class Trait(Flag):
    """What an error means for the requests to come."""

    NONE = 0
    NOT_CARRIED_OUT = auto()
    """The request surely changed nothing at the server."""
    PASSING = auto()
    """A repeat may succeed."""
    FATAL = auto()
    """Any further request is expected to fail alike."""
    SLOW_DOWN = auto()
    """The server wants fewer requests."""
    TOO_LARGE = auto()
    """The server wants smaller requests."""
    NO_ANSWER = auto()
    """No answer came, or it was cut off."""
    TASK_MAY_CAUSE = auto()
    """One task of many may be the cause, so that halving the request helps."""


_OF_KIND: Final[dict[type[Exception], Trait]] = {
    # A task that kills or blocks the server's process shows in nothing but this.
    RequestError: Trait.PASSING | Trait.NO_ANSWER | Trait.TASK_MAY_CAUSE,
    DeadlineError: Trait.NONE,
    TlsError: Trait.FATAL,
    ReplyError: Trait.PASSING | Trait.TASK_MAY_CAUSE,
    HtmlReplyError: Trait.FATAL,
    # A repeat is as large.
    ReplyTooLargeError: Trait.TASK_MAY_CAUSE,
    # The documented texts are refusals. Any other text may come after the effect.
    MethodError: Trait.NONE,
    UserUnavailableError: Trait.NOT_CARRIED_OUT | Trait.FATAL,
    UndefinedMethodError: Trait.NOT_CARRIED_OUT | Trait.FATAL,
    ProjectNotFoundError: Trait.NOT_CARRIED_OUT,
    TasksDeniedError: Trait.NOT_CARRIED_OUT,
    Exception: Trait.NONE,
}

_REFUSED: Final = Trait.NOT_CARRIED_OUT | Trait.FATAL
_OF_STATUS: Final = {
    400: Trait.FATAL | Trait.TASK_MAY_CAUSE,
    401: _REFUSED,
    403: _REFUSED,
    404: _REFUSED,
    405: _REFUSED,
    407: _REFUSED,
    408: Trait.PASSING,
    413: Trait.NOT_CARRIED_OUT | Trait.TOO_LARGE,
    425: Trait.PASSING,
    429: Trait.NOT_CARRIED_OUT | Trait.PASSING | Trait.SLOW_DOWN,
    # Not refused for sure: proxies send it also when the server died after taking the request.
    503: Trait.PASSING | Trait.SLOW_DOWN | Trait.TASK_MAY_CAUSE,
}
_OF_SERVER_FAULT: Final = Trait.PASSING | Trait.TASK_MAY_CAUSE
_OF_OTHER_STATUS: Final = Trait.FATAL


def traits_of(error: Exception) -> Trait:
    """Return what an error means for the requests to come."""
    if isinstance(error, HttpError):
        other = _OF_SERVER_FAULT if error.status >= 500 else _OF_OTHER_STATUS
        return _OF_STATUS.get(error.status, other)
    traits = next(_OF_KIND[kind] for kind in type(error).__mro__ if kind in _OF_KIND)
    if isinstance(error, RequestError) and not error.sent:
        traits = traits & ~Trait.TASK_MAY_CAUSE | Trait.NOT_CARRIED_OUT
    return traits
