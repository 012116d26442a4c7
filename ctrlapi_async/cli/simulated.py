"""What `demo` and `simulate` do: a simulated server, with and without a client."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from attrs import frozen

from ctrlapi_async.cli import NOTHING, OK, REFUSED, UsageError, complain, show
from ctrlapi_async.cli.connect import session_of
from ctrlapi_async.cli.follow import (
    View,
    drawn,
    exit_status,
    explain,
    follow,
    go_on,
    in_loop,
    logging_to_stderr,
    print_out,
)
from ctrlapi_async.models import TaskStatus
from ctrlapi_async.simulator import ControlApiSimulator, HttpStatus

if TYPE_CHECKING:
    from ctrlapi_async.bulk import StopRun
    from ctrlapi_async.cli.app import Course, Talk
    from ctrlapi_async.session import ControlSession
    from ctrlapi_async.simulator import Missing, RequestRecord


def demo(
    course: Course, talk: Talk, *, tasks: int, running: float, absent: int, latency: float
) -> int:
    """Carry out `demo`; arguments as in `app`."""
    view = View(format="", doing="Stopping")

    async def stop_them() -> int:
        async with ControlApiSimulator(latency=latency, log=False) as api:
            api.mixed_tasks(tasks, running=running)
            session = session_of(api.url, 1, course)

            def begin(session: ControlSession) -> StopRun:
                return session.stopping(2, range(1, tasks + absent + 1), timeout=course.timeout)

            ending = await follow(session, begin, view, sized=True)
            requests = api.counters.requests
        await print_out(drawn(show.demo_table(ending.report, requests)))
        explain(ending, talk)
        # That some are not found is what was asked for.
        verdict = exit_status(ending)
        return OK if verdict == REFUSED else verdict

    with logging_to_stderr(talk):
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
            await print_out(
                f"Control API simulator on {api.endpoint}\n"
                f"project {project_id} of user {user_id}: {there}\n"
                "Ctrl-C ends it\n"
            )
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            go_on()  # an interrupt is how this ends
        finally:
            await api.stop()
        calls = api.counters.requests_by_method
        await print_out(
            f"{show.numbered(api.counters.requests, 'request')} answered: "
            f"{calls['TaskStatus']:,} TaskStatus, {calls['TaskStop']:,} TaskStop\n"
        )
        return OK

    return in_loop(serve())
