"""A pytest plugin: the fixture `control_api`, a running simulator for anybody's tests.

It is there as soon as the package is installed, and it is a plain fixture: sync tests can use it,
and async tests under whatever plugin runs them::

    async def test_our_service_cancels(control_api):
        control_api.add_tasks([64, 65], "Running", project_id=2)
        await our_service.cancel(control_api.url, project_id=2, task_ids=[64, 65])
        assert control_api.tasks[64].stopped
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ctrlapi_async.simulator import ControlApiSimulator


@pytest.fixture
def control_api() -> Iterator[ControlApiSimulator]:
    """Return a running `ControlApiSimulator` without tasks; it stops after the test."""
    # Not before: what a plugin imports, a measurement of coverage does not see.
    from ctrlapi_async.simulator import ControlApiSimulator  # noqa: PLC0415

    with ControlApiSimulator() as api:
        yield api
