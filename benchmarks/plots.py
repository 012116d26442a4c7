"""The plot of the README, from the figures that also stand in the JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_OWN: Final = "#0b6e99"
_OTHER: Final = "#9aa5ad"


def _cpu(cell: Mapping[str, Any], count: str) -> Figure:
    clients = list(cell)[::-1]
    spreads = [cell[client]["microseconds"] for client in clients]
    medians = [spread["median"] for spread in spreads]
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        clients,
        medians,
        color=[_OWN if client.startswith("package") else _OTHER for client in clients],
        xerr=[
            [spread["median"] - spread["low"] for spread in spreads],
            [spread["high"] - spread["median"] for spread in spreads],
        ],
    )
    axes.bar_label(bars, fmt="%.2f", padding=6)
    axes.set_xlabel(f"client's CPU, µs an id ({int(count):,} ids, documented rows)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def write(figures: Mapping[str, Any], output: Path) -> None:
    """Write `cpu.svg`.

    Args:
        figures: What sections found, as JSON holds it.
        output: The directory to write to.
    """
    by_count = figures["cpu"]["documented"]
    count = max(by_count, key=int)
    # Text stays text, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        _cpu(by_count[count], count).savefig(
            output / "cpu.svg", facecolor="white", metadata={"Date": None}
        )
