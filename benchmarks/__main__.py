"""`python -m benchmarks` measures; `python -m benchmarks readme` shows the figures there."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import readme
from benchmarks.results import machine, plain
from benchmarks.sections import SECTIONS

_RESULTS: Final = Path(__file__).parent / "results" / "results.json"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["measure", "readme"], default="measure")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--output", type=Path, default=_RESULTS, help="the JSON file")
    options = parser.parse_args()
    if options.command == "readme":
        readme.update(options.output)
        return
    figures: dict[str, Any] = {"machine": machine(), "quick": options.quick}
    for name in options.only:
        began = time.perf_counter()
        section = SECTIONS[name](quick=options.quick)
        figures[name] = section.figures
        tables = "\n".join(map(str, section.tables))
        sys.stdout.write(f"\n{tables}({name}: {time.perf_counter() - began:.0f} s)\n")
        sys.stdout.flush()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(plain(figures)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
