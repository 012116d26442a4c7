"""What is measured inside a client's own process, which `spawn` or `taking_turns` starts."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
import tracemalloc
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvloop

from benchmarks.clients import CLIENTS, Job
from benchmarks.server import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator


def _ids(count: int) -> list[int]:
    return list(range(1, count + 1))


async def turns(
    url: str, client: str, counts: list[int], repeats: list[int], **more: Any
) -> AsyncGenerator[dict[str, Any], None]:
    """Run a client over so many ids each, once to warm up, then as often as `repeats` says.

    Args:
        url: The server's.
        client: By name.
        counts: Numbers of ids.
        repeats: For each of them, how often it is measured.
        more: As for `Job`.

    Yields:
        The figures of each run.
    """
    for count, times in zip(counts, repeats, strict=True):
        async with CLIENTS[client](Job(url, _ids(count), **more)) as run:
            await run()
            for _ in range(times):
                gc.collect()  # so that no run pays for the rubbish of the one before
                wall, cpu = time.perf_counter(), time.process_time()
                result: Any = await run()
                figures: dict[str, Any] = {
                    "cpu": time.process_time() - cpu,
                    "wall": time.perf_counter() - wall,
                }
                if client == "package":
                    figures["requests"] = [result.stats.status_calls, result.stats.stop_calls]
                del result
                yield figures


async def peak(url: str, client: str, count: int) -> int:
    """Return the bytes of memory at the most, above those at the start, of a client's first run."""
    async with CLIENTS[client](Job(url, _ids(count))) as run:
        before = _memory("VmRSS")
        _forget_peak()
        await run()
        return _memory("VmHWM") - before


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", "ascii")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


async def memory(url: str, client: str, count: int) -> dict[str, float]:
    """Weigh what a client's run leaves behind, and time a look-up of each task in it."""
    ids = _ids(count)
    async with CLIENTS[client](Job(url, ids)) as run:
        tracemalloc.start()
        report: Any = await run()
        gc.collect()
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    began = time.process_time()
    for task_id in ids:
        report[task_id]
    return {"bytes": size / count, "lookup": (time.process_time() - began) / count}


class _Steps:
    """The longest steps of the event loop: calls of one callback, or of a task until it waits."""

    def __init__(self) -> None:
        self.figures = {"cpu": 0.0, "without collector": 0.0, "wall": 0.0, "gap": 0.0}
        self._collecting = 0.0
        """Seconds that the garbage collector took in this step; while it runs, less its start."""

    def watch(self) -> None:
        """Time each step from now on."""
        run = asyncio.Handle._run  # noqa: SLF001

        def timed(handle: asyncio.Handle) -> None:
            self._collecting = 0.0
            wall, cpu = time.perf_counter(), time.thread_time()
            run(handle)
            cpu = time.thread_time() - cpu
            self._longer("cpu", cpu)
            self._longer("without collector", cpu - self._collecting)
            self._longer("wall", time.perf_counter() - wall)

        setattr(asyncio.Handle, "_run", timed)  # noqa: B010 - no method may be assigned to
        gc.callbacks.append(self._collect)

    def _longer(self, name: str, seconds: float) -> None:
        self.figures[name] = max(self.figures[name], seconds)

    def _collect(self, phase: str, _: object) -> None:
        now = time.thread_time()
        self._collecting += -now if phase == "start" else now

    async def tick(self) -> None:
        """Measure the longest gap between the turns of a task that would run each millisecond."""
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            self._longer("gap", time.perf_counter() - before - 0.001)


async def steps(url: str, client: str, count: int) -> dict[str, float]:
    """Measure the longest step and gap of the event loop during a run, with the default chunk."""
    ids = _ids(count)
    async with CLIENTS[client](Job(url, ids[:5000], None)) as run:
        await run()  # what is made or loaded when first needed is
    gc.collect()
    gc.freeze()  # the caller's own list shall be none of what a run adds
    found = _Steps()
    async with CLIENTS[client](Job(url, ids, None)) as run:
        found.watch()
        ticker = asyncio.create_task(found.tick())
        result = await run()
        await asyncio.sleep(0.01)  # the ticker's turn, before the report is thrown away
        ticker.cancel()
        del result
    return found.figures


_TASKS: Final[dict[str, Callable[..., Any]]] = {
    task.__name__: task for task in (turns, peak, memory, steps)
}


def _command(task: Callable[..., Any], *arguments: Any, **more: Any) -> list[str]:
    job = json.dumps([arguments, more])
    return [sys.executable, "-m", "benchmarks.child", task.__name__, job]


def spawn(task: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any, **more: Any) -> Any:
    """Do a task of this module in a fresh process and return its figures."""
    command = _command(task, *arguments, **more)
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


@contextmanager
def taking_turns(
    *arguments: Any, root: Path = ROOT, **more: Any
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start `turns` in a fresh process; each call makes it take one, and returns its figures.

    Args:
        arguments: As for `turns`.
        root: The directory whose package is measured, such as another work tree.
        more: As for `turns`.
    """
    command = _command(turns, *arguments, **more)
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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
