"""The simulator as its users see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable  # noqa: F401
from typing import TYPE_CHECKING, Self

from attrs import define, field, setters

from ctrlapi_async.simulator._access import PATH
from ctrlapi_async.simulator._front import Front

# Types of arguments that it inherits: whoever reads annotations looks for them here.
from ctrlapi_async.simulator._options import DeniedNames, Missing, SignatureRefusal  # noqa: F401
from ctrlapi_async.simulator._rows import ChainForm, ErrorForm, RowForm  # noqa: F401
from ctrlapi_async.simulator._task_control import TaskControl
from ctrlapi_async.simulator._thread import ServerThread
from ctrlapi_async.simulator._waiting import let_loop_turn

if TYPE_CHECKING:
    from types import TracebackType


@define(eq=False, kw_only=True, slots=False, repr=False)
class ControlApiSimulator(TaskControl):
    """A Control API server in this process, in a thread of its own.

    Use it as ``with ControlApiSimulator() as api`` or as ``async with ControlApiSimulator() as
    api``, with any event loop or none, or start and stop it yourself. All methods may be called
    from any thread. `Options` describes the other arguments.

    Args:
        port: The port to listen on; 0 for a free one, which a restart then takes again.
        clock: A clock in seconds, such as ``time.monotonic``, that may be read in any thread; None
            for one that starts at 0 and moves only by `advance` and ``tick``.
        log: Whether to keep a record of each request in `log`.
        own_thread: False serves in the event loop that starts it, which only ``async with`` and
            `start` can do: for tests on a loop whose clock is not the real one.
    """

    _port: int = field(default=0, alias="port")
    own_thread: bool = field(default=True, on_setattr=setters.frozen)
    _front: Front | None = field(default=None, init=False)
    _thread: ServerThread | None = field(default=None, init=False)

    def __repr__(self) -> str:
        state = "stopped" if self._front is None else "running"
        return f"<ControlApiSimulator {self.url} {state}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._forget_hook_errors(exc_type)
        await self.stop()

    def __enter__(self) -> Self:
        self.start_sync()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._forget_hook_errors(exc_type)
        self.stop_sync()

    async def start(self) -> None:
        """Listen; after `stop`, on the same port again.

        Raises:
            RuntimeError: It runs already.
            OSError: The port is taken.
        """
        if self.own_thread:
            # This blocks the loop for a few milliseconds, but cannot be cancelled half way.
            self.start_sync()
            return
        front = self._new_front()
        self._port = await front.start(self._port)
        self._front = front

    def start_sync(self) -> None:
        """Listen, as `start`, without an event loop.

        Raises:
            RuntimeError: It runs already, or is not to have a thread of its own.
            OSError: The port is taken.
        """
        self._need_thread()
        front = self._new_front()
        thread = ServerThread(front)
        self._port = thread.start(self._port)
        self._front, self._thread = front, thread

    async def stop(self) -> None:
        """Stop listening and abort every connection; tasks, counters and faults stay as they are.

        Raises:
            ExceptionGroup: A hook raised since the start.
        """
        if self.own_thread:
            self._stop_thread()
            await let_loop_turn()
        else:
            front, self._front = self._front, None
            if front is not None:
                await front.stop()
        self._raise_hook_errors()

    def stop_sync(self) -> None:
        """Stop, as `stop`, without an event loop.

        Raises:
            ExceptionGroup: A hook raised since the start.
        """
        self._need_thread()
        self._stop_thread()
        self._raise_hook_errors()

    @property
    def port(self) -> int:
        """The port; 0 before the first start, when it was not given."""
        return self._port

    @property
    def url(self) -> str:
        """The base URL to give a client, prefix included."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.ssl_context else 'http'}://{host}:{self._port}{self.prefix}"

    @property
    def endpoint(self) -> str:
        """The URL that requests are posted to."""
        return self.url + PATH

    def _new_front(self) -> Front:
        if self._front is not None:
            raise RuntimeError("the simulator runs already")
        return Front(self._processor, self)

    def _need_thread(self) -> None:
        if not self.own_thread:
            raise RuntimeError("without a thread of its own, use it with `async with`")

    def _stop_thread(self) -> None:
        thread, self._thread, self._front = self._thread, None, None
        if thread is not None:
            thread.stop()

    def _raise_hook_errors(self) -> None:
        errors, self._processor.hook_errors = self._processor.hook_errors, []
        if errors:
            raise ExceptionGroup("hooks of the simulator raised", errors)

    def _forget_hook_errors(self, raised: type[BaseException] | None) -> None:
        # A failing hook is often why; it must not hide the error that is on its way.
        if raised is not None:
            self._processor.hook_errors.clear()
