"""What a benchmark run leaves: tables to read, and JSON with the versions and the machine."""

from __future__ import annotations

import os
import platform
import statistics
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_PACKAGES: Final = ("aiohttp", "msgspec", "orjson", "uvloop", "elasticsearch", "aioboto3")


@attrs.frozen
class Table:
    """A table; its cells are text already."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        columns = list(zip(self.header, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines = [
            "| " + " | ".join(map(str.ljust, row, widths)) + " |"
            for row in (self.header, ["-" * width for width in widths], *self.rows)
        ]
        return "\n".join([f"### {self.title}", "", *lines, ""])


@attrs.frozen
class Section:
    """What one part of the benchmarks found: tables for people, figures for plots and files."""

    tables: Sequence[Table]
    figures: Any


@attrs.frozen
class Spread:
    """The median of some runs, and between what half of them lie."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Return the spread of the values of some runs."""
        known = list(values)
        if len(known) == 1:
            return cls(known[0], known[0], known[0])
        low, median, high = statistics.quantiles(known, method="inclusive")
        return cls(median, low, high)

    def show(self, unit: float = 1.0, digits: int = 1) -> str:
        """Return the median with the quartiles behind it."""
        median, low, high = (f"{n / unit:.{digits}f}" for n in attrs.astuple(self))
        return f"{median} ({low} to {high})"


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    cpus = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    model = next((line for line in cpus if line.startswith("model name")), platform.processor())
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model.rpartition(":")[2].strip(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES if find_spec(name)},
    }


def plain(value: Any) -> Any:
    """Return figures as JSON holds them, rounded to four digits."""
    if isinstance(value, Spread):
        value = attrs.asdict(value)
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    return float(f"{value:.4g}") if isinstance(value, float) else value
