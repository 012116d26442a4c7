"""What the tests share: recorded replies, JSON of any shape, ids that arrive, runs to look at."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from ctrlapi_async.bulk import StopRun
from ctrlapi_async.pace import Pace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    from ctrlapi_async import Batching, RetryPolicy
    from ctrlapi_async.bulk import Options, Targets
    from ctrlapi_async.plan import Call

SAMPLES = Path(__file__).parent / "samples"


def sample(name: str) -> Any:
    """Load a recorded exchange: what was asked (`request`) and what was answered (`reply`)."""
    return json.loads((SAMPLES / f"{name}.json").read_bytes())


def body(document: Any) -> bytes:
    return json.dumps(document).encode()


def entry(*rows: Any, method: Any = "TaskStatus", **more: Any) -> dict[str, Any]:
    return {"method": method, "result": list(rows), **more}


def reply(*entries: Any) -> bytes:
    return body({"reply": list(entries)})


def row(task_id: Any, status: Any = "Running", **more: Any) -> dict[str, Any]:
    return {"task_id": task_id, "status": status, **more}


async def arriving(
    task_ids: Iterable[Any], *, pause: Callable[[], Awaitable[object]] | None = None
) -> AsyncIterator[Any]:
    """Give ids from an async source, each followed by a pause."""
    for task_id in task_ids:
        yield task_id
        if pause is not None:
            await pause()


def engine(
    targets: Targets,
    options: Options,
    send: Callable[[str, list[Call]], list[Any]],
    *,
    batching: Batching,
    policy: RetryPolicy,
) -> StopRun:
    """Make a run over a server that is a function."""

    async def exchange(method: str, calls: list[Call], /) -> list[Any]:
        await asyncio.sleep(0)
        return send(method, calls)

    return StopRun(
        targets,
        options,
        send=exchange,
        pace=Pace(batching.max_concurrency),
        policy=policy,
        batching=batching,
        registry=set(),
        check_open=lambda: None,
    )


@asynccontextmanager
async def watched(progress: Callable[[], int]) -> AsyncIterator[list[int]]:
    """Give, in the end, how far things get from one turn of the event loop to the next."""
    steps: list[int] = []

    async def watch() -> None:
        last = progress()
        while True:
            await asyncio.sleep(0)
            steps.append(progress() - last)
            last += steps[-1]

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        yield steps
    finally:
        watcher.cancel()
        await asyncio.wait([watcher])


any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)
