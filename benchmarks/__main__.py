"""`python -m benchmarks`: measure, print tables, write a plot and JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks import plots, readme
from benchmarks.results import machine, plain
from benchmarks.sections import SECTIONS

_OUTPUT: Final = Path(__file__).parent / "results"


def _only(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(SECTIONS)}")
    return names


def measure(output: Path, names: list[str], *, quick: bool) -> None:
    """Run sections, print their tables, and write all that they found.

    Args:
        output: The directory to write to.
        names: The sections.
        quick: Whether to take fewer rounds and smaller sizes.
    """
    figures: dict[str, Any] = {"machine": machine(), "quick": quick}
    for name in names:
        began = time.perf_counter()
        section = SECTIONS[name](quick=quick)
        figures[name] = section.figures
        for table in section.tables:
            sys.stdout.write(f"\n{table}")
        sys.stdout.write(f"({name}: {time.perf_counter() - began:.0f} s)\n")
        sys.stdout.flush()
    figures = plain(figures)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(figures) + "\n", "utf-8")
    if "cpu" in figures:
        plots.write(figures, output)


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller sizes")
    parser.add_argument(
        "--only", type=_only, default=list(SECTIONS), help=f"of {','.join(SECTIONS)}"
    )
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="a directory")
    commands = parser.add_subparsers(title="besides")
    shown = commands.add_parser(
        "readme", help="put the last figures into the README", description=readme.__doc__
    )
    shown.set_defaults(run=lambda options: readme.update(options.output / "results.json"))
    options = parser.parse_args()
    if "run" in options:
        options.run(options)
        return
    measure(options.output, options.only, quick=options.quick)


if __name__ == "__main__":
    main()
