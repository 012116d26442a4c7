"""`python -m benchmarks load`: dry runs against your own server; only TaskStatus is called."""

from __future__ import annotations

import asyncio
import getpass
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.results import Spread, Table
from ctrlapi_async import ALL_ACTIVE, Batching, ControlSession, StopReport

if TYPE_CHECKING:
    import argparse


def _ids(text: str) -> list[int] | None:
    """Read `64,70-99`; None stands for `*`."""
    if text == "*":
        return None
    ids: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return ids


def add_options(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("--url", required=True, help="the server's root")
    parser.add_argument("--user-id", type=int, required=True)
    parser.add_argument("--project", type=int, required=True)
    parser.add_argument("--ids", type=_ids, required=True, help="64,70-99 or * for all active")
    parser.add_argument("--login", help="for basic authentication; the password is asked for")
    parser.add_argument("--chunk", type=int, help="task ids a request; default: as the package")
    parser.add_argument("--concurrency", type=int, default=Batching().max_concurrency)
    parser.add_argument("--rounds", type=int, default=5)


async def load(options: argparse.Namespace) -> Table:
    """Check the tasks in some rounds, and stop none."""
    auth = (options.login, getpass.getpass()) if options.login else None
    batching = Batching(options.chunk, options.concurrency)
    walls: list[float] = []
    costs: list[float] = []
    report = StopReport()
    async with ControlSession(
        options.url, options.user_id, auth=auth, batching=batching
    ) as session:
        for _ in range(options.rounds):
            wall, cpu = time.perf_counter(), time.process_time()
            report = await session.stop_running(
                options.project, ALL_ACTIVE if options.ids is None else options.ids, dry_run=True
            )
            walls.append(time.perf_counter() - wall)
            costs.append(time.process_time() - cpu)
    found = ", ".join(f"{count} {result}" for result, count in report.counts.items() if count)
    wall_spread = Spread.of(walls)
    return Table(
        f"Dry run of {len(report):,} tasks: {found or 'none'}",
        ["requests", "retries", "wall ms", "tasks a second", "CPU ms"],
        [
            [
                str(report.stats.status_calls),
                str(report.stats.retries),
                wall_spread.show(1e-3),
                f"{len(report) / wall_spread.median:,.0f}",
                Spread.of(costs).show(1e-3),
            ]
        ],
    )


def main(options: argparse.Namespace) -> None:
    """Measure, and print the table."""
    sys.stdout.write(f"{asyncio.run(load(options))}\n")
