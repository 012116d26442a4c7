"""Ask a simulator, with and without a socket."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from multidict import CIMultiDict

from ctrlapi_async.simulator._access import PATH, HttpRequest

if TYPE_CHECKING:
    import aiohttp

    from ctrlapi_async.simulator import ControlApiSimulator

JSON_HEADERS = {"Content-Type": "application/json"}
SENT = "Stop request was sent"
UNAVAILABLE = "Stopping task is unavailable"
MAX_INT = 2**63 - 1


def call(method: str, task_ids: Any, project_id: int = 2, **more: Any) -> dict[str, Any]:
    return {"method": method, **more, "params": {"project_id": project_id, "task_ids": task_ids}}


def envelope(*calls: Any, user_id: Any = 1) -> dict[str, Any]:
    return {"user_id": user_id, "methods": list(calls)}


def stop(task_ids: Any, project_id: int = 2, **more: Any) -> dict[str, Any]:
    return envelope(call("TaskStop", task_ids, project_id, **more))


def check(task_ids: Any, project_id: int = 2, **params: Any) -> dict[str, Any]:
    document = envelope(call("TaskStatus", task_ids, project_id))
    document["methods"][0]["params"] |= params
    return document


def ask(
    api: ControlApiSimulator, document: Any, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Return the status and the JSON that the rules answer with; no socket is needed."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    all_headers = CIMultiDict({**JSON_HEADERS, **(headers or {})})
    request = HttpRequest("POST", api.prefix + PATH, all_headers, "application/json", None)
    made = api._processor.arrive(request, body).answer
    assert made is not None
    return made.status, json.loads(made.body)


def entries(api: ControlApiSimulator, document: Any) -> list[Any]:
    status, reply = ask(api, document)
    assert status == 200, reply
    answered: list[Any] = reply["reply"]
    return answered


def rows(api: ControlApiSimulator, document: Any) -> list[Any]:
    (entry,) = entries(api, document)
    result: list[Any] = entry["result"]
    return result


def statuses(api: ControlApiSimulator, task_ids: Any, **params: Any) -> dict[int, str]:
    return {row["task_id"]: row["status"] for row in rows(api, check(task_ids, **params))}


async def send(
    http: aiohttp.ClientSession, api: ControlApiSimulator, document: Any
) -> tuple[int, bytes]:
    """Return the status and the body that a request over the socket is answered with."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    async with http.post(
        api.endpoint, data=body, headers=JSON_HEADERS, allow_redirects=False
    ) as response:
        return response.status, await response.read()


async def sent_rows(http: aiohttp.ClientSession, api: ControlApiSimulator, document: Any) -> Any:
    status, body = await send(http, api, document)
    assert status == 200, body
    return json.loads(body)["reply"][0]["result"]
