"""Answer requests as the API does. Pure: the time is an argument."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from ctrlapi_async.simulator._answers import Answer, json_answer
from ctrlapi_async.simulator._requests import STATUS, RefusedError, check_request
from ctrlapi_async.simulator._rows import chain_text, error_row, status_row
from ctrlapi_async.simulator._tasks import RUNNING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ctrlapi_async.simulator._options import Options
    from ctrlapi_async.simulator._requests import Call
    from ctrlapi_async.simulator._state import ServerState
    from ctrlapi_async.simulator._tasks import Task

_STOP_SENT: Final = "Stop request was sent"
_STOP_UNAVAILABLE: Final = "Stopping task is unavailable"
_NO_TASK: Final = "Task does not exist"


class _CallError(Exception):
    """A call that is as documented and can't be carried out; its text is the API's."""


def answer_request(
    document: Any,  # noqa: ANN401 - JSON is Any
    state: ServerState,
    options: Options,
    now: float,
    *,
    effect: bool,
) -> Answer:
    """Check the whole request, then carry it out: one that is refused changes nothing.

    Args:
        document: The body's JSON.
        state: What there is, settled by now.
        options: How this server behaves.
        now: The time.
        effect: Whether tasks are truly stopped.
    """
    try:
        request = check_request(document, options.methods)
    except RefusedError as refusal:
        return json_answer(400, {"error": str(refusal)})
    if not _user_may(request.user_id, request.calls, state):
        error = {"error": f"user {request.user_id} is unavailable"}
        return json_answer(200, {"reply": [error]} if options.user_error_in_reply else error)
    entries = [_entry(call, state, options, now, effect=effect) for call in request.calls]
    return Answer(200, f'{{"reply":[{",".join(entries)}]}}'.encode())


def _user_may(user_id: int, calls: Iterable[Call], state: ServerState) -> bool:
    if user_id not in state.users:
        return False
    named = {call.project_id for call in calls}
    projects = [project for project_id, project in state.projects.items() if project_id in named]
    return all(project.user_id == user_id for project in projects)


def _entry(call: Call, state: ServerState, options: Options, now: float, *, effect: bool) -> str:
    head = f'{{"method":{json.dumps(call.method)}'
    if call.call_id is not None and options.echo_id:
        head += f',"id":{call.call_id}'
    try:
        rows = _rows(call, state, options, now, effect=effect)
    except _CallError as error:
        return f'{head},"error":{json.dumps(str(error))}}}'
    return f'{head},"result":[{",".join(rows)}]}}'


def _rows(
    call: Call, state: ServerState, options: Options, now: float, *, effect: bool
) -> list[str]:
    if call.project_id is None:
        raise _CallError(f"Undefined method '{call.method}'")
    project = state.projects.get(call.project_id)
    if project is None:
        raise _CallError(f"project {call.project_id} does not exist")
    ids = call.ids
    if ids is None:
        if options.refuse_all_active:
            raise _CallError("task_ids must be an integer or an array of integers")
        ids = state.active(project, now)
    found = {
        task_id: task
        for task_id in ids
        if (task := state.tasks.get(task_id)) is not None and task.project is project
    }
    if options.missing == "denied" and len(found) != len(ids):
        raise _CallError(_denial(ids, found, options))
    if call.method == STATUS:
        return _status_rows(ids, found, call, options, now)
    return _stop_rows(ids, found, options, now, effect=effect)


def _denial(ids: Sequence[int], found: Mapping[int, Task], options: Options) -> str:
    if options.denied_names == "none":
        return "access denied to some of the tasks"
    all_named = options.denied_names == "all"
    named = [task_id for task_id in ids if all_named or task_id not in found]
    return f"access denied to tasks {named}"


def _status_rows(
    ids: Iterable[int], found: Mapping[int, Task], call: Call, options: Options, now: float
) -> list[str]:
    groups: dict[int, list[Task]] = {}
    rows: dict[int, str] = {}
    for task_id in ids:
        task = found.get(task_id)
        if task is not None:
            groups.setdefault(task.initial_task_id, []).append(task)
            rows.setdefault(task.initial_task_id, "")
        elif options.missing != "omitted":
            rows[task_id] = error_row(task_id, _NO_TASK, options.row_errors)
    for initial_task_id, asked in groups.items():
        rows[initial_task_id] = chain_text(
            [
                status_row(
                    task,
                    now,
                    rows=options.rows,
                    errors=options.row_errors,
                    detailed=call.detailed,
                )
                for task in _of_chain(asked, call)
            ],
            options.chains,
        )
    return list(rows.values())


def _of_chain(asked: list[Task], call: Call) -> list[Task]:
    """Return the tasks to answer with when some of one chain were asked for."""
    tasks = asked[0].chain
    if tasks is None or call.restart_chain == "exact":
        return asked
    if call.restart_chain == "all":
        return tasks
    return tasks[:1] if call.restart_chain == "first" else tasks[-1:]


def _stop_rows(
    ids: Iterable[int],
    found: Mapping[int, Task],
    options: Options,
    now: float,
    *,
    effect: bool,
) -> list[str]:
    rows = []
    for task_id in ids:
        task = found.get(task_id)
        if task is not None and task.status_at(now) == RUNNING:
            if effect:
                task.accept_stop(now, options.stop_delay)
            rows.append(f'{{"task_id":{task_id},"status":"{_STOP_SENT}"}}')
        elif task is not None or options.missing != "omitted":
            rows.append(error_row(task_id, _STOP_UNAVAILABLE, options.row_errors))
    return rows
