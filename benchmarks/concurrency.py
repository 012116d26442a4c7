"""`python -m benchmarks.concurrency`: what strategies of concurrency make of servers, simulated.

Nothing is sent and nobody waits: servers are formulas, the time is a number, and each run gives
the same figures. For each server the time of a bulk stop is compared with the best that any fixed
number of requests in flight reaches.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
import sys
from collections import deque
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ctrlapi_async._adaptive import AdaptiveConcurrency
from ctrlapi_async._concurrency import Finished, FixedConcurrency
from ctrlapi_async._errors import HttpError, traits_of
from ctrlapi_async._limiter import Backoff
from ctrlapi_async._models import Batching, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ctrlapi_async._errors import Trait

MOST: Final = 32
"""Requests in flight at most."""
SWEEP: Final = (1, 2, 4, 6, 8, 12, 16, 24, 32)
"""Fixed numbers of requests in flight, the best of which is what counts."""
REQUEST_COST: Final = 100
"""What a request costs a server besides its ids, in ids."""
_BUSY: Final = traits_of(HttpError("busy", 503))


class Server(Protocol):
    """A server that is a formula."""

    def arrive(self, now: float, size: float, key: int) -> bool:
        """Take in a request; False: refuse it."""
        ...

    def next_done(self) -> float:
        """Return when the next request is done."""
        ...

    def pop(self) -> int:
        """Return the key of the request that is done then."""
        ...


class _Done:
    """Requests whose end is known when they arrive."""

    def __init__(self) -> None:
        self._done: list[tuple[float, int]] = []

    def _finish(self, at: float, key: int) -> None:
        heapq.heappush(self._done, (at, key))

    def next_done(self) -> float:
        """Return when the next request is done."""
        return self._done[0][0] if self._done else float("inf")

    def pop(self) -> int:
        """Return the key of the request that is done then."""
        return heapq.heappop(self._done)[1]


class Workers(_Done):
    """Some workers and one line in front of them."""

    def __init__(self, workers: int, per_id: float) -> None:
        super().__init__()
        self._free_at = [0.0] * workers
        self._per_id = per_id

    def arrive(self, now: float, size: float, key: int) -> bool:
        """Take in a request; False: refuse it."""
        begin = max(now, heapq.heappop(self._free_at))
        end = begin + (size + REQUEST_COST) * self._per_id
        heapq.heappush(self._free_at, end)
        self._finish(end, key)
        return True


class SharedCores(_Done):
    """Any number of requests side by side, which share some cores evenly."""

    def __init__(self, cores: float, per_id: float) -> None:
        super().__init__()
        self._cores = cores
        self._per_id = per_id
        self._running: list[tuple[float, int]] = []
        """The work after which each is done, when as much is done of each."""
        self._work = 0.0
        self._now = 0.0

    def _next(self) -> tuple[float, float]:
        """Return when the next one is done, and the speed until then."""
        speed = min(1.0, self._cores / len(self._running))
        return self._now + (self._running[0][0] - self._work) / speed, speed

    def _advance(self, until: float) -> None:
        while self._running:
            at, speed = self._next()
            if at > until:
                self._work += (until - self._now) * speed
                break
            self._work, key = heapq.heappop(self._running)
            self._now = at
            self._finish(at, key)
        self._now = until

    def arrive(self, now: float, size: float, key: int) -> bool:
        """Take in a request; False: refuse it."""
        self._advance(now)
        heapq.heappush(self._running, (self._work + (size + REQUEST_COST) * self._per_id, key))
        return True

    def next_done(self) -> float:
        """Return when the next request is done."""
        if self._done:
            return super().next_done()
        return self._next()[0] if self._running else float("inf")

    def pop(self) -> int:
        """Return the key of the request that is done then."""
        if not self._done:
            self._advance(self._next()[0])
        return super().pop()


class Contention(_Done):
    """Requests that slow each other down, each by a share of its time, and worse in a crowd."""

    def __init__(self, share: float, crowd: float, per_id: float) -> None:
        super().__init__()
        self._share = share
        self._crowd = crowd
        self._per_id = per_id

    def arrive(self, now: float, size: float, key: int) -> bool:
        """Take in a request; False: refuse it."""
        others = sum(end > now for end, _ in self._done)
        slower = 1 + self._share * others + self._crowd * others * (others + 1)
        self._finish(now + (size + REQUEST_COST) * self._per_id * slower, key)
        return True


class Lock(_Done):
    """Requests that spend a share of their time under one lock."""

    def __init__(self, share: float, per_id: float) -> None:
        super().__init__()
        self._share = share
        self._per_id = per_id
        self._free_at = 0.0

    def arrive(self, now: float, size: float, key: int) -> bool:
        """Take in a request; False: refuse it."""
        work = (size + REQUEST_COST) * self._per_id
        locked = max(self._free_at, now + work * (1 - self._share))
        self._free_at = locked + work * self._share
        self._finish(self._free_at, key)
        return True


class RateLimit(Workers):
    """nginx's `limit_req`: so many requests a second and a burst, the others are refused."""

    def __init__(self, per_second: float, burst: int, per_id: float) -> None:
        super().__init__(MOST, per_id)
        self._per_second = per_second
        self._burst = burst
        self._excess = 0.0
        self._last = 0.0

    def arrive(self, now: float, size: float, key: int) -> bool:
        """Take in a request; False: refuse it."""
        excess = max(0.0, self._excess - (now - self._last) * self._per_second) + 1
        if excess > self._burst + 1:
            return False
        self._excess, self._last = excess, now
        return super().arrive(now, size, key)


class ConnectionLimit(Workers):
    """nginx's `limit_conn`: more than some requests at once are refused."""

    def __init__(self, most: int, per_id: float) -> None:
        super().__init__(MOST, per_id)
        self._most = most

    def arrive(self, now: float, size: float, key: int) -> bool:
        """Take in a request; False: refuse it."""
        if sum(end > now for end, _ in self._done) >= self._most:
            return False
        return super().arrive(now, size, key)


class NoisyNeighbour(Workers):
    """Workers that another client keeps busy from time to time."""

    def __init__(self, workers: int, period: float, per_id: float) -> None:
        super().__init__(workers, per_id)
        self._period = period
        self._next = period

    def arrive(self, now: float, size: float, key: int) -> bool:
        """Take in a request; False: refuse it."""
        while self._next <= now:
            for _ in range(len(self._free_at) // 2):
                begin = max(self._next, heapq.heappop(self._free_at))
                heapq.heappush(self._free_at, begin + self._period / 2)
            self._next += self._period
        return super().arrive(now, size, key)


class Strategy(Protocol):
    """Decides how many requests may be in flight."""

    slots: int

    def finished(self, request: Finished) -> None:
        """Take in how a request ended."""


class Example(NamedTuple):
    """A server in a network.

    Attributes:
        kind: The kind of server.
        make: Makes one that has seen no request yet.
        round_trip: Seconds that the network takes.
        spread: How much the requests' costs differ: 0, or 1 for an exponential distribution.
    """

    kind: str
    make: Callable[[], Server]
    round_trip: float
    spread: float


class Run(NamedTuple):
    """A simulated bulk stop.

    Attributes:
        seconds: How long it took.
        refused: Requests that the server refused.
        neighbour: Seconds in which another client had 95 of 100 small requests answered.
    """

    seconds: float
    refused: int
    neighbour: float


class Simulation:
    """Sends checks and stops of some ids, as many at once as a strategy allows.

    Args:
        example: Who gets them.
        strategy: How many may be in flight.
        ids: How many there are; half of them are stopped.
        probing: Seconds between the requests of another client; 0: there is none.
    """

    def __init__(
        self, example: Example, strategy: Strategy, ids: int, probing: float = 0.0
    ) -> None:
        self._server = example.make()
        self._way = example.round_trip / 2
        self._strategy = strategy
        self._backoff = Backoff(RetryPolicy().wait_bound, random.Random(1).random)
        chunk = Batching(max_concurrency=MOST).chunk_for(ids)
        sizes = [chunk] * (ids // chunk) + [ids % chunk] * (ids % chunk > 0)
        costs = random.Random(2)
        self._waiting = deque(
            (size, size * (1 + example.spread * (costs.expovariate(1.0) - 1)))
            for size in sizes + sizes[: len(sizes) // 2]
        )
        self._in_flight: dict[int, tuple[float, int, float]] = {}
        self._refusals: list[tuple[float, int]] = []
        self._keys = itertools.count()
        self._probing = probing
        self._probes: dict[int, float] = {}
        self._probed: list[float] = []
        self._next_probe = probing or float("inf")
        self._now = 0.0
        self._all_in_use_at = -1.0
        self._refused = 0

    def run(self) -> Run:
        """Return what it took."""
        while self._waiting or self._in_flight:
            event, at = self._next_event()
            # What comes in the same moment is read before anything is sent, as an event loop does.
            if at > self._now and self._send():
                continue
            self._now = at
            event()
        latencies = sorted(self._probed)
        return Run(
            self._now,
            self._refused,
            latencies[int(len(latencies) * 0.95)] if latencies else 0.0,
        )

    def _next_event(self) -> tuple[Callable[[], None], float]:
        paused = self._waiting and self._backoff.resume_at > self._now
        events = {
            self._resume: self._backoff.resume_at if paused else float("inf"),
            self._probe: self._next_probe,
            self._answer: self._server.next_done() + self._way,
            self._refuse: self._refusals[0][0] if self._refusals else float("inf"),
        }
        event = min(events, key=events.__getitem__)
        return event, max(self._now, events[event])

    def _send(self) -> bool:
        """Send what may be sent, and return whether that was anything."""
        if self._now < self._backoff.resume_at:
            return False
        sent = False
        while self._waiting and len(self._in_flight) < self._strategy.slots:
            key = next(self._keys)
            size, cost = self._waiting.popleft()
            # Requests of the same moment leave one after the other.
            sent_at = self._now + key * 1e-9
            self._in_flight[key] = sent_at, size, cost
            if not self._server.arrive(self._now + self._way, cost, key):
                heapq.heappush(self._refusals, (self._now + 2 * self._way, key))
            sent = True
        return sent

    def _resume(self) -> None:
        """Go on after a pause."""

    def _probe(self) -> None:
        self._next_probe += self._probing
        key = next(self._keys)
        if self._server.arrive(self._now + self._way, 1 - REQUEST_COST, key):  # as much as one id
            self._probes[key] = self._now

    def _answer(self) -> None:
        key = self._server.pop()
        if key in self._probes:
            self._probed.append(self._now - self._probes.pop(key))
            return
        sent_at, size, _ = self._in_flight.pop(key)
        self._finished(sent_at, size, None)
        self._backoff.succeeded()

    def _refuse(self) -> None:
        _, key = heapq.heappop(self._refusals)
        sent_at, size, cost = self._in_flight.pop(key)
        self._refused += 1
        self._waiting.appendleft((size, cost))
        self._finished(sent_at, size, _BUSY)
        self._backoff.refused(sent_at, self._now, None)

    def _finished(self, sent_at: float, size: int, traits: Trait | None) -> None:
        if len(self._in_flight) + 1 >= self._strategy.slots:
            self._all_in_use_at = self._now
        all_in_use = self._all_in_use_at >= sent_at
        alone = not self._in_flight
        self._strategy.finished(Finished(sent_at, self._now, size, traits, all_in_use, alone))


SERVERS: Final[tuple[tuple[str, Callable[[float], Server]], ...]] = (
    ("one worker", partial(Workers, 1)),
    *(("2-4 workers", partial(Workers, workers)) for workers in (2, 4)),
    *(("8-64 workers", partial(Workers, workers)) for workers in (8, 12, 16, 24, 32, 64)),
    ("side by side", partial(Workers, 1000)),
    *(("shared cores", partial(SharedCores, cores)) for cores in (1, 2, 4, 8, 16)),
    *(
        ("contention", partial(Contention, share, crowd))
        for share, crowd in ((0.02, 0.0), (0.1, 0.0), (0.5, 0.0), (0.05, 0.002), (0.1, 0.01))
    ),
    *(("a lock", partial(Lock, share)) for share in (0.05, 0.1, 0.2, 0.5)),
    *(
        ("rate limit", partial(RateLimit, per_second, burst))
        for per_second, burst in ((1, 5), (5, 5), (5, 20), (20, 5), (100, 20))
    ),
    *(("limit_conn", partial(ConnectionLimit, most)) for most in (1, 2, 4, 8, 16)),
    *(("noisy neighbour", partial(NoisyNeighbour, workers, 2.0)) for workers in (4, 8, 16, 32)),
)
"""The kinds of servers; each is made with the seconds that an id costs."""
LIMITS: Final = ("rate limit", "limit_conn")
COSTS: Final = (0.00001, 0.0001, 0.001)
ROUND_TRIPS: Final = (0.001, 0.005, 0.02, 0.1)
EXAMPLES: Final = tuple(
    Example(kind, partial(make, cost), round_trip, spread)
    for (kind, make), cost, (round_trip, spread) in itertools.product(
        SERVERS, COSTS, zip(ROUND_TRIPS, itertools.cycle((0.0, 1.0)))
    )
)
STRATEGIES: Final[dict[str, Callable[[], Strategy]]] = {
    "fixed 8": partial(FixedConcurrency, 8),
    "fixed 32": partial(FixedConcurrency, MOST),
    "8 to 32": partial(AdaptiveConcurrency, 8, MOST),
}


def ratios(ids: int) -> Iterator[tuple[str, list[list[float]]]]:
    """Yield each kind of server, and for each strategy the ratios to the best of a sweep."""
    for kind, examples in itertools.groupby(EXAMPLES, key=attrgetter("kind")):
        found: list[list[float]] = [[] for _ in STRATEGIES]
        for example in examples:
            best = min(
                Simulation(example, FixedConcurrency(slots), ids).run().seconds for slots in SWEEP
            )
            for each, strategy in zip(found, STRATEGIES.values(), strict=True):
                each.append(Simulation(example, strategy(), ids).run().seconds / best)
        yield kind, found


def harm(ids: int) -> Iterator[tuple[str, list[list[float]]]]:
    """Yield each kind of server, and how much slower a neighbour gets than beside fixed 8."""
    for kind, examples in itertools.groupby(EXAMPLES, key=attrgetter("kind")):
        if kind in LIMITS:
            continue  # they refuse what they cannot serve, and nobody waits
        found: list[list[float]] = [[] for _ in STRATEGIES]
        for example in examples:
            probing = Simulation(example, FixedConcurrency(8), ids).run().seconds / 200
            beside = [
                Simulation(example, strategy(), ids, probing).run().neighbour
                for strategy in STRATEGIES.values()
            ]
            for each, seconds in zip(found, beside, strict=True):
                each.append(seconds / beside[0])
        yield kind, found


def _table(title: str, rows: Iterator[tuple[str, list[list[float]]]]) -> str:
    lines = [f"\n{title}, median / worst", f"{'':16}" + "".join(f"{n:>16}" for n in STRATEGIES)]
    for kind, found in rows:
        cells = [f"{statistics.median(each):8.2f} / {max(each):5.2f}" for each in found]
        lines.append(f"{kind:16}" + "".join(cells))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the tables, for the numbers of ids on the command line."""
    sizes = [int(size) for size in sys.argv[1:]] or [10_000, 40_000]
    for ids in sizes:
        title = f"{ids:,} ids: time by the best of fixed {SWEEP[0]} to {SWEEP[-1]}"
        sys.stdout.write(_table(title, ratios(ids)))
        title = f"{ids:,} ids: another client's 95th percentile by that beside fixed 8"
        sys.stdout.write(_table(title, harm(ids)))


if __name__ == "__main__":
    main()
