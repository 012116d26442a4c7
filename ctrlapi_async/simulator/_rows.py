"""Put the rows of results together, as text: json.dumps would take longer than all the rest."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ctrlapi_async.simulator._tasks import Task

RowForm: TypeAlias = Literal["documented", "narrow"]
"""Which members the rows of TaskStatus have."""

ChainForm: TypeAlias = Literal["flat", "lists", "nested"]
"""Where the rows of a restart chain stand in a result of TaskStatus."""

ErrorForm: TypeAlias = Literal["error", "errors"]
"""The member in which a row says that something is wrong."""

_TOTALS: Final = {
    "Scheduled": "Not started",
    "Explore": "Not started",
    "Running": "In progress",
    "Completed": "Passed",
    "Rejected": "Not tested",
    "Canceled": "Not tested",
    "Stalled": "Not tested",
}
_GROUPS: Final = (
    "file_summary",
    "container_validation",
    "video_parameters",
    "audio_parameters",
    "video_quality",
    "audio_quality",
)


def error_row(task_id: int, text: str, errors: ErrorForm) -> str:
    """Return the row of a task that something is wrong with."""
    words = json.dumps(text)
    if errors == "errors":
        return f'{{"task_id":{task_id},"errors":[{words}]}}'
    return f'{{"task_id":{task_id},"error":{words}}}'


def status_row(task: Task, now: float, *, rows: RowForm, errors: ErrorForm, detailed: bool) -> str:
    """Return the row of a task in a result of TaskStatus, without its closing brace.

    Inner objects have members called ``status`` and ``error`` too, as rows of TaskReport do.
    """
    task_id, status = task.task_id, task.status_at(now)
    if rows == "narrow":
        row = f'{{"task_id":{task_id},"status":"{status}"'
        return row if task.chain is None else f'{row},"initial_task_id":{task.initial_task_id}'
    total = _TOTALS[status]
    if detailed:
        inner = ",".join(f'"{group}":{{"status":"{total}","error":""}}' for group in _GROUPS)
    else:
        inner = f'"total":"{total}"'
    none = '"errors":[],' if errors == "errors" else ""
    return (
        f'{{"task_id":{task_id},"initial_task_id":{task.initial_task_id},"status":"{status}",'
        f'{none}"name":"file_{task_id}.mp4","uri":"/mnt/storage/file_{task_id}.mp4",'
        '"template_id":3,"app_id":1,"priority":5,"start":"2026-11-02 08:30:00",'
        f'"source":{{"status":"Opened","error":null}},"test_results":{{{inner}}}'
    )


def chain_text(rows: Iterable[str], form: ChainForm) -> str:
    """Return the text of the rows of one chain, each given without its closing brace."""
    first, *more = rows
    if not more:
        return first + "}"
    whole = [row + "}" for row in more]
    if form == "nested":
        return f'{first},"restarts":[{",".join(whole)}]}}'
    text = ",".join([first + "}", *whole])
    return f"[{text}]" if form == "lists" else text
