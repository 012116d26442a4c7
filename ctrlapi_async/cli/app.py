"""The commands and their options, as `--help` shows them; `work` carries them out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number

from ctrlapi_async.cli import OK, USAGE, complain

SERVER: Final = Group("Server", sort_key=1)
TASKS: Final = Group("Tasks", sort_key=0)
COURSE: Final = Group("Course", sort_key=2)
OUTPUT: Final = Group("Output", sort_key=3)
WORLD: Final = Group("World", sort_key=0)

_AT_LEAST_0: Final = Number(gte=0)
_AT_LEAST_1: Final = Number(gte=1)
_SHARE: Final = Number(gte=0, lte=1)

Seconds = Annotated[float, Parameter(validator=_AT_LEAST_0)]
Count = Annotated[int, Parameter(validator=_AT_LEAST_1)]
Whole = Annotated[int, Parameter(validator=_AT_LEAST_0)]
Share = Annotated[float, Parameter(validator=_SHARE)]
Flag = Annotated[bool, Parameter(negative="", show_default=False)]

_WORDS: Final = (
    "Task ids (64 65 66) and ranges (100-199); with their project (2:64,65,100-199) unless it is "
    "that of --project."
)

Format = Literal["table", "ndjson", "json", "ids"]
Result = Literal[
    "stop_sent",
    "not_running",
    "not_found",
    "unavailable",
    "would_stop",
    "not_sent",
    "unconfirmed",
]
Status = Literal[
    "Scheduled",
    "Explore",
    "Running",
    "Completed",
    "Rejected",
    "Canceled",
    "Stalled",
]


@Parameter(name="*", group=SERVER)
@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the tasks are, and who asks."""

    url: Annotated[
        str | None,
        Parameter(
            env_var="CTRLAPI_URL",
            help="The server's root (http://172.16.1.41), or the whole endpoint.",
        ),
    ] = None
    user_id: Annotated[
        Whole | None,
        Parameter(env_var="CTRLAPI_USER_ID", help="The user in whose name to ask."),
    ] = None
    auth: Annotated[
        str | None,
        Parameter(
            env_var="CTRLAPI_AUTH",
            help="LOGIN, to be asked for the password, or LOGIN:PASSWORD, for the proxy's basic "
            "authentication. Others can read a password that stands on a command line: rather "
            "have it asked for, or put it in the environment.",
        ),
    ] = None
    ca_file: Annotated[
        str | None,
        Parameter(help="A PEM file with the CA that the server's certificate must come from."),
    ] = None
    insecure: Annotated[Flag, Parameter(help="Do not verify the server's certificate.")] = False


@Parameter(name="*", group=TASKS)
@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Which tasks are meant, besides those named one by one."""

    project: Annotated[
        tuple[int, ...],
        Parameter(
            validator=_AT_LEAST_0,
            env_var="CTRLAPI_PROJECT_ID",
            negative="",
            show_default=False,
            help="The project of tasks for which none is written; may be given more than once, "
            "for --all-active say, and then a project must be written with each task.",
        ),
    ] = ()
    source: Annotated[
        str | None,
        Parameter(
            name="--from",
            allow_leading_hyphen=True,
            help="A file that names more tasks, or - for standard input: ids and ranges, as "
            "above, between white space or commas, or JSON lines with task_id and perhaps "
            "project_id. A file is checked before the first request; a pipe is read as it comes "
            "if there is one --project, which all of its tasks are of.",
        ),
    ] = None
    all_active: Annotated[
        Flag, Parameter(help="All running tasks of each --project, and those in its queue.")
    ] = False


@Parameter(name="*", group=COURSE)
@dataclass(frozen=True, kw_only=True)
class Course:
    """How the requests are sent."""

    timeout: Annotated[
        Seconds | None, Parameter(help="Seconds for the whole; then what is known is shown.")
    ] = None
    chunk_size: Annotated[
        Count | None,
        Parameter(help="Task ids a request at most; fitted to their number unless given."),
    ] = None
    concurrency: Annotated[Count, Parameter(help="Requests in flight at most.")] = 8
    retries: Annotated[Whole, Parameter(help="How often a request that failed is sent again.")] = 5


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True, kw_only=True)
class Talk:
    """What is said besides."""

    verbose: Annotated[
        Flag,
        Parameter(name=["--verbose", "-v"], help="Tell of each request on standard error."),
    ] = False
    debug: Annotated[Flag, Parameter(help="Show where an error comes from.")] = False


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("ctrlapi-async")
    except PackageNotFoundError:
        return "not installed"


app = App(
    name="ctrlapi-async",
    version=_version,
    suppress_keyboard_interrupt=False,
    help=(
        "Stop many tasks of a Control API server at once, and account for every one.\n\n"
        "Exit status: 0 every task was answered for; 1 some were not found, or ended before "
        "their stop; 2 usage; 3 some have no answer; 4 nothing could be done; 130 interrupted.\n\n"
        "Shell completion: ctrlapi-async --install-completion (bash, zsh, fish)."
    ),
    help_format="plaintext",
    group_parameters=Group("Parameters", sort_key=9),
)
app.register_install_completion_command(help="Install shell completion for this shell.")


@app.command
def stop(
    *tasks: Annotated[str, Parameter(group=TASKS, help=_WORDS)],
    more: Tasks = Tasks(),
    dry_run: Annotated[
        Flag, Parameter(group=COURSE, help="Only tell which tasks would be stopped.")
    ] = False,
    wait_pending: Annotated[
        Seconds | None,
        Parameter(
            group=COURSE,
            help="Seconds for which tasks in the queue are checked again, to be stopped once "
            "they run.",
        ),
    ] = None,
    confirm: Annotated[
        Seconds | None,
        Parameter(
            group=COURSE,
            help="Seconds for which stopped tasks are checked again, until none of them runs.",
        ),
    ] = None,
    server: Server = Server(),
    course: Course = Course(),
    format: Annotated[  # noqa: A002
        Format | None,
        Parameter(
            group=OUTPUT,
            help="A table; a JSON line a task as soon as it is known; the report as JSON; or the "
            "ids of the tasks that were stopped. Unless given, table on a terminal and ndjson in "
            "a pipe.",
        ),
    ] = None,
    only: Annotated[
        tuple[Result, ...],
        Parameter(
            group=OUTPUT,
            negative="",
            show_default=False,
            help="Show only tasks with this result; may be given more than once.",
        ),
    ] = (),
    talk: Talk = Talk(),
) -> int:
    """Stop those of the tasks that are running.

    Each task is checked first, and a stop is sent only for one that is running.
    """
    from ctrlapi_async.cli import work

    return work.stop(
        tasks,
        more,
        server,
        course,
        talk,
        dry_run=dry_run,
        wait_pending=wait_pending,
        confirm=confirm,
        format=format,
        only=only,
    )


@app.command
def status(
    *tasks: Annotated[str, Parameter(group=TASKS, help=_WORDS)],
    more: Tasks = Tasks(),
    server: Server = Server(),
    course: Course = Course(),
    format: Annotated[  # noqa: A002
        Format | None,
        Parameter(
            group=OUTPUT,
            help="A table; a JSON line a task as soon as it is known; all of it as JSON; or the "
            "ids of the running tasks. Unless given, table on a terminal and ndjson in a pipe.",
        ),
    ] = None,
    only: Annotated[
        tuple[Status, ...],
        Parameter(
            group=OUTPUT,
            negative="",
            show_default=False,
            help="Show only tasks of this status; may be given more than once.",
        ),
    ] = (),
    talk: Talk = Talk(),
) -> int:
    """Ask for the status of tasks, and change nothing."""
    from ctrlapi_async.cli import work

    return work.status(tasks, more, server, course, talk, format=format, only=only)


@app.command
def demo(
    *,
    tasks: Annotated[
        Whole, Parameter(group=WORLD, help="How many tasks the simulated server has.")
    ] = 10_000,
    running: Annotated[
        Share,
        Parameter(
            group=WORLD,
            help="The share of them that is running; the other statuses get equal parts.",
        ),
    ] = 0.5,
    absent: Annotated[
        Whole,
        Parameter(
            group=WORLD, help="How many ids besides are asked for that the server does not have."
        ),
    ] = 10,
    latency: Annotated[
        Seconds, Parameter(group=WORLD, help="Seconds that the server takes for each reply.")
    ] = 0.05,
    course: Course = Course(),
    talk: Talk = Talk(),
) -> int:
    """Stop the tasks of a simulated server, over HTTP on this machine, and tell the cost."""
    from ctrlapi_async.cli import simulated

    return simulated.demo(
        course, talk, tasks=tasks, running=running, absent=absent, latency=latency
    )


@app.command
def simulate(
    *,
    host: Annotated[str, Parameter(group=SERVER, help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int,
        Parameter(
            group=SERVER, validator=Number(gte=0, lte=65535), help="The port; 0 for a free one."
        ),
    ] = 8080,
    auth: Annotated[
        str | None,
        Parameter(
            group=SERVER,
            help="LOGIN:PASSWORD that requests must carry as basic authentication.",
        ),
    ] = None,
    latency: Annotated[Seconds, Parameter(group=SERVER, help="Seconds before each reply.")] = 0.0,
    fail: Annotated[
        Share,
        Parameter(group=SERVER, help="The share of the requests that is answered with 503."),
    ] = 0.0,
    tasks: Annotated[
        Whole | None,
        Parameter(
            group=WORLD,
            help="How many tasks there are, of all statuses, with ids from 1. Unless given, there "
            "are those of the API documentation's examples, 63 to 67 of project 2.",
        ),
    ] = None,
    running: Annotated[
        Share,
        Parameter(
            group=WORLD,
            help="The share of the tasks that is running; the other statuses get equal parts.",
        ),
    ] = 0.5,
    seed: Annotated[
        int, Parameter(group=WORLD, help="Another number scatters the statuses in another way.")
    ] = 0,
    project: Annotated[Whole, Parameter(group=WORLD, help="The project of the tasks.")] = 2,
    user_id: Annotated[Whole, Parameter(group=WORLD, help="The project's user.")] = 1,
    missing: Annotated[
        Literal["denied", "error", "omitted"] | None,
        Parameter(
            group=WORLD,
            help="What asking for a task gets that is not there: denied refuses the whole call, "
            "error gives a row with an error, omitted no row. Unless given, denied, and error "
            "with the documentation's tasks.",
        ),
    ] = None,
    stop_delay: Annotated[
        Seconds,
        Parameter(group=WORLD, help="Seconds that a task goes on running after its stop was sent."),
    ] = 0.0,
    debug: Annotated[Flag, Parameter(group=OUTPUT, help="Show where an error comes from.")] = False,
) -> int:
    """Run a simulated Control API server until interrupted."""
    from ctrlapi_async.cli import simulated

    del debug  # `main` looks for it
    return simulated.simulate(
        simulated.World(
            tasks=tasks,
            running=running,
            seed=seed,
            project=project,
            user_id=user_id,
            missing=missing,
            stop_delay=stop_delay,
        ),
        host=host,
        port=port,
        auth=auth,
        latency=latency,
        fail=fail,
    )


def run(arguments: list[str]) -> int:
    """Carry out a command line, and give the exit status; what the commands raise comes out."""
    try:
        result = app(
            arguments,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except CycloptsError as error:
        complain(f"{error} --help shows what there is.")
        return USAGE
    return result if isinstance(result, int) else OK
