"""The README's table and plot, from the figures of a run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.results import Spread, Table
from benchmarks.sections import NAMES
from benchmarks.server import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

_REFERENCE: Final = Path(__file__).parent / "reference"
_BLOCK: Final = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- end of benchmarks -->)", re.DOTALL)
_COUNT: Final = "100000"


def _table(cpu: Mapping[str, Any]) -> str:
    rows = []
    for client in cpu["documented"][_COUNT]:
        cells = []
        for kind in ("documented", "narrow"):
            found = cpu[kind][_COUNT].get(client)
            cells.append(Spread(**found["microseconds"]).show(digits=2) if found else "")
            other = found and client != "package"
            cells.append(f"{found['package_over']['median']:.2f}" if other else "")
        rows.append([NAMES[client], *cells])
    header = ["client", "documented rows: µs an id (quartiles)", "`stop_running` is x this"]
    header += ["rows of two members: µs an id", "x this"]
    return str(Table("", header, rows)).partition("\n\n")[2]


def _plot(cell: Mapping[str, Any]) -> Figure:
    clients = list(cell)[::-1]
    spreads = [cell[client]["microseconds"] for client in clients]
    medians = [spread["median"] for spread in spreads]
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(
        clients,
        medians,
        color=["#0b6e99" if client.startswith("package") else "#9aa5ad" for client in clients],
        xerr=[
            [spread["median"] - spread["low"] for spread in spreads],
            [spread["high"] - spread["median"] for spread in spreads],
        ],
    )
    axes.bar_label(bars, fmt="%.2f", padding=6)
    axes.set_xlabel(f"client's CPU, µs an id ({int(_COUNT):,} ids, documented rows)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def update(results: Path) -> None:
    """Put the table between the README's marks, and JSON and plot into `reference`.

    Args:
        results: The JSON file that a run wrote, the section `cpu` included.
    """
    text = results.read_text("utf-8")
    cpu = json.loads(text)["cpu"]
    (_REFERENCE / "results.json").write_text(text, "utf-8")
    # Text stays text, and the same figures give the same file.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        _plot(cpu["documented"][_COUNT]).savefig(
            _REFERENCE / "cpu.svg", facecolor="white", metadata={"Date": None}
        )
    readme = ROOT / "README.md"
    table = _table(cpu)
    block = _BLOCK.sub(lambda found: found[1] + table + found[2], readme.read_text("utf-8"))
    readme.write_text(block, "utf-8")
