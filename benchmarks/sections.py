"""The parts of `python -m benchmarks`, one function each."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from operator import truediv
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, frozen

from benchmarks import child
from benchmarks.child import spawn, taking_turns
from benchmarks.results import Section, Spread, Table
from benchmarks.schedule import round_trips
from benchmarks.server import runs, serving
from ctrlapi_async import Batching

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MS: Final = 1e-3
US: Final = 1e-6
MB: Final = 2.0**20

_NAMES: Final = {
    "floor": "floor: aiohttp, bodies made in advance, reply thrown away",
    "orjson": "aiohttp + orjson.loads, nothing kept",
    "package": "`stop_running`",
    "package on uvloop": "`stop_running` on uvloop",
    "by hand": "by hand: json, dicts, two phases",
    "attrs": "by hand: orjson, a frozen attrs object a row",
    "cattrs": "by hand: cattrs structures every row",
    "curl-like": "one call a task, one after the other, a connection each",
    "gather": "one call a task, `gather`, 8 at once",
}


_Found = dict[str, dict[int, dict[str, list[Any]]]]
"""By client, number of ids and kind of figure: the figures of all runs."""


def _rounds(
    url: str,
    clients: Sequence[str],
    repeats: Mapping[int, int],
    rounds: int = 1,
    **more: Any,
) -> _Found:
    """Run clients side by side, in turns, each in a fresh process a round.

    Args:
        url: The server's.
        clients: By name.
        repeats: How often each runs in a round, by number of ids.
        rounds: How many there are.
        more: As for `child.turns`.

    Returns:
        The figures of each run; those of one turn stand in one place.
    """
    found: _Found = {client: {count: defaultdict(list) for count in repeats} for client in clients}
    more |= {"repeats": [*repeats.values()]}
    for _ in range(rounds):
        with ExitStack() as stack:
            turns = [
                (client, stack.enter_context(taking_turns(url, client, [*repeats], **more)))
                for client in clients
            ]
            for count, times in repeats.items():
                for _ in range(times):
                    for client, turn in turns:
                        for name, value in turn().items():
                            found[client][count][name].append(value)
                    turns.reverse()
    return found


def _ratio(mine: Iterable[float], others: Iterable[float]) -> Spread:
    return Spread.of(map(truediv, mine, others))


def cpu(*, quick: bool) -> Section:
    """What a client's own process pays, by client."""
    clients = ["floor", "orjson", "package", "package on uvloop", "by hand", "attrs", "cattrs"]
    with serving() as url:
        found = _rounds(url, clients, {10_000: 12, 100_000: 6}, 1 if quick else 2)
    with serving(wide=True) as url:
        wide = _rounds(url, ["orjson", "package", "by hand"], {100_000: 6})
    tables = [
        _cpu_table(found, 10_000, "half of them running (chunk 500, 8 at once)"),
        _cpu_table(found, 100_000, "half of them running (chunk 500, 8 at once)"),
        _cpu_table(wide, 100_000, "rows with six members"),
    ]
    costs = {
        client: {count: figures["cpu"] for count, figures in by_count.items()}
        for client, by_count in found.items()
    }
    figures = {
        "seconds": {
            client: {count: Spread.of(values) for count, values in by_count.items()}
            for client, by_count in costs.items()
        },
        "package_over": {
            client: {count: _ratio(costs["package"][count], by_count[count]) for count in by_count}
            for client, by_count in costs.items()
        },
    }
    return Section(tables, figures)


def _cpu_table(found: _Found, count: int, what: str) -> Table:
    rows = []
    for client, by_count in found.items():
        cost = Spread.of(by_count[count]["cpu"])
        ratio = _ratio(found["package"][count]["cpu"], by_count[count]["cpu"]).show(digits=2)
        rows.append(
            [
                _NAMES[client],
                cost.show(MS),
                f"{cost.median / count / US:.2f}",
                ratio if client != "package" else "",
            ]
        )
    header = ["client", "CPU ms (quartiles)", "µs an id", "`stop_running` is x this"]
    return Table(f"CPU of {count:,} ids, {what}", header, rows)


_SLOW: Final = 0.05
_SHAPES: Final = [(500, 8), (100, 8), (500, 4), (1000, 16), (2000, 2)]


def latency(*, quick: bool) -> Section:
    """How close the wall time comes to the best schedule, and what a small job costs.

    A schedule takes `round_trips`, each as long as one that the floor client makes alone; and no
    client is faster than its own CPU. Where several are under way at once each takes longer, for
    any client: the last columns have one that does nothing but send and receive in that order.
    """
    count, shapes = 10_000, _SHAPES[: 2 if quick else None]
    figures: list[dict[str, Any]] = []
    for added in (0.0, 0.005, _SLOW):
        found: dict[str, list[Any]] = defaultdict(list)
        with serving(added) as url:
            rounds, repeats = (2, 1) if added == _SLOW else (3, 3)
            for client in ["package"] * (1 if quick else rounds) + ["by hand", "in order"]:
                found[client].append(spawn(child.shapes, url, client, count, shapes, repeats))
            length = spawn(child.trips, url, [chunk for chunk, _ in shapes])
        for place, (chunk, slots) in enumerate(shapes):
            own = Spread.of(run[place]["cpu"] for run in found["package"])
            trips = {
                first: round_trips(range(1, count + 1), chunk, slots, stops_first=first)
                for first in (True, False)
            }
            figures.append(
                {
                    "added": added,
                    "chunk": chunk,
                    "concurrency": slots,
                    "trip": length[place],
                    "trips": trips[True],
                    "fewest_trips": min(trips.values()),
                    "promised": max(own.median, length[place] * trips[True]),
                    "best": max(own.median, length[place] * min(trips.values())),
                    "cpu": own,
                    **{
                        client: Spread.of(run[place]["wall"] for run in runs)
                        for client, runs in found.items()
                    },
                }
            )
    table = Table(
        f"Wall time of {count:,} ids against the best schedule (or the client's own CPU)",
        [
            "added",
            "chunk x at once",
            "stops first",
            "best",
            "wall ms",
            "/ stops first",
            "/ best",
            "by hand ms",
            "bare ms",
            "/ bare",
        ],
        [
            [
                f"{run['added'] / MS:g} ms",
                f"{run['chunk']} x {run['concurrency']}",
                f"{run['trips']} trips, {run['promised'] / MS:.0f} ms",
                f"{run['fewest_trips']} trips, {run['best'] / MS:.0f} ms",
                run["package"].show(MS),
                f"{run['package'].median / run['promised']:.2f}",
                f"{run['package'].median / run['best']:.2f}",
                f"{run['by hand'].median / MS:.1f}",
                f"{run['in order'].median / MS:.1f}",
                f"{run['package'].median / run['in order'].median:.2f}",
            ]
            for run in figures
        ],
    )
    small = _small_jobs(quick=quick)
    return Section([table, small], {"count": count, "runs": figures, "small": small.rows})


def _small_jobs(*, quick: bool) -> Table:
    counts = [1, 10, 100, 500]
    with serving() as url:
        found = _rounds(url, ["package", "floor"], dict.fromkeys(counts, 50), 1 if quick else 2)
    rows = []
    for count in counts:
        package, floor = (found[client][count]["cpu"] for client in ("package", "floor"))
        own = Spread.of(a - b for a, b in zip(package, floor, strict=True))
        rows.append(
            [
                f"{count}",
                " + ".join(map(str, found["package"][count]["requests"][0])),
                Spread.of(package).show(MS, 2),
                own.show(MS, 2),
                Spread.of(found["package"][count]["wall"]).show(MS, 2),
            ]
        )
    header = ["ids", "checks + stops", "CPU ms", "of it beyond the floor's", "wall ms"]
    return Table("A small job in a session that is open", header, rows)


def memory(*, quick: bool) -> Section:
    """What a report weighs, and that a stream's memory does not grow."""
    count = 100_000 if quick else 1_000_000
    with serving() as url:
        # What the other leaves a task does not depend on how many there are.
        sizes = {"package": count, "by hand": 100_000}
        reports = {client: spawn(child.memory, url, client, sizes[client]) for client in sizes}
        # A process each: memory that the first run gave back would hide what the second takes.
        peaks = {n: spawn(child.peak, url, "streaming", n) for n in (10_000, count)}
    package = reports["package"]
    tables = [
        Table(
            f"A report of {count:,} tasks",
            ["client", "bytes a task", "a look-up", "iteration, a million"],
            [
                [
                    _NAMES["package"],
                    f"{package['bytes']:.0f}",
                    f"{package['lookup'] / US:.2f} µs",
                    f"{package['iteration'] * 1e6:.2f} s",
                ],
                [_NAMES["by hand"], f"{reports['by hand']['bytes']:.0f}", "", ""],
            ],
        ),
        Table(
            "Peak memory of `stopping(..., collect=False)` over an async iterable",
            ["ids", "MB above the start"],
            [[f"{n:,}", f"{peak / MB:.1f}"] for n, peak in peaks.items()],
        ),
    ]
    return Section(tables, {"count": count, "reports": reports, "stream_peaks": peaks})


def lag(*, quick: bool) -> Section:
    """How long the event loop is held up by a run, seen by a ticker beside it."""
    figures: dict[str, dict[str, float]] = {}
    clients = {
        "package": "`stop_running`",
        "listening": "`stopping`, outcome by outcome",
        "asking": "`task_status`",
        "by hand": "by hand",
    }
    cases = [(None, 0), ("package", 10_000), *((client, 100_000) for client in clients)]
    if not quick:
        cases += [(client, 1_000_000) for client in clients]
    with serving() as url:
        for client, count in cases:
            repeats = 3 if count < 1_000_000 else 1
            name = f"{clients[client]}, {count:,} ids" if client else "nothing, 0.3 s"
            figures[name] = spawn(child.lag, url, client, count, repeats)
    table = Table(
        "The event loop's longest gap beyond a 1 ms sleep (default chunk)",
        ["beside", "longest ms", "longest in CPU time, ms", "gaps above 5 ms"],
        [
            [name, f"{gap['wall'] / MS:.1f}", f"{gap['cpu'] / MS:.1f}", f"{gap['slow']:.0f}"]
            for name, gap in figures.items()
        ],
    )
    return Section([table], figures)


def growth(*, quick: bool) -> Section:
    """How time, memory and requests grow with the number of ids."""
    counts = [1000, 10_000, 100_000] + [1_000_000] * (not quick)
    clients = ["package", "streaming", "by hand"]
    found: _Found = {client: {} for client in clients}
    with serving() as url:
        for count in counts:
            # A process each: what one size leaves behind would hide what the next one takes.
            repeats = 3 if count < 1_000_000 else 1
            for client, figures in _rounds(
                url, clients, {count: repeats}, warm=count < 1_000_000
            ).items():
                found[client] |= figures
    rows = []
    for count in counts:
        mine = found["package"][count]
        checks, stops = mine["requests"][0]
        promised = [-(-n // 500) for n in (count, sum(map(runs, range(1, count + 1))))]
        rows.append(
            [
                f"{count:,}",
                *(f"{Spread.of(mine[name]).median / count / US:.2f}" for name in ("wall", "cpu")),
                *(f"{max(found[client][count]['peak']) / MB:.1f}" for client in clients),
                f"{checks} + {stops}" + " as promised" * ([checks, stops] == promised),
            ]
        )
    header = ["ids", "wall µs an id", "CPU µs an id"]
    header += [f"MB at the peak, {client}" for client in clients]
    table = Table("Growth (chunk 500, 8 at once)", [*header, "checks + stops"], rows)
    return Section([table], found)


def today(*, quick: bool) -> Section:
    """How the package compares with what people do today."""
    count, added = (200 if quick else 500), 0.002
    clients = ["curl-like", "gather", "by hand", "package"]
    with serving(added) as url:
        found = _rounds(url, clients, {count: 1}, 1 if quick else 2, chunk=100, warm=False)
    walls, costs = (
        {client: found[client][count][name] for client in clients} for name in ("wall", "cpu")
    )
    rows = [
        [
            _NAMES[client],
            Spread.of(walls[client]).show(digits=3),
            _ratio(walls[client], walls["package"]).show(),
            Spread.of(costs[client]).show(MS, 0),
            _ratio(costs[client], costs["package"]).show(),
        ]
        for client in clients
    ]
    title = f"{count:,} tasks, {added / MS:g} ms added by the server (chunk 100, 8 at once)"
    header = ["client", "wall s", "x `stop_running`'s", "CPU ms", "x `stop_running`'s"]
    return Section([Table(title, header, rows)], {"count": count, "wall": walls, "cpu": costs})


def imports(*, quick: bool) -> Section:
    """What importing the package costs beyond what any aiohttp, attrs and cattrs user pays."""
    modules = ["ctrlapi_async.session", "msgspec, stamina, cattrs.preconf.msgspec"]
    rounds: dict[str, list[float]] = {name: [] for name in modules}
    with TemporaryDirectory() as cache:
        for number in range(4 if quick else 8):
            for name in modules:
                seconds = child.imports(name, cache)
                rounds[name] += [seconds] * (number > 0)  # the first time it is compiled
    figures = {name: Spread.of(values) for name, values in rounds.items()}
    table = Table(
        "Import, CPU beyond that of aiohttp, attrs and cattrs",
        ["modules", "ms"],
        [[name, spread.show(MS)] for name, spread in figures.items()],
    )
    return Section([table], figures)


# --- The sweep ------------------------------------------------------------------------------------

_CHUNKS: Final = [1, 50, 100, 200, 500, 625, 1000, 2000, 5000]
_SLOTS: Final = [1, 2, 4, 8, 16, 32]
_PER_ID: Final = 20 * US
_SERVERS: Final[Mapping[str, dict[str, Any]]] = {
    "one worker": {"per_id": _PER_ID},
    "side by side": {"per_id": _PER_ID, "side_by_side": True},
    "no work": {},
}


@frozen
class _World:
    """A server of the sweep, and how many ids it is asked about."""

    server: str
    latency: float
    count: int

    def cell(self, chunk: int, slots: int) -> tuple[int, int]:
        """Give the smallest chunk and concurrency that make the same requests."""
        size = min(chunk, self.count)
        return size, min(slots, -(-self.count // size))  # never more in flight than checks

    @property
    def cells(self) -> list[tuple[int, int]]:
        """The chunks and concurrencies that are worth a run, foretold roughly."""
        work = _PER_ID if "per_id" in _SERVERS[self.server] else 0.0
        walls: dict[tuple[int, int], float] = {}
        # Where a run takes a second or more, every other cell must do.
        stride = 2 if self.serial and self.count >= _MANY else 1
        for chunk, slots in product(_CHUNKS[::stride], _SLOTS[stride - 1 :: stride]):
            cell = self.cell(chunk, slots)
            trip = self.latency + work * cell[0] + _TRIP
            wall = round_trips(range(1, self.count + 1), *cell) * trip
            passes = 1.5 * self.count  # all are checked, half are stopped
            walls[cell] = max(
                wall, passes / cell[0] * _REQUEST, passes * work if self.serial else 0.0
            )
        bound = _WORTH * min(walls.values())
        return [cell for cell, wall in walls.items() if wall <= bound]

    @property
    def serial(self) -> bool:
        """Whether the server works on one request after the other."""
        return self.server == "one worker"

    def run(self, repeats: int) -> dict[tuple[int, int], float]:
        """Give the wall seconds of each cell that is worth a run; the default's is (0, 0)."""
        default = (None, Batching().max_concurrency)
        with serving(self.latency, **_SERVERS[self.server]) as url:
            walls = spawn(child.sweep, url, self.count, [default, *self.cells], repeats)
        return dict(zip([(0, 0), *self.cells], walls, strict=True))


_MANY: Final = 40_000
_TRIP: Final = 0.5 * MS
_REQUEST: Final = 0.1 * MS
"""What a request costs at the least: a round trip, and a client's CPU."""
_WORTH: Final = 1.6
"""Cells that would take more than so many times the best one's time are not run."""


def sweep(*, quick: bool) -> Section:
    """How good the default `Batching` is on servers of several kinds."""
    serial = [_World("one worker", *more) for more in product((0, 0.01, 0.05), (1000, 5000))]
    serial += [_World("one worker", latency, _MANY) for latency in (0, 0.05)]
    others = [
        _World(*more) for more in product(("side by side", "no work"), (0, 0.01), (1000, _MANY))
    ]
    if quick:
        serial, others = serial[::2][:3], others[::2]
    repeats = 2
    # A server with one worker leaves the machine idle: three of them do not disturb each other.
    with ThreadPoolExecutor(3) as pool:
        walls = [*pool.map(lambda world: world.run(repeats), serial)]
    walls += [world.run(repeats) for world in others]
    found = dict(zip([*serial, *others], walls, strict=True))
    rows = []
    figures = []
    for world, walls in found.items():
        default = walls[0, 0]
        swept = {cell: wall for cell, wall in walls.items() if cell != (0, 0)}
        best = min(swept, key=swept.__getitem__)
        batching = Batching()
        rows.append(
            [
                world.server,
                f"{world.latency / MS:g} ms",
                f"{world.count:,}",
                f"{best[0]} x {best[1]}",
                f"{swept[best] / MS:.1f}",
                f"{batching.chunk_for(world.count)} x {batching.max_concurrency}",
                f"{default / MS:.1f}",
                f"{default / swept[best]:.2f}",
            ]
        )
        figures.append(
            {
                **asdict(world),
                "default": default,
                "cells": [
                    [chunk, slots, swept[cell]]
                    for chunk, slots in product(_CHUNKS, _SLOTS)
                    if (cell := world.cell(chunk, slots)) in swept
                ],
            }
        )
    header = ["server", "latency", "ids", "best", "ms", "default", "ms", "default / best"]
    title = f"The sweep: chunk {_CHUNKS[0]} to {_CHUNKS[-1]}, {_SLOTS[0]} to {_SLOTS[-1]} at once"
    return Section([Table(title, header, rows)], figures)


SECTIONS: Final[Mapping[str, Callable[..., Section]]] = {
    section.__name__: section
    for section in (cpu, latency, memory, lag, sweep, growth, today, imports)
}
