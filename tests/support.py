"""What the tests share: recorded replies, JSON of any shape, and ids that arrive one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

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


any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)
