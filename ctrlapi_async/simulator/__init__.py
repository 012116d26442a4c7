"""A Control API server to test against, with tasks that live on a clock and faults on a script.

It runs inside a test, in a thread of its own, on a free port of the loopback interface::

    with ControlApiSimulator() as api:  # or: async with
        api.add_tasks(range(1, 1001), "Running", project_id=2)
        api.fault(HttpStatus(503), method="TaskStop", number=2)
        ...  # let the code under test talk to api.url
        assert api.tasks[66].stopped
        assert api.counters.peak <= 8

It knows TaskStatus and TaskStop and is strict about every request: whatever is not documented is
refused with a 400 that says what is wrong and where. It shares no code with the client of this
package, so that one cannot repeat the other's mistakes.

A Stalled task can be restarted as a new task with a new id, as the server does it::

    api.add_task(64, "Stalled", restarts=1)  # 64 is Stalled, and 1064 is Running
    api.add_task(65, life=[(30.0, "Stalled")], restarts=2)  # on the clock, twice
    new_id = api.restart(66)  # now

What happens to a request, in this order:

1. It is read, numbered, counted and logged.
2. It waits for the gates of `ControlApiSimulator.hold`.
3. It takes effect, unless a fault says that it does not, and its reply is made; ``tick`` moves the
   clock.
4. It waits for the gates made with ``effect=True``, then for the latency.
5. The reply, or what the fault made of it, is sent.

What happens between two waits happens at once: a test that has seen a request arrive
(`ControlApiSimulator.wait_for_requests`) sees its effect too, unless a gate holds it.
"""

from ctrlapi_async.simulator._faults import (
    Body,
    CutBody,
    Delay,
    Drop,
    Fault,
    Hang,
    HttpStatus,
    Rewrite,
    SlowBody,
)
from ctrlapi_async.simulator._handles import SimulatedTask
from ctrlapi_async.simulator._options import (
    DeniedNames,
    Missing,
    Options,
    SignatureRefusal,
)
from ctrlapi_async.simulator._records import Counters, Gate, RequestRecord
from ctrlapi_async.simulator._requests import RestartChain
from ctrlapi_async.simulator._rows import ChainForm, ErrorForm, RowForm
from ctrlapi_async.simulator._simulator import ControlApiSimulator
from ctrlapi_async.simulator._tasks import STATUSES, Restart

__all__ = [
    "STATUSES",
    "Body",
    "ChainForm",
    "ControlApiSimulator",
    "Counters",
    "CutBody",
    "Delay",
    "DeniedNames",
    "Drop",
    "ErrorForm",
    "Fault",
    "Gate",
    "Hang",
    "HttpStatus",
    "Missing",
    "Options",
    "RequestRecord",
    "Restart",
    "RestartChain",
    "Rewrite",
    "RowForm",
    "SignatureRefusal",
    "SimulatedTask",
    "SlowBody",
]
