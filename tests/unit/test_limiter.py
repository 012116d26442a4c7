"""The session's backoff and ceiling, pure; and slots, first come, first served."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctrlapi_async import HttpError, ReplyError, RequestError, RetryPolicy, _limiter
from ctrlapi_async._adaptive import AdaptiveConcurrency
from ctrlapi_async._errors import Trait
from ctrlapi_async._limiter import Backoff, ConcurrencyLimiter, IdCeiling
from tests.support.clock import eager, run, skip

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

BUSY = HttpError("busy", 503)
TOO_LARGE = HttpError("too large", 413)


def wait_bound(level: int) -> float:
    return min(15.0, 0.5 * 2.0 ** (level - 1))


# --- backoff --------------------------------------------------------------------------------------


def backoff(random: float = 1.0) -> Backoff:
    return Backoff(wait_bound, lambda: random)


def test_pauses_grow_while_refusals_go_on() -> None:
    pause = backoff()
    now = 0.0
    pauses = []
    for _ in range(8):
        pause.refused(now, now, None)
        pauses.append(pause.resume_at - now)
        now = pause.resume_at
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_each_good_reply_takes_one_level_back() -> None:
    pause = backoff()
    for now in (0.0, 100.0, 200.0):
        pause.refused(now, now, None)
    pause.succeeded()
    pause.refused(300.0, 300.0, None)
    assert pause.resume_at == 302.0
    for _ in range(10):
        pause.succeeded()
    pause.refused(400.0, 400.0, None)
    assert pause.resume_at == 400.5


def test_requests_that_were_in_flight_together_count_once() -> None:
    pause = backoff()
    for sent_at in (0.0, 0.1, 0.2):
        pause.refused(sent_at, 1.0, None)
    assert pause.resume_at == 1.5
    pause.refused(0.3, 1.0, 7.0)  # but what the server asks for counts each time
    assert pause.resume_at == 8.0


@pytest.mark.parametrize(
    ("retry_after", "random", "seconds"),
    [(None, 0.0, 0.0), (None, 0.5, 0.25), (0.1, 1.0, 0.5), (30.0, 1.0, 30.0), (0.0, 0.0, 0.0)],
)
def test_the_pause_is_what_the_server_asks_for_or_longer(
    retry_after: float | None, random: float, seconds: float
) -> None:
    pause = backoff(random)
    pause.refused(10.0, 10.0, retry_after)
    assert pause.resume_at == 10.0 + seconds


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    pause = backoff()
    pause.refused(0.0, 0.0, 60.0)
    pause.refused(1.0, 1.0, None)
    assert pause.resume_at == 60.0


# --- ceiling --------------------------------------------------------------------------------------


def test_a_request_that_was_too_large_halves_the_ceiling() -> None:
    ceiling = IdCeiling()
    assert ceiling.max_ids is None
    counts: list[int | None] = []
    for size in (1000, 500, 250, 125, 62, 31, 15, 7, 3, 1):
        ceiling.refused(size)
        counts.append(ceiling.max_ids)
    assert counts == [500, 250, 125, 62, 31, 15, 7, 3, 1, 1]


def test_larger_requests_that_were_in_flight_together_do_not_lower_it_again() -> None:
    ceiling = IdCeiling()
    for _ in range(8):
        ceiling.refused(1000)
    assert ceiling.max_ids == 500


def successes_until_it_rises(ceiling: IdCeiling) -> int:
    before = ceiling.max_ids
    assert before is not None
    count = 0
    while ceiling.max_ids == before:
        ceiling.succeeded(before)
        count += 1
    assert ceiling.max_ids == 2 * before
    return count


def test_it_rises_again_and_more_rarely_each_time_that_proves_wrong() -> None:
    ceiling = IdCeiling()
    ceiling.refused(1000)
    needed = []
    for _ in range(4):
        needed.append(successes_until_it_rises(ceiling))
        ceiling.refused(1000)
        ceiling.refused(1000)
        assert ceiling.max_ids == 500
    assert needed == [16, 32, 64, 128]


def test_a_rise_that_was_right_is_not_held_against_the_next() -> None:
    ceiling = IdCeiling()
    ceiling.refused(1000)
    assert [successes_until_it_rises(ceiling) for _ in range(3)] == [16, 16, 16]


def test_smaller_requests_prove_nothing() -> None:
    ceiling = IdCeiling()
    ceiling.succeeded(10)
    ceiling.refused(1000)
    for _ in range(100):
        ceiling.succeeded(499)
    assert ceiling.max_ids == 500


# --- slots ----------------------------------------------------------------------------------------


def limiter(slots: int, start: int | None = None, **more: Any) -> ConcurrencyLimiter:
    return ConcurrencyLimiter(
        slots, start, wait_bound=RetryPolicy().wait_bound, random=lambda: 1.0, **more
    )


@pytest.mark.parametrize(
    ("slots", "start", "first"), [(8, None, 8), (8, 2, 2), (8, 8, 8), (2, 8, 2), (1, None, 1)]
)
def test_slots_at_first(slots: int, start: int | None, first: int) -> None:
    assert limiter(slots, start).slots == first


def test_slots_grow_where_a_start_is_given() -> None:
    async def main() -> None:
        slots = limiter(4, 1)
        async with slots.slot():
            slots.finished(sent_at=0.0, now=1.0, size=10, error=None)
        assert slots.slots == 2

    run(main())


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


def both_ways(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test with tasks that start later, and with tasks that start at once."""

    async def eagerly() -> None:
        asyncio.get_running_loop().set_task_factory(eager)
        await main()

    run(main())
    run(eagerly())


def test_slots_go_to_whoever_has_waited_longest() -> None:
    async def main() -> None:
        users = Users(limiter(2))
        users.start(1, 2, 3, 4, 5)
        await settle()
        assert users.got == [1, 2]
        assert users.slots.in_flight == 2
        await users.finish(2)
        users.start(6)  # does not get ahead of those that wait
        await settle()
        assert users.got == [1, 2, 3]
        await users.finish(1, 3)
        await settle()
        assert users.got == [1, 2, 3, 4, 5]
        await users.finish(4, 5, 6)
        assert users.slots.in_flight == 0

    both_ways(main)


def test_whoever_is_cancelled_while_waiting_takes_no_slot() -> None:
    async def main() -> None:
        users = Users(limiter(1))
        users.start(1, 2, 3, 4)
        await settle()
        await users.cancel(2)
        await users.finish(1)
        await settle()
        assert users.got == [1, 3]
        await users.cancel(3)
        await settle()
        assert users.got == [1, 3, 4]
        await users.finish(4)
        assert users.slots.in_flight == 0

    both_ways(main)


def test_whoever_is_cancelled_in_the_moment_of_getting_a_slot_gives_it_on() -> None:
    async def main() -> None:
        users = Users(limiter(1))
        await users.slots.acquire()
        users.start(1, 2)
        await settle()
        users.slots.release()
        assert users.slots.in_flight == 1  # the first has it, and does not know yet
        await users.cancel(1)
        await settle()
        assert users.got == [2]
        await users.finish(2)
        assert users.slots.in_flight == 0

    both_ways(main)


def test_whoever_is_cancelled_before_a_slot_is_free_is_passed_over() -> None:
    async def main() -> None:
        users = Users(limiter(1))
        await users.slots.acquire()
        users.start(1, 2)
        await settle()
        users.tasks[1].cancel()
        users.slots.release()  # the first has not run since
        await settle()
        assert users.got == [2]
        await users.finish(2)
        assert users.slots.in_flight == 0

    both_ways(main)


def test_an_error_inside_frees_the_slot() -> None:
    async def main() -> None:
        slots = limiter(1)
        with pytest.raises(KeyError):
            async with slots.slot():
                raise KeyError
        assert slots.in_flight == 0

    run(main())


def test_fewer_slots_are_given_out_while_the_server_is_busy() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        users = Users(limiter(4))
        users.start(1, 2, 3, 4, 5, 6)
        await settle()
        users.slots.finished(sent_at=loop.time(), now=loop.time(), size=1, error=BUSY)
        assert users.slots.slots == 2
        await asyncio.sleep(1)
        await users.finish(1, 2)
        await settle()
        assert users.got == [1, 2, 3, 4]
        await users.finish(3)
        await settle()
        assert users.got == [1, 2, 3, 4, 5]
        await users.finish(4, 5, 6)

    run(main())


# --- pauses ---------------------------------------------------------------------------------------


def timers() -> list[asyncio.TimerHandle]:
    loop: Any = asyncio.get_running_loop()
    return [timer for timer in loop._scheduled if not timer.cancelled()]


def refuse(slots: ConcurrencyLimiter, retry_after: float | None = None, status: int = 503) -> None:
    now = asyncio.get_running_loop().time()
    error = HttpError("busy", status, "", retry_after)
    slots.finished(sent_at=now, now=now, size=1, error=error)


@pytest.mark.parametrize("status", [429, 503])
def test_during_a_pause_nobody_gets_a_slot(status: int) -> None:
    async def main() -> None:
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

    both_ways(main)


def test_no_timer_is_left_behind_by_those_that_stop_waiting() -> None:
    async def main() -> None:
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

    both_ways(main)


@pytest.mark.parametrize("retry_after", [100_000.0, math.inf])
def test_a_pause_may_be_longer_than_any_timer(retry_after: float) -> None:
    async def main() -> None:
        slots = limiter(2)
        refuse(slots, retry_after)
        users = Users(slots)
        users.start(1)
        await asyncio.sleep(99_000)
        assert users.got == []
        await asyncio.sleep(2_000)
        assert users.got == ([1] if retry_after == 100_000 else [])
        await users.cancel(1)
        assert timers() == []

    run(main())


def test_a_pause_that_ends_while_the_loop_is_held_up_is_over() -> None:
    async def main() -> None:
        slots = limiter(2)
        refuse(slots, 30)
        skip(31)
        async with slots.slot():
            assert slots.in_flight == 1

    run(main())


def test_a_wait_that_nobody_will_keep_pauses_nobody() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        slots = limiter(2, longest_wait=120.0)
        refuse(slots, 121)
        assert slots.resume_at <= loop.time() + 0.5
        began = loop.time()
        refuse(slots, 120)
        assert began + 120 <= slots.resume_at <= loop.time() + 120

    run(main())


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
    [None, RequestError("lost"), HttpError("broken", 500), ReplyError("cut"), HttpError("no", 404)],
)
def test_other_ends_of_requests_pause_nothing(error: Any) -> None:
    async def main() -> None:
        slots = limiter(4)
        slots.finished(sent_at=0.0, now=0.0, size=1000, error=error)
        assert (slots.slots, slots.resume_at, slots.max_ids) == (4, 0.0, None)

    run(main())


def test_a_refusal_that_is_no_http_answer_pauses_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limiter, "traits_of", lambda _: Trait.SLOW_DOWN)

    async def main() -> None:
        slots = limiter(4)
        slots.finished(sent_at=0.0, now=0.0, size=1, error=RequestError("later"))
        assert slots.resume_at == 0.5

    run(main())


def test_the_ceiling_follows_refusals_and_good_replies() -> None:
    async def main() -> None:
        slots = limiter(4)
        slots.finished(sent_at=0.0, now=0.0, size=1, error=TOO_LARGE)
        assert slots.max_ids is None  # one id cannot be halved
        slots.finished(sent_at=0.0, now=0.0, size=8, error=TOO_LARGE)
        assert slots.max_ids == 4
        for _ in range(16):
            slots.finished(sent_at=0.0, now=0.0, size=4, error=None)
        assert slots.max_ids == 8

    run(main())


def test_the_log_has_a_line_a_change(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ctrlapi_async")

    async def main() -> None:
        slots = limiter(4)
        for error in (BUSY, BUSY, TOO_LARGE, TOO_LARGE, None):
            slots.finished(sent_at=0.0, now=10.0, size=100, error=error)

    run(main())
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "slowing down: 2 requests at once, after 0.50 s"),
        ("WARNING", "request too large: 50 task ids at most from now on"),
    ]


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


@given(
    slots=st.integers(1, 4),
    steps=st.lists(
        st.tuples(
            st.sampled_from(["use", "use", "cancel", "refuse", "succeed"]),
            st.integers(0, 7),
            st.booleans(),
        ),
        max_size=40,
    ),
)
def test_slots_are_never_lost_and_never_too_many(
    slots: int, steps: list[tuple[str, int, bool]]
) -> None:
    async def main() -> None:
        users = Users(limiter(slots))
        for kind, name, wait in steps:
            act(users, kind, name)
            if wait:
                await settle()
            assert users.slots.in_flight <= slots
        for name in users.tasks:
            await users.finish(name)
        assert users.slots.in_flight == 0
        assert timers() == []

    both_ways(main)


def test_the_adaptive_strategy_is_the_one_that_is_used() -> None:
    assert isinstance(limiter(8, 4)._strategy, AdaptiveConcurrency)
