"""What is measured inside a client's own process, which `spawn` or `taking_turns` starts."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
import tracemalloc
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import aiohttp
import uvloop

from benchmarks.clients import CLIENTS, PROJECT, USER, Job
from benchmarks.server import ROOT
from ctrlapi_async import Batching, ControlSession

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
    from types import TracebackType

    from benchmarks.clients import Run
    from ctrlapi_async import StopReport

_STATUS: Final = Path("/proc/self/status")


class Meter:
    """`with Meter() as meter:` measures wall and CPU seconds, and peak memory, of a block."""

    def __enter__(self) -> Self:
        self._memory = _memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # forgets the peak so far
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cpu = time.process_time() - self._cpu
        self.wall = time.perf_counter() - self._wall
        self.peak = _memory("VmHWM") - self._memory
        """Bytes of memory at the most, above those at the start."""


def _memory(name: str) -> int:
    [line] = (line for line in _STATUS.read_text("ascii").splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


async def _measured(run: Run) -> tuple[Meter, Any]:
    with Meter() as meter:
        result = await run()
    return meter, result


def _ids(count: int) -> list[int]:
    return list(range(1, count + 1))


async def turns(
    url: str,
    client: str,
    counts: list[int],
    *,
    repeats: list[int],
    chunk: int | None = 500,
    concurrency: int = 8,
    warm: bool = True,
) -> AsyncGenerator[dict[str, Any], None]:
    """Run a client over so many ids each, once to warm up, then as often as `repeats` says."""
    for count, times in zip(counts, repeats, strict=True):
        async with CLIENTS[client](Job(url, _ids(count), chunk, concurrency)) as run:
            if warm:
                await run()
            for _ in range(times):
                meter, result = await _measured(run)
                figures: dict[str, Any]
                figures = {"cpu": meter.cpu, "wall": meter.wall, "peak": meter.peak}
                if client == "package":
                    figures["requests"] = [result.stats.status_calls, result.stats.stop_calls]
                yield figures


async def peak(url: str, client: str, count: int) -> int:
    """Give the bytes of memory at the most that the first run of a client takes."""
    [figures] = [each async for each in turns(url, client, [count], repeats=[1], warm=False)]
    return int(figures["peak"])


async def shapes(
    url: str, client: str, count: int, cells: list[tuple[int, int]], repeats: int
) -> list[dict[str, float]]:
    """Run a client once to warm up, then `repeats` times, for each chunk and concurrency."""
    medians = []
    for chunk, slots in cells:
        how: dict[str, Any] = {"repeats": [repeats], "chunk": chunk, "concurrency": slots}
        found = [each async for each in turns(url, client, [count], **how)]
        medians.append(
            {name: statistics.median(each[name] for each in found) for name in ("cpu", "wall")}
        )
    return medians


async def trips(url: str, chunks: list[int]) -> list[float]:
    """Give the seconds of one request of each chunk, sent alone by the floor client."""
    seconds = []
    for chunk in chunks:
        async with CLIENTS["floor"](Job(url, _ids(chunk), chunk, concurrency=1)) as run:
            await run()  # both its requests: a check, and a stop half as long
            meters = [(await _measured(run))[0] for _ in range(9)]
        seconds.append(statistics.median(meter.wall / 2 for meter in meters))
    return seconds


async def sweep(
    url: str, count: int, cells: list[tuple[int | None, int]], repeats: int
) -> list[float]:
    """Give the package's wall seconds for each chunk and concurrency; the first is the default.

    All are run once; then the default and the best ones so often that their medians compare.
    """
    ids = _ids(count)
    walls: list[list[float]] = [[] for _ in cells]
    # One pool of connections for all, so that none pays for making them.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

        async def once(cell: int) -> None:
            batching = Batching(*cells[cell])
            async with ControlSession(url, USER, client=client, batching=batching) as api:
                with Meter() as meter:
                    await api.stop_running(PROJECT, ids)
                walls[cell].append(meter.wall)

        for cell in (0, *range(len(cells))):
            await once(cell)
        for found in walls:
            del found[:-1]  # the very first run warmed up
        leaders = sorted(range(1, len(cells)), key=walls.__getitem__)[:4]
        for _ in range(repeats):
            for cell in (0, *leaders):
                await once(cell)
    return list(map(statistics.median, walls))


async def memory(url: str, client: str, count: int) -> dict[str, float]:
    """Weigh what a client's run leaves behind, and time the report's look-ups and iteration."""
    ids = _ids(count)
    async with CLIENTS[client](Job(url, ids)) as run:
        tracemalloc.start()
        report = await run()
        gc.collect()
        figures = {"bytes": tracemalloc.get_traced_memory()[0] / count}
        tracemalloc.stop()
    if client == "package":
        figures |= _timed(report, ids)  # type: ignore[arg-type]
    return figures


def _timed(report: StopReport, ids: list[int]) -> dict[str, float]:
    some = random.Random(0).sample(ids, min(len(ids), 100_000))
    with Meter() as lookups:
        for task_id in some:
            report[task_id]
    with Meter() as iteration:
        for _ in report.values():
            pass
    return {"lookup": lookups.cpu / len(some), "iteration": iteration.cpu / len(ids)}


async def lag(url: str, client: str | None, count: int, repeats: int) -> dict[str, float]:
    """Measure the longest gaps between the turns of a ticker beside a run; no client: idle.

    A gap in CPU time leaves out what other processes took.
    """
    longest = {"wall": 0.0, "cpu": 0.0, "slow": 0.0}

    async def tick() -> None:
        wall, cpu = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            before = wall, cpu
            wall, cpu = time.perf_counter(), time.thread_time()
            longest["wall"] = max(longest["wall"], wall - before[0] - 0.001)
            longest["cpu"] = max(longest["cpu"], cpu - before[1])
            longest["slow"] += wall - before[0] > 0.006

    async def beside(run: Run) -> None:
        ticker = asyncio.create_task(tick())
        for _ in range(repeats):
            await run()
            await asyncio.sleep(0.01)  # the ticker's turn, before the report is thrown away
        ticker.cancel()

    if client is None:
        await beside(lambda: asyncio.sleep(0.3))
    else:
        ids = _ids(count)
        gc.collect()  # the caller's own list shall be none of what a run adds
        async with CLIENTS[client](Job(url, ids[:10_000], None)) as run:
            await run()  # what is made or loaded when first needed is
        async with CLIENTS[client](Job(url, ids, None)) as run:
            await beside(run)
    return longest


_TASKS: Final[dict[str, Callable[..., Any]]] = {
    task.__name__: task for task in (turns, peak, shapes, trips, sweep, memory, lag)
}


def _command(task: Callable[..., Any], *arguments: Any, **more: Any) -> list[str]:
    job = json.dumps([arguments, more])
    return [sys.executable, "-m", "benchmarks.child", task.__name__, job]


def spawn(task: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any, **more: Any) -> Any:
    """Do a task of this module in a fresh process and give its figures."""
    command = _command(task, *arguments, **more)
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


@contextmanager
def taking_turns(*arguments: Any, **more: Any) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start `turns` in a fresh process; each call makes it take one, and gives its figures."""
    command = _command(turns, *arguments, **more)
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        told, telling = process.stdout, process.stdin

        def turn() -> dict[str, Any]:
            telling.write("\n")
            telling.flush()
            figures: dict[str, Any] = json.loads(told.readline())
            return figures

        try:
            yield turn
        finally:
            telling.close()


def imports(modules: str, cache: str) -> float:
    """Give the CPU seconds that a fresh interpreter spends on importing, beyond the main needs.

    Args:
        modules: What to import.
        cache: The directory for the bytecode, which is there after the first time.
    """
    code = (
        # tenacity imports tornado where there is one, as beside Dask.
        "import aiohttp, attrs, cattrs, sys, time; sys.modules['tornado'] = None; "
        f"began = time.process_time(); import {modules}; print(time.process_time() - began)"
    )
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": cache, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    return float(done.stdout)


async def _in_turns(taken: AsyncGenerator[dict[str, Any], None]) -> None:
    """Take a turn for each line that comes in, and answer it with the figures."""
    async with aclosing(taken):
        for _ in sys.stdin:
            sys.stdout.write(f"{json.dumps(await anext(taken))}\n")
            sys.stdout.flush()


def _main() -> None:
    name, arguments = sys.argv[1:]
    positional, named = json.loads(arguments)
    # The client that is named after a loop runs on that loop.
    factory = uvloop.new_event_loop if "package on uvloop" in positional else None
    job = _TASKS[name](*positional, **named)
    with asyncio.Runner(loop_factory=factory) as runner:
        if name != turns.__name__:
            json.dump(runner.run(job), sys.stdout)
            return
        runner.run(_in_turns(job))


if __name__ == "__main__":
    _main()
