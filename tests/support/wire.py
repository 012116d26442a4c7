"""What the tests of the wire format share: recorded exchanges, replies, JSON of any shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

SAMPLES = Path(__file__).parents[1] / "samples"


def sample(name: str) -> Any:
    """Return a recorded exchange: its `request` and its `reply`."""
    return json.loads((SAMPLES / f"{name}.json").read_bytes())


def to_bytes(document: Any) -> bytes:
    return json.dumps(document).encode()


def entry(*rows: Any, method: Any = "TaskStatus", **more: Any) -> dict[str, Any]:
    return {"method": method, "result": list(rows), **more}


def reply(*entries: Any) -> bytes:
    return to_bytes({"reply": list(entries)})


def row(task_id: Any, status: Any = "Running", **more: Any) -> dict[str, Any]:
    return {"task_id": task_id, "status": status, **more}


def documented_row(task_id: int, status: str = "Running", **more: Any) -> dict[str, Any]:
    """Return a row with the members that the documentation names, and nested ones."""
    return {
        "task_id": task_id,
        "initial_task_id": task_id,
        "status": status,
        "name": f"Film {task_id}",
        "uri": f"/media/library/film-{task_id}.ts",
        "template_id": 3,
        "app_id": 1,
        "priority": 5,
        "start": "2026-11-03 12:00:00",
        "test_results": {"total": "ok", "status": "Rejected", "error": 0},
        **more,
    }


any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=15,
)
