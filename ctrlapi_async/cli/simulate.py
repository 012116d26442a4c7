"""The command `simulate`."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Annotated, Final, Literal

from cyclopts import Parameter

from ctrlapi_async import TaskStatus
from ctrlapi_async.cli.exits import CommandError, Exit
from ctrlapi_async.cli.options import (
    SERVER,
    SIMULATION,
    USUAL_MESSAGES,
    Duration,
    MessageOptions,
    PartOfAll,
    RestartedShare,
    RunningShare,
    Share,
    Time,
    WholeNumber,
    refuse,
)
from ctrlapi_async.cli.process import go_on, run_command
from ctrlapi_async.cli.settings import Setting, read_secret_file
from ctrlapi_async.cli.text import numbered

if TYPE_CHECKING:
    from collections.abc import Callable

    from ctrlapi_async.cli.process import Process
    from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus, RequestRecord

EXAMPLES: Final = """\
Examples:

  ctrlapi-async simulate
      Serve the tasks of the API documentation's examples at http://127.0.0.1:8080.

  ctrlapi-async simulate --tasks 1000 --restarted 0.1 --stop-delay 3s
      Serve 1,000 tasks, some of them restarted, which run on for 3 seconds
      after their stop.

  ctrlapi-async simulate --port 0 --fail 0.2 --auth joe:secret
      Serve on a free port, fail one request in five, and ask for a login.
"""

_NO_TIME: Final = Duration(0)
_NONE: Final = Share(0)
_HALF: Final = Share(0.5)


def simulate(
    *,
    host: Annotated[str, Parameter(group=SERVER, help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[
        WholeNumber, Parameter(group=SERVER, help="The port to listen on; 0 for a free one.")
    ] = 8080,
    auth: Annotated[
        str | None,
        Parameter(group=SERVER, help="The LOGIN:PASSWORD that requests must carry."),
    ] = None,
    api_key_file: Annotated[
        str | None,
        Parameter(group=SERVER, help="A file with the API key that requests must be signed with."),
    ] = None,
    latency: Annotated[
        Time, Parameter(group=SERVER, help="The time before each reply.")
    ] = _NO_TIME,
    fail: Annotated[
        PartOfAll,
        Parameter(group=SERVER, help="The share of the requests that gets a 503."),
    ] = _NONE,
    tasks: Annotated[
        WholeNumber | None,
        Parameter(
            group=SIMULATION,
            help="How many tasks there are, of all statuses, with ids from 1. If not given: those "
            "of the API documentation's examples, 63 to 67 in project 2.",
        ),
    ] = None,
    running: RunningShare = _HALF,
    restarted: RestartedShare = _NONE,
    seed: Annotated[
        WholeNumber,
        Parameter(group=SIMULATION, help="Another number scatters the statuses in another way."),
    ] = 0,
    project: Annotated[
        WholeNumber, Parameter(group=SIMULATION, help="The project of the tasks.")
    ] = 2,
    user_id: Annotated[WholeNumber, Parameter(group=SIMULATION, help="The project's user.")] = 1,
    missing: Annotated[
        Literal["denied", "error", "omitted"] | None,
        Parameter(
            group=SIMULATION,
            help="The answer about a task that does not exist: denied refuses the whole call, "
            "error gives a row with an error, omitted gives no row. If not given: denied, but "
            "error for the documentation's tasks.",
        ),
    ] = None,
    stop_delay: Annotated[
        Time,
        Parameter(group=SIMULATION, help="The time that a task runs on after its stop was sent."),
    ] = _NO_TIME,
    messages: MessageOptions = USUAL_MESSAGES,
) -> int:
    """Run a simulated Control API server until Ctrl-C."""
    login, colon, password = (auth or "").partition(":")
    refuse(auth is not None and not colon, "--auth must be LOGIN:PASSWORD here")
    refuse(
        auth is not None and api_key_file is not None,
        "--auth and --api-key-file are two ways to log in: give one of them",
    )
    refuse(port > 65535, "--port goes to 65535")
    refuse(running + restarted > 1, "--running and --restarted together are more than all tasks")
    key = read_secret_file(Setting(api_key_file, "--api-key-file")) if api_key_file else None

    async def command(process: Process) -> int:
        from ctrlapi_async.simulator import ControlApiSimulator

        api = ControlApiSimulator(
            host=host,
            port=port,
            login=(login, password) if auth is not None else None,
            api_key=key,
            clock=time.monotonic,
            stop_delay=stop_delay,
            latency=latency,
            log=False,
        )
        if tasks is None:
            api.documented_world()
            what = "project 2 of user 1: tasks 63 to 67, all Running, as in the API documentation"
        else:
            counts = api.mixed_tasks(
                tasks,
                running=running,
                restarted=restarted,
                seed=seed,
                project_id=project,
                user_id=user_id,
            )
            words = (f"{counts[status]:,} {status}" for status in TaskStatus if counts[status])
            what = f"project {project} of user {user_id}: tasks 1 to {tasks}: {', '.join(words)}"
        if missing is not None:
            api.missing = missing
        if fail:
            api.fault_when = _failing(fail, seed)
        return await _serve(process, api, what)

    return run_command(messages, command)


def _failing(share: float, seed: int) -> Callable[[RequestRecord], HttpStatus | None]:
    from ctrlapi_async.simulator import HttpStatus

    chance = random.Random(seed)  # noqa: S311 - guards nothing

    def fault(_: RequestRecord) -> HttpStatus | None:
        return HttpStatus(503) if chance.random() < share else None

    return fault


async def _serve(process: Process, api: ControlApiSimulator, what: str) -> int:
    """Serve until a signal comes, and return the exit status."""
    try:
        await api.start()
    except OSError as error:
        raise CommandError(f"cannot listen: {error.strerror}; choose another --port") from None
    try:
        process.out.put(f"Control API simulator on {api.endpoint}\n{what}\nCtrl-C ends it\n")
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        go_on()  # a signal is how this ends
    finally:
        await api.stop()
    calls = api.counters.requests_by_method
    process.out.put(
        f"{numbered(api.counters.requests, 'request')} answered: "
        f"{calls['TaskStatus']:,} TaskStatus, {calls['TaskStop']:,} TaskStop\n"
    )
    await process.out.drain()
    return Exit.OK
