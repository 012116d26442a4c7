"""The parts of `python -m benchmarks`, one function each."""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from operator import truediv
from typing import TYPE_CHECKING, Any, Final

from benchmarks import child
from benchmarks.child import spawn, taking_turns
from benchmarks.peers import PEERS, missing
from benchmarks.results import Section, Spread, Table
from benchmarks.server import serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MS: Final = 1e-3
US: Final = 1e-6
MB: Final = 2.0**20

NAMES: Final = {
    "floor": "floor: aiohttp, bodies made in advance, reply thrown away",
    "orjson": "aiohttp + orjson.loads, nothing kept",
    "package": "`stop_running`",
    "package on uvloop": "`stop_running` on uvloop",
    "by hand": "by hand: json, dicts, two phases, chains followed",
    "stopping": "`stopping`, outcome by outcome",
    "task_status": "`task_status`",
    "stop": "`stop`, 20,000 callers at once",
    "bare": "bare: bodies made in advance, in the same order",
    "one by one": "one call a task, `gather`, 8 at once",
    "async_bulk": "elasticsearch-py `async_bulk`, a delete each, one request",
    "batch_writer": "aioboto3 `batch_writer`, a delete each, one request, 25 at most",
}

_Found = dict[str, dict[int, dict[str, list[Any]]]]
"""By client, number of ids and kind of figure: the figures of all runs."""


def _rounds(
    places: Mapping[str, tuple[str, str]], repeats: Mapping[int, int], **more: Any
) -> _Found:
    """Run clients side by side, in turns, each in a process of its own.

    Args:
        places: By client: its server's URL and kind.
        repeats: How often each runs, by number of ids.
        more: As for `child.turns`.

    Returns:
        The figures of each run; those of one turn stand in one place.
    """
    found: _Found = {client: {count: defaultdict(list) for count in repeats} for client in places}
    with ExitStack() as stack:
        job = [list(repeats), list(repeats.values())]
        turns = [
            (client, stack.enter_context(taking_turns(url, client, *job, server=kind, **more)))
            for client, (url, kind) in places.items()
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


# --- CPU ------------------------------------------------------------------------------------------

_ROWS: Final = {
    "documented": "TaskStatus rows with all documented members, one task in fifty restarted",
    "narrow": "rows of two members",
    "faults": "documented rows, 1 % faults",
}


def cpu(*, quick: bool) -> Section:
    """What a client's own process pays, by kind of rows."""
    all_clients = ["floor", "orjson", "package", "package on uvloop", "by hand"]
    cases = {
        "documented": (all_clients, {10_000: 5 if quick else 12, 100_000: 3 if quick else 9}),
        "narrow": (all_clients, {10_000: 5 if quick else 12, 100_000: 3 if quick else 7}),
        "faults": (["orjson", "package", "by hand"], {100_000: 3 if quick else 7}),
    }
    tables: list[Table] = []
    figures: dict[str, Any] = {}
    for kind, (clients, repeats) in cases.items():
        with serving(kind) as url:
            found = _rounds(dict.fromkeys(clients, (url, kind)), repeats)
        for count in repeats:
            seconds = {client: by_count[count]["cpu"] for client, by_count in found.items()}
            tables.append(cpu_table(kind, count, cell := _cpu_figures(seconds, count)))
            figures.setdefault(kind, {})[count] = cell
    return Section(tables, figures)


def _cpu_figures(seconds: Mapping[str, list[float]], count: int) -> dict[str, Any]:
    return {
        client: {
            "microseconds": Spread.of(value / count / US for value in values),
            "package_over": _ratio(seconds["package"], values),
            "over_orjson": _ratio(values, seconds["orjson"]),
        }
        for client, values in seconds.items()
    }


def cpu_table(kind: str, count: int, cell: Mapping[str, Mapping[str, Spread]]) -> Table:
    """Return the table of one kind of rows."""
    rows = [
        [
            NAMES[client],
            found["microseconds"].show(digits=2),
            found["package_over"].show(digits=2) if client != "package" else "",
        ]
        for client, found in cell.items()
    ]
    header = ["client", "CPU µs an id (quartiles)", "`stop_running` is x this"]
    return Table(f"CPU of {count:,} ids, {_ROWS[kind]} (chunk 500, 8 at once)", header, rows)


# --- Time, memory, the loop -----------------------------------------------------------------------


def latency(*, quick: bool) -> Section:
    """How long jobs take beside a client that only sends bodies made in advance."""
    counts = dict.fromkeys((1, 10, 100, 500), 30)
    with serving("documented") as url:
        small = _rounds(dict.fromkeys(["package", "floor"], (url, "documented")), counts)
    small_rows = []
    for count in counts:
        mine, floor = small["package"][count], small["floor"][count]
        beyond = Spread.of(a - b for a, b in zip(mine["cpu"], floor["cpu"], strict=True))
        small_rows.append(
            [
                f"{count}",
                " + ".join(map(str, mine["requests"][0])),
                Spread.of(mine["cpu"]).show(MS, 2),
                beyond.show(MS, 2),
                Spread.of(mine["wall"]).show(MS, 2),
            ]
        )
    header = ["ids", "checks + stops", "CPU ms", "of it beyond the floor's", "wall ms"]
    tables = [Table("A small job in a session that is open", header, small_rows)]
    rows = []
    over_bare: dict[str, Spread] = {}
    clients = ["bare", "package", "by hand"]
    for added in (0.005, 0.05):
        repeats = dict.fromkeys((100, 500, 10_000), 5 if quick else 13)
        with serving("documented", added) as url:
            walls = _rounds(dict.fromkeys(clients, (url, "documented")), repeats)
        for count in repeats:
            bare, own, hand = (walls[client][count]["wall"] for client in clients)
            over_bare[f"{count} ids, {added / MS:g} ms"] = _ratio(own, bare)
            rows.append(
                [
                    f"{added / MS:g} ms",
                    f"{count:,}",
                    *(Spread.of(each).show(MS) for each in (bare, own)),
                    *(_ratio(each, bare).show(digits=2) for each in (own, hand)),
                ]
            )
    header = ["added", "ids", "bare ms", "`stop_running` ms", "/ bare", "by hand / bare"]
    tables.append(Table("Wall time (chunk 500, 8 at once)", header, rows))
    with serving("narrow", 0.002) as url:
        places = dict.fromkeys(["one by one", "package"], (url, "narrow"))
        today = _rounds(places, {200: 3}, chunk=100)
    times = _ratio(today["one by one"][200]["wall"], today["package"][200]["wall"])
    figures = {"small": small_rows, "wall_over_bare": over_bare, "one_by_one_over_package": times}
    return Section(tables, figures)


def memory(*, quick: bool) -> Section:
    """What a report weighs, and that a stream's memory does not grow."""
    count = 100_000 if quick else 1_000_000
    with serving("documented") as url:
        # What the client by hand leaves a task does not depend on how many there are.
        sizes = {"package": count, "by hand": 50_000}
        reports = {client: spawn(child.memory, url, client, sizes[client]) for client in sizes}
        # A process each: memory that the first run gave back would hide what the second takes.
        peaks = {n: spawn(child.peak, url, "streaming", n) for n in (10_000, count)}
    tables = [
        Table(
            f"A report of {count:,} tasks",
            ["client", "bytes a task", "a look-up"],
            [
                [NAMES[client], f"{found['bytes']:.0f}", f"{found['lookup'] / US:.2f} µs"]
                for client, found in reports.items()
            ],
        ),
        Table(
            "Peak memory of `stopping(..., collect=False)` over an async iterable",
            ["ids", "MB above the start"],
            [[f"{n:,}", f"{peak / MB:.1f}"] for n, peak in peaks.items()],
        ),
    ]
    return Section(tables, {"count": count, "reports": reports, "stream_peaks": peaks})


def loop(*, quick: bool) -> Section:
    """How long the event loop is held up by a run: one step of it, and a gap between its turns."""
    clients = ["package", "stopping", "task_status", "stop", "by hand"]
    rows = []
    figures: dict[str, dict[int, dict[str, float]]] = defaultdict(dict)
    with serving("documented") as url:
        for client in clients:
            for count in [100_000] if quick or client == "by hand" else [100_000, 1_000_000]:
                found = figures[client][count] = spawn(child.steps, url, client, count)
                names = ("cpu", "without collector", "wall", "gap")
                cells = [f"{found[name] / MS:.1f}" for name in names]
                rows.append([NAMES[client], f"{count:,}", *cells])
    header = ["client", "ids", "longest step, CPU ms", "without garbage collector"]
    header += ["wall ms", "longest gap, ms"]
    return Section([Table("The event loop (default chunk)", header, rows)], figures)


# --- Peers ----------------------------------------------------------------------------------------


def peers(*, quick: bool) -> Section:
    """What bulk helpers of other packages pay an item, against servers of their own protocols."""
    count = 5000
    skipped = [
        f"{NAMES[client]}: skipped, {package} is not installed (extra `bench`)"
        for client, (_, package) in PEERS.items()
        if missing(package)
    ]
    with ExitStack() as stack:
        kinds = {"package": "documented"} | {
            client: kind for client, (kind, package) in PEERS.items() if not missing(package)
        }
        places = {
            client: (stack.enter_context(serving(kind)), kind) for client, kind in kinds.items()
        }
        found = _rounds(places, {count: 3 if quick else 7})
    costs = {client: by_count[count]["cpu"] for client, by_count in found.items()}
    rows = [
        [
            NAMES[client],
            Spread.of(value / count / US for value in values).show(digits=2),
            _ratio(values, costs["package"]).show(),
        ]
        for client, values in costs.items()
    ]
    rows += [[text, "", ""] for text in skipped]
    header = ["client", "CPU µs an item (quartiles)", "x `stop_running`'s, an id"]
    title = (
        f"Bulk helpers of other packages, {count:,} items; one request an item where we have two"
    )
    seconds = {client: Spread.of(values).median / count for client, values in costs.items()}
    return Section([Table(title, header, rows)], {"seconds": seconds, "skipped": skipped})


SECTIONS: Final[Mapping[str, Callable[..., Section]]] = {
    section.__name__: section for section in (cpu, latency, memory, loop, peers)
}
