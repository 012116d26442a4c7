"""The session's backoff and ceiling, pure; and slots, first come, first served."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from typing import TYPE_CHECKING, Any, ParamSpec

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ctrlapi_async import HttpError, ReplyError, RequestError, RetryPolicy
from ctrlapi_async._limiter import Backoff, ConcurrencyLimiter, IdCeiling
from tests.support.clock import eager, run, skip

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")
BUSY = HttpError("busy", 503)
TOO_LARGE = HttpError("too large", 413)


def wait_bound(level: int) -> float:
    return min(15.0, 0.5 * 2.0 ** (level - 1))


# --- backoff --------------------------------------------------------------------------------------

GOOD = "a good reply"


@pytest.mark.parametrize(
    ("random", "events", "resume_at"),
    [
        # Between nothing and the bound, but never less than the server asks for.
        (0.0, [(10, 10, None)], 10.0),
        (0.5, [(10, 10, None)], 10.25),
        (1.0, [(10, 10, 0.1)], 10.5),
        (1.0, [(10, 10, 30.0)], 40.0),
        (0.0, [(10, 10, 0.0)], 10.0),
        # A shorter pause does not end a longer one.
        (1.0, [(0, 0, 60.0), (1, 1, None)], 60.0),
        # Requests that were in flight together count once; what the server asks for, each time.
        (1.0, [(0, 1, None), (0.1, 1, None), (0.2, 1, None)], 1.5),
        (1.0, [(0, 1, None), (0.3, 1, 7.0)], 8.0),
        # Each good reply takes one level back.
        (1.0, [*[(n, n, None) for n in (0, 100, 200)], GOOD, (300, 300, None)], 302.0),
        (1.0, [*[(n, n, None) for n in (0, 100)], *[GOOD] * 10, (300, 300, None)], 300.5),
    ],
)
def test_how_long_a_pause_lasts(
    random: float, events: list[str | tuple[float, float, float | None]], resume_at: float
) -> None:
    pause = Backoff(wait_bound, lambda: random)
    for event in events:
        if isinstance(event, str):
            pause.succeeded()
        else:
            pause.refused(*event)
    assert pause.resume_at == resume_at


def test_pauses_grow_while_refusals_go_on() -> None:
    pause = Backoff(wait_bound, lambda: 1.0)
    now = 0.0
    pauses = []
    for _ in range(8):
        pause.refused(now, now, None)
        pauses.append(pause.resume_at - now)
        now = pause.resume_at
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


# --- ceiling --------------------------------------------------------------------------------------


def successes_until_it_rises(ceiling: IdCeiling) -> int:
    before = ceiling.max_ids
    assert before is not None
    count = 0
    while ceiling.max_ids == before:
        ceiling.succeeded(before)
        count += 1
    assert ceiling.max_ids == 2 * before
    return count


def test_the_ceiling_halves_and_rises_again_more_rarely_each_time_that_proves_wrong() -> None:
    ceiling = IdCeiling()
    ceiling.succeeded(10)
    assert ceiling.max_ids is None
    counts: list[int | None] = []
    for size in (7, 3, 1):
        ceiling.refused(size)
        counts.append(ceiling.max_ids)
    assert counts == [3, 1, 1]
    ceiling = IdCeiling()
    ceiling.refused(1000)
    needed = []
    for _ in range(4):
        for _ in range(200):
            ceiling.succeeded(499)  # smaller requests prove nothing
        needed.append(successes_until_it_rises(ceiling))
        for _ in range(8):  # in flight together, they lower it once
            ceiling.refused(1000)
        assert ceiling.max_ids == 500
    assert needed == [16, 32, 64, 128]
    # A rise that was right is not held against the next.
    assert [successes_until_it_rises(ceiling) for _ in range(3)] == [256, 256, 256]


# --- slots ----------------------------------------------------------------------------------------


def limiter(slots: int, start: int | None = None, **more: Any) -> ConcurrencyLimiter:
    return ConcurrencyLimiter(
        slots, start, wait_bound=RetryPolicy().wait_bound, random=lambda: 1.0, **more
    )


def both_ways(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test with tasks that start later, and with tasks that start at once."""

    @functools.wraps(test)
    def run_test(*args: P.args, **more: P.kwargs) -> None:
        async def eagerly() -> None:
            asyncio.get_running_loop().set_task_factory(eager)
            await test(*args, **more)

        run(test(*args, **more))
        run(eagerly())

    return run_test


@pytest.mark.parametrize(
    ("slots", "start", "first", "then"),
    [(8, None, 8, 8), (8, 2, 2, 4), (8, 8, 8, 8), (2, 8, 2, 2), (1, None, 1, 1)],
)
@both_ways
async def test_slots_grow_where_a_smaller_start_is_given(
    slots: int, start: int | None, first: int, then: int
) -> None:
    mine = limiter(slots, start)
    assert mine.slots == first
    for _ in range(first):
        await mine.acquire()
    for _ in range(first):
        mine.finished(sent_at=0.0, now=1.0, size=10, error=None)
        mine.release()
    assert mine.slots == then


class Users:
    """Tasks that take slots, in the order in which they got them."""

    def __init__(self, slots: ConcurrencyLimiter) -> None:
        self.slots = slots
        self.got: list[int] = []
        self.done: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    def start(self, *names: int) -> None:
        for name in names:
            self.done[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._use(name))

    async def _use(self, name: int) -> None:
        async with self.slots.slot():
            self.got.append(name)
            await self.done[name].wait()

    async def finish(self, *names: int) -> None:
        for name in names:
            self.done[name].set()
        await asyncio.wait([self.tasks[name] for name in names])

    async def cancel(self, *names: int) -> None:
        for name in names:
            self.tasks[name].cancel()
        await asyncio.wait([self.tasks[name] for name in names])


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@both_ways
async def test_fewer_slots_are_given_out_while_the_server_is_busy() -> None:
    users = Users(limiter(4))
    users.start(1, 2, 3, 4, 5, 6)
    await settle()
    refuse(users.slots)
    assert users.slots.slots == 2
    await asyncio.sleep(1)
    for names, got in (((1, 2), 4), ((3,), 5), ((4,), 6)):
        await users.finish(*names)
        await settle()
        assert len(users.got) == got
    await users.finish(5, 6)


# --- pauses ---------------------------------------------------------------------------------------


def timers() -> list[asyncio.TimerHandle]:
    loop: Any = asyncio.get_running_loop()
    return [timer for timer in loop._scheduled if not timer.cancelled()]


def refuse(slots: ConcurrencyLimiter, retry_after: float | None = None, status: int = 503) -> None:
    now = asyncio.get_running_loop().time()
    error = HttpError("busy", status, "", retry_after)
    slots.finished(sent_at=now, now=now, size=1, error=error)


@pytest.mark.parametrize("status", [429, 503])
@both_ways
async def test_during_a_pause_nobody_gets_a_slot(status: int) -> None:
    loop = asyncio.get_running_loop()
    slots = limiter(2)
    began = loop.time()
    async with slots.slot():
        refuse(slots, 30, status)
    assert began + 30 <= slots.resume_at <= loop.time() + 30
    users = Users(slots)
    users.start(1, 2)
    await asyncio.sleep(29)
    assert users.got == []
    await asyncio.sleep(1.1)
    assert users.got == [1]  # of two slots one is left
    await users.finish(1, 2)
    assert timers() == []


@both_ways
async def test_no_timer_is_left_behind_by_those_that_stop_waiting() -> None:
    slots = limiter(2)
    refuse(slots, 3600)
    assert timers() == []
    users = Users(slots)
    users.start(1, 2)
    await settle()
    assert len(timers()) == 1
    await users.cancel(1)
    assert len(timers()) == 1
    await users.cancel(2)
    assert timers() == []


@pytest.mark.parametrize("retry_after", [100_000.0, math.inf])
@both_ways
async def test_a_pause_may_be_longer_than_any_timer(retry_after: float) -> None:
    users = Users(limiter(2))
    refuse(users.slots, retry_after)
    users.start(1)
    await asyncio.sleep(99_000)
    assert users.got == []
    await asyncio.sleep(2_000)
    assert users.got == ([1] if retry_after == 100_000 else [])
    await users.cancel(1)
    assert timers() == []


@both_ways
async def test_a_wait_that_nobody_will_keep_pauses_nobody_nor_does_one_that_is_over() -> None:
    loop = asyncio.get_running_loop()
    slots = limiter(2, longest_wait=120.0)
    refuse(slots, 121)
    assert slots.resume_at <= loop.time() + 0.5
    began = loop.time()
    refuse(slots, 120)
    assert began + 120 <= slots.resume_at <= loop.time() + 120
    skip(121)  # while the loop is held up
    with pytest.raises(KeyError):
        async with slots.slot():
            raise KeyError
    assert slots.in_flight == 0


def test_a_pause_of_one_loop_holds_nobody_up_in_the_next() -> None:
    slots = limiter(1)

    async def pause() -> None:
        refuse(slots, 900)
        users = Users(slots)
        users.start(1, 2)
        await settle()
        await users.cancel(1, 2)

    async def go_on() -> None:
        skip(1000)
        async with asyncio.timeout(1), slots.slot():
            pass

    run(pause())
    run(go_on())


# --- what the limiter is told ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        *(None, RequestError("lost"), ReplyError("cut"), KeyError("a bug")),
        *(HttpError("no", status) for status in (404, 408, 425, 500, 502, 504)),
    ],
)
def test_other_ends_of_requests_pause_nothing(error: Any) -> None:
    slots = limiter(4)
    slots.finished(sent_at=0.0, now=0.0, size=1000, error=error)
    assert (slots.slots, slots.resume_at, slots.max_ids) == (4, 0.0, None)


def test_what_changes_is_logged_and_the_ceiling_follows_refusals_and_good_replies(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "ctrlapi_async")
    slots = limiter(4)
    slots.finished(sent_at=0.0, now=10.0, size=1, error=TOO_LARGE)
    assert slots.max_ids is None  # one id cannot be halved
    for error in (BUSY, BUSY, TOO_LARGE, TOO_LARGE, None):
        slots.finished(sent_at=0.0, now=10.0, size=100, error=error)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "slowing down: 2 requests at once, after 0.50 s"),
        ("WARNING", "request too large: 50 task ids at most from now on"),
    ]
    for _ in range(15):
        assert slots.max_ids == 50
        slots.finished(sent_at=0.0, now=10.0, size=50, error=None)
    assert slots.max_ids == 100


def act(users: Users, kind: str, name: int) -> None:
    """Do something with slots that may happen in any order."""
    now = asyncio.get_running_loop().time()
    task = users.tasks.get(name)
    if kind == "refuse":
        refuse(users.slots)
    elif kind == "succeed":
        users.slots.finished(sent_at=now, now=now, size=1, error=None)
    elif task is None:
        users.start(name)
    elif kind == "cancel":
        task.cancel()
    else:
        users.done[name].set()


LINE: list[tuple[str, int, int]] = [("use", name, name // 4 * 5) for name in (1, 2, 3, 4)]
"""Four users of slots come at once."""


@given(
    slots=st.integers(1, 4),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["use", "use", "cancel", "refuse", "succeed"]),
            st.integers(0, 7),
            st.integers(0, 5),
        ),
        max_size=40,
    ),
)
@example(2, [*LINE, ("use", 2, 0), ("use", 5, 5)])  # who comes now does not get ahead
@example(1, [*LINE, ("cancel", 2, 5), ("use", 1, 5), ("cancel", 3, 5)])  # while they wait
@example(1, [*LINE, ("use", 1, 1), ("cancel", 2, 5)])  # it has a slot, and does not know yet
@example(1, [*LINE, ("use", 1, 0), ("cancel", 2, 5)])  # it has not run since when one is free
@both_ways
async def test_slots_go_to_whoever_has_waited_longest_and_are_never_lost_nor_too_many(
    slots: int, steps: list[tuple[str, int, int]]
) -> None:
    users = Users(limiter(slots))
    cancelled = set()
    for kind, name, turns in steps:
        cancelled |= {name} if kind == "cancel" else set()
        act(users, kind, name)
        for _ in range(turns):
            await asyncio.sleep(0)
        assert users.slots.in_flight <= slots
    for name in users.tasks:
        await users.finish(name)
    assert users.got == [name for name in users.tasks if name in users.got]
    assert {*users.got} >= users.tasks.keys() - cancelled
    assert users.slots.in_flight == 0
    assert timers() == []
