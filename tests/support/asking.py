"""Ask a simulator, with and without a socket."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Self

import aiohttp
from multidict import CIMultiDict

from ctrlapi_async.simulator import ControlApiSimulator
from ctrlapi_async.simulator._access import PATH, HttpRequest

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

JSON_HEADERS = {"Content-Type": "application/json"}
SENT = "Stop request was sent"
UNAVAILABLE = "Stopping task is unavailable"
MAX_INT = 2**63 - 1
NO_REPLY = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)


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


class Served(ControlApiSimulator):
    """A simulator that is used with `async with`, with a client of its own."""

    http: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self.http = aiohttp.ClientSession()
        return await super().__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.http.close()
        await super().__aexit__(exc_type, exc, traceback)

    def post(self, document: Any) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        return self.http.post(self.endpoint, data=body, headers=JSON_HEADERS, allow_redirects=False)

    async def send(self, document: Any) -> tuple[int, bytes]:
        """Send a request; return the status and the body of the reply."""
        async with self.post(document) as response:
            return response.status, await response.read()

    async def sent(self, *documents: Any) -> list[int]:
        """Send requests one after the other; return the statuses of the replies."""
        return [(await self.send(document))[0] for document in documents]

    def start_sending(self, document: Any) -> asyncio.Task[tuple[int, bytes]]:
        return asyncio.create_task(self.send(document))

    async def sent_rows(self, document: Any) -> Any:
        _, body = await self.send(document)
        return json.loads(body)["reply"][0]["result"]
