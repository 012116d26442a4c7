"""`python -m benchmarks readme`: the README's table and plot, from the last figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import plots
from benchmarks.results import Spread, Table
from benchmarks.sections import NAMES
from benchmarks.server import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

_REFERENCE: Final = Path(__file__).parent / "reference"
_BLOCK: Final = re.compile(r"(<!-- benchmarks -->\n).*?(<!-- end of benchmarks -->)", re.DOTALL)
_PLOT: Final = "![The client's CPU, by client](benchmarks/reference/cpu.svg)"
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
    _, _, *lines = str(Table("", header, rows)).splitlines()
    return "\n".join(lines)


def update(results: Path) -> None:
    """Put figures into the README and beside it.

    Args:
        results: A JSON file that a run of all sections wrote.
    """
    figures = json.loads(results.read_text("utf-8"))
    (_REFERENCE / "results.json").write_text(results.read_text("utf-8"), "utf-8")
    plots.write(figures, _REFERENCE)
    readme = ROOT / "README.md"
    text = f"{_table(figures['cpu'])}\n\n{_PLOT}\n"
    block = _BLOCK.sub(lambda found: found[1] + text + found[2], readme.read_text("utf-8"))
    readme.write_text(block, "utf-8")
