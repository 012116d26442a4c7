"""The one object that sends requests: encodes, sends, decodes, redacts, logs."""

from __future__ import annotations

import asyncio
import logging
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ctrlapi_async._errors import CtrlApiError, HttpError
from ctrlapi_async._models import AllActive
from ctrlapi_async._protocol.pieces import PIECE, pieces
from ctrlapi_async._protocol.replies import Rows, decode_result, decode_rows
from ctrlapi_async._protocol.requests import TaskCall, encode_request, task_params

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from ctrlapi_async._limiter import ConcurrencyLimiter
    from ctrlapi_async._transport import Transport

logger = logging.getLogger("ctrlapi_async")

T = TypeVar("T")
E = TypeVar("E", bound=CtrlApiError)

_NO_OPTIONS: Final[Mapping[str, Any]] = MappingProxyType({})


class RequestSender:
    """Sends requests in the name of one user, one attempt each; the caller holds a slot.

    Args:
        transport: Carries the bytes.
        limiter: Is told how each request ended.
        user_id: The user.
    """

    def __init__(self, transport: Transport, limiter: ConcurrencyLimiter, user_id: int) -> None:
        self._transport = transport
        self._limiter = limiter
        self._user_id = user_id
        self._next_id = 1
        self.proven: Final[set[str]] = set()
        """The methods that had a good answer in this session."""

    async def send(
        self,
        method: str,
        calls: Sequence[TaskCall],
        *,
        options: Mapping[str, Any] = _NO_OPTIONS,
        keep_bytes: bool = False,
    ) -> list[Rows | CtrlApiError]:
        """Send one request with calls of TaskStatus or TaskStop.

        Args:
            method: The method of all calls.
            calls: Project and tasks of each call.
            options: More params of each call.
            keep_bytes: Whether rows keep their JSON, for their details.

        Returns:
            For each call, in order, its rows or its error.

        Raises:
            CtrlApiError: What the whole request met.
        """
        methods = [method] * len(calls)
        params = [task_params(*call, options) for call in calls]
        answers = await self._exchange(
            list(zip(methods, params, strict=True)),
            sum(1 if isinstance(ids, AllActive) else len(ids) for _, ids in calls),
            lambda body, first_id: self._decode(body, methods, first_id, keep_bytes=keep_bytes),
        )
        if any(isinstance(answer, Rows) for answer in answers):
            self.proven.add(method)
        return answers

    async def _decode(
        self, body: bytes, methods: Sequence[str], first_id: int, *, keep_bytes: bool
    ) -> list[Rows | CtrlApiError]:
        """Return the answer to each call; large replies are read in steps."""
        if len(methods) > 1 or len(body) <= 2 * PIECE:
            return self._read(body, methods, first_id, keep_bytes=keep_bytes)
        parts = pieces(body)
        [whole] = self._read(next(parts), methods, first_id, keep_bytes=keep_bytes)
        for part in parts:
            await asyncio.sleep(0)
            [more] = self._read(part, methods, first_id, keep_bytes=keep_bytes)
            if isinstance(whole, CtrlApiError) or isinstance(more, CtrlApiError):
                return [whole if isinstance(whole, CtrlApiError) else more]
            whole.extend(more)
        return [whole]

    def _read(
        self, body: bytes, methods: Sequence[str], first_id: int, *, keep_bytes: bool
    ) -> list[Rows | CtrlApiError]:
        answers = decode_rows(body, methods, first_id, keep_bytes=keep_bytes)
        return [self._redacted_answer(answer) for answer in answers]

    async def call(self, method: str, params: Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
        """Send one request with a call of any method and return the raw result.

        Args:
            method: The method.
            params: Its params.

        Raises:
            CtrlApiError: What the request or the call met.
            TypeError: JSON cannot hold the params.
        """

        async def decode(body: bytes, call_id: int) -> Any:  # noqa: ANN401 - JSON
            return decode_result(body, method, call_id)

        result = await self._exchange([(method, params)], 1, decode)
        self.proven.add(method)
        return result

    async def _exchange(
        self,
        calls: Sequence[tuple[str, Mapping[str, Any]]],
        size: int,
        decode: Callable[[bytes, int], Awaitable[T]],
    ) -> T:
        first_id = self._next_id
        self._next_id += len(calls)
        body = encode_request(self._user_id, calls, first_id)
        method = calls[0][0]
        loop = asyncio.get_running_loop()
        sent_at = loop.time()
        fate = "no answer"
        try:
            reply = await self._transport.post(body, trace={"method": method, "tasks": size})
            result = await decode(reply, first_id)
        except CtrlApiError as caught:
            fate = str(caught.status) if isinstance(caught, HttpError) else type(caught).__name__
            error = self._redacted(caught)
            cause = caught.__cause__ if error is caught else None
        else:
            fate = "200"
            self._limiter.finished(sent_at=sent_at, now=loop.time(), size=size, error=None)
            return result
        finally:
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug(
                    "%.100s of %d task%s: %s after %.1f ms",
                    method,
                    size,
                    "s" * (size != 1),
                    fate,
                    (loop.time() - sent_at) * 1000,
                )
        self._limiter.finished(sent_at=sent_at, now=loop.time(), size=size, error=error)
        # Raised out here, the error has no context that could show what must not be shown.
        raise error from cause

    def _redacted_answer(self, answer: Rows | CtrlApiError) -> Rows | CtrlApiError:
        if isinstance(answer, CtrlApiError):
            return self._redacted(answer)
        redact = self._transport.redactor.redact
        if answer.words is not None:
            answer.words = redact(answer.words)
        for row in answer.rows:
            if row.error is not None:
                row.error = redact(row.error)
        answer.unreadable = [self._redacted(error) for error in answer.unreadable]
        for task_id, error in answer.unreadable_tasks.items():
            answer.unreadable_tasks[task_id] = self._redacted(error)
        return answer

    def _redacted(self, error: E) -> E:
        """Return the same error without credentials in what the server sent back."""
        redact = self._transport.redactor.redact
        parts = tuple(redact(part) if isinstance(part, str) else part for part in error.args)
        # Errors of the transport are redacted already, and take more than their arguments.
        return error if parts == error.args else type(error)(*parts)
