"""The options that commands share, as `--help` shows them, and how their values are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Group, Parameter

from ctrlapi_async.cli.exits import UsageError
from ctrlapi_async.cli.task_reader import whole_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cyclopts import Token

TASKS: Final = Group("Tasks", sort_key=0)
STOPPING: Final = Group("Stopping", sort_key=1)
SERVER: Final = Group("Server", sort_key=2)
REQUESTS: Final = Group("Requests", sort_key=3)
OUTPUT: Final = Group("Output", sort_key=4)
SIMULATION: Final = Group("Simulated server", sort_key=0)

TASK_WORDS: Final = (
    "Task ids (64 65 66) and ranges (100-199). Write the project before them if it is not that "
    "of --project: 2:64,65,100-199. A lone - reads more from standard input."
)

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600}
_DURATION: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)([smh]?)", re.ASCII)


# The names of these types stand in the help texts: `--timeout DURATION`.


class Duration(float):
    """A number of seconds."""


class Share(float):
    """A number from 0 to 1."""


class File(str):
    """The path of a file."""

    __slots__ = ()


class Url(str):
    """The address of a server."""

    __slots__ = ()


class Login(str):
    """A login, perhaps with its password."""

    __slots__ = ()


class Name(str):
    """The name of something."""

    __slots__ = ()


class Id(str):
    """The id of a project or a user, which is checked when all settings are known."""

    __slots__ = ()


def duration(text: str) -> float:
    """Return the seconds of `90`, `90s`, `5m` or `1h`; raises ValueError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"must be a time such as 90, 90s, 5m or 1h, not {text!r}")
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds > 1e9:  # some 30 years
        raise ValueError(f"is too long a time: {text!r}")
    return seconds


def expect_whole_number(text: str, least: int = 0) -> int:
    """Return the whole number that a text is; raises ValueError."""
    number = whole_number(text.strip())
    if number is None or number < least:
        raise ValueError(f"must be a whole number, {least} or more, not {text!r}")
    return number


def _read_duration(_: type, tokens: Sequence[Token]) -> Duration:
    return Duration(duration(tokens[0].value))


def _read_whole(_: type, tokens: Sequence[Token]) -> int:
    return expect_whole_number(tokens[0].value)


def _read_count(_: type, tokens: Sequence[Token]) -> int:
    return expect_whole_number(tokens[0].value, 1)


def _read_share(_: type, tokens: Sequence[Token]) -> Share:
    text = tokens[0].value
    if not re.fullmatch(r"0?\.[0-9]+|[01](?:\.0*)?", text, re.ASCII):
        raise ValueError(f"must be a number from 0 to 1, not {text!r}")
    return Share(text)


def same_word(name: str) -> str:
    """Return the form in which choices are compared: `STOP_SENT` and `stop-sent` are one."""
    return name.lower().replace("-", "_")


Time = Annotated[Duration, Parameter(converter=_read_duration)]
WholeNumber = Annotated[int, Parameter(converter=_read_whole)]
Count = Annotated[int, Parameter(converter=_read_count)]
PartOfAll = Annotated[Share, Parameter(converter=_read_share)]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]

RunningShare = Annotated[
    PartOfAll, Parameter(group=SIMULATION, help="The share of the tasks that is running.")
]
RestartedShare = Annotated[
    PartOfAll,
    Parameter(
        group=SIMULATION,
        help="The share of the tasks that stalled and was restarted as other tasks.",
    ),
]

CONNECT_TIMEOUT: Final = Duration(10)

Format = Literal["table", "wide", "ndjson", "json", "ids"]


@Parameter(name="*", group=TASKS)
@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Which tasks are meant, apart from those named one by one."""

    projects: Annotated[
        tuple[Id, ...],
        Parameter(
            name=["--project", "-p"],
            negative="",
            show_default=False,
            help="The project of the tasks that are written without one. Give it several times "
            "to use --all-active on several projects. [env: CTRLAPI_PROJECT_ID]",
        ),
    ] = ()
    sources: Annotated[
        tuple[File, ...],
        Parameter(
            name=["--from", "-f"],
            negative="",
            show_default=False,
            allow_leading_hyphen=True,
            help="Read more task ids from this file, or from standard input if it is -. Ids and "
            "ranges stand between spaces, commas or line ends; # begins a comment; JSON lines "
            "with task_id and project_id are understood too. Can be given several times.",
        ),
    ] = ()
    all_active: Annotated[
        Flag,
        Parameter(help="All tasks of the project that are running or in its queue."),
    ] = False


@Parameter(name="*", group=SERVER)
@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Which server to ask, and in whose name."""

    profile: Annotated[
        Name | None,
        Parameter(
            help="Take what is not given here from this profile of the configuration file; "
            "`ctrlapi-async config` shows where that is. [env: CTRLAPI_PROFILE]"
        ),
    ] = None
    url: Annotated[
        Url | None,
        Parameter(help="The server's address, such as http://172.16.1.41. [env: CTRLAPI_URL]"),
    ] = None
    user_id: Annotated[
        Id | None,
        Parameter(help="The user in whose name to ask. [env: CTRLAPI_USER_ID]"),
    ] = None
    auth: Annotated[
        Login | None,
        Parameter(
            help="LOGIN for a server that asks for a login; the password is asked for. "
            "LOGIN:PASSWORD works too, but everybody on this machine can read it on the command "
            "line: better put it in the environment or a profile. [env: CTRLAPI_AUTH]"
        ),
    ] = None
    api_key_file: Annotated[
        File | None,
        Parameter(
            help="Sign all requests with the API key in this file, which nobody else may be able "
            "to read: KEY, or ACCESS_ID:KEY if the access id is not the user's. "
            "[env: CTRLAPI_API_KEY_FILE, or the key itself in CTRLAPI_API_KEY]"
        ),
    ] = None
    ca_file: Annotated[
        File | None,
        Parameter(
            help="Trust the certificate authorities in this PEM file, in place of the system's. "
            "[env: CTRLAPI_CA_FILE]"
        ),
    ] = None
    insecure: Annotated[Flag, Parameter(help="Do not check the server's certificate.")] = False


@Parameter(name="*", group=REQUESTS)
@dataclass(frozen=True, kw_only=True)
class RequestOptions:
    """How requests are sent."""

    timeout: Annotated[
        Time | None,
        Parameter(
            help="Time for the whole command (90, 90s, 5m, 1h); then what is known is shown."
        ),
    ] = None
    connect_timeout: Annotated[Time, Parameter(help="Time to connect to the server.")] = (
        CONNECT_TIMEOUT
    )
    chunk_size: Annotated[
        Count | None,
        Parameter(
            help="Task ids in one request at most. Chosen to suit their number if not given."
        ),
    ] = None
    concurrency: Annotated[Count, Parameter(help="Requests at the same time at most.")] = 8
    retries: Annotated[
        WholeNumber | None,
        Parameter(
            help="How often a failed request is sent again. If not given, often enough for a "
            "server that restarts."
        ),
    ] = None


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How results are shown."""

    format: Annotated[
        Format | None,
        Parameter(
            name=["--output", "-o"],
            help="table: a line for each of up to 50 tasks, groups if there are more; wide: a "
            "line for each task, with its message; ndjson: a JSON line for each task as soon as "
            "it is known; json: one JSON document; ids: only the task ids. If not given: table "
            "on a terminal, else ndjson.",
        ),
    ] = None
    every_task: Annotated[
        Flag,
        Parameter(name="--all", help="A line for each task in a table, however many there are."),
    ] = False


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class MessageOptions:
    """What is said on standard error."""

    quiet: Annotated[
        Flag,
        Parameter(
            name=["--quiet", "-q"], help="No progress, notes and warnings: only results and errors."
        ),
    ] = False
    verbose: Annotated[
        Flag, Parameter(name=["--verbose", "-v"], help="Log each request on standard error.")
    ] = False
    debug: Annotated[Flag, Parameter(help="Also show where in the program an error arose.")] = False


# What the commands' parameters default to.
NO_TASKS: Final = TaskOptions()
NO_SERVER: Final = ServerOptions()
USUAL_REQUESTS: Final = RequestOptions()
USUAL_OUTPUT: Final = OutputOptions()
USUAL_MESSAGES: Final = MessageOptions()


def refuse(condition: Any, message: str) -> None:  # noqa: ANN401 - anything that is true or not
    """Raise `UsageError` with a message if a condition holds."""
    if condition:
        raise UsageError(message)
