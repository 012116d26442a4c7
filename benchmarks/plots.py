"""Plots of what the benchmarks found, from the figures that also stand in the JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_OWN: Final = "#0b6e99"
_OTHER: Final = "#9aa5ad"
_COLOURS: Final = {"package": _OWN, "streaming": "#59b3d8", "by hand": "#d9822b"}


def _cpu(figures: Mapping[str, Any]) -> Figure:
    seconds = figures["seconds"]
    clients = list(reversed(seconds))
    count = max(seconds[clients[0]], key=int)
    spreads = [seconds[client][count] for client in clients]
    costs = [spread["median"] / int(count) * 1e6 for spread in spreads]
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        clients,
        costs,
        color=[_OWN if client.startswith("package") else _OTHER for client in clients],
        xerr=[
            [(spread["median"] - spread["low"]) / int(count) * 1e6 for spread in spreads],
            [(spread["high"] - spread["median"]) / int(count) * 1e6 for spread in spreads],
        ],
    )
    axes.bar_label(bars, fmt="%.2f", padding=6)
    axes.set_xlabel(f"client's CPU, µs an id ({int(count):,} ids)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _latency(figures: Mapping[str, Any]) -> Figure:
    first = figures["runs"][0]
    same = [
        run
        for run in figures["runs"]
        if (run["chunk"], run["concurrency"]) == (first["chunk"], first["concurrency"])
    ]
    added = [run["added"] * 1e3 for run in same]
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for client in ("package", "by hand"):
        walls = [run[client]["median"] * 1e3 for run in same]
        axes.plot(added, walls, "o-", color=_COLOURS[client], label=client)
    axes.plot(added, [run["best"] * 1e3 for run in same], "k:", label="best schedule")
    axes.set_xlabel("ms added by the server")
    axes.set_ylabel(f"ms for {figures['count']:,} ids")
    axes.legend(frameon=False)
    return figure


def _growth(figures: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for client, by_count in figures.items():
        counts = list(map(int, by_count))
        peaks = [max(found["peak"]) / 2**20 for found in by_count.values()]
        axes.plot(counts, peaks, "o-", color=_COLOURS[client], label=client)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("ids")
    axes.set_ylabel("MB at the peak, above the start")
    axes.legend(frameon=False)
    return figure


def _sweep(worlds: list[dict[str, Any]]) -> Figure:
    columns = 3
    rows = -(-len(worlds) // columns)
    figure = Figure(figsize=(10, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for place in axes[len(worlds) :]:
        place.remove()
    chunks, slots = (
        sorted({cell[part] for world in worlds for cell in world["cells"]}) for part in (0, 1)
    )
    for place, world in zip(axes, worlds, strict=False):
        cells = {(chunk, slot): wall for chunk, slot, wall in world["cells"]}
        best = min(cells.values())
        shares = [[cells.get((c, s), float("nan")) / best for c in chunks] for s in slots]
        image = place.imshow(shares, origin="lower", aspect="auto", vmin=1, vmax=1.6)
        place.set_xticks(range(len(chunks)), map(str, chunks), fontsize=7)
        place.set_yticks(range(len(slots)), map(str, slots), fontsize=7)
        place.set_title(
            f"{world['server']}, {world['latency'] * 1e3:g} ms, {world['count']:,} ids\n"
            f"default: {world['default'] / best:.2f}",
            fontsize=9,
        )
    figure.supxlabel("chunk")
    figure.supylabel("at once")
    figure.colorbar(image, ax=axes[: len(worlds)].tolist(), label="wall / best (white: not run)")
    return figure


_PLOTS: Final[Mapping[str, Callable[[Any], Figure]]] = {
    "cpu": _cpu,
    "latency": _latency,
    "growth": _growth,
    "sweep": _sweep,
}


def write(figures: Mapping[str, Any], output: Path) -> None:
    """Write an SVG for each section that has a plot.

    Args:
        figures: What sections found, as JSON holds it.
        output: The directory to write to.
    """
    # Text stays text, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        for name in figures.keys() & _PLOTS.keys():
            _PLOTS[name](figures[name]).savefig(
                output / f"{name}.svg", facecolor="white", metadata={"Date": None}
            )
